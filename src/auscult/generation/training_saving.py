"""What a training leaves: checkpoints to go on from, the model, sheets of samples, and the card at the end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel

from ..configuration import config_values
from ..folders import Progress, read_card, write_card, write_text
from .checkpoints import checkpoint_steps, latest_checkpoint, partial_path, save_checkpoint, told_if_full
from .feed import Feed
from .gates import GateResult, gate_rows, gates_text, read_gates
from .pipeline import RetrievalAugmentedAudioPipeline
from .preparing import Prepared
from .sheets import draw_training, make_sheet
from .trained_pairs import WITHOUT, beside
from .training_config import TrainConfig
from .training_folder import CHECKPOINTS, FIGURE, GATES, KIND, LOG, PIPELINE, SHEETS, go_on
from .training_log import read_log
from .training_parts import check_parts
from .training_step import noise_schedule
from .validation import Levels, condition_gates

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes
    ----------
    path
        The folder, see the module's docstring.
    steps
        Steps done.
    validation
        Losses at the end of held-out clips by noise level and conditions, or None if nothing was held out.
    training
        The same of as many clips that were trained on.
    gates
        All that was checked.
    card
        Content of ``card.json``.
    main
        Whether this is the process that wrote it, of several.
    """

    path: Path
    steps: int
    validation: Levels | None
    training: Levels
    gates: tuple[GateResult, ...]
    card: dict[str, Any]
    main: bool = True

    @property
    def pipeline(self) -> Path:
        """Folder of the model."""
        return self.path / PIPELINE

    @property
    def failed(self) -> tuple[GateResult, ...]:
        """Gates at the end that did not pass; those before the first step raise instead."""
        return tuple(gate for gate in self.gates if not gate.passed)


def finished_result(out: Path, *, main: bool = True) -> TrainResult:
    """What :func:`finish` returned, as the folder has it."""
    card = read_card(out, KIND)
    losses = card["losses"]
    validation = None if losses["validation"] is None else Levels.from_json(losses["validation"])
    gates = read_gates(json.dumps(card["gates"]))
    return TrainResult(out, card["steps"], validation, Levels.from_json(losses["training"]), gates, card, main)


def resume(accelerator: Any, out: Path, average: EMAModel, config: TrainConfig, parts: Mapping[str, str]) -> int:
    """Load the last whole checkpoint, and say so in the log; the number of steps that are done.

    Raises
    ------
    OutputFolderError
        The clips, models or datastore (``parts``) are others than those it was trained with.
    ModelError
        Every checkpoint is damaged.
    """
    found = latest_checkpoint(out / CHECKPOINTS)
    if found is not None:
        check_parts(out, found.step, found.facts.get("parts", {}), parts)
    if accelerator.is_main_process:
        go_on(out, config)
    if found is None:
        return 0
    accelerator.load_state(str(found.path))
    average.to(accelerator.device)  # accelerate reads what was registered onto the CPU
    if accelerator.is_main_process:
        LOGGER.info(f"{found.path}: going on from step {found.step:,} of {config.optimizer.steps:,}")
    return found.step


def where_it_stands(out: Path, steps: int) -> str:
    """What a stopped run would go on from, as a line."""
    done = checkpoint_steps(out / CHECKPOINTS)
    if not done:
        return f"{out}: no step is saved yet; finished parts of what comes before the first are kept"
    return f"{out}: the checkpoint of step {done[-1]:,} of {steps:,} is saved"


def save_state(accelerator: Any, out: Path, step: int, config: TrainConfig, parts: Mapping[str, str]) -> None:
    """Write the checkpoint of a step, with the digests of what it was trained with; every process takes part."""
    folder = out / CHECKPOINTS

    def write(partial: Path) -> None:
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        save_checkpoint(folder, step, write, facts={"parts": dict(parts)}, keep=config.logging.checkpoints_kept)
    else:
        write(partial_path(folder, step))


