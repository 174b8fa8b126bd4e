"""What a long-tail study found: copying by kind of pairs and by k, the swap, and quality by training frequency."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...audit import Audit
from ...folders import CARD, read_card
from ..config import StudyAudits
from ..flagging import SEEN, is_matched, is_undecided, rate_of, sees_little, sensitivity_of, too_few_null_clips
from ..rates import INTERVAL, paired_change, pooled
from ..sets import read_manifest
from .arms import (
    ALL,
    BOTH,
    COPIES,
    DUPLICATES,
    EVALUATED,
    HELD_OUT,
    MODELS,
    NAMES,
    ON_HELD_OUT,
    ON_TRAINING,
    PLAIN,
    PROMPTS,
    SENSITIVITY,
    SETS,
    Run,
    model_name,
    runs_of,
)
from .config import LongtailConfig
from .copying import KINDS, TOGETHER, Nearer, SeedAudit, Seen, counts_of, nearer, with_pairs
from .drawing import class_of
from .quality import INTERVAL as MEAN_INTERVAL
from .quality import UNBOUNDED, Mean, bins_of, of_bin, seed_mean
from .reading import copies_found, frequency_of, rows_of
from .takes import Takes, origin

OWN_CLASS = "own_class"
METRICS = {
    OWN_CLASS: "nearest real clip is of the class",
    "fd_per_clip": "Fréchet distance of a clip (levels of mel bands)",
    "clap_score": "CLAP score",
}
BOUNDS = {OWN_CLASS: ((0, 1), (-1, 1)), "fd_per_clip": ((0, np.inf), UNBOUNDED)}  # of means, and of differences of two
SHOWN = ("own_shown", *TOGETHER["pairs"])  # kinds of what was shown, which guidance leads away from
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
    sensitivity = [_sensitivity(config, folder, name) for name in names if not is_matched(config.audits, name)]
    audits = {(seed, name): SeedAudit.open(config, folder, seed, name) for seed in config.seeds for name in names}
    return {
        "sets": [_set(config, folder, seed) for seed in config.seeds],
        "models": [_model(config, folder, seed, model) for seed in config.seeds for model in NAMES],
        "copying": [_copying(config, folder, way, name, audits) for way in ways for name in config.audits.compared_by],
        "pairs": [_pairs(config, folder, way) for way in ways if way.k and not way.guided],
        "nearer": [row for way in ways for row in _nearer(config, folder, way, audits)],
        "same_clips": _same_clips(config, folder, ways),
        "guided": [_guided(config, folder, way, audits) for way in ways if way.guided],
        "audits": [_audit(seed, name, one) for (seed, name), one in audits.items()],
        "sensitivity": sensitivity,
        **_quality(config, folder, ways),
        "interval": f"{INTERVAL} {MEAN_INTERVAL}",
        "published": [dict(row) for row in PUBLISHED],
        "said": list(SAID),
        "warnings": [*_warnings(config, folder, audits), *_notes_on_sensitivity(sensitivity)],
    }


def _set(config: LongtailConfig, folder: Path, seed: int) -> dict[str, Any]:
    found, copies = copies_found(folder, seed)
    card = json.loads((folder / SETS / f"s{seed}" / CARD).read_text("utf-8"))
    copied, prompts = _copied(folder, seed), read_manifest(folder / SETS / f"s{seed}" / PROMPTS)
    facts = {"frequency": card["frequency"], "counts": card["counts"], "copies": copies, "copies_found": found}
    return {"seed": seed, **facts, "prompts_copied": sum(clip.clip_id in copied for clip in prompts)}


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


def _sensitivity(config: LongtailConfig, folder: Path, name: str) -> dict[str, Any]:
    """How many of the prompts' own clips an audit flags, behind the models' codec."""
    found = [Audit.open(folder / SENSITIVITY / f"s{seed}-{name}") for seed in config.seeds]
    return {"descriptor": name, **rate_of(sensitivity_of(config.audits, name, audit) for audit in found)}


# --- copying ----------------------------------------------------------------------------------------------------------


def _seen(folder: Path, way: Run, seed: int, audit: SeedAudit) -> list[Seen]:
    run = replace(way, seed=seed)
    return audit.seen(run, rows_of(folder, run))


def _shown(folder: Path, way: Run, seed: int) -> dict[str, tuple[str, ...]]:
    """The pairs of each clip of a run with pairs, by the prompt's clip."""
    return {row["reference"]: tuple(row["retrieved"]) for row in rows_of(folder, replace(way, seed=seed))}


