"""The self-join that prunes, against brute force in float64, on data made to break its bound."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.engine import HERE, Engine
from auscult.search import Pairs, checkpoint, join, self_join, sketch
from auscult.search.blocks import Block
from auscult.search.exact import DECIMALS
from auscult.search.panels import as_panels
from auscult.search.sketch import Basis, choose_basis, principal_directions

DIMENSION = 24
FAMILIES = ("spectra", "isotropic", "heavy", "outside", "repeated", "hub", "near")


def make_rows(family: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (n, 24) float32 of norms over four decades."""
    low = rng.standard_normal((n, 3)) @ rng.standard_normal((3, DIMENSION))
    noise = rng.standard_normal((n, DIMENSION))
    if family == "spectra":  # most energy in few directions
        rows = low + 0.1 * noise
    elif family == "isotropic":  # nothing to prune by
        rows = noise
    elif family == "heavy":  # single values dominate a row
        rows = rng.standard_t(1, (n, DIMENSION))
    elif family == "outside":  # half of the rows are orthogonal to what the other half spans: their sketch is nearly all rest
        rows = low.copy()
        rows[:, DIMENSION // 2 :] = 0
        rows[::2] = 0
        rows[::2, DIMENSION // 2 :] = noise[::2, DIMENSION // 2 :] * 0.1 + 1e-6
    elif family == "repeated":  # few different rows
        rows = low[rng.integers(0, max(n // 8, 1), n)]
    elif family == "hub":  # some rows are close to many
        rows = low + 0.1 * noise
        rows[: n // 3] = low[:1] + 0.02 * noise[: n // 3]
    else:  # cosines that differ by 1e-7 and less
        rows = low[:1] + 3e-4 * noise
    return (rows * 10 ** rng.uniform(-2, 2, (n, 1))).astype(np.float32)


def brute(x: np.ndarray, threshold: float, bias: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (p, 2), and all similarities."""
    wide = x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    similarity = np.round(wide @ wide.T, DECIMALS)
    wanted = similarity - np.maximum(bias[:, None], bias) > threshold
    if groups is not None:
        wanted &= groups[:, None] != groups
    return np.argwhere(np.triu(wanted, 1)), similarity


@pytest.fixture
def pruning(monkeypatch) -> None:
    """Prune whatever it costs, in tiles and panels so small that few rows have several of each."""
    for module, name, value in (
        (join, "PRUNE_ROWS", 2),
        (join, "BOUND_ROWS", 7),
        (join, "BOUND_COLUMNS", 11),
        (join, "PANEL_ROWS", 29),
        (join, "GATHER", 1),  # so that even the smallest tile is computed as a product if it has many
        (sketch, "GAIN", 1e9),
        (sketch, "SIZES", (1, 3, 6)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def pairwise(pruning, monkeypatch) -> None:
    """And compute what is left one by one, never as a product."""
    monkeypatch.setattr(join, "GATHER", 10**9)


def same(one: Pairs, other: Pairs) -> None:
    for name in ("first", "second", "similarity"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def without_bound(x, **options) -> Pairs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "PRUNE_ROWS", 10**9)
        return self_join(x, **options)


# --- the pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pruning", "pairwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_equals_brute_force_at_every_threshold(family, how, request) -> None:
    request.getfixturevalue(how)
    rng = np.random.default_rng(FAMILIES.index(family))
    for n in (2, 30, 90):
        x = make_rows(family, n, rng)
        bias = np.zeros(n)
        similarity = brute(x, 0.0, bias)[1][np.triu_indices(n, 1)]
        # at a pair's own similarity it is out, and in with the threshold just below: by the last of the 12 decimals
        levels = rng.choice(similarity, 4)
        for threshold in (*levels, *(levels - 10.0**-DECIMALS), *(levels - 1e-7), *(levels + 1e-7), -0.5, -1.0, 0.99):
            pairs = self_join(x, threshold=threshold)
            # the oracle sums in another order: a pair within 2e-12 of the threshold may fall on either side there, so those
            # are judged by brute force in the same arithmetic, below
            clear = np.abs(brute(x, threshold, bias)[1] - threshold) > 2e-12
            wanted = brute(x, threshold, bias)[0]
            wanted = wanted[clear[wanted[:, 0], wanted[:, 1]]]
            found = np.stack([pairs.first, pairs.second], 1)
            np.testing.assert_array_equal(found[clear[pairs.first, pairs.second]], wanted)
            same(pairs, without_bound(x, threshold=threshold))


@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    n=st.integers(2, 80),
    threshold=st.floats(-1.0, 1.0),
    scale=st.sampled_from([0.0, 0.05, 1.0, 1e3, 1e8]),
    grouped=st.booleans(),
    gather=st.sampled_from([1, 10**9]),
)
@settings(deadline=None, max_examples=60)
def test_pruned_equals_brute_force_with_biases_of_all_sizes(family, seed, n, threshold, scale, grouped, gather) -> None:
    rng = np.random.default_rng(seed)
    x = make_rows(family, n, rng)
    bias = rng.standard_normal(n) * scale
    groups = rng.integers(0, n, n) if grouped else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "PRUNE_ROWS", 2)
        patch.setattr(join, "BOUND_ROWS", 7)
        patch.setattr(join, "PANEL_ROWS", 29)
        patch.setattr(join, "GATHER", gather)
        patch.setattr(sketch, "GAIN", 1e9)
        patch.setattr(sketch, "SIZES", (1, 3, 6))
        pairs = self_join(x, threshold=threshold, bias=bias, groups=groups)
    same(pairs, without_bound(x, threshold=threshold, bias=bias, groups=groups))
    wanted, similarity = brute(x, threshold, bias, groups)
    np.testing.assert_array_equal(np.stack([pairs.first, pairs.second], 1), wanted)
    np.testing.assert_allclose(pairs.similarity, similarity[pairs.first, pairs.second], rtol=0, atol=2e-12)
    assert 0 <= pairs.pruned <= 1


def test_infinite_biases_forbid_and_allow(pruning) -> None:
    x = make_rows("spectra", 40, np.random.default_rng(0))
    bias = np.where(np.arange(40) < 20, np.inf, -np.inf)
    pairs = self_join(x, threshold=0.5, bias=bias)
    assert len(pairs.first) == 20 * 19 // 2
    assert pairs.first.min() == 20


def test_all_computed_where_all_count_and_none_where_none_can(pruning) -> None:
    x = make_rows("spectra", 90, np.random.default_rng(1))
    everything = self_join(x, threshold=-2.0)
    assert (len(everything.first), everything.pruned) == (90 * 89 // 2, 0.0)
    assert self_join(x, threshold=1.1).pruned == 1.0


# --- blocks and engines -----------------------------------------------------------------------------------------------


class Elsewhere(Engine):
    """Sends every job and result through a pickle, and has hardly any memory."""

    def __post_init__(self) -> None:
        """No least memory."""

    def map(self, function, jobs, *, threads=1):
        sent = pickle.dumps(function)
        for job in jobs:
            yield pickle.loads(pickle.dumps(pickle.loads(sent)(pickle.loads(pickle.dumps(job)))))


def _half_load(x: np.ndarray) -> np.ndarray:
    return x.copy()


def in_blocks(x: np.ndarray, edges: list[int]) -> list[Block]:
    edges = [0, *edges, len(x)]
    return [Block(a, b, partial(_half_load, x[a:b])) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("prune", [True, False])
def test_blocks_and_engine_change_nothing(dtype, prune, request) -> None:
    if prune:
        request.getfixturevalue("pruning")
    rng = np.random.default_rng(3)
    x = (make_rows("hub", 100, rng) * 0.1).astype(dtype)
    options = {"threshold": 0.8, "bias": rng.uniform(0, 0.1, 100), "groups": rng.integers(0, 60, 100)}
    whole = without_bound(x.astype(np.float32), **options)
    assert len(whole.first) > 100
    for engine in (HERE, Elsewhere(memory_bytes=1 << 20), Elsewhere(memory_bytes=1000)):
        for edges in ([], [50], [1, 2, 3, 64], list(range(10, 100, 10)), [40, 40]):
            pairs = self_join(in_blocks(x, edges), engine=engine, **options)
            same(pairs, whole)
            assert (pairs.pruned > 0.3) == prune
        same(self_join(x, engine=engine, **options), whole)


def test_panels_keep_to_the_memory() -> None:
    calls: list[int] = []

    def load(start: int) -> np.ndarray:
        calls.append(start)
        return np.ones((10, 1000), np.float32)

    blocks = [Block(start, start + 10, partial(load, start)) for start in range(0, 200, 10)]
    engine = Elsewhere(memory_bytes=2 * 2 * 8 * 1000 * 45)  # 45 rows in each of two panels, in half of it
    rows = partial(join._panel_rows, engine)
    panels = as_panels(blocks, rows)
    assert calls == [0]  # to know the dimension
    assert [len(panel) for panel in panels] == [40] * 5
    assert panels[1].load().shape == (40, 1000)
    assert [len(panel) for panel in as_panels(np.ones((100, 1000), np.float32), rows)] == [45, 45, 10]


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int, str]] = []
    x = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    self_join(x, threshold=2.0, progress=lambda *state: seen.append(state))
    assert seen[-1] == (7_998_000, 7_998_000, "pairs compared")  # 4000 * 3999 / 2


# --- across sets ----------------------------------------------------------------------------------------------------


def across(pairs: Pairs, sides: np.ndarray) -> Pairs:
    keep = sides[pairs.first] != sides[pairs.second]
    return Pairs(pairs.first[keep], pairs.second[keep], pairs.similarity[keep])


@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    n=st.integers(1, 80),
    count=st.sampled_from([1, 2, 3, 80]),
    contiguous=st.booleans(),
    threshold=st.floats(-1.0, 1.0),
    prune=st.booleans(),
    gather=st.sampled_from([1, 10**9]),
)
@settings(deadline=None, max_examples=80)
def test_pairs_across_sides_are_those_of_the_full_join(family, seed, n, count, contiguous, threshold, prune, gather) -> None:
    rng = np.random.default_rng(seed)
    x, bias, groups = make_rows(family, n, rng), rng.standard_normal(n) * 0.1, rng.integers(0, n, n)
    sides = rng.integers(0, count, n) * 7 - 3  # any numbers
    sides = np.sort(sides) if contiguous else sides
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (join, "PRUNE_ROWS", 2 if prune else 10**9),
            (join, "BOUND_ROWS", 7),
            (join, "BOUND_COLUMNS", 11),
            (join, "JOIN_ROWS", 5),
            (join, "JOIN_COLUMNS", 9),
            (join, "PANEL_ROWS", 29),
            (join, "GATHER", gather),
            (sketch, "GAIN", 1e9),
            (sketch, "SIZES", (1, 3, 6)),
        ):
            patch.setattr(module, name, value)
        options = {"threshold": threshold, "bias": bias, "groups": groups}
        found = self_join(x, **options, sides=sides, progress=lambda done, total, what: seen.extend([done, total]))
        same(found, across(self_join(x, **options), sides))
        # every pair asked for is above -3, and each is computed once at most
        assert self_join(x, threshold=-3.0, sides=sides).pruned == 0.0
        assert 0 <= found.pruned <= 1
    wanted = int(np.triu(sides[:, None] != sides, 1).sum())
    assert seen[::2] == sorted(seen[::2]) and set(seen[1::2]) <= {wanted}
    assert seen[-2:] == [wanted, wanted][: 2 * (wanted > 0)]


def test_sides_that_are_told_apart_are_not_compared_with_themselves(monkeypatch) -> None:
    monkeypatch.setattr(join, "PANEL_ROWS", 20)
    computed: list[int] = []
    part = join._Found.part
    monkeypatch.setattr(join._Found, "part", lambda self: (computed.append(self.computed), part(self))[1])
    x = make_rows("spectra", 100, np.random.default_rng(0))
    self_join(x, threshold=0.9, sides=(np.arange(100) >= 90).astype(np.int64))
    assert computed == [200, 200, 200, 200, 100]  # four panels with the last, and that within itself
    computed.clear()
    monkeypatch.setattr(join, "PANEL_ROWS", 100)
    monkeypatch.setattr(join, "JOIN_ROWS", 10)
    monkeypatch.setattr(join, "JOIN_COLUMNS", 10)
    products: list[int] = []
    multiply = join._Found.multiply
    monkeypatch.setattr(join._Found, "multiply", lambda self, *ends: (products.append(1), multiply(self, *ends))[1])
    self_join(x, threshold=0.9, sides=(np.arange(100) >= 90).astype(np.int64))
    assert (computed, len(products)) == ([900], 9)


# --- searches that go on ----------------------------------------------------------------------------------------------


class _StoppedError(Exception):
    pass


def stop_after(steps: int) -> Callable[[int, int, str], None]:
    left = iter(range(steps))

    def progress(done: int, total: int, what: str) -> None:
        if next(left, None) is None:
            raise _StoppedError

    return progress


@pytest.fixture
def kept(monkeypatch, tmp_path) -> Engine:
    """An engine that keeps the state of joins after every step, of panels of 7 rows."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(join, "PANEL_ROWS", 7)
    return replace(HERE, scratch=tmp_path / "scratch")


def test_each_join_goes_on_from_its_own_state(kept) -> None:
    rng = np.random.default_rng(0)
    one, other = make_rows("hub", 21, rng), make_rows("hub", 21, rng)
    for x, name in ((one, "one"), (other, "other")):
        with pytest.raises(_StoppedError):
            self_join(x, threshold=0.9, bias=np.zeros(21), groups=np.arange(21), engine=kept, name=name, progress=stop_after(2))
    assert sorted(path.name for path in kept.scratch.iterdir()) == ["one.npz", "other.npz"]
    steps: list[tuple[int, int, str]] = []
    for x, name in ((one, "one"), (other, "other")):
        again = self_join(x, threshold=0.9, engine=kept, name=name, progress=lambda *state: steps.append(state))
        same(again, self_join(x, threshold=0.9))
        assert len(again.first) > 10
    assert len(steps) == 6  # three of six pairs of panels for each


def test_a_join_without_a_name_keeps_and_believes_nothing(kept) -> None:
    x = make_rows("hub", 21, np.random.default_rng(0))
    same(self_join(x, threshold=0.9, groups=np.arange(21), engine=kept), self_join(x, threshold=0.9))
    assert not kept.scratch.exists()


def test_a_state_made_with_other_panels_is_not_believed(kept, monkeypatch) -> None:
    x = np.random.default_rng(0).standard_normal((21, 8)).astype(np.float32)
    x[8], x[6] = x[0], x[4]
    with pytest.raises(_StoppedError):  # 21 pairs, as those of the first 3 rows with themselves and the next 3, and so on
        self_join(x, threshold=0.99, engine=kept, name="join", progress=stop_after(0))
    assert (kept.scratch / "join.npz").is_file()
    monkeypatch.setattr(join, "PANEL_ROWS", 3)
    found = self_join(x, threshold=0.99, engine=kept, name="join")
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 8), (4, 6)]


def test_a_damaged_state_is_as_none(tmp_path: Path) -> None:
    """Cut anywhere, and changed anywhere: what comes back is what was kept, or nothing, and never an error."""
    rng = np.random.default_rng(0)
    path, stops = tmp_path / "state.npz", [5, 10]
    arrays = {"first": np.arange(9), "similarity": np.linspace(0, 1, 9), "none": np.zeros(0, np.int64)}
    empty = {name: array[:0] for name, array in arrays.items()}
    checkpoint.Checkpoint(path, stops, layout=[3, 5]).keep(2, arrays)
    whole = path.read_bytes()

    def restored(content: bytes) -> int:
        path.write_bytes(content)
        done, found = checkpoint.Checkpoint(path, stops, layout=[3, 5]).restore(empty)
        for name, array in (arrays if done else empty).items():
            np.testing.assert_array_equal(found[name], array)
        return done

    assert restored(whole) == 2
    # before there was a digest, some of these raised EOFError, RuntimeError or zlib.error, or gave 8 of the 9 rows
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= (0x01, 0x08, 0xFF, int(rng.integers(1, 256)))[int(rng.integers(4))]
        assert restored(bytes(damaged)) == 0
    for end in (*range(0, 100, 3), *rng.integers(0, len(whole), 50)):
        assert restored(whole[:end]) == 0
    for content in (b"garbage", whole[:-32], whole + b"\0", rng.bytes(500)):
        assert restored(content) == 0
    path.write_bytes(whole)
    for other in (checkpoint.Checkpoint(path, stops), checkpoint.Checkpoint(path, [5, 11], layout=[3, 5])):
        assert other.restore(empty)[0] == 0
    assert checkpoint.Checkpoint(path, stops, layout=[3, 5]).restore({"other": np.zeros(0)})[0] == 0


# --- the bound ------------------------------------------------------------------------------------------------------


def _random_basis(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((DIMENSION, size)))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_bound_is_never_below_the_cosine(family) -> None:
    rng = np.random.default_rng(10 + FAMILIES.index(family))
    for size in (1, 5, DIMENSION - 1, DIMENSION):
        x = make_rows(family, 200, rng)
        x[::7] = x[3]  # equal rows: the bound is 1, and below it before the slack, by rounding
        directions: Callable[[np.ndarray], np.ndarray]
        for directions in (_random_basis(rng, size), principal_directions(x / np.linalg.norm(x, axis=1, keepdims=True), size)):
            for off in (0.0, 1e-9):  # not quite orthonormal
                basis = Basis(directions + off * rng.standard_normal(directions.shape))
                columns = basis.sketch(x).columns
                bound = columns @ columns.T + np.float32(basis.slack)
                assert (bound >= brute(x, 0.0, np.zeros(200))[1]).all()


def test_bound_is_tight_in_the_directions_and_the_slack_small() -> None:
    rng = np.random.default_rng(5)
    basis = Basis(_random_basis(rng, 6))
    inside = (rng.standard_normal((50, 6)) @ basis.directions.T).astype(np.float32)
    columns = basis.sketch(inside).columns
    # rows that lie in the directions up to their rounding to float32 (6e-8 of each value) have a rest of that length
    np.testing.assert_allclose(columns @ columns.T, brute(inside, 0.0, np.zeros(50))[1], atol=1e-6)
    assert Basis(np.eye(1712)[:, :63]).slack < 6e-6


def test_directions_that_prove_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        Basis(np.ones((4, 2)))
    with pytest.raises(ValueError, match="orthonormal"):
        Basis(np.full((4, 2), np.nan))


def test_principal_directions_are_those_of_the_moment() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((400, 40)) * np.geomspace(10, 0.01, 40)
    units = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    found = principal_directions(units, 5)
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-12)
    held = np.square(units @ found).sum()
    best = np.linalg.eigvalsh(units.T.astype(np.float64) @ units)[-5:].sum()
    assert held > 0.999 * best  # subspace iteration, two rounds
    assert principal_directions(np.repeat(units[:2], 50, axis=0), 5).shape == (40, 2)  # no more than there are


# --- the choice -----------------------------------------------------------------------------------------------------


def test_the_bound_is_used_where_it_pays_and_not_where_it_cannot() -> None:
    rng = np.random.default_rng(7)
    low = rng.standard_normal((900, 10)) @ rng.standard_normal((10, 400))
    noise = rng.standard_normal((900, 400))
    level = np.full(900, 0.9)
    basis = choose_basis((low + 0.1 * noise).astype(np.float32), level, 100_000)
    assert basis is not None
    assert basis.directions.shape == (400, 15)
    assert choose_basis(noise.astype(np.float32), np.full(900, 0.3), 100_000) is None
    assert choose_basis((low + 0.1 * noise).astype(np.float32), np.full(900, -0.9), 100_000) is None  # all pairs count
    assert choose_basis(np.repeat(low[:1], 900, axis=0).astype(np.float32), level, 100_000) is None  # all are equal
    assert choose_basis(low[:, :30].astype(np.float32), level, 100_000) is None  # a product of 30 columns is cheap as it is


def test_a_part_that_the_sample_misjudged_costs_a_product_not_a_fetch_each(pruning, monkeypatch) -> None:
    rng = np.random.default_rng(8)
    x = make_rows("spectra", 400, rng)
    x[100:200] = make_rows("near", 100, rng)  # 4,950 pairs that all survive
    fetched: list[int] = []
    fetch = join._Found.fetch
    monkeypatch.setattr(join._Found, "fetch", lambda self, row, column: (fetched.append(len(row)), fetch(self, row, column))[1])
    pairs = self_join(x, threshold=0.9999)
    same(pairs, without_bound(x, threshold=0.9999))
    assert len(pairs.first) >= 4950
    assert sum(fetched) < 1000


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune", [True, False])
def test_bad_rows_are_named_with_their_panel(prune, request) -> None:
    if prune:
        request.getfixturevalue("pruning")
    x = make_rows("spectra", 60, np.random.default_rng(0))
    x[41] = 0
    with pytest.raises(ValueError, match=r"zero or not finite, the first at row \d+"):
        self_join(x, threshold=0.5)
    with pytest.raises(ValueError, match="expected bias of 60 rows, got 3"):
        self_join(x, threshold=0.5, bias=np.zeros(3))
    with pytest.raises(ValueError, match="expected groups of 60 rows, got 3"):
        self_join(x, threshold=0.5, groups=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="expected sides of 60 rows, got 3"):
        self_join(x, threshold=0.5, sides=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="of one dimension"):
        self_join([*in_blocks(x[:10], []), Block(10, 20, partial(_half_load, x[10:20, :5]))], threshold=0.5)
    with pytest.raises(ValueError, match="expected \\(n, d\\)"):
        self_join(x[0], threshold=0.5)


def test_no_rows_no_pairs() -> None:
    for nothing in (np.zeros((0, 4), np.float32), [], [Block(0, 0, partial(_half_load, np.zeros((0, 4))))]):
        assert len(self_join(nothing, threshold=0.0).first) == 0
    assert len(self_join(np.ones((1, 4), np.float32), threshold=0.0).first) == 0
