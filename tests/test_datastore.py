"""Datastores: neighbors equal brute force, what a target must not see is not retrieved, and wrong questions are answered."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.duplicates import DedupConfig, deduplicate
from auscult.errors import AuscultError, CorpusError, OutputFolderError, StoreError
from auscult.generation.datastore import Datastore, DatastoreConfig, Exclusion, build_datastore
from auscult.generation.datastore.encoding import centered, mean_of
from auscult.generation.datastore.report import class_chance, retrieval_gate, retrieval_report
from auscult.generation.datastore.search import Groups, nearest, normalized_caption
from auscult.indexing import index
from conftest import LIVELY, sound
from test_cli import auscult

N = 24
MEL = DatastoreConfig(model="mel", duration_s=1.0)


def caption(number: int) -> str:
    return f"the sound of {LIVELY[number % len(LIVELY)]} number {number}"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips with captions and labels; 2 and 8 have one caption, 3 and 9 one sound; then one silent, one without caption, one
    quieter copy of clip 5, and a stretch of clip 4's file."""
    folder = tmp_path_factory.mktemp("datastore")
    rows = []
    for number in range(N):
        samples = np.round(sound(3 if number == 9 else number) * 32767).astype(np.int16)
        sf.write(folder / f"{number}.wav", samples, 16_000)
        text = "Sound, of GLASS no. 2!" if number == 8 else "sound of glass: no 2" if number == 2 else caption(number)
        rows.append([f"clip-{number}", f"{number}.wav", text, LIVELY[number % len(LIVELY)], "", ""])
    sf.write(folder / "silent.wav", np.zeros(16_000, np.int16), 16_000)
    sf.write(folder / "quieter.wav", 0.4 * sound(5), 16_000, subtype="FLOAT")
    rows.append(["silent", "silent.wav", "nothing at all", "", "", ""])
    rows.append(["mute", "1.wav", " ", "", "", ""])
    rows.append(["quieter", "quieter.wav", "something far away", "", "", ""])
    rows.append(["stretch", "4.wav", "a part of a melody", "", "0.2", "0.6"])
    with open(folder / "clips.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["clip_id", "path", "caption", "labels", "start_s", "duration_s"], *rows])
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def described(manifest: Path) -> Path:
    """Its descriptor store."""
    path = manifest.parent / "store"
    index(open_corpus(manifest), path, descriptor=load_descriptor("mel", duration_s=1.0))
    return path


@pytest.fixture(scope="module")
def dedup(manifest: Path, described: Path) -> Path:
    path = manifest.parent / "dedup"
    deduplicate(source(described), output=path, config=DedupConfig(tau=0.3))
    return path


@pytest.fixture(scope="module")
def by_sound(manifest: Path, described: Path, dedup: Path) -> Datastore:
    return build_datastore(source(described), output=manifest.parent / "by-sound", duplicates=dedup)


@pytest.fixture(scope="module")
def by_text(manifest: Path, described: Path) -> Datastore:
    pytest.importorskip("diffusers")
    config = DatastoreConfig(key="text", model="hashed")
    return build_datastore(source(described), output=manifest.parent / "by-text", config=config)


def source(path: Path):
    from auscult.inputs import source_of

    return source_of(str(path))


# --- search ---------------------------------------------------------------------------------------------------------


def brute_force(keys: np.ndarray, queries: np.ndarray, k: int, hidden: list[set[int]]) -> list[list[int]]:
    wide, asked = keys.astype(np.float64), queries.astype(np.float64)
    cosines = np.round((asked @ wide.T) / np.outer(np.linalg.norm(asked, axis=1), np.linalg.norm(wide, axis=1)), 12)
    ranked = [
        sorted(set(range(len(keys))) - hide, key=lambda row: (-line[row], row))
        for line, hide in zip(cosines, hidden, strict=True)
    ]
    return [rows[:k] for rows in ranked]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_nearest_equals_brute_force(seed: int, n: int, k: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, (n + 5, 4)) if coarse else rng.normal(size=(n + 5, 4))  # coarse: many exact ties
    values[~values.any(axis=1)] = 1
    keys, queries = np.split(values.astype(np.float32), [n])
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    hidden = [set(np.flatnonzero(rng.random(n) < 0.3).tolist()) for _ in queries]
    found = nearest(keys, queries, k, hidden=lambda query: np.array(sorted(hidden[query]), np.int64))
    assert [[row for row in rows if row >= 0] for rows in found.index.tolist()] == brute_force(keys, queries, k, hidden)
    assert np.array_equal(np.isnan(found.similarity), found.index < 0)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(50, 8)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    whole = nearest(keys, keys, 7, hidden=lambda query: np.array([query]))
    monkeypatch.setattr("auscult.generation.datastore.search.SCORE_BYTES", 3 * 4 * 50)  # three queries at once
    parts = nearest(keys, keys, 7, hidden=lambda query: np.array([query]))
    assert np.array_equal(whole.index, parts.index) and np.array_equal(whole.similarity, parts.similarity)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=20), st.data())
