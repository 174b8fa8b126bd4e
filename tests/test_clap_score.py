"""CLAP score: cosines by hand, windows, the shuffled bracket, intervals, and what does not belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine

from auscult.metrics.clap_score import evaluate, scores, validate
from auscult.metrics.intervals import derangement


def _pairs(seed: int, n: int = 60, d: int = 16, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n, d))
    return text, text + noise * rng.normal(size=(n, d))


def test_by_hand() -> None:
    text, audio = [[1.0, 0.0], [3.0, 4.0]], [[5.0, 0.0], [0.0, 2.0], [1.0, 0.0], [-6.0, -8.0]]
    found = scores(text, audio, clips=[0, 0, 1, 1])
    assert found == pytest.approx([(1 + 0) / 2, (0.6 - 1) / 2], abs=1e-12)


def test_equals_scipys_cosine_window_by_window() -> None:
    text, _ = _pairs(0, 10)
    rng = np.random.default_rng(1)
    clips = rng.permutation(np.concatenate([np.arange(10), rng.integers(0, 10, 25)]))
    audio = rng.normal(size=(35, 16))
    expected = [np.mean([1 - cosine(text[i], audio[j]) for j in np.flatnonzero(clips == i)]) for i in range(10)]
    np.testing.assert_allclose(scores(text, audio, clips=clips), expected, rtol=1e-10)


@given(st.integers(0, 2**31), st.floats(1e-150, 1e150))
def test_lengths_do_not_matter_and_scores_stay_in_range(seed: int, length: float) -> None:
    text, audio = _pairs(seed, 5, 3)
    np.testing.assert_allclose(scores(text * length, audio / length), scores(text, audio), rtol=1e-9, atol=1e-12)
    assert np.all(np.abs(scores(text, text * length)) <= 1)
    assert scores(text, text) == pytest.approx(1, abs=1e-12) and scores(text, -text) == pytest.approx(-1, abs=1e-12)


def test_order_of_windows_and_of_pairs_changes_nothing() -> None:
    text, audio = _pairs(2)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(scores(text[order], audio[order]), scores(text, audio)[order])
    np.testing.assert_allclose(scores(text, audio[order], clips=order), scores(text, audio))


def test_matching_captions_beat_shuffled_ones_which_are_worth_nothing() -> None:
    text, audio = _pairs(3, 400)
    found = evaluate(text, audio)
    assert found.value == pytest.approx(1 / math.sqrt(2), abs=0.05)  # as much noise as caption
    wrong = text[derangement(len(text), seed=0)]
    assert abs(evaluate(wrong, audio).value) < 0.05 < found.low


def test_interval_is_that_of_a_mean_over_clips() -> None:
    text, audio = _pairs(4, 200)
    clips = np.repeat(np.arange(200), 5)
    found = evaluate(text, audio.repeat(5, axis=0), clips=clips)
    error = scores(text, audio).std() / math.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert found.low < found.value < found.high
    assert found == evaluate(text, audio.repeat(5, axis=0), clips=clips)
    assert math.isnan(evaluate(text, audio, resamples=0).low)


def test_a_handful_of_clips_has_no_interval() -> None:
    """Of one clip it would have no width, of five it would miss the median in one sample of sixteen."""
    text, audio = _pairs(5, 6)
    for count in (1, 2, 5):
        few = evaluate(text[:count], audio[:count])
        assert few.value == pytest.approx(scores(text, audio)[:count].mean())
        assert math.isnan(few.low) and math.isnan(few.high)
    assert evaluate(text, audio).low < evaluate(text, audio).value < evaluate(text, audio).high


def test_refusals_teach() -> None:
    text, audio = _pairs(5, 6)
    empty, broken = audio.copy(), audio.copy()
    empty[3] = 0
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="got 6 captions and 5 clips: pair them by a manifest"):
        evaluate(text, audio[:5])
    with pytest.raises(ValueError, match="row 3 of the audio embeddings is all zeros .1 of 6 are."):
        scores(text, empty)
    with pytest.raises(ValueError, match="row 3 of the text embeddings is all zeros"):
        scores(empty, audio)
    with pytest.raises(ValueError, match="audio features are not finite, the first of them row 2"):
        scores(text, broken)
    with pytest.raises(ValueError, match="text embeddings have 15 dimensions, audio embeddings 16"):
        validate(text[:, 1:], audio)
    with pytest.raises(ValueError, match="1 of 6 captions have no audio, the first of them row 4"):
        validate(text, audio, [0, 1, 2, 3, 5, 5])
    with pytest.raises(ValueError, match="rows of the 6 captions, 0 to 5, got 1 to 6"):
        validate(text, audio, [1, 2, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="the caption's row for each of 6 windows"):
        validate(text, audio, [0, 1])
    with pytest.raises(ValueError, match="at least 2 pairs to shuffle, got 1"):
        derangement(1, seed=0)
