"""What the audits of a memorization study say: a row for each model, the rate against N, and that of repeated clips."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...audit import Audit
from ...folders import REVIEW_DB, read_card
from ...report.page import undecided
from ...review.verdicts import VerdictStore
from ...review.verified import audit_rate
from ..rates import INTERVAL, pooled
from ..sets import read_manifest
from .arms import AUDITS, DEDUPLICATED, MADE, MODELS, REPEATED, SETS, Arm
from .config import MemorizationConfig, train_config

PUBLISHED = (
    {"training clips": "1,000", "published": "more than 90 % of the generated clips are replicas"},
    {"training clips": "5,000", "published": "178 flagged; 31 (mel) and 28 (CLAP) of them verified as replicas, 2 by both"},
    {
        "training clips": "about 45,000 (the full set)",
        "published": "2,278 flagged; about a dozen verified by each method, 5 to 10 in 10,000",
    },
)


def results_of(config: MemorizationConfig, arms: Sequence[Arm], folder: Path) -> dict[str, Any]:
    """All that a study has found, as its card holds it."""
    rows = [_row(config, arm, folder) for arm in arms]
    return {
        "models": rows,
        "curve": _curve(config, rows),
        "duplicates": _duplicates(config, rows),
        "interval": INTERVAL,
        "published": [dict(row) for row in PUBLISHED],
        "warnings": _warnings(config, rows),
    }


def _row(config: MemorizationConfig, arm: Arm, folder: Path) -> dict[str, Any]:
    trained_on = int(read_card(folder / MODELS / arm.model, "training")["counts"]["trained_on"])
    batch = train_config(config, "clips.jsonl", arm.seed).optimizer.batch
    again = {clip.clip_id for clip in read_manifest(folder / SETS / arm.name / REPEATED)}
    made = [json.loads(line) for line in (folder / MADE / arm.name / "manifest.jsonl").read_text("utf-8").splitlines()]
    prompt_of = {row["clip_id"]: row["reference"] for row in made}
    row = {
        "name": arm.name,
        **asdict(arm),
        "trained_on": trained_on,
        "epochs": round(config.train.steps * batch / trained_on, 1),
        "clips": len(made),
        "audits": {name: _audited(config, arm, name, folder, prompt_of, again) for name in config.audits.compared_by},
    }
    if arm.deduplicated:
        row["dropped"] = int(read_card(folder / DEDUPLICATED / arm.name)["counts"]["dropped"])
    return row


def _audited(
    config: MemorizationConfig, arm: Arm, name: str, folder: Path, prompt_of: dict[str, str], again: set[str]
) -> dict[str, Any]:
    """What one audit says of one model's clips."""
    audit = Audit.open(folder / AUDITS / f"{arm.name}-{name}")
    rows = [row for row in audit.queries().to_pylist() if row["score"] is not None]
    threshold = audit.card["threshold"]
    found = {
        "descriptor": audit.card["descriptor"],
        "compared": len(rows),
        "silent": audit.card["counts"]["generated"] - len(rows),
        "flagged": sum(row["flagged"] for row in rows),
        "own_clip_nearest": sum(row["reference_id"] == prompt_of[row["query_id"]] for row in rows),
        "tau": threshold["tau"],
        "rule": threshold["rule"],
        "undecided": undecided(audit.card),
        "unseen": _unseen(audit, config.audits.fdr, len(rows)),
        "null": audit.card["calibration"]["null"],
        "null_clips": audit.card["calibration"]["null_clips"],
        "background_given": "background" in audit.card["inputs"],
        "verified": _verified(audit),
    }
    if again:
        for key, wanted in (("repeated", True), ("once", False)):
            own = [row for row in rows if (prompt_of[row["query_id"]] in again) is wanted]
            found[key] = {"flagged": sum(row["flagged"] for row in own), "compared": len(own)}
    return found