def test_groups_equal_their_definition(labels: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(labels) - 1), max_size=4))
    expected = {row for row, label in enumerate(labels) if row in rows or (label >= 0 and label in {labels[r] for r in rows})}
    assert set(Groups.make(labels).like(np.array(rows, np.int64)).tolist()) == expected


def test_captions_are_equal_up_to_case_punctuation_and_blanks() -> None:
    assert normalized_caption("A man  speaking.") == normalized_caption("a man speaking") != normalized_caption("a man speaks")
    assert normalized_caption("\N{FULLWIDTH LATIN CAPITAL LETTER A} dog") == "a dog"
    assert normalized_caption("???") != normalized_caption("!!!")


# --- neighbors ------------------------------------------------------------------------------------------------------


def must_not_see(store: Datastore, *, dedup: Path | None) -> list[set[int]]:
    """What each target must not see, said again from the manifest's plan and the files of the deduplication."""
    ids = store.pairs["clip_id"].to_pylist()
    together = [{"clip-3", "clip-9"}, {"clip-4", "stretch"}, {"clip-2", "clip-8"}]
    hidden = [{name} for name in ids]
    if dedup is not None:
        rows = pq.read_table(dedup / "clusters.parquet").to_pylist()
        numbers = {row["cluster_id"] for row in rows}
        together += [{row["clip_id"] for row in rows if row["cluster_id"] == number} for number in numbers]
    for name, hide in zip(ids, hidden, strict=True):
        for group in together:
            hide |= group if name in group else set()
    return [{ids.index(name) for name in hide if name in ids} for hide in hidden]


def test_neighbors_by_sound_equal_brute_force_and_leave_out_planted_duplicates(by_sound: Datastore, dedup: Path) -> None:
    assert by_sound.card["duplicates"]["threshold"] == 0.3
    hidden = must_not_see(by_sound, dedup=dedup)
    quieter, five = by_sound.row("quieter"), by_sound.row("clip-5")
    assert five in hidden[quieter] and hidden[by_sound.row("clip-3")] >= {by_sound.row("clip-9")}
    expected = brute_force(by_sound.keys, by_sound.keys, 50, hidden)
    assert [[row for row in rows if row >= 0] for rows in by_sound.neighbor_rows.tolist()] == expected


def test_without_a_deduplication_the_quieter_copy_is_found_and_that_is_said(described: Path, tmp_path: Path) -> None:
    store = build_datastore(source(described), output=tmp_path / "store")
    assert store.neighbors("quieter", 1).ids == ("clip-5",)
    assert store.neighbors("quieter").similarity[0] > 0.99
    assert any("--duplicates" in warning for warning in store.card["warnings"])
    hidden = must_not_see(store, dedup=None)  # identical and overlapping audio is left out in any case
    assert all(not hide & set(rows) for hide, rows in zip(hidden, store.neighbor_rows.tolist(), strict=True))


def test_keys_by_sound_are_centered_descriptors(by_sound: Datastore, described: Path) -> None:
    from auscult.store import DescriptorStore

    vectors = DescriptorStore.open(described).load()
    assert np.bincount(vectors.clip).max() == 1  # one window each: nothing is averaged
    names = vectors.clip_ids[vectors.clip].tolist()
    units = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    units = units[[names.index(name) for name in by_sound.pairs["clip_id"].to_pylist()]]
    moved = units - units.mean(axis=0)
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(by_sound.keys, expected, atol=1e-5)  # float32, and differences of vectors that nearly agree
    asked = vectors.vectors[names.index("clip-7")][None]
    mine = by_sound.retrieve(asked, 1)[0]
    assert mine.ids == ("clip-7",) and mine.similarity[0] == pytest.approx(1, abs=1e-6)
    assert by_sound.retrieve(asked * 9, 3)[0].ids == by_sound.retrieve(asked, 3)[0].ids


