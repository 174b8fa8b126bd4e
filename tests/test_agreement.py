"""Reviewers against each other and against known pairs; scores against verdicts; several descriptors' findings."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.ensembles import Scores
from auscult.figures import reliability_svg
from auscult.review.agreement import against_controls, agreement, cohen_kappa
from auscult.review.curves import audit_curve, audit_reliability, precision_recall, reliability
from auscult.review.findings import joint_consensus, verified_table
from auscult.review.verdicts import Control, VerdictStore, pair_id
from auscult.review.verified import verified_clips

# --- kappa ----------------------------------------------------------------------------------------------------------


def labels(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """The two reviewers' verdicts behind a contingency table."""
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in cells], [j for _, j in cells]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # observed 35/50, expected (25*30 + 25*20)/2500 = 0.5
        ([[45, 15], [25, 15]], (0.60 - 0.54) / 0.46),  # observed 60/100, expected 0.6*0.7 + 0.4*0.3 = 0.54
        ([[25, 35], [5, 35]], (0.60 - 0.46) / 0.54),  # same agreement, other margins: 0.6*0.3 + 0.4*0.7
        ([[0, 10], [10, 0]], -1.0),
        ([[7, 0], [0, 3]], 1.0),
        ([[5, 5], [5, 5]], 0.0),
        ([[106, 10, 4], [22, 28, 10], [2, 12, 6]], (0.70 - 0.475) / 0.525),  # margins 120, 60, 20 and 130, 50, 20 of 200
    ],
)
def test_kappa_by_hand(table: list[list[int]], kappa: float) -> None:
    result = cohen_kappa(*labels(table))
    assert result.kappa == pytest.approx(kappa)
    assert result.pairs == np.sum(table)
    assert -1 <= result.low <= result.high <= 1


@pytest.mark.parametrize("table", [[[20, 5], [10, 15]], [[106, 10, 4], [22, 28, 10], [2, 12, 6]], [[90, 3], [4, 3]]])
def test_standard_error_is_that_of_the_delta_method(table: list[list[int]]) -> None:
    """Oracle: the gradient of kappa by finite differences, with the covariance of the multinomial distribution."""
    p = np.array(table, float).ravel() / np.sum(table)
    k = len(table)

    def kappa(p: np.ndarray) -> float:
        square = p.reshape(k, k) / p.sum()
        expected = square.sum(axis=0) @ square.sum(axis=1)
        return (np.trace(square) - expected) / (1 - expected)

    step = 1e-6
    gradient = np.array([(kappa(p + step * e) - kappa(p - step * e)) / (2 * step) for e in np.eye(k * k)])
    variance = gradient @ (np.diag(p) - np.outer(p, p)) @ gradient / np.sum(table)
    result = cohen_kappa(*labels(table), interval="asymptotic")
    assert result.standard_error == pytest.approx(np.sqrt(variance), rel=1e-5)
    assert result.high - result.low == pytest.approx(2 * stats.norm.ppf(0.975) * result.standard_error)


def test_bootstrap_equals_resampling_pairs() -> None:
    first, second = labels([[60, 12], [8, 40]])
    rng = np.random.default_rng(3)
    pairs = np.column_stack([first, second])
    again = [cohen_kappa(*pairs[rng.integers(0, 120, 120)].T.tolist(), interval="asymptotic").kappa for _ in range(1500)]
    result = cohen_kappa(first, second)
    spread = np.std(again)
    np.testing.assert_allclose([result.low, result.high], np.quantile(again, [0.025, 0.975]), atol=0.2 * spread)
    assert (result.low, result.high) == pytest.approx(
        (result.kappa - 1.96 * result.standard_error, result.kappa + 1.96 * result.standard_error), abs=0.04
    )
    assert cohen_kappa(first, second) == result
    assert cohen_kappa(first, second, seed=1).low != result.low


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40), st.permutations(range(4)))
@settings(max_examples=60, deadline=None)
def test_laws_of_kappa(pairs: list[tuple[int, int]], names: list[int]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len({*first, *second}) == 1:
        with pytest.raises(ValueError, match="kappa is undefined"):
            cohen_kappa(first, second)
        return
    result = cohen_kappa(first, second)
    turned = cohen_kappa(second, first)
    renamed = cohen_kappa([names[a] for a in first], [names[b] for b in second])
    shuffled = cohen_kappa(first[::-1], second[::-1])
    for other in (turned, renamed, shuffled):
        # the root of a variance that is 0 but for rounding, about 1e-17
        assert (other.kappa, other.standard_error) == pytest.approx((result.kappa, result.standard_error), abs=1e-7)
    assert (result.kappa == pytest.approx(1)) == (first == second)


def test_kappa_of_nothing() -> None:
    for first, second in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="not empty"):
            cohen_kappa(first, second)


