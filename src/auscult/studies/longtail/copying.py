"""What generated clips match: their prompt's clip, a pair that was shown, or another; and whether what was shown is nearer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...audit import Audit
from ...corpus import Clip
from ...search.exact import unit_rows
from ...store import DescriptorStore
from ...vectors import Vectors
from ..config import StudyAudits
from ..flagging import is_flagged, is_undecided
from .arms import AUDITS, Run
from .config import LongtailConfig
from .drawing import class_of
from .takes import Takes, origin

KINDS = ("own", "own_shown", "own_recording", "own_recording_shown", "reference", "other")
KIND_NAMES = {
    "own": "its prompt's clip",
    "own_shown": "its prompt's clip, whose duplicate was shown",
    "own_recording": "another take of its prompt's recording",
    "own_recording_shown": "another take of its prompt's recording, which was shown",
    "reference": "another pair that was shown",
    "other": "another clip",
}
TOGETHER = {"its": ("own", "own_shown"), "pairs": ("own_recording_shown", "reference")}
"""Kinds that are counted as one: the prompt's clip, whether a duplicate of it was shown or not; and all other shown pairs. That
of ``own_shown`` came out of the weights or of the pair, and one clip cannot tell: it stands by itself besides."""


@dataclass(frozen=True)
class Seen:
    """A generated clip beside what an audit says of it.

    Attributes
    ----------
    clip_id
        Among all of its seed, ``WAY/000012-00``.
    own, label
        Its prompt's clip, and that one's class.
    shown
        Pairs that the model was shown.
    match, score, flagged
        The nearest reference by the audit; None where nothing could be compared.
    takes
        Which clips are of one recording.
    """

    clip_id: str
    own: str
    label: str
    shown: tuple[str, ...]
    match: str | None
    score: float | None
    flagged: bool
    takes: Takes = field(default_factory=Takes)

    @property
    def kind(self) -> str | None:
        """One of ``KINDS``; None without a match. A near-duplicate counts as what it was made of."""
        if self.match is None:
            return None
        what, shown = origin(self.match), {origin(one) for one in self.shown}
        if what == self.own:
            return "own_shown" if what in shown else "own"
        if self.takes.recording(what) == self.takes.recording(self.own):
            return "own_recording_shown" if what in shown else "own_recording"
        return "reference" if what in shown else "other"


@dataclass(frozen=True)
class SeedAudit:
    """The audit of all clips of a seed by one descriptor, and what of it counts as flagged.

    Attributes
    ----------
    audit
        Of the clips of all ways.
    name, asked
        Its descriptor, and how clips are flagged.
    takes
        Which clips are of one recording.
    """

    audit: Audit
    name: str
    asked: StudyAudits
    takes: Takes

    @classmethod
    def open(cls, config: LongtailConfig, folder: Path, seed: int, name: str) -> SeedAudit:
        """That of a study's folder."""
        return cls(Audit.open(folder / AUDITS / f"s{seed}-{name}"), name, config.audits, config.takes)

    @property
    def null_clips(self) -> int:
        """How many null scores p-values come from."""
        return int(self.audit.card["calibration"]["null_clips"])

    @property
    def undecided(self) -> bool:
        """Whether these are too few for the level, so that nothing could be flagged."""
        return is_undecided(self.asked, self.name, self.null_clips)

    @cached_property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """Rows of the queries."""
        return {row["query_id"]: row for row in self.audit.queries().to_pylist()}

    def seen(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> list[Seen]:
        """The clips of a run, of whose manifest ``rows`` are."""
        found = []
        for row in rows:
            clip_id = f"{run.way}/{row['clip_id']}"
            query = self.by_id[clip_id]
            compared = query["score"] is not None
            found.append(
                Seen(
                    clip_id,
                    row["reference"],
                    (row.get("labels") or [""])[0],
                    tuple(row.get("retrieved") or ()),
                    query["reference_id"] if compared else None,
                    query["score"],
                    compared and is_flagged(self.asked, self.name, query),
                    self.takes,
                )
            )
        return found

    @cached_property
    def likeness(self) -> Likeness | None:
        """Cosines of all generated clips and all references; None where the descriptor has no vectors."""
        stores = [DescriptorStore.open(self.audit.path / "stores" / role) for role in ("generated", "references")]
        if stores[0].spec.name == "contrast":
            return None
        return Likeness.of(*(store.load() for store in stores))


def with_pairs(seen: Sequence[Seen], shown: Mapping[str, tuple[str, ...]]) -> list[Seen]:
    """Clips of a model without pairs as if they had been shown some: what of them matches these is how often that happens by
    itself.

    Parameters
    ----------
    shown
        Pairs by the prompt's clip; clips of other prompts are left out.
    """
    return [replace(one, shown=shown[one.own]) for one in seen if one.own in shown]


def counts_of(seen: Sequence[Seen]) -> dict[str, Any]:
    """How many are compared and flagged, what the flagged ones match (``flagged_KIND``), and all (``nearest_KIND``): each of
    ``KINDS``, and those of ``TOGETHER``.
    """
    compared = [one for one in seen if one.kind is not None]
    found: dict[str, Any] = {
        "compared": len(compared),
        "prompts": len({one.own for one in compared}),
        "flagged": sum(one.flagged for one in compared),
    }
    for what, some in (("nearest", compared), ("flagged", [one for one in compared if one.flagged])):
        kinds = Counter(one.kind for one in some)
        found |= {f"{what}_{kind}": kinds[kind] for kind in KINDS}
        found |= {f"{what}_{name}": sum(kinds[kind] for kind in together) for name, together in TOGETHER.items()}
    return found


# --- without a threshold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Likeness:
    """The largest cosine of any two windows of two clips: (n, m) of generated clips and references."""

    generated: dict[str, int]
    references: dict[str, int]
    cosines: npt.NDArray[np.float64]

    @classmethod
    def of(cls, generated: Vectors, references: Vectors) -> Likeness:
        """Of all clips of two stores; NaN where a clip has no vector."""
        sides = [unit_rows(np.asarray(one.vectors, np.float32))[0] for one in (generated, references)]
        found = np.full((generated.clips.num_rows, references.clips.num_rows), -np.inf)
        np.maximum.at(found, (generated.clip[:, None], references.clip[None]), (sides[0] @ sides[1].T).astype(np.float64))
        found[np.isneginf(found)] = np.nan
        ids = [{clip_id: row for row, clip_id in enumerate(one.clip_ids.tolist())} for one in (generated, references)]
        return cls(ids[0], ids[1], found)

    def has(self, clip_id: str) -> bool:
        """Whether there is a vector of this reference."""
        row = self.references.get(clip_id)
        return row is not None and not bool(np.isnan(self.cosines[:, row]).all())

    def best(self, clip_id: str, among: Sequence[str]) -> float:
        """With the most similar of some references; NaN of none."""
        values = self._with(clip_id, among)
        return float(values.max()) if len(values) else float("nan")

    def mean(self, clip_id: str, among: Sequence[str]) -> float:
        """Of those with some references; NaN of none."""
        values = self._with(clip_id, among)
        return float(values.mean()) if len(values) else float("nan")

    def _with(self, clip_id: str, among: Sequence[str]) -> npt.NDArray[np.float64]:
        rows = [self.references[one] for one in among if one in self.references]
        values = self.cosines[self.generated[clip_id], rows]
        return values[~np.isnan(values)]


@dataclass(frozen=True)
class Nearer:
    """How much nearer clips are to some references than to others of the same classes: cosines less cosines.

    Attributes
    ----------
    shown, own
        To the pairs that were shown, and to the prompt's own clip: by the prompt's clip, of those that have both sides.
    pairs, dropped
        How many pairs there are of other recordings than the prompt's, and how many of them no clip of the same class can be
        set against.
    """

    shown: dict[str, float]
    own: dict[str, float]
    pairs: int
    dropped: int

    def beyond(self, plain: Nearer) -> list[float]:
        """How much nearer to its pairs each clip is than that of the model without pairs to the same ones, of the prompts that
        both have: what is alike on both sides, such as which pairs a prompt has, is in no difference.

        Examples
        --------
        >>> Nearer({"a": 0.5, "b": 0.75}, {}, 2, 0).beyond(Nearer({"b": 0.25, "c": 0.0}, {}, 2, 0))
        [0.5]
        """
        return [gain - plain.shown[prompt] for prompt, gain in self.shown.items() if prompt in plain.shown]


def nearer(likeness: Likeness, seen: Sequence[Seen], references: Sequence[Clip], seed: int) -> Nearer:
    """How much nearer each clip is to what it was shown than to as many clips that it was not: the best cosine of the one less
    that of the other; and of its prompt's own clip, the cosine less the mean of those with all others of its class.

    For each pair, one clip of its class is drawn that was not shown and is of neither the prompt's recording nor a pair's.
    A pair for which there is none is dropped: a clip of another class would say only that pairs are of the right one. A
    near-duplicate counts as what it was made of, on both sides: each side is the best of equally many sounds of the same
    classes, and chance gives 0. Clips of two models from the same prompts in the same order, with the same pairs, are set
    against the same clips.

    Parameters
    ----------
    likeness, seen
        Of a seed; ``shown`` of the clips of a model without pairs are those that it would have been shown.
    references
        All clips that there are.
    seed
        Of the draw.
    """
    rng = np.random.default_rng([seed, 2])
    label = {clip.clip_id: class_of(clip) for clip in references if origin(clip.clip_id) == clip.clip_id}
    label = {clip_id: name for clip_id, name in label.items() if likeness.has(clip_id)}
    takes = seen[0].takes if seen else Takes()
    names = dict(zip(label, takes.of(list(label)), strict=True))
    shown: dict[str, float] = {}
    its: dict[str, float] = {}
    counted = dropped = 0
    for one in seen:
        own = takes.recording(one.own)
        there = [pair for pair in dict.fromkeys(origin(pair) for pair in one.shown) if pair in names]
        gone = {own, *(names[pair] for pair in there)}
        pairs = [pair for pair in there if names[pair] != own]
        left = [clip_id for clip_id in label if names[clip_id] not in gone]
        side, control = _against(pairs, left, label, rng)
        counted, dropped = counted + len(pairs), dropped + len(pairs) - len(side)
        shown[one.own] = likeness.best(one.clip_id, side) - likeness.best(one.clip_id, control)
        if one.own in label:
            others = [other for other in label if label[other] == label[one.own] and names[other] != own]
            its[one.own] = likeness.best(one.clip_id, [one.own]) - likeness.mean(one.clip_id, others)
    return Nearer(_known(shown), _known(its), counted, dropped)


def _known(gains: Mapping[str, float]) -> dict[str, float]:
    """Those of which no side is empty."""
    return {prompt: gain for prompt, gain in gains.items() if not np.isnan(gain)}


def _against(
    pairs: Sequence[str], left: Sequence[str], label: Mapping[str, str], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """The pairs that have one, and of each another clip of its class, each once."""
    side: list[str] = []
    control: list[str] = []
    for pair in pairs:
        if alike := [one for one in left if label[one] == label[pair] and one not in control]:
            side.append(pair)
            control.append(alike[int(rng.integers(len(alike)))])
    return side, control
