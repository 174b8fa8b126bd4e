"""Generated clips on disk: FLAC files, what is known of each, and the manifest that audits and evaluations take."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..audio import SILENT_PEAK
from ..folders import atomic_file, write_text
from ..interrupts import interrupts_held
from .prompts import PlannedClip

AUDIO = "audio"
MANIFEST = "manifest.jsonl"
MADE = "made.jsonl"  # while the run lasts: a line for each clip that is done
LARGEST = 1 - 2.0**-15  # of a 16-bit sample
FLAC = ".flac"

Row = dict[str, Any]


def clip_path(clip: PlannedClip) -> str:
    """Where a clip lies below the output folder."""
    return f"{AUDIO}/{clip.clip_id}{FLAC}"


def write_clip(folder: Path, clip: PlannedClip, audio: npt.NDArray[np.float32], rate_hz: int) -> Row:
    """Write a clip as 16-bit FLAC, and tell what is known of it.

    Parameters
    ----------
    folder
        The output folder.
    audio
        (channels, time); one whose largest sample is beyond full scale is turned down to it as a whole, and never clipped.
    rate_hz
        Its rate.

    Returns
    -------
    dict
        ``path`` below the folder, ``sample_rate_hz, channels, samples``, ``peak`` as generated (1.0 is full scale), ``gain_db``
        by which it was turned down, ``silent``, ``sha256`` and ``bytes`` of the file.
    """
    import soundfile as sf

    peak = float(np.abs(audio).max(initial=0.0))
    gain = min(1.0, LARGEST / peak) if peak else 1.0
    buffer = io.BytesIO()
    with interrupts_held():
        sf.write(buffer, (audio * np.float32(gain)).T, rate_hz, format="FLAC", subtype="PCM_16")
    content = buffer.getvalue()
    path = clip_path(clip)
    with atomic_file(folder / path) as handle:
        handle.write(content)
    return {
        "path": path,
        "sample_rate_hz": rate_hz,
        "channels": audio.shape[0],
        "samples": audio.shape[1],
        "peak": round(peak, 6),
        "gain_db": round(20 * math.log10(gain), 3),
        "silent": peak <= SILENT_PEAK,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


def manifest_row(clip: PlannedClip, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Row:
    """A clip's row: what an audit and an evaluation read first, then how it was made."""
    row = {
        "clip_id": clip.clip_id,
        "path": facts["path"],
        "caption": clip.prompt.caption,
        "reference": clip.prompt.reference,
        "labels": list(clip.prompt.labels) or None,
        "prompt_row": clip.prompt.number,
        "number": clip.number,
        "seed": clip.seed,
        **settings,
        **{key: value for key, value in facts.items() if key != "path"},
    }
    return {key: value for key, value in row.items() if value is not None}


def write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    """Write all rows as JSON Lines."""
    write_text(folder / MANIFEST, "".join(_line(row) for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Rows of JSON Lines; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text("utf-8").split("\n")  # what follows the last line feed is nothing, or was cut short
    return [json.loads(line) for line in whole]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add lines at the end; they are on the disk when this returns."""
    with open(path, "ab") as handle:
        handle.write("".join(map(_line, rows)).encode())
        handle.flush()
        os.fsync(handle.fileno())


def mend_rows(path: Path) -> None:
    """Cut off a last line that a kill left without its end, so that lines can be added."""
    if path.is_file():
        with open(path, "rb+") as handle:
            handle.truncate(handle.read().rfind(b"\n") + 1)


def rows_still_there(folder: Path) -> dict[str, Row]:
    """What is done, by clip id: the rows in ``made.jsonl`` whose files are there in full."""
    return {row["clip_id"]: row for row in read_rows(folder / MADE) if _size(folder / row["path"]) == row["bytes"]}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
