"""Mel descriptors with realistic spectra in any number, made from the 240 real recordings of ESC-10.

In two steps. First clips: two different recordings of 5 s, each resampled (pitch and tempo up to 3 semitones), shifted in time,
filtered (a tilt of up to 6 dB an octave) and set to a level, are mixed or joined to 10.242 s, with noise 20-60 dB below. Then
vectors: the mel power spectra of two such clips, each shifted in time and filtered by a smooth curve over the bands, are
added at random levels, and made decibels with the descriptor's floor. The second step stands for mixing the sounds
themselves, which it equals on average (powers of unrelated sounds add), and is quick. One row of 400 is a near-copy of
another: its decibels plus noise of 0.5-2 dB, as coding leaves it.

What it is not: 200,000 unrelated recordings. All are made of the same 240, so they may lie in fewer directions than those of
a library, and may also be more alike than its are; how much is pruned there has not been measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.fft
import soxr

from auscult.audio import read_audio
from auscult.descriptors.mel import FLOOR_DB, HOP, N_MELS, SAMPLE_RATE_HZ, WINDOW, MelDescriptor, mel_filterbank

CLIPS = 3000  # made as sound
COPIES = 400  # one row of so many is a near-copy
ROWS = 1000  # made at once


def augmented_vectors(source: Path, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (rows, 1712) float32, and rows (p, 2) of the planted copies and of what they copy."""
    rng = np.random.default_rng(seed)
    power = _clip_spectra(source, min(CLIPS, max(rows // 20, 240)), rng)
    vectors = np.empty((rows, power.shape[1] * power.shape[2]), np.float32)
    for start in range(0, rows, ROWS):
        vectors[start : start + ROWS] = _mixed(power, min(ROWS, rows - start), rng)
    planted = rng.permutation(rows)[: 2 * (rows // COPIES)].reshape(-1, 2)
    for copy, original in planted:
        noise = rng.standard_normal(vectors.shape[1], dtype=np.float32) * rng.uniform(0.5, 2.0)
        vectors[copy] = np.clip(vectors[original] + noise, FLOOR_DB, 0)
    return vectors, planted


def _clip_spectra(source: Path, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mel power spectra (count, 16, frames) of clips mixed or joined of two recordings, with their maximum at 1."""
    sounds = [read_audio(str(path), sample_rate_hz=SAMPLE_RATE_HZ).samples for path in sorted((source / "audio").glob("*.ogg"))]
    if not sounds:
        raise SystemExit(f"{source} holds no recordings (audio/*.ogg); give their folder by --esc10")
    sounds = [sound / np.abs(sound).max() for sound in sounds if np.abs(sound).max() > 0]
    length = MelDescriptor().window_samples
    filters = mel_filterbank(SAMPLE_RATE_HZ, WINDOW, N_MELS, 8000.0)
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = []
    for _ in range(count):
        one, other = (_augmented(sounds[number], rng) for number in rng.choice(len(sounds), 2, replace=False))
        if rng.random() < 0.5:
            clip = np.concatenate([one, other])
            clip = np.resize(clip, length)
        else:
            clip = np.resize(one, length) + np.resize(other, length)
        clip += 10 ** (rng.uniform(-60, -20) / 20) * rng.standard_normal(length, dtype=np.float32)
        padded = np.pad(clip, WINDOW // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        mel = filters @ (np.abs(scipy.fft.rfft(frames * hann, axis=1)) ** 2).T
        power.append((mel / mel.max()).astype(np.float32))
    return np.stack(power)


def _augmented(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A recording at another pitch, moment, color and level (0 to -20 dB)."""
    sound = soxr.resample(sound, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * 2 ** (rng.uniform(-3, 3) / 12), quality="LQ")
    spectrum = scipy.fft.rfft(np.roll(sound, rng.integers(len(sound))))
    octaves = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum), 1e-3)) + 3
    spectrum *= 10 ** (rng.uniform(-6, 6) * octaves / 20)
    sound = scipy.fft.irfft(spectrum, len(sound)).astype(np.float32)
    return sound * np.float32(10 ** (rng.uniform(-20, 0) / 20) / max(np.abs(sound).max(), 1e-9))


def _mixed(power: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Decibels (count, 16 * frames) of two spectra added, each shifted, filtered and at a level of its own."""
    bands, frames = power.shape[1:]
    total = np.zeros((count, bands, frames), np.float32)
    knots = np.linspace(0, bands - 1, 5)
    for _ in range(2):
        chosen = power[rng.integers(0, len(power), count)]
        shift = (np.arange(frames) + rng.integers(0, frames, (count, 1))) % frames
        curve = np.stack([np.interp(np.arange(bands), knots, gain) for gain in rng.uniform(-6, 6, (count, len(knots)))])
        level = rng.uniform(-30, 0, (count, 1)) + curve
        total += np.take_along_axis(chosen, shift[:, None, :], 2) * (10 ** (level / 10))[:, :, None].astype(np.float32)
    total /= total.max(axis=(1, 2), keepdims=True)
    return np.maximum(10 * np.log10(np.maximum(total, 1e-10)), FLOOR_DB).reshape(count, -1)
