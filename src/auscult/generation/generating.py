"""Corridor: prompts in, a folder of clips out that ``auscult audit`` and ``auscult evaluate`` take as it is.

Data flow: rows of prompts -> clips, each with its seed -> batches -> processes that hold the pipeline -> FLAC files and a line
for each -> manifest and card. What is done is on the disk when the next batch begins, so a stopped run continues.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..folders import Progress, building, no_progress
from .calling import generate_batch
from .clips import MADE
from .making import Guide
from .order import BATCH_SIZE, KIND, GenerateConfig, Generation, finished, take_order, write_generation

__all__ = ["GenerateConfig", "Generation", "generate", "generate_batch"]


def generate(
    model: str,
    prompts: str | Path,
    output: str | Path,
    *,
    config: GenerateConfig | None = None,
    device: str = "cpu",
    workers: int = 1,
    batch_size: int = BATCH_SIZE,
    datastore: str | Path | None = None,
    offline: bool = False,
    encoding: str = "utf-8",
    overwrite: bool = False,
    guide: Guide | None = None,
    guidance: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Generation:
    """Generate audio from prompts; given again after a stop, continue.

    Parameters
    ----------
    model
        A pipeline's folder or its name on the hub, see :func:`~auscult.generation.pipelines.locate_pipeline`.
    prompts
        See :func:`~auscult.generation.prompts.read_prompt_rows`.
    output
        Folder for ``audio/*.flac``, ``manifest.jsonl`` and ``card.json``; it has its name once all clips are made, and
        until then ``.partial`` behind it.
    config
        Settings.
    device, workers
        ``cpu``, ``cuda`` or ``cuda:N``, and how many processes; those of ``cuda`` take the GPUs that there are in turn.
    batch_size
        Clips made at once. It changes the last bits of a clip at most; where memory runs out, batches are halved.
    datastore
        A folder of ``auscult datastore``, from which a retrieval-augmented model is given pairs; without it, none.
    offline
        Ask nobody outside this machine.
    encoding
        Of text files of prompts.
    overwrite
        Replace a finished folder, or an unfinished one of other settings.
    guide
        What surrounds the calls of the pipeline, such as :class:`~auscult.guidance.guided.Guided`.
    guidance
        What the card says of it, as JSON can hold it: a stopped run is continued only under the same.
    progress
        Told the steps of denoising.

    Raises
    ------
    ManifestError
        The prompts cannot be used.
    ModelError
        The model cannot be used, or memory does not suffice for one clip.
    OutputFolderError
        The folder holds something else, or clips of other settings.
    """
    order = take_order(
        model,
        prompts,
        output,
        config=config,
        device=device,
        workers=workers,
        batch_size=batch_size,
        datastore=datastore,
        offline=offline,
        encoding=encoding,
    )
    if guidance is not None:
        order = replace(order, task={**order.task, "guidance": dict(guidance)})
    done = None if overwrite else finished(order)
    if done is not None:
        return done
    plan = order.plan()
    started = time.time()
    with building(order.output, KIND, task=order.task, overwrite=overwrite) as partial:
        made = order.make(partial, plan, progress, guide)
        more: dict[str, Any] = {} if guidance is None else {"guidance": dict(guidance)}
        write_generation(partial, order, [made[clip.clip_id] for clip in plan], started, **more)
        (partial / MADE).unlink()
    return Generation.open(order.output)
