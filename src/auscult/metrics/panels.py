"""Figures of evaluations: a score over how often a class was in training, for several systems."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..figures import QUERY_COLOR, REFERENCE_COLOR, svg_of
from ..inputs import listed
from .longtail import Bin, LongTail
from .scoreboard import NONE, escaped, format_score, markdown_lines

COLORS = (QUERY_COLOR, REFERENCE_COLOR, "#15803d", "#7e22ce", "#4b5563", "#a16207")  # all AA on white
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 to 6 colors, so 42 systems look unlike, also without color
SPREAD = 0.62  # of the width of a bin that the systems share
EMPTY = "no class"
LONGEST, LONGEST_NARROW = 37, 31  # characters of a name in a legend
FEW_CLIPS = 10  # whose interval is too narrow to be trusted


@dataclass(frozen=True)
class Panel:
    """A figure for a page: heading, what to see in it, an SVG element for wide and one for narrow screens, and its numbers."""

    title: str
    text: str
    wide: str
    narrow: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def long_tail_panel(results: Mapping[str, LongTail], *, label: str) -> Panel:
    """The long tail of several systems as figure and table.

    Parameters
    ----------
    results
        By the names of the systems; all with the same bins.
    label
        What the values are ("CLAP score").
    """
    first = _checked(results)
    few = [one.name for one in first.bins if 0 < one.clips < FEW_CLIPS]
    text = (
        f"Are sounds that were rare in training made worse? Classes of sound are sorted by how many training clips carry them, "
        f"rare ones to the left. A point is the mean {label} of the classes of such a group, every class counting alike. The "
        "bars are 95 % intervals, for other clips drawn from the same source; of one clip there is none."
    )
    if few:
        text += f" Fewer than {FEW_CLIPS} clips lie in {listed(few)}: intervals there are too narrow."
    if unlabeled := max(one.unlabeled for one in results.values()):
        text += f" {unlabeled:,} clips carry no label and count nowhere."
    wide, narrow = (long_tail_svg(results, label=label, narrow=narrow) for narrow in (False, True))
    head, rows = long_tail_table(results)
    return Panel(f"{label} from rare to frequent sounds", text, wide, narrow, head, rows)


def long_tail_table(results: Mapping[str, LongTail]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The numbers of several systems with the same bins: names of the columns, and one row of texts for each bin."""
    _checked(results)
    head = ("training clips", "classes", "clips", *results)
    rows = tuple(
        (bins[0].name, _range(bins, "classes"), _range(bins, "clips"), *map(_value, bins))
        for bins in zip(*(one.bins for one in results.values()), strict=True)
    )
    return head, rows


def panel_markdown(panel: Panel) -> str:
    """Heading, text and numbers of a panel as Markdown, without the picture; names are escaped."""
    rows = markdown_lines([*map(escaped, panel.head)], [[*map(escaped, row)] for row in panel.rows])
    return "\n".join([f"## {escaped(panel.title)}", "", escaped(panel.text), "", *rows]) + "\n"


def long_tail_csv(results: Mapping[str, LongTail]) -> str:
    """One line for each bin of each system, at full precision; empty where there is none."""
    text = io.StringIO()
    names = [one.name for one in fields(Bin)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "bin", *names])
    for system, result in results.items():
        for one in result.bins:
            facts = [getattr(one, name) for name in names]
            writer.writerow([system, one.name, *("" if fact is None else fact for fact in facts)])
    return text.getvalue()


