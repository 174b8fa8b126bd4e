"""``auscult study``: the papers' experiments, on anyone's clips and budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import AsJson, local_path
from .printing import out, print_json, print_paths
from .progress import log_as_lines, progress_bars

if TYPE_CHECKING:
    from ..studies.running import Study
    from ..studies.stages import Plan

study = typer.Typer(name="study", help="The papers' experiments: memorization, mitigation, longtail.", no_args_is_help=True)


@study.callback()
def _root() -> None:
    """Run the papers' experiments on your own clips and budget."""


ConfigFile = Annotated[Path | None, typer.Argument(help="Configuration (TOML); without one, a preset.")]
Output = Annotated[Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="Folder of the study.")]
Preset = Annotated[str | None, typer.Option(help="smoke, mini-cpu, small-gpu or paper; the configuration is laid over it.")]
CaptionedClips = Annotated[
    str | None, typer.Option("--source", metavar="SRC", help="Captioned clips, instead of the configuration's [data] source.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and how long it would take.")]


@study.command()
def memorization(
    config: ConfigFile = None,
    output: Output = Path("memorization-study"),
    preset: Preset = None,
    source: CaptionedClips = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """How much of what a model makes are replicas, against the size of its training set; the same command goes on."""
    from ..studies.memorization.config import load_memorization_config

    chosen = load_memorization_config(config, preset=preset, source=source)
    _require_models()
    from ..studies.memorization.study import plan_memorization, study_memorization

    plan = plan_memorization(chosen, output)
    run = partial(study_memorization, chosen, output)
    _plan_and_run(output, plan, run, _print_memorization, dry_run=dry_run, as_json=as_json)


@study.command()
def mitigation(
    config: ConfigFile = None,
    output: Output = Path("mitigation-study"),
    preset: Preset = None,
    source: CaptionedClips = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """What guidance does to a model that copies, term by term, and what it costs; the same command goes on."""
    _require_models()
    from ..studies.mitigation.config import load_mitigation_config
    from ..studies.mitigation.study import plan_mitigation, study_mitigation

    chosen = load_mitigation_config(config, preset=preset, source=source)
    plan = plan_mitigation(chosen, output)
    run = partial(study_mitigation, chosen, output)
    _plan_and_run(output, plan, run, _print_mitigation, dry_run=dry_run, as_json=as_json)


@study.command()
def longtail(
    config: ConfigFile = None,
    output: Output = Path("longtail-study"),
    preset: Preset = None,
    source: CaptionedClips = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Does retrieval help rare classes, and does it copy what it retrieves? The same command goes on."""
    from ..studies.longtail.config import load_longtail_config

    chosen = load_longtail_config(config, preset=preset, source=source)
    _require_models()
    from ..studies.longtail.study import plan_longtail, study_longtail

    plan = plan_longtail(chosen, output)
    run = partial(study_longtail, chosen, output)
    _plan_and_run(output, plan, run, _print_longtail, dry_run=dry_run, as_json=as_json)


def _require_models() -> None:
    from ..generation.requirements import require_models

    require_models("auscult study")


def _plan_and_run(
    output: Path, plan: Plan, run: Callable[..., Study], show: Callable[[Study], None], *, dry_run: bool, as_json: bool
) -> None:
    """The plan, and unless it is all that was asked for, the study with what it found."""
    if dry_run:
        print_json({"path": str(output), **plan.to_json()}) if as_json else print_plan(plan)
        return
    if not as_json:
        print_plan(plan)
    with progress_bars() as progress, log_as_lines("auscult.generation"):
        result = run(progress=progress)
    if as_json:
        print_json({"path": str(result.path), "card": result.card})
    else:
        show(result)


def print_plan(plan: Plan) -> None:
    """A row for each kind of stages, and the time of all that is left."""
    shown = Table(title="Plan", title_justify="left")
    for name in ("stage", "number", "done", "amount", "time left", "rate"):
        shown.add_column(name, justify="left" if name in ("stage", "rate") else "right")
    for row in plan.rows:
        rate = "measured" if row.measured else "stated" if row.seconds else "not known" if row.seconds is None else "-"
        amount = f"{row.amount:,.0f} {row.unit}"
        shown.add_row(row.kind, f"{row.stages:,}", f"{row.done:,}", amount, duration(row.seconds), rate)
    out.print(shown)
    for warning in plan.warnings:
        out.print(Text(f"note: {warning}"))
    out.print(Text(f"time left: {duration(plan.seconds)}; what is done is kept, and the same command goes on"))


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    Examples
    --------
    >>> duration(None), duration(0), duration(42), duration(600), duration(9000)
    ('not known', '0 s', '42 s', '10 min', '2 h 30 min')
    """
    if seconds is None:
        return "not known"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _print_memorization(result: Study) -> None:
    from ..studies.memorization.page import sentence
    from ..studies.rates import percent

    shown = Table(title="Generated clips flagged, each by itself, by the number of training clips", title_justify="left")
    for name in (
        "training clips",
        "epochs",
        "audit",
        "models",
        "flagged",
        "rate",
        "95 % interval",
        "control",
        "sensitivity",
        "own clip nearest",
    ):
        shown.add_column(name, justify="left" if name == "audit" else "right")
    for row in result.card["curve"]:
        known = row["rate"] is not None
        shown.add_row(
            f"{row['size']:,}",
            f"{row['epochs']:,.0f}",
            row["descriptor"],
            str(row["models"]),
            f"{row['flagged']} of {row['clips']}" if known else "-",
            percent(row["rate"], "not decided"),
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f}" if known else "-",
            percent(row["control"]["rate"]),
            percent(row["sensitivity"]["rate"]),
            percent(row["own_clip_nearest"]),
        )
    out.print(shown)
    for row in result.card["published"]:
        out.print(Text(f"published, {row['training clips']} training clips: {row['published']}"))
    for warning in result.card["warnings"]:
        out.print(Text(f"note: {warning}"))
    out.print(Text(sentence(result.card)))
    print_paths(result.path / "audits", result.path / "report.html")


def _print_longtail(result: Study) -> None:
    from ..studies.longtail.wording import sentence, short

    shown = Table(title="Clips from training captions that are flagged, and as what", title_justify="left")
    shown.add_column("model", min_width=10)
    for name in ("k", "audit", "flagged", "95 %", "own clip", "other shown", "by itself"):
        shown.add_column(name, justify="left" if name == "audit" else "right", no_wrap=name in ("audit", "flagged", "95 %"))
    for row in (row for row in result.card["copying"] if row["prompts"] == "training"):
        kinds, by_itself = row["flagged_kinds"], row["by_itself"]
        shown.add_row(
            short(row),
            str(row["k"] or "-"),
            row["descriptor"],
            f"{row['flagged']} of {row['clips']}",
            "not decided" if row["rate"] is None else f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %",
            str(kinds["its"]["flagged"]),
            str(kinds["pairs"]["flagged"]),
            "-" if by_itself is None else str(by_itself["flagged_kinds"]["pairs"]["flagged"]),
        )
    out.print(shown)
    for warning in result.card["warnings"]:
        out.print(Text(f"note: {warning}"))
    out.print(Text(sentence(result.card)))
    print_paths(result.path / "audits", result.path / "report.html")


def _print_mitigation(result: Study) -> None:
    from ..studies.mitigation.page import decimals_of, sentence
    from ..studies.mitigation.quality import quality_keys
    from ..studies.mitigation.results import unguided
    from ..studies.rates import percent, with_interval

    card = result.card
    names, qualities = list(unguided(card["arms"])["audits"]), quality_keys(card["arms"])
    digits = decimals_of(card["arms"], names, qualities)
    controlled = [name for name in names if unguided(card["arms"])["audits"][name]["control"]]
    shown = Table(title="Generated clips flagged, by what guides them", title_justify="left")
    rated = [head for name in names for head in (name, f"{name}, control")[: 1 + (name in controlled)]]
    shown.add_column("guidance", min_width=14)
    for name in (*rated, *qualities, "seconds, × none"):
        shown.add_column(name, justify="right")
    for row in card["arms"]:
        rates = []
        for name in names:
            audit = row["audits"].get(name)
            rates.append("-" if audit is None else with_interval(audit["flagged"]))
            if name in controlled:
                rates.append("-" if audit is None or audit["control"] is None else percent(audit["control"]["rate"]))
        scores = [f"{row['quality'][key]['value']:.{digits[key]}f}" if key in row["quality"] else "-" for key in qualities]
        times = "-" if row["times_none"] is None else f"{row['times_none']:.2f}"
        shown.add_row(row["label"] + (", never acted" if row["never_acted"] else ""), *rates, *scores, times)
    out.print(shown)
    for warning in card["warnings"]:
        out.print(Text(f"note: {warning}"))
    out.print(Text(sentence(card)))
    print_paths(result.path / "audits", result.path / "report.html")
