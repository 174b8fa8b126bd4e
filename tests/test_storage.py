"""Sources and stores at URLs, against a server that speaks S3; shards that prove their bytes; one writer at a time."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from botocore.client import Config
from hypothesis import given
from hypothesis import strategies as st

from auscult import indexing
from auscult.audio import read_audio
from auscult.audit import Audit, AuditConfig, audit
from auscult.cli.progress import continued
from auscult.corpus import Clip, open_corpus
from auscult.describing import describe_item
from auscult.descriptors import Descriptor, load_descriptor
from auscult.duplicates import DedupConfig, Duplicates, deduplicate
from auscult.engine import Engine
from auscult.errors import (
    AudioDecodeError,
    AuscultError,
    CorpusError,
    ManifestError,
    OutputFolderError,
    StorageError,
    StoreError,
)
from auscult.folders import building
from auscult.inputs import source_of
from auscult.review.decoders import file_signature, open_decoder
from auscult.storage import (
    Folder,
    LocalFolder,
    Url,
    digest_of,
    fetch,
    is_url,
    join,
    lease,
    open_folder,
    place_of,
    remote,
    writing,
)
from auscult.storage.url import key_of
from auscult.store import DescriptorStore, digest_in, list_parts, part_order
from conftest import sound

MEL = load_descriptor("mel", duration_s=0.3)
KEY, SECRET = "AKIATESTTESTTESTTEST", "verysecret/with+slash"


class Server:
    """A server that keeps objects as S3 does, and a client of another maker's to look into it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, request_checksum_calculation="when_required"),
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return {
            item["Key"]: self.client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            for item in found
            if not item["Key"].endswith("/")
        }

    def demand_credentials(self, wanted: bool) -> None:
        """From now on refuse requests that are not signed by somebody known, who is nobody; or let everybody in again."""
        body = b"0" if wanted else b"inf"
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth", data=body, method="POST", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request, timeout=5).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield Server(port)
        process.kill()


@pytest.fixture
def bucket(server: Server, monkeypatch, tmp_path: Path, request) -> str:
    """Name of a fresh bucket, with the environment that leads to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name, seconds in {"RENEW_S": 0.1, "PATIENCE_S": 0.6, "POLL_S": 0.05, "SETTLE_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    name = "b" + digest_of(request.node.name.encode())[:16]
    server.client.create_bucket(Bucket=name)
    return name


def write_files(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        sf.write(folder / f"{number:04d}.wav", sound(number, 0.3), 16_000)
    return folder


def build(source, store, **options) -> DescriptorStore:
    return indexing.index(open_corpus(source), store, descriptor=MEL, **options)


def rows_of(store: DescriptorStore) -> list[dict]:
    rows = store.clips().to_pylist()
    return [{**row, "path": row["clip_id"]} for row in rows]


def same_vectors(first: DescriptorStore, second: DescriptorStore) -> bool:
    one, two = first.load(), second.load()
    return np.array_equal(one.vectors, two.vectors) and one.clip_ids[one.clip].tolist() == two.clip_ids[two.clip].tolist()


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_a_store_at_a_url_equals_one_on_disk(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 4)
    audio = write_files(tmp_path / "audio", 8)
    write_files(audio / "b" / "deep", 2, first=8)
    write_files(audio / ".hidden", 1, first=20)
    (audio / "b" / "notes.txt").write_text("no sound")
    (audio / "broken.wav").write_bytes(b"not audio")
    (audio / "what? 100% #1 é.wav").write_bytes((audio / "0000.wav").read_bytes())
    local = build(audio, tmp_path / "local")
    build(audio, audio / "own")  # a store inside a source is passed over
    server.upload(audio, bucket, "audio")
    mixed = build(f"s3://{bucket}/audio", tmp_path / "mixed")
    distant = build(f"s3://{bucket}/audio", f"s3://{bucket}/stores/one")
    assert distant.part_names == mixed.part_names  # which hold the digests of their bytes
    assert len(distant.part_names) == 4
    assert distant.card == mixed.card
    assert rows_of(distant) == rows_of(local)
    assert same_vectors(distant, local)
    assert [row["clip_id"] for row in distant.skipped().to_pylist()] == [row["clip_id"] for row in local.skipped().to_pylist()]
    assert distant.verify() == []
    paths = distant.clips()["path"].to_pylist()
    assert f"s3://{bucket}/audio/what%3F 100%25 #1 é.wav" in paths
    assert all(read_audio(path, sample_rate_hz=16_000).facts.duration_s == pytest.approx(0.3) for path in paths)
    names = set(server.objects(bucket, "stores/"))
    assert names == {f"stores/one/{name}" for name in ("card.json", "clips.parquet", "skipped.parquet")} | {
        f"stores/one/vectors/{name}" for name in distant.part_names
    }
    assert same_vectors(pickle.loads(pickle.dumps(distant)), local)


def test_grown_changed_vanished_at_a_url(server: Server, bucket: str, tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 5)
    server.upload(audio, bucket, "a")
    changes: list[indexing.Changes] = []
    for _ in range(2):
        build(f"s3://{bucket}/a", f"s3://{bucket}/store", planned=changes.append)
    sf.write(audio / "0001.wav", sound(40, 0.31), 16_000)  # another size: the server tells whole seconds of time only
    write_files(audio, 2, first=5)
    server.upload(audio, bucket, "a")
    server.client.delete_object(Bucket=bucket, Key="a/0002.wav")
    time.sleep(1.1 - time.time() % 1)
    store = build(f"s3://{bucket}/a", f"s3://{bucket}/store", keep_vanished=False, planned=changes.append)
    assert [(c.new, c.changed + c.unchanged, c.vanished) for c in changes] == [(5, 0, 0), (0, 5, 0), (2, 4, 1)]
    assert store.verify() == []
    (audio / "0002.wav").unlink()
    fresh = build(audio, tmp_path / "fresh")
    assert sorted(store.load().clip_ids) == sorted(fresh.load().clip_ids)
    assert store.card["content_sha256"] == fresh.card["content_sha256"]


KILLED = """
import sys
from auscult import indexing
from auscult.corpus import open_corpus
from auscult.describing import describe_item
from auscult.descriptors import Descriptor, load_descriptor
from auscult.duplicates import DedupConfig, Duplicates, deduplicate
from auscult.storage import lease
indexing.PART_INPUTS = 4
lease.SETTLE_S, lease.PATIENCE_S = 0.05, 600.0
if __name__ == "__main__":
    indexing.index(open_corpus(sys.argv[1]), sys.argv[2], descriptor=load_descriptor("mel", duration_s=0.3),
                   progress=lambda done, total, what: print(done, flush=True))
