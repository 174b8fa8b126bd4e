"""What a score has to be read against: what real audio gets, what noise and silence get.

A distance of 3.1 says nothing by itself. Beside it stand the distance of one half of the reference from the other (nothing real
is closer, at this size), and those of white noise and of silence (nothing that anybody would keep is as far).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..engine import HERE, Engine
from ..folders import Progress, no_progress
from .embeddings import Backend
from .features import FeatureSet, embed_sounds

IntArray = npt.NDArray[np.int64]

SPLITS = 5  # halvings of the reference, whose scores are averaged: one alone is as uncertain as the score itself
MOST_SOUNDS = 200  # of noise and of silence: as a bracket, two digits of their score are plenty


@dataclass(frozen=True)
class Stand:
    """Sounds that stand in for clips of the reference: their features, and which row of the reference each stands for."""

    features: FeatureSet
    rows: IntArray


@dataclass(frozen=True)
class Brackets:
    """Sets that scores are compared with.

    Attributes
    ----------
    noise, silence
        White noise and digital silence, as long as clips of the reference, the noise as loud (same peak).
    halves
        Pairs of disjoint halves of the reference, as rows of its clips.
    """

    noise: Stand
    silence: Stand
    halves: tuple[tuple[IntArray, IntArray], ...]


def make_brackets(
    reference: FeatureSet,
    backend: Backend,
    *,
    cache: Path,
    seed: int = 0,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> Brackets:
    """Embed noise and silence under the reference's policy, and halve the reference.

    Noise is white and Gaussian; like the clips, it is brought to the policy's rate first, and is white up to half of that.

    Raises
    ------
    ModelError
        The backend gives values that are not finite.
    """
    order = np.random.default_rng(seed).permutation(len(reference))
    rows = np.sort(order[:MOST_SOUNDS]).astype(np.int64)

    def stand(kind: str) -> Stand:
        sounds = _sounds(kind, reference, rows, backend, seed)
        features = embed_sounds(sounds, backend, cache=cache, policy=reference.policy, engine=engine, progress=progress)
        named = [int(clip_id.rpartition("-")[2]) for clip_id in features.clips["clip_id"].to_pylist()]
        return Stand(features, np.array(named, np.int64))

    return Brackets(stand("noise"), stand("silence"), halve(len(reference), seed))


def _sounds(
    kind: str, reference: FeatureSet, rows: IntArray, backend: Backend, seed: int
) -> Iterator[tuple[str, str, npt.NDArray[np.float32]]]:
    """``(clip id, what the samples depend on, samples)``, a sound for each of the rows."""
    durations, peaks = (reference.clips[name].to_pylist() for name in ("duration_s", "peak"))
    for row in rows.tolist():
        n = max(backend.shortest_samples, round(durations[row] * backend.sample_rate_hz))
        if kind == "silence":
            yield f"silence-{row}", f"silence-{n}", np.zeros(n, np.float32)
            continue
        noise = np.random.default_rng([seed, row]).standard_normal(n, np.float32)
        noise *= peaks[row] / np.abs(noise).max()
        yield f"noise-{row}", f"noise-{seed}-{row}-{n}-{peaks[row]!r}", noise


def halve(clips: int, seed: int) -> tuple[tuple[IntArray, IntArray], ...]:
    """``SPLITS`` random halvings of so many clips; with an odd number one clip is left out.

    Examples
    --------
    >>> [[len(half) for half in halves] for halves in halve(5, 0)][:2]
    [[2, 2], [2, 2]]
    """
    rng = np.random.default_rng(seed)
    half = clips // 2
    drawn = [rng.permutation(clips).astype(np.int64) for _ in range(SPLITS)]
    return tuple((np.sort(order[:half]), np.sort(order[half : 2 * half])) for order in drawn)
