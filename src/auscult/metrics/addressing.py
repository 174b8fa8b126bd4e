"""One table of prompts and several systems: which rows are about whose clips, and what their paths are relative to."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..corpus import Corpus
from ..corpus.manifest import MANIFEST_SUFFIXES
from .pairing import Prompt, Prompts, read_prompts


def prompts_by_system(prompts: Prompts | None, corpora: Mapping[str, Corpus]) -> dict[str, Prompts | None]:
    """The rows about each system's clips, with paths that lead to them.

    A path is relative to the table's folder, or, if none in the table leads to a clip of the system from there, to the
    system's own folder (that of its manifest): so one table serves several systems whose files are called alike, and a table
    may also have rows of its own for each system. The path of a row whose ``clip_id`` is that of a system's clip stays as it
    is. A row that names a clip of other systems only is left to them; one that names nobody's stays with all, and is refused
    when clips are paired.

    Parameters
    ----------
    prompts
        None: what a corpus that is a single manifest says of its own clips; None of any other.
    corpora
        Generated clips by the names of the systems.

    Raises
    ------
    ManifestError
        A manifest cannot be read.
    """
    if prompts is None:
        return {name: _own_prompts(corpus) for name, corpus in corpora.items()}
    if len(corpora) == 1 and all(row.path is None for row in prompts.rows):
        return dict.fromkeys(corpora, prompts)
    names = {name: _names(corpus) for name, corpus in corpora.items()}
    movable = [row.path is not None and not any(row.clip_id in ids for ids, _ in names.values()) for row in prompts.rows]
    rows: dict[str, tuple[Prompt, ...]] = {}
    theirs: dict[str, list[bool]] = {}
    for name, corpus in corpora.items():
        ids, paths = names[name]
        rows[name] = _from_own_folder(prompts.rows, movable, corpus, paths)
        theirs[name] = [row.clip_id in ids or row.path in paths for row in rows[name]]
    nobodys = [not any(mine) for mine in zip(*theirs.values(), strict=True)]
    kept = {
        name: tuple(row for row, mine, lost in zip(rows[name], theirs[name], nobodys, strict=True) if mine or lost)
        for name in corpora
    }
    return {name: replace(prompts, rows=kept[name]) for name in corpora}


def labels_named(prompts: Prompts | None) -> dict[str, tuple[str, ...]]:
    """The labels that a table of prompts gives to clips, by their paths and ids."""
    rows = () if prompts is None else prompts.rows
    return {name: row.labels for row in rows for name in (row.path, row.clip_id) if name and row.labels}


def captions_named(prompts: Prompts | None) -> dict[str, str]:
    """The captions that a table of prompts gives to clips, by their paths and ids."""
    rows = () if prompts is None else prompts.rows
    return {name: row.caption for row in rows for name in (row.path, row.clip_id) if name and row.caption}


def _own_prompts(corpus: Corpus) -> Prompts | None:
    """What a corpus that is a single manifest says of its own clips; None if it is none."""
    if len(corpus.sources) != 1 or Path(corpus.sources[0]).suffix.lower() not in MANIFEST_SUFFIXES:
        return None
    return read_prompts(corpus.sources[0], audio_root=corpus.audio_root, encoding=corpus.encoding)


def _names(corpus: Corpus) -> tuple[set[str | None], set[str | None]]:
    """Ids and paths of what a corpus holds, be it audio or not."""
    ids: set[str | None] = set()
    paths: set[str | None] = set()
    for item in corpus:
        ids.add(item.clip_id)
        paths.add(item.path)
    return ids - {None}, paths


def _from_own_folder(
    rows: tuple[Prompt, ...], movable: Sequence[bool], corpus: Corpus, paths: Collection[str | None]
) -> tuple[Prompt, ...]:
    """The rows as they are, or with paths from the corpus's folder, if only so any of them leads to one of its clips."""
    source = Path(corpus.sources[0])
    if len(corpus.sources) > 1 or any(row.path in paths for row in rows) or not source.exists():
        return rows
    folder = source if source.is_dir() else source.parent
    moved = tuple(
        replace(row, path=os.path.normpath(folder / str(row.path_text))) if moves else row
        for row, moves in zip(rows, movable, strict=True)
    )
    return moved if any(row.path in paths for row in moved) else rows