def verdict_rows(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.table(dict(zip(("pair_id", "reviewer", "verdict"), zip(*rows, strict=True), strict=True)))


def test_every_two_reviewers() -> None:
    letters = {"r": "replication", "s": "similar", "d": "different"}
    decided = {"ann": "rrdds", "bob": "rsddd", "cy": "  ddd", "dee": "     r"}
    rows = [
        (f"p{place}", name, letters[letter])
        for name, text in decided.items()
        for place, letter in enumerate(text)
        if letter != " "
    ]
    found = {(row.first, row.second): row for row in agreement(verdict_rows(*rows))}
    assert found.keys() == {("ann", "bob"), ("ann", "cy"), ("bob", "cy")}  # dee has no pair in common with anyone
    assert (found["ann", "bob"].pairs, found["ann", "bob"].agreed) == (5, 3)
    assert found["ann", "bob"].kappa == cohen_kappa(list("rrdds"), list("rsddd"))
    assert found["bob", "cy"].kappa is None  # both say "different" to all three
    merged = {(row.first, row.second): row for row in agreement(verdict_rows(*rows), replication_only=True)}
    assert merged["ann", "bob"].agreed == 4
    without = agreement(verdict_rows(*rows), exclude={"p1", "p4"})
    assert (without[0].pairs, without[0].agreed) == (3, 3)
    with pytest.raises(ValueError, match="two verdicts on pair p0"):
        agreement(verdict_rows(*rows, rows[0]))


def test_sensitivity_and_specificity_by_hand() -> None:
    truth = {f"c{i}": "replication" for i in range(10)} | {f"n{i}": "different" for i in range(5)}
    verdicts = {f"c{i}": "replication" for i in range(7)} | {"c7": "unsure", "c8": "similar"}  # c9 is not decided
    verdicts |= {"n0": "different", "n1": "similar", "n2": "replication", "other": "replication"}
    result = against_controls(verdicts, truth)
    assert result.sensitivity is not None
    assert result.specificity is not None
    assert (result.sensitivity.successes, result.sensitivity.trials, result.sensitivity.unsure) == (7, 9, 1)
    assert (result.sensitivity.low, result.sensitivity.high) == pytest.approx(
        (stats.binomtest(7, 9).proportion_ci(method="exact").low, stats.binomtest(8, 9).proportion_ci(method="exact").high)
    )
    assert (result.specificity.successes, result.specificity.trials, result.specificity.unsure) == (2, 3, 0)
    assert result.wrong == ("c8", "n2")
    assert against_controls({}, truth).sensitivity is None
    with pytest.raises(ValueError, match="replication or different"):
        against_controls({}, {"c0": "similar"})


# --- curves ---------------------------------------------------------------------------------------------------------


def curve_by_definition(scores, truth, weights) -> tuple[list[tuple[float, float, float]], float]:
    points, last, average = [], 0.0, 0.0
    total = sum(w for w, y in zip(weights, truth, strict=True) if y)
    for threshold in sorted({s for s in scores if not np.isnan(s)}, reverse=True):
        kept = [(w, y) for s, w, y in zip(scores, weights, truth, strict=True) if s >= threshold]
        hits = sum(w for w, y in kept if y)
        precision, recall = hits / sum(w for w, _ in kept), hits / total
        average += (recall - last) * precision
        last = recall
        points.append((threshold, precision, recall))
    return points, average


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9, float("nan")]), st.booleans(), st.integers(1, 4)),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=100, deadline=None)
def test_precision_and_recall_equal_the_definition(rows) -> None:
    scores, truth, weights = (list(column) for column in zip(*rows, strict=True))
    if not any(truth):
        with pytest.raises(ValueError, match="no recall"):
            precision_recall(scores, truth, weights)
        return
    curve = precision_recall(scores, truth, weights)
    points, average = curve_by_definition(scores, truth, weights)
    found = np.column_stack([curve.threshold, curve.precision, curve.recall])
    np.testing.assert_allclose(found, np.array(points).reshape(-1, 3), atol=1e-12)
    assert curve.average_precision == pytest.approx(average)
    # a weight of w is the clip w times over, and the order of the clips is nothing
    repeated = precision_recall(np.repeat(scores, weights)[::-1], np.repeat(truth, weights)[::-1])
    assert repeated.average_precision == pytest.approx(average)


