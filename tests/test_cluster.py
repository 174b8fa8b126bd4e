"""A cluster gives what this machine gives, whatever dies in the middle."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from auscult import __version__, indexing, vectors
from auscult.audit import AuditConfig, audit
from auscult.cluster import connect, map_in_actors, map_in_tasks
from auscult.cluster.connection import check_reachable
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.duplicates import DedupConfig, deduplicate
from auscult.engine import HERE, Engine
from auscult.errors import ClusterError, CorpusError, StoreError
from auscult.indexing import index
from auscult.search import top_k
from auscult.search.blocks import Block, as_blocks
from auscult.storage import open_folder
from auscult.store import DescriptorStore, _load_shards
from conftest import sound
from test_indexing import digests

pytest.importorskip("ray")

MEL = load_descriptor("mel", duration_s=1.0)

# Python of the nodes runs this when it starts: where a decoder would crash, at one file, the process ends
CRASHING = """
import os, sys
sys.addaudithook(lambda event, args: os._exit(11) if event == "open" and str(args[0]).endswith("crashing.wav") else None)
"""


class Nodes:
    """A real cluster of two nodes with one CPU each on this machine, of which the second may be killed."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        (folder / "sitecustomize.py").write_text(CRASHING)
        self.environment = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "500",  # a lost node is noticed in some two seconds; by default in thirteen
            "RAY_health_check_failure_threshold": "4",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "PYTHONPATH": os.pathsep.join([str(folder), *(path for path in sys.path if path)]),
        }
        self.cluster = self._quietly(
            lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        )
        self.second = self.add()
        self.address = self.cluster.address

    def _quietly(self, start: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return start()

    def add(self, **options: Any) -> Any:
        return self._quietly(lambda: self.cluster.add_node(**{"num_cpus": 1, **options}))

    def kill(self, node: Any = None) -> None:
        self.cluster.remove_node(node or self.second, allow_graceful=False)

    def mend(self) -> None:
        if self.second not in self.cluster.worker_nodes:
            self.second = self.add()


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Iterator[Nodes]:
    """The cluster of all tests here."""
    from auscult.cluster.connection import _imported

    ray = _imported()
    nodes = Nodes(tmp_path_factory.mktemp("python"))
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def nodes(started: Nodes) -> Iterator[Nodes]:
    """The cluster with both nodes alive."""
    started.mend()
    yield started
    started.mend()


@pytest.fixture
def engine(nodes: Nodes) -> Engine:
    """Work on the cluster."""
    return Engine(workers=2, ray=nodes.address)


def build(source: Path, store: Path, **options: Any) -> DescriptorStore:
    return index(open_corpus(source), store, descriptor=MEL, **options)


# --- the same results -----------------------------------------------------------------------------------------------


def test_a_store_is_the_same_byte_for_byte(write_sounds, tmp_path: Path, engine: Engine) -> None:
    folder = write_sounds("in", 60, duration_s=1.5)
    (folder / "0007-bad.wav").write_bytes(b"not audio")
    (folder / "notes.txt").write_text("no clip")
    build(folder, tmp_path / "here")
    build(folder, tmp_path / "there", engine=engine)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def same_folders(here: Path, there: Path) -> None:
    """Tables and lists equal; cards equal apart from times and where things lie."""
    names = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file() and path.name != "report.html"}
    assert names == {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file() and path.name != "report.html"}
    for name in sorted(names):
        if name.endswith(".parquet"):
            assert pq.read_table(here / name).equals(pq.read_table(there / name)), name
        elif name.endswith(".json"):
            assert _timeless(json.loads((here / name).read_text())) == _timeless(json.loads((there / name).read_text())), name
        else:
            assert (here / name).read_bytes() == (there / name).read_bytes(), name


def _timeless(card: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in card.items() if key not in {"created", "created_at", "finished_at", "elapsed_s", "seconds"}
    }


