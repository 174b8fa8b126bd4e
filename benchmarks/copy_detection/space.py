"""Transformations of space: what two channels and a room do to a clip that ends up as mono again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from . import signals
from .signals import Audio
from .timeline import Result, Studio, whole

SPEED_OF_SOUND = 343.0  # m/s
IMAGES = 8  # mirror rooms on each side along each axis; with MIXED_S this covers the early reflections
MIXED_S = 0.06  # after this a room of a few metres is diffuse


# --- channel: a stereo version of the clip, treated, and mixed down ---------------------


def _stereo(a: Audio, s: Studio, width: float) -> tuple[Audio, Audio]:
    """Mid and side: the clip, and its high-passed echo after 3-15 ms at `width` of its level, as a wide microphone pair has."""
    delay = int(s.between(0.003, 0.015) * s.rate)
    side = np.pad(a, (delay, 0))[: len(a)]
    return a, signals.filter_band(side, s.rate, 150.0, "high") * np.float32(width)


def _mono_stereo(a: Audio, studio: Studio, level: int) -> Result:
    """Mono to stereo by a delay of one channel, and back: a comb."""
    delay = int(studio.between(*((0.0002, 0.0005), (0.0005, 0.001), (0.001, 0.003))[level]) * studio.rate)
    out = ((a + np.pad(a, (delay, 0))[: len(a)]) / 2).astype(np.float32)
    return out, whole(a, out, studio.rate)


def _mid_side(a: Audio, studio: Studio, level: int) -> Result:
    """The side raised by 3, 6 or 12 dB, one channel kept."""
    mid, side = _stereo(a, studio, 0.4)
    out = (mid + studio.sign() * side * 10 ** ((3, 6, 12)[level] / 20)).astype(np.float32)
    return out, whole(a, out, studio.rate)


def _phase_inversion(a: Audio, studio: Studio, level: int) -> Result:
    """One channel inverted before the mix: the middle nearly cancels, the more so the more alike the channels were."""
    mid, side = _stereo(a, studio, 0.4)
    out = (side + mid * (0.5, 0.25, 0.1)[level]).astype(np.float32)
    return out, whole(a, out, studio.rate)


CHANNEL = (("mono_stereo", _mono_stereo), ("mid_side", _mid_side), ("phase_inversion", _phase_inversion))


# --- room: the impulse response of a modelled room --------------------------------------


def room_response(rate: int, rt60_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Impulse response of a shoebox room of random size and positions, the direct sound at time 0 with amplitude 1.

    Early part by image sources (Allen and Berkley 1979), with the reflection that Sabine's formula gives for `rt60_s`;
    after `MIXED_S` decaying noise of the level reached there. No recorded responses are at hand.
    """
    size = rng.uniform((3.0, 2.5, 2.3), (8.0, 6.0, 3.5))
    source, microphone = (rng.uniform(0.15, 0.85, 3) * size for _ in range(2))
    surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    reflection = np.sqrt(1 - np.clip(0.161 * size.prod() / (surface * rt60_s), 0.02, 0.98))
    n, mirrored = np.meshgrid(np.arange(-IMAGES, IMAGES + 1), (0, 1), indexing="ij")
    offset = [((1 - 2 * mirrored) * source[i] + 2 * n * size[i] - microphone[i]).ravel() for i in range(3)]
    bounces = (np.abs(n - mirrored) + np.abs(n)).ravel()
    squared = offset[0][:, None, None] ** 2 + offset[1][None, :, None] ** 2 + offset[2][None, None, :] ** 2
    count = bounces[:, None, None] + bounces[None, :, None] + bounces[None, None, :]
    distance = np.sqrt(squared).ravel()
    direct = float(distance[count.ravel() == 0][0])
    at = np.rint((distance - direct) / SPEED_OF_SOUND * rate).astype(int)
    response = np.zeros(int(rt60_s * rate))
    mixed = int(MIXED_S * rate)
    early = (at >= 0) & (at < mixed)
    np.add.at(response, at[early], (reflection ** count.ravel() * direct / np.maximum(distance, 0.1))[early])
    time = np.arange(len(response) - mixed) / rate
    level = np.sqrt(np.mean(response[mixed // 2 : mixed] ** 2))
    response[mixed:] = level * rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)
    return response


def room(a: Audio, studio: Studio, level: int) -> Result:
    """Played in a modelled room with a reverberation time of 0.2, 0.5 or 1 s."""
    response = room_response(studio.rate, (0.2, 0.5, 1.0)[level], studio.rng)
    out = signal.fftconvolve(a, response)[: len(a)].astype(np.float32)
    return out, whole(a, out, studio.rate)
