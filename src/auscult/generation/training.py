"""Train a denoiser: one loop that reads from top to bottom, goes on where it was killed, and stops with reasons.

OUT/task.json            the configuration that the run was begun with
    cache/               clips, latents, tokens: computed once, may be deleted when training is done
    checkpoints/step-N   the state of the loop, the last two kept
    gates.json           what was checked before the first step
    log.jsonl            a line every few steps, and the losses by noise level at each validation
    sheets/              samples as spectrograms and audio
    pipeline/            the model (averaged weights), a standard pipeline folder; renewed at each checkpoint
    training.png         losses over steps and over noise levels
    card.json            what was done; written last
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel

from ..errors import GateError
from ..folders import Progress, no_progress, write_text
from ..interrupts import NotedInterrupt, interrupts_noted
from .checkpoints import checkpoint_steps
from .conditioning import Conditions
from .denoiser import predict
from .examples import list_clips
from .gates import GateResult, after, gates_text, read_gates
from .preparing import Prepared, prepare
from .recomputing import recompute_activations
from .training_config import OptimizerConfig, TrainConfig
from .training_folder import CHECKPOINTS, GATES, LOG, is_finished, workplace
from .training_gates import first_gates
from .training_log import TrainLog
from .training_saving import (
    TrainResult,
    finish,
    finished_result,
    resume,
    save_pipeline,
    save_sheet,
    save_state,
    where_it_stands,
)
from .training_step import Denoiser, check_shares, learning_rate, noise_schedule, train_step
from .validation import Levels, level_losses, variants_of
from .workers import torch_threads

LOGGER = logging.getLogger(__name__)


def train(config: TrainConfig, output: str | Path, *, progress: Progress = no_progress) -> TrainResult:
    """Train a model, or go on where a run of the same configuration was stopped; a finished one is left as it is.

    On one CPU with the same number of threads, a run that was killed at any moment and goes on ends with the same weights,
    to the bit, as one that was never stopped. The first Ctrl-C is heeded after the step that is being made, when its checkpoint
    is saved, or between two items of what comes before and after the steps; when all is written, it has no effect.

    Parameters
    ----------
    config
        See :func:`~auscult.generation.training_config.load_train_config`.
    output
        Folder of the run.
    progress
        Called as the work goes on.

    Raises
    ------
    GateError
        A check before training failed. Those after it raise nothing, for the model is there: see ``TrainResult.failed``.
    OutputFolderError
        The folder holds another run or something else, or the clips or models of this one have changed since its checkpoint.
    CorpusError, ModelError, StoreError, StorageError
        A clip, a model, a datastore or a checkpoint cannot be read or written.
    KeyboardInterrupt
        At a Ctrl-C, with a note of which step is saved.
    """
    from accelerate.utils import DistributedType

    accelerator = _accelerator(config)
    alone = accelerator.distributed_type == DistributedType.NO
    if is_finished(Path(output), config):
        if accelerator.is_main_process:
            LOGGER.info(f"{output}: finished, left as it is")
        return finished_result(Path(output), main=accelerator.is_main_process)
    listed = list_clips(config.data)  # before there is a folder: what is refused here leaves nothing behind
    with torch_threads(config.threads), workplace(Path(output), config, accelerator) as out, interrupts_noted() as interrupt:
        begun = time.monotonic()
        shown = progress if accelerator.is_main_process else no_progress
        heeding = _heeding(shown, interrupt, out, config.optimizer.steps)
        with accelerator.main_process_first(), _failures_written(out, accelerator):
            prepared = prepare(config, out, listed=listed, device=accelerator.device, progress=heeding)
        feed, schedule = prepared.feed, noise_schedule(config.objective)
        alphas = schedule.alphas_cumprod.to(accelerator.device)
        unet = prepared.unet.to(accelerator.device).train()
        gates = _gates_before(prepared, config, alphas, accelerator, out, heeding)
        if config.optimizer.gradient_checkpointing:
            recompute_activations(unet)
        average = EMAModel(unet.parameters(), decay=config.optimizer.ema)
        averaged = copy.deepcopy(unet).eval()
        model, optimizer = accelerator.prepare(Denoiser(unet), _adamw(unet, config.optimizer))
        accelerator.register_for_checkpointing(average)
        step = resume(accelerator, out, average, config, prepared.parts)
        log = TrainLog(out / LOG, step, accelerator.is_main_process, config.logging.tensorboard)
        shown(step, config.optimizer.steps, "training")  # rates count from here
        while step < config.optimizer.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.optimizer)
            log.add(train_step(accelerator, model, optimizer, feed.batch(step), alphas, config, prepared.brought, step))
            average.step(unet.parameters())
            step += 1
            last = step == config.optimizer.steps
            if step % config.logging.every == 0 or last:
                log.write(step, learning_rate(step - 1, config.optimizer))
            if accelerator.is_main_process:
                shown(step, config.optimizer.steps, f"training | loss {log.recent:.3f}")
            stopping = _any_stops(accelerator, interrupt)
            if step % config.logging.validate_every == 0 or last:
                average.copy_to(averaged.parameters())
                _validate(log, averaged, prepared, config, alphas, step)
            if step % config.logging.checkpoint_every == 0 or last or stopping:
                save_state(accelerator, out, step, config, prepared.parts)
                if not last:
                    average.copy_to(averaged.parameters())
                    save_pipeline(accelerator, out, averaged, prepared, config)
            if stopping:
                interrupt.heed(where_it_stands(out, config.optimizer.steps))
                raise KeyboardInterrupt  # it was another process that was told
            if config.logging.sheet_every and step % config.logging.sheet_every == 0 and not last:
                average.copy_to(averaged.parameters())
                save_sheet(accelerator, out, averaged, prepared, config, step, shown)
        average.copy_to(averaged.parameters())
        # not in the loop: a run may have been killed between its last checkpoint and this
        save_pipeline(accelerator, out, averaged, prepared, config)
        save_sheet(accelerator, out, averaged, prepared, config, step, heeding)
        validation, training = _levels(averaged, prepared, config, alphas)
        accelerator.wait_for_everyone()
        result = finish(out, config, prepared, gates, validation, training, step, unet, time.monotonic() - begun, accelerator)
        if not alone:
            accelerator.end_training()
        interrupt.forget()  # all is written: to stop now would lose the result
    return result


def _heeding(progress: Progress, interrupt: NotedInterrupt, out: Path, steps: int) -> Progress:
    """Progress at which a Ctrl-C is heeded: between two items, and never where torch would swallow it."""

    def shown(done: int, total: int | None, what: str) -> None:
        progress(done, total, what)
        if interrupt.pressed:
            interrupt.heed(where_it_stands(out, steps))

    return shown


def _any_stops(accelerator: Any, interrupt: NotedInterrupt) -> bool:
    """Whether Ctrl-C was pressed for any of the processes: all stop at one step, for all take part in its checkpoint."""
    if accelerator.num_processes == 1:
        return interrupt.pressed
    told = torch.tensor([int(interrupt.pressed)], device=accelerator.device)
    return bool(accelerator.gather(told).any())


def _adamw(unet: Any, config: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay)


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator

    from ..devices import torch_device

    if config.device.startswith("cuda:"):
        raise ValueError(f"device should be 'cpu' or 'cuda' here, got {config.device!r}; choose one by CUDA_VISIBLE_DEVICES")
    torch_device(config.device, "training")
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=config.optimizer.precision)
    check_shares(config, accelerator.num_processes)
    return accelerator


@contextmanager
def _failures_written(out: Path, accelerator: Any) -> Iterator[None]:
    """What stops a run before its first step is written down; the figures of one that has begun stay."""
    try:
        yield
    except GateError as error:
        if accelerator.is_main_process and not checkpoint_steps(out / CHECKPOINTS):
            write_text(out / GATES, gates_text(error.gates))
        raise


def _gates_before(
    prepared: Prepared, config: TrainConfig, alphas: torch.Tensor, accelerator: Any, out: Path, progress: Progress
) -> tuple[GateResult, ...]:
    """The gates of the data, the codec and the untrained denoiser.

    ``prepare`` checks data and codec each time, also where a run goes on; the denoiser is checked once. What a run that goes on
    gives is what it wrote down at its beginning.
    """
    path = out / GATES
    # without a checkpoint it begins again, perhaps with other clips or models
    begins = not path.is_file() or not checkpoint_steps(out / CHECKPOINTS)
    if accelerator.is_main_process and begins:
        with _failures_written(out, accelerator), after(prepared.gates):
            gates = prepared.gates + first_gates(prepared, config, alphas, device=accelerator.device, progress=progress)
        write_text(path, gates_text(gates))
    accelerator.wait_for_everyone()
    found = read_gates(path.read_text("utf-8"))
    return tuple(gate for gate in found if not gate.name.startswith("conditions against"))  # those come at the end


def _validate(log: TrainLog, unet: Any, prepared: Prepared, config: TrainConfig, alphas: torch.Tensor, step: int) -> None:
    if not log.active:
        return
    validation, training = _levels(unet, prepared, config, alphas)
    log.line({"step": step, "training": training.to_json(), "validation": validation and validation.to_json()})


def _levels(unet: Any, prepared: Prepared, config: TrainConfig, alphas: torch.Tensor) -> tuple[Levels | None, Levels]:
    """Losses by noise level, of held-out clips and of as many that were trained on."""
    most, feed = config.logging.validation_clips, prepared.feed
    held_out = _spread(prepared.held_out, most)
    rows = _spread(feed.rows, len(held_out) or most)

    def predicted(noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return predict(unet, noisy, timesteps, conditions)

    settings = {"alphas_cumprod": alphas, "prediction": config.objective.prediction, "device": alphas.device}
    training = level_losses(predicted, feed, rows, ("own",), **settings)
    if not len(held_out):
        return None, training
    return level_losses(predicted, feed, held_out, variants_of(feed), **settings), training


def _spread(rows: Any, most: int) -> Any:
    """At most so many rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
