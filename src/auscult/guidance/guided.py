"""Guidance as the maker of clips takes it: loaded once in each process, around each call of the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..folders import write_table
from ..generation.clips import Row
from ..generation.making import Around
from ..generation.prompts import PlannedClip
from ..pretrained.clap import DEFAULT_MODEL
from .amg import AmgConfig, AntiMemorization
from .attach import attach
from .clap_latents import ClapOnAudio
from .decoded import DecodedMel
from .index import ReferenceIndex
from .latents import LatentDescriptor, MelOnLatents
from .shifting import at_every_moment
from .statistics import LatentStatistics
from .terms import GuidanceTerm
from .trace import SCHEMA, Trace, TraceRow

if TYPE_CHECKING:
    from collections.abc import Mapping

LatentName = Literal["mel-latents", "mel", "clap", "latents"]
FAMILY: Mapping[str, str] = {"mel-latents": "mel", "mel": "mel", "clap": "clap", "latents": "latents"}
"""What each latent descriptor hears, by the name of the audit's descriptor that hears the same."""
TRACES = "trace"  # folder of a run's traces, a file for each call of the pipeline


@dataclass(frozen=True)
class LatentChoice:
    """Which latent descriptor, so that each process can make it of its pipeline.

    Attributes
    ----------
    name
        ``latents``: means of the latents, with references at every shift in time where memory allows; ``mel-latents``: the
        log-mel that the autoencoder makes; ``mel``: of the decoded sound; ``clap``.
    duration_s
        Length of the clips that are made; None: the pipeline's own.
    window_s
        Of the references; None: as long as the clips.
    clap_model
        Name of a CLAP model, or its folder.
    """

    name: LatentName = "latents"
    duration_s: float | None = None
    window_s: float | None = None
    clap_model: str = DEFAULT_MODEL

    def of(self, pipe: Any, device: str = "auto") -> LatentDescriptor:
        """The descriptor of a pipeline."""
        if self.name == "latents":
            return LatentStatistics.of(pipe, duration_s=self.duration_s)
        if self.name == "clap":
            return ClapOnAudio.of(pipe, self.clap_model, device=device, duration_s=self.duration_s)
        kind = MelOnLatents if self.name == "mel-latents" else DecodedMel
        return kind.of(pipe, window_s=self.window_s or self.duration_s, duration_s=self.duration_s)


@dataclass(frozen=True)
class Guided:
    """A :data:`~auscult.generation.making.Guide`: anti-memorization guidance, and a trace of it on the disk.

    Attributes
    ----------
    index
        Folder of the :class:`~auscult.guidance.index.ReferenceIndex`.
    descriptor
        The one that it was made with.
    config
        Of the guidance.
    traces
        Folder that holds a Parquet file for each call of the pipeline, ``TraceRow`` by columns and ``clip_id``.
    attempt
        Which it is for these clips, from 0; it goes into their rows.
    terms
        Further terms, picklable, which act beside it.
    """

    index: Path
    descriptor: LatentChoice
    config: AmgConfig
    traces: Path
    attempt: int = 0
    terms: tuple[GuidanceTerm, ...] = ()

    def __call__(self, pipe: Any) -> Around:
        """Load index and descriptor, and give what surrounds each call."""
        device = str(pipe.device)
        descriptor = self.descriptor.of(pipe, device)
        index = at_every_moment(ReferenceIndex.load(self.index), descriptor).to(device)
        term = AntiMemorization(index, descriptor, self.config)

        @contextmanager
        def around(clips: Sequence[PlannedClip]) -> Iterator[list[Row]]:
            facts: list[Row] = []
            with attach(pipe, term, *self.terms) as run:
                yield facts
            write_trace(self.traces / f"{clips[0].clip_id}.parquet", run.trace, [clip.clip_id for clip in clips])
            facts += facts_of_clips(run.trace, len(clips), self.attempt)

        return around

    def again(self, attempt: int, strengthen: float, traces: Path) -> Guided:
        """The guide of another attempt, with other strengths, see :func:`strengthened`."""
        config = strengthened(self.config, strengthen**attempt)
        return dataclasses.replace(self, config=config, attempt=attempt, traces=traces)


