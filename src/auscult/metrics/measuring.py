"""From the features of two sets to named scores: each with its brackets, or with why there is none; scores of clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import divergence
from .brackets import Brackets
from .families import FAMILIES, DoubleArray, Family, Task, clap_scores, clip_distances, logits_of, names
from .intervals import unlike_partners
from .scores import Score

__all__ = ["FAMILIES", "FEW_DIMENSIONS", "Family", "Task", "measure", "names", "per_clip"]

FEW_DIMENSIONS = 128  # up to which a Frechet distance is a matter of milliseconds


def measure(
    task: Task, family: Family, brackets: Brackets | None, reference_captions: list[str] | None, label: str
) -> dict[str, Score]:
    """Scores of a family with their brackets; what cannot be computed has its reason.

    Parameters
    ----------
    task
        The set, with what the family's pairing wants.
    brackets
        None: none are computed.
    reference_captions
        Of the reference's clips, for what real audio scores with its own captions; None if they have none.
    label
        What the backend is called in tables.
    """
    sets = {"generated": task.generated, "reference": task.reference}
    clips = {f"n_{name}": len(one) for name, one in sets.items()}
    clips |= {f"n_{name}_frames": int(one.frame_counts.sum()) for name, one in sets.items()}
    try:
        found = family.measure(task)
    except ValueError as refusal:
        return {metric: Score.refused(metric, label, str(refusal), **clips) for metric in names(family, task.backend)}
    beside = {} if brackets is None else _beside(task, family, brackets, reference_captions)
    note = f"Its floor is of halves of {len(task.reference) // 2:,} clips; of fewer clips a Frechet distance is larger."
    scores = {}
    for metric, interval in found.items():
        around = {kind: values.get(metric) for kind, values in beside.items()}
        noted = metric == task.backend.frechet and around.get("floor") is not None
        try:
            scores[metric] = Score.of(metric, label, interval, **clips, **around, note=note if noted else "")
        except ValueError as refusal:  # a number that is none
            scores[metric] = Score.refused(metric, label, str(refusal), **clips)
    return scores


def _beside(
    task: Task, family: Family, brackets: Brackets, reference_captions: list[str] | None
) -> dict[str, dict[str, float]]:
    """The family's values for what a score is read against, by kind of bracket."""
    plain = replace(task, resamples=0)
    beside = {"floor": _floor(plain, family, brackets, reference_captions)}
    for kind, stand in (("noise", brackets.noise), ("silence", brackets.silence)):
        captions = None if task.captions is None else [task.captions[row % len(task.captions)] for row in stand.rows]
        beside[kind] = _values(
            family, replace(plain, generated=stand.features, pairs=stand.rows, captions=captions, extreme=True)
        )
    partners = task.captions if family.pairing == "captions" else None if task.pairs is None else task.pairs.tolist()
    order = None if family.pairing is None or partners is None else unlike_partners(partners, seed=task.seed)
    if order is not None:
        pairs = None if task.pairs is None else task.pairs[order]
        captions = None if task.captions is None else [task.captions[row] for row in order]
        beside["shuffled"] = _values(family, replace(plain, pairs=pairs, captions=captions))
    return beside


def _floor(task: Task, family: Family, brackets: Brackets, reference_captions: list[str] | None) -> dict[str, float]:
    """What real audio scores: halves of the reference against each other where sets are compared, the reference itself
    where its clips stand for themselves."""
    every = np.arange(len(task.reference))
    if family.pairing == "captions":
        return (
            {}
            if reference_captions is None
            else _values(family, replace(task, generated=task.reference, captions=reference_captions))
        )
    if family.pairing == "reference" or family.metrics == ("is",):
        return _values(family, replace(task, generated=task.reference, pairs=every))
    drawn = [
        _values(family, replace(task, generated=task.reference.subset(first), reference=task.reference.subset(second)))
        for first, second in brackets.halves
    ]
    drawn = [values for values in drawn if values]  # where clips differ in length, some halves may have too few frames
    return {metric: float(np.mean([values[metric] for values in drawn])) for metric in drawn[0]} if drawn else {}


def _values(family: Family, task: Task) -> dict[str, float]:
    """The values alone; none where the metric refuses, as a bracket that cannot be had is left out."""
    try:
        return {metric: interval.value for metric, interval in family.measure(task).items()}
    except ValueError:
        return {}


def per_clip(task: Task, *, distances: bool) -> dict[str, dict[str, float]]:
    """What single clips score, by metric and clip id: the metrics that the backend, pairs and captions allow.

    Of clips of a single frame there is no Frechet distance: they are left out, and the metric if there are no others.

    Parameters
    ----------
    distances
        Whether Frechet distances of single clips are wanted of a backend of many dimensions, too: each costs their cube.
    """
    values: dict[str, DoubleArray] = {}
    measurable = task.generated.frame_counts.max(initial=0) > 1 < task.reference.frame_counts.sum()
    if measurable and (distances or task.backend.dimension <= FEW_DIMENSIONS):
        values[f"{task.backend.frechet}_per_clip"] = clip_distances(task)
    if task.pairs is not None and task.backend.classes:
        values["kl"] = divergence.kl_per_pair(logits_of(task.reference)[task.pairs], logits_of(task.generated))
    if task.captions is not None and task.backend.embed_texts is not None:
        values["clap_score"] = clap_scores(task)
    ids = task.generated.clips["clip_id"].to_pylist()
    return {
        metric: {clip_id: value for clip_id, value in zip(ids, of.tolist(), strict=True) if not np.isnan(value)}
        for metric, of in values.items()
    }
