"""Features depend on contents, backend and policy alone, are computed once, and survive kills and damage."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import soxr

from auscult.corpus import Corpus, open_corpus
from auscult.descriptors import DescriptorSpec
from auscult.engine import MIB, Engine
from auscult.errors import CorpusError, ModelError, StorageError, StoreError
from auscult.metrics import cache as cache_module
from auscult.metrics import features, featureset, inference
from auscult.metrics.embeddings import Backend, Embedded
from auscult.metrics.features import AudioPolicy, FeatureSet, default_cache, embed_sounds, extract, probe_rates
from auscult.metrics.frechet import frechet_infinity
from conftest import sound as synthesised

RATE = 16_000
FRAME = 4_000
DIMENSION = 5


def statistics(samples: np.ndarray, *, scale: float, log: str | None, slow_s: float) -> Embedded:
    """Five numbers of each quarter of a second, and three logits; one line in ``log`` a call."""
    if log is not None:
        with open(log, "a") as handle:
            handle.write(f"{len(samples)}\n")
    time.sleep(slow_s)
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    columns = [frames.mean(1), frames.std(1), frames.min(1), frames.max(1), np.abs(np.diff(frames, axis=1)).mean(1)]
    features = (scale * np.stack(columns, 1)).astype(np.float32)
    return Embedded(features, features.sum(0)[:3].copy())


def backend(*, scale: float = 1.0, log: Path | None = None, slow_s: float = 0.0, classes: int = 3) -> Backend:
    return Backend(
        DescriptorSpec("statistics", 1, (("scale", scale),)),
        sample_rate_hz=RATE,
        dimension=DIMENSION,
        shortest_samples=FRAME,
        frechet="fad",
        frame="0.25 s",
        embed=partial(statistics, scale=scale, log=None if log is None else str(log), slow_s=slow_s),
        classes=classes,
    )


def sound(number: int, duration_s: float = 1.0) -> np.ndarray:
    return synthesised(number, duration_s).astype(np.float32)


def calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def write(folder: Path, names_and_sounds: dict[str, np.ndarray], rate_hz: int = RATE) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in names_and_sounds.items():
        sf.write(folder / name, samples, rate_hz, subtype="FLOAT")
    return open_corpus(folder)


def lengths(count: int) -> dict[str, np.ndarray]:
    """Sounds of 1 to 3 frames."""
    return {f"{n:03d}.wav": sound(n, 0.26 * (1 + n % 3)) for n in range(count)}


def assert_same(one: FeatureSet, other: FeatureSet) -> None:
    np.testing.assert_array_equal(one.features(), other.features())
    np.testing.assert_array_equal(one.logits(), other.logits())
    np.testing.assert_array_equal(one.clip_of_frame, other.clip_of_frame)
    columns = [name for name in one.clips.column_names if name not in {"clip_id", "path"}]
    assert one.clips.select(columns).equals(other.clips.select(columns))


# --- what features are ------------------------------------------------------------------------------------------------


def test_features_are_what_the_backend_says_of_the_decoded_clip(tmp_path: Path) -> None:
    """By hand: decoded by soundfile, embedded directly, looked up by the clip's id."""
    sounds = lengths(7)
    found = extract(write(tmp_path / "in", sounds), backend(), cache=tmp_path / "cache")
    assert found.spec == "statistics/1(scale=1.0)"
    assert len(found) == 7
    for row, clip in enumerate(found.clips.to_pylist()):
        samples, rate = sf.read(tmp_path / "in" / clip["clip_id"], dtype="float32")
        expected = backend().embed(samples)
        np.testing.assert_array_equal(found.frames_of(row), expected.frames)
        np.testing.assert_array_equal(found.logits()[row], expected.logits)
        np.testing.assert_array_equal(found.features()[found.clip_of_frame == row], expected.frames)
        digest = hashlib.sha256((tmp_path / "in" / clip["clip_id"]).read_bytes()).hexdigest()
        assert clip["key"] == clip["sha256"] == digest
        assert (clip["sample_rate_hz"], clip["channels"], clip["n_frames"]) == (rate, 1, len(expected.frames))
        assert clip["duration_s"] == len(samples) / rate
    digests = found.clips["sample_digest"].to_pylist()
    assert digests == sorted(digests)


