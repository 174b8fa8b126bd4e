"""Procedurally synthesised, captioned sounds: what the demo, the tests and the benchmarks use where no recordings are.

Each family draws its own random pattern of events, so two clips of a family are alike in kind but are no copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.signal

FloatArray = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Sound:
    """A synthesised clip: ``samples`` (time,) in [-0.9, 0.9], its ``caption`` and ``family``."""

    samples: FloatArray
    caption: str
    family: str


def synthesise(family: str, rng: Rng, *, duration_s: float = 5.0, rate_hz: int = 16_000) -> Sound:
    """Synthesise one clip.

    Parameters
    ----------
    family
        One of ``FAMILIES``.
    rng
        Source of its pattern.

    Examples
    --------
    >>> synthesise("bell", np.random.default_rng(0), duration_s=1.0).samples.shape
    (16000,)
    """
    make, captions = FAMILIES[family]
    samples = make(rng, round(duration_s * rate_hz), rate_hz)
    noise_floor = 10 ** (rng.uniform(-60, -45) / 20) * _noise(rng, len(samples), 1.0)
    samples = samples / np.abs(samples).max() + noise_floor
    return Sound(samples * rng.uniform(0.3, 0.9) / np.abs(samples).max(), str(rng.choice(captions)), family)


def _events(rng: Rng, n: int, rate: int, per_second: float, jitter: float = 0.45) -> npt.NDArray[np.int64]:
    """Onsets (samples) of an irregular train of events."""
    period = rate / per_second
    count = max(int(n / period), 1)
    onsets = (np.arange(count) + rng.uniform(0.1, 0.9) + rng.uniform(-jitter, jitter, count)) * period
    return np.unique(np.clip(onsets, 0, 0.7 * n).astype(np.int64))


def _place(n: int, onsets: npt.NDArray[np.int64], make: Callable[[], FloatArray]) -> FloatArray:
    out = np.zeros(n)
    for onset in onsets:
        grain = make()[: n - onset]
        out[onset : onset + len(grain)] += grain
    return out


def _noise(rng: Rng, n: int, slope: float) -> FloatArray:
    """Noise with a power spectrum of ``1 / f^slope``, peak 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    shaped = np.fft.irfft(spectrum / frequency ** (slope / 2), n)
    return np.asarray(shaped / np.abs(shaped).max())


def _band(x: FloatArray, rate: int, low: float, high: float) -> FloatArray:
    sos = scipy.signal.butter(2, [low, min(high, 0.49 * rate)], "bandpass", fs=rate, output="sos")
    return np.asarray(scipy.signal.sosfilt(sos, x))


def _decay(n: int, rate: int, seconds: float) -> FloatArray:
    return np.asarray(np.exp(-np.arange(n) / (rate * seconds)))


def _glide(rng: Rng, n: int, rate: int, low: float, high: float, points: int) -> FloatArray:
    """A tone whose pitch wanders through random points."""
    marks = np.exp(rng.uniform(np.log(low), np.log(high), points))
    frequency = np.interp(np.linspace(0, points - 1, n), np.arange(points), marks)
    return np.asarray(np.sin(2 * np.pi * np.cumsum(frequency) / rate))


def _bell(rng: Rng, n: int, rate: int) -> FloatArray:
    def strike() -> FloatArray:
        t = np.arange(rate * 2) / rate
        base = np.exp(rng.uniform(np.log(300), np.log(1500)))
        partials = base * np.array([0.5, 1, 1.19, 1.56, 2, 2.74, 3.76])
        return np.asarray(sum(np.sin(2 * np.pi * f * t) * np.exp(-t * f / (base * rng.uniform(0.4, 1.2))) for f in partials))

    return _place(n, _events(rng, n, rate, rng.uniform(0.6, 2.0)), strike)


def _birds(rng: Rng, n: int, rate: int) -> FloatArray:
    def chirp() -> FloatArray:
        size = int(rate * rng.uniform(0.05, 0.25))
        return _glide(rng, size, rate, 1800, 7000, int(rng.integers(2, 6))) * np.hanning(size) * rng.uniform(0.3, 1)

    return _place(n, _events(rng, n, rate, rng.uniform(3, 6)), chirp)


