"""Any clip as a plain WAV of known length, decoded only where a browser asks for it.

A browser plays a WAV of any length at once and seeks in it to the sample; it does neither with every format that a corpus
may hold. So a clip's stretch is presented as 16-bit PCM behind a 44-byte header, and a range of its bytes is a range of
frames that is decoded when it is asked for. Open decoders are kept for the next range.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.signal
import soundfile as sf
import soxr

from ..audio import FULL_SCALE
from ..corpus.archive import container, open_audio_bytes
from ..errors import AudioDecodeError, AuscultError

FloatArray = npt.NDArray[np.float32]

HEADER_BYTES = 44
SAMPLE_BYTES = 2
MAX_RATE_HZ = 48_000  # what every sound card takes; above it lies nothing to hear
MAX_SIZE = 0xFFFF_FFFF  # bytes: the length field of a WAV has 32 bits (6.2 hours of 48 kHz stereo)
OPEN_DECODERS = 16
HELD_BYTES = 256 << 20  # of tar members and data set rows, which are held in memory while they are open
BLOCK_FRAMES = 1 << 18  # decoded at once
LEAD_FRAMES = 16_384  # two of the longest Vorbis blocks: what precedes a seek's target until its overlaps are right
LOSSY = frozenset({"OGG", "MPEG"})
AV_BLOCK_S, AV_LEAD_S, AV_BLOCKS = 10.0, 0.25, 6
READ_S = 20.0  # resampled at once
SETTLING_S = 0.05  # decoded before and after a stretch, where a resampler's filter begins and ends
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2^63 - 1 of a stream that does not know its length


class Decoder(Protocol):
    """An open source: ``frames`` frames of ``channels`` channels at ``rate`` Hz, read anywhere."""

    rate: int
    channels: int
    frames: int

    def read(self, first: int, count: int) -> FloatArray:
        """Frames ``first`` to ``first + count`` (or the end), ``(frames, channels)`` float32."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class SoundfileDecoder:
    """What libsndfile reads: WAV, FLAC, AIFF, Ogg Vorbis and Opus, MP3 and others."""

    def __init__(self, source: str | io.BytesIO) -> None:
        self._handle = sf.SoundFile(source)
        self.rate, self.channels = int(self._handle.samplerate), int(self._handle.channels)
        self._lead = LEAD_FRAMES if self._handle.format in LOSSY else 0
        self.frames = int(self._handle.frames)
        if self.frames >= UNKNOWN_FRAMES or not self._handle.seekable():
            self.frames = self._measured()

    def read(self, first: int, count: int) -> FloatArray:
        # the first samples that libsndfile hands out after a seek in Vorbis are wrong, so begin a little earlier
        start = max(0, first - self._lead)
        if self._handle.tell() != first:
            self._handle.seek(start)
            skip = first - start
        else:  # playing on from where the last range ended
            skip = 0
        block = self._handle.read(skip + count, dtype="float32", always_2d=True)
        return block[skip:]

    def _measured(self) -> int:
        frames = 0
        while got := len(self._handle.read(BLOCK_FRAMES, dtype="int16", always_2d=True)):
            frames += got
        self._handle.seek(0)
        return frames

    def close(self) -> None:
        self._handle.close()


