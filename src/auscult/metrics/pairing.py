"""What belongs together: a generated clip and its caption, a generated clip and its reference. By a table, and by nothing else.

Neither equal file names nor the order of two listings pair anything: both have put wrong pairs into published numbers without
a word.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..corpus.manifest import (
    CAPTION_COLUMNS,
    MANIFEST_SUFFIXES,
    PATH_COLUMNS,
    caption_of,
    labels_of,
    manifest_rows,
    resolved_path,
)
from ..errors import ManifestError
from ..storage import Place, Url, place_of

ID_COLUMNS = ("clip_id", "id", "audiocap_id")
REFERENCE_COLUMN = "reference"
WANTED_COLUMNS = ("caption", REFERENCE_COLUMN, "labels")


class OtherReferencesError(ManifestError):
    """A table pairs generated clips with clips that are not in the reference set."""


@dataclass(frozen=True)
class Prompt:
    """One row: the generated clip that it is about, and what belongs to that.

    Attributes
    ----------
    where, name
        For messages: the table and line, and the generated clip as the row names it.
    clip_id, path
        The generated clip: its id, and where it lies (resolved); one of them may be None.
    caption
        What it was generated from.
    reference, reference_path
        Its reference clip: as the row has it, which may be an id, and the same taken for a path (resolved).
    labels
        Classes of the sound.
    path_text
        The path as the row has it.
    """

    where: str
    name: str
    clip_id: str | None
    path: str | None
    caption: str | None = None
    reference: str | None = None
    reference_path: str | None = None
    labels: tuple[str, ...] = ()
    path_text: str | None = None


@dataclass(frozen=True)
class Prompts:
    """The rows of a table of prompts, and which columns it has."""

    source: str
    columns: frozenset[str]
    rows: tuple[Prompt, ...]


def read_prompts(table: str | Path, *, audio_root: str | Path | None = None, encoding: str = "utf-8") -> Prompts:
    """Read a table that says what belongs to which generated clip; a generated corpus's own manifest may be one.

    Parameters
    ----------
    table
        CSV, TSV, JSON Lines or Parquet, at a path or a URL. Columns: ``clip_id`` or ``path`` of the generated clip;
        optionally ``caption``, ``reference`` (``clip_id`` or path of a clip of the reference corpus) and ``labels``. Paths
        are relative to the table's folder; :func:`~auscult.metrics.addressing.prompts_by_system` knows of others.
    audio_root
        What relative paths are relative to instead.
    encoding
        Of a text table.

    Raises
    ------
    ManifestError
        It is no such table, has no rows, or a row names no clip.
    """
    place = _absolute(table)
    if place.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ManifestError(
            f"{table}: expected a table of prompts (.csv, .tsv, .jsonl or .parquet), got {place.suffix or 'no suffix'}"
        )
    root = place.parent if audio_root is None else _absolute(audio_root)
    columns: set[str] = set()
    rows = []
    try:
        for number, row in manifest_rows(place, encoding):
            columns |= set(row)
            rows.append(_prompt(f"{place.name}, line {number}", row, root))
    except OSError as error:
        raise ManifestError(f"{table}: cannot be read ({error.strerror or error})") from error
    if not rows:
        raise ManifestError(f"{table}: holds no rows; expected one for each generated clip")
    return Prompts(str(place), frozenset(columns), tuple(rows))


def check_columns(prompts: Prompts) -> list[str]:
    """Refuse a table that says nothing of its clips; sentences about columns that were hardly meant to be passed over.

    Raises
    ------
    ManifestError
        No row has a caption, a reference or labels.

    Examples
    --------
    >>> rows = (Prompt("line 2", "a", "a", None, "an owl"),)
    >>> check_columns(Prompts("prompts.csv", frozenset({"clip_id", "caption", "refrence"}), rows))
    ["prompts.csv: the column 'refrence' is not read; is 'reference' meant?"]
    """
    missing = [name for name in WANTED_COLUMNS if name not in prompts.columns]
    meant = {}
    for column in sorted(prompts.columns - {*ID_COLUMNS, *PATH_COLUMNS, *CAPTION_COLUMNS, *WANTED_COLUMNS}):
        if close := difflib.get_close_matches(column.strip().lower(), missing, n=1, cutoff=0.75):
            meant[column] = close[0]
    if not any(rows_with(prompts).values()):
        hint = "; ".join(f"is {name!r} meant by {column!r}?" for column, name in meant.items())
        raise ManifestError(
            f"{prompts.source}: says nothing of its clips; expected a column caption, reference or labels with something in "
            f"it, got the columns {', '.join(sorted(prompts.columns))}" + (f"; {hint}" if hint else "")
        )
    return [f"{prompts.source}: the column {column!r} is not read; is {name!r} meant?" for column, name in meant.items()]


def rows_with(prompts: Prompts) -> dict[str, int]:
    """How many rows have a caption, a reference, labels."""
    return {
        "captions": sum(row.caption is not None for row in prompts.rows),
        "references": sum(row.reference is not None for row in prompts.rows),
        "labels": sum(bool(row.labels) for row in prompts.rows),
    }


def _absolute(place: str | Path) -> Place:
    found = place_of(place)
    return found if isinstance(found, Url) else Path(os.path.abspath(found))


def _prompt(where: str, row: Mapping[str, Any], root: Place) -> Prompt:
    clip_id, path, reference = (_text(row, names) for names in (ID_COLUMNS, PATH_COLUMNS, (REFERENCE_COLUMN,)))
    if clip_id is None and path is None:
        raise ManifestError(
            f"{where}: names no generated clip; expected a column {ID_COLUMNS[0]!r} or {PATH_COLUMNS[0]!r}, the row has "
            f"{', '.join(sorted(map(str, row)))}"
        )
    return Prompt(
        where,
        str(clip_id or path),
        clip_id,
        None if path is None else _resolved(path, root),
        caption_of(row),
        reference,
        None if reference is None else _resolved(reference, root),
        labels_of(row.get("labels")),
        path,
    )


def _text(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these columns that holds anything, as text."""
    return next((str(row[name]).strip() for name in names if row.get(name) is not None and str(row[name]).strip()), None)


