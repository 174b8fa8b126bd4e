"""Decode any recording to mono float32 at a stated rate, in pieces, with a record of what was wrong with it.

A three-hour recording is never in memory as a whole: it is read in blocks, mixed down, resampled by a streaming
resampler, and cut into windows.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr
import xxhash

from .corpus.archive import open_audio_bytes
from .errors import AudioDecodeError, CorpusError, StorageError
from .folders import file_digest
from .interrupts import interrupts_held

FloatArray = npt.NDArray[np.float32]

BLOCK_S = 4.0  # seconds read at once: enough to amortize the calls, few enough to stay in the cache (1.4 MB of 44.1 kHz stereo)
READ_AT_ONCE = 64 << 20  # bytes; larger files are hashed and decoded in two passes, and never held in memory
MAX_PEAK = 1e6  # 120 dB over full scale is no audio; beyond 1e19 its power overflows float32
SILENT_PEAK = 2.0**-24  # below the last bit of 24-bit audio
NEAR_SILENT_PEAK = 1e-3  # -60 dBFS
FULL_SCALE = 2.0**15  # of 16-bit samples
CLIPPED_LEVEL = 0.999  # of full scale
CLIPPED_SHARE = 1e-3  # of the samples; a mastered track touches full scale now and then, a clipped one stays there
STREAMED_SIZE = 0x7FFF_0000
SHORT_S = 0.1
TAIL_SHARE = 0.05  # a remainder shorter than this share of a window is cut, as the audit paper cuts what is over

# What FFmpeg may take a file for, and where it may look: a playlist (HLS, DASH, concat, SDP) called .wav would lead it to
# files that no corpus names, or to the network.
PLAIN_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,mp3,flac,ogg,wav,w64,aiff,caf,au,asf,xwma,avi,mpegts,mpeg,flv,amr,amrnb,amrwb,"
    "ape,ac3,eac3,dts,dtshd,wv,tta,tak,truehd,mlp,loas,mpc,mpc8,gsm,dsf,iff,rm,voc,mxf,nut,shn,oma,qcp,sox,nistsphere"
)
AV_OPTIONS = {"format_whitelist": PLAIN_CONTAINERS, "protocol_whitelist": "file"}

SOUNDFILE_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})

_CUT_SHORT = re.compile(r"^data\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's log of a truncated WAV


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What decoding found out about a clip.

    Attributes
    ----------
    sample_rate_hz, channels
        Of the file.
    duration_s
        Of the decoded stretch.
    peak
        Largest absolute sample, 1.0 being full scale.
    sha256
        Of the file's (or tar member's) bytes, hexadecimal; None if it was not asked for.
    sample_digest
        xxHash3 (128 bit) over the decoded samples, their rate and channel count: equal for a WAV and a FLAC of one depth.
    flags
        Any of ``silent, near_silent, clipped, short, truncated``. Flags are facts, not failures.
    """

    sample_rate_hz: int
    channels: int
    duration_s: float
    peak: float
    sha256: str | None
    sample_digest: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audio:
    """A decoded clip: ``samples`` (time,) float32 mono at ``sample_rate_hz``, and the facts about its source."""

    samples: FloatArray
    sample_rate_hz: int
    facts: AudioFacts


class Window(NamedTuple):
    """A stretch of a clip: ``samples`` (n,) float32, zero-padded after ``valid`` samples, from ``start_s`` of the clip."""

    start_s: float
    samples: FloatArray
    valid: int


