"""Parts of public checkpoints, by folder or hub name: all weights there, nothing filled in at random."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import SpeechT5HifiGan

from ..errors import ModelError
from ..pretrained.loading import model_errors, place_of, quiet
from ..pretrained.locating import split_revision
from .mel import MelSpec
from .weights import aligned

PUBLISHED_MEL = MelSpec()  # AudioLDM's, AudioLDM 2's and TANGO's


@contextmanager
def in_words(source: str, what: str) -> Iterator[None]:
    """Errors of diffusers, transformers, torch and the hub's client as one :class:`ModelError` that says what to do."""
    failed = f"no {what} can be loaded from this {place_of(source)}"
    advice = "download it anew, or give the folder or name of a whole checkpoint"
    with model_errors(source, failed, advice), quiet(), torch.random.fork_rng([]):
        yield


def at_revision(source: str) -> tuple[str, dict[str, str]]:
    """A folder or ``NAME[@REVISION]`` as the libraries take it: the folder or name, and the revision by keyword."""
    name, revision = split_revision(source)
    return name, {"revision": revision} if revision else {}


def load_part(kind: Any, source: str, subfolder: str) -> Any:
    """A model of diffusers' or transformers' out of a pipeline, in float32, in evaluation mode.

    Raises
    ------
    ModelError
        It cannot be loaded, or some of its weights are missing.
    """
    name, at = at_revision(source)
    dtype = {"torch_dtype" if kind.__module__.startswith("diffusers") else "dtype": torch.float32}
    with in_words(source, subfolder):
        model, report = kind.from_pretrained(name, subfolder=subfolder, output_loading_info=True, **dtype, **at)
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{source}: the weights of {subfolder} lack {len(missing)} of {kind.__name__}'s, for example {missing[0]}; "
                "download it anew"
            )
    return aligned(model.eval())


def load_codec(source: str) -> Any:
    """The autoencoder, the scheduler and the vocoder that AudioLDM and AudioLDM 2 share; the scheduler never clips latents."""
    name, at = at_revision(source)
    vae = load_part(AutoencoderKL, source, "vae")
    vocoder = load_part(SpeechT5HifiGan, source, "vocoder")
    with in_words(source, "scheduler"):
        # saved by whichever sampler it was, the noise schedule is the same; clipping is for images in [-1, 1]
        scheduler = DDIMScheduler.from_pretrained(name, subfolder="scheduler", clip_sample=False, **at)
    return vae, scheduler, vocoder


def mel_of(vocoder: Any, source: str, given: MelSpec | None = None) -> MelSpec:
    """The log-mel of a HiFi-GAN, whose files name the sample rate, the bands and the hop, and not the transform's length.

    Raises
    ------
    ModelError
        It is not the published one and none was given, or the one given does not fit.
    """
    config = vocoder.config
    wanted = (config.sampling_rate, config.model_in_dim, math.prod(config.upsample_rates))
    spec = given or PUBLISHED_MEL
    if wanted != (spec.sample_rate_hz, spec.n_mels, spec.hop_length):
        raise ModelError(
            f"{source}: its vocoder takes {wanted[1]} bands at {wanted[0]:,} Hz with a hop of {wanted[2]} samples, "
            f"and the log-mel has {spec.n_mels} at {spec.sample_rate_hz:,} Hz with {spec.hop_length}; "
            "give the MelSpec that it was trained with as mel="
        )
    return spec