def _resolved(name: str, root: Place) -> str:
    return name if name.startswith("hf:") else str(resolved_path(name, root)[0])


# --- captions and references ------------------------------------------------------------------------------------------


def pair_captions(clips: pa.Table, prompts: Prompts | None = None, *, skipped: pa.Table | None = None) -> list[str]:
    """The caption of each generated clip, in the order of its rows.

    Parameters
    ----------
    clips
        Generated clips with ``clip_id, path, caption``, as ``FeatureSet.clips`` has them.
    prompts
        Where the captions are. None: the corpus itself has them (a manifest, or tars with captions).
    skipped
        Generated clips without features (``clip_id, path``), which prompts may name, too.

    Raises
    ------
    ManifestError
        A clip has no caption, a prompt names no clip, names two, or a clip has two captions.

    Examples
    --------
    >>> clips = pa.table({"clip_id": ["b", "a"], "path": ["b.wav", "a.wav"]})
    >>> rows = (Prompt("line 2", "a", "a", None, "an owl"), Prompt("line 3", "b", "b", None, "a bell"))
    >>> pair_captions(clips, Prompts("prompts.csv", frozenset({"clip_id", "caption"}), rows))
    ['a bell', 'an owl']
    """
    if prompts is None:
        captions = clips["caption"].to_pylist()
        _refuse_unpaired(clips, [caption is None for caption in captions], "caption", "the corpus")
        return [str(caption) for caption in captions]
    if not prompts.columns & set(CAPTION_COLUMNS):
        raise ManifestError(f"{prompts.source}: no 'caption' column; it has {', '.join(sorted(prompts.columns))}")
    found = _values(clips, prompts, skipped, "caption", [prompt.caption for prompt in prompts.rows])
    _refuse_unpaired(clips, [row not in found for row in range(clips.num_rows)], "caption", prompts.source)
    return [found[row] for row in range(clips.num_rows)]


def pair_references(
    generated: pa.Table,
    reference: pa.Table,
    prompts: Prompts,
    *,
    skipped: pa.Table | None = None,
    skipped_references: pa.Table | None = None,
) -> npt.NDArray[np.int64]:
    """The row of ``reference`` that belongs to each generated clip, (n,) int64, in the order of the generated rows.

    Parameters
    ----------
    generated, reference
        Clips with ``clip_id, path``, as ``FeatureSet.clips`` has them. Several generated clips may have one reference.
    prompts
        A table with a ``reference`` column.
    skipped, skipped_references
        Clips without features (``clip_id, path``): a prompt may name a skipped generated clip, but no generated clip may have
        a skipped reference.

    Raises
    ------
    ManifestError
        As for :func:`pair_captions`; or a reference was skipped, or may be one of two clips.
    OtherReferencesError
        A reference is not there.

    Examples
    --------
    >>> clips = pa.table({"clip_id": ["b", "a"], "path": ["b.wav", "a.wav"]})
    >>> rows = (Prompt("line 2", "a", "a", None, None, "a"), Prompt("line 3", "b", "b", None, None, "a"))
    >>> pair_references(clips, clips, Prompts("prompts.csv", frozenset({"clip_id", "reference"}), rows)).tolist()
    [1, 1]
    """
    if REFERENCE_COLUMN not in prompts.columns:
        raise ManifestError(
            f"{prompts.source}: no {REFERENCE_COLUMN!r} column; it has {', '.join(sorted(prompts.columns))}. Paired metrics "
            "need the clip_id or path of each generated clip's reference there: files are never paired by their names"
        )
    found = _values(generated, prompts, skipped, "reference", [prompt.reference for prompt in prompts.rows])
    _refuse_unpaired(generated, [row not in found for row in range(generated.num_rows)], "reference", prompts.source)
    names = _Names(reference)
    lost = _Names(skipped_references)
    prompt_of = {prompt.reference: prompt for prompt in prompts.rows}
    rows = {}
    for name in dict.fromkeys(found.values()):
        prompt = prompt_of[name]
        row = names.row(prompt.where, name, prompt.reference_path, "reference")
        if row is None and lost.holds(name, prompt.reference_path):
            raise ManifestError(
                f"{prompt.where}: the reference {name!r} was skipped and has no features; mend it, or leave out its pair"
            )
        if row is None:
            raise OtherReferencesError(f"{prompt.where}: the reference set holds no clip {name!r}{names.near(name)}")
        rows[name] = row
    return np.array([rows[found[row]] for row in range(generated.num_rows)], np.int64)


