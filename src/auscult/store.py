"""A corpus described once: a folder of vectors and what they belong to, written in atomic shards.

    STORE/card.json               spec, counts, digests of every other file; written last, so it marks a whole store
          clips.parquet           one row a clip: id, path, caption, digests, duration, flags ...
          skipped.parquet         inputs that were not described, and why
          vectors/part-*.parquet  clip_id, start_s, vector

Each part carries in its footer the rows of the clips that it answers for, so one rename commits a shard with all that
belongs to it; ``clips.parquet`` and ``skipped.parquet`` are gathered from the footers at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .descriptors import DescriptorSpec
from .errors import DescriptorMismatchError, StoreError
from .folders import CARD, atomic_file, damaged_files, read_card

KIND = "store"
CLIPS, SKIPPED, PARTS = "clips.parquet", "skipped.parquet", "vectors"

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("sha256", pa.string()),
        ("sample_digest", pa.string()),
        ("sample_rate_hz", pa.int32()),
        ("channels", pa.int32()),
        ("peak", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("n_windows", pa.int32()),
        ("padding_s", pa.float64()),
    ]
)
SKIPPED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("kind", pa.string()), ("clip_id", pa.string())])
_FOOTER = b"auscult.rows"


@dataclass(frozen=True)
class Part:
    """The rows that one shard answers for: described clips and skipped inputs, each with ``key`` and ``state``.

    ``key`` names the input, ``state`` changes when the input does; see ``indexing.py``. ``spec`` and ``dtype`` say how the
    vectors were computed and kept; they are filled in when a shard is read.
    """

    clips: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    spec: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Vectors:
    """Descriptor vectors in memory.

    Attributes
    ----------
    vectors
        (n, d) float32, or uint8 levels.
    clip
        (n,) row of each vector's clip in ``clips``.
    start_s
        (n,) where in its clip each vector's window starts.
    clips
        The table of clips (``clips.parquet``).
    window_s
        Length of a window in seconds.
    spec
        The descriptor.
    """

    vectors: npt.NDArray[Any]
    clip: npt.NDArray[np.int64]
    start_s: npt.NDArray[np.float64]
    clips: pa.Table
    window_s: float
    spec: DescriptorSpec

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def clip_ids(self) -> npt.NDArray[np.str_]:
        """(number of clips,) the ids, in the order of ``clips``."""
        return np.asarray(self.clips["clip_id"].to_pylist(), dtype=np.str_)

    def subset(self, clip_rows: npt.NDArray[np.int64]) -> Vectors:
        """The same for some rows of ``clips`` only, in the given order of rows."""
        position = np.full(self.clips.num_rows, -1, np.int64)
        position[clip_rows] = np.arange(len(clip_rows))
        keep = np.flatnonzero(position[self.clip] >= 0)
        keep = keep[np.argsort(position[self.clip[keep]], kind="stable")]
        return Vectors(
            self.vectors[keep],
            position[self.clip[keep]],
            self.start_s[keep],
            self.clips.take(clip_rows),
            self.window_s,
            self.spec,
        )


@dataclass(frozen=True)
class DescriptorStore:
    """A complete store on disk; see the module's docstring for its files.

    Attributes
    ----------
    path
        The folder.
    card
        Content of ``card.json``.
    spec
        The descriptor that it was made with.
    """

    path: Path
    card: dict[str, Any]
    spec: DescriptorSpec

    @classmethod
    def open(cls, path: str | Path) -> DescriptorStore:
        """Open a complete store.

        Raises
        ------
        StoreError
            No store is here, or a run that was writing it was stopped.
        """
        path = Path(path)
        if not (path / CARD).exists() and (path / PARTS).is_dir():
            raise StoreError(f"{path}: the store is not complete; give the same `auscult index` command again to finish it")
        card = read_card(path, KIND)
        return cls(path, card, DescriptorSpec.parse(card["spec"]))

    @property
    def part_paths(self) -> list[Path]:
        """The shards, in order."""
        return [self.path / PARTS / name for name in sorted(self.card["parts"])]

    def clips(self) -> pa.Table:
        """The table of described clips."""
        return _read_table(self.path / CLIPS)

    def skipped(self) -> pa.Table:
        """The table of skipped inputs and reasons."""
        return _read_table(self.path / SKIPPED)

    def blocks(self) -> Iterator[pa.Table]:
        """Yield the shards one by one (``clip_id, start_s, vector``)."""
        for path in self.part_paths:
            yield _read_table(path)

    def load(self) -> Vectors:
        """Read every vector into memory.

        Raises
        ------
        StoreError
            A file of the store is missing or damaged.
        """
        clips = self.clips()
        vectors, owners, starts = [], [], []
        for block in self.blocks():
            vectors.append(vector_matrix(block))
            owners.append(pc.index_in(block["clip_id"], value_set=clips["clip_id"].combine_chunks()).to_numpy())
            starts.append(block["start_s"].to_numpy())
        n_windows = sum(map(len, vectors))
        if n_windows != self.card["counts"]["windows"]:
            raise StoreError(f"{self.path}: expected {self.card['counts']['windows']} vectors, found {n_windows}")
        return Vectors(
            np.concatenate(vectors) if vectors else np.zeros((0, self.card["dimension"]), np.float32),
            np.concatenate(owners).astype(np.int64) if owners else np.zeros(0, np.int64),
            np.concatenate(starts) if starts else np.zeros(0),
            clips,
            float(self.card["window_s"]),
            self.spec,
        )

    def verify(self) -> list[str]:
        """Recompute every digest; returns what is wrong, one line an item (empty: all is well)."""
        digests = {**self.card["tables"], **{f"{PARTS}/{name}": digest for name, digest in self.card["parts"].items()}}
        problems = damaged_files(self.path, digests)
        for path in sorted((self.path / PARTS).glob("*.parquet")):
            if path.name not in self.card["parts"]:
                problems.append(f"{PARTS}/{path.name}: not named by the card")
        return problems


def check_same_spec(stores: dict[str, DescriptorStore]) -> DescriptorSpec:
    """Refuse stores of unequal descriptors.

    Raises
    ------
    DescriptorMismatchError
        Names the stores and what differs.
    """
    specs = {role: store.spec for role, store in stores.items()}
    if len(set(map(str, specs.values()))) > 1:
        listed = "; ".join(f"{role} {stores[role].path}: {spec}" for role, spec in specs.items())
        raise DescriptorMismatchError(f"these stores were described differently: {listed}. Describe them alike")
    return next(iter(specs.values()))


def vector_matrix(block: pa.Table) -> npt.NDArray[Any]:
    """The ``vector`` column as (n, d) float32, or uint8 if that is how it is kept."""
    column = block["vector"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if flat.dtype != np.uint8:
        flat = flat.astype(np.float32, copy=False)
    matrix: npt.NDArray[Any] = flat.reshape(len(column), column.type.list_size)
    return matrix


def write_part(
    path: Path,
    part: Part,
    owners: list[str],
    starts: list[float],
    vectors: npt.NDArray[Any],
    spec: DescriptorSpec,
) -> None:
    """Write one shard atomically; the descriptor and the rows that it answers for go into its footer."""
    dimension = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    table = pa.table(
        {
            "clip_id": pa.array(owners, pa.string()),
            "start_s": pa.array(starts, pa.float64()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
        }
    )
    content = {"spec": str(spec), "dtype": str(vectors.dtype), "clips": part.clips, "skipped": part.skipped}
    rows = json.dumps(content, ensure_ascii=False, allow_nan=False)
    table = table.replace_schema_metadata({_FOOTER: rows.encode("utf-8")})
    with atomic_file(path) as handle:
        pq.write_table(table, handle, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False)


def read_part(path: Path) -> Part:
    """Read what a shard answers for, from its footer alone.

    Raises
    ------
    StoreError
        The file is damaged.
    """
    try:
        rows = json.loads(pq.read_schema(path).metadata[_FOOTER])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged ({error}); delete this file and give the `auscult index` command again") from error
    return Part(rows["clips"], rows["skipped"], rows["spec"], rows["dtype"])


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: missing or damaged ({error}); see `auscult info --verify {path.parent}`") from error
