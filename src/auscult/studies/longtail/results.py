"""What a long-tail study found: copying by kind of pairs and by k, the swap, and quality by training frequency."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...folders import CARD, read_card
from ..flagging import is_undecided, rate_of, too_few_null_clips
from ..rates import INTERVAL, pooled
from ..sets import read_manifest
from .arms import (
    ALL,
    BOTH,
    COPIES,
    EVALUATED,
    HELD_OUT,
    MODELS,
    NAMES,
    ON_HELD_OUT,
    ON_TRAINING,
    PLAIN,
    SETS,
    Run,
    model_name,
    runs_of,
)
from .config import LongtailConfig
from .copying import KINDS, SeedAudit, Seen, counts_of, nearer, with_pairs
from .quality import INTERVAL as MEAN_INTERVAL
from .quality import Mean, bins_of, of_bin, seed_mean
from .reading import copies_found, frequency_of, rows_of
from .takes import origin

OWN_CLASS = "own_class"
METRICS = {
    OWN_CLASS: "nearest real clip is of the class",
    "fd_per_clip": "Fréchet distance of a clip (levels of mel bands)",
    "clap_score": "CLAP score",
}
PUBLISHED = (
    {"what": "AudioLDM", "pairs": "none", "k": "-", "KL": "1.66", "IS": "", "FAD": ""},
    {"what": "Tango", "pairs": "none", "k": "-", "KL": "1.32", "IS": "6.45", "FAD": ""},
    {"what": "Re-AudioLDM-S", "pairs": "none", "k": "-", "KL": "1.63", "IS": "", "FAD": ""},
    {"what": "Re-AudioLDM-S", "pairs": "sounds and captions", "k": "10", "KL": "1.23", "IS": "", "FAD": ""},
    {"what": "Re-AudioLDM-L", "pairs": "sounds and captions", "k": "10", "KL": "1.20", "IS": "7.39", "FAD": "1.37"},
)
SAID = (
    "sounds of pairs alone help a little, captions beside them give most of the gain",
    "gains up to five pairs, flat near ten; three to five are recommended",
    "CLAP score by training frequency: models without pairs fall towards the rare classes, Re-AudioLDM by less than 3 points, "
    "and holds for classes that were taken out of training",
    "whether the pairs are copied was not asked",
)


def results_of(config: LongtailConfig, folder: Path) -> dict[str, Any]:
    """All that a study has found, as its card holds it."""
    ways = runs_of(config, config.seeds[0])
    names = config.audits.compared_by
    audits = {(seed, name): SeedAudit.open(config, folder, seed, name) for seed in config.seeds for name in names}
    return {
        "sets": [_set(config, folder, seed) for seed in config.seeds],
        "models": [_model(config, folder, seed, model) for seed in config.seeds for model in NAMES],
        "copying": [_copying(config, folder, way, name, audits) for way in ways for name in config.audits.compared_by],
        "nearer": [row for way in ways for row in _nearer(config, folder, way, audits)],
        "guided": [_guided(config, folder, way) for way in ways if way.guided],
        "audits": [_audit(seed, name, one) for (seed, name), one in audits.items()],
        **_quality(config, folder, ways),
        "interval": f"{INTERVAL} {MEAN_INTERVAL}",
        "published": [dict(row) for row in PUBLISHED],
        "said": list(SAID),
        "warnings": _warnings(config, folder, audits),
    }


def _set(config: LongtailConfig, folder: Path, seed: int) -> dict[str, Any]:
    found, copies = copies_found(folder, seed)
    card = json.loads((folder / SETS / f"s{seed}" / CARD).read_text("utf-8"))
    return {"seed": seed, "frequency": card["frequency"], "counts": card["counts"], "copies": copies, "copies_found": found}


def _model(config: LongtailConfig, folder: Path, seed: int, model: str) -> dict[str, Any]:
    card = read_card(folder / MODELS / model_name(seed, model), "training")
    return {"name": model_name(seed, model), "seed": seed, "model": model, "trained_on": card["counts"]["trained_on"]}


def _audit(seed: int, name: str, one: SeedAudit) -> dict[str, Any]:
    card = one.audit.card
    threshold = card["threshold"]
    return {
        "seed": seed,
        "descriptor": name,
        "level": None if name in one.asked.taus() else one.asked.level,
        "undecided": one.undecided,
        "tau": threshold["tau"],
        "rule": threshold["rule"],
        "null_clips": one.null_clips,
        **{key: card["counts"][key] for key in ("compared", "flagged")},
    }


# --- copying ----------------------------------------------------------------------------------------------------------


def _seen(folder: Path, way: Run, seed: int, audit: SeedAudit) -> list[Seen]:
    run = replace(way, seed=seed)
    return audit.seen(run, rows_of(folder, run))


def _would(config: LongtailConfig, folder: Path, way: Run, seed: int) -> dict[str, tuple[str, ...]] | None:
    """Pairs by the prompt's clip that a model without any would have been shown; None where it was shown its own."""
    if way.model != PLAIN:
        return None
    usual = Run(seed, BOTH, way.prompts, config.retrieval.shown)
    return {row["reference"]: tuple(row["retrieved"]) for row in rows_of(folder, usual)}


