"""Means of the latents themselves as a descriptor: nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..descriptors import DescriptorSpec
from ..generation.weights import weights_digest
from .codecs import LatentCodec
from .latents import finite
from .windows import DescribedAudio, FloatArray, describe_waves


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Means of latents over blocks of time, for each channel (and row of bands): ``D_bc = mean_(t in block b) x0_ct``.

    Nothing is decoded, so that it costs next to nothing. References are encoded once with the pipeline's own autoencoder,
    whose weights are a part of the spec. It compares the same moments only, and cannot hear that latents stand for silence.

    Parameters
    ----------
    codec
        Of the pipeline.
    digest
        Of the autoencoder.
    frames
        Latent frames that are described, from the beginning; latents with fewer are refused.
    block
        Latent frames of a block.
    center
        As in :class:`~auscult.guidance.latents.MelOnLatents`.
    """

    codec: LatentCodec
    digest: str
    frames: int
    block: int
    center: bool = True

    store_spec = None
    window_s = None

    def __post_init__(self) -> None:
        if not 1 <= self.block <= self.frames:
            raise ValueError(f"a block should be from 1 to {self.frames} latent frames, all that count; got {self.block}")

    @classmethod
    def of(
        cls,
        pipe: Any,
        *,
        duration_s: float | None = None,
        block_s: float = 0.5,
        codec: LatentCodec | None = None,
        center: bool = True,
    ) -> LatentStatistics:
        """The descriptor of a pipeline.

        Parameters
        ----------
        duration_s
            How much of a sound counts, from its beginning; by default the pipeline's usual length.
        block_s
            Length of a block; at least one latent frame.
        codec
            By default that of the pipeline.
        """
        codec = LatentCodec.of(pipe) if codec is None else codec
        frames = codec.frames if duration_s is None else max(1, int(duration_s / codec.frame_s + 1e-6))
        block = min(frames, max(1, round(block_s / codec.frame_s)))
        return cls(codec, weights_digest(pipe.vae)[:32], frames, block, center)

    @property
    def spec(self) -> str:
        """``latent-statistics/1(...)`` with the digest of the autoencoder."""
        sizes = {"frames": self.frames, "block": self.block, "center": int(self.center), "rate_hz": self.rate_hz}
        return str(DescriptorSpec("latent-statistics", 1, (("codec", self.digest), *sizes.items())))

    @property
    def rate_hz(self) -> int:
        """That of the codec."""
        return self.codec.rate_hz

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`; all steps are alike."""
        if x0.shape[2] < self.frames:
            raise ValueError(
                f"expected latents of {self.frames} frames or more, got {x0.shape[2]}; make the descriptor with the "
                "duration_s of the sounds that are sampled"
            )
        exact = x0 if x0.dtype == torch.float64 else x0.float()
        blocks = [block.mean(2) for block in exact[:, :, : self.frames].split(self.block, dim=2)]
        return finite(torch.stack(blocks, 1).flatten(1), self.spec)

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`."""
        return describe_waves(waves, rate_hz, self.rate_hz, self.frames * self.codec.samples_per_frame, self._of_windows)

    def _of_windows(self, windows: FloatArray) -> FloatArray:
        with torch.no_grad():
            return np.asarray(self.describe(self.codec.encode(torch.from_numpy(windows))).float().cpu().numpy())
