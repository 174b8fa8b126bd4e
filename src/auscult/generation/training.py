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
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel

from ..configuration import config_values
from ..errors import ModelError, OutputFolderError
from ..folders import CARD, TASK, Progress, is_folder_of, locked, no_progress, write_card, write_text
from .checkpoints import latest_checkpoint, partial_path, save_checkpoint
from .conditioning import Conditions
from .denoiser import predict
from .feed import Batch
from .gates import GateResult, check
from .objective import LEVELS, level_means, loss_weights, noisy_latents, signal_to_noise, squared_errors, target
from .pipeline import RetrievalAugmentedAudioPipeline
from .preparing import Prepared, prepare
from .recomputing import recompute_activations
from .sheets import draw_training, make_sheet
from .training_config import ObjectiveConfig, OptimizerConfig, TrainConfig
from .training_gates import first_gates
from .validation import Levels, condition_gates, level_losses, variants_of

KIND = "training"
CHECKPOINTS, PIPELINE, LOG, GATES, SHEETS, FIGURE = (
    "checkpoints",
    "pipeline",
    "log.jsonl",
    "gates.json",
    "sheets",
    "training.png",
)
# what may be another when a run goes on: it changes what is shown and when to stop, not what is computed at a step
_MAY_CHANGE = ("logging", "gates", "device", "threads")


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


def train(config: TrainConfig, output: str | Path, *, progress: Progress = no_progress) -> TrainResult:
    """Train a model, or go on where a run of the same configuration was stopped.

    On one CPU with the same number of threads, a run that was killed at any moment and goes on ends with the same weights,
    to the bit, as one that was never stopped.

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
        A check before training failed; or the one after it, when the model is there all the same, and the error says where.
    OutputFolderError
        The folder holds another run or something else.
    CorpusError, ModelError, StoreError, StorageError
        A clip, a model, a datastore or a checkpoint cannot be read or written.
    """
    from accelerate.utils import DistributedType

    accelerator = _accelerator(config)
    alone = accelerator.distributed_type == DistributedType.NO
    with _threads(config.threads), _workplace(Path(output), config, accelerator) as out:
        begun = time.monotonic()
        with accelerator.main_process_first():
            shown = progress if accelerator.is_main_process else no_progress
            prepared = prepare(config, out, device=accelerator.device, progress=shown)
        feed, schedule = prepared.feed, noise_schedule(config.objective)
        alphas = schedule.alphas_cumprod.to(accelerator.device)
        unet = prepared.unet.to(accelerator.device).train()
        gates = _gates_before(prepared, config, alphas, accelerator, out, shown)
        if config.optimizer.gradient_checkpointing:
            recompute_activations(unet)
        average = EMAModel(unet.parameters(), decay=config.optimizer.ema)
        averaged = copy.deepcopy(unet).eval()
        model, optimizer = accelerator.prepare(Denoiser(unet), _adamw(unet, config.optimizer))
        accelerator.register_for_checkpointing(average)
        step = _resume(accelerator, out, average)
        log = _Log(out / LOG, step, accelerator.is_main_process, config.logging.tensorboard)
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
            if step % config.logging.validate_every == 0 or last:
                average.copy_to(averaged.parameters())
                _validate(log, averaged, prepared, config, alphas, step)
            if step % config.logging.checkpoint_every == 0 or last:
                _save(accelerator, out, step, config)
            if step % config.logging.checkpoint_every == 0 and not last:
                average.copy_to(averaged.parameters())
                _save_pipeline(accelerator, out, averaged, prepared, config)
            if config.logging.sheet_every and step % config.logging.sheet_every == 0 and not last:
                average.copy_to(averaged.parameters())
                _sheet(accelerator, out, averaged, prepared, config, step, shown)
        average.copy_to(averaged.parameters())
        # also where the last checkpoint was there already: the run may have been killed between it and what follows
        _save_pipeline(accelerator, out, averaged, prepared, config)
        _sheet(accelerator, out, averaged, prepared, config, step, shown)
        validation, training = _levels(averaged, prepared, config, alphas)
        accelerator.wait_for_everyone()
        result = _finish(out, config, prepared, gates, validation, training, step, unet, time.monotonic() - begun, accelerator)
        if not alone:
            accelerator.end_training()
    check(result.gates)  # the last ones may have failed: the model is there, and the error says why it is of no use
    return result


