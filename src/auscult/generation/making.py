"""Batch after batch of clips from a pipeline, in one process or several, each clip on the disk before the next batch begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..folders import Progress, remove_stale_temporaries
from .calling import Sampling, generate_batch
from .clips import AUDIO, MADE, MANIFEST, Row, append_rows, manifest_row, mend_rows, rows_still_there, write_clip
from .pipelines import LocatedPipeline, load_pipeline, sample_rate_hz, truncated
from .prompts import PlannedClip
from .retrieving import Looked, LookUp, load_look_up
from .workers import Tick, Work, work_on_devices

WHAT = "denoising steps"

FloatArray = npt.NDArray[np.float32]
Made = TypeVar("Made")
Around = Callable[[Sequence[PlannedClip]], AbstractContextManager[list[Row]]]
"""Clips that are about to be made at once -> a context around the call of the pipeline. It gives a list, in which there is a
row for each clip when it has ended: what the manifest is to say of it besides."""
Guide = Callable[[Any], Around]
"""A pipeline -> what surrounds its calls. Picklable, and called once in each process; anti-memorization guidance is one."""


@dataclass(frozen=True)
class Batch:
    """Clips that are made at once."""

    clips: tuple[PlannedClip, ...]

    def __str__(self) -> str:
        return f"clips {self.clips[0].clip_id} to {self.clips[-1].clip_id}"


@dataclass(frozen=True)
class Maker:
    """What each process needs; called with a device, it loads the pipeline and returns what makes a batch."""

    located: LocatedPipeline
    dtype: str
    sampling: Sampling
    folder: Path
    datastore: str | None = None
    k: int = 0
    guide: Guide | None = None

    def __call__(self, device: str) -> Work[Batch, list[Row]]:
        pipe = load_pipeline(self.located, device=device, dtype=self.dtype)
        rate_hz = sample_rate_hz(pipe)
        look_up = self._look_up(pipe, device)
        around = _nothing_around if self.guide is None else self.guide(pipe)
        limit: list[int] = []  # clips that fitted into memory when more did not

        def call(clips: Sequence[PlannedClip], tick: Tick, looked: Mapping[str, Looked]) -> list[tuple[FloatArray, Row]]:
            with around(clips) as facts:
                audio = generate_batch(
                    pipe,
                    [clip.prompt.caption for clip in clips],
                    [clip.seed for clip in clips],
                    self.sampling,
                    references=None if look_up is None else [looked[clip.clip_id].pairs for clip in clips],
                    on_step=lambda: tick(len(clips)),
                )
            return list(zip(audio, facts, strict=True))

        def work(batch: Batch, tick: Tick) -> list[Row]:
            looked = {}
            if look_up is not None:
                prompts = [clip.prompt for clip in batch.clips]
                looked = dict(zip((clip.clip_id for clip in batch.clips), look_up(prompts), strict=True))
            made = within_memory(lambda part: call(part, tick, looked), batch.clips, limit)
            return [
                self._row(pipe, clip, audio, rate_hz, looked.get(clip.clip_id), more)
                for clip, (audio, more) in zip(batch.clips, made, strict=True)
            ]

        return work

    def _look_up(self, pipe: Any, device: str) -> LookUp | None:
        if self.datastore is None:
            return None
        duration_s = self.sampling.duration_s or float(pipe.config.duration_s)
        return load_look_up(self.datastore, self.k, rate_hz=sample_rate_hz(pipe), duration_s=duration_s, device=device)

    def _row(self, pipe: Any, clip: PlannedClip, audio: FloatArray, rate_hz: int, looked: Looked | None, more: Row) -> Row:
        facts = write_clip(self.folder, clip, audio, rate_hz)
        settings = {
            "model": self.located.name,
            "revision": self.located.revision or self.located.digest,
            "steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance_scale,
            "negative_prompt": self.sampling.negative_prompt,
            "retrieved": None if looked is None else list(looked.ids),
            "retrieved_similarity": None if looked is None else list(looked.similarity),
            "target_passed_over": None if looked is None or clip.prompt.reference is None else looked.target is not None,
            "preview_quality": getattr(pipe, "preview_quality", False) or None,
            "truncated": truncated(pipe, clip.prompt.caption),
        }
        return manifest_row(clip, facts, settings | more)


def _nothing_around(clips: Sequence[PlannedClip]) -> AbstractContextManager[list[Row]]:
    return nullcontext([{} for _ in clips])


def within_memory(
    make: Callable[[Sequence[PlannedClip]], list[Made]], clips: Sequence[PlannedClip], limit: list[int]
) -> list[Made]:
    """Make clips at once, or in halves where memory runs out.

    Parameters
    ----------
    make
        Clips -> what is made of each.
    limit
        Empty, or how many may be tried at once; what is found is left there for the next batch.

    Raises
    ------
    ModelError
        Memory does not suffice for one clip.
    """
    import torch

    size = min([len(clips), *limit])
    try:
        return [one for first in range(0, len(clips), size) for one in make(clips[first : first + size])]
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        if size == 1:
            raise ModelError(
                f"memory does not suffice for one clip ({clips[0].clip_id}); give a shorter --duration-s, --dtype bfloat16, "
                "fewer --workers, or another --device"
            ) from error
    if torch.cuda.is_available():  # outside of the except: the error's traceback holds tensors
        torch.cuda.empty_cache()
    limit[:] = [size // 2]
    return within_memory(make, clips, limit)


def make_all(
    maker: Maker, plan: Sequence[PlannedClip], devices: Sequence[str], batch_size: int, progress: Progress
) -> dict[str, Row]:
    """Make what is not there yet; rows by clip id."""
    folder = maker.folder
    (folder / AUDIO).mkdir(exist_ok=True)
    remove_stale_temporaries(folder / AUDIO)
    if not (folder / MADE).is_file() and (folder / MANIFEST).is_file():  # all was done, and the folder had yet to be renamed
        (folder / MANIFEST).replace(folder / MADE)
    mend_rows(folder / MADE)
    made = rows_still_there(folder)
    # Batches are cut from the whole plan, whatever is done: so a run that was stopped makes the same bits as one that was not.
    batches = [Batch(tuple(plan[first : first + batch_size])) for first in range(0, len(plan), batch_size)]
    missing = [batch for batch in batches if any(clip.clip_id not in made for clip in batch.clips)]
    if not missing:
        return made
    bar = _Bar(progress, sum(len(batch.clips) for batch in missing) * maker.sampling.steps)
    results = work_on_devices(maker, iter(missing), devices[: len(missing)], bar.tick)
    try:
        with closing(results):
            for batch, rows in results:
                append_rows(folder / MADE, [row for row in rows if row["clip_id"] not in made])
                made |= {row["clip_id"]: row for row in rows}
                bar.finish(len(batch.clips) * maker.sampling.steps)
    except BaseException as error:
        if made:  # else the folder goes, too
            error.add_note(f"{folder}: keeps {len(made):,} of {len(plan):,} clips; the same command continues from there")
        raise
    return made


class _Bar:
    """Steps done, which never go back: not where a batch is made again in halves, nor where a scheduler takes fewer."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.finished = self.under_way = self.shown = 0
        self.tick(0)

    def tick(self, units: int) -> None:
        self.under_way += units
        self.shown = min(self.total, max(self.shown, self.finished + self.under_way))
        self.progress(self.shown, self.total, WHAT)

    def finish(self, units: int) -> None:
        self.finished += units
        self.under_way = max(0, self.under_way - units)
        self.tick(0)


def devices_of(device: str, workers: int) -> list[str]:
    """The device of each process."""
    if device != "cuda" or workers == 1:
        return [device] * workers
    import torch

    there = max(1, torch.cuda.device_count())
    return [f"cuda:{number % there}" for number in range(workers)]
