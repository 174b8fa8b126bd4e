"""Clips as seekable WAVs, their pictures, and the difference of a pair: against libsndfile, planted shifts and known noise."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from auscult.audio import AV_OPTIONS, read_audio
from auscult.errors import AudioDecodeError
from auscult.figures import BANDS, LINEAR_BANDS, OUTSIDE_COLOR, frequency_ticks
from auscult.review import streaming
from auscult.review.media import (
    close_files,
    difference,
    difference_wav,
    levels,
    open_clip,
    spectrogram,
)
from conftest import sound

RATE_HZ = 22_050
FORMATS = ("wav", "flac", "ogg", "mp3", "aiff", "m4a", "aac", "mkv", "hires")


@pytest.fixture(autouse=True)
def closed_files() -> Iterator[None]:
    yield
    close_files()


def stereo(duration_s: float, rate_hz: int = 44_100) -> np.ndarray:
    """Two unequal channels, ``(frames, 2)``."""
    return np.stack([sound(0, duration_s, rate_hz), 0.5 * sound(1, duration_s, rate_hz)], axis=1)


def write_with_ffmpeg(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    av = pytest.importorskip("av")
    kind = {"m4a": "mp4", "aac": "adts", "mkv": "matroska"}[path.suffix[1:]]
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="stereo")
        for start in range(0, len(samples), 1024):
            planar = np.ascontiguousarray(samples[start : start + 1024].T.astype(np.float32))
            frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate_hz, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, bytes]]:
    """The path of 25 s of stereo in a format, and its whole WAV; longer than two of the blocks that FFmpeg decodes at once."""
    folder = tmp_path_factory.mktemp("formats")
    made: dict[str, tuple[Path, bytes]] = {}

    def make(kind: str) -> tuple[Path, bytes]:
        if kind not in made:
            path = folder / ("hires.wav" if kind == "hires" else f"clip.{kind}")
            if kind == "hires":
                sf.write(path, stereo(2.0, 88_200), 88_200)
            elif kind in {"m4a", "aac", "mkv"}:
                write_with_ffmpeg(path, stereo(25.0), 44_100)
            else:
                sf.write(path, stereo(25.0), 44_100)
            clip = open_clip(str(path))
            made[kind] = path, clip.read(0, clip.size_bytes - 1)
        return made[kind]

    return make


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_of_bytes_is_that_slice_of_the_whole(
    kind: str, files: Callable[[str], tuple[Path, bytes]], data: st.DataObject
) -> None:
    path, whole = files(kind)
    first = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 60))
    length = data.draw(st.integers(1, 50) | st.integers(1, 200_000))
    clip = open_clip(str(path))
    assert clip.size_bytes == len(whole)
    assert clip.read(first, first + length - 1) == whole[first : first + length]


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_short_steps_to_and_fro_are_that_slice_too(kind: str, files: Callable[[str], tuple[Path, bytes]]) -> None:
    """libsndfile itself gets every second such step wrong in an MP3, and steps to and fro in Ogg Vorbis."""
    path, whole = files(kind)
    clip, rng, place = open_clip(str(path)), np.random.default_rng(0), len(whole)
    for number in range(300):
        step = int(rng.integers(1, 24_000)) if number % 3 else -int(rng.integers(1, 200_000))
        first = place - step if 44 <= place - step < len(whole) else int(rng.integers(44, len(whole)))
        length = int(rng.integers(1, 12_000))
        assert clip.read(first, first + length - 1) == whole[first : first + length]
        place = min(first + length, len(whole))


def test_an_mp3_of_half_the_rate_is_read_to_one_of_16_bits(tmp_path: Path) -> None:
    """Its decoder adds in another order after some seeks."""
    sf.write(tmp_path / "a.mp3", 0.7 * stereo(30.0, 22_050), 22_050)
    expected = sf.read(tmp_path / "a.mp3", dtype="float64")[0] * 32768
    clip, rng = open_clip(str(tmp_path / "a.mp3")), np.random.default_rng(0)
    for _ in range(100):
        first = int(rng.integers(0, clip.frames - 3000))
        assert np.abs(clip.pcm(first, 3000) - expected[first : first + 3000]).max() <= 1


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_the_whole_is_what_soundfile_reads(kind: str, files: Callable[[str], tuple[Path, bytes]]) -> None:
    path, whole = files(kind)
    expected, rate = sf.read(path, dtype="float64")
    samples, wav_rate = sf.read(io.BytesIO(whole), dtype="int16")
    assert wav_rate == rate and samples.shape == expected.shape
    assert np.abs(samples - np.clip(np.rint(expected * 32768), -32768, 32767)).max() <= 1
    assert sf.info(io.BytesIO(whole)).subtype == "PCM_16"


@pytest.mark.parametrize("kind", ["m4a", "aac", "mkv"])
def test_what_ffmpeg_reads_lies_where_it_lies_in_the_file(kind: str, files: Callable[[str], tuple[Path, bytes]]) -> None:
    """Decoded in blocks with seeks, against one pass over the file."""
    av = pytest.importorskip("av")
    path, whole = files(kind)
    with av.open(str(path)) as container:
        expected = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).T
    samples = np.frombuffer(whole[44:], "<i2").reshape(-1, 2) / 32768
    if kind == "mkv":  # its time stamps are whole milliseconds
        assert abs(len(samples) - len(expected)) <= 44
        for start in (100_000, 500_000, 1_000_000):
            near = [start + shift for shift in range(-45, 46)]
            error = [np.abs(samples[at : at + 5000] - expected[start : start + 5000]).max() for at in near]
            assert min(error) < 0.02  # AAC fills in noise anew
        return
    assert samples.shape == expected.shape
    for start in range(0, len(expected) - 5000, 50_000):
        error = samples[start : start + 5000] - expected[start : start + 5000]
        assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("kind", ["flac", "ogg", "m4a"])
def test_only_the_stretch_of_a_clip_is_served(kind: str, files: Callable[[str], tuple[Path, bytes]]) -> None:
    path, whole = files(kind)
    clip = open_clip(str(path), 11.5, 0.75)
    first = 44 + round(11.5 * 44_100) * 4
    assert clip.duration_s == pytest.approx(0.75, abs=1 / 44_100)
    assert clip.read(44, clip.size_bytes + 100) == whole[first : first + clip.frames * 4]
    assert b"".join(clip.chunks(size=1000)) == clip.read(0, clip.size_bytes - 1)
    assert open_clip(str(path), 24.0, 5.0).duration_s == pytest.approx(1.0, abs=0.02)  # no more than there is


def test_a_high_rate_is_resampled_to_48_khz_without_aliases(tmp_path: Path) -> None:
    for rate in (88_200, 96_000, 192_000, 96_024):
        t = np.arange(2 * rate) / rate
        sf.write(tmp_path / f"{rate}.wav", 0.4 * np.sin(2 * np.pi * 18_000 * t) + 0.4 * np.sin(2 * np.pi * 35_000 * t), rate)
        clip = open_clip(str(tmp_path / f"{rate}.wav"))
        shown = 48_012 if rate == 96_024 else 48_000  # an odd rate is halved rather than resampled by a filter of millions
        assert clip.sample_rate_hz == shown and clip.frames == pytest.approx(2 * shown, abs=1)
        samples = clip.pcm(1000, 90_000)[:, 0] / 32768
        expected = 0.4 * np.sin(2 * np.pi * 18_000 * np.arange(1000, 91_000) / shown)  # the higher tone is gone
        assert np.abs(samples - expected).max() < 0.002, rate


def test_more_than_two_channels_are_mixed_as_descriptors_hear_them(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 6))
    sf.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    clip = open_clip(str(tmp_path / "a.wav"))
    assert clip.channels == 1
    np.testing.assert_allclose(clip.pcm(0, 4000)[:, 0], samples.mean(axis=1) * 32768, atol=1)


def test_eight_bits_and_samples_beyond_full_scale(tmp_path: Path) -> None:
    ramp = np.linspace(-1.5, 1.5, 301)
    sf.write(tmp_path / "loud.wav", ramp, 8000, subtype="FLOAT")
    np.testing.assert_allclose(
        open_clip(str(tmp_path / "loud.wav")).pcm(0, 301)[:, 0], np.clip(ramp * 32768, -32768, 32767), atol=1
    )
    sf.write(tmp_path / "old.wav", np.clip(ramp, -1, 0.99), 8000, subtype="PCM_U8")
    assert np.array_equal(
        open_clip(str(tmp_path / "old.wav")).pcm(0, 301), sf.read(tmp_path / "old.wav", dtype="int16", always_2d=True)[0]
    )


def test_members_of_tars_are_served(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    sf.write(buffer, stereo(1.0), 44_100, format="FLAC")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("x/one.flac")
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    (tmp_path / "one.flac").write_bytes(buffer.getvalue())
    inside, outside = open_clip(f"{tmp_path}/a.tar::x/one.flac", 0.2, 0.5), open_clip(str(tmp_path / "one.flac"), 0.2, 0.5)
    assert inside.read(0, inside.size_bytes) == outside.read(0, outside.size_bytes)
    with pytest.raises(AudioDecodeError, match="no member"):
        open_clip(f"{tmp_path}/a.tar::x/two.flac")


@pytest.mark.parametrize("kind", ["flac", "wav", pytest.param("mp3", marks=pytest.mark.slow)])
def test_an_hour_seeks_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"hour.{kind}"
    minute = sound(3, 60.0, 8000).astype(np.float32)
    with sf.SoundFile(path, "w", 8000, 1) as handle:
        for number in range(60):
            handle.write(minute * np.float32((number + 1) / 60))  # each minute is louder than the one before
    began = time.perf_counter()
    clip = open_clip(str(path))
    opened = time.perf_counter() - began
    assert clip.duration_s == pytest.approx(3600, abs=0.2)
    for number in (59, 3, 40):
        began = time.perf_counter()
        first = 44 + number * 60 * 8000 * 2
        samples = np.frombuffer(clip.read(first, first + 2 * 8000 * 10 - 1), "<i2")
        took = time.perf_counter() - began
        expected = minute[:80_000] * (number + 1) / 60
        assert np.corrcoef(samples, expected)[0, 1] > 0.98
        assert np.std(samples) / 32768 == pytest.approx(np.std(expected), rel=0.05)
        assert took < 1.0, took  # 10 ms on an idle core; decoding the hour takes seconds
    assert opened < 2.0, opened


def bad_files(folder: Path) -> dict[str, str]:
    (folder / "text.wav").write_text("this is no sound")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "dir.wav").mkdir()
    sf.write(folder / "none.wav", np.zeros(0), 16_000)
    sf.write(folder / "short.wav", np.zeros(1600), 16_000)
    return {
        "text.wav": "Format not recognised",
        "empty.wav": "empty",
        "dir.wav": "is not a file",
        "none.wav": "no samples",
        "gone.wav": "No such file",
    }


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(AudioDecodeError, match=reason):
            open_clip(str(tmp_path / name))
        with pytest.raises(AudioDecodeError, match=reason):
            spectrogram(str(tmp_path / name), 0.0, 0.0, 1.0)
    with pytest.raises(AudioDecodeError, match="starts at 2 s, but the file lasts 0.100 s"):
        open_clip(str(tmp_path / "short.wav"), 2.0)
    assert len(streaming.DECODERS) <= 1  # nothing stays open that failed


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    ["ffconcat version 1.0\nfile other.wav\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nOTHER.mp3\n#EXT-X-ENDLIST\n"],
    ids=["concat", "hls"],
)
@pytest.mark.parametrize("name", ["clip.wav", "clip.m3u8"])
def test_a_playlist_leads_to_no_other_file(
    content: str, name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)  # what a name inside a tar would be relative to
    for kind in ("wav", "mp3"):
        sf.write(tmp_path / f"other.{kind}", sound(0), 16_000)
    (tmp_path / name).write_text(content.replace("OTHER", str(tmp_path / "other")))
    path = str(tmp_path / name)
    if packed:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(path, arcname=name)
        path = f"{tmp_path / 'a.tar'}::{name}"
    with pytest.raises(AudioDecodeError):
        open_clip(path)
    with pytest.raises(AudioDecodeError):
        read_audio(path, sample_rate_hz=16_000)


def test_a_path_that_is_a_protocol_of_ffmpeg_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    write_with_ffmpeg(tmp_path / "a.m4a", stereo(1.0), 44_100)
    assert len(read_audio(str(tmp_path / "a.m4a"), sample_rate_hz=16_000).samples) > 15_000
    with pytest.raises(AudioDecodeError):
        read_audio(f"subfile,,start,0,end,0,,:{tmp_path / 'a.m4a'}", sample_rate_hz=16_000)


CONTAINERS = {"mp4": "aac", "mov": "aac", "3gp": "aac", "adts": "aac", "webm": "libopus", "matroska": "flac", "asf": "wmav2",
              "avi": "mp2", "mpegts": "aac", "flv": "aac", "ac3": "ac3", "eac3": "eac3", "wv": "wavpack", "tta": "tta",
              "caf": "pcm_s16be", "mpeg": "mp2", "w64": "pcm_s16le"}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_plain_containers_are_still_read(kind: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path, rate_hz = tmp_path / "clip", 48_000
    try:
        with av.open(str(path), "w", format=kind) as container:
            stream = container.add_stream(CONTAINERS[kind], rate=rate_hz, layout="stereo", bit_rate=128_000)
            wanted = stream.codec_context.format.name if stream.codec_context.format else stream.codec.audio_formats[0].name
            resampler = av.AudioResampler(format=wanted, layout="stereo", rate=rate_hz)
            for start in range(0, rate_hz, 1024):
                frame = av.AudioFrame.from_ndarray(np.full((2, 1024), 0.1, np.float32), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = rate_hz, start
                for piece in resampler.resample(frame):
                    container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, LookupError) as error:
        pytest.skip(f"this FFmpeg writes none ({error})")
    with av.open(str(path), container_options=AV_OPTIONS) as container:
        assert container.streams.audio
    assert open_clip(str(path)).duration_s == pytest.approx(1.0, abs=0.1)


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@pytest.mark.parametrize("path", ["pipe.wav", "pipe.tar::clip.wav"])
def test_a_named_pipe_is_not_waited_for(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / path.partition("::")[0])
    errors: list[Exception] = []

    def opened() -> None:
        try:
            open_clip(str(tmp_path / path))
        except AudioDecodeError as error:
            errors.append(error)

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert "is not a file" in str(errors[0])


def test_a_file_that_changes_under_an_open_clip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, sound(0), 16_000)
    clip = open_clip(str(path))
    clip.read(0, 1000)
    sf.write(path, sound(1, 2.0), 16_000)
    with pytest.raises(AudioDecodeError, match="changed"):
        clip.read(0, 1000)
    again = open_clip(str(path))  # opened anew it is another clip
    assert again.duration_s == 2.0 and len(again.read(0, 1000)) == 1001
    path.unlink()
    with pytest.raises(AudioDecodeError, match="No such file"):
        again.read(0, 1000)


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    samples = sound(0)
    samples[5000] = np.nan
    sf.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    clip = open_clip(str(tmp_path / "a.wav"))
    assert len(clip.read(0, 2000)) == 2001  # the part before is served
    with pytest.raises(AudioDecodeError, match="NaN"):
        clip.read(0, clip.size_bytes - 1)


def test_many_threads_read_many_files_through_few_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "DECODERS", streaming.Decoders(limit=3))
    wholes = {}
    for number in range(6):
        path = tmp_path / f"{number}.flac"
        sf.write(path, sound(number), 16_000)
        wholes[str(path)] = (np.rint(sf.read(path)[0] * 32768)).astype("<i2").tobytes()
    wrong: list[str] = []

    def listen(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                path = str(tmp_path / f"{rng.integers(6)}.flac")
                first = int(rng.integers(0, 30_000))
                if open_clip(path).read(44 + first, 44 + first + 999) != wholes[path][first : first + 1000]:
                    wrong.append(path)
        except Exception as error:  # noqa: BLE001 - a thread's error would pass unseen
            wrong.append(repr(error))

    threads = [threading.Thread(target=listen, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(streaming.DECODERS) <= 3
    streaming.DECODERS.close()
    assert len(streaming.DECODERS) == 0


# pictures


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("scale", ["mel", "linear"])
def test_a_tone_is_drawn_at_its_tick_and_in_its_seconds(scale: Any, tmp_path: Path) -> None:
    t = np.arange(44_100 * 4) / 44_100
    tone = np.where((t >= 1) & (t < 2), np.sin(2 * np.pi * 4000 * t), 0.0)
    sf.write(tmp_path / "a.flac", 0.5 * tone, 44_100)
    image = picture(spectrogram(str(tmp_path / "a.flac"), 0.5, -1.0, 3.0, scale=scale, width=400, clip_duration=2.5))
    assert image.shape == (BANDS if scale == "mel" else LINEAR_BANDS, 400, 3)
    bright = image.sum(axis=2) > 500
    rows, columns = np.nonzero(bright)
    height = dict(frequency_ticks(scale))["4 kHz"]
    assert abs(1 - (rows.mean() + 0.5) / len(image) - height) < 0.02
    # the clip begins 1 s into the picture, the tone 0.5 s into the clip
    assert abs(columns.min() - 150) <= 4 and abs(columns.max() - 249) <= 4
    outside = (image == OUTSIDE_COLOR).all(axis=2)
    assert outside[:, :100].all() and outside[:, 350:].all() and not outside[:, 101:349].any()


def test_a_stretch_is_the_same_picture_whatever_the_clip_it_lies_in(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", sound(1, 4.0), 16_000)
    path = str(tmp_path / "a.wav")
    assert spectrogram(path, 1.0, 0.0, 2.0) == spectrogram(path, 0.0, 1.0, 3.0)
    assert spectrogram(path, 0.0, 0.0, 2.0) != spectrogram(path, 0.0, 1.0, 3.0)


def test_pictures_of_silence_of_nothing_and_of_a_few_samples(tmp_path: Path) -> None:
    sf.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    sf.write(tmp_path / "tick.wav", np.full(20, 0.5), 16_000)
    sf.write(tmp_path / "wide.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (192_000, 6)), 192_000)
    silent = picture(spectrogram(str(tmp_path / "silent.wav"), 0.0, 0.0, 1.0))
    assert silent.max() < 10
    beyond = picture(spectrogram(str(tmp_path / "silent.wav"), 0.0, 5.0, 6.0))
    assert (beyond == OUTSIDE_COLOR).all()
    tick = picture(spectrogram(str(tmp_path / "tick.wav"), 0.0, -0.01, 0.01, width=30))
    assert tick.shape[1] == 30 and tick.max() > 200
    assert picture(spectrogram(str(tmp_path / "wide.wav"), 0.0, 0.0, 1.0)).max() > 200


@pytest.mark.parametrize(
    ("stretch", "width"), [((1.0, 1.0), 100), ((2.0, 1.0), 100), ((0.0, 601.0), 100), ((0.0, float("nan")), 100), ((0, 1), 0)]
)
def test_a_stretch_that_cannot_be_drawn_is_refused(stretch: tuple[float, float], width: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a"):
        spectrogram(str(tmp_path / "a.wav"), 0.0, *stretch, width=width)


def test_pictures_are_fast_also_of_ten_minutes(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", np.tile(sound(0, 60.0, 22_050), 10), 22_050)
    path = str(tmp_path / "a.flac")
    spectrogram(path, 0.0, 0.0, 1.0)
    times = []
    for start in range(5):
        began = time.process_time()
        spectrogram(path, 0.0, float(start), start + 12.0, width=800)
        times.append(time.process_time() - began)
    assert min(times) < 0.06, times  # 15 ms on the machine this was written on
    began = time.process_time()
    assert picture(spectrogram(path, 0.0, 0.0, 600.0, width=1200)).shape[1] == 1200
    assert time.process_time() - began < 3


# differences


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A reference of 16 s, and its samples."""
    parts = [sound(number, 4.0, RATE_HZ) for number in (0, 1, 3, 5)]
    samples = np.concatenate(parts) + 0.003 * np.random.default_rng(9).standard_normal(16 * RATE_HZ)
    path = tmp_path_factory.mktemp("original") / "reference.wav"
    sf.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path, sf.read(path)[0]


