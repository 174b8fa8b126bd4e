"""Gates of a denoiser before its first step: its loss, its conditions, and whether it can learn one batch by heart."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..folders import Progress, no_progress
from .denoiser import predict
from .feed import Batch, Feed, draw_noise
from .gates import GateResult, check
from .objective import level_timesteps, noisy_latents, squared_errors, target
from .preparing import Prepared
from .training_config import TrainConfig

_CLIPS = 4  # of the batch that is learned by heart


def first_gates(
    prepared: Prepared,
    config: TrainConfig,
    alphas_cumprod: torch.Tensor,
    *,
    device: Any = "cpu",
    progress: Progress = no_progress,
) -> tuple[GateResult, ...]:
    """Check the denoiser before the first step.

    Raises
    ------
    GateError
        Its loss is far from 1 though nothing was learned yet, a condition does not reach it, or it cannot learn one batch.
    """
    gates = []
    if prepared.brought or config.start.source is not None:
        return ()  # a warm start has a loss, and its new streams begin without effect
    if config.gates.first_loss:
        gates.append(first_loss_gate(prepared.unet, prepared.feed, config, alphas_cumprod, device))
    gates.append(reach_gate(prepared.unet, prepared.feed, config, alphas_cumprod, device))
    check(gates)  # before the minute that the last one takes
    if config.gates.overfit:
        gates.append(overfit_gate(prepared.unet, prepared.feed, config, alphas_cumprod, device, progress))
    return check(gates)


def one_batch(feed: Feed, clips: int, device: Any, seed: int = 0) -> Batch:
    """A few clips with their own conditions, at levels that are spread evenly, under fixed noise; those with pairs first."""
    order = feed.rows
    if feed.neighbors is not None:
        lonely = [not len(nearest) for nearest in feed.nearest(feed.rows, 1)]
        order = feed.rows[np.argsort(lonely, kind="stable")]
    rows = order[:clips]
    latents = feed.latents[rows]
    noise, _ = draw_noise(latents, feed.timesteps, seed)
    timesteps = level_timesteps(feed.timesteps, len(rows))
    return Batch(latents, noise, timesteps, feed.fixed(rows, "own")).to(device)


def _error(unet: Any, batch: Batch, config: TrainConfig, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    wanted = target(batch.latents, batch.noise, alphas_cumprod, batch.timesteps, config.objective.prediction)
    noisy = noisy_latents(batch.latents, batch.noise, alphas_cumprod, batch.timesteps)
    return squared_errors(predict(unet, noisy, batch.timesteps, batch.conditions), wanted).mean()


@torch.no_grad()
def first_loss_gate(unet: Any, feed: Feed, config: TrainConfig, alphas_cumprod: torch.Tensor, device: Any) -> GateResult:
    """Whether the plain error before the first step is about 1, as of a predictor of zero."""
    loss = float(_error(unet, one_batch(feed, 32, device), config, alphas_cumprod))
    distance, limit = abs(loss - 1), config.gates.first_loss
    advice = "" if distance <= limit else "; are the latents scaled to unit variance, and does the noise schedule fit?"
    return GateResult(
        "first loss", distance <= limit, distance, limit, f"the error before the first step is {loss:.3f}{advice}"
    )


def reach_gate(unet: Any, feed: Feed, config: TrainConfig, alphas_cumprod: torch.Tensor, device: Any) -> GateResult:
    """Whether the error depends on each condition: the smallest norm of its gradients by prompt and pairs is above 0.

    Of a stream of pairs only what pairs fill counts: the null token that it begins with, or the tokens of a prompt that the
    pairs stand behind, would have an influence where no pair has.
    """
    batch = one_batch(feed, _CLIPS, device)
    conditions = batch.conditions
    names = [name for name in ("prompt", "text_tokens", "audio_tokens") if getattr(conditions, name) is not None]
    leaves = {name: getattr(conditions, name).clone().requires_grad_(True) for name in names}
    error = _error(unet, replace(batch, conditions=replace(conditions, **leaves)), config, alphas_cumprod)
    found = torch.autograd.grad(error, list(leaves.values()))
    norms = {}
    for name, gradient in zip(leaves, found, strict=True):
        written = gradient.shape[1] if name == "prompt" else _tokens_before_pairs(feed, name)
        if written:
            norms[name] = float(gradient[:, :written].norm())
        if name != "prompt" and feed.neighbors is not None:
            norms[f"{name} of pairs"] = float(gradient[:, max(1, written) :].norm())
    name, least = min(norms.items(), key=lambda item: item[1])
    advice = "" if least > 0 else f"; {name} has no influence on the output: is its stream masked, or its width wrong?"
    if least == 0 and feed.neighbors is not None and not any(map(len, feed.nearest(feed.rows, 1))):
        advice = "; no clip has a pair in the datastore: all are its duplicates, have its caption, or are held out"
    told = ", ".join(f"{each} {norm:.1e}" for each, norm in norms.items())
    return GateResult("conditions reach the output", least > 0, least, 0.0, f"gradients by {told}{advice}")


def _tokens_before_pairs(feed: Feed, stream: str) -> int:
    """Tokens of a stream that are the prompt's; 0 where the pairs have it to themselves, behind the null token."""
    written = getattr(feed.prompts, stream)
    return 0 if written is None else int(written.shape[1])


def overfit_gate(
    unet: Any, feed: Feed, config: TrainConfig, alphas_cumprod: torch.Tensor, device: Any, progress: Progress = no_progress
) -> GateResult:
    """Whether a copy of the denoiser learns one small batch by heart, noise and levels included."""
    copied, batch, limit = copy.deepcopy(unet).train(), one_batch(feed, _CLIPS, device), config.gates.overfit
    optimizer = torch.optim.AdamW(copied.parameters(), lr=max(config.optimizer.learning_rate, 1e-4), weight_decay=0.0)
    first = loss = float("inf")
    steps = config.gates.overfit_steps
    for step in range(1, steps + 1):
        error = _error(copied, batch, config, alphas_cumprod)
        loss = float(error.detach())
        first = loss if step == 1 else first
        progress(step, steps, "learning one batch by heart")
        if loss < limit:
            break
        error.backward()
        torch.nn.utils.clip_grad_norm_(copied.parameters(), config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
    progress(steps, steps, "learning one batch by heart")
    passed = loss < limit
    advice = "" if passed else _more_steps(steps)
    message = f"the error of one batch fell from {first:.3f} to {loss:.3f} in {step} steps{advice}"
    return GateResult("one batch by heart", passed, loss, limit, message)


def _more_steps(steps: int) -> str:
    return (
        f"; if it was still falling, allow it more: gates.overfit_steps = {3 * steps}; if it was not, raise "
        "optimizer.learning_rate or check the objective: what cannot learn one batch learns none"
    )
