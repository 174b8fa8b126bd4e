"""The mel descriptor of the audit paper: 16 mel bands in dB, whole clip, compared frame by frame.

Source: Bralios et al., "Generation or Replication: Auscultating Audio Latent Diffusion Models", ICASSP 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.signal

from .base import DescriptorSpec, FloatArray

SAMPLE_RATE_HZ = 16_000
WINDOW = 2048  # samples, 128 ms
HOP = 1536  # samples: frames overlap by 25 %
N_MELS = 16
F_MAX_HZ = 8000.0
FLOOR_DB = -40.0
PAPER_DURATION_S = 10.242

_HZ_PER_MEL = 200.0 / 3  # Slaney's scale is linear below 1 kHz ...
_LOG_START_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0  # ... and logarithmic above: 27 mel for a factor of 6.4


def hz_to_mel(hz: float) -> float:
    """Slaney's mel scale (Auditory Toolbox): 3 f / 200 below 1 kHz, 15 + 27 ln(f / 1000) / ln 6.4 above.

    >>> round(hz_to_mel(1000.0), 9), round(hz_to_mel(6400.0), 9)
    (15.0, 42.0)
    """
    if hz < _LOG_START_HZ:
        return hz / _HZ_PER_MEL
    return float(_LOG_START_HZ / _HZ_PER_MEL + np.log(hz / _LOG_START_HZ) / _LOG_STEP)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of :func:`hz_to_mel`, elementwise."""
    knee = _LOG_START_HZ / _HZ_PER_MEL
    return np.where(mel < knee, mel * _HZ_PER_MEL, _LOG_START_HZ * np.exp(_LOG_STEP * (np.maximum(mel, knee) - knee)))


@lru_cache(maxsize=8)
def mel_filterbank(sample_rate_hz: int, n_fft: int, n_mels: int, f_max_hz: float, f_min_hz: float = 0.0) -> FloatArray:
    """Triangular mel filters with Slaney's area normalization.

    Filter m rises from edge m to edge m+1 and falls to edge m+2, where the ``n_mels + 2`` edges are equidistant on the
    mel scale between ``f_min_hz`` and ``f_max_hz``; it is scaled by ``2 / (edge m+2 - edge m)``.

    Returns
    -------
    ndarray (n_mels, n_fft // 2 + 1) float32
    """
    bins = np.arange(n_fft // 2 + 1) * (sample_rate_hz / n_fft)
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min_hz), hz_to_mel(f_max_hz), n_mels + 2))
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return np.asarray(filters, dtype=np.float32)


@dataclass(frozen=True)
class MelDescriptor:
    """16 mel bands x frames in dB below the clip's maximum, flattened.

    For a window x of ``duration_s`` at 16 kHz: frames of 2048 samples every 1536, centred, zeros outside, periodic
    Hann; ``P = M |STFT(x)|^2`` with Slaney's mel filters M (0-8000 Hz); ``D = max(10 log10(P / max P), -40)``.
    At 10.242 s this is 16 x 107 = 1712 values in [-40, 0] dB, band by band.

    A cosine of such vectors compares two clips at the same moments only: a copy that is shifted, cut or mixed with
    other sound is out of its sight.

    Parameters
    ----------
    duration_s
        Length of a window in seconds; 10.242 is the paper's, for which its thresholds 0.5005 and 0.5025 hold.

    References
    ----------
    Bralios et al., ICASSP 2024, section 3.
    """

    duration_s: float = PAPER_DURATION_S

    def __post_init__(self) -> None:
        if not 0.1 <= self.duration_s <= 600:
            raise ValueError(f"duration_s should be from 0.1 to 600 seconds, got {self.duration_s!r}")

    dtype = "float32"
    tail = "move"  # the last window of a long recording ends where it ends: padding would look alike in every clip

    @property
    def spec(self) -> DescriptorSpec:
        """``mel/1(duration_s=...)``; everything else is fixed by the version."""
        return DescriptorSpec("mel", 1, (("duration_s", float(self.duration_s)),))

    @property
    def sample_rate_hz(self) -> int:
        """16 kHz."""
        return SAMPLE_RATE_HZ

    @property
    def window_samples(self) -> int:
        """163,872 for 10.242 s."""
        return round(self.duration_s * SAMPLE_RATE_HZ)

    @property
    def n_frames(self) -> int:
        """Frames in a window: 107 for 10.242 s."""
        return 1 + self.window_samples // HOP

    @property
    def dimension(self) -> int:
        """Length of a vector: 1712 for 10.242 s."""
        return N_MELS * self.n_frames

    def describe(self, windows: FloatArray) -> FloatArray:
        """Describe windows.

        Parameters
        ----------
        windows
            (n, window_samples) float32, mono at 16 kHz, none of them pure silence.

        Returns
        -------
        ndarray (n, 16 * n_frames) float32
            dB below the maximum, in [-40, 0].

        Raises
        ------
        ValueError
            Wrong shape, or a window whose samples are all zero.
        """
        if windows.ndim != 2 or windows.shape[1] != self.window_samples:
            raise ValueError(f"expected windows of shape (n, {self.window_samples}), got {windows.shape}")
        vectors = np.empty((len(windows), self.dimension), np.float32)
        for row, window in enumerate(windows):
            vectors[row] = log_mel(window).ravel()
        return vectors


def log_mel(samples: FloatArray) -> FloatArray:
    """16 x frames log-mel spectrogram in dB below its maximum, floor -40 dB; see :class:`MelDescriptor`."""
    peak = np.abs(samples).max()
    if peak == 0:
        raise ValueError("the window is pure silence, which has no level to refer to; leave silent windows out")
    padded = np.zeros(len(samples) + WINDOW, np.float32)
    padded[WINDOW // 2 : WINDOW // 2 + len(samples)] = samples / peak  # the scale cancels; very quiet audio stays accurate
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = scipy.fft.rfft(frames * _hann(), axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    mel = mel_filterbank(SAMPLE_RATE_HZ, WINDOW, N_MELS, F_MAX_HZ) @ power.T
    # the last 32 samples of 10.242 s lie in no frame; sound there alone leaves mel at 0, hence the tiny divisor
    top = max(float(mel.max()), float(np.finfo(np.float32).tiny))
    decibel = 10.0 * np.log10(np.maximum(mel / top, 10.0 ** (FLOOR_DB / 10)))
    return np.asarray(decibel, dtype=np.float32)


@lru_cache(maxsize=1)
def _hann() -> FloatArray:
    return np.asarray(scipy.signal.get_window("hann", WINDOW, fftbins=True), dtype=np.float32)
