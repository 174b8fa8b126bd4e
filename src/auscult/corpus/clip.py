"""The two things a source yields: a clip to describe, or an input that was passed over and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SkipKind = Literal["not_audio", "unreadable"]


@dataclass(frozen=True, slots=True)
class Clip:
    """One stretch of audio of a corpus.

    Attributes
    ----------
    clip_id
        Unique in its corpus. In a folder: the path relative to the folder, with its suffix.
    path
        Where the audio lies: a file, a URL, ``ARCHIVE.tar::MEMBER`` of either, or ``hf:NAME:SPLIT#ROW``.
    start_s, duration_s
        The stretch of the file that is meant; a duration of None means up to its end.
    caption, labels
        What is known about the sound.
    sha256
        Digest of the file's bytes, hexadecimal; None until the file has been read.
    seen
        Size in bytes and time of the last change in ns of the object that it lies in, where a listing told them.
    """

    clip_id: str
    path: str
    start_s: float = 0.0
    duration_s: float | None = None
    caption: str | None = None
    labels: tuple[str, ...] = ()
    sha256: str | None = None
    seen: tuple[int, int] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An input that was not described.

    ``not_audio`` inputs (a README among the sounds) are listed but are no failure; ``unreadable`` ones count against
    ``--max-skipped``.
    """

    path: str
    reason: str
    kind: SkipKind = "unreadable"
    clip_id: str | None = None
