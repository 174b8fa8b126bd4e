"""Rounds of making clips and auditing them: what an audit flags is made again, and what stays flagged is withheld."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..audit import KIND as AUDIT
from ..audit import Audit, AuditConfig, audit
from ..corpus import open_corpus
from ..engine import Engine
from ..folders import Progress, is_folder_of
from ..generation.clips import AUDIO, MANIFEST, Row, write_manifest
from ..generation.prompts import PlannedClip, clip_seed
from ..inputs import Source

ATTEMPTS, CHECKS = "attempts", "checks"
LEAST_PEAK = 2.0**-15  # of 16-bit samples: below it a clip is silent, and silence is compared with nothing
_FOUND = (
    *("reference_id", "reference_path", "score", "p_value"),
    *("query_start_s", "query_end_s", "reference_start_s", "reference_end_s"),
)

Made = Mapping[str, Row]
Make = Callable[[int, Sequence[PlannedClip]], Made]
"""Number of an attempt, from 0, and clips -> their rows, with files below ``attempts/N``."""
Audits = Callable[[Sequence[Row], Path, Path, Progress], "Flagged"]
"""Rows of clips, their manifest, a folder for the audit -> what it flags."""
Finish = Callable[[Path], object]
"""What is written into the folder of an audit before it has its name."""


@dataclass(frozen=True)
class Flagged:
    """What an audit flags.

    Attributes
    ----------
    best
        By clip id, the best match; empty for a clip that could not be read.
    null_scores
        How many its p-values come from; None where nothing sounded, and so nothing was audited.
    """

    best: Mapping[str, Row]
    null_scores: int | None


@dataclass(frozen=True)
class Auditor:
    """What every round's clips are audited by.

    Attributes
    ----------
    references, background, null
        As of :func:`~auscult.audit.audit`; stores, so that each is described once.
    config, engine
        See there.
    alpha
        Clips with a p-value of at most this count as flagged, too, and those that score above all null scores: the audit's own
        rule limits false alarms among all clips, and so lets a single copy among a thousand clips pass. None: its rule alone.
    """

    references: Source
    background: Source | None
    null: Source | None
    config: AuditConfig
    alpha: float | None
    engine: Engine

    def __call__(
        self, rows: Sequence[Row], manifest: Path, output: Path, progress: Progress, finish: Finish | None = None
    ) -> Flagged:
        """The clips that are flagged, each with its best match; an audit that is there already is opened."""
        if not any(sounds(row) for row in rows):
            return Flagged({}, None)
        there = is_folder_of(output, AUDIT)
        return self.flagged(Audit.open(output) if there else self._audit(manifest, output, progress, finish), rows)

    def flagged(self, found: Audit, rows: Sequence[Row]) -> Flagged:
        """The clips of these rows that an audit flags, or whose p-value is too small, or that it could not read."""
        queries = found.queries().to_pylist()
        null_scores = int(found.card["calibration"]["null_clips"])
        level = 0.0 if self.alpha is None else max(self.alpha, 1 / (1 + null_scores))
        flagged = {row["query_id"] for row in queries if row["flagged"] or (row["p_value"] or 1.0) <= level}
        flagged |= {row["clip_id"] for row in rows} - {row["query_id"] for row in queries}
        best: dict[str, Row] = {clip_id: {} for clip_id in sorted(flagged)}
        for match in found.matches().to_pylist():
            if match["query_id"] in best and not best[match["query_id"]]:
                best[match["query_id"]] = {name: match.get(name) for name in _FOUND}
        return Flagged(best, null_scores)

    def _audit(self, manifest: Path, output: Path, progress: Progress, finish: Finish | None) -> Audit:
        return audit(
            open_corpus(manifest),
            self.references,
            self.background,
            null=self.null,
            output=output,
            config=self.config,
            engine=self.engine,
            progress=progress,
            finish=finish,
        )


@dataclass
class Rounds:
    """What came of it.

    Attributes
    ----------
    delivered
        Rows of the clips that no audit flagged, in the order of the plan; their files lie in ``audio``.
    withheld
        Clips that stayed flagged, and what each attempt gave: ``withheld.jsonl``.
    made
        Rows of all clips of each attempt.
    audits
        How many audits it took.
    null_scores
        That their p-values come from; None where nothing sounded.
    """

    delivered: list[Row] = field(default_factory=list)
    withheld: list[Row] = field(default_factory=list)
    made: list[list[Row]] = field(default_factory=list)
    audits: int = 0
    null_scores: int | None = None


def make_and_audit(
    folder: Path, plan: Sequence[PlannedClip], make: Make, auditor: Audits, *, attempts: int, progress: Progress
) -> Rounds:
    """Make all clips, audit them, make again what is flagged, and withhold what stays flagged.

    The first repetition keeps a clip's seed, later ones take others. In the end what is to be delivered is audited as a whole,
    and what is flagged then is withheld, until nothing is: thresholds depend on the set of clips.

    Parameters
    ----------
    folder
        Unfinished result; what an earlier run left in it is used.
    plan
        All clips.
    make
        Makes clips; called once for each attempt.
    auditor
        Says what is a copy.
    attempts
        How often a clip is made again at most.
    progress
        Of audits.
    """
    result, clean = Rounds(), dict[str, Row]()
    found: dict[str, list[Row]] = {}
    pending = list(plan)
    for attempt in range(attempts + 1):
        clips = [at_attempt(clip, attempt) for clip in pending]
        made = make(attempt, clips)
        result.made.append([made[clip.clip_id] for clip in clips])
        where = folder / ATTEMPTS / str(attempt)
        write_manifest(where, result.made[-1])
        flagged = _audited(result, auditor, result.made[-1], where / MANIFEST, where / "audit", progress)
        for clip in clips:
            if clip.clip_id in flagged:
                found.setdefault(clip.clip_id, []).append({"attempt": attempt, "seed": clip.seed, **flagged[clip.clip_id]})
            else:
                clean[clip.clip_id] = made[clip.clip_id]
        pending = [clip for clip in pending if clip.clip_id in flagged]
        if not pending:
            break
    result.delivered = [clean[clip.clip_id] for clip in plan if clip.clip_id in clean]
    _deliver(folder, result.delivered)
    if found:  # or the only audit was of these very clips
        _check_as_a_whole(folder, result, auditor, found, progress)
    there = {row["clip_id"] for row in result.delivered}
    result.withheld = [_withheld(clip, found[clip.clip_id]) for clip in plan if clip.clip_id not in there]
    return result


def at_attempt(clip: PlannedClip, attempt: int) -> PlannedClip:
    """The clip as it is made at an attempt: with its own seed at the first two, then with others that follow from it.

    Examples
    --------
    >>> from auscult.generation.prompts import PromptRow, plan_clips
    >>> (clip,) = plan_clips([PromptRow(0, "rain")], per_prompt=1, seed=0)
    >>> [at_attempt(clip, attempt).seed == clip.seed for attempt in range(4)]
    [True, True, False, False]
    """
    return clip if attempt < 2 else replace(clip, seed=clip_seed(clip.seed, attempt, clip.number))


def sounds(row: Row) -> bool:
    """Whether anything is heard in the file of a clip."""
    return not row["silent"] and bool(row["peak"] >= LEAST_PEAK)


def _audited(
    result: Rounds, auditor: Audits, rows: Sequence[Row], manifest: Path, output: Path, progress: Progress
) -> Mapping[str, Row]:
    found = auditor(rows, manifest, output, progress)
    result.audits += 1
    result.null_scores = found.null_scores if result.null_scores is None else result.null_scores
    return found.best


def _deliver(folder: Path, rows: Sequence[Row]) -> None:
    """Files of the clips that are to be delivered, below ``audio``; those of the attempts stay until the end."""
    shutil.rmtree(folder / AUDIO, ignore_errors=True)
    (folder / AUDIO).mkdir()
    for row in rows:
        made = folder / ATTEMPTS / str(row["attempt"]) / row["path"]
        try:
            os.link(made, folder / row["path"])
        except OSError:  # a file system without links
            shutil.copyfile(made, folder / row["path"])


def _check_as_a_whole(folder: Path, result: Rounds, auditor: Audits, found: dict[str, list[Row]], progress: Progress) -> None:
    for number in range(len(result.delivered) + 1):
        write_manifest(folder, result.delivered)
        flagged = _audited(result, auditor, result.delivered, folder / MANIFEST, folder / CHECKS / str(number), progress)
        if not flagged:
            return
        for row in result.delivered:
            if row["clip_id"] in flagged:
                what = {"attempt": row["attempt"], "seed": row["seed"], **flagged[row["clip_id"]]}
                found.setdefault(row["clip_id"], []).append(what)
                with suppress(FileNotFoundError):
                    (folder / row["path"]).unlink()
        result.delivered = [row for row in result.delivered if row["clip_id"] not in flagged]


def _withheld(clip: PlannedClip, found: Sequence[Row]) -> Row:
    """A line of ``withheld.jsonl``: the clip, and for each time that it was flagged its seed and its best match."""
    row: dict[str, Any] = {
        "clip_id": clip.clip_id,
        "caption": clip.prompt.caption,
        "reference": clip.prompt.reference,
        "prompt_row": clip.prompt.number,
        "number": clip.number,
        "seed": clip.seed,
        "flagged": [{name: value for name, value in one.items() if value is not None} for one in found],
    }
    return {key: value for key, value in row.items() if value is not None}
