"""The figure of a trace: similarity with the nearest reference against steps of the sampler, with and without guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..figures import QUERY_COLOR, REFERENCE_COLOR
from ..folders import atomic_file

if TYPE_CHECKING:
    from .trace import Trace, TraceRow
    from .trace_summary import SampleSummary

Id = tuple[int, int]  # call, sample
Rows = Sequence["TraceRow"]
COLORS = (QUERY_COLOR, REFERENCE_COLOR, "#15803d", "#7e22ce", "#a16207", "#be185d", "#4b5563", "#1e3a8a")  # all AA on white
INK, SHADE, GRID = "#111827", "#9ca3af", "#e5e7eb"
FEW_POINTS = 12  # so few are drawn as points too: two or three do not look like a line
NARROW_PX, LEAST_PX, DPI = 800, 400, 100
LONGEST, LONGEST_NARROW = 27, 23  # characters of an id
THRESHOLD, OPEN = "threshold", "gate open"
FORMATS = (".png", ".svg", ".pdf")


def draw_traces(trace: Trace, other: Trace | None, *, path: Path | None, ids: Sequence[Id] | None, width_px: int = 1200) -> Any:
    """Draw one trace, or two that share their axes; see :meth:`~auscult.guidance.trace.Trace.plot`.

    Raises
    ------
    ValueError
        Nothing to draw; ids that are not in the trace, or too many; another ending than .png, .svg or .pdf; a width below 400.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"expected a figure that ends in {', '.join(FORMATS)}, got {path}")
    if width_px < LEAST_PX:
        raise ValueError(f"expected a width of at least {LEAST_PX} pixels, got {width_px}")
    found = {(one.call, one.sample): one for one in trace.samples()}
    chosen = _chosen(found, other, ids)
    narrow, panels = width_px < NARROW_PX, [trace] if other is None else [trace, other]
    across = 1 if narrow else len(panels)
    figure = Figure(figsize=(width_px / DPI, 4.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels) // across, across, squeeze=False, sharex=True, sharey=True).ravel()
    calls = len({call for call, _ in found})
    labels = {key: _label(found[key], calls, LONGEST_NARROW if narrow else LONGEST) for key in chosen}
    handles: dict[str, Any] = {}
    for area, one, name in zip(axes, panels, ("with guidance: ", "without guidance: "), strict=False):
        handles |= _draw_panel(area, one, chosen, labels)
        _name_panel(area, one, "" if other is None else name, narrow)
    for area in axes[-across:]:
        area.set_xlabel("step of the sampler")
    for area in axes[::across]:
        area.set_ylabel("similarity with the\nnearest reference" if narrow else "similarity with the nearest reference")
    lines = _draw_key(figure, handles)
    figure.set_size_inches(width_px / DPI, (2.9 if narrow else 3.9) * len(panels) / across + 0.2 * lines + 0.15)
    if path is not None:
        with atomic_file(Path(path)) as handle:
            figure.savefig(handle, format=Path(path).suffix[1:].lower())
    return figure


def _chosen(found: Mapping[Id, SampleSummary], other: Trace | None, ids: Sequence[Id] | None) -> dict[Id, str]:
    """Samples that get a line, in their order, and the color of each."""
    if not any(one.highest_similarity is not None for one in found.values()):
        raise ValueError("expected a trace with similarities to draw, got none; was a pipeline called while guidance was on?")
    if ids is None:
        highest = {key: one.highest_similarity for key, one in found.items()}
        for one in [] if other is None else other.samples():  # nearest without guidance: what guidance was for
            highest[one.call, one.sample] = one.highest_similarity
        ranked = sorted(found, key=lambda key: -math.inf if (value := highest[key]) is None else value, reverse=True)
        ids = ranked[: len(COLORS)]
    if missing := [key for key in ids if key not in found]:
        raise ValueError(f"expected ids (call, sample) of the trace, got {missing}; it has {sorted(found)[:8]} ...")
    if len(set(ids)) > len(COLORS):
        raise ValueError(f"expected at most {len(COLORS)} ids, got {len(set(ids))}; further samples are drawn as a band")
    return dict(zip(sorted(set(ids)), COLORS, strict=False))


def _draw_key(figure: Any, handles: Mapping[str, Any]) -> int:
    """Put the key below the panels, in as many columns as fit; returns its number of lines."""
    first = [name for name in (THRESHOLD, OPEN) if name in handles]
    names = [*first, *(name for name in handles if name not in first)]
    for columns in (4, 3, 2, 1):
        key = figure.legend(
            [handles[name] for name in names], names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9
        )
        for text in key.get_texts():
            text.set_parse_math(False)  # a dollar in a name is a dollar
        if columns == 1 or key.get_window_extent(figure.canvas.get_renderer()).width < figure.bbox.width:
            break
        key.remove()
    return -(-len(names) // columns)


def _draw_panel(area: Any, trace: Trace, chosen: Mapping[Id, str], labels: Mapping[Id, str]) -> dict[str, Any]:
    """Draw a trace; returns what its key shows, by name."""
    grouped: dict[Id, list[TraceRow]] = {}
    for row in sorted(trace.rows, key=lambda row: row.step):
        grouped.setdefault((row.call, row.sample), []).append(row)
    band = _draw_band(area, [rows for key, rows in grouped.items() if key not in chosen])
    handles: dict[str, Any] = {}
    for key, color in chosen.items():
        if key in grouped:
            handles |= _draw_sample(area, grouped[key], color, labels[key])
    handles |= band | _draw_threshold(area, list(grouped.values()))
    if any(row.fired for key in chosen for row in grouped.get(key, [])):
        handles[OPEN] = area.plot([], [], "o", color=INK, markersize=4.5)[0]
    area.grid(axis="y", color=GRID, linewidth=0.8)
    area.set_axisbelow(True)
    area.spines[["top", "right"]].set_visible(False)
    area.tick_params(labelsize=9, labelbottom=True, labelleft=True)
    area.xaxis.get_major_locator().set_params(integer=True)
    return handles


def _points(rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps that were looked at, and similarities."""
    seen = [(row.step, row.similarity) for row in rows if row.similarity is not None and math.isfinite(row.similarity)]
    steps, similarities = np.array(seen, np.float64).reshape(-1, 2).T
    return steps, similarities


def _draw_sample(area: Any, rows: Rows, color: str, label: str) -> dict[str, Any]:
    steps, similarities = _points(rows)
    if not len(steps):
        return {}
    marker = "." if len(steps) <= FEW_POINTS else ""
    (line,) = area.plot(steps, similarities, marker=marker, color=color, linewidth=1.5, markersize=3)
    fired = [row.step for row in rows if row.fired]  # a held decision has no similarity of its own: it lies on the line
    area.plot(fired, np.interp(fired, steps, similarities), "o", color=color, markersize=4.5, markeredgewidth=0)
    return {label: line}


def _draw_band(area: Any, others: Sequence[Rows]) -> dict[str, Any]:
    """From the lowest to the highest similarity of the other samples, step by step."""
    at: dict[int, list[float]] = {}
    for rows in others:
        for step, similarity in zip(*_points(rows), strict=True):
            at.setdefault(int(step), []).append(float(similarity))
    if not at:
        return {}
    steps = sorted(at)
    low, high = [min(at[step]) for step in steps], [max(at[step]) for step in steps]
    band = area.fill_between(steps, low, high, color=SHADE, alpha=0.35, linewidth=0)
    return {f"{len(others):,} other sample{'s' * (len(others) != 1)}": band}


def _draw_threshold(area: Any, samples: Sequence[Rows]) -> dict[str, Any]:
    """Each curve once: samples of a call share it, and so do most calls."""
    curves = dict.fromkeys(
        tuple((row.step, row.threshold) for row in rows if row.threshold is not None and math.isfinite(row.threshold))
        for rows in samples
    )
    line = None
    for curve in filter(None, curves):
        (line,) = area.plot(*zip(*curve, strict=True), color=INK, linestyle="--", linewidth=1.3, zorder=3)
    return {} if line is None else {THRESHOLD: line}


def _name_panel(area: Any, trace: Trace, name: str, narrow: bool) -> None:
    summary = trace.summary()
    opened = f"gate opened for {summary.fired_samples:,} of {summary.samples:,} sample{'s' * (summary.samples != 1)}"
    area.set_title(name + opened, loc="left", fontsize=10 if narrow else 11, color=INK)


def _label(one: SampleSummary, calls: int, longest: int) -> str:
    """``sample 3, nearest to ID``; of a long id both ends, without letters that fonts lack."""
    which = f"sample {one.sample}" if calls == 1 else f"call {one.call}, sample {one.sample}"
    if one.neighbor is None:
        return which
    name = "".join(letter if letter.isprintable() and ord(letter) < 0x530 else "?" for letter in one.neighbor)
    half = longest // 2
    return f"{which}, nearest to {name if len(name) <= longest else f'{name[:half]}…{name[-half:]}'}"
