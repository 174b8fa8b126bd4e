"""One table of prompts and several systems: which rows are about whose clips, and what their paths are relative to."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ..corpus import Corpus
from ..corpus.manifest import MANIFEST_SUFFIXES
from .pairing import Prompt, Prompts, read_prompts


def prompts_by_system(prompts: Prompts | None, corpora: Mapping[str, Corpus]) -> dict[str, Prompts | None]:
    """The rows about each system's clips, with paths that lead to them.

    A path is relative to the table's folder, or, if none in the table leads to a clip of the system from there, to the
    system's own folder (that of its manifest): so one table serves several systems whose files are called alike, and a table
    may also have rows of its own for each system. A row that names a clip of other systems only is left to them; one that
    names nobody's stays with all, and is refused when clips are paired.

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
    if len(corpora) == 1 and all(row.clip_id is not None for row in prompts.rows):
        return dict.fromkeys(corpora, prompts)
    rows: dict[str, tuple[Prompt, ...]] = {}
    theirs: dict[str, list[bool]] = {}
    for name, corpus in corpora.items():
        ids, paths = _names(corpus)
        rows[name] = _from_own_folder(prompts.rows, corpus, paths)
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


def _from_own_folder(rows: tuple[Prompt, ...], corpus: Corpus, paths: Collection[str | None]) -> tuple[Prompt, ...]:
    """The rows as they are, or with paths from the corpus's folder, if only so any of them leads to one of its clips."""
    source = Path(corpus.sources[0])
    if len(corpus.sources) > 1 or any(row.path in paths for row in rows) or not source.exists():
        return rows
    folder = source if source.is_dir() else source.parent
    moved = tuple(
        replace(row, path=os.path.normpath(folder / row.name)) if row.clip_id is None and row.path else row for row in rows
    )
    return moved if any(row.path in paths for row in moved) else rows
