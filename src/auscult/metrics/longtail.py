"""How well rare sounds are generated: a score per class, and classes in bins of how often training clips carry them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from .intervals import RESAMPLES, percentile_interval, resampled_counts

DoubleArray = npt.NDArray[np.float64]

EDGES = (1, 10, 30, 50, 100, 500)
"""Edges of the bins: classes never seen in training have one of their own, [0, 1), and the last bin is open."""


@dataclass(frozen=True)
class ClassScore:
    """A class: how many training clips carry it (``frequency``), how many evaluated ``clips``, and the mean of their values."""

    label: str
    frequency: int
    clips: int
    value: float


@dataclass(frozen=True)
class Bin:
    """Classes of like frequency.

    Attributes
    ----------
    least, below
        Training clips of its classes: ``least <= frequency < below``; None: without end.
    classes, clips
        Classes with evaluated clips in it, and distinct clips that carry at least one of them.
    value
        Mean over its classes of their scores; None if there is none.
    low, high
        95 % interval; None for fewer than two clips, of which a bootstrap knows no spread.
    """

    least: int
    below: int | None
    classes: int
    clips: int
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        """Its frequencies: ``0``, ``10-29``, ``500+``."""
        if self.below is None:
            return f"{self.least}+"
        return f"{self.least}" if self.below - self.least == 1 else f"{self.least}-{self.below - 1}"


@dataclass(frozen=True)
class LongTail:
    """A per-clip score against how often its classes were in the training set.

    Attributes
    ----------
    bins
        From the rarest to the most frequent, empty ones among them.
    classes
        By rising frequency, then by label.
    clips, unlabeled
        Clips given, and how many of them carry no label and so count nowhere.
    resamples, seed
        Of the intervals.
    """

    bins: tuple[Bin, ...]
    classes: tuple[ClassScore, ...]
    clips: int
    unlabeled: int
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LongTail:
        """From :meth:`to_json`."""
        bins = tuple(Bin(**one) for one in content["bins"])
        return cls(**{**content, "bins": bins, "classes": tuple(ClassScore(**one) for one in content["classes"])})


def label_frequency(training: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many training clips carry each label; a clip that names a label twice counts once.

    Examples
    --------
    >>> label_frequency([("Dog", "Speech"), ("Dog", "Dog"), ()])
    {'Dog': 2, 'Speech': 1}
    """
    counts: Counter[str] = Counter()
    for labels in training:
        counts.update(set(labels))
    return dict(sorted(counts.items()))