def test_average_precision_of_known_rankings() -> None:
    assert precision_recall([3, 2, 1], [True, True, False]).average_precision == 1
    assert precision_recall([3, 2, 1], [False, False, True]).average_precision == pytest.approx(1 / 3)
    assert precision_recall([1, 1, 1, 1], [True, False, False, False]).average_precision == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="equally long"):
        precision_recall([1, 2], [True])
    with pytest.raises(ValueError, match="above 0"):
        precision_recall([1, 2], [True, False], [1, 0])


def test_sampling_weights_undo_the_sampling() -> None:
    """Planted truth: precision and recall of 4,000 clips from all of the best 200 and a tenth of the others."""
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(4000))[::-1]
    truth = rng.random(4000) < scores**4
    whole = precision_recall(scores, truth)
    averages, plain = [], []
    for _ in range(60):
        rest = 200 + rng.permutation(3800)[:380]
        seen = np.concatenate([np.arange(200), rest])
        weights = np.where(seen < 200, 1.0, 10.0)
        averages.append(precision_recall(scores[seen], truth[seen], weights).average_precision)
        plain.append(precision_recall(scores[seen], truth[seen]).average_precision)
    assert np.mean(averages) == pytest.approx(whole.average_precision, abs=3 * np.std(averages) / np.sqrt(60) + 0.005)
    assert abs(np.mean(plain) - whole.average_precision) > 0.05  # what forgetting the weights would do


def clip_tables(scores: list[float], flagged: int) -> pa.Table:
    n = len(scores)
    names = {"query_id": [f"g{i}" for i in range(n)], "reference_id": [f"t{i}" for i in range(n)]}
    return pa.table({**names, "score": scores, "flagged": [i < flagged for i in range(n)]})


def test_curves_of_two_descriptors_over_the_same_verdicts() -> None:
    queries = clip_tables([0.9, 0.8, 0.7, 0.3], 3)
    verdicts = {pair_id(f"g{i}", f"t{i}"): v for i, v in enumerate(("replication", "different", "replication", "different"))}
    verified = verified_clips(queries, verdicts)
    assert audit_curve(queries, verified).average_precision == pytest.approx((1 + 2 / 3) / 2)
    other = clip_tables([0.5, 0.1, 0.4, 0.9], 1)  # ranks both replications above the other flagged clip
    assert audit_curve(other, verified).average_precision == 1
    unsure = verified_clips(queries, verdicts | {pair_id("g1", "t1"): "unsure"})
    assert audit_curve(queries, unsure).clips == 2
    with pytest.raises(ValueError, match="1 of 3 flagged clips have no verdict"):
        audit_curve(queries, verified_clips(queries, dict(list(verdicts.items())[1:])))


def test_reliability_counts_and_bars() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(300).round(2)
    truth = rng.random(300) < values
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    result = reliability(values, truth, bins=edges)
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (values >= low) & ((values < high) | (high == 1.0))
        assert (result.verified[number], result.replications[number]) == (inside.sum(), truth[inside].sum())
        peer = stats.binomtest(int(truth[inside].sum()), int(inside.sum())).proportion_ci(method="exact")
        assert (result.low[number], result.high[number]) == pytest.approx((peer.low, peer.high))
    equal = reliability(values, truth, bins=6)
    assert equal.verified.sum() == 300
    assert equal.verified.min() > 30
    assert reliability([2.0, 2.0], [True, False]).share.tolist() == [0.5]
    empty = reliability([0.1, 0.9], [True, False], bins=[0, 0.2, 0.8, 1])
    assert (empty.verified.tolist(), np.isnan(empty.share).tolist()) == ([1, 0, 1], [False, True, False])
    assert (empty.low[1], empty.high[1]) == (0, 1)
    for values_, bins in (([], 3), ([np.nan], 3), ([0.5], [0, 0.4]), ([0.5], [0.6, 0.4]), ([0.5], 0)):
        with pytest.raises(ValueError, match="expected|finite|edges|bins"):
            reliability(values_, [True] * len(values_), bins=bins)


def test_reliability_of_listed_pairs() -> None:
    matches = pa.table(
        {"query_id": ["a", "a", "b", "c"], "reference_id": ["x", "y", "x", "x"], "p_value": [0.01, 0.5, 0.02, None]}
    )
    verdicts = {pair_id("a", "x"): "replication", pair_id("b", "x"): "unsure", pair_id("c", "x"): "different"}
    result = audit_reliability(matches, verdicts | {pair_id("a", "y"): "similar"}, bins=[0, 0.1, 1])
    assert (result.verified.tolist(), result.replications.tolist()) == ([1, 1], [1, 0])


