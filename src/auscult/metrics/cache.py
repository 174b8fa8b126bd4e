"""Features that were computed once: a folder of shards, whose rows hold the features of one content under its key.

    CACHE/NAME-DIGEST/card.json             what computed them: spec, policy, versions
                      part-DIGEST.parquet   key, facts of the audio, n_frames, frames, logits

``frames`` (n_frames, d) and ``logits`` (classes,) are bytes of little-endian float32, neither lists nor compressed: read
so, they cost what the disk does, and zstd saves no tenth of them.

DIGEST in the folder's name is of the backend's spec (weights and settings), the policy and the kind of device; in a shard's
name it is of its bytes. So a shard is written with one rename, two processes that write at once never want one name for two
contents, and whatever is in a shard that has its digest can be used. Keys are digests of contents: names and times of files
play no part.

Not in the name are the versions of the libraries that compute (torch, torchaudio, transformers, soxr). Another one may change
the last digits and, where it changes a filter bank, more; the card has those that auscult reports, of when the folder was made.
After an update, give another cache where digits matter.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..descriptors import DescriptorSpec
from ..devices import CPU
from ..errors import StorageError, StoreError
from ..folders import CARD, atomic_file, write_card
from ..storage import digest_of

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

KIND = "features"
FORMAT = 1  # to be raised when decoding or the files change
SHARD_BYTES = 64 << 20
SHARD_ROWS = 256  # a kill loses at most this many clips' work: a slow model would take hours to fill a shard by bytes
STALE_S = 24 * 3600  # a temporary file of this age belongs to nobody who is still writing

FACTS = [
    ("sha256", pa.string()),
    ("sample_digest", pa.string()),
    ("duration_s", pa.float64()),
    ("sample_rate_hz", pa.int32()),
    ("channels", pa.int32()),
    ("peak", pa.float64()),
    ("flags", pa.list_(pa.string())),
]
_INDEX = [("key", pa.string()), *FACTS, ("n_frames", pa.int32())]
_SCHEMA = pa.schema([*_INDEX, ("frames", pa.binary()), ("logits", pa.binary())])
_SHARD = re.compile(r"part-([0-9a-f]{32})\.parquet")


class Kept(NamedTuple):
    """Where the features of a key are, and the facts about its audio (:data:`FACTS`)."""

    shard: str
    n_frames: int
    facts: Mapping[str, Any]


def open_cache(root: Path, spec: DescriptorSpec, policy: str, device: str = CPU) -> Path:
    """The folder of a backend under a policy below ``root``, made if it is not there.

    Where the weights lie changes no value while the spec names their digest, so it does not separate caches; nor does the
    number of a device. Its kind does: sums on a GPU are other sums.

    Raises
    ------
    StorageError
        It cannot be made.
    """
    names = {key for key, _ in spec.parameters}
    settings = tuple((key, value) for key, value in spec.parameters if key != "weights" or "digest" not in names)
    kind = device.partition(":")[0]
    identity = f"{FORMAT}\n{DescriptorSpec(spec.name, spec.version, settings)}\n{policy}" + ("" if kind == CPU else f"\n{kind}")
    folder = root / f"{spec.name}-{digest_of(identity.encode())[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CARD).exists():
            write_card(folder, KIND, {"spec": str(spec), "policy": policy, "device": kind, "format": FORMAT})
    except OSError as error:
        raise StorageError(
            f"{folder}: the cache of features cannot be made ({error.strerror}); give --cache a folder that can be written"
        ) from error
    return folder


def survey(folder: Path, wanted: Collection[str] | None = None) -> dict[str, Kept]:
    """What is there of the ``wanted`` keys (None: of all), in shards that are whole.

    Shards that hold any of them are read and checked to the last byte; the others as far as their keys. A damaged shard is
    named in a warning and removed, so that what it held counts as missing.
    """
    _remove_stale_temporaries(folder)
    kept: dict[str, Kept] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        if not _SHARD.fullmatch(path.name):
            continue
        rows = _index_of(path)
        mine = {row.pop("key"): row for row in rows if wanted is None or row["key"] in wanted}
        if mine.keys() - kept.keys() and _read_checked(path) is not None:
            for key, row in mine.items():  # two processes may have written the same: one of them is enough
                kept.setdefault(key, Kept(path.name, row.pop("n_frames"), row))
    return kept


def _index_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a shard without their features; none if it is damaged or gone."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            rows: list[dict[str, Any]] = parquet.read([name for name, _ in _INDEX]).to_pylist()
        return rows
    except FileNotFoundError:  # another process found it damaged
        return []
    except Exception:  # damage shows in many ways, and a lack of memory is none: whether it is one is for the digest to say
        if _read_checked(path) is not None:
            raise
        return []


def _read_checked(path: Path) -> bytes | None:
    """The bytes of a shard if they are those that were written; otherwise it is removed."""
    found = _SHARD.fullmatch(path.name)
    assert found is not None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if digest_of(data) == found[1]:
        return data
    _remove_damaged(path, "its bytes are not those that were written")
    return None


def _remove_damaged(path: Path, reason: str) -> None:
    log.warning("%s: damaged (%s); removed, and its features are computed again", path, " ".join(reason.split()))
    path.unlink(missing_ok=True)


def _remove_stale_temporaries(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink(missing_ok=True)


@dataclass
class ShardWriter:
    """Gathers features into shards; :meth:`flush` writes what is gathered, which a full shard does by itself.

    Attributes
    ----------
    folder
        Of :func:`open_cache`.
    kept
        What is in written shards by key; grows.
    """

    folder: Path
    kept: dict[str, Kept]
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _bytes: int = 0

    def add(self, key: str, facts: Mapping[str, Any], frames: FloatArray, logits: FloatArray | None) -> None:
        """Take the features of a key."""
        arrays = {"frames": _bytes_of(frames), "logits": None if logits is None else _bytes_of(logits)}
        self._rows.append({"key": key, **facts, "n_frames": len(frames), **arrays})
        self._bytes += frames.nbytes + (0 if logits is None else logits.nbytes)
        if self._bytes >= SHARD_BYTES or len(self._rows) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write a shard of what is gathered, if anything is."""
        if not self._rows:
            return
        columns = {name: pa.array([row[name] for row in self._rows], _SCHEMA.field(name).type) for name in _SCHEMA.names}
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns, _SCHEMA),
            sink,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        data = sink.getvalue()
        name = f"part-{digest_of(data)}.parquet"
        with atomic_file(self.folder / name) as handle:
            handle.write(data)
        for row in self._rows:
            facts = {fact: row[fact] for fact, _ in FACTS}
            self.kept.setdefault(row["key"], Kept(name, row["n_frames"], facts))
        self._rows, self._bytes = [], 0


