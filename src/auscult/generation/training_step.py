"""One step of a training: its noise, losses, gradients, and learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from ..errors import ModelError
from .conditioning import Conditions
from .denoiser import predict
from .feed import Batch
from .objective import level_means, loss_weights, noisy_latents, signal_to_noise, squared_errors, target
from .training_config import ObjectiveConfig, OptimizerConfig, TrainConfig


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
