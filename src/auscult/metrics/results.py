"""The files of an evaluation: JSON with everything, tables for papers and people, a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import OutputFolderError, StoreError
from ..folders import write_table, write_text
from .evaluation import KIND, Evaluation
from .glossary import metric_of
from .longtail import LongTail
from .panels import Panel, long_tail_csv, long_tail_panel, panel_markdown
from .scoreboard import scoreboard_csv, scoreboard_markdown
from .scoreboard_page import scoreboard_html
from .scores import SystemResult

_BESIDE = (".html", ".md", ".csv", ".clips.parquet", ".longtail.csv")


def check_output(path: Path, *, overwrite: bool) -> None:
    """See that the result of an evaluation may be written, before hours of work.

    Raises
    ------
    OutputFolderError
        The path is no ``.json``, its folder cannot be written, or something is there that is not to be replaced.
    """
    if path.suffix != ".json":
        raise OutputFolderError(f"{path}: the result of an evaluation is a file, such as metrics.json (tables come beside it)")
    if path.is_dir():
        raise OutputFolderError(f"{path}: is a folder; name a file")
    there = [one for one in (path, *(_beside(path, suffix) for suffix in _BESIDE)) if one.exists()]
    if not there:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if path not in there or not _is_evaluation(path):
        raise OutputFolderError(f"{there[0]}: is there already, and not of an evaluation; choose another name")
    if not overwrite:
        raise OutputFolderError(f"{path}: holds a finished evaluation; choose another name, or give --overwrite")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix)


def _is_evaluation(path: Path) -> bool:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and isinstance(content.get("card"), dict) and content["card"].get("kind") == KIND


def write_evaluation(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write the result, the JSON last, and first remove that of an earlier one: where it is there, everything is.

    Returns
    -------
    list of Path
        ``metrics.json`` (scores, brackets, card), ``metrics.html``, ``.md``, ``.csv``, ``.clips.parquet`` (scores of single
        clips), and with classes ``.longtail.csv``.
    """
    panels = [_panel(metric, tails) for metric, tails in evaluation.tails.items()]
    markdown = [scoreboard_markdown(evaluation.results), *(panel_markdown(panel) for panel in panels)]
    texts = {
        ".html": scoreboard_html(evaluation.results, evaluation.card, panels),
        ".md": "\n".join(markdown),
        ".csv": scoreboard_csv(evaluation.results),
    }
    if evaluation.tails:
        texts[".longtail.csv"] = "\n".join(long_tail_csv(tails) for tails in evaluation.tails.values())
    path.unlink(missing_ok=True)
    for suffix in _BESIDE:
        if suffix not in texts and suffix != ".clips.parquet":
            _beside(path, suffix).unlink(missing_ok=True)  # of an evaluation that had classes
    for suffix, text in texts.items():
        write_text(_beside(path, suffix), text)
    write_table(_beside(path, ".clips.parquet"), evaluation.clips)
    write_text(path, json.dumps(_content(evaluation), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return [path, *(_beside(path, suffix) for suffix in (*texts, ".clips.parquet"))]


def _panel(metric: str, tails: Any) -> Panel:
    kind, _, backend = metric.rpartition("_")
    return long_tail_panel(tails, label=f"{metric_of(kind).name} ({backend})")


def _content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "card": evaluation.card,
        "systems": [result.to_json() for result in evaluation.results],
        "long_tail": {
            metric: {name: tail.to_json() for name, tail in tails.items()} for metric, tails in evaluation.tails.items()
        },
    }


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what :func:`write_evaluation` wrote; ``clips`` is empty if its table is no longer beside it.

    Raises
    ------
    StoreError
        There is no evaluation, or it was written by another version.
    """
    path = Path(path)
    if not _is_evaluation(path):
        raise StoreError(f"{path}: expected the JSON file that auscult evaluate wrote")
    content = json.loads(path.read_text("utf-8"))
    clips = _beside(path, ".clips.parquet")
    try:
        return Evaluation(
            tuple(SystemResult.from_json(one) for one in content["systems"]),
            {
                metric: {name: LongTail.from_json(tail) for name, tail in tails.items()}
                for metric, tails in content["long_tail"].items()
            },
            content["card"],
            pa.parquet.read_table(clips) if clips.is_file() else pa.table({}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: was written by another version of auscult ({error}); evaluate again") from error