class AudioStream:
    """Decode one clip piece by piece; iterate for mono pieces (time,) float32, then read :attr:`facts`.

    Parameters
    ----------
    path
        As in ``Clip.path``.
    sample_rate_hz
        Rate of the pieces.
    start_s, duration_s
        The stretch of the file; a duration of None means up to its end.
    digest
        Whether to compute the SHA-256 of the file as well.

    Raises
    ------
    AudioDecodeError
        While iterating: the file is no audio, is damaged, holds no samples or samples that are not finite.
    """

    def __init__(
        self,
        path: str,
        *,
        sample_rate_hz: int,
        start_s: float = 0.0,
        duration_s: float | None = None,
        digest: bool = False,
    ) -> None:
        if sample_rate_hz <= 0:
            raise ValueError(f"expected a positive rate in Hz, got {sample_rate_hz}")
        self.path = path
        self.sample_rate_hz = sample_rate_hz
        self.start_s = start_s
        self.duration_s = duration_s
        self.digest = digest
        self.facts: AudioFacts | None = None
        self._sha256: str | None = None

    def __iter__(self) -> Iterator[FloatArray]:
        try:
            source = open_audio_bytes(self.path)
            if isinstance(source, str) and not os.path.exists(source):
                raise AudioDecodeError("does not exist")
            if isinstance(source, str) and not os.path.isfile(source):
                raise AudioDecodeError("is not a file (a folder, a pipe or a device)")
            if isinstance(source, str) and os.path.isfile(source) and os.path.getsize(source) == 0:
                raise AudioDecodeError("the file is empty")
            if self.digest:
                source, self._sha256 = _digested(source)
        except (OSError, CorpusError) as error:
            raise AudioDecodeError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
        begun = False
        try:
            for piece in self._soundfile_pieces(source):
                begun = True
                yield piece
        except sf.LibsndfileError as error:
            reason = str(error.error_string).rstrip(".")
            if "does not exist" in reason:  # said of some truncated files that do
                reason = "Format not recognised"
            if begun:  # damaged in the middle: what was handed out cannot be taken back and decoded otherwise
                raise AudioDecodeError(f"damaged ({reason})") from error
            if isinstance(source, io.BytesIO):
                source.seek(0)
            yield from self._av_pieces(source, reason)

    def _soundfile_pieces(self, source: str | io.BytesIO) -> Iterator[FloatArray]:
        with interrupts_held():
            opened = sf.SoundFile(source)
        with opened as handle:
            rate = handle.samplerate
            start, wanted = _stretch(self.start_s, self.duration_s, rate)
            if start >= handle.frames > 0:
                raise AudioDecodeError(f"starts at {self.start_s:g} s, but the file lasts {handle.frames / rate:.3f} s")
            if start:
                with interrupts_held():
                    handle.seek(start)
            available = handle.frames - start
            wanted = available if wanted is None else min(wanted, available)
            # 16-bit PCM is read as it lies in the file: converting it with numpy is four times faster than libsndfile
            dtype = "int16" if handle.subtype in {"PCM_16", "PCM_S8", "PCM_U8"} else "float32"
            size = int(BLOCK_S * rate)
            remaining = wanted

            def blocks() -> Iterator[npt.NDArray[Any]]:
                nonlocal remaining
                while remaining > 0:
                    with interrupts_held():
                        block = handle.read(min(size, remaining), dtype=dtype, always_2d=True)
                    if len(block) == 0:
                        return
                    remaining -= len(block)
                    yield block

            cut_short = _CUT_SHORT.search(handle.extra_info)
            yield from self._pieces(blocks(), rate, handle.channels)
            # a program that streams a WAV cannot know its length and writes the largest there is
            if remaining > 0 or (cut_short and int(cut_short[2]) < int(cut_short[1]) < STREAMED_SIZE):
                self._flag("truncated")

    def _av_pieces(self, source: str | io.BytesIO, reason: str) -> Iterator[FloatArray]:
        try:
            import av
        except ImportError:
            known = os.path.splitext(self.path)[1].lower() in SOUNDFILE_SUFFIXES  # a broken file of these is no other format
            hint = "" if known else " (AAC, M4A and video need: pip install 'auscult[formats]')"
            raise AudioDecodeError(f"{reason}{hint}") from None
        try:
            with av.open(source, metadata_errors="ignore", container_options=AV_OPTIONS) as container:
                if not container.streams.audio:
                    raise AudioDecodeError("holds no audio stream")
                stream = container.streams.audio[0]
                rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
                if not rate or not channels:
                    raise AudioDecodeError(f"{reason}, and its audio stream names no rate")
                yield from self._pieces(_av_blocks(container, stream, self.start_s, self.duration_s, rate), rate, channels)
        except (av.FFmpegError, ValueError) as error:
            raise AudioDecodeError(f"{reason}, nor can FFmpeg read it ({error})") from error

    def _pieces(self, blocks: Iterator[npt.NDArray[Any]], rate: int, channels: int) -> Iterator[FloatArray]:
        """Mix down and resample native blocks (frames, channels), and gather the facts on the way."""
        resampler = soxr.ResampleStream(rate, self.sample_rate_hz, 1, dtype="float32", quality="HQ")
        digest = xxhash.xxh3_128(f"{rate}:{channels}:".encode())
        frames, clipped, peak = 0, 0, 0.0
        for block in blocks:
            digest.update(np.ascontiguousarray(block).data)
            full_scale = FULL_SCALE if block.dtype == np.int16 else 1.0
            block_peak = max(-float(block.min()), float(block.max())) / full_scale
            if not np.isfinite(block_peak):
                bad = int(np.count_nonzero(~np.isfinite(block)))
                raise AudioDecodeError(f"{bad} of {block.size} samples from {frames / rate:.1f} s on are NaN or infinite")
            if block_peak > MAX_PEAK:
                raise AudioDecodeError(f"holds samples of {block_peak:.3g}, where full scale is 1; scale it first")
            if block_peak >= CLIPPED_LEVEL:
                clipped += int(np.count_nonzero(np.abs(block.astype(np.float32)) >= CLIPPED_LEVEL * full_scale))
            peak = max(peak, block_peak)
            frames += len(block)
            mono = _mixdown(block, full_scale)
            yield mono if rate == self.sample_rate_hz else resampler.resample_chunk(mono)
        if frames == 0:
            raise AudioDecodeError("holds no samples")
        if rate != self.sample_rate_hz:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        flags = []
        if peak < SILENT_PEAK:
            flags.append("silent")
        elif peak < NEAR_SILENT_PEAK:
            flags.append("near_silent")
        if clipped > CLIPPED_SHARE * frames * channels:
            flags.append("clipped")
        if frames < SHORT_S * rate:
            flags.append("short")
        self.facts = AudioFacts(rate, channels, frames / rate, peak, self._sha256, digest.hexdigest(), tuple(flags))

    def _flag(self, flag: str) -> None:
        if self.facts is not None:
            self.facts = replace(self.facts, flags=(*self.facts.flags, flag))