def _dog(rng: Rng, n: int, rate: int) -> FloatArray:
    def bark() -> FloatArray:
        size = int(rate * rng.uniform(0.12, 0.3))
        voice = scipy.signal.sawtooth(
            2 * np.pi * np.cumsum(np.linspace(rng.uniform(300, 500), rng.uniform(150, 300), size)) / rate
        )
        return _band(voice + 0.4 * rng.standard_normal(size), rate, 300, rng.uniform(1500, 3500)) * np.hanning(size)

    return _place(n, _events(rng, n, rate, rng.uniform(1.2, 2.5)), bark)


def _footsteps(rng: Rng, n: int, rate: int) -> FloatArray:
    low, high = rng.uniform(80, 400), rng.uniform(900, 5000)

    def step() -> FloatArray:
        size = int(rate * 0.18)
        return (
            _band(rng.standard_normal(size), rate, low, high)
            * _decay(size, rate, rng.uniform(0.015, 0.05))
            * rng.uniform(0.5, 1)
        )

    return _place(n, _events(rng, n, rate, rng.uniform(1.5, 3), 0.2), step)


def _rain(rng: Rng, n: int, rate: int) -> FloatArray:
    drops = (rng.random(n) < rng.uniform(20, 80) / rate) * rng.standard_normal(n)
    return _noise(rng, n, 0.8) + 2 * _band(drops, rate, 1500, 6500)


def _engine(rng: Rng, n: int, rate: int) -> FloatArray:
    points = int(rng.integers(3, 8))
    speed = np.interp(np.linspace(0, points - 1, n), np.arange(points), rng.uniform(30, 110, points))
    phase = 2 * np.pi * np.cumsum(speed) / rate
    harmonics = sum(np.sin(k * phase) * rng.uniform(0.2, 1) / k**0.7 for k in range(1, 14))
    return np.asarray(harmonics + 0.3 * _noise(rng, n, 1.0))


def _siren(rng: Rng, n: int, rate: int) -> FloatArray:
    # a sine that sweeps a tone would be nearly the same in every clip: both its speed and its depth wander
    place, knots = np.linspace(0, 1, n), np.linspace(0, 1, 9)
    speed = np.interp(place, knots, rng.uniform(0.2, 2.0, 9))
    depth = np.interp(place, knots, rng.uniform(100, 400, 9))
    sweep = np.sin(2 * np.pi * np.cumsum(speed) / rate + rng.uniform(0, 6))
    frequency = rng.uniform(600, 900) + depth * sweep
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return np.asarray(np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase))


def _clock(rng: Rng, n: int, rate: int) -> FloatArray:
    pitches = rng.uniform(1500, 6000, 2)
    count = iter(range(10_000))

    def tick() -> FloatArray:
        size = int(rate * 0.05)
        tone = np.sin(2 * np.pi * pitches[next(count) % 2] * np.arange(size) / rate)
        return np.asarray((tone + 0.5 * rng.standard_normal(size)) * _decay(size, rate, 0.006))

    return _place(n, _events(rng, n, rate, rng.uniform(1.5, 4), 0.02), tick)


def _melody(rng: Rng, n: int, rate: int) -> FloatArray:
    scale = rng.choice([220.0, 261.6, 293.7, 329.6]) * 2 ** (np.array([0, 2, 3, 5, 7, 8, 10, 12]) / 12)

    def note() -> FloatArray:
        size = int(rate * 0.9)
        t = np.arange(size) / rate
        pitch = rng.choice(scale)
        return np.asarray(sum(np.sin(2 * np.pi * k * pitch * t) * np.exp(-t * (2 + 2 * k)) / k for k in range(1, 7)))

    return _place(n, _events(rng, n, rate, rng.uniform(2, 4), 0.3), note)


def _drops(rng: Rng, n: int, rate: int) -> FloatArray:
    def drop() -> FloatArray:
        size = int(rate * rng.uniform(0.05, 0.12))
        rise = np.linspace(1, rng.uniform(1.3, 2.2), size) * rng.uniform(500, 1800)
        return np.asarray(np.sin(2 * np.pi * np.cumsum(rise) / rate) * _decay(size, rate, 0.03))

    return _place(n, _events(rng, n, rate, rng.uniform(1.5, 6)), drop)


