"""Clips of a folder, in a stable order, holding one folder's listing at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..folders import TASK, is_folder_of
from .clip import Clip, Skipped

SOUNDFILE_SUFFIXES = frozenset(
    [
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
        ".mp2",
    ]
)
AV_SUFFIXES = frozenset(
    [
        ".m4a",
        ".m4b",
        ".aac",
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".mka",
        ".webm",
        ".wma",
        ".ac3",
        ".eac3",
        ".amr",
        ".3gp",
        ".avi",
        ".ts",
        ".wv",
        ".ape",
    ]
)
OWN_KINDS = ("store", "audit", "dedup")  # folders of these kinds are nobody's input
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | AV_SUFFIXES


def printable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are not are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Whether a file name can be written to a table and found again."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield ``(relative path, entry)`` of everything below ``folder`` that is no folder, sorted by name in each folder.

    Links to folders are followed, but never back into a folder that is being walked. Hidden entries and auscult's own
    folders (stores, audits) are passed over.
    """
    trail = [_inode(os.stat(folder))]
    stack = [iter(_listing(folder))]
    prefixes = [""]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            for pile in (stack, trail, prefixes):
                pile.pop()
            continue
        relative = prefixes[-1] + entry.name
        if not entry.is_dir():
            yield relative, entry
        elif (inode := _inode(entry.stat())) not in trail and not _is_ours(Path(entry.path)):
            stack.append(iter(_listing(Path(entry.path))))
            trail.append(inode)
            prefixes.append(f"{relative}/")


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_ours(folder: Path) -> bool:
    """A folder that auscult wrote or is writing: an output inside the source must not become input of the next run."""
    return (
        any(is_folder_of(folder, kind) for kind in OWN_KINDS)
        or next((folder / "vectors").glob("part-*.parquet"), None) is not None
        or (folder.name.endswith(".partial") and (folder / TASK).is_file())
    )


def folder_clips(folder: Path) -> Iterator[Clip | Skipped]:
    """Yield a clip for every file with an audio suffix, and the rest as skipped."""
    for relative, entry in walk(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if not is_utf8(entry.path):
            yield Skipped(printable(entry.path), "the file name is not valid UTF-8; rename the file")
        elif suffix not in AUDIO_SUFFIXES:
            yield Skipped(entry.path, f"not audio by its suffix ({suffix or 'none'})", "not_audio")
        elif not entry.is_file():
            yield Skipped(entry.path, "not a file (a broken link, a pipe or a device)")
        else:
            yield Clip(clip_id=relative, path=entry.path)
