"""The demo: synthetic sounds with planted copies, audited and deduplicated from end to end.

Nothing here is a result about a model: the sounds are synthesised and the replicas planted, so that one can see what is
found, what is not, and what the reports look like.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from .audit import Audit, audit
from .corpus import open_corpus
from .duplicates import KIND as DEDUP_KIND
from .duplicates import DedupConfig, Duplicates, deduplicate
from .engine import HERE, Engine
from .folders import Progress, building, is_folder_of, no_progress, write_card
from .report import write_report
from .sounds import FAMILIES, FloatArray, Rng, Sound, synthesise

KIND = "demo"
RATE_HZ = 16_000
DURATION_S = 5.0
SEED = 20240415
STEADY = frozenset({"rain", "engine"})
N_TRAINING, N_CLEAN, N_BACKGROUND, N_NULL, PER_KIND = 112, 28, 56, 140, 4


@dataclass(frozen=True)
class Planted:
    """One line of the demo's table: a kind of copy, how many were planted, how many were found, and what to expect."""

    kind: str
    planted: int
    found: int
    expected: bool


@dataclass(frozen=True)
class Demo:
    """What the demo made and found."""

    path: Path
    replicas: tuple[Planted, ...]
    duplicates: tuple[Planted, ...]
    false_alarms: int
    clean: int
    audit: Audit
    dedup: Duplicates


def run_demo(output: str | Path, *, engine: Engine = HERE, overwrite: bool = False, progress: Progress = no_progress) -> Demo:
    """Synthesise the four sets, plant copies, audit and deduplicate them, and write the reports.

    Raises
    ------
    OutputFolderError
        ``output`` holds something else.
    """
    output = Path(output)
    unfinished = is_folder_of(output, KIND) and not is_folder_of(output / "dedup", DEDUP_KIND)
    with building(output, KIND, task={"seed": SEED}, overwrite=overwrite or unfinished) as folder:
        rng = np.random.default_rng(SEED)
        training = [_sound(rng, number) for number in range(N_TRAINING)]
        twins = _write_training(folder / "training", training, rng)
        truth = _write_generated(folder / "generated", training, rng)
        for role, count in (("background", N_BACKGROUND), ("null", N_NULL)):
            _write_set(folder / role, [(f"{role}-{number:03d}.wav", _sound(rng, number)) for number in range(count)])
        progress(1, 1, "sounds synthesised")
        write_card(folder, KIND, {"seed": SEED, "note": "synthetic sounds, planted replicas"})
    corpora = {name: open_corpus(output / name / "manifest.csv") for name in ("training", "generated", "background", "null")}
    audited = audit(
        corpora["generated"],
        corpora["training"],
        corpora["background"],
        null=corpora["null"],
        output=output / "audit",
        engine=engine,
        progress=progress,
        finish=lambda folder: write_report(folder, progress),
    )
    dedup = deduplicate(
        corpora["training"],
        background=corpora["background"],
        output=output / "dedup",
        config=DedupConfig(duration_s=DURATION_S),
        engine=engine,
        progress=progress,
        finish=lambda folder: write_report(folder, progress),
    )
    replicas, false_alarms = _score_audit(audited, truth, twins)
    return Demo(output, replicas, _score_dedup(dedup, twins), false_alarms, N_CLEAN, audited, dedup)


def _sound(rng: Rng, number: int) -> Sound:
    return synthesise(list(FAMILIES)[number % len(FAMILIES)], rng, duration_s=DURATION_S, rate_hz=RATE_HZ)


