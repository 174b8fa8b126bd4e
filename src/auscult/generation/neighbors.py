"""The retrieved pairs of a training run: which pairs each clip may be shown, and the pairs' tokens.

What a clip retrieves never is itself, a duplicate of it, or a pair of equal caption (the datastore sees to that), and never
a clip that is held out: that one is no longer held out if the model has been shown it beside another.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    hidden
        Ids of clips that must not be shown.
    text, audio
        Tokens of all pairs (R, L, D); None where the denoiser does not read them.
    count
        Neighbors that references are drawn among.
    """

    store: Any
    rows: dict[str, IntArray]
    hidden: frozenset[str]
    text: Tokens
    audio: Tokens | None
    count: int

    def of_mixture(self, caption: str, sources: Sequence[str]) -> IntArray:
        """What a mixture may be shown: neighbors of its joint caption, with both of its clips and their duplicates excluded."""
        return nearest_rows(self.store, caption, sources, self.count, self.hidden)


def find_neighbors(
    store: Any, ids: Sequence[str], captions: Sequence[str], count: int, hidden: frozenset[str]
) -> dict[str, IntArray]:
    """Rows of the datastore that each clip may be shown.

    Parameters
    ----------
    store
        A :class:`~auscult.generation.datastore.Datastore`.
    ids, captions
        Of the clips; one that is not in the datastore retrieves by its caption.
    count
        Most neighbors of a clip.
    hidden
        Clip ids that are never shown.
    """
    found = {}
    for clip_id, caption in zip(ids, captions, strict=True):
        if clip_id in store:
            kept = store.neighbors(clip_id)
            shown = [row for row, name in zip(kept.rows, kept.ids, strict=True) if name not in hidden]
            found[clip_id] = np.array(shown[:count], np.int64)
        else:
            found[clip_id] = nearest_rows(store, caption, (), count, hidden)
    return found


def nearest_rows(store: Any, caption: str, sources: Sequence[str], count: int, hidden: frozenset[str]) -> IntArray:
    """Rows nearest to a caption, without the sources, their duplicates, pairs of an equal caption, and hidden clips."""
    from .datastore import Exclusion

    exclusion = Exclusion(clip_ids=tuple(name for name in sources if name in store))
    gone = set(store.hidden(exclusion, caption).tolist())
    gone |= {store.row(name) for name in hidden if name in store}
    left = len(store) - len(gone)
    wanted = min(count + len(hidden), len(store) - len(store.hidden(exclusion, caption)))
    if left < 1 or wanted < 1:
        return np.zeros(0, np.int64)
    rows = store.retrieve([caption], wanted, exclude=exclusion)[0].rows
    return np.array([row for row in rows.tolist() if row not in gone][:count], np.int64)


def pair_tokens(
    store: Any,
    encoders: Any,
    spec: MelSpec,
    samples: int,
    cache: Path,
    made_from: Any,
    *,
    hears: bool,
    progress: Progress = no_progress,
) -> tuple[Tokens, Tokens | None]:
    """Tokens of all pairs of a datastore: captions, and sounds if the denoiser ``hears``.

    Raises
    ------
    CorpusError
        A pair's sound cannot be read any more.
    """
    columns = {name: store.pairs[name].to_pylist() for name in ("caption", "path", "start_s", "duration_s", "clip_id")}
    text = text_tokens(columns["caption"], encoders, cache, made_from, progress=progress)
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

    key = [made_from, columns["clip_id"], columns["path"], store.card.get("files")]
    return text, audio_tokens(wave, len(store), spec, samples, encoders, cache, key, progress=progress)
