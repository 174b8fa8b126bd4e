"""The command line: each subcommand parses, calls one function, and prints what was written and where.

Exit codes: 0 done; 1 done, but more inputs were skipped than ``--max-skipped``; 2 cannot run; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from . import __version__
from .errors import AuscultError, CorpusError
from .folders import Progress as ProgressCallable

if TYPE_CHECKING:
    from .indexing import Changes

app = typer.Typer(
    name="auscult",
    help="Find out whether a text-to-audio model replicates its training audio.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)

# --- options that several commands share ----------------------------------------------------------------------------

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")]
DescriptorName = Annotated[
    str | None,
    typer.Option("--descriptor", help="contrast (for audits), mel or clap (default: contrast, or mel if --duration is given)"),
]
Duration = Annotated[float | None, typer.Option("--duration", help="Window of the descriptor in seconds (default: 10.242)")]
Workers = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Processes (default: one a core)")]
AudioRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that a manifest's paths are relative to; AudioCaps: the folder of its audio."),
]
Encoding = Annotated[str, typer.Option(help="Of CSV and JSON Lines manifests.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
MaxSkipped = Annotated[int, typer.Option(min=0, help="Exit with 1 if more inputs than this could not be read.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished result in the output folder.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings from a TOML file; options given here take precedence.")
]
Background = Annotated[
    str | None, typer.Option(help="Unrelated clips for the score normalization: a folder, manifest or store.")
]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"auscult {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(message)s", stream=sys.stderr)


# --- commands -------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    output: Output = Path("auscult-demo"),
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """End to end on built-in synthetic sounds with planted copies, in under a minute."""
    from .demo import run_demo

    with _progress() as progress:
        result = run_demo(output, workers=_workers(workers), overwrite=overwrite, progress=progress)
    if as_json:
        _print_json(
            {
                "replicas": [vars(line) for line in result.replicas],
                "duplicates": [vars(line) for line in result.duplicates],
                "false_alarms": result.false_alarms,
                "reports": [str(result.audit.path / "report.html"), str(result.dedup.path / "report.html")],
            }
        )
        return
    out.print("These sounds are synthetic and the copies among them were planted; this shows the tool, not a model.\n")
    for title, lines in (
        ("Replicas among the generated clips", result.replicas),
        ("Duplicates in the training set", result.duplicates),
    ):
        table = Table(title=title, title_justify="left")
        for column, justify in (("planted as", "left"), ("planted", "right"), ("found", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for line in lines:
            out_of_sight = "" if line.expected else " (out of this descriptor's sight)"
            table.add_row(line.kind + out_of_sight, str(line.planted), str(line.found))
        out.print(table)
    flagged = result.audit.card["counts"]["flagged"]
    out.print(
        f"{result.false_alarms} of {result.clean} clean clips are among the {flagged} flagged ones; "
        f"up to {result.audit.card['calibration']['fdr']:.0%} of a list may be false alarms.\n"
    )
    _print_paths(result.audit.path / "report.html", result.dedup.path / "report.html")


@app.command()
def index(
    source: Annotated[
        list[str],
        typer.Argument(help="Folders, manifests (CSV, JSON Lines, Parquet), WebDataset folders, hf:NAME[:SPLIT]."),
    ],
    output: Output,
    descriptor: DescriptorName = None,
    duration: Duration = None,
    workers: Workers = None,
    float16: Annotated[bool, typer.Option(help="Keep vectors in half precision.")] = False,
    retry_skipped: Annotated[bool, typer.Option(help="Try again what could not be read last time.")] = False,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Describe a corpus once; give the same command again to resume it or to add what is new."""
    from .corpus import open_corpus
    from .descriptors import load_descriptor
    from .indexing import index as run
    from .inputs import DEFAULT_DESCRIPTOR

    parameters = {} if duration is None else {"duration_s": duration}
    seen: list[Changes] = []
    with _progress() as progress, _continued(output):
        store = run(
            open_corpus(source, audio_root=audio_root, encoding=encoding),
            output,
            descriptor=load_descriptor(descriptor or ("mel" if parameters else DEFAULT_DESCRIPTOR), **parameters),
            workers=_workers(workers),
            dtype="float16" if float16 else None,
            retry_skipped=retry_skipped,
            progress=progress,
            planned=seen.append,
        )
    counts = store.card["counts"]
    if not counts["clips"] and not counts["skipped"]:
        raise CorpusError(f"{', '.join(source)}: no audio found ({counts['not_audio']} other files)")
    _summary(
        as_json,
        store.card,
        f"{counts['clips']:,} clips ({counts['windows']:,} windows) described with {store.spec}"
        + "".join(f"; {_changes(changes)}" for changes in seen if not changes.first_run),
        output,
        changes=vars(seen[0]),
    )
    _finish(counts["skipped"], max_skipped, output / "skipped.parquet")


