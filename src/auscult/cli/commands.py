"""The commands: each parses, calls one function, and prints what was written and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import CorpusError
from .options import (
    AsJson,
    AudioRoot,
    Background,
    ConfigFile,
    DescriptorName,
    Device,
    Duration,
    Encoding,
    MaxSkipped,
    Memory,
    Output,
    Overwrite,
    Ray,
    Search,
    Workers,
    as_text,
    engine_of,
    local_path,
    settings_of,
    tau_of,
)
from .printing import changes_line, err, finish, out, print_card, print_json, print_paths, print_summary
from .progress import continued, progress_bars

if TYPE_CHECKING:
    from ..planning import Changes


def demo(
    output: Output = Path("auscult-demo"),
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """End to end on built-in synthetic sounds with planted copies, in under a minute."""
    from ..demo import run_demo

    with progress_bars() as progress:
        result = run_demo(output, engine=engine_of(workers), overwrite=overwrite, progress=progress)
    if as_json:
        print_json(
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
    print_paths(result.audit.path / "report.html", result.dedup.path / "report.html")


def index(
    source: Annotated[
        list[str],
        typer.Argument(help="Folders, manifests (CSV, JSON Lines, Parquet), WebDataset folders, URLs, hf:NAME[:SPLIT]."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the store, or its URL (s3://BUCKET/STORE).")],
    descriptor: DescriptorName = None,
    duration: Duration = None,
    workers: Workers = None,
    memory: Memory = "4G",
    device: Device = "cpu",
    ray: Ray = None,
    float16: Annotated[bool, typer.Option(help="Keep vectors in half precision.")] = False,
    retry_skipped: Annotated[bool, typer.Option(help="Try again what could not be read last time.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Check every shard, and make damaged ones again.")] = False,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Describe a corpus once; give the same command again to resume it or to add what is new."""
    from ..corpus import open_corpus
    from ..descriptors import load_descriptor
    from ..indexing import index as run
    from ..inputs import DEFAULT_DESCRIPTOR
    from ..storage import join, place_of

    place = place_of(output)
    parameters = {} if duration is None else {"duration_s": duration}
    seen: list[Changes] = []
    with progress_bars() as progress, continued(place):
        store = run(
            open_corpus(source, audio_root=audio_root, encoding=encoding),
            output,
            descriptor=load_descriptor(descriptor or ("mel" if parameters else DEFAULT_DESCRIPTOR), **parameters),
            engine=engine_of(workers, memory, device, ray),
            dtype="float16" if float16 else None,
            retry_skipped=retry_skipped,
            repair=repair,
            progress=progress,
            planned=seen.append,
        )
    counts = store.card["counts"]
    if not counts["clips"] and not counts["skipped"]:
        raise CorpusError(f"{', '.join(store.card['source'])}: no audio found ({counts['not_audio']} other files)")
    if seen[0].repaired:
        err.print(Text(f"damaged, and made again: {', '.join(seen[0].repaired)}"))
    print_summary(
        as_json,
        store.card,
        f"{counts['clips']:,} clips ({counts['windows']:,} windows) described with {store.spec}"
        + "".join(f"; {changes_line(changes)}" for changes in seen if not changes.first_run),
        place,
        changes=vars(seen[0]),
    )
    finish(counts["skipped"], max_skipped, join(place, "skipped.parquet"))


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
    search: Search = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Its first group names the recording in a clip id; takes of one are no chance matches."
        ),
    ] = None,
    config: ConfigFile = None,
    workers: Workers = None,
    memory: Memory = "4G",
    device: Device = "cpu",
    ray: Ray = None,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Does generated audio replicate training audio? Writes ranked matches and a report."""
    from ..audit import Audit, AuditConfig
    from ..audit import audit as run
    from ..inputs import source_of
    from ..report import write_report
    from ..report.page import audit_verdict

    settings = settings_of(
        AuditConfig,
        config,
        descriptor=descriptor,
        duration_s=duration,
        fdr=fdr,
        tau=tau_of(tau),
        k=top,
        search=search,
        group=group,
    )
    if isinstance(settings.tau, str) and settings.tau.startswith("match:"):
        Audit.open(settings.tau.removeprefix("match:"))  # before hours of describing, not after
    with progress_bars() as progress:
        result = run(
            source_of(generated, audio_root=as_text(audio_root), encoding=encoding),
            source_of(reference, audio_root=as_text(audio_root), encoding=encoding),
            None if background is None else source_of(background, audio_root=as_text(audio_root), encoding=encoding),
            null=None if null is None else source_of(null, audio_root=as_text(audio_root), encoding=encoding),
            output=output,
            config=settings,
            engine=engine_of(workers, memory, device, ray),
            overwrite=overwrite,
            progress=progress,
            finish=lambda folder: write_report(folder, progress),
        )
    print_summary(as_json, result.card, audit_verdict(result.card), output / "matches.parquet", output / "report.html")
    finish(result.card["counts"]["skipped"], max_skipped, output / "skipped.parquet")


def dedup(
    source: Annotated[str, typer.Argument(help="The corpus: a folder, manifest or store.")],
    output: Output,
    against: Annotated[str | None, typer.Option(help="List what leaks into this other set instead.")] = None,
    background: Background = None,
    descriptor: Annotated[str | None, typer.Option(help="What clips are compared by (default: mel)")] = None,
    duration: Duration = None,
    tau: Annotated[str | None, typer.Option(help="A number or 'gap' (read off the histogram) (default: gap)")] = None,
    keep: Annotated[str | None, typer.Option(help="longest, highest_rate, best_captioned or first (default: longest)")] = None,
    search: Search = None,
    config: ConfigFile = None,
    workers: Workers = None,
    memory: Memory = "4G",
    device: Device = "cpu",
    ray: Ray = None,
    audio_root: AudioRoot = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    max_skipped: MaxSkipped = 0,
    as_json: AsJson = False,
) -> None:
    """Which clips of a corpus are copies of each other, and which to keep? Writes clusters, keep.txt, drop.txt, a report."""
    from ..duplicates import DedupConfig, deduplicate
    from ..inputs import source_of
    from ..report import write_report
    from ..report.page import dedup_verdict

    settings = settings_of(
        DedupConfig, config, descriptor=descriptor, duration_s=duration, tau=tau_of(tau), keep=keep, search=search
    )
    with progress_bars() as progress:
        result = deduplicate(
            source_of(source, audio_root=as_text(audio_root), encoding=encoding),
            output=output,
            against=None if against is None else source_of(against, audio_root=as_text(audio_root), encoding=encoding),
            background=None if background is None else source_of(background, audio_root=as_text(audio_root), encoding=encoding),
            config=settings,
            engine=engine_of(workers, memory, device, ray),
            overwrite=overwrite,
            progress=progress,
            finish=lambda folder: write_report(folder, progress),
        )
    print_summary(
        as_json,
        result.card,
        dedup_verdict(result.card),
        output / "clusters.parquet",
        output / "pairs.parquet",
        output / "keep.txt",
        output / "drop.txt",
        output / "report.html",
    )
    finish(result.card["counts"]["skipped"], max_skipped, output / "skipped.parquet")


def compare(
    audits: Annotated[
        list[Path], typer.Argument(parser=local_path, metavar="AUDIT...", help="Folders of audits of the same generated clips.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=local_path,
            metavar="PATH",
            help="Parquet file for the ensemble's score of every listed pair.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What audits of the same clips with several descriptors find together and apart."""
    from ..ensembles import combine, open_scores, overlap
    from ..folders import write_table
    from ..review.findings import joint_consensus, verified_table

    scores = open_scores(audits)
    rows = overlap(scores).to_pylist()
    verdicts = joint_consensus(audits)
    verified = verified_table(scores, verdicts).to_pylist() if verdicts else []
    if output is not None:
        write_table(output, combine(scores))
    if as_json:
        print_json({"overlap": rows, "verified": verified, "paths": [] if output is None else [str(output)]})
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
        print_paths(output)