def _unseen(audit: Audit, fdr: float, compared: int) -> int:
    """How many copies too few null scores could not tell: with n of them, it takes ``m / (fdr (n + 1))`` of m clips."""
    if not undecided(audit.card):
        return 0
    least = math.ceil(compared / (fdr * (audit.card["calibration"]["null_clips"] + 1)))
    return min(compared, least - 1)


def _verified(audit: Audit) -> dict[str, Any] | None:
    """The verified rate, where somebody has given verdicts."""
    if not (audit.path / REVIEW_DB).is_file():
        return None
    with VerdictStore.open(audit.path) as store:
        verdicts, samples = store.consensus(), store.samples()
    rate = audit_rate(audit.queries(), verdicts, matches=audit.matches(), samples=samples)
    if not rate.verified:
        return None
    return {"replications": rate.replications, "verified": rate.verified, "clips": rate.clips, "sentence": rate.sentence}


def _curve(config: MemorizationConfig, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size and descriptor: the rate over the seeds."""
    curve = []
    for size in config.sizes:
        own = [row for row in rows if row["size"] == size and row["copies"] is None]
        for name in config.audits.compared_by:
            audits = [row["audits"][name] for row in own]
            nearest = pooled([(one["own_clip_nearest"], one["compared"]) for one in audits])
            seen = [one["verified"] for one in audits if one["verified"]]
            curve.append(
                {
                    "size": size,
                    "epochs": own[0]["epochs"],
                    "descriptor": name,
                    **asdict(pooled([(one["flagged"], one["compared"]) for one in audits], [one["unseen"] for one in audits])),
                    "by_seed": [one["flagged"] / one["compared"] if one["compared"] else None for one in audits],
                    "own_clip_nearest": nearest.rate,
                    "undecided": sum(one["undecided"] for one in audits),
                    "tau": [one["tau"] for one in audits],
                    "verified": {key: sum(one[key] for one in seen) for key in ("replications", "verified")} if seen else None,
                }
            )
    return curve


def _duplicates(config: MemorizationConfig, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of copies: the rates of prompts whose clip is repeated, and of the others."""
    found = []
    arms = dict.fromkeys((row["copies"], row["deduplicated"]) for row in rows if row["copies"] is not None)
    for copies, deduplicated in arms:
        own = [row for row in rows if (row["copies"], row["deduplicated"]) == (copies, deduplicated)]
        for name in config.audits.compared_by:
            line: dict[str, Any] = {"copies": copies, "deduplicated": deduplicated, "descriptor": name}
            for key in ("repeated", "once"):
                counts = [row["audits"][name][key] for row in own]
                unseen = [min(row["audits"][name]["unseen"], row["audits"][name][key]["compared"]) for row in own]
                line[key] = asdict(pooled([(one["flagged"], one["compared"]) for one in counts], unseen))
            if deduplicated:
                line["dropped"] = [row["dropped"] for row in own]
            found.append(line)
    return found


def _warnings(config: MemorizationConfig, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader has to know."""
    told = ["A flag is a suspicion by a descriptor; verified rates are of what people decided (auscult review AUDIT)."]
    if not any(audit["verified"] for row in rows for audit in row["audits"].values()):
        told[0] += " Nobody has decided anything yet."
    for name in config.audits.compared_by:
        audits = {row["name"]: row["audits"][name] for row in rows}
        if open_ := [key for key, one in audits.items() if one["undecided"]]:
            told.append(
                f"{name}: in {len(open_)} of {len(rows)} audits ({', '.join(open_[:4])}) nothing is flagged, and too few "
                "null scores are there to tell a single copy, which the intervals take in: give more."
            )
        if own := [key for key, one in audits.items() if one["null"] != "given"]:
            told.append(
                f"{name}: without null clips, {len(own)} of {len(rows)} audits ({', '.join(own[:4])}) compare with the "
                "training clips' own scores, which are too high where these are alike: give [data] null."
            )
    if "sounds" in (config.data.source, config.data.background, config.data.null):
        told.append("Some of the clips are synthesized (source, background or null = 'sounds'): no result about recordings.")
    return told
