"""Decoding: every format, every defect, and windows that cover what was decoded."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult import audio
from auscult.audio import AudioStream, cut_windows, read_audio
from auscult.errors import AudioDecodeError
from conftest import sound

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),  # 16-bit rounding: 1.5e-5
        ("a24.wav", {"subtype": "PCM_24"}, 1e-6),
        ("f.wav", {"subtype": "FLOAT"}, 1e-6),
        ("u8.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("a.flac", {}, 1e-4),
        ("a.aiff", {}, 1e-4),
        ("a.ogg", {}, 5e-2),  # lossy: it has to be the same sound, not the same samples
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 5e-2),
        ("a.mp3", {}, 5e-2),
    ],
)
def test_formats(tmp_path: Path, name: str, options: dict, tolerance: float) -> None:
    rate = 48_000 if name.endswith("opus") else 44_100
    sf.write(tmp_path / name, np.stack([TONE, TONE], 1), rate, **options)
    decoded = read_audio(str(tmp_path / name), sample_rate_hz=rate)
    assert (decoded.facts.channels, decoded.facts.sample_rate_hz) == (2, rate)
    assert len(decoded.samples) == pytest.approx(len(TONE), abs=3000)
    middle = slice(5000, 30_000)
    best = min(np.abs(np.roll(decoded.samples, -lag)[middle] - TONE[middle]).max() for lag in range(-3, 4))
    assert best < tolerance


def test_av_decodes_what_soundfile_cannot(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    decoded = read_audio(str(path), sample_rate_hz=44_100)
    assert decoded.facts.duration_s == pytest.approx(1.0, abs=0.06)
    spectrum = np.abs(np.fft.rfft(decoded.samples[10_000:30_000]))
    assert abs(np.argmax(spectrum) * 44_100 / 20_000 - 440) < 3
    part = read_audio(str(path), sample_rate_hz=44_100, start_s=0.25, duration_s=0.5)
    np.testing.assert_array_equal(part.samples, decoded.samples[11_025 : 11_025 + 22_050])
    with pytest.raises(AudioDecodeError, match=r"lasts 1\.0"):
        read_audio(str(path), sample_rate_hz=44_100, start_s=9.0)


def test_streamed_resampling_equals_resampling_at_once(tmp_path: Path, monkeypatch) -> None:
    x = sound(2, 4.0, 44_100).astype(np.float32)
    sf.write(tmp_path / "x.wav", x, 44_100, subtype="FLOAT")
    monkeypatch.setattr(audio, "BLOCK_S", 0.37)
    pieces = read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000).samples
    np.testing.assert_allclose(pieces, soxr.resample(x, 44_100, 16_000, quality="HQ"), atol=1e-6)


@pytest.mark.parametrize("block_s", [0.01, 0.5, 30.0])
def test_blocks_change_neither_digest_nor_facts(tmp_path: Path, block_s: float, monkeypatch) -> None:
    sf.write(tmp_path / "x.flac", sound(2, 2.0), 16_000)
    whole = read_audio(str(tmp_path / "x.flac"), sample_rate_hz=16_000)
    monkeypatch.setattr(audio, "BLOCK_S", block_s)
    again = read_audio(str(tmp_path / "x.flac"), sample_rate_hz=16_000)
    assert again.facts == whole.facts
    np.testing.assert_array_equal(again.samples, whole.samples)


def test_same_samples_same_digest_in_another_format(tmp_path: Path) -> None:
    samples = np.round(sound(2) * 32767).astype(np.int16)
    sf.write(tmp_path / "x.wav", samples, 16_000)
    sf.write(tmp_path / "x.flac", samples, 16_000)
    sf.write(tmp_path / "y.wav", sound(3), 16_000)
    digests = [read_audio(str(tmp_path / n), sample_rate_hz=8000).facts.sample_digest for n in ("x.wav", "x.flac", "y.wav")]
    assert digests[0] == digests[1] != digests[2]


def test_eight_channels_at_192_khz(tmp_path: Path) -> None:
    t = np.arange(192_000) / 192_000
    x = np.stack([np.sin(2 * np.pi * 300 * t) * (c == 0) for c in range(8)], 1) * 0.8
    sf.write(tmp_path / "x.wav", x, 192_000)
    decoded = read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000)
    assert decoded.facts.channels == 8
    assert np.abs(decoded.samples).max() == pytest.approx(0.1, abs=0.005)  # the mean of the channels


def test_mislabelled_file_is_read_for_what_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    sf.write(buffer, TONE, 44_100, format="MP3")
    (tmp_path / "really-mp3.wav").write_bytes(buffer.getvalue())
    assert read_audio(str(tmp_path / "really-mp3.wav"), sample_rate_hz=16_000).facts.duration_s == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text\n" * 50, "Format not recognised"),
        (bytes(range(256)) * 20, "Format not recognised"),
    ],
)
def test_what_is_no_audio_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(AudioDecodeError, match=reason):
        read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000)


def test_missing_empty_and_nan(tmp_path: Path) -> None:
    with pytest.raises(AudioDecodeError, match="does not exist"):
        read_audio(str(tmp_path / "none.wav"), sample_rate_hz=16_000)
    sf.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(AudioDecodeError, match="no samples"):
        read_audio(str(tmp_path / "empty.wav"), sample_rate_hz=16_000)
    x = sound(1).astype(np.float32)
    x[100] = np.nan
    sf.write(tmp_path / "nan.wav", x, 16_000, subtype="FLOAT")
    with pytest.raises(AudioDecodeError, match=r"1 of 16000 samples .* NaN"):
        read_audio(str(tmp_path / "nan.wav"), sample_rate_hz=16_000)
    sf.write(tmp_path / "x.wav", x[:50], 16_000)
    with pytest.raises(AudioDecodeError, match=r"starts at 5 s, but the file lasts 0.003 s"):
        read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000, start_s=5.0)


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_truncated_file_is_flagged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    sf.write(path, np.tile(sound(2, 2.0), 3), 16_000)
    assert "truncated" not in read_audio(str(path), sample_rate_hz=16_000).facts.flags
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in read_audio(str(path), sample_rate_hz=16_000).facts.flags


def test_truncated_flac_is_refused_or_flagged(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    sf.write(path, np.tile(sound(2, 2.0), 3), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioDecodeError):
        read_audio(str(path), sample_rate_hz=16_000)


@pytest.mark.parametrize(
    ("samples", "flags"),
    [
        (np.zeros(16_000), {"silent"}),
        (1e-4 * sound(2), {"near_silent"}),
        (np.clip(8 * sound(2), -1, 1), {"clipped"}),
        (sound(3)[8000:8800], {"short"}),
        (np.array([0.5]), {"short"}),
        (sound(2), set()),
    ],
)
def test_flags(tmp_path: Path, samples: np.ndarray, flags: set[str]) -> None:
    sf.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    assert set(read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000).facts.flags) == flags


@given(total=st.integers(1, 400), n=st.integers(1, 60), piece=st.integers(1, 90))
@settings(max_examples=200)
def test_windows_cover_the_recording(total: int, n: int, piece: int) -> None:
    x = np.arange(1, total + 1, dtype=np.float32)
    windows = list(cut_windows(iter(np.array_split(x, range(piece, total, piece))), window_samples=n, sample_rate_hz=1))
    for window in windows:
        start = round(window.start_s)
        np.testing.assert_array_equal(window.samples[: window.valid], x[start : start + n])
        assert len(window.samples) == n
        assert (window.samples[window.valid :] == 0).all()
    covered = np.zeros(total, bool)
    for window in windows:
        covered[round(window.start_s) : round(window.start_s) + n] = True
    assert np.count_nonzero(~covered) < max(audio.TAIL_SHARE * n, 1)
    assert len(windows) == 1 or all(window.valid == n for window in windows)
    assert [round(w.start_s) for w in windows[:-1]] == [n * k for k in range(len(windows) - 1)]


def test_section_of_a_file(tmp_path: Path) -> None:
    x = sound(2, 3.0).astype(np.float32)
    sf.write(tmp_path / "x.wav", x, 16_000, subtype="FLOAT")
    part = read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000, start_s=1.0, duration_s=0.5)
    np.testing.assert_array_equal(part.samples, x[16_000:24_000])


def test_large_file_is_hashed_without_being_held(tmp_path: Path, monkeypatch) -> None:
    import hashlib

    sf.write(tmp_path / "x.wav", sound(2, 3.0), 16_000)
    wanted = hashlib.sha256((tmp_path / "x.wav").read_bytes()).hexdigest()
    for limit in (1 << 30, 10):
        monkeypatch.setattr(audio, "READ_AT_ONCE", limit)
        stream = AudioStream(str(tmp_path / "x.wav"), sample_rate_hz=16_000, digest=True)
        list(stream)
        assert stream.facts.sha256 == wanted


def test_damage_in_the_middle_is_not_decoded_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    sf.write(path, np.tile(sound(2, 2.0), 15), 16_000)
    data = bytearray(path.read_bytes())
    at = len(data) * 3 // 4
    data[at : at + 4000] = bytes(4000)
    path.write_bytes(bytes(data))
    try:
        decoded = read_audio(str(path), sample_rate_hz=16_000)
    except AudioDecodeError:
        return
    assert len(decoded.samples) == pytest.approx(16_000 * decoded.facts.duration_s, abs=2)


def test_samples_beyond_reason_are_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "x.wav", np.full((100, 2), 3e38, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioDecodeError, match="full scale is 1"):
        read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000)


def test_a_wav_whose_length_was_unknown_when_it_was_streamed_is_not_truncated(tmp_path: Path) -> None:
    sf.write(tmp_path / "x.wav", sound(2), 16_000)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "x.wav").write_bytes(bytes(data))
    assert read_audio(str(tmp_path / "x.wav"), sample_rate_hz=16_000).facts.flags == ()


class _InterruptedReads(io.BytesIO):
    """A file in the middle of whose third read somebody presses Ctrl-C."""

    reads = 0

    def readinto(self, buffer) -> int:
        self.reads += 1
        if self.reads == 3:
            signal.raise_signal(signal.SIGINT)
        return super().readinto(buffer)


def test_ctrl_c_within_a_read_is_heeded_and_no_clip_is_cut_short(tmp_path: Path, monkeypatch) -> None:
    sf.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 80_000), 16_000)
    source = _InterruptedReads((tmp_path / "a.flac").read_bytes())
    monkeypatch.setattr(audio, "open_audio_bytes", lambda path: source)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(audio.AudioStream("a.flac", sample_rate_hz=16_000))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert source.reads >= 3


def test_only_files_that_may_be_of_other_formats_are_told_how_those_are_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name, told in (("noise.wav", False), ("noise.m4a", True)):
        (tmp_path / name).write_bytes(b"no audio at all " * 10)
        with pytest.raises(AudioDecodeError) as caught:
            read_audio(str(tmp_path / name), sample_rate_hz=16_000)
        assert ("auscult[formats]" in str(caught.value)) == told
