"""References that no query stems from: with thousands of them a copy must be found before it can be scored.

Half are synthesized; half are collages of real recordings that play no other role: excerpts at another speed, through an
equalizer, some of them backwards. Collages share excerpts with each other, never with a query, a bed or the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import signals
from .sets import Sound
from .signals import Audio
from .synthetic import EVENTFUL, synthesize

SEED_SHIFT = 5_000  # to seeds that no other role synthesizes from


def distractors(count: int, stock: Sequence[Sound], rate: int, seed: int) -> list[Sound]:
    """`count` clips of 2-8 s, each its own source; more of them leave the first ones as they are."""
    out = []
    for i in range(count):
        if i % 2 and stock:
            rng = np.random.default_rng([seed, 11, i])
            parts = [stock[j] for j in rng.choice(len(stock), int(rng.integers(2, 5)))]
            audio = np.concatenate([_excerpt(part.audio, rate, rng) for part in parts])
            names = "+".join(part.clip_id for part in parts)
            out.append(Sound(f"distractor-{i:05d}-{names}", f"distractor-{i}", audio))
        else:
            kind = EVENTFUL[i // 2 % len(EVENTFUL)]
            number = (seed + SEED_SHIFT) * 100_003 + i
            seconds = float(np.random.default_rng([seed, 12, i]).uniform(2, 8))
            out.append(Sound(f"distractor-{i:05d}-{kind}", f"distractor-{i}", synthesize(kind, seconds, rate, number)))
    return out


def _excerpt(audio: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """0.8-2.5 s of a recording, changed, at a peak of 0.2-0.8, with 10 ms fades."""
    n = min(len(audio), int(rng.uniform(0.8, 2.5) * rate))
    start = int(rng.integers(len(audio) - n + 1))
    piece = signals.change_speed(audio[start : start + n], rng.uniform(0.8, 1.25))
    piece = signals.biquad_peak(piece, rate, rng.uniform(200, 5000), rng.uniform(-9, 9))
    if rng.random() < 0.3:
        piece = piece[::-1]
    ramp = np.minimum(np.arange(len(piece)), np.arange(len(piece))[::-1]) / (0.01 * rate)
    piece = piece * np.minimum(ramp, 1.0)
    return (piece * rng.uniform(0.2, 0.8) / max(float(np.abs(piece).max()), 1e-4)).astype(np.float32)
