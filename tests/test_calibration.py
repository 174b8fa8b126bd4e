"""Thresholds and background normalization on scores whose truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from auscult.calibration import fixed_threshold, gap_threshold, matched_threshold
from auscult.similarity import background_bias


def unrelated(rng: np.random.Generator, n: int) -> np.ndarray:
    """Top-1 scores of clips without copies: a body with an exponential upper tail."""
    return rng.gumbel(0.47, 0.008, n)


def test_gap_is_found_where_copies_were_planted() -> None:
    right = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        generated = np.concatenate([unrelated(rng, 200), rng.uniform(0.56, 0.60, 12)])
        rule = gap_threshold(generated, unrelated(rng, 400))
        right += rule.separated and np.count_nonzero(generated >= rule.tau) == 12
    assert right >= 90  # in some runs the planted cluster is itself split by a wide spacing


def test_gap_is_rarely_seen_where_nothing_is_copied() -> None:
    false = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        false += gap_threshold(unrelated(rng, 200), unrelated(rng, 400)).separated
    assert false <= 12  # the rule's level is 1 %; the estimate of the tail's scale adds to it


def test_without_a_gap_the_fallback_says_so() -> None:
    rng = np.random.default_rng(0)
    training = unrelated(rng, 500)
    rule = gap_threshold(unrelated(rng, 100), training)
    assert not rule.separated
    assert "do not separate" in rule.explanation
    assert np.mean(training > rule.tau) == pytest.approx(0.01, abs=0.004)


def test_duplicates_of_a_fifth_of_the_training_set_do_not_hide_the_gap() -> None:
    rng = np.random.default_rng(3)
    training = np.concatenate([unrelated(rng, 400), rng.uniform(0.56, 0.6, 100)])
    assert gap_threshold(np.zeros(0), training).separated


def test_matched_threshold_flags_that_many() -> None:
    scores = np.random.default_rng(0).standard_normal(50)
    for count in (0, 1, 17, 50):
        assert np.count_nonzero(scores >= matched_threshold(scores, count).tau) == count
    with pytest.raises(ValueError, match="expected a count"):
        matched_threshold(scores, 51)


def test_bad_thresholds() -> None:
    with pytest.raises(ValueError, match="finite"):
        fixed_threshold(float("nan"))
    with pytest.raises(ValueError, match="at least 20"):
        gap_threshold(np.zeros(3), np.zeros(3))


def test_bias_is_half_the_mean_of_the_five_nearest() -> None:
    rng = np.random.default_rng(0)
    queries, background = (rng.standard_normal((n, 20)).astype(np.float32) for n in (6, 50))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), background.astype(float))]
    expected = 0.5 * np.sort(unit[0] @ unit[1].T, axis=1)[:, -5:].mean(axis=1)
    np.testing.assert_allclose(background_bias(queries, background), expected, atol=1e-9)


def test_background_smaller_than_k_is_refused() -> None:
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="background has 3"):
        background_bias(x, x, k=5)
