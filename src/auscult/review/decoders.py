"""Open audio files that are read anywhere, kept open for the next request, used by any number of threads."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile as sf

from ..audio import AV_OPTIONS
from ..corpus.archive import container, open_audio_bytes
from ..errors import AudioDecodeError, AuscultError
from ..storage import Url, is_url
from ..storage import stat as stat_url

FloatArray = npt.NDArray[np.float32]

OPEN_DECODERS = 16
HELD_BYTES = 256 << 20  # of tar members and data set rows, which are held in memory while they are open
BLOCK_FRAMES = 1 << 18  # decoded at once
LEAD_FRAMES = 16_384  # two of the longest Vorbis blocks: what precedes a seek's target until its overlaps are right
LOSSY = frozenset({"OGG", "MP3"})
LOSSY_BLOCK, AV_BLOCK_S, AV_LEAD_S = 1 << 16, 10.0, 0.25
KEPT_BLOCKS = 3  # of each file
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


class Blocks:
    """A signal decoded in blocks at fixed places, of which the last few are kept.

    What a lossy decoder hands out depends, in its last bits at least, on where it began; in fixed blocks, the same samples
    come out in whatever order they are asked for. (Not to the last bit of float32 in MP3, whose decoder remembers more than a
    seek resets: a sample in some thousands may be off by one of 16 bits.)
    """

    def __init__(self, size: int, decode: Callable[[int, int], FloatArray]) -> None:
        self._size, self._decode = size, decode
        self._kept: OrderedDict[int, FloatArray] = OrderedDict()

    def read(self, first: int, last: int, channels: int) -> FloatArray:
        """Frames ``first`` to ``last``, ``(frames, channels)``."""
        pieces = [np.zeros((0, channels), np.float32)]
        for number in range(first // self._size, -(-last // self._size)):
            start = number * self._size
            pieces.append(self._block(number)[max(first - start, 0) : max(last - start, 0)])
        return np.concatenate(pieces)

    def _block(self, number: int) -> FloatArray:
        if number not in self._kept:
            block = self._decode(number * self._size, self._size)
            while len(self._kept) >= KEPT_BLOCKS:
                self._kept.popitem(last=False)
            self._kept[number] = block
        self._kept.move_to_end(number)
        return self._kept[number]


class SoundfileDecoder:
    """What libsndfile reads: WAV, FLAC, AIFF, Ogg Vorbis and Opus, MP3 and others."""

    def __init__(self, source: str | io.BytesIO) -> None:
        self._handle = sf.SoundFile(source)
        self.rate, self.channels = int(self._handle.samplerate), int(self._handle.channels)
        self._blocks = Blocks(LOSSY_BLOCK, self._decoded) if self._handle.format in LOSSY else None
        self.frames = int(self._handle.frames)
        if self.frames >= UNKNOWN_FRAMES or not self._handle.seekable():
            self.frames = self._measured()

    def read(self, first: int, count: int) -> FloatArray:
        if self._blocks is not None:
            return self._blocks.read(first, min(first + count, self.frames), self.channels)
        if self._handle.tell() != first:
            self._handle.seek(first)
        return self._handle.read(count, dtype="float32", always_2d=True)

    def _decoded(self, first: int, count: int) -> FloatArray:
        # the first samples that libsndfile hands out after a seek in a lossy format may be wrong, since each depends on those
        # before it: so begin earlier. A seek to near the last place may end a block off, one from the start does not
        # (https://github.com/libsndfile/libsndfile/issues/885)
        start = max(0, first - LEAD_FRAMES)
        self._handle.seek(0)
        self._handle.seek(start)
        return self._handle.read(first - start + count, dtype="float32", always_2d=True)[first - start :]

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

    Each block is decoded by a decoder of its own that begins a little before it, since AAC fills in noise from a running
    generator. Frames are placed by their time stamps, which in M4A are exact to the sample and in Matroska to the millisecond;
    there the stamps only tell where a block begins.
    """

    def __init__(self, source: str | io.BytesIO) -> None:
        self._source = source
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
        # packets know their ends but not what a decoder cuts off them, so the last second is decoded
        tail = max(0, about - self.rate)
        self.frames = max(1, about)  # until it is known
        self._blocks = Blocks(int(AV_BLOCK_S * self.rate), self._joined)
        self.frames = tail + sum(len(piece) for piece in self._decoded(tail, 2 * self.rate + BLOCK_FRAMES))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        import av

        if isinstance(self._source, io.BytesIO):
            self._source.seek(0)
        try:
            with av.open(self._source, metadata_errors="ignore", container_options=AV_OPTIONS) as opened:
                if not opened.streams.audio:
                    raise AudioDecodeError("holds no audio stream")
                yield opened, opened.streams.audio[0]
        except (av.FFmpegError, ValueError) as error:
            raise AudioDecodeError(f"FFmpeg cannot read it ({error})") from error

    def read(self, first: int, count: int) -> FloatArray:
        return self._blocks.read(first, min(first + count, self.frames), self.channels)

    def _joined(self, first: int, count: int) -> FloatArray:
        return np.concatenate([np.zeros((0, self.channels), np.float32), *self._decoded(first, count)])

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
                        if position > first:  # a seek that went too far
                            yield np.zeros((min(position - first, count), self.channels), np.float32)
                    for piece in planar.resample(frame):
                        block = piece.to_ndarray().T.astype(np.float32, copy=False)
                        begin, end = first - position, first + count - position
                        position += len(block)
                        if end > 0 and begin < len(block):
                            yield block[max(begin, 0) : end]
                    if position >= first + count:
                        return

    def close(self) -> None:
        """Nothing is open between two blocks."""


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
        if not path.startswith("hf:") and not is_url(path):
            _expect_file(container(path))
        source = open_audio_bytes(path)
        if isinstance(source, str):
            _expect_file(source)
            with open(source, "rb"):  # says why it cannot be opened; libsndfile only says "System error"
                pass
            if os.path.getsize(source) == 0:
                raise AudioDecodeError("the file is empty")
    except AudioDecodeError:
        raise
    except (OSError, ValueError, LookupError, AuscultError) as error:
        raise AudioDecodeError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    return source


def _expect_file(path: str) -> None:
    """Asked before it is opened: opening a pipe waits for a writer, for as long as there is none."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise AudioDecodeError("is not a file (a folder, a pipe or a device)")


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
        if is_url(path):
            return stat_url(Url(container(path))) or (0, 0)
        status = os.stat(container(path))
    except (OSError, ValueError, AuscultError) as error:
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
