"""What guidance saw and did: one row for every step of the sampler and every sample, kept, written, summed up and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import TableError
from ..folders import write_table
from .trace_summary import SampleSummary, TraceSummary, sample_summaries, trace_summary

Fact = bool | int | float | str | None

_TYPES: dict[str, tuple[pa.DataType, tuple[type, ...]]] = {  # by annotation: in a file, in Python
    "int": (pa.int64(), (int,)),
    "float": (pa.float64(), (float, int)),
    "float | None": (pa.float64(), (float, int, NoneType)),
    "str": (pa.string(), (str,)),
    "str | None": (pa.string(), (str, NoneType)),
    "bool": (pa.bool_(), (bool,)),
    "dict[str, Fact]": (pa.string(), (dict,)),  # as JSON
}


@dataclass(frozen=True)
class TraceRow:
    """One sample at one step of the sampler.

    Attributes
    ----------
    call
        Which call of the pipeline, from 0.
    step, n_steps
        Which step of the sampler, from 0, and how many it takes. A second-order sampler counts each of its stages.
    timestep
        As the sampler names it.
    sigma, alpha_bar
        Noise level ``b / a`` (infinite for pure noise) and ``a^2 / (a^2 + b^2)``.
    sample
        Row of the batch, from 0.
    similarity
        Cosine with the nearest reference; None: not looked at in this step.
    neighbor, neighbor_caption
        Clip id and caption of that reference.
    threshold
        Above this similarity the gate opens.
    fired
        Whether it was open.
    scale
        Guidance scale s0 of the pipeline; None: not known.
    s1, s2
        What despecification and caption deduplication took from it.
    gradient_norm
        2-norm of the gradient of the similarity.
    shift_ratio
        Size of the dissimilarity term over that of guidance: ``|d_sim| / |s0 q (c - u)|``.
    text_norm
        Size of what the prompt changes (:func:`~auscult.guidance.signals.text_norm`).
    reason
        Why the gate stayed closed or a term did nothing; empty where there is nothing to say.
    facts
        What further terms say of themselves, by name.
    """

    call: int
    step: int
    n_steps: int
    timestep: float
    sigma: float
    alpha_bar: float
    sample: int
    similarity: float | None = None
    neighbor: str | None = None
    neighbor_caption: str | None = None
    threshold: float | None = None
    fired: bool = False
    scale: float | None = None
    s1: float = 0.0
    s2: float = 0.0
    gradient_norm: float | None = None
    shift_ratio: float | None = None
    text_norm: float | None = None
    reason: str = ""
    facts: dict[str, Fact] = field(default_factory=dict, hash=False)


SCHEMA = pa.schema([(column.name, _TYPES[str(column.type)][0]) for column in fields(TraceRow)])


class Trace:
    """Rows in the order in which they happened; rows can be added, and none changed or taken away.

    Examples
    --------
    >>> trace = Trace()
    >>> trace.add(TraceRow(0, step, 2, 0.0, 1.0, 0.5, sample, similarity=0.25 + 0.5 * sample, threshold=0.5,
    ...           fired=sample > 0) for step in range(2) for sample in range(2))
    >>> len(trace), trace.rows[1].fired
    (4, True)
    >>> summary = trace.summary()
    >>> summary.samples, summary.fired_share, summary.fired_steps, summary.highest_similarity
    (2, 0.5, 1.0, 0.75)
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int, int], TraceRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> tuple[TraceRow, ...]:
        """All rows."""
        return tuple(self._rows.values())

    def add(self, rows: Iterable[TraceRow]) -> None:
        """Add rows: all of them, or none if one is wrong.

        Raises
        ------
        TypeError
            A value is no plain number or text of Python.
        ValueError
            A sample has a row for this step already.
        """
        new: dict[tuple[int, int, int], TraceRow] = {}
        for row in rows:
            key = row.call, row.step, row.sample
            _check(row)
            if key in self._rows or key in new:
                raise ValueError(
                    f"expected one row for each step and sample, got a second one for call {row.call}, step {row.step}, "
                    f"sample {row.sample}; count calls of the pipeline and steps of the sampler from 0"
                )
            new[key] = row
        self._rows.update(new)

    def to_records(self) -> list[dict[str, Any]]:
        """One dictionary for each row, as data frames take them."""
        return [asdict(row) for row in self._rows.values()]

    def to_table(self) -> pa.Table:
        """A ``pyarrow.Table`` with one column for each field of :class:`TraceRow`; ``facts`` as JSON."""
        records = self.to_records()
        for record in records:
            record["facts"] = json.dumps(record["facts"], ensure_ascii=False)
        return pa.Table.from_pylist(records, SCHEMA)

    def write(self, path: Path) -> Path:
        """Write the table as Parquet, atomically."""
        path = Path(path)
        write_table(path, self.to_table())
        return path

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read what :meth:`write` has written; columns that are no field of :class:`TraceRow` are left out.

        Raises
        ------
        TableError
            No Parquet, or a column is missing.
        """
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise TableError(f"{path}: cannot be read as Parquet ({error})") from error
        if missing := [name for name in SCHEMA.names if name not in table.column_names]:
            raise TableError(f"{path}: expected a trace of guidance, got a table without {', '.join(missing)}")
        records = table.select(SCHEMA.names).to_pylist()
        trace = cls()
        trace.add(TraceRow(**{**record, "facts": json.loads(record["facts"])}) for record in records)
        return trace

    def samples(self) -> list[SampleSummary]:
        """One summary for each sample of each call, in their order."""
        return sample_summaries(self.rows)

    def summary(self) -> TraceSummary:
        """How often the gate opened, and similarity at the start, at the end and at its highest."""
        return trace_summary(self.rows)

    def plot(
        self,
        other: Trace | None = None,
        path: Path | None = None,
        *,
        ids: Sequence[tuple[int, int]] | None = None,
        width_px: int = 1200,
    ) -> Any:
        """Draw similarity against steps, with the threshold and the steps at which the gate was open.

        Parameters
        ----------
        other
            The same samples without guidance (with all strengths 0, so that only the trace is kept): drawn beside it.
        path
            Where to write the figure (.png, .svg or .pdf); None: nowhere.
        ids
            ``(call, sample)`` of up to 8 samples that get a line each, by default those of the highest similarity. All
            others are a band from their lowest to their highest.
        width_px
            Width of the figure; below 800 two traces stand one above the other.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from .trace_figure import draw_traces

        return draw_traces(self, other, path=path, ids=ids, width_px=width_px)


def _check(row: TraceRow) -> None:
    """Tensors and numpy's scalars would keep memory of a device, and fail only when the trace is written."""
    for column in fields(row):
        value = getattr(row, column.name)
        if not isinstance(value, _TYPES[str(column.type)][1]):
            raise TypeError(f"expected {column.name} to be of type {column.type}, got {value!r}; use .item() or .tolist()")
    for name, value in row.facts.items():
        if not isinstance(value, (bool, int, float, str, NoneType)):
            raise TypeError(f"expected the fact {name} to be a number or a text, got {value!r}; use .item() or .tolist()")
