"""Transformations of the sound: surface, other sound on top, warping, resynthesis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from auscult.sounds import synthesise

from . import signals, space
from .signals import Audio
from .synthetic import synthesize
from .timeline import Result, Step, Studio, whole


def _keep(function: Callable[[Audio, Studio, int], Audio]) -> Step:
    """Make a step of a function that changes the sound and leaves its timing (or scales it)."""

    def step(audio: Audio, studio: Studio, level: int) -> Result:
        out = function(audio, studio, level)
        return out, whole(audio, out, studio.rate)

    return step


def _codec(name: str, levels: tuple[float, float, float]) -> Step:
    def step(audio: Audio, studio: Studio, level: int) -> Result:
        out, delay = signals.code(audio, studio.rate, name, levels[level])
        return out, whole(audio, out, studio.rate, delay)

    return step


# --- verbatim: the same moments, another surface ---------------------------------------


def _gain(a: Audio, s: Studio, level: int) -> Audio:
    return a * np.float32(10 ** (s.sign() * (3, 6, 12)[level] / 20))


def _equalize(a: Audio, s: Studio, level: int) -> Audio:
    gain = (3, 6, 9)[level]
    for low, high in ((80, 300), (300, 1500), (1500, 6000)):
        a = signals.biquad_peak(a, s.rate, s.between(low, high), s.between(-gain, gain))
    return a


def _noise(a: Audio, s: Studio, level: int) -> Audio:
    snr = (s.between(20, 30), s.between(10, 15), s.between(0, 5))[level]
    noise = signals.pink_noise(len(a), s.rng) if s.rng.random() < 0.5 else s.rng.standard_normal(len(a))
    return (a + noise * signals.rms(a) * 10 ** (-snr / 20)).astype(np.float32)


def _clip(a: Audio, s: Studio, level: int) -> Audio:
    limit = (0.6, 0.4, 0.2)[level] * float(np.abs(a).max())
    return np.clip(a, -limit, limit)


def _limit(a: Audio, s: Studio, level: int) -> Audio:
    drive = (1.5, 3.0, 6.0)[level] / max(float(np.abs(a).max()), 1e-6)
    return np.tanh(a * drive).astype(np.float32)


def _eight_bit(a: Audio, s: Studio, level: int) -> Audio:
    steps = (127, 63, 31)[level] / max(float(np.abs(a).max()), 1e-6)
    return (np.round(a * steps) / steps).astype(np.float32)


def _offset(a: Audio, s: Studio, level: int) -> Audio:
    return (a + s.sign() * (0.01, 0.05, 0.2)[level] * np.abs(a).max()).astype(np.float32)


def _fade(a: Audio, s: Studio, level: int) -> Audio:
    n = int((0.1, 0.25, 0.5)[level] * len(a))
    ramp = np.ones(len(a), np.float32)
    ramp[:n] = np.linspace(0, 1, n)
    return a * ramp * ramp[::-1]


def _room(a: Audio, s: Studio, level: int) -> Audio:
    return signals.reverberate(a, s.rate, (0.2, 0.45, 0.9)[level], (0.3, 0.7, 1.2)[level], s.rng)


VERBATIM = (
    ("identity", _keep(lambda a, s, level: a.copy())),
    ("mp3", _codec("mp3", (0.3, 0.7, 0.99))),
    ("vorbis", _codec("vorbis", (0.3, 0.7, 1.0))),
    ("opus", _codec("opus", (0.7, 0.9, 0.97))),
    ("gain", _keep(_gain)),
    ("polarity", _keep(lambda a, s, level: -a)),
    ("equalizer", _keep(_equalize)),
    ("low_pass", _keep(lambda a, s, level: signals.filter_band(a, s.rate, (7000, 4000, 2500)[level], "low"))),
    ("high_pass", _keep(lambda a, s, level: signals.filter_band(a, s.rate, (150, 300, 600)[level], "high"))),
    ("resample", _keep(lambda a, s, level: signals.resample_through(a, s.rate, (16000, 11025, 8000)[level]))),
    ("eight_bit", _keep(_eight_bit)),
    ("noise", _keep(_noise)),
    ("clipping", _keep(_clip)),
    ("limiter", _keep(_limit)),
    ("dc_offset", _keep(_offset)),
    ("fade", _keep(_fade)),
    ("reverb", _keep(_room)),
    ("room", space.room),
)


# --- mix: other sound at the same time -------------------------------------------------


def _mix(snr_db: float) -> Step:
    def step(audio: Audio, studio: Studio, level: int) -> Result:
        bed = studio.bed(len(audio))
        gain = signals.rms(audio) / max(signals.rms(bed), 1e-6) * 10 ** (-snr_db / 20)
        out = (audio + bed * gain).astype(np.float32)
        return out, whole(audio, out, studio.rate)

    return step


def _over(make: Callable[[int, Studio], Audio]) -> Step:
    """Lay synthesized sound over the clip: the clip is 6 dB louder, as loud, or 6 dB softer."""

    def step(audio: Audio, studio: Studio, level: int) -> Result:
        other = np.resize(make(max(len(audio), studio.rate), studio), len(audio))
        gain = signals.rms(audio) / max(signals.rms(other), 1e-6) * 10 ** (-(6, 0, -6)[level] / 20)
        out = (audio + other * gain).astype(np.float32)
        return out, whole(audio, out, studio.rate)

    return step


def _speech(n: int, studio: Studio) -> Audio:
    return synthesise("speech", studio.rng, duration_s=n / studio.rate, rate_hz=studio.rate).samples.astype(np.float32)


def _music(n: int, studio: Studio) -> Audio:
    kind = ("pluck", "chords", "drums")[int(studio.rng.integers(3))]
    return synthesize(kind, n / studio.rate, studio.rate, int(studio.rng.integers(2**31)))


MIX = (
    *((f"mix_{snr:+d}db", _mix(float(snr))) for snr in (12, 6, 0, -6)),
    ("speech_over", _over(_speech)),
    ("music_over", _over(_music)),
)


# --- warp: tempo, pitch, speed ---------------------------------------------------------


def _tempo(a: Audio, s: Studio, level: int) -> Audio:
    amount = s.between(*((0.02, 0.05), (0.06, 0.12), (0.15, 0.25))[level])
    return signals.stretch(a, 1 + amount if s.sign() > 0 else 1 - 0.8 * amount)


def _pitch(a: Audio, s: Studio, level: int) -> Audio:
    return signals.shift_pitch(a, s.sign() * (1.0, 3.0, 5.0)[level])


def _speed(a: Audio, s: Studio, level: int) -> Audio:
    return signals.change_speed(a, s.between(*((0.985, 1.015), (0.975, 1.03), (0.97, 1.06))[level]))


WARP = (("tempo", _keep(_tempo)), ("pitch", _keep(_pitch)), ("speed", _keep(_speed)))


# --- resynthesis: what a model's decoder does ------------------------------------------


def _griffin_lim(a: Audio, s: Studio, level: int) -> Audio:
    return signals.griffin_lim(a, s.rate, (128, 80, 48)[level], 30, s.rng)


def _codec_round_trip(audio: Audio, studio: Studio, level: int) -> Result:
    """Opus then MP3 at low rates: two lossy models of hearing in a row."""
    first, a = signals.code(audio, studio.rate, "opus", (0.9, 0.96, 0.98)[level])
    out, b = signals.code(first, studio.rate, "mp3", (0.7, 0.9, 0.99)[level])
    return out, whole(audio, out, studio.rate, a + b)


def reverse(audio: Audio, studio: Studio, level: int) -> Result:
    """Backwards: no piece, since a piece moves forward."""
    return audio[::-1].copy(), ()


RESYNTHESIS = (("griffin_lim", _keep(_griffin_lim)), ("codec_round_trip", _codec_round_trip))