def _drums(rng: Rng, n: int, rate: int) -> FloatArray:
    out = np.zeros(n)
    step = int(rate * 60 / rng.uniform(80, 170) / 4)
    size = int(rate * 0.3)
    t = np.arange(size) / rate
    kick = np.sin(2 * np.pi * np.cumsum(40 + rng.uniform(60, 140) * np.exp(-t * 30)) / rate) * np.exp(-t * 12)
    snare = _band(rng.standard_normal(size), rate, 400, 5000) * np.exp(-t * rng.uniform(15, 35))
    hat = _band(rng.standard_normal(size), rate, 5000, 7800) * np.exp(-t * rng.uniform(40, 90)) * 0.5
    for sample, chance in ((kick, 0.3), (snare, 0.2), (hat, 0.55)):
        pattern = rng.random(16) < chance
        pattern[int(rng.integers(16))] = True
        # played by hand: no two hits are equally loud or quite in time
        hits = [k * step + rng.uniform(0, 0.3) * step for k in range(n // step) if pattern[k % 16]]
        out += _place(n, np.array(hits).astype(np.int64), lambda sample=sample: sample * rng.uniform(0.4, 1.0))  # type: ignore[misc]
    return out


def _speech(rng: Rng, n: int, rate: int) -> FloatArray:
    def syllable() -> FloatArray:
        size = int(rate * rng.uniform(0.09, 0.28))
        pitch = np.linspace(rng.uniform(90, 220), rng.uniform(90, 220), size)
        source = scipy.signal.sawtooth(2 * np.pi * np.cumsum(pitch) / rate) + 0.1 * rng.standard_normal(size)
        formants = sum(
            _band(source, rate, f * 0.9, f * 1.1)
            for f in (rng.uniform(300, 900), rng.uniform(900, 2500), rng.uniform(2500, 3500))
        )
        return np.asarray(formants * np.hanning(size) * rng.uniform(0.4, 1))

    return _place(n, _events(rng, n, rate, rng.uniform(3, 5)), syllable)


def _typing(rng: Rng, n: int, rate: int) -> FloatArray:
    def key() -> FloatArray:
        size = int(rate * 0.06)
        return (
            _band(rng.standard_normal(size), rate, rng.uniform(800, 2000), 7000)
            * _decay(size, rate, 0.008)
            * rng.uniform(0.3, 1)
        )

    return _place(n, _events(rng, n, rate, rng.uniform(4, 9)), key)


def _glass(rng: Rng, n: int, rate: int) -> FloatArray:
    def shard() -> FloatArray:
        size = int(rate * rng.uniform(0.1, 0.5))
        t = np.arange(size) / rate
        tones = sum(np.sin(2 * np.pi * rng.uniform(2000, 7500) * t) for _ in range(5))
        return np.asarray(tones * _decay(size, rate, rng.uniform(0.02, 0.12)) * rng.uniform(0.2, 1))

    return _place(n, _events(rng, n, rate, rng.uniform(2, 8), 0.5), shard)


FAMILIES: dict[str, tuple[Callable[[Rng, int, int], FloatArray], list[str]]] = {
    "bell": (_bell, ["A church bell rings", "Bells are struck one after another"]),
    "birds": (_birds, ["Birds chirp in a garden", "A bird sings"]),
    "dog": (_dog, ["A dog barks", "A dog barks repeatedly"]),
    "footsteps": (_footsteps, ["Someone walks on gravel", "Footsteps in a corridor"]),
    "rain": (_rain, ["Rain falls on leaves", "Heavy rain"]),
    "engine": (_engine, ["An engine revs", "A motor speeds up and slows down"]),
    "siren": (_siren, ["A siren wails", "An ambulance passes"]),
    "clock": (_clock, ["A clock ticks", "A watch ticks quickly"]),
    "melody": (_melody, ["A melody is plucked on a string", "Someone plays a harp"]),
    "drops": (_drops, ["Water drips into a basin", "Drops of water"]),
    "drums": (_drums, ["A drum loop", "Drums play a beat"]),
    "speech": (_speech, ["A man speaks", "A woman talks"]),
    "typing": (_typing, ["Someone types on a keyboard", "Fast typing"]),
    "glass": (_glass, ["Glass breaks", "Shards of glass fall to the floor"]),
}
