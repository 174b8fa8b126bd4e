"""Control pairs: known copies and known non-copies, mixed into the queue to measure the reviewer.

A control's query is a training clip, shifted, noised, re-levelled and gently low-passed. Its pair with its own source is a
known replication, its pair with another training clip a known non-copy. What a reviewer sees beside the sound (id, path,
caption, scores, length, rate) is borrowed from real pairs, the same way for both kinds, so that it gives nothing away and
says nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from scipy.signal import butter, sosfiltfilt

from ..audio import Audio, read_audio
from ..audit import KIND as AUDIT_KIND
from ..audit import TRAINING
from ..duplicates import PAIRS
from ..errors import AudioDecodeError, StoreError
from ..folders import atomic_file
from .fields import pair_id
from .queue import ReviewSet, load_pairs, pair_row
from .streaming import open_clip
from .verdicts import Control

log = logging.getLogger(__name__)

CONTROLS = "controls"
SHIFT_S = (0.2, 1.0)
GAIN_DB = (-6.0, 3.0)
SNR_DB = (18.0, 22.0)
LOW_PASS_HZ = (5000.0, 9000.0)
MAX_S = 120.0  # of an hour-long recording only the beginning is used
MIN_S = 0.5  # shorter clips give a reviewer nothing to recognize
CLOSEST = 20  # real pairs whose scores are borrowed where none is flagged
TRIES = 20  # sources that may prove unreadable or silent, for one control

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Clip:
    """A training clip; without a ``duration_s`` it lasts to the end of its file."""

    clip_id: str
    path: str
    start_s: float
    duration_s: float | None
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
    names = _Names(review_set.query_ids, [clip.clip_id for clip in clips])
    controls: list[Control] = []
    for number in range(n):
        first_is_copy = np.random.default_rng([seed, number // 2, 0]).random() < 0.5
        copy = first_is_copy == (number % 2 == 0)
        controls.append(_control(review_set, clips, near, copy, names, np.random.default_rng([seed, number, 1])))
    return controls


def _control(
    review_set: ReviewSet,
    clips: list[_Clip],
    near: dict[str, set[str]],
    copy: bool,
    names: _Names,
    rng: np.random.Generator,
) -> Control:
    lent = _lent_row(review_set, rng)
    for source in [clips[at] for at in rng.permutation(len(clips))[:TRIES].tolist()]:
        others = [clip for clip in clips if clip is not source and _unrelated(source, clip, near)]
        if not copy and not others:
            continue
        reference = source if copy else others[int(rng.integers(len(others)))]
        try:
            length_s, rate = _length_and_rate(lent, source)
            audio = _beginning(source, rate, length_s)
            target = _beginning(reference, rate, MAX_S)
        except AudioDecodeError as error:
            log.warning("%s: no control is made of it (%s)", source.path, error)
            continue
        shared = min(len(audio.samples), len(target.samples)) * 19 // 20  # where a resampler stops, it has no more to go by
        same = copy or np.allclose(audio.samples[:shared], target.samples[:shared], atol=1e-4)
        if {"silent", "near_silent"} & {*audio.facts.flags, *target.facts.flags} or same != copy or shared < 0.9 * MIN_S * rate:
            continue
        longer = max(0, round(length_s * rate) - len(audio.samples))
        samples, lag_s = transformed(np.pad(audio.samples, (0, longer)), rate, rng)
        query_id = names.invented(lent["query_id"], rng)
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
    long_enough = (clip for clip in clips if clip.duration_s is None or clip.duration_s >= MIN_S)
    return sorted(long_enough, key=lambda clip: clip.clip_id)


def _listed_clips(table: pa.Table) -> list[_Clip]:
    """References of the listed matches; how long they are, only their files tell."""
    found: dict[str, _Clip] = {}
    for row in table.to_pylist():
        start_s, caption = row.get("reference_offset_s") or 0.0, row.get("reference_caption")
        found[row["reference_id"]] = _Clip(row["reference_id"], row["reference_path"], start_s, None, caption, None)
    return list(found.values())


def _beginning(clip: _Clip, rate: int, length_s: float) -> Audio:
    length_s = length_s if clip.duration_s is None else min(clip.duration_s, length_s)
    return read_audio(clip.path, sample_rate_hz=rate, start_s=clip.start_s, duration_s=length_s)


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
    rows = rows[np.argsort(-review_set.scores[rows], kind="stable")]
    place = int(rng.integers(max(1, len(rows) - 1)))
    lent, below = (
        pair_row(review_set, review_set.pair_ids[at]) for at in rows[[place, min(place + 1, len(rows) - 1)]].tolist()
    )
    return lent | _between(lent, below, rng.random())


def _between(lent: dict[str, Any], below: dict[str, Any], share: float) -> dict[str, Any]:
    """Scores between those of two real pairs that follow each other: were they equal to one's, it would tell."""
    ends = {name: (lent[name], below[name]) for name in ("similarity", "bias", "score") if lent.get(name) is not None}
    if not all(end is not None and math.isfinite(end) for pair in ends.values() for end in pair):
        return {}
    mixed = {name: first + share * (second - first) for name, (first, second) in ends.items()}
    narrow = all(np.float32(end) == end for pair in ends.values() for end in pair)
    return {name: float(np.float32(value)) if narrow else value for name, value in mixed.items()}