def test_reliability_figure_shows_every_bin_that_has_pairs() -> None:
    result = reliability([0.1, 0.15, 0.9, 0.95, 0.97], [False, True, True, True, False], bins=[0, 0.2, 0.8, 1])
    for even in (False, True):
        svg = reliability_svg(
            result.edges, result.share, result.low, result.high, result.verified, label="top score", even=even
        )
        assert svg.startswith("<svg")
        assert ">2</text>" in svg
        assert ">3</text>" in svg
        assert "top score" in svg
        assert ("0.8</text>" in svg) or not even
        again = reliability_svg(
            result.edges, result.share, result.low, result.high, result.verified, label="top score", even=even
        )
        assert again == svg


# --- several descriptors --------------------------------------------------------------------------------------------


def found_by(name: str, best: list[str], flagged: list[int]) -> Scores:
    queries = pa.table(
        {
            "query_id": [f"g{i}" for i in range(len(best))],
            "reference_id": best,
            "score": [1.0] * len(best),
            "flagged": [i in flagged for i in range(len(best))],
        }
    )
    return Scores(name, queries, queries, pa.table({"score": [0.0, 1.0]}))


def test_the_papers_table() -> None:
    """178 flagged clips of each descriptor, 31 and 28 replicas, 2 shared, one of them from the same training clip."""
    mel = found_by("mel", ["a"] * 500, list(range(178)))
    clap = found_by("clap", ["b"] * 29 + ["a"] + ["b"] * 470, list(range(29, 207)))
    verdicts = {pair_id(f"g{i}", "a"): "replication" if i < 31 else "different" for i in range(178)}
    verdicts |= {pair_id(f"g{i}", "b"): "replication" if 30 <= i < 57 else "different" for i in range(30, 207)}
    table = verified_table([mel, clap], verdicts).to_pylist()
    common = {"flagged": 178, "verified": 178, "unsure": 0, "shared": 2, "same_reference": 1}
    precisions = [row.pop("average_precision") for row in table]
    assert precisions == pytest.approx([31 / 178, 28 / 178])  # all scores are equal
    assert table == [{"descriptor": "mel", "replications": 31, **common}, {"descriptor": "clap", "replications": 28, **common}]
    assert verified_table([mel, clap], {}).to_pylist()[0]["verified"] == 0
    third = found_by("other", ["b"] * 500, [40, 41])
    rows = verified_table([mel, clap, third], verdicts).to_pylist()
    assert [row["shared"] for row in rows] == [2, 4, 2]  # with any other descriptor


def test_verdicts_of_all_folders_count_together(tmp_path: Path) -> None:
    one, two, none = (tmp_path / name for name in ("one", "two", "none"))
    for folder in (one, two, none):
        folder.mkdir()
    with VerdictStore.open(one) as first, VerdictStore.open(two) as second:
        first.add("a", "x", reviewer="ann", verdict="different")
        second.add("a", "x", reviewer="ann", verdict="replication")  # changed her mind in the other folder
        first.add("b", "x", reviewer="ann", verdict="replication")
        second.add("b", "x", reviewer="bob", verdict="similar")  # one against one
        second.add("c", "x", reviewer="bob", verdict="similar")
        first.add("c", "x", reviewer="bob", verdict="withdrawn")
        first.add("d", "x", reviewer="ann", verdict="replication")
        second.add_controls([Control(pair_id("d", "x"), "replication", {})])
    expected = {pair_id("a", "x"): "replication", pair_id("b", "x"): "unsure"}
    assert joint_consensus([one, two, none]) == joint_consensus([none, two, one]) == expected
    assert not (none / "review.db").exists()
    with VerdictStore.open(one) as store:
        assert joint_consensus([one]) == store.consensus()


def test_compare_shows_what_people_verified(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 30), write_sounds("generated", 5, first=28)
    for name, duration_s in (("a", 1.0), ("b", 0.5)):
        config = AuditConfig(duration_s=duration_s, tau=0.52)
        audit(open_corpus(generated), open_corpus(training), output=tmp_path / name, config=config)
    command = [sys.executable, "-m", "auscult", "compare", "a", "b"]

    def run(*options: str) -> str:
        result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert json.loads(run("--json"))["verified"] == []
    assert "people verified" not in run()
    with VerdictStore.open(tmp_path / "a") as store:
        store.add("0028.wav", "0028.wav", reviewer="ann", verdict="replication")
        store.add("0029.wav", "0029.wav", reviewer="ann", verdict="different")
    rows = json.loads(run("--json"))["verified"]
    counts = {"flagged": 2, "verified": 2, "unsure": 0, "replications": 1, "shared": 1, "same_reference": 1}
    assert [{key: row[key] for key in counts} for row in rows] == [counts, counts]  # a's verdicts count for b
    assert "people verified" in run()
