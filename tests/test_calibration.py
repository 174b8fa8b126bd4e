"""Thresholds and background normalization on scores whose truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from auscult.calibration import (
    benjamini_hochberg,
    conformal_p_values,
    fdr_threshold,
    fixed_threshold,
    gap_threshold,
    matched_threshold,
    null_from_training,
)
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


def test_p_values_equal_counting() -> None:
    rng = np.random.default_rng(0)
    null, scores = np.round(rng.standard_normal(50), 1), np.round(rng.standard_normal(30), 1)
    expected = [(1 + np.count_nonzero(null >= s)) / 51 for s in scores]
    np.testing.assert_allclose(conformal_p_values(scores, null), expected)
    assert conformal_p_values(np.array([np.nan]), null)[0] == 1.0


def test_benjamini_hochberg_equals_scipy() -> None:
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.uniform(size=40) ** rng.uniform(1, 4)
        np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), false_discovery_control(p) <= 0.1)


def test_false_discoveries_stay_within_the_level_over_200_runs() -> None:
    """Scores as the detector gives them: unrelated clips with a heavy right tail, copies far above most of it."""
    rates, found = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        null, clean = (rng.gumbel(4.0, 1.0, n) for n in (1000, 90))
        copies = rng.normal(25, 8, 10)
        scores = np.concatenate([copies, clean])
        flagged = scores >= fdr_threshold(scores, null, 0.1).tau
        rates.append(np.count_nonzero(flagged[10:]) / max(np.count_nonzero(flagged), 1))
        found.append(np.mean(flagged[:10]))
    assert 0 <= np.mean(rates) <= 0.12
    assert np.mean(found) >= 0.8


def test_too_few_null_clips_say_how_many_are_needed() -> None:
    none = fdr_threshold(np.array([50.0, 4.0]), np.zeros(0), 0.1)
    assert "too few to flag anything" in none.explanation
    assert not none.separated
    rule = fdr_threshold(np.array([50.0, *np.linspace(3, 5, 99)]), np.linspace(2, 6, 100), 0.1)
    assert not rule.separated
    assert "999 could tell a single one" in rule.explanation
    enough = fdr_threshold(np.array([50.0, *np.linspace(3, 5, 99)]), np.linspace(2, 6, 999), 0.1)
    assert 6 < enough.tau < 6 + 1e-9  # all scores of the smallest p-value are flagged alike


def test_null_from_training_leaves_duplicates_out() -> None:
    rng = np.random.default_rng(0)
    kept = null_from_training(np.concatenate([rng.gumbel(4, 1, 200), rng.uniform(30, 60, 12), [np.nan]]))
    assert len(kept) == 200
