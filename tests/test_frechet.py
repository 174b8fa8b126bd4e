"""Frechet distance: closed forms, scipy's matrix root, laws, singular covariances, and how true its intervals are."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.metrics.frechet import (
    Moments,
    evaluate,
    evaluate_infinity,
    frechet_distance,
    frechet_infinity,
    frechet_per_clip,
    moments,
    shrinkage_coefficient,
    validate,
)
from auscult.metrics.gaussians import distance_to


def _set(seed: int, n: int, d: int, *, shift: float = 0.0) -> np.ndarray:
    """Rows of correlated features, some ten times as strong as others."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(1, 0.1, d)) / np.sqrt(d) + shift


def _by_sqrtm(a: Moments, b: Moments) -> float:
    """The published code's way: the matrix root of the product of covariances."""
    from scipy.linalg import sqrtm

    root = sqrtm(a.covariance @ b.covariance)
    step = a.mean - b.mean
    return float(step @ step + np.trace(a.covariance + b.covariance - 2 * np.real(root)))


@pytest.mark.parametrize("d", [1, 2, 17, 64])
def test_equals_scipys_matrix_root(d: int) -> None:
    a, b = moments([_set(1, 10 * d + 5, d)]), moments([_set(2, 12 * d + 5, d, shift=0.3)])
    assert frechet_distance(a, b) == pytest.approx(_by_sqrtm(a, b), rel=1e-6)


def test_closed_form_of_covariances_that_commute() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    first, second, mean = rng.uniform(0, 3, 9), rng.uniform(0, 3, 9), rng.normal(size=9)
    a = Moments(100, mean, turn @ np.diag(first**2) @ turn.T)
    b = Moments(100, np.zeros(9), turn @ np.diag(second**2) @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(mean @ mean + np.sum((first - second) ** 2), rel=1e-12)


def test_closed_form_of_two_dimensions() -> None:
    """Of 2 x 2 covariances, tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), whether they commute or not."""
    a, b = (np.cov(_set(seed, 50, 2), rowvar=False) for seed in (3, 4))
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(Moments(50, np.zeros(2), a), Moments(50, np.zeros(2), b)) == pytest.approx(expected, rel=1e-10)


def test_large_samples_come_near_the_distance_of_their_distributions() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=(200_000, 3)) * [1, 2, 3] + [1, 0, 0]
    b = rng.normal(size=(200_000, 3)) * [2, 2, 1]
    assert frechet_distance(moments([a]), moments([b])) == pytest.approx(1 + 1 + 0 + 4, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 30), st.integers(2, 30))
def test_laws(seed: int, d: int, n: int, m: int) -> None:
    """Symmetric to the bit, non-negative, zero of itself, blind to order, whatever the rank."""
    x, y = _set(seed, n, d), _set(seed + 1, m, d, shift=1.0)
    a, b = moments([x]), moments([y])
    distance, scale = frechet_distance(a, b), np.trace(a.covariance) + np.trace(b.covariance)
    assert distance >= 0
    assert distance == frechet_distance(b, a)
    assert frechet_distance(a, a) <= 1e-12 * scale
    order = np.random.default_rng(seed).permutation(n)
    assert frechet_distance(moments([x[order]]), b) == pytest.approx(distance, rel=1e-7, abs=1e-7 * scale)


def test_distance_is_a_metric_once_rooted() -> None:
    a, b, c = (np.sqrt(frechet_distance(*pair)) for pair in _pairs([moments([_set(s, 40, 5, shift=s)]) for s in range(3)]))
    assert a <= b + c and b <= a + c and c <= a + b


def _pairs(three: list[Moments]) -> list[tuple[Moments, Moments]]:
    return [(three[0], three[1]), (three[1], three[2]), (three[0], three[2])]


def test_rank_deficient_sets_give_what_scipy_gives_where_it_is_real() -> None:
    a, b = moments([_set(6, 64, 128)]), moments([_set(7, 50, 128)])  # ranks 63 and 49 of 128
    assert np.linalg.matrix_rank(a.covariance) == 63
    expected = np.trace(a.covariance + b.covariance)
    # an independent root: eigenvalues of S_a^(1/2) S_b S_a^(1/2)
    values, vectors = np.linalg.eigh(a.covariance)
    half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    expected -= 2 * np.sum(np.sqrt(np.linalg.eigvalsh(half @ b.covariance @ half).clip(0)))
    step = a.mean - b.mean
    assert frechet_distance(a, b) == pytest.approx(step @ step + expected, rel=1e-6)