class Denoiser(torch.nn.Module):
    """:func:`~auscult.generation.denoiser.predict` as a module, so that accelerate can spread it over processes."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return predict(self.unet, noisy, timesteps, conditions)


def noise_schedule(objective: ObjectiveConfig) -> Any:
    """The ``DDPMScheduler`` of an objective: its ``alphas_cumprod`` are what latents are mixed with noise by."""
    return DDPMScheduler(
        num_train_timesteps=objective.timesteps,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        beta_schedule=objective.beta_schedule,
        prediction_type=objective.prediction,
        clip_sample=False,
        steps_offset=1,
    )


def learning_rate(step: int, config: OptimizerConfig) -> float:
    """Learning rate of a step: warm-up, then linear or cosine decay to 0, or constant. It has no state to be saved.

    Examples
    --------
    >>> config = OptimizerConfig(steps=10, warmup=2, learning_rate=1.0)
    >>> [learning_rate(step, config) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    share = 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * max(0.0, share)


def batch_losses(
    model: Any, batch: Batch, alphas_cumprod: torch.Tensor, objective: ObjectiveConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted and plain squared errors, (B,) each, of a denoiser on a batch."""
    wanted = target(batch.latents, batch.noise, alphas_cumprod, batch.timesteps, objective.prediction)
    noisy = noisy_latents(batch.latents, batch.noise, alphas_cumprod, batch.timesteps)
    errors = squared_errors(model(noisy, batch.timesteps, batch.conditions), wanted)
    if objective.snr_mode == "none":
        return errors, errors
    snr = signal_to_noise(alphas_cumprod, batch.timesteps)
    weights = loss_weights(snr, objective.prediction, gamma=objective.snr_gamma, mode=objective.snr_mode)
    return errors * weights, errors


def train_step(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    batch: Batch,
    alphas: torch.Tensor,
    config: TrainConfig,
    brought: frozenset[str],
    step: int,
) -> dict[str, Any]:
    """One optimizer step on this process's share of a batch, micro-batch by micro-batch; returns what the log says of it."""
    bounds = np.linspace(0, len(batch), accelerator.num_processes * config.optimizer.accumulation + 1).round().astype(int)
    first = accelerator.process_index * config.optimizer.accumulation
    total, losses, errors, timesteps = len(batch), [], [], []
    for number in range(first, first + config.optimizer.accumulation):
        part = batch.part(int(bounds[number]), int(bounds[number + 1])).to(accelerator.device)
        last = number == first + config.optimizer.accumulation - 1
        with _synchronized(accelerator, model, last):
            weighted, plain = batch_losses(model, part, alphas, config.objective)
            # gradients are averaged over processes, so the sum of all shares is the mean over the batch
            accelerator.backward(weighted.sum() * accelerator.num_processes / total)
        losses.append(weighted.detach())
        errors.append(plain.detach())
        timesteps.append(part.timesteps)
    if step < config.optimizer.freeze_steps:
        named = dict(accelerator.unwrap_model(model).unet.named_parameters())
        for name in brought if named.keys() - brought else ():  # what brought everything is trained as a whole
            named[name].grad = None
    norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    weighted, plain, at = _of_all_processes(accelerator, torch.cat(losses), torch.cat(errors), torch.cat(timesteps))
    loss = float(weighted.mean())
    if not math.isfinite(loss):
        raise ModelError(
            f"the loss of step {step + 1} is {loss}; lower optimizer.learning_rate or optimizer.clip, or train without "
            "optimizer.precision = 'fp16'; the last checkpoint is as it was"
        )
    return {
        "loss": loss,
        "error": float(plain.mean()),
        "norm": float(norm),
        "levels": level_means(plain, at, config.objective.timesteps),
    }


def _of_all_processes(
    accelerator: Any, weighted: torch.Tensor, plain: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, errors and timesteps, (B,) each, of the whole batch, on the CPU.

    Shares of processes may differ by a sample, and only tensors of one shape can be gathered: short ones are filled up with
    rows that are told by a timestep of -1 and taken out again.
    """
    own = torch.stack([weighted.double(), plain.double(), timesteps.double()], dim=1)
    rows = accelerator.gather(accelerator.pad_across_processes(own, dim=0, pad_index=-1)).cpu()
    rows = rows[rows[:, 2] >= 0]
    return rows[:, 0], rows[:, 1], rows[:, 2].long()


@contextmanager
def _synchronized(accelerator: Any, model: Any, last: bool) -> Iterator[None]:
    """Gradients travel between processes with the last micro-batch only."""
    if last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


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


def check_shares(config: TrainConfig, processes: int) -> None:
    """See that every micro-batch of every process has a sample.

    Raises
    ------
    ValueError
        A batch has fewer samples (clips and mixtures) than there are processes times micro-batches.

    Examples
    --------
    >>> from auscult.generation.training_config import load_train_config
    >>> config = load_train_config(preset="tiny-cpu", settings=("data.train=clips", "optimizer.batch=2", "mixing.share=0"))
    >>> check_shares(config, 2)
    >>> check_shares(config, 3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: a batch of 2 samples cannot be shared by 3 processes in 1 micro-batch each; raise optimizer.batch to 3 or ...
    """
    accumulation, batch = config.optimizer.accumulation, config.optimizer.batch
    samples = batch + round(config.mixing.share * batch)
    if samples < processes * accumulation:
        each = f"{accumulation} micro-batch{'es' if accumulation > 1 else ''}"
        raise ValueError(
            f"a batch of {samples} samples cannot be shared by {processes} processes in {each} each; raise optimizer.batch to "
            f"{processes * accumulation} or more, or start fewer processes"
        )


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _workplace(out: Path, config: TrainConfig, accelerator: Any) -> Iterator[Path]:
    """The folder of the run: new, or that of the same run."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield out
        return
    if out.exists() and not out.is_dir():
        raise OutputFolderError(f"{out}: exists and is a file; choose another -o")
    if out.is_dir() and any(out.iterdir()) and not (out / TASK).is_file():
        raise OutputFolderError(f"{out}: holds something that is not a training; choose another -o")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _claim(out, config)
        accelerator.wait_for_everyone()
        yield out


def _claim(out: Path, config: TrainConfig) -> None:
    """Write the configuration down, or see that it is that of the run which lies there."""
    wanted = json.loads(json.dumps(config_values(config)))
    path = out / TASK
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=1, sort_keys=True))
        return
    try:
        there = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OutputFolderError(f"{path}: cannot be read ({error}); choose another -o") from error
    if not isinstance(there, dict) or not isinstance(there.get("optimizer"), dict) or "steps" not in there["optimizer"]:
        raise OutputFolderError(f"{out}: its {TASK} is that of something else than a training; choose another -o")
    changed = [
        key for key in sorted(_flat(wanted).keys() | _flat(there).keys()) if _flat(wanted).get(key) != _flat(there).get(key)
    ]
    changed = [key for key in changed if key.partition(".")[0] not in _MAY_CHANGE]
    longer = there["optimizer"]["steps"] < wanted["optimizer"]["steps"]
    if changed == ["optimizer.steps"] and longer:
        (out / CARD).unlink(missing_ok=True)
        write_text(path, json.dumps(wanted, indent=1, sort_keys=True))
        return
    if changed:
        old, new = _flat(there), _flat(wanted)
        told = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:4])
        raise OutputFolderError(f"{out}: a training with other settings was begun here ({told}); choose another -o")
    if is_folder_of(out, KIND):
        raise OutputFolderError(f"{out}: this training is finished; choose another -o, or raise optimizer.steps to go on")


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _gates_before(
    prepared: Prepared, config: TrainConfig, alphas: torch.Tensor, accelerator: Any, out: Path, progress: Progress
) -> tuple[GateResult, ...]:
    """The gates of the data, the codec and the untrained denoiser; those of a run that goes on were passed at its beginning."""
    path = out / GATES
    if accelerator.is_main_process and not path.is_file():
        gates = prepared.gates + first_gates(prepared, config, alphas, device=accelerator.device, progress=progress)
        write_text(path, json.dumps([asdict(gate) for gate in gates], indent=1))
    accelerator.wait_for_everyone()
    found = (GateResult(**gate) for gate in json.loads(path.read_text("utf-8")))
    return tuple(gate for gate in found if not gate.name.startswith("conditions against"))  # those come at the end


