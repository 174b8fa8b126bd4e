"""``auscult datastore``: the pairs of captions and sounds that a retrieval-augmented model looks things up in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    AsJson,
    AudioRoot,
    ConfigFile,
    Device,
    Duration,
    Encoding,
    MaxSkipped,
    Memory,
    Output,
    Overwrite,
    Ray,
    Workers,
    as_text,
    engine_of,
    local_path,
    settings_of,
)
from .printing import finish, print_summary
from .progress import progress_bars

if TYPE_CHECKING:
    from ..generation.datastore import Datastore


def datastore(
    source: Annotated[str, typer.Argument(help="Clips with captions: a manifest or another source, or a store of it.")],
    output: Output,
    key: Annotated[
        str | None, typer.Option(help="What of a pair is compared with a query: audio, text or mean (default: audio)")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A CLAP model of the Hugging Face hub or a folder; mel (of audio only), hashed (of text only), both "
            "without weights (default: the store's, or laion/clap-htsat-unfused)"
        ),
    ] = None,
    duration: Duration = None,
    duplicates: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="DEDUP",
            help="Folder of `auscult dedup` of the same clips: a clip's duplicates are never its neighbors.",
        ),
    ] = None,
    neighbors: Annotated[int | None, typer.Option(min=1, help="Kept for each pair (default: 50)")] = None,
    equal_captions: Annotated[
        bool | None, typer.Option("--equal-captions", help="Let pairs of the same caption be neighbors.")
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
    """Which captioned sounds resemble each other? Writes the datastore of a retrieval-augmented model."""
    from ..generation.datastore import DatastoreConfig, build_datastore
    from ..inputs import source_of

    settings = settings_of(
        DatastoreConfig,
        config,
        key=key,
        model=model,
        duration_s=duration,
        neighbors=neighbors,
        equal_captions=equal_captions,
    )
    with progress_bars() as progress:
        result = build_datastore(
            source_of(source, audio_root=as_text(audio_root), encoding=encoding),
            output=output,
            duplicates=duplicates,
            config=settings,
            engine=engine_of(workers, memory, device, ray),
            overwrite=overwrite,
            progress=progress,
        )
    card = result.card
    print_summary(as_json, card, _sentence(result), output, report=card["report"])
    finish(card["counts"]["skipped"], max_skipped, output / "skipped.parquet", _left_out(card["counts"]))


def _left_out(counts: dict[str, Any]) -> str:
    """Why inputs make no pairs.

    Examples
    --------
    >>> _left_out({"without_caption": 2, "silent": 0, "skipped": 3})
    'make no pair (2 without a caption, 1 that could not be read)'
    """
    unread = counts["skipped"] - counts["without_caption"] - counts["silent"]
    kinds = {"without a caption": counts["without_caption"], "silent": counts["silent"], "that could not be read": unread}
    return f"make no pair ({', '.join(f'{number:,} {kind}' for kind, number in kinds.items() if number)})"


def _sentence(result: Datastore) -> str:
    """What was built, and how good its neighbors are."""
    card, report = result.card, result.card["report"]
    text = (
        f"{len(result):,} pairs, keys ({card['config']['key']}) of {card['dimension']} values; neighbors of each: "
        f"{result.neighbor_rows.shape[1]}. {report['never_retrieved']:.0%} of pairs are among the first "
        f"{report['k']} neighbors of no other; one pair is among those of {report['max_in_degree']:,} others, the most"
    )
    if report["class_precision"]:
        first = report["class_precision"]["1"]
        text += f"; the nearest is of the target's class for {first:.0%} (chance {report['class_chance']:.0%})"
    return text
