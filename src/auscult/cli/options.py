"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..engine import Engine


def local_path(text: str | Path) -> Path:
    """As ``storage.local_path``, which is imported when it is needed: a command line must start at once."""
    from ..storage import local_path as parse

    return parse(text)


Output = Annotated[Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="Folder for the result.")]
DescriptorName = Annotated[
    str | None,
    typer.Option("--descriptor", help="contrast (for audits), mel or clap (default: contrast, or mel if --duration is given)"),
]
Duration = Annotated[float | None, typer.Option("--duration", help="Window of the descriptor in seconds (default: 10.242)")]
Workers = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Processes (default: one a core)")]
Memory = Annotated[str, typer.Option(help="What a search may hold in memory at once, such as 8G.")]
Device = Annotated[str, typer.Option(help="Where models and searches run: cpu, cuda or cuda:N.")]
Search = Annotated[
    str | None,
    typer.Option(help="Of vectors (mel, clap): exact; ivf or hnsw are approximate, with recall measured (default: exact)"),
]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster, or 'local' to start one on this machine.")]
AudioRoot = Annotated[
    str | None,
    typer.Option(help="Folder that a manifest's paths are relative to; AudioCaps: the folder of its audio."),
]
Encoding = Annotated[str, typer.Option(help="Of CSV and JSON Lines manifests.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
MaxSkipped = Annotated[int, typer.Option(min=0, help="Exit with 1 if more inputs than this could not be read.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished result in the output folder.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", parser=local_path, metavar="PATH", help="Settings from a TOML file; options given here take precedence."
    ),
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


def as_text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def engine_of(workers: int | None, memory: str = "4G", device: str = "cpu", ray: str | None = None) -> Engine:
    """The engine that the options describe."""
    from ..engine import Engine

    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    engine = Engine(workers, bytes_of(memory), device, ray)
    engine.check()  # before hours of describing, not after
    return engine


def bytes_of(text: str) -> int:
    """``8G`` as bytes; K, M, G and T are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if match is None:
        raise ValueError(f"expected an amount of memory such as 8G or 500M, got {text!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
