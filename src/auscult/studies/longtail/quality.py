"""Do clips sound like their class? What the nearest real clip is of, and means by frequency with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from ...audio import read_audio
from ...corpus import Clip
from ...folders import Progress
from ...metrics.embeddings import logmel
from ...metrics.intervals import percentile_interval
from ..sets import read_manifest
from .arms import HELD_OUT, SETS, Run
from .config import LongtailConfig
from .drawing import class_of
from .reading import made_clips, rows_of

DoubleArray = npt.NDArray[np.float64]
RESAMPLES = 1000
UNBOUNDED = (-np.inf, np.inf)
INTERVAL = (
    "Intervals of means are of 95 %: the wider of Student's t over the means of the seeds, and of 1,000 bootstrap draws of "
    "seeds and, within each, of the recordings of each class with all of their clips. Of one seed there are draws of its "
    "recordings alone, which say nothing of other seeds; of a class of a single recording these do not vary."
)


def class_scores(
    config: LongtailConfig, folder: Path, seed: int, runs: Sequence[Run], progress: Progress
) -> dict[str, dict[str, float]]:
    """For each way, and for the real held-out clips themselves (``real``): 1 for a clip whose nearest real held-out clip is of
    its class, else 0.

    Clips are compared by levels of mel bands, means and deviations over time, each standardized by the real clips. Of a real
    clip, those of its own recording are passed over, and of a generated clip those of its prompt's: so each has the same clips
    to be near to, and ``chance`` is how often one of them, taken at random, is of the class.
    """
    real = read_manifest(folder / SETS / f"s{seed}" / HELD_OUT)
    vectors = np.stack([sound_of(clip) for clip in real])
    mean, deviation = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
    real_units = (vectors - mean) / deviation
    classes = {clip.clip_id: class_of(clip) for clip in real}
    names = config.takes.of(list(classes))
    hidden = {one: np.array([name == other for other in names]) for one, name in zip(classes, names, strict=True)}

    def hits(ids: Sequence[str], units: DoubleArray, prompts: Sequence[str]) -> dict[str, float]:
        nearest = _nearest(units, real_units, np.stack([hidden[prompt] for prompt in prompts]))
        found = [float(list(classes.values())[row] == classes[prompt]) for row, prompt in zip(nearest, prompts, strict=True)]
        return dict(zip(ids, found, strict=True))

    found = {"real": hits(list(classes), real_units, list(classes)), "chance": chance_of(classes, hidden)}
    for done, run in enumerate(runs, 1):
        clips = made_clips(folder, run)
        units = (np.stack([sound_of(clip) for clip in clips]) - mean) / deviation
        prompts = [row["reference"] for row in rows_of(folder, run)]
        found[run.way] = hits([clip.clip_id for clip in clips], units, prompts)
        progress(done, len(runs), "nearest real clips")
    return found


def chance_of(classes: Mapping[str, str], hidden: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, float]:
    """For each real clip: the share of its class among the others that are not hidden from it.

    Examples
    --------
    >>> chance_of({"a": "dog", "b": "dog", "c": "rain"}, {"a": np.array([True, False, False])})
    {'a': 0.5}
    """
    names = np.array(list(classes.values()))
    return {one: float(np.mean(names[~out] == classes[one])) if not out.all() else 0.0 for one, out in hidden.items()}


def sound_of(clip: Clip) -> DoubleArray:
    """(128,) means and deviations over time of a clip's levels and unrest in mel bands; see the backend ``logmel``."""
    samples = read_audio(
        clip.path, sample_rate_hz=logmel.SAMPLE_RATE_HZ, start_s=clip.start_s, duration_s=clip.duration_s
    ).samples
    frames = logmel.features(np.pad(samples, (0, max(0, logmel.STRETCH - len(samples))))).astype(np.float64)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def _nearest(queries: DoubleArray, real: DoubleArray, hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """(n,) rows of the nearest real clips that are not hidden, of (n, m)."""
    distance = ((queries[:, None] - real[None]) ** 2).sum(axis=-1)
    return np.where(hidden, np.inf, distance).argmin(axis=1)


# --- means over seeds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, of each the mean of its classes, with a 95 % interval; None of nothing.

    Attributes
    ----------
    value, low, high
        The mean, and its interval.
    clips
        Values that it is of.
    by_seed
        Mean of each seed.
    """

    value: float | None
    low: float | None
    high: float | None
    clips: int
    by_seed: tuple[float | None, ...]


def seed_mean(
    values: Sequence[Mapping[str, Sequence[float]]],
    *,
    recordings: Sequence[Mapping[str, Sequence[str]]] | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Mean:
    """The mean over seeds of the mean over classes of values.

    Draws take seeds with replacement, and of each the recordings of each class with replacement, with all clips of each: so
    seeds, which differ in weights, in clips, and in which class is rare, vary as they would with other seeds, and clips of one
    recording stand or fall together. Of two or three seeds such draws know too little of how seeds vary, so the interval is at
    least Student's: mean +- t s / sqrt(n), with the standard deviation s of the means of n seeds.

    Parameters
    ----------
    values
        For each seed: values of clips by class; a seed may have none.
    recordings
        The recording of each value, in the same order; None: each is of its own.
    bounds
        Of what a mean can be; the interval ends there.
    resamples, seed
        Of the draws.

    Examples
    --------
    >>> found = seed_mean([{"dog": [1, 1, 1, 1], "rain": [0, 0, 0, 0]}, {"dog": [1, 1, 0, 0]}])
    >>> found.value, found.by_seed, found.low == found.high
    (0.5, (0.5, 0.5), False)
    >>> two = seed_mean([{"dog": [0.4] * 9}, {"dog": [0.6] * 9}], bounds=(0, 1))
    >>> two.value, two.low, two.high  # 12.7 * 0.1 to either side
    (0.5, 0.0, 1.0)
    >>> takes = seed_mean([{"dog": [1, 1, 1, 0, 0, 0]}], recordings=[{"dog": list("aaabbb")}])
    >>> takes.value, takes.low, takes.high  # of two recordings, either may be drawn twice
    (0.5, 0.0, 1.0)
    >>> seed_mean([{}]).value is None
    True
    """
    sets = [
        [
            _by_recording(one, None if recordings is None else recordings[row][name])
            for name, one in of_class.items()
            if len(one)
        ]
        for row, of_class in enumerate(values)
    ]
    by_seed = tuple(float(np.mean([_of_class(one) for one in one_seed])) if one_seed else None for one_seed in sets)
    there = [one_seed for one_seed in sets if one_seed]
    if not there:
        return Mean(None, None, None, 0, by_seed)
    means = np.array([mean for mean in by_seed if mean is not None])
    value = float(means.mean())
    drawn = percentile_interval(value, _draws(there, resamples, seed))
    half = 0.0
    if len(means) > 1:
        half = float(student.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    low, high = max(min(drawn.low, value - half), bounds[0]), min(max(drawn.high, value + half), bounds[1])
    return Mean(value, float(low), float(high), sum(len(one) for of_class in values for one in of_class.values()), by_seed)


def _by_recording(values: Sequence[float], recordings: Sequence[str] | None) -> DoubleArray:
    """(recordings, 2) sum and number of the values of each."""
    counted = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    if recordings is None:
        return counted
    names, place = np.unique(recordings, return_inverse=True)
    found = np.zeros((len(names), 2))
    np.add.at(found, place, counted)
    return found


def _of_class(sums: DoubleArray) -> float:
    """The mean of a class, of (recordings, 2) sums and numbers of values."""
    total, number = sums.sum(axis=0)
    return float(total / number)


def _draws(there: Sequence[Sequence[DoubleArray]], resamples: int, seed: int) -> DoubleArray:
    """(resamples,) bootstrap means, of sums and numbers of values by seed, class and recording."""
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for number in range(resamples):
        chosen = rng.integers(len(there), size=len(there))
        draws[number] = np.mean(
            [np.mean([_of_class(one[rng.integers(len(one), size=len(one))]) for one in there[row]]) for row in chosen]
        )
    return draws


def bins_of(edges: Sequence[int]) -> list[tuple[str, int, int | None]]:
    """Name, least, and first beyond, of the bins of frequency; as :class:`~auscult.metrics.longtail.Bin` names them.

    >>> [name for name, _, _ in bins_of((1, 4, 10))]
    ['0', '1-3', '4-9', '10+']
    """
    from ...metrics.longtail import Bin

    pairs = zip((0, *edges), (*edges, None), strict=True)
    return [(Bin(least, below, 0, 0, None).name, least, below) for least, below in pairs]


def of_bin(values: Mapping[str, Any], frequency: Mapping[str, int], least: int, below: int | None) -> dict[str, Any]:
    """What is of the classes of a bin."""
    return {
        name: one for name, one in values.items() if frequency[name] >= least and (below is None or frequency[name] < below)
    }