def pair(
    folder: Path, reference: Path, samples: np.ndarray, at: tuple[float, float, float], *, rate_hz: int = RATE_HZ, **more: Any
) -> dict[str, Any]:
    """A row as the detector writes it, of a query with the samples; ``at`` is the span in the query and its place."""
    path = folder / f"query-{len(list(folder.iterdir()))}.wav"
    sf.write(path, samples, rate_hz, subtype="FLOAT")
    start, end, place = at
    span = {"query_start_s": start, "query_end_s": end, "reference_start_s": place, "evidence": 9.0}
    span["reference_end_s"] = place + (end - start) * more.get("tempo", 1.0)
    weaker = {"query_start_s": 0.0, "query_end_s": 0.5, "reference_start_s": 9.0, "reference_end_s": 9.5, "evidence": 2.0}
    facts = {"query_path": str(path), "reference_path": str(reference), "query_offset_s": 0.0, "reference_offset_s": 0.0}
    return {**facts, "tempo": 1.0, "pitch_semitones": 0.0, "spans": [weaker, span], **more}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shift=st.integers(0, 4 * RATE_HZ),
    gain=st.floats(0.05, 4) | st.floats(-4, -0.05),
    error=st.floats(-0.028, 0.028),
    lead=st.integers(0, RATE_HZ),
)
def test_a_copy_leaves_nothing_whatever_its_place_and_gain(
    shift: int,
    gain: float,
    error: float,
    lead: int,
    original: tuple[Path, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, samples = original
    query = np.concatenate([np.zeros(lead), gain * samples[shift : shift + 6 * RATE_HZ]])
    start = lead / RATE_HZ + 0.3
    at = (start, start + 5.0, max(0.0, shift / RATE_HZ + 0.3 + error))
    found = difference(pair(tmp_path_factory.mktemp("copy"), path, query, at))
    assert found.samples is not None and found.residual_db < -90
    assert found.gain == pytest.approx(gain, rel=1e-3)
    assert found.lag_s == pytest.approx((lead - shift) / RATE_HZ, abs=0.02 / RATE_HZ)
    assert len(found.samples) == pytest.approx(5 * RATE_HZ, abs=1)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0, 30.0])
