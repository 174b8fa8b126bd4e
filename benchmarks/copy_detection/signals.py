"""Signal processing that the benchmark's transformations are made of.

Everything here is written for the benchmark alone, so that the detector under test
shares no code with the sounds it is tested on. Audio is ``(time,)`` float32, mono.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray
from scipy import signal

Audio = NDArray[np.float32]

FFT = 1024  # 43 ms at 24 kHz: short enough to keep transients, long enough for tones
HOP = FFT // 4  # 75 % overlap: a periodic Hann window then reconstructs exactly
_WINDOW = signal.get_window("hann", FFT)


def rms(audio: Audio) -> float:
    """Root mean square of the loud part (frames within 40 dB of the loudest 1,024 samples).

    A mixing ratio measured over leading silence would bury a short sound.
    """
    n = max(1, len(audio) // 1024)
    power = np.array([np.mean(np.square(p, dtype=np.float64)) for p in np.array_split(audio, n)])
    loud = power[power >= power.max() * 1e-4]
    return float(np.sqrt(loud.mean())) if power.max() > 0 else 0.0


def stft(audio: Audio) -> NDArray[np.complex64]:
    """Short-time Fourier transform, frames centered. Returns ``(FFT // 2 + 1, frames)``."""
    padded = np.pad(audio, (FFT // 2, FFT // 2 + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
    return np.fft.rfft(frames * _WINDOW, axis=1).astype(np.complex64).T


def istft(spectrum: NDArray[np.complex64], n: int) -> Audio:
    """Inverse of `stft` by weighted overlap-add, cut or zero-padded to `n` samples."""
    frames = np.fft.irfft(spectrum.T, FFT, axis=1) * _WINDOW
    total = (len(frames) - 1) * HOP + FFT
    out, weight = np.zeros(total), np.zeros(total)
    for i, frame in enumerate(frames):
        out[i * HOP : i * HOP + FFT] += frame
        weight[i * HOP : i * HOP + FFT] += _WINDOW**2
    out = (out / np.maximum(weight, 1e-8))[FFT // 2 : FFT // 2 + n]
    return np.pad(out, (0, max(0, n - len(out)))).astype(np.float32)


def stretch(audio: Audio, factor: float) -> Audio:
    """Change duration by `factor` (> 1 is longer) and keep pitch, with a phase vocoder.

    Phase of bin ``k`` advances by the instantaneous frequency measured between two
    input frames (Flanagan and Golden 1966; Dolson 1986).
    """
    n = round(len(audio) * factor)
    spectrum = stft(audio)
    spectrum = np.concatenate([spectrum, np.zeros_like(spectrum[:, :2])], axis=1)
    steps = np.arange(0, n // HOP + 2) / factor
    steps = steps[steps < spectrum.shape[1] - 2]
    index = steps.astype(int)
    blend = (steps - index).astype(np.float32)
    magnitude = (1 - blend) * np.abs(spectrum[:, index]) + blend * np.abs(spectrum[:, index + 1])
    expected = 2 * np.pi * HOP * np.arange(spectrum.shape[0])[:, None] / FFT
    advance = np.angle(spectrum[:, index + 1]) - np.angle(spectrum[:, index]) - expected
    advance = expected + advance - 2 * np.pi * np.round(advance / (2 * np.pi))
    phase = np.angle(spectrum[:, :1]) + np.concatenate(
        [np.zeros_like(advance[:, :1]), np.cumsum(advance, axis=1)[:, :-1]], axis=1
    )
    return istft((magnitude * np.exp(1j * phase)).astype(np.complex64), n)


def change_speed(audio: Audio, factor: float) -> Audio:
    """Play `factor` times faster: duration divided and frequencies multiplied by it."""
    n = round(len(audio) / factor)
    out = soxr.resample(audio, 1000.0 * factor, 1000.0, quality="HQ")  # only the ratio of the rates matters
    return np.pad(out, (0, max(0, n - len(out))))[:n].astype(np.float32)


def shift_pitch(audio: Audio, semitones: float) -> Audio:
    """Multiply frequencies by ``2**(semitones / 12)`` and keep the duration."""
    ratio = 2 ** (semitones / 12)
    out = change_speed(stretch(audio, ratio), ratio)
    return np.pad(out, (0, max(0, len(audio) - len(out))))[: len(audio)]


def mel_filters(rate: int, bands: int) -> NDArray[np.float32]:
    """Triangles of equal area on the mel scale (HTK formula). Returns ``(bands, FFT // 2 + 1)``."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(FFT // 2 + 1) * rate / FFT
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    return (filters / np.maximum(filters.sum(1, keepdims=True), 1e-8)).astype(np.float32)


def griffin_lim(audio: Audio, rate: int, bands: int, iterations: int, rng: np.random.Generator) -> Audio:
    """Throw phase away, keep `bands` mel bands, and rebuild (Griffin and Lim 1984)."""
    filters = mel_filters(rate, bands)
    mel = filters @ np.abs(stft(audio))
    # the transpose spreads every band over its own bins: smoother than a pseudo-inverse
    spread = filters / np.maximum(filters.sum(0, keepdims=True), 1e-8)
    magnitude = spread.T @ mel
    spectrum = magnitude * np.exp(2j * np.pi * rng.random(magnitude.shape))
    for _ in range(iterations):
        phase = np.angle(stft(istft(spectrum, len(audio))))[:, : magnitude.shape[1]]
        spectrum = magnitude * np.exp(1j * phase)
    return istft(spectrum.astype(np.complex64), len(audio))


def reverberate(audio: Audio, rate: int, rt60_s: float, wet: float, rng: np.random.Generator) -> Audio:
    """Convolve with decaying noise: ``h(t) = noise(t) 10**(-3 t / rt60)``, `wet` of direct energy."""
    time = np.arange(int(rt60_s * rate)) / rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)
    tail[: int(0.003 * rate)] = 0
    tail *= np.sqrt(wet / np.sum(tail**2))
    tail[0] = 1.0
    return signal.fftconvolve(audio, tail)[: len(audio)].astype(np.float32)


def biquad_peak(audio: Audio, rate: int, center: float, gain_db: float, q: float = 0.8) -> Audio:
    """Second-order peaking equalizer (Bristow-Johnson, Audio EQ Cookbook)."""
    a, w = 10 ** (gain_db / 40), 2 * np.pi * center / rate
    alpha, cos = np.sin(w) / (2 * q), np.cos(w)
    b = [1 + alpha * a, -2 * cos, 1 - alpha * a]
    return signal.lfilter(b, [1 + alpha / a, -2 * cos, 1 - alpha / a], audio).astype(np.float32)


def filter_band(audio: Audio, rate: int, cutoff: float, kind: str) -> Audio:
    """Fourth-order Butterworth; `kind` is ``"low"`` or ``"high"``."""
    sos = signal.butter(4, min(cutoff, 0.49 * rate), kind, fs=rate, output="sos")
    return signal.sosfilt(sos, audio).astype(np.float32)


def resample_through(audio: Audio, rate: int, low: int) -> Audio:
    """Resample to `low` Hz and back."""
    out = soxr.resample(soxr.resample(audio, rate, low), low, rate)
    return np.pad(out, (0, max(0, len(audio) - len(out))))[: len(audio)].astype(np.float32)


def pink_noise(n: int, rng: np.random.Generator) -> Audio:
    """Noise with power proportional to 1 / frequency, unit RMS."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    out = np.fft.irfft(spectrum, n)
    return (out / max(float(np.std(out)), 1e-12)).astype(np.float32)


def code(audio: Audio, rate: int, codec: str, level: float) -> tuple[Audio, float]:
    """Encode and decode with libsndfile. `level` is its compression level in [0, 1].

    Returns the audio at the input length and the delay in seconds that the codec
    added, found by cross-correlation: MP3 encoders prepend samples that not every
    decoder removes.
    """
    formats = {"mp3": ("MP3", "MPEG_LAYER_III"), "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
    container, subtype = formats[codec]
    buffer = io.BytesIO()
    peak = max(1.0, float(np.abs(audio).max()) * 1.05)
    sf.write(buffer, audio / peak, rate, format=container, subtype=subtype, compression_level=level)
    buffer.seek(0)
    out, out_rate = sf.read(buffer, dtype="float32")
    if out_rate != rate:
        out = soxr.resample(out, out_rate, rate)
    correlation = signal.correlate(out[: len(audio)], audio / peak, method="fft")
    lags = signal.correlation_lags(len(out[: len(audio)]), len(audio))
    near = np.abs(lags) <= rate // 5
    delay = int(lags[near][np.argmax(correlation[near])])
    out = np.pad(out, (0, max(0, len(audio) - len(out))))[: len(audio)]
    return (out * peak).astype(np.float32), delay / rate
