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
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
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
TASK = "task.json"
SCRATCH = "search"  # folder in a result that is being made, where searches keep their state
REVIEW_DB = "review.db"
CLIPS_MADE = "finished clips"
# What the corridors and the demo write into their folders; anything else there is the user's.
_OUR_NAMES = frozenset(
    {
        CARD,
        TASK,  # where a kill came after the renaming
        "report.html",
        "manifest.jsonl",
        "audio",
        "keep.txt",
        "drop.txt",
        "keep.reviewed.txt",
        "drop.reviewed.txt",
        "stores",
        "controls",
        "audit",
        "audit.partial",
        "dedup",
        "described",
        "withheld.jsonl",
        "training",
        "generated",
        "background",
        "null",
    }
    | {f"{REVIEW_DB}{suffix}" for suffix in ("", "-wal", "-shm")}
    | {f"{name}.parquet" for name in ("matches", "queries", "training", "null", "skipped", "clusters", "pairs", "top1")}
    | {"keys.npy", "center.npy", "neighbors.parquet", "index.jsonl", "vectors.safetensors", "trace.parquet"}
)
_REPORTED_PACKAGES = (
    *("numpy", "scipy", "soundfile", "soxr", "pyarrow", "faiss-cpu", "av", "datasets"),
    *("torch", "torchaudio", "transformers"),
)


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


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the named files of a folder."""
    return {name: file_digest(folder / name) for name in names}


def damaged_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing or whose bytes are not those that were written, one line each."""
    problems = []
    for name, digest in digests.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif file_digest(folder / name) != digest:
            problems.append(f"{name}: its bytes are not those that were written")
    return problems


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
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        place = folder.absolute()
        if place.with_name(f"{place.name}.partial").exists():
            raise StoreError(
                f"{folder}: a run was stopped or failed here; give the same command again, or delete {place.name}.partial"
            ) from None
        if not folder.is_dir():
            raise StoreError(f"{folder}: {'is a file, not a folder' if folder.exists() else 'does not exist'}") from None
        raise StoreError(f"{folder}: no {CARD} here, so this is no complete auscult folder") from None
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    return card_of(text, folder, kind)


def card_of(text: str, folder: object, kind: str | None = None) -> dict[str, Any]:
    """What the text of a ``card.json`` says; see :func:`read_card`."""
    try:
        card: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{folder}: its {CARD} cannot be read ({error})") from error
    if not isinstance(card, dict) or not isinstance(card.get("kind"), str) or "versions" not in card:
        raise StoreError(f"{folder}: its {CARD} is not a card of auscult's")
    if kind is not None and card["kind"] != kind:
        raise StoreError(f"{folder}: expected a folder of kind {kind!r}, this one is {card['kind']!r}")
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
def building(folder: Path, kind: str, *, task: Mapping[str, Any], overwrite: bool = False) -> Iterator[Path]:
    """Build a folder as ``NAME.partial``; it gets its name when the block ends without an error.

    A partial folder that a stopped run of the same ``task`` (inputs and settings, as JSON can hold them) left is handed out
    again, so that its finished parts can be used; that of another task is thrown away. An error within that leaves nothing
    to go on from leaves no partial folder either.

    Raises
    ------
    OutputFolderError
        ``folder`` exists and is not an empty folder or (with ``overwrite``) a folder of the same ``kind``; or a stopped run
        of another kind left something in the partial folder, or somebody else did, and ``overwrite`` does not say to throw
        it away.
    """
    folder = Path(os.path.realpath(folder))
    check_output(folder, kind, overwrite=overwrite)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"{folder}: cannot be made ({error.strerror}); choose another -o") from error
    with locked(partial):
        remove_stale_temporaries(partial)
        _claim(partial, kind, task, overwrite=overwrite)
        try:
            yield partial
        except BaseException as error:
            what = _kept(partial)
            if not what:
                shutil.rmtree(partial, ignore_errors=True)  # or other commands would take it for a run to be finished
            elif what != CLIPS_MADE:  # whoever makes clips says how many
                error.add_note(f"{partial}: keeps {what}; the same command continues from there")
            raise
        refuse_to_lose_verdicts(folder)  # again: hours may have passed, and somebody may have reviewed
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
        (folder / TASK).unlink()  # last: without it, what is done could not be told from what another command left


