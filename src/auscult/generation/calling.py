"""One batch of audio from any pipeline that is known here: the same prompts and seeds in, the same kind of arrays out.

Each clip has a generator of its own on the CPU, so that its noise depends on its seed alone. Pipelines are asked for one
waveform a prompt: asked for several, diffusers ranks them by CLAP, and which seed made which would be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .pipelines import OURS, quiet
from .schedules import check_steps

FloatArray = npt.NDArray[np.float32]
OnStep = Callable[[], None]
Reference = tuple[str, FloatArray]
"""A retrieved pair: its caption and its waveform (time,) float32 mono at the pipeline's rate."""


@dataclass(frozen=True)
class Sampling:
    """How a clip is sampled.

    Attributes
    ----------
    steps
        Of denoising.
    guidance_scale
        w of classifier-free guidance: u + w (c - u) with the predictions u without and c with the prompt; 1 is no guidance.
    negative_prompt
        What u is given in place of nothing.
    duration_s
        Length of the clips in seconds; None: the model's own.
    retrieval_scale
        Scale of the retrieved pairs' own guidance, u + w (t - u) + s (c - t) with t for the prompt alone; None: w for both.
    """

    steps: int = 200
    guidance_scale: float = 3.0
    negative_prompt: str | None = None
    duration_s: float | None = None
    retrieval_scale: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps should be at least 1, got {self.steps}")
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale should be at least 1 (1 is no guidance), got {self.guidance_scale:g}")
        if self.retrieval_scale is not None and not 0 <= self.retrieval_scale < math.inf:
            raise ValueError(f"retrieval_scale should be at least 0 (0: pairs are not heard), got {self.retrieval_scale:g}")
        if self.negative_prompt is not None and self.guidance_scale == 1:
            raise ValueError("a negative prompt has no effect without guidance; give a guidance_scale above 1")
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise ValueError(f"duration_s should be above 0, got {self.duration_s:g}")


def generate_batch(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    references: Sequence[Sequence[Reference]] | None = None,
    on_step: OnStep = lambda: None,
) -> list[FloatArray]:
    """Make one clip of each prompt.

    Parameters
    ----------
    pipe
        Of :func:`~auscult.generation.pipelines.load_pipeline`.
    prompts, seeds
        (n,) each.
    sampling
        See there.
    references
        For retrieval-augmented pipelines: the pairs of each prompt, of which there may be none.
    on_step
        Called after each step of denoising.

    Returns
    -------
    list
        (n,) of (channels, time) float32 at :func:`~auscult.generation.pipelines.sample_rate_hz`; full scale is 1, but nothing
        is clipped.

    Raises
    ------
    ValueError
        The pipeline refuses an argument, or its sampler does not begin with noise alone in so many steps.
    ModelError
        What came out is not finite.
    """
    import torch

    if len(prompts) != len(seeds):
        raise ValueError(f"expected as many seeds as prompts, got {len(seeds)} and {len(prompts)}")
    kind = type(pipe).__name__
    if references is not None and kind != OURS:
        raise ValueError(f"a {kind} takes no retrieved pairs; only a {OURS} does")
    check_steps(type(pipe.scheduler).__name__, pipe.scheduler.config, sampling.steps)
    with quiet(), torch.no_grad():
        made = _CALLS[kind](pipe, list(prompts), list(seeds), sampling, references, on_step)
    audio = np.asarray(made, np.float32).reshape(len(prompts), -1, made.shape[-1])
    for prompt, clip in zip(prompts, audio, strict=True):
        if not np.isfinite(clip).all():
            raise ModelError(
                f"{kind}: what came out for {prompt[:60]!r} holds numbers that are not finite; its numbers overflow in this "
                "dtype (try float32), or its weights are damaged"
            )
    return list(audio)


def _generators(seeds: Sequence[int]) -> list[Any]:
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _common(sampling: Sampling, seeds: Sequence[int], on_step: OnStep) -> dict[str, Any]:
    """Arguments that all of diffusers' pipelines have."""
    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "generator": _generators(seeds),
        "callback": lambda step, timestep, latents: on_step(),
        "output_type": "np",
    }


