"""Approximate search: what it lists is exact, what it misses is measured, and settings that miss nothing miss nothing."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from auscult.search import top_k
from auscult.search.approximate import FEWEST_ROWS, Hnsw, Ivf, prepare_approximate
from auscult.search.backends import FaissExact
from auscult.search.blocks import Block, as_blocks, load_all
from auscult.search.exact import rounding_bound, unit_rows
from auscult.search.recall import Share, approximate_top_k, plant, searched

SMALL = Ivf(lists=40, probes=40)


@pytest.fixture(scope="module")
def clustered() -> np.ndarray:
    """6,000 rows in 30 heaps whose rows are far closer to each other than to other heaps."""
    rng = np.random.default_rng(0)
    heaps = rng.standard_normal((30, 24))
    return (heaps[rng.integers(0, 30, 6000)] + 0.3 * rng.standard_normal((6000, 24))).astype(np.float32)


@pytest.fixture(scope="module")
def even() -> np.ndarray:
    """6,000 rows without any structure that an index could use."""
    return np.random.default_rng(1).standard_normal((6000, 24)).astype(np.float32)


def same(one, other) -> None:
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.similarity, other.similarity)


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_every_list_probed_is_exact_search(even, storage) -> None:
    groups = np.arange(6000) // 3
    options = {"k": 6, "exclude": (groups[:100], groups), "distinct": groups, "rank": np.arange(6000)[::-1]}
    prepare = Ivf(lists=40, probes=40, storage=storage)
    same(top_k(even[:100], even, **options, prepare=prepare), top_k(even[:100], even, **options))
    _, recall = approximate_top_k(even[:300], even, k=6, prepare=prepare, each=10, sample=64)
    assert recall.overall.found == recall.overall_exact.found
    assert (recall.first.share, recall.listed.share) == (1.0, 1.0)
    assert (recall.first.asked, recall.listed.asked) == (64, 64 * 6)


@pytest.mark.parametrize("prepare", [Ivf(lists=40, probes=4), Hnsw(build_breadth=40)])
def test_what_is_listed_is_exact(clustered, prepare) -> None:
    found, exact = top_k(clustered[:200], clustered, k=5, prepare=prepare), top_k(clustered[:200], clustered, k=5)
    assert (found.similarity <= exact.similarity).all()  # nothing is closer than it is
    equal = found.index == exact.index
    assert equal.mean() > 0.9
    np.testing.assert_array_equal(found.similarity[equal], exact.similarity[equal])


def test_a_broken_index_shows_low_recall(even) -> None:
    """One list of 400 looked into: unrelated rows are about as far from every center, so what was moved a little is gone."""
    _, recall = approximate_top_k(even[:100], even, k=5, prepare=Ivf(lists=400, probes=1), each=40)
    by_strength = {(part.kind, part.strength): part for part in recall.planted}
    weak, strong = by_strength["mix", 0.1], by_strength["mix", 0.4]
    assert weak.exact.share == strong.exact.share == 1.0
    assert weak.approximate.share > 0.8 and strong.approximate.share < 0.7
    assert strong.similarity < weak.similarity
    assert recall.overall.high < 0.95
    assert recall.first.share == 1.0  # a row that is there itself lies in the list that is looked into
    assert recall.listed.share < 0.5
    assert f"of {recall.overall.asked} planted copies it found {recall.overall.found}".lower() in recall.sentence().lower()


def test_recall_is_the_share_that_is_found(even) -> None:
    """Counted again by hand from the planted copies and the search alone."""
    prepare = Ivf(lists=100, probes=2)
    planted = plant(even, each=30, seed=5)
    found = top_k(planted.queries, even, k=3, prepare=prepare)
    hit = (found.index == planted.source[:, None]).any(1)
    _, recall = approximate_top_k(even[:20], even, k=3, prepare=prepare, each=30, seed=5)
    assert recall.overall.found == hit.sum()
    assert [part.approximate.found for part in recall.planted] == [hit[planted.strength == s].sum() for s in range(6)]
    for number in range(len(planted.source)):
        one, other = planted.queries[number].astype(np.float64), even[planted.source[number]].astype(np.float64)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert abs(cosine - planted.similarity[number]) < 1e-5  # float32


def test_a_search_with_its_recall_is_the_search(clustered) -> None:
    groups = np.arange(6000) // 2
    queries = clustered[:150]
    options = {"k": 4, "exclude": (groups[:150], groups), "distinct": groups, "prepare": Ivf(lists=40, probes=2)}
    found, recall = approximate_top_k(queries, as_blocks(clustered, 5000), **options, each=5)
    same(found, top_k(queries, as_blocks(clustered, 5000), **options))
    assert json.loads(json.dumps(recall.to_json()))["planted"][0]["kind"] == "mix"


@pytest.mark.parametrize("prepare", [Ivf(lists=60, probes=3, seed=3), Hnsw(build_breadth=40, search_breadth=16)])
def test_runs_repeat_whatever_the_threads(even, prepare) -> None:
    results = []
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            results.append(top_k(even[:200], even, k=5, prepare=pickle.loads(pickle.dumps(prepare))))
    for other in results[1:]:
        same(other, results[0])
    assert (results[0].index != top_k(even[:200], even, k=5).index).any()  # or nothing was approximate here


def test_few_rows_are_searched_exactly(even) -> None:
    few, _ = unit_rows(even[: FEWEST_ROWS - 1])
    for prepare in (Ivf(), Hnsw(), Ivf(lists=len(few) + 1)):
        assert isinstance(prepare(few), FaissExact)
    assert not Ivf()(unit_rows(even)[0]).exhaustive
    found = top_k(even[:5], even[:30], k=40, prepare=Ivf())
    same(found, top_k(even[:5], even[:30], k=40))


def test_nothing_is_said_of_a_search_that_was_exact(even) -> None:
    few = as_blocks(even, FEWEST_ROWS - 1)
    for method in ("ivf", "hnsw", "exact"):
        found, recall = searched(method, even[:5], few, measure=True, k=3)
        assert recall is None
        same(found, top_k(even[:5], even, k=3))
    blocks = [*as_blocks(even[: FEWEST_ROWS - 1]), *as_blocks(even)]
    blocks[1] = Block(FEWEST_ROWS - 1, FEWEST_ROWS - 1 + len(even), blocks[1].load)
    for references, measure in ((even, True), (blocks, True), (even, False)):  # one block with an index is enough
        assert (searched("ivf", even[:5], references, measure=measure, k=3)[1] is not None) == measure
    assert "p-values may then be too small" in searched("ivf", even[:5], even, measure=True, k=3)[1].sentence()


def test_no_blocks_are_no_rows() -> None:
    assert load_all(()).shape == (0, 0)


def test_fewer_found_than_asked_for_is_shown(even) -> None:
    found = top_k(even[:50], even, k=200, prepare=Ivf(lists=400, probes=1))
    assert (found.index[:, -1] == -1).any() and np.isnan(found.similarity[found.index < 0]).all()
    assert (found.index[:, 0] == np.arange(50)).all()


@pytest.mark.parametrize("make", [Ivf(lists=20, probes=20), Hnsw(build_breadth=40)])
def test_rough_values_are_within_the_slack(even, make) -> None:
    units, _ = unit_rows(even * np.geomspace(1e-3, 1, 24, dtype=np.float32))
    backend = make(units)
    rough, row = backend.nearest(units[:100], 10)
    assert row.shape == (100, 40)
    exact = np.einsum("nd,ncd->nc", units[:100].astype(np.float64), units[row].astype(np.float64))
    error = np.abs(rough - exact).max()
    assert rounding_bound(24) / 10 < error <= backend.slack < 1e-3


@given(asked=st.integers(1, 400), data=st.data())
@settings(deadline=None, max_examples=50)
def test_intervals_are_scipys(asked, data) -> None:
    found = data.draw(st.integers(0, asked))
    share, expected = Share.of(found, asked), binomtest(found, asked).proportion_ci(0.95, "exact")
    assert 0 <= expected.low - share.low <= 1.01e-4 and 0 <= share.high - expected.high <= 1.01e-4


def test_settings_of_any_size_are_those_stated() -> None:
    for rows in (FEWEST_ROWS, 10**5, 10**7):
        lists, probes = Ivf().chosen(rows)
        assert abs(lists - min(2 * rows**0.5, rows / 39)) <= 1 and probes == max(lists // 16, 16)
    assert Ivf(lists=10).chosen(10**6) == (10, 10) and Ivf(lists=4).chosen(10**6) == (4, 4)


def test_bad_arguments_are_named(even) -> None:
    with pytest.raises(ValueError, match="unknown search 'lsh'; there are: exact, ivf, hnsw"):
        prepare_approximate("lsh")
    assert prepare_approximate("exact") is FaissExact
    for kind, name, value in ((Ivf, "lists", 0), (Ivf, "probes", 0), (Ivf, "fetch", 0), (Hnsw, "links", 1), (Hnsw, "fetch", 0)):
        with pytest.raises(ValueError, match=f"{name} should be"):
            kind(**{name: value})
    with pytest.raises(ValueError, match="storage should be"):
        Ivf(storage="int8")
    with pytest.raises(ValueError, match=r"expected queries \(n, 24\)"):
        SMALL(unit_rows(even)[0]).nearest(even[:2, :5].copy(), 1)
    with pytest.raises(ValueError, match=r"expected queries \(n, 24\) as the references, got \(2, 5\)"):
        approximate_top_k(even[:2, :5], even, k=1, prepare=SMALL)
    with pytest.raises(ValueError, match="a strength should be"):
        plant(even, strengths=[("mix", 0.5)])
    with pytest.raises(ValueError, match="got 0 references"):
        plant(even[:0])


def test_no_queries(even) -> None:
    found, recall = approximate_top_k(even[:0], even, k=2, prepare=SMALL, each=2)
    assert found.index.shape == (0, 2) and recall.first.share is None and "none asked" in recall.sentence()