@pytest.mark.parametrize("polarity", [1, -1])
def test_noise_of_known_level_is_what_is_left(
    snr_db: float, polarity: int, original: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, samples = original
    copied = samples[3 * RATE_HZ : 11 * RATE_HZ]
    noise = np.random.default_rng(5).standard_normal(len(copied))
    noise *= np.sqrt(np.mean(copied**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    query = 0.3 * polarity * copied + 0.3 * noise
    found = difference(pair(tmp_path, path, query, (0.0, 8.0, 3.02)))
    expected = 10 * np.log10(np.mean((0.3 * noise) ** 2) / np.mean(query**2))
    assert found.residual_db == pytest.approx(expected, abs=0.1)
    assert np.sign(found.gain) == polarity
    # and what is left is the noise, not only as loud
    assert np.corrcoef(found.samples, noise[: len(found.samples)])[0, 1] > 0.99
    wav, rate = sf.read(io.BytesIO(difference_wav(found)))
    assert rate == RATE_HZ
    np.testing.assert_allclose(wav, found.samples, atol=1e-4)


def test_unrelated_sound_leaves_all_of_itself(original: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    query = sound(4, 8.0, RATE_HZ) + 0.01 * np.random.default_rng(1).standard_normal(8 * RATE_HZ)
    assert -0.5 < difference(pair(tmp_path, original[0], query, (0.0, 8.0, 2.0))).residual_db <= 0


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 96_000])
def test_rates_may_differ_and_places_may_lie_between_samples(
    rate_hz: int, original: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, samples = original
    query = soxr.resample(samples[RATE_HZ : 6 * RATE_HZ], RATE_HZ, rate_hz, quality="VHQ")
    found = difference(pair(tmp_path, path, query, (0.2, 4.8, 1.21), rate_hz=rate_hz))
    assert found.sample_rate_hz == min(rate_hz, RATE_HZ)
    assert found.residual_db < -30
    assert found.lag_s == pytest.approx(-1.0, abs=1 / min(rate_hz, RATE_HZ))


def test_without_spans_the_windows_tell_the_place(original: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, samples = original
    row = pair(tmp_path, path, samples[RATE_HZ : 6 * RATE_HZ], (0, 0, 0))
    windows = {"query_start_s": 1.0, "query_end_s": 5.0, "reference_start_s": 2.0, "reference_end_s": 12.0}
    assert difference({**row, "spans": None, "tempo": None, "pitch_semitones": None, **windows}).residual_db < -90
    nothing = difference({**row, "spans": [], "query_start_s": None, "query_end_s": float("nan")})
    assert nothing.samples is None and "no matching stretch" in str(nothing.reason)


@pytest.mark.parametrize("speed", [1.06, 0.94, 1.012])
@pytest.mark.parametrize("told", ["tempo and pitch", "roughly", "pitch"])
def test_a_copy_played_faster_by_resampling_is_resampled_back(
    speed: float, told: str, original: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, samples = original
    query = soxr.resample(samples[3 * RATE_HZ : 11 * RATE_HZ], RATE_HZ * speed, RATE_HZ, quality="VHQ")
    semitones = 12 * np.log2(speed)
    more = {
        "tempo and pitch": {"tempo": speed, "pitch_semitones": semitones},
        "roughly": {"tempo": round(speed + 0.007, 2), "pitch_semitones": round(semitones)},
        "pitch": {"tempo": 1.0, "pitch_semitones": round(semitones)},
    }[told]
    end = len(query) / RATE_HZ - 0.1  # a span whose tempo is wrong is right in its middle
    at = (0.0, end, 3.015 + end / 2 * (speed - more["tempo"]))
    found = difference(pair(tmp_path, path, query, at, **more))
    assert found.residual_db < -25
    assert found.speed == pytest.approx(speed, abs=1e-4)


def test_a_span_that_was_found_at_a_wrong_speed_still_tells_the_middle(
    original: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, samples = original
    query = soxr.resample(samples, RATE_HZ * 1.06, RATE_HZ, quality="VHQ")
    row = pair(tmp_path, path, query, (3.34, 8.50, 6.275 - 5.16 / 2 * 1.03), tempo=1.03, pitch_semitones=1.0)
    found = difference(row)
    assert found.speed == pytest.approx(1.06, abs=1e-4) and found.residual_db < -25


def test_a_change_that_no_resampling_explains_has_no_difference(original: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, samples = original
    stretched = np.concatenate([samples[at : at + 2000] for at in range(0, 4 * RATE_HZ, 1700)])  # slower, and as high
    found = difference(pair(tmp_path, path, stretched, (0.0, 4.5, 0.0), tempo=0.85))
    assert found.samples is None and "resampling" in str(found.reason)
    with pytest.raises(ValueError, match="resampling"):
        difference_wav(found)


def test_silence_on_either_side_has_no_difference(original: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, samples = original
    silent = difference(pair(tmp_path, path, np.zeros(RATE_HZ), (0.0, 1.0, 2.0)))
    assert silent.samples is None and "query is silent" in str(silent.reason)
    row = pair(tmp_path, path, samples[:RATE_HZ], (0.0, 1.0, 0.2))
    other = difference({**row, "reference_path": pair(tmp_path, path, np.zeros(2 * RATE_HZ), (0, 0, 0))["query_path"]})
    assert other.samples is None and "reference is silent" in str(other.reason)
    tiny = difference(pair(tmp_path, path, samples[:50], (0.0, 1.0, 0.0)))
    assert tiny.samples is None and "shorter" in str(tiny.reason)


def test_levels_are_those_of_the_span(original: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, samples = original
    query = np.concatenate([np.ones(RATE_HZ), 0.1 * samples[3 * RATE_HZ : 6 * RATE_HZ]])
    found = levels(pair(tmp_path, path, query, (1.0, 4.0, 3.0)))
    expected = 10 * np.log10(np.mean(samples[3 * RATE_HZ : 6 * RATE_HZ] ** 2))
    assert found.reference_db == pytest.approx(expected, abs=0.01)
    assert found.query_db == pytest.approx(expected - 20, abs=0.01)
    assert levels(pair(tmp_path, path, np.zeros(RATE_HZ), (0.0, 1.0, 3.0))).query_db == -120
