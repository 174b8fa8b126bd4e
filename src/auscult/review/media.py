"""What a reviewer sees and hears of a pair: sound, pictures on one time axis, levels, and what is left after subtraction."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soundfile as sf

from ..figures import SPECTROGRAM_RATE_HZ, Scale, spectrogram_png
from .difference import FLOOR_DB, Difference, Place, strongest_place, subtract
from .streaming import ClipAudio, close_files, open_clip, read_mono

__all__ = [
    "ClipAudio",
    "Difference",
    "Levels",
    "clip_of",
    "close_files",
    "difference",
    "difference_wav",
    "levels",
    "open_clip",
    "read_mono",
    "spectrogram",
]

MAX_PICTURE_S = 600.0
MIN_PICTURE_S = 0.005
MAX_WIDTH = 4096
PICTURES = 256  # kept, 50 kB each

LEVEL_S = 10.0
DIFFERENCES = 8  # kept, up to 12 MB each

_differences: OrderedDict[tuple[ClipAudio, ClipAudio, Place], Difference] = OrderedDict()
_pictures: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
_cache_lock = threading.Lock()


def spectrogram(
    path: str,
    offset_s: float,
    start_s: float,
    end_s: float,
    *,
    scale: Scale = "mel",
    width: int = 640,
    clip_duration: float | None = None,
) -> bytes:
    """A stretch of a clip as a spectrogram in PNG, `width` pixels wide.

    Parameters
    ----------
    path, offset_s, clip_duration
        The clip: its path, where it begins in its file, and how long it is (None: up to the file's end).
    start_s, end_s
        The stretch, in seconds of the clip; it may begin before the clip and end after it, by which pictures of two clips
        share a time axis. At most `MAX_PICTURE_S` long.
    scale
        ``mel`` or ``linear``.

    Raises
    ------
    AudioDecodeError
        The clip cannot be read.
    ValueError
        The stretch is empty, not finite or too long, or the width is out of range.
    """
    if not (np.isfinite(start_s) and np.isfinite(end_s) and MIN_PICTURE_S <= end_s - start_s <= MAX_PICTURE_S):
        raise ValueError(f"expected a stretch of {MIN_PICTURE_S:g} to {MAX_PICTURE_S:g} s, got {start_s:g} to {end_s:g} s")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"expected a width of 1 to {MAX_WIDTH} pixels, got {width}")
    clip = open_clip(path, offset_s, clip_duration)
    key = (clip, start_s, end_s, scale, width)
    with _cache_lock:
        if key in _pictures:
            _pictures.move_to_end(key)
            return _pictures[key]
    inside = min(max(start_s, 0.0), clip.duration_s), min(max(end_s, 0.0), clip.duration_s)
    samples = read_mono(clip, *inside, SPECTROGRAM_RATE_HZ) if inside[1] > inside[0] else np.zeros(0, np.float32)
    total = max(round((end_s - start_s) * SPECTROGRAM_RATE_HZ), len(samples))
    before = min(max(0, round(-start_s * SPECTROGRAM_RATE_HZ)), total - len(samples))
    picture = spectrogram_png(samples, scale=scale, width=width, outside=(before, total - before - len(samples)))
    with _cache_lock:
        _pictures[key] = picture
        while len(_pictures) > PICTURES:
            _pictures.popitem(last=False)
    return picture


@dataclass(frozen=True, slots=True)
class Levels:
    """RMS of both sides over their matching stretch, dB of full scale; `FLOOR_DB` for silence."""

    query_db: float
    reference_db: float


def clip_of(row: Mapping[str, Any], role: Literal["query", "reference"]) -> ClipAudio:
    """One side of a row of ``matches.parquet``.

    The row may hold ``query_duration_s`` and ``reference_duration_s`` beside the columns of the table; without them, a clip
    lasts up to the end of its file.

    Raises
    ------
    AudioDecodeError
        The file is missing, is no audio, or ends before the clip begins.
    """
    return open_clip(str(row[f"{role}_path"]), float(row.get(f"{role}_offset_s") or 0.0), row.get(f"{role}_duration_s"))


def difference(row: Mapping[str, Any]) -> Difference:
    """The query minus the aligned reference over the strongest span of a pair.

    Parameters
    ----------
    row
        Of ``matches.parquet``, as :func:`clip_of` takes it.

    Raises
    ------
    AudioDecodeError
        One of the files is missing, is no audio, has changed or is damaged.
    """
    query, reference = clip_of(row, "query"), clip_of(row, "reference")
    place = strongest_place(row)
    if place is None:
        return Difference(None, query.sample_rate_hz, float("nan"), reason="the pair has no matching stretch to align by")
    key = (query, reference, place)
    with _cache_lock:
        if key in _differences:
            _differences.move_to_end(key)
            return _differences[key]
    found = subtract(query, reference, place)
    with _cache_lock:
        _differences[key] = found
        while len(_differences) > DIFFERENCES:
            _differences.popitem(last=False)
    return found


def difference_wav(found: Difference) -> bytes:
    """A difference as a 16-bit WAV, clipped at full scale.

    Raises
    ------
    ValueError
        There is none; the message is the reason.
    """
    if found.samples is None:
        raise ValueError(found.reason)
    buffer = io.BytesIO()
    sf.write(buffer, np.clip(found.samples, -1.0, 1.0), found.sample_rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def levels(row: Mapping[str, Any]) -> Levels:
    """Levels of both sides over the strongest span, or over the beginnings of both clips if the row tells no stretch.

    Raises
    ------
    AudioDecodeError
        One of the files is missing, is no audio, has changed or is damaged.
    """
    query, reference = clip_of(row, "query"), clip_of(row, "reference")
    place = strongest_place(row)
    if place is None:
        length = min(query.duration_s, reference.duration_s, LEVEL_S)
        place = Place(0.0, 0.0, length / 2, length, (1.0,))
    return Levels(
        _level_db(query, place.query_start_s, place.length_s), _level_db(reference, place.reference_start_s, place.length_s)
    )


def _level_db(clip: ClipAudio, start_s: float, length_s: float) -> float:
    start_s = max(0.0, start_s)
    samples = read_mono(clip, start_s, min(start_s + length_s, clip.duration_s), clip.sample_rate_hz)
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return float(10 * np.log10(max(power, 10 ** (FLOOR_DB / 10))))
