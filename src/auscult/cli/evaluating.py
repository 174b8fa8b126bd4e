"""``auscult evaluate``: how good generated audio is beside real audio."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import (
    AsJson,
    AudioRoot,
    ConfigFile,
    Device,
    Encoding,
    Overwrite,
    as_text,
    engine_of,
    local_path,
    settings_of,
)
from .printing import out, print_json, print_paths
from .progress import progress_bars

if TYPE_CHECKING:
    from ..metrics.classes import Classes
    from ..metrics.evaluation import Evaluation, System, Tail
    from ..metrics.pairing import Prompts
    from ..metrics.scoreboard import Board


def evaluate(
    generated: Annotated[
        list[str],
        typer.Argument(help="Generated clips of one or several systems: folders or manifests, or NAME=SRC to name a system."),
    ],
    reference: Annotated[str, typer.Option(help="Real audio of the kind that was to be generated: a folder or manifest.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=local_path, metavar="metrics.json", help="Result; .md, .csv, .html beside it."),
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            help="Where features come from, NAME or NAME:WEIGHTS, repeatable: logmel (no weights); clap, ast, encodec, "
            "wav2vec2, hubert, wavlm, whisper (of the Hugging Face hub or a folder); vggish:FILE, panns:FILE (default: logmel)",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="fad, fad_infinity, fad_per_clip (or fd, ...), kad, precision, recall, density, coverage, kl, kl_reversed, "
            "kl_sigmoid, is, clap_score, separated by commas (default: all that can be computed)"
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="FILE",
            help="Table that gives each generated clip (clip_id or path) its caption, its reference clip, its labels. Paths "
            "are relative to the table, or to each system's own folder.",
        ),
    ] = None,
    audit: Annotated[
        list[str] | None,
        typer.Option(
            help="Finished audit of a system's clips, for replication beside quality: FOLDER or NAME=FOLDER, repeatable."
        ),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(help="Training set with labels: a manifest, or AudioCaps's CSV; for scores by class frequency."),
    ] = None,
    audioset: Annotated[
        list[Path] | None,
        typer.Option(
            parser=local_path, metavar="FILE", help="AudioSet's segment CSVs, which hold AudioCaps's labels; repeatable."
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="FILE", help="AudioSet's class_labels_indices.csv or ontology.json."),
    ] = None,
    rate: Annotated[
        int | None, typer.Option("--rate", help="Bring all audio to this sample rate in Hz first, so that no band wins.")
    ] = None,
    mixed_rates: Annotated[
        bool | None, typer.Option("--mixed-rates", help="Compare clips of unequal sample rates as they are.")
    ] = None,
    loudness: Annotated[str | None, typer.Option(help="as_is, or peak: each clip's peak at -1 dBFS (default: as_is)")] = None,
    resamples: Annotated[int | None, typer.Option(min=0, help="Draws for the intervals (default: 200)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all draws (default: 0)")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="PATH", help="Folder of computed features (default: in the user's cache)"),
    ] = None,
    config: ConfigFile = None,
    workers: Annotated[int, typer.Option("--workers", "-j", min=1, help="Processes that compute features.")] = 1,
    device: Device = "cpu",
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    max_skipped: Annotated[
        int | None, typer.Option(min=0, help="Refuse sets of which more clips than this cannot be used (default: 0)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How good is generated audio, beside real audio? Writes scores with intervals and brackets.

    Exit code 1: all was written, but no score could be given.
    """
    from ..corpus import open_corpus
    from ..metrics.evaluation import EvaluateConfig
    from ..metrics.evaluation import evaluate as run
    from ..metrics.pairing import read_prompts
    from ..metrics.results import check_output, write_evaluation

    settings = settings_of(
        EvaluateConfig,
        config,
        backends=tuple(backend) if backend else None,
        metrics=None if metrics is None else tuple(name.strip().lower() for name in metrics.split(",") if name.strip()),
        rate_hz=rate,
        mixed_rates=mixed_rates,
        loudness=loudness,
        resamples=resamples,
        seed=seed,
        max_skipped=max_skipped,
    )
    check_output(output, overwrite=overwrite)
    root = as_text(audio_root)
    asked = None if prompts is None else read_prompts(prompts, audio_root=root, encoding=encoding)
    with progress_bars() as progress:
        evaluation = run(
            _systems(generated, audit or [], root, encoding),
            open_corpus(reference, audio_root=root, encoding=encoding),
            prompts=asked,
            classes=_classes(training, asked, audioset or [], class_names, root, encoding),
            config=settings,
            cache=cache,
            engine=engine_of(workers, device=device),
            progress=progress,
        )
        paths = write_evaluation(evaluation, output)
    _show(evaluation, paths, as_json=as_json)
    if not any(score.value is not None for result in evaluation.results for score in result.scores.values()):
        raise typer.Exit(1)  # the files hold the reasons


