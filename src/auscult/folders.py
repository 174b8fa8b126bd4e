"""Output folders that can be trusted: atomic files, cards with versions and digests, one writer at a time.

A file is written under a temporary name, flushed to the disk and renamed; a folder that is built as a whole is built as
``NAME.partial`` and renamed when it is complete. So a kill at any moment leaves either nothing or a whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from . import __version__
from .errors import OutputFolderError, StoreError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: no advisory locks on folders; two writers are then the user's responsibility
    fcntl = None

Progress = Callable[[int, int | None, str], None]
"""Called as ``progress(done, total, what)``; ``total`` is None while it is unknown."""

CARD = "card.json"
_REPORTED_PACKAGES = ("numpy", "scipy", "soundfile", "soxr", "pyarrow", "faiss-cpu", "av", "datasets")


def no_progress(done: int, total: int | None, what: str) -> None:
    """The progress callable that shows nothing."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under ``path`` only when the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_file(path) as handle:
        handle.write(text.encode("utf-8"))


def write_table(path: Path, table: Any) -> None:
    """Write a ``pyarrow.Table`` to ``path`` atomically, as Parquet."""
    import pyarrow.parquet as pq

    with atomic_file(path) as handle:
        pq.write_table(table, handle, compression="zstd")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of auscult, Python and the packages that can change a result."""
    versions = {"auscult": __version__, "python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_card(folder: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write ``card.json``: what the folder is (``kind``), the versions it was made with, and ``content``."""
    card = {"kind": kind, "versions": package_versions(), **content}
    write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_card(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read ``card.json`` of a folder, and check that the folder is of the wanted ``kind``.

    Raises
    ------
    StoreError
        The folder has no card (not ours, or not complete), or is of another kind.
    """
    path = folder / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        place = folder.absolute()
        partial = place.with_name(f"{place.name}.partial")
        hint = " (a run that was stopped: give the same command again to finish it)" if partial.exists() else ""
        raise StoreError(f"{folder}: no {CARD} here, so this is no complete auscult folder{hint}") from None
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    if kind is not None and card.get("kind") != kind:
        raise StoreError(f"{folder}: expected a folder of kind {kind!r}, this one is {card.get('kind')!r}")
    return card


def is_folder_of(path: Path, kind: str) -> bool:
    """Whether ``path`` is a folder whose card names this ``kind``."""
    if not (path / CARD).is_file():
        return False
    try:
        read_card(path, kind)
    except StoreError:
        return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for one writer; the lock ends with the process, however it ends.

    Raises
    ------
    StoreError
        Another process is writing to the folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{folder}: another process is writing to it; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete temporary files that a killed writer left behind (the caller holds the lock)."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def building(folder: Path, kind: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder as ``NAME.partial``; it gets its name when the block ends without an error.

    A partial folder that a stopped run left is handed out again, so that its finished parts can be used.

    Raises
    ------
    OutputFolderError
        ``folder`` exists and is not an empty folder or (with ``overwrite``) a folder of the same ``kind``.
    """
    folder = Path(os.path.abspath(folder))
    check_output(folder, kind, overwrite=overwrite)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"{folder}: cannot be made ({error.strerror}); choose another -o") from error
    with locked(partial):
        remove_stale_temporaries(partial)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)


def check_output(folder: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something that this command did not make.

    Raises
    ------
    OutputFolderError
        See :func:`building`.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise OutputFolderError(f"{folder}: exists and is a file; choose another -o")
    if not is_folder_of(folder, kind):
        raise OutputFolderError(f"{folder}: holds something that is not an auscult {kind}; choose another -o")
    if not overwrite:
        raise OutputFolderError(f"{folder}: already holds a finished {kind}; choose another -o or pass --overwrite")
