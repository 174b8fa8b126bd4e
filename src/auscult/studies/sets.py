"""What a study trains on, as manifests: nested training sets, and repeated clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from ..corpus import Clip, Corpus, open_corpus
from ..errors import CorpusError
from ..folders import write_text
from ..identity import recordings
from ..inputs import shortened
from ..sounds import FAMILIES, synthesise

SOUNDS_HZ = 16_000
COPY = "copy"  # of a repeated clip: CLIP_ID#copy-3


@dataclass(frozen=True)
class Parts:
    """A training set, and what it leaves over.

    Attributes
    ----------
    training
        Clips in the order that the sets are nested in.
    rest
        Clips of the source that are of no recording in ``training``.
    """

    training: tuple[Clip, ...]
    rest: tuple[Clip, ...]


def read_pool(source: str, *, audio_root: str | None = None, encoding: str = "utf-8") -> list[Clip]:
    """All clips of a source; nothing is decoded.

    Raises
    ------
    CorpusError
        It cannot be read, an input is unreadable, a clip has no caption, or lies in an archive.
    """
    corpus: Corpus = open_corpus(source, audio_root=audio_root, encoding=encoding)
    items = list(corpus)
    clips = [item for item in items if isinstance(item, Clip)]
    broken = [item for item in items if not isinstance(item, Clip) and item.kind == "unreadable"]
    if broken:
        raise CorpusError(f"{source}: {len(broken):,} inputs cannot be used, the first: {broken[0].path}: {broken[0].reason}")
    if nameless := [clip.clip_id for clip in clips if not (clip.caption or "").strip()]:
        raise CorpusError(
            f"{source}: {len(nameless):,} of {len(clips):,} clips have no caption ({shortened(nameless)}); a study trains and "
            "generates with captions: give a manifest with a column 'caption'"
        )
    if elsewhere := [clip.path for clip in clips if not Path(clip.path).is_file()]:
        raise CorpusError(
            f"{source}: {len(elsewhere):,} of {len(clips):,} clips are no files here ({shortened(elsewhere)}); a study draws "
            "from files on a disk: unpack archives, fetch what lies at URLs"
        )
    return clips


def divide(clips: Sequence[Clip], size: int, seed: int, group: str | None = None) -> Parts:
    """The training set of ``size`` clips for a seed, and the clips that it leaves over.

    The clips are put into a random order by the seed, recordings in one piece, and the first are taken: so each set
    holds the smaller ones of its seed.

    Parameters
    ----------
    clips
        Of the source; their own order does not matter.
    group
        Regular expression whose first group names the recording of a clip id; None: each clip is its own.

    Raises
    ------
    ValueError
        There are fewer clips than that, or an id does not fit the expression.

    Examples
    --------
    >>> clips = [Clip(f"{recording}-{take}", "x.wav") for recording in "abcd" for take in "12"]
    >>> small, large = (divide(clips, size, seed=0, group="(.)-") for size in (2, 4))
    >>> small.training == large.training[:2], len(small.rest), len(large.rest)
    (True, 6, 4)
    """
    if len(clips) < size:
        raise ValueError(f"expected at least {size:,} clips to train on, got {len(clips):,}; give more, or lower sizes")
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    ids = [clip.clip_id for clip in ordered]
    names = ids if group is None else recordings(ids, group)
    unique = sorted(set(names))
    place = dict(zip(unique, np.random.default_rng(seed).permutation(len(unique)).tolist(), strict=True))
    rows = sorted(range(len(ordered)), key=lambda row: (place[names[row]], row))
    taken = {names[row] for row in rows[:size]}
    return Parts(
        tuple(ordered[row] for row in rows[:size]), tuple(ordered[row] for row in rows[size:] if names[row] not in taken)
    )


def of_other_recordings(clips: Sequence[Clip], others: Sequence[Clip], group: str | None = None) -> list[Clip]:
    """The clips of which no take is among the others.

    Examples
    --------
    >>> a1, a2, b1 = (Clip(name, "x.wav") for name in ("a-1", "a-2", "b-1"))
    >>> of_other_recordings([a1, b1], [a2], "(.)-") == [b1], of_other_recordings([a1, b1], [a2]) == [a1, b1]
    (True, True)
    """
    ids = [[clip.clip_id for clip in some] for some in (clips, others)]
    names, taken = ids if group is None else [recordings(some, group) for some in ids]
    return [clip for clip, name in zip(clips, names, strict=True) if name not in set(taken)]


def chosen(clips: Sequence[Clip], share: float, seed: int) -> tuple[Clip, ...]:
    """The clips that are repeated: so large a share, at least one, drawn at random by the seed.

    Examples
    --------
    >>> len(chosen([Clip(f"{n}", "x.wav") for n in range(80)], 0.1, seed=0))
    8
    """
    count = max(1, round(share * len(clips)))
    rows = np.random.default_rng([seed, len(clips)]).choice(len(clips), count, replace=False)
    return tuple(clips[row] for row in sorted(rows.tolist()))


def repeated(clips: Sequence[Clip], again: Sequence[Clip], copies: int) -> list[Clip]:
    """The clips, of which some are there ``copies`` times, under ids of their own.

    Examples
    --------
    >>> a, b = Clip("a", "a.wav"), Clip("b", "b.wav")
    >>> [clip.clip_id for clip in repeated([a, b], [b], 3)]
    ['a', 'b', 'b#copy-2', 'b#copy-3']
    """
    more = [
        Clip(f"{clip.clip_id}#{COPY}-{number}", clip.path, clip.start_s, clip.duration_s, clip.caption, clip.labels)
        for clip in again
        for number in range(2, copies + 1)
    ]
    return [*clips, *more]


def prompted(clips: Sequence[Clip], wanted: int, seed: int) -> tuple[list[Clip], int]:
    """Which captions are generated from, and how many clips of each, for about ``wanted`` clips (0: one of each caption).

    Examples
    --------
    >>> clips = [Clip(f"{n}", "x.wav") for n in range(8)]
    >>> [(len(some), each) for some, each in (prompted(clips, wanted, 0) for wanted in (0, 4, 8, 40))]
    [(8, 1), (4, 1), (8, 1), (8, 5)]
    """
    if wanted == 0:
        return list(clips), 1
    if wanted >= len(clips):
        return list(clips), round(wanted / len(clips))
    rows = np.random.default_rng([seed, wanted]).choice(len(clips), wanted, replace=False)
    return [clips[row] for row in sorted(rows.tolist())], 1


def write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """Write clips as JSON Lines, as every command reads them."""
    rows: list[dict[str, Any]] = []
    for clip in clips:
        row: dict[str, Any] = {"clip_id": clip.clip_id, "path": clip.path, "caption": clip.caption, "labels": list(clip.labels)}
        if clip.start_s or clip.duration_s is not None:
            row |= {"start_s": clip.start_s, "duration_s": clip.duration_s}
        rows.append(row)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_manifest(path: Path) -> list[Clip]:
    """The clips of a manifest that a study has written."""
    return [item for item in open_corpus(path) if isinstance(item, Clip)]


def write_sounds(folder: Path, count: int, seed: int, duration_s: float) -> list[Clip]:
    """Synthesize captioned clips, each with a caption of its own, as FLAC files."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        family = list(FAMILIES)[number % len(FAMILIES)]
        sound = synthesise(family, np.random.default_rng([seed, number]), duration_s=duration_s, rate_hz=SOUNDS_HZ)
        path = folder / f"{number:04d}.flac"
        sf.write(path, sound.samples, SOUNDS_HZ)
        caption = f"{sound.caption}, recording {number}"
        clips.append(Clip(f"{folder.name}-{number:04d}", str(path.absolute()), caption=caption, labels=(family,)))
    return clips
