"""What people look at and listen to: spectrograms, score histograms, excerpts small enough to put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal
import soundfile as sf

from .descriptors.mel import hz_to_mel, mel_filterbank, mel_to_hz

FloatArray = npt.NDArray[np.float32]

COLOR_MAP = "magma"  # even in lightness, readable without color vision; the same map everywhere in the project
QUERY_COLOR, REFERENCE_COLOR, NULL_COLOR = "#c2410c", "#0369a1", "#4b5563"  # orange-brown, blue, gray; all AA on white
SPECTROGRAM_RATE_HZ = 16_000
BANDS, RANGE_DB = 96, 70.0
N_FFT, HOP = 1024, 200  # 64 ms, 12.5 ms
MAX_COLUMNS = 640
EXCERPT_RATE_HZ = 24_000


def spectrogram_db(samples: FloatArray) -> FloatArray:
    """Mel spectrogram for the eye: ``BANDS`` x frames, dB below the maximum, floor ``-RANGE_DB``.

    Parameters
    ----------
    samples
        (time,) at 16 kHz.
    """
    padded = np.pad(samples, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = scipy.signal.get_window("hann", N_FFT).astype(np.float32)
    power = np.abs(scipy.fft.rfft(frames * window, axis=-1)) ** 2
    mel = mel_filterbank(SPECTROGRAM_RATE_HZ, N_FFT, BANDS, SPECTROGRAM_RATE_HZ / 2) @ power.T
    top = max(float(mel.max()), 1e-12)
    return np.asarray(10 * np.log10(np.maximum(mel / top, 10 ** (-RANGE_DB / 10))), np.float32)


def spectrogram_png(samples: FloatArray) -> bytes:
    """The spectrogram as a palette PNG, low frequencies at the bottom, without axes (the page draws those)."""
    import matplotlib
    from PIL import Image

    decibel = spectrogram_db(samples)
    if decibel.shape[1] > MAX_COLUMNS:  # keep the loudest of neighbouring frames, so that onsets stay sharp
        edges = np.linspace(0, decibel.shape[1], MAX_COLUMNS + 1).astype(int)[:-1]
        decibel = np.maximum.reduceat(decibel, edges, axis=1)
    level = np.round((decibel[::-1] / RANGE_DB + 1) * 255).astype(np.uint8)
    palette = (matplotlib.colormaps[COLOR_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)
    image = Image.fromarray(level, mode="L")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def frequency_ticks() -> list[tuple[str, float]]:
    """Labels of the frequency axis and their height as a share of the picture, on the mel scale of the spectrogram."""
    top = hz_to_mel(SPECTROGRAM_RATE_HZ / 2)
    centers = mel_to_hz(np.linspace(0, top, BANDS + 2)[1:-1])
    ticks = []
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


def histogram_svg(sets: Sequence[tuple[str, str, npt.NDArray[np.float64]]], *, tau: float | None, unit: str) -> str:
    """Histograms of top-1 scores on one axis, log counts, with tau as a line, as an SVG element.

    Parameters
    ----------
    sets
        ``(label, color, scores)``, drawn in this order.
    tau
        Threshold; None: no line.
    unit
        What is counted, for the axis ("clips").
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    everything = np.concatenate([scores for *_, scores in sets] + [np.array([] if tau is None else [tau])])
    low, high = float(everything.min()), float(everything.max())
    margin = max(0.03 * (high - low), 1e-3)
    edges = np.linspace(low - margin, high + margin, 61)
    with mpl.rc_context({"svg.hashsalt": "auscult", "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for label, color, scores in sets:
            axes.hist(
                scores,
                edges.tolist(),
                color=color,
                alpha=0.35,
                edgecolor=color,
                histtype="stepfilled",
                linewidth=1.5,
                label=f"{label} (n = {len(scores):,})",
            )
        if tau is not None:
            axes.axvline(tau, color="#111827", linestyle="--", linewidth=1.5, label=f"tau = {tau:.4g}")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set_xlabel("top-1 normalized score")
        axes.set_ylabel(f"number of {unit}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, borderpad=0
        )
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def reliability_svg(
    edges: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    verified: npt.NDArray[np.int64],
    *,
    label: str,
    even: bool = False,
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
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    filled = np.flatnonzero(verified)
    place = np.arange(len(edges), dtype=np.float64) if even else edges
    middle, half = (place[1:] + place[:-1])[filled] / 2, np.diff(place)[filled] / 2
    share, low, high = share[filled], low[filled], high[filled]
    with mpl.rc_context({"svg.hashsalt": "auscult", "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.hlines(share, middle - half, middle + half, color=QUERY_COLOR, linewidth=2)
        bars = np.clip([share - low, high - share], 0, None)  # rounding can put a bound a hair beyond the share
        axes.errorbar(middle, share, bars, fmt="o", color=QUERY_COLOR, markersize=5, capsize=3, linewidth=1.5)
        for x, top, count in zip(middle, high, verified[filled], strict=True):
            axes.annotate(f"{count:,}", (x, top), (0, 4), textcoords="offset points", ha="center", fontsize=9, color="#4b5563")
        axes.set_ylim(-0.03, 1.12)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{percent} %" for percent in range(0, 101, 20)])
        if even:
            axes.set_xticks(place, [f"{edge:.3g}" for edge in edges])
        axes.set_xlabel(label)
        axes.set_ylabel("replications among verified")
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
