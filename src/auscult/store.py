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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .descriptors import DescriptorSpec
from .engine import Engine
from .errors import DescriptorMismatchError, StoreError
from .folders import CARD, atomic_file, damaged_files, read_card
from .search.blocks import Block, Matrix, as_blocks, load_all, taken
from .search.exact import FloatArray

KIND = "store"
CLIPS, SKIPPED, PARTS = "clips.parquet", "skipped.parquet", "vectors"
BLOCK_ROWS = 65536  # of vectors on disk read at once, at most: what a checkpoint may lose and a task of a cluster is
BLOCKS_AT_ONCE = 4  # queries, a block as it is kept, its unit rows, and the next one that is being read

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
    """Descriptor vectors, in memory or on disk.

    Attributes
    ----------
    vectors
        (n, d) float32, or uint8 levels; or blocks of them that are read when they are needed, each holding whole clips.
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

    vectors: Matrix
    clip: npt.NDArray[np.int64]
    start_s: npt.NDArray[np.float64]
    clips: pa.Table
    window_s: float
    spec: DescriptorSpec

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def clip_ids(self) -> npt.NDArray[np.str_]:
        """(number of clips,) the ids, in the order of ``clips``."""
        return np.asarray(self.clips["clip_id"].to_pylist(), dtype=np.str_)

    def subset(self, clip_rows: npt.NDArray[np.int64]) -> Vectors:
        """Some rows of ``clips`` only, in the given order of rows; in memory."""
        position = np.full(self.clips.num_rows, -1, np.int64)
        position[clip_rows] = np.arange(len(clip_rows))
        keep = np.flatnonzero(position[self.clip] >= 0)
        keep = keep[np.argsort(position[self.clip[keep]], kind="stable")]
        return Vectors(
            taken(self.vectors, keep),
            position[self.clip[keep]],
            self.start_s[keep],
            self.clips.take(clip_rows),
            self.window_s,
            self.spec,
        )

    def without(self, clip_rows: npt.NDArray[np.int64]) -> Vectors:
        """All rows of ``clips`` but these, in the order of the rows; on disk where the vectors are."""
        dropped = np.zeros(self.clips.num_rows, np.bool_)
        dropped[clip_rows] = True
        if not dropped.any():
            return self
        position = np.cumsum(~dropped) - 1
        rows = ~dropped[self.clip]
        vectors = self.vectors[rows] if isinstance(self.vectors, np.ndarray) else _filtered(self.vectors, rows)
        clips = self.clips.filter(pa.array(~dropped))
        return Vectors(vectors, position[self.clip[rows]], self.start_s[rows], clips, self.window_s, self.spec)

    def split(self, n_clips: int) -> tuple[Vectors, Vectors]:
        """The first ``n_clips`` clips and the others, where no block holds vectors of both."""
        at = int(np.searchsorted(self.clip, n_clips))
        before: Matrix
        after: Matrix
        if isinstance(self.vectors, np.ndarray):
            before, after = self.vectors[:at], self.vectors[at:]
        else:
            before = [block for block in self.vectors if block.stop <= at]
            after = [Block(block.start - at, block.stop - at, block.load) for block in self.vectors if block.start >= at]
        clip, start_s, clips = self.clip, self.start_s, self.clips
        first = Vectors(before, clip[:at], start_s[:at], clips.slice(0, n_clips), self.window_s, self.spec)
        second = Vectors(after, clip[at:] - n_clips, start_s[at:], clips.slice(n_clips), self.window_s, self.spec)
        return first, second

    def joined(self, other: Vectors) -> Vectors:
        """The clips of both, these first; on disk unless both are in memory."""
        n, vectors = len(self), self.vectors
        if isinstance(vectors, np.ndarray) and isinstance(other.vectors, np.ndarray):
            vectors = np.concatenate([vectors, other.vectors])
        else:
            after = [Block(block.start + n, block.stop + n, block.load) for block in as_blocks(other.vectors)]
            vectors = [*as_blocks(vectors), *after]
        return Vectors(
            vectors,
            np.concatenate([self.clip, other.clip + self.clips.num_rows]),
            np.concatenate([self.start_s, other.start_s]),
            pa.concat_tables([self.clips, other.clips]),
            self.window_s,
            self.spec,
        )

    def panels(self, engine: Engine) -> Iterator[tuple[slice, FloatArray]]:
        """The vectors part by part, in memory: which rows, and they themselves (float32)."""
        for block in as_blocks(self.vectors):
            vectors = block.load().astype(np.float32, copy=False)
            rows = max(1, engine.memory_bytes // (BLOCKS_AT_ONCE * 4 * vectors.shape[1]))
            for start in range(0, len(vectors), rows):
                stop = min(start + rows, len(vectors))
                yield slice(block.start + start, block.start + stop), vectors[start:stop]

    @property
    def loaded(self) -> FloatArray:
        """(n, d) the vectors in memory, read if they are on disk."""
        return self.vectors if isinstance(self.vectors, np.ndarray) else load_all(self.vectors)


def _filtered(blocks: Sequence[Block], rows: npt.NDArray[np.bool_]) -> tuple[Block, ...]:
    """The blocks with the marked rows only."""
    kept, start = [], 0
    for block in blocks:
        here = rows[block.start : block.stop]
        if count := int(np.count_nonzero(here)):
            kept.append(Block(start, start + count, partial(_load_rows, block, here)))
            start += count
    return tuple(kept)


def _load_rows(block: Block, rows: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return block.load()[rows]


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

    @property
    def part_counts(self) -> list[int]:
        """How many vectors each shard holds."""
        return [pq.read_metadata(path).num_rows for path in self.part_paths]

    def load(self, memory_bytes: int | None = None) -> Vectors:
        """Read the vectors into memory, or leave them on disk if they would take more than ``memory_bytes``.

        On disk they are read block by block, several blocks in ``memory_bytes``: see :class:`Vectors`.

        Raises
        ------
        StoreError
            A file of the store is missing or damaged.
        """
        clips, dimension = self.clips(), int(self.card["dimension"])
        ids = clips["clip_id"].combine_chunks()
        owners, starts, counts = [], [], []
        for path in self.part_paths:
            table = read_part_table(path, ["clip_id", "start_s"])
            owners.append(pc.index_in(table["clip_id"], value_set=ids).to_numpy())
            starts.append(table["start_s"].to_numpy())
            counts.append(table.num_rows)
        if sum(counts) != self.card["counts"]["windows"]:
            raise StoreError(f"{self.path}: expected {self.card['counts']['windows']} vectors, found {sum(counts)}")
        size = 4 * dimension * sum(counts)
        whole = memory_bytes is None or size <= memory_bytes
        rows = size if memory_bytes is None else max(1, min(BLOCK_ROWS, memory_bytes // (BLOCKS_AT_ONCE * 8 * dimension)))
        blocks = _grouped(self.part_paths, counts, rows)
        return Vectors(
            _in_memory(blocks, dimension) if whole else blocks,
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
    matrix = _kept_matrix(block)
    return matrix if matrix.dtype == np.uint8 else matrix.astype(np.float32, copy=False)


def _kept_matrix(block: pa.Table) -> npt.NDArray[Any]:
    column = block["vector"].combine_chunks()
    matrix: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
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


def _grouped(paths: list[Path], counts: list[int], rows: int) -> tuple[Block, ...]:
    """Shards as blocks, as many to a block as make up about ``rows`` rows."""
    blocks: list[Block] = []
    group: list[Path] = []
    start = stop = 0
    for path, count in zip(paths, counts, strict=True):
        if group and stop + count - start > rows:
            blocks.append(Block(start, stop, partial(_load_shards, tuple(group))))
            group, start = [], stop
        group.append(path)
        stop += count
    if stop > start:
        blocks.append(Block(start, stop, partial(_load_shards, tuple(group))))
    return tuple(blocks)


def _in_memory(blocks: tuple[Block, ...], dimension: int) -> npt.NDArray[Any]:
    return load_all(blocks) if blocks else np.zeros((0, dimension), np.float32)


def _load_shards(paths: tuple[Path, ...]) -> npt.NDArray[Any]:
    """The vectors of some shards, as they are kept."""
    return np.concatenate([_kept_matrix(read_part_table(path, ["vector"])) for path in paths])


def read_part_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A shard's table (``clip_id, start_s, vector``), or some columns of it; a ``StoreError`` if it is damaged."""
    return _read_table(path, columns)


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: missing or damaged ({error}); see `auscult info --verify {path.parent}`") from error