def validate(
    values: npt.ArrayLike, labels: Sequence[Sequence[str]], frequency: Mapping[str, int], edges: Sequence[int]
) -> DoubleArray:
    """Check the input of :func:`long_tail`; returns the values as float64.

    Raises
    ------
    ValueError
        Says what is wrong: lengths, values that are no numbers, edges that do not rise, labels of another vocabulary.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) != len(labels):
        raise ValueError(f"expected a value (n,) and the labels of each clip, got {numbers.shape} and {len(labels)} clips")
    if not len(numbers):
        raise ValueError("expected at least one clip, got none")
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"clip {row} has the value {numbers[row]}; leave out clips without a value, and say how many they are")
    text = next((row for row, one in enumerate(labels) if isinstance(one, str)), None)
    if text is not None:
        raise ValueError(f"clip {text} has the labels {labels[text]!r}; expected a sequence of labels, not one text")
    check_edges(edges)
    here = {label for one in labels for label in one}
    if not here:
        raise ValueError(f"none of the {len(labels):,} clips has a label; give a manifest with a column of labels")
    if frequency and not here & frequency.keys():
        raise ValueError(
            f"no label of these clips ({_some(here)}) is one of the training set ({_some(frequency)}): one side may have ids "
            "where the other has names, or another spelling"
        )
    if bad := next((label for label, count in frequency.items() if count < 0 or count != int(count)), None):
        raise ValueError(f"{bad!r} should be carried by a whole number of training clips, got {frequency[bad]}")
    return numbers


def check_edges(edges: Sequence[int]) -> None:
    """Refuse edges that make no bins, with a ``ValueError``."""
    if not edges or list(edges) != sorted(set(edges)) or min(edges) < 1:
        raise ValueError(f"edges should be rising whole numbers from 1 on, such as {EDGES}, got {tuple(edges)}")


def long_tail(
    values: npt.ArrayLike,
    labels: Sequence[Sequence[str]],
    frequency: Mapping[str, int],
    *,
    edges: Sequence[int] = EDGES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LongTail:
    """Mean score of each class, and their mean in bins of the classes' training frequency.

    With C_b the classes of bin b that any clip carries, and I_c the clips that carry class c,

        value_b = 1/|C_b| sum_{c in C_b} 1/|I_c| sum_{i in I_c} values_i,

    so that a frequent class weighs no more than a rare one of its bin. A clip of several classes counts in each.

    The interval comes from drawing the clips again, all at once, so clips that several classes share keep them together. A
    class that loses all of its clips in a draw has no score there, and the bin's mean is over the classes that are left; a
    draw that leaves a bin without a class is not among the bin's draws. So the interval is of the classes that this test set
    happens to hold, too; of a handful of clips it is too narrow, as any bootstrap: look at the counts.

    Parameters
    ----------
    values
        (n,) score of each clip, any for which a mean makes sense (CLAP score); finite.
    labels
        Labels of each clip; none: the clip counts nowhere.
    frequency
        Training clips that carry each label (:func:`label_frequency`). A label that is not in it was never seen: 0.
    edges
        Rising: a class belongs to the first bin whose upper edge exceeds its frequency.
    resamples, seed
        Of the interval; no resamples: none.

    Raises
    ------
    ValueError
        See :func:`validate`.

    Examples
    --------
    >>> result = long_tail([0.5, 0.3, 0.1], [("Dog",), ("Dog", "Theremin"), ("Gong",)], {"Dog": 700, "Gong": 4})
    >>> [(one.name, one.value, one.classes, one.clips) for one in result.bins if one.classes]
    [('0', 0.3, 1, 1), ('1-9', 0.1, 1, 1), ('500+', 0.4, 1, 2)]

    References
    ----------
    Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024, figure 4, which shows CLAP score over frequencies
    at ticks 1, 10, 30, 50, 100 and 500; that the bins reach from tick to tick is our reading. The intervals are ours.
    """
    numbers = validate(values, labels, frequency, edges)
    names = sorted({label for one in labels for label in one}, key=lambda label: (frequency.get(label, 0), label))
    carries = _incidence(labels, names)
    seen = np.array([frequency.get(label, 0) for label in names])
    bin_of = np.searchsorted(np.asarray(edges), seen, side="right")
    draws = [_bin_means(carries, bin_of, numbers, count, len(edges) + 1) for count in _counts(len(numbers), resamples, seed)]
    once = np.ones(len(numbers), np.int64)
    means, per_class = _bin_means(carries, bin_of, numbers, once, len(edges) + 1), _class_means(carries, numbers, once)
    bins = []
    for number, (least, below) in enumerate(zip((0, *edges), (*edges, None), strict=True)):
        own = carries[bin_of == number]
        clips = int(np.count_nonzero(np.asarray(own.sum(axis=0)).ravel()))
        value, low, high = float(means[number]), None, None
        if clips > 1 and draws:
            interval = percentile_interval(value, [draw[number] for draw in draws])
            low, high = interval.low, interval.high
        bins.append(Bin(least, below, own.shape[0], clips, value if own.shape[0] else None, low, high))
    clips_of = np.asarray(carries.sum(axis=1)).ravel().astype(int)
    rows = zip(names, seen.tolist(), clips_of.tolist(), per_class.tolist(), strict=True)
    unlabeled = sum(not one for one in labels)
    return LongTail(tuple(bins), tuple(ClassScore(*row) for row in rows), len(numbers), unlabeled, resamples, seed)


def _counts(n: int, resamples: int, seed: int) -> Iterable[npt.NDArray[np.int64]]:
    return resampled_counts(n, resamples=resamples, seed=seed) if resamples else ()


def _incidence(labels: Sequence[Sequence[str]], names: Sequence[str]) -> Any:
    """(classes, clips), 1 where a clip carries a class."""
    place = {name: row for row, name in enumerate(names)}
    pairs = sorted({(place[label], clip) for clip, one in enumerate(labels) for label in one})
    rows, columns = (np.array(side) for side in zip(*pairs, strict=True))
    return scipy.sparse.csr_array((np.ones(len(pairs)), (rows, columns)), shape=(len(names), len(labels)))


def _class_means(carries: Any, values: DoubleArray, counts: npt.NDArray[np.int64]) -> DoubleArray:
    """(classes,) mean of the values of a class's clips, each counted as often as it was drawn; NaN for a class without any."""
    drawn = carries @ counts.astype(np.float64)
    total = carries @ (values * counts)
    return np.divide(total, drawn, out=np.full(len(drawn), math.nan), where=drawn > 0)


def _bin_means(
    carries: Any, bin_of: npt.NDArray[np.int64], values: DoubleArray, counts: npt.NDArray[np.int64], bins: int
) -> DoubleArray:
    """(bins,) mean of the class means that are numbers; NaN for a bin without any."""
    means = _class_means(carries, values, counts)
    there = ~np.isnan(means)
    classes = np.bincount(bin_of[there], minlength=bins)
    total = np.bincount(bin_of[there], weights=means[there], minlength=bins)
    return np.divide(total, classes, out=np.full(bins, math.nan), where=classes > 0)


def _some(labels: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(labels)[:3]))
