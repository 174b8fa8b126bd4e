"""The features of a set of clips, in one order that depends on nothing but what the clips sound like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .cache import FACTS
from .inference import AudioPolicy

FloatArray = npt.NDArray[np.float32]

BLOCK_BYTES = 64 << 20

CLIP_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("start_s", pa.float64()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        *FACTS,
        ("n_frames", pa.int32()),
    ]
)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of a set of clips, in canonical order: by the digest of the samples, then of the file, then by clip id.

    Draws go by this order. A WAV and a FLAC of equal samples therefore take part in the same draws, and score the same.

    Attributes
    ----------
    spec
        Of the backend, as text.
    policy
        Under which they were computed.
    clips
        One row a clip: ``key`` (of its content), ``clip_id, path, start_s, caption, labels, sha256, sample_digest, duration_s,
        sample_rate_hz`` (of the file), ``channels, peak, flags, n_frames``.
    skipped
        What has no features, and why: ``path, reason, kind, clip_id``.
    dimension
        Length of a frame's features.
    """

    spec: str
    policy: AudioPolicy
    clips: pa.Table
    skipped: pa.Table
    dimension: int
    _stored: FloatArray = field(repr=False)  # frames of distinct contents; duplicates share theirs
    _starts: npt.NDArray[np.int64] = field(repr=False)  # (clips,) the first frame of each
    _logits: FloatArray | None = field(repr=False)

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    @property
    def frame_counts(self) -> npt.NDArray[np.int64]:
        """(clips,) frames of each clip."""
        return self.clips["n_frames"].to_numpy().astype(np.int64)

    @property
    def clip_of_frame(self) -> npt.NDArray[np.int64]:
        """(frames,) the row of ``clips`` that each frame belongs to."""
        return np.repeat(np.arange(len(self)), self.frame_counts)

    def blocks(self) -> Iterator[FloatArray]:
        """Yield all frames in canonical order, as blocks (k, dimension) float32 of at most 64 MB."""
        rows = max(1, BLOCK_BYTES // (4 * self.dimension))
        held: list[FloatArray] = []
        free = rows
        for start, count in zip(self._starts.tolist(), self.frame_counts.tolist(), strict=True):
            first, end = start, start + count
            while first < end:
                held.append(self._stored[first : min(end, first + free)])
                first += len(held[-1])
                free -= len(held[-1])
                if not free:
                    yield np.concatenate(held)
                    held, free = [], rows
        if held:
            yield np.concatenate(held)

    def features(self) -> FloatArray:
        """All frames at once, (frames, dimension) float32."""
        matrix = np.empty((int(self.frame_counts.sum()), self.dimension), np.float32)
        done = 0
        for block in self.blocks():
            matrix[done : done + len(block)] = block
            done += len(block)
        return matrix

    def frames_of(self, row: int) -> FloatArray:
        """(frames, dimension) of one clip."""
        start = self._starts[row]
        return np.array(self._stored[start : start + int(self.frame_counts[row])])

    def logits(self) -> FloatArray | None:
        """(clips, classes) float32; None where the backend has no classes."""
        return None if self._logits is None else self._logits.copy()

    def subset(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> FeatureSet:
        """The clips of these rows, in the order given (sorted rows keep the canonical order); features are not copied."""
        index = np.asarray(rows, np.int64)
        logits = None if self._logits is None else self._logits[index]
        return replace(self, clips=self.clips.take(index), _starts=self._starts[index], _logits=logits)
