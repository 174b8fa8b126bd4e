"""Build the benchmark: references, positives, negatives, null, background, distractors, disjoint by source.

Everything is a function of the sounds, the seed and the settings. A *source* (an uploader with all his recordings) plays
one role only: no negative and no background clip shares one with a reference, and the unrelated sound that copies are
buried in is a role of its own, as is what distractors are made of.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from .distractors import distractors
from .queries import STEADY_SHARE, backwards, cut_oneshot, positives, unrelated
from .sets import RATE, Benchmark, Query, Sizes, Sound
from .synthetic import EVENTFUL, MUSIC, STEADY, synthesize
from .transforms import Studio

__all__ = ["RATE", "Benchmark", "Query", "Sizes", "Sound", "build", "pool", "read_esc10"]

# Freesound 30322 ("FireBurning_v2") is 28314 ("FireBurning") again: clips A agree with a
# correlation of 0.97 at lag 0. A copy of one is a copy of the other, so one is left out.
REPEATED = ("30322",)

SYNTHETIC = "synthetic-"  # how sources begin that are no uploader's


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
        out.append(Sound(f"{kind}-{i:04d}", f"{SYNTHETIC}{kind}-{i}", audio))
    return out


def steady_sounds(count: int, rate: int = RATE, seed: int = 0) -> list[Sound]:
    """`count` takes of hum, rain, noise, drones and tones of 5 s; each is its own source."""
    out = []
    for i in range(count):
        kind = STEADY[i % len(STEADY)]
        audio = synthesize(kind, 5.0, rate, seed * 100_019 + i)
        out.append(Sound(f"{kind}-{seed}-{i:04d}", f"{SYNTHETIC}steady-{seed}-{i}", audio, steady=kind))
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
        ("null", sizes.null),
        ("background", sizes.background),
        ("beds", sizes.beds),
        ("stock", 1.0),
    ]
    names = [name for name, _ in quotas]
    limits = (
        np.cumsum([share for _, share in quotas]) * total
    )  # of all dealt so far: what one role has too many, the next lacks
    roles: dict[str, list[Sound]] = {name: [] for name in names}
    position = dealt = 0
    for source in order:
        while dealt >= limits[position] and roles[names[position]]:
            position += 1
        roles[names[position]].extend(by_source[source])
        dealt += len(by_source[source])
    return roles


def is_eventful(sound: Sound, rate: int) -> bool:
    """True if the clip is loud enough to be anyone's copy (peak above -60 dBFS, 0.1 s active)."""
    level = np.abs(sound.audio)
    return bool(level.max() > 1e-3 and np.sum(level > 0.05 * level.max()) > 0.01 * rate)


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
        Positives name the reference they copy; steady sound is added to references and to negatives (other takes), where
        a detector must not match it.
    """
    sizes = sizes or Sizes()
    rng = np.random.default_rng(seed)
    roles = assign_roles([s for s in sounds if is_eventful(s, rate)], sizes, seed)
    copied = roles["references"] + [cut_oneshot(s, rate, rng) for s in roles["oneshots"]]
    studio = Studio(rate, rng, tuple(s.audio for s in roles["beds"]))
    copies = positives(copied, studio, sizes)
    reversed_ = backwards(copied, studio, sizes)
    count = round(sizes.negatives_per_positive * len(copies))
    steady = steady_sounds(count // STEADY_SHARE, rate, seed + 3)
    negatives = unrelated(roles["negatives"], steady, studio, count=count, role="negative")
    steady = steady_sounds(sizes.null_queries // STEADY_SHARE, rate, seed + 4)
    null = unrelated(roles["null"], steady, studio, count=sizes.null_queries, role="null")
    others = distractors(sizes.distractors, roles["stock"], rate, seed)
    return Benchmark(
        rate,
        tuple(copied + steady_sounds(2 * len(STEADY), rate, seed + 1) + others),
        tuple(copies + negatives),
        tuple(reversed_),
        tuple(roles["background"] + steady_sounds(4, rate, seed + 2)),
        tuple(Sound(q.truth.query_id, q.truth.source, q.audio) for q in null),
        len(others),
    )