def pipeline_of(unet: Any, prepared: Prepared, config: TrainConfig) -> Any:
    """The pipeline around averaged weights."""
    feed, ddpm = prepared.feed, noise_schedule(config.objective)
    sampler = DDIMScheduler.from_config(ddpm.config, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    settings = {"mel": feed.spec, "duration_s": prepared.duration_s, "retrieval": _trained_beside(feed, config)}
    pipe = RetrievalAugmentedAudioPipeline.of(feed.codec, unet, sampler, prepared.vocoder, feed.encoders, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _trained_beside(feed: Feed, config: TrainConfig) -> dict[str, Any] | None:
    if feed.neighbors is not None:
        return beside(config.retrieval.counts, feed.neighbors.store)
    return WITHOUT if config.start.source is None else None  # what it started from may have been trained beside pairs


def save_pipeline(accelerator: Any, out: Path, unet: Any, prepared: Prepared, config: TrainConfig) -> None:
    """The model as a standard folder: all of it the first time, then the denoiser, each under another name first.

    Raises
    ------
    StorageError
        It could not be written; the model that was there is as it was.
    """
    if not accelerator.is_main_process:
        return
    folder = out / PIPELINE
    partial = out / f".{PIPELINE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        whole = None if folder.exists() else pipeline_of(unet, prepared, config)
        with told_if_full(folder, "the model"):
            if whole is not None:
                whole.save_pretrained(partial)
                partial.replace(folder)
                return
            unet.save_pretrained(partial)
            for path in sorted(partial.iterdir()):  # each file whole or as it was; the configuration does not change
                path.replace(folder / "unet" / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_sheet(
    accelerator: Any, out: Path, unet: Any, prepared: Prepared, config: TrainConfig, step: int, progress: Progress
) -> None:
    """Samples of the model as it is at a step, if any are wanted."""
    if accelerator.is_main_process and config.logging.sheet_prompts:
        pipe = pipeline_of(unet, prepared, config).to(accelerator.device)
        make_sheet(pipe, prepared.feed, prepared.held_out, out / SHEETS, step, config.logging, progress=progress)


def finish(
    out: Path,
    config: TrainConfig,
    prepared: Prepared,
    gates: tuple[GateResult, ...],
    validation: Levels | None,
    training: Levels,
    step: int,
    unet: Any,
    seconds: float,
    accelerator: Any,
) -> TrainResult:
    """Hold the losses against the last gates, draw them, and write the card."""
    clips, feed = prepared.feed.clips, prepared.feed
    if config.gates.conditions and validation is not None:
        gates += condition_gates(validation, where=str(out / PIPELINE))
    card = {
        "configuration": config_values(config),
        "counts": {
            "clips": len(clips),
            "trained_on": len(feed.rows),
            "held_out": len(prepared.held_out),
            "skipped": len(clips.skipped),
            "silent": len(clips.silent),
            "cut": clips.cut,
            "padded": clips.padded,
            "pairs": 0 if feed.neighbors is None else len(feed.neighbors.store),
            "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        },
        "skipped": [list(each) for each in clips.skipped[:100]],
        "silent": list(clips.silent[:100]),
        "held_out": [clips.ids[row] for row in prepared.held_out],
        "steps": step,
        "seconds_of_last_run": round(seconds, 1),
        "preview_quality": bool(getattr(prepared.vocoder, "preview_quality", False)),
        "losses": {"training": training.to_json(), "validation": validation and validation.to_json()},
        "gates": gate_rows(gates),
        "device": {"name": str(accelerator.device), "processes": accelerator.num_processes, "threads": torch.get_num_threads()},
        "models": {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "accelerate")},
    }
    if accelerator.is_main_process:
        write_text(out / GATES, gates_text(gates))
        draw_training(read_log(out / LOG), out / FIGURE)
        write_card(out, KIND, card)
    return TrainResult(out, step, validation, training, gates, card, accelerator.is_main_process)
