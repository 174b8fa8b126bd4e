"""What people look at and listen to: spectrograms, score histograms, excerpts small enough to put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal
import soundfile as sf

from .descriptors.mel import hz_to_mel, mel_filterbank, mel_to_hz
from .interrupts import interrupts_held

FloatArray = npt.NDArray[np.float32]

COLOR_MAP = "magma"  # even in lightness, readable without color vision; the same map everywhere in the project
QUERY_COLOR, REFERENCE_COLOR, NULL_COLOR = "#c2410c", "#0369a1", "#4b5563"  # orange-brown, blue, gray; all AA on white
SPECTROGRAM_RATE_HZ = 16_000
Scale = Literal["mel", "linear"]
SCALES: tuple[Scale, ...] = ("mel", "linear")
BANDS, LINEAR_BANDS, RANGE_DB = 96, 128, 70.0
N_FFT, HOP = 1024, 200  # 64 ms, 12.5 ms
MIN_HOP = 32  # 2 ms: closer frames of 64 ms look alike
MAX_COLUMNS = 640
MAX_FRAMES = 5000  # with a hop of HOP, a minute; longer sounds are looked at less often
BLOCK = 1024  # frames transformed at once
OUTSIDE_COLOR = (38, 38, 42)  # where a picture reaches beyond its clip
EXCERPT_RATE_HZ = 24_000


def spectrogram_png(
    samples: FloatArray, *, scale: Scale = "mel", width: int | None = None, outside: tuple[int, int] = (0, 0)
) -> bytes:
    """A spectrogram as a palette PNG, low frequencies at the bottom, without axes (the page draws those).

    Levels are relative to the loudest point that is shown, over a range of ``RANGE_DB``.

    Parameters
    ----------
    samples
        (time,) at 16 kHz. Memory grows with the picture, not with the samples.
    scale
        ``mel``, as descriptors hear, or ``linear``, up to 8 kHz both.
    width
        Columns of the picture; by default one for each 12.5 ms, up to ``MAX_COLUMNS``.
    outside
        Number of samples before and after that belong to no clip: they are drawn in a neutral gray, silence is black.
    """
    import matplotlib
    from PIL import Image

    if scale not in SCALES:
        raise ValueError(f"expected a scale of {' or '.join(SCALES)}, got {scale!r}")
    before, after = outside
    total = before + len(samples) + after
    if width is None:
        width = min(1 + total // HOP, MAX_COLUMNS)
    level = np.zeros((BANDS if scale == "mel" else LINEAR_BANDS, width), np.uint8)  # 0 is outside of the clip
    first = round(width * before / max(total, 1))
    last = max(first + 1, width - round(width * after / max(total, 1)))
    if len(samples) and first < width:
        decibel = spectrogram_db(samples, scale=scale, columns=last - first)
        level[:, first:last] = np.round((decibel[::-1] / RANGE_DB + 1) * 254).astype(np.uint8)[:, : width - first] + 1
    palette = np.empty((256, 3), np.uint8)
    palette[1:] = matplotlib.colormaps[COLOR_MAP](np.linspace(0, 1, 255))[:, :3] * 255
    palette[0] = OUTSIDE_COLOR
    image = Image.fromarray(level, mode="L")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def spectrogram_db(samples: FloatArray, *, scale: Scale = "mel", columns: int | None = None) -> FloatArray:
    """Spectrogram for the eye: bands x columns, dB below the maximum, floor ``-RANGE_DB``.

    Parameters
    ----------
    samples
        (time,) at 16 kHz.
    scale
        ``mel`` (``BANDS`` bands) or ``linear`` (``LINEAR_BANDS``).
    columns
        Number of columns; by default one for each frame of 12.5 ms. A column shows the loudest of its frames, so that
        onsets stay sharp.
    """
    hop = HOP if columns is None else int(np.clip(len(samples) / max(columns, 1), MIN_HOP, HOP))
    while len(samples) > hop * MAX_FRAMES and hop < N_FFT // 2:  # of minutes, every frame would take seconds
        hop = min(2 * hop, N_FFT // 2)
    padded = np.pad(samples, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::hop]
    window = scipy.signal.get_window("hann", N_FFT).astype(np.float32)
    bands = BANDS if scale == "mel" else LINEAR_BANDS
    columns = len(frames) if columns is None else columns
    power = np.zeros((bands, columns), np.float32)
    starts = (np.arange(columns) * len(frames)) // columns  # the first frame of each column; some share one
    per_block = max(1, columns * BLOCK // max(len(frames), 1))
    for column in range(0, columns, per_block):
        own = starts[column : column + per_block]
        begin = int(own[0])
        end = int(starts[column + per_block]) if column + per_block < columns else len(frames)
        end = max(end, int(own[-1]) + 1)
        spectrum = scipy.fft.rfft(frames[begin:end] * window, axis=-1)
        bins = np.square(spectrum.real) + np.square(spectrum.imag)
        if scale == "mel":
            rows = bins @ mel_filterbank(SPECTROGRAM_RATE_HZ, N_FFT, BANDS, SPECTROGRAM_RATE_HZ / 2).T
        else:  # without the last bin, half the sampling rate
            rows = bins[:, :-1].reshape(len(bins), LINEAR_BANDS, -1).mean(axis=2)
        power[:, column : column + len(own)] = np.maximum.reduceat(rows, own - begin, axis=0).T
    top = max(float(power.max(initial=0.0)), 1e-12)
    return np.asarray(10 * np.log10(np.maximum(power / top, 10 ** (-RANGE_DB / 10))), np.float32)


def frequency_ticks(scale: Scale = "mel") -> list[tuple[str, float]]:
    """Labels of the frequency axis and their height as a share of the picture, on a scale of the spectrogram."""
    top = hz_to_mel(SPECTROGRAM_RATE_HZ / 2)
    centers = mel_to_hz(np.linspace(0, top, BANDS + 2)[1:-1])
    ticks = []
    if scale == "linear":
        return [(f"{kilohertz} kHz", kilohertz * 2000 / SPECTROGRAM_RATE_HZ) for kilohertz in (1, 2, 4, 6)]
    for hertz, label in ((250, "250 Hz"), (1000, "1 kHz"), (2000, "2 kHz"), (4000, "4 kHz")):
        row = float(np.interp(hertz, centers, np.arange(BANDS)))
        ticks.append((label, (row + 0.5) / BANDS))
    return ticks


def time_ticks(duration_s: float, start_s: float = 0.0) -> list[tuple[str, float]]:
    """Labels of the time axis and their place as a share of its width: four to eight round numbers."""
    step = next(
        (
            step
            for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
            if duration_s / step <= 6
        ),
        600,
    )
    first = np.ceil(start_s / step - 1e-9) * step + 0.0  # and never minus zero
    return [
        (f"{t:g} s", (t - start_s) / duration_s)
        for t in np.round(np.arange(first, start_s + duration_s - 1e-9, step), 6).tolist()
        if (t - start_s) / duration_s <= 0.96
    ]


def excerpt_mp3(samples: FloatArray, rate_hz: int) -> bytes:
    """An excerpt as mono MP3 of about 50 kbit/s, which every browser plays; turned up to a peak of -1 dB if it is quiet."""
    peak = float(np.abs(samples).max(initial=0.0))
    if 0 < peak < 0.25 or peak > 0.9:
        samples = samples * np.float32(0.89 / peak)
    buffer = io.BytesIO()
    with interrupts_held():
        sf.write(
            buffer,
            samples,
            rate_hz,
            format="MP3",
            subtype="MPEG_LAYER_III",
            bitrate_mode="VARIABLE",
            compression_level=0.65,
        )
    return buffer.getvalue()


def histogram_svg(
    sets: Sequence[tuple[str, str, npt.NDArray[np.float64]]],
    *,
    tau: float | None,
    unit: str,
    narrow: bool = False,
    line: str = "tau",
) -> str:
    """Histograms of top-1 scores on one axis, log counts, with tau as a line, as an SVG element.

    Parameters
    ----------
    sets
        ``(label, color, scores)``, drawn in this order.
    tau
        Threshold; None: no line.
    unit
        What is counted, for the axis ("clips").
    narrow
        Drawn for a telephone: as high, half as wide, one entry of the legend a line. Both may stand in one page.
    line
        What ``tau`` is called in the legend.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    everything = np.concatenate([scores for *_, scores in sets] + [np.array([] if tau is None else [tau])])
    low, high = float(everything.min(initial=np.inf)), float(everything.max(initial=-np.inf))
    if low > high:  # no scores at all
        low, high = 0.0, 1.0
    margin = max(0.03 * (high - low), 1e-3)
    edges = np.linspace(low - margin, high + margin, 61)
    salt = "auscult narrow" if narrow else "auscult"  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.9, 3.6) if narrow else (7.2, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        top = 1.0
        for label, color, scores in sets:
            counts, *_ = axes.hist(
                scores,
                edges.tolist(),
                color=color,
                alpha=0.35,
                edgecolor=color,
                histtype="stepfilled",
                linewidth=1.5,
                label=f"{label} (n = {len(scores):,})",
            )
            top = max(top, float(np.max(counts)))
        if tau is not None:
            axes.axvline(tau, color="#111827", linestyle="--", linewidth=1.5, label=f"{line} = {tau:.4g}")
        axes.set_ylim(0.7, 1.5 * max(top, 2.0))
        axes.set_yscale("log")
        steps = (1.0, 2.0, 5.0) if top < 100 else (1.0,)
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=steps, numticks=20))
        axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set_xlabel("top-1 normalized score")
        axes.set_ylabel(f"number of {unit}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False,
            fontsize=10,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=1 if narrow else 2,
            columnspacing=1.2,
            borderpad=0,
        )
        return svg_of(figure)