@dataclass(frozen=True)
class Gathered:
    """Features of some keys in their order: ``frames`` (frames, d), the first row of each key, and logits (keys, classes)."""

    frames: FloatArray
    starts: npt.NDArray[np.int64]
    logits: FloatArray | None


def gather(
    folder: Path, kept: Mapping[str, Kept], keys: Sequence[str], *, dimension: int, classes: int, memory_bytes: int
) -> Gathered:
    """Bring the features of ``keys`` into their order, holding one shard at a time.

    Shards are in the order in which clips came in, and metrics want one that depends on nothing but the contents. So every
    shard is read once from its beginning to its end, and its rows are put where they belong: in memory if all of them fit
    into ``memory_bytes``, otherwise in a file without a name in ``folder``, mapped into memory, which the system pages in and
    out and which is gone with the last that uses it. Random reads of the shards would read each of them once a clip.

    Raises
    ------
    StoreError
        A shard has gone or been damaged since it was surveyed.
    StorageError
        The disk has no room for the file.
    """
    counts = np.array([kept[key].n_frames for key in keys], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    frames = _room((int(starts[-1]), dimension), folder, memory_bytes)
    logits = np.zeros((len(keys), classes), np.float32) if classes else None
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for place, key in enumerate(keys):
        places[kept[key].shard][key] = place
    for shard, wanted in sorted(places.items()):
        for key, own_frames, own_logits in _features_in(folder / shard):
            if key in wanted:
                place = wanted[key]
                frames[starts[place] : starts[place + 1]] = own_frames.reshape(-1, dimension)
                if logits is not None:
                    logits[place] = own_logits
    return Gathered(frames, starts[:-1], logits)


def _features_in(path: Path) -> Iterator[tuple[str, FloatArray, FloatArray | None]]:
    """(key, frames, logits), both flat, of each row of a shard."""
    data = _read_checked(path)
    if data is None:
        raise StoreError(f"{path}: was damaged or removed while it was needed; give the same command again")
    table = pq.read_table(pa.BufferReader(data), columns=["key", "frames", "logits"])
    for key, frames, logits in zip(*(table[name] for name in table.column_names), strict=True):
        yield key.as_py(), _array_in(frames), _array_in(logits) if logits.is_valid else None


def _bytes_of(values: FloatArray) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _array_in(scalar: Any) -> FloatArray:
    return np.frombuffer(scalar.as_buffer(), "<f4")


def _room(shape: tuple[int, int], folder: Path, memory_bytes: int) -> FloatArray:
    """An array in memory, or in a file that has no name."""
    size = 4 * math.prod(shape)
    if size <= memory_bytes:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            # reserved, not only declared: a disk that is full has to be an error here, not a signal when a page is written
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
            else:
                handle.truncate(size)
            return np.memmap(handle, np.float32, "r+", shape=shape)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StorageError(
            f"{folder}: {size / 1e9:.1f} GB of features need as much room again while they are used, and the disk is full; "
            "make room, give more memory, or name another cache"
        ) from error
