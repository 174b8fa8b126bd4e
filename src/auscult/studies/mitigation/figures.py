"""Figures of a mitigation study: what guidance takes away against what it costs, and what each setting does to both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...figures import QUERY_COLOR, REFERENCE_COLOR, svg_of

INK, LEADER = "#111827", "#9ca3af"
COLORS = {"none": INK, "guided": QUERY_COLOR, "other": REFERENCE_COLOR}
KINDS = {"none": "no guidance", "guided": "anti-memorization guidance", "other": "other mitigations"}


@dataclass(frozen=True)
class Value:
    """A number and the ends of its interval, where it has them."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bar(self) -> tuple[float, float]:
        """How far the interval goes to both sides."""
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class Point:
    """An arm: its name, its cost, its rate (0 to 1), what it is drawn as, of ``COLORS``, and its number, that of its row."""

    label: str
    cost: Value
    rate: Value
    kind: str = "guided"
    number: int = 1


def tradeoff_svg(points: Sequence[Point], *, cost: str, rate: str, narrow: bool = False) -> str:
    """Rates against cost, a numbered point an arm, with a key of the numbers; an arrow head where an interval goes on.

    The axis holds all points, not all of their intervals, which few models make wide.

    Parameters
    ----------
    points
        One an arm.
    cost, rate
        Labels of the axes.
    narrow
        Drawn for a telephone: the key below, not beside.

    Examples
    --------
    >>> svg = tradeoff_svg([Point("no guidance", Value(10.0), Value(0.95, 0.8, 1.0), "none")], cost="FD", rate="flagged")
    >>> svg.startswith("<svg"), "1  no guidance" in svg
    (True, True)
    """
    with _drawing(f"tradeoff {cost} {rate}", narrow, 11 if narrow else 13) as (figure, finish):
        height = 3.6 + 0.21 * len(points) if narrow else max(4.2, 0.4 + 0.21 * len(points))
        figure.set_size_inches(3.9 if narrow else 8.6, height)
        sizes: dict[str, Any] = {"height_ratios": [3.3, 0.2 * len(points)]} if narrow else {"width_ratios": [5.2, 3.4]}
        axes, key = figure.subplots(*((2, 1) if narrow else (1, 2)), gridspec_kw=sizes)
        costs = [point.cost.value for point in points]
        margin = 0.15 * (max(costs) - min(costs)) or 1.0
        axes.set_xlim(min(costs) - margin, max(costs) + margin)
        for kind in COLORS:
            for place, point in enumerate(point for point in points if point.kind == kind):
                _draw_point(axes, point, KINDS[kind] if place == 0 else None)
        _percent(axes, rate)
        axes.set_xlabel(cost)
        axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderpad=0)
        key.axis("off")
        for row, point in enumerate(points):
            key.text(
                0, 1 - (row + 0.5) / len(points), f"{point.number}  {point.label}", color=COLORS[point.kind],
                fontsize=9 if narrow else 10.5, va="center", transform=key.transAxes,
            )  # fmt: skip
        figure.canvas.draw()  # places are known from here on
        number_points(axes, [(point.cost.value, point.rate.value) for point in points], [point.number for point in points])
        return finish()


def _draw_point(axes: Any, point: Point, label: str | None) -> None:
    """A point with its intervals, up to the ends of the axis: an arrow head where that of the cost goes on."""
    left, right = axes.get_xlim()
    x, y, color = point.cost.value, point.rate.value, COLORS[point.kind]
    low, high = x - point.cost.bar[0], x + point.cost.bar[1]
    axes.errorbar(
        x, y, [[side] for side in point.rate.bar], [[x - max(low, left)], [min(high, right) - x]], fmt="o", color=color,
        markersize=5, alpha=0.9, elinewidth=0.6, label=label,
    )  # fmt: skip
    for beyond, end, head in ((low < left, left, "<"), (high > right, right, ">")):
        if beyond:
            axes.plot(end, y, head, color=color, markersize=5, clip_on=False)