def _beside(config: LongtailConfig, folder: Path, way: Run, seed: int, audit: SeedAudit) -> tuple[list[Seen], list[Seen]]:
    """The clips of a way, and beside them those that the model without pairs makes of the same prompts, as if it had been
    shown the same pairs. The clips of the model without pairs itself are seen with the pairs at ``shown``, and beside nothing.
    """
    seen = _seen(folder, way, seed, audit)
    if way.model == PLAIN:
        return with_pairs(seen, _shown(folder, Run(seed, BOTH, way.prompts, config.retrieval.shown), seed)), []
    plain = _seen(folder, Run(seed, PLAIN, way.prompts), seed, audit)
    return seen, with_pairs(plain, _shown(folder, way, seed))


def _copying(
    config: LongtailConfig, folder: Path, way: Run, name: str, audits: Mapping[tuple[int, str], SeedAudit]
) -> dict[str, Any]:
    """What the clips of one way match by one descriptor, over all seeds; besides, of prompts whose clip has a near-duplicate
    (``copied``), and of the others (``single``), since the former come first among the prompts.

    ``by_itself`` is what the clips of the model without pairs match, had they been shown the same pairs.
    """
    both = {seed: _beside(config, folder, way, seed, audits[seed, name]) for seed in config.seeds}
    seen, plain = ({seed: sides[number] for seed, sides in both.items()} for number in (0, 1))
    undecided = [audits[seed, name].undecided for seed in config.seeds]
    row: dict[str, Any] = {
        "way": way.way,
        "descriptor": name,
        **_facts(way),
        **rates_of_kinds(list(seen.values()), undecided),
        "by_itself": None if way.model == PLAIN else rates_of_kinds(list(plain.values()), undecided),
    }
    if way.prompts == ON_TRAINING and config.tail.copied:
        copied = {seed: _copied(folder, seed) for seed in seen}
        for key, there in (("copied", True), ("single", False)):
            some = [[one for one in seen[seed] if (one.own in copied[seed]) is there] for seed in seen]
            row[key] = rates_of_kinds(some, undecided)
    return row


def _copied(folder: Path, seed: int) -> set[str]:
    """The clips of a seed that have a near-duplicate."""
    return {origin(clip.clip_id) for clip in read_manifest(folder / SETS / f"s{seed}" / COPIES)}


def _pairs(config: LongtailConfig, folder: Path, way: Run) -> dict[str, Any]:
    """What the pairs of a way are, over the prompts of all seeds: the mean number of ``clips``, of which a near-duplicate is no
    other, and of ``recordings``, and the share that is of the prompt's class (``own_class``, 0 to 1).
    """
    clips, recordings, alike = [], [], []
    for seed in config.seeds:
        label = {clip.clip_id: class_of(clip) for clip in read_manifest(folder / SETS / f"s{seed}" / ALL)}
        for row in rows_of(folder, replace(way, seed=seed)):
            clips.append(len({origin(pair) for pair in row["retrieved"]}))
            recordings.append(len(set(config.takes.of(row["retrieved"]))))
            alike += [label[pair] == row["labels"][0] for pair in row["retrieved"]]
    means = {"clips": np.mean(clips), "recordings": np.mean(recordings), "own_class": np.mean(alike)}
    return {"way": way.way, **_facts(way), **{key: float(value) for key, value in means.items()}}


def _facts(way: Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(way).items() if key != "seed"}


