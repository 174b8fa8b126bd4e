"""Control pairs: known copies and known non-copies, mixed into the queue to measure the reviewer.

A control's query is a training clip, shifted, noised, re-levelled and gently low-passed. Its pair with its own source is a
known replication, its pair with another training clip a known non-copy. What a reviewer sees beside the sound (id, path,
caption, scores) is borrowed from real pairs, the same way for both kinds, so that it gives nothing away and says nothing.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from scipy.signal import butter, sosfiltfilt

from ..audio import read_audio
from ..audit import KIND as AUDIT_KIND
from ..audit import TRAINING
from ..duplicates import PAIRS
from ..errors import AudioDecodeError, StoreError
from ..folders import atomic_file
from .fields import pair_id
from .queue import ReviewSet, load_pairs, pair_row
from .verdicts import Control

log = logging.getLogger(__name__)

CONTROLS = "controls"
SHIFT_S = (0.2, 1.0)
GAIN_DB = (-6.0, 3.0)
SNR_DB = (18.0, 22.0)
LOW_PASS_HZ = (5000.0, 9000.0)
MAX_S = 30.0  # of an hour-long training recording only the beginning is used
MIN_S = 0.5  # shorter clips give a reviewer nothing to recognize
CLOSEST = 20  # real pairs whose scores are borrowed where none is flagged
TRIES = 20  # sources that may prove unreadable or silent, for one control

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Clip:
    """A training clip; ``duration_s`` is how much of it is known to be there."""

    clip_id: str
    path: str
    start_s: float
    duration_s: float
    caption: str | None
    sample_digest: str | None


def make_controls(folder: str | Path, n: int, *, seed: int = 0) -> list[Control]:
    """Make ``n`` control pairs, half of them known copies, and write their sounds to ``folder/controls/`` as FLAC.

    The same seed gives the same controls, and a larger ``n`` those of the smaller and more. What is returned is stored by
    ``VerdictStore.add_controls``. The other clip of a known non-copy is drawn from the training clips that are neither its
    source's listed nearest, nor listed in a pair with it, nor equal to it in samples; it may be of the same kind of sound.

    Raises
    ------
    ValueError
        ``n`` is below 1.
    StoreError
        There are fewer than two different training clips that can be read.
    """
    if n < 1:
        raise ValueError(f"n should be at least 1, got {n}")
    review_set = load_pairs(folder)
    clips, near = _training_clips(review_set), _near(review_set)
    if len({clip.sample_digest or clip.clip_id for clip in clips}) < 2:
        raise StoreError(
            f"{folder}: controls need at least 2 different training clips of {MIN_S} s or more, this folder knows "
            f"{len(clips)}; audit corpora rather than stores kept elsewhere, or review without controls"
        )
    taken = {*review_set.query_ids, *(clip.clip_id for clip in clips)}
    controls: list[Control] = []
    for number in range(n):
        first_is_copy = np.random.default_rng([seed, number // 2, 0]).random() < 0.5
        copy = first_is_copy == (number % 2 == 0)
        controls.append(_control(review_set, clips, near, copy, taken, np.random.default_rng([seed, number, 1])))
    return controls


def _control(
    review_set: ReviewSet,
    clips: list[_Clip],
    near: dict[str, set[str]],
    copy: bool,
    taken: set[str],
    rng: np.random.Generator,
) -> Control:
    lent = _lent_row(review_set, rng)
    for source in [clips[at] for at in rng.permutation(len(clips))[:TRIES].tolist()]:
        others = [clip for clip in clips if clip is not source and _unrelated(source, clip, near)]
        if not copy and not others:
            continue
        reference = source if copy else others[int(rng.integers(len(others)))]
        try:
            rate = _rate_of(lent, source)
            length_s = min(source.duration_s, max(lent["query_duration_s"] or MAX_S, MIN_S), MAX_S)  # as long as real ones
            audio = read_audio(source.path, sample_rate_hz=rate, start_s=source.start_s, duration_s=length_s)
            target = read_audio(
                reference.path, sample_rate_hz=rate, start_s=reference.start_s, duration_s=min(reference.duration_s, MAX_S)
            )
        except AudioDecodeError as error:
            log.warning("%s: no control is made of it (%s)", source.path, error)
            continue
        same = np.array_equal(audio.samples, target.samples[: len(audio.samples)])
        if {"silent", "near_silent"} & {*audio.facts.flags, *target.facts.flags} or same != copy:
            continue
        samples, lag_s = transformed(audio.samples, rate, rng)
        query_id = _invented_id(lent["query_id"], taken, rng)
        taken.add(query_id)
        path = f"{CONTROLS}/{hashlib.sha256(query_id.encode()).hexdigest()[:16]}.flac"
        with atomic_file(review_set.path / path) as handle:
            sf.write(handle, samples, rate, format="FLAC", subtype="PCM_16")
        lengths = len(samples) / rate, len(target.samples) / rate
        row = _row(review_set, lent, query_id, path, source, reference, lag_s, lengths)
        return Control(pair_id(query_id, reference.clip_id), "replication" if copy else "different", row)
    what = "a known copy" if copy else "a known non-copy"
    raise StoreError(
        f"{review_set.path}: none of {min(len(clips), TRIES)} training clips could be made {what}: unreadable, silent, or all "
        "alike; are the training files still where they were?"
    )


def transformed(samples: FloatArray, rate: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """A copy as a model might make it: shifted by 0.2 to 1 s, re-levelled, low-passed, with noise at about 20 dB below.

    Parameters
    ----------
    samples
        (time,) in [-1, 1].
    rate
        In Hz.
    rng
        Decides everything.

    Returns
    -------
    samples, lag_s
        Equally many samples, in [-1, 1]; and by how much they are late (negative: early). Clips under 4 s are shifted by at
        most a quarter of their length.
    """
    n = len(samples)
    lag = round(min(rng.uniform(*SHIFT_S), n / rate / 4) * rate) * (1 if rng.random() < 0.5 else -1)
    shifted = np.zeros(n)
    shifted[max(lag, 0) : n + min(lag, 0)] = samples[max(-lag, 0) : n - max(lag, 0)]
    corner = min(rng.uniform(*LOW_PASS_HZ), 0.4 * rate)
    soft = sosfiltfilt(butter(1, corner, fs=rate, output="sos"), shifted, padlen=min(32, n - 1))  # both ways: no delay
    power = float(np.mean(soft**2))
    noise = rng.standard_normal(n) * np.sqrt(power * 10 ** (-rng.uniform(*SNR_DB) / 10))
    result = (soft + noise) * 10 ** (rng.uniform(*GAIN_DB) / 20)
    return (result / max(1.0, float(np.abs(result).max()) / 0.95)).astype(np.float32), lag / rate


def _unrelated(source: _Clip, other: _Clip, near: dict[str, set[str]]) -> bool:
    same = source.sample_digest is not None and source.sample_digest == other.sample_digest
    return not same and other.clip_id != source.clip_id and other.clip_id not in near[source.clip_id]


# --- what the folder knows --------------------------------------------------------------------------------------------


def _training_clips(review_set: ReviewSet) -> list[_Clip]:
    """From the store in the folder; where the store is elsewhere, those that are listed in matches."""
    names = ("clip_id", "path", "start_s", "duration_s", "caption", "sample_digest", "flags")
    role = "references" if review_set.kind == AUDIT_KIND else "corpus"
    path = review_set.path / "stores" / role / "clips.parquet"
    if path.is_file():
        rows = pq.read_table(path, columns=list(names)).to_pylist()
        clips = [_Clip(*(row[name] for name in names[:-1])) for row in rows if "silent" not in (row["flags"] or ())]
    else:
        clips = _listed_clips(review_set.table)
    return sorted((clip for clip in clips if clip.duration_s >= MIN_S), key=lambda clip: clip.clip_id)


def _listed_clips(table: pa.Table) -> list[_Clip]:
    """References of the listed matches; they are known to last as long as their matching spans."""
    if "reference_end_s" not in table.column_names:
        return []
    found: dict[str, _Clip] = {}
    for row in table.to_pylist():
        clip_id, end_s = row["reference_id"], row["reference_end_s"] or 0.0
        known = found[clip_id].duration_s if clip_id in found else 0.0
        start_s, caption = row.get("reference_offset_s") or 0.0, row.get("reference_caption")
        found[clip_id] = _Clip(clip_id, row["reference_path"], start_s, max(known, end_s), caption, None)
    return list(found.values())


def _near(review_set: ReviewSet) -> dict[str, set[str]]:
    """Clips that the folder lists as near to each other, both ways."""
    name, columns = (TRAINING, ["reference_id", "nearest_id"])
    if review_set.kind != AUDIT_KIND:
        name, columns = (PAIRS, ["first_id", "second_id"])
    near: dict[str, set[str]] = defaultdict(set)
    table = pq.read_table(review_set.path / name, columns=columns)
    for one, other in zip(*(table[column].to_pylist() for column in columns), strict=True):
        near[one].add(other)
        near[other].add(one)
    return near


# --- what the reviewer sees ---------------------------------------------------------------------------------------------


def _lent_row(review_set: ReviewSet, rng: np.random.Generator) -> dict[str, Any]:
    """A real pair whose looks the control borrows: a flagged one, or one of the closest."""
    if not len(review_set):
        raise StoreError(f"{review_set.path}: lists no pair, so there is nothing to mix controls into")
    rows = np.flatnonzero(review_set.flagged)
    if not len(rows):
        rows = np.argsort(-review_set.scores, kind="stable")[:CLOSEST]
    return pair_row(review_set, review_set.pair_ids[int(rng.choice(rows))])


def _rate_of(lent: dict[str, Any], source: _Clip) -> int:
    """The sample rate of the real queries, in Hz; were the controls' another, it would tell."""
    try:
        path, start_s = lent["query_path"], lent["query_offset_s"]
        facts = read_audio(path, sample_rate_hz=16_000, start_s=start_s, duration_s=1.0).facts
    except AudioDecodeError:
        facts = read_audio(source.path, sample_rate_hz=16_000, start_s=source.start_s, duration_s=1.0).facts
    return min(max(facts.sample_rate_hz, 8000), 96_000)


