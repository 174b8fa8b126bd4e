"""Pairs of caption and sound for each prompt that is to be generated, looked up in a datastore."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..audio import read_audio
from ..errors import AudioDecodeError
from .calling import Reference
from .datastore import Datastore, Exclusion, Retrieved
from .prompts import PromptRow


@dataclass(frozen=True)
class Looked:
    """What was found for a prompt.

    Attributes
    ----------
    pairs
        Caption and waveform of each, the most similar first.
    ids, similarity
        Their clips in the datastore, and cosines with the prompt; no cosines of pairs that the prompt's row named.
    target
        The clip of the datastore that the prompt belongs to, which was passed over; None if it holds none.
    """

    pairs: tuple[Reference, ...]
    ids: tuple[str, ...]
    similarity: tuple[float, ...]
    target: str | None


_OF_EACH = ("ids", "captions", "paths", "starts_s", "durations_s")
LookUp = Callable[[Sequence[PromptRow]], list[Looked]]


def check_datastore(path: str | Path, k: int) -> str:
    """See that a datastore can give k pairs.

    Returns
    -------
    str
        Digest of its content, for the question whether a run continues another.

    Raises
    ------
    StoreError
        There is none.
    ValueError
        It holds fewer pairs than k, or keeps fewer neighbors and can be asked for no others.
    """
    store = Datastore.load(path)
    kept = store.neighbor_rows.shape[1]
    if store.texts_spec is None and k > kept:
        raise ValueError(f"k={k} is more than the {kept} neighbors of a clip that {path} keeps; lower k")
    if k > len(store):
        raise ValueError(f"k={k} is more than {path} holds, {len(store):,} pairs; lower k")
    return hashlib.sha256(json.dumps(store.card["files"], sort_keys=True).encode()).hexdigest()[:32]


def load_look_up(path: str | Path, k: int, *, rate_hz: int, duration_s: float, device: str = "cpu") -> LookUp:
    """What finds each prompt's k pairs.

    A prompt that belongs to a clip of the datastore (its ``reference``, an id or a path, or a file of its very audio) gets
    neither that clip, nor its duplicates, nor pairs of an equal caption; any other prompt gets no pairs of its own caption. A
    datastore that was built with equal captions lets these in. Where keys are sounds without vectors of texts, the clip's kept
    neighbors are taken. Where too little is left, a prompt gets fewer than k. A prompt whose row names ``pairs`` gets the first
    k of these, and nothing is looked up.

    Parameters
    ----------
    path
        A folder of ``auscult datastore``.
    k
        Pairs of a prompt.
    rate_hz, duration_s
        Of the waveforms; longer ones are cut.
    device
        Of the datastore's text encoder.
    """
    store = Datastore.load(path, device=device)
    ids = store.pairs["clip_id"].to_pylist()
    names = dict(zip(store.pairs["path"].to_pylist(), ids, strict=True)) | {clip_id: clip_id for clip_id in ids}

    def look_up(prompts: Sequence[PromptRow]) -> list[Looked]:
        targets = [_target(store, prompt, names) for prompt in prompts]
        asked = [row for row, prompt in enumerate(prompts) if prompt.pairs is None]
        found = _found(store, [prompts[row] for row in asked], [targets[row] for row in asked], k)
        of_row = dict(zip(asked, found, strict=True))
        shown = [of_row[row] if row in of_row else _named(store, prompt, k) for row, prompt in enumerate(prompts)]
        return [_looked(one, target, rate_hz, duration_s) for one, target in zip(shown, targets, strict=True)]

    return look_up


def _target(store: Datastore, prompt: PromptRow, names: Mapping[str, str]) -> str | None:
    """The clip of the datastore that a prompt belongs to: of its id, its path, or its audio where the file is at hand."""
    if prompt.reference is not None and prompt.reference in names:
        return names[prompt.reference]
    if prompt.path is None or not Path(prompt.path).is_file():
        return None
    try:
        digest = read_audio(prompt.path, sample_rate_hz=store.card["sample_rate_hz"]).facts.sample_digest
    except AudioDecodeError:
        return None  # the row says so: target_passed_over
    return next(iter(store.of_audio(digest)), None)


def _named(store: Datastore, prompt: PromptRow, k: int) -> Retrieved:
    """The pairs that a prompt's row names; nobody asked how similar they are."""
    try:
        return store.pairs_of((prompt.pairs or ())[:k])
    except ValueError as error:
        raise ValueError(f"prompt {prompt.number + 1} ({prompt.caption[:60]!r}) names pairs: {error}") from error


def _found(store: Datastore, prompts: Sequence[PromptRow], targets: Sequence[str | None], k: int) -> list[Retrieved]:
    if store.texts_spec is not None:
        return _nearest(store, [prompt.caption for prompt in prompts], targets, k)
    found = []
    for prompt, target in zip(prompts, targets, strict=True):
        if target is None:
            raise ValueError(
                f"{store.path}: its keys are sounds, so that it can be asked with its own clips alone, but prompt "
                f"{prompt.number + 1} ({prompt.caption[:60]!r}) has none as its reference; build a datastore with --model "
                "hashed --key text or with a CLAP model"
            )
        # the prompt may be worded otherwise than the clip
        gone = store.hidden(Exclusion((target,), texts=(prompt.caption,), captions=not store.card["config"]["equal_captions"]))
        found.append(_without(store.neighbors(target), gone, k))
    return found


def _nearest(store: Datastore, captions: Sequence[str], targets: Sequence[str | None], k: int) -> list[Retrieved]:
    """k pairs of each prompt, or as many as its exclusions leave; asked together where the numbers are the same."""
    captions_too = not store.card["config"]["equal_captions"]
    own = [Exclusion(() if target is None else (target,), captions=captions_too) for target in targets]
    left = [min(k, len(store) - len(store.hidden(one, text))) for one, text in zip(own, captions, strict=True)]
    found: dict[int, Retrieved] = {}
    for count in sorted(set(left)):
        rows = [row for row, number in enumerate(left) if number == count]
        asked = store.retrieve([captions[row] for row in rows], count, exclude=[own[row] for row in rows])
        found |= dict(zip(rows, asked, strict=True))
    return [found[row] for row in range(len(left))]


def _without(found: Retrieved, gone: npt.NDArray[np.int64], k: int) -> Retrieved:
    """The first k that are not gone."""
    places = np.flatnonzero(~np.isin(found.rows, gone))[:k]
    parts = {name: tuple(getattr(found, name)[place] for place in places) for name in _OF_EACH}
    return Retrieved(found.rows[places], found.similarity[places], **parts)


def _looked(found: Retrieved, target: str | None, rate_hz: int, duration_s: float) -> Looked:
    pairs = []
    for caption, path, start, length in zip(found.captions, found.paths, found.starts_s, found.durations_s, strict=True):
        try:
            heard = min(duration_s, length) if length else duration_s
            audio = read_audio(path, sample_rate_hz=rate_hz, start_s=start, duration_s=heard)
        except AudioDecodeError as error:
            raise AudioDecodeError(f"{path}: is a retrieved pair's sound, but cannot be used: {error}") from error
        pairs.append((caption, audio.samples))
    cosines = tuple(round(float(cosine), 6) for cosine in found.similarity if not np.isnan(cosine))
    return Looked(tuple(pairs), found.ids, cosines, target)