def _digested(source: str | io.BytesIO) -> tuple[str | io.BytesIO, str]:
    """The SHA-256 of a source; a small file is read once, for the digest and for the decoder."""
    if isinstance(source, io.BytesIO):
        return source, hashlib.sha256(source.getbuffer()).hexdigest()
    status = Path(source).stat()
    if status.st_size > READ_AT_ONCE:
        return source, _large_file_digest(
            str(source), status.st_size, status.st_mtime_ns
        )  # str: the cache must not hold a HeldFile
    with open(source, "rb") as handle:
        data = handle.read()
    return io.BytesIO(data), hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=16)
def _large_file_digest(path: str, size: int, mtime_ns: int) -> str:
    """Kept, because the segments of one long recording ask for it one after the other."""
    return file_digest(Path(path))


def _stretch(start_s: float, duration_s: float | None, rate: int) -> tuple[int, int | None]:
    return round(start_s * rate), None if duration_s is None else max(1, round(duration_s * rate))


def _mixdown(block: npt.NDArray[Any], full_scale: float) -> FloatArray:
    """Mean over channels, scaled to full scale 1; channel by channel, which is several times faster than ``mean(axis=1)``."""
    mono = block[:, 0].astype(np.float32)
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if (divisor := full_scale * block.shape[1]) != 1:
        mono *= np.float32(1 / divisor)
    return mono


