"""What a mitigation study has found: a row for each arm, rates over seeds, quality, and what guidance changed clip by clip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...audit import Audit
from ...folders import CARD, read_card
from ...guidance.guided import FAMILY
from ..flagging import by_seed, counted, is_flagged, is_matched, listed, own_nearest, rate_of, too_few_null_clips
from ..rates import INTERVAL, paired_change, pooled
from ..stages import read_times
from .arms import (
    AUDITS,
    CONTROLS,
    GUIDES,
    MADE,
    QUALITY,
    SETS,
    Arm,
    arms_of,
    audited_by,
    model_name,
    run_name,
    swept_arm,
    swept_arms,
)
from .config import MitigationConfig
from .quality import QUALITY_INTERVAL, mean_scores

Row = dict[str, Any]
CONTROL = (
    "Control: the clips of no and of full guidance against the training clips of the next seed, less recordings of their own "
    "model's. As far as [data] group tells recordings apart, none of these can have been copied: what is flagged there is "
    "false alarm, and guidance that breaks the sound may raise it. With one model there is none."
)
TEST = (
    "p: exact sign-flip test against no guidance. For each prompt of each model, how many of its clips are flagged more or "
    "less than without guidance, from the same noise; by chance each of these changes could have had the other sign. Prompts "
    "count as independent, and so the change of each model stands beside. Of many tests, 1 in 20 has p <= 0.05 by chance."
)
PUBLISHED = (  # Chen, Liu, Xu, CVPR 2024: Stable Diffusion 1.4, DDIM, memorized prompts of LAION, similarity by SSCD
    {"guidance": "none", "above 0.5": "44.85 %", "FID": "106.41", "CLIP score": "28.04"},
    {"guidance": "AMG, main", "above 0.5": "0 %", "FID": "99.12", "CLIP score": "26.98"},
    {"guidance": "AMG, strong", "above 0.5": "0 %", "FID": "100.45", "CLIP score": "26.72"},
    {"guidance": "despecification + deduplication", "above 0.5": "31.6 %", "FID": "87.1", "CLIP score": "27.18"},
    {"guidance": "dissimilarity + despecification", "above 0.5": "-", "FID": "119.1", "CLIP score": "26.67"},
    {"guidance": "dissimilarity + deduplication", "above 0.5": "-", "FID": "120.5", "CLIP score": "26.17"},
)


def results_of(config: MitigationConfig, folder: Path) -> Row:
    """All that a study has found, as its card holds it."""
    arms, swept = arms_of(config), swept_arms(config)
    runs = {arm.name: [_run(config, arm, seed, folder) for seed in seeds_of(config, arm)] for arm in (*arms, *swept)}
    scores = read_card(folder / QUALITY)["scores"]
    speed = _seconds_per_clip(folder)
    rows = {arm.name: _row(config, arm, runs, scores, speed) for arm in (*arms, *swept)}
    points = [
        {"knob": knob, "value": value, "arm": rows[swept_arm(config, knob, value).name]}
        for knob, values in config.sweeps.asked.items()
        for value in values
    ]
    counts = read_card(folder / SETS)["counts"]
    return {
        "arms": [rows[arm.name] for arm in arms],
        "sweeps": points,
        "thresholds": _thresholds(config, arms, folder),
        "sets": counts,
        "interval": INTERVAL,
        "quality_interval": QUALITY_INTERVAL,
        "control": CONTROL,
        "test": TEST,
        "published": [dict(row) for row in PUBLISHED],
        "warnings": _warnings(config, rows.values(), counts, scores),
    }


def seeds_of(config: MitigationConfig, arm: Arm) -> tuple[int, ...]:
    """Of an arm; sweeps are of the first alone."""
    return config.seeds[:1] if arm.swept else config.seeds


# --- one model --------------------------------------------------------------------------------------------------------


def _run(config: MitigationConfig, arm: Arm, seed: int, folder: Path) -> Row:
    """What an arm made with one model: by clip id what the manifest says, and by descriptor what the audit does."""
    lines = (folder / MADE / run_name(arm, seed) / "manifest.jsonl").read_text("utf-8").splitlines()
    made = {row["clip_id"]: row for row in map(json.loads, lines)}
    prompt_of = {clip: row["reference"] for clip, row in made.items()}
    places = {name: folder / AUDITS / f"{run_name(arm, seed)}-{name}" for name in audited_by(config, arm)}
    audits = {name: _audited(config, name, place, prompt_of) for name, place in places.items()}
    controls = {name: folder / CONTROLS / place.name for name, place in places.items()}
    judged = {name: _control(config, name, place, prompt_of) for name, place in controls.items()}
    return {"seed": seed, "made": made, "audits": audits, "controls": judged}


def _control(config: MitigationConfig, name: str, place: Path, prompt_of: Mapping[str, str]) -> Row | None:
    """How many clips are flagged where none can have been copied; None where there was nothing to compare with."""
    if not (place / CARD).is_file() or is_matched(config.audits, name):
        return None
    audit = Audit.open(place)
    null = audit.card["calibration"]["null_clips"]
    return counted(config.audits, name, audit.queries().to_pylist(), prompt_of, null)


def _audited(config: MitigationConfig, name: str, place: Path, prompt_of: Mapping[str, str]) -> Row:
    """Scores and flags by clip."""
    audit, asked = Audit.open(place), config.audits
    null = audit.card["calibration"]["null_clips"]
    rows = {row["query_id"]: row for row in audit.queries().to_pylist() if row["score"] is not None}
    return {
        "score": {clip: float(row["score"]) for clip, row in rows.items()},
        "flagged": {clip: is_flagged(asked, name, row) for clip, row in rows.items()},
        "prompt": prompt_of,
        "own_clip_nearest": own_nearest(rows.values(), prompt_of),
        **{f"count_{key}": value for key, value in counted(asked, name, rows.values(), prompt_of, null).items()},
        "listed": sum(row["flagged"] for row in rows.values()),
        "silent": audit.card["counts"]["generated"] - len(rows),
        "null_clips": null,
    }


# --- over models ------------------------------------------------------------------------------------------------------


def _row(
    config: MitigationConfig, arm: Arm, runs: Mapping[str, Sequence[Row]], scores: Row, speed: Mapping[str, float | None]
) -> Row:
    own, plain = runs[arm.name], runs["none"]
    watched = not arm.beside and arm.acts
    clips = [(row, before["made"].get(clip)) for run, before in _beside(own, plain) for clip, row in run["made"].items()]
    ends = [row["similarity_last"] for row, _ in clips if row.get("similarity_last") is not None]
    shut = [(row, before) for row, before in clips if not row["fired_steps"] and before is not None]
    same = sum(before is not None and row["sha256"] == before["sha256"] for row, before in clips)
    seconds, of_none = (
        _mean([speed.get(run_name(one, run["seed"])) for run in runs_of])
        for one, runs_of in ((arm, own), (Arm("none"), plain[: len(own)]))
    )
    return {
        "name": arm.name,
        "label": arm.label,
        "descriptor": arm.descriptor,
        "models": len(own),
        "clips": len(clips),
        "audits": {
            name: _rates([(run["audits"][name], run["controls"][name]) for run in own]) for name in audited_by(config, arm)
        },
        "against_none": {
            name: _paired([(run["audits"][name], before["audits"][name]) for run, before in _beside(own, plain)])
            for name in audited_by(config, arm)
            if arm.name != "none"
        },
        "similarity": {
            "median": _quantile(ends, 0.5),
            "highest_5_percent": _quantile(ends, 0.95),
            "guides": watched,
            "comparable": arm.shifted and arm.descriptor == config.guidance.descriptor,  # with that of no guidance
        },
        "fired_share": sum(row["fired_steps"] > 0 for row, _ in clips) / max(1, len(clips)),
        "never_fired": len(shut) if watched else None,
        "unchanged": sum(row["sha256"] == before["sha256"] for row, before in shut) if watched and not arm.swept else None,
        "identical": None if arm.name == "none" else same,
        "never_acted": arm.name != "none" and 0 < len(clips) == same,
        "quality": mean_scores([scores.get(run_name(arm, run["seed"]), {}) for run in own]),
        "seconds_per_clip": seconds,
        "times_none": seconds / of_none if seconds and of_none else None,
    }


def _beside(own: Sequence[Row], plain: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each run beside that of the same model without guidance."""
    by_seed = {run["seed"]: run for run in plain}
    return [(run, by_seed[run["seed"]]) for run in own]