@pytest.mark.parametrize(
    ("descriptor", "kill"), [("mel", "compared"), pytest.param("contrast", "scored", marks=pytest.mark.slow)]
)
def test_an_audit_is_the_same(
    write_sounds, tmp_path: Path, nodes: Nodes, engine: Engine, monkeypatch, descriptor: str, kill: str
) -> None:
    """In many tasks: five shards of references, and of the detector fewer candidates than references. A node is lost."""
    monkeypatch.setattr(indexing, "PART_INPUTS", 8)
    monkeypatch.setattr(vectors, "TASK_ROWS", 8)
    references = write_sounds("training", 40, duration_s=2.0)
    generated = write_sounds("generated", 10, first=200, duration_s=2.0)
    sf.write(generated / "copy.wav", 0.5 * sound(3, 2.0), 16_000)
    config = AuditConfig(
        descriptor=descriptor, duration_s=2.0 if descriptor == "mel" else None, candidates=8, null_sample=20, training_sample=40
    )
    killed: list[int] = []

    def lose(done: int, total: int | None, what: str) -> None:
        if kill in what and not killed:
            killed.append(done)
            nodes.kill()

    audit(open_corpus(generated), open_corpus(references), output=tmp_path / "here", config=config)
    audit(
        open_corpus(generated), open_corpus(references), output=tmp_path / "there", config=config, engine=engine, progress=lose
    )
    assert killed
    same_folders(tmp_path / "here", tmp_path / "there")
    best = pq.read_table(tmp_path / "there" / "matches.parquet").to_pylist()
    assert next(row["reference_id"] for row in best if row["query_id"] == "copy.wav" and row["rank"] == 1) == "0003.wav"


@pytest.mark.slow
def test_a_deduplication_is_the_same(write_sounds, tmp_path: Path, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "PART_INPUTS", 8)
    monkeypatch.setattr(vectors, "TASK_ROWS", 8)
    folder = write_sounds("in", 40, duration_s=2.0)
    shutil.copy(folder / "0003.wav", folder / "same.wav")
    sf.write(folder / "quieter.wav", 0.4 * sound(21, 2.0), 16_000)
    for name, place in (("here", HERE), ("there", engine)):
        config = DedupConfig(duration_s=2.0, tau=0.5)
        deduplicate(open_corpus(folder), output=tmp_path / name, config=config, engine=place)
    same_folders(tmp_path / "here", tmp_path / "there")
    pairs = pq.read_table(tmp_path / "there" / "pairs.parquet").to_pylist()
    similar = {frozenset((row["first_id"], row["second_id"])) for row in pairs if row["kind"] == "similar" and row["duplicate"]}
    assert frozenset(("0021.wav", "quieter.wav")) in similar


def test_a_search_is_the_same(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    queries, references = (rng.standard_normal((n, 64), np.float32) for n in (300, 2000))
    here, there = (top_k(queries, as_blocks(references, 150), k=5, engine=place) for place in (HERE, engine))
    np.testing.assert_array_equal(here.index, there.index)
    np.testing.assert_array_equal(here.similarity, there.similarity)


# --- order, and what is in flight -----------------------------------------------------------------------------------


def _slow_if_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0)
    return number * number


def test_results_come_in_order_and_jobs_are_taken_as_they_are_needed(nodes: Nodes) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    results = map_in_tasks(connect(nodes.address), _slow_if_first, jobs())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) < 20  # four ahead for each of two CPUs, and the three that were given out
    assert list(results) == [number * number for number in range(3, 200)]


# --- what dies ------------------------------------------------------------------------------------------------------


def _squares_slowly(number: int) -> int:
    time.sleep(0.05)
    return number * number


def test_a_node_killed_among_tasks_changes_nothing(nodes: Nodes) -> None:
    at = random.Random(3).randrange(5, 25)
    results = []
    for result in map_in_tasks(connect(nodes.address), _squares_slowly, range(60)):
        results.append(result)
        if len(results) == at:
            nodes.kill()
    assert results == [number * number for number in range(60)]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_node_killed_while_indexing_changes_nothing(
    write_sounds, tmp_path: Path, nodes: Nodes, engine: Engine, seed: int
) -> None:
    folder = write_sounds("in", 160, duration_s=1.5)
    at, killed = random.Random(seed).randrange(1, 100), []

    def progress(done: int, total: int, what: str) -> None:
        if done == at and not killed:
            killed.append(done)
            nodes.kill()

    build(folder, tmp_path / "here")
    build(folder, tmp_path / "there", engine=engine, progress=progress)
    assert killed
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def test_a_node_killed_while_searching_changes_nothing(nodes: Nodes, engine: Engine) -> None:
    rng = np.random.default_rng(1)
    queries, references = (rng.standard_normal((n, 64), np.float32) for n in (300, 4000))
    killed: list[int] = []

    def progress(done: int, total: int, what: str) -> None:
        if not killed:
            killed.append(done)
            nodes.kill()

    here = top_k(queries, as_blocks(references, 200), k=5)
    there = top_k(queries, as_blocks(references, 200), k=5, engine=engine, progress=progress)
    assert killed
    np.testing.assert_array_equal(here.index, there.index)
    np.testing.assert_array_equal(here.similarity, there.similarity)