def svg_of(figure: Any) -> str:
    """A figure of matplotlib as an SVG element whose ids are its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return _only_ids_in_use(svg[svg.index("<svg") :])


def _only_ids_in_use(svg: str) -> str:
    """Matplotlib names every group (``axes_1``), alike in every picture; a page may hold several."""
    used = set(re.findall(r"#([\w.-]+)", svg))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)


def reliability_svg(
    edges: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    verified: npt.NDArray[np.int64],
    *,
    label: str,
    even: bool = False,
    narrow: bool = False,
) -> str:
    """Share of replications among verified pairs, bin by bin of their score or p-value, with intervals, as an SVG element.

    Parameters
    ----------
    edges
        (bins + 1,) of the bins.
    share, low, high
        (bins,) share of replications and its interval, 0 to 1; a bin without pairs is left out.
    verified
        (bins,) pairs in each bin, written above it.
    label
        Of the axis of values.
    even
        Draw all bins equally wide, with their edges for ticks: for p-values, which crowd near 0.
    narrow
        For a phone: half as wide, so that the text stays readable.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    filled = np.flatnonzero(verified)
    place = np.arange(len(edges), dtype=np.float64) if even else edges
    middle, half = (place[1:] + place[:-1])[filled] / 2, np.diff(place)[filled] / 2
    share, low, high = share[filled], low[filled], high[filled]
    salt = "auscult reliability" + " narrow" * narrow  # of the ids that parts of a picture refer to each other by
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.8, 3.2) if narrow else (7.2, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.hlines(share, middle - half, middle + half, color=QUERY_COLOR, linewidth=2)
        bars = np.clip([share - low, high - share], 0, None)  # rounding can put a bound a hair beyond the share
        axes.errorbar(middle, share, bars, fmt="o", color=QUERY_COLOR, markersize=5, capsize=3, linewidth=1.5)
        for x, top, count in zip(middle, high, verified[filled], strict=True):
            axes.annotate(f"{count:,}", (x, top), (0, 4), textcoords="offset points", ha="center", fontsize=9, color="#4b5563")
        axes.set_ylim(-0.03, 1.12)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{percent}%" for percent in range(0, 101, 20)])
        if even:
            axes.set_xticks(place, [f"{edge:.3g}" for edge in edges], rotation=45 if narrow else 0)
        axes.set_xlabel(label)
        axes.set_ylabel("replications among verified")
        axes.spines[["top", "right"]].set_visible(False)
        return svg_of(figure)


def precision_recall_svg(
    recall: npt.NDArray[np.float64], precision: npt.NDArray[np.float64], *, at: tuple[float, float] | None, narrow: bool = False
) -> str:
    """Precision against recall of the scores, as an SVG element.

    Parameters
    ----------
    recall, precision
        (n,) from the highest threshold down, 0 to 1.
    at
        Recall and precision of what is flagged, drawn as a point; None: none.
    narrow
        For screens under 560 px.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = "auscult precision recall" + " narrow" * narrow
    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.8, 3.0) if narrow else (7.2, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.step(np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision]), color=QUERY_COLOR, linewidth=2)
        if at is not None:
            axes.plot(*at, "o", color="#111827", markersize=7, label="what is flagged")
            axes.legend(frameon=False, fontsize=10, loc="lower left")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.05)
        ticks = np.linspace(0, 1, 6)
        for set_ticks in (axes.set_xticks, axes.set_yticks):
            set_ticks(ticks, [f"{tick:.0%}" for tick in ticks])
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        axes.spines[["top", "right"]].set_visible(False)
        return svg_of(figure)