def _kept(partial: Path) -> str:
    """What a stopped run left that the same command goes on from; nothing where it begins anew."""
    kept = {
        "what was described": any(any(partial.glob(f"{where}/*/vectors/part-*")) for where in ("stores", "described")),
        "what was searched": any(path.is_file() for path in (partial / SCRATCH).rglob("*")),
        CLIPS_MADE: any(any(partial.glob(f"{where}audio/*.flac")) for where in ("", "attempts/*/")),
    }
    return " and ".join(what for what, there in kept.items() if there)


def _claim(partial: Path, kind: str, task: Mapping[str, Any], *, overwrite: bool) -> None:
    """Empty a partial folder that was begun for another task, and write down this one."""
    wanted = json.dumps({"kind": kind, **task}, sort_keys=True, default=str)
    there = sorted(path.name for path in partial.iterdir())
    begun = {"kind": kind, **json.loads((partial / TASK).read_text("utf-8"))} if TASK in there else {}
    if begun == json.loads(wanted):
        return
    if begun.get("kind", kind) != kind and not overwrite and (what := _kept(partial)):
        raise OutputFolderError(
            f"{partial}: keeps {what} of an unfinished {begun['kind']}; give its command again to finish it, choose another "
            f"-o, or delete {partial.name} or pass --overwrite to throw it away"
        )
    if not begun and not overwrite and any(not path.is_dir() for path in partial.rglob("*")):
        raise OutputFolderError(
            f"{partial}: holds {', '.join(there[:3])} and no {TASK}, so that no run of auscult's began it; choose another -o, "
            f"move {partial.name} away, or pass --overwrite to throw it away"
        )
    for path in (partial / name for name in there if name != TASK):  # the task goes last: a kill here leaves nothing foreign
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_text(partial / TASK, wanted)


def check_output(folder: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something that this command did not make.

    Raises
    ------
    OutputFolderError
        See :func:`building`.
    """
    if folder == Path(os.path.realpath(os.curdir)):
        raise OutputFolderError(f"{folder}: is the folder you are in, which cannot be replaced; choose one inside it")
    if not folder.exists() or (folder.is_dir() and not os.path.ismount(folder) and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise OutputFolderError(f"{folder}: exists and is a file; choose another -o")
    if os.path.ismount(folder):
        raise OutputFolderError(f"{folder}: is a mount point, which cannot be replaced; choose a folder inside it")
    if not is_folder_of(folder, kind):
        raise OutputFolderError(f"{folder}: holds something that is not an auscult {kind}; choose another -o")
    if not overwrite:
        raise OutputFolderError(f"{folder}: already holds a finished {kind}; choose another -o or pass --overwrite")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _OUR_NAMES)
    if foreign:
        raise OutputFolderError(f"{folder}: holds {', '.join(foreign[:3])}, which --overwrite would delete; move that first")
    refuse_to_lose_verdicts(folder)


def refuse_to_lose_verdicts(folder: Path) -> None:
    """Refuse to replace a folder in which somebody has decided something: hours of work that no run can make again.

    Raises
    ------
    OutputFolderError
        Its ``review.db``, or that of a result inside it, holds verdicts, or cannot be read, so that it may.
    """
    for path in (folder / REVIEW_DB, *sorted(folder.glob(f"*/{REVIEW_DB}"))):
        if path.exists():
            _refuse_to_lose(path)


def _refuse_to_lose(path: Path) -> None:
    folder = path.parent
    try:
        connection = sqlite3.connect(path, timeout=10.0)
        try:
            # the tables of review/schema.py; a database in which nobody has decided anything is no loss
            verdicts, clusters = (
                connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("verdicts", "cluster_verdicts")
            )
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise OutputFolderError(
            f"{path}: may hold verdicts, but cannot be read ({error}); move it away before this folder is replaced"
        ) from error
    if verdicts or clusters:
        decided = f"{verdicts:,} verdicts on pairs and {clusters:,} on clusters, which would be lost"
        raise OutputFolderError(
            f"{folder}: holds {decided}; choose another -o, or keep a copy of {REVIEW_DB} elsewhere (auscult review {folder} "
            f"--export verdicts.csv writes what was decided, but no controls and no samples) and then move it away"
        )
