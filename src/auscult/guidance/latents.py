"""Latent descriptors: vectors of what a sampler is about to make, comparable with vectors of the references.

================================ ================================================ ========================================
class                            what it describes                                for
================================ ================================================ ========================================
``latents.MelOnLatents``         the log-mel that the autoencoder makes           AudioLDM's family, TANGO, our pipeline
``decoded.DecodedMel``           the sound, by the mel descriptor of the audit    any pipeline, Stable Audio above all
``clap_latents.ClapOnAudio``     the sound, by CLAP                               any pipeline
``statistics.LatentStatistics``  means of the latents themselves                  any pipeline; nothing is decoded
================================ ================================================ ========================================

All draw nothing at random: equal latents have equal vectors, and no generator's state is touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..descriptors import DescriptorSpec
from ..descriptors import mel as audit
from ..descriptors.mel import MelDescriptor
from ..errors import ModelError
from ..generation.autoencoder import fold, from_latents
from ..generation.mel import MelSpec, log_mel, prepare_waveform
from ..generation.reconstruction import descriptors
from .codecs import HALO, mel_of_pipeline, usual_frames
from .windows import DescribedAudio, FloatArray, Layout, crop, describe_waves, fitted, start_of_step

SHORTEST_S = 0.1  # of a mel descriptor's windows


class LatentDescriptor(Protocol):
    """What describes latents and sounds alike.

    An implementation reads nothing but its arguments: the same latents at the same step have the same vector, whatever the
    generators. Errors are not caught, and a value that is not finite is a ``ModelError``: a term that vanished silently would
    look like protection.
    """

    @property
    def spec(self) -> str:
        """Name and every setting that changes a vector of a reference, its rate included; equal where vectors compare."""

    @property
    def store_spec(self) -> DescriptorSpec | None:
        """The descriptor whose stores hold vectors that compare with these; None: none does."""

    @property
    def center(self) -> bool:
        """Whether an index takes the mean of all references off."""

    @property
    def rate_hz(self) -> int:
        """Rate of the sounds that references are described at."""

    @property
    def window_s(self) -> float | None:
        """Length of what one vector describes; None: the beginning of the latents, once."""

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """Vectors of clean latents.

        Parameters
        ----------
        x0
            (B, ...), in the sampler's scale.
        step
            How many times these samples were described before. Latents that last longer than a window are described window
            by window, one a time.

        Returns
        -------
        Tensor (B, D)
            float32 (float64 where the model computes in it), differentiable, not of unit length. A row of zeros stands for
            silence, which is similar to nothing and has no gradient.

        Raises
        ------
        ModelError
            A value is not finite.
        """

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        """Vectors of reference sounds (time,), mono at ``rate_hz``: one for each window, which overlap by half."""


def finite(vectors: torch.Tensor, spec: str) -> torch.Tensor:
    """The vectors, if all their values are finite.

    Raises
    ------
    ModelError
        They are not.
    """
    if not torch.isfinite(vectors).all():
        rows = (~torch.isfinite(vectors).flatten(1).all(1)).nonzero().flatten().tolist()
        raise ModelError(
            f"{spec}: values that are not finite in rows {rows}; the denoiser or the decoder overflows in this dtype (try "
            "float32 or bfloat16), or its weights are damaged"
        )
    return vectors


def seconds_heard(total: int, rate: float, duration_s: float | None) -> int:
    """Units of a sound that count: all, or those of its first ``duration_s`` seconds."""
    return total if duration_s is None else min(total, max(1, round(duration_s * rate)))


@dataclass(frozen=True, eq=False)
class MelOnLatents:
    """The audit's mel descriptor, read off the log-mel that the autoencoder makes of latents; no vocoder.

    ``D = max(10 log10(T exp(mel)^2 W / max), -40)``, see :func:`auscult.generation.reconstruction.descriptors`. References are
    the same of their own log-mel, or vectors of a store of ``mel/1`` with the same window, which are close to it.

    Where latents last longer than a window, the frames of the window are decoded with ``halo`` latent frames on each side. An
    autoencoder with norms over all frames (or attention) then gives nearly what it gives of the whole.

    Parameters
    ----------
    vae
        Autoencoder of raw log-mels, with the interface of diffusers' ``AutoencoderKL``.
    mel
        Settings of the log-mels.
    window_s
        Length of a window; 10.242 compares with the audit's stores.
    center
        Levels in dB are mostly common to all sounds, so that cosines crowd near 1; centered, unrelated ones are about 0.
    duration_s
        What counts of longer latents, from their beginning; by default all.
    halo
        See above.

    Raises
    ------
    ValueError
        The window is not from 0.1 to 600 seconds.

    Examples
    --------
    >>> from auscult.generation.autoencoder import PatchPCACodec
    >>> by = MelOnLatents(PatchPCACodec(), MelSpec(), window_s=0.32)
    >>> by.describe(torch.randn(2, 8, 4, 8)).shape, str(by.store_spec)
    (torch.Size([2, 64]), 'mel/1(duration_s=0.32)')
    """

    vae: Any
    mel: MelSpec
    window_s: float
    center: bool = True
    duration_s: float | None = None
    halo: int = HALO

    def __post_init__(self) -> None:
        MelDescriptor(self.window_s)  # refuses a window out of range

    @classmethod
    def of(cls, pipe: Any, *, window_s: float | None = None, **settings: Any) -> MelOnLatents:
        """The descriptor of a pipeline with an autoencoder of log-mels; a window is by default as long as its sounds are."""
        if getattr(pipe, "vocoder", None) is None:
            raise ValueError(f"a {type(pipe).__name__} has no autoencoder of log-mels; take DecodedMel or LatentStatistics")
        mel = mel_of_pipeline(pipe)
        if window_s is None:
            window_s = max(SHORTEST_S, usual_frames(pipe) * fold(pipe.vae) * mel.hop_length / mel.sample_rate_hz)
        return cls(pipe.vae, mel, window_s, **settings)

    @property
    def spec(self) -> str:
        """``mel-on-latents/1(...)`` with the window and all settings of the log-mel."""
        settings = {"window_s": float(self.window_s), "center": int(self.center), **self.mel.to_dict()}
        return str(DescriptorSpec("mel-on-latents", 1, tuple(settings.items())))

    @property
    def store_spec(self) -> DescriptorSpec:
        """``mel/1`` with the window."""
        return MelDescriptor(self.window_s).spec

    @property
    def rate_hz(self) -> int:
        """That of the log-mel."""
        return self.mel.sample_rate_hz

    @property
    def frames(self) -> int:
        """Frames of the log-mel in a window: as many as the descriptor's windows need."""
        needed = (MelDescriptor(self.window_s).n_frames - 1) * audit.HOP / audit.SAMPLE_RATE_HZ
        per_second = self.mel.sample_rate_hz / self.mel.hop_length
        return max(int(self.window_s * per_second + 1e-6), math.ceil(needed * per_second - 1e-6))

    @property
    def layout(self) -> Layout:
        """Bands, each with its windows in time."""
        return Layout((audit.N_MELS, -1), 1, audit.HOP / audit.SAMPLE_RATE_HZ)

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """See :class:`LatentDescriptor`; x0 is (B, C, T, bands)."""
        per_frame, frames = fold(self.vae), self.frames
        per_second = self.mel.sample_rate_hz / self.mel.hop_length
        total = seconds_heard(x0.shape[2] * per_frame, per_second, self.duration_s)
        start = start_of_step(total, frames, step)
        part = crop(start, min(frames, total), per_frame=per_frame, frames=x0.shape[2], halo=self.halo)
        mel = from_latents(self.vae, x0[:, :, part.first : part.last])[:, :, part.offset :]
        exact = mel if mel.dtype == torch.float64 else mel.float()
        heard_only = fitted(exact, min(frames, total), 2)
        return self._of_mels(fitted(heard_only, frames, 2, math.log(self.mel.floor)))

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        """See :class:`LatentDescriptor`."""
        return describe_waves(waves, rate_hz, self.rate_hz, self.mel.samples(self.frames), self._of_windows)

    def _of_windows(self, windows: FloatArray) -> FloatArray:
        mels = log_mel(prepare_waveform(torch.from_numpy(windows)), self.mel)
        return np.asarray(self._of_mels(mels).numpy())

    def _of_mels(self, mels: torch.Tensor) -> torch.Tensor:
        """Vectors of raw log-mels (B, 1, frames, n_mels); zeros where nothing is above the floor."""
        finite(mels.flatten(1), self.spec)
        top = mels.detach().amax((1, 2, 3), keepdim=True)
        heard = top > math.log(self.mel.floor) + 1e-3
        # levels are relative to the loudest: without it a wild early estimate would overflow
        vectors = descriptors(torch.where(heard, mels - top, torch.zeros_like(mels)), self.mel)
        return finite(torch.where(heard[:, 0, 0], vectors, torch.zeros_like(vectors)), self.spec)