def _copying(
    config: LongtailConfig, folder: Path, way: Run, name: str, audits: Mapping[tuple[int, str], SeedAudit]
) -> dict[str, Any]:
    """What the clips of one way match by one descriptor, over all seeds; of prompts whose clip has a near-duplicate besides."""
    seen = {
        seed: with_pairs(_seen(folder, way, seed, audits[seed, name]), _would(config, folder, way, seed))
        for seed in config.seeds
    }
    undecided = [audits[seed, name].undecided for seed in config.seeds]
    row: dict[str, Any] = {
        "way": way.way,
        "descriptor": name,
        **_facts(way),
        **rates_of_kinds(list(seen.values()), undecided),
    }
    if way.prompts == ON_TRAINING and config.tail.copied:
        copied = {seed: {origin(clip.clip_id) for clip in read_manifest(folder / SETS / f"s{seed}" / COPIES)} for seed in seen}
        row["copied"] = rates_of_kinds([[one for one in seen[seed] if one.own in copied[seed]] for seed in seen], undecided)
    return row


def _facts(way: Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(way).items() if key != "seed"}


def rates_of_kinds(seen: Sequence[Sequence[Seen]], undecided: Sequence[bool]) -> dict[str, Any]:
    """Rates of flagged clips and of what these and all match, over seeds; no rate of flags where an audit cannot tell.

    Parameters
    ----------
    seen
        Clips of each seed.
    undecided
        Whether each seed's audit has too few null clips to flag any.
    """
    counts = [counts_of(one) for one in seen]

    def rate(what: str, unknown: Sequence[bool]) -> dict[str, Any]:
        pairs = zip(counts, unknown, strict=True)
        return rate_of({**one, "flagged": one[what], "undecided": cannot} for one, cannot in pairs)

    by_seed = [
        one["flagged"] / one["compared"] if one["compared"] and not cannot else None
        for one, cannot in zip(counts, undecided, strict=True)
    ]
    found = {**rate("flagged", undecided), "by_seed": by_seed}
    for what, unknown in (("flagged", undecided), ("nearest", [False] * len(counts))):
        found[f"{what}_kinds"] = {kind: rate(f"{what}_{kind}", unknown) for kind in (*KINDS, "its")}
    return found


def _nearer(
    config: LongtailConfig, folder: Path, way: Run, audits: Mapping[tuple[int, str], SeedAudit]
) -> list[dict[str, Any]]:
    """How much nearer clips are to what was shown than to what was not, by each descriptor that has vectors."""
    found = []
    for name in config.audits.compared_by:
        values: list[dict[str, list[float]]] = []
        for seed in config.seeds:
            audit = audits[seed, name]
            if audit.likeness is None:
                break
            seen = with_pairs(_seen(folder, way, seed, audit), _would(config, folder, way, seed))
            references = read_manifest(folder / SETS / f"s{seed}" / ALL)
            values.append(nearer(audit.likeness, seen, references, seed))
        if values:
            sides = {key: asdict(seed_mean([{"": one[key]} for one in values])) for key in ("shown", "own")}
            found.append({"way": way.way, "descriptor": name, **_facts(way), **sides})
    return found


def _guided(config: LongtailConfig, folder: Path, way: Run) -> dict[str, Any]:
    """What guidance did: clips that it acted on, and the thresholds of each seed."""
    rows = [rows_of(folder, replace(way, seed=seed)) for seed in config.seeds]
    counts = [(sum(row["fired_steps"] > 0 for row in one), len(one), len({row["reference"] for row in one})) for one in rows]
    return {"way": way.way, **_facts(way), "fired": asdict(pooled(counts))}


# --- quality ----------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, float]]  # by class, by the prompt's clip


