"""What a reviewer sees and hears of a pair: sound, pictures on one time axis, levels, and what is left after subtraction."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import soxr

from ..figures import SPECTROGRAM_RATE_HZ, FloatArray, Scale, spectrogram_png
from .streaming import ClipAudio, close_files, open_clip

__all__ = ["ClipAudio", "close_files", "open_clip", "read_mono", "spectrogram"]

MAX_PICTURE_S = 600.0
MIN_PICTURE_S = 0.005
MAX_WIDTH = 4096
PICTURES = 256  # kept, 50 kB each
READ_S = 20.0  # decoded at once
SETTLING_S = 0.05  # decoded before and after a stretch, where a resampler's filter begins and ends

_pictures: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
_pictures_lock = threading.Lock()


def read_mono(clip: ClipAudio, start_s: float, end_s: float, rate_hz: int) -> FloatArray:
    """A stretch of a clip as mono at a rate, ``(round((end_s - start_s) * rate_hz),)`` float32, silence outside the clip.

    Raises
    ------
    AudioDecodeError
        The file is gone, has changed or is damaged.
    """
    source = clip.source_rate_hz
    length = max(0, round((end_s - start_s) * rate_hz))
    first = round((start_s - SETTLING_S) * source)
    last = round((end_s + SETTLING_S) * source)
    step = int(READ_S * source)
    resampler = soxr.ResampleStream(source, rate_hz, 1, dtype="float32", quality="HQ")
    pieces = []
    for begin in range(first, last, step):
        piece = clip.mono(begin, min(step, last - begin))
        pieces.append(piece if source == rate_hz else resampler.resample_chunk(piece))
    if source != rate_hz:
        pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    skip = round((start_s - first / source) * rate_hz)
    joined = joined[skip : skip + length]
    return np.pad(joined, (0, length - len(joined)))


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
    with _pictures_lock:
        if key in _pictures:
            _pictures.move_to_end(key)
            return _pictures[key]
    inside = min(max(start_s, 0.0), clip.duration_s), min(max(end_s, 0.0), clip.duration_s)
    samples = read_mono(clip, *inside, SPECTROGRAM_RATE_HZ) if inside[1] > inside[0] else np.zeros(0, np.float32)
    total = max(round((end_s - start_s) * SPECTROGRAM_RATE_HZ), len(samples))
    before = min(max(0, round(-start_s * SPECTROGRAM_RATE_HZ)), total - len(samples))
    picture = spectrogram_png(samples, scale=scale, width=width, outside=(before, total - before - len(samples)))
    with _pictures_lock:
        _pictures[key] = picture
        while len(_pictures) > PICTURES:
            _pictures.popitem(last=False)
    return picture
