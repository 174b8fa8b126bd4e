"""A corpus described once: a folder of vectors and what they belong to, written in atomic shards.

    STORE/card.json                            spec, counts, digests of the tables, names and rows of the parts;
                                               written last, so it marks a whole store
          clips.parquet                        one row a clip: id, path, caption, digests, duration, flags ...
          skipped.parquet                      inputs that were not described, and why
          vectors/part-NUMBER-DIGEST.parquet   clip_id, start_s, vector

The folder lies on a disk or at a URL. Each part carries in its footer the rows of the clips that it answers for with a digest
of them, and in its name the digest of its bytes, so one rename or one upload commits a shard with all that belongs to it;
``clips.parquet`` and ``skipped.parquet`` are gathered from the footers at the end.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .descriptors import DescriptorSpec
from .engine import Engine
from .errors import DescriptorMismatchError, StoreError
from .folders import CARD
from .search.blocks import Block, Matrix
from .storage import Folder, Place, digest_of, in_order, join, open_folder, read_folder_card
from .storage.folder import file_digest_in
from .storage.remote import READERS
from .vectors import Vectors, rows_at_once

KIND = "store"
CLIPS, SKIPPED, PARTS = "clips.parquet", "skipped.parquet", "vectors"
PARTS_AHEAD = 4  # shards read ahead of the one that is wanted, from a URL

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
_FOOTER_DIGEST = b"auscult.rows.digest"


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
class DescriptorStore:
    """A complete store; see the module's docstring for its files. It can be sent to another process.

    Attributes
    ----------
    folder
        The folder that it lies in.
    card
        Content of ``card.json``.
    spec
        The descriptor that it was made with.
    """

    folder: Folder
    card: dict[str, Any]
    spec: DescriptorSpec

    @classmethod
    def open(cls, path: str | Path) -> DescriptorStore:
        """Open a complete store at a local path or a URL.

        Raises
        ------
        StoreError
            No store is here, or a run that was writing it was stopped, or an earlier version of auscult wrote it.
        StorageError
            The place cannot be reached, or denies.
        """
        return open_store(open_folder(path))

    @property
    def path(self) -> Place:
        """Where it lies: a path, or a URL without credentials."""
        return self.folder.place

    @property
    def part_names(self) -> list[str]:
        """The names of the shards, in order; ``card["parts"]`` says how many vectors each holds."""
        return sorted(self.card["parts"], key=part_order)

    @property
    def part_paths(self) -> list[Place]:
        """The shards, in order."""
        return [join(self.path, f"{PARTS}/{name}") for name in self.part_names]

    def clips(self) -> pa.Table:
        """The table of described clips."""
        return self._table(CLIPS)

    def skipped(self) -> pa.Table:
        """The table of skipped inputs and reasons."""
        return self._table(SKIPPED)

    def block(self, name: str) -> pa.Table:
        """One shard (``clip_id, start_s, vector``) by its name, its bytes checked against the digest there.

        Raises
        ------
        StoreError
            It is missing or damaged.
        """
        return read_shard(self.folder, name)

    def blocks(self) -> Iterator[pa.Table]:
        """Yield the shards one by one (``clip_id, start_s, vector``)."""
        return in_order(self.block, self.part_names, threads=1 if isinstance(self.path, Path) else PARTS_AHEAD)

    @property
    def part_counts(self) -> list[int]:
        """How many vectors each shard holds."""
        return [self.card["parts"][name] for name in self.part_names]

    def load(self, engine: Engine | None = None) -> Vectors:
        """Read the vectors into memory, or leave them where they are if they would take more than the engine has for them.

        Then they are read block by block, by whoever searches them: see :class:`~auscult.vectors.Vectors`.

        Raises
        ------
        StoreError
            A file of the store is missing or damaged.
        """
        clips, dimension, counts = self.clips(), int(self.card["dimension"]), self.part_counts
        if sum(counts) != self.card["counts"]["windows"]:
            raise StoreError(f"{self.path}: expected {self.card['counts']['windows']} vectors, found {sum(counts)}")
        matrix: Matrix
        if engine is None or 4 * dimension * sum(counts) <= engine.resident_bytes:
            read = [(vector_matrix(block), block.select(["clip_id", "start_s"])) for block in self.blocks()]
            matrix = np.concatenate([part for part, _ in read]) if read else np.zeros((0, dimension), np.float32)
            places = [place for _, place in read]
        else:
            matrix = self._grouped(rows_at_once(engine, dimension))
            places = [self._columns(name, ["clip_id", "start_s"]) for name in self.part_names]
        empty = pa.table({"clip_id": pa.array([], pa.string()), "start_s": pa.array([], pa.float64())})
        windows = pa.concat_tables([empty, *places])
        owners = pc.index_in(windows["clip_id"], value_set=clips["clip_id"].combine_chunks())
        return Vectors(
            matrix,
            owners.to_numpy().astype(np.int64),
            windows["start_s"].to_numpy(),
            clips,
            float(self.card["window_s"]),
            self.spec,
        )

    def _columns(self, name: str, columns: list[str]) -> pa.Table:
        """Some columns of a shard, whose bytes are not checked here: they are when the vectors are read."""
        try:
            with self.folder.open(f"{PARTS}/{name}") as handle:
                return pq.read_table(handle, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise damage(self.folder, f"{PARTS}/{name}", str(error)) from error

    def _grouped(self, rows: int) -> tuple[Block, ...]:
        """The shards as blocks, as many to a block as make up about ``rows`` rows."""
        blocks: list[Block] = []
        group: list[str] = []
        start = stop = 0
        for name, count in zip(self.part_names, self.part_counts, strict=True):
            if group and stop + count - start > rows:
                blocks.append(Block(start, stop, partial(_load_shards, self.folder, tuple(group))))
                group, start = [], stop
            group.append(name)
            stop += count
        if stop > start:
            blocks.append(Block(start, stop, partial(_load_shards, self.folder, tuple(group))))
        return tuple(blocks)

    def verify(self) -> list[str]:
        """Recompute every digest; returns what is wrong, one line an item (empty: all is well)."""
        digests = {**self.card["tables"], **{f"{PARTS}/{name}": digest_in(name) for name in self.part_names}}
        problems = damaged(self.folder, digests)
        for entry in self.folder.below(PARTS).list():
            if entry.name.endswith(".parquet") and entry.name not in self.card["parts"]:
                problems[f"{PARTS}/{entry.name}"] = "not named by the card"
        return [f"{name}: {problem}" for name, problem in problems.items()]

    def _table(self, name: str) -> pa.Table:
        return checked_table(self.folder, name, self.card["tables"][name])


def open_store(folder: Folder) -> DescriptorStore:
    """:meth:`DescriptorStore.open` of a folder."""
    if not folder.exists(CARD) and any(_PART.match(entry.name) for entry in folder.below(PARTS).list()):
        raise StoreError(f"{folder.place}: the store is not complete; give the same `auscult index` command again to finish it")
    card = read_folder_card(folder, KIND)
    if any(not isinstance(rows, int) for rows in card["parts"].values()):
        raise StoreError(f"{folder.place}: written by an earlier version of auscult; index the source again, into a new folder")
    return DescriptorStore(folder, card, DescriptorSpec.parse(card["spec"]))


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


def _load_shards(folder: Folder, names: tuple[str, ...]) -> npt.NDArray[Any]:
    """The vectors of some shards, as they are kept."""
    return np.concatenate([_kept_matrix(read_shard(folder, name)) for name in names])


def read_shard(folder: Folder, name: str) -> pa.Table:
    """One shard of the store at ``folder``, its bytes checked against the digest in its name."""
    return checked_table(folder, f"{PARTS}/{name}", digest_in(name))


# --- shards -----------------------------------------------------------------------------------------------------------

_PART = re.compile(r"part-(\d{5,})(?:-([0-9a-f]{32}))?\.parquet")


class PartOrder(NamedTuple):
    """Shards are in the order of their numbers."""

    number: int
    digest: str


def part_order(name: str) -> PartOrder:
    """The number and the digest in the name of a shard.

    Raises
    ------
    StoreError
        The name is not that of a shard, or holds no digest, as those of an earlier version.

    Examples
    --------
    >>> part_order("part-00012-0123456789abcdef0123456789abcdef.parquet").number
    12
    """
    found = _PART.fullmatch(name)
    if found is None or found[2] is None:
        raise StoreError(f"{name}: not a shard of this version of auscult; index the source again, into a new folder")
    return PartOrder(int(found[1]), found[2])


def digest_in(name: str) -> str:
    """The digest that a shard's name says it has."""
    return part_order(name).digest