def _write_set(folder: Path, sounds: list[tuple[str, Sound]]) -> None:
    """Write sounds (the suffix of the name is the format) and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "caption", "labels"])
        for name, sound in sounds:
            _write_audio(folder / name, sound.samples)
            writer.writerow([name, sound.caption, sound.family])


def _write_audio(path: Path, samples: FloatArray) -> None:
    options = {".ogg": {"compression_level": 0.9}}.get(path.suffix, {})
    # 16-bit integers, so that a WAV and a FLAC of one sound hold the same samples
    sf.write(path, np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16), RATE_HZ, **options)


# --- what is planted ------------------------------------------------------------------------------------------------


def _write_training(folder: Path, training: list[Sound], rng: Rng) -> dict[str, list[tuple[str, str]]]:
    """The training set with a few duplicates; returns the planted pairs of names by kind."""
    sounds = [(f"training-{number:03d}.wav", sound) for number, sound in enumerate(training)]
    twins: dict[str, list[tuple[str, str]]] = {}
    lively = [number for number, sound in enumerate(training) if sound.family not in STEADY]
    kinds = [("identical file", ".wav")] * 2 + [("same samples, other format", ".flac")] * 2
    kinds += [("Ogg Vorbis of it", ".ogg")] * 4 + [("quieter", ".wav")] * 4  # no MP3: its decoder mutters on stderr
    originals = rng.choice(lively, len(kinds), replace=False)
    for number, (kind, suffix) in enumerate(kinds):
        original = int(originals[number])
        name = f"again-{number}{suffix}"
        samples = training[original].samples * (0.5 if kind == "quieter" else 1.0)
        sounds.append((name, Sound(samples, training[original].caption, training[original].family)))
        twins.setdefault(kind, []).append((f"training-{original:03d}.wav", name))
    _write_set(folder, sounds)
    return twins


def _noisy(x: FloatArray, other: FloatArray, rng: Rng) -> FloatArray:
    return np.asarray(x + rng.standard_normal(len(x)) * np.sqrt(np.mean(x**2)) * 10 ** (-30 / 20))


def _shifted(x: FloatArray, other: FloatArray, rng: Rng) -> FloatArray:
    return np.roll(x, round(rng.uniform(0.6, 1.5) * RATE_HZ))


def _excerpt(x: FloatArray, other: FloatArray, rng: Rng) -> FloatArray:
    """Two seconds of x inside other sound, at another moment."""
    out, size = other.copy(), 2 * RATE_HZ
    source, place = rng.integers(0, len(x) - size, 2)
    out[place : place + size] = x[source : source + size]
    return out


def _mixed(x: FloatArray, other: FloatArray, rng: Rng) -> FloatArray:
    """Under other sound of the same level."""
    return np.asarray(x / np.sqrt(np.mean(x**2)) * 0.1 + other / np.sqrt(np.mean(other**2)) * 0.1)


Plant = Callable[[FloatArray, FloatArray, Rng], FloatArray]
_REPLICAS: dict[str, tuple[Plant, str, bool]] = {
    "as it is": (lambda x, other, rng: x, ".wav", True),
    "through a codec": (lambda x, other, rng: x, ".ogg", True),
    "louder, with noise": (_noisy, ".wav", True),
    "starts later": (_shifted, ".wav", True),
    "two seconds of it": (_excerpt, ".wav", True),
    "under other sound": (_mixed, ".wav", True),
}


def _write_generated(folder: Path, training: list[Sound], rng: Rng) -> dict[str, tuple[str, str]]:
    """The "generated" set: replicas of several kinds and clean clips; returns ``{name: (kind, training name)}``."""
    sounds, truth = [], {}
    # steady sound is no replica by the audit paper's definition: plant copies of the others only
    originals = iter([n for n in rng.permutation(len(training)) if training[n].family not in STEADY])
    for kind, (plant, suffix, _) in _REPLICAS.items():
        for number in range(PER_KIND):
            original = int(next(originals))
            other = _sound(rng, int(rng.integers(len(FAMILIES))))
            samples = plant(training[original].samples, other.samples, rng)
            name = f"{kind.replace(' ', '-').replace(',', '')}-{number}{suffix}"
            samples *= min(1.0, 0.95 / np.abs(samples).max())
            sounds.append((name, Sound(samples, training[original].caption, training[original].family)))
            truth[name] = (kind, f"training-{original:03d}.wav")
    sounds += [(f"clean-{number:02d}.wav", _sound(rng, number)) for number in range(N_CLEAN)]
    _write_set(folder, sounds)
    return truth


# --- what is found --------------------------------------------------------------------------------------------------


def _score_audit(
    audited: Audit, truth: dict[str, tuple[str, str]], twins: dict[str, list[tuple[str, str]]]
) -> tuple[tuple[Planted, ...], int]:
    """Count a replica as found if its clip is flagged with its original, or with a planted duplicate of the original."""
    same = {name: {name} for _, name in truth.values()}
    for original, again in (pair for pairs in twins.values() for pair in pairs):
        same.setdefault(original, {original}).add(again)
    flagged = {
        row["query_id"]: row["reference_id"] for row in audited.matches().to_pylist() if row["flagged"] and row["rank"] == 1
    }
    lines = []
    for kind, (*_, expected) in _REPLICAS.items():
        planted = [name for name, (planted_kind, _) in truth.items() if planted_kind == kind]
        found = sum(flagged.get(name) in same[truth[name][1]] for name in planted)
        lines.append(Planted(kind, len(planted), found, expected))
    return tuple(lines), sum(name not in truth for name in flagged)


def _score_dedup(dedup: Duplicates, twins: dict[str, list[tuple[str, str]]]) -> tuple[Planted, ...]:
    cluster = {row["clip_id"]: row["cluster_id"] for row in dedup.clusters().to_pylist()}
    return tuple(
        Planted(kind, len(pairs), sum(cluster.get(one, -1) == cluster.get(other, -2) for one, other in pairs), True)
        for kind, pairs in twins.items()
    )
