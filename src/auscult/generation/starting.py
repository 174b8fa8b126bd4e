"""What training starts from where it does not start from nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .encoding import Encoders
from .mel import MelSpec
from .pipeline import RetrievalAugmentedAudioPipeline


@dataclass(frozen=True)
class Start:
    """Parts of a model that training goes on from.

    Attributes
    ----------
    unet, vae, vocoder, encoders, mel
        As the pipeline takes them.
    brought
        Names of the denoiser's parameters that were there before; those that are new are trained alone during
        ``optimizer.freeze_steps``.
    """

    unet: Any
    vae: Any
    vocoder: Any
    encoders: Encoders
    mel: MelSpec
    brought: frozenset[str]


def load_start(source: str) -> Start:
    """Load what ``[start] from`` names: a pipeline folder of ours.

    Raises
    ------
    ModelError
        It is none.
    """
    folder = Path(source)
    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text("utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise ModelError(f"[start] from = {source!r}: no pipeline folder ({error}); give OUT/pipeline of a training") from error
    if kind != RetrievalAugmentedAudioPipeline.__name__:
        raise ModelError(f"[start] from = {source!r}: is a {kind}, expected a {RetrievalAugmentedAudioPipeline.__name__}")
    try:
        pipe = RetrievalAugmentedAudioPipeline.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"[start] from = {source!r}: cannot be loaded ({reason}); copy it anew, or train it again") from error
    names = frozenset(name for name, _ in pipe.unet.named_parameters())
    return Start(pipe.unet, pipe.vae, pipe.vocoder, pipe.encoders, pipe.mel, names)
