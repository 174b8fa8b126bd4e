"""Any clip as a plain WAV of known length, decoded only where a browser asks for it.

A browser plays a WAV of any length at once and seeks in it to the sample; it does neither with every format that a corpus
may hold. So a clip's stretch is presented as 16-bit PCM behind a 44-byte header, and a range of its bytes is a range of
frames that is decoded when it is asked for. Open decoders are kept for the next range.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal
import soundfile as sf
import soxr

from ..audio import FULL_SCALE
from ..errors import AudioDecodeError
from .decoders import BLOCK_FRAMES, Decoders

FloatArray = npt.NDArray[np.float32]

HEADER_BYTES = 44
SAMPLE_BYTES = 2
MAX_RATE_HZ = 48_000  # what every sound card takes; above it lies nothing to hear
MAX_SIZE = 0xFFFF_FFFF  # bytes: the length field of a WAV has 32 bits (6.2 hours of 48 kHz stereo)
READ_S = 20.0  # resampled at once
SETTLING_S = 0.05  # decoded before and after a stretch, where a resampler's filter begins and ends


DECODERS = Decoders()


@dataclass(frozen=True, slots=True)
class ClipAudio:
    """One clip's stretch as a 16-bit WAV that exists only where it is read.

    Attributes
    ----------
    path
        As in ``Clip.path``.
    sample_rate_hz, channels, frames
        Of the WAV: the file's rate, if that is higher 48 kHz; one or two channels (more are mixed to one, as descriptors hear
        them).
    source_rate_hz, source_channels
        Of the file.
    """

    path: str
    sample_rate_hz: int
    channels: int
    frames: int
    source_rate_hz: int
    source_channels: int
    _first: int
    _count: int
    _ratio: Fraction
    _signature: tuple[int, int]

    @property
    def duration_s(self) -> float:
        """Length of the stretch in seconds."""
        return self.frames / self.sample_rate_hz

    @property
    def size_bytes(self) -> int:
        """Length of the WAV with its header."""
        return HEADER_BYTES + self.frames * self.channels * SAMPLE_BYTES

    def header(self) -> bytes:
        """The 44 bytes before the samples."""
        width = self.channels * SAMPLE_BYTES
        data = self.frames * width
        form = struct.pack("<4sI4s", b"RIFF", data + HEADER_BYTES - 8, b"WAVE")
        kind = struct.pack(
            "<4sIHHIIHH", b"fmt ", 16, 1, self.channels, self.sample_rate_hz, self.sample_rate_hz * width, width, 16
        )
        return form + kind + struct.pack("<4sI", b"data", data)

    def read(self, first_byte: int, last_byte: int) -> bytes:
        """Bytes ``first_byte`` to ``last_byte`` of the WAV, both included as in an HTTP range; fewer at its end.

        Raises
        ------
        AudioDecodeError
            The file is gone, has changed since the clip was opened, is damaged here, or holds samples that are not finite.
        ValueError
            The range begins before the file or ends before it begins.
        """
        if not 0 <= first_byte <= last_byte:
            raise ValueError(f"expected a range of bytes with 0 <= first <= last, got {first_byte} to {last_byte}")
        last_byte = min(last_byte, self.size_bytes - 1)
        parts = [self.header()[first_byte : last_byte + 1]]
        if last_byte >= HEADER_BYTES:
            width = self.channels * SAMPLE_BYTES
            begin, end = max(first_byte, HEADER_BYTES) - HEADER_BYTES, last_byte + 1 - HEADER_BYTES
            frame = begin // width
            samples = self.pcm(frame, -(-end // width) - frame)
            parts.append(samples.tobytes()[begin - frame * width : end - frame * width])
        return b"".join(parts)

    def chunks(self, first_byte: int = 0, last_byte: int | None = None, size: int = 1 << 18) -> Iterator[bytes]:
        """The same range in pieces of ``size`` bytes, for a response that is not in memory as a whole."""
        last_byte = self.size_bytes - 1 if last_byte is None else min(last_byte, self.size_bytes - 1)
        for begin in range(first_byte, last_byte + 1, size):
            yield self.read(begin, min(begin + size - 1, last_byte))

    def pcm(self, first: int, count: int) -> npt.NDArray[np.int16]:
        """Frames of the WAV, ``(count, channels)`` little-endian 16 bit."""
        if self._ratio == 1:
            samples: npt.NDArray[Any] = self._native(first, count)
        else:
            samples = resampled(self._native, first, count, self._ratio)
        return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype("<i2")

    def mono(self, first: int = 0, count: int | None = None) -> FloatArray:
        """Frames of the file (not of the WAV) mixed to mono, ``(count,)`` float32 at ``source_rate_hz``."""
        count = self._count - first if count is None else count
        return self._native(first, count).mean(axis=1, dtype=np.float32)

    def _native(self, first: int, count: int) -> FloatArray:
        """Frames of the stretch at the file's rate, silence where it has none, ``(count, channels)`` float32."""
        out = np.zeros((count, self.channels), np.float32)
        begin, end = max(first, 0), min(first + count, self._count)
        with DECODERS.borrow(self.path) as (decoder, signature):
            if signature != self._signature:
                raise AudioDecodeError("the file has changed since it was opened; load the page again")
            try:
                while begin < end:
                    block = decoder.read(self._first + begin, min(end - begin, BLOCK_FRAMES))
                    if len(block) == 0:  # shorter than its header says; the length is promised, so silence follows
                        break
                    if not np.isfinite(block).all():
                        raise AudioDecodeError(f"holds NaN or infinite samples from {begin / self.source_rate_hz:.1f} s")
                    if block.shape[1] > self.channels:
                        block = block.mean(axis=1, keepdims=True, dtype=np.float32)
                    out[begin - first : begin - first + len(block)] = block
                    begin += len(block)
            except (sf.LibsndfileError, sf.SoundFileRuntimeError) as error:
                raise AudioDecodeError(f"damaged ({str(error).rstrip('.')})") from error
        return out


