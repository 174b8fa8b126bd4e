"""Built-in sounds that `auscult.sounds` does not make: stationary sound, and music with a timbre of its own per clip.

Most synthesized sounds of the benchmark are `auscult.sounds.synthesise`'s. Two things it lacks:

- steady sound: hum, white noise, rain without drops, an engine that holds its speed, and tones that beat, wobble, fade or
  swell. By the audit paper's definition it is never a replica, so a detector must score other takes of it low. The engine
  of `auscult.sounds` belongs here too, though it changes speed;
- tonal music whose excerpts can be told apart. Its melodies all have one timbre and four scales, so two of them share
  notes to the sample, and a single note cut out of one would be a copy of the other as well. Here decay, brightness and
  key are drawn for each clip.
"""

from __future__ import annotations

import numpy as np
from scipy import signal

from auscult.sounds import synthesise

from .signals import Audio, filter_band, pink_noise

STATIONARY = ("hum", "rain", "white", "drone", "tone", "vibrato")  # the same at any moment
SLOW = ("engine", "beating_hum", "faded_tone", "swelling_drone")  # their level or pitch changes slowly
STEADY = STATIONARY + SLOW
MUSIC = ("pluck", "chords", "bell", "drums", "speech")  # what field recordings lack
EVENTFUL = (*MUSIC, "birds", "dog", "footsteps", "drops", "typing", "glass")


def synthesize(kind: str, seconds: float, rate: int, seed: int) -> Audio:
    """One sound of `kind` (a name in `STEADY` or `EVENTFUL`), peak 0.7, ``(time,)``."""
    makers = {
        "hum": _hum,
        "rain": _rain,
        "white": _white,
        "drone": _drone,
        "tone": _tone,
        "vibrato": _vibrato,
        "beating_hum": _beating_hum,
        "faded_tone": _faded_tone,
        "swelling_drone": _swelling_drone,
        "pluck": _pluck,
        "chords": _chords,
    }
    rng = np.random.default_rng([seed, sum(map(ord, kind))])
    if kind in makers:
        audio = makers[kind](int(seconds * rate), rate, rng)
    else:
        audio = synthesise(kind, rng, duration_s=seconds, rate_hz=rate).samples
    return (0.7 * audio / np.abs(audio).max()).astype(np.float32)


def _time(n: int, rate: int) -> np.ndarray:
    return np.arange(n) / rate


def _hum(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    base, t = rng.choice([50.0, 60.0]), _time(n, rate)
    tones = sum(rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * (base * k * t + rng.random())) for k in range(1, 12))
    return tones + 0.02 * rng.standard_normal(n)


def _rain(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    hiss = filter_band(rng.standard_normal(n).astype(np.float32), rate, rng.uniform(500, 2000), "high")
    return hiss + 0.4 * pink_noise(n, rng)


def _white(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(n)


def _drone(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    base, t = rng.uniform(40, 120), _time(n, rate)
    wobble = 1 + 0.003 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t)
    engine = signal.sawtooth(2 * np.pi * np.cumsum(base * wobble) / rate) + 0.3 * pink_noise(n, rng)
    return filter_band(engine.astype(np.float32), rate, rng.uniform(800, 3000), "low")


def _tone(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """440 or 441 Hz: two takes are as alike as two sounds can be, and still no copies."""
    return np.sin(2 * np.pi * (rng.choice([440.0, 441.0]) * _time(n, rate) + rng.random()))


def _vibrato(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    speed, depth, t = rng.uniform(4, 7), rng.uniform(3, 12), _time(n, rate)
    frequency = rng.uniform(300, 600) + depth * np.sin(2 * np.pi * (speed * t + rng.random()))
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return sum(np.sin(k * phase) / k for k in range(1, 5))


def _beating_hum(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """50 and 50.3 Hz with harmonics: two transformers."""
    t = _time(n, rate)
    tones = sum(np.sin(2 * np.pi * (f * k * t + rng.random())) / k for f in (50.0, 50.3) for k in range(1, 8))
    return tones + 0.01 * rng.standard_normal(n)


def _faded_tone(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    ends = np.minimum(np.arange(n), np.arange(n)[::-1]) / (rng.uniform(0.2, 0.5) * n)
    return _tone(n, rate, rng) * np.minimum(ends, 1.0)


def _swelling_drone(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    swell = 1 + rng.uniform(0.2, 0.6) * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * _time(n, rate) + rng.random()))
    return _drone(n, rate, rng) * swell


def _note(n: int, rate: int, pitch: float, decay: float, bright: float) -> np.ndarray:
    t = _time(n, rate)
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    partials = [k for k in range(1, 20) if k * frequency < 0.45 * rate]
    return sum(np.exp(-t * k**0.7 / decay) * np.sin(2 * np.pi * k * frequency * t) / k**bright for k in partials)


def _sequence(n: int, rate: int, rng: np.random.Generator, chord: bool) -> np.ndarray:
    """Notes on a grid, with a key, a decay and a brightness drawn for the clip."""
    out, step = np.zeros(n), int(rate * rng.choice([0.125, 0.15, 0.2, 0.25, 0.3]) * (3 if chord else 1))
    scale = np.array([0, 2, 3, 5, 7, 8, 10]) + rng.integers(45, 60)
    decay, bright = rng.uniform(0.1, 0.8), rng.uniform(0.8, 2.0)
    for at in range(0, n, step):
        if at and not chord and rng.random() < 0.25:
            continue
        size = min(n - at, int(1.5 * rate))
        for pitch in rng.choice(scale, 3 if chord else 1, replace=False) + 12 * rng.integers(0, 3):
            out[at : at + size] += _note(size, rate, float(pitch), decay, bright) * rng.uniform(0.5, 1)
    return out


def _pluck(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _sequence(n, rate, rng, chord=False)


def _chords(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _sequence(n, rate, rng, chord=True)