def _invented_id(lent: str, taken: set[str], rng: np.random.Generator) -> str:
    """An id like a real query's: its last number another one, of as many digits."""
    name = PurePosixPath(lent)
    runs = list(re.finditer(r"\d+", name.stem))
    stem, number, rest = name.stem + "-", "0", ""
    if runs:
        stem, number, rest = name.stem[: runs[-1].start()], runs[-1].group(), name.stem[runs[-1].end() :]
    reach = 100
    while True:
        shifted = (int(number) + int(rng.integers(1, reach))) % 10 ** max(len(number), len(str(reach)))
        invented = str(name.with_name(f"{stem}{shifted:0{len(number)}d}{rest}{name.suffix}"))
        if invented not in taken:
            return invented
        reach *= 2


def _row(
    review_set: ReviewSet,
    lent: dict[str, Any],
    query_id: str,
    path: str,
    source: _Clip,
    reference: _Clip,
    lag_s: float,
    lengths: tuple[float, float],
) -> dict[str, Any]:
    """The control as a row of ``matches.parquet``: sounds of its own, numbers borrowed, the shift for both kinds."""
    starts = max(lag_s, 0.0), max(-lag_s, 0.0)
    common = max(0.0, min(lengths[0] - starts[0], lengths[1] - starts[1]))
    span = {
        "query_start_s": starts[0],
        "query_end_s": starts[0] + common,
        "reference_start_s": starts[1],
        "reference_end_s": starts[1] + common,
    }
    evidence = max((one["evidence"] for one in lent["spans"] or ()), default=1.0)
    two_stage = lent["spans"] is not None
    numbers = ("similarity", "bias", "score", "p_value", "flagged", "rank", "descriptor")
    return {
        "query_id": query_id,
        "query_path": path,  # below the folder, which may be moved
        "query_display_path": str(PurePosixPath(lent["query_path"]).parent / PurePosixPath(query_id).name),
        "query_caption": None if lent["query_caption"] is None else source.caption or lent["query_caption"],
        "query_offset_s": 0.0,
        "query_duration_s": lengths[0],
        "reference_id": reference.clip_id,
        "reference_path": reference.path,
        "reference_caption": reference.caption,
        "reference_offset_s": reference.start_s,
        "reference_duration_s": reference.duration_s,
        **{name: lent[name] for name in numbers},
        **span,
        "lag_s": lag_s,
        "tempo": 1.0 if two_stage else None,
        "pitch_semitones": 0.0 if two_stage else None,
        "spans": [{**span, "evidence": evidence}] if two_stage else None,
    }
