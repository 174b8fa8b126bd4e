"""Which metrics there are, what each needs, and how it is computed from the features of two sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import clap_score, coverage, divergence, frechet, kernel
from .embeddings import Backend
from .features import FeatureSet
from .frames import REFERENCE, some_clips
from .intervals import Interval, mean_interval
from .variety import check_loud, check_variety

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

HELD_BYTES = 2**28  # of float32 features that a metric which cannot stream them takes at once; it works on copies of them


@dataclass(frozen=True)
class Known:
    """What was computed for a task or its brackets, and is wanted again.

    Attributes
    ----------
    texts
        Embeddings by caption.
    distances
        Of the clips of a set to another set, by both.
    """

    texts: dict[str, FloatArray] = field(default_factory=dict)
    distances: dict[tuple[FeatureSet, FeatureSet], DoubleArray] = field(default_factory=dict)


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
    known
        What tasks of one backend share, brackets with the set they stand beside.
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
    known: Known = field(default_factory=Known, repr=False)


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
    frechet.check_counts(task.reference.clip_of_frame, task.backend.dimension, REFERENCE)
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
    pair of unrelated ones, and would draw the distance below 0. Of several copies, the first has the number of the first."""
    digests = [one.clips["sample_digest"].to_pylist() for one in (generated, reference)]
    places: dict[str, list[int]] = {}
    for row, digest in reversed(list(enumerate(digests[0]))):
        places.setdefault(digest, []).append(row)
    number = [places[digest].pop() if places.get(digest) else len(generated) + row for row, digest in enumerate(digests[1])]
    return generated.clip_of_frame, np.array(number, np.int64)[reference.clip_of_frame]


def _neighborhoods(task: Task) -> dict[str, Interval]:
    # By clip, as these metrics are defined on images: the pauses within real clips would make silence look real.
    sets = [_some_clips(one, coverage.MOST_FRAMES, task.seed) for one in (task.generated, task.reference)]
    generated, reference = (_clip_means(one) for one in sets)
    check_variety(generated, reference, task.neighbors, task.backend.spec.name, seed=task.seed)
    check_loud(*(one.clips["flags"].to_pylist() for one in sets), most_loud=task.neighbors)
    return coverage.evaluate(generated, reference, k=task.neighbors, resamples=task.resamples, seed=task.seed)


def _some_clips(features: FeatureSet, most: int, seed: int) -> FeatureSet:
    return features.subset(some_clips(np.arange(len(features)), most, seed=seed))


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
    generated, reference = logits_of(task.generated), logits_of(task.reference)
    assert task.pairs is not None
    found = divergence.evaluate(generated, reference[task.pairs], splits=None, resamples=task.resamples, seed=task.seed)
    return {name: found[name] for name in ("kl", "kl_reversed", "kl_sigmoid")}


def _inception(task: Task) -> dict[str, Interval]:
    found = divergence.evaluate(logits_of(task.generated), splits=task.splits, resamples=task.resamples, seed=task.seed)
    return {"is": found["is"]}


def _clap_score(task: Task) -> dict[str, Interval]:
    return {"clap_score": mean_interval(clap_scores(task), resamples=task.resamples, seed=task.seed)}


def clap_scores(task: Task) -> DoubleArray:
    """(clips,) the CLAP score of each; a part of the windows is held at once."""
    assert task.captions is not None
    text = _embedded(task, task.captions)
    parts = [clap_score.scores(text[rows], part.features(), clips=part.clip_of_frame) for rows, part in _parts(task.generated)]
    return np.concatenate(parts)


def _embedded(task: Task, captions: list[str]) -> FloatArray:
    """(captions, d): each different one is embedded once a task and its brackets."""
    assert task.backend.embed_texts is not None
    if new := sorted(set(captions) - task.known.texts.keys()):
        task.known.texts.update(zip(new, task.backend.embed_texts(new), strict=True))
    return np.array([task.known.texts[caption] for caption in captions])


def _parts(features: FeatureSet) -> Iterator[tuple[IntArray, FeatureSet]]:
    """Rows of clips and these clips, in order, as many as ``HELD_BYTES`` holds the frames of, one at least."""
    most = HELD_BYTES // (4 * features.dimension)
    first, held = 0, 0
    for row, count in enumerate(features.frame_counts.tolist()):
        if held and held + count > most:
            yield (rows := np.arange(first, row)), features.subset(rows)
            first, held = row, 0
        held += count
    if held:
        yield (rows := np.arange(first, len(features))), features.subset(rows)


def logits_of(features: FeatureSet) -> FloatArray:
    logits = features.logits()
    assert logits is not None
    return logits


def _no_classes(backend: Backend) -> str | None:
    return None if backend.classes else f"{backend.spec.name} has no classes; panns and ast have"


def _no_texts(backend: Backend) -> str | None:
    return f"{backend.spec.name} does not read captions; clap does" if backend.embed_texts is None else None


def _per_clip(task: Task) -> dict[str, Interval]:
    values = clip_distances(task)
    if short := np.count_nonzero(np.isnan(values)):
        raise ValueError(
            f"{short:,} of {len(values):,} clips have a single frame, and one frame does not vary: take a backend with several "
            "frames a clip, or leave out clips shorter than two of them"
        )
    return {f"{task.backend.frechet}_per_clip": mean_interval(values, resamples=task.resamples, seed=task.seed)}


def clip_distances(task: Task) -> DoubleArray:
    """(clips,) the Frechet distance of each clip to the reference, NaN for one of a single frame; computed once a task.

    Raises
    ------
    ValueError
        The reference has fewer than two frames.
    """
    sets = task.generated, task.reference
    if sets not in task.known.distances:
        reference = frechet.moments(task.reference.blocks())
        values = np.full(len(task.generated), np.nan)
        several = np.flatnonzero(task.generated.frame_counts > 1)
        for rows, part in _parts(task.generated.subset(several)):
            values[several[rows]] = frechet.frechet_per_clip(part.features(), part.clip_of_frame, reference)
        task.known.distances[sets] = values
    return task.known.distances[sets]


FAMILIES = (
    Family(("fad", "fd"), _frechet),
    Family(("fad_infinity", "fd_infinity"), _infinity),
    Family(("fad_per_clip", "fd_per_clip"), _per_clip, optional=True),
    Family(("kad",), _kernel),
    Family(("precision", "recall", "density", "coverage"), _neighborhoods),
    Family(("kl", "kl_reversed", "kl_sigmoid"), _divergence, _no_classes, "reference"),
    Family(("is",), _inception, _no_classes),
    Family(("clap_score",), _clap_score, _no_texts, "captions"),
)


def names(family: Family, backend: Backend) -> tuple[str, ...]:
    """The family's metrics as they are called on a backend's features: of ``fad`` and ``fd`` it is one."""
    other = "fd" if backend.frechet == "fad" else "fad"
    return tuple(metric for metric in family.metrics if metric.partition("_")[0] != other)