def test_names_and_order_of_files_change_nothing(tmp_path: Path) -> None:
    sounds = lengths(12)
    one = extract(write(tmp_path / "one", sounds), backend(), cache=tmp_path / "a")
    (tmp_path / "other").mkdir()
    for n, name in enumerate(reversed(sounds)):  # copied: a file that is written again may hold the second it was written in
        shutil.copy(tmp_path / "one" / name, tmp_path / "other" / f"other-{n}.wav")
    other = extract(open_corpus(tmp_path / "other"), backend(), cache=tmp_path / "b")
    assert_same(one, other)
    assert one.clips["clip_id"].to_pylist() != sorted(sounds)  # or the order of contents would be that of the names


@pytest.mark.parametrize("rate_hz", [RATE, 22_050])
def test_a_lossless_container_changes_neither_features_nor_their_order(tmp_path: Path, rate_hz: int) -> None:
    """Nor a score that draws. The files' own digests lie in another order, or this could not fail."""
    found = {}
    noise = [np.random.default_rng(n).normal(0, 0.02 * (1 + n % 5), int(3.3 * rate_hz)).clip(-1, 1) for n in range(40)]
    for suffix in ("wav", "flac"):
        (tmp_path / suffix).mkdir()
        for name, samples in enumerate(noise):
            whole = np.round(samples * 32767).astype(np.int16)
            sf.write(tmp_path / suffix / f"{name}.{suffix}", whole, rate_hz)
        found[suffix] = extract(open_corpus(tmp_path / suffix), backend(), cache=tmp_path / "cache")
    clips = [[clip.partition(".")[0] for clip in one.clips["clip_id"].to_pylist()] for one in found.values()]
    assert clips[0] == clips[1]
    by_file = [np.argsort(one.clips["key"].to_pylist()).tolist() for one in found.values()]
    assert by_file[0] != by_file[1]
    np.testing.assert_array_equal(found["wav"].features(), found["flac"].features())
    np.testing.assert_array_equal(found["wav"].logits(), found["flac"].logits())
    real = np.random.default_rng(0).normal(size=(300, DIMENSION))
    scores = [frechet_infinity(one.features(), real, clips=one.clip_of_frame, shuffles=1) for one in found.values()]
    assert scores[0] == scores[1]