def rates_of_kinds(seen: Sequence[Sequence[Seen]], undecided: Sequence[bool]) -> dict[str, Any]:
    """Rates of flagged clips and of what these and all match, over seeds; no rate of flags where an audit cannot tell.

    What all match is of the seeds whose audits can tell, as flags are, so that the ones are parts of the others; of all seeds
    where none can.

    ``captions`` is how many prompts the clips are of.

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
    found["captions"] = found.pop("prompts")  # how many, beside which "prompts" of a row are those of training or held out
    for what, unknown in (("flagged", undecided), ("nearest", [cannot and not all(undecided) for cannot in undecided])):
        found[f"{what}_kinds"] = {kind: rate(f"{what}_{kind}", unknown) for kind in (*KINDS, *TOGETHER)}
    return found


def _nearer(
    config: LongtailConfig, folder: Path, way: Run, audits: Mapping[tuple[int, str], SeedAudit]
) -> list[dict[str, Any]]:
    """How much nearer clips are to what was shown than to what was not, by each descriptor that has vectors; ``by_itself`` is
    that of the model without pairs, had it been shown the same, and ``beyond`` the difference of both, prompt by prompt."""
    found = []
    for name in config.audits.compared_by:
        values: list[tuple[Nearer, Nearer]] = []
        for seed in config.seeds:
            audit = audits[seed, name]
            if audit.likeness is None:
                break
            references = read_manifest(folder / SETS / f"s{seed}" / ALL)
            seen, plain = _beside(config, folder, way, seed, audit)
            values.append((nearer(audit.likeness, seen, references, seed), nearer(audit.likeness, plain, references, seed)))
        if values:
            sides = {
                "shown": [list(one.shown.values()) for one, _ in values],
                "own": [list(one.own.values()) for one, _ in values],
                "by_itself": [list(plain.shown.values()) for _, plain in values],
            }
            counted = {key: sum(getattr(one, key) for one, _ in values) for key in ("pairs", "dropped")}
            means = {key: asdict(seed_mean([{"": one} for one in side], bounds=(-2, 2))) for key, side in sides.items()}
            means["beyond"] = asdict(seed_mean([{"": one.beyond(plain)} for one, plain in values], bounds=(-4, 4)))
            found.append({"way": way.way, "descriptor": name, **_facts(way), **means, **counted})
    return found


def _guided(config: LongtailConfig, folder: Path, way: Run, audits: Mapping[tuple[int, str], SeedAudit]) -> dict[str, Any]:
    """What guidance did beside the same prompts, pairs and noise without it.

    Returns
    -------
    dict
        ``fired``: clips that it acted on; ``changed``: by descriptor, what it changed in flags (:func:`changed_copies`);
        ``beyond_unguided``: of held-out captions, by how much more of the clips sound like their class.
    """
    rows = [rows_of(folder, replace(way, seed=seed)) for seed in config.seeds]
    counts = [(sum(row["fired_steps"] > 0 for row in one), len(one), len({row["reference"] for row in one})) for one in rows]
    changed = {}
    for name in config.audits.compared_by:
        by_seed = {seed: audits[seed, name] for seed in config.seeds}
        before, after = (
            [_seen(folder, side, seed, audit) for seed, audit in by_seed.items()] for side in (replace(way, guided=False), way)
        )
        changed[name] = changed_copies(before, after, [audit.undecided for audit in by_seed.values()])
    return {
        "way": way.way,
        **_facts(way),
        "fired": asdict(pooled(counts)),
        "changed": changed,
        "beyond_unguided": _beyond_unguided(config, folder, way) if way.prompts == ON_HELD_OUT else None,
    }


def _beyond_unguided(config: LongtailConfig, folder: Path, way: Run) -> dict[str, Any]:
    """How many more clips sound like their class with guidance than without, a mean over seeds of paired differences."""
    paired = {}
    for seed, card in _scores(config, folder).items():
        own, usual = (_values(card, folder, side, seed, OWN_CLASS) for side in (way, replace(way, guided=False)))
        paired[seed] = _differences(own, usual)
    return asdict(_mean(paired, config.takes, BOUNDS[OWN_CLASS][1]))


def changed_copies(
    usual: Sequence[Sequence[Seen]], guided: Sequence[Sequence[Seen]], undecided: Sequence[bool]
) -> dict[str, Any] | None:
    """How many clips are flagged as copies of what was shown, a duplicate of the prompt's clip included, without guidance
    alone and with it alone: see :func:`~auscult.studies.rates.paired_change`.

    Parameters
    ----------
    usual, guided
        Clips of each seed, without guidance and with it.
    undecided
        Whether each seed's audit has too few null clips to flag any.
    """

    def copies(seen: Sequence[Seen]) -> dict[str, tuple[str, bool]]:
        compared = [one for one in seen if one.kind is not None]
        return {one.clip_id.partition("/")[2]: (one.own, one.flagged and one.kind in SHOWN) for one in compared}

    models = []
    for one, other, unknown in zip(usual, guided, undecided, strict=True):
        before, after = copies(one), copies(other)
        both = [(own, before[clip][1], copy) for clip, (own, copy) in after.items() if clip in before]
        models.append(None if unknown else both)
    return paired_change(models)


def same_clips(ways: Sequence[tuple[str, Mapping[tuple[int, str], str]]]) -> dict[str, str | None]:
    """For each way the first before it whose clips of the same prompts are the same, bit for bit.

    Parameters
    ----------
    ways
        Name, and the SHA-256 of each clip by seed and prompt.

    Examples
    --------
    >>> same_clips([("one", {(0, "a"): "12", (0, "b"): "34"}), ("two", {(0, "a"): "56"}), ("three", {(0, "a"): "12"})])
    {'one': None, 'two': None, 'three': 'one'}
    """
    return {
        name: next((other for other, known in ways[:number] if made and made.items() <= known.items()), None)
        for number, (name, made) in enumerate(ways)
    }


def _same_clips(config: LongtailConfig, folder: Path, ways: Sequence[Run]) -> dict[str, str | None]:
    made = [
        {
            (seed, f"{way.prompts} {row['reference']}"): row["sha256"]
            for seed in config.seeds
            for row in rows_of(folder, replace(way, seed=seed))
        }
        for way in ways
    ]
    return same_clips([(way.way, one) for way, one in zip(ways, made, strict=True)])


# --- quality ----------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, float]]  # by class, by the prompt's clip


def _quality(config: LongtailConfig, folder: Path, ways: Sequence[Run]) -> dict[str, Any]:
    """Means by bin of training frequency of each metric and way, and their differences from the model without pairs."""
    frequency = {seed: frequency_of(folder, seed) for seed in config.seeds}
    cards = _scores(config, folder)
    held_out = [way for way in ways if way.prompts == ON_HELD_OUT]
    plain = next(way for way in held_out if way.model == PLAIN)
    rows = []
    for metric in (OWN_CLASS, *sorted({name for card in cards.values() for name in card["metrics"]})):
        base = {seed: _values(cards[seed], folder, plain, seed, metric) for seed in config.seeds}
        bounds, differ = BOUNDS.get(metric, (UNBOUNDED, UNBOUNDED))
        for way in held_out:
            values = {seed: _values(cards[seed], folder, way, seed, metric) for seed in config.seeds}
            for name, least, below in [("all", 0, None), *bins_of(config.tail.edges)]:
                own = {seed: of_bin(values[seed], frequency[seed], least, below) for seed in config.seeds}
                row = {"metric": metric, "way": way.way, **_facts(way), "bin": name, **asdict(_mean(own, config.takes, bounds))}
                row["classes"] = max(len(one) for one in own.values())
                paired = {seed: _differences(own[seed], base[seed]) for seed in config.seeds}
                row["beyond_plain"] = None if way == plain else asdict(_mean(paired, config.takes, differ))
                rows.append(row)
    real = [
        {"bin": name, **_yardsticks(config, folder, cards, frequency, least, below)}
        for name, least, below in [("all", 0, None), *bins_of(config.tail.edges)]
    ]
    return {"quality": rows, "real": real, "chance": real[0]["chance"]}


def _yardsticks(
    config: LongtailConfig,
    folder: Path,
    cards: Mapping[int, Mapping[str, Any]],
    frequency: Mapping[int, Mapping[str, int]],
    least: int,
    below: int | None,
) -> dict[str, Any]:
    """Of the classes of a bin: how often real clips sound like their class, and how often any clip would by ``chance``."""

    def of(what: str) -> dict[int, Values]:
        return {seed: of_bin(_real(card, folder, seed, what), frequency[seed], least, below) for seed, card in cards.items()}

    told = all("chance" in card["nearest"] for card in cards.values())  # those of earlier versions are not
    by_chance = _mean(of("chance"), config.takes).value if told else 1 / config.classes
    return {**asdict(_mean(of("real"), config.takes, BOUNDS[OWN_CLASS][0])), "chance": by_chance}


def _scores(config: LongtailConfig, folder: Path) -> dict[int, dict[str, Any]]:
    return {seed: read_card(folder / EVALUATED / f"s{seed}", "scores of a study") for seed in config.seeds}


def _values(card: Mapping[str, Any], folder: Path, way: Run, seed: int, metric: str) -> Values:
    """Of the clips of a run: values by class and prompt."""
    run = replace(way, seed=seed)
    scores = card["nearest"][run.way] if metric == OWN_CLASS else card["metrics"].get(metric, {}).get(run.way, {})
    found: Values = {}
    for row in rows_of(folder, run):
        if (value := scores.get(f"{run.way}/{row['clip_id']}")) is not None:
            found.setdefault(row["labels"][0], {})[row["reference"]] = value
    return found


def _real(card: Mapping[str, Any], folder: Path, seed: int, what: str) -> Values:
    """Of the real held-out clips themselves: whether the nearest is of their class (``real``), or how often by ``chance``."""
    found: Values = {}
    for clip in read_manifest(folder / SETS / f"s{seed}" / HELD_OUT):
        found.setdefault(clip.labels[0], {})[clip.clip_id] = card["nearest"][what][clip.clip_id]
    return found


def _mean(values: Mapping[int, Values], takes: Takes, bounds: tuple[float, float] = UNBOUNDED) -> Mean:
    """Over seeds, where clips from the captions of one recording stand or fall together."""
    by_class = [{name: list(one.values()) for name, one in of_seed.items()} for of_seed in values.values()]
    recordings = [{name: takes.of(list(one)) for name, one in of_seed.items()} for of_seed in values.values()]
    return seed_mean(by_class, recordings=recordings, bounds=bounds)


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
        told += _notes_on_null_clips(config.audits, name, {seed: audits[seed, name].null_clips for seed in config.seeds})
    told += filter(None, [_note_on_copies(folder, config.seeds)])
    if any("chance" not in card["nearest"] for card in _scores(config, folder).values()):
        told.append(
            "Here the nearest real clip could be the prompt's own, which it no longer can: delete evaluated/, and give the "
            "command again."
        )
    held_out = sum(len(read_manifest(folder / SETS / f"s{seed}" / HELD_OUT)) for seed in config.seeds)
    told.append(
        f"Scores by frequency are of {held_out:,} clips a way over {len(config.seeds)} seeds, {config.tail.held_out} a class "
        "and seed."
    )
    if config.quality.frechet and not any(card["metrics"].get("fd_per_clip") for card in _scores(config, folder).values()):
        told.append("Fréchet distances of clips are missing: a clip has one if it has two frames or more of the features.")
    if "sounds" in (config.data.source, config.data.null):
        told.append("Training or null clips are synthesized ('sounds'): no result about recordings.")
    return told


def _notes_on_sensitivity(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return [sees_little(one["descriptor"], one["rate"]) for one in found if one["rate"] is not None and one["rate"] < SEEN]


def _notes_on_null_clips(asked: StudyAudits, name: str, null_clips: Mapping[int, int]) -> list[str]:
    """How a clip is flagged by a descriptor, and the seeds of which none can be."""
    lacking = {seed: count for seed, count in null_clips.items() if is_undecided(asked, name, count)}
    if len(lacking) == len(null_clips):
        return [too_few_null_clips(asked, name, min(lacking.values()))]
    told = [too_few_null_clips(asked, f"{name}, seed {seed}", count) for seed, count in lacking.items()]
    told += [f"{name}: rates are of the other seeds alone."] * bool(lacking)
    if name not in asked.taus():
        told.append(f"{name}: a clip is flagged if at most {100 * asked.level:.3g} % of null clips score as high.")
    return told


def _note_on_copies(folder: Path, seeds: Sequence[int]) -> str:
    """What is to be known where deduplication has not found all near-duplicates, and why if it says so."""
    counts = {seed: copies_found(folder, seed) for seed in seeds}
    missed = {seed: f"{found} of {there} for seed {seed}" for seed, (found, there) in counts.items() if found < there}
    cards = [json.loads((folder / DUPLICATES / f"s{seed}" / CARD).read_text("utf-8")) for seed in missed]
    reasons = dict.fromkeys(reason for card in cards for reason in card.get("warnings", ()))
    said = (
        f"Of near-duplicates, deduplication found {', '.join(missed.values())}. The captions of the others are equal to the "
        "target's, and kept them from its pairs all the same."
    )
    return " ".join([said, *(f"It says: {reason}" for reason in reasons)]) if missed else ""
