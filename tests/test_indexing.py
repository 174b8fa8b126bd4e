"""The store: whole, resumable after any kill, incremental, and honest about every input."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from auscult import describing, indexing
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
from auscult.errors import DescriptorMismatchError, OutputFolderError, StoreError
from auscult.folders import file_digest, locked
from auscult.inputs import input_warnings
from auscult.store import DescriptorStore
from conftest import sound

MEL = load_descriptor("mel", duration_s=1.0)


def digests(store: Path) -> dict[str, str]:
    """Digest of every file of a store."""
    return {str(path.relative_to(store)): file_digest(path) for path in sorted(store.rglob("*")) if path.is_file()}


def build(source, store, **options) -> DescriptorStore:
    return indexing.index(open_corpus(source), store, descriptor=options.pop("descriptor", MEL), **options)


def test_vectors_are_the_descriptors(write_sounds, tmp_path: Path) -> None:
    store = build(write_sounds("in", 6), tmp_path / "store")
    loaded = store.load()
    assert loaded.clip_ids.tolist() == [f"{n:04d}.wav" for n in range(6)]
    for row, number in enumerate(range(6)):
        samples = np.round(sound(number) * 32768).clip(-32768, 32767) / 32768
        expected = MEL.describe(samples.astype(np.float32)[None])[0]
        # writing 16-bit rounds each sample by up to 2^-16, at -40 dB a few hundredths of a dB
        np.testing.assert_allclose(loaded.vectors[row], expected, atol=0.2)
    assert store.verify() == []


def test_long_recording_is_covered_by_windows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sf.write(tmp_path / "in" / "long.wav", np.concatenate([sound(n, 1.0) for n in range(5)])[:75_000], 16_000)
    loaded = build(tmp_path / "in", tmp_path / "store").load()
    np.testing.assert_allclose(loaded.start_s, [0, 1, 2, 3, 75_000 / 16_000 - 1])


@pytest.mark.slow
def test_three_hours_are_described_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "long.wav"
    with sf.SoundFile(path, "w", 8000, 1) as handle:
        for minute in range(180):
            handle.write(np.tile(sound(14 * minute, 2.0, 8000), 30))
    code = (
        "from pathlib import Path; from auscult.corpus import open_corpus; from auscult.indexing import index;"
        "from auscult.descriptors import load_descriptor;"
        f"s = index(open_corpus({str(path.parent)!r}), {str(tmp_path / 'store')!r}, descriptor=load_descriptor('mel'));"
        # not getrusage's ru_maxrss, which begins with the memory of the process that starts this one: the other tests'
        "status = Path('/proc/self/status').read_text();"
        "print(s.card['counts']['windows'], int(status.partition('VmHWM:')[2].split()[0]) // 1024)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    windows, megabytes = map(int, result.stdout.split())
    assert windows == 1055  # 10,800 s / 10.242 s, the remainder as a last window
    assert megabytes < 330  # decoded as a whole it would be 345 MB at 8 kHz and 690 MB at 16 kHz, on top of 150 MB of imports


def test_silence_gets_no_vector_and_is_flagged(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 2)
    sf.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    store = build(folder, tmp_path / "store")
    assert store.card["counts"] == {"clips": 3, "windows": 2, "skipped": 0, "not_audio": 0, "vanished": 0}
    assert store.card["flags"] == {"silent": 1}


def test_every_bad_input_is_listed_with_its_reason(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 3)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.mp3").write_text("not an mp3")
    (folder / "notes.txt").write_text("hello")
    sf.write(folder / "nan.wav", np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    data = (folder / "0000.wav").read_bytes()
    (folder / "cut.wav").write_bytes(data[:30])
    sf.write(folder / "one.wav", np.array([0.5]), 16_000)
    store = build(folder, tmp_path / "store")
    skipped = {Path(row["path"]).name: row for row in store.skipped().to_pylist()}
    assert set(skipped) == {"empty.wav", "text.mp3", "notes.txt", "nan.wav", "cut.wav"}
    assert all(row["reason"] for row in skipped.values())
    assert store.card["counts"]["clips"] == 4
    assert store.card["counts"]["skipped"] == 4
    assert store.card["counts"]["not_audio"] == 1


def test_grown_changed_and_vanished(write_sounds, tmp_path: Path, monkeypatch) -> None:
    folder = write_sounds("in", 5)
    build(folder, tmp_path / "store")
    described = []
    real = describing.describe_item
    monkeypatch.setattr(describing, "describe_item", lambda item, d: described.append(item[0].clip_id) or real(item, d))
    build(folder, tmp_path / "store")
    assert described == []
    write_sounds("in", 2, first=5)  # grown
    sf.write(folder / "0001.wav", sound(40, 1.0), 16_000)  # changed
    (folder / "0002.wav").unlink()  # vanished
    store = build(folder, tmp_path / "store")
    assert sorted(described) == ["0001.wav", "0005.wav", "0006.wav"]
    assert store.card["vanished"] == ["0002.wav"]
    assert store.verify() == []
    loaded = store.load()
    assert sorted(loaded.clip_ids) == [f"{n:04d}.wav" for n in range(7)]
    row = loaded.clip_ids.tolist().index("0001.wav")
    fresh = build(folder, tmp_path / "fresh").load()
    np.testing.assert_array_equal(
        loaded.vectors[loaded.clip == row], fresh.vectors[fresh.clip == fresh.clip_ids.tolist().index("0001.wav")]
    )


def test_what_could_not_be_read_is_tried_again_when_it_changed_or_on_request(write_sounds, tmp_path: Path, monkeypatch) -> None:
    folder = write_sounds("in", 2)
    (folder / "late.wav").write_bytes(b"")
    assert build(folder, tmp_path / "store").card["counts"]["skipped"] == 1
    sf.write(folder / "late.wav", sound(9), 16_000)
    store = build(folder, tmp_path / "store")
    assert (store.card["counts"]["skipped"], store.card["counts"]["clips"]) == (0, 3)
    assert store.skipped().num_rows == 0
    (folder / "bad.wav").write_bytes(b"")
    tried = []
    real = describing.describe_item
    monkeypatch.setattr(describing, "describe_item", lambda item, d: tried.append(item[0].clip_id) or real(item, d))
    for retry, expected in ((False, ["bad.wav"]), (False, []), (True, ["bad.wav"])):
        tried.clear()
        build(folder, tmp_path / "store", retry_skipped=retry)
        assert tried == expected
    (folder / "bad.wav").unlink()  # what was never described is not kept when it has gone
    counts = build(folder, tmp_path / "store").card["counts"]
    assert (counts["skipped"], counts["vanished"]) == (0, 0)


def test_workers_and_batches_change_nothing(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 40, duration_s=0.5)
    (folder / "bad.wav").write_bytes(b"")
    build(folder, tmp_path / "one", engine=Engine(workers=1))
    build(folder, tmp_path / "two", engine=Engine(workers=2))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_decoder_that_crashes_costs_one_clip(write_sounds, tmp_path: Path) -> None:
    """A worker that dies at one file is replaced; every other clip is described."""
    folder = write_sounds("in", 100, duration_s=0.3)
    script = tmp_path / "crash.py"
    script.write_text(
        "import os\n"
        "from auscult import describing, indexing\n"
        "real = describing.describe_item\n"
        "def crash(item, descriptor):\n"
        "    if item[0].clip_id == '0017.wav':\n"
        "        os._exit(11)\n"
        "    return real(item, descriptor)\n"
        "describing.describe_item = crash\n"
        "if __name__ == '__main__':\n"
        "    from auscult.corpus import open_corpus\n"
        "    from auscult.descriptors import load_descriptor\n"
        "    from auscult.engine import Engine\n"
        f"    s = indexing.index(open_corpus({str(folder)!r}), {str(tmp_path / 'store')!r},\n"
        "        descriptor=load_descriptor('mel', duration_s=1.0), engine=Engine(workers=2))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    store = DescriptorStore.open(tmp_path / "store")
    assert [row["clip_id"] for row in store.skipped().to_pylist()] == ["0017.wav"]
    assert store.card["counts"]["clips"] == 99


KILLED = """
import sys
from auscult import describing, indexing
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
indexing.PART_INPUTS = 8
if __name__ == "__main__":
    print("go", flush=True)
    indexing.index(open_corpus(sys.argv[1]), sys.argv[2], descriptor=load_descriptor("mel", duration_s=1.0),
                   engine=Engine(workers=int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("workers", "least"), [pytest.param(1, 8, marks=pytest.mark.slow), (2, 4), pytest.param(2, 16, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_it_ends_equal_to_an_uninterrupted_run(
    write_sounds, tmp_path: Path, workers: int, least: int
) -> None:
    folder = write_sounds("in", 120, duration_s=2.0)
    for number in range(0, 120, 20):
        (folder / f"{number:04d}-bad.wav").write_bytes(b"not audio")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder)]
    subprocess.run([*command, str(tmp_path / "whole"), str(workers)], check=True, capture_output=True)
    rng = random.Random(workers)
    kills = 0
    store = tmp_path / "store"
    while kills < least:
        with subprocess.Popen([*command, str(store), str(workers)], stdout=subprocess.PIPE, start_new_session=True) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.3 if workers == 1 else 1.2))
            kills += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
        if (store / "card.json").exists():  # it was faster than the kill: begin again
            assert digests(store) == digests(tmp_path / "whole")
            shutil.rmtree(store)
        else:
            with pytest.raises(StoreError):
                DescriptorStore.open(store)
    subprocess.run([*command, str(store), str(workers)], check=True, capture_output=True)
    assert digests(tmp_path / "store") == digests(tmp_path / "whole")