def strengthened(config: AmgConfig, factor: float) -> AmgConfig:
    """Guidance that is stronger, and begins earlier: strengths times the factor, thresholds above 0 divided by it.

    A clip that came out as a copy although the gate stayed shut would come out the same with strengths alone.

    Examples
    --------
    >>> again = strengthened(AmgConfig(despecification=4.0, threshold_low=0.6, threshold_high=0.9), 1.5)
    >>> again.despecification, round(again.threshold_low, 2), round(again.threshold_high, 2)
    (6.0, 0.4, 0.6)
    """
    stronger = {name: getattr(config, name) * factor for name in ("despecification", "deduplication", "dissimilarity")}
    low, high = (min(value, value / factor) for value in (config.threshold_low, config.threshold_high))
    return dataclasses.replace(config, **stronger, threshold_low=low, threshold_high=high)


# --- traces -----------------------------------------------------------------------------------------------------------


def facts_of_clips(trace: Trace, clips: int, attempt: int) -> list[Row]:
    """What the manifest says of guidance, for each clip of one call of the pipeline.

    ``fired_steps``, and similarities to the nearest reference (``neighbor``, at the highest): where it first fired, at the
    last step that was looked at, and the highest.
    """
    of: list[list[TraceRow]] = [[] for _ in range(clips)]
    for row in trace.rows:
        of[row.sample].append(row)
    return [{"attempt": attempt, **_facts(rows)} for rows in of]


def _facts(rows: Sequence[TraceRow]) -> Row:
    seen = [(row.similarity, row) for row in rows if row.similarity is not None]
    highest, nearest = max(seen, key=lambda one: one[0], default=(None, None))
    return {
        "fired_steps": sum(row.fired for row in rows),
        "similarity_first": _rounded(next((similarity for similarity, row in seen if row.fired), None)),
        "similarity_last": _rounded(seen[-1][0] if seen else None),
        "similarity_max": _rounded(highest),
        "neighbor": None if nearest is None else nearest.neighbor,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def write_trace(path: Path, trace: Trace, clip_ids: Sequence[str]) -> None:
    """Write the trace of one call of the pipeline, with the clip of each row."""
    table = trace.to_table()
    owners = [clip_ids[sample] for sample in table["sample"].to_pylist()]
    write_table(path, table.append_column("clip_id", pa.array(owners, pa.string())))


def merged_traces(folders: Iterable[Path], wanted: Callable[[str], bool] = lambda clip_id: True) -> pa.Table:
    """The traces of several attempts as one table, which ``Trace.read`` takes, too.

    Parameters
    ----------
    folders
        Of each attempt, in their order. Where a call was made again after a kill, the later file counts.
    wanted
        Of which clips.

    Returns
    -------
    pyarrow.Table
        Columns of a trace, ``clip_id`` and ``attempt``; ``call`` counts the files.
    """
    tables, call = [], 0
    for attempt, folder in enumerate(folders):
        taken: set[str] = set()
        for path in sorted(folder.glob("*.parquet"), key=lambda path: (-path.stat().st_mtime_ns, path.name)):
            table = pq.read_table(path)
            there = {clip for clip in table["clip_id"].unique().to_pylist() if clip not in taken and wanted(clip)}
            taken |= there
            table = table.filter(pc.is_in(table["clip_id"], pa.array(sorted(there), pa.string())))
            table = table.set_column(table.column_names.index("call"), "call", pa.array(np.full(len(table), call, np.int64)))
            tables.append(table.append_column("attempt", pa.array(np.full(len(table), attempt, np.int64))))
            call += 1
    if not tables:
        schema = SCHEMA.append(pa.field("clip_id", pa.string())).append(pa.field("attempt", pa.int64()))
        return schema.empty_table()
    return pa.concat_tables(tables).sort_by([("clip_id", "ascending"), ("attempt", "ascending"), ("step", "ascending")])
