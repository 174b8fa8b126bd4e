"""Latents to sound and back, for the pipelines that are known here and for any other by two functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..generation.autoencoder import fold, from_latents, to_latents
from ..generation.mel import MelSpec, log_mel, prepare_waveform
from ..generation.vocoder import vocode
from .windows import crop, fitted

HALO = 8  # latent frames beside a window of a log-mel: an autoencoder's convolutions reach this far


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """What a pipeline's latents sound like: (B, C, T) or (B, C, T, bands), with time on the third axis.

    Attributes
    ----------
    decode
        Sound (B, time) or (B, channels, time) of latents in the sampler's scale; differentiable.
    encode
        Latents, in that scale, of mono sound (B, time), a multiple of ``samples_per_frame`` long.
    samples_per_frame
        Samples that a latent frame stands for.
    rate_hz
        Of the sound.
    halo
        Latent frames beyond a window that the sound in it depends on.
    frames
        Latent frames of a sound of the pipeline's usual length.
    """

    decode: Callable[[torch.Tensor], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    samples_per_frame: int
    rate_hz: int
    halo: int
    frames: int

    @classmethod
    def of(cls, pipe: Any) -> LatentCodec:
        """The codec of a pipeline: Stable Audio's Oobleck, or an autoencoder of log-mels with a vocoder.

        Raises
        ------
        ValueError
            The pipeline has neither.
        """
        vae = getattr(pipe, "vae", None)
        if vae is not None and "downsampling_ratios" in vae.config:
            return _oobleck(vae, int(pipe.transformer.config.sample_size))
        if vae is None or getattr(pipe, "vocoder", None) is None:
            raise ValueError(
                f"a {type(pipe).__name__} has neither an Oobleck autoencoder nor one of log-mels with a vocoder; describe "
                "its latents with a LatentCodec of your own"
            )
        return _of_mels(pipe)

    @property
    def frame_s(self) -> float:
        """Seconds of a latent frame."""
        return self.samples_per_frame / self.rate_hz


def mel_of_pipeline(pipe: Any) -> MelSpec:
    """Settings of the log-mels of a pipeline that has a vocoder.

    AudioLDM's family says them by its vocoder alone: rate, hop (the product of its upsampling) and bands; the rest is as in
    AudioLDM.
    """
    if isinstance(own := getattr(pipe, "mel", None), MelSpec):
        return own
    config = pipe.vocoder.config
    hop = math.prod(config.upsample_rates)
    return MelSpec(sample_rate_hz=int(config.sampling_rate), hop_length=hop, n_mels=int(config.model_in_dim))


def usual_frames(pipe: Any) -> int:
    """Latent frames that a pipeline of log-mels makes unless a call says otherwise."""
    if isinstance(getattr(pipe, "mel", None), MelSpec):
        return int(pipe.latent_shape()[1])
    size = pipe.unet.config.sample_size
    return int(size[0] if isinstance(size, tuple | list) else size)


def encode_sound(vae: Any, spec: MelSpec, waves: torch.Tensor) -> torch.Tensor:
    """Latents of sound (B, time) by an autoencoder of log-mels, prepared as in training."""
    return to_latents(vae, log_mel(prepare_waveform(waves), spec).to(vae.device))


def oobleck_reach(ratios: list[int]) -> int:
    """Latent frames on each side that a sample of Oobleck's decoder depends on.

    Its kernels are fixed: 7 wide at the ends, in each block a transposed one that reaches one frame further and three of 7
    taps with dilations 1, 3 and 9, that is 39 samples at the block's own rate.

    >>> oobleck_reach([2, 4, 4, 8, 8])
    10
    """
    reach, rate = 3.0, 1
    for ratio in reversed(ratios):
        reach += 1 / rate + 39 / (rate * ratio)
        rate *= ratio
    return math.ceil(reach + 3 / rate)


def _oobleck(vae: Any, frames: int) -> LatentCodec:
    ratios = list(vae.config.downsampling_ratios)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        sound: torch.Tensor = vae.decode(latents.to(vae.dtype)).sample
        return sound

    def encode(waves: torch.Tensor) -> torch.Tensor:
        stereo = waves[:, None].expand(-1, vae.config.audio_channels, -1)
        latents: torch.Tensor = vae.encode(stereo.to(vae.device, vae.dtype)).latent_dist.mode()
        return latents

    rate = int(vae.config.sampling_rate)
    return LatentCodec(decode, encode, math.prod(ratios), rate, oobleck_reach(ratios), frames)


def _of_mels(pipe: Any) -> LatentCodec:
    vae, vocoder, spec = pipe.vae, pipe.vocoder, mel_of_pipeline(pipe)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        mel = from_latents(vae, latents)
        return vocode(vocoder, mel, spec.samples(mel.shape[2]))

    def encode(waves: torch.Tensor) -> torch.Tensor:
        return encode_sound(vae, spec, waves)

    hop = spec.samples(fold(vae))
    return LatentCodec(decode, encode, hop, spec.sample_rate_hz, HALO, usual_frames(pipe))


def window_of_sound(codec: LatentCodec, x0: torch.Tensor, *, start: int, length: int) -> torch.Tensor:
    """A window of what latents sound like, mono; only what it depends on is decoded.

    Parameters
    ----------
    x0
        (B, C, T, ...) in the sampler's scale.
    start, length
        In samples at the codec's rate; what lies behind the end is zeros.

    Returns
    -------
    Tensor (B, length)
        float32, or float64 where the codec computes in it.

    Raises
    ------
    ValueError
        A gradient is wanted that the vocoder does not pass.
    """
    part = crop(start, length, per_frame=codec.samples_per_frame, frames=x0.shape[2], halo=codec.halo)
    latents = x0[:, :, part.first : part.last]
    sound = codec.decode(latents)
    if latents.requires_grad and torch.is_grad_enabled() and not sound.requires_grad:
        raise ValueError(
            "the sound passes no gradient to the latents (a Griffin-Lim vocoder does not); take MelOnLatents, another vocoder, "
            "or guide without the dissimilarity term"
        )
    mono = sound.mean(1) if sound.ndim == 3 else sound
    exact = mono if mono.dtype == torch.float64 else mono.float()
    return fitted(exact[:, part.offset :], length, 1)