def test_dead_dimensions_add_only_their_own_difference() -> None:
    """A ReLU leaves dimensions that are constant on one side or on both."""
    x, y = _set(8, 200, 6), _set(9, 200, 6)
    alive = frechet_distance(moments([x]), moments([y]))
    dead = np.zeros((200, 3))
    both = frechet_distance(moments([np.hstack([x, dead])]), moments([np.hstack([y, dead + 2.0])]))
    assert both == pytest.approx(alive + 12.0, rel=1e-12)
    varying = np.random.default_rng(0).normal(size=(200, 3))
    one = frechet_distance(moments([np.hstack([x, dead])]), moments([np.hstack([y, varying])]))
    step = varying.mean(axis=0)
    assert one == pytest.approx(alive + step @ step + varying.var(axis=0, ddof=1).sum(), rel=1e-9)
    all_dead = moments([dead])
    assert frechet_distance(all_dead, all_dead) == 0


def test_repeated_dimensions() -> None:
    x, y = _set(10, 100, 4), _set(11, 100, 4)
    once = frechet_distance(moments([x]), moments([y]))
    twice = frechet_distance(moments([np.hstack([x, x])]), moments([np.hstack([y, y])]))
    assert twice == pytest.approx(2 * once, rel=1e-7)  # sqrt(2) S in a turned basis


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_moments_do_not_depend_on_the_blocks(cuts: list[int]) -> None:
    rows = _set(12, 41, 3).astype(np.float32)
    whole, parts = moments([rows]), moments(np.split(rows, sorted(cuts)))
    assert np.array_equal(parts.covariance, whole.covariance) and np.array_equal(parts.mean, whole.mean)


def test_moments_equal_numpys_across_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auscult.metrics.gaussians.PANEL_ROWS", 64)
    rows = _set(13, 1000, 7, shift=5.0)
    found = moments([rows[:900], rows[900:]])
    assert found.count == 1000
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-11)


def test_a_large_offset_costs_no_digits() -> None:
    rows = _set(14, 10_000, 4)
    lifted = moments([rows + 1e6])  # raw second moments would keep 4 digits of the covariance
    np.testing.assert_allclose(lifted.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-9)


def test_weights_count_rows_as_often() -> None:
    rows, times = _set(15, 30, 3), np.random.default_rng(0).integers(0, 4, 30)
    weighted, repeated = moments([rows], weights=times), moments([np.repeat(rows, times, axis=0)])
    assert weighted.count == repeated.count
    np.testing.assert_allclose(weighted.covariance, repeated.covariance, rtol=1e-10)


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(n_blocks: int) -> int:
        rows = np.random.default_rng(0).normal(size=(2000, 40)).astype(np.float32)
        tracemalloc.start()
        moments(rows for _ in range(n_blocks))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(40) < 1.1 * peak(8)


def test_value_of_evaluate_is_the_distance_of_the_moments() -> None:
    x, y = _set(16, 300, 5), _set(17, 200, 5)
    expected = frechet_distance(moments([x]), moments([y]))
    found = evaluate(x, y)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.low < found.value < found.high
    assert evaluate(x, y, resamples=0).value == pytest.approx(expected, rel=1e-12)
    assert np.isnan(evaluate(x, y, resamples=0).low)


def test_blocks_give_what_arrays_give_and_a_seed_repeats_to_the_bit() -> None:
    x, y, clips = _set(18, 300, 5), _set(19, 240, 5), np.repeat(np.arange(60), 5)

    def blocks() -> Iterator[np.ndarray]:
        yield from np.array_split(x, 7)

    whole = evaluate(x, y, generated_clips=clips, seed=3)
    assert evaluate(blocks, y, generated_clips=clips, seed=3) == whole
    assert evaluate(x, y, generated_clips=clips, seed=3) == whole
    assert evaluate(x, y, generated_clips=clips, seed=4) != whole
    assert (whole.generated_groups, whole.reference_groups, whole.resamples) == (60, 100, 200)


