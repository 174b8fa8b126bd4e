"""How the clips of a seed are compared with what was trained on, and scored; all goes on where it was stopped."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from ...corpus import open_corpus
from ...folders import Progress, write_card
from ..making import MADE_MANIFEST, audit_clips
from ..sets import write_manifest
from .arms import ALL, HELD_OUT, ON_TRAINING, SETS, THROUGH_CODEC, runs_of
from .config import LongtailConfig
from .quality import class_scores
from .reading import made_clips


def audit_stage(config: LongtailConfig, seed: int, name: str, place: Path, progress: Progress) -> None:
    """One audit of all that a seed's models have made, so that one threshold is all of theirs."""
    folder = place.parents[1]
    made = place.with_name(f"s{seed}.jsonl")
    write_manifest(made, [clip for run in runs_of(config, seed) for clip in made_clips(folder, run)])
    references = open_corpus(folder / SETS / f"s{seed}" / ALL)
    audit_clips(config, name, open_corpus(made), references, folder, place, progress)


def sensitivity_stage(config: LongtailConfig, seed: int, name: str, place: Path, progress: Progress) -> None:
    """How many of the prompts' own clips are flagged, behind the models' codec?"""
    folder = place.parents[1]
    copies = open_corpus(folder / THROUGH_CODEC / f"s{seed}" / MADE_MANIFEST)
    audit_clips(config, name, copies, open_corpus(folder / SETS / f"s{seed}" / ALL), folder, place, progress)


def evaluate_stage(config: LongtailConfig, seed: int, place: Path, progress: Progress) -> None:
    """Scores of single clips from held-out captions, by ``auscult evaluate`` and by what their nearest real clip is of."""
    from ...metrics.evaluation import EvaluateConfig, System, evaluate

    folder = place.parents[1]
    held_out = folder / SETS / f"s{seed}" / HELD_OUT
    runs = [run for run in runs_of(config, seed) if run.prompts != ON_TRAINING]
    place.mkdir(exist_ok=True)
    content: dict[str, Any] = {"nearest": class_scores(config, folder, seed, runs, progress)}
    asked = {
        **({"fd_per_clip": "logmel"} if config.quality.frechet else {}),
        **({"clap_score": f"clap:{config.quality.clap}"} if config.quality.clap else {}),
    }
    values: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in asked}
    if asked:
        systems = {}
        for run in runs:
            path = place / f"{run.way}.jsonl"
            write_manifest(path, made_clips(folder, run))
            systems[run.way] = System(open_corpus(path))
        settings = EvaluateConfig(tuple(asked.values()), tuple(asked), resamples=0, brackets=False, rate_hz=16_000)
        found = evaluate(systems, open_corpus(held_out), config=settings, cache=place / "cache", progress=progress)
        for row, (metric, backend) in product(found.clips.to_pylist(), asked.items()):
            if (value := row.get(f"{metric}_{backend.partition(':')[0]}")) is not None:
                values[metric].setdefault(row["system"], {})[row["clip_id"]] = value
    write_card(place, "scores of a study", {**content, "metrics": values})
