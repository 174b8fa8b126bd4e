"""Build the benchmark: references, positives, negatives, background, disjoint by source.

Everything is a function of the sounds, the seed and the settings. A *source* (an uploader with all his recordings) plays
one role only: no negative and no background clip shares one with a reference, and the unrelated sound that copies are
buried in is a role of its own.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from auscult.metrics.copy_detection import Truth

from .signals import Audio
from .synthetic import EVENTFUL, MUSIC, STATIONARY, synthesize
from .transforms import KINDS, LEVELS, Copy, Studio, apply, draw_chain

# Freesound 30322 ("FireBurning_v2") is 28314 ("FireBurning") again: clips A agree with a
# correlation of 0.97 at lag 0. A copy of one is a copy of the other, so one is left out.
REPEATED = ("30322",)

RATE = 24_000  # Hz: covers the band that detectors use, and Opus accepts it


@dataclass(frozen=True)
class Sound:
    """A clip of known source. `stationary` sounds are by definition never copies."""

    clip_id: str
    source: str
    audio: Audio
    stationary: bool = False


@dataclass(frozen=True)
class Query:
    """A query, the strength of its transformation (light, medium, heavy), and what it copies."""

    truth: Truth
    level: str
    audio: Audio


@dataclass(frozen=True)
class Benchmark:
    """All sets, and the rate of their audio in Hz."""

    rate: int
    references: tuple[Sound, ...]
    queries: tuple[Query, ...]
    background: tuple[Sound, ...]

    @property
    def truths(self) -> list[Truth]:
        """Of the queries, in their order."""
        return [query.truth for query in self.queries]


@dataclass(frozen=True)
class Sizes:
    """Shares of the recorded sounds by role, and how many queries to make."""

    references: float = 0.5
    oneshots: float = 0.09
    negatives: float = 0.2
    background: float = 0.13  # the rest are beds
    positives_per_kind: int = 11
    chains: int = 60
    negative_queries: int = 120


def read_esc10(folder: Path, rate: int = RATE) -> list[Sound]:
    """Read the ESC-10 clips; the uploader is the source.

    One uploader's recordings of one afternoon have ids of their own and share much more
    than a category, so the Freesound id alone would not keep roles apart.
    """
    sounds: list[Sound] = []
    with open(folder / "esc10.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["freesound_id"] in REPEATED:
                continue
            audio, native = sf.read(folder / row["path"], dtype="float32", always_2d=True)
            mono = soxr.resample(audio.mean(axis=1), native, rate).astype(np.float32)
            sounds.append(Sound(row["clip_id"], row["source_author"], mono))
    return sounds


def synthetic_sounds(count: int, rate: int = RATE, seed: int = 0, *, kinds: Sequence[str] = EVENTFUL) -> list[Sound]:
    """`count` eventful built-in sounds of 2-8 s; each is its own source."""
    rng = np.random.default_rng([seed, 1])
    out = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        audio = synthesize(kind, float(rng.uniform(2, 8)), rate, seed * 100_003 + i)
        out.append(Sound(f"{kind}-{i:04d}", f"synthetic-{kind}-{i}", audio))
    return out


def stationary_sounds(count: int, rate: int = RATE, seed: int = 0) -> list[Sound]:
    """`count` takes of hum, rain, white noise and drones of 5 s; each is its own source."""
    out = []
    for i in range(count):
        kind = STATIONARY[i % len(STATIONARY)]
        audio = synthesize(kind, 5.0, rate, seed * 100_019 + i)
        out.append(Sound(f"{kind}-{seed}-{i:04d}", f"stationary-{seed}-{i}", audio, stationary=True))
    return out


def pool(esc10: Path | None, *, seed: int) -> list[Sound]:
    """The sounds to deal: ESC-10 and 80 synthesized music-like ones, or 300 synthesized ones where no recording is at hand."""
    if esc10 is None:
        return synthetic_sounds(300, seed=seed + 7)
    return read_esc10(esc10) + synthetic_sounds(80, seed=seed + 7, kinds=MUSIC)


def assign_roles(sounds: Iterable[Sound], sizes: Sizes, seed: int) -> dict[str, list[Sound]]:
    """Deal whole sources to roles until each role has its share, in an order set by hash: adding a sound moves few others."""
    by_source: dict[str, list[Sound]] = {}
    for sound in sounds:
        by_source.setdefault(sound.source, []).append(sound)
    order = sorted(by_source, key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
    total = sum(len(v) for v in by_source.values())
    quotas = [
        ("references", sizes.references),
        ("oneshots", sizes.oneshots),
        ("negatives", sizes.negatives),
        ("background", sizes.background),
        ("beds", 1.0),
    ]
    roles: dict[str, list[Sound]] = {name: [] for name, _ in quotas}
    position = 0
    for source in order:
        while len(roles[quotas[position][0]]) >= quotas[position][1] * total:
            position += 1
        roles[quotas[position][0]].extend(by_source[source])
    return roles


def is_eventful(sound: Sound, rate: int) -> bool:
    """True if the clip is loud enough to be anyone's copy (peak above -60 dBFS, 0.1 s active)."""
    level = np.abs(sound.audio)
    return bool(level.max() > 1e-3 and np.sum(level > 0.05 * level.max()) > 0.01 * rate)


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