def test_a_content_that_occurs_twice_is_embedded_once_and_counts_twice(tmp_path: Path) -> None:
    sounds = lengths(5)
    corpus = write(tmp_path / "in", {**sounds, "copy.wav": sounds["001.wav"], "again.wav": sounds["001.wav"]})
    found = extract(corpus, backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert calls(tmp_path / "log") == 5
    rows = [row for row, clip in enumerate(found.clips["clip_id"].to_pylist()) if clip in {"001.wav", "copy.wav", "again.wav"}]
    assert rows == list(range(rows[0], rows[0] + 3))  # of one content, by id
    assert len(found.features()) == sum(found.clips["n_frames"].to_pylist()) == len(found.clip_of_frame)
    for row in rows:
        np.testing.assert_array_equal(found.frames_of(row), statistics(sounds["001.wav"], scale=1, log=None, slow_s=0).frames)


def test_stretches_of_one_file_are_clips_of_their_own(tmp_path: Path) -> None:
    samples = sound(3, 2.0)
    write(tmp_path / "in", {"long.wav": samples})
    table = tmp_path / "in" / "clips.csv"
    table.write_text(
        "clip_id,path,start_s,duration_s\na,long.wav,0,0.5\nb,long.wav,0.5,0.75\nc,long.wav,,\nd,long.wav,0.5,0.75\ne,long.wav,1,0.5\n"
    )
    found = extract(open_corpus(table), backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert calls(tmp_path / "log") == 4  # b and d are the same
    row_of = {clip_id: row for row, clip_id in enumerate(found.clips["clip_id"].to_pylist())}
    stretches = {"a": (0, 8000), "b": (8000, 20000), "c": (0, 32000), "d": (8000, 20000), "e": (16000, 24000)}
    for clip_id, (start, end) in stretches.items():
        np.testing.assert_array_equal(found.frames_of(row_of[clip_id]), backend().embed(samples[start:end]).frames)


def test_members_of_a_tar_are_read(tmp_path: Path) -> None:
    files = extract(write(tmp_path / "in", lengths(4)), backend(), cache=tmp_path / "a")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
        for path in sorted((tmp_path / "in").iterdir()):
            archive.add(path, arcname=path.name)
    members = extract(open_corpus(tmp_path / "tars"), backend(), cache=tmp_path / "b")
    assert members.clips["clip_id"].to_pylist() == [f"0.tar/{name}" for name in files.clips["clip_id"].to_pylist()]
    assert_same(files, members)


# --- what the policy does ---------------------------------------------------------------------------------------------


def test_loudness_brings_every_sound_to_one_peak_and_leaves_silence_alone(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    sounds = {"loud.wav": 0.9 * tone, "soft.wav": 0.001 * tone, "silence.wav": 0 * tone}
    found = extract(write(tmp_path / "in", sounds), backend(), cache=tmp_path / "cache", policy=AudioPolicy(loudness="peak"))
    peak = {clip: found.frames_of(row)[:, 3].max() for row, clip in enumerate(found.clips["clip_id"].to_pylist())}
    assert peak["loud.wav"] == pytest.approx(10**-0.05, rel=1e-6)  # -1 dBFS
    assert peak["soft.wav"] == pytest.approx(10**-0.05, rel=1e-6)
    assert peak["silence.wav"] == 0
    assert [clip["peak"] for clip in found.clips.to_pylist() if clip["clip_id"] == "soft.wav"] == [pytest.approx(0.001)]


def test_silence_is_kept(tmp_path: Path) -> None:
    found = extract(write(tmp_path / "in", {"s.wav": np.zeros(RATE, np.float32)}), backend(), cache=tmp_path / "cache")
    assert found.clips["flags"].to_pylist() == [["silent"]]
    np.testing.assert_array_equal(found.features(), np.zeros((4, DIMENSION), np.float32))


def test_a_common_rate_limits_the_band(tmp_path: Path) -> None:
    """A tone above the band's limit is gone, one below is not; and the result is soxr's, rate after rate."""
    time_s = np.arange(RATE) / RATE
    sounds = {f"{hz}.wav": (0.5 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32) for hz in (500, 6000)}
    corpus = write(tmp_path / "in", sounds)
    found = extract(corpus, backend(), cache=tmp_path / "cache", policy=AudioPolicy(rate_hz=8000))
    deviation = {clip: found.frames_of(row)[1:3, 1].min() for row, clip in enumerate(found.clips["clip_id"].to_pylist())}
    assert deviation["500.wav"] == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
    assert deviation["6000.wav"] < 1e-4
    row = found.clips["clip_id"].to_pylist().index("500.wav")
    narrow = soxr.resample(sounds["500.wav"], RATE, 8000, quality="HQ")
    expected = backend().embed(soxr.resample(narrow, 8000, RATE, quality="HQ")).frames
    np.testing.assert_allclose(found.frames_of(row), expected, atol=1e-6)  # in pieces, soxr may round otherwise


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sound(0, 0.5), sound(1, 0.5)
    found = extract(write(tmp_path / "in", {"x.wav": np.stack([left, right], 1)}), backend(), cache=tmp_path / "cache")
    np.testing.assert_allclose(found.features(), backend().embed((left + right) / 2).frames, atol=1e-7)
    assert found.clips["channels"].to_pylist() == [2]


@pytest.mark.parametrize(("arguments", "message"), [({"rate_hz": 0}, "rate_hz"), ({"loudness": "loud"}, "as_is, peak")])
def test_a_policy_that_means_nothing_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioPolicy(**arguments)


# --- what is skipped --------------------------------------------------------------------------------------------------


def test_what_has_no_features_is_skipped_with_a_reason_and_tried_again(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in", {"fine.wav": sound(0, 0.5), "short.wav": sound(1, 0.2)})
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "in" / "README.md").write_text("no audio")
    found = extract(corpus, backend(), cache=tmp_path / "cache")
    assert found.clips["clip_id"].to_pylist() == ["fine.wav"]
    reasons = {Path(row["path"]).name: (row["kind"], row["reason"]) for row in found.skipped.to_pylist()}
    assert reasons.keys() == {"README.md", "broken.wav", "short.wav"}
    assert reasons["README.md"][0] == "not_audio"
    assert reasons["short.wav"] == (
        "unreadable",
        "lasts 0.200 s (3,200 samples at 16,000 Hz), and statistics needs 0.250 s (4,000 samples)",
    )
    sf.write(tmp_path / "in" / "broken.wav", sound(2, 0.5), RATE)
    again = extract(corpus, backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert set(again.clips["clip_id"].to_pylist()) == {"fine.wav", "broken.wav"}
    assert calls(tmp_path / "log") == 1


def test_a_recording_too_long_for_a_clip_is_skipped(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(inference, "LONGEST_S", 6.0)
    corpus = write(tmp_path / "in", {"long.wav": sound(0, 6.1), "fits.wav": sound(1, 5.9)})
    found = extract(corpus, backend(), cache=tmp_path / "cache")
    assert found.clips["clip_id"].to_pylist() == ["fits.wav"]
    assert "lasts over 0.1 minutes" in found.skipped["reason"][0].as_py()


def test_a_corpus_without_a_readable_clip_has_no_features(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in", {"short.wav": sound(1, 0.1)})
    found = extract(corpus, backend(), cache=tmp_path / "cache")
    assert (len(found), found.features().shape, found.logits().shape) == (0, (0, DIMENSION), (0, 3))
    assert list(found.blocks()) == []


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_is_cached_is_not_embedded_again(tmp_path: Path) -> None:
    """Neither when nothing changed, nor after a renaming; a file that changed in place is, under its old name and size."""
    log = tmp_path / "log"
    corpus = write(tmp_path / "in", lengths(6))
    first = extract(corpus, backend(log=log), cache=tmp_path / "cache")
    assert calls(log) == 6
    assert_same(first, extract(corpus, backend(log=log), cache=tmp_path / "cache"))
    (tmp_path / "in" / "003.wav").rename(tmp_path / "in" / "renamed.wav")
    assert_same(first, extract(corpus, backend(log=log), cache=tmp_path / "cache"))
    assert calls(log) == 6
    path = tmp_path / "in" / "000.wav"
    before = path.stat()
    sf.write(path, sound(99, 0.26), RATE, subtype="FLOAT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    changed = extract(corpus, backend(log=log), cache=tmp_path / "cache")
    assert calls(log) == 7
    row = changed.clips["clip_id"].to_pylist().index("000.wav")
    np.testing.assert_array_equal(changed.frames_of(row), backend().embed(sf.read(path, dtype="float32")[0]).frames)


def test_another_backend_or_policy_never_meets_features_of_this_one(tmp_path: Path) -> None:
    corpus, log = write(tmp_path / "in", lengths(3)), tmp_path / "log"
    one = extract(corpus, backend(log=log), cache=tmp_path / "cache")
    twice = extract(corpus, backend(log=log, scale=2.0), cache=tmp_path / "cache")
    np.testing.assert_array_equal(twice.features(), 2 * one.features())  # a power of two is exact
    peak = extract(corpus, backend(log=log), cache=tmp_path / "cache", policy=AudioPolicy(loudness="peak"))
    narrow = extract(corpus, backend(log=log), cache=tmp_path / "cache", policy=AudioPolicy(rate_hz=8000))
    assert calls(log) == 12
    assert not np.array_equal(peak.features(), one.features())
    assert not np.array_equal(narrow.features(), one.features())
    assert len({folder.name for folder in (tmp_path / "cache").iterdir()}) == 4


def test_features_of_a_gpu_and_of_a_processor_are_kept_apart(tmp_path: Path) -> None:
    corpus, log = write(tmp_path / "in", lengths(2)), tmp_path / "log"
    for device, computed in (("cpu", 2), ("cuda:0", 4), ("cuda:1", 4), ("cuda", 4), ("cpu", 4)):
        engine = Engine(device=device)
        extract(corpus, backend(log=log), cache=tmp_path / "cache", engine=engine)
        assert calls(log) == computed
        embed_sounds([("a", "k", sound(0))], backend(), cache=tmp_path / "cache", engine=engine)
    folders = sorted((tmp_path / "cache").iterdir())
    assert {json.loads((folder / "card.json").read_text())["device"] for folder in folders} == {"cpu", "cuda"}
    assert len(folders) == 2


def test_where_the_weights_lie_does_not_matter_while_their_digest_is_named(tmp_path: Path) -> None:
    def folder(*parameters: tuple[str, str]) -> Path:
        return cache_module.open_cache(tmp_path, DescriptorSpec("x", 1, parameters), "policy")

    assert folder(("weights", "here.pt"), ("digest", "12")) == folder(("weights", "there.pt"), ("digest", "12"))
    assert folder(("weights", "here.pt"), ("digest", "12")) != folder(("weights", "here.pt"), ("digest", "13"))
    assert folder(("weights", "here.pt")) != folder(("weights", "there.pt"))


def test_a_damaged_shard_is_named_removed_and_computed_again(tmp_path: Path, monkeypatch, caplog) -> None:
    """Wherever a byte is changed, and if the file is cut; nothing else is computed again."""
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 4)
    corpus, log = write(tmp_path / "in", lengths(10)), tmp_path / "log"
    whole = extract(corpus, backend(log=log), cache=tmp_path / "cache")
    shards = sorted((tmp_path / "cache").glob("*/part-*.parquet"))
    assert sorted(pq.read_metadata(path).num_rows for path in shards) == [2, 4, 4]
    rng = random.Random(7)
    for attempt in range(24):
        path = shards[attempt % 3]
        data = bytearray(path.read_bytes())
        rows = pq.read_metadata(path).num_rows
        if attempt < 3:
            del data[len(data) // 2 :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        before = calls(log)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            again = extract(corpus, backend(log=log), cache=tmp_path / "cache")
        assert path.name in caplog.text
        assert "computed again" in caplog.text
        assert calls(log) - before == rows
        assert_same(whole, again)
        assert sorted((tmp_path / "cache").glob("*/part-*.parquet")) == shards  # equal contents, equal names


def test_a_shard_whose_key_is_damaged_does_not_pass_for_one_of_another_clip(tmp_path: Path, caplog) -> None:
    corpus = write(tmp_path / "in", lengths(1))
    key = extract(corpus, backend(), cache=tmp_path / "cache").clips["key"][0].as_py().encode()
    (path,) = (tmp_path / "cache").glob("*/part-*.parquet")
    data = path.read_bytes()
    assert data.count(key) == 2  # as the key, and as the digest of the file
    path.write_bytes(data.replace(key, bytes([key[0] ^ 1]) + key[1:], 1))
    with caplog.at_level(logging.WARNING):
        extract(corpus, backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert path.name in caplog.text
    assert calls(tmp_path / "log") == 1
    assert path.read_bytes() == data


def test_shards_are_bounded_in_bytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 200)  # bytes: a row has 20 to 60 and its logits 12
    extract(write(tmp_path / "in", lengths(12)), backend(), cache=tmp_path / "cache")
    rows = [pq.read_metadata(path).num_rows for path in (tmp_path / "cache").glob("*/part-*.parquet")]
    assert sum(rows) == 12
    assert len(rows) == 3  # of 32 + 52 + 72 + 32 + ... bytes


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        extract(write(tmp_path / "in", lengths(1)), backend(), cache=tmp_path / "file")


def test_the_default_cache_is_where_the_desktop_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "auscult" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "auscult" / "features"


SCRIPT = """
import sys
from pathlib import Path
from auscult.corpus import open_corpus
from auscult.metrics import cache
from auscult.metrics.features import extract
from test_features import backend
cache.SHARD_ROWS = 4
if __name__ == "__main__":
    extract(open_corpus(sys.argv[1]), backend(log=Path(sys.argv[3]), slow_s=0.03), cache=Path(sys.argv[2]))
"""


def test_a_kill_loses_at_most_a_shard_and_the_same_command_continues(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in", lengths(30))
    log = tmp_path / "log"
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *(str(tmp_path / name) for name in ("script.py", "in", "cache", "log"))]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        while calls(log) < 14 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "cache").glob("*/part-*.parquet"))
    assert 12 <= done < 30
    assert calls(log) - done <= 5  # one shard of 4, and the clip that was being embedded
    after = extract(corpus, backend(log=tmp_path / "more"), cache=tmp_path / "cache")
    assert calls(tmp_path / "more") == 30 - done
    assert_same(after, extract(corpus, backend(), cache=tmp_path / "other"))


def test_two_writers_may_fill_one_cache_at_once(tmp_path: Path, monkeypatch) -> None:
    """While one has embedded half, another comes and fills all of it, into other shards."""
    corpus, log = write(tmp_path / "in", lengths(16)), tmp_path / "log"
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 4)
    inner = []

    def interrupted(samples: np.ndarray) -> Embedded:
        if calls(log) == 8 and not inner:
            inner.append(None)
            monkeypatch.setattr(cache_module, "SHARD_ROWS", 3)
            inner[0] = extract(corpus, backend(log=log), cache=tmp_path / "cache")
        return backend(log=log).embed(samples)

    outer = extract(corpus, replace(backend(), embed=interrupted), cache=tmp_path / "cache")
    assert calls(log) == 8 + 8 + 8  # what the first had written, the second did not compute
    assert_same(outer, inner[0])
    assert_same(outer, extract(corpus, backend(log=log), cache=tmp_path / "cache"))
    assert calls(log) == 24
    assert_same(outer, extract(corpus, backend(), cache=tmp_path / "other"))


def test_a_shard_that_somebody_removes_meanwhile_is_an_error(tmp_path: Path, monkeypatch) -> None:
    corpus = write(tmp_path / "in", lengths(3))
    extract(corpus, backend(), cache=tmp_path / "cache")
    real = features.gather

    def late(folder: Path, *arguments, **named):
        for path in folder.glob("part-*"):
            path.unlink()
        return real(folder, *arguments, **named)

    monkeypatch.setattr(features, "gather", late)
    with pytest.raises(StoreError, match="give the same command again"):
        extract(corpus, backend(), cache=tmp_path / "cache")


def test_what_was_computed_before_an_error_is_kept(tmp_path: Path) -> None:
    corpus, log = write(tmp_path / "in", lengths(5)), tmp_path / "log"
    whole = backend(log=log)

    def stopped(samples: np.ndarray) -> Embedded:
        if calls(log) == 3:
            raise KeyboardInterrupt
        return whole.embed(samples)

    with pytest.raises(KeyboardInterrupt):
        extract(corpus, replace(whole, embed=stopped), cache=tmp_path / "cache")
    extract(corpus, whole, cache=tmp_path / "cache")
    assert calls(log) == 5


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_change_nothing(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in", {**lengths(20), "short.wav": sound(0, 0.1)})
    (tmp_path / "in" / "bad.wav").write_bytes(b"no audio")
    said: list[tuple[int, int | None, str]] = []
    alone = extract(corpus, backend(), cache=tmp_path / "one", progress=lambda *said_now: said.append(said_now))
    engine = Engine(workers=2)
    together = extract(corpus, backend(log=tmp_path / "log"), cache=tmp_path / "two", engine=engine)
    assert calls(tmp_path / "log") == 20
    assert_same(alone, together)
    assert alone.clips.equals(together.clips)
    assert alone.skipped.equals(together.skipped)
    assert said[-1] == (22, 22, "embedding with statistics")
    assert (22, None, "reading clips") in said


def test_no_worker_is_started_where_everything_is_cached(tmp_path: Path, monkeypatch) -> None:
    corpus, sounds = write(tmp_path / "in", lengths(2)), [("a", "k", sound(0))]
    monkeypatch.delattr(inference, "map_in_processes")
    for engine in (Engine(workers=1), Engine(workers=2)):
        extract(corpus, backend(), cache=tmp_path / "cache", engine=engine)
        embed_sounds(sounds, backend(), cache=tmp_path / "cache", engine=engine)


def test_a_backend_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    one = replace(backend(), embed=lambda samples: statistics(samples, scale=1.0, log=None, slow_s=0.0))
    with pytest.raises(ValueError, match="cannot be sent to workers"):
        extract(write(tmp_path / "in", lengths(2)), one, cache=tmp_path / "cache", engine=Engine(workers=2))


# --- what a backend must not do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: Embedded(np.where(np.arange(5) == 2, np.nan, e.frames).astype(np.float32), e.logits), "features are NaN"),
        (lambda e: Embedded(e.frames, np.array([0, np.inf, 0], np.float32)), "1 of 3 logits are NaN or infinite"),
        (lambda e: Embedded(e.frames[:, :4], e.logits), "expected features of shape"),
        (lambda e: Embedded(e.frames[:0], e.logits), "expected features of shape"),
        (lambda e: Embedded(e.frames.astype(np.float64), e.logits), "float64"),
        (lambda e: Embedded(e.frames), "should give 3 logits"),
    ],
)
def test_a_backend_that_breaks_its_promise_is_named_with_the_clip(tmp_path: Path, change, message: str) -> None:
    broken = replace(backend(), embed=lambda samples: change(statistics(samples, scale=1.0, log=None, slow_s=0.0)))
    with pytest.raises(ModelError, match=message) as caught:
        extract(write(tmp_path / "in", {"guilty.wav": sound(0, 0.5)}), broken, cache=tmp_path / "cache")
    assert "guilty.wav" in str(caught.value)


def raising(samples: np.ndarray) -> Embedded:
    raise ModelError("weights: gives values that are not finite")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backend_that_checks_itself_is_named_with_the_clip_too(tmp_path: Path, workers: int) -> None:
    corpus = write(tmp_path / "in", {"guilty.wav": sound(0, 0.5)})
    with pytest.raises(ModelError, match=r"in/guilty\.wav: weights: gives values that are not finite"):
        extract(corpus, replace(backend(), embed=raising), cache=tmp_path / "cache", engine=Engine(workers=workers))


def test_a_file_that_changes_between_its_digest_and_its_decoding_is_refused(tmp_path: Path, monkeypatch) -> None:
    corpus = write(tmp_path / "in", lengths(2))
    real = features.survey

    def changing(*arguments):
        sf.write(tmp_path / "in" / "001.wav", sound(50, 0.5), RATE)
        return real(*arguments)

    monkeypatch.setattr(features, "survey", changing)
    with pytest.raises(CorpusError, match="001.wav: changed while it was read"):
        extract(corpus, backend(), cache=tmp_path / "cache")


# --- blocks and subsets -----------------------------------------------------------------------------------------------


def test_blocks_are_bounded_and_hold_everything_in_order(tmp_path: Path, monkeypatch) -> None:
    found = extract(write(tmp_path / "in", lengths(11)), backend(), cache=tmp_path / "cache")
    everything = found.features()
    for rows in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(featureset, "BLOCK_BYTES", rows * 4 * DIMENSION)
        blocks = list(found.blocks())
        assert all(len(block) == rows for block in blocks[:-1])
        assert 0 < len(blocks[-1]) <= rows
        np.testing.assert_array_equal(np.concatenate(blocks), everything)


def test_features_beyond_the_memory_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    """1.5 MB of features, of which a quarter of 1 MB may be held."""
    wide = 20_000

    def spread(samples: np.ndarray) -> Embedded:
        return Embedded(np.resize(samples, (1, wide)).astype(np.float32))

    one = replace(backend(classes=0), dimension=wide, embed=spread)
    corpus = write(tmp_path / "in", lengths(19))
    small = extract(corpus, one, cache=tmp_path / "cache", engine=Engine(memory_bytes=MIB))
    assert isinstance(small._stored, np.memmap)
    large = extract(corpus, one, cache=tmp_path / "cache")
    assert not isinstance(large._stored, np.memmap)
    np.testing.assert_array_equal(small.features(), large.features())
    assert small.logits() is None
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".json", ".parquet"}


def test_a_subset_is_its_clips(tmp_path: Path) -> None:
    found = extract(write(tmp_path / "in", lengths(9)), backend(), cache=tmp_path / "cache")
    rows = np.array([7, 1, 4])
    part = found.subset(rows)
    np.testing.assert_array_equal(part.features(), np.concatenate([found.frames_of(row) for row in rows]))
    np.testing.assert_array_equal(part.logits(), found.logits()[rows])
    assert part.clips["clip_id"].to_pylist() == [found.clips["clip_id"][row].as_py() for row in rows]
    np.testing.assert_array_equal(part.subset([2]).features(), found.frames_of(4))
    assert len(found.subset([])) == 0


# --- sounds that lie in no file ---------------------------------------------------------------------------------------


def test_sounds_have_the_features_that_files_of_them_have(tmp_path: Path) -> None:
    sounds = lengths(5)
    policy = AudioPolicy(loudness="peak")
    files = extract(write(tmp_path / "in", sounds), backend(), cache=tmp_path / "cache", policy=policy)
    given = ((name, "planted", samples) for name, samples in sounds.items())
    found = embed_sounds(given, backend(log=tmp_path / "log"), cache=tmp_path / "cache", policy=policy)
    row_of = {clip_id: row for row, clip_id in enumerate(found.clips["clip_id"].to_pylist())}
    for row, clip_id in enumerate(files.clips["clip_id"].to_pylist()):
        np.testing.assert_array_equal(found.frames_of(row_of[clip_id]), files.frames_of(row))
    again = [(name, "planted", samples) for name, samples in sounds.items()]
    assert_same(found, embed_sounds(again, backend(log=tmp_path / "log"), cache=tmp_path / "cache", policy=policy))
    assert calls(tmp_path / "log") == 5
    other = [(name, "planted", samples[::-1].copy()) for name, samples in sounds.items()]
    embed_sounds(other, backend(log=tmp_path / "log"), cache=tmp_path / "cache", policy=policy)
    assert calls(tmp_path / "log") == 10  # the same key cannot pass other samples off as these


def test_sounds_are_limited_in_band_as_files_are(tmp_path: Path) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 6000 * np.arange(RATE) / RATE)).astype(np.float32)
    found = embed_sounds([("t", "t", tone)], backend(), cache=tmp_path / "cache", policy=AudioPolicy(rate_hz=8000))
    assert found.features()[1:3, 1].max() < 1e-4