"""


@pytest.mark.slow
def test_killed_at_a_url_it_ends_equal_to_an_uninterrupted_run(
    server: Server, bucket: str, tmp_path: Path, monkeypatch
) -> None:
    server.upload(write_files(tmp_path / "audio", 40), bucket, "a")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), f"s3://{bucket}/a"]
    monkeypatch.setattr(indexing, "PART_INPUTS", 4)
    build(f"s3://{bucket}/a", f"s3://{bucket}/whole")
    kills = 0
    while kills < 2:
        with subprocess.Popen([*command, f"s3://{bucket}/store"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == 10:  # two shards are written, and two clips of the third described
                    break
            process.send_signal(signal.SIGKILL)
        kills += 1
        names = server.objects(bucket, "store/")
        assert "store/card.json" not in names
        assert len([name for name in names if "/part-" in name]) >= 2 * kills
    # a killed writer's lease stands; but its process is known to be dead, so nobody waits for its patience
    subprocess.run([*command, f"s3://{bucket}/store"], check=True, timeout=120)
    whole, store = (server.objects(bucket, name) for name in ("whole/", "store/"))
    assert {name.removeprefix("whole/"): data for name, data in whole.items()} == {
        name.removeprefix("store/"): data for name, data in store.items()
    }


def test_tars_and_manifests_at_urls(server: Server, bucket: str, tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 6)
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "x.tar", "w") as archive:
        for number in range(6):
            archive.add(audio / f"{number:04d}.wav", f"{number:04d}.wav")
            text = json.dumps({"caption": f"sound {number}"}).encode()
            member = tarfile.TarInfo(f"{number:04d}.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    local = build(tars, tmp_path / "local")
    server.upload(tars, bucket, "tars")
    server.upload(audio, bucket, "audio")
    for source in (f"s3://{bucket}/tars", f"s3://{bucket}/tars/x.tar"):
        store = build(source, f"s3://{bucket}/store-{len(source)}")
        assert rows_of(store) == rows_of(local)
        assert same_vectors(store, local)
        changes: list[indexing.Changes] = []
        build(source, f"s3://{bucket}/store-{len(source)}", planned=changes.append)
        assert changes[0].unchanged == 6
    path = store.clips()["path"][3].as_py()  # as a report that is rebuilt finds it: without the offset
    assert path == f"s3://{bucket}/tars/x.tar::0003.wav"
    assert read_audio(path, sample_rate_hz=16_000).facts.channels == 1
    with pytest.raises(AuscultError, match="no member"):
        read_audio(f"s3://{bucket}/tars/x.tar::none.wav", sample_rate_hz=16_000)
    lines = [json.dumps({"path": f"{n:04d}.wav", "caption": f"sound {n}"}) for n in range(3)]
    lines += [json.dumps({"path": f"s3://{bucket}/audio/{n:04d}.wav", "clip_id": f"{n:04d}.wav"}) for n in range(3, 5)]
    lines += [json.dumps({"path": name}) for name in ("missing.wav", "../climbs.wav")]
    server.client.put_object(Bucket=bucket, Key="audio/m.jsonl", Body="\n".join(lines).encode())
    (tmp_path / "m.csv").write_text(f"path\ns3://{bucket}/audio/0000.wav\n")
    listed = build(f"s3://{bucket}/audio/m.jsonl", tmp_path / "listed")
    assert [row["clip_id"] for row in listed.clips().to_pylist()] == [f"{n:04d}.wav" for n in range(5)]
    assert {Path(row["path"]).name: row["reason"][:20] for row in listed.skipped().to_pylist()} == {
        "missing.wav": "cannot be opened (s3",
        "climbs.wav": "m.jsonl, line 7: cli",
    }
    assert build(tmp_path / "m.csv", tmp_path / "csv").clips()["path"].to_pylist() == [f"s3://{bucket}/audio/0000.wav"]
    changes = []
    build(f"s3://{bucket}/audio/m.jsonl", tmp_path / "listed", planned=changes.append)
    assert (changes[0].new, changes[0].unchanged) == (0, 6)


def test_a_large_object_is_held_in_a_temporary_file(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> None:
    server.upload(write_files(tmp_path / "audio", 2), bucket, "a")
    expected = build(f"s3://{bucket}/a", tmp_path / "memory")
    remote._fetched.cache_clear()
    monkeypatch.setattr(remote, "IN_MEMORY", 1000)
    monkeypatch.setattr(remote, "CHUNK", 999)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = fetch(Url(f"s3://{bucket}/a/0001.wav"))
    assert isinstance(held, str)
    assert Path(held).read_bytes() == (tmp_path / "audio" / "0001.wav").read_bytes()
    remote._fetched.cache_clear()
    assert Path(held).exists()
    place = Path(held)
    del held
    assert not place.exists()
    assert build(f"s3://{bucket}/a", tmp_path / "spooled").part_names == expected.part_names


def test_what_fsspec_reads_is_read(tmp_path: Path, monkeypatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    for name, seconds in {"RENEW_S": 0.1, "PATIENCE_S": 0.6, "POLL_S": 0.05, "SETTLE_S": 0.0}.items():
        monkeypatch.setattr(lease, name, seconds)
    audio = write_files(tmp_path / "audio", 3)
    memory = fsspec.filesystem("memory")
    for path in audio.iterdir():
        memory.pipe(f"/audio/{path.name}", path.read_bytes())
    try:
        store = build("memory://audio", "memory://store")
        assert rows_of(store) == rows_of(build(audio, tmp_path / "local"))
        assert DescriptorStore.open("memory://store").verify() == []
    finally:
        memory.rm("/", recursive=True)


def test_what_lies_at_a_url_is_heard_in_a_review(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> None:
    server.upload(write_files(tmp_path / "audio", 1), bucket, "a")
    url = f"s3://{bucket}/a/0000.wav"
    decoder, _ = open_decoder(url)
    assert decoder.frames == 4800
    decoder.close()
    assert file_signature(url)[0] == (tmp_path / "audio" / "0000.wav").stat().st_size
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for ask in (file_signature, lambda path: read_audio(path, sample_rate_hz=16_000)):
        with pytest.raises(AudioDecodeError, match="cannot be reached"):
            ask(url)


# --- integrity ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "url"])
def anywhere(request, tmp_path: Path) -> str:
    """Where a store shall lie."""
    return str(tmp_path / "store") if request.param == "disk" else f"s3://{request.getfixturevalue('bucket')}/store"


def test_one_wrong_byte_is_found_named_and_mended(anywhere: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 3)
    audio = write_files(tmp_path / "audio", 10)
    store = build(audio, anywhere)
    before = {name: store.folder.read(f"vectors/{name}") for name in store.part_names}
    card = store.folder.read("card.json")
    for number, broken in ((1, "flip"), (0, "cut"), (3, "missing"), (2, "footer")):
        name = store.part_names[number]
        data = bytearray(before[name])
        data[len(data) // 3 if broken == "flip" else -9] ^= 4
        if broken == "missing":
            store.folder.delete(f"vectors/{name}")
        else:
            store.folder.write(f"vectors/{name}", bytes(data[: len(data) // 2]) if broken == "cut" else bytes(data))
        assert any(name in line for line in store.verify())
        with pytest.raises(StoreError, match=f"{name}.*--repair"):
            store.load()
        if broken in {"cut", "footer"}:  # what a resumed run reads
            with pytest.raises(StoreError, match=f"{name}.*--repair"):
                build(audio, anywhere)
        changes: list[indexing.Changes] = []
        mended = build(audio, anywhere, repair=True, planned=changes.append)
        assert changes[0].repaired == (() if broken == "missing" else (f"vectors/{name}",))
        assert changes[0].new == (1 if number == 3 else 3)
        assert {name: mended.folder.read(f"vectors/{name}") for name in mended.part_names} == before
        assert mended.folder.read("card.json") == card
        assert mended.verify() == []


@pytest.mark.parametrize("where", [b'"sha256": "', b'"caption": "', b"auscult.rows.dig"])
def test_a_wrong_byte_in_the_rows_of_a_footer_is_not_believed(tmp_path: Path, where: bytes) -> None:
    write_files(tmp_path / "audio", 3)
    audio = tmp_path / "m.csv"
    audio.write_text("path,caption\n" + "".join(f"audio/{number:04d}.wav,a dog\n" for number in range(3)))
    store = build(audio, tmp_path / "store")
    (name,) = store.part_names
    data = bytearray(store.folder.read(f"vectors/{name}"))
    data[data.rfind(where) + len(where)] ^= 1  # still a letter, and JSON
    store.folder.write(f"vectors/{name}", bytes(data))
    store.folder.delete("card.json")  # a run that was killed before the end, so that the tables are gathered anew
    with pytest.raises(StoreError, match=f"{name}.*damaged.*--repair"):
        build(audio, tmp_path / "store")
    mended = build(audio, tmp_path / "store", repair=True)
    assert (mended.card, mended.verify()) == (store.card, [])


def test_a_wrong_byte_in_a_table_is_found(anywhere: str, tmp_path: Path) -> None:
    store = build(write_files(tmp_path / "audio", 3), anywhere)
    data = bytearray(store.folder.read("clips.parquet"))
    data[len(data) // 2] ^= 1
    store.folder.write("clips.parquet", bytes(data))
    with pytest.raises(StoreError, match="clips.parquet"):
        store.clips()
    assert build(tmp_path / "audio", anywhere).verify() == []


def test_names_of_shards_are_their_digests(tmp_path: Path) -> None:
    import xxhash

    store = build(write_files(tmp_path / "audio", 3), tmp_path / "store")
    (path,) = store.part_paths
    assert isinstance(path, Path)
    assert digest_in(path.name) == xxhash.xxh3_128(path.read_bytes()).hexdigest()
    assert store.card["parts"] == {path.name: 3}


def test_killed_between_writing_a_shard_anew_and_deleting_the_old(tmp_path: Path, monkeypatch) -> None:
    audio = write_files(tmp_path / "audio", 4)
    build(audio, tmp_path / "store")
    build(audio, tmp_path / "whole")
    sf.write(audio / "0001.wav", sound(40, 0.3), 16_000)
    build(audio, tmp_path / "whole")

    def killed(self: LocalFolder, name: str) -> None:
        if name.startswith("vectors/"):
            raise KeyboardInterrupt
        real(self, name)

    real = LocalFolder.delete
    monkeypatch.setattr(LocalFolder, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        build(audio, tmp_path / "store")
    monkeypatch.undo()
    assert len(list((tmp_path / "store" / "vectors").iterdir())) == 3  # one of them twice
    store, whole = build(audio, tmp_path / "store"), DescriptorStore.open(tmp_path / "whole")
    assert store.card == whole.card
    assert store.verify() == []


def written_otherwise(folder: Folder, name: str) -> str:
    """Put a twin beside a shard: the same rows and vectors in other bytes, as of another reading of the same files."""
    table = pq.read_table(io.BytesIO(folder.read(f"vectors/{name}")))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")
    twin = f"part-{part_order(name).number:05d}-{digest_of(buffer.getvalue())}.parquet"
    folder.write(f"vectors/{twin}", buffer.getvalue())
    return twin


def test_a_late_shard_of_a_writer_taken_for_dead_counts_nothing_twice(anywhere: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 3)
    audio, folder = write_files(tmp_path / "audio", 8), open_folder(anywhere)

    def land(done: int, total: int | None, what: str) -> None:
        if done == 7:  # while the last shard is being made
            written_otherwise(folder, list_parts(folder)[0])

    with pytest.raises(StoreError, match="same numbers; give the same command again"):
        build(audio, anywhere, progress=land)
    assert not folder.exists("card.json")
    store = build(audio, anywhere)
    assert (store.card["counts"]["clips"], store.clips().num_rows, len(store.load())) == (8, 8, 8)
    assert [part_order(name).number for name in list_parts(folder)] == [0, 1, 2]
    assert store.verify() == []


def test_a_store_finished_with_twins_is_mended_by_the_next_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 3)
    audio = write_files(tmp_path / "audio", 8)
    store = build(audio, tmp_path / "store")
    twin = written_otherwise(store.folder, store.part_names[0])
    parts = {**store.card["parts"], twin: 3}
    (tmp_path / "store" / "card.json").write_text(json.dumps({**store.card, "parts": parts}))
    again = build(audio, tmp_path / "store")
    assert (len(again.card["parts"]), again.clips().num_rows, again.verify()) == (3, 8, [])


def test_a_link_that_leads_nowhere_hides_nothing_else_in_a_listing(tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 2)
    store = build(audio, tmp_path / "store")
    for place in (tmp_path / "store", tmp_path / "store" / "vectors"):
        (place / "dangling").symlink_to(tmp_path / "gone")
    assert [entry.name for entry in open_folder(tmp_path / "store").list()] == sorted(
        ["card.json", "clips.parquet", "skipped.parquet", "vectors"]
    )
    assert list_parts(store.folder) == store.part_names
    assert isinstance(source_of(str(tmp_path / "store")), DescriptorStore)  # and no corpus without sounds


def test_a_store_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    store = build(write_files(tmp_path / "audio", 2), tmp_path / "store")
    (path,) = store.part_paths
    assert isinstance(path, Path)
    path.rename(path.with_name("part-00000.parquet"))
    card = {**store.card, "parts": {"part-00000.parquet": "0" * 64}}
    (tmp_path / "store" / "card.json").write_text(json.dumps(card))
    for attempt in (DescriptorStore.open, lambda place: build(tmp_path / "audio", place), lambda p: source_of(str(p))):
        with pytest.raises(StoreError, match="index the source again"):
            attempt(tmp_path / "store")


# --- one writer at a time -----------------------------------------------------------------------------------------------


def test_second_writer_at_a_url_is_refused(bucket: str, tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 2)
    folder = open_folder(f"s3://{bucket}/store")
    with writing(folder), pytest.raises(StoreError, match=rf"another process.*process {os.getpid()} on"):
        build(audio, f"s3://{bucket}/store")
    assert build(audio, f"s3://{bucket}/store").verify() == []


@pytest.mark.parametrize("whose", ["another machine's, silent", "a dead process's", "no lease"])
def test_the_lease_of_the_dead_is_taken_over(server: Server, bucket: str, tmp_path: Path, whose: str) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead = {"token": "x", "count": 7, "pid": ended.pid, "host": "elsewhere", "machine": "elsewhere"}
    if whose == "a dead process's":
        dead |= lease._here()
    body = b"{]" if whose == "no lease" else json.dumps(dead).encode()
    server.client.put_object(Bucket=bucket, Key="store/writer.json", Body=body)
    started = time.monotonic()
    build(write_files(tmp_path / "audio", 2), f"s3://{bucket}/store")
    waited = time.monotonic() - started
    assert whose == "a dead process's" or waited >= lease.PATIENCE_S
    assert "store/writer.json" not in server.objects(bucket)


def test_a_writer_whose_lease_was_taken_stops_before_the_next_shard(
    server: Server, bucket: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 2)
    monkeypatch.setattr(lease, "RENEW_S", 60.0)  # a renewal in the same moment would take the lease back, as it may
    audio = write_files(tmp_path / "audio", 8)
    other = json.dumps({"token": "other", "count": 0, "pid": 1, "host": "elsewhere", "machine": "elsewhere"}).encode()

    def usurp(done: int, total: int | None, what: str) -> None:
        if done == 3:
            server.client.put_object(Bucket=bucket, Key="store/writer.json", Body=other)

    with pytest.raises(StoreError, match="taken over by process 1 on elsewhere"):
        build(audio, f"s3://{bucket}/store", progress=usurp)
    assert len([name for name in server.objects(bucket) if "/part-" in name]) == 1
    assert server.objects(bucket)["store/writer.json"] == other  # what is another's is left alone
    assert len(build(audio, f"s3://{bucket}/store").load()) == 8


def test_of_two_writers_that_begin_together_one_goes_on(bucket: str) -> None:
    folder, results = open_folder(f"s3://{bucket}/store"), []
    together = threading.Barrier(2)

    def write() -> None:
        together.wait()
        try:
            with writing(folder) as still_ours:
                time.sleep(0.5)
                still_ours()
                results.append("wrote")
        except StoreError:
            results.append("refused")

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused", "wrote"]


# --- what is refused ----------------------------------------------------------------------------------------------------


def seconds_and_message(action) -> tuple[float, str]:
    started = time.monotonic()
    with pytest.raises(AuscultError) as caught:
        action()
    assert isinstance(caught.value, (StorageError, CorpusError, StoreError))
    return time.monotonic() - started, str(caught.value)


def test_missing_bucket(server: Server, bucket: str, tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 1)
    for action in (
        lambda: open_corpus("s3://no-such-bucket/audio"),
        lambda: build(audio, "s3://no-such-bucket/store"),
        lambda: DescriptorStore.open("s3://no-such-bucket/store"),
    ):
        assert "there is no bucket s3://no-such-bucket" in seconds_and_message(action)[1]
    assert "does not exist" in seconds_and_message(lambda: open_corpus(f"s3://{bucket}/nothing"))[1]
    assert "no card.json" in seconds_and_message(lambda: DescriptorStore.open(f"s3://{bucket}/nothing"))[1]


def test_denied_and_missing_credentials(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> None:
    audio = write_files(tmp_path / "audio", 1)
    actions = (lambda: open_corpus(f"s3://{bucket}/audio"), lambda: build(audio, f"s3://{bucket}/store"))
    server.demand_credentials(True)
    try:
        for action in actions:
            seconds, message = seconds_and_message(action)
            assert "access is denied" in message
            assert SECRET not in message
            assert seconds < 30
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        for action in actions:
            seconds, message = seconds_and_message(action)
            assert "credentials are missing" in message
            assert "AWS_ACCESS_KEY_ID" in message
            assert seconds < 30
    finally:
        server.demand_credentials(False)


def test_unreachable_endpoint_is_said_in_seconds(bucket: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens to the discard port
    audio = write_files(tmp_path / "audio", 1)
    for action in (lambda: open_corpus(f"s3://{bucket}/audio"), lambda: build(audio, f"s3://{bucket}/store")):
        seconds, message = seconds_and_message(action)
        assert "cannot be reached" in message
        assert seconds < 30
    assert "hidden" not in seconds_and_message(lambda: build(audio, f"s3://user:hidden@{bucket}/store"))[1]


def test_a_storage_that_fails_on_the_way_stops_the_run_and_marks_nothing_unreadable(
    server: Server, bucket: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 2)
    server.upload(write_files(tmp_path / "audio", 6), bucket, "a")

    def fail(done: int, total: int | None, what: str) -> None:
        if done == 3:
            server.demand_credentials(True)

    try:
        with pytest.raises(StorageError, match="access is denied"):
            build(f"s3://{bucket}/a", tmp_path / "store", progress=fail)
    finally:
        server.demand_credentials(False)
    store = build(f"s3://{bucket}/a", tmp_path / "store")
    assert (store.card["counts"]["clips"], store.card["counts"]["skipped"]) == (6, 0)


def test_a_foreign_folder_at_a_url_is_left_alone(server: Server, bucket: str, tmp_path: Path) -> None:
    server.client.put_object(Bucket=bucket, Key="mine/thesis.tex", Body=b"x")
    with pytest.raises(OutputFolderError, match="not a descriptor store"):
        build(write_files(tmp_path / "audio", 1), f"s3://{bucket}/mine")
    assert server.objects(bucket) == {"mine/thesis.tex": b"x"}


def test_wrong_addresses() -> None:
    for text, message in (
        ("s3://b/x?regoin=eu", "regoin"),
        ("s3://", "names no bucket"),
        ("nosuch://x/y", "nosuch:// addresses"),
        ("s3://KEY:half/of+a+secret@bucket/x", "%2F"),
    ):
        with pytest.raises(StorageError, match=message) as caught:
            open_corpus(text)
        assert "half" not in str(caught.value)


def test_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here; test_indexing has a limit of file sizes instead")
    try:
        audio = write_files(tmp_path / "audio", 100)
        with pytest.raises(StorageError, match="no space left"):
            build(audio, place / "store")
        assert not list(place.rglob("*.tmp"))
        assert not (place / "store" / "card.json").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        assert len(build(audio, place / "store").load()) == 100
    finally:
        subprocess.run(["umount", str(place)], check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_full_disk_by_a_device_that_is_always_full(tmp_path: Path) -> None:
    audio, place = write_files(tmp_path / "audio", 3), tmp_path / "store"

    def fill(done: int, total: int | None, what: str) -> None:
        if done == 3:  # what is written next goes to the full device, by way of its temporary name
            (place / f".clips.parquet.{os.getpid()}.tmp").symlink_to("/dev/full")

    with pytest.raises(StorageError, match="clips.parquet: no space left to write .*; free some and give the same command"):
        build(audio, place, progress=fill)
    (place / f".x.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="x: no space left"):
        open_folder(place).write("x", b"data")
    assert sorted(path.name for path in place.iterdir()) == ["vectors"]
    assert len(build(audio, place).load()) == 3


def test_full_temporary_disk_while_a_large_object_is_fetched(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> None:
    server.upload(write_files(tmp_path / "audio", 1), bucket, "a")
    monkeypatch.setattr(remote, "IN_MEMORY", 1000)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # no file grows beyond, as on a full disk
    try:
        with pytest.raises(StorageError, match="no space left"):
            fetch(Url(f"s3://{bucket}/a/0000.wav"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


# --- credentials --------------------------------------------------------------------------------------------------------


def test_credentials_of_an_address_are_used_and_never_stored(
    server: Server, bucket: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    server.upload(write_files(tmp_path / "audio", 40), bucket, "a")
    place = f"s3://{KEY}:{SECRET.replace('/', '%2F')}@{bucket}"
    query = f"?endpoint_override=127.0.0.1:{server.port}&scheme=http"
    (tmp_path / "m.csv").write_text(f"path\n{place}/a/0000.wav{query}\n")
    assert key_of(Url(f"{place}/a{query}"))[0] == bucket
    assert remote.user_info(Url(place)) == (KEY, SECRET)
    store = build(f"{place}/a{query}", f"{place}/store{query}", engine=Engine(workers=2))  # 40: enough for two processes
    assert (store.card["counts"]["clips"], store.card["counts"]["skipped"]) == (40, 0)
    build(tmp_path / "m.csv", f"{place}/listed{query}")
    build(f"{place}/a{query}", tmp_path / "local")
    written = [*server.objects(bucket, "store/").values(), *server.objects(bucket, "listed/").values()]
    written += [path.read_bytes() for path in (tmp_path / "local").rglob("*") if path.is_file()]
    tables = [store.clips(), DescriptorStore.open(tmp_path / "local").clips(), store.skipped()]
    shown = [str(store.path), repr(store), str(store.card), *(str(table.to_pylist()) for table in tables)]
    with pytest.raises(StoreError) as caught:
        DescriptorStore.open(f"{place}/nothing{query}")
    shown += [str(caught.value), repr(open_corpus(f"{place}/a{query}"))]
    assert len(written) > 10
    for text in (KEY, SECRET, SECRET.replace("/", "%2F")):
        assert not any(text in part for part in shown)
        assert not any(text.encode() in part for part in written)
    assert store.clips()["path"][0].as_py() == f"s3://{bucket}/a/0000.wav{query}"


@pytest.mark.parametrize(
    "given",
    [
        *(
            f"https://h.org/a.wav?{query}"
            for query in (
                *("api_key=SECRET", "apikey=SECRET", "auth=SECRET", "pwd=SECRET", "code=SECRET", "subscription-key=SECRET"),
                *("key=SECRET", "x&token=SECRET", "SECRET", "token=SECRET#x", "a=1#SECRET", "region=x;token=SECRET", "=SECRET"),
                *(
                    "region=x#SECRET",
                    "scheme=https?token=SECRET",
                    "endpoint_override=u:SECRET@h",
                    "a%20b=SECRET",
                    "code=1%53ECRET",
                ),
            )
        ),
        "https://h.org/a.wav#token=SECRET",
        "HTTPS://h.org/a.wav?auth=SECRET",
        "https://user:SECRET@h.org/a.wav",
        "https://SECRET@h.org/a.wav",
        "https://h.org/x.tar?code=SECRET::a.wav",
        "s3://b/x?x&secret_key=SECRET",
        "sftp://user:SECRET@h/a.wav?x&y=SECRET",
    ],
)
def test_no_form_of_a_secret_is_shown_or_passes_an_error(given: str) -> None:
    url = Url(given)
    assert url.full == given
    assert not any(secret in url for secret in ("SECRET", "%53ECRET"))
    quoted = [given, given.partition("://")[2], *re.split(r"[/@?&#:;=]", given)]
    for text in quoted:  # clients quote whole addresses, and parts of them
        assert "SECRET" not in remote.redacted(url, OSError(f"cannot parse '{text}' in host"))


def test_redaction_knows_escapes() -> None:
    url = Url("s3://KEYID:a%2Fb%2Bc@bucket/x?session=d%2Fe+f&region=r")
    for secret in ("a%2Fb%2Bc", "a/b+c", "KEYID", "KEYID:a%2Fb%2Bc@bucket", "d%2Fe+f", "d/e f", "d/e+f"):
        text = remote.redacted(url, OSError(f"<{secret}>"))
        assert text in {"<***>", "<***@bucket>"}
    assert remote.redacted(url, OSError("region r of bucket")) == "region r of bucket"


def test_credentials_whose_end_is_unclear_are_refused(tmp_path: Path) -> None:
    for text in (
        *("https://user:pa/SECRET@h.org/x", "https://user:12/SECRET@h.org/x", "https://user/SECRET@h.org/x"),
        *(
            "https://user:pa?SECRET@h.org/x",
            "https://user:pa#SECRET@h.org/x",
            "sftp://user:pa/SECRET@h/x",
            "s3://K:pa/SECRET@b/x",
        ),
    ):
        with pytest.raises(StorageError, match="%2F") as caught:
            Url(text)
        assert "SECRET" not in str(caught.value)
        assert "pa" not in str(caught.value).partition("...")[0]
        (tmp_path / "m.csv").write_text(f"path\n{text}\n")
        with pytest.raises(ManifestError, match="line 2.*%2F"):
            list(open_corpus(tmp_path / "m.csv"))
    for text in ("https://h.org/pkg@1.0/a.wav", "http://h:8000/a%40b.wav", "http://[::1]:8000/a.wav", "hdfs://n:8020/a@b.wav"):
        assert Url(text) == text
    assert join(Url("http://h:8000/a"), "x@2#1.wav") == "http://h:8000/a/x%402%231.wav"


def test_what_a_client_says_of_a_missing_object_shows_no_secret() -> None:
    spec = pytest.importorskip("fsspec.spec")
    registry = pytest.importorskip("fsspec.registry")

    class Forgetful(spec.AbstractFileSystem):
        """Knows of every object, and finds none; its errors name the whole address, as those of web clients do."""

        protocol = "forgetful"

        def info(self, path: str, **options) -> dict:
            return {"name": path, "size": 10, "type": "file"}

        def _open(self, path: str, *arguments, **options) -> None:
            raise FileNotFoundError(path)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

    registry.register_implementation("forgetful", Forgetful, clobber=True)
    url = Url("forgetful://h/x.wav?token=SECRET")
    for read in (remote.read_bytes, fetch):
        with pytest.raises(FileNotFoundError, match="forgetful://h/x.wav: there is no such object") as caught:
            read(url)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    described = describe_item((Clip("x", url), "key", "state"), MEL)
    assert described.skipped
    assert "SECRET" not in str(described.row)


# --- addresses ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=3)
)
def test_any_name_below_an_address_is_found_again(names: list[str]) -> None:
    for query in ("", "?region=x&scheme=http"):
        url = join(Url(f"s3://bucket/a{query}"), "/".join(names))
        assert isinstance(url, Url)
        assert key_of(url)[:2] == ("bucket", "a/" + "/".join(names))
        assert str(url.parent).count("/") == str(url).count("/") - 1
        again = pickle.loads(pickle.dumps(url))
        assert (again, again.full, again.span) == (url, url.full, url.span)


def test_what_is_an_address() -> None:
    assert [is_url(text) for text in ("s3://a", "C://x", "hf:a/b", "a/b", "memory://x", Path("s3://x"))] == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    assert place_of("file:///a/b%20c") == Path("/a/b c")
    secrets = "https://h/a.wav?X-Amz-Signature=topsecret&X-Amz-Credential=topsecret&part=1"
    assert Url(secrets) == "https://h/a.wav"
    assert Url(secrets).full == secrets
    assert Url("abfs://box:topsecret@account/x") == "abfs://box@account/x"
    assert Url("s3://a:topsecret@b/x.tar?region=r&secret_key=topsecret::m&n=1.wav") == "s3://b/x.tar?region=r::m&n=1.wav"
    assert Clip("a", Url("s3://a:topsecret@b/x")).path == "s3://b/x"


def test_a_store_that_lost_all_shards_is_made_again(anywhere: str, tmp_path: Path) -> None:
    audio = write_files(tmp_path / "audio", 2)
    store = build(audio, anywhere)
    for name in store.part_names:
        store.folder.delete(f"vectors/{name}")
    if isinstance(store.path, Path):
        (store.path / "vectors").rmdir()
    with pytest.raises(StoreError, match="--repair"):
        store.load()
    assert build(audio, anywhere).card == store.card


def test_the_commands_take_addresses(server: Server, bucket: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from auscult.cli import app

    server.upload(write_files(tmp_path / "audio", 3), bucket, "a")
    index = ["index", f"s3://{bucket}/a", "-o", f"s3://{bucket}/store", "--duration", "0.3", "-j", "1"]
    result = CliRunner().invoke(app, index)
    assert (result.exit_code, result.stdout.split("\n")[-2]) == (0, f"s3://{bucket}/store")
    assert "all digests agree" in CliRunner().invoke(app, ["info", f"s3://{bucket}/store", "--verify"]).stdout
    store = source_of(f"s3://{bucket}/store")
    assert isinstance(store, DescriptorStore)
    store.folder.write(f"vectors/{store.part_names[0]}", b"damaged")
    result = CliRunner().invoke(app, ["info", f"s3://{bucket}/store", "--verify"])
    assert result.exit_code == 2
    assert f"s3://{bucket}/store: vectors/{store.part_names[0]}: its bytes" in result.output
    result = CliRunner().invoke(app, [*index, "--repair"])
    assert result.exit_code == 0
    assert f"made again: vectors/{store.part_names[0]}" in result.output
    assert store.verify() == []


@pytest.mark.parametrize(
    "command",
    [
        *(["dedup", "AUDIO", "-o", "URL"], ["audit", "AUDIO", "--reference", "AUDIO", "-o", "URL"], ["demo", "-o", "URL"]),
        *(["report", "URL"], ["review", "URL", "--stats"], ["review", "AUDIO", "--export", "URL"], ["compare", "URL", "URL"]),
    ],
    ids=" ".join,
)
def test_results_are_not_written_to_a_folder_that_is_called_like_a_url(command: list[str], tmp_path: Path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from auscult.cli import app

    monkeypatch.chdir(tmp_path)
    words = {"AUDIO": "audio", "URL": "s3://key:SECRET@bucket/x"}
    result = CliRunner().invoke(app, [words.get(word, word) for word in command])
    assert isinstance(result.exception, OutputFolderError)  # one line and 2, by main
    assert str(result.exception).startswith("s3://bucket/x: expected a path on this machine")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_said_of_what_is_there(anywhere: str, tmp_path: Path, monkeypatch) -> None:
    def notes(progress) -> list[str]:
        with pytest.raises(KeyboardInterrupt) as caught, continued(place_of(anywhere)):
            progress()
        return getattr(caught.value, "__notes__", [])

    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "PART_INPUTS", 2)
    audio = write_files(tmp_path / "audio", 4)
    assert notes(stop) == []  # no store
    later = notes(lambda: build(audio, anywhere, progress=lambda done, total, what: stop() if done == 3 else None))
    assert later == [f"{place_of(anywhere)}: keeps what was described; the same command continues from there"]
    build(audio, anywhere)
    assert notes(stop) == []  # it is whole
    if is_url(anywhere):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert notes(stop) == []  # it cannot be asked


def test_a_stopped_search_says_that_its_state_is_kept(tmp_path: Path) -> None:
    def notes(*files: str) -> list[str]:
        with pytest.raises(KeyboardInterrupt) as caught, building(tmp_path / "a", "audit", task={}) as partial:
            for name in files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(b"")
            raise KeyboardInterrupt
        return [note.partition(": ")[2] for note in getattr(caught.value, "__notes__", [])]

    partial = tmp_path / "a.partial"
    assert notes() == [] and not partial.exists()
    (partial / "search" / "empty").mkdir(parents=True)
    assert notes() == [] and not partial.exists()
    assert notes("search/0123/generated-0.npz") == ["keeps what was searched; the same command continues from there"]
    both = ["keeps what was described and what was searched; the same command continues from there"]
    assert notes("stores/training/vectors/part-00000-x.parquet") == both
    kept = r"a\.partial: keeps what was described and .* of an unfinished audit; .*delete a\.partial or pass --ov"
    with pytest.raises(OutputFolderError, match=kept), building(tmp_path / "a", "dedup", task={}):
        pass
    assert notes() == both  # nothing is lost by a refusal
    with building(tmp_path / "a", "dedup", task={}, overwrite=True) as folder:
        assert [path.name for path in folder.iterdir()] == ["task.json"]
    assert list((tmp_path / "a").iterdir()) == [] and not partial.exists()
    assert notes("search/0123/generated-0.npz")
    (partial / "task.json").write_text("{}")  # as earlier versions wrote it, without the kind
    assert notes() == ["keeps what was searched; the same command continues from there"]


@pytest.mark.parametrize("name", ["thesis.txt", "chapters/one.txt"])
def test_what_somebody_else_left_under_the_partial_name_stays(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "a.partial" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    told = rf"a\.partial: holds {name.partition('/')[0]} and no task\.json, .*move a\.partial away, or pass --overwrite"
    with pytest.raises(OutputFolderError, match=told), building(tmp_path / "a", "audit", task={}):
        pass
    assert theirs.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    with building(tmp_path / "a", "audit", task={}, overwrite=True) as folder:
        assert [path.name for path in folder.iterdir()] == ["task.json"]


def test_a_kill_while_a_partial_folder_is_emptied_leaves_it_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(number: int) -> None:
        with building(tmp_path / "a", "audit", task={"number": number}) as partial:
            (partial / "search").mkdir()
            (partial / "search" / "state").write_text("")
            (partial / "z.parquet").write_text("")
            raise KeyboardInterrupt

    def kill(*given: object) -> None:
        raise SystemExit

    with pytest.raises(KeyboardInterrupt):
        begin(1)
    for name in ("shutil.rmtree", "write_text"):  # in the midst of it, and when all but the task is gone
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(f"auscult.folders.{name}", kill)
            begin(2)
    with pytest.raises(KeyboardInterrupt):
        begin(2)


# --- results from what lies at URLs -------------------------------------------------------------------------------------


def apart_from_places(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if "path" in name])


@pytest.fixture
def sets(server: Server, bucket: str, tmp_path: Path, monkeypatch) -> dict[str, tuple[Path, str]]:
    """Two sets with three copies of one in the other and one within, as (folder, address of the same files).

    Stores of them are of several shards, which no search holds in memory: it reads them where they lie.
    """
    monkeypatch.setattr(indexing, "PART_INPUTS", 5)
    monkeypatch.setattr(Engine, "resident_bytes", 0)
    found = {}
    for name, first in (("training", 0), ("generated", 100)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(first, first + 12):
            sf.write(folder / f"{number:04d}.wav", sound(number, 1.5), 16_000)
        found[name] = (folder, f"s3://{bucket}/{name}")
    for number in (3, 5, 7):
        sf.write(tmp_path / "generated" / f"copy-{number}.wav", 0.5 * sound(number, 1.5), 16_000)
    sf.write(tmp_path / "training" / "copy-8.wav", 0.5 * sound(8, 1.5), 16_000)
    for folder, _ in found.values():
        server.upload(folder, bucket, folder.name)
    return found


def three_ways(sets: dict[str, tuple[Path, str]], bucket: str, descriptor: Descriptor, run) -> list:
    """What ``run`` returns for the sources on the disk, for those at URLs, and for stores at URLs of sources at URLs."""
    stores = {
        name: indexing.index(open_corpus(url), f"s3://{bucket}/stores/{name}", descriptor=descriptor)
        for name, (_, url) in sets.items()
    }
    assert not any(isinstance(store.load(Engine()).vectors, np.ndarray) for store in stores.values())
    disk, away = ({name: open_corpus(places[i]) for name, places in sets.items()} for i in (0, 1))
    return [run(name, given) for name, given in (("disk", disk), ("urls", away), ("stores", stores))]


@pytest.mark.parametrize("name", ["mel", pytest.param("contrast", marks=pytest.mark.slow)])
def test_an_audit_of_what_lies_at_urls_finds_the_same(sets, bucket: str, tmp_path: Path, name: str) -> None:
    config = AuditConfig(descriptor=name, duration_s=1.5 if name == "mel" else None, tau=0.5, training_sample=12, null_sample=6)

    def run(where: str, given: dict) -> Audit:
        return audit(given["generated"], given["training"], output=tmp_path / where, config=config)

    descriptor = load_descriptor("mel", duration_s=1.5) if name == "mel" else load_descriptor(name)
    results = three_ways(sets, bucket, descriptor, run)
    tables = [[apart_from_places(t) for t in (r.matches(), r.queries(), r.training(), r.null())] for r in results]
    assert tables[0] == tables[1] == tables[2]
    best = {row["query_id"]: row["reference_id"] for row in results[2].matches().to_pylist() if row["rank"] == 1}
    assert {key: best[key] for key in best if key.startswith("copy")} == {f"copy-{n}.wav": f"{n:04d}.wav" for n in (3, 5, 7)}


@pytest.mark.parametrize("against", [False, True])
def test_a_deduplication_of_what_lies_at_urls_finds_the_same(sets, bucket: str, tmp_path: Path, against: bool) -> None:
    config = DedupConfig(tau=0.5, duration_s=1.5)

    def run(where: str, given: dict) -> Duplicates:
        other = given["generated"] if against else None
        return deduplicate(given["training"], output=tmp_path / where, against=other, config=config)

    results = three_ways(sets, bucket, load_descriptor("mel", duration_s=1.5), run)
    tables = [[apart_from_places(table) for table in (r.pairs(), r.clusters(), r.top1())] for r in results]
    assert tables[0] == tables[1] == tables[2]
    kept = [
        [line.rpartition("/")[2] for line in (tmp_path / where / "keep.txt").read_text().splitlines()]
        for where in ("disk", "urls", "stores")
    ]
    assert kept[0] == kept[1] == kept[2]
    pairs = {frozenset((row["first_id"], row["second_id"])) for row in results[2].pairs().to_pylist() if row["duplicate"]}
    assert (frozenset(("copy-3.wav", "0003.wav")) if against else frozenset(("copy-8.wav", "0008.wav"))) in pairs