def _verified_table(rows: list[dict[str, Any]]) -> Table:
    """What people found among the clips that each audit flags by itself."""
    table = Table(title="Flagged clips that people verified, each audit at its own threshold", title_justify="left")
    names = ("flagged", "verified", "unsure", "replications", "shared", "same_reference")
    for column in ("descriptor", *names[:-1], "same match", "AP"):
        table.add_column(column, justify="left" if column == "descriptor" else "right", overflow="fold")
    for row in rows:
        precision = "" if row["average_precision"] is None else f"{row['average_precision']:.3f}"
        table.add_row(Text(row["descriptor"]), *(f"{row[name]:,}" for name in names), precision)
    return table


def report(
    folder: Annotated[Path, typer.Argument(parser=local_path, metavar="AUDIT|DEDUP", help="Folder of an audit or a dedup.")],
) -> None:
    """Rebuild report.html from a finished audit or dedup."""
    from ..report import write_report

    with progress_bars() as progress:
        path = write_report(folder, progress)
    print_paths(path)


def info(
    path: Annotated[str, typer.Argument(help="A store (a folder or a URL), audit or dedup folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every digest.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a store, audit or dedup folder holds."""
    from ..folders import damaged_files
    from ..storage import open_folder, place_of, read_folder_card
    from ..store import KIND, DescriptorStore

    place = place_of(path)
    card = read_folder_card(open_folder(path))
    stores = [place]
    if isinstance(place, Path) and card["kind"] != KIND:
        stores = sorted(p for p in (place / "stores").glob("*") if p.is_dir())
    problems: list[str] = []
    if verify:
        problems = [f"{store}: {line}" for store in stores for line in DescriptorStore.open(store).verify()]
        if isinstance(place, Path):
            problems += [f"{place}: {line}" for line in damaged_files(place, card.get("files", {}))]
    if as_json:
        print_json({**card, "problems": problems} if verify else card)
    else:
        print_card(card)
        for line in problems:
            err.print(f"[red]damaged[/red] {line}", markup=True)
        if verify and not problems:
            apart = "" if card["kind"] == KIND else " (report.html has none: it may be rebuilt at any time)"
            out.print(f"all digests agree: {len(card.get('files', {}))} files, {len(stores)} stores{apart}")
    if problems:
        raise typer.Exit(2)
