"""Exact search on a torch device: what a product of few bits cannot rule out is computed again in float64, on the device.

Proof that the ``count`` rows listed are the nearest
----------------------------------------------------
Let q and r be unit rows (float32), m any float32 vector (the mean of some rows is taken, which makes what follows small), and
q' and r' what of ``q - m`` and ``r - m`` is left by the precision of the product. In exact arithmetic ::

    q.r = q.m + m.(r - m) + (q - m).(r - m)
    (q - m).(r - m) - q'.r' = (q - m).((r - m) - r') + ((q - m) - q').r'  <=  |q - m| E(r) + e(q) |r'|

by Cauchy-Schwarz, with the lengths ``E(r) = |(r - m) - r'|`` and ``e(q) = |(q - m) - q'|`` measured in float64, row by row. The
product of K columns is summed in float32 from products that are exact (two factors of at most 11 bits), or rounded once.
Whatever the order of the sum, and even where a sum is cut off rather than rounded after several summands are aligned, as
tensor cores do, each step is off by at most 2^-22 of the sum of magnitudes; so the sum is off by at most
``g = K 2^-22`` times that. Therefore ::

    q.r  <=  U(q, r) + c(q),    U = q'.r' + b(r) + |q - m| E(r) + (e(q) + g |q'|) |r'|,    b(r) = m.(r - m)

where c(q) is ``q.m`` plus what the other three terms of U lose in the same way. U is itself a product: five more columns hold
b(r), as a sum of three numbers of the product's precision, and E(r) and ``|r'|``, rounded up. So one product gives an upper
bound of every cosine. Rows are taken by largest U; their ``q.r`` is computed in float64. Rows not taken have ``q.r <= U_last +
c(q)``: if the count-th best float64 value is at least that, no other row is nearer. If it is not, more rows are taken, and in
the end all of them in float64. Nothing about the vectors is assumed; what they are decides only how fast it goes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..devices import CPU, check_name, float32_products, torch_device
from ..engine import Engine
from .backends import FaissExact, Prepare
from .exact import DECIMALS, DoubleArray, FloatArray, IntArray, cosines

Precision = Literal["float32", "tf32", "bf16"]

SUMMATION = 2.0**-22  # error of one step of a float32 sum on a tensor core, relative to the sum of magnitudes
UP = 1 + 2.0**-7  # makes a number that is then rounded to 8 bits no smaller than it was
EXTRA = 5  # columns beside those of the vectors
COLUMNS = 64  # the product's inner dimension is a multiple of it, as tensor cores like it
STRIDE = 64  # scores that a group shares when the largest are looked for
ROWS = 8192  # made ready at once: float64 copies stay small
MEAN_ROWS = 1 << 16
SCORES = {"cpu": 1 << 23, "cuda": 1 << 30}  # float32 scores of a tile: 32 MB, 4 GB
TILE_QUERIES = 1024  # a tile is rather wide than tall: its largest scores are looked for once a tile
GATHERED = {"cpu": 1 << 21, "cuda": 1 << 27}  # float64 numbers gathered at once: 16 MB, 1 GB
MEMORY_SHARE = 0.7  # of what is free on the device, for rows


def prepare_for(engine: Engine) -> Prepare:
    """What proposes candidates on the engine's device: faiss on the processor, torch on a GPU. It can be pickled.

    Raises
    ------
    ValueError
        The device has another name than ``cpu``, ``cuda`` or ``cuda:N``; or it is not there, where the work is done on this
        machine (a cluster's workers look for themselves).
    MissingExtraError
        torch is not installed.
    """
    check_name(engine.device)
    if engine.device == CPU:
        return FaissExact
    if engine.ray is None:
        torch_device(engine.device, f"search on {engine.device}")
    return partial(TorchExact, device=engine.device)


class TorchExact:
    """Brute force on a torch device, in the speed of its matrix product of few bits, without the error of few bits.

    Parameters
    ----------
    units
        (n, d) float32, unit rows of a block.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    precision
        Of the product: ``float32``, ``tf32`` (11 bits) or ``bf16`` (8 bits). None: bf16 on a GPU, float32 on the processor.
        On the processor tf32 and bf16 round as the GPU does, and are as slow as float32: for tests. A torch that cannot
        multiply bf16 into float32 (before 2.8) takes tf32.
    rows_at_once
        Rows that are on the device together; None: as many as fit. If there are more, they are sent anew for each call.
    """

    # threads: how many query blocks are to be under way; while one is on a GPU, the processor makes the next ready
    exhaustive = True
    # A listed value is q.r in float64, cast to float32 (2^-25). It is off from the cosine of the vectors before they were made
    # unit rows by at most two roundings of each element of either (4 * 2^-24). Together less than 2^-21.
    slack = 2.0**-21

    def __init__(
        self, units: FloatArray, device: str = CPU, precision: Precision | None = None, rows_at_once: int | None = None
    ) -> None:
        import torch

        if precision not in {None, "float32", "tf32", "bf16"}:
            raise ValueError(f"precision should be 'float32', 'tf32' or 'bf16', got {precision!r}")
        if rows_at_once is not None and rows_at_once < 1:
            raise ValueError(f"rows_at_once should be at least 1, got {rows_at_once}")
        self.device = torch_device(device, f"search on {device}")
        self.precision: Precision = precision or ("float32" if self.device.type == CPU else "bf16")
        if self.precision == "bf16" and not hasattr(torch.ops.aten.mm, "dtype"):
            self.precision = "tf32"
        self.units, self.rows = units, rows_at_once or _rows_that_fit(units, self.device)
        self._part = _Part(units, self.device, self.precision) if len(units) <= self.rows else None
        self.threads = 1 if self.device.type == CPU else 2
        self._lock = threading.Lock()
        self._originals: tuple[npt.NDArray[Any], Any] | None = None

    def _parts(self) -> Iterator[tuple[int, _Part]]:
        if self._part is not None:
            yield 0, self._part
            return
        for start in range(0, len(self.units), self.rows):
            yield start, _Part(self.units[start : start + self.rows], self.device, self.precision)

    def nearest(self, queries: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """See :class:`~auscult.search.backends.Backend`.

        Raises
        ------
        ValueError
            The queries have another dimension.
        """
        import torch

        if queries.ndim != 2 or queries.shape[1] != self.units.shape[1]:
            raise ValueError(f"expected queries (n, {self.units.shape[1]}), got {queries.shape}")
        with torch.inference_mode():
            wide = _tensor(queries, self.device)
            value = torch.full((len(queries), count), -torch.inf, dtype=torch.float64, device=self.device)
            index = torch.full((len(queries), count), -1, dtype=torch.int64, device=self.device)
            for start, part in self._parts():
                new, row = part.nearest(wide, min(count, len(part)))
                value, order = torch.cat([value, new], 1).topk(count)
                index = torch.cat([index, row + start], 1).gather(1, order)
            return value.float().cpu().numpy(), index.cpu().numpy()

    def cosines(
        self,
        left: npt.NDArray[np.floating],
        left_norms: DoubleArray,
        right: npt.NDArray[np.floating],
        right_norms: DoubleArray,
        row: IntArray,
        column: IntArray,
    ) -> DoubleArray:
        """The same numbers as :func:`auscult.search.exact.cosines`, to the last bit, computed on the device.

        Two float64 sums of the same d products in different orders differ by two random walks of d roundings of at most 2^-54:
        by less than ``4 sqrt(d) 2^-53``, ten standard deviations. Rounding to 12 decimals hides that unless a value lies
        so close to where it rounds the other way; such values, 4 % with d = 1712, are computed on the processor. ``right`` is
        sent to the device when it is first met, and kept.
        """
        import torch

        if self._part is None:  # the rows do not even fit as they are
            return cosines(left, left_norms, right, right_norms, row, column)
        with self._lock:
            if self._originals is None or self._originals[0] is not right:
                self._originals = right, _tensor(right, self.device)
            there = self._originals[1]
        with torch.inference_mode():
            here = _tensor(left, self.device)
            i, j = _tensor(row, self.device), _tensor(column, self.device)
            dot = torch.empty(len(row), dtype=torch.float64, device=self.device)
            step = max(GATHERED[self.device.type] // left.shape[1], 1)
            for start in range(0, len(row), step):
                part = slice(start, start + step)
                dot[part] = (here[i[part]].double() * there[j[part]].double()).sum(1)
            value = dot.cpu().numpy() / (left_norms[row] * right_norms[column])
        result: DoubleArray = np.round(value, DECIMALS)
        scaled = value * 10.0**DECIMALS
        doubtful = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 4 * left.shape[1] ** 0.5 * 2.0**-53 * 10.0**DECIMALS
        result[doubtful] = cosines(left, left_norms, right, right_norms, row[doubtful], column[doubtful])
        return result


class _Part:
    """Rows on the device: as they are, and as columns of the product that bounds their cosines."""

    def __init__(self, units: FloatArray, device: Any, precision: Precision) -> None:
        import torch

        self.precision, self.kind = precision, device.type
        with torch.inference_mode():
            self.wide = _tensor(units, device)
            n, d = self.wide.shape
            self.mean = self.wide[:: max(n // MEAN_ROWS, 1)].mean(0)
            self.inner = -(-(d + EXTRA) // COLUMNS) * COLUMNS
            # rows are filled up to a whole number of groups by rows that are never among the largest
            kept = torch.bfloat16 if precision == "bf16" and self.kind != CPU else torch.float32
            self.low = torch.zeros((-(-n // STRIDE) * STRIDE, self.inner), dtype=kept, device=device)
            self.low[n:, d] = -torch.inf
            self.largest = torch.zeros(3, dtype=torch.float64, device=device)  # of |b|, E and |r'|
            for start in range(0, n, ROWS):
                rows = self.wide[start : start + ROWS]
                rounded, _, lost, kept_length = self._centered(rows)
                bias = (rows.double() - self.mean.double()) @ self.mean.double()
                columns = [*self._three(bias), self._up(lost), self._up(kept_length)]
                self.low[start : start + len(rows), :d] = rounded
                self.low[start : start + len(rows), d : d + EXTRA] = torch.stack(columns, 1)
                new = torch.stack([bias.abs().max(), columns[3].max().double(), columns[4].max().double()])
                self.largest = torch.maximum(self.largest, new)

    def __len__(self) -> int:
        return len(self.wide)

    def _centered(self, rows: Any) -> tuple[Any, Any, Any, Any]:
        """r' as float32, and in float64 the lengths of ``r - m``, of what r' lost of it, and of r'."""
        exact = rows.double() - self.mean.double()
        rounded = _rounded(rows - self.mean, self.precision)
        return rounded, exact.norm(dim=1), (exact - rounded.double()).norm(dim=1), rounded.double().norm(dim=1)

    def _three(self, numbers: Any) -> list[Any]:
        """Three numbers of the product's precision that sum to each number, but for 2^-24 of it."""
        parts, left = [], numbers
        for _ in range(3):
            parts.append(_rounded(left.float(), self.precision))
            left = left - parts[-1].double()
        return parts

    def _up(self, numbers: Any) -> Any:
        return _rounded((numbers * UP).float(), self.precision)

    def nearest(self, queries: Any, count: int) -> tuple[Any, Any]:
        """The ``count`` nearest rows, certainly: float64 products, largest first, and row numbers."""
        import torch

        value = torch.empty((len(queries), count), dtype=torch.float64, device=queries.device)
        index = torch.empty((len(queries), count), dtype=torch.int64, device=queries.device)
        open_rows = torch.arange(len(queries), device=queries.device)
        for taken in (2 * count + 16, 16 * count + 64):
            if len(open_rows) == 0 or 4 * taken >= len(self):
                break
            asked = queries[open_rows]
            upper, row = self._largest_bounds(asked, taken)
            best, order = self._products(asked, row).topk(count)
            certain = best[:, -1] >= upper[:, -1]
            done = open_rows[certain]
            value[done], index[done] = best[certain], row.gather(1, order)[certain]
            open_rows = open_rows[~certain]
        if len(open_rows):
            value[open_rows], index[open_rows] = self._all_in_float64(queries[open_rows], count)
        return value, index

    def _largest_bounds(self, queries: Any, count: int) -> tuple[Any, Any]:
        """The ``count`` largest upper bounds ``U + c``, float64, and their rows."""
        import torch

        d = queries.shape[1]
        rounded, length, lost, kept_length = self._centered(queries)
        step = self.inner * SUMMATION
        low = torch.zeros((len(queries), self.inner), dtype=self.low.dtype, device=queries.device)
        low[:, :d] = rounded
        low[:, d : d + 3] = 1.0
        low[:, d + 3] = self._up(length)
        low[:, d + 4] = self._up(lost + step * kept_length)
        weights = torch.stack([torch.full_like(length, UP), low[:, d + 3].double(), low[:, d + 4].double()], 1)
        # 2^-24 of b; what the sum loses of the last five columns; and the rounding of the float64 numbers themselves
        slack = self.largest[0] * 2.0**-23 + 1.01 * step * (weights @ self.largest) + 1e-11
        constant = queries.double() @ self.mean.double() + slack
        found = [self._largest_scores(low[top : top + TILE_QUERIES], count) for top in range(0, len(low), TILE_QUERIES)]
        upper, row = (torch.cat(part) for part in zip(*found, strict=True))
        return upper.double() + constant[:, None], row

    def _largest_scores(self, low: Any, count: int) -> tuple[Any, Any]:
        """The ``count`` largest U of some queries, given as columns of the product, and their rows."""
        import torch

        upper = torch.full((len(low), count), -torch.inf, device=low.device)
        row = torch.zeros((len(low), count), dtype=torch.int64, device=low.device)
        step = max(SCORES[self.kind] // (len(low) * STRIDE), 1) * STRIDE
        for start in range(0, len(self.low), step):
            new, at = _largest(_product(low, self.low[start : start + step], self.precision), count)
            upper, order = torch.cat([upper, new], 1).topk(count)
            row = torch.cat([row, at + start], 1).gather(1, order)
        return upper, row

    def _products(self, queries: Any, row: Any) -> Any:
        """``q.r`` in float64 for the rows (n, c) of each query."""
        import torch

        result = torch.empty(row.shape, dtype=torch.float64, device=row.device)
        step = max(GATHERED[self.kind] // (row.shape[1] * queries.shape[1]), 1)
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            result[part] = torch.bmm(self.wide[row[part]].double(), queries[part].double()[:, :, None])[:, :, 0]
        return result

    def _all_in_float64(self, queries: Any, count: int) -> tuple[Any, Any]:
        import torch

        value = torch.full((len(queries), 0), -torch.inf, dtype=torch.float64, device=queries.device)
        index = torch.zeros((len(queries), 0), dtype=torch.int64, device=queries.device)
        doubles = queries.double()
        step = max(SCORES[self.kind] // (2 * max(len(queries), queries.shape[1])), 1)
        for start in range(0, len(self), step):
            scores = doubles @ self.wide[start : start + step].double().T
            new, at = scores.topk(min(count, scores.shape[1]))
            both = torch.cat([value, new], 1)
            value, order = both.topk(min(count, both.shape[1]))
            index = torch.cat([index, at + start], 1).gather(1, order)
        return value, index


def _largest(scores: Any, count: int) -> tuple[Any, Any]:
    """The ``count`` largest of each row (n, m), or all if there are fewer, largest first, and their columns.

    A row is cut into groups of 64, whose maxima take one pass. ``count`` largest numbers lie in the ``count`` groups of largest
    maximum: a number outside is no larger than its group's maximum, hence than each of those ``count`` maxima. So only
    the members of these groups are sorted.
    """
    import torch

    width = scores.shape[1]
    count = min(count, width)
    if width % STRIDE or count * STRIDE * 4 > width:
        return scores.topk(count)
    groups = width // STRIDE
    _, group = scores.view(-1, STRIDE, groups).amax(1).topk(count, sorted=False)
    member = torch.arange(STRIDE, device=scores.device)[None, None] * groups + group[:, :, None]
    member = member.flatten(1)
    value, order = scores.gather(1, member).topk(count)
    return value, member.gather(1, order)


def _rounded(numbers: Any, precision: Precision) -> Any:
    """Float32 numbers to the nearest of fewer bits, as float32."""
    import torch

    if precision == "bf16":
        return numbers.to(torch.bfloat16).float()
    if precision == "tf32":  # here, so that what the device cuts off is zero already
        return ((numbers.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return numbers


def _product(left: Any, right: Any, precision: Precision) -> Any:
    """``left right^T`` summed in float32."""
    import torch

    if left.dtype == torch.bfloat16:
        return torch.mm(left, right.T, out_dtype=torch.float32)
    with float32_products(tf32=precision == "tf32" and left.device.type != CPU):
        return left @ right.T


def _tensor(array: npt.NDArray[Any], device: Any) -> Any:
    """An array on a device; one that may not be written to, such as a mapped file, is copied: torch has no such arrays."""
    import torch

    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _rows_that_fit(units: FloatArray, device: Any) -> int:
    import torch

    if device.type == CPU:
        return max(len(units), 1)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch, of blocks before
    scratch = 4 * SCORES["cuda"] * 2 + 8 * GATHERED["cuda"] * 3
    # 4 bytes a number for the unit rows, 4 for the product's columns, 4 for the vectors as they were
    return max(int((MEMORY_SHARE * free - scratch) / (12 * (units.shape[1] + COLUMNS))), ROWS)
