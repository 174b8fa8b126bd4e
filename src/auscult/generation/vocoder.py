"""From log-mels to sound: HiFi-GAN where one is trained, Griffin-Lim where none is.

Sources: Griffin & Lim, "Signal Estimation from Modified Short-Time Fourier Transform", IEEE TASSP 1984; Perraudin, Balazs &
Soendergaard, "A Fast Griffin-Lim Algorithm", WASPAA 2013; Lee & Seung, "Algorithms for Non-negative Matrix Factorization",
NIPS 2000 (the multiplicative update); Kong, Kim & Bae, "HiFi-GAN", NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .mel import MelSpec, Padding, filters

_MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm; Perraudin et al. find values about 1 best
_UPDATES = 40  # of the magnitudes; more change the bands by less than a hundredth of a neper
_TINY = 1e-10


class GriffinLimVocoder(ModelMixin, ConfigMixin):
    """Sound from log-mels without trained weights: recognizable, not good; ``preview_quality`` says so.

    1. Magnitudes: ``min ||M S - exp(mel)||`` over S >= 0 by multiplicative updates
       ``S <- S * (M' exp(mel)) / (M' M S)``, from S = M' exp(mel).
    2. Phases: the fast Griffin-Lim algorithm, from random phases that are the same for every log-mel and every call, so
       that the result depends on the log-mel alone.

    Frames are laid where :func:`~auscult.generation.mel.log_mel` took them from, so the sound is not shifted. Whatever type the
    module is of, it computes in float32: transforms of half the bits are not there on a processor, and would be of no use.

    Parameters
    ----------
    iterations
        Of the phases.
    seed
        Of the first phases.
    sample_rate_hz, n_fft, win_length, hop_length, n_mels, f_min, f_max, floor, padding
        Those of :class:`~auscult.generation.mel.MelSpec`.

    Examples
    --------
    >>> vocoder = GriffinLimVocoder(iterations=2)
    >>> vocoder(torch.full((2, 20, 64), -11.5)).shape
    torch.Size([2, 3200])
    """

    config_name = "config.json"
    preview_quality = True
    filters: torch.Tensor
    window: torch.Tensor

    @register_to_config
    def __init__(
        self,
        iterations: int = 32,
        seed: int = 0,
        sample_rate_hz: int = 16_000,
        n_fft: int = 1024,
        win_length: int = 1024,
        hop_length: int = 160,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        floor: float = 1e-5,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations should be 1 or more, got {iterations}")
        self.register_buffer("filters", filters(self.spec).clone())
        self.register_buffer("window", self._hann())

    @classmethod
    def of(cls, spec: MelSpec, **settings: int) -> GriffinLimVocoder:
        """The vocoder of a log-mel; ``settings`` are ``iterations`` and ``seed``."""
        return cls(**settings, **spec.to_dict())

    @property
    def spec(self) -> MelSpec:
        """The settings of the log-mels that it takes."""
        return MelSpec.of_config(self.config)

    @torch.no_grad()
    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Waveforms (B, frames * hop_length) of raw log-mels (B, frames, n_mels).

        Raises
        ------
        ValueError
            Another shape.
        """
        if mel.ndim != 3 or mel.shape[2] != self.config.n_mels:
            raise ValueError(f"expected log-mels of shape (B, frames, {self.config.n_mels}), got {tuple(mel.shape)}")
        self._use_float32()
        # one by one: faster on a processor, whose cache holds one, and a batch is bitwise what its items are
        return torch.cat([self._waveform(one) for one in mel.split(1)])

    def _use_float32(self) -> None:
        """Make the tables anew: a change of type rounds them, and what is gone does not come back with the type."""
        self.filters = filters(self.spec).to(self.filters.device, copy=True)
        self.window = self._hann().to(self.window.device)

    def _hann(self) -> torch.Tensor:
        """The window (n_fft,), zeros on both sides of ``win_length`` samples."""
        size, length = self.config.n_fft, self.config.win_length
        return F.pad(torch.hann_window(length), ((size - length) // 2, size - length - (size - length) // 2))

    def _waveform(self, mel: torch.Tensor) -> torch.Tensor:
        """The waveform (1, frames * hop_length) of one log-mel (1, frames, n_mels)."""
        magnitudes = self.magnitudes(mel)
        start = torch.rand(magnitudes.shape[1:], generator=torch.Generator().manual_seed(self.config.seed))
        phases = torch.polar(torch.ones_like(start), 2 * torch.pi * start).to(magnitudes.device)
        previous: torch.Tensor | None = None
        for _ in range(self.config.iterations):
            consistent = self._transform(self._overlap_add(magnitudes * phases))
            ahead = consistent if previous is None else consistent + _MOMENTUM * (consistent - previous)
            phases, previous = ahead / ahead.abs().clamp(min=_TINY), consistent
        wave = self._overlap_add(magnitudes * phases)
        edge, length = self.spec.edge, self.spec.samples(mel.shape[1])
        return wave[:, edge : edge + length]

    def magnitudes(self, mel: torch.Tensor) -> torch.Tensor:
        """Magnitudes (B, frames, n_fft // 2 + 1) whose bands are closest to those of raw log-mels (B, frames, n_mels).

        A band at the floor of the log-mel counts as silent: it may have been anything below.
        """
        bands = mel.float().exp()
        bands = torch.where(bands <= self.config.floor * 1.001, torch.zeros_like(bands), bands)
        wanted = bands @ self.filters
        result = wanted
        for _ in range(_UPDATES):
            result = result * wanted / ((result @ self.filters.T) @ self.filters).clamp(min=_TINY)
        return result

    def _transform(self, wave: torch.Tensor) -> torch.Tensor:
        """(B, time) -> spectra (B, frames, bins), nothing mirrored."""
        return torch.fft.rfft(wave.unfold(1, self.config.n_fft, self.config.hop_length) * self.window, dim=-1)

    def _overlap_add(self, spectra: torch.Tensor) -> torch.Tensor:
        """The waveform (B, (frames - 1) hop + n_fft) whose spectra are closest (Griffin & Lim, equation 6)."""
        size, hop = self.config.n_fft, self.config.hop_length
        frames = torch.fft.irfft(spectra, n=size, dim=-1) * self.window
        weights = (self.window**2).expand(1, frames.shape[1], size)
        length = (frames.shape[1] - 1) * hop + size
        wave, weight = (
            F.fold(part.mT, (1, length), (1, size), stride=(1, hop)).reshape(len(part), length) for part in (frames, weights)
        )
        return wave / weight.clamp(min=1e-3)  # at the very ends, which are cut off, the window leaves next to nothing


def hifigan(spec: MelSpec | Literal["audioldm"] = "audioldm", **settings: Any) -> Any:
    """A ``SpeechT5HifiGan`` of the configuration published with AudioLDM, with random weights: 55.3 M parameters.

    64 bands at 16 kHz with a hop of 160 = 5 * 4 * 2 * 2 * 2 samples; raw log-mels in (``normalize_before`` is off).

    Parameters
    ----------
    spec
        The log-mel it is for; checked, since no other configuration is published.
    settings
        Of ``SpeechT5HifiGanConfig``, such as a smaller ``upsample_initial_channel``.

    Raises
    ------
    ValueError
        The log-mel is another.
    """
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    if spec != "audioldm":
        found = (spec.sample_rate_hz, spec.n_mels, spec.hop_length)
        if found != (16_000, 64, 160):
            raise ValueError(
                "the published HiFi-GAN takes 64 bands at 16,000 Hz with a hop of 160 samples, "
                f"got {found[1]} bands at {found[0]:,} Hz with a hop of {found[2]}; take GriffinLimVocoder.of(spec)"
            )
    published = {
        "model_in_dim": 64,
        "sampling_rate": 16_000,
        "upsample_initial_channel": 1024,
        "upsample_rates": [5, 4, 2, 2, 2],
        "upsample_kernel_sizes": [16, 16, 8, 4, 4],
        "normalize_before": False,
    }
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**published, **settings}))


def vocode(vocoder: Any, mel: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Waveforms (B, n_samples) of raw log-mels.

    AudioLDM's HiFi-GAN gives 32 samples more than its frames stand for, since its first kernel is longer than it would have
    to be; they are cut off the end, as diffusers' pipelines do.

    Parameters
    ----------
    vocoder
        :class:`GriffinLimVocoder`, or a ``SpeechT5HifiGan``.
    mel
        (B, 1, frames, n_mels) or (B, frames, n_mels), of any type: HiFi-GAN is given its own, Griffin-Lim float32.

    Raises
    ------
    ValueError
        The log-mels stand for less than ``n_samples``.
    """
    frames = mel.squeeze(1) if mel.ndim == 4 else mel
    wave = vocoder(frames.float() if isinstance(vocoder, GriffinLimVocoder) else frames.to(vocoder.dtype))
    if wave.shape[-1] < n_samples:
        raise ValueError(f"{mel.shape[-2]} frames make {wave.shape[-1]} samples, fewer than the {n_samples} asked for")
    return wave[..., :n_samples]
