"""Mixing two sounds and their captions into one: the augmentation of TANGO, at equal loudness.

Both sounds are brought to the same A-weighted sound pressure level before they are added (Tokozume et al., "Learning from
Between-class Examples for Deep Sound Recognition", ICLR 2018, eq. 2; Ghosal et al., TANGO, 2023), so that a loud sound does
not bury a quiet one that its caption promises.

Unlike TANGO's tools, each mixture has its own peak, whatever else is in its batch, and any sample rate will do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

FRAME = 2048  # samples of a frame at 44.1 kHz, as in TANGO
HOP = FRAME // 2
FLOOR_DB = -80.0  # A-weighting falls without bound towards 0 Hz
POWER_FLOOR = 1e-12


def a_weighting_db(frequencies_hz: FloatArray) -> FloatArray:
    """A-weighting of IEC 61672-1, appendix E, in dB: how much quieter a tone is heard than one at 1 kHz.

    ``A(f) = 2 + 20 log10(12194^2 f^4 / ((f^2 + 20.6^2) sqrt((f^2 + 107.7^2)(f^2 + 737.9^2)) (f^2 + 12194^2)))``

    Parameters
    ----------
    frequencies_hz
        (n,), not negative.

    Returns
    -------
    array
        (n,) in dB, not below ``FLOOR_DB``.

    Examples
    --------
    >>> a_weighting_db(np.array([100.0, 1000.0, 10000.0])).round(1).tolist()
    [-19.1, 0.0, -2.5]
    """
    square = np.asarray(frequencies_hz, dtype=np.float64) ** 2
    above = 12194.217**2 * square**2
    below = (square + 20.598997**2) * np.sqrt((square + 107.65265**2) * (square + 737.86223**2)) * (square + 12194.217**2)
    return np.maximum(2.0 + 20.0 * np.log10(np.maximum(above / below, 1e-20)), FLOOR_DB)


def loudness_db(samples: FloatArray, rate_hz: int) -> float:
    """Level of the loudest moment: ``G = max over frames of 10 log10 sum_f |STFT|^2 10^(A(f) / 10)``.

    Parameters
    ----------
    samples
        (time,); frames have 2048 samples, half overlapped, under a Hann window; a shorter sound is one padded frame.
    rate_hz
        Sample rate in Hz.

    Returns
    -------
    float
        In dB, relative to nothing in particular: only differences at one rate mean something.

    Examples
    --------
    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    >>> round(loudness_db(tone, 16000) - loudness_db(0.1 * tone, 16000), 2)
    20.0
    """
    samples = np.asarray(samples, dtype=np.float64)
    if len(samples) < FRAME:
        samples = np.pad(samples, (0, FRAME - len(samples)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    weights = 10.0 ** (a_weighting_db(np.fft.rfftfreq(FRAME, 1 / rate_hz)) / 10)
    loudest = POWER_FLOOR
    for start in range(0, len(frames), 256):  # a minute at a time, not the spectrogram of an hour
        power = np.abs(np.fft.rfft(frames[start : start + 256] * window, axis=1)) ** 2
        loudest = max(loudest, float((power @ weights).max()))
    return float(10.0 * np.log10(loudest))


def mixing_share(first_db: float, second_db: float, ratio: float = 0.5) -> float:
    """Share ``t`` of the first sound: ``t = 1 / (1 + 10^((G1 - G2) / 20) (1 - r) / r)``.

    At ``ratio`` 0.5 both are heard equally loud: ``G1 + 20 log10 t = G2 + 20 log10 (1 - t)``.

    Parameters
    ----------
    first_db, second_db
        A-weighted levels of the two sounds, see :func:`loudness_db`.
    ratio
        How much of the mixture is to be heard as the first sound, in (0, 1).

    Examples
    --------
    >>> mixing_share(-20.0, -20.0)
    0.5
    >>> round(mixing_share(0.0, -20.0), 4)  # ten times the amplitude: a tenth of the share of the other
    0.0909
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio should be between 0 and 1, got {ratio}")
    return 1.0 / (1.0 + 10.0 ** ((first_db - second_db) / 20.0) * (1.0 - ratio) / ratio)


def mix(first: FloatArray, second: FloatArray, rate_hz: int, *, ratio: float = 0.5, peak: float = 0.5) -> FloatArray:
    """Two sounds as one: ``(t x1 + (1 - t) x2) / sqrt(t^2 + (1 - t)^2)``, then brought to ``peak``.

    Parameters
    ----------
    first, second
        (time,), of the same length.
    rate_hz
        Sample rate in Hz.
    ratio
        See :func:`mixing_share`.
    peak
        Largest absolute sample of the result, as of every clip that is trained on; silence stays silence.

    Returns
    -------
    array
        (time,) float32.

    Raises
    ------
    ValueError
        The sounds differ in length.

    Examples
    --------
    >>> time = np.arange(4096) / 16000
    >>> mixture = mix(np.sin(2000 * time), np.sin(9000 * time), 16000)
    >>> mixture.shape, float(np.abs(mixture).max())
    ((4096,), 0.5)
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"expected two sounds of one length, got {np.shape(first)} and {np.shape(second)}; cut or pad them")
    share = mixing_share(loudness_db(first, rate_hz), loudness_db(second, rate_hz), ratio)
    mixture = share * np.asarray(first, np.float64) + (1 - share) * np.asarray(second, np.float64)
    mixture /= np.hypot(share, 1 - share)
    highest = np.abs(mixture).max(initial=0.0)
    return (mixture * (peak / highest if highest > 0 else 1.0)).astype(np.float32)


def mixed_caption(first: str, second: str) -> str:
    """The caption of a mixture: ``"{first} and {second}"``, the second with a small first letter.

    A final period of the first goes; a second that begins with an acronym keeps its capitals.

    Examples
    --------
    >>> mixed_caption("A dog barks", "Rain falls on a roof")
    'A dog barks and rain falls on a roof'
    >>> mixed_caption("A dog barks.", "TV noise")
    'A dog barks and TV noise'
    """
    first, second = first.strip().rstrip("."), second.strip()
    if not first or not second:
        return first or second
    if not second[1:2].isupper():
        second = second[:1].lower() + second[1:]
    return f"{first} and {second}"
