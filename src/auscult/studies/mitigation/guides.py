"""What surrounds the calls of a pipeline in an arm: one guide for all of them, so that all leave the same trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import StoreError
from ...generation.clips import Row
from ...generation.making import Around
from ...generation.prompts import PlannedClip
from ...guidance.amg import AmgConfig, AntiMemorization
from ...guidance.attach import attach
from ...guidance.basin import AttractionBasin, OppositeGuidance
from ...guidance.guided import LatentChoice, facts_of_clips, merged_traces, write_trace
from ...guidance.index import ReferenceIndex
from ...guidance.preparing_noise import adjusting_noise
from ...guidance.shifting import at_every_moment
from ...guidance.subspace import SubspaceRepulsion
from ...guidance.terms import GuidanceTerm
from .arms import Beside

SUBSPACE_OF, SUBSPACE_STRENGTH = 8, 2.0  # neighbors; shares of what classifier-free guidance moves
STEPS_WITHOUT = 5  # of sampling with adjusted noise, which was published together with guidance that is off at first


@dataclass(frozen=True)
class ArmGuide:
    """A :data:`~auscult.generation.making.Guide`.

    Attributes
    ----------
    index
        Folder of the references.
    descriptor
        The one that it was made with.
    config
        Of anti-memorization guidance; with strengths of 0 it only watches.
    traces
        Folder that holds a Parquet file for each call of the pipeline.
    shifted
        Whether references are taken at every shift in time, where the descriptor allows.
    beside
        What acts instead.
    before
        Traces of the same clips without guidance, which opposite guidance looks its points up in.
    """

    index: Path
    descriptor: LatentChoice
    config: AmgConfig
    traces: Path
    shifted: bool = True
    beside: Beside = ""
    before: Path | None = None

    def __call__(self, pipe: Any) -> Around:
        """Load index and descriptor, and give what surrounds each call."""
        device = str(pipe.device)
        descriptor = self.descriptor.of(pipe, device)
        index = ReferenceIndex.load(self.index)
        index = (at_every_moment(index, descriptor) if self.shifted else index).to(device)
        watching = AntiMemorization(index, descriptor, self.config)

        @contextmanager
        def around(clips: Sequence[PlannedClip]) -> Iterator[list[Row]]:
            facts: list[Row] = []
            with ExitStack() as stack:
                run = stack.enter_context(attach(pipe, watching, *self._others(clips, index, descriptor)))
                if self.beside == "noise":
                    stack.enter_context(adjusting_noise(pipe))
                yield facts
            write_trace(self.traces / f"{clips[0].clip_id}.parquet", run.trace, [clip.clip_id for clip in clips])
            facts += facts_of_clips(run.trace, len(clips), 0)

        return around

    def _others(self, clips: Sequence[PlannedClip], index: ReferenceIndex, descriptor: Any) -> list[GuidanceTerm]:
        """The term that acts beside the one that watches, for these clips."""
        if self.beside == "basin-static":
            return [AttractionBasin()]
        if self.beside == "basin-dynamic":
            return [AttractionBasin.dynamic()]
        if self.beside == "opposite":
            assert self.before is not None
            curves = text_norms(self.before)
            if missing := [clip.clip_id for clip in clips if clip.clip_id not in curves]:
                raise StoreError(f"{self.before}: has no trace of {missing[0]}; delete the folder and what was made of it")
            return [OppositeGuidance.after([curves[clip.clip_id] for clip in clips])]
        if self.beside == "subspace":
            limits: dict[str, Any] = {
                "low": self.config.threshold_low, "high": self.config.threshold_high, "schedule": self.config.schedule
            }  # fmt: skip
            return [SubspaceRepulsion(index, descriptor, SUBSPACE_OF, SUBSPACE_STRENGTH, units=self.config.units, **limits)]
        return [FirstSteps()] if self.beside == "noise" else []


@dataclass(frozen=True)
class FirstSteps:
    """No guidance in the first ``STEPS_WITHOUT`` steps, however many there are."""

    name = "first steps"
    sets_scale = True

    def __call__(self, moment: Any) -> Any:
        """What to change in this step."""
        return AttractionBasin(before=0.0, until=min(1.0, STEPS_WITHOUT / moment.total))(moment)


def text_norms(traces: Path) -> dict[str, list[float]]:
    """The text-conditional norm over the steps of sampling, by clip id, of the traces in a folder.

    Raises
    ------
    StoreError
        The clips were sampled without classifier-free guidance.
    """
    curves: dict[str, list[float]] = {}
    for row in merged_traces([traces]).select(["clip_id", "text_norm"]).to_pylist():
        if row["text_norm"] is None:
            raise StoreError(f"{traces}: sampled without classifier-free guidance, which opposite guidance turns the sign of")
        curves.setdefault(row["clip_id"], []).append(row["text_norm"])
    return curves