def _rates(found: Sequence[tuple[Row, Row | None]]) -> Row:
    """Rates over the models by one descriptor, and scores: of their audits, each with its control where it has one."""
    audits, controls = [one for one, _ in found], [control for _, control in found if control]
    scores = [score for one in audits for score in one["score"].values()]
    counts = [{key: one[f"count_{key}"] for key in ("flagged", "compared", "prompts", "undecided")} for one in audits]
    return {
        "flagged": rate_of(counts),
        "by_seed": by_seed(counts),
        "control": rate_of(controls) if controls else None,
        "listed": listed({**count, "listed": one["listed"]} for count, one in zip(counts, audits, strict=True)),
        "own_clip_nearest": pooled(
            [(one["own_clip_nearest"], one["count_compared"], one["count_prompts"]) for one in audits]
        ).rate,
        "score": {"median": _quantile(scores, 0.5), "highest_5_percent": _quantile(scores, 0.95)},
        "silent": sum(one["silent"] for one in audits),
        "undecided": sum(one["undecided"] for one in counts),
        "null_clips": [one["null_clips"] for one in audits],
    }


def _paired(pairs: Sequence[tuple[Row, Row]]) -> Row | None:
    """Exact sign-flip test of the net change of each prompt within its model, see ``TEST``; None where nothing was decided.

    The same prompt, model and noise make a pair; a model is left out where one of its two audits could not be decided.
    """
    models = []
    for own, plain in pairs:
        clips = [clip for clip in own["flagged"] if clip in plain["flagged"]]
        flags = [(own["prompt"][clip], plain["flagged"][clip], own["flagged"][clip]) for clip in clips]
        models.append(None if own["count_undecided"] or plain["count_undecided"] else flags)
    return paired_change(models)