def test_interrupt_ends_cleanly_and_can_be_continued(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 600, duration_s=2.0)
    command = [
        sys.executable,
        "-m",
        "auscult",
        "index",
        str(folder),
        "-o",
        str(tmp_path / "store"),
        "--duration",
        "1",
        "-j",
        "2",
    ]

    def heed_ctrl_c() -> None:  # a shell's background job inherits that it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_ctrl_c
    ) as process:
        while not list((tmp_path / "store").glob("vectors/part-*.parquet")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command again" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "store" / "card.json").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert DescriptorStore.open(tmp_path / "store").card["counts"]["clips"] == 600


def test_wrong_descriptor_is_refused(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 2)
    build(folder, tmp_path / "store")
    with pytest.raises(DescriptorMismatchError, match=r"duration_s=1.0.*duration_s=2.0"):
        build(folder, tmp_path / "store", descriptor=load_descriptor("mel", duration_s=2.0))
    (tmp_path / "store" / "card.json").unlink()
    with pytest.raises(DescriptorMismatchError, match=r"duration_s=1.0.*duration_s=2.0"):
        build(folder, tmp_path / "store", descriptor=load_descriptor("mel", duration_s=2.0))


def test_folder_that_holds_something_else_is_left_alone(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputFolderError, match="not a descriptor store"):
        build(folder, tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputFolderError):
        build(folder, tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_second_writer_is_refused(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 2)
    build(folder, tmp_path / "store")
    write_sounds("in", 1, first=2)
    with locked(tmp_path / "store"), pytest.raises(StoreError, match="another process"):
        build(folder, tmp_path / "store")


def test_damage_is_found_by_verify_and_by_reading(write_sounds, tmp_path: Path) -> None:
    store = build(write_sounds("in", 3), tmp_path / "store")
    part = store.part_paths[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(bytes(data))
    assert any("part-00000" in line for line in store.verify())
    part.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(StoreError, match="--verify"):
        store.load()
    part.unlink()
    assert store.verify() == [f"vectors/{part.name}: missing"]


def test_full_disk_says_so_and_the_next_run_finishes(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 30, duration_s=1.0)
    command = [
        sys.executable,
        "-m",
        "auscult",
        "index",
        str(folder),
        "-o",
        str(tmp_path / "store"),
        "--duration",
        "1",
        "-j",
        "1",
    ]

    def tiny_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # the kernel refuses to let a file grow, as a full disk does

    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=tiny_files)
    assert result.returncode == 2
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "store").rglob("*.tmp"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert DescriptorStore.open(tmp_path / "store").verify() == []


def test_padding_is_counted_and_a_better_duration_named(write_sounds, tmp_path: Path) -> None:
    store = build(write_sounds("in", 4, duration_s=0.8), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=2.0))
    assert store.card["padding_share"] == pytest.approx(0.6)
    assert "--duration 0.8" in store.card["warnings"][0]


def test_padding_that_is_not_compared_is_none(write_sounds, tmp_path: Path) -> None:
    store = build(write_sounds("in", 3), tmp_path / "store", descriptor=load_descriptor("contrast"))
    assert store.card["padding_share"] == 0
    assert store.card["warnings"] == []
    assert store.clips()["padding_s"].to_pylist() == [0, 0, 0]


def test_padding_of_several_inputs_is_one_warning(write_sounds, tmp_path: Path) -> None:
    mel = load_descriptor("mel", duration_s=2.0)
    stores = {
        role: build(write_sounds(role, 2, duration_s=duration_s), tmp_path / f"{role}.store", descriptor=mel)
        for role, duration_s in (("generated", 0.8), ("references", 1.0), ("null", 2.0))
    }
    (warning,) = input_warnings(stores)
    assert warning.startswith("60% of generated and 50% of references is padding")
    assert warning.endswith("--duration 0.9")
    assert input_warnings(stores, padding=False) == []


def test_a_run_says_what_has_changed(write_sounds, tmp_path: Path) -> None:
    seen: list[indexing.Changes] = []
    folder = write_sounds("in", 5)
    (folder / "bad.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("no clip")
    build(folder, tmp_path / "store", planned=seen.append)
    build(folder, tmp_path / "store", planned=seen.append, retry_skipped=True)
    write_sounds("in", 2, first=5)  # new
    sf.write(folder / "0001.wav", sound(40, 1.0), 16_000)  # changed
    (folder / "0002.wav").unlink()  # vanished
    build(folder, tmp_path / "store", planned=seen.append)
    assert seen == [
        indexing.Changes(new=6, changed=0, retried=0, unchanged=0, vanished=0),
        indexing.Changes(new=0, changed=0, retried=1, unchanged=5, vanished=0),
        indexing.Changes(new=2, changed=1, retried=0, unchanged=4, vanished=1),
    ]
    assert [changes.first_run for changes in seen] == [True, False, False]


def test_half_precision(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 4)
    full, half = build(folder, tmp_path / "full").load(), build(folder, tmp_path / "half", dtype="float16").load()
    np.testing.assert_allclose(half.vectors, full.vectors, atol=0.016)  # half an ulp of float16 between 32 and 40


def test_memory_does_not_grow_with_the_number_of_clips(write_sounds, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / f"in{count}"
        folder.mkdir()
        sf.write(folder / "0.wav", sound(1, 0.2), 16_000)
        rows = [{"path": "0.wav", "clip_id": str(n), "start_s": n * 1e-5} for n in range(count)]
        (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        code = (
            "from auscult import indexing; indexing.PART_INPUTS = 64;"
            "from auscult.corpus import open_corpus; from auscult.descriptors import load_descriptor;"
            f"indexing.index(open_corpus({str(folder / 'm.jsonl')!r}), {str(tmp_path / f's{count}')!r},"
            " descriptor=load_descriptor('mel'));"
            "status = open('/proc/self/status').read(); print(status.partition('VmHWM:')[2].split()[0])"
        )
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    few, many = peak(100), peak(900)
    # 800 more vectors are 5.5 MB, were they held; what grows is a hash and a duration each, under 200 bytes
    assert many - few < 3_500


@pytest.mark.slow
def test_killed_while_updating_it_ends_equal_to_an_uninterrupted_update(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 60, duration_s=2.0)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder)]
    stores = [tmp_path / "whole", tmp_path / "store"]
    for store in stores:
        subprocess.run([*command, str(store), "1"], check=True, capture_output=True)
    for number in range(0, 60, 7):
        sf.write(folder / f"{number:04d}.wav", sound(800 + number, 2.0), 16_000)  # changed
    (folder / "0001.wav").unlink()  # vanished
    write_sounds("in", 60, first=60, duration_s=2.0)  # grown
    subprocess.run([*command, str(stores[0]), "1"], check=True, capture_output=True)
    rng, kills = random.Random(7), 0
    while kills < 8 and not (kills and (stores[1] / "card.json").exists()):
        with subprocess.Popen([*command, str(stores[1]), "1"], stdout=subprocess.PIPE, start_new_session=True) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.25))
            kills += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([*command, str(stores[1]), "1"], check=True, capture_output=True)
    assert digests(stores[0]) == digests(stores[1])
    assert DescriptorStore.open(stores[1]).verify() == []


