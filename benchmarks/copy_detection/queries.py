"""Queries of every role: transformed copies, reversed ones, and unrelated sound that is treated alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from auscult.metrics.copy_detection import Truth

from .sets import Query, Sizes, Sound
from .timeline import Kind
from .transforms import FIXED, KINDS, LEVELS, REVERSE, Copy, Studio, apply, draw_chain

STEADY_SHARE = 10  # one unrelated query in so many is steady sound


def cut_oneshot(sound: Sound, rate: int, rng: np.random.Generator) -> Sound:
    """Cut 0.3-1.5 s around the loudest moment, with 5 ms fades: a one-shot sample."""
    n = min(len(sound.audio), int(rng.uniform(0.3, 1.5) * rate))
    peak = int(np.argmax(np.abs(sound.audio)))
    start = int(np.clip(peak - n // 5, 0, len(sound.audio) - n))
    audio = sound.audio[start : start + n].copy()
    edge = min(int(0.005 * rate), n // 4)
    audio[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
    audio[n - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
    return Sound(f"{sound.clip_id}-shot", sound.source, audio)


def positives(copied: Sequence[Sound], studio: Studio, sizes: Sizes) -> list[Query]:
    """Copies of each kind, a third of them light, medium and heavy, and chains of two to four kinds."""
    plans = [([kind], i) for kind in KINDS for i in range(sizes.positives_per_kind)]
    plans += [(draw_chain(studio.rng, 2 + i % 3), i // 3) for i in range(sizes.chains)]
    return _copies(copied, plans, studio, "positive")


def backwards(copied: Sequence[Sound], studio: Studio, sizes: Sizes) -> list[Query]:
    """Reversed copies; they have no spans, since a span moves forward."""
    return _copies(copied, [([REVERSE], i) for i in range(sizes.positives_per_kind)], studio, "reversed")


def _copies(copied: Sequence[Sound], plans: Sequence[tuple[list[Kind], int]], studio: Studio, role: str) -> list[Query]:
    order: list[int] = []
    out = []
    for number, (kinds, i) in enumerate(plans):
        if not order:  # a fresh shuffle whenever all references have been used once
            order = studio.rng.permutation(len(copied)).tolist()
        sound, level = copied[order.pop()], i % 3
        copy = apply(sound.audio, kinds, studio, level)
        group, name = ("chain", f"chain_{len(kinds)}") if len(kinds) > 1 else (kinds[0].group, kinds[0].name)
        out.append(_query(f"{role}-{number:04d}", sound, group, name, _strength(kinds, level), copy, sound.clip_id))
    return out


def unrelated(sounds: Sequence[Sound], steady: Sequence[Sound], studio: Studio, *, count: int, role: str) -> list[Query]:
    """`count` queries that copy nothing: steady sound, and clips and one-shots of `sounds` in turn.

    Half of them on their first turn and all on later ones are transformed like the positives, by chains of one to three.
    """
    shots = [cut_oneshot(s, studio.rate, studio.rng) for s in sounds[:: max(1, len(sounds) // 10)]]
    plain = [*sounds, *shots]
    clips = [*steady, *(plain[i % len(plain)] for i in range(count - len(steady)))][:count]
    out = []
    for number, sound in enumerate(clips):
        repeated = number >= len(steady) + len(plain)
        length = int(studio.rng.integers(1, 4)) if repeated or number % 2 else 0
        kinds = draw_chain(studio.rng, length) if length else []
        level = number // 2 % 3
        copy = apply(sound.audio, kinds, studio, level)
        kind = f"steady {sound.steady}" if sound.steady else ("transformed" if kinds else "untouched")
        out.append(_query(f"{role}-{number:04d}", sound, role, kind, _strength(kinds, level), copy, None))
    return out


def _strength(kinds: Sequence[Kind], level: int) -> str:
    return "fixed" if all(kind.name in FIXED for kind in kinds) else LEVELS[level]


def _query(name: str, sound: Sound, group: str, kind: str, strength: str, copy: Copy, truth: str | None) -> Query:
    spans = copy.spans if truth is not None else ()
    return Query(Truth(name, truth, sound.source, group, kind, spans), strength, copy.audio)