def _av_blocks(container: Any, stream: Any, start_s: float, duration_s: float | None, rate: int) -> Iterator[FloatArray]:
    """Yield (frames, channels) float32 of one stream, cut to the wanted stretch by counting samples."""
    import av

    start, wanted = _stretch(start_s, duration_s, rate)
    resampler = av.AudioResampler(format="fltp")
    position = 0
    for frame in container.decode(stream):
        for planar in resampler.resample(frame):
            block = planar.to_ndarray().T.astype(np.float32, copy=False)
            first, last = max(start - position, 0), len(block)
            position += len(block)
            if wanted is not None:
                last = min(last, start + wanted - (position - len(block)))
            if first < last:
                yield block[first:last]
            if wanted is not None and position >= start + wanted:
                return
    if start >= position > 0:
        raise AudioDecodeError(f"starts at {start_s:g} s, but the file lasts {position / rate:.3f} s")


def read_audio(path: str, *, sample_rate_hz: int, start_s: float = 0.0, duration_s: float | None = None) -> Audio:
    """Decode a whole clip to mono.

    Parameters
    ----------
    path
        File, URL, ``ARCHIVE.tar::MEMBER`` of either, or ``hf:NAME:SPLIT#ROW``.
    sample_rate_hz
        Rate of the result in Hz.
    start_s, duration_s
        Stretch of the file in seconds.

    Returns
    -------
    Audio
        Samples (time,) float32 in about [-1, 1], and the facts about the file.

    Raises
    ------
    AudioDecodeError
        The file is no audio, is damaged, empty, or holds NaN.
    """
    stream = AudioStream(
        path if isinstance(path, str) else str(path), sample_rate_hz=sample_rate_hz, start_s=start_s, duration_s=duration_s
    )
    try:
        pieces = list(stream)
    except StorageError as error:  # of a corpus it ends the run; what is shown or heard is then this one clip
        raise AudioDecodeError(f"cannot be opened ({error})") from error
    assert stream.facts is not None  # set when iteration ended
    return Audio(np.concatenate(pieces), sample_rate_hz, stream.facts)


def cut_windows(
    pieces: Iterator[FloatArray], *, window_samples: int, sample_rate_hz: int, tail: str = "move"
) -> Iterator[Window]:
    """Cut a stream of mono pieces into consecutive windows that cover it.

    A recording shorter than a window is zero-padded. Of a longer one, a remainder under 5 % of a window is cut (the
    audit paper cuts everything after the first window); a longer remainder becomes a last window that ends where the
    recording ends, so that no window of a long recording is padded. With ``tail="pad"`` it is padded instead, whatever its
    length, and all windows start at multiples of their length.

    Examples
    --------
    >>> pieces = iter([np.arange(10, dtype=np.float32)])
    >>> [(w.start_s, w.samples.tolist()) for w in cut_windows(pieces, window_samples=4, sample_rate_hz=1)]
    [(0.0, [0.0, 1.0, 2.0, 3.0]), (4.0, [4.0, 5.0, 6.0, 7.0]), (6.0, [6.0, 7.0, 8.0, 9.0])]
    """
    n, emitted = window_samples, 0  # ``emitted``: samples covered by the windows so far
    held = np.zeros(0, np.float32)  # everything after the start of the last window
    origin = 0  # position of held[0]
    for piece in pieces:
        held = np.concatenate([held, piece]) if len(held) else piece
        while len(held) - (emitted - origin) >= n:
            held, origin = held[emitted - origin :], emitted  # keeps this window, from which the last one may borrow
            yield Window(emitted / sample_rate_hz, held[:n], n)
            emitted += n
    total = origin + len(held)
    if emitted == 0:
        yield Window(0.0, np.pad(held, (0, n - len(held))), len(held))
    elif tail == "pad":
        if total > emitted:
            rest = held[emitted - origin :]
            yield Window(emitted / sample_rate_hz, np.pad(rest, (0, n - len(rest))), len(rest))
    elif total - emitted >= TAIL_SHARE * n:
        yield Window((total - n) / sample_rate_hz, held[len(held) - n :], n)