def test_interval_is_as_wide_as_the_score_really_spreads() -> None:
    """Of 300 pairs of samples 95 % of the scores span so much; the interval of one pair should say so within 30 %."""
    rng = np.random.default_rng(20)
    n_clips, frames, d = 150, 3, 4
    clips = np.repeat(np.arange(n_clips), frames)

    def sample(shift: float) -> np.ndarray:
        """Frames that resemble the others of their clip: more alike than independent frames."""
        return (rng.normal(size=(n_clips, d))[clips] + 0.5 * rng.normal(size=(len(clips), d))) * [1, 1, 2, 2] + shift

    scores = [frechet_distance(moments([sample(0.6)]), moments([sample(0.0)])) for _ in range(300)]
    true = np.percentile(scores, 97.5) - np.percentile(scores, 2.5)
    found, blind = [], []
    for seed in range(12):
        x, y = sample(0.6), sample(0.0)
        interval = evaluate(x, y, generated_clips=clips, reference_clips=clips, seed=seed)
        found.append(interval.high - interval.low)
        interval = evaluate(x, y, seed=seed)
        blind.append(interval.high - interval.low)
    assert np.mean(found) == pytest.approx(true, rel=0.3)
    assert np.mean(blind) < 0.75 * true  # frames taken for clips: surer than one can be


def test_groups_spread_as_clips_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _set(21, 300, 3, shift=0.5), _set(22, 300, 3)
    by_group = evaluate(x, y, resamples=400)
    monkeypatch.setattr("auscult.metrics.frechet.GROUPS", 300)
    by_clip = evaluate(x, y, resamples=400)
    assert (by_group.generated_groups, by_clip.generated_groups) == (100, 300)
    assert by_group.high - by_group.low == pytest.approx(by_clip.high - by_clip.low, rel=0.25)


def test_distances_to_one_set_are_the_distances() -> None:
    """Of full rank, of too few rows, of dead dimensions on either side."""
    sets = [_set(0, 400, 12), _set(1, 300, 12, shift=0.5), _set(2, 7, 12), np.hstack([_set(3, 50, 9), np.zeros((50, 3))])]
    for reference in map(moments, ([one] for one in sets)):
        to_it = distance_to(reference)
        for one in sets:
            expected = frechet_distance(moments([one]), reference)
            assert to_it(moments([one])) == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.trace(reference.covariance))
    with pytest.raises(ValueError, match="generated features have 3 dimensions, the reference 12"):
        distance_to(moments([sets[0]]))(moments([_set(4, 9, 3)]))
    silence = moments([np.zeros((9, 12))])
    assert distance_to(silence)(silence) == 0


def test_extrapolation_removes_what_few_frames_add() -> None:
    """Two samples of one distribution: the score falls as 1 / n, and the line ends near 0."""
    rng = np.random.default_rng(23)
    reference = moments([rng.normal(size=(100_000, 20))])
    found = frechet_infinity(rng.normal(size=(3000, 20)), reference, seed=1)
    assert found.sizes == (750, 1500, 3000)
    assert abs(found.value) < 0.1 * found.scores[-1]
    assert found.slope == pytest.approx(found.scores[0] * 750, rel=0.1)