def long_tail_svg(results: Mapping[str, LongTail], *, label: str, narrow: bool = False) -> str:
    """A per-clip score over bins of training frequency, with intervals, as an SVG element.

    Under each bin stand its clips and classes; a bin without a class says so and has no point.

    Parameters
    ----------
    results
        By the names of the systems; all with the same bins.
    label
        Of the axis of values.
    narrow
        For a phone: half as wide, so that the text stays readable. Both may stand in one page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    first = _checked(results)
    salt = "auscult long tail" + " narrow" * narrow  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        per_line = 1 if narrow else 2
        lines = -(-len(results) // per_line)
        figure = Figure(figsize=(3.9, 3.5 + 0.2 * lines) if narrow else (7.2, 3.4 + 0.2 * lines), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        handles = [_draw(axes, result, place, len(results)) for place, result in enumerate(results.values())]
        _empty_bins(axes, results)
        _counts_below(axes, results, narrow)
        axes.set_xlim(-0.5, len(first.bins) - 0.5)
        axes.margins(y=0.12)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(
            handles,
            [_plain(name, LONGEST_NARROW if narrow else LONGEST) for name in results],
            frameon=False,
            fontsize=10,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=per_line,
            columnspacing=1.2,
            borderpad=0,
        )
        return svg_of(figure)


def _draw(axes: Any, result: LongTail, place: int, systems: int) -> Any:
    """Points with intervals of a system, a little beside those of the others; a thin line joins neighbors."""
    color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
    shift = SPREAD * ((place + 0.5) / systems - 0.5)
    at = [number + shift for number in range(len(result.bins))]
    gaps = [float("nan") if one.value is None else one.value for one in result.bins]  # a line ends where a bin is empty
    axes.plot(at, gaps, color=color, linewidth=1, alpha=0.45)
    for x, one in zip(at, result.bins, strict=True):
        if one.low is not None and one.high is not None:
            axes.vlines(x, one.low, one.high, color=color, linewidth=2)
    return axes.plot(at, gaps, marker, color=color, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6)[0]


def _empty_bins(axes: Any, results: Mapping[str, LongTail]) -> None:
    from matplotlib.transforms import blended_transform_factory

    where = blended_transform_factory(axes.transData, axes.transAxes)
    for number, bins in enumerate(zip(*(one.bins for one in results.values()), strict=True)):
        if all(one.value is None for one in bins):
            axes.text(number, 0.03, EMPTY, transform=where, rotation=90, ha="center", va="bottom", fontsize=9, color="#4b5563")


def _counts_below(axes: Any, results: Mapping[str, LongTail], narrow: bool) -> None:
    """Frequencies of the bins as ticks, and under each its clips and classes."""
    columns = list(zip(*(one.bins for one in results.values()), strict=True))
    size = 8.5 if narrow else 10
    ticks = [bins[0].name.replace("-", "-\n" if narrow and len(bins[0].name) > 5 else "-") for bins in columns]
    axes.set_xticks(range(len(columns)), ticks, fontsize=size)
    for name, down in (("clips", 0.0), ("classes", 1.0)):
        y = -(36 if narrow else 32) - 14 * down
        for number, bins in enumerate(columns):
            _below(axes, number, y, _range(bins, name), size, "center")
        _below(axes, -0.62, y, name, size, "right")
    axes.set_xlabel("training clips that carry the class", labelpad=34 if narrow else 42)


def _below(axes: Any, x: float, points: float, text: str, size: float, side: str) -> None:
    axes.annotate(
        text,
        (x, 0),
        (0, points),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=size,
        color="#4b5563",
        annotation_clip=False,
    )


def _checked(results: Mapping[str, LongTail]) -> LongTail:
    if not results:
        raise ValueError("expected at least one system to show, got none")
    bins = {name: tuple((one.least, one.below) for one in result.bins) for name, result in results.items()}
    if len(set(bins.values())) > 1:
        raise ValueError(f"the systems {', '.join(map(repr, bins))} were sorted into unlike bins; use the same edges for all")
    return next(iter(results.values()))


def _plain(name: str, longest: int) -> str:
    """A name that matplotlib neither sets as a formula nor leaves out of a legend; of a long one both ends."""
    half = (longest - 1) // 2
    short = name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"
    return ("\u200b" if short.startswith("_") else "") + short.replace("$", r"\$")


def _range(bins: Sequence[Bin], name: str) -> str:
    counts: list[int] = sorted({getattr(one, name) for one in bins})
    text: Callable[[int], str] = "{:,}".format
    return text(counts[0]) if len(counts) == 1 else f"{text(counts[0])}-{text(counts[-1])}"


def _value(one: Bin) -> str:
    return NONE if one.value is None else " ".join(filter(None, format_score(one.value, one.low, one.high)))
