"""Duplicates: planted ones are found, chains are not dropped, and the graph equals brute force."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.clusters import cluster_rows
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.duplicates import DedupConfig, Duplicates, deduplicate, recall_warning
from auscult.pairs import ClipPair, find_pairs
from auscult.search import recall
from auscult.search.approximate import Ivf
from auscult.vectors import Vectors
from conftest import sound

CONFIG = DedupConfig(duration_s=3.0)


def pcm(number: int) -> np.ndarray:
    return np.round(sound(number, 3.0) * 32767).astype(np.int16)


@pytest.fixture
def corpus(write_sounds) -> Path:
    """60 clips and four copies: the same file, the same samples as FLAC, an MP3, and a quieter one."""
    folder = write_sounds("corpus", 60, duration_s=3.0)
    shutil.copy(folder / "0003.wav", folder / "same-file.wav")
    sf.write(folder / "0010.wav", pcm(10), 16_000)
    sf.write(folder / "same-samples.flac", pcm(10), 16_000)
    sf.write(folder / "mp3.mp3", sound(21, 3.0), 16_000)
    sf.write(folder / "quieter.wav", 0.4 * sound(33, 3.0), 16_000)
    return folder


def run(corpus: Path, output: Path, config: DedupConfig = CONFIG, **options) -> Duplicates:
    return deduplicate(open_corpus(corpus), output=output, config=config, **options)


def lists(folder: Path) -> tuple[set[str], set[str]]:
    return tuple({Path(line).name for line in (folder / f"{n}.txt").read_text().splitlines()} for n in ("keep", "drop"))


def test_planted_duplicates_are_found_and_nothing_else(corpus: Path, tmp_path: Path) -> None:
    result = run(corpus, tmp_path / "dedup")
    kinds = {
        frozenset((row["first_id"], row["second_id"])): row["kind"] for row in result.pairs().to_pylist() if row["duplicate"]
    }
    assert kinds == {
        frozenset(("0003.wav", "same-file.wav")): "bit_identical",
        frozenset(("0010.wav", "same-samples.flac")): "sample_identical",
        frozenset(("0021.wav", "mp3.mp3")): "similar",
        frozenset(("0033.wav", "quieter.wav")): "similar",
    }
    keep, drop = lists(tmp_path / "dedup")
    assert len(keep) == 60
    assert len(drop) == 4
    assert keep | drop == {path.name for path in corpus.iterdir()}
    for row in result.clusters().to_pylist():
        if not row["keep"]:
            assert row["kept_clip_id"] not in {None, row["clip_id"]}
            assert row["similarity_to_kept"] > 0.99


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("longest", "long.wav"), ("highest_rate", "fast.wav"), ("best_captioned", "worded.wav"), ("first", "a.wav")],
)
def test_keep_policies(tmp_path: Path, policy, kept) -> None:
    clips = pa.table(
        {
            "clip_id": ["a.wav", "fast.wav", "long.wav", "worded.wav"],
            "path": list("abcd"),
            "caption": ["dog", "dog", None, "a small dog barks twice"],
            "duration_s": [1.0, 1.0, 1.2, 1.0],
            "sample_rate_hz": [16_000, 48_000, 16_000, 16_000],
            "start_s": [0.0] * 4,
        }
    )
    pairs = [ClipPair(i, j, 0.99, 0.55, (1.0, 1.0), "similar", True) for i in range(4) for j in range(i + 1, 4)]
    rows = cluster_rows(clips, pairs, 4, DedupConfig(keep=policy))
    assert [row["clip_id"] for row in rows if row["keep"]] == [kept]
    assert all(row["captions_differ"] for row in rows)
    assert not any(row["chained"] for row in rows)


def table(n: int) -> pa.Table:
    return pa.table(
        {
            "clip_id": [f"{i:02d}" for i in range(n)],
            "path": [f"/{i:02d}" for i in range(n)],
            "caption": pa.nulls(n, pa.string()),
            "duration_s": [float(n - i) for i in range(n)],
            "sample_rate_hz": [16_000] * n,
            "start_s": [0.0] * n,
        }
    )


def test_a_chain_is_not_dropped_for_a_clip_it_is_unlike() -> None:
    pairs = [ClipPair(0, 1, 0.99, 0.55, (1.0, 1.0), "similar", True), ClipPair(1, 2, 0.99, 0.55, (1.0, 1.0), "similar", True)]
    rows = {row["clip_id"]: row for row in cluster_rows(table(3), pairs, 3, DedupConfig())}
    assert {clip_id: row["keep"] for clip_id, row in rows.items()} == {"00": True, "01": False, "02": True}
    assert all(row["chained"] for row in rows.values())
    assert "not itself a copy of 00" in rows["02"]["reason"]


@given(seed=st.integers(0, 100_000), n=st.integers(2, 14), density=st.floats(0.02, 0.6))
@settings(deadline=None, max_examples=100)
def test_components_and_drops_hold_on_any_graph(seed: int, n: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    edges = {(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < density}
    pairs = [ClipPair(i, j, 0.99, 0.55, (1.0, 1.0), "similar", True) for i, j in sorted(edges)]
    rows = cluster_rows(table(n), pairs, n, DedupConfig())
    cluster = {row["clip_id"]: row["cluster_id"] for row in rows}
    # brute force: closure of the relation
    reach = np.eye(n, dtype=bool)
    for i, j in edges:
        reach[i, j] = reach[j, i] = True
    for _ in range(n):
        reach = reach @ reach
    for i in range(n):
        for j in range(n):
            same = cluster.get(f"{i:02d}", -1 - i) == cluster.get(f"{j:02d}", -1 - j)
            assert same == bool(reach[i, j])
    kept = {row["clip_id"] for row in rows if row["keep"]}
    for row in rows:
        if not row["keep"]:  # every dropped clip is itself linked to a clip that stays
            i, j = sorted((int(row["clip_id"]), int(row["kept_clip_id"])))
            assert (i, j) in edges
            assert row["kept_clip_id"] in kept


def test_pairs_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    n = 40
    x = rng.standard_normal((n, 16))
    x[20:26] = x[0:6] + 0.05 * rng.standard_normal((6, 16))
    clips = (
        table(n)
        .append_column("sample_digest", pa.array([str(i) for i in range(n)]))
        .append_column("sha256", pa.array([str(i) for i in range(n)]))
    )
    background = rng.standard_normal((30, 16))

    def vectors(values: np.ndarray, clips: pa.Table) -> Vectors:
        rows = np.arange(len(values))
        return Vectors(values.astype(np.float32), rows, rows * 0.0, clips, 1.0, load_descriptor("mel").spec)

    tau = 0.3
    found = find_pairs(vectors(x, clips), n, vectors(background, table(30)), config=DedupConfig(tau=tau))
    pairs, top1 = found.pairs, found.top1
    unit, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, background))
    bias = 0.5 * np.sort(unit @ other.T, axis=1)[:, -5:].mean(axis=1)
    score = unit @ unit.T - bias[:, None]  # s_hat(i, j)
    both = np.triu((score > tau) & (tau < score.T), 1)
    assert {(pair.first, pair.second) for pair in pairs} == set(map(tuple, np.argwhere(both).tolist()))
    assert {(i, i + 20) for i in range(6)} <= {(pair.first, pair.second) for pair in pairs}
    assert top1.num_rows == n


def plain_vectors(values: np.ndarray, name: str) -> Vectors:
    """Vectors of one window a clip, of clips that are all different."""
    n = len(values)
    ids = [f"{name}{i}" for i in range(n)]
    columns = {"clip_id": ids, "path": ids, "start_s": [0.0] * n, "duration_s": [1.0] * n, "sha256": ids, "sample_digest": ids}
    return Vectors(values.astype(np.float32), np.arange(n), np.zeros(n), pa.table(columns), 1.0, load_descriptor("mel").spec)


@pytest.mark.parametrize("background", [True, False])
def test_leaks_equal_brute_force_and_only_pairs_across_are_compared(background) -> None:
    rng = np.random.default_rng(0)
    x, y, other = rng.standard_normal((90, 12)), rng.standard_normal((30, 12)), rng.standard_normal((30, 12))
    y[:5] = x[:5] + 0.05 * rng.standard_normal((5, 12))
    x[50:60] = x[:10] + 0.05 * rng.standard_normal((10, 12))  # within the corpus: no leak
    seen: dict[str, int] = {}
    found = find_pairs(
        plain_vectors(x, "c").joined(plain_vectors(y, "t")),
        90,
        plain_vectors(other, "b") if background else None,
        config=DedupConfig(tau=0.3),
        progress=lambda done, total, what: seen.__setitem__(what, total),
    )
    pairs = {(pair.first, pair.second) for pair in found.pairs}
    assert all(one < 90 <= two for one, two in pairs) and {(i, 90 + i) for i in range(5)} <= pairs
    assert seen["pairs compared"] == 90 * 30
    assert found.recall == {}
    if background:
        unit, away = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (np.concatenate([x, y]), other))
        bias = 0.5 * np.sort(unit @ away.T, axis=1)[:, -5:].mean(axis=1)
        above = unit @ unit.T - np.maximum(bias[:, None], bias) > 0.3
        assert pairs == {(i, j + 90) for i, j in np.argwhere(above[:90, 90:]).tolist()}


@pytest.mark.parametrize("background", [True, False])
def test_the_recall_of_every_set_that_is_searched_is_reported(monkeypatch, background) -> None:
    """A broken index of a large corpus, beside a small set that is searched exactly: it is the former that counts."""
    monkeypatch.setattr(recall, "prepare_approximate", lambda name: Ivf(lists=400, probes=1))
    rng = np.random.default_rng(0)
    corpus, test = (plain_vectors(rng.standard_normal((n, 24)), name) for n, name in ((5000, "c"), (200, "t")))
    other = plain_vectors(rng.standard_normal((50, 24)), "b") if background else None
    config = DedupConfig(search="ivf", tau=0.9, top1_sample=200)
    found = find_pairs(corpus.joined(test), 5000, other, config=config)
    assert set(found.recall) == {"the corpus"} | ({"both sets"} if not background else set())
    for measured in found.recall.values():
        assert measured.overall.high < measured.overall_exact.low
    worst = min(found.recall, key=lambda called: found.recall[called].overall.found)
    assert f"(nearest clips in {worst}" in recall_warning(found.recall)
    assert f"found {found.recall[worst].overall.found} among" in recall_warning(found.recall)
    assert set(find_pairs(test.joined(corpus), 200, other, config=config).recall) == (
        {"the other set"} if background else {"the other set", "both sets"}
    )
    assert set(find_pairs(corpus, 5000, other, config=config).recall) == {"the corpus"}


def test_leakage_between_two_sets(corpus: Path, write_sounds, tmp_path: Path) -> None:
    test = write_sounds("test", 30, first=300, duration_s=3.0)
    shutil.copy(corpus / "0005.wav", test / "renamed.wav")
    sf.write(test / "mp3.mp3", sound(14, 3.0), 16_000)
    result = run(corpus, tmp_path / "leaks", against=open_corpus(test))
    found = {(row["first_id"], row["second_id"]) for row in result.pairs().to_pylist() if row["duplicate"]}
    assert found == {("0005.wav", "renamed.wav"), ("0014.wav", "mp3.mp3")}
    assert lists(tmp_path / "leaks")[1] == {"0005.wav", "0014.wav"}
    assert result.card["mode"] == "leakage"


def test_no_gap_means_no_similar_duplicates_but_a_list(write_sounds, tmp_path: Path) -> None:
    result = run(write_sounds("plain", 40, duration_s=3.0), tmp_path / "dedup")
    assert not result.card["threshold"]["separated"]
    assert result.card["counts"]["dropped"] == 0
    assert any("Only identical clips" in warning for warning in result.card["warnings"])
    assert lists(tmp_path / "dedup")[1] == set()


def test_sharing_one_window_does_not_make_long_recordings_duplicates(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("long", 40, duration_s=3.0)
    shared = sound(900, 3.0)
    for name, first in (("a.wav", 910), ("b.wav", 920)):
        parts = [sound(first + n, 3.0) for n in range(4)]
        sf.write(folder / name, np.concatenate([parts[0], shared, *parts[1:]]), 16_000)
    result = run(folder, tmp_path / "dedup", DedupConfig(duration_s=3.0, tau=0.505))
    pair = next(row for row in result.pairs().to_pylist() if {row["first_id"], row["second_id"]} == {"a.wav", "b.wav"})
    assert (pair["duplicate"], pair["first_coverage"], pair["second_coverage"]) == (False, 0.2, 0.2)
    assert {"a.wav", "b.wav"} <= lists(tmp_path / "dedup")[0]


def test_identical_silence_is_a_duplicate_too(corpus: Path, tmp_path: Path) -> None:
    for name in ("s1.wav", "s2.flac"):
        sf.write(corpus / name, np.zeros(16_000, np.int16), 16_000)
    result = run(corpus, tmp_path / "dedup")
    assert {"s1.wav", "s2.flac"} in [
        {row["first_id"], row["second_id"]} for row in result.pairs().to_pylist() if row["kind"] == "sample_identical"
    ]


def test_segments_of_one_file_are_listed_by_id(tmp_path: Path) -> None:
    sf.write(tmp_path / "x.wav", np.concatenate([sound(n, 1.0) for n in range(30)]), 16_000)
    rows = "".join(f"x.wav,seg{n},{n},1\n" for n in range(30))
    (tmp_path / "m.csv").write_text("path,clip_id,start_s,duration_s\n" + rows)
    result = run(tmp_path / "m.csv", tmp_path / "dedup", DedupConfig(duration_s=1.0))
    assert result.card["lists_hold"] == "clip_id"
    assert result.card["counts"]["bit_identical_pairs"] == 0  # same file, other stretches
    assert (tmp_path / "dedup" / "keep.txt").read_text().splitlines() == [f"seg{n}" for n in range(30)]


@pytest.mark.parametrize("bad", [{"keep": "prettiest"}, {"coverage": 0.0}, {"tau": "soon"}])
def test_bad_settings(bad) -> None:
    with pytest.raises(ValueError, match="should be"):
        DedupConfig(**bad)


@pytest.mark.parametrize("copies", [2, 5, 12])
def test_a_clip_with_many_copies_does_not_look_ordinary(write_sounds, tmp_path: Path, copies: int) -> None:
    folder = write_sounds("corpus", 60, duration_s=3.0)
    rng = np.random.default_rng(0)
    for number in range(copies):
        sf.write(folder / f"copy-{number}.wav", 0.8 * sound(3, 3.0) + 1e-4 * rng.standard_normal(48_000), 16_000)
    result = run(folder, tmp_path / "dedup", DedupConfig(duration_s=3.0, tau=0.51))
    rows = result.clusters().to_pylist()
    largest = {row["clip_id"] for row in rows if row["cluster_id"] == rows[0]["cluster_id"]}
    assert largest == {"0003.wav", *(f"copy-{number}.wav" for number in range(copies))}


def test_every_twin_of_a_leak_is_dropped(corpus: Path, write_sounds, tmp_path: Path) -> None:
    test = write_sounds("test", 30, first=300, duration_s=3.0)
    sf.write(test / "m.mp3", sound(5, 3.0), 16_000)
    shutil.copy(corpus / "0005.wav", corpus / "twin.wav")
    run(corpus, tmp_path / "leaks", against=open_corpus(test))
    assert lists(tmp_path / "leaks")[1] == {"0005.wav", "twin.wav"}


def test_the_kind_of_a_drop_is_that_of_the_two_clips(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("corpus", 25, duration_s=3.0)
    sf.write(folder / "0010.wav", pcm(10), 16_000)
    for name in ("x1.flac", "x2.flac"):
        sf.write(folder / name, pcm(10), 16_000)
    rows = run(folder, tmp_path / "dedup", DedupConfig(duration_s=3.0, keep="first")).clusters().to_pylist()
    assert {row["clip_id"]: row["reason"] for row in rows if not row["keep"]} == {
        "x1.flac": "sample-identical to 0010.wav",
        "x2.flac": "sample-identical to 0010.wav",
    }
    (folder / "0010.wav").unlink()
    rows = run(folder, tmp_path / "again", DedupConfig(duration_s=3.0, keep="first")).clusters().to_pylist()
    assert [row["reason"] for row in rows if not row["keep"]] == ["bit-identical to x1.flac"]


def test_the_file_is_kept_and_the_link_to_it_dropped(corpus: Path, tmp_path: Path) -> None:
    (corpus / "0000-link.wav").symlink_to(corpus / "0007.wav")
    run(corpus, tmp_path / "dedup")
    keep, drop = lists(tmp_path / "dedup")
    assert "0007.wav" in keep
    assert "0000-link.wav" in drop


def test_few_clips_are_settled_by_digest(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("few", 4)
    shutil.copy(folder / "0001.wav", folder / "again.wav")
    result = run(folder, tmp_path / "dedup", DedupConfig(duration_s=1.0))
    assert result.card["counts"]["dropped"] == 1
    assert [row["kind"] for row in result.pairs().to_pylist()].count("similar") >= 2  # the closest, listed


def test_a_partly_covered_long_recording_is_kept_for_that_reason() -> None:
    clips = table(2)
    pairs = [ClipPair(0, 1, 0.99, 0.55, (1.0, 0.1), "similar", True)]
    rows = {row["clip_id"]: row for row in cluster_rows(clips, pairs, 2, DedupConfig(keep="first"))}
    assert rows["01"]["keep"]
    assert "covers only part" in rows["01"]["reason"]
