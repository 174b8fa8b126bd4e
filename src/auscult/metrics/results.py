"""The files of an evaluation: JSON with everything, tables for papers and people, a page."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import OutputFolderError
from ..folders import file_digest
from .card import KIND
from .evaluation import Evaluation
from .glossary import metric_of
from .panels import Panel, long_tail_csv, long_tail_panel, panel_markdown
from .scoreboard import scoreboard_csv, scoreboard_markdown
from .scoreboard_page import scoreboard_html
from .tails import Tail

_JSON = ".json"
_BESIDE = (".html", ".md", ".csv", ".clips.parquet", ".longtail.csv")
_JOURNAL = "evaluation being written"


def check_output(path: Path, *, overwrite: bool) -> None:
    """See that the result of an evaluation may be written, before hours of work.

    What a killed :func:`write_evaluation` left may be replaced; what somebody else put there, or changed since, may not.

    Raises
    ------
    OutputFolderError
        The path is no ``.json``, its folder cannot be written, its name leaves no room for those of the tables, or something
        is there that is not to be replaced.
    """
    if path.suffix != _JSON:
        raise OutputFolderError(f"{path}: the result of an evaluation is a file, such as metrics.json (tables come beside it)")
    try:
        _check_replaceable(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except OSError as error:
        raise OutputFolderError(f"{path}: cannot be written ({error.strerror}); choose another -o") from error


def write_evaluation(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write the result: all files under other names first, then renamed, the JSON last. Where it is there, everything is.

    Until all are written, an earlier result stays as it was.

    Returns
    -------
    list of Path
        ``metrics.json`` (scores, brackets, card), ``metrics.html``, ``.md``, ``.csv``, ``.clips.parquet`` (scores of single
        clips), and with classes ``.longtail.csv``.

    Raises
    ------
    OutputFolderError
        Something is there that is no evaluation's.
    """
    tables = _tables(evaluation)
    contents = {**tables, _JSON: _json(_content(evaluation, tables))}
    check_output(path, overwrite=True)  # again: hours may have passed since
    _publish(path, contents)
    return [path, *(_beside(path, suffix) for suffix in tables)]


# --- contents ---------------------------------------------------------------------------------------------------------


def _tables(evaluation: Evaluation) -> dict[str, bytes]:
    """What is written beside the JSON, by suffix."""
    panels = [_panel(tail) for tail in evaluation.tails.values()]
    texts = {
        ".html": scoreboard_html(evaluation.results, evaluation.card, panels),
        ".md": "\n".join([scoreboard_markdown(evaluation.results), *map(panel_markdown, panels)]),
        ".csv": scoreboard_csv(evaluation.results),
    }
    if evaluation.tails:
        texts[".longtail.csv"] = "\n".join(long_tail_csv(tail.systems) for tail in evaluation.tails.values())
    sink = pa.BufferOutputStream()
    pq.write_table(evaluation.clips, sink, compression="zstd")
    return {**{suffix: text.encode() for suffix, text in texts.items()}, ".clips.parquet": sink.getvalue().to_pybytes()}


def _panel(tail: Tail) -> Panel:
    return long_tail_panel(tail.systems, label=f"{metric_of(tail.metric).name} ({tail.backend})")


def _content(evaluation: Evaluation, tables: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "card": evaluation.card,
        "systems": [result.to_json() for result in evaluation.results],
        "long_tail": {key: tail.to_json() for key, tail in evaluation.tails.items()},
        "files": {suffix: _digest(content) for suffix, content in tables.items()},
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- places -----------------------------------------------------------------------------------------------------------


def _publish(path: Path, contents: Mapping[str, bytes]) -> None:
    """Put the files in their places, so that a kill at any moment leaves what :func:`check_output` knows: a whole result, or
    files whose digests the journal has."""
    journal = _hidden(path, ".journal")
    try:
        for suffix, content in contents.items():
            _write(_staged(path, suffix), content)
        known = {suffix: [file_digest(_beside(path, suffix))] for suffix in _there(path)}
        for suffix, content in contents.items():
            known.setdefault(suffix, []).append(_digest(content))
        _write(_hidden(path, ".journal.new"), _json({"kind": _JOURNAL, "files": known}))
        _hidden(path, ".journal.new").replace(journal)
        path.unlink(missing_ok=True)
        for suffix in _BESIDE:  # the JSON is not among them
            if suffix in contents:
                _staged(path, suffix).replace(_beside(path, suffix))
            else:
                _beside(path, suffix).unlink(missing_ok=True)  # of an evaluation that had classes
        _staged(path, _JSON).replace(path)
        journal.unlink()
    finally:
        for left in (*(_staged(path, suffix) for suffix in (_JSON, *_BESIDE)), _hidden(path, ".journal.new")):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file and see it on the disk, under a name that nobody reads."""
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Refuse what is there and is no result of ours, or none that may be replaced."""
    if path.is_dir():
        raise OutputFolderError(f"{path}: is a folder; name a file")
    tables = _tables_of(path)
    for suffix in _there(path):
        place = _beside(path, suffix)
        if tables is None or (suffix != _JSON and suffix not in tables):
            if not _is_ours(path, suffix):
                raise OutputFolderError(f"{place}: is there already, and not of an evaluation; choose another name")
        elif suffix != _JSON and _digest_of(place) != tables[suffix]:
            raise OutputFolderError(
                f"{place}: was changed since its evaluation was written; move it away, so that nothing of it is lost"
            )
    if tables is not None and not overwrite:
        raise OutputFolderError(f"{path}: holds a finished evaluation; choose another name, or give --overwrite")


def _probe(path: Path) -> None:
    """See that a file can be made under the longest of the names that will be needed."""
    longest = max((_staged(path, suffix) for suffix in (_JSON, *_BESIDE)), key=lambda place: len(place.name))
    longest.write_bytes(b"")
    longest.unlink()


def _there(path: Path) -> list[str]:
    return [suffix for suffix in (_JSON, *_BESIDE) if _beside(path, suffix).exists()]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix)


def _staged(path: Path, suffix: str) -> Path:
    return _hidden(path, f"{suffix}.new")


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.stem}.evaluation{suffix}")


def _tables_of(path: Path) -> dict[str, str] | None:
    """The digests of what a finished evaluation wrote beside its JSON, by suffix; None if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
        finished = content["card"]["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not finished:
        return None
    files = content.get("files")
    if not isinstance(files, dict):
        raise OutputFolderError(
            f"{path}: is of an evaluation that does not say which files are its own (an earlier version wrote it?); move it "
            "and its tables away, or choose another name"
        )
    return files


def _digest_of(place: Path) -> str | None:
    """None of what cannot be read, as a folder cannot."""
    try:
        return file_digest(place)
    except OSError:
        return None


def _is_ours(path: Path, suffix: str) -> bool:
    """Whether a file is one that a killed writer had in its journal, to be written or to be replaced."""
    try:
        journal = json.loads(_hidden(path, ".journal").read_text("utf-8"))
        known: Iterable[str] = journal["files"].get(suffix, ()) if journal["kind"] == _JOURNAL else ()
        return file_digest(_beside(path, suffix)) in known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
