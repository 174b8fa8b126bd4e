"""What the audits of a memorization study say: a row for each model, the rate against N, and that of repeated clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ...audit import Audit
from ...folders import CARD, REVIEW_DB, read_card
from ...review.verdicts import VerdictStore
from ...review.verified import audit_rate
from ..flagging import (
    SEEN,
    SENSITIVITY_IS,
    by_seed,
    counted,
    is_flagged,
    is_matched,
    listed,
    own_nearest,
    rate_of,
    sees_little,
    sensitivity_of,
    too_few_null_clips,
)
from ..rates import INTERVAL, pooled, separation
from ..sets import read_manifest
from .arms import AUDITS, CONTROLS, DEDUPLICATED, MADE, MODELS, REPEATED, SENSITIVITY, SETS, Arm
from .config import MemorizationConfig, train_config

PUBLISHED = (
    {"training clips": "1,000", "published": "more than 90 % of the generated clips are replicas"},
    {"training clips": "5,000", "published": "178 flagged; 31 (mel) and 28 (CLAP) of them verified as replicas, 2 by both"},
    {
        "training clips": "about 45,000 (the full set)",
        "published": "2,278 flagged; about a dozen verified by each method, 5 to 10 in 10,000",
    },
    {
        "training clips": "the full set, against itself",
        "published": "276 groups of possible duplicates; 88 of them verified, which hold 257 clips",
    },
)
CONTROL = (
    "Control: the same clips against the training clips of the next seed, less recordings of their own model's. As far as "
    "[data] group tells recordings apart, none of these can have been copied: what is flagged there is false alarm. At the "
    "largest size there may be no such clips."
)


def results_of(config: MemorizationConfig, arms: Sequence[Arm], folder: Path) -> dict[str, Any]:
    """All that a study has found, as its card holds it."""
    rows = [_row(config, arm, folder) for arm in arms]
    plain = [[row for row in rows if row["plain"] and row["size"] == size] for size in config.sizes]
    names = config.audits.compared_by
    return {
        "models": rows,
        "curve": [{"size": own[0]["size"], **_point(own, name)} for own in plain for name in names],
        "epochs": _epochs(config, rows),
        "duplicates": _duplicates(config, rows),
        "interval": INTERVAL,
        "control": CONTROL,
        "sensitivity": SENSITIVITY_IS,
        "published": [dict(row) for row in PUBLISHED],
        "warnings": _warnings(config, rows),
    }


def _row(config: MemorizationConfig, arm: Arm, folder: Path) -> dict[str, Any]:
    trained_on = int(read_card(folder / MODELS / arm.model, "training")["counts"]["trained_on"])
    batch = train_config(config, "clips.jsonl", arm.seed).optimizer.batch
    steps = arm.steps or config.train.steps
    again = {clip.clip_id for clip in read_manifest(folder / SETS / arm.name / REPEATED)}
    made = [json.loads(line) for line in (folder / MADE / arm.name / "manifest.jsonl").read_text("utf-8").splitlines()]
    prompt_of = {row["clip_id"]: row["reference"] for row in made}
    row = {
        "name": arm.name,
        **asdict(arm),
        "plain": arm.plain,
        "steps": steps,
        "trained_on": trained_on,
        "epochs": round(steps * batch / trained_on, 1),  # how often a clip was seen, for each of its copies
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
    training, null = audit.training()["score"].drop_null().to_numpy(), audit.card["calibration"]["null_clips"]
    found = {
        "descriptor": audit.card["descriptor"],
        "silent": audit.card["counts"]["generated"] - len(rows),
        **counted(config.audits, name, rows, prompt_of, null),
        "listed": sum(row["flagged"] for row in rows),
        "own_clip_nearest": own_nearest(rows, prompt_of),
        "separation": separation(np.array([row["score"] for row in rows]), training),
        "tau": audit.card["threshold"]["tau"],
        "rule": audit.card["threshold"]["rule"],
        "null_clips": null,
        "verified": _verified(audit),
        "control": None,
        "sensitivity": None,
    }
    found |= _by_repetition(config, name, rows, prompt_of, again, null) if again else {}
    if is_matched(config.audits, name):
        return found
    place = folder / SENSITIVITY / f"{arm.name}-{name}"
    if (place / CARD).is_file():
        found["sensitivity"] = sensitivity_of(config.audits, name, Audit.open(place))
    place = folder / CONTROLS / f"{arm.name}-{name}"
    if (place / CARD).is_file():
        control = Audit.open(place)
        unseen = control.card["calibration"]["null_clips"]
        found["control"] = counted(config.audits, name, control.queries().to_pylist(), prompt_of, unseen)
    return found


def _by_repetition(
    config: MemorizationConfig, name: str, rows: Sequence[dict[str, Any]], prompt_of: dict[str, str], again: set[str], null: int
) -> dict[str, Any]:
    """What is flagged of prompts whose clip is repeated (``again``) and of the others; and whose sound the flagged clips are.

    A prompt of a clip that is there once may call up one that is there often, so that whose sound it is says more.
    """
    found: dict[str, Any] = {}
    for key, wanted in (("repeated", True), ("once", False)):
        own = [row for row in rows if (prompt_of[row["query_id"]] in again) is wanted]
        found[key] = counted(config.audits, name, own, prompt_of, null)
    replayed = [row["reference_id"] for row in rows if is_flagged(config.audits, name, row)]
    often = sum(one in again for one in replayed)
    return {**found, "replayed": {"repeated": often, "once": len(replayed) - often}}


def _verified(audit: Audit) -> str | None:
    """The verified rate in words, where somebody has given verdicts."""
    if not (audit.path / REVIEW_DB).is_file():
        return None
    with VerdictStore.open(audit.path) as store:
        verdicts, samples = store.consensus(), store.samples()
    rate = audit_rate(audit.queries(), verdicts, matches=audit.matches(), samples=samples)
    return rate.sentence if rate.verified else None


def _point(own: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """What the models of one point of a curve say by one descriptor."""
    audits = [row["audits"][name] for row in own]
    apart = [one["separation"] for one in audits if one["separation"] is not None]
    nearest = pooled([(one["own_clip_nearest"], one["compared"], one["prompts"]) for one in audits])
    return {
        "descriptor": name,
        "steps": own[0]["steps"],
        "epochs": own[0]["epochs"],
        **rate_of(audits),
        "undecided": sum(one["undecided"] for one in audits),
        "by_seed": by_seed(audits),
        "control": rate_of([one["control"] for one in audits]),
        "sensitivity": rate_of([one["sensitivity"] for one in audits]),
        "listed": listed(audits),
        "own_clip_nearest": nearest.rate,
        "separation": [min(apart), sum(apart) / len(apart), max(apart)] if apart else None,
        "verified": [f"{row['name']}: {row['audits'][name]['verified']}" for row in own if row["audits"][name]["verified"]],
    }


def _epochs(config: MemorizationConfig, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of steps, with that of all others: the rate over the seeds."""
    if not config.epochs.size:
        return []
    own = [row for row in rows if row["size"] == config.epochs.size and row["copies"] is None]
    steps = sorted({row["steps"] for row in own})
    return [_point([row for row in own if row["steps"] == one], name) for one in steps for name in config.audits.compared_by]


