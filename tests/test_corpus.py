"""Sources: what each yields, and what bad ones say."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from auscult.audio import read_audio
from auscult.corpus import Clip, Skipped, open_corpus
from auscult.descriptors import load_descriptor
from auscult.errors import AudioDecodeError, CorpusError, ManifestError
from auscult.indexing import index
from conftest import sound


def clips(source, **options) -> list[Clip]:
    return [item for item in open_corpus(source, **options) if isinstance(item, Clip)]


def skips(source, **options) -> list[Skipped]:
    return [item for item in open_corpus(source, **options) if isinstance(item, Skipped)]


def test_folder_is_recursive_sorted_and_keeps_same_stems_apart(tmp_path: Path) -> None:
    for name in ("b/x.wav", "a/x.wav", "a/x.flac", "a/.hidden.wav", "README.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [clip.clip_id for clip in clips(tmp_path)] == ["a/x.flac", "a/x.wav", "b/x.wav"]
    assert [(Path(skip.path).name, skip.kind) for skip in skips(tmp_path)] == [("README.txt", "not_audio")]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.wav").write_bytes(b"")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    ids = [clip.clip_id for clip in clips(tmp_path)]
    assert ids == ["real/x.wav"]


def test_file_name_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    (skip,) = skips(tmp_path)
    assert "UTF-8" in skip.reason
    skip.path.encode("utf-8")


ROWS = [
    {"path": "x.wav", "clip_id": "one", "caption": "a dog, barking", "labels": "dog;bark", "start_s": "", "duration_s": "0.5"},
    {"path": "sub/y.wav", "clip_id": "two", "caption": "", "labels": "", "start_s": "1.5", "duration_s": ""},
]


def write_manifest(path: Path) -> Path:
    if path.suffix == ".csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifests_of_all_kinds_say_the_same(tmp_path: Path, suffix: str) -> None:
    one, two = clips(write_manifest(tmp_path / f"m.{suffix}"))
    assert one == Clip("one", str(tmp_path / "x.wav"), 0.0, 0.5, "a dog, barking", ("dog", "bark"))
    assert two == Clip("two", str(tmp_path / "sub/y.wav"), 1.5, None, None, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\nx.wav,a\n", "no 'path' column; it has caption, file"),
        ("path,clip_id\nx.wav,a\ny.wav,a\n", "'a' occurs twice"),
        ("path,start_s\nx.wav,soon\n", "start_s should be seconds, got 'soon'"),
        ("path,start_s\nx.wav,-3\n", "from 0 to"),
        ("path,duration_s\nx.wav,nan\n", "above 0 to"),
        ("path,caption\nx.wav,a, b\n", "line 2: expected 2 fields"),
    ],
)
def test_bad_manifests_are_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        clips(tmp_path / "m.csv")


def test_other_encodings_are_named_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,caption\nx.wav,un café\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"0xe9.*--encoding"):
        clips(tmp_path / "m.csv")
    assert clips(tmp_path / "m.csv", encoding="latin-1")[0].caption == "un café"
    with pytest.raises(ValueError, match="unknown encoding"):
        open_corpus(tmp_path / "m.csv", encoding="klingon")


def test_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfpath\nx.wav\n")
    assert len(clips(tmp_path / "m.csv")) == 1


def test_relative_path_may_not_climb_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.csv").write_text(f"path\n../secret.wav\n{tmp_path}/secret.wav\nok.wav\n\n  \n")
    (skip, empty) = skips(tmp_path / "in" / "m.csv")
    assert "climbs out" in skip.reason
    assert "empty" in empty.reason
    assert [Path(clip.path).name for clip in clips(tmp_path / "in" / "m.csv")] == ["secret.wav", "ok.wav"]


def test_broken_jsonl_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "x.wav"}\n{"path": \n')
    with pytest.raises(ManifestError, match="line 2: not valid JSON"):
        clips(tmp_path / "m.jsonl")
    (tmp_path / "n.jsonl").write_text('["x.wav"]\n')
    with pytest.raises(ManifestError, match="expected an object, got list"):
        clips(tmp_path / "n.jsonl")
    (tmp_path / "m.parquet").write_bytes(b"no parquet")
    with pytest.raises(ManifestError, match="not a Parquet file"):
        clips(tmp_path / "m.parquet")


def test_missing_source_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        open_corpus(tmp_path / "nowhere")
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(CorpusError, match="expected a folder, a manifest"):
        open_corpus(tmp_path / "x.docx")


def test_audiocaps_csv_with_a_folder_named_by_youtube_id(audiocaps: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="--audio-root"):
        clips(audiocaps / "val.csv")
    (tmp_path / "audio").mkdir()
    for name in ("vfY_TJq7n_U.wav", "Ytw76HGONaKg.flac", "y2bVZ7rz-5M_280.wav"):
        (tmp_path / "audio" / name).write_bytes(b"")
    found = clips(audiocaps / "val.csv", audio_root=tmp_path / "audio")
    assert {clip.clip_id for clip in found} == {"vfY_TJq7n_U_130", "tw76HGONaKg_570", "y2bVZ7rz-5M_280"}
    assert all(clip.caption for clip in found)
    assert len(skips(audiocaps / "val.csv", audio_root=tmp_path / "audio")) == 495 - 3  # 2,475 rows, five captions a clip


def wav_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, sound(number, 0.3), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_webdataset_tars(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                members = {"wav": wav_bytes(number), "json": json.dumps({"caption": f"sound {number}"}).encode()}
                if number == 3:
                    members = {"wav": wav_bytes(3), "txt": b"sound 3\n"}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"in/{number:03d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    found = clips(tmp_path)
    assert [clip.clip_id for clip in found] == [f"shard-{n // 2}.tar/in/{n:03d}.wav" for n in range(4)]
    assert [clip.caption for clip in found] == [f"sound {n}" for n in range(4)]
    for number, clip in enumerate(found):
        samples = read_audio(clip.path, sample_rate_hz=16_000).samples
        np.testing.assert_allclose(samples, sound(number, 0.3), atol=1e-6)


def test_truncated_tar_is_reported(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.wav")
            info.size = len(wav_bytes(number))
            archive.addfile(info, io.BytesIO(wav_bytes(number)))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    assert any("cannot be read to its end" in skip.reason for skip in skips(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_dataset_saved_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [hub] is not installed")
    features = datasets.Features({"audio": datasets.Audio(decode=False), "caption": datasets.Value("string")})
    # as an Arrow table: encoding through the library would need torchcodec, which auscult does without
    rows = {"audio": [{"bytes": wav_bytes(n), "path": None} for n in range(3)], "caption": ["a", "b", "c"]}
    table = datasets.table.InMemoryTable(pa.table(rows, schema=features.arrow_schema))
    datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).save_to_disk(tmp_path / "saved")
    for source in (str(tmp_path / "saved"), f"hf:{tmp_path / 'saved'}"):
        found = clips(source)
        assert [(clip.clip_id, clip.caption) for clip in found] == [("0", "a"), ("1", "b"), ("2", "c")]
        np.testing.assert_allclose(read_audio(found[1].path, sample_rate_hz=16_000).samples, sound(1, 0.3), atol=1e-6)


def test_two_sources_with_the_same_ids_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").write_bytes(b"")
    assert [clip.clip_id for clip in clips([tmp_path / "a", tmp_path / "b"])] == ["x.wav", "b/x.wav"]


def test_pipes_devices_and_broken_links_are_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "gone.wav")
    assert {Path(skip.path).name for skip in skips(tmp_path)} == {"pipe.wav", "zero.wav", "broken.wav"}
    (tmp_path / "m.csv").write_text("path\npipe.wav\n.\n")
    for clip in clips(tmp_path / "m.csv"):
        with pytest.raises(AudioDecodeError, match="not a file"):
            read_audio(clip.path, sample_rate_hz=16_000)


def test_a_tar_beside_audio_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"")
    with tarfile.open(tmp_path / "backup.tar", "w"):
        pass
    (tmp_path / "folder.tar").mkdir()
    assert [clip.clip_id for clip in clips(tmp_path)] == ["x.wav"]
    assert [Path(skip.path).name for skip in skips(tmp_path)] == ["backup.tar"]


def test_our_own_folders_are_no_input(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 2)
    for _ in range(3):
        store = index(open_corpus(folder), folder / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    assert len(store.card["parts"]) == 1
    assert store.card["counts"]["not_audio"] == 0


def test_adding_a_source_describes_only_what_is_new(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        sf.write(tmp_path / name / "x.wav", sound(number), 16_000)
    options = {"descriptor": load_descriptor("mel", duration_s=1.0)}
    index(open_corpus(tmp_path / "a"), tmp_path / "store", **options)
    store = index(open_corpus([tmp_path / "a", tmp_path / "b"]), tmp_path / "store", **options)
    assert store.clips()["clip_id"].to_pylist() == ["x.wav", "b/x.wav"]
    assert store.card["counts"]["vanished"] == 0


def test_separators_in_names_mean_nothing(tmp_path: Path) -> None:
    sf.write(tmp_path / "a::b.wav", sound(1), 16_000)
    options = {"descriptor": load_descriptor("mel", duration_s=1.0)}
    before = index(open_corpus(tmp_path), tmp_path / "store", **options).clips()["sha256"].to_pylist()
    sf.write(tmp_path / "a::b.wav", sound(2), 16_000)
    assert index(open_corpus(tmp_path), tmp_path / "store", **options).clips()["sha256"].to_pylist() != before


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"path": "x.wav", "caption": "\\ud800"}', "no text"),
        ('{"path": "x.wav", "caption": "' + "a" * 200_000 + '"}', "200,000 characters"),
    ],
)
def test_one_bad_row_costs_one_row(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'\ufeff{row}\n{{"path": "y.wav", "id": 0, "labels": 5}}\n', "utf-8")
    (skip,) = skips(tmp_path / "m.jsonl")
    assert reason in skip.reason
    assert [(clip.clip_id, clip.labels) for clip in clips(tmp_path / "m.jsonl")] == [("0", ("5",))]


def test_members_behind_the_damage_of_a_tar_are_skipped_one_by_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.wav")
            info.size = len(wav_bytes(number))
            archive.addfile(info, io.BytesIO(wav_bytes(number)))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2 - 2000])
    store = index(open_corpus(tmp_path), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    assert store.card["counts"]["clips"] >= 1
    assert store.card["counts"]["skipped"] >= 1
