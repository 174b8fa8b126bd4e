"""What keys and queries are made of: sounds by a descriptor, captions by a text encoder, both written down as specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...descriptors import Descriptor, DescriptorSpec, load_descriptor
from ...errors import DescriptorMismatchError, MissingExtraError, ModelError
from ...inputs import Source
from ...pretrained.clap import DEFAULT_MODEL
from ...search.blocks import as_blocks
from ...search.exact import FloatArray, unit_rows
from ...store import DescriptorStore
from ...vectors import Vectors

Key = Literal["audio", "text", "mean"]
HASHED, CLAP = "hashed", "clap"
_NEAR_ZERO = 1e-6  # of a vector of length 1: what rounding leaves of equal vectors' difference


@dataclass(frozen=True)
class Texts:
    """A loaded text encoder: its spec, and texts -> (n, d) float32 of unit length."""

    spec: str
    embed: Callable[[list[str]], FloatArray]


@dataclass(frozen=True)
class Encoders:
    """What makes keys and queries.

    Attributes
    ----------
    audio
        Describes the sounds. For ``key="text"`` it only reads them, and its vectors are not used.
    text
        Makes vectors of captions; None where sounds are compared with sounds.
    """

    audio: Descriptor
    text: Texts | None


def choose_encoders(source: Source, key: Key, model: str | None, duration_s: float | None, device: str) -> Encoders:
    """What a model's name means for a kind of key.

    Parameters
    ----------
    source
        If it is a store, its descriptor is that of the sounds.
    key, model, duration_s
        See :class:`DatastoreConfig`.
    device
        Of the text encoder.

    Raises
    ------
    ValueError
        The model has no such keys.
    DescriptorMismatchError
        The source is a store of another model.
    ModelError, MissingExtraError
        The model cannot be loaded.
    """
    stored = source.spec if isinstance(source, DescriptorStore) else None
    if model is None:
        model = DEFAULT_MODEL if stored is None or key == "text" else _model_of(stored)
    family = model.partition("/")[0].partition("(")[0]
    near = [] if {*"(/"} & {*model} or Path(model).exists() else get_close_matches(model, ("mel", HASHED), n=1)
    if near and near[0] != model:  # else the hub would be asked
        raise ValueError(f"there is no model {model!r}; did you mean {near[0]}?")
    sounds_alone = family in {"mel", "contrast"} and (model == family or "(" in model)
    if sounds_alone and family == "contrast":
        raise ValueError("the contrast descriptor has no vectors to look up; take --model mel, or a CLAP model")
    if sounds_alone and key != "audio":
        raise ValueError(
            f"{model} describes sounds, not captions, so it makes no key {key!r}; take --key audio, or a CLAP model"
        )
    if model == HASHED and key != "text":
        raise ValueError(
            f"{HASHED} makes vectors of captions only, so it makes no key {key!r}; take --key text, or a CLAP model"
        )
    seconds = {} if duration_s is None else {"duration_s": duration_s}
    if sounds_alone:
        asked = load_descriptor(model, **seconds)
        return Encoders(_stored(source, asked, exact=duration_s is not None or "(" in model), None)
    if key == "text":  # the sounds are decoded and checked all the same, by what costs least
        reader = load_descriptor("mel", **seconds) if stored is None else load_descriptor(stored)
        return Encoders(reader, load_texts(model, device))
    if seconds:
        raise ValueError(f"duration is a setting of mel only; leave it out for {model}")
    return Encoders(_stored(source, load_descriptor(CLAP, model=model), exact=True), load_texts(model, device))


def _model_of(spec: DescriptorSpec) -> str:
    return str(dict(spec.parameters)["model"]) if spec.name == CLAP else str(spec)


def _stored(source: Source, asked: Descriptor, *, exact: bool) -> Descriptor:
    """What was asked for; where the source is a store, its descriptor, if it is that one (or, inexactly, of that name)."""
    if not isinstance(source, DescriptorStore) or source.spec == asked.spec:
        return asked
    if source.spec.name == asked.spec.name and not exact:
        return load_descriptor(source.spec)
    raise DescriptorMismatchError(
        f"{source.path}: was described with {source.spec}, but {asked.spec} was asked for; give the corpus itself, or "
        "leave the model out"
    )


def load_texts(text: str, device: str = "cpu") -> Texts:
    """Load a text encoder: ``"hashed"``, a CLAP model (a name on the hub or a folder), or a spec, as ``Texts.spec`` has it.

    Raises
    ------
    ModelError
        It is not there, or no longer what the spec says.
    MissingExtraError
        torch, transformers or diffusers is not installed.
    """
    if text == HASHED or text.startswith(f"{HASHED}/"):
        return _hashed({} if text == HASHED else dict(DescriptorSpec.parse(text).parameters))
    from ...metrics.embeddings import load_backend

    try:
        backend = load_backend(DescriptorSpec.parse(text) if text.startswith(f"{CLAP}/") else f"{CLAP}:{text}", device=device)
    except ModelError as error:
        raise ModelError(f"vectors of captions: {error}") from error
    assert backend.embed_texts is not None  # CLAP has a side for texts
    return Texts(str(backend.spec), backend.embed_texts)


def _hashed(settings: dict[str, Any]) -> Texts:
    try:
        from ..encoders import HashedPromptEncoder
    except ImportError as error:
        raise MissingExtraError("models", "the hashed text encoder") from error
    encoder = HashedPromptEncoder(**settings)
    spec = DescriptorSpec(HASHED, 1, tuple((name, encoder.config[name]) for name in ("dimension", "seed")))
    return Texts(str(spec), lambda texts: np.asarray(encoder(texts).numpy(), np.float32))


# --- vectors ----------------------------------------------------------------------------------------------------------


def clip_vectors(vectors: Vectors, rows: npt.NDArray[np.int64]) -> FloatArray:
    """One vector per clip: the mean of its windows' unit vectors, at unit length.

    Parameters
    ----------
    vectors
        Of a store.
    rows
        Rows of ``vectors.clips``, each with at least one window.
    """
    position = np.full(vectors.clips.num_rows, -1, np.int64)
    position[rows] = np.arange(len(rows))
    sums: FloatArray | None = None
    for block in as_blocks(vectors.vectors):
        units = unit_rows(block.load().astype(np.float32, copy=False))[0]
        if sums is None:
            sums = np.zeros((len(rows), units.shape[1]), np.float32)
        owners = position[vectors.clip[block.start : block.stop]]
        np.add.at(sums, owners[owners >= 0], units[owners >= 0])
    assert sums is not None  # there is a clip, and it has a window
    return unit_rows(sums)[0]


def centered(vectors: FloatArray, center: FloatArray) -> FloatArray:
    """Unit vectors less what all keys share, at unit length again.

    Mel descriptors are levels in dB, of which most is common to all sounds: their cosines crowd near 1, and a few average
    sounds are everybody's neighbors. On 240 recordings of ESC-10 centering raised the share of neighbors of the same class
    (top 10) from 0.38 to 0.43 and lowered the share of sounds that are nobody's neighbor from 0.18 to 0.07.

    Raises
    ------
    ValueError
        A vector is the center itself.
    """
    moved = unit_rows(vectors)[0] - center
    flat = np.flatnonzero(np.linalg.norm(moved, axis=1) < _NEAR_ZERO)
    if len(flat):
        raise ValueError(f"{len(flat)} sounds cannot be told from the mean of all, the first in row {flat[0]}; are all equal?")
    return unit_rows(moved)[0]


def mean_of(sounds: FloatArray, captions: FloatArray) -> FloatArray:
    """Keys between a pair's two sides: ``(a + t) / |a + t|`` of unit vectors.

    Raises
    ------
    ValueError
        The two are of different lengths, or opposite.
    """
    if sounds.shape != captions.shape:
        raise ValueError(f"expected as many values of sounds as of captions, got {sounds.shape} and {captions.shape}")
    return unit_rows(unit_rows(sounds)[0] + unit_rows(captions)[0])[0]