def _duplicates(config: MemorizationConfig, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of copies: the rates of prompts whose clip is repeated, and of the others; whose sound is replayed."""
    found = []
    arms = dict.fromkeys((row["copies"], row["deduplicated"]) for row in rows if row["copies"] is not None)
    for copies, deduplicated in arms:
        own = [row for row in rows if (row["copies"], row["deduplicated"]) == (copies, deduplicated)]
        seen = sum(row["epochs"] for row in own) / len(own)
        for name in config.audits.compared_by:
            line: dict[str, Any] = {"copies": copies, "deduplicated": deduplicated, "descriptor": name}
            line["replayed"] = {key: sum(row["audits"][name]["replayed"][key] for row in own) for key in ("repeated", "once")}
            for key, times in (("repeated", 1 if deduplicated else copies), ("once", 1)):
                line[key] = {**rate_of([row["audits"][name][key] for row in own]), "exposures": round(seen * times, 1)}
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
        if any(row["audits"][name]["undecided"] for row in rows):
            told.append(too_few_null_clips(config.audits, name, min(row["audits"][name]["null_clips"] for row in rows)))
    for size, name in product(config.sizes, config.audits.compared_by):
        own = [row["audits"][name]["sensitivity"] for row in rows if row["plain"] and row["size"] == size]
        share = rate_of(own)["rate"]
        if share is not None and share < SEEN:
            told.append(sees_little(f"{name}, {size:,} training clips", share))
    if "sounds" in (config.data.source, config.data.null):
        told.append("Training or null clips are synthesized ('sounds'): no result about recordings.")
    return told