def _clips(seed: int, n_clips: int, frames: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of clips of ten kinds, which resemble the others of their clip, some clips far stronger than others."""
    rng, clips = np.random.default_rng(seed), np.repeat(np.arange(n_clips), frames)
    kinds = 3 * np.random.default_rng(99).normal(size=(10, d))
    own = 2 * rng.normal(size=(n_clips, d)) * np.exp(0.7 * rng.normal(size=(n_clips, 1)))
    return (kinds[rng.integers(10, size=n_clips)] + own)[clips] + rng.normal(size=(len(clips), d)), clips


@pytest.mark.parametrize(("n_clips", "frames", "d"), [(320, 4, 16), (256, 6, 8), (512, 1, 32)])
def test_extrapolation_hardly_depends_on_its_draws(n_clips: int, frames: int, d: int) -> None:
    """Nor on the order of the clips, which is but another draw: the spread is small beside value and interval."""
    x, clips = _clips(40, n_clips, frames, d)
    reference = moments([_clips(41, 400, frames, d)[0]])
    values = [frechet_infinity(x, reference, clips=clips, seed=seed).value for seed in range(6)]
    renamed = np.random.default_rng(0).permutation(n_clips)[clips]
    values += [frechet_infinity(x, reference, clips=renamed, seed=0).value]
    interval = evaluate_infinity(x, reference, clips=clips)
    spread = max(values) - min(values)
    assert spread < 0.1 * np.mean(values)
    assert spread < 0.03 * (interval.high - interval.low)


def test_interval_of_an_extrapolation_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(42)
    reference, true = moments([rng.normal(size=(50_000, 8))]), 8 * 0.2**2
    found = [evaluate_infinity(rng.normal(0.2, 1, (512, 8)), reference, seed=seed) for seed in range(30)]
    assert sum(one.low < true < one.high for one in found) >= 26  # of 30; 28 or 29 are expected
    assert np.mean([one.high - one.low for one in found]) == pytest.approx(4 * np.std([one.value for one in found]), rel=0.35)


def _alike_frames(seed: int, n_clips: int) -> tuple[np.ndarray, np.ndarray]:
    """16 frames a clip in 64 dimensions, each with a variance of 1 between clips and 0.25 within them."""
    rng, clips = np.random.default_rng(seed), np.repeat(np.arange(n_clips), 16)
    return rng.normal(size=(n_clips, 64))[clips] + 0.5 * rng.normal(size=(len(clips), 64)), clips


def test_points_that_bend_are_no_line() -> None:
    """Frames of one clip resemble each other: until there are enough clips the line of few ends far above that of many."""
    reference = Moments(10**9, np.zeros(64), 1.25 * np.eye(64))
    for n_clips, shuffles in ((32, 8), (64, 64), (128, 8)):
        x, clips = _alike_frames(1, n_clips)
        with pytest.raises(ValueError, match=rf"lie on no line .* {n_clips} clips are too few .* take kad"):
            frechet_infinity(x, reference, clips=clips, shuffles=shuffles)
    with pytest.raises(ValueError, match="lie on no line"):
        evaluate_infinity(x, reference, clips=clips)
    x, clips = _alike_frames(1, 400)
    found = frechet_infinity(x, reference, clips=clips, shuffles=8)
    assert abs(found.value) < 0.3 < 2 < found.scores[-1]
    assert found.foretold == pytest.approx(found.scores[-1], rel=0.05)


def test_an_extrapolation_needs_a_reference_that_has_a_distance() -> None:
    with pytest.raises(ValueError, match="8 dimensions needs at least 9 reference frames, got 8"):
        frechet_infinity(_set(46, 600, 8), _set(47, 8, 8))


def test_too_few_draws_give_an_extrapolation_no_interval() -> None:
    x, reference = _set(43, 512, 4), moments([_set(44, 900, 4)])
    for resamples, drawn in ((0, 0), (39, 0), (40, 40), (160, 40), (200, 50)):
        found = evaluate_infinity(x, reference, resamples=resamples)
        assert (found.resamples, np.isnan(found.low)) == (drawn, drawn == 0)
        assert found.value == frechet_infinity(x, reference).value
    unequal = np.concatenate([np.repeat(np.arange(4), 104), np.arange(4, 100)])  # a draw of one long clip has no quarters
    found = evaluate_infinity(_set(46, 512, 24), moments([_set(47, 900, 24)]), clips=unequal, resamples=160)
    assert np.isfinite(found.value) and 0 < found.resamples < 40 and np.isnan(found.low) and np.isnan(found.high)


def test_extrapolation_deals_whole_clips_each_once_by_seed() -> None:
    x, clips = _set(24, 600, 8), np.repeat(np.arange(120), 5)
    reference = moments([_set(25, 500, 8)])
    found = frechet_infinity(x, reference, clips=clips, seed=2)
    assert found.sizes == (150, 300, 600)
    assert found.scores[-1] == pytest.approx(frechet_distance(moments([x]), reference), rel=1e-6)  # everything, each row once
    assert frechet_infinity(x, reference, clips=clips, seed=2) == found
    assert frechet_infinity(x, reference, clips=clips, seed=3).scores[0] != found.scores[0]
    order = np.random.default_rng(0).permutation(600)  # frames of a clip may lie anywhere
    assert frechet_infinity(x[order], reference, clips=clips[order], seed=2).value == pytest.approx(found.value, rel=1e-6)


def test_the_bias_of_a_small_reference_is_not_taken_out() -> None:
    """Documented, and what would have to change if it were."""
    rng = np.random.default_rng(45)
    x, small, large = rng.normal(size=(4000, 16)), rng.normal(size=(100, 16)), rng.normal(size=(20_000, 16))
    assert abs(frechet_infinity(x, large).value) < 0.02 < 0.7 < frechet_infinity(x, small).value


def test_distance_per_clip_finds_the_odd_clip() -> None:
    rng = np.random.default_rng(26)
    clips = np.repeat(np.arange(10, 30), 8)
    frames = rng.normal(size=(160, 32))
    frames[clips == 17] += 2.0
    frames[clips == 21] *= 4.0
    reference = moments([rng.normal(size=(5000, 32))])
    found = frechet_per_clip(frames, clips, reference)
    assert found.shape == (20,)
    assert set(np.argsort(found)[-2:]) == {7, 11}
    order = rng.permutation(160)
    np.testing.assert_allclose(frechet_per_clip(frames[order], clips[order], reference), found, rtol=1e-9)


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3, 1.0])
def test_distance_per_clip_is_the_distance_to_shrunk_moments(shrinkage: float | None) -> None:
    rows, reference = _set(27, 6, 9), moments([_set(28, 100, 9, shift=1.0)])
    clip = moments([rows])
    weight = shrinkage_coefficient(rows - rows.mean(axis=0)) if shrinkage is None else shrinkage
    shrunk = (1 - weight) * clip.covariance + weight * np.trace(clip.covariance) / 9 * np.eye(9)
    expected = frechet_distance(Moments(6, clip.mean, shrunk), reference)
    assert frechet_per_clip(rows, [4] * 6, reference, shrinkage=shrinkage)[0] == pytest.approx(expected, rel=1e-6)


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    sklearn = pytest.importorskip("sklearn.covariance", reason="scikit-learn, the oracle, is not installed")
    for seed, (n, d) in enumerate([(5, 30), (40, 10), (300, 4)]):
        rows = _set(seed, n, d)
        assert shrinkage_coefficient(rows - rows.mean(axis=0)) == pytest.approx(sklearn.ledoit_wolf(rows)[1], rel=1e-9)


def test_a_silent_clip_has_no_covariance_and_still_a_distance() -> None:
    reference = moments([_set(29, 100, 3)])
    found = frechet_per_clip(np.zeros((4, 3)), [0, 0, 0, 0], reference)
    assert found[0] == pytest.approx(reference.mean @ reference.mean + np.trace(reference.covariance), rel=1e-9)


def test_refusals_teach() -> None:
    good = _set(30, 40, 4)
    bad = good.copy()
    bad[17, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 40 rows of generated features are not finite, the first of them row 17"):
        validate(bad, good)
    with pytest.raises(ValueError, match="row 17"):
        evaluate(lambda: iter([bad[:10], bad[10:]]), good, generated_clips=range(40))
    with pytest.raises(ValueError, match="generated features have 4 dimensions, the reference 3"):
        evaluate(good, good[:, :3])
    with pytest.raises(ValueError, match="needs at least 5 reference frames, got 4: .* take kad"):
        evaluate(good, good[:4])
    with pytest.raises(ValueError, match=r"at least 2 generated clips, got 1 \(with 40 rows\)"):
        evaluate(good, good, generated_clips=[0] * 40)
    with pytest.raises(ValueError, match="got \\(40,\\); one value per row"):
        validate(good[:, 0], good)
    with pytest.raises(ValueError, match="need generated_clips"):
        evaluate(lambda: iter([good]), good)
    with pytest.raises(ValueError, match="39 generated rows were named by generated_clips, 40 came"):
        evaluate(lambda: iter([good]), good, generated_clips=range(39))
    with pytest.raises(ValueError, match="needs 512 .* and 32 clips, got 40 frames of 40 clips: give about 512 clips"):
        frechet_infinity(good, moments([good]))
    many = _set(35, 600, 4)
    with pytest.raises(ValueError, match="needs 512 .* 32 clips, got 600 frames of 20 clips: give about 32 clips"):
        frechet_infinity(many, moments([good]), clips=np.repeat(np.arange(20), 30))
    with pytest.raises(ValueError, match="unequal lengths .* the longest holds 500 of 600; cut long clips"):
        frechet_infinity(many, moments([good]), clips=np.maximum(0, np.arange(600) - 499))
    with pytest.raises(ValueError, match="1 of 2 clips have a single frame .the first is clip 9"):
        frechet_per_clip(good[:3], [5, 5, 9], moments([good]))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        moments([good[:1]])


def test_equals_torchmetrics_on_the_same_features() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics, an oracle, is not installed")
    torch = pytest.importorskip("torch")
    a, b = moments([_set(31, 200, 16)]), moments([_set(32, 200, 16)])
    tensors = [torch.from_numpy(part) for m in (a, b) for part in (m.mean, m.covariance)]
    assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(*tensors)), rel=1e-6)


def test_equals_fadtk_on_the_same_features() -> None:
    fad = pytest.importorskip("fadtk.fad", reason="fadtk, an oracle, is not installed")
    a, b = moments([_set(33, 200, 16)]), moments([_set(34, 200, 16)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its scipy calls are deprecated
        theirs = fad.calc_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-6)
