"""The retrieved pairs of a training run: which pairs each clip may be shown, and the pairs' tokens.

What a clip retrieves never is itself, a duplicate of it, or a pair of equal caption, and never a clip that is held out or its
duplicate: that one is no longer held out if the model has been shown it beside another. A clip is known by its id and by its
audio, since the datastore may have been built of a manifest with other ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..audio import read_audio
from ..errors import AudioDecodeError, CorpusError
from ..folders import Progress, no_progress
from .conditioning import Tokens
from .examples import audio_tokens, text_tokens
from .mel import MelSpec

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbors:
    """Pairs by row of the datastore.

    Attributes
    ----------
    store
        The datastore, for the joint captions of mixtures.
    rows
        By clip id: rows of the datastore, the most similar first.
    own
        By clip id: ids of the datastore's pairs that are this clip; empty for a clip that it does not hold.
    hidden
        Rows of the datastore that are shown to no clip.
    text, audio
        Tokens of all pairs (R, L, D); None where the denoiser does not read them, or has no encoder for them.
    count
        Neighbors that references are drawn among.
    """

    store: Any
    rows: dict[str, IntArray]
    own: dict[str, tuple[str, ...]]
    hidden: frozenset[int]
    text: Tokens | None
    audio: Tokens | None
    count: int

    def of_mixture(self, caption: str, sources: Sequence[str], captions: Sequence[str]) -> IntArray:
        """What a mixture may be shown: neighbors of its joint caption, without its clips, their duplicates and their captions.

        ``captions`` are those that the clips are trained with: a clip may be missing in the datastore, or have another there.
        """
        own = [pair for source in sources for pair in self.own[source]]
        return nearest_rows(self.store, caption, own, self.count, self.hidden, captions)


def own_pairs(store: Any, ids: Sequence[str], digests: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Ids of a datastore's pairs that are a clip, by the clip's id: the pair of this id first, then those of its very audio.

    Parameters
    ----------
    store
        A :class:`~auscult.generation.datastore.Datastore`.
    ids, digests
        Of the clips; digests are of decoded samples.
    """
    named = [(clip_id,) if clip_id in store else () for clip_id in ids]
    return {
        clip_id: tuple(dict.fromkeys((*name, *store.of_audio(digest))))
        for clip_id, name, digest in zip(ids, named, digests, strict=True)
    }


def hidden_rows(store: Any, own: Mapping[str, Sequence[str]], held_out: Sequence[str]) -> frozenset[int]:
    """Rows of the datastore that are held-out clips or duplicates of these."""
    from .datastore import Exclusion

    pairs = tuple(pair for clip_id in held_out for pair in own[clip_id])
    return frozenset(store.hidden(Exclusion(pairs, captions=False)).tolist())


def find_neighbors(
    store: Any, own: Mapping[str, Sequence[str]], captions: Sequence[str], count: int, hidden: frozenset[int]
) -> dict[str, IntArray]:
    """Rows of the datastore that each clip may be shown.

    Parameters
    ----------
    store
        A :class:`~auscult.generation.datastore.Datastore`.
    own
        Of :func:`own_pairs`.
    captions
        Of the clips of ``own``, in its order. A clip whose id the datastore does not know retrieves by its caption; where keys
        are sounds, a pair of its audio retrieves for it.
    count
        Most neighbors of a clip.
    hidden
        Rows that are never shown.
    """
    found = {}
    for (clip_id, pairs), caption in zip(own.items(), captions, strict=True):
        if clip_id in store or (pairs and store.texts_spec is None):
            found[clip_id] = _kept_rows(store, caption, pairs, count, hidden)
        else:
            found[clip_id] = nearest_rows(store, caption, pairs, count, hidden)
    return found


def _kept_rows(store: Any, caption: str, pairs: Sequence[str], count: int, hidden: frozenset[int]) -> IntArray:
    """Rows that the datastore keeps for the first of a clip's pairs, without those of the others."""
    from .datastore import Exclusion

    captions = not store.card["config"]["equal_captions"]
    gone = set(store.hidden(Exclusion(tuple(pairs), texts=(caption,), captions=captions)).tolist()) | hidden
    shown = [row for row in store.neighbors(pairs[0]).rows.tolist() if row not in gone]
    return np.array(shown[:count], np.int64)


def nearest_rows(
    store: Any, caption: str, pairs: Sequence[str], count: int, hidden: frozenset[int], texts: Sequence[str] = ()
) -> IntArray:
    """Rows nearest to a caption, without some pairs, their duplicates, pairs of an equal caption (to the query's, to those of
    the pairs, to ``texts``), and hidden ones.
    """
    from .datastore import Exclusion

    exclusion = Exclusion(tuple(pairs), texts=tuple(texts))
    excluded = store.hidden(exclusion, caption)
    wanted = min(count + len(hidden), len(store) - len(excluded))
    if wanted < 1:
        return np.zeros(0, np.int64)
    rows = store.retrieve([caption], wanted, exclude=exclusion)[0].rows
    return np.array([row for row in rows.tolist() if row not in hidden][:count], np.int64)


def pair_tokens(
    store: Any,
    encoders: Any,
    spec: MelSpec,
    samples: int,
    cache: Path,
    by_whom: Mapping[str, str],
    *,
    hears: bool,
    progress: Progress = no_progress,
) -> tuple[Tokens | None, Tokens | None]:
    """Tokens of all pairs of a datastore: captions if there is an encoder, and sounds if the denoiser ``hears``; kept under the
    encoders' digests.

    Raises
    ------
    CorpusError
        A pair's sound cannot be read any more.
    """
    columns = {name: store.pairs[name].to_pylist() for name in ("caption", "path", "start_s", "duration_s", "clip_id")}
    reads = encoders.caption is not None
    text = text_tokens(columns["caption"], encoders, cache, by_whom["caption"], progress=progress) if reads else None
    if not hears:
        return text, None

    def wave(row: int) -> npt.NDArray[np.float32]:
        path, start = columns["path"][row], columns["start_s"][row] or 0.0
        duration = min(columns["duration_s"][row] or np.inf, samples / spec.sample_rate_hz)
        try:
            audio = read_audio(path, sample_rate_hz=spec.sample_rate_hz, start_s=start, duration_s=duration)
        except AudioDecodeError as error:
            raise CorpusError(
                f"{store.path}: the sound of its pair {columns['clip_id'][row]!r} cannot be read ({path}: {error}); "
                "build the datastore again without it"
            ) from error
        return audio.samples[:samples]

    key = [by_whom["audio"], columns["clip_id"], columns["path"], store.card.get("files")]
    return text, audio_tokens(wave, len(store), spec, samples, encoders, cache, key, progress=progress)