def open_clip(path: str, offset_s: float = 0.0, duration_s: float | None = None) -> ClipAudio:
    """Present a clip's stretch as a WAV.

    Parameters
    ----------
    path
        File, ``ARCHIVE.tar::MEMBER`` or ``hf:NAME:SPLIT#ROW``.
    offset_s, duration_s
        The stretch of the file; a duration of None means up to its end.

    Raises
    ------
    AudioDecodeError
        The file is missing, is no audio, or ends before the stretch begins.
    """
    with DECODERS.borrow(path) as (decoder, signature):
        rate, channels, frames = decoder.rate, decoder.channels, decoder.frames
    first = max(0, round(offset_s * rate))
    if first >= frames:
        raise AudioDecodeError(f"starts at {offset_s:g} s, but the file lasts {frames / rate:.3f} s")
    count = frames - first
    if duration_s is not None:
        count = min(count, max(1, round(duration_s * rate)))
    ratio = Fraction(1)
    if rate > MAX_RATE_HZ:  # by a short fraction, for a short filter: an odd rate ends near 48 kHz (96,024 Hz at 48,012)
        ratio = Fraction(MAX_RATE_HZ, rate).limit_denominator(1000)
        if ratio == 0:
            raise AudioDecodeError(f"its rate of {rate:,} Hz is no rate of audio")
    shown = channels if channels <= 2 else 1
    length = max(1, int(count * ratio))
    length = min(length, (MAX_SIZE - HEADER_BYTES) // (shown * SAMPLE_BYTES))
    out_rate = round(rate * ratio)
    return ClipAudio(path, out_rate, shown, length, rate, channels, first, count, ratio, signature)


def close_files() -> None:
    """Close the files that are kept open for the next request."""
    DECODERS.close()


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


def resampled(read: Callable[[int, int], FloatArray], first: int, count: int, ratio: Fraction) -> npt.NDArray[np.float64]:
    """Frames ``first`` to ``first + count`` of a signal resampled by ``ratio``, from no more of it than they depend on.

    The filter is of finite length and its phase is counted from the signal's start, so that a part is, to the bit, the part
    of the whole. ``read(first, count)`` yields ``(count, channels)``, zeros outside the signal.
    """
    up, down = ratio.numerator, ratio.denominator
    taps, half = _lowpass(up, down)
    # input i counts as sample i * up of the interpolated signal, output m lies at m * down
    begin = (first * down - half) // up // down * down  # a multiple of down, so that the outputs fall on filtered samples
    end = ((first + count - 1) * down + half) // up + 1
    filtered = scipy.signal.upfirdn(taps, read(begin, end - begin).astype(np.float64), up, down, axis=0)
    skip = first - begin * up // down + half // down
    return filtered[skip : skip + count]


@lru_cache(maxsize=8)
def _lowpass(up: int, down: int) -> tuple[npt.NDArray[np.float64], int]:
    """Taps and their center, a multiple of ``down``; flat to 90 % of the lower rate's half, -73 dB there."""
    widest = max(up, down)
    half = -(-50 * widest // down) * down
    return up * scipy.signal.firwin(2 * half + 1, 0.95 / widest, window=("kaiser", 8.0)), half
