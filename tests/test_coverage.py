"""Precision, recall, density, coverage: cases worked by hand, a double loop, ties and duplicates, expectations, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.metrics.coverage import coverage, density, evaluate, precision, recall, validate
from auscult.metrics.intervals import ratio_interval, share_interval
from auscult.metrics.neighbors import halves_variance

FUNCTIONS = (precision, recall, density, coverage)


def _by_loops(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, ...]:
    """The definitions, one pair after another, on whole numbers: nothing is rounded."""

    def radii(rows: np.ndarray) -> list[int]:
        return [sorted(int(np.sum((a - b) ** 2)) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    def inside(rows: np.ndarray, balls: np.ndarray) -> np.ndarray:
        return np.array([[np.sum((row - c) ** 2) <= r for c, r in zip(balls, radii(balls), strict=True)] for row in rows])

    in_reference, in_generated = inside(x, y), inside(y, x)
    return (
        float(in_reference.any(axis=1).mean()),
        float(in_generated.any(axis=1).mean()),
        float(in_reference.sum(axis=1).mean() / k),
        float(in_reference.any(axis=0).mean()),
    )


def test_by_hand_on_a_line() -> None:
    """Reference 0, 1, 3, 7 with k = 2: radii 3, 2, 3, 6. Generated 4, 10, 14 with radii 10, 6, 10."""
    y, x = np.array([[0.0], [1], [3], [7]]), np.array([[4.0], [10], [14]])
    assert precision(x, y, k=2) == pytest.approx(2 / 3)  # 14 is 7 from 7
    assert density(x, y, k=2) == pytest.approx((2 + 1 + 0) / 2 / 3)  # 4 lies in the balls of 3 and 7, 10 in that of 7
    assert coverage(x, y, k=2) == pytest.approx(2 / 4)  # of 3 and of 7
    assert recall(x, y, k=2) == 1  # the ball of 4 reaches from -6 to 14


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(5, 14), st.integers(5, 14))
def test_equal_the_definitions_on_grids_full_of_ties_and_duplicates(seed: int, d: int, k: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-3, 4, (n, d)), rng.integers(-3, 4, (m, d))
    found = [function(x * 0.1 + 1 / 3, y * 0.1 + 1 / 3, k=k) for function in FUNCTIONS]  # a grid that floats cannot hold
    assert found == pytest.approx(_by_loops(x, y, k), abs=1e-12)


def test_every_value_of_a_set_against_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    x = np.concatenate([rows, rows[:50]])  # with duplicates
    assert precision(x, x) == recall(x, x) == coverage(x, x) == 1
    assert density(x, x) >= 1  # each lies in its own ball and in those of its neighbors


def test_many_duplicates_have_balls_of_radius_0_that_hold_their_copies() -> None:
    silent, rng = np.full((20, 8), 0.1), np.random.default_rng(1)
    assert precision(silent, silent) == coverage(silent, silent) == recall(silent, silent) == 1
    far = rng.normal(size=(20, 8)) + 5
    assert precision(far, silent) == coverage(far, silent) == 0


def test_what_is_computed_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(83, 4)), rng.normal(size=(57, 4))
    whole = [function(x, y) for function in FUNCTIONS]
    monkeypatch.setattr("auscult.metrics.neighbors.BLOCK_VALUES", 300)
    assert [function(x, y) for function in FUNCTIONS] == whole
    moved = [function(rng.permutation(x) * 2 + 100, rng.permutation(y) * 2 + 100) for function in FUNCTIONS]
    assert moved == pytest.approx(whole, abs=1e-12)


def test_expected_coverage_of_two_samples_of_one_distribution() -> None:
    """A reference item is not covered if its k nearest neighbors among both sets are all of the reference."""
    rng = np.random.default_rng(3)
    for k in (1, 3):
        found = np.mean([coverage(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)), k=k) for _ in range(20)])
        assert found == pytest.approx(1 - math.prod((199 - i) / (399 - i) for i in range(k)), abs=0.02)
    assert density(rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3))) == pytest.approx(1, abs=0.06)


def test_collapse_and_spread_are_told_apart() -> None:
    rng = np.random.default_rng(4)
    real = rng.normal(size=(300, 5))
    collapsed, spread = evaluate(real[:6].repeat(50, axis=0), real), evaluate(3 * rng.normal(size=(300, 5)), real)
    assert collapsed["precision"].value == 1 and collapsed["coverage"].value < 0.3
    assert spread["precision"].value < 0.5 and spread["recall"].value > 0.9


def test_evaluate_gives_the_functions_values_and_repeats() -> None:
    rng = np.random.default_rng(5)
    x, y, clips = rng.normal(size=(120, 3)) + 0.5, rng.normal(size=(90, 3)), np.repeat(np.arange(30), 4)
    found = evaluate(x, y, generated_clips=clips, seed=1)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    assert [interval.value for interval in found.values()] == [function(x, y) for function in FUNCTIONS]
    assert all(interval.low < interval.value < interval.high for interval in found.values())
    assert found == evaluate(x, y, generated_clips=clips, seed=1) != evaluate(x, y, generated_clips=clips, seed=2)
    assert math.isnan(evaluate(x, y, resamples=0)["recall"].low)


def test_intervals_hold_the_expectation_as_often_as_they_say() -> None:
    """Both sets are samples: balls that were taken for given would make it 80 to 85 %."""
    rng = np.random.default_rng(6)
    found = [evaluate(rng.normal(0.3, 1, (80, 8)), rng.normal(0, 1, (80, 8)), resamples=60, seed=seed) for seed in range(150)]
    for name in found[0]:
        intervals = [result[name] for result in found]
        values = np.array([interval.value for interval in intervals])
        assert np.mean([interval.low <= values.mean() <= interval.high for interval in intervals]) >= 0.92, name
        # and are not so for being endless: shares are held too often, since a half varies more than their half
        assert np.mean([interval.high - interval.low for interval in intervals]) < 1.5 * 2 * 1.96 * values.std(), name


def test_intervals_have_a_width_where_nothing_was_seen_to_vary() -> None:
    rng = np.random.default_rng(6)
    real = rng.normal(size=(80, 4))
    within, far = evaluate(real[:40] * 0.01, real), evaluate(real[:40] + 100, real)
    assert (within["precision"].value, within["precision"].high) == (1, 1)
    assert within["precision"].low == pytest.approx(0.025 ** (1 / 40))  # Clopper and Pearson, 40 of 40
    for name, clips in (("precision", 40), ("density", 40), ("recall", 80), ("coverage", 80)):
        assert (far[name].value, far[name].low) == (0, 0)
        assert far[name].high == pytest.approx(1 - 0.025 ** (1 / clips))


def test_no_interval_where_half_of_the_clips_have_no_neighbor_of_that_number() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(11, 3)), rng.normal(size=(40, 3))
    assert all(math.isnan(interval.low) and math.isnan(interval.high) for interval in evaluate(x, y).values())
    assert not any(math.isnan(interval.low) for interval in evaluate(x, y, k=4).values())


def test_intervals_go_by_clips() -> None:
    """Four copies of each clip: as sure as its quarter of distinct clips, not as all rows."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(100, 2)) * 2, rng.normal(size=(400, 2))
    copies, clips = x.repeat(4, axis=0), np.repeat(np.arange(100), 4)
    for name in ("precision", "density", "coverage"):  # the copies' own balls are smaller
        once, four = evaluate(x, y)[name], evaluate(copies, y, generated_clips=clips)[name]
        assert (four.value, four.low, four.high) == pytest.approx((once.value, once.low, once.high), abs=1e-9)
    fooled = evaluate(copies, y)["precision"]
    assert fooled.high - fooled.low < 0.8 * (evaluate(x, y)["precision"].high - evaluate(x, y)["precision"].low)