def _quality(config: LongtailConfig, folder: Path, ways: Sequence[Run]) -> dict[str, Any]:
    """Means by bin of training frequency of each metric and way, and their differences from the model without pairs."""
    frequency = {seed: frequency_of(folder, seed) for seed in config.seeds}
    cards = {seed: read_card(folder / EVALUATED / f"s{seed}", "scores of a study") for seed in config.seeds}
    held_out = [way for way in ways if way.prompts == ON_HELD_OUT]
    plain = next(way for way in held_out if way.model == PLAIN)
    rows = []
    for metric in (OWN_CLASS, *sorted({name for card in cards.values() for name in card["metrics"]})):
        base = {seed: _values(cards[seed], folder, plain, seed, metric) for seed in config.seeds}
        for way in held_out:
            values = {seed: _values(cards[seed], folder, way, seed, metric) for seed in config.seeds}
            for name, least, below in [("all", 0, None), *bins_of(config.tail.edges)]:
                if way.unseen and name != "0":
                    continue
                own = {seed: of_bin(values[seed], frequency[seed], least, below) for seed in config.seeds}
                row = {"metric": metric, "way": way.way, **_facts(way), "bin": name, **asdict(_mean(own))}
                row["classes"] = max(len(one) for one in own.values())
                paired = {seed: _differences(own[seed], base[seed]) for seed in config.seeds}
                row["beyond_plain"] = None if way == plain else asdict(_mean(paired))
                rows.append(row)
    real = [
        {
            "bin": name,
            **asdict(
                _mean({seed: of_bin(_real(cards[seed], folder, seed), frequency[seed], least, below) for seed in frequency})
            ),
        }
        for name, least, below in [("all", 0, None), *bins_of(config.tail.edges)]
    ]
    return {"quality": rows, "real": real, "chance": 1 / config.classes}


def _values(card: Mapping[str, Any], folder: Path, way: Run, seed: int, metric: str) -> Values:
    """Of the clips of a run: values by class and prompt."""
    run = replace(way, seed=seed)
    scores = card["nearest"][run.way] if metric == OWN_CLASS else card["metrics"].get(metric, {}).get(run.way, {})
    found: Values = {}
    for row in rows_of(folder, run):
        if (value := scores.get(f"{run.way}/{row['clip_id']}")) is not None:
            found.setdefault(row["labels"][0], {})[row["reference"]] = value
    return found


def _real(card: Mapping[str, Any], folder: Path, seed: int) -> Values:
    """Of the real held-out clips themselves."""
    found: Values = {}
    for clip in read_manifest(folder / SETS / f"s{seed}" / HELD_OUT):
        found.setdefault(clip.labels[0], {})[clip.clip_id] = card["nearest"]["real"][clip.clip_id]
    return found


def _mean(values: Mapping[int, Values]) -> Mean:
    return seed_mean([{name: list(one.values()) for name, one in of_seed.items()} for of_seed in values.values()])


def _differences(values: Values, base: Values) -> Values:
    return {
        name: {prompt: value - base[name][prompt] for prompt, value in one.items() if prompt in base.get(name, {})}
        for name, one in values.items()
    }


# --- warnings ---------------------------------------------------------------------------------------------------------


def _warnings(config: LongtailConfig, folder: Path, audits: Mapping[tuple[int, str], SeedAudit]) -> list[str]:
    """What a reader has to know."""
    told = ["A flag is a suspicion by a descriptor: look at the pairs, or give verdicts (auscult review AUDIT)."]
    for name in config.audits.compared_by:
        fewest = min(one.null_clips for (_, other), one in audits.items() if other == name)
        if is_undecided(config.audits, name, fewest):
            told.append(too_few_null_clips(config.audits, name, fewest))
        elif name not in config.audits.taus():
            level = config.audits.level
            told.append(f"{name}: of clips that copy nothing, about {level:.1%} are flagged all the same, in every way alike.")
    lost = [(seed, *copies_found(folder, seed)) for seed in config.seeds]
    if missed := [f"{there - found} of {there} for seed {seed}" for seed, found, there in lost if found < there]:
        told.append(
            f"Deduplication did not find all near-duplicates ({'; '.join(missed)}); their captions are equal to the target's, "
            "and kept them from its pairs all the same."
        )
    held_out = sum(len(read_manifest(folder / SETS / f"s{seed}" / HELD_OUT)) for seed in config.seeds)
    told.append(
        f"Scores by frequency are of {held_out:,} clips a way over {len(config.seeds)} seeds, {config.tail.held_out} a class "
        "and seed."
    )
    if "sounds" in (config.data.source, config.data.null):
        told.append("Training or null clips are synthesized ('sounds'): no result about recordings.")
    return told
