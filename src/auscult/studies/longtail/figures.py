"""The figure of a long-tail study that others have not: what clips match, as bars that add up."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from ...figures import svg_of

NARROW_CHARACTERS = 30  # of a line on a telephone


def shares_svg(
    rows: Sequence[str],
    parts: Sequence[tuple[str, str, Sequence[float]]],
    *,
    label: str,
    sure: Sequence[Sequence[float]] | None = None,
    narrow: bool = False,
) -> str:
    """Bars of parts that add up to at most 1, one a row, as an SVG element.

    Parameters
    ----------
    rows
        What stands beside the bars, from the top.
    parts
        Name, color, and share in each row, 0 to 1.
    label
        Of the axis.
    sure
        How much of each part, in the order of ``parts``, is told apart by full color; the rest of it is pale.
    narrow
        Drawn for a telephone.

    Raises
    ------
    ValueError
        A part has not a share for each row.

    Examples
    --------
    >>> svg = shares_svg(["plain"], [("own", "#c2410c", [0.25])], label="clips")
    >>> svg.startswith("<svg"), "plain" in svg
    (True, True)
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    solid = [list(shares) for _, _, shares in parts] if sure is None else [list(one) for one in sure]
    if any(len(shares) != len(rows) for _, _, shares in parts) or any(len(one) != len(rows) for one in solid):
        raise ValueError(f"expected shares for {len(rows)} rows, got {[len(shares) for _, _, shares in parts]}")
    salt = f"auscult shares {label}" + " narrow" * narrow  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        height = 0.42 * len(rows) + (2.9 if narrow else 1.4)
        figure = Figure(figsize=(3.9 if narrow else 7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        places, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for (name, color, shares), full in zip(parts, solid, strict=True):
            axes.barh(places, full, left=left, color=color, height=0.62, label=_wrapped(name, narrow))
            axes.barh(places, np.subtract(shares, full).clip(0), left=left + full, color=color, alpha=0.3, height=0.62)
            left += np.asarray(shares, np.float64)
        axes.set_yticks(places, [row.replace(", ", ",\n") if narrow else row for row in rows])
        axes.set_xlim(0, 1)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{percent}%" for percent in range(0, 101, 20)])
        axes.set_xlabel(_wrapped(label, narrow))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if narrow else 2, borderpad=0)
        return svg_of(figure)


def _wrapped(text: str, narrow: bool) -> str:
    return textwrap.fill(text, NARROW_CHARACTERS) if narrow else text
