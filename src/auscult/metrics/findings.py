"""What an evaluation has found of a system so far: its clips by all backends, its scores, those of single clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from .addressing import captions_named, labels_named
from .brackets import Brackets
from .features import FeatureSet
from .measuring import FAMILIES, Task, measure, names, per_clip
from .memorization import COLUMNS, OtherClipsError, replication_columns
from .pairing import Prompts
from .request import EvaluateConfig, System, asked
from .scores import Score, SystemResult
from .sets import SetClips, set_facts, set_warnings

UNPAIRED = {
    "reference": "no clip is paired with a reference: give --prompts a table with the columns clip_id and reference",
    "captions": "no clip has a caption: give --prompts a table with the columns clip_id and caption",
}
OTHER_REFERENCES = "the clips' own references are not in the reference set (see the note)"


@dataclass
class Findings:
    """Of a system.

    Attributes
    ----------
    name, system, prompts
        What was asked for: its name, its clips, and the rows of prompts that are about them.
    clips
        Those that any backend could use.
    by_backend
        How many clips each backend used and skipped, and their frames.
    scores
        By name (``kad_logmel``).
    columns
        Scores of single clips by metric and backend, of each clip by its id.
    unpaired
        Why the references that its table names are passed over; empty: they are not.
    """

    name: str
    system: System
    prompts: Prompts | None
    clips: SetClips | None = None
    by_backend: dict[str, dict[str, int]] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    columns: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    unpaired: str = ""
    _replication: dict[str, Score] | None = None

    def take(self, label: str, features: FeatureSet, config: EvaluateConfig) -> None:
        """Note the clips that a backend could use, and hold the system's audit against those of the first one.

        If that skipped some, another backend may use them: then :meth:`result` holds the audit against all.

        Raises
        ------
        OtherClipsError, StoreError
            The audit is of other clips, or damaged.
        """
        mine = SetClips.of(features)
        if self.system.audit is not None and self.clips is None and not mine.unusable:
            self._replication = self._audited(mine.clips, config)
        self.clips = mine if self.clips is None else self.clips.joined(mine)
        self.by_backend[label] = backend_counts(features)

    def score(
        self, label: str, task: Task, brackets: Brackets | None, config: EvaluateConfig, *, pairings: frozenset[str | None]
    ) -> None:
        """Score by another backend.

        Parameters
        ----------
        label
            What the backend is called in tables.
        task
            The system's features beside the reference's.
        brackets
            None: none are wanted.
        pairings
            What clips of any system are paired with. A family that wants another pairing is refused by one score alone.
        """
        captions = captions_of(task.reference)
        for family in FAMILIES:
            wanted = [name for name in names(family, task.backend) if asked(name, config, optional=family.optional)]
            if not wanted or family.lacking(task.backend) is not None:
                continue
            if family.pairing in pairings_of(task):
                scores = measure(task, family, brackets, captions, label)
            else:
                assert family.pairing is not None
                other = self.unpaired and family.pairing == "reference"
                reason = OTHER_REFERENCES if other else UNPAIRED[family.pairing]
                scores = _refused(wanted if family.pairing in pairings else wanted[:1], label, task, reason)
            self.scores.update({f"{name}_{label}": scores[name] for name in wanted if name in scores})
        for metric, values in per_clip(task, distances=asked("fad_per_clip", config, optional=True)).items():
            self.columns[metric, label] = values

    def table(self) -> pa.Table:
        """The system's rows of ``Evaluation.clips``: no score where a backend could not use a clip."""
        assert self.clips is not None
        clips = self._described().select(["clip_id", "path", "caption", "labels", "duration_s", "flags"])
        ids = clips["clip_id"].to_pylist()
        for (metric, label), values in self.columns.items():
            column = pa.array([values.get(clip_id) for clip_id in ids], pa.float64())
            clips = clips.append_column(f"{metric}_{label}", column)
        return clips.add_column(0, "system", pa.array([self.name] * len(ids), pa.string()))

    def _described(self) -> pa.Table:
        """The clips with the captions and labels that the scores were computed with: a table's captions count before the
        corpus's own, labels after."""
        assert self.clips is not None
        clips = self.clips.clips
        captions, labels = captions_named(self.prompts), labels_named(self.prompts)
        rows = clips.select(["clip_id", "path", "caption", "labels"]).to_pylist()
        known = {
            "caption": [captions.get(row["clip_id"]) or captions.get(row["path"]) or row["caption"] for row in rows],
            "labels": [row["labels"] or labels.get(row["clip_id"]) or labels.get(row["path"], ()) for row in rows],
        }
        for name, values in known.items():
            place = clips.column_names.index(name)
            clips = clips.set_column(place, name, pa.array(values, clips.schema.field(name).type))
        return clips

    def result(self, reference: SetClips, config: EvaluateConfig) -> SystemResult:
        """Scores, facts and warnings."""
        assert self.clips is not None
        audit = self.system.audit
        facts: dict[str, Any] = {
            "source": list(self.system.corpus.sources),
            **set_facts(self.clips),
            "by_backend": self.by_backend,
            **({} if audit is None else {"audit": str(audit)}),
        }
        scores = {**self.scores, **({} if audit is None else self._replication_scores(config))}
        noted = [f"metrics of pairs are left out: {self.unpaired}"] if self.unpaired else []
        return SystemResult(self.name, scores, facts, (*set_warnings(self.clips, reference), *noted))

    def _replication_scores(self, config: EvaluateConfig) -> Mapping[str, Score]:
        """Those of the audit; what was computed for hours is not lost because it is of other clips."""
        assert self.clips is not None
        if self._replication is None:
            try:
                self._replication = self._audited(self.clips.clips, config)
            except OtherClipsError as error:
                self._replication = {name: Score.refused(name, "", str(error)) for name in COLUMNS}
        return self._replication

    def _audited(self, clips: pa.Table, config: EvaluateConfig) -> dict[str, Score]:
        assert self.system.audit is not None
        return replication_columns(self.system.audit, clips, resamples=config.resamples, seed=config.seed)


def backend_counts(features: FeatureSet) -> dict[str, int]:
    """How much of a set a backend used."""
    skipped = len(SetClips.of(features).unusable)
    return {"clips": len(features), "skipped": skipped, "frames": int(features.frame_counts.sum())}


def captions_of(features: FeatureSet) -> list[str] | None:
    """Captions of all clips, if all have one."""
    captions = features.clips["caption"].to_pylist()
    return captions if captions and all(captions) else None


def pairings_of(task: Task) -> frozenset[str | None]:
    """What the clips are paired with, as ``Family.pairing`` has it."""
    known = {None: True, "reference": task.pairs is not None, "captions": task.captions is not None}
    return frozenset(pairing for pairing, there in known.items() if there)


def _refused(wanted: list[str], label: str, task: Task, reason: str) -> dict[str, Score]:
    """A family's metrics whose pairs are not known."""
    clips = {"n_generated": len(task.generated), "n_reference": len(task.reference)}
    return {name: Score.refused(name, label, reason, **clips) for name in wanted}
