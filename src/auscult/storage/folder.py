"""A folder, wherever it lies, read and written by the names in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import xxhash

from ..errors import StorageError, StoreError
from ..folders import CARD, atomic_file, card_of, package_versions, read_card
from . import remote
from .url import Place, Url, join, place_of

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of a name: whether it is a folder, size in bytes, time of its last change in ns (0: not said)."""

    name: str
    is_folder: bool
    size: int
    mtime_ns: int


class Folder(Protocol):
    """A folder of files that are written as a whole: each is there with all its bytes, or it is not there.

    Names may hold slashes. Whatever a storage refuses is a :class:`~auscult.errors.StorageError` that says what to do; of
    what is not there, reading raises ``FileNotFoundError``.
    """

    @property
    def place(self) -> Place:
        """Where it lies; ``str`` of it may be shown and stored."""

    def below(self, name: str) -> Folder:
        """The folder ``name`` in it."""

    def make(self) -> None:
        """Make it, where folders have to be made."""

    def list(self) -> list[Entry]:
        """What it holds, sorted by name; nothing if there is no such folder. Hidden names are left out."""

    def exists(self, name: str) -> bool:
        """Whether it holds a file of this name."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading and seeking."""

    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file that is there with all its bytes or not at all, and that survives a loss of power."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk of this machine."""

    place: Path

    def below(self, name: str) -> LocalFolder:
        return LocalFolder(self.place / name)

    def make(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)

    def list(self) -> list[Entry]:
        try:
            with os.scandir(self.place) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for entry in shown:
            with suppress(FileNotFoundError):  # a link that leads nowhere, or gone since
                found.append((entry, entry.stat()))
        return sorted(
            (Entry(entry.name, entry.is_dir(), status.st_size, status.st_mtime_ns) for entry, status in found), key=_name
        )

    def exists(self, name: str) -> bool:
        return (self.place / name).is_file()

    def open(self, name: str) -> IO[bytes]:
        return open(self.place / name, "rb")

    def read(self, name: str) -> bytes:
        return (self.place / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with remote.full_disk_explained(self.place / name), atomic_file(self.place / name) as handle:
            handle.write(data)

    def delete(self, name: str) -> None:
        (self.place / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL. There is no renaming: an object appears when its upload is complete."""

    place: Url

    def below(self, name: str) -> RemoteFolder:
        return RemoteFolder(self._url(name))

    def make(self) -> None:
        """Nothing: the first file makes it."""

    def list(self) -> list[Entry]:
        from pyarrow import fs

        system, path = remote.located(self.place)
        try:
            with remote.explained(self.place):
                infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        except FileNotFoundError:
            infos = []
        if not infos:
            remote.check_bucket(self.place)
        entries = (
            Entry(info.base_name, info.type == fs.FileType.Directory, *remote.status_of(info))
            for info in infos
            if info.base_name and not info.base_name.startswith(".")
        )
        return sorted(entries, key=_name)

    def exists(self, name: str) -> bool:
        return remote.stat(self._url(name)) is not None

    def open(self, name: str) -> IO[bytes]:
        return remote.open_range(self._url(name))

    def read(self, name: str) -> bytes:
        return remote.read_bytes(self._url(name))

    def write(self, name: str, data: bytes) -> None:
        self._upload(name, data)

    def delete(self, name: str) -> None:
        system, path = remote.located(self._url(name))
        with suppress(FileNotFoundError), remote.explained(self.place):
            system.delete_file(path)

    def _upload(self, name: str, data: Any) -> None:
        # one call: a stream that is closed after half of the bytes would be taken for complete
        url = self._url(name)
        system, path = remote.located(url)
        try:
            with remote.explained(url), system.open_output_stream(path) as stream:
                stream.write(data)
        except FileNotFoundError:
            raise StorageError(f"{url}: cannot be written: there is no such bucket or folder") from None

    def _url(self, name: str) -> Url:
        url = join(self.place, name)
        assert isinstance(url, Url)  # below a URL
        return url


def _name(entry: Entry) -> str:
    return entry.name


def open_folder(place: str | Path) -> Folder:
    """The folder at a local path (made absolute) or a URL, whether it exists or not."""
    found = place_of(place)
    return RemoteFolder(found) if isinstance(found, Url) else LocalFolder(Path(os.path.abspath(found)))


@contextmanager
def writing_file(folder: Folder, name: str) -> Iterator[IO[bytes]]:
    """A file that is too large to be built in memory: it appears when the block has ended without an error."""
    if isinstance(folder, LocalFolder):
        with remote.full_disk_explained(folder.place / name), atomic_file(folder.place / name) as handle:
            yield handle
        return
    import pyarrow as pa

    with remote.full_disk_explained(tempfile.gettempdir()), tempfile.NamedTemporaryFile(prefix="auscult-") as held:
        yield held
        held.flush()
        if held.tell() == 0:
            folder.write(name, b"")
            return
        with pa.memory_map(held.name) as mapped:
            folder.write(name, mapped.read_buffer())


def digest_of(data: Any) -> str:
    """The digest that stores go by: xxHash3 of 128 bits, 32 hexadecimal digits."""
    return xxhash.xxh3_128(data).hexdigest()


def file_digest_in(folder: Folder, name: str) -> str:
    """:func:`digest_of` a file, read in pieces."""
    state = xxhash.xxh3_128()
    with folder.open(name) as handle:
        while piece := handle.read(remote.CHUNK):
            state.update(piece)
    return state.hexdigest()


def read_folder_card(folder: Folder, kind: str | None = None) -> dict[str, Any]:
    """Read ``card.json`` of a folder; see :func:`auscult.folders.read_card`.

    Raises
    ------
    StoreError
        The folder has no card, or is of another kind.
    """
    if isinstance(folder.place, Path):
        return read_card(folder.place, kind)
    try:
        text = folder.read(CARD).decode("utf-8")
    except FileNotFoundError:
        raise StoreError(f"{folder.place}: no {CARD} here, so this is no complete auscult folder") from None
    except UnicodeDecodeError as error:
        raise StoreError(f"{folder.place}: its {CARD} cannot be read ({error})") from error
    return card_of(text, folder.place, kind)


def write_folder_card(folder: Folder, kind: str, content: dict[str, Any]) -> None:
    """Write ``card.json``, which says that the folder is whole; see :func:`auscult.folders.write_card`."""
    card = {"kind": kind, "versions": package_versions(), **content}
    folder.write(CARD, (json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Results in the order of ``items``, a bounded number of calls ahead of what has been taken; for waiting, not computing."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
