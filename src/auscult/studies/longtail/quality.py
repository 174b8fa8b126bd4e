"""Do clips sound like their class? What the nearest real clip is of, and means by frequency with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...audio import read_audio
from ...corpus import Clip
from ...folders import Progress
from ...identity import recordings
from ...metrics.embeddings import logmel
from ...metrics.intervals import percentile_interval
from ..sets import read_manifest
from .arms import HELD_OUT, SETS, Run
from .config import LongtailConfig
from .drawing import class_of
from .reading import made_clips

DoubleArray = npt.NDArray[np.float64]
RESAMPLES = 1000
INTERVAL = (
    "Intervals of means are of 95 %, from 1,000 bootstrap draws of seeds and, within each, of the clips of each class. Of two "
    "or three seeds such draws know little: the interval is rather too narrow, so the seeds' own values are beside it."
)


def class_scores(
    config: LongtailConfig, folder: Path, seed: int, runs: Sequence[Run], progress: Progress
) -> dict[str, dict[str, float]]:
    """For each way, and for the real held-out clips themselves (``real``): 1 for a clip whose nearest real held-out clip is of
    its class, else 0.

    Clips are compared by levels of mel bands, means and deviations over time, each standardized by the real clips. Of a real
    clip, those of its own recording are passed over.
    """
    real = read_manifest(folder / SETS / f"s{seed}" / HELD_OUT)
    vectors = np.stack([sound_of(clip) for clip in real])
    mean, deviation = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
    real_units = (vectors - mean) / deviation
    classes = [class_of(clip) for clip in real]
    ids = [clip.clip_id for clip in real]
    taken_from = ids if config.data.group is None else recordings(ids, config.data.group)
    same = np.array([[one == other for other in taken_from] for one in taken_from])
    found = {
        "real": dict(
            zip([clip.clip_id for clip in real], _own_class(real_units, real_units, classes, classes, same), strict=True)
        )
    }
    for done, run in enumerate(runs, 1):
        clips = made_clips(folder, run)
        units = (np.stack([sound_of(clip) for clip in clips]) - mean) / deviation
        hits = _own_class(units, real_units, [class_of(clip) for clip in clips], classes)
        found[run.way] = dict(zip([clip.clip_id for clip in clips], hits, strict=True))
        progress(done, len(runs), "nearest real clips")
    return found


def sound_of(clip: Clip) -> DoubleArray:
    """(128,) means and deviations over time of a clip's levels and unrest in mel bands; see the backend ``logmel``."""
    samples = read_audio(
        clip.path, sample_rate_hz=logmel.SAMPLE_RATE_HZ, start_s=clip.start_s, duration_s=clip.duration_s
    ).samples
    frames = logmel.features(np.pad(samples, (0, max(0, logmel.STRETCH - len(samples))))).astype(np.float64)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def _own_class(
    queries: DoubleArray,
    real: DoubleArray,
    wanted: Sequence[str],
    classes: Sequence[str],
    hidden: npt.NDArray[np.bool_] | None = None,
) -> list[float]:
    distance = ((queries[:, None] - real[None]) ** 2).sum(axis=-1)
    if hidden is not None:
        distance = np.where(hidden, np.inf, distance)
    return [float(classes[row] == name) for row, name in zip(distance.argmin(axis=1), wanted, strict=True)]


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


def seed_mean(values: Sequence[Mapping[str, Sequence[float]]], *, resamples: int = RESAMPLES, seed: int = 0) -> Mean:
    """The mean over seeds of the mean over classes of values.

    Draws take seeds with replacement, and of each the clips of each class with replacement: so seeds, which differ in weights,
    in clips, and in which class is rare, vary as they would with other seeds.

    Parameters
    ----------
    values
        For each seed: values of clips by class; a seed may have none.
    resamples, seed
        Of the interval.

    Examples
    --------
    >>> found = seed_mean([{"dog": [1, 1, 1, 1], "rain": [0, 0, 0, 0]}, {"dog": [1, 1, 0, 0]}])
    >>> found.value, found.by_seed, found.low == found.high
    (0.5, (0.5, 0.5), False)
    >>> seed_mean([{}]).value is None
    True
    """
    sets = [[np.asarray(one, np.float64) for one in of_class.values() if len(one)] for of_class in values]
    by_seed = tuple(float(np.mean([one.mean() for one in one_seed])) if one_seed else None for one_seed in sets)
    there = [one_seed for one_seed in sets if one_seed]
    if not there:
        return Mean(None, None, None, 0, by_seed)
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for number in range(resamples):
        chosen = rng.integers(len(there), size=len(there))
        draws[number] = np.mean(
            [np.mean([one[rng.integers(len(one), size=len(one))].mean() for one in there[row]]) for row in chosen]
        )
    value = float(np.mean([mean for mean in by_seed if mean is not None]))
    interval = percentile_interval(value, draws)
    clips = sum(len(one) for one_seed in there for one in one_seed)
    return Mean(value, interval.low, interval.high, clips, by_seed)


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
