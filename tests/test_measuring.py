"""From features to scores: what a family refuses, what it holds at once, and what changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from auscult.descriptors import DescriptorSpec
from auscult.metrics.embeddings import Backend, Embedded
from auscult.metrics.features import AudioPolicy
from auscult.metrics.featureset import CLIP_SCHEMA, FeatureSet
from auscult.metrics.intervals import Interval
from auscult.metrics.measuring import FAMILIES, Family, Task
from auscult.store import SKIPPED_SCHEMA

DIMENSION = 6


def backend(*, frechet: str = "fd", **settings: Any) -> Backend:
    def unused(samples: np.ndarray) -> Embedded:
        raise AssertionError("the features are planted")

    return Backend(
        DescriptorSpec("planted", 1), 16_000, settings.pop("dimension", DIMENSION), 1, frechet, "planted", unused, **settings
    )


def planted(
    frames: Sequence[np.ndarray],
    *,
    container: str = "wav",
    flags: Sequence[Sequence[str]] | None = None,
    logits: np.ndarray | None = None,
) -> FeatureSet:
    """A set of clips of these frames, in the order given."""
    counts = [len(one) for one in frames]
    rows = [
        {
            "key": hashlib.sha256(f"{container} {one.tobytes().hex()}".encode()).hexdigest(),
            "clip_id": f"{n}.{container}",
            "path": f"{n}.{container}",
            "start_s": 0.0,
            "labels": [],
            "sample_digest": hashlib.sha256(one.tobytes()).hexdigest(),
            "duration_s": 1.0,
            "sample_rate_hz": 16_000,
            "channels": 1,
            "peak": 1.0,
            "flags": list(flags[n]) if flags else [],
            "n_frames": len(one),
        }
        for n, one in enumerate(frames)
    ]
    return FeatureSet(
        spec="planted/1()",
        policy=AudioPolicy(),
        clips=pa.Table.from_pylist(rows, CLIP_SCHEMA),
        skipped=pa.Table.from_pylist([], SKIPPED_SCHEMA),
        dimension=frames[0].shape[1],
        _stored=np.concatenate(frames).astype(np.float32),
        _starts=np.cumsum([0, *counts[:-1]]),
        _logits=logits,
    )


def sounds(seed: int, n_clips: int, *, n_frames: int = 3, d: int = DIMENSION, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(shift, 1, d) + 0.3 * rng.normal(size=(n_frames, d))).astype(np.float32) for _ in range(n_clips)]


def family(metric: str) -> Family:
    return next(one for one in FAMILIES if metric in one.metrics)


def scores(metric: str, task: Task) -> dict[str, Interval]:
    return family(metric).measure(task)


def test_a_copy_in_another_container_is_the_same_clip_to_the_kernel_distance() -> None:
    """Its file has another digest, its samples the same: it is not compared with itself."""
    frames = sounds(0, 30)
    real = planted([*frames, *sounds(1, 30)])
    one, other = (Task(backend(), planted(frames, container=kind), real, resamples=9) for kind in ("wav", "flac"))
    assert set(one.generated.clips["key"].to_pylist()) <= set(real.clips["key"].to_pylist())
    assert not set(other.generated.clips["key"].to_pylist()) & set(real.clips["key"].to_pylist())
    assert scores("kad", one) == scores("kad", other)
