"""What is to be generated: the rows of a file of prompts, and from them one clip after another, each with its seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..corpus.folder import is_utf8
from ..corpus.manifest import (
    AUDIOCAPS_COLUMNS,
    CAPTION_COLUMNS,
    MANIFEST_SUFFIXES,
    MAX_CAPTION,
    PATH_COLUMNS,
    caption_of,
    labels_of,
    manifest_rows,
    resolved_path,
)
from ..errors import ManifestError
from ..storage import Place, Url, is_url, place_of

TEXT_SUFFIX = ".txt"
SEED_BITS = 53  # what every reader of JSON holds exactly
_SHOWN = 5  # rows that a message names


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes
    ----------
    number
        Its position among the rows of the file, from 0 (empty lines of a text file are no rows).
    caption
        What is to be heard.
    reference
        The clip of the training or test set that the caption belongs to, by ``clip_id`` or path, where the row names one.
    labels
        Classes of the sound.
    path
        File of that clip on this machine, where the row names a whole one; it need not be there.
    pairs
        Clips of the datastore that the model is to be shown, where the row names them; None: they are looked up.
    """

    number: int
    caption: str
    reference: str | None = None
    labels: tuple[str, ...] = ()
    path: str | None = None
    pairs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PlannedClip:
    """One clip that is to be made.

    Attributes
    ----------
    clip_id
        Row and number, ``000012-00``.
    prompt
        The row.
    number
        Of this clip among those of its prompt, from 0.
    seed
        See :func:`clip_seed`.
    """

    clip_id: str
    prompt: PromptRow
    number: int
    seed: int


def read_prompt_rows(path: str | Path, *, encoding: str = "utf-8") -> list[PromptRow]:
    """Read prompts from a manifest (CSV, TSV, JSON Lines, Parquet) or from a text file with one prompt a line.

    A manifest of training clips is a file of prompts, too: its captions are the prompts, and each row's own clip is the
    reference of what is generated from it.

    Parameters
    ----------
    path
        Of a manifest with a column ``caption`` (or ``captions``, ``text``), and optionally ``reference`` or ``clip_id`` or
        ``path``, ``labels``, and ``pairs`` (ids of the datastore's clips, written as labels are); or of a ``.txt`` file.
    encoding
        Of a text file or manifest.

    Raises
    ------
    ManifestError
        No such file or no such format, no rows, no captions, or captions that cannot be prompts.
    """
    place = place_of(path)
    try:
        if place.suffix.lower() == TEXT_SUFFIX and isinstance(place, Path):
            rows = [PromptRow(number, line) for number, line in enumerate(_lines(place, encoding))]
        elif place.suffix.lower() in MANIFEST_SUFFIXES:
            rows = [_row(number, place, row) for number, (_, row) in enumerate(manifest_rows(place, encoding))]
        else:
            known = ", ".join(sorted({TEXT_SUFFIX, *MANIFEST_SUFFIXES}))
            raise ManifestError(f"{path}: expected a file of prompts ({known}), got {place.suffix or 'no suffix'}")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not rows:
        raise ManifestError(f"{path}: holds no prompts; expected one a {'line' if place.suffix == TEXT_SUFFIX else 'row'}")
    _check_captions(str(path), rows)
    return rows


def clip_seed(seed: int, row: int, number: int) -> int:
    """The seed of a clip: of the run's seed, the prompt's row and the clip's number, and of nothing else.

    So neither the batch, the worker, how many clips each prompt has, nor where a stopped run continued changes the noise
    that a clip begins with: the first 53 bits of SHA-256 over the three numbers.

    Examples
    --------
    >>> clip_seed(0, 12, 0), clip_seed(0, 12, 1), clip_seed(1, 12, 0)
    (4569488440930594, 8764966054109194, 3199164654453960)
    """
    digest = hashlib.sha256(f"{seed}:{row}:{number}".encode()).digest()
    return int.from_bytes(digest[:8]) >> (64 - SEED_BITS)