def number_points(axes: Any, places: Sequence[tuple[float, float]], numbers: Sequence[int]) -> list[Any]:
    """Number points without overlap: each label at the nearest free place around its point, with a line to it.

    Labels keep clear of each other and of all points. Points that lie on one another share a label.
    """
    area = axes.get_window_extent(axes.figure.canvas.get_renderer())
    pixels = axes.transData.transform(np.array(places, np.float64).reshape(-1, 2))
    unit = axes.figure.dpi / 72  # points of type to pixels
    taken = [_box(float(x), float(y), 7 * unit, 7 * unit) for x, y in pixels]
    shared: dict[tuple[int, int], list[int]] = {}
    for row, (x, y) in enumerate(pixels):
        shared.setdefault((round(float(x)), round(float(y))), []).append(row)
    labels = []
    for rows in shared.values():
        (x, y), text = pixels[rows[0]], ", ".join(str(numbers[row]) for row in rows)
        wide, high = (5.5 * len(text) + 3) * unit, 11 * unit
        near = (place for place in _around(x, y, unit) if _free(_box(place[0], place[1], wide, high), taken, area))
        at = next(near, (x, y))
        taken.append(_box(at[0], at[1], wide, high))
        to = axes.transData.inverted().transform(at)
        line = {"arrowstyle": "-", "color": LEADER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        labels.append(
            axes.annotate(text, places[rows[0]], to, ha="center", va="center", fontsize=9, color=INK, arrowprops=line)
        )
    return labels


def _around(x: float, y: float, unit: float) -> Iterator[tuple[float, float]]:
    """Places around a point, the near ones first."""
    for radius in range(10, 130, 7):
        for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False) + np.pi / 4:
            yield x + radius * unit * float(np.cos(angle)), y + radius * unit * float(np.sin(angle))


def _box(x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]], area: Any) -> bool:
    left, low, right, high = box
    inside = area.x0 <= left and right <= area.x1 and area.y0 <= low and high <= area.y1
    return inside and not any(left < one[2] and one[0] < right and low < one[3] and one[1] < high for one in taken)


def sweep_svg(
    values: Sequence[str],
    rates: Sequence[tuple[str, str, Sequence[Value | None]]],
    costs: Sequence[Value | None],
    *,
    knob: str,
    cost: str,
    narrow: bool = False,
) -> str:
    """Rates above, cost below, against the values of one setting.

    Parameters
    ----------
    values
        Of the setting, at equal distances.
    rates
        Name, color, and rate at each value.
    costs
        At each value; all None: they are not drawn.
    knob, cost
        Labels.

    Raises
    ------
    ValueError
        There is not one rate and one cost for each value.
    """
    for name, found in (*((name, found) for name, _, found in rates), (cost, costs)):
        if len(found) != len(values):
            raise ValueError(f"{name}: expected {len(values)} values, got {len(found)}")
    drawn = any(one is not None for one in costs)
    with _drawing(f"sweep {knob}", narrow) as (figure, finish):
        figure.set_size_inches(3.9 if narrow else 5.6, 5.0 if drawn else 3.2)
        panels = figure.subplots(1 + drawn, 1, sharex=True, squeeze=False)[:, 0]
        for number, (name, color, found) in enumerate(rates):
            _line(panels[0], found, color, name, 0.05 * (number - (len(rates) - 1) / 2))
        _percent(panels[0], "flagged")
        panels[0].legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderpad=0)
        if drawn:
            _line(panels[1], costs, INK, cost, 0.0)
            panels[1].set_ylabel(cost)
            panels[1].set_ylim(bottom=min(0.0, panels[1].get_ylim()[0]))
            panels[1].spines[["top", "right"]].set_visible(False)
        panels[-1].set_xticks(range(len(values)), list(values))
        panels[-1].set_xlim(-0.4, len(values) - 0.6)
        panels[-1].set_xlabel(knob)
        return finish()


def _line(axes: Any, found: Sequence[Value | None], color: str, label: str, aside: float) -> None:
    there = [(place + aside, one) for place, one in enumerate(found) if one is not None]
    bars = np.array([one.bar for _, one in there], np.float64).reshape(-1, 2).T
    axes.errorbar(
        [place for place, _ in there], [one.value for _, one in there], bars, fmt="o-", color=color, markersize=5, capsize=3,
        linewidth=1.5, label=label,
    )  # fmt: skip


def _percent(axes: Any, label: str) -> None:
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{percent}%" for percent in range(0, 101, 20)])
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


@contextmanager
def _drawing(name: str, narrow: bool, points: float = 11) -> Iterator[tuple[Any, Any]]:
    """A figure with type of so many points, and what makes an SVG element of it."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    salt = f"auscult {name}" + " narrow" * narrow  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": points, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(dpi=72, layout="constrained")
        FigureCanvasAgg(figure)

        def finish() -> str:
            return svg_of(figure)

        yield figure, finish