def test_equal_and_short_sounds(tmp_path: Path) -> None:
    silence = np.zeros(RATE, np.float32)
    sounds = [("b", "silence", silence), ("a", "silence", silence), ("short", "silence", silence[:10])]
    found = embed_sounds(sounds, backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert calls(tmp_path / "log") == 1
    assert found.clips["clip_id"].to_pylist() == ["a", "b"]
    assert found.skipped["clip_id"].to_pylist() == ["short"]


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        ([("a", "k", np.zeros(RATE))], "float64"),
        ([("a", "k", np.zeros((1, RATE), np.float32))], r"shape \(1, 16000\)"),
        ([("a", "k", np.full(RATE, np.nan, np.float32))], "NaN"),
        ([("a", "k", np.zeros(RATE, np.float32))] * 2, "occurs twice"),
    ],
)
def test_sounds_that_cannot_be_meant_are_refused(tmp_path: Path, sounds: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_sounds(sounds, backend(), cache=tmp_path / "cache")


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_are_counted_by_headers(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.wav": sound(0), "b.wav": sound(1)}, 16_000)
    write(tmp_path / "in", {"c.wav": sound(2)}, 44_100)
    (tmp_path / "in" / "d.wav").write_bytes(b"no audio")
    (tmp_path / "in" / "README.md").write_text("no audio")
    assert probe_rates(open_corpus(tmp_path / "in")) == {16_000: 2, 44_100: 1, None: 1}


# --- what is damage, and what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [MemoryError("out of memory"), pa.lib.ArrowMemoryError("malloc of size 64 failed"), pa.ArrowException("odd")]
)
def test_an_error_that_says_nothing_of_a_shard_leaves_it(tmp_path: Path, monkeypatch, error: Exception) -> None:
    corpus = write(tmp_path / "in", lengths(2))
    extract(corpus, backend(), cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/part-*.parquet")

    def failing(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.pq, "ParquetFile", failing)
        with pytest.raises(type(error), match=str(error)):
            extract(corpus, backend(), cache=tmp_path / "cache")
    assert path.is_file()
    extract(corpus, backend(log=tmp_path / "log"), cache=tmp_path / "cache")
    assert calls(tmp_path / "log") == 0


def test_damage_is_damage_whatever_error_it_shows_as(tmp_path: Path) -> None:
    """Some changed bits make the reader fail otherwise than by ``ArrowInvalid``; the shard is computed again after each."""
    corpus, log = write(tmp_path / "in", lengths(1)), tmp_path / "log"
    whole = extract(corpus, backend(), cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/part-*.parquet")
    data = path.read_bytes()
    spots = random.Random(0).sample(range(8 * len(data)), 4000)
    seen: set[type] = set()
    for spot in spots:
        damaged = bytearray(data)
        damaged[spot // 8] ^= 1 << spot % 8
        try:
            pq.read_table(pa.BufferReader(damaged)).to_pylist()
        except (pa.ArrowInvalid, OSError):
            continue
        except (UnicodeDecodeError, pa.ArrowException) as error:
            if type(error) not in seen:
                seen.add(type(error))
                path.write_bytes(damaged)
                before = calls(log)
                assert_same(extract(corpus, backend(log=log), cache=tmp_path / "cache"), whole)
                assert calls(log) == before + 1
                assert path.read_bytes() == data
    assert len(seen) >= 2
