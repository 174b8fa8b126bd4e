"""``auscult train``: from a folder of audio with captions to a text-to-audio model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import AsJson, local_path
from .printing import err, out, print_json, print_paths
from .progress import log_as_lines, progress_bars

if TYPE_CHECKING:
    from ..generation.training_saving import TrainResult


def train(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration (TOML); without one, a preset and --set data.train=SRC.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="Folder of the run and of the model.")
    ] = Path("auscult-model"),
    preset: Annotated[
        str | None, typer.Option(help="tiny-cpu, small-gpu, paper-s, paper-l or tango; the configuration is laid over it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting, such as optimizer.steps=500; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a text-to-audio model, plain or retrieval-augmented; give the same command again to go on.

    Ends with 1 if the model is made, but does not heed its captions on held-out clips.
    """
    from ..generation.requirements import require_models
    from ..generation.training_config import load_train_config

    chosen = load_train_config(config, preset=preset, settings=tuple(settings or ()))
    require_models("auscult train")
    from ..generation.training import train as run

    with progress_bars() as progress, log_as_lines("auscult.generation"):
        result = run(chosen, output, progress=progress)
    if not result.main:
        return  # of several processes one speaks
    failed = [gate.name for gate in result.failed]
    if as_json:
        print_json({"path": str(result.path), "pipeline": str(result.pipeline), "failed": failed, "card": result.card})
    else:
        _print(result)
    if failed:
        err.print(Text(f"done, but {len(failed)} of {len(result.gates)} gates failed: {', '.join(failed)}"))
        raise typer.Exit(1)


def _print(result: TrainResult) -> None:
    from ..generation.training_folder import FIGURE, SHEETS

    out.print(_table(result))
    for gate in result.gates:
        out.print(Text(f"gate {gate.name}{'' if gate.passed else ' FAILED'}: {gate.message}"))
    if result.card["preview_quality"]:
        out.print("note: without a trained vocoder, sounds are of preview quality: judge spectrograms, not timbre")
    sheets = [result.path / SHEETS] if (result.path / SHEETS).is_dir() else []
    print_paths(result.path / FIGURE, *sheets, result.pipeline)


def _table(result: TrainResult) -> Table:
    """Losses by noise level on a terminal: levels down, conditions across."""
    columns = [("trained", result.training.losses["own"])]
    levels = result.validation or result.training
    columns += [
        (name.replace("_", " "), losses) for name, losses in levels.losses.items() if result.validation or name != "own"
    ]
    what = "of trained clips" if result.validation is None else "of trained clips, and of held-out ones by conditions"
    shown = Table(title=f"Squared errors {what}, averaged weights", title_justify="left")
    shown.add_column("noise level", justify="right")
    for name, _ in columns:
        shown.add_column(Text(name), justify="right")
    for place, step in enumerate(levels.timesteps):
        shown.add_row(str(step), *(f"{losses[place]:.3f}" for _, losses in columns))
    return shown
