"""What a seed trains on and asks for: classes in a random order of frequency, held-out recordings, near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from ...audio import read_audio
from ...corpus import Clip
from ..sets import COPY, chosen
from .config import StudyTail
from .takes import Takes

COPY_GAIN = 0.5  # of a near-duplicate: 6 dB softer
COPY_NOISE = 0.003  # of its own root mean square: 50 dB below it
COPY_HZ = 32_000


@dataclass(frozen=True)
class Drawn:
    """The clips of a seed.

    Attributes
    ----------
    frequency
        Training clips of each class, the most frequent first; near-duplicates are not counted.
    training
        Without their near-duplicates.
    again
        Those of them that are there a second time.
    held_out
        As many of each class, the classes in the order of ``frequency``.
    opened
        Of the unseen classes, for the open datastore.
    rest
        Clips of recordings that nothing else is of, in random order.
    """

    frequency: dict[str, int]
    training: tuple[Clip, ...]
    again: tuple[Clip, ...]
    held_out: tuple[Clip, ...]
    opened: tuple[Clip, ...]
    rest: tuple[Clip, ...]


def class_of(clip: Clip) -> str:
    """The class of a clip: its first label.

    Raises
    ------
    ValueError
        It has no label.
    """
    if not clip.labels:
        raise ValueError(
            f"clip {clip.clip_id!r} has no label; a long tail is of classes: give a manifest with a column 'labels'"
        )
    return clip.labels[0]


def draw(clips: Sequence[Clip], tail: StudyTail, seed: int, group: str | None = None) -> Drawn:
    """Draw the clips of a seed.

    A recording is of the class of its first clip; what it has of other classes is not used. Of each class, recordings are
    put into a random order: the first give the held-out clips, and what is left of these recordings is not used. Each count
    is given to a random class that has so many clips of other recordings; these are trained on, or, of an unseen class, go
    into the open datastore.

    Parameters
    ----------
    clips
        Of the source; their own order does not matter.
    tail
        How many of what.
    group
        Regular expression whose first group names the recording of a clip id; None: each clip is its own. Recordings that
        are one sound (``tail.alike``) are one.

    Raises
    ------
    ValueError
        A clip has no label, ``alike`` names a recording that is not there, or an id does not fit the expression; there are
        fewer classes than counts, or too few clips of a class.

    Examples
    --------
    >>> clips = [Clip(f"{name}{n}", "x.wav", labels=(name,)) for name in ("dog", "rain", "gong") for n in range(9)]
    >>> drawn = draw(clips, StudyTail(counts=(5, 2, 0), held_out=2, open=3, copies=0.0), seed=0)
    >>> list(drawn.frequency.values()), len(drawn.training), len(drawn.held_out), len(drawn.opened), len(drawn.rest)
    ([5, 2, 0], 7, 6, 3, 11)
    """
    of_class: dict[str, list[Clip]] = {}
    takes = Takes(group, tail.alike)
    takes.check([clip.clip_id for clip in clips])
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    class_of_recording: dict[str, str] = {}
    for clip, name in zip(ordered, takes.of([clip.clip_id for clip in ordered]), strict=True):
        if class_of_recording.setdefault(name, class_of(clip)) == class_of(clip):
            of_class.setdefault(class_of(clip), []).append(clip)
    if len(of_class) < len(tail.counts):
        raise ValueError(
            f"[tail] counts names {len(tail.counts)} classes, and the clips are of {len(of_class)} "
            f"({', '.join(of_class)[:80]}); give fewer counts, or clips of more classes"
        )
    rng = np.random.default_rng(seed)
    held_out, left = {}, {}
    for name in sorted(of_class):
        held_out[name], left[name] = _taken(_recordings(of_class[name], takes, rng), tail.held_out)
    frequency = _ranks(tail, {name: len(_flat(left[name])) for name in left if len(held_out[name]) == tail.held_out}, rng)
    training: list[Clip] = []
    opened: list[Clip] = []
    rest = [clip for name in sorted(set(of_class) - set(frequency)) for clip in (*held_out[name], *_flat(left[name]))]
    for name, count in frequency.items():
        taken, untouched = _taken(left[name], count or tail.open)
        (training if count else opened).extend(taken)
        rest += _flat(untouched)
    again = chosen(training, tail.copies, seed) if tail.copies else ()
    prompts = [clip for name in frequency for clip in held_out[name]]
    order = rng.permutation(len(rest))
    return Drawn(frequency, tuple(training), again, tuple(prompts), tuple(opened), tuple(rest[row] for row in order))


def _ranks(tail: StudyTail, left: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """A class for each count, drawn among those that have so many clips left: first for what needs most, so that none is left
    over which a class could have had. Keys are in the order of the counts.
    """
    frequency: dict[str, int] = {}
    for count in sorted(tail.counts, key=lambda count: -(count or tail.open)):
        needed = count or tail.open
        able = [name for name in left if name not in frequency and left[name] >= needed]
        if not able:
            most = max((left[name] for name in left if name not in frequency), default=0)
            raise ValueError(
                f"no class is left with {needed} clips of other recordings than its {tail.held_out} held-out clips (at most "
                f"{most}); lower [tail] counts, held_out or open, or give more recordings"
            )
        frequency[able[int(rng.integers(len(able)))]] = count
    return dict(sorted(frequency.items(), key=lambda item: -item[1]))


def _recordings(clips: Sequence[Clip], takes: Takes, rng: np.random.Generator) -> list[list[Clip]]:
    found: dict[str, list[Clip]] = {}
    for clip, name in zip(clips, takes.of([clip.clip_id for clip in clips]), strict=True):
        found.setdefault(name, []).append(clip)
    names = sorted(found)
    return [found[names[row]] for row in rng.permutation(len(names))]


def _taken(recordings: Sequence[list[Clip]], wanted: int) -> tuple[list[Clip], list[list[Clip]]]:
    """So many clips of the first recordings, or all if there are fewer, and the recordings that are left untouched."""
    clips: list[Clip] = []
    number = 0
    while len(clips) < wanted and number < len(recordings):
        clips += recordings[number]
        number += 1
    return clips[:wanted], list(recordings[number:])


def _flat(recordings: Sequence[Sequence[Clip]]) -> list[Clip]:
    return [clip for recording in recordings for clip in recording]


def prompts_of(drawn: Drawn, count: int, seed: int) -> list[Clip]:
    """Training clips whose captions are generated from: first those with near-duplicates, then others, drawn by the seed."""
    ids = {clip.clip_id for clip in drawn.again}
    others = [clip for clip in drawn.training if clip.clip_id not in ids]
    order = np.random.default_rng([seed, count]).permutation(len(others))
    return [*drawn.again, *(others[row] for row in order)][:count]


def write_copies(folder: Path, clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Write near-duplicates as FLAC files: softer, with faint noise, under ids of their own and the same captions.

    Raises
    ------
    AudioDecodeError
        A clip cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for number, clip in enumerate(clips):
        samples = read_audio(clip.path, sample_rate_hz=COPY_HZ, start_s=clip.start_s, duration_s=clip.duration_s).samples
        noise = np.random.default_rng([seed, number]).standard_normal(len(samples))
        level = COPY_NOISE * float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        path = folder / f"{number:04d}.flac"
        sf.write(path, COPY_GAIN * np.clip(samples + level * noise, -1, 1), COPY_HZ)
        copies.append(Clip(f"{clip.clip_id}#{COPY}-2", str(path.absolute()), caption=clip.caption, labels=clip.labels))
    return copies
