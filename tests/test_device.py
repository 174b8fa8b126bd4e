"""The search through torch on the processor, in every precision that a GPU has, against float64 and against faiss."""

from __future__ import annotations

import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.devices import check_name, torch_device
from auscult.engine import Engine
from auscult.errors import MissingExtraError
from auscult.search import device, nearest, top_k
from auscult.search.backends import FaissExact
from auscult.search.device import TorchExact, _largest, _Part, prepare_for
from auscult.search.exact import cosines, unit_rows
from test_search import brute_top_k

PRECISIONS = ("float32", "tf32", "bf16")


pytestmark = pytest.mark.usefixtures("one_thread")


def same(one, other) -> None:
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.similarity, other.similarity)


def spectra(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Rows like mel descriptors: a spectrum common to all in dB, so that unrelated rows have a cosine of 0.98."""
    return (rng.standard_normal((n, d)) * 3 - np.linspace(12, 28, d)).astype(np.float32)


@given(
    seed=st.integers(0, 10_000),
    precision=st.sampled_from(PRECISIONS),
    m=st.integers(1, 400),
    k=st.integers(1, 20),
    windows=st.booleans(),
    excluding=st.booleans(),
    copies=st.integers(0, 60),
    rows=st.sampled_from([None, 64, 150]),
)
@settings(deadline=None, max_examples=80)
def test_equals_faiss_and_brute_force(seed, precision, m, k, windows, excluding, copies, rows) -> None:
    rng = np.random.default_rng(seed)
    references = spectra(rng, m, 7)
    references[rng.integers(0, m, copies)] = references[0]  # exact ties
    queries = np.concatenate([references[:1], spectra(rng, 5, 7)])
    exclude = (rng.integers(-1, 4, (6, 2)), rng.integers(-1, 4, m)) if excluding else None
    distinct = rng.integers(0, 50, m) if windows else None
    rank = rng.permutation(m)
    options = {"k": k, "exclude": exclude, "distinct": distinct, "rank": rank}
    found = top_k(queries, references, **options, prepare=partial(TorchExact, precision=precision, rows_at_once=rows))
    np.testing.assert_array_equal(found.index, brute_top_k(queries, references, k, exclude, distinct, rank))
    same(found, top_k(queries, references, **options))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("apart", [3e-5, 1e-2])
def test_near_ties_closer_than_the_product_can_tell(precision, apart) -> None:
    """Two tight heaps far apart, so that centering does not help. Within a heap cosines differ by 1e-10, which is left to
    float64, or by 1e-5, which the list itself must have in order; bf16 errs by 1e-3."""
    rng = np.random.default_rng(0)
    bases = rng.standard_normal((2, 128))
    references = (np.repeat(bases, 700, 0) + apart * rng.standard_normal((1400, 128))).astype(np.float32)
    references[300:320] = references[10]
    queries = (np.repeat(bases, 3, 0) + apart / 3 * rng.standard_normal((6, 128))).astype(np.float32)
    found = top_k(queries, references, k=10, prepare=partial(TorchExact, precision=precision))
    np.testing.assert_array_equal(found.index, brute_top_k(queries, references, 10, None, None, np.arange(1400)))
    same(found, top_k(queries, references, k=10))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["spectra", "heavy tails", "two values", "parallel", "one row"])
def test_bounds_are_bounds(precision, kind) -> None:
    """In two dimensions the error of rounding is often parallel to the vector, and Cauchy-Schwarz has little to give away."""
    rng = np.random.default_rng(3)
    d = 2 if kind in {"two values", "parallel"} else 96
    rows = {
        "spectra": lambda: spectra(rng, 500, d),
        "heavy tails": lambda: rng.standard_t(1.1, (500, d)).astype(np.float32),
        "two values": lambda: rng.standard_normal((500, d)).astype(np.float32),
        "parallel": lambda: np.outer(rng.choice([-1, 1], 500), [1, 1]) + 0.01 * rng.standard_normal((500, d)),
        "one row": lambda: np.repeat(spectra(rng, 1, d), 500, 0),
    }[kind]()
    units, _ = unit_rows(rows)
    part = _Part(units, torch.device("cpu"), precision)
    queries = np.concatenate([units[:40], unit_rows(rng.standard_normal((10, d)))[0]])
    upper, row = part._largest_bounds(torch.from_numpy(queries), len(units))
    bound = np.take_along_axis(upper.numpy(), np.argsort(row.numpy(), 1), 1)
    assert sorted(row[0].tolist()) == list(range(500))
    exact = queries.astype(np.float64) @ units.astype(np.float64).T
    assert (bound >= exact).all()
    # and no looser than the precision: the worst rounding of both sides, the sum's bound of 128 columns, float32's own
    center = part.mean.numpy()
    lengths = np.linalg.norm(queries - center, axis=1)[:, None] * np.linalg.norm(units - center, axis=1)
    bits = {"float32": 24, "tf32": 11, "bf16": 8}[precision]
    assert (bound - exact <= (4 * 2.0**-bits + 128 * 2.0**-20) * (lengths + 0.3) + 1e-6).all()


@pytest.mark.parametrize("term", ["E", "e"])
def test_either_half_of_the_bound_is_needed(term) -> None:
    """Without what the references, or the queries, lose by rounding, bounds in two dimensions are none."""
    rng = np.random.default_rng(3)
    units, _ = unit_rows(rng.standard_normal((2000, 2)).astype(np.float32))
    part = _Part(units, torch.device("cpu"), "bf16")
    part.low = part.low.clone()
    part.low[:, {"E": 5, "e": 6}[term]] = 0.0  # columns d + 3 and d + 4
    upper, row = part._largest_bounds(torch.from_numpy(units[:300]), len(units))
    bound = np.take_along_axis(upper.numpy(), np.argsort(row.numpy(), 1), 1)
    assert (bound < units[:300].astype(np.float64) @ units.astype(np.float64).T).any()


def test_few_bits_suffice_on_ordinary_rows(monkeypatch) -> None:
    """The result above could come from float64 alone; here that is not allowed."""
    rng = np.random.default_rng(4)
    references = spectra(rng, 5000, 64)
    queries = references[:200] + rng.standard_normal((200, 64)).astype(np.float32)
    expected = top_k(queries, references, k=5)
    monkeypatch.delattr(_Part, "_all_in_float64")
    same(top_k(queries, references, k=5, prepare=partial(TorchExact, precision="bf16")), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles_blocks_and_what_fits_change_nothing(precision, monkeypatch) -> None:
    rng = np.random.default_rng(5)
    references = spectra(rng, 3000, 33)
    references[100:110] = references[2000]
    prepare = partial(TorchExact, precision=precision)
    whole = top_k(references[:90], references, k=7, prepare=prepare)
    monkeypatch.setitem(device.SCORES, "cpu", 30 * 64)
    monkeypatch.setitem(device.GATHERED, "cpu", 1000)
    monkeypatch.setattr(device, "ROWS", 100)
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 17)
    same(top_k(references[:90], references, k=7, prepare=prepare), whole)
    same(top_k(references[:90], references, k=7, prepare=partial(prepare, rows_at_once=1001)), whole)


class InThreads(TorchExact):
    """As on a GPU, several blocks of queries are under way."""

    def __init__(self, units: np.ndarray) -> None:
        super().__init__(units, precision="tf32")
        self.threads = 3


def test_threads_change_nothing(monkeypatch) -> None:
    rng = np.random.default_rng(5)
    references = spectra(rng, 2000, 33)
    references[100:110] = references[1500]
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 17)
    before = torch.backends.cuda.matmul.fp32_precision
    same(top_k(references[:300], references, k=7, prepare=InThreads), top_k(references[:300], references, k=7))
    assert torch.backends.cuda.matmul.fp32_precision == before
    bad = references[:300].copy()
    bad[-1] = 0
    with pytest.raises(ValueError, match="zero or not finite"):
        top_k(bad, references, k=7, prepare=InThreads)


@given(seed=st.integers(0, 1000), m=st.integers(1, 40), count=st.integers(1, 12), values=st.integers(1, 1000))
@settings(deadline=None, max_examples=60)
def test_largest_of_groups(seed, m, count, values) -> None:
    scores = np.random.default_rng(seed).integers(0, values, (3, 64 * m)).astype(np.float32)
    count = min(count, 64 * m)
    value, column = _largest(torch.from_numpy(scores), count)
    np.testing.assert_array_equal(value.numpy(), -np.sort(-scores, 1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(scores, column.numpy(), 1), value.numpy())
    assert all(len(set(row)) == count for row in column.tolist())


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_cosines_are_those_of_the_processor_to_the_last_bit(kind) -> None:
    rng = np.random.default_rng(6)
    right, left = spectra(rng, 300, 200).astype(kind), spectra(rng, 50, 200)
    units, right_norms = unit_rows(right)
    left_norms = unit_rows(left)[1]
    row, column = (axis.ravel() for axis in np.indices((50, 300)))
    backend = TorchExact(units)
    for _ in range(2):  # sent, then kept
        found = backend.cosines(left, left_norms, right, right_norms, row, column)
        np.testing.assert_array_equal(found, cosines(left, left_norms, right, right_norms, row, column))


def test_read_only_rows_are_taken() -> None:
    rows = spectra(np.random.default_rng(7), 200, 5)
    units = unit_rows(rows)[0]
    units.flags.writeable = False
    assert TorchExact(units).nearest(units[:3], 1)[1].ravel().tolist() == [0, 1, 2]


def test_more_than_there_are() -> None:
    units, _ = unit_rows(spectra(np.random.default_rng(8), 3, 5))
    rough, index = TorchExact(units).nearest(units[:1], 5)
    assert index[0, 0] == 0 and index[0, 3:].tolist() == [-1, -1] and np.isneginf(rough[0, 3:]).all()


def test_what_an_engine_chooses() -> None:
    assert prepare_for(Engine()) is FaissExact
    elsewhere = prepare_for(Engine(device="cuda:3", ray="local"))  # workers have what this machine may lack
    assert pickle.loads(pickle.dumps(elsewhere)).keywords == {"device": "cuda:3"}
    with pytest.raises(ValueError, match="'cpu', 'cuda' or 'cuda:N'.*got 'gpu'"):
        prepare_for(Engine(device="gpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="'cuda' was asked for, but torch .*; take 'cpu'"):
        prepare_for(Engine(device="cuda"))
    with pytest.raises(ValueError, match="was asked for"):
        TorchExact(np.eye(2, dtype=np.float32), "cuda:1")


def test_without_torch_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"search on cuda needs .*auscult\[models\]"):
        prepare_for(Engine(device="cuda"))
    assert prepare_for(Engine()) is FaissExact


@pytest.mark.parametrize("name", ["", "CPU", "cuda:", "cuda:-1", "cuda:x", "mps", "auto"])
def test_names_of_no_device(name) -> None:
    with pytest.raises(ValueError, match="device should be"):
        check_name(name)
    with pytest.raises(ValueError, match="device should be"):
        torch_device(name, "this")


def test_bad_arguments_are_named() -> None:
    units = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="precision should be"):
        TorchExact(units, precision="fp8")
    with pytest.raises(ValueError, match="rows_at_once should be"):
        TorchExact(units, rows_at_once=0)
    with pytest.raises(ValueError, match=r"expected queries \(n, 4\), got \(2, 3\)"):
        TorchExact(units).nearest(units[:2, :3], 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_a_gpu(precision) -> None:
    rng = np.random.default_rng(9)
    references = spectra(rng, 20_000, 300)
    references[100:110] = references[2000]
    queries = references[:500] + rng.standard_normal((500, 300)).astype(np.float32)
    same(
        top_k(queries, references, k=5, prepare=partial(TorchExact, device="cuda", precision=precision)),
        top_k(queries, references, k=5),
    )