def test_a_clip_of_several_windows_has_the_mean_of_their_unit_vectors(write_sounds, tmp_path: Path) -> None:
    from auscult.generation.datastore.encoding import clip_vectors
    from auscult.store import DescriptorStore

    folder = write_sounds("long", 3, duration_s=2.5)
    index(open_corpus(folder), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    vectors = DescriptorStore.open(tmp_path / "store").load()
    units = vectors.vectors.astype(np.float64) / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    for row, found in zip((2, 0), clip_vectors(vectors, np.array([2, 0])), strict=True):
        mean = units[vectors.clip == row].mean(axis=0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_pairs_need_a_caption_and_a_sound(by_sound: Datastore) -> None:
    assert "silent" not in by_sound and "mute" not in by_sound and "clip-0" in by_sound
    reasons = {row["clip_id"]: row["reason"] for row in pq.read_table(by_sound.path / "skipped.parquet").to_pylist()}
    assert reasons == {"silent": "it is silent", "mute": "it has no caption"}
    counts = by_sound.card["counts"]
    assert (counts["pairs"], counts["silent"], counts["without_caption"], counts["skipped"]) == (N + 2, 1, 1, 2)
    with pytest.raises(ValueError, match="'mute' is not in this datastore; it was left out: it has no caption"):
        by_sound.neighbors("mute")
    with pytest.raises(ValueError, match="such as clip-0"):
        by_sound.neighbors("clip-999")


# --- retrieval ------------------------------------------------------------------------------------------------------


def test_texts_are_compared_by_their_words(by_text: Datastore) -> None:
    (found,) = by_text.retrieve([f"number 13, {LIVELY[13 % len(LIVELY)]} sound"], 3)
    assert found.ids[0] == "clip-13" and found.captions[0] == caption(13) and found.rows[0] == by_text.row("clip-13")
    assert Path(found.paths[0]).name == "13.wav" and (found.starts_s[0], found.durations_s[0]) == (0.0, 1.0)
    assert len(found) == 3 and np.all(np.diff(found.similarity) <= 0)


def test_free_prompts_equal_brute_force(by_text: Datastore) -> None:
    prompts = ["rain and dogs", caption(7), "glass", "Sound of glass no 2"]
    same = [set(), {by_text.row("clip-7")}, set(), {by_text.row("clip-2"), by_text.row("clip-8")}]
    expected = brute_force(by_text.keys, by_text.encode(prompts), 5, same)
    together = by_text.retrieve(prompts, 5)
    assert [list(found.rows) for found in together] == expected
    alone = [by_text.retrieve([prompt], 5)[0] for prompt in prompts]
    assert [found.ids for found in alone] == [found.ids for found in together]
    seen = by_text.retrieve([caption(7)], 1, exclude=Exclusion(captions=False))[0]
    assert seen.ids == ("clip-7",) and seen.similarity[0] == pytest.approx(1, abs=1e-6)


def test_exclusions_of_targets_are_those_of_kept_neighbors(by_text: Datastore) -> None:
    ids = by_text.pairs["clip_id"].to_pylist()
    texts = by_text.pairs["caption"].to_pylist()
    found = by_text.retrieve(texts, 6, exclude=[Exclusion((name,)) for name in ids])
    for name, one in zip(ids, found, strict=True):
        kept = by_text.neighbors(name, 6)
        assert one.ids == kept.ids and np.array_equal(one.similarity, kept.similarity)


def test_a_mixture_sees_neither_of_its_targets_nor_what_is_like_them(by_text: Datastore) -> None:
    joint = f"{caption(3)} and sound of glass: no 2"
    (found,) = by_text.retrieve([joint], len(by_text) - 4, exclude=Exclusion(("clip-3", "clip-2")))
    assert set(found.ids) == set(by_text.pairs["clip_id"].to_pylist()) - {"clip-3", "clip-9", "clip-2", "clip-8"}
    (known,) = by_text.retrieve([joint], 4, exclude=Exclusion(("clip-3", "clip-2"), clusters=False, captions=False))
    assert {"clip-8"} <= set(known.ids) and not {"clip-3", "clip-2"} & set(known.ids)
    (free,) = by_text.retrieve(["glass"], len(by_text) - 1, exclude=Exclusion(texts=(caption(7).upper(),)))
    assert "clip-7" not in free.ids


def test_the_datastore_reads_as_it_was_written_and_has_every_digest(by_text: Datastore) -> None:
    again = Datastore.load(by_text.path)
    assert again.retrieve(["glass"], 5)[0].ids == by_text.retrieve(["glass"], 5)[0].ids
    assert set(again.card["files"]) == {"pairs.parquet", "keys.npy", "neighbors.parquet", "skipped.parquet"}
    report = auscult("info", by_text.path, "--verify")
    assert report.returncode == 0 and "all digests agree: 4 files" in report.stdout


def test_a_card_says_what_keys_are_made_by(by_sound: Datastore, by_text: Datastore) -> None:
    assert by_sound.card["encoders"] == {"audio": "mel/1(duration_s=1.0)", "text": None}
    assert by_text.texts_spec == "hashed/1(dimension=64,seed=0)"
    assert (by_sound.card["sample_rate_hz"], by_sound.card["window_s"]) == (16_000, 1.0)
    assert len(by_sound.card["inputs"]["pairs"]["content_sha256"]) == 64
    assert by_sound.card["centered"] and not by_text.card["centered"]


# --- the report -----------------------------------------------------------------------------------------------------


def test_hubs_classes_and_margins_by_hand() -> None:
    rows = np.array([[1, 2], [2, 0], [1, -1], [1, 2]])
    similarity = np.array([[0.9, 0.5], [0.8, 0.7], [0.6, np.nan], [0.4, 0.1]])
    labels = [["dog"], ["dog", "rain"], ["rain"], []]
    none = np.full(4, -1)
    report = retrieval_report(rows, similarity, clusters=none, captions=none, labels=labels)
    assert (report.k, report.max_in_degree, report.never_retrieved, report.short) == (2, 3, 0.25, 1)
    assert report.margin == pytest.approx(0.3)
    assert report.class_precision == {"1": 1.0}  # 0-1, 1-2, 2-1; the unlabeled does not count
    assert report.class_chance == pytest.approx((1 + 2 + 1) / (3 * 3))
    assert class_chance([["a"]]) is None
    rng = np.random.default_rng(0)
    many = [[f"class {label}" for label in rng.choice(9, rng.integers(0, 4))] for _ in range(250)]
    sharing = [
        np.mean([bool(set(one) & set(other)) for j, other in enumerate(many) if j != i]) for i, one in enumerate(many) if one
    ]
    assert class_chance(many) == pytest.approx(np.mean(sharing), abs=1e-12)


def test_the_gate_finds_planted_leaks() -> None:
    rows, similarity = np.array([[1], [1], [3], [2]]), np.ones((4, 1))
    clusters, captions = np.array([-1, -1, 5, 5]), np.array([0, 0, 2, 3])
    report = retrieval_report(rows, similarity, clusters=clusters, captions=captions, labels=[[]] * 4)
    assert (report.self_hits, report.duplicate_hits, report.caption_hits) == (1, 2, 2)
    assert not retrieval_gate(report).passed
    assert retrieval_gate(dataclasses.replace(report, self_hits=0, duplicate_hits=0), equal_captions=True).passed


def test_equal_captions_can_be_let_in(described: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = DatastoreConfig(key="text", model="hashed", equal_captions=True, neighbors=3)
    store = build_datastore(source(described), output=tmp_path / "store", config=config)
    assert store.neighbors("clip-2").ids[0] == "clip-8" and store.neighbor_rows.shape == (N + 2, 3)
    assert store.report().caption_hits == 2 and store.card["report"]["caption_hits"] == 2
    assert dataclasses.asdict(store.report()) == store.card["report"]


# --- CLAP -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tiny_models import save

    return save(tmp_path_factory.mktemp("clap"), "clap")


def test_clap_asks_with_captions_and_keys_are_of_either_side_or_both(manifest: Path, clap: Path, tmp_path: Path) -> None:
    from auscult.metrics.embeddings import load_backend

    few = few_of(manifest, tmp_path, 6)
    sounds = build_datastore(open_corpus(few), output=tmp_path / "a", config=DatastoreConfig(model=str(clap)))
    described = source(tmp_path / "a" / "stores" / "pairs")
    texts, means = (
        build_datastore(described, output=tmp_path / key, config=DatastoreConfig(key=key, model=str(clap)))  # type: ignore[arg-type]
        for key in ("text", "mean")
    )
    captions = sounds.pairs["caption"].to_pylist()
    backend = load_backend(f"clap:{clap}")
    assert backend.embed_texts is not None
    asked = backend.embed_texts(captions)
    np.testing.assert_allclose(texts.keys, asked, atol=1e-6)
    halfway = sounds.keys + texts.keys
    np.testing.assert_allclose(means.keys, halfway / np.linalg.norm(halfway, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match=r"as many values of sounds as of captions, got \(1, 3\) and \(1, 2\)"):
        mean_of(np.ones((1, 3), np.float32), np.ones((1, 2), np.float32))
    for store in (sounds, texts, means):
        hidden = [{row} | ({8 - 6 * (row == 8)} if row in {2, 8} else set()) for row in range(6)]
        expected = brute_force(store.keys, asked, 5, hidden)
        assert [[row for row in rows if row >= 0] for rows in store.neighbor_rows.tolist()] == expected
        assert store.texts_spec == str(backend.spec) and "digest=" in store.card["encoders"]["text"]
    assert [found.ids for found in sounds.retrieve([captions[0]], 3)] == [sounds.neighbors("clip-0", 3).ids]
    assert dict(sounds.card["config"])["model"] == str(clap)
    assert build_datastore(described, output=tmp_path / "default").texts_spec == sounds.texts_spec  # the store's own model


def few_of(manifest: Path, folder: Path, n: int) -> Path:
    with open(manifest) as handle:
        rows = list(csv.reader(handle))
    rows = [rows[0], *([name, str(manifest.parent / path), *rest] for name, path, *rest in rows[1 : n + 1])]
    with open(folder / "few.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return folder / "few.csv"


# --- what is refused ------------------------------------------------------------------------------------------------


def test_wrong_questions_are_answered(by_sound: Datastore, by_text: Datastore) -> None:
    with pytest.raises(ValueError, match=r"k=27 is more than this datastore can give: of its 26 pairs 0 are excluded"):
        by_text.retrieve(["rain"], 27)
    with pytest.raises(ValueError, match=r"of its 26 pairs 2 are excluded for query 1; take k of at most 24"):
        by_text.retrieve(["rain", "sound of glass no 2"], 25)
    with pytest.raises(ValueError, match="from 0 to 25, the neighbors"):
        by_text.neighbors("clip-1", 51)
    with pytest.raises(ValueError, match="query 1: expected a text with words in it, got ' '"):
        by_text.retrieve(["rain", " "], 1)
    with pytest.raises(ValueError, match="no vectors of texts; use the neighbors of a clip"):
        by_sound.retrieve(["rain"], 1)
    with pytest.raises(ValueError, match=r"expected vectors of shape \(n, 64\), as hashed.* got \(1, 5\)"):
        by_text.retrieve(np.ones((1, 5), np.float32), 1)
    with pytest.raises(ValueError, match="zero or not finite"):
        by_text.retrieve(np.zeros((1, 64), np.float32), 1)
    with pytest.raises(ValueError, match="an exclusion for each of 1 queries, or one for all, got 2"):
        by_text.retrieve(["rain"], 1, exclude=[Exclusion(), Exclusion()])
    with pytest.raises(ValueError, match="'nobody' is not in this datastore"):
        by_text.retrieve(["rain"], 1, exclude=Exclusion(("nobody",)))
    assert by_text.retrieve([], 3) == [] and len(by_text.retrieve(["rain"], 0)[0]) == 0
    assert by_text.retrieve(["word " * 2000], 1)[0].ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "mel", "key": "text"}, "describes sounds, not captions"),
        ({"model": "mel/1(duration_s=1.0)", "key": "mean"}, "describes sounds, not captions"),
        ({"model": "hashed"}, "vectors of captions only"),
        ({"model": "mell"}, "no model 'mell'; did you mean mel"),
        ({"model": "contrast"}, "no vectors to look up"),
        ({"model": "mel", "duration_s": 2.0}, "was described with mel/1.duration_s=1.0., but mel/1.duration_s=2.0. was asked"),
        ({"model": "./nowhere", "key": "text"}, "no folder of a model here"),
    ],
)
def test_models_that_have_no_such_keys_are_refused(described: Path, tmp_path: Path, settings: dict, words: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises((ValueError, AuscultError), match=words):
        build_datastore(source(described), output=tmp_path / "store", config=DatastoreConfig(**settings))
    assert not any(tmp_path.iterdir())


def test_duplicates_of_other_clips_are_refused(manifest: Path, described: Path, dedup: Path, tmp_path: Path) -> None:
    few = few_of(manifest, tmp_path, 4)
    deduplicate(open_corpus(few), output=tmp_path / "dedup", config=DedupConfig(duration_s=1.0, tau=0.3))
    with pytest.raises(StoreError, match=r"has not looked at 22 of the datastore's 26 clips, such as"):
        build_datastore(source(described), output=tmp_path / "store", duplicates=tmp_path / "dedup")
    leaks = tmp_path / "leaks"
    deduplicate(open_corpus(few), output=leaks, against=source(described), config=DedupConfig(tau=0.3))
    with pytest.raises(StoreError, match="lists what leaks into another set"):
        build_datastore(source(described), output=tmp_path / "store", duplicates=leaks)
    assert build_datastore(open_corpus(few), output=tmp_path / "store", duplicates=dedup, config=MEL).card["duplicates"]


def test_a_corpus_without_captions_or_of_one_sound_is_refused(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("plain", 3)

    def described(*state: object) -> None:
        raise AssertionError(f"refused only after {state}")

    with pytest.raises(CorpusError, match=r"got 0 of 3; the first: 0000.wav: it has no caption.*caption column"):
        build_datastore(open_corpus(folder), output=tmp_path / "store", config=MEL, progress=described)
    with pytest.raises(ValueError, match="3 sounds cannot be told from the mean of all"):
        centered(np.ones((3, 4), np.float32), np.full(4, 0.5, np.float32))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        DatastoreConfig(neighbors=0)


def test_what_is_refused_while_it_is_built_leaves_nothing(tmp_path: Path) -> None:
    lines = [f"{number}.wav,sound {number}" for number in range(3)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,caption", *lines]))
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(b"no sound")
    with pytest.raises(CorpusError, match="3 files could not be read"):
        build_datastore(open_corpus(tmp_path / "clips.csv"), output=tmp_path / "store", config=MEL)
    assert not list(tmp_path.glob("*store*")) and not list(tmp_path.glob(".*"))


def test_a_stopped_build_goes_on_and_is_not_lost_to_another_command(manifest: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int | None, what: str) -> None:
        if not what.startswith("pairs"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_datastore(open_corpus(manifest), output=tmp_path / "store", config=MEL, progress=stop)
    (part,) = (tmp_path / "store.partial").glob("stores/pairs/vectors/part-*")
    before = part.stat().st_mtime_ns
    with pytest.raises(StoreError, match=r"give the same command again, or delete store\.partial"):
        Datastore.load(tmp_path / "store")
    with pytest.raises(
        OutputFolderError, match=r"store\.partial: keeps what was described of an unfinished datastore; .*--over"
    ):
        deduplicate(open_corpus(manifest), output=tmp_path / "store")
    built = build_datastore(open_corpus(manifest), output=tmp_path / "store", config=MEL)
    assert (built.path / part.relative_to(tmp_path / "store.partial")).stat().st_mtime_ns == before
    assert not (tmp_path / "store.partial").exists()


def test_damage_is_named(by_sound: Datastore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Datastore.load(tmp_path / "nothing")
    copy = tmp_path / "copy"
    shutil.copytree(by_sound.path, copy)
    keys = (copy / "keys.npy").read_bytes()
    (copy / "keys.npy").write_bytes(keys[:-100])
    with pytest.raises(StoreError, match="cannot be read .* build the datastore again"):
        Datastore.load(copy)
    np.save(copy / "keys.npy", by_sound.keys[:5])
    with pytest.raises(StoreError, match="of different builds"):
        Datastore.load(copy)


# --- the command ----------------------------------------------------------------------------------------------------


def test_command(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "store"
    command = ["datastore", manifest, "-o", output, "--model", "mel", "--duration", "1", "--neighbors", "4", "-j", "1"]
    run = auscult(*command)
    assert run.returncode == 1 and "2 inputs make no pair (1 without a caption, 1 silent)" in run.stderr
    assert "26 pairs, keys (audio)" in run.stdout and run.stdout.rstrip().endswith("/store")
    with pytest.raises(OutputFolderError, match="already holds a finished datastore"):
        build_datastore(open_corpus(manifest), output=output, config=MEL)
    summary = auscult(*command, "--overwrite", "--json", "--max-skipped", "2")
    assert summary.returncode == 0 and json.loads(summary.stdout)["report"]["self_hits"] == 0
    assert Datastore.load(output).neighbor_rows.shape == (N + 2, 4)


def test_a_foreign_folder_is_left_alone(described: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OutputFolderError, match="is a file|not an auscult"):
        build_datastore(source(described), output=tmp_path / "mine")
