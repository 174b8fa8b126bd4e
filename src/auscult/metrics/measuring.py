"""From the features of two sets to named scores: which metric needs what, and its brackets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import clap_score, coverage, divergence, frechet, kernel
from .brackets import Brackets
from .embeddings import Backend
from .features import FeatureSet
from .frames import some_clips
from .intervals import Interval, percentile_interval, resampled_counts, unlike_partners
from .scores import Score

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

HELD_BYTES = 2**28  # of float32 features that a metric which cannot stream them may hold
FEW_DIMENSIONS = 128  # up to which a Frechet distance is a matter of milliseconds


@dataclass(frozen=True)
class Task:
    """A set to be scored against a reference, by one backend.

    Attributes
    ----------
    generated, reference
        Features of both.
    pairs
        Row of the reference that belongs to each generated clip, (clips,); None: they are not paired.
    captions
        Of each generated clip; None: it is not known what was asked for.
    resamples, seed
        Of the intervals (0: none), and of every draw.
    neighbors, splits
        Of precision, recall, density, coverage; of the inception score.
    extreme
        The set is noise or silence, whose frames are nearly alike, so that too few of them cannot flatter it.
    """

    backend: Backend
    generated: FeatureSet
    reference: FeatureSet
    pairs: IntArray | None = None
    captions: list[str] | None = None
    resamples: int = 0
    seed: int = 0
    neighbors: int = 5
    splits: int = 10
    extreme: bool = False


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together.

    Attributes
    ----------
    metrics
        Their names, as in the glossary.
    measure
        Computes them; a ``ValueError`` says why that cannot be done.
    lacking
        What keeps a backend from computing them, in words; None: nothing.
    pairing
        What the generated clips have to be paired with: ``reference`` clips, ``captions``, or nothing.
    optional
        Whether they are computed only where they are asked for by name.
    """

    metrics: tuple[str, ...]
    measure: Callable[[Task], dict[str, Interval]]
    lacking: Callable[[Backend], str | None] = lambda backend: None
    pairing: str | None = None
    optional: bool = False


# --- the families -----------------------------------------------------------------------------------------------------


def _frechet(task: Task) -> dict[str, Interval]:
    if task.extreme:
        of = [frechet.moments(features.blocks()) for features in (task.generated, task.reference)]
        return {task.backend.frechet: Interval(frechet.frechet_distance(*of))}
    interval = frechet.evaluate(
        task.generated.blocks,
        task.reference.blocks,
        generated_clips=task.generated.clip_of_frame,
        reference_clips=task.reference.clip_of_frame,
        resamples=task.resamples,
        seed=task.seed,
    )
    return {task.backend.frechet: interval}


