"""A backend without weights: levels of mel bands and how much they move, so that every metric runs out of the box.

It is no VGGish, and distances on it are no FAD: they compare how sets of clips sound in level, spectrum and unrest, not what is
heard in them. It answers whether generated audio is noisy, muffled, too loud, falling silent, or of other sounds altogether.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ...descriptors import DescriptorSpec
from ...descriptors.mel import mel_filterbank
from .base import Backend, Embedded, FloatArray
from .spectra import band_sums, check_samples, count_frames, hann

SAMPLE_RATE_HZ = 16_000
WINDOW = 800  # samples, 50 ms
HOP = 400  # 25 ms
N_BANDS = 32
STRETCH = 16_000  # 1 s: 39 windows
STRETCH_HOP = 8_000  # 0.5 s
FLOOR = 1e-8  # power of white noise at -80 dB of full scale: what is softer counts as silence
_WINDOWS = count_frames(STRETCH, WINDOW, HOP)


def load(name: str, weights: str | None, device: str, **parameters: object) -> Backend:
    """The backend ``logmel``; it runs on the CPU whatever the device, and has no settings.

    Raises
    ------
    ValueError
        Weights or settings were given.

    Examples
    --------
    >>> backend = load("logmel", None, "cpu")
    >>> str(backend.spec), backend.dimension, backend.frame
    ('logmel/1()', 64, '1 s every 0.5 s')
    """
    if weights is not None or parameters:
        raise ValueError(f"the backend {name!r} has no weights and no settings, got {weights or ', '.join(parameters)!r}")
    return Backend(
        spec=DescriptorSpec(name, 1),
        sample_rate_hz=SAMPLE_RATE_HZ,
        dimension=2 * N_BANDS,
        shortest_samples=STRETCH,
        frechet="fd",
        frame="1 s every 0.5 s",
        embed=lambda samples: Embedded(features(samples)),
    )


def features(samples: FloatArray) -> FloatArray:
    """Mean and standard deviation over each second of the levels in 32 mel bands.

    With windows of 50 ms every 25 ms, w the periodic Hann window and m_b the filters of Slaney's mel bands of 0-8000 Hz, each
    with the sum 1::

        level[t, b] = log10(10^-8 + sum_f m_b[f] |rfft(w x_t)[f]|^2 / sum w^2)

    in bel (10 dB), so that white noise of power p is near log10(p) in every band. The mean over the 39 windows of a second
    tells loudness and spectrum: noise, a codec's cut, a low-pass and a wrong level move it. The standard deviation tells
    unrest: a hiss over events, or events smeared to a steady sound, lower it. Below the floor of -80 dB all is equal, so
    digital silence is at -8 in every mean and 0 in every deviation: finite, and as far from sound as sound is above the floor.

    What is left after the last whole second (less than 0.5 s) is in no frame, and what lies above 8 kHz is not heard at all.

    Parameters
    ----------
    samples
        (time,) mono at 16 kHz, at least 16,000.

    Returns
    -------
    ndarray (1 + (time - 16000) // 8000, 64) float32
        Means of bands 0 to 31, then their deviations.

    Raises
    ------
    ValueError
        Other shape, or too short.

    Examples
    --------
    >>> silence = features(np.zeros(40_000, np.float32))
    >>> silence.shape, float(silence[0, 0]), float(silence[0, 32])
    ((4, 64), -8.0, 0.0)
    """
    check_samples(samples, STRETCH, SAMPLE_RATE_HZ, "logmel")
    power = band_sums(np.asarray(samples, np.float32), _bands(), window=WINDOW, hop=HOP, n_fft=WINDOW)
    levels = np.log10(power.astype(np.float64) + FLOOR)
    stretches = np.lib.stride_tricks.sliding_window_view(levels, _WINDOWS, axis=0)[:: STRETCH_HOP // HOP]
    return np.concatenate([stretches.mean(axis=-1), stretches.std(axis=-1)], axis=1).astype(np.float32)


@lru_cache(maxsize=1)
def _bands() -> npt.NDArray[np.float64]:
    """(bins, bands): each band sums to 1 over its bins, and to the window's energy."""
    filters = mel_filterbank(SAMPLE_RATE_HZ, WINDOW, N_BANDS, SAMPLE_RATE_HZ / 2).astype(np.float64)
    return (filters / filters.sum(axis=1, keepdims=True) / (hann(WINDOW) ** 2).sum()).T