def test_intervals_of_large_sets_come_from_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(0.3, 1, (400, 3)), rng.normal(size=(400, 3))
    whole = evaluate(x, y, resamples=400)
    monkeypatch.setattr("auscult.metrics.neighbors.POOL", 100)
    part = evaluate(x, y, resamples=400)
    assert [interval.value for interval in part.values()] == [interval.value for interval in whole.values()]
    for name in whole:  # a set of 100 would be twice as unsure
        ratio = (part[name].high - part[name].low) / (whole[name].high - whole[name].low)
        assert 0.65 < ratio < 1.65, name


def test_density_that_varies_by_more_than_itself_has_no_interval() -> None:
    """Tight takes of 120 sounds and a single clip near one of them: a standard error of its logarithm would be hundreds."""
    rng = np.random.default_rng(0)
    real = (rng.normal(size=(120, 1, 16)) + 0.001 * rng.normal(size=(120, 8, 16))).reshape(-1, 16)
    made = rng.normal(size=(600, 16))
    made[0] = real[0] + 1e-6
    found = evaluate(made, real, resamples=20)["density"]
    assert 0 < found.value < 0.01 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(ratio_interval(1.0, 1.0).high) and math.isnan(ratio_interval(1e-5, 1e-3).low)
    assert ratio_interval(1.0, 0.98).high == pytest.approx(math.exp(1.96 * 0.98**0.5), rel=1e-4)


def test_a_share_is_no_surer_than_its_items() -> None:
    """Halves may happen to vary less than independent items would, or not at all."""
    of_items = share_interval(0.5, 0.25 / 80, clips=80, items=80)
    for variance in (0.0, 1e-9, 0.25 / 81):
        assert share_interval(0.5, variance, clips=80, items=80) == of_items
    assert share_interval(0.5, 0.25 / 79, clips=80, items=80).low < of_items.low


def test_variance_is_that_of_the_halves_drawn_for_odd_numbers_too() -> None:
    """A half of 13 is 6, and varies 7 / 6 times as much as the whole."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(0.5, 1, (13, 2)), rng.normal(size=(15, 2))
    found = halves_variance(x, np.arange(13), y, np.arange(15), 5, resamples=30, seed=3)
    rng, draws = np.random.default_rng(3), []
    for _ in range(30):
        i, j = (np.sort(rng.permutation(n)[: n // 2]) for n in (13, 15))
        draws.append([function(x[i], y[j]) for function in FUNCTIONS])
    assert found == pytest.approx(np.var(draws, axis=0, ddof=1) * 7 / 8, rel=1e-9)  # of 15: the number nearer to a half


def test_halves_know_what_lies_on_a_ball_through_rounding() -> None:
    """On a grid most radii are reached exactly; in tenths, far from 0, products miss that by a little to either side."""
    rng = np.random.default_rng(9)
    x, y = rng.integers(0, 6, (60, 3)), rng.integers(0, 6, (60, 3))
    clip = np.arange(60)
    exact, rounded = (
        halves_variance(scale(x), clip, scale(y), clip, 5, resamples=30, seed=0)
        for scale in (lambda rows: rows.astype(np.float64), lambda rows: 50 + 0.1 * rows)
    )
    assert rounded == pytest.approx(exact, rel=1e-9)


def test_large_sets_are_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    monkeypatch.setattr("auscult.metrics.coverage.MOST_FRAMES", 100)
    assert density(x, y, seed=1) == density(x, y, seed=1) != density(x, y, seed=2)


def test_refusals_teach() -> None:
    good = np.random.default_rng(8).normal(size=(20, 3))
    bad = good.copy()
    bad[2] = np.nan
    with pytest.raises(ValueError, match="first of them row 2"):
        validate(bad, good)
    with pytest.raises(ValueError, match="generated features have 3 dimensions, the reference 2"):
        precision(good, good[:, :2])
    with pytest.raises(ValueError, match="neighbor number 5 needs at least 6 generated items, got 5: add clips"):
        recall(good[:5], good)
    with pytest.raises(ValueError, match="k counts neighbors"):
        density(good, good, k=0)
    with pytest.raises(ValueError, match=r"at least 2 reference clips, got 1 \(with 20 rows\)"):
        evaluate(good, good, reference_clips=[0] * 20)


def test_equal_prdcs_on_the_same_features() -> None:
    prdc = pytest.importorskip("prdc", reason="prdc, the authors' code and an oracle, is not installed")
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(150, 4)) + 0.3, rng.normal(size=(120, 4))
    theirs = prdc.compute_prdc(real_features=y, fake_features=x, nearest_k=5)
    for function in FUNCTIONS:
        assert function(x, y) == pytest.approx(theirs[function.__name__], abs=1e-9)