def _infinity(task: Task) -> dict[str, Interval]:
    if task.extreme:
        raise ValueError("the frames of noise and silence are nearly alike: their distance does not depend on their number")
    reference = frechet.moments(task.reference.blocks())
    generated = _drawn(task.generated, HELD_BYTES // (4 * task.backend.dimension), task.seed)
    found = frechet.evaluate_infinity(
        generated.features(),
        reference,
        clips=generated.clip_of_frame,
        resamples=task.resamples,
        seed=task.seed,
    )
    return {f"{task.backend.frechet}_infinity": found}


def _kernel(task: Task) -> dict[str, Interval]:
    generated, reference = (_drawn(one, kernel.MOST_FRAMES, task.seed) for one in (task.generated, task.reference))
    numbers = _numbered(generated, reference)
    interval = kernel.evaluate(
        generated.features(),
        reference.features(),
        generated_clips=numbers[0],
        reference_clips=numbers[1],
        paired=True,
        resamples=task.resamples,
        seed=task.seed,
    )
    return {"kad": interval}


def _numbered(generated: FeatureSet, reference: FeatureSet) -> tuple[IntArray, IntArray]:
    """The clip of each frame of both sets, where a clip whose samples are in both has one number: a clip and itself are no
    pair of unrelated ones, and would draw the distance below 0."""
    digests = [one.clips["sample_digest"].to_pylist() for one in (generated, reference)]
    place = {digest: row for row, digest in reversed(list(enumerate(digests[0])))}
    number = [place.pop(digest, len(generated) + row) for row, digest in enumerate(digests[1])]
    return generated.clip_of_frame, np.array(number, np.int64)[reference.clip_of_frame]


def _neighborhoods(task: Task) -> dict[str, Interval]:
    # By clip, as these metrics are defined on images: the pauses within real clips would make silence look real.
    generated, reference = _clip_means(task.generated), _clip_means(task.reference)
    distinct = len(np.unique(generated.astype(np.float32), axis=0))
    if distinct <= task.neighbors:
        raise ValueError(
            f"{len(generated):,} generated clips are only {distinct} different sounds to {task.backend.spec.name}: one real "
            "sound given again and again, or silence where a real clip is nearly silent, would have a precision of 1"
        )
    return coverage.evaluate(generated, reference, k=task.neighbors, resamples=task.resamples, seed=task.seed)


def _clip_means(features: FeatureSet) -> DoubleArray:
    """Mean of each clip's frames, (clips, dimension)."""
    return np.array([features.frames_of(row).mean(axis=0, dtype=np.float64) for row in range(len(features))])


def _drawn(features: FeatureSet, most: int, seed: int) -> FeatureSet:
    """Whole clips drawn up to so many frames, where all would be more than can be held at once."""
    if int(features.frame_counts.sum()) <= most:
        return features
    clips = features.clip_of_frame
    return features.subset(np.unique(clips[some_clips(clips, most, seed=seed)]))


def _divergence(task: Task) -> dict[str, Interval]:
    generated, reference = _logits(task.generated), _logits(task.reference)
    assert task.pairs is not None
    found = divergence.evaluate(generated, reference[task.pairs], splits=None, resamples=task.resamples, seed=task.seed)
    return {name: found[name] for name in ("kl", "kl_reversed", "kl_sigmoid")}


def _inception(task: Task) -> dict[str, Interval]:
    found = divergence.evaluate(_logits(task.generated), splits=task.splits, resamples=task.resamples, seed=task.seed)
    return {"is": found["is"]}


def _clap_score(task: Task) -> dict[str, Interval]:
    text, windows, clips = _texts_and_windows(task)
    return {"clap_score": clap_score.evaluate(text, windows, clips=clips, resamples=task.resamples, seed=task.seed)}


def _texts_and_windows(task: Task) -> tuple[FloatArray, FloatArray, IntArray]:
    assert task.backend.embed_texts is not None
    assert task.captions is not None
    different = sorted(set(task.captions))
    vectors = task.backend.embed_texts(different)
    place = {caption: number for number, caption in enumerate(different)}
    rows = [place[caption] for caption in task.captions]
    return vectors[rows], task.generated.features(), task.generated.clip_of_frame


def _logits(features: FeatureSet) -> FloatArray:
    logits = features.logits()
    assert logits is not None
    return logits


def _no_classes(backend: Backend) -> str | None:
    return None if backend.classes else f"{backend.spec.name} has no classes; panns and ast have"


def _no_texts(backend: Backend) -> str | None:
    return f"{backend.spec.name} does not read captions; clap does" if backend.embed_texts is None else None


def _per_clip(task: Task) -> dict[str, Interval]:
    values = _clip_distances(task)
    draws = [
        float(times @ values) / len(values) for times in resampled_counts(len(values), resamples=task.resamples, seed=task.seed)
    ]
    return {"fad_per_clip": percentile_interval(float(values.mean()), draws)}


def _clip_distances(task: Task) -> DoubleArray:
    reference = frechet.moments(task.reference.blocks())
    most = max(1, HELD_BYTES // (4 * task.backend.dimension * int(task.generated.frame_counts.max())))
    values = []
    for start in range(0, len(task.generated), most):
        part = task.generated.subset(np.arange(start, min(start + most, len(task.generated))))
        values.append(frechet.frechet_per_clip(part.features(), part.clip_of_frame, reference))
    return np.concatenate(values)


FAMILIES = (
    Family(("fad", "fd"), _frechet),
    Family(("fad_infinity", "fd_infinity"), _infinity),
    Family(("fad_per_clip",), _per_clip, optional=True),
    Family(("kad",), _kernel),
    Family(("precision", "recall", "density", "coverage"), _neighborhoods),
    Family(("kl", "kl_reversed", "kl_sigmoid"), _divergence, _no_classes, "reference"),
    Family(("is",), _inception, _no_classes),
    Family(("clap_score",), _clap_score, _no_texts, "captions"),
)


# --- scores -----------------------------------------------------------------------------------------------------------


def names(family: Family, backend: Backend) -> tuple[str, ...]:
    """The family's metrics as they are called on a backend's features: of ``fad`` and ``fd`` it is one."""
    other = "fd" if backend.frechet == "fad" else "fad"
    return tuple(metric for metric in family.metrics if metric not in {other, f"{other}_infinity"})


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
    clips = {"n_generated": len(task.generated), "n_reference": len(task.reference)}
    try:
        found = family.measure(task)
    except ValueError as refusal:
        return {metric: Score.refused(metric, label, str(refusal), **clips) for metric in names(family, task.backend)}
    beside = {} if brackets is None else _beside(task, family, brackets, reference_captions)
    note = f"Its floor is of halves of {len(task.reference) // 2:,} clips; of fewer clips a Frechet distance is larger."
    return {
        metric: Score.of(
            metric,
            label,
            interval,
            **clips,
            **{kind: values.get(metric) for kind, values in beside.items()},
            note=note if metric == task.backend.frechet and beside else "",
        )
        for metric, interval in found.items()
    }


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


def per_clip(task: Task, *, distances: bool) -> dict[str, DoubleArray]:
    """What single clips score, (clips,) each, by metric: those of it that the backend, pairs and captions allow.

    Parameters
    ----------
    distances
        Whether Frechet distances of single clips are wanted of a backend of many dimensions, too: each costs their cube.
    """
    values: dict[str, DoubleArray] = {}
    if task.generated.frame_counts.min() > 1 and (distances or task.backend.dimension <= FEW_DIMENSIONS):
        values["fad_per_clip"] = _clip_distances(task)
    if task.pairs is not None and task.backend.classes:
        values["kl"] = divergence.kl_per_pair(_logits(task.reference)[task.pairs], _logits(task.generated))
    if task.captions is not None and task.backend.embed_texts is not None:
        text, windows, clips = _texts_and_windows(task)
        values["clap_score"] = clap_score.scores(text, windows, clips=clips)
    return values
