"""The queue of pairs, the random sample of what was not flagged, and control pairs."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from scipy.signal import correlate

from auscult.audio import read_audio
from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.duplicates import DedupConfig, deduplicate
from auscult.errors import StoreError
from auscult.folders import write_card, write_table
from auscult.review.controls import _Names, make_controls, transformed
from auscult.review.queue import ReviewSet, load_pairs, order_pairs, other_pairs, pair_row
from auscult.review.sampling import draw_sample
from auscult.review.verdicts import Control, VerdictStore, pair_id
from conftest import sound


def planted_audit(folder: Path, n: int, *, ranks: int = 3, tau: float = 0.8, seed: int = 0) -> Path:
    """The tables of an audit of ``n`` generated clips with random scores, as the audit writes them."""
    rng = np.random.default_rng(seed)
    best = rng.random(n)
    rows = [(query, rank, best[query] - 0.01 * rank) for query in range(n) for rank in range(ranks)]
    order = rng.permutation(len(rows))  # the reader must not rely on the order of the file
    rows = [rows[at] for at in order]
    table = pa.table(
        {
            "query_id": [f"g/{query}.wav" for query, _, _ in rows],
            "query_path": [f"/sounds/g/{query}.wav" for query, _, _ in rows],
            "reference_id": [f"t/{query}-{rank}.wav" for query, rank, _ in rows],
            "reference_path": [f"/sounds/t/{query}-{rank}.wav" for query, rank, _ in rows],
            "rank": pa.array([rank + 1 for _, rank, _ in rows], pa.int32()),
            "score": [score for _, _, score in rows],
            "flagged": [bool(score >= tau) for _, _, score in rows],
            "query_offset_s": [0.5] * len(rows),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "matches.parquet", table)
    queries = pa.table({"query_id": [f"g/{q}.wav" for q in range(n)], "duration_s": [3.0] * n, "caption": ["a dog"] * n})
    write_table(folder / "queries.parquet", queries)
    write_card(folder, "audit", {"threshold": {"tau": tau}})
    return folder


def test_an_audit_lists_the_best_match_of_each_query(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path, 40))
    assert len(review_set) == 40
    assert set(zip(review_set.query_ids, review_set.reference_ids, strict=True)) == {
        (f"g/{query}.wav", f"t/{query}-0.wav") for query in range(40)
    }
    truth = {
        pair_id(row["query_id"], row["reference_id"]): row for row in pq.read_table(tmp_path / "matches.parquet").to_pylist()
    }
    for pair, score, flagged in zip(review_set.pair_ids, review_set.scores, review_set.flagged, strict=True):
        assert (score, flagged) == (truth[pair]["score"], truth[pair]["flagged"])
        row = pair_row(review_set, pair)
        assert truth[pair].items() <= row.items()
        assert (row["query_duration_s"], row["query_caption"], row["spans"], row["reference_offset_s"]) == (
            3.0,
            "a dog",
            None,
            0.0,
        )
        others = [pair_row(review_set, other) for other in other_pairs(review_set, pair)]
        assert [(other["query_id"], other["rank"]) for other in others] == [(row["query_id"], 2), (row["query_id"], 3)]


def test_a_match_that_is_flagged_at_a_lower_rank_is_the_one_listed(tmp_path: Path) -> None:
    folder = planted_audit(tmp_path, 5, tau=2.0)
    table = pq.read_table(folder / "matches.parquet")
    flagged = pa.array([row["reference_id"] == "t/3-2.wav" for row in table.to_pylist()])
    write_table(folder / "matches.parquet", table.set_column(table.column_names.index("flagged"), "flagged", flagged))
    review_set = load_pairs(folder)
    listed = dict(zip(review_set.query_ids, review_set.reference_ids, strict=True))
    assert listed["g/3.wav"] == "t/3-2.wav"
    assert listed["g/2.wav"] == "t/2-0.wav"
    assert pair_id("g/3.wav", "t/3-2.wav") not in draw_sample(review_set, 5).pair_ids


def test_unknown_pairs_and_folders_are_refused(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path / "audit", 3))
    for lookup in (pair_row, other_pairs):
        with pytest.raises(StoreError, match="no pair 'ffffffffffffffff'"):
            lookup(review_set, "f" * 16)
    write_card(tmp_path, "store", {})
    with pytest.raises(StoreError, match="this is a store"):
        load_pairs(tmp_path)
    (tmp_path / "audit" / "matches.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="cannot be read"):
        load_pairs(tmp_path / "audit")


def test_ten_thousand_pairs_open_at_once(tmp_path: Path) -> None:
    folder = planted_audit(tmp_path, 10_000)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        review_set = load_pairs(folder)
        order_pairs(review_set)
        seconds.append(time.perf_counter() - start)
    assert len(review_set) == 10_000
    assert min(seconds) < 0.3  # 0.04 s of work; the least of three, since the first reads a cold file and others may disturb


# --- order ---


def test_orders(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path, 50))
    score = dict(zip(review_set.pair_ids, review_set.scores.tolist(), strict=True))
    assert order_pairs(review_set) == sorted(score, key=lambda pair: (-score[pair], pair))
    assert order_pairs(review_set, order="uncertain") == sorted(score, key=lambda pair: (abs(score[pair] - 0.8), pair))
    shuffled = order_pairs(review_set, order="random", seed=3)
    assert sorted(shuffled) == sorted(score)
    assert shuffled == order_pairs(review_set, order="random", seed=3)
    assert shuffled != order_pairs(review_set, order="random", seed=4)
    done = shuffled[:20]
    assert order_pairs(review_set, order="random", seed=3, skip=done) == shuffled[20:]
    with pytest.raises(ValueError, match="score, uncertain, random"):
        order_pairs(review_set, order="best")


def test_controls_are_spread_over_the_beginning_and_skipping_moves_nothing(tmp_path: Path) -> None:
    folder = planted_audit(tmp_path, 100)
    controls = [Control(f"{number:016x}", "different", {}) for number in range(6)]
    with VerdictStore.open(folder) as store:
        store.add_controls(controls)
    review_set = load_pairs(folder)
    plain, mixed = order_pairs(review_set, order="random"), order_pairs(review_set, order="random", controls=True)
    names = {control.pair_id for control in controls}
    assert [pair for pair in mixed if pair not in names] == plain
    places = [place for place, pair in enumerate(mixed) if pair in names]
    assert len(places) == 6
    for number, place in enumerate(places):  # one in each ten pairs; those before it have moved it on
        assert 10 * number <= place - number <= 10 * number + 10
    assert order_pairs(review_set, order="random", controls=True, skip=mixed[:30]) == mixed[30:]
    few = load_pairs(planted_audit(tmp_path / "few", 3))
    few = ReviewSet(**{**vars(few), "controls": review_set.controls})
    assert set(order_pairs(few, order="random", controls=True)) == {*few.pair_ids, *names}


def test_controls_stand_where_their_scores_put_them(tmp_path: Path) -> None:
    folder = planted_audit(tmp_path, 40)
    with VerdictStore.open(folder) as store:
        store.add_controls([Control(f"{at:016x}", "different", {"score": score}) for at, score in enumerate((0.91, 0.4, None))])
    review_set = load_pairs(folder)
    score = dict(zip(review_set.pair_ids, review_set.scores.tolist(), strict=True))
    score |= {f"{at:016x}": value for at, value in enumerate((0.91, 0.4))}
    for order, key in {"score": lambda pair: -score[pair], "uncertain": lambda pair: abs(score[pair] - 0.8)}.items():
        ordered = order_pairs(review_set, order=order, controls=True)
        assert ordered[-1] == f"{2:016x}"  # without a score, as real pairs without one
        assert ordered[:-1] == sorted(score, key=key)


# --- sample ---


def test_strata_are_ranges_of_score_of_the_unflagged(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path, 1000))
    sample = draw_sample(review_set, 200, seed=1)
    score = dict(zip(review_set.pair_ids, review_set.scores.tolist(), strict=True))
    unflagged = {pair for pair, flagged in zip(review_set.pair_ids, review_set.flagged, strict=True) if not flagged}
    sizes = [stratum.size for stratum in sample.strata]
    assert sum(sizes) == len(unflagged)
    assert all(2.5 < larger / smaller < 3.5 for smaller, larger in itertools.pairwise(sizes))
    assert set(sample.pair_ids) <= unflagged
    assert len(set(sample.pair_ids)) == len(sample.pair_ids) == 200
    for stratum, _, pair in sample.rows:
        assert sample.strata[stratum].lowest <= score[pair] <= sample.strata[stratum].highest
    for number, stratum in enumerate(sample.strata):
        inside = [pair for pair in unflagged if stratum.lowest <= score[pair] <= stratum.highest]
        assert len(inside) == stratum.size
        assert [place for at, place, _ in sample.rows if at == number] == list(range(sum(r[0] == number for r in sample.rows)))
    drawn = np.bincount([stratum for stratum, _, _ in sample.rows])
    assert drawn[0] / sizes[0] > 4 * drawn[-1] / sizes[-1]  # the highest scores are looked at more closely
    assert drawn[-1] == drawn.max()  # and the many low ones are not neglected


def test_a_larger_draw_continues_the_smaller_and_is_stored_as_one(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path, 300))
    small, large = draw_sample(review_set, 30, seed=2), draw_sample(review_set, 90, seed=2)
    assert large.rows[:30] == small.rows
    assert draw_sample(review_set, 30, seed=3).pair_ids != small.pair_ids
    with VerdictStore.open(tmp_path) as store:
        store.add_sample(small)
        assert store.add_sample(large).rows == large.rows
        assert store.add_sample(small).rows == large.rows  # nothing is taken back
        assert [sample.sample_id for sample in store.samples()] == [small.sample_id]
    assert order_pairs(review_set, sample=large) == large.pair_ids
    everything = draw_sample(review_set, 10_000, seed=2)
    assert len(everything.rows) == sum(stratum.size for stratum in everything.strata)


def test_each_pair_of_a_stratum_is_drawn_equally_often(tmp_path: Path) -> None:
    review_set = load_pairs(planted_audit(tmp_path, 60, tau=2.0))
    counts: dict[str, int] = {}
    seeds, last = 600, []
    for seed in range(seeds):
        sample = draw_sample(review_set, 12, strata=2, seed=seed)
        last = [pair for stratum, _, pair in sample.rows if stratum == 1]
        for pair in last:
            counts[pair] = counts.get(pair, 0) + 1
    size = sample.strata[1].size
    share = len(last) / size
    expected, spread = seeds * share, (seeds * share * (1 - share)) ** 0.5
    assert len(counts) == size
    assert (
        max(abs(count - expected) for count in counts.values()) < 4.5 * spread
    )  # 1 in 3,000 runs of a fair draw, were it not seeded


def test_small_and_impossible_samples(tmp_path: Path) -> None:
    few = load_pairs(planted_audit(tmp_path / "few", 2, tau=2.0))
    sample = draw_sample(few, 10)
    assert [stratum.size for stratum in sample.strata] == [1, 1]
    assert sorted(sample.pair_ids) == sorted(few.pair_ids)
    with pytest.raises(ValueError, match="at least 1"):
        draw_sample(few, 0)
    with pytest.raises(ValueError, match="every clip with a match is flagged"):
        draw_sample(load_pairs(planted_audit(tmp_path / "all", 2, tau=-1.0)), 1)


# --- real folders ---


@pytest.fixture
def real_audit(write_sounds, tmp_path: Path) -> Path:
    """An audit of eight clips, two of them copies, against twelve."""
    training, generated = write_sounds("training", 12, duration_s=3.0), write_sounds("generated", 6, first=200, duration_s=3.0)
    for name, number in (("0301.wav", 3), ("0302.wav", 7)):
        sf.write(generated / name, 0.5 * sound(number, 3.0), 16_000)
    config = AuditConfig(duration_s=3.0, tau=0.6)
    audit(open_corpus(generated), open_corpus(training), output=tmp_path / "audit", config=config)
    return tmp_path / "audit"


def test_an_audit_of_sounds_can_be_reviewed(real_audit: Path) -> None:
    review_set = load_pairs(real_audit)
    top = [pair_row(review_set, pair) for pair in order_pairs(review_set)[:2]]
    assert {(row["query_id"], row["reference_id"]) for row in top} == {("0301.wav", "0003.wav"), ("0302.wav", "0007.wav")}
    assert all(row["reference_duration_s"] == pytest.approx(3.0) and Path(row["reference_path"]).is_file() for row in top)


def test_a_dedup_lists_what_was_not_counted(write_sounds, tmp_path: Path) -> None:
    corpus = write_sounds("corpus", 8, duration_s=3.0)
    sf.write(corpus / "copy.wav", sound(1, 3.0), 16_000)
    deduplicate(open_corpus(corpus), output=tmp_path / "dedup", config=DedupConfig(duration_s=3.0))
    pairs = pq.read_table(tmp_path / "dedup" / "pairs.parquet").to_pylist()
    open_pairs = [row for row in pairs if not row["duplicate"]]
    assert open_pairs and len(open_pairs) < len(pairs)
    review_set = load_pairs(tmp_path / "dedup")
    assert review_set.kind == "dedup"
    assert set(review_set.pair_ids) == {pair_id(row["first_id"], row["second_id"]) for row in open_pairs}
    row = pair_row(review_set, review_set.pair_ids[0])
    assert (row["query_path"], row["flagged"], row["kind"]) == (open_pairs[0]["first_path"], False, "similar")
    assert (row["rank"], row["lag_s"], row["query_offset_s"], row["query_duration_s"]) == (None, None, 0.0, pytest.approx(3.0))
    with pytest.raises(ValueError, match="this is a dedup"):
        draw_sample(review_set, 3)
    assert make_controls(tmp_path / "dedup", 2)[0].row["flagged"] is False


def test_a_transformed_copy_is_shifted_as_it_says() -> None:
    samples = sound(1, 3.0)
    for seed in range(8):
        copy, lag_s = transformed(samples, 16_000, np.random.default_rng(seed))
        assert len(copy) == len(samples)
        assert 0.2 <= abs(lag_s) <= 0.75  # a quarter of 3 s
        found = int(np.argmax(correlate(copy, samples))) - (len(samples) - 1)
        assert found / 16_000 == pytest.approx(lag_s, abs=2e-4)
        assert 0 < np.abs(copy).max() <= 0.95 + 1e-6


def test_controls_are_what_they_say_and_look_like_the_others(real_audit: Path) -> None:
    controls = make_controls(real_audit, 10, seed=4)
    assert [control.truth for control in controls].count("replication") == 5
    with VerdictStore.open(real_audit) as store:
        assert store.add_controls(controls) == 10
        assert store.add_controls(make_controls(real_audit, 12, seed=4)) == 2  # more continue the first
    review_set = load_pairs(real_audit)
    nearest = {(row["reference_id"], row["nearest_id"]) for row in pq.read_table(real_audit / "training.parquet").to_pylist()}
    rank_one = pair_row(review_set, review_set.pair_ids[0])
    for control in controls:
        row = pair_row(review_set, control.pair_id)
        assert control.pair_id == pair_id(row["query_id"], row["reference_id"])
        assert set(row) >= set(rank_one)
        assert row["query_id"][:2].isdigit() and row["query_id"].endswith(".wav") and len(row["query_id"]) == 8
        assert Path(row["query_display_path"]) == Path(rank_one["query_path"]).parent / row["query_id"]
        query = read_audio(row["query_path"], sample_rate_hz=16_000)
        assert query.facts.sample_rate_hz == 16_000
        assert query.facts.duration_s == pytest.approx(3.0)
        peaks = {}  # which training clip the query was made of, by correlation: the truth, found independently
        for number in range(12):
            clip = sound(number, 3.0)
            product = correlate(query.samples, clip)
            peaks[f"{number:04d}.wav"] = np.abs(product).max() / (np.linalg.norm(query.samples) * np.linalg.norm(clip))
        source = max(peaks, key=lambda name: peaks[name])
        assert peaks[source] > 0.5
        assert (source == row["reference_id"]) == (control.truth == "replication")
        assert (source, row["reference_id"]) not in nearest and (row["reference_id"], source) not in nearest
    looks = {
        truth: {control.row["p_value"] for control in controls if control.truth == truth}
        for truth in ("replication", "different")
    }
    assert looks["replication"] & looks["different"]  # what is shown beside the sound does not tell which is which
    for control in controls:  # among real pairs, but no real pair's own: two equal ones would give it away
        assert review_set.scores.min() < control.row["score"] < review_set.scores.max()
        assert control.row["score"] not in review_set.scores.tolist()


@pytest.mark.parametrize(("trained_s", "generated_s"), [(2.0, 3.0), (4.0, 3.0)])
def test_controls_last_as_long_as_real_queries_wherever_the_store_is(
    write_sounds, tmp_path: Path, trained_s: float, generated_s: float
) -> None:
    """An audit of stores given on the command line knows of its training clips only what its matches list."""
    training = write_sounds("training", 12, duration_s=trained_s)
    generated = write_sounds("generated", 6, first=200, duration_s=generated_s)
    sf.write(generated / "0301.wav", 0.5 * sound(3, generated_s), 16_000)
    audit(open_corpus(generated), open_corpus(training), output=tmp_path / "audit", config=AuditConfig(tau=0.1))
    shutil.rmtree(tmp_path / "audit" / "stores" / "references")
    controls = make_controls(tmp_path / "audit", 6)
    assert {control.truth for control in controls} == {"replication", "different"}
    for control in controls:
        length = sf.info(tmp_path / "audit" / control.row["query_path"])
        assert (length.duration, length.samplerate) == (pytest.approx(generated_s, abs=0.001), 16_000)
        assert control.row["query_duration_s"] == pytest.approx(generated_s, abs=0.001)
        assert control.row["reference_duration_s"] is None  # to the end of the file, as that of real pairs


@pytest.mark.parametrize(
    ("queries", "pattern"),
    [
        ([f"g/clip_{number:03d}.wav" for number in range(0, 60, 2)], r"g/clip_0\d\d\.wav"),
        ([f"g/{number}.wav" for number in range(5)], r"g/\d+\.wav"),
        (["g/loud dog.wav", "g/soft rain.wav", "g/far bell.wav"], r"g/(loud|soft|far) (dog|rain|bell)\.wav"),
        (["g/dog.wav", "g/rain.wav"], r"g/(bell|gong|thunder)\.wav"),
        (["g/a1b2.wav"], r"g/a1b\d\.wav"),
    ],
)
def test_names_of_controls_are_as_those_of_queries(queries: list[str], pattern: str) -> None:
    names, rng = _Names(queries, ["bell.wav", "gong.wav", "thunder.wav"]), np.random.default_rng(0)
    invented = [names.invented(queries[number % len(queries)], rng) for number in range(3)]
    assert len({*invented, *queries}) == len(queries) + 3
    assert all(re.fullmatch(pattern, name) for name in invented), invented


def test_controls_of_the_two_stage_detector_have_spans_as_its_pairs_have(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 12, duration_s=4.0), write_sounds("generated", 3, first=200, duration_s=4.0)
    sf.write(generated / "0301.wav", 0.5 * sound(3, 4.0), 16_000)
    audit(open_corpus(generated), open_corpus(training), output=tmp_path / "audit", config=AuditConfig(tau=0.1))
    review_set = load_pairs(tmp_path / "audit")
    real = pair_row(review_set, order_pairs(review_set)[0])
    assert real["query_id"] == "0301.wav"
    for control in make_controls(tmp_path / "audit", 2):
        row = control.row
        (span,) = row["spans"]
        assert span.keys() == real["spans"][0].keys()
        assert span["query_start_s"] - span["reference_start_s"] == pytest.approx(row["lag_s"])
        assert max(span["query_end_s"], span["reference_end_s"]) <= 4.0 + 1e-6
        assert (row["tempo"], row["pitch_semitones"]) == (1.0, 0.0)


def test_controls_need_two_training_clips_and_survive_a_moved_folder(real_audit: Path, tmp_path: Path) -> None:
    with VerdictStore.open(real_audit) as store:
        store.add_controls(make_controls(real_audit, 1))
    real_audit.rename(tmp_path / "moved")
    review_set = load_pairs(tmp_path / "moved")
    assert Path(pair_row(review_set, next(iter(review_set.controls)))["query_path"]).is_file()
    with pytest.raises(ValueError, match="at least 1"):
        make_controls(tmp_path / "moved", 0)
    clips = tmp_path / "moved" / "stores" / "references" / "clips.parquet"
    write_table(clips, pq.read_table(clips).slice(0, 1))
    with pytest.raises(StoreError, match="at least 2 different training clips .* knows 1"):
        make_controls(tmp_path / "moved", 1)


def test_controls_of_training_files_that_have_gone(real_audit: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "training").iterdir():
        file.unlink()
    with pytest.raises(StoreError, match="still where they were"):
        make_controls(real_audit, 1)
