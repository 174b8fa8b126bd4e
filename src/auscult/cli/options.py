"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

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


def settings_of(kind: type[Any], path: Path | None, **options: Any) -> Any:
    from ..configuration import load_config, make_config

    if path is None:
        return make_config(kind, {}, **options)
    return load_config(kind, path, **options)


def tau_of(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def as_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def worker_count(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