def plan_clips(rows: Sequence[PromptRow], *, per_prompt: int, seed: int) -> list[PlannedClip]:
    """All clips that are to be made, in the order of the prompts.

    Examples
    --------
    >>> [clip.clip_id for clip in plan_clips([PromptRow(0, "rain"), PromptRow(1, "wind")], per_prompt=2, seed=0)]
    ['000000-00', '000000-01', '000001-00', '000001-01']
    """
    return [
        PlannedClip(f"{row.number:06d}-{number:02d}", row, number, clip_seed(seed, row.number, number))
        for row in rows
        for number in range(per_prompt)
    ]


def prompts_digest(rows: Sequence[PromptRow]) -> str:
    """SHA-256 over what the prompts say, hexadecimal: equal for a CSV and a Parquet file of the same rows."""
    digest = hashlib.sha256()
    for row in rows:
        named = [] if row.pairs is None else [row.pairs]
        digest.update(json.dumps([row.caption, row.reference, row.labels, *named]).encode() + b"\n")
    return digest.hexdigest()


def _lines(path: Path, encoding: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig" if encoding.lower() in {"utf-8", "utf8"} else encoding) as handle:
            yield from (line.strip() for line in handle if line.strip())
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not {encoding}; save it as UTF-8 or name its encoding with --encoding") from error


def _row(number: int, place: Place, row: Mapping[str, Any]) -> PromptRow:
    if not set(row) & set(CAPTION_COLUMNS):
        raise ManifestError(
            f"{place}: no 'caption' column; it has {', '.join(sorted(map(str, row)))}. Rename the column that holds the prompts"
        )
    caption = (caption_of(row) or "").strip()
    pairs = None if row.get("pairs") is None else labels_of(row["pairs"])
    return PromptRow(number, caption, _reference(row, place), labels_of(row.get("labels")), _path(row, place), pairs)


def _path(row: Mapping[str, Any], place: Place) -> str | None:
    """The file of the clip that a row is about; None for a stretch of a file, or what lies elsewhere."""
    root = place.parent
    if isinstance(root, Url) or row.get("start_s") or row.get("duration_s"):
        return None
    keys = ("reference",) if row.get("reference") else PATH_COLUMNS
    named = next((str(row[key]) for key in keys if row.get(key)), "")
    return None if not named or is_url(named) else resolved_path(named, root)[0]


def _reference(row: Mapping[str, Any], place: Place) -> str | None:
    """The clip that a row is about: the id under which auscult reads it from this very manifest, or what ``reference`` says."""
    root = place.parent
    named = str(row.get("reference") or "").strip()
    if named:
        if not is_url(named) and not isinstance(root, Url) and (root / named).is_file():
            return os.path.abspath(root / named)  # or it would be taken as relative to the new manifest
        return named
    if set(row) >= AUDIOCAPS_COLUMNS and not set(row) & set(PATH_COLUMNS):
        return f"{row['youtube_id']}_{row['start_time']}"
    named = next((str(row[key]) for key in ("clip_id", "id", *PATH_COLUMNS) if row.get(key) not in (None, "")), "")
    if is_url(named):
        return str(resolved_path(named, root)[0])  # without its credentials
    return named or None


def _check_captions(path: str, rows: Sequence[PromptRow]) -> None:
    wrong = (
        ("no caption", "give them one or leave them out", [row for row in rows if not row.caption]),
        ("a caption that holds characters that are no text", "mend it", [row for row in rows if not is_utf8(row.caption)]),
        (
            f"a caption of more than {MAX_CAPTION:,} characters",
            "shorten it",
            [row for row in rows if len(row.caption) > MAX_CAPTION],
        ),
    )
    for what, remedy, which in wrong:
        if which:
            named = ", ".join(str(row.number + 1) for row in which[:_SHOWN]) + (", ..." if len(which) > _SHOWN else "")
            raise ManifestError(f"{path}: {len(which):,} of {len(rows):,} prompts have {what} (number {named}); {remedy}")
