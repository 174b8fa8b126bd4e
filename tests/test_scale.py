"""Corpora beyond the memory: the same result from vectors on disk, and searches that go on where they stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from auscult import indexing
from auscult.audit import Audit, AuditConfig, audit
from auscult.cli import main
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.duplicates import DedupConfig, deduplicate
from auscult.engine import MIB, Engine
from auscult.indexing import index
from auscult.inputs import SCRATCH
from auscult.levels import load_levels
from auscult.search import approximate, checkpoint, nearest, top_k
from auscult.search.blocks import Block, as_blocks
from auscult.store import DescriptorStore
from conftest import sound

SMALL = Engine(memory_bytes=MIB)
COPIES = (3, 50, 51)


@pytest.fixture
def stores(write_sounds, tmp_path: Path, monkeypatch) -> Callable[[str], dict[str, DescriptorStore]]:
    """Training, generated and background clips, with copies; 0.6 MB of mel vectors of training clips, in shards."""

    def describe(name: str) -> dict[str, DescriptorStore]:
        count, shard, parameters = (300, 32, {"duration_s": 3.0}) if name == "mel" else (60, 16, {})
        length = 1.0 if name == "mel" else 5.0
        monkeypatch.setattr(indexing, "PART_INPUTS", shard)
        folders = {
            "training": write_sounds("training", count, duration_s=length),
            "generated": write_sounds("generated", 20, first=1000, duration_s=length),
            "background": write_sounds("background", 20, first=2000, duration_s=length),
        }
        for number in COPIES:
            sf.write(folders["generated"] / f"copy-{number}.wav", 0.5 * sound(number, length), 16_000)
        sf.write(folders["training"] / "0030-silent.wav", np.zeros(16_000), 16_000)
        sf.write(folders["training"] / "0031-copy.wav", 0.5 * sound(17, length), 16_000)
        descriptor = load_descriptor(name, **parameters)
        return {
            role: index(open_corpus(folder), tmp_path / "stores" / role, descriptor=descriptor, engine=Engine(workers=2))
            for role, folder in folders.items()
        }

    return describe


def on_disk(store: DescriptorStore, name: str) -> bool:
    if name == "contrast":
        return isinstance(load_levels(store, SMALL).levels, tuple)
    return not isinstance(store.load(SMALL).vectors, np.ndarray)


def tables(result: Audit) -> list[pa.Table]:
    return [result.matches(), result.queries(), pa.parquet.read_table(result.path / "training.parquet")]


@pytest.mark.parametrize(
    ("name", "background"), [("mel", True), ("mel", False), pytest.param("contrast", False, marks=pytest.mark.slow)]
)
def test_memory_changes_nothing_in_an_audit(stores, tmp_path: Path, name: str, background: bool) -> None:
    given = stores(name)
    assert on_disk(given["training"], name)
    assert not on_disk(given["generated"], name)
    config = AuditConfig(null_sample=20, training_sample=100, candidates=8)
    results = [
        audit(
            given["generated"],
            given["training"],
            given["background"] if background else None,
            output=tmp_path / f"audit-{engine.memory_bytes}",
            config=config,
            engine=engine,
        )
        for engine in (Engine(), replace(SMALL, workers=2))
    ]
    assert tables(results[0]) == tables(results[1])
    assert results[0].card["threshold"] == results[1].card["threshold"]
    found = {row["query_id"]: row["reference_id"] for row in results[0].matches().to_pylist() if row["rank"] == 1}
    for number in COPIES:
        assert found[f"copy-{number}.wav"] == f"{number:04d}.wav"


@pytest.mark.parametrize("against", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_memory_changes_nothing_in_a_deduplication(stores, tmp_path: Path, against: bool) -> None:
    given = stores("mel")
    results = [
        deduplicate(
            given["training"],
            against=given["generated"] if against else None,
            output=tmp_path / f"dedup-{engine.memory_bytes}",
            config=DedupConfig(tau=0.5),
            engine=engine,
        )
        for engine in (Engine(), SMALL)
    ]
    one, other = ([r.pairs(), r.clusters(), r.top1()] for r in results)
    assert one == other
    pairs = {frozenset((row["first_id"], row["second_id"])) for row in results[0].pairs().to_pylist()}
    wanted = frozenset(("copy-3.wav", "0003.wav")) if against else frozenset(("0017.wav", "0031-copy.wav"))
    assert wanted in pairs


def test_blocks_of_any_size_give_the_same_neighbors() -> None:
    rng = np.random.default_rng(0)
    queries, references = (rng.normal(size=(n, 20)).astype(np.float32) for n in (30, 200))
    references[100:150] = references[50:100]  # ties: the smaller rank first, wherever the blocks end
    rank = rng.permutation(200)
    groups = (np.arange(30), np.arange(200) % 40)
    whole = top_k(queries, references, k=7, exclude=groups, rank=rank)
    for rows in (1, 13, 64, 199):
        blocks = as_blocks(references, rows)
        parts = top_k(queries, blocks, k=7, exclude=groups, rank=rank)
        assert np.array_equal(parts.index, whole.index)
        assert np.array_equal(parts.similarity, whole.similarity)


class StoppedError(Exception):
    pass


def counted(references: np.ndarray, rows: int) -> tuple[list[Block], list[int]]:
    """Blocks that write down when they are read."""
    read: list[int] = []

    def loader(block: Block):
        def load() -> np.ndarray:
            read.append(block.start)
            return block.load()

        return load

    return [replace(block, load=loader(block)) for block in as_blocks(references, rows)], read


def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    rng = np.random.default_rng(0)
    queries, references = (rng.normal(size=(n, 20)).astype(np.float32) for n in (5, 100))
    whole = top_k(queries, references, k=3)
    engine = Engine(scratch=tmp_path)

    def stop(done: int, total: int | None, what: str) -> None:
        if done >= 5 * 60:
            raise StoppedError

    blocks, read = counted(references, 10)
    with pytest.raises(StoppedError):
        top_k(queries, blocks, k=3, engine=engine, name="x", progress=stop)
    assert read == list(range(0, 70, 10))  # one is read ahead
    blocks, read = counted(references, 10)
    again = top_k(queries, blocks, k=3, engine=engine, name="x")
    assert read == list(range(60, 100, 10))
    assert np.array_equal(again.index, whole.index)
    assert np.array_equal(again.similarity, whole.similarity)

    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-9])  # damaged: begun anew, with the same result
    blocks, read = counted(references, 30)
    assert np.array_equal(top_k(queries, blocks, k=3, engine=engine, name="x").index, whole.index)
    assert read == [0, 30, 60, 90]


def test_an_audit_that_is_killed_in_its_search_goes_on_there(stores, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    given, config = stores("mel"), AuditConfig(training_sample=100)

    def run(output: Path, progress) -> Audit:
        return audit(given["generated"], given["training"], output=output, config=config, engine=SMALL, progress=progress)

    def stop(done: int, total: int | None, what: str) -> None:
        if "compared" in what and total and done >= total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "audit", stop)
    assert list((tmp_path / "audit.partial" / SCRATCH).rglob("generated-0.npz"))
    searched: list[int] = []
    real = nearest._Search.__call__
    monkeypatch.setattr(nearest._Search, "__call__", lambda self, job: searched.append(job.block.start) or real(self, job))
    result = run(tmp_path / "audit", lambda *_: None)
    blocks = len(given["training"].load(SMALL).vectors)
    assert searched[0] > 0  # of the first search, the first blocks were done
    assert blocks > 2
    assert tables(result) == tables(run(tmp_path / "whole", lambda *_: None))
    assert not (result.path / SCRATCH).exists()


@pytest.mark.slow
def test_scores_of_the_detector_are_kept_too(stores, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    given, config = stores("contrast"), AuditConfig(candidates=8, null_sample=20)

    def run(output: Path, progress) -> Audit:
        return audit(given["generated"], given["training"], output=output, config=config, engine=SMALL, progress=progress)

    def stop(done: int, total: int | None, what: str) -> None:
        if what.startswith("generated clips scored") and done >= 10:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "audit", stop)
    seen: list[tuple[int, str]] = []
    result = run(tmp_path / "audit", lambda done, total, what: seen.append((done, what)))
    scored = [done for done, what in seen if what.startswith("generated clips scored")]
    assert 1 < scored[0] <= 10  # the first ones were there
    assert tables(result) == tables(run(tmp_path / "whole", lambda *_: None))


@pytest.mark.parametrize("search", [pytest.param("ivf", marks=pytest.mark.slow), "hnsw"])
def test_an_approximate_search_says_what_it_finds(stores, tmp_path: Path, monkeypatch, search: str) -> None:
    monkeypatch.setattr(approximate, "FEWEST_ROWS", 100)
    given = stores("mel")
    config = AuditConfig(search=search, training_sample=100)
    result = audit(given["generated"], given["training"], given["background"], output=tmp_path / "audit", config=config)
    recall = result.card["recall"]
    assert recall["overall"]["asked"] == 300
    assert recall["overall"]["found"] >= recall["overall_exact"]["found"] - 5
    assert any("planted copies" in warning for warning in result.card["warnings"])
    monkeypatch.setattr(approximate, "FEWEST_ROWS", 4096)
    small = audit(given["generated"], given["training"], given["background"], output=tmp_path / "small", config=config)
    assert small.card["recall"] is None
    assert any("The search was exact" in warning for warning in small.card["warnings"])
    exact = audit(given["generated"], given["training"], given["background"], output=tmp_path / "exact")
    assert exact.card["recall"] is None
    with pytest.raises(ValueError, match="contrast compares every pair"):
        audit(
            open_corpus(tmp_path / "generated"),
            open_corpus(tmp_path / "training"),
            output=tmp_path / "no",
            config=AuditConfig(search=search),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda:99"], "cuda"),
        (["--memory", "0"], "memory"),
        (["--memory", "much"], "much"),
        (["--ray", "nowhere"], "nowhere"),
        (["--search", "fast"], "fast"),
    ],
)
@pytest.mark.parametrize("command", ["index", "audit", "dedup"])
def test_what_cannot_be_is_refused_before_the_work(
    write_sounds, tmp_path: Path, command, options, message, capfd, monkeypatch
) -> None:
    if command == "index" and options[0] == "--search":
        pytest.skip("index does not search")
    folder, output = write_sounds("in", 2), tmp_path / "out"
    reference = ["--reference", str(folder)] if command == "audit" else []
    monkeypatch.setattr(sys, "argv", ["auscult", command, str(folder), *reference, "-o", str(output), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    text = capfd.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not list(tmp_path.glob("out*"))


def test_a_given_tau_finds_the_same_pairs_from_a_sampled_histogram(stores, tmp_path: Path) -> None:
    given = stores("mel")

    def run(name: str, sample: int):
        config = DedupConfig(tau=0.5, top1_sample=sample)
        return deduplicate(given["training"], background=given["background"], output=tmp_path / name, config=config)

    whole, sampled = run("whole", 20_000), run("sampled", 50)
    assert whole.pairs().num_rows > 0
    assert sampled.pairs() == whole.pairs()
    assert sampled.clusters() == whole.clusters()
    scores = dict(zip(*whole.top1().to_pydict().values(), strict=True))
    drawn = dict(zip(*sampled.top1().to_pydict().values(), strict=True))
    assert len(drawn) == 50
    assert drawn.items() <= scores.items()