def _negatives(prompts: Sequence[str], sampling: Sampling) -> list[str] | None:
    return None if sampling.negative_prompt is None else [sampling.negative_prompt] * len(prompts)


def _ours(pipe: Any, prompts: list[str], seeds: list[int], sampling: Sampling, references: Any, on_step: OnStep) -> Any:
    def after_step(pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        on_step()
        return {}

    return pipe(
        prompts,
        references=references,
        negative_prompt=sampling.negative_prompt or "",
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        retrieval_scale=sampling.retrieval_scale,
        seeds=seeds,
        duration_s=sampling.duration_s,
        callback_on_step_end=after_step,
        output_type="np",
    ).audios


def _from_prompts(length: str) -> Callable[..., Any]:
    """For pipelines that take prompts, and the clips' seconds under this name."""

    def call(pipe: Any, prompts: list[str], seeds: list[int], sampling: Sampling, references: Any, on_step: OnStep) -> Any:
        seconds = {length: sampling.duration_s}
        return pipe(
            prompts, negative_prompt=_negatives(prompts, sampling), **seconds, **_common(sampling, seeds, on_step)
        ).audios

    return call


def _musicldm(pipe: Any, prompts: list[str], seeds: list[int], sampling: Sampling, references: Any, on_step: OnStep) -> Any:
    """With transformers 5 the pipeline cannot take its own text encoder's answer, so it is given embeddings."""
    guided = sampling.guidance_scale > 1
    return pipe(
        prompt_embeds=clap_vectors(pipe, prompts),
        negative_prompt_embeds=clap_vectors(pipe, [sampling.negative_prompt or ""] * len(prompts)) if guided else None,
        audio_length_in_s=sampling.duration_s,
        **_common(sampling, seeds, on_step),
    ).audios


def clap_vectors(pipe: Any, texts: list[str]) -> Any:
    """CLAP's unit vectors of texts, (n, D)."""
    tokens = pipe.tokenizer(
        texts, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).to(pipe.device)
    found = pipe.text_encoder.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask)
    return getattr(found, "pooler_output", found)


def _audioldm2(pipe: Any, prompts: list[str], seeds: list[int], sampling: Sampling, references: Any, on_step: OnStep) -> Any:
    """Prompts are encoded one by one: in a batch diffusers pads them to the longest, and the padding moves what the language
    model continues, so that a clip would depend on its neighbors in the batch. Padding after it is masked and has no effect."""
    import torch

    guided = sampling.guidance_scale > 1
    negative = (sampling.negative_prompt or "") if guided else None
    encoded = [pipe.encode_prompt(prompt, pipe.device, 1, guided, negative_prompt=negative) for prompt in prompts]
    longest = max(tokens.shape[1] for tokens, _, _ in encoded)
    padded = [_padded(tokens, mask, continued, longest) for tokens, mask, continued in encoded]
    tokens, masks, continued = (torch.stack(parts) for parts in zip(*padded, strict=True))
    given = {"prompt_embeds": tokens, "attention_mask": masks, "generated_prompt_embeds": continued}
    arguments = {name: values[:, -1] for name, values in given.items()}
    if guided:  # the first of two rows is the negative prompt's
        arguments |= {f"negative_{name}": values[:, 0] for name, values in given.items()}
    return pipe(audio_length_in_s=sampling.duration_s, **arguments, **_common(sampling, seeds, on_step)).audios


def _padded(tokens: Any, mask: Any, continued: Any, length: int) -> tuple[Any, Any, Any]:
    """Tokens (rows, L, D) and mask (rows, L), filled up with masked zeros."""
    from torch.nn.functional import pad

    more = length - tokens.shape[1]
    return pad(tokens, (0, 0, 0, more)), pad(mask, (0, more)), continued


_CALLS: dict[str, Callable[..., Any]] = {
    OURS: _ours,
    "StableAudioPipeline": _from_prompts("audio_end_in_s"),
    "AudioLDMPipeline": _from_prompts("audio_length_in_s"),
    "AudioLDM2Pipeline": _audioldm2,
    "MusicLDMPipeline": _musicldm,
}
