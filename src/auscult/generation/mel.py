"""The log-mel front end in torch: what the autoencoder compresses and the vocoder turns back into sound.

A log-mel is always raw, the natural logarithm of magnitudes, of shape (B, 1, frames, n_mels).

Sources: the public AudioLDM training code (frames reflected by ``(n_fft - hop) / 2``, after HiFi-GAN) and TANGO's
(reflected by ``n_fft / 2``, after Tacotron 2). They differ by a shift of ``hop / 2`` samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812

from ..descriptors.mel import mel_filterbank

Padding = Literal["reflect", "tacotron"]


@dataclass(frozen=True)
class MelSpec:
    """The settings of a log-mel; the defaults are those of AudioLDM, Re-AudioLDM and (but for the padding) TANGO.

    Attributes
    ----------
    sample_rate_hz
        Of the waveform.
    n_fft, win_length, hop_length
        Transform, Hann window (centered in the transform if shorter) and distance of frames, in samples.
    n_mels, f_min, f_max
        Slaney's mel bands from ``f_min`` to ``f_max`` in Hz.
    floor
        Magnitudes are raised to it before the logarithm: 1e-5, so that silence is -11.5.
    padding
        ``"reflect"``: the ends are mirrored by ``(n_fft - hop_length) / 2``, and frame i is centered on the middle of the
        hop, as HiFi-GAN's training has it. ``"tacotron"``: by ``n_fft / 2``, and frame i is centered on sample
        ``i * hop_length``; the frame that this makes too many is dropped, as in TANGO.

    Examples
    --------
    >>> spec = MelSpec()
    >>> spec.frames(163_840), spec.samples(1024)
    (1024, 163840)
    >>> MelSpec.from_dict(spec.to_dict()) == spec
    True
    """

    sample_rate_hz: int = 16_000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 160
    n_mels: int = 64
    f_min: float = 0.0
    f_max: float = 8000.0
    floor: float = 1e-5
    padding: Padding = "reflect"

    def __post_init__(self) -> None:
        if self.padding not in get_args(Padding):
            raise ValueError(f"padding should be {' or '.join(map(repr, get_args(Padding)))}, got {self.padding!r}")
        if not 0 < self.hop_length <= self.win_length <= self.n_fft:
            given = f"hop_length {self.hop_length}, win_length {self.win_length}, n_fft {self.n_fft}"
            raise ValueError(f"hop_length should be at most win_length, and that at most n_fft, in samples; got {given}")
        if self.padding == "reflect" and (self.n_fft - self.hop_length) % 2:
            given = f"{self.n_fft} - {self.hop_length}"
            raise ValueError(f"n_fft - hop_length should be even where half of it is mirrored, got {given}")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate_hz / 2:
            band = f"from {self.f_min:g} to {self.f_max:g} Hz at {self.sample_rate_hz} Hz"
            raise ValueError(f"bands should go up, and to half the sample rate at most; got {band}")
        if self.n_mels < 1 or not self.floor > 0:
            raise ValueError(f"n_mels should be 1 or more and floor above 0, got {self.n_mels} and {self.floor:g}")

    @property
    def edge(self) -> int:
        """Samples by which each end is mirrored: 432 by default."""
        return (self.n_fft - self.hop_length) // 2 if self.padding == "reflect" else self.n_fft // 2

    def frames(self, n_samples: int) -> int:
        """Frames of a waveform: the whole hops that it has."""
        return n_samples // self.hop_length

    def samples(self, n_frames: int) -> int:
        """Samples that frames stand for."""
        return n_frames * self.hop_length

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, as a pipeline's configuration keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> MelSpec:
        """Read what :meth:`to_dict` wrote; missing settings have their defaults.

        Raises
        ------
        ValueError
            An unknown setting, or one out of range.
        """
        if unknown := settings.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"a log-mel has no settings {', '.join(sorted(unknown))}; it has {', '.join(MelSpec().to_dict())}")
        return cls(**settings)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> MelSpec:
        """Out of a module's configuration that holds all settings among its own."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})


def prepare_waveform(wave: torch.Tensor) -> torch.Tensor:
    """Take the mean off each waveform and scale it to a peak of 0.5; silence (and any constant) becomes zeros.

    Parameters
    ----------
    wave
        (..., time).

    Returns
    -------
    Tensor
        The same shape and type.

    Examples
    --------
    >>> prepare_waveform(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    tensor([[-0.5000,  0.5000],
            [ 0.0000,  0.0000]])
    """
    largest = wave.abs().amax(dim=-1, keepdim=True)
    centered = wave - wave.mean(dim=-1, keepdim=True)
    peak = centered.abs().amax(dim=-1, keepdim=True)
    # a constant leaves rounding behind, which must not be blown up to full scale
    constant = peak <= 4 * torch.finfo(wave.dtype).eps * largest
    return torch.where(constant, torch.zeros_like(centered), 0.5 * centered / torch.where(constant, 1.0, peak))


def log_mel(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """The raw log-mel ``ln max(M |STFT(x)|, floor)`` of waveforms.

    M are Slaney's mel filters, the window is a periodic Hann window. The transform is computed in float64 (where the
    device has it): float32 is off by up to 0.001 nat in the quiet bands of field recordings.

    Parameters
    ----------
    wave
        (B, time) at ``spec.sample_rate_hz``, mono, in [-1, 1].

    Returns
    -------
    Tensor (B, 1, time // hop_length, n_mels) float32
        Differentiable.

    Raises
    ------
    ValueError
        Not of two dimensions, or too short to mirror its ends.

    Examples
    --------
    >>> mel = log_mel(torch.zeros(2, 16_000), MelSpec())
    >>> mel.shape, round(mel.max().item(), 3)
    (torch.Size([2, 1, 100, 64]), -11.513)
    """
    if wave.ndim != 2:
        raise ValueError(f"expected waveforms of shape (B, time), got {tuple(wave.shape)}")
    if wave.shape[1] <= spec.edge:
        raise ValueError(f"a log-mel needs more than {spec.edge} samples, got {wave.shape[1]}; fill up with zeros")
    exact = wave.float() if wave.device.type == "mps" else wave.double()
    padded = F.pad(exact, (spec.edge, spec.edge), mode="reflect")
    spectrum = torch.stft(
        padded,
        spec.n_fft,
        spec.hop_length,
        spec.win_length,
        window=torch.hann_window(spec.win_length, dtype=exact.dtype, device=exact.device),
        center=False,
        return_complex=True,
    )
    magnitude = spectrum.abs()[..., : spec.frames(wave.shape[1])]
    bands = filters(spec).to(magnitude) @ magnitude
    return bands.clamp(min=spec.floor).log().float().mT.unsqueeze(1)


@lru_cache(maxsize=8)
def filters(spec: MelSpec) -> torch.Tensor:
    """The mel filters M (n_mels, n_fft // 2 + 1) float32, on the CPU; not to be written to."""
    return torch.from_numpy(mel_filterbank(spec.sample_rate_hz, spec.n_fft, spec.n_mels, spec.f_max, spec.f_min))