def build(sounds: Sequence[Sound], *, rate: int = RATE, seed: int = 0, sizes: Sizes | None = None) -> Benchmark:
    """Make the benchmark from any list of sounds.

    Parameters
    ----------
    sounds
        Recordings or synthesized sounds; those with one `source` play one role.
    rate
        Sampling rate of their audio in Hz.
    seed
        Decides roles, pairings and every setting drawn.

    Returns
    -------
    Benchmark
        Positives name the reference they copy; stationary sound is added to references
        and to negatives (other takes), where a detector must not match it.
    """
    sizes = sizes or Sizes()
    rng = np.random.default_rng(seed)
    roles = assign_roles([s for s in sounds if is_eventful(s, rate)], sizes, seed)
    shots = [cut_oneshot(s, rate, rng) for s in roles["oneshots"]]
    copied = roles["references"] + shots
    studio = Studio(rate, rng, tuple(s.audio for s in roles["beds"]))
    queries = _positives(copied, studio, sizes) + _negatives(roles["negatives"], studio, sizes, seed)
    references = copied + stationary_sounds(12, rate, seed + 1)
    background = roles["background"] + stationary_sounds(4, rate, seed + 2)
    return Benchmark(rate, tuple(references), tuple(queries), tuple(background))


def _positives(copied: Sequence[Sound], studio: Studio, sizes: Sizes) -> list[Query]:
    plans = [([kind], i) for kind in KINDS for i in range(sizes.positives_per_kind)]
    plans += [(draw_chain(studio.rng, 2 + i % 3), i // 3) for i in range(sizes.chains)]
    order: list[int] = []
    out = []
    for number, (kinds, i) in enumerate(plans):
        if not order:  # a fresh shuffle whenever all references have been used once
            order = studio.rng.permutation(len(copied)).tolist()
        sound, level = copied[order.pop()], i % 3
        copy = apply(sound.audio, kinds, studio, level)
        group, name = ("chain", f"chain_{len(kinds)}") if len(kinds) > 1 else (kinds[0].group, kinds[0].name)
        out.append(_query(f"positive-{number:04d}", sound, group, name, level, copy, sound.clip_id))
    return out


def _negatives(unrelated: Sequence[Sound], studio: Studio, sizes: Sizes, seed: int) -> list[Query]:
    """Unrelated clips, one in six stationary, half of them transformed like the positives."""
    noises = stationary_sounds(max(1, sizes.negative_queries // 6), studio.rate, seed + 3)
    shots = [cut_oneshot(s, studio.rate, studio.rng) for s in unrelated[:: max(1, len(unrelated) // 10)]]
    plain = [*unrelated, *shots]
    sounds = noises + [plain[i % len(plain)] for i in range(sizes.negative_queries - len(noises))]
    out = []
    for number, sound in enumerate(sounds):
        repeated = number >= len(noises) + len(plain)
        length = int(studio.rng.integers(1, 4)) if repeated or number % 2 else 0
        kinds = draw_chain(studio.rng, length) if length else []
        level = number % 3
        copy = apply(sound.audio, kinds, studio, level)
        kind = "stationary" if sound.stationary else ("transformed" if kinds else "untouched")
        query = _query(f"negative-{number:04d}", sound, "negative", kind, level, copy, None)
        out.append(query)
    return out


def _query(name: str, sound: Sound, group: str, kind: str, level: int, copy: Copy, truth: str | None) -> Query:
    spans = copy.spans if truth is not None else ()
    return Query(Truth(name, truth, sound.source, group, kind, spans), LEVELS[level], copy.audio)
