"""The mel descriptor of the audit, of what latents sound like; differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from ..audio import SILENT_PEAK
from ..descriptors import DescriptorSpec
from ..descriptors import mel as audit
from ..descriptors.mel import MelDescriptor
from .codecs import LatentCodec, window_of_sound
from .latents import SHORTEST_S, finite, seconds_heard
from .resampling import resample
from .windows import DescribedAudio, FloatArray, describe_waves, fitted, start_of_step


@dataclass(frozen=True, eq=False)
class DecodedMel:
    """:class:`~auscult.descriptors.mel.MelDescriptor` of decoded sound: 16 mel bands in dB below the maximum of a window.

    References are that descriptor's own vectors, of sounds or of a store of ``mel/1`` with the same window. The sound is mixed
    down and resampled to 16 kHz. It is the costly sibling of ``MelOnLatents``, for pipelines that have no log-mel.

    Parameters
    ----------
    codec
        Of the pipeline.
    window_s
        Length of a window; of longer latents each step decodes one, with the latent frames beside it that it depends on.
    center, duration_s
        As in :class:`~auscult.guidance.latents.MelOnLatents`.

    Raises
    ------
    ValueError
        The window is not from 0.1 to 600 seconds.
    """

    codec: LatentCodec
    window_s: float
    center: bool = True
    duration_s: float | None = None

    def __post_init__(self) -> None:
        MelDescriptor(self.window_s)  # refuses a window out of range

    @classmethod
    def of(cls, pipe: Any, *, window_s: float | None = None, codec: LatentCodec | None = None, **settings: Any) -> DecodedMel:
        """The descriptor of a pipeline; a window is by default as long as its sounds usually are."""
        codec = LatentCodec.of(pipe) if codec is None else codec
        usual_s = max(SHORTEST_S, codec.frames * codec.frame_s)
        return cls(codec, usual_s if window_s is None else window_s, **settings)

    @property
    def spec(self) -> str:
        """``decoded-mel/1(...)``; a reference's vector does not depend on the pipeline."""
        settings = {"window_s": float(self.window_s), "center": int(self.center), "rate_hz": self.rate_hz}
        return str(DescriptorSpec("decoded-mel", 1, tuple(settings.items())))

    @property
    def store_spec(self) -> DescriptorSpec:
        """``mel/1`` with the window."""
        return MelDescriptor(self.window_s).spec

    @property
    def rate_hz(self) -> int:
        """16 kHz."""
        return audit.SAMPLE_RATE_HZ

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`."""
        sound = sound_of_step(self.codec, x0, window_s=self.window_s, duration_s=self.duration_s, step=step)
        finite(sound, self.spec)
        wave = resample(sound, self.codec.rate_hz, self.rate_hz)
        return finite(mel_vectors(fitted(wave, MelDescriptor(self.window_s).window_samples, 1)), self.spec)

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`."""
        descriptor = MelDescriptor(self.window_s)
        return describe_waves(waves, rate_hz, self.rate_hz, descriptor.window_samples, descriptor.describe)


def sound_of_step(
    codec: LatentCodec, x0: torch.Tensor, *, window_s: float, duration_s: float | None, step: int
) -> torch.Tensor:
    """The window that a step describes, mono at the codec's rate: (B, at most ``window_s``)."""
    total = seconds_heard(x0.shape[2] * codec.samples_per_frame, codec.rate_hz, duration_s)
    window = round(window_s * codec.rate_hz)
    return window_of_sound(codec, x0, start=start_of_step(total, window, step), length=min(window, total))


def mel_vectors(waves: torch.Tensor) -> torch.Tensor:
    """What :class:`~auscult.descriptors.mel.MelDescriptor` makes of windows, in torch: computed in float64, differentiable.

    Parameters
    ----------
    waves
        (B, time) at 16 kHz.

    Returns
    -------
    Tensor (B, 16 * frames)
        dB below the maximum, in [-40, 0]; zeros where nothing sounds. float32, or float64 of float64.

    Examples
    --------
    >>> wave = torch.sin(2 * torch.pi * 500 * torch.arange(16_000) / 16_000)
    >>> ours = mel_vectors(wave[None])
    >>> theirs = MelDescriptor(1.0).describe(wave[None].numpy())
    >>> bool(abs(ours.numpy() - theirs).max() < 1e-3)
    True
    """
    exact = waves.float() if waves.device.type == "mps" else waves.double()
    peak = exact.detach().abs().amax(1, keepdim=True)
    heard = peak >= SILENT_PEAK
    scaled = torch.where(heard, exact / peak.clamp(min=SILENT_PEAK), torch.ones_like(exact))
    window, filters = (part.to(exact) for part in _tables())
    frames = F.pad(scaled, (audit.WINDOW // 2, audit.WINDOW // 2)).unfold(1, audit.WINDOW, audit.HOP)
    spectrum = torch.fft.rfft(frames * window, dim=-1)
    power = (spectrum.real.square() + spectrum.imag.square()) @ filters.T
    top = power.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    decibel = 10 * (power / top).clamp(min=10 ** (audit.FLOOR_DB / 10)).log10()
    vectors = torch.where(heard[:, :, None], decibel.mT, torch.zeros_like(decibel.mT)).flatten(1)
    return vectors if waves.dtype == torch.float64 else vectors.float()


@lru_cache(maxsize=1)
def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    """The periodic Hann window and the mel filters, both rounded to float32 as the audit's descriptor has them."""
    filters = audit.mel_filterbank(audit.SAMPLE_RATE_HZ, audit.WINDOW, audit.N_MELS, audit.F_MAX_HZ)
    return torch.hann_window(audit.WINDOW, dtype=torch.float64).float(), torch.from_numpy(filters)
