"""``auscult generate``: clips from prompts, by any text-to-audio pipeline that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import guarding as of
from .options import AsJson, ConfigFile, Device, Encoding, Output, Overwrite, local_path
from .printing import print_summary
from .progress import progress_bars


def generate(
    output: Output,
    model: Annotated[
        str,
        typer.Option(
            help="A pipeline: a folder (of auscult train or save_pretrained), or OWNER/NAME or OWNER/NAME@REVISION on the hub."
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Prompts: a manifest with a caption column (CSV, JSON Lines, Parquet), or a .txt file with one a line.",
        ),
    ],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of denoising (default: 200)")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Of classifier-free guidance; 1 is none (default: 3)")] = None,
    per_prompt: Annotated[int | None, typer.Option(min=1, max=1000, help="Clips of each prompt (default: 1)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="From which each clip's own seed follows (default: 0)")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What should not be heard.")] = None,
    duration_s: Annotated[
        float | None, typer.Option("--duration-s", help="Length of the clips in seconds (default: the model's own)")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: float32)")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips made at once; halved where memory runs out.")] = 8,
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, help="Processes; with --device cuda they take the GPUs in turn.")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the processor, for all processes together (default: torch's own); fewer where it is shared."
        ),
    ] = None,
    device: Device = "cpu",
    datastore: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="STORE",
            help="Of auscult datastore: pairs for a retrieval-augmented model (default: none)",
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=0, help="Retrieved pairs of each prompt (default: 3)")] = None,
    retrieval_scale: Annotated[
        float | None, typer.Option(help="Guidance by the retrieved pairs alone (default: one guidance by prompt and pairs)")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take models from the cache, and ask nobody.")] = False,
    guard: of.References = None,
    guard_attempts: of.Attempts = None,
    guard_descriptor: of.Latent = None,
    guard_audit: of.AuditBy = None,
    guard_alpha: of.Alpha = None,
    guard_background: of.GuardBackground = None,
    guard_null: of.GuardNull = None,
    max_withheld: of.MaxWithheld = None,
    amg_despecification: of.Despecification = None,
    amg_deduplication: of.Deduplication = None,
    amg_dissimilarity: of.Dissimilarity = None,
    amg_threshold_low: of.ThresholdLow = None,
    amg_threshold_high: of.ThresholdHigh = None,
    amg_schedule: of.Schedule = None,
    amg_units: of.UnitsOf = None,
    amg_gradient: of.Gradient = None,
    amg_every: of.Every = None,
    config: ConfigFile = None,
    encoding: Encoding = "utf-8",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Generate clips from prompts. Writes FLAC files and a manifest that audit and evaluate take as it is.

    With --guard it delivers no clip that an audit against these clips flags; what it withholds is listed.
    """
    from ..configuration import make_config
    from ..generation.generating import GenerateConfig
    from ..generation.requirements import require_models
    from ..generation.workers import torch_threads

    if k and datastore is None:
        raise ValueError("--k has no effect without pairs; give --datastore STORE, or leave it out")
    require_models("auscult generate")
    own, guard_table, amg_table = of.read_tables(config)
    settings = make_config(
        GenerateConfig,
        own,
        where=str(config),
        steps=steps,
        guidance_scale=guidance_scale,
        per_prompt=per_prompt,
        seed=seed,
        negative_prompt=negative_prompt,
        duration_s=duration_s,
        dtype=dtype,
        k=k,
        retrieval_scale=retrieval_scale,
    )
    guard_table |= of.given(attempts=guard_attempts, descriptor=guard_descriptor, audit=guard_audit, alpha=guard_alpha)
    guard_table |= of.given(background=guard_background, null=guard_null)
    amg_table |= of.given(
        despecification=amg_despecification,
        deduplication=amg_deduplication,
        dissimilarity=amg_dissimilarity,
        threshold_low=amg_threshold_low,
        threshold_high=amg_threshold_high,
        schedule=amg_schedule,
        units=amg_units,
        gradient=amg_gradient,
        every=amg_every,
    )
    common: dict[str, Any] = {
        "config": settings,
        "device": device,
        "workers": workers,
        "batch_size": batch_size,
        "datastore": datastore,
        "offline": offline,
        "encoding": encoding,
        "overwrite": overwrite,
    }
    with torch_threads(threads), progress_bars() as progress:
        common["progress"] = progress
        if guard is None:
            of.check_unguarded(guard_table | of.given(max_withheld=max_withheld), amg_table)
            from ..generation.generating import generate as run

            result = run(model, prompts, output, **common)
        else:
            result = of.generate_guarded(model, prompts, output, guard, guard_table, amg_table, **common)
    counts = result.card["counts"]
    sentence = f"{counts['clips']:,} clips of {counts['prompts']:,} prompts by {result.card['model']['name']}"
    if guard is None:
        print_summary(as_json, result.card, sentence, output / "audio", result.manifest)
        return
    facts = result.card["guard"]
    paths = [path for path in (output / "withheld.jsonl", output / "audit" / "report.html") if path.is_file()]
    print_summary(
        as_json,
        result.card,
        f"{sentence}; {of.guard_sentence(facts)}",
        output / "audio",
        result.manifest,
        *paths,
        guard={name: facts[name] for name in ("counts", "similarity")},
    )
    withheld = facts["counts"]["withheld"]
    if (max_withheld is not None and withheld > max_withheld) or not counts["clips"]:
        raise typer.Exit(1)
