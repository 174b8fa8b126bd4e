"""Search against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.search import join, nearest, self_join, top_k
from auscult.search.exact import DECIMALS


def brute_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    product = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    return np.round(product, DECIMALS)


def brute_top_k(queries, references, k, exclude, distinct, rank):
    similarity = brute_cosine(queries, references)
    index = np.full((len(queries), k), -1)
    for row in range(len(queries)):
        taken: list[int] = []
        groups: set[int] = set()
        for column in np.lexsort((rank, -similarity[row])):
            if exclude is not None and exclude[1][column] in exclude[0][row] and exclude[1][column] >= 0:
                continue
            if distinct is not None and distinct[column] in groups:
                continue
            groups.add(-1 if distinct is None else distinct[column])
            taken.append(column)
            if len(taken) == k:
                break
        index[row, : len(taken)] = taken
    return index


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    m=st.integers(1, 40),
    k=st.integers(1, 45),
    windows=st.booleans(),
    excluding=st.booleans(),
    copies=st.integers(0, 20),
)
@settings(deadline=None, max_examples=80)
def test_top_k_equals_brute_force(seed, n, m, k, windows, excluding, copies) -> None:
    rng = np.random.default_rng(seed)
    references = rng.standard_normal((m, 7)).astype(np.float32)
    references[rng.integers(0, m, copies)] = references[0]  # exact ties
    queries = np.concatenate([references[:1], rng.standard_normal((n, 7)).astype(np.float32)])
    exclude = (rng.integers(-1, 4, (n + 1, 2)), rng.integers(-1, 4, m)) if excluding else None
    distinct = rng.integers(0, 5, m) if windows else None
    rank = rng.permutation(m)
    found = top_k(queries, references, k=k, exclude=exclude, distinct=distinct, rank=rank)
    np.testing.assert_array_equal(found.index, brute_top_k(queries, references, k, exclude, distinct, rank))
    expected = np.take_along_axis(brute_cosine(queries, references), np.maximum(found.index, 0), 1)
    # both are float64 sums of seven products, taken in another order
    np.testing.assert_allclose(found.similarity[found.index >= 0], expected[found.index >= 0], atol=1e-11)
    assert np.isnan(found.similarity[found.index < 0]).all()


def test_near_ties_below_float32_are_ordered_as_in_float64() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(512)
    references = (base + 3e-5 * rng.standard_normal((400, 512))).astype(np.float32)
    queries = base[None].astype(np.float32)
    found = top_k(queries, references, k=10)
    np.testing.assert_array_equal(found.index, brute_top_k(queries, references, 10, None, None, np.arange(400)))


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_change_nothing(block, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 33)).astype(np.float32)
    whole_top, whole_join = top_k(x, x, k=7), self_join(x, threshold=0.2)
    monkeypatch.setattr(nearest, "QUERY_BLOCK", block)
    monkeypatch.setattr(join, "JOIN_ROWS", block)
    monkeypatch.setattr(join, "JOIN_COLUMNS", 2 * block + 1)
    np.testing.assert_array_equal(top_k(x, x, k=7).index, whole_top.index)
    np.testing.assert_array_equal(top_k(x, x, k=7).similarity, whole_top.similarity)
    joined = self_join(x, threshold=0.2)
    for name in ("first", "second", "similarity"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole_join, name))


def test_order_of_references_changes_nothing_but_their_numbers() -> None:
    rng = np.random.default_rng(2)
    references = rng.standard_normal((60, 9)).astype(np.float32)
    references[10:20] = references[5]
    queries = rng.standard_normal((8, 9)).astype(np.float32)
    order = rng.permutation(60)
    plain = top_k(queries, references, k=12, rank=np.arange(60))
    shuffled = top_k(queries, references[order], k=12, rank=np.arange(60)[order])
    np.testing.assert_array_equal(order[shuffled.index], plain.index)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), threshold=st.floats(-0.9, 0.95))
@settings(deadline=None, max_examples=60)
def test_self_join_equals_brute_force(seed, n, threshold) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    x[rng.integers(0, n, n // 4)] = x[0]
    bias = rng.uniform(-0.1, 0.3, n)
    groups = rng.integers(0, 20, n)
    similarity = brute_cosine(x, x)
    wanted = np.triu((similarity - np.maximum(bias[:, None], bias[None]) > threshold) & (groups[:, None] != groups[None]), 1)
    pairs = self_join(x, threshold=threshold, bias=bias, groups=groups)
    np.testing.assert_array_equal(np.stack([pairs.first, pairs.second], 1), np.argwhere(wanted))


def test_empty_sets() -> None:
    nothing, something = np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)
    assert top_k(nothing, something, k=3).index.shape == (0, 3)
    assert (top_k(something, nothing, k=3).index == -1).all()
    assert len(self_join(nothing, threshold=0.5).first) == 0


def test_bad_arguments_are_named() -> None:
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="k should be"):
        top_k(x, x, k=0)
    with pytest.raises(ValueError, match="expected"):
        top_k(x, x[:, :3], k=1)
    with pytest.raises(ValueError, match="zero or not finite"):
        top_k(np.zeros((1, 4), np.float32), x, k=1)