def _classes(
    training: str | None,
    prompts: Prompts | None,
    audioset: list[Path],
    class_names: Path | None,
    audio_root: str | None,
    encoding: str,
) -> Classes | None:
    """For scores by class frequency; None if no training set was given."""
    from ..metrics.classes import read_classes

    if training is None:
        return None
    return read_classes(
        training, prompts=prompts, segments=audioset, class_names=class_names, audio_root=audio_root, encoding=encoding
    )


def _show(evaluation: Evaluation, paths: list[Path], *, as_json: bool) -> None:
    """The scores with their footnotes and warnings, and where they were written."""
    from ..metrics.scoreboard import board
    from ..metrics.scoreboard_page import sentence

    if as_json:
        print_json({"systems": [result.to_json() for result in evaluation.results], "paths": [str(path) for path in paths]})
        return
    table = board(evaluation.results)
    out.print(_table(table))
    for number, text in enumerate(table.footnotes, 1):
        out.print(Text(f"({number}) {text}"))
    for tail in evaluation.tails.values():
        out.print(_tail_table(tail))
    if told := evaluation.card["prompts"]:
        counts = ", ".join(f"{told[what]:,} with {what}" for what in ("captions", "references", "labels"))
        out.print(Text(f"{told['source']}: rows {counts}"))
    for result in evaluation.results:
        for warning in result.warnings:
            out.print(Text(f"note: {result.name}: {warning}"))
    for warning in evaluation.card["warnings"]:
        out.print(Text(f"note: {warning}"))
    out.print(Text(sentence(table, evaluation.results)))
    print_paths(*paths)


def _systems(generated: list[str], audits: list[str], audio_root: str | None, encoding: str) -> dict[str, System]:
    """Systems by name, each with its audit."""
    from ..corpus import open_corpus
    from ..metrics.evaluation import System

    sources = dict(_named(text) for text in generated)
    if len(sources) < len(generated):
        names = [name for name, _ in map(_named, generated)]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two systems are called {twice!r}; tell them apart: NAME=SRC")
    of = {}
    for text in audits:
        name, folder = _named(text)
        if folder == text and len(sources) == len(audits) == 1:  # no name was given, and none is needed
            name = next(iter(sources))
        if name not in sources or name in of:
            raise ValueError(f"--audit {text}: whose is it? Give NAME=FOLDER for one of the systems {', '.join(sources)}")
        of[name] = local_path(folder)
    return {
        name: System(open_corpus(source, audio_root=audio_root, encoding=encoding), of.get(name))
        for name, source in sources.items()
    }


def _named(text: str) -> tuple[str, str]:
    """``NAME=SRC``, or the last part of a path as the name; that of its folder for what is called ``manifest``.

    Examples
    --------
    >>> _named("a=runs/b"), _named("runs/b/"), _named("runs/b/manifest.jsonl")
    (('a', 'runs/b'), ('b', 'runs/b/'), ('b', 'runs/b/manifest.jsonl'))
    """
    name, sign, source = text.partition("=")
    if sign and name and "/" not in name and "://" not in text.partition("=")[0]:
        return name, source
    folder, _, last = text.rstrip("/").rpartition("/")
    if PurePath(last).stem == "manifest" and PurePath(last).suffix:
        last = (folder if "://" in text else os.path.abspath(folder)).rpartition("/")[2] or last
    return last or text, text


def _table(table: Board) -> Table:
    """The board on a terminal: metrics as rows."""
    from ..metrics.scoreboard import NONE

    title = "Scores [interval, or spread of fad and fd], and what they are read against"  # as Text: brackets are no markup
    shown = Table(title=Text(title), title_justify="left")
    shown.add_column("metric")
    for name in (*table.systems, *table.brackets):
        shown.add_column(Text(name), justify="right", overflow="fold")
    for row in table.rows:
        title = f"{row.metric.name} {row.arrow}" + (f" ({row.backend})" if row.backend else "")
        cells = [
            Text(" ".join(filter(None, (cell.value, cell.interval, _marks(cell.notes)))), style="bold" if cell.best else "")
            for cell in row.cells
        ]
        shown.add_row(Text(f"{title} {_marks(row.notes)}".strip()), *cells, *(Text(text or NONE) for text in row.brackets))
    return shown


def _marks(notes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, notes))})" if notes else ""


def _tail_table(tail: Tail) -> Table:
    """A score over class frequency on a terminal: bins as rows."""
    from ..metrics.panels import long_tail_table

    head, rows = long_tail_table(tail.systems)
    shown = Table(title=Text(f"{tail.metric} ({tail.backend}) from rare to frequent classes"), title_justify="left")
    for name in head:
        shown.add_column(Text(name), justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown
