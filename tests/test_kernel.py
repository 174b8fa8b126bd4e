"""Kernel distance: a double loop over pairs, laws, clips of several frames, and how true its intervals are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.metrics.kernel import bandwidth, evaluate, kernel_distance, validate


def _by_loops(x: np.ndarray, y: np.ndarray, cx: list[int], cy: list[int], h: float, *, paired: bool = False) -> float:
    def mean(a: np.ndarray, b: np.ndarray, ca: list[int], cb: list[int], apart: bool) -> float:
        total, pairs = 0.0, 0
        for i in range(len(a)):
            for j in range(len(b)):
                if apart and ca[i] == cb[j]:
                    continue
                total += math.exp(-sum((p - q) ** 2 for p, q in zip(a[i], b[j], strict=True)) / (2 * h * h))
                pairs += 1
        return total / pairs

    return 100 * (mean(x, x, cx, cx, True) + mean(y, y, cy, cy, True) - 2 * mean(x, y, cx, cy, paired))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_equals_a_double_loop(seed: int, d: int, paired: bool) -> None:
    """Also where the sets share some of their clips (3, 5 and 8 of the paired case)."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(9, d)) + 10, rng.normal(size=(9 if paired else 7, d)) * 2 + 11
    cx = rng.permutation([3, 3, 3, 5, 5, 8, 8, 9, 4]).tolist()
    cy = rng.permutation([3, 3, 5, 8, 8, 2, 2, 7, 6] if paired else [1, 1, 2, 2, 2, 7, 6]).tolist()
    h = float(np.median([math.dist(y[i], y[j]) for i in range(len(y)) for j in range(i)]))
    assert bandwidth(y) == pytest.approx(h, rel=1e-12)
    found = kernel_distance(x, y, generated_clips=cx, reference_clips=cy, paired=paired)
    assert found == pytest.approx(_by_loops(x, y, cx, cy, h, paired=paired), rel=1e-10, abs=1e-10)


def test_each_row_is_a_clip_unless_told_otherwise() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(10, 3))
    expected = _by_loops(x, y, list(range(12)), list(range(10)), 1.5)
    assert kernel_distance(x, y, h=1.5) == pytest.approx(expected, rel=1e-10)


def test_by_hand_on_a_line() -> None:
    """Two points a side, h 1: k is exp(-1/2) within the first, exp(-2) within the second."""
    across = (1 + math.exp(-2) + math.exp(-0.5) + math.exp(-0.5)) / 4  # 0-0, 0-2, 1-0, 1-2
    expected = 100 * (math.exp(-0.5) + math.exp(-2) - 2 * across)
    assert kernel_distance([[0.0], [1.0]], [[0.0], [2.0]], h=1.0) == pytest.approx(expected, rel=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(40, 3)) + 0.2
    whole = evaluate(x, y, generated_clips=np.repeat(np.arange(10), 5))
    monkeypatch.setattr("auscult.metrics.kernel.BLOCK_VALUES", 120)
    parts = evaluate(x, y, generated_clips=np.repeat(np.arange(10), 5))
    np.testing.assert_allclose([parts.value, parts.low, parts.high], [whole.value, whole.low, whole.high], rtol=1e-9)


def test_laws() -> None:
    """Blind to order, offset and unit; the ruler is the reference's, so swapping the sets is another score."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(50, 4)) * 1.5
    value = kernel_distance(x, y)
    assert kernel_distance(rng.permutation(x), rng.permutation(y)) == pytest.approx(value, rel=1e-9)
    assert kernel_distance(3 * x + 1e4, 3 * y + 1e4) == pytest.approx(value, rel=1e-6)
    assert bandwidth(3 * y) == pytest.approx(3 * bandwidth(y), rel=1e-12)
    assert kernel_distance(y, x, h=2.0) == pytest.approx(kernel_distance(x, y, h=2.0), rel=1e-9)
    assert abs(kernel_distance(y, x) - value) > 0.1


@pytest.mark.parametrize("d", [2, 200])
def test_a_set_against_itself(d: int) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(80, d))
    same = evaluate(rows, rows, paired=True)
    assert abs(same.value) < 1e-9 and same.high - same.low < 1e-9
    between = np.exp(-0.5 * (np.linalg.norm(rows[:, None] - rows, axis=2) / bandwidth(rows)) ** 2)
    mean = (between.sum() - 80) / 80 / 79
    assert kernel_distance(rows, rows) == pytest.approx(-200 * (1 - mean) / 80, rel=1e-9)


def test_two_samples_of_one_distribution_score_0_within_the_interval() -> None:
    rng = np.random.default_rng(4)
    pairs = [(rng.normal(size=(60, 30)), rng.normal(size=(60, 30))) for _ in range(40)]
    found = [evaluate(x, y) for x, y in pairs]
    assert sum(interval.low <= 0 <= interval.high for interval in found) >= 37
    values = [interval.value for interval in found]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)  # unbiased
    assert 10 < sum(value < 0 for value in values) < 30


def test_noise_of_rising_level_raises_it() -> None:
    rng = np.random.default_rng(5)
    y, noise = rng.normal(size=(100, 6)), rng.normal(size=(100, 6))
    values = [kernel_distance(y + level * noise, y, paired=True) for level in (0, 0.5, 1, 2, 4)]
    assert values == sorted(values) and values[-1] > 10


def test_frames_of_one_clip_are_not_independent() -> None:
    """Ten frames a clip, hardly different: as frames they make one distribution look like two."""
    rng = np.random.default_rng(6)
    clips = np.repeat(np.arange(20), 10)

    def sample() -> np.ndarray:
        return rng.normal(size=(20, 5))[clips] + 0.01 * rng.normal(size=(200, 5))

    by_clip, by_frame = [], []
    for _ in range(40):
        x, y = sample(), sample()
        by_clip.append(kernel_distance(x, y, generated_clips=clips, reference_clips=clips, h=3.0))
        by_frame.append(kernel_distance(x, y, h=3.0))
    assert abs(np.mean(by_clip)) < 3 * np.std(by_clip) / np.sqrt(40)
    assert np.mean(by_frame) > 5 * abs(np.mean(by_clip))


def test_interval_is_as_wide_as_the_score_really_spreads() -> None:
    rng = np.random.default_rng(7)

    def sample(shift: float) -> np.ndarray:
        return rng.normal(size=(80, 3)) + shift

    scores = [kernel_distance(sample(0.5), sample(0), h=2.0) for _ in range(300)]
    true = np.percentile(scores, 97.5) - np.percentile(scores, 2.5)
    found = [evaluate(sample(0.5), sample(0), h=2.0, seed=seed) for seed in range(15)]
    assert np.mean([interval.high - interval.low for interval in found]) == pytest.approx(true, rel=0.3)


def test_large_sets_are_sampled_by_whole_clips_and_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    x, y, clips = rng.normal(size=(300, 2)) + 1, rng.normal(size=(300, 2)), np.repeat(np.arange(100), 3)
    whole = kernel_distance(x, y, generated_clips=clips, reference_clips=clips)
    monkeypatch.setattr("auscult.metrics.kernel.MOST_FRAMES", 150)
    monkeypatch.setattr("auscult.metrics.kernel.BANDWIDTH_ROWS", 100)
    parts = [evaluate(x, y, generated_clips=clips, reference_clips=clips, seed=seed) for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0].value == pytest.approx(whole, rel=0.4)


def test_refusals_teach() -> None:
    good = np.random.default_rng(9).normal(size=(20, 3))
    bad = good.copy()
    bad[4, 1] = np.inf
    with pytest.raises(ValueError, match="reference features are not finite, the first of them row 4"):
        validate(good, bad)
    with pytest.raises(ValueError, match="generated features have 3 dimensions, the reference 2"):
        evaluate(good, good[:, :2])
    with pytest.raises(ValueError, match="at least 2 generated clips, got 1"):
        evaluate(good[:1], good)
    with pytest.raises(ValueError, match=r"at least 2 reference clips, got 1 \(with 20 rows\)"):
        evaluate(good, good, reference_clips=[1] * 20)
    with pytest.raises(ValueError, match="most of its features are equal"):
        evaluate(good, np.full((20, 3), 0.1))
    with pytest.raises(ValueError, match="one clip number for each of the 20 rows"):
        evaluate(good, good, reference_clips=[1, 2])
    with pytest.raises(ValueError, match="h should exceed 0, got 0"):
        kernel_distance(good, good, h=0)


def test_silence_against_real_features_is_far() -> None:
    """One side without any spread is no reason to refuse: the ruler is the other's."""
    y = np.random.default_rng(10).normal(size=(50, 4))
    assert kernel_distance(np.zeros((50, 4)), y) > 5
