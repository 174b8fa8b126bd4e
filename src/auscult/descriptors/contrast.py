"""What the replica detector hears: whitened local contrast of a log-mel spectrogram.

Three steps, each there for one reason.

1. *Levels*: 64 mel bands every 32 ms, in dB. This is what is stored (uint8, 20 KB for 10 s), absolute and window by window,
   and made relative to the clip's loudest quarter second when it is read; tempo and pitch hypotheses are made from it.
2. *Contrast*: minus the local mean and divided by the local spread over one second. Gain,
   equalization and everything stationary (hum, room, timbre) vanish; onsets and the random
   fluctuation that is unique to one recording stay.
3. *Whitening*: a fixed 64 x 64 matrix (inverse square root of the covariance that contrast
   has over many sounds), and a first difference over time. Broadband onsets, which all
   sounds share, are one direction out of 64 and shrink to the weight of one; what is
   left is nearly independent from band to band, so that a sum of products over a stretch
   of two unrelated sounds is close to Gaussian and chance agreement is quantifiable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from .base import DescriptorSpec, FloatArray

Levels = NDArray[np.uint8]
Frames = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz
WINDOW = 1_024  # samples, 64 ms
HOP = 512  # samples, 32 ms
FRAME_S = HOP / SAMPLE_RATE
BANDS = 64
LOW_HZ, HIGH_HZ = 60.0, 7_800.0

STEP_DB = 0.5  # of a stored level
DEPTH_DB = 60.0  # levels are stored down to this far below the loud level
FLOOR_DB = 40.0  # and used down to this: below it lies what codecs and noise replace
MARGIN_DB = 3.0  # a frame with no band this far above the floor is silent
LOUD_FRAMES = 8  # the loud level is the largest mean power over a quarter of a second

CONTRAST_FRAMES = 31  # one second
SPREAD_DB = 4.0  # spreads below this are not amplified: quiet ripple is not evidence
LIMIT = 3.0  # contrast is cut here: one loud click must not outvote a second of sound
DIFFERENCE = 0.5  # of the previous frame is subtracted (64 ms windows overlap by half)

FRAMES = 324  # of a stored window: 10.368 s
LOWEST_DB = -75.0  # of a stored absolute level; full-scale sound reaches about +50
QUIET_DB = -70.0  # a clip whose loudest quarter second lies below has nothing to hear

# Of the usual norm of whitened contrast. Hum, tones and drones stay below 0.05 (a drone that swells by 20 %: 0.15); of the
# frames of real recordings, 1 % lie below 0.14 to 0.8, depending on the clip.
FLAT = 0.12
FEWEST = 5  # frames: a clip in which fewer are heard (a hum that is switched on and off) has no pattern to compare
# Effective dimension of two seconds and more of sound. A tone with vibrato or switched on and off, two beating tones, a
# swelling drone reach 1 to 2.6 and match any other of their kind; the least varied of 240 field recordings reaches 5.
MONOTONOUS = 2.7
MONOTONOUS_FRAMES = 62

WHITENING_FILE = Path(__file__).with_name("whitening.npz")


def mel_centers() -> NDArray[np.float64]:
    """Band centers in Hz (mel formula of O'Shaughnessy, as in HTK)."""
    return _mel_edges()[1:-1]


def _mel_edges() -> NDArray[np.float64]:
    mel = np.linspace(2595 * np.log10(1 + LOW_HZ / 700), 2595 * np.log10(1 + HIGH_HZ / 700), BANDS + 2)
    return 700 * (10 ** (mel / 2595) - 1)


@cache
def _filters() -> NDArray[np.float32]:
    """Triangles ``(WINDOW // 2 + 1, BANDS)``, at least one bin wide on each side."""
    edges = _mel_edges()
    bins = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    width = np.maximum(np.diff(edges), SAMPLE_RATE / WINDOW)
    rise = 1 - (edges[1:-1, None] - bins) / width[:-1, None]
    fall = 1 - (bins - edges[1:-1, None]) / width[1:, None]
    return np.ascontiguousarray(np.maximum(0, np.minimum(rise, fall)).T.astype(np.float32))


@cache
def _window() -> NDArray[np.float32]:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@dataclass(frozen=True)
class ContrastDescriptor:
    """Log-mel levels of windows of 10.368 s: what the two-stage detector (`auscult.alignment`) works on.

    Not a vector to take cosines of: a window's 324 x 64 levels, in steps of 0.5 dB from -75 dB, flattened. A clip's
    windows follow each other without overlap, the last one padded; `assemble` puts them together again.
    """

    dtype = "uint8"  # levels are bytes
    tail = "pad"  # the last window of a recording is padded, so that frames keep their clock

    @property
    def spec(self) -> DescriptorSpec:
        """``contrast/1()``; everything is fixed by the version."""
        return DescriptorSpec("contrast", 1)

    @property
    def sample_rate_hz(self) -> int:
        """16 kHz."""
        return SAMPLE_RATE

    @property
    def window_samples(self) -> int:
        """165,888."""
        return FRAMES * HOP

    @property
    def dimension(self) -> int:
        """20,736 bytes."""
        return FRAMES * BANDS

    def describe(self, windows: FloatArray) -> Levels:
        """Absolute levels (n, 20736) of windows (n, 165888)."""
        if windows.ndim != 2 or windows.shape[1] != self.window_samples:
            raise ValueError(f"expected windows of shape (n, {self.window_samples}), got {windows.shape}")
        return np.stack([absolute_levels(window)[:FRAMES].ravel() for window in windows])


def absolute_levels(audio: FloatArray) -> Levels:
    """``level[t, b] = (10 log10 P[t, b] - LOWEST_DB) / STEP_DB``, cut to [0, 255].

    Parameters
    ----------
    audio
        Mono at `SAMPLE_RATE`, shape ``(time,)``, full scale 1.

    Returns
    -------
    Levels
        uint8, shape ``(frames, BANDS)``, frame ``t`` centered at ``t * FRAME_S``; zero for silence.
    """
    padded = np.zeros(len(audio) + WINDOW + HOP, np.float32)
    padded[WINDOW // 2 : WINDOW // 2 + len(audio)] = audio
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(audio) // HOP + 1]
    spectrum = scipy.fft.rfft(frames * _window(), axis=1)
    power = (spectrum.real**2 + spectrum.imag**2) @ _filters()
    decibel = 10 * np.log10(np.maximum(power, 10 ** (LOWEST_DB / 10)))
    return np.asarray(np.clip(np.rint((decibel - LOWEST_DB) / STEP_DB), 0, 255), np.uint8)


def assemble(windows: Iterable[tuple[float, Levels]], frames: int) -> Levels:
    """Absolute levels (frames, BANDS) of a clip from its stored windows, each with its start in seconds."""
    whole = np.zeros((frames, BANDS), np.uint8)
    for start_s, window in windows:
        first = round(start_s / FRAME_S)
        piece = window.reshape(FRAMES, BANDS)[: max(frames - first, 0)]
        whole[first : first + len(piece)] = piece
    return whole


def relative_levels(absolute: Levels) -> Levels:
    """Levels in steps of `STEP_DB` from `DEPTH_DB` below the loudest quarter second around, cut to [0, 255].

    The loudest quarter second, and not an average, because padding does not change it; of `FRAMES` frames to either side, so
    that a quiet movement of a long recording is heard, while clips of up to 10 s have one level. All zero where there is
    nothing to hear.
    """
    power = np.where(absolute > 0, 10 ** ((absolute * STEP_DB + LOWEST_DB) / 10), 0.0)
    mean = uniform_filter1d(power.mean(axis=1), min(LOUD_FRAMES, len(power)), mode="constant")
    loud = maximum_filter1d(mean, 2 * FRAMES - 1, mode="constant")[:, None]
    shift = (DEPTH_DB + LOWEST_DB - 10 * np.log10(np.maximum(loud, 1e-30))) / STEP_DB
    heard = (absolute > 0) & (loud >= 10 ** (QUIET_DB / 10))
    return np.where(heard, np.clip(np.rint(absolute + shift), 0, 255), 0).astype(np.uint8)


def describe(audio: FloatArray) -> Levels:
    """Relative levels of one clip in memory, shape ``(frames, BANDS)``: what a store gives for it.

    Examples
    --------
    >>> describe(np.zeros(16_000, np.float32)).shape
    (32, 64)
    """
    if audio.ndim != 1:
        raise ValueError(f"audio must have shape (time,), got {audio.shape}")
    return relative_levels(absolute_levels(audio))


def active(levels: NDArray[np.floating] | Levels) -> NDArray[np.bool_]:
    """Frames that are not silent, shape ``(frames,)``."""
    threshold = (DEPTH_DB - FLOOR_DB + MARGIN_DB) / STEP_DB
    return levels.max(axis=1, initial=0) > threshold


def warp(levels: Levels, *, tempo: float = 1.0, pitch: float = 0.0) -> NDArray[np.float32]:
    """Levels as if the clip were `tempo` times faster and `pitch` semitones lower.

    A query that is an original slowed down to ``1 / tempo`` and raised by `pitch`
    comes out as the original would be. Linear interpolation over frames and over bands
    (``f -> f 2**(pitch / 12)``).
    """
    out = levels.astype(np.float32)
    if tempo != 1.0:
        time = np.arange(max(1, int(len(out) / tempo))) * tempo
        low = np.minimum(time.astype(int), len(out) - 1)
        high, blend = np.minimum(low + 1, len(out) - 1), (time - low)[:, None].astype(np.float32)
        out = (1 - blend) * out[low] + blend * out[high]
    if pitch != 0.0:
        centers = mel_centers()
        band = np.interp(centers * 2 ** (pitch / 12), centers, np.arange(BANDS))
        low = band.astype(int)
        high, blend = np.minimum(low + 1, BANDS - 1), (band - low).astype(np.float32)
        out = (1 - blend) * out[:, low] + blend * out[:, high]
    return out


def contrast(levels: NDArray[np.floating] | Levels) -> Frames:
    """Local contrast, shape ``(frames, BANDS)``; silent frames are zero and count in no mean.

    ``(L - mean) / max(spread, SPREAD_DB)`` with mean and standard deviation over
    `CONTRAST_FRAMES` active frames around, cut to ``[-LIMIT, LIMIT]``.
    """
    decibel = np.maximum(levels.astype(np.float32) * STEP_DB - DEPTH_DB, -FLOOR_DB)
    mask = active(levels).astype(np.float32)[:, None]
    weight = _local_mean(mask) + 1e-6
    deviation = (decibel - _local_mean(decibel * mask) / weight) * mask
    variance = np.maximum(_local_mean(deviation**2) / weight, 0.0)
    return np.clip(deviation / np.maximum(np.sqrt(variance), SPREAD_DB), -LIMIT, LIMIT)


def _local_mean(values: Frames) -> Frames:
    return uniform_filter1d(values, CONTRAST_FRAMES, axis=0, mode="constant")


@dataclass(frozen=True)
class Whitening:
    """The fixed linear map behind step 3: `matrix` ``(BANDS, BANDS)``."""

    matrix: NDArray[np.float32]


@cache
def load_whitening() -> Whitening:
    """The matrix that ships with the package."""
    with np.load(WHITENING_FILE) as file:
        return Whitening(file["matrix"].astype(np.float32))


def fit_whitening(contrasts: list[Frames], *, ridge: float = 0.1) -> Whitening:
    """``W = V (D + ridge mean(D))**(-1/2) V'`` of the covariance ``V D V'`` of active frames."""
    rows = np.concatenate(contrasts).astype(np.float64)
    rows = rows[np.abs(rows).sum(axis=1) > 0]
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    scaled = vectors / np.sqrt(values + ridge * values.mean())
    return Whitening((scaled @ vectors.T).astype(np.float32))


def fingerprint(levels: NDArray[np.floating] | Levels, whitening: Whitening | None = None) -> Frames:
    """Whitened contrast, shape ``(frames, BANDS)``, row norms in [0, 1].

    A frame whose contrast is smaller than usual keeps a smaller norm; one below `FLAT` is zero, as in silence: what is
    left of a steady tone is the ripple of its analysis, which repeats exactly and would look like the best of copies.
    With fewer than `FEWEST` frames left, or if they spread over fewer than `MONOTONOUS`
    directions although the sound lasts, all are zero.
    """
    whitening = whitening or load_whitening()
    local = contrast(levels)
    white = local @ whitening.matrix
    white[1:] -= DIFFERENCE * white[:-1].copy()
    norm = np.linalg.norm(white, axis=1, keepdims=True)
    usual = np.float32(np.sqrt(BANDS))  # of white noise with unit variance per band
    white *= np.minimum(norm / usual, 1.0) / np.maximum(norm, 1e-6)
    loud = active(levels)
    heard = loud[:, None] & (norm > FLAT * usual)
    white *= heard & (np.count_nonzero(heard) >= FEWEST)
    if np.count_nonzero(loud) >= MONOTONOUS_FRAMES and effective_dimension(white) < MONOTONOUS:
        white[:] = 0.0
    return white.astype(np.float32)


def effective_dimension(frames: Frames) -> float:
    """Participation ratio of the frames' second moments, ``tr(C)^2 / tr(C^2)``: over how many directions they spread.

    1 if all frames are multiples of one pattern, `BANDS` for white noise; 0 for silence.
    """
    moments = frames.T @ frames
    return float(np.trace(moments) ** 2 / max(float((moments**2).sum()), 1e-12))