class AvDecoder:
    """What FFmpeg reads: AAC, M4A, the sound of videos.

    Decoded in blocks of `AV_BLOCK_S` at fixed places, each by a decoder of its own that begins a little before the block:
    the same bytes come out in whatever order they are asked for, although AAC fills in noise from a running generator.
    Frames are placed by their time stamps, which in M4A are exact to the sample and in Matroska to the millisecond; there
    the stamps only tell where a block begins.
    """

    def __init__(self, source: str | io.BytesIO) -> None:
        import av

        self._source = source
        self._blocks: OrderedDict[int, FloatArray] = OrderedDict()
        with self._opened() as (opened, stream):
            self.rate, self.channels = stream.codec_context.sample_rate, stream.codec_context.channels
            if not self.rate or not self.channels:
                raise AudioDecodeError("its audio stream names no rate")
            # raw AAC has no index: FFmpeg would guess places from the bit rate. Its packets are counted from the start
            self._indexed = opened.format.name != "aac"
            first = next(iter(opened.decode(stream)), None)
            if first is None:
                raise AudioDecodeError("holds no samples")
            self._base = Fraction(stream.time_base)
            self._origin = first.pts or 0
            ends = [packet.pts + (packet.duration or 0) for packet in opened.demux(stream) if packet.pts is not None]
        last = max(ends, default=self._origin) - self._origin
        about = int(last * self._base * self.rate)
        del av
        # packets know their ends but not what a decoder cuts off them, so the last second is decoded
        tail = max(0, about - self.rate)
        self.frames = max(1, about)  # until it is known
        self.frames = tail + sum(len(piece) for piece in self._decoded(tail, 2 * self.rate + BLOCK_FRAMES))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        import av

        if isinstance(self._source, io.BytesIO):
            self._source.seek(0)
        try:
            with av.open(self._source, metadata_errors="ignore") as opened:
                if not opened.streams.audio:
                    raise AudioDecodeError("holds no audio stream")
                yield opened, opened.streams.audio[0]
        except (av.FFmpegError, ValueError) as error:
            raise AudioDecodeError(f"FFmpeg cannot read it ({error})") from error

    def read(self, first: int, count: int) -> FloatArray:
        size = int(AV_BLOCK_S * self.rate)
        last = min(first + count, self.frames)
        pieces = [np.zeros((0, self.channels), np.float32)]
        for number in range(first // size, -(-last // size)):
            block = self._block(number, size)
            begin, end = first - number * size, last - number * size
            pieces.append(block[max(begin, 0) : max(end, 0)])
        return np.concatenate(pieces)

    def _block(self, number: int, size: int) -> FloatArray:
        if number not in self._blocks:
            while len(self._blocks) >= AV_BLOCKS:
                self._blocks.popitem(last=False)
            empty = np.zeros((0, self.channels), np.float32)
            self._blocks[number] = np.concatenate([empty, *self._decoded(number * size, size)])
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _decoded(self, first: int, count: int) -> Iterator[FloatArray]:
        """The frames ``first`` to ``first + count``, or to the end."""
        import av

        lead = max(0, first - int(AV_LEAD_S * self.rate))
        target = self._origin + int(lead / self.rate / self._base)
        with self._opened() as (opened, stream):
            if self._indexed and lead:
                opened.seek(target, stream=stream)
            planar = av.AudioResampler(format="fltp")
            position: int | None = None
            for packet in opened.demux(stream):
                if position is None and lead and packet.pts is not None and packet.pts + (packet.duration or 0) < target:
                    continue
                for frame in packet.decode():
                    if position is None:
                        stamp = self._origin if frame.pts is None else frame.pts
                        position = round((stamp - self._origin) * self._base * self.rate)
                    for piece in planar.resample(frame):
                        block = piece.to_ndarray().T.astype(np.float32, copy=False)
                        begin, end = first - position, first + count - position
                        position += len(block)
                        if end > 0 and begin < len(block):
                            yield block[max(begin, 0) : end]
                    if position >= first + count:
                        return

    def close(self) -> None:
        self._blocks.clear()


def open_decoder(path: str) -> tuple[Decoder, int]:
    """Open a clip's source with whatever reads it; also how many bytes of it are held in memory.

    Raises
    ------
    AudioDecodeError
        It does not exist, is no audio, or holds no samples.
    """
    source = _source(path)
    held = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else 0
    decoder: Decoder
    try:
        decoder = SoundfileDecoder(source)
    except sf.LibsndfileError as error:
        reason = str(error.error_string).rstrip(".")
        try:
            decoder = AvDecoder(source)
        except ImportError:
            raise AudioDecodeError(f"{reason} (AAC, M4A and video need: pip install 'auscult[formats]')") from None
        except AudioDecodeError as second:
            raise AudioDecodeError(f"{reason}; {second}") from error
    if decoder.frames <= 0:
        decoder.close()
        raise AudioDecodeError("holds no samples")
    return decoder, held


def _source(path: str) -> str | io.BytesIO:
    try:
        source = open_audio_bytes(path)
        if isinstance(source, str):
            with open(source, "rb"):  # says why it cannot be opened; libsndfile only says "System error"
                pass
            if not os.path.isfile(source):
                raise AudioDecodeError("is not a file (a pipe or a device)")
            if os.path.getsize(source) == 0:
                raise AudioDecodeError("the file is empty")
    except AudioDecodeError:
        raise
    except (OSError, ValueError, LookupError, AuscultError) as error:
        raise AudioDecodeError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    return source


def file_signature(path: str) -> tuple[int, int]:
    """Size and modification time of the file that a clip's path lies in; a changed file has another one.

    Raises
    ------
    AudioDecodeError
        The file does not exist.
    """
    if path.startswith("hf:"):
        return (0, 0)
    try:
        status = os.stat(container(path))
    except (OSError, ValueError) as error:
        raise AudioDecodeError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    return status.st_size, status.st_mtime_ns


class _Slot:
    """A place for an open decoder and the lock under which it is used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.decoder: Decoder | None = None
        self.signature = (0, 0)
        self.held = 0
        self.gone = False

    def close(self) -> None:
        with self.lock:
            self.gone = True
            if self.decoder is not None:
                self.decoder.close()
                self.decoder = None


class Decoders:
    """Open decoders of the files used last, for any number of threads; one thread at a time decodes a file."""

    def __init__(self, limit: int = OPEN_DECODERS, held_bytes: int = HELD_BYTES) -> None:
        self._limit, self._held_bytes = limit, held_bytes
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, path: str) -> Iterator[tuple[Decoder, tuple[int, int]]]:
        """The decoder of a path for as long as the context lasts, and the signature of its file."""
        while True:
            with self._lock:
                slot = self._slots.setdefault(path, _Slot())
                self._slots.move_to_end(path)
            with slot.lock:
                if slot.gone:  # closed between the two locks
                    continue
                try:
                    signature = file_signature(path)
                    if slot.decoder is None or slot.signature != signature:
                        if slot.decoder is not None:
                            slot.decoder.close()
                            slot.decoder = None
                        slot.decoder, slot.held = open_decoder(path)
                        slot.signature = signature
                except AuscultError:
                    self._forget(path, slot)
                    raise
                yield slot.decoder, slot.signature
            break
        self._shrink()

    def _forget(self, path: str, slot: _Slot) -> None:
        """Drop a slot whose lock is held."""
        slot.gone = True
        if slot.decoder is not None:
            slot.decoder.close()
            slot.decoder = None
        with self._lock:
            if self._slots.get(path) is slot:
                del self._slots[path]

    def _shrink(self) -> None:
        dropped = []
        with self._lock:
            while len(self._slots) > 1 and (
                len(self._slots) > self._limit or sum(slot.held for slot in self._slots.values()) > self._held_bytes
            ):
                dropped.append(self._slots.popitem(last=False)[1])
        for slot in dropped:  # outside the lock: a slot in use is waited for
            slot.close()

    def close(self) -> None:
        """Close all files; the next use opens them again."""
        with self._lock:
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            slot.close()

    def __len__(self) -> int:
        return len(self._slots)


DECODERS = Decoders()


@dataclass(frozen=True, slots=True)
class ClipAudio:
    """One clip's stretch as a 16-bit WAV that exists only where it is read.

    Attributes
    ----------
    path
        As in ``Clip.path``.
    sample_rate_hz, channels, frames
        Of the WAV: the file's rate, if that is higher 48 kHz; one or two channels (more are mixed to one, as descriptors hear them).
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
    """Taps and the place of the filter's center, a multiple of ``down``: flat to 90 % of the lower rate's half, -73 dB at it."""
    widest = max(up, down)
    half = -(-50 * widest // down) * down
    return up * scipy.signal.firwin(2 * half + 1, 0.95 / widest, window=("kaiser", 8.0)), half
