"""Figures of studies: rates with intervals against what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ..figures import QUERY_COLOR, REFERENCE_COLOR, svg_of
from ..report.verification import wide_and_narrow

COLORS = {"contrast": QUERY_COLOR, "mel": REFERENCE_COLOR, "clap": "#7c3aed"}  # of what clips are compared by


@dataclass(frozen=True)
class Series:
    """One line of a figure: a rate, 0 to 1, and its interval at each place; None where there is none."""

    label: str
    color: str
    rates: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


def rates_svg(places: Sequence[str], series: Sequence[Series], *, label: str, of: str, narrow: bool = False) -> str:
    """Rates with their intervals at equally spaced places, as an SVG element.

    Parameters
    ----------
    places
        What stands below the axis, one text each.
    series
        Drawn side by side, so that no interval hides another.
    label, of
        Of the axes: what was varied, and what the rate is of.
    narrow
        Drawn for a telephone.

    Raises
    ------
    ValueError
        A series has not a value for each place.

    Examples
    --------
    >>> svg = rates_svg(["8", "24"], [Series("mel", "#c2410c", (1.0, None), (0.9, None), (1.0, None))], label="N", of="flagged")
    >>> svg.startswith("<svg"), "24" in svg
    (True, True)
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    for one in series:
        if not len(one.rates) == len(one.low) == len(one.high) == len(places):
            raise ValueError(f"{one.label}: expected {len(places)} rates with intervals, got {len(one.rates)}")
    salt = f"auscult rates {label}" + " narrow" * narrow  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.9, 3.6) if narrow else (7.2, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for number, one in enumerate(series):
            there = [place for place, rate in enumerate(one.rates) if rate is not None]
            x = np.array(there, np.float64) + 0.06 * (number - (len(series) - 1) / 2)
            rates, low, high = (
                np.array([values[place] for place in there], np.float64) for values in (one.rates, one.low, one.high)
            )
            bars = np.clip([rates - low, high - rates], 0, None)  # rounding can put a bound a hair beyond the rate
            axes.errorbar(x, rates, bars, fmt="o-", color=one.color, markersize=5, capsize=3, linewidth=1.5, label=one.label)
        axes.set_ylim(-0.03, 1.05)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{percent}%" for percent in range(0, 101, 20)])
        # on a telephone a word a line, or neighbors run into each other
        axes.set_xticks(range(len(places)), [place.replace(" ", "\n") if narrow else place for place in places])
        axes.tick_params("x", labelsize=9 if narrow else 11)
        axes.set_xlim(-0.4, len(places) - 0.6)
        axes.set_xlabel(label)
        axes.set_ylabel(of)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if narrow else 2, borderpad=0)
        return svg_of(figure)


def rates_picture(places: Sequence[str], series: Sequence[Series], *, label: str, of: str) -> Markup:
    """:func:`rates_svg` for wide screens and for telephones."""
    return Markup(wide_and_narrow(*(rates_svg(places, series, label=label, of=of, narrow=narrow) for narrow in (False, True))))
