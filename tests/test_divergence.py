"""KL and inception score: cases worked by hand, scipy, laws, the published codes' values, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, rel_entr
from scipy.special import softmax as scipy_softmax

from auscult.metrics.divergence import evaluate, inception_score, kl_per_pair, sigmoid, softmax, validate

DIRECTIONS, LINKS = ("reference_to_generated", "generated_to_reference"), ("softmax", "sigmoid")


def _logits(seed: int, n: int = 20, classes: int = 527, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=(n, classes))


def test_links_equal_scipys_and_do_not_overflow() -> None:
    logits = np.concatenate([_logits(0), [[-1e4, 1e4] + [0.0] * 525]])
    np.testing.assert_allclose(softmax(logits), scipy_softmax(logits, axis=1), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(sigmoid(logits), expit(logits), rtol=1e-12, atol=1e-300)


def test_kl_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2)."""
    p, q = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    assert kl_per_pair(p, q, epsilon=0)[0] == pytest.approx(0.25 * math.log(2), rel=1e-12)  # .5 log 2 - .25 log 2


def test_sigmoid_kl_by_hand() -> None:
    """Two classes on their own: 1/2 against 1/4, and 3/4 against 3/4."""
    p, q = np.array([[0.0, math.log(3)]]), np.array([[-math.log(3), math.log(3)]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert kl_per_pair(p, q, link="sigmoid", epsilon=0)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equals_scipys_relative_entropy(direction: str) -> None:
    reference, generated = _logits(1), _logits(2)
    p, q = (reference, generated) if direction == "reference_to_generated" else (generated, reference)
    smooth = [(scipy_softmax(x, axis=1) + 1e-6) / (1 + 527e-6) for x in (p, q)]
    found = kl_per_pair(reference, generated, direction=direction)
    np.testing.assert_allclose(found, rel_entr(*smooth).sum(axis=1), rtol=1e-10)
    yes = [(expit(x) + 1e-6) / (1 + 2e-6) for x in (p, q)]
    expected = (rel_entr(*yes) + rel_entr(1 - yes[0], 1 - yes[1])).sum(axis=1)
    np.testing.assert_allclose(kl_per_pair(reference, generated, direction=direction, link="sigmoid"), expected, rtol=1e-8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
def test_comes_near_the_published_values(direction: str, scale: float) -> None:
    """Which add 1e-6 to the distribution within the second logarithm only."""
    reference, generated = _logits(3, scale=scale), _logits(4, scale=scale)
    p, q = (reference, generated) if direction == "reference_to_generated" else (generated, reference)
    published = np.sum(softmax(p) * (np.log(softmax(p)) - np.log(softmax(q) + 1e-6)), axis=1)
    np.testing.assert_allclose(kl_per_pair(reference, generated, direction=direction), published, rtol=2e-2)
    assert kl_per_pair(reference, generated, direction=direction).mean() == pytest.approx(published.mean(), rel=3e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(DIRECTIONS), st.sampled_from(LINKS), st.sampled_from([0, 1e-6]))
def test_kl_laws(seed: int, direction: str, link: str, epsilon: float) -> None:
    """0 of itself, at least 0, finite, blind to the order of pairs; the directions are each other's mirror."""
    x, y = _logits(seed, 6, 12, 30.0), _logits(seed + 1, 6, 12, 30.0)
    found = kl_per_pair(x, y, direction=direction, link=link, epsilon=epsilon)
    assert np.all(kl_per_pair(x, x, direction=direction, link=link, epsilon=epsilon) == 0)
    assert np.all(found >= 0) and np.all(np.isfinite(found))
    order = np.random.default_rng(seed).permutation(6)
    np.testing.assert_allclose(kl_per_pair(x[order], y[order], direction=direction, link=link, epsilon=epsilon), found[order])
    other = DIRECTIONS[1 - DIRECTIONS.index(direction)]
    np.testing.assert_array_equal(kl_per_pair(y, x, direction=other, link=link, epsilon=epsilon), found)


def test_softmax_kl_is_blind_to_a_constant_and_sigmoid_kl_is_not() -> None:
    x, y = _logits(5), _logits(6)
    np.testing.assert_allclose(kl_per_pair(x + 7, y), kl_per_pair(x, y), rtol=1e-9)
    assert not np.allclose(kl_per_pair(x + 7, y, link="sigmoid"), kl_per_pair(x, y, link="sigmoid"), rtol=0.1)


def test_inception_score_by_hand() -> None:
    """Four clips: two sure of the first class, two even between both. p(y) = (3/4, 1/4)."""
    logits = np.array([[50.0, 0.0], [50.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    even = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    expected = math.exp((math.log(1 / 0.75) + even) / 2)
    assert inception_score(logits, splits=1).mean == pytest.approx(expected, rel=1e-12)


def test_inception_score_of_splits_is_that_of_a_plain_loop() -> None:
    logits = _logits(7, 53, 9)
    rows = softmax(logits)[np.random.default_rng(4).permutation(53)]
    scores = []
    for i in range(5):
        part = rows[i * 53 // 5 : (i + 1) * 53 // 5]
        scores.append(math.exp(np.mean(rel_entr(part, part.mean(axis=0)).sum(axis=1))))
    found = inception_score(logits, splits=5, seed=4)
    assert found.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.std == pytest.approx(np.std(scores), rel=1e-9)
    assert found == inception_score(logits, splits=5, seed=4) != inception_score(logits, splits=5, seed=5)


def test_inception_score_lies_between_1_and_the_number_of_classes() -> None:
    assert inception_score(np.ones((30, 4)), splits=3).mean == pytest.approx(1, abs=1e-12)
    sure = 1e3 * np.eye(6)[np.arange(60) % 6]
    assert inception_score(sure, splits=1).mean == pytest.approx(6, rel=1e-12)
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(40, 6))
    whole = inception_score(logits, splits=1).mean
    assert inception_score(rng.permutation(logits), splits=1, seed=9).mean == pytest.approx(whole, rel=1e-12)  # blind to order


def test_evaluate_names_values_and_repeats() -> None:
    reference, generated = _logits(9, 60, 20), _logits(10, 60, 20)
    found = evaluate(generated, reference, seed=1)
    assert set(found) == {"kl", "kl_reversed", "kl_sigmoid", "is"}
    assert found["kl"].value == pytest.approx(kl_per_pair(reference, generated).mean(), rel=1e-12)
    reverse = kl_per_pair(reference, generated, direction="generated_to_reference").mean()
    assert found["kl_reversed"].value == pytest.approx(reverse, rel=1e-12)
    assert found["is"].value == inception_score(generated, seed=1).mean
    assert all(interval.low < interval.value < interval.high for interval in found.values())
    assert found == evaluate(generated, reference, seed=1) != evaluate(generated, reference, seed=2)
    assert set(evaluate(generated)) == {"is"}
    assert set(evaluate(generated[:5], reference[:5], splits=None)) == {"kl", "kl_reversed", "kl_sigmoid"}
    assert math.isnan(evaluate(generated, resamples=0)["is"].low)


def test_intervals_are_as_wide_as_the_scores_really_spread() -> None:
    def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return _logits(seed, 100, 8, 2.0), _logits(seed + 10_000, 100, 8, 2.0)

    true = {}
    scores = [{name: v.value for name, v in evaluate(*sample(seed), splits=2, resamples=0).items()} for seed in range(300)]
    for name in scores[0]:
        low, high = np.percentile([score[name] for score in scores], [2.5, 97.5])
        true[name] = high - low
    found = [evaluate(*sample(1000 + seed), splits=2, seed=seed) for seed in range(12)]
    for name, width in true.items():
        assert np.mean([result[name].high - result[name].low for result in found]) == pytest.approx(width, rel=0.3), name


def test_a_handful_of_pairs_has_no_interval() -> None:
    generated, reference = _logits(1, 6, 4), _logits(2, 6, 4)
    for count in (1, 5):
        for interval in evaluate(generated[:count], reference[:count], splits=None).values():
            assert interval.value > 0
            assert math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(evaluate(generated[:4], splits=1)["is"].low)
    assert all(interval.low < interval.high for interval in evaluate(generated, reference, splits=1).values())


def test_refusals_teach() -> None:
    good = _logits(11, 12, 5)
    bad = good.copy()
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match="generated features are not finite, the first of them row 3"):
        validate(good, bad)
    with pytest.raises(ValueError, match="as many reference as generated clips, got 12 and 11; pair them by a manifest"):
        kl_per_pair(good, good[:11])
    with pytest.raises(ValueError, match="generated logits have 4 classes, the reference 5"):
        kl_per_pair(good, good[:, :4])
    with pytest.raises(ValueError, match="2 classes, got shape .12, 1."):
        inception_score(good[:, :1])
    with pytest.raises(ValueError, match="10 splits need at least 20 clips, got 12: take splits=6 or fewer"):
        inception_score(good)
    with pytest.raises(ValueError, match="a single clip has no inception score"):
        inception_score(good[:1])
    with pytest.raises(ValueError, match="direction should be"):
        kl_per_pair(good, good, direction="forward")
    with pytest.raises(ValueError, match="link should be"):
        kl_per_pair(good, good, link="relu")
    with pytest.raises(ValueError, match="epsilon should be at least 0"):
        kl_per_pair(good, good, epsilon=-1)


def test_inception_score_equals_torch_fidelitys() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_isc", reason="torch-fidelity, an oracle, is not installed")
    torch = pytest.importorskip("torch")
    logits = _logits(12, 40, 10)
    theirs = fidelity.isc_features_to_metric(torch.from_numpy(logits), splits=1, shuffle=False)
    assert inception_score(logits, splits=1).mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