@app.command()
def audit(
    generated: Annotated[str, typer.Argument(help="Generated clips: a folder, manifest or store.")],
    output: Output,
    reference: Annotated[str, typer.Option(help="Training clips: a folder, manifest or store.")],
    background: Background = None,
    descriptor: Annotated[str | None, typer.Option(help="What clips are compared by (default: contrast)")] = None,
    duration: Duration = None,
    null: Annotated[str | None, typer.Option(help="Clips known not to be in the training set, for p-values.")] = None,
    fdr: Annotated[float | None, typer.Option(help="Share of false alarms tolerated in the list (default: 0.1)")] = None,
    tau: Annotated[
        str | None,
        typer.Option(help="A number, 'fdr', 'gap' (off the histograms; default for mel, clap), or match:AUDIT (default: fdr)"),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", "-k", help="Matches listed for each clip (default: 5)")] = None,
    config: ConfigFile = None,
    workers: Workers = None,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Does generated audio replicate training audio? Writes ranked matches and a report."""
    from .audit import Audit, AuditConfig
    from .audit import audit as run
    from .inputs import source_of
    from .report import write_report
    from .report.page import audit_verdict

    settings = _config(AuditConfig, config, descriptor=descriptor, duration_s=duration, fdr=fdr, tau=_tau(tau), k=top)
    if isinstance(settings.tau, str) and settings.tau.startswith("match:"):
        Audit.open(settings.tau.removeprefix("match:"))  # before hours of describing, not after
    with _progress() as progress:
        result = run(
            source_of(generated, audio_root=_text(audio_root), encoding=encoding),
            source_of(reference, audio_root=_text(audio_root), encoding=encoding),
            None if background is None else source_of(background, audio_root=_text(audio_root), encoding=encoding),
            null=None if null is None else source_of(null, audio_root=_text(audio_root), encoding=encoding),
            output=output,
            config=settings,
            workers=_workers(workers),
            overwrite=overwrite,
            progress=progress,
            finish=lambda folder: write_report(folder, progress),
        )
    _summary(as_json, result.card, audit_verdict(result.card), output / "matches.parquet", output / "report.html")
    _finish(result.card["counts"]["skipped"], max_skipped, output / "skipped.parquet")


@app.command()
def dedup(
    source: Annotated[str, typer.Argument(help="The corpus: a folder, manifest or store.")],
    output: Output,
    against: Annotated[str | None, typer.Option(help="List what leaks into this other set instead.")] = None,
    background: Background = None,
    descriptor: Annotated[str | None, typer.Option(help="What clips are compared by (default: mel)")] = None,
    duration: Duration = None,
    tau: Annotated[str | None, typer.Option(help="A number or 'gap' (read off the histogram) (default: gap)")] = None,
    keep: Annotated[str | None, typer.Option(help="longest, highest_rate, best_captioned or first (default: longest)")] = None,
    config: ConfigFile = None,
    workers: Workers = None,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Which clips of a corpus are copies of each other, and which to keep? Writes clusters, keep.txt, drop.txt, a report."""
    from .duplicates import DedupConfig, deduplicate
    from .inputs import source_of
    from .report import write_report
    from .report.page import dedup_verdict

    settings = _config(DedupConfig, config, descriptor=descriptor, duration_s=duration, tau=_tau(tau), keep=keep)
    with _progress() as progress:
        result = deduplicate(
            source_of(source, audio_root=_text(audio_root), encoding=encoding),
            output=output,
            against=None if against is None else source_of(against, audio_root=_text(audio_root), encoding=encoding),
            background=None if background is None else source_of(background, audio_root=_text(audio_root), encoding=encoding),
            config=settings,
            workers=_workers(workers),
            overwrite=overwrite,
            progress=progress,
            finish=lambda folder: write_report(folder, progress),
        )
    _summary(
        as_json,
        result.card,
        dedup_verdict(result.card),
        output / "clusters.parquet",
        output / "pairs.parquet",
        output / "keep.txt",
        output / "drop.txt",
        output / "report.html",
    )
    _finish(result.card["counts"]["skipped"], max_skipped, output / "skipped.parquet")


@app.command()
def compare(
    audits: Annotated[list[Path], typer.Argument(help="Folders of audits of the same generated clips.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Parquet file for the ensemble's score of every listed pair.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What audits of the same clips with several descriptors find together and apart."""
    from .ensembles import combine, open_scores, overlap
    from .folders import write_table
    from .review.findings import joint_consensus, verified_table

    scores = open_scores(audits)
    rows = overlap(scores).to_pylist()
    verdicts = joint_consensus(audits)
    verified = verified_table(scores, verdicts).to_pylist() if verdicts else []
    if output is not None:
        write_table(output, combine(scores))
    if as_json:
        _print_json({"overlap": rows, "verified": verified, "paths": [] if output is None else [str(output)]})
        return
    table = Table(title="Flagged clips, the second's threshold set to flag as many as the first", title_justify="left")
    for column in ("first", "second", "first flags", "second flags", "at tau", "both", "same match"):
        table.add_column(column, justify="left" if column in {"first", "second"} else "right", overflow="fold")
    for row in rows:
        counts = [f"{row[key]:,}" for key in ("flagged_first", "flagged_second")]
        shared = [f"{row[key]:,}" for key in ("both", "same_reference")]
        table.add_row(Text(row["first"]), Text(row["second"]), *counts, f"{row['tau_second']:.4f}", *shared)
    out.print(table)
    if verified:
        out.print(_verified_table(verified))
    if output is not None:
        _print_paths(output)


def _verified_table(rows: list[dict[str, Any]]) -> Table:
    """What people found among the clips that each audit flags by itself."""
    table = Table(title="Flagged clips that people verified, each audit at its own threshold", title_justify="left")
    names = ("flagged", "verified", "unsure", "replications", "shared", "same_reference")
    for column in ("descriptor", *names[:-1], "same match"):
        table.add_column(column, justify="left" if column == "descriptor" else "right", overflow="fold")
    for row in rows:
        table.add_row(Text(row["descriptor"]), *(f"{row[name]:,}" for name in names))
    return table


@app.command()
def review(
    folder: Annotated[Path, typer.Argument(metavar="AUDIT|DEDUP", help="Folder of an audit or a dedup.")],
    reviewer: Annotated[str | None, typer.Option(help="Whose verdicts these are (default: the login name).")] = None,
    host: Annotated[
        str | None, typer.Option(help="Let others in: listen on this address, and demand a token (default: this machine only).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8765,
    order: Annotated[str, typer.Option(help="score, uncertain (around tau first) or random.")] = "score",
    everything: Annotated[bool, typer.Option("--all", help="Begin with all pairs, not with the undecided ones.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Hide what the audit thinks; the order is random.")] = False,
    controls: Annotated[int, typer.Option(min=0, help="Mix in so many pairs whose truth is known.")] = 0,
    sample: Annotated[int, typer.Option(min=0, help="Draw so many unflagged clips, for a rate.")] = 0,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print what the verdicts say, and end.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write all verdicts to a .csv or .parquet file, and end.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", help="Take in verdicts from such a file, and end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look, listen and decide: a local page for the pairs of an audit or the clusters of a dedup."""
    from .review.queue import load_pairs
    from .review.verdicts import VerdictStore

    if stats or export is not None or import_ is not None:
        load_pairs(folder)  # or a mistyped folder would get a database
        with VerdictStore.open(folder) as store:
            _exchange(folder, store, stats=stats, export=export, import_=import_, as_json=as_json)
        return

    from .review.app import serve

    def ready(url: str) -> None:
        if as_json:
            _print_json({"url": url})
        else:
            out.print(Text(f"{url}\nCtrl-C ends the review; every verdict is saved as soon as it is made."))
        sys.stdout.flush()
        if not no_browser:
            _open_browser(url)

    with suppress(KeyboardInterrupt):
        serve(
            folder,
            host=host,
            port=port,
            ready=ready,
            reviewer=reviewer,
            blind=blind,
            order=order,
            controls=controls,
            sample=sample,
            seed=seed,
            unreviewed=not everything,
        )
    with VerdictStore.open(folder) as store:
        count = store.latest().num_rows + store.latest_clusters().num_rows
    err.print(Text(f"{count:,} {'verdict' if count == 1 else 'verdicts'} in {folder}; next: auscult report {folder}"))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit or a dedup.")]) -> None:
    """Rebuild report.html from a finished audit or dedup."""
    from .report import write_report

    with _progress() as progress:
        path = write_report(folder, progress)
    _print_paths(path)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A store, audit or dedup folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every digest.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a store, audit or dedup folder holds."""
    from .folders import damaged_files, read_card
    from .store import KIND, DescriptorStore

    card = read_card(path)
    stores = [path] if card["kind"] == KIND else sorted(p for p in (path / "stores").glob("*") if p.is_dir())
    problems: list[str] = []
    if verify:
        problems = [f"{store}: {line}" for store in stores for line in DescriptorStore.open(store).verify()]
        problems += [f"{path}: {line}" for line in damaged_files(path, card.get("files", {}))]
    if as_json:
        _print_json({**card, "problems": problems} if verify else card)
    else:
        _print_card(card)
        for line in problems:
            err.print(f"[red]damaged[/red] {line}", markup=True)
        if verify and not problems:
            apart = "" if card["kind"] == KIND else " (report.html has none: it may be rebuilt at any time)"
            out.print(f"all digests agree: {len(card.get('files', {}))} files, {len(stores)} stores{apart}")
    if problems:
        raise typer.Exit(2)


# --- reviewing ------------------------------------------------------------------------------------------------------


def _exchange(folder: Path, store: Any, *, stats: bool, export: Path | None, import_: Path | None, as_json: bool) -> None:
    """Import, then export, then statistics, as far as each is wanted."""
    from .review.statistics import review_statistics

    facts: dict[str, Any] = {}
    if import_ is not None:
        facts["imported"] = store.import_verdicts(import_)
        if not as_json:
            out.print(Text(f"{facts['imported']:,} verdicts were new in {import_}"))
    if export is not None:
        facts["exported"] = store.export_verdicts(export)
        if not as_json:
            out.print(Text(f"{facts['exported']:,} verdicts written"))
            _print_paths(export)
    if stats:
        found = review_statistics(folder, store)
        facts |= found
        if not as_json:
            _print_statistics(found)
    if as_json:
        _print_json(facts)


def _print_statistics(found: dict[str, Any]) -> None:
    from .review.intervals import Share

    if not found["reviewers"]:
        out.print("no verdict yet; decide with `auscult review FOLDER`")
        return
    table = Table(title=f"{found['verdicts']:,} verdicts on {found['pairs']:,} pairs", title_justify="left")
    columns = list(next(iter(found["reviewers"].values())))
    table.add_column("reviewer")
    for column in columns:
        table.add_column(column, justify="right")
    for name, counts in found["reviewers"].items():
        table.add_row(Text(name), *(f"{counts[column]:,}" for column in columns))
    out.print(table)
    if found.get("rate"):
        out.print(Text(found["rate"]["sentence"]))
    if found.get("precision"):
        out.print(Text(f"of the flagged clips, {Share(**found['precision']).text} are replications"))
    for pair in found["agreement"]:
        kappa = "" if pair["kappa"] is None else f"; Cohen's kappa {pair['kappa']['kappa']:.2f}"
        out.print(Text(f"{pair['first']} and {pair['second']} agree on {pair['agreed']:,} of {pair['pairs']:,} pairs{kappa}"))
    for name, result in found["controls"].items():
        for what, key in (("known copies", "sensitivity"), ("known non-copies", "specificity")):
            if result[key] is not None:
                out.print(Text(f"{name} was right about {Share(**result[key]).text} of the {what}"))


def _open_browser(url: str) -> None:
    """Open the page, without waiting for a browser that takes its time."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return  # what would open is a browser for terminals, in the terminal that shows the address
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


# --- printing -------------------------------------------------------------------------------------------------------


def _print_card(card: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for key in ("kind", "spec", "descriptor", "dtype", "window_s", "source", "audio_s", "padding_share", "created"):
        if key in card:
            table.add_row(key, _shown(card[key]))
    for role, facts in card.get("inputs", {}).items():
        counts = facts["counts"]
        unread = f", {counts['skipped']:,} could not be read" if counts["skipped"] else ""
        table.add_row(f"inputs.{role}", Text(f"{', '.join(facts['source'])}: {counts['clips']:,} clips{unread}"))
    for group in ("counts", "flags", "threshold", "calibration", "config", "versions"):
        for key, value in card.get(group, {}).items():
            if value is not None:
                table.add_row(f"{group}.{key}", _shown(value))
    out.print(table)
    for warning in card.get("warnings", []):
        out.print(Text(f"note: {warning}"))


def _shown(value: Any) -> Text:
    """A value of a card as people read it."""
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list):
        return Text(", ".join(value))
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def _changes(changes: Changes) -> str:
    """What a run over a store that was there found of the source."""
    words = {"new": changes.new, "changed": changes.changed, "unchanged": changes.unchanged, "vanished": changes.vanished}
    again = f", {changes.retried:,} tried again" if changes.retried else ""
    return ", ".join(f"{number:,} {word}" for word, number in words.items()) + again


def _summary(as_json: bool, card: dict[str, Any], sentence: str, *paths: Path, **more: Any) -> None:
    if as_json:
        _print_json(
            {
                **{key: card[key] for key in ("kind", "counts", "threshold", "warnings") if key in card},
                **more,
                "paths": [str(path) for path in paths],
            }
        )
        return
    out.print(Text(sentence))
    for warning in card["warnings"]:
        out.print(Text(f"note: {warning}"))
    _print_paths(*paths)


def _print_paths(*paths: Path) -> None:
    for path in paths:
        out.print(Text(str(path)))


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _finish(skipped: int, allowed: int, listing: Path) -> None:
    if skipped:
        err.print(Text(f"{skipped:,} {'input' if skipped == 1 else 'inputs'} could not be read; see {listing}"))
    if skipped > allowed:
        raise typer.Exit(1)


# --- parsing --------------------------------------------------------------------------------------------------------


def _config(kind: type[Any], path: Path | None, **options: Any) -> Any:
    from .configuration import load_config, make_config

    if path is None:
        return make_config(kind, {}, **options)
    return load_config(kind, path, **options)


def _tau(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _workers(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


# --- progress -------------------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="progress.data.speed"
        )


@contextmanager
def _progress() -> Iterator[ProgressCallable]:
    """Bars with rate and time left on a terminal; elsewhere a plain line every five seconds and at the end of each stage."""
    try:
        with _bars() as progress:
            yield progress
    except KeyboardInterrupt as stop:
        err.print("stopped; give the same command again to continue")
        _print_notes(stop)
        raise


@contextmanager
def _continued(store: Path) -> Iterator[None]:
    """Add to an error or Ctrl-C that the store keeps what was described."""
    try:
        yield
    except (AuscultError, OSError, KeyboardInterrupt) as error:
        if not (store / "card.json").exists() and any((store / "vectors").glob("part-*")):
            error.add_note(f"{store}: keeps what was described; the same command continues from there")
        raise


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        err.print(Text(note))


@contextmanager
def _bars() -> Iterator[ProgressCallable]:
    if not err.is_terminal:
        yield _plain_progress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            if what not in tasks or bars.tasks[tasks[what]].completed > done:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _plain_progress() -> ProgressCallable:
    last: dict[str, float] = {}
    begun: dict[str, float] = {}

    def show(done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        begun.setdefault(what, now)
        if done == total or now - last.setdefault(what, now) >= 5:
            last[what] = now
            elapsed = now - begun[what]
            rate = f", {done / elapsed:,.1f}/s" if done and elapsed > 0.5 else ""
            err.print(Text(f"{what}: {done:,}{'' if total is None else f' of {total:,}'}{rate}"))

    return show


def main() -> None:
    """Entry point: user errors become one line and exit code 2, never a stack trace (set AUSCULT_DEBUG=1 to see one)."""
    try:
        app()
    except (AuscultError, ValueError, OSError) as error:
        if os.environ.get("AUSCULT_DEBUG"):
            raise
        err.print(Text(f"auscult: {_explain(error)}"))
        _print_notes(error)
        sys.exit(2)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return f"{place}no space left to write ({error.strerror}); free some and give the same command again"
        return f"{place}{error.strerror or error}"
    return str(error)