def test_an_unfinished_store_is_finished_with_its_own_settings_only(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 3)
    build(folder, tmp_path / "store", descriptor=load_descriptor("mel", duration_s=10.242))
    (tmp_path / "store" / "card.json").unlink()
    with pytest.raises(DescriptorMismatchError, match="10.242.*10.2"):
        build(folder, tmp_path / "store", descriptor=load_descriptor("mel", duration_s=10.2))
    with pytest.raises(DescriptorMismatchError, match="float32.*float16"):
        build(folder, tmp_path / "store", descriptor=load_descriptor("mel"), dtype="float16")


def test_shards_without_vectors(write_sounds, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 2)
    folder = write_sounds("in", 2)
    for number in range(5):
        (folder / f"a{number}.wav").write_bytes(b"")
    store = build(folder, tmp_path / "store")
    assert len(store.load()) == 2
    sf.write(folder / "a1.wav", sound(5), 16_000)
    assert len(build(folder, tmp_path / "store").load()) == 3


def test_a_damaged_table_is_made_again(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 3)
    build(folder, tmp_path / "store")
    (tmp_path / "store" / "clips.parquet").write_bytes(b"")
    assert build(folder, tmp_path / "store").verify() == []


def test_digest_of_the_content_does_not_depend_on_when_clips_came(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 2, first=3)
    build(folder, tmp_path / "grown")
    write_sounds("in", 3)
    grown, fresh = build(folder, tmp_path / "grown"), build(folder, tmp_path / "fresh")
    assert grown.card["content_sha256"] == fresh.card["content_sha256"]
    assert grown.clips()["clip_id"].to_pylist() != fresh.clips()["clip_id"].to_pylist()


def test_channels_that_cancel_out_are_silent(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sf.write(tmp_path / "in" / "x.wav", np.stack([sound(1), -sound(1)], 1), 16_000, subtype="FLOAT")
    assert build(tmp_path / "in", tmp_path / "store").card["flags"] == {"silent": 1}