def _length_and_rate(lent: dict[str, Any], source: _Clip) -> tuple[float, int]:
    """Length in seconds and sample rate in Hz of a real query as it is heard; were the controls' others, it would tell."""
    try:
        real = open_clip(lent["query_path"], lent["query_offset_s"], lent["query_duration_s"])
        length_s = real.duration_s
    except (AudioDecodeError, OSError):
        real = open_clip(source.path, source.start_s, source.duration_s)
        length_s = lent["query_duration_s"] or real.duration_s
    return min(max(length_s, MIN_S), MAX_S), min(max(real.source_rate_hz, 8000), 96_000)


@dataclass
class _Names:
    """Names for controls that could be real queries' own."""

    queries: list[str]
    training: list[str]
    taken: set[str] = field(init=False)
    numbers: dict[tuple[str, str], set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = {*self.queries, *self.training}
        self.numbers = defaultdict(set)
        for query in self.queries:
            if parts := _numbered(query):
                self.numbers[parts[0], parts[2]].add(int(parts[1]))

    def invented(self, lent: str, rng: np.random.Generator) -> str:
        """An id like a real query's: another number, or, where names have none, words of others of its kind."""
        choices = self._other_numbers(lent, rng) if _numbered(lent) else self._other_words(lent, rng)
        name = next(choice for choice in choices if choice not in self.taken)
        self.taken.add(name)
        return name

    def _other_numbers(self, lent: str, rng: np.random.Generator) -> Iterator[str]:
        """Numbers that the real ones leave free, then those that follow them."""
        parts = _numbered(lent)
        assert parts is not None  # asked before
        before, number, after = parts
        width, known = len(number), self.numbers[before, after] or {int(number)}
        low, high = min(known), max(known)
        if len(known) < 3:  # no series, such as the digits of a digest: any of this width
            low, high = 0 if width == 1 else 10 ** (width - 1), 10**width - 1
        for _ in range(100):
            yield f"{before}{int(rng.integers(low, high + 1)):0{width}d}{after}"
        for free in itertools.chain(range(low, min(high, low + 10_000)), itertools.count(high + 1)):
            yield f"{before}{free:0{width}d}{after}"

    def _other_words(self, lent: str, rng: np.random.Generator) -> Iterator[str]:
        name = PurePosixPath(lent)
        stems = sorted({PurePosixPath(query).stem for query in self.queries[:10_000]})
        for _ in range(100):  # the beginning of one name and the end of another
            one, other = (re.split(r"(?<=[-_ .])", stems[int(rng.integers(len(stems)))]) for _ in range(2))
            if len(one) > 1 and len(other) > 1:
                yield str(name.with_name("".join([*one[:-1], other[-1]]) + name.suffix))
        for at in rng.permutation(len(self.training)).tolist():
            yield str(name.with_name(PurePosixPath(self.training[at]).stem + name.suffix))
        yield from (str(name.with_name(f"{name.stem}-{number}{name.suffix}")) for number in itertools.count(1))


def _numbered(clip_id: str) -> tuple[str, str, str] | None:
    """What is before, in and after the last number of a name (not of its folder or ending); None if it has none."""
    name = PurePosixPath(clip_id)
    runs = list(re.finditer(r"[0-9]+", name.stem))
    if not runs:
        return None
    first, last = runs[-1].span()
    whole = str(name.with_name(name.stem[:first] + "\0" + name.stem[last:] + name.suffix))
    before, _, after = whole.partition("\0")
    return before, name.stem[first:last], after


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