DRIVER = """
import sys
from auscult import indexing
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
indexing.PART_INPUTS = 8
def said(done, total, what):
    print(done, flush=True)
if __name__ == "__main__":
    engine = Engine(workers=1, ray=sys.argv[3])
    indexing.index(open_corpus(sys.argv[1]), sys.argv[2], descriptor=load_descriptor("mel", duration_s=1.0), engine=engine,
                   progress=said)
"""


@pytest.mark.slow
def test_a_driver_that_was_killed_continues(write_sounds, tmp_path: Path, nodes: Nodes, monkeypatch) -> None:
    folder = write_sounds("in", 100, duration_s=1.5)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    at = random.Random(5).randrange(20, 60)
    command = [sys.executable, str(script), str(folder)]
    monkeypatch.setattr(indexing, "PART_INPUTS", 8)
    build(folder, tmp_path / "here")
    with subprocess.Popen([*command, str(tmp_path / "there"), nodes.address], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < at:
            pass
        process.send_signal(signal.SIGKILL)
    finished = len(list((tmp_path / "there" / "vectors").glob("part-*")))
    assert finished >= at // 8
    again = subprocess.run([*command, str(tmp_path / "there"), nodes.address], check=True, capture_output=True, text=True)
    assert int(again.stdout.split()[-1]) == 100 - 8 * finished  # what was finished was not described again
    assert "raylet" not in again.stdout + again.stderr
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_one_clip(write_sounds, tmp_path: Path, engine: Engine) -> None:
    folder = write_sounds("in", 60, duration_s=0.3)
    sf.write(folder / "0030-crashing.wav", sound(30), 16_000)
    store = build(folder, tmp_path / "store", engine=engine)
    assert [(row["clip_id"], row["reason"]) for row in store.skipped().to_pylist()] == [
        ("0030-crashing.wav", "the decoder crashed on this file")
    ]
    (folder / "0030-crashing.wav").unlink()
    build(folder, tmp_path / "here")
    np.testing.assert_array_equal(store.load().vectors, DescriptorStore.open(tmp_path / "here").load().vectors)


def _ends_at_7(number: int) -> int:
    if number == 7:
        os._exit(11)
    return number


@pytest.mark.slow
def test_a_job_that_ends_every_worker_is_no_endless_loop(nodes: Nodes, monkeypatch) -> None:
    monkeypatch.setattr("auscult.cluster.placing.PATIENCE_S", (0.0,))
    monkeypatch.setattr("auscult.cluster.placing.CRASHES", 3)
    with pytest.raises(ClusterError, match="ended its worker process 3 times"):
        list(map_in_tasks(connect(nodes.address), _ends_at_7, range(20)))


# --- what is wrong --------------------------------------------------------------------------------------------------


def _fails(kind: str, number: int) -> int:
    if number == 3:
        raise {
            "store": StoreError("part-00001.parquet: damaged"),
            "value": ValueError("k < 1"),
            "disk": OSError(28, "No space"),
        }[kind]
    return number


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("store", StoreError, f"damaged \\(on node {socket.gethostname()}\\)$"),
        ("value", ValueError, "^k < 1$"),
        ("disk", ClusterError, f"node {socket.gethostname()}: its disk is full"),
    ],
)
def test_errors_keep_their_type_and_say_where(nodes: Nodes, kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        list(map_in_tasks(connect(nodes.address), partial(_fails, kind), range(10)))
    assert "Traceback" not in str(caught.value)
    assert type(caught.value) is error


def test_an_error_while_loading_is_raised_as_itself(nodes: Nodes) -> None:
    with pytest.raises(ValueError, match="unknown descriptor"):
        list(map_in_actors(connect(nodes.address), partial(load_descriptor, "nonesuch"), [1], split=list, crashed=str))


@pytest.fixture
def only_here(write_sounds) -> Iterator[Path]:
    """A folder of sounds under a path that means nothing to other processes."""
    folder = write_sounds("in", 40, duration_s=0.5)
    opened = os.open(folder, os.O_RDONLY)
    os.dup2(opened, 913)
    yield Path("/proc/self/fd/913")
    os.close(913)
    os.close(opened)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_node_that_does_not_see_the_corpus_is_named(only_here: Path, tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(CorpusError, match=f"0000.wav: is on this machine, but node {socket.gethostname()} does not see it"):
        build(only_here, tmp_path / "store", engine=engine)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_node_that_does_not_see_the_store_is_named(only_here: Path, tmp_path: Path, engine: Engine) -> None:
    name = f"part-00001-{32 * '0'}.parquet"
    blocks = [Block(0, 1, partial(_load_shards, open_folder(only_here), (name,)))]
    with pytest.raises(StoreError, match=f"part-00001.*on node {socket.gethostname()}"):
        top_k(np.ones((1, 4), np.float32), blocks, k=1, engine=engine)


def test_a_node_with_another_version_is_named(nodes: Nodes, tmp_path: Path) -> None:
    session = connect(nodes.address)
    (tmp_path / "auscult").mkdir()
    (tmp_path / "auscult" / "__init__.py").write_text("__version__ = '0.0.7'\n")
    path = os.pathsep.join([str(tmp_path), nodes.environment["PYTHONPATH"]])
    nodes.environment["PYTHONPATH"], before = path, nodes.environment["PYTHONPATH"]
    old = nodes.add()
    nodes.environment["PYTHONPATH"] = before
    try:
        with pytest.raises(ClusterError, match=f"{socket.gethostname()}.*has auscult 0.0.7 instead of {__version__}"):
            session.nodes(fresh=True)
    finally:
        nodes.kill(old)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_is_fails_at_once(prefix: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="cannot be reached"):
        check_reachable(f"{prefix}127.0.0.1:{_free_port()}")
    assert time.monotonic() - begun < 6


def test_an_address_where_something_else_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ClusterError, match="something else than Ray"):
            check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_an_address_that_never_answers(monkeypatch) -> None:
    monkeypatch.setattr("auscult.cluster.connection.REACH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ClusterError, match="does not answer"):
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["", "somewhere", "host:", "ray://", ":6379"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ClusterError, match="expected HOST:PORT"):
        check_reachable(address)


def test_another_cluster_than_the_one_connected_to(nodes: Nodes) -> None:
    connect(nodes.address)
    with pytest.raises(ClusterError, match=r"call ray.shutdown\(\)"):
        connect("127.0.0.1:1")


def test_no_gpu_is_said(nodes: Nodes) -> None:
    with pytest.raises(ClusterError, match="no node of the cluster has a GPU"):
        list(map_in_actors(connect(nodes.address), partial(load_descriptor, "mel"), [1], split=list, crashed=str, gpus=True))


def test_ray_is_not_installed(write_sounds, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from auscult.engine import Engine; from auscult.errors import MissingExtraError\n"
        "try: list(Engine(ray='local').map(abs, [1]))\n"
        "except MissingExtraError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "work on a Ray cluster needs an optional dependency: pip install 'auscult[cluster]'"


def test_a_cluster_of_its_own(write_sounds, tmp_path: Path) -> None:
    """`--ray local`, from the command line to the store, and nothing of Ray's among what is printed."""
    folder = write_sounds("in", 40, duration_s=1.0)
    command = [sys.executable, "-m", "auscult", "index", str(folder), "-j", "2", "--descriptor", "mel", "--json", "-o"]
    for name, options in (("here", []), ("there", ["--ray", "local"])):
        result = subprocess.run([*command, str(tmp_path / name), *options], capture_output=True, text=True, check=True)
        json.loads(result.stdout)
        assert "ray" not in result.stderr.lower()
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