def _resume(accelerator: Any, out: Path, average: EMAModel) -> int:
    """Load the last whole checkpoint; the number of steps that are done."""
    found = latest_checkpoint(out / CHECKPOINTS)
    if found is None:
        return 0
    accelerator.load_state(str(found.path))
    average.to(accelerator.device)  # accelerate reads what was registered onto the CPU
    return found.step


def _save(accelerator: Any, out: Path, step: int, config: TrainConfig) -> None:
    folder = out / CHECKPOINTS

    def write(partial: Path) -> None:
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        facts = {"seed": config.seed, "threads": torch.get_num_threads()}
        save_checkpoint(folder, step, write, facts=facts, keep=config.logging.checkpoints_kept)
    else:
        write(partial_path(folder, step))


def _pipeline(unet: Any, prepared: Prepared, config: TrainConfig) -> Any:
    """The pipeline around averaged weights."""
    feed, ddpm = prepared.feed, noise_schedule(config.objective)
    sampler = DDIMScheduler.from_config(ddpm.config, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    pipe = RetrievalAugmentedAudioPipeline.of(
        feed.codec, unet, sampler, prepared.vocoder, feed.encoders, mel=feed.spec, duration_s=prepared.duration_s
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _save_pipeline(accelerator: Any, out: Path, unet: Any, prepared: Prepared, config: TrainConfig) -> None:
    """The model as a standard folder: all of it the first time, then the denoiser, each under another name first."""
    if not accelerator.is_main_process:
        return
    folder = out / PIPELINE
    partial = out / f".{PIPELINE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if not folder.exists():
            _pipeline(unet, prepared, config).save_pretrained(partial)
            partial.replace(folder)
            return
        unet.save_pretrained(partial)
        for path in sorted(partial.iterdir()):  # each file whole or as it was; the configuration does not change
            path.replace(folder / "unet" / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sheet(
    accelerator: Any, out: Path, unet: Any, prepared: Prepared, config: TrainConfig, step: int, progress: Progress
) -> None:
    if accelerator.is_main_process and config.logging.sheet_prompts:
        pipe = _pipeline(unet, prepared, config).to(accelerator.device)
        make_sheet(pipe, prepared.feed, prepared.held_out, out / SHEETS, step, config.logging, progress=progress)


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


def _validate(log: _Log, unet: Any, prepared: Prepared, config: TrainConfig, alphas: torch.Tensor, step: int) -> None:
    if not log.active:
        return
    validation, training = _levels(unet, prepared, config, alphas)
    log.line({"step": step, "training": training.to_json(), "validation": validation and validation.to_json()})


class _Log:
    """``log.jsonl``: means since the last line; what a killed run wrote beyond its checkpoint goes."""

    def __init__(self, path: Path, step: int, active: bool, tensorboard: bool) -> None:
        self.path, self.active = path, active
        self.entries: list[dict[str, Any]] = []
        self.recent = math.nan
        self._board = _tensorboard(path.parent) if tensorboard and active else None
        if active:
            kept = [line for line in read_log(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self.recent = entry["loss"] if math.isnan(self.recent) else 0.95 * self.recent + 0.05 * entry["loss"]

    def write(self, step: int, rate: float) -> None:
        means = {name: float(np.mean([entry[name] for entry in self.entries])) for name in ("loss", "error", "norm")}
        levels = [[entry["levels"][level] for entry in self.entries] for level in range(LEVELS)]
        found = [[value for value in values if value is not None] for values in levels]
        self.entries = []
        self.line({"step": step, **means, "rate": rate, "levels": [float(np.mean(some)) if some else None for some in found]})

    def line(self, content: dict[str, Any]) -> None:
        if not self.active:
            return
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(content) + "\n")
        if self._board is not None:
            for name in ("loss", "error", "norm", "rate"):
                if name in content:
                    self._board.add_scalar(name, content[name], content["step"])
            for side in ("training", "validation"):
                for variant, losses in ((content.get(side) or {}).get("losses") or {}).items():
                    self._board.add_scalar(f"{side}/{variant}", float(np.mean(losses)), content["step"])


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; the last is left out if a kill cut it short."""
    lines = []
    if path.is_file():
        for text in path.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModelError("logging.tensorboard = true needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(folder / "tensorboard")


def _finish(
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
        "gates": [{**asdict(gate), "value": gate.value if math.isfinite(gate.value) else None} for gate in gates],
        "device": {"name": str(accelerator.device), "processes": accelerator.num_processes, "threads": torch.get_num_threads()},
        "models": {name: _version(name) for name in ("torch", "diffusers", "transformers", "accelerate")},
    }
    if accelerator.is_main_process:
        write_text(out / GATES, json.dumps([asdict(gate) for gate in gates], indent=1))
        draw_training(read_log(out / LOG), out / FIGURE)
        write_card(out, KIND, card)
    return TrainResult(out, step, validation, training, gates, card, accelerator.is_main_process)


def _version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)