def list_parts(folder: Folder) -> list[str]:
    """Names of the shards in the store at ``folder``, whether it is complete or not, in order."""
    names = [entry.name for entry in folder.below(PARTS).list() if _PART.fullmatch(entry.name)]
    try:
        return sorted(names, key=part_order)
    except StoreError as error:
        raise StoreError(f"{folder.place}: {error}") from None


def write_part(
    folder: Folder,
    number: int,
    part: Part,
    owners: list[str],
    starts: list[float],
    vectors: npt.NDArray[Any],
    spec: DescriptorSpec,
) -> str:
    """Write one shard of the store at ``folder`` and return its name; the descriptor and the rows that it answers for go into
    its footer."""
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
    rows = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
    table = table.replace_schema_metadata({_FOOTER: rows, _FOOTER_DIGEST: digest_of(rows)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False)
    data = buffer.getvalue()
    name = f"part-{number:05d}-{digest_of(data)}.parquet"
    folder.write(f"{PARTS}/{name}", data)
    return name


def read_part(folder: Folder, name: str) -> Part:
    """Read what a shard answers for, from its footer alone, whose rows are checked against the digest beside them.

    Raises
    ------
    StoreError
        The file is damaged.
    """
    try:
        with folder.open(f"{PARTS}/{name}") as handle:
            footer = pq.read_metadata(handle).metadata
        if digest_of(footer[_FOOTER]) != footer[_FOOTER_DIGEST].decode("ascii", "replace"):
            raise damage(folder, f"{PARTS}/{name}", "the rows in its footer are not those that were written")
        rows = json.loads(footer[_FOOTER])
        return Part(rows["clips"], rows["skipped"], rows["spec"], rows["dtype"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise damage(folder, f"{PARTS}/{name}", str(error)) from error


def read_parts(folder: Folder, names: list[str]) -> Iterator[tuple[str, Part]]:
    """(name, what it answers for) of shards in the given order; those at a URL are asked for several at once."""

    def read(name: str) -> tuple[str, Part]:
        return name, read_part(folder, name)

    return in_order(read, names, threads=1 if isinstance(folder.place, Path) else READERS)


def damaged(folder: Folder, digests: dict[str, str]) -> dict[str, str]:
    """By name, what is wrong with files that are missing or whose bytes are not those that were written."""

    def problem(name: str) -> tuple[str, str]:
        try:
            right = file_digest_in(folder, name) == digests[name]
        except FileNotFoundError:
            return name, "missing"
        return name, "" if right else "its bytes are not those that were written"

    threads = 2 if isinstance(folder.place, Path) else READERS
    return {name: what for name, what in in_order(problem, digests, threads=threads) if what}


def damage(folder: Folder, name: str, reason: str) -> StoreError:
    """The error that says that a file of a store is damaged."""
    what = " ".join(reason.split())  # in one line
    return StoreError(
        f"{join(folder.place, name)}: missing or damaged ({what}); `auscult info --verify {folder.place}` lists what is, and "
        "the `auscult index` command given again with --repair makes it anew"
    )


def checked_table(folder: Folder, name: str, digest: str) -> pa.Table:
    """Read a table of the store at ``folder``, its bytes checked on the way: once they are in memory, that costs a fiftieth
    of decoding them.

    Raises
    ------
    StoreError
        It is missing or damaged.
    """
    try:
        data = folder.read(name)
        if digest_of(data) != digest:
            raise damage(folder, name, "its bytes are not those that were written")
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise damage(folder, name, str(error)) from error
