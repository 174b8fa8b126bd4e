"""Options of ``auscult generate --guard``, and the tables of its configuration that they are laid over."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import engine_of

if TYPE_CHECKING:
    from ..generation.order import Generation

TABLES = ("guard", "amg")
OF_GUARD = ("attempts", "descriptor", "audit", "alpha", "background", "null")  # that have an option
PAPERS = {"despecification": "--amg.c1", "deduplication": "--amg.c2", "dissimilarity": "--amg.c3"}
OF_AMG = (*PAPERS, "threshold_low", "threshold_high", "schedule", "units", "gradient", "every")
GUARD = "Guard"
AMG = "Anti-memorization guidance"

References = Annotated[
    str | None,
    typer.Option(
        "--guard",
        metavar="SRC",
        rich_help_panel=GUARD,
        help="Clips that must not be replicated (folder, manifest or store): guide away from them, audit, and withhold copies.",
    ),
]
GuardBackground = Annotated[
    str | None, typer.Option(metavar="SRC", rich_help_panel=GUARD, help="Of the audits, as audit's --background.")
]
GuardNull = Annotated[str | None, typer.Option(metavar="SRC", rich_help_panel=GUARD, help="Of the audits, as audit's --null.")]
Attempts = Annotated[
    int | None, typer.Option(min=0, max=20, rich_help_panel=GUARD, help="How often a flagged clip is made again (default: 2)")
]
Latent = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=GUARD,
        help="What guidance compares by: latents, mel-latents, mel or clap (default: latents)",
    ),
]
AuditBy = Annotated[
    str | None,
    typer.Option(rich_help_panel=GUARD, help="What the audit compares by: contrast, or mel or clap (default: contrast)"),
]
Alpha = Annotated[
    float | None, typer.Option(rich_help_panel=GUARD, help="P-value up to which a clip is made again (default: 0.01)")
]
MaxWithheld = Annotated[
    int | None,
    typer.Option(min=0, rich_help_panel=GUARD, help="Exit with 1 if more clips than this are withheld (default: any number)"),
]


def _strength(name: str, number: int, what: str) -> Any:
    return Annotated[float | None, typer.Option(f"--amg.{name}", f"--amg.c{number}", rich_help_panel=AMG, help=what)]


Despecification = _strength("despecification", 1, "c1: how much guidance by the prompt is lowered (default: 1)")
Deduplication = _strength("deduplication", 2, "c2: away from the caption of the nearest clip (default: 4)")
Dissimilarity = _strength("dissimilarity", 3, "c3: down the gradient of similarity (default: 3)")
ThresholdLow = Annotated[
    float | None,
    typer.Option("--amg.threshold-low", rich_help_panel=AMG, help="Similarity from which it acts at first (default: measured)"),
]
ThresholdHigh = Annotated[
    float | None,
    typer.Option("--amg.threshold-high", rich_help_panel=AMG, help="... and in the end (default: measured on the references)"),
]
Schedule = Annotated[
    str | None,
    typer.Option("--amg.schedule", rich_help_panel=AMG, help="From low to high: alpha_bar, progress or constant"),
]
UnitsOf = Annotated[
    str | None,
    typer.Option("--amg.units", rich_help_panel=AMG, help="Of dissimilarity: norm, estimate, paper, released (default: norm)"),
]
Gradient = Annotated[
    str | None, typer.Option("--amg.gradient", rich_help_panel=AMG, help="Of the similarity: x0 or denoiser (default: x0)")
]
Every = Annotated[
    int | None, typer.Option("--amg.every", min=1, rich_help_panel=AMG, help="Look only at every so many steps (default: 1)")
]


def read_tables(path: Path | None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A configuration of ``auscult generate``: its own keys, and the tables ``[guard]`` and ``[amg]``."""
    if path is None:
        return {}, {}, {}
    with open(path, "rb") as handle:
        try:
            values = tomllib.load(handle)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from error
    tables = [values.pop(name, {}) for name in TABLES]
    if wrong := [name for name, table in zip(TABLES, tables, strict=True) if not isinstance(table, dict)]:
        raise ValueError(f"{path}: {wrong[0]} should be a table, [{wrong[0]}]")
    return values, tables[0], tables[1]


def given(**options: Any) -> dict[str, Any]:
    """The options that are given."""
    return {name: value for name, value in options.items() if value is not None}


def check_unguarded(guard: Mapping[str, Any], amg: Mapping[str, Any]) -> None:
    """Refuse settings of a guard that is not there."""
    without = [*map(_guard_setting, guard), *map(_amg_setting, amg)]
    if without:
        raise ValueError(
            f"{without[0]} is a setting of a guard, and there is none; give the clips that must not be "
            "replicated with --guard SRC"
        )


def _guard_setting(name: str) -> str:
    if name == "max_withheld":
        return "--max-withheld"
    return f"guard.{name}" + (f" (--guard-{name})" if name in OF_GUARD else "")


def _amg_setting(name: str) -> str:
    """By the name in a configuration, and by the options that it has."""
    options = [f"--amg.{name.replace('_', '-')}"] if name in OF_AMG else []
    options += [PAPERS[name]] if name in PAPERS else []
    return f"amg.{name}" + (f" ({' or '.join(options)})" if options else "")


def generate_guarded(
    model: str,
    prompts: str,
    output: Path,
    references: str,
    guard: dict[str, Any],
    amg: dict[str, Any],
    *,
    encoding: str,
    **settings: Any,
) -> Generation:
    """Call what guards, with sources opened and settings checked."""
    from ..generation.order import NEEDED_FOR
    from ..generation.requirements import require_models

    require_models(NEEDED_FOR)  # before what imports torch
    from ..configuration import make_config
    from ..guidance.guard_config import GuardConfig
    from ..guidance.guarding import generate_guarded as run
    from ..inputs import source_of

    background, null = (
        None if (text := guard.pop(name, None)) is None else source_of(text, encoding=encoding)
        for name in ("background", "null")
    )
    config = make_config(GuardConfig, guard, where="[guard]")
    return run(
        model,
        prompts,
        output,
        source_of(references, encoding=encoding),
        guard=config,
        amg=amg,
        background=background,
        null=null,
        encoding=encoding,
        engine=engine_of(None),
        **settings,
    )


def guard_sentence(facts: Mapping[str, Any]) -> str:
    """What a guard did, for the summary."""
    counts, similarity = facts["counts"], facts["similarity"]
    parts = [
        f"guidance fired on {counts['fired']:,} of {counts['asked_for']:,}",
        f"{counts['made_again']:,} were flagged and made again",
        f"{counts['withheld']:,} withheld",
    ]
    if similarity["when_it_fired"] is not None:
        parts.insert(
            1,
            f"whose similarity went from {similarity['when_it_fired']:.2f} (when it first fired) to "
            f"{similarity['at_the_end_where_it_fired']:.2f} (medians)",
        )
    return "; ".join(parts)
