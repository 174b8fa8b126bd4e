"""What an embedding backend is: something loaded that turns a clip into frames of features, and class logits if it has classes.

A backend differs from a descriptor in what it is for. Descriptors tell clips apart, and leave silence out; backends are how
the field measures sets of clips, and silence has to count in them, or a model that falls silent would look good.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...descriptors import DescriptorSpec
from ...errors import ModelError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """What a backend says of a clip.

    Attributes
    ----------
    frames
        (frames, dimension) float32, at least one, finite: the features of consecutive stretches, or of the clip as a whole.
    logits
        (classes,) float32 of the clip as a whole, before softmax or sigmoid; None where the model has no classes.
    """

    frames: FloatArray
    logits: FloatArray | None = None


@dataclass(frozen=True)
class Backend:
    """A loaded embedding model.

    Attributes
    ----------
    spec
        Name and every setting that changes a value, the digest or revision of the weights among them; features of unequal
        specs never meet.
    sample_rate_hz
        Rate of the samples that ``embed`` wants.
    dimension
        Length of a frame's features.
    classes
        Number of logits; 0 where the model has no classes.
    shortest_samples
        Clips of fewer samples have no frame, and are refused.
    frechet
        What the field calls the Frechet distance on these features: ``fad`` on frames of audio, ``fd`` elsewhere.
    frame
        What a frame is, in words for the card: ``"0.96 s, none overlapping"``.
    embed
        Samples (time,) float32, mono, at ``sample_rate_hz`` -> :class:`Embedded`. Deterministic: equal samples have equal
        features, whatever the seeds and whatever was embedded before.
    embed_texts
        Captions -> (n, dimension) float32 of unit length, in the space of the frames; None where the model reads no text.
    """

    spec: DescriptorSpec
    sample_rate_hz: int
    dimension: int
    shortest_samples: int
    frechet: Literal["fad", "fd"]
    frame: str
    embed: Callable[[FloatArray], Embedded]
    classes: int = 0
    embed_texts: Callable[[list[str]], FloatArray] | None = None


# Each name with the module of this package that has ``load(name, weights, device, **parameters) -> Backend``.
BACKENDS = {
    "logmel": "logmel",
    "vggish": "vggish",
    "panns": "panns",
    "clap": "clap",
    "ast": "ast",
    "encodec": "encodec",
    "wav2vec2": "speech",
    "hubert": "speech",
    "wavlm": "speech",
    "whisper": "speech",
}


def load_backend(text: str | DescriptorSpec, *, device: str = "cpu") -> Backend:
    """Load the backend of a name (``"logmel"``), a name with weights (``"clap:FOLDER"``), or a spec.

    Parameters
    ----------
    text
        ``NAME``, ``NAME:WEIGHTS`` where the weights are a file, a folder or the name of a model on the Hugging Face hub, or a
        :class:`DescriptorSpec`, as ``Backend.spec`` has it, which must be matched to the last parameter.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ValueError
        There is no backend of this name, it has no such settings, or the spec is of another version.
    ModelError
        The weights are missing, damaged or not of this model, or are no longer those of the spec.
    MissingExtraError
        The backend needs torch or transformers, which are not installed.
    """
    name, parameters = _request(text)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are: {', '.join(BACKENDS)}")
    weights = parameters.pop("weights", None)
    load = import_module(f".{BACKENDS[name]}", __package__).load
    known = inspect.signature(load).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())  # and says itself what it does not
    if not takes_any and (foreign := sorted(parameters.keys() - known.keys())):
        has = ", ".join(["weights", *list(known)[3:]])
        raise ValueError(f"the {name} backend takes no such settings: {', '.join(foreign)}; it has {has}")
    backend: Backend = load(name, weights, device, **parameters)
    if isinstance(text, DescriptorSpec) and backend.spec != text:
        raise ModelError(f"expected the backend {text}, but what is there now is {backend.spec}; compute the features again")
    return backend


def _request(text: str | DescriptorSpec) -> tuple[str, dict[str, Any]]:
    if isinstance(text, DescriptorSpec):
        return text.name, {key: value for key, value in text.parameters if key != "digest"}
    name, _, weights = text.partition(":")
    return name, {"weights": weights} if weights else {}