def _values(
    clips: pa.Table, prompts: Prompts, skipped: pa.Table | None, what: str, values: Sequence[str | None]
) -> dict[int, str]:
    """What the prompts say of each row of ``clips``: the same in every prompt about it."""
    names, lost = _Names(clips), _Names(skipped)
    found: dict[int, tuple[str, str]] = {}
    for prompt, value in zip(prompts.rows, values, strict=True):
        row = names.row(prompt.where, prompt.clip_id, prompt.path, "generated")
        if row is None:
            if lost.holds(prompt.clip_id, prompt.path):
                continue
            raise ManifestError(f"{prompt.where}: the generated set holds no clip {prompt.name!r}{names.near(prompt.name)}")
        if value is None:
            continue
        before, where = found.setdefault(row, (value, prompt.where))
        if before != value:
            raise ManifestError(
                f"{prompt.where}: {prompt.name!r} has the {what} {value!r}, but {before!r} in {where}; keep one"
            )
    return {row: value for row, (value, _) in found.items()}


def _refuse_unpaired(clips: pa.Table, unpaired: Sequence[bool], what: str, source: str) -> None:
    if not any(unpaired):
        return
    names = [name for name, alone in zip(clips["clip_id"].to_pylist(), unpaired, strict=True) if alone]
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    raise ManifestError(
        f"{source}: {len(names):,} of {len(unpaired):,} generated clips have no {what}: {', '.join(map(repr, names[:3]))}{more}"
        f"; give each a row, or leave the {what}s of all away"
    )


class _Names:
    """Which row a clip id or a path names."""

    def __init__(self, clips: pa.Table | None) -> None:
        self.ids: dict[str, int] = {}
        self.paths: dict[str, list[int]] = defaultdict(list)
        for row, (clip_id, path) in enumerate(() if clips is None else _ids_and_paths(clips)):
            if clip_id is not None:
                self.ids[clip_id] = row
            self.paths[path].append(row)

    def holds(self, clip_id: str | None, path: str | None) -> bool:
        """Whether a clip has this id, or lies in this file."""
        return clip_id in self.ids or path in self.paths

    def row(self, where: str, clip_id: str | None, path: str | None, which: str) -> int | None:
        """The row, or None if there is none; of a path that several clips lie in, none is meant more than another."""
        by_id = self.ids.get(clip_id) if clip_id is not None else None
        by_path = self.paths.get(path, []) if path is not None else []
        if by_id is not None and by_path and by_id not in by_path:
            raise ManifestError(
                f"{where}: {clip_id!r} is the id of one {which} clip, and {path} is another; the row has to mean one of them"
            )
        if by_id is not None:
            return by_id
        if len(by_path) > 1:
            raise ManifestError(
                f"{where}: {len(by_path)} {which} clips lie in {path}; name the one that is meant by its clip_id"
            )
        return by_path[0] if by_path else None

    def near(self, name: str) -> str:
        """What may have been meant, for the end of a message."""
        own = name if name in self.ids else os.path.basename(name)
        if own in self.ids:
            return f"; there is one with the clip_id {own!r}: if it is meant, name it so in a column {ID_COLUMNS[0]!r}"
        known = [*self.ids, *self.paths]
        close = difflib.get_close_matches(name, known[:20_000], n=3)
        return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _ids_and_paths(clips: pa.Table) -> Iterable[tuple[str | None, str]]:
    return zip(clips["clip_id"].to_pylist(), clips["path"].to_pylist(), strict=True)
