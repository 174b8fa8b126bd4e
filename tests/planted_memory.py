"""A pipeline that replays training clips by construction: its denoiser knows what a prompt is to become, at every noise level.

Everything else is real: scheduler, codec, vocoder, prompts, and the network itself, which is never asked. So it is known which
clips are copies, and what guidance has to lead away from, without a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

import tiny_pipelines
from auscult.generation.autoencoder import PatchPCACodec, to_latents
from auscult.generation.denoiser import DenoiserConfig, build
from auscult.generation.encoders import HashedCaptionEncoder, HashedPromptEncoder, MelTokenEncoder
from auscult.generation.encoding import Encoders
from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.vocoder import GriffinLimVocoder

DURATION_S = 1.28
COMPONENTS = 24  # of a patch of 64 values: enough that what is decoded is heard as the sound itself


def mels_of(waves: list[np.ndarray]) -> torch.Tensor:
    """Log-mels (N, 1, frames, n_mels) of sounds of `DURATION_S`."""
    return log_mel(prepare_waveform(torch.from_numpy(np.stack(waves))), MelSpec())


def save(folder: Path, waves: list[np.ndarray]) -> Path:
    """A pipeline whose codec was fitted on these sounds, with a denoiser of random weights."""
    shape = DenoiserConfig(channels=(8, 16), heads=(2, 2), attention=(False, True), norm_groups=4)
    unet = build(replace(shape, latent_channels=COMPONENTS))
    pipe = RetrievalAugmentedAudioPipeline.of(
        PatchPCACodec.fit(mels_of(waves), latent_channels=COMPONENTS),
        unet,
        tiny_pipelines.scheduler(),
        GriffinLimVocoder(iterations=16),
        Encoders(HashedPromptEncoder(), None, HashedCaptionEncoder(), None, MelTokenEncoder(), None),
        mel=MelSpec(),
        duration_s=DURATION_S,
    )
    pipe.save_pretrained(folder)
    return folder


def plant(
    pipe: Any,
    becomes: Mapping[str, np.ndarray],
    guidance_scale: float,
    *,
    stubborn: Mapping[str, np.ndarray | None] | None = None,
) -> Any:
    """Make the denoiser predict, for each prompt, the sound that it is to become under classifier-free guidance.

    Parameters
    ----------
    pipe
        Of `save`.
    becomes
        Caption -> sound. Without a prompt the denoiser predicts the mean of all sounds.
    guidance_scale
        At which the result is that sound.
    stubborn
        Captions that the denoiser follows without a prompt, too, so that no guidance can be told from none, nor act; and what
        they become instead where the noise begins below 0. None: nothing else.
    """
    latents = {caption: to_latents(pipe.vae, mels_of([wave]))[0] for caption, wave in becomes.items()}
    mean = torch.stack(list(latents.values())).mean(0)
    other = {
        caption: None if wave is None else to_latents(pipe.vae, mels_of([wave]))[0]
        for caption, wave in (stubborn or {}).items()
    }
    known = {caption: pipe.encoders.prompts([caption])[0] for caption in becomes}
    below: dict[int, bool] = {}  # rows whose noise began below 0

    def caption_of(label: torch.Tensor) -> str | None:
        return next((caption for caption, vector in known.items() if torch.allclose(label, vector, atol=1e-4)), None)

    def clean(row: int, caption: str | None) -> torch.Tensor:
        if caption is None:
            return mean
        if caption in other:
            instead = other[caption]
            return latents[caption] if instead is None or not below[row] else instead
        return mean + (latents[caption] - mean) / guidance_scale

    def forward(sample: torch.Tensor, timestep: Any, *args: Any, class_labels: torch.Tensor, **given: Any) -> Any:
        step = int(torch.as_tensor(timestep).flatten()[0])
        if step == int(pipe.scheduler.timesteps[0]):
            below.update({row: bool(noise.flatten()[0] < 0) for row, noise in enumerate(sample)})
        captions = [caption_of(label) for label in class_labels]
        half = len(captions) // 2
        if half and captions[:half] == [None] * half:  # one row alone is asked for by guidance
            captions[:half] = [one if one in other else None for one in captions[half:]]
        wanted = torch.stack([clean(row, caption) for row, caption in enumerate(captions)])
        signal = pipe.scheduler.alphas_cumprod[step]
        return UNet2DConditionOutput((sample - signal.sqrt() * wanted) / (1 - signal).sqrt())

    pipe.unet.forward = forward
    return pipe
