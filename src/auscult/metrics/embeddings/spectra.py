"""The front ends of the backends: samples checked, framed, and summed into bands, one piece of code for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

_BLOCK = 4096  # frames in memory at once: an hour of audio needs no more than a minute does


def check_samples(samples: npt.NDArray[Any], shortest: int, sample_rate_hz: int, name: str) -> None:
    """Check what a backend is to embed.

    Raises
    ------
    ValueError
        Not one channel, or fewer than ``shortest`` samples.

    Examples
    --------
    >>> check_samples(np.zeros(15_600), 15_600, 16_000, "vggish")
    """
    if samples.ndim != 1:
        raise ValueError(f"{name} wants samples of shape (time,), mono, got {samples.shape}")
    if len(samples) < shortest:
        raise ValueError(
            f"{name} needs at least {shortest} samples ({shortest / sample_rate_hz:g} s at {sample_rate_hz} Hz), "
            f"got {len(samples)}"
        )


def count_frames(n_samples: int, window: int, hop: int) -> int:
    """Windows that lie within the samples as a whole, ``1 + floor((n - window) / hop)``, or 0; nothing is padded.

    >>> count_frames(15_600, 400, 160), count_frames(15_599, 400, 160), count_frames(399, 400, 160)
    (96, 95, 0)
    """
    return 1 + (n_samples - window) // hop if n_samples >= window else 0


def hann(window: int) -> npt.NDArray[np.float64]:
    """The periodic Hann window, ``0.5 - 0.5 cos(2 pi k / window)``.

    >>> hann(4).round(9).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    return 0.5 - 0.5 * np.cos(2 * np.pi / window * np.arange(window))


def band_sums(
    samples: npt.NDArray[Any], bands: npt.NDArray[Any], *, window: int, hop: int, n_fft: int, magnitude: bool = False
) -> npt.NDArray[Any]:
    """Spectra of Hann-windowed frames, summed into bands: ``|rfft(hann * frame)|^p @ bands``.

    Parameters
    ----------
    samples
        (time,), float32 or float64, which is the precision of all that follows.
    bands
        (n_fft // 2 + 1, n) weights of the bins in each band.
    window, hop, n_fft
        Length of a frame, distance of frames, and of the transform (zeros after the frame), in samples.
    magnitude
        p is 1 rather than 2.

    Returns
    -------
    ndarray (frames, n)
        :func:`count_frames` of them.

    Examples
    --------
    >>> band_sums(np.ones(8), np.eye(3), window=4, hop=4, n_fft=4, magnitude=True).round(9).tolist()
    [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]
    """
    if count_frames(len(samples), window, hop) == 0:
        return np.empty((0, bands.shape[1]), samples.dtype)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    taper, bands = hann(window).astype(samples.dtype), bands.astype(samples.dtype, copy=False)
    sums = np.empty((len(frames), bands.shape[1]), samples.dtype)
    for start in range(0, len(frames), _BLOCK):
        spectrum = scipy.fft.rfft(frames[start : start + _BLOCK] * taper, n_fft, axis=-1)
        power = spectrum.real**2 + spectrum.imag**2
        sums[start : start + _BLOCK] = (np.sqrt(power) if magnitude else power) @ bands
    return sums
