"""Metrics of copy detection: cases worked by hand, an independent brute force, tables read back, and bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.errors import TableError
from auscult.metrics.copy_detection import (
    OperatingPoint,
    Prediction,
    Span,
    Truth,
    breakdown,
    evaluate,
    lag_error,
    micro_average_precision,
    onset_error,
    recall_at_false_positive_rate,
    recall_at_precision,
    temporal_iou,
    validate,
)
from auscult.metrics.tables import read_predictions, read_truth, write_predictions, write_truth


def _arrays(scores: list[float], correct: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, np.float64), np.array(correct, np.bool_)


@pytest.mark.parametrize(
    ("scores", "correct", "positives", "expected"),
    [
        ([3, 2, 1], [1, 1, 1], 3, 1.0),
        ([3, 2, 1], [0, 1, 1], 2, (1 / 2 + 2 / 3) / 2),
        ([3, 2, 1], [1, 0, 1], 4, (1 + 2 / 3) / 4),  # two copies are never named
        ([1, 1, 1], [1, 1, 0], 2, (1 / 2 + 2 / 3) / 2),  # all tied: the wrong one goes first
        ([5, 1, 1], [1, 1, 0], 2, (1 + 2 / 3) / 2),
        ([3, 2], [0, 0], 2, 0.0),
        ([], [], 2, 0.0),
    ],
)
def test_micro_ap_by_hand(scores: list[float], correct: list[int], positives: int, expected: float) -> None:
    assert micro_average_precision(*_arrays(scores, correct), positives) == pytest.approx(expected, abs=1e-12)


def test_micro_ap_of_nothing_to_find_is_undefined() -> None:
    assert math.isnan(micro_average_precision(*_arrays([1.0], [0]), 0))


ranking = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12)


@given(ranking, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_micro_ap_equals_brute_force(entries: list[tuple[int, bool]], missed: int) -> None:
    """Brute force: for each right prediction, count what the worst order of ties puts at or before it."""
    positives = sum(right for _, right in entries) + missed
    if positives == 0:
        return
    total = 0.0
    for i, (score, right) in enumerate(entries):
        if right:
            ahead = [e for j, e in enumerate(entries) if e[0] > score or (e[0] == score and (not e[1] or j <= i))]
            total += sum(e[1] for e in ahead) / len(ahead)
    found = micro_average_precision(*_arrays([e[0] for e in entries], [e[1] for e in entries]), positives)
    assert found == pytest.approx(total / positives, abs=1e-12)


@given(ranking, st.integers(0, 3), st.sampled_from([0.5, 0.75, 0.9, 1.0]))
@settings(max_examples=200, deadline=None)
def test_recall_at_precision_equals_trying_every_threshold(
    entries: list[tuple[int, bool]], missed: int, precision: float
) -> None:
    positives = sum(right for _, right in entries) + missed
    best = 0.0
    for threshold in {score for score, _ in entries}:
        accepted = [right for score, right in entries if score >= threshold]
        if sum(accepted) >= precision * len(accepted) and positives:
            best = max(best, sum(accepted) / positives)
    point = recall_at_precision(*_arrays([e[0] for e in entries], [e[1] for e in entries]), positives, precision=precision)
    assert point.recall == pytest.approx(best)
    if best > 0:
        accepted = [right for score, right in entries if score >= point.threshold]
        assert sum(accepted) / positives == pytest.approx(best)
        assert point.precision == pytest.approx(sum(accepted) / len(accepted))
        assert point.precision >= precision
    else:
        assert point.threshold == math.inf


def test_recall_at_precision_takes_tied_scores_together() -> None:
    # accepting only the right one of the two that score 2 is no threshold
    assert recall_at_precision(*_arrays([3, 2, 2], [1, 1, 0]), 2) == OperatingPoint(0.5, 1.0, 3.0)


def test_recall_at_false_positive_rate_by_hand() -> None:
    true, negative = np.array([9.0, 5.0, 5.0, -np.inf]), np.array([7.0, 5.0, -np.inf])
    assert recall_at_false_positive_rate(true, negative, rate=0.0) == 0.25
    assert recall_at_false_positive_rate(true, negative, rate=0.34) == 0.25  # the second negative ties with two copies
    assert recall_at_false_positive_rate(true, negative, rate=0.67) == 0.75
    assert recall_at_false_positive_rate(true, negative, rate=1.0) == 0.75
    assert math.isnan(recall_at_false_positive_rate(true, negative[:0]))


def test_spans_by_hand() -> None:
    true = [Span(1.0, 3.0, 0.0, 2.0), Span(5.0, 6.0, 0.0, 1.0)]
    assert temporal_iou(true, true) == 1.0
    assert temporal_iou([Span(2.0, 4.0, 1.0, 3.0)], true) == pytest.approx(1 / 4)
    assert temporal_iou([Span(1, 2.5, 0, 1.5), Span(2, 3, 1, 2)], true) == pytest.approx(2 / 3)  # overlaps count once
    assert temporal_iou([Span(7, 8, 0, 1)], true) == 0.0
    assert onset_error([Span(2.0, 3.0, 1.0, 2.0)], true) == pytest.approx(1.0)
    assert lag_error([Span(2.0, 3.0, 1.0, 2.0)], true) == pytest.approx(0.0)  # late, but the right moment
    assert lag_error([Span(5.0, 6.0, 0.25, 1.25)], true) == pytest.approx(0.25)
    stretched = [Span(0.0, 2.0, 0.0, 1.0)]
    assert lag_error([Span(1.0, 2.0, 0.5, 1.0)], stretched) == pytest.approx(0.0)


def test_a_loop_plays_a_moment_twice_and_both_are_right() -> None:
    loop = [Span(0.0, 1.0, 1.0, 2.0), Span(1.0, 2.0, 0.0, 1.0)]
    assert lag_error([Span(0.9, 1.1, 1.9, 2.1)], loop) == pytest.approx(0.0)
    assert lag_error([Span(0.9, 1.1, -0.1, 0.1)], loop) == pytest.approx(0.0)


def _case() -> tuple[list[Truth], list[Prediction]]:
    """Four positives of two sources, two negatives; one positive is missed and one negative is loud."""
    span = (Span(0.0, 1.0, 2.0, 3.0),)
    truths = [
        Truth("a", "r1", "s1", "easy", "gain", span),
        Truth("b", "r2", "s1", "easy", "noise", span),
        Truth("c", "r3", "s2", "hard", "pitch", span),
        Truth("d", "r4", "s2", "hard", "tempo", span),
        Truth("n", None, "s3", "negative"),
        Truth("o", None, "s4", "negative"),
    ]
    predictions = [
        Prediction("a", "r1", 9.0, (Span(0.5, 1.0, 2.5, 3.0),)),
        Prediction("b", "r2", 8.0),
        Prediction("n", "r1", 7.0),
        Prediction("c", "r9", 6.0),
        Prediction("c", "r3", 5.0, span),
    ]
    return truths, predictions


def test_evaluate_by_hand() -> None:
    scores = evaluate(*_case(), resamples=0)
    value = {name: interval.value for name, interval in scores.items()}
    assert value["micro_ap"] == pytest.approx((1 + 1 + 3 / 5) / 4)
    assert (value["recall_at_precision"], value["threshold"], value["recall_at_threshold"]) == (0.5, 8.0, 0.5)
    assert (value["top1"], value["false_positive_rate"]) == (0.5, 0.0)
    assert value["located"] == 0.25  # b is right without spans; c names its reference second
    assert (value["onset_error_s"], value["lag_error_s"], value["temporal_iou"]) == (0.5, 0.0, 0.5)
    assert all(math.isnan(interval.low) for interval in scores.values())
    assert evaluate(*_case(), resamples=0, threshold=7.0)["false_positive_rate"].value == 0.5


def test_breakdown_uses_all_negatives_and_one_threshold() -> None:
    truths, predictions = _case()
    parts = breakdown(truths, predictions, by=lambda truth: truth.group)
    assert list(parts) == ["easy", "hard"]
    assert parts["easy"]["micro_ap"].value == 1.0
    assert parts["hard"]["micro_ap"].value == pytest.approx((1 / 3) / 2)
    assert parts["hard"]["recall_at_threshold"].value == 0.0
    whole = breakdown(truths, predictions, by=lambda truth: "all")["all"]
    assert str(whole) == str(evaluate(truths, predictions, resamples=0))


def test_only_negatives() -> None:
    truths = [Truth("n", None, "s"), Truth("o", None, "t")]
    scores = evaluate(truths, [Prediction("n", "r", 3.0)], resamples=5)
    assert math.isnan(scores["micro_ap"].value) and math.isnan(scores["top1"].value)
    assert scores["false_positive_rate"].value == 0.0
    assert evaluate(truths, [Prediction("n", "r", 3.0)], threshold=1.0)["false_positive_rate"].value == 0.5


def test_no_predictions() -> None:
    scores = evaluate(_case()[0], [], resamples=5)
    assert (scores["micro_ap"].value, scores["top1"].value, scores["threshold"].value) == (0.0, 0.0, math.inf)
    assert scores["recall_at_threshold"].value == 0.0


def test_order_of_input_changes_nothing() -> None:
    truths, predictions = _case()
    assert str(evaluate(truths, predictions[::-1])) == str(evaluate(truths, predictions))


def test_bootstrap_is_seeded_and_resamples_sources() -> None:
    rng = np.random.default_rng(0)
    truths = [Truth(f"q{i}", "r", f"s{i % 10}") for i in range(100)]
    found = rng.random(10) < 0.5  # whole sources succeed or fail
    predictions = [Prediction(f"q{i}", "r" if found[i % 10] else "x", float(i)) for i in range(100)]
    scores = evaluate(truths, predictions, seed=1)
    assert str(scores) == str(evaluate(truths, predictions, seed=1)) != str(evaluate(truths, predictions, seed=2))
    top1 = scores["top1"]
    assert top1.low <= top1.value <= top1.high
    alone = [Truth(t.query_id, t.reference_id, t.query_id) for t in truths]
    apart = evaluate(alone, predictions, seed=1)["top1"]
    # ten sources say less than a hundred independent queries: by sqrt(10) about
    assert top1.high - top1.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("truths", "predictions", "message"),
    [
        ([], [], "at least one query"),
        ([Truth("a", "r", "s"), Truth("a", "t", "s")], [], "'a' more than once"),
        ([Truth("a", "r", "s")], [Prediction("r", "a", 1.0)], "another set"),
        ([Truth("a", "r", "s")], [Prediction("a", "r", 1.0), Prediction("a", "r", 2.0)], "each pair"),
        ([Truth("a", "r", "s")], [Prediction("a", "r", math.nan)], "finite, got nan"),
        ([Truth("a", "r", "s")], [Prediction("a", "r", 1.0, (Span(2.0, 1.0, 0.0, 1.0),))], "a duration"),
        ([Truth("a", None, "s", spans=(Span(0, 1, 0, 1),))], [], "copies nothing"),
    ],
)
def test_bad_input_is_named(truths: list[Truth], predictions: list[Prediction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(truths, predictions)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_read_back(tmp_path: Path, suffix: str) -> None:
    truths, predictions = _case()
    two = (Span(0.125, 1.0, 2.0, 3.1), Span(4.0, 5.0, 2.0, 3.0))
    truths[0] = Truth("a", 'r,"1"', "s 1", "easy", "gäin", two)
    predictions[0] = Prediction("a", 'r,"1"', 1 / 3, two)
    write_truth(tmp_path / f"truth{suffix}", truths)
    write_predictions(tmp_path / f"predictions{suffix}", predictions)
    assert read_truth(tmp_path / f"truth{suffix}") == truths
    assert read_predictions(tmp_path / f"predictions{suffix}") == predictions


def test_tables_of_other_programs(tmp_path: Path) -> None:
    """Ids that are numbers, columns that are not ours, segments of one pair with scores of their own, no sources."""
    table = pa.table(
        {
            "query_id": [7, 7],
            "reference_id": [1, 1],
            "score": [1, 2],
            "query_start_s": [0.0, 5.0],
            "query_end_s": [1.0, 6.0],
            "reference_start_s": [0.0, 1.0],
            "reference_end_s": [1.0, 2.0],
            "rank": [1, 1],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet") == [Prediction("7", "1", 2.0, (Span(0, 1, 0, 1), Span(5, 6, 1, 2)))]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfquery_id,reference_id\r\n7,1\r\n8,\r\n")
    assert read_truth(tmp_path / "t.csv") == [Truth("7", "1", "7"), Truth("8", None, "8")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,score\nq,1\n", "no column 'reference_id'"),
        ("query_id;reference_id;score\nq;r;1\n", "separated by commas"),
        ("", "it has none"),
        ("query_id,reference_id,score\nq,r\n", "row 1: expected 3 fields"),
        ("query_id,reference_id,score\nq,,1\n", "row 1: reference_id is empty"),
        ("query_id,reference_id,score\nq,r,high\n", "score should be a number, got 'high'"),
        ("query_id,reference_id,score\nq,r,nan\n", "should be finite"),
        ("query_id,reference_id,score,query_start_s\nq,r,1,0\n", "a span needs the columns"),
        (
            "query_id,reference_id,score,query_start_s,query_end_s,reference_start_s,reference_end_s\nq,r,1,0,1,,1\n",
            "reference_start_s is empty",
        ),
        (
            "query_id,reference_id,score,query_start_s,query_end_s,reference_start_s,reference_end_s\nq,r,1,3,1,0,1\n",
            "start before it ends",
        ),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(TableError, match=message):
        read_predictions(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "x.csv").write_bytes(b"query_id,reference_id,score\n\xff,r,1\n")
    (tmp_path / "truth.csv").write_text("query_id,reference_id\nq,a\nq,b\n")
    for name, message in (
        ("x.parquet", "as Parquet"),
        ("x.csv", "UTF-8"),
        ("x.json", "ends in"),
        ("gone.csv", "cannot be read"),
    ):
        with pytest.raises(TableError, match=message):
            read_predictions(tmp_path / name)
    with pytest.raises(TableError, match="copies one reference"):
        read_truth(tmp_path / "truth.csv")
    floats = pa.table({"query_id": [1.5], "reference_id": ["r"], "score": [1.0]})
    pq.write_table(floats, tmp_path / "floats.parquet")
    with pytest.raises(TableError, match="text or a whole number"):
        read_predictions(tmp_path / "floats.parquet")