def _quantile(values: Sequence[float], at: float) -> float | None:
    return float(np.quantile(values, at)) if len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _seconds_per_clip(folder: Path) -> dict[str, float | None]:
    """By run, of those that were made in one go."""
    lines = [line for line in read_times(folder) if line["place"].startswith(f"{MADE}/") and not line["resumed"]]
    return {line["place"].partition("/")[2]: line["seconds"] / line["amount"] for line in lines}


def _thresholds(config: MitigationConfig, arms: Sequence[Arm], folder: Path) -> list[Row]:
    """What guides each model: thresholds, and what they were measured on."""
    found = []
    for name in dict.fromkeys(arm.descriptor for arm in arms):
        for seed in config.seeds:
            card = read_card(folder / GUIDES / f"{name}-{model_name(config, seed)}")
            keys = ("threshold_low", "threshold_high", "measured_on", "references")
            found.append({"descriptor": name, "model": model_name(config, seed), **{key: card[key] for key in keys}})
    return found


def unguided(rows: Sequence[Row]) -> Row:
    """The row of no guidance, wherever it stands."""
    return next(row for row in rows if row["name"] == "none")


def too_few_references(config: MitigationConfig, left: int) -> str:
    """Why quality is not measured."""
    least = config.quality.least
    return f"{left:,} real clips are there that no model has seen, and it takes {least:,}; give [quality] reference."


def _warnings(config: MitigationConfig, rows: Any, counts: Mapping[str, int], scores: Row) -> list[str]:
    """What a reader has to know."""
    heard = FAMILY[config.guidance.descriptor]
    told = [
        f"A flag is a suspicion by a descriptor, and none that judges is the one that guides ({heard}); nobody has listened.",
    ]
    rows = list(rows)
    if not scores:
        told.append(f"Quality was not measured: {too_few_references(config, counts['reference'])}")
    lacking = [(key, score["reason"]) for one in scores.values() for key, score in one.items() if score["value"] is None]
    for (key, reason), count in Counter(lacking).items():
        told.append(f"{key} has no value for {count} of {len(scores)} sets of clips: {reason}.")
    if not any("clap_score" in key for row in rows for key in row["quality"]):
        told.append("Adherence to the prompt was not measured: that takes a CLAP model ([quality] clap).")
    for name in config.audits.compared_by:
        audits = [row["audits"][name] for row in rows if name in row["audits"]]
        if any(one["undecided"] for one in audits):
            told.append(too_few_null_clips(config.audits, name, min(min(one["null_clips"]) for one in audits)))
        if silent := sum(one["silent"] for one in audits):
            told.append(f"{name}: {silent} clips are silent, and were not compared.")
    if "sounds" in (config.data.source, config.data.null, config.quality.reference):
        told.append("Training, null or reference clips are synthesized ('sounds'): no result about recordings.")
    return told
