"""Clips of a folder, in a stable order, without holding the listing in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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


def walk(
    folder: Path, prefix: str = "", trail: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield ``(relative path, entry)`` of every file below ``folder``, sorted by name in each folder.

    Links to folders are followed, but never back into a folder that is being walked.
    """
    with os.scandir(folder) as entries:
        listing = sorted(entries, key=lambda entry: entry.name)
    for entry in listing:
        if entry.name.startswith("."):
            continue
        relative = f"{prefix}{entry.name}"
        if entry.is_dir():
            status = entry.stat()
            inode = (status.st_dev, status.st_ino)
            if inode not in trail:
                yield from walk(Path(entry.path), f"{relative}/", trail | {inode})
        else:
            yield relative, entry


def folder_clips(folder: Path) -> Iterator[Clip | Skipped]:
    """Yield a clip for every file with an audio suffix, and the rest as skipped."""
    for relative, entry in walk(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if not is_utf8(entry.path):
            yield Skipped(printable(entry.path), "the file name is not valid UTF-8; rename the file")
        elif suffix not in AUDIO_SUFFIXES:
            yield Skipped(entry.path, f"not audio by its suffix ({suffix or 'none'})", "not_audio")
        else:
            yield Clip(clip_id=relative, path=entry.path)
