"""Training of a variational autoencoder on the log-mels of a corpus, for those who do not take AudioLDM's.

Loss: ``mean |x - x'| / std + kl_weight * mean KL``, with the divergence summed over the latent of a clip. AudioLDM's own
training adds a discriminator, which matters for the last bit of sharpness and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import GateError
from ..folders import Progress, no_progress
from .autoencoder import autoencoder, check_mels, fold, to_latents

_SCALED_BY = 512  # clips that the scale of the latents is taken of


@dataclass(frozen=True)
class AutoencoderTraining:
    """How an autoencoder is trained.

    Attributes
    ----------
    preset
        Size; see :func:`~auscult.generation.autoencoder.autoencoder`.
    steps
        Updates.
    batch_size
        Clips of an update.
    learning_rate
        Of Adam at the first step; it falls to zero along a cosine.
    kl_weight
        Of the divergence, summed over a clip's latent.
    gradient_clip
        Largest norm of a gradient.
    seed
        Of weights, order of clips, and latents' noise.
    """

    preset: Literal["cpu4", "cpu8", "gpu"] = "cpu4"
    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    gradient_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} should be above 0, got {getattr(self, name)!r}")
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight should be 0 or more, got {self.kl_weight!r}")


def train_autoencoder(
    mels: torch.Tensor,
    config: AutoencoderTraining | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = no_progress,
    log: Callable[[int, dict[str, float]], None] | None = None,
    **sizes: Any,
) -> Any:
    """Train an autoencoder on log-mels.

    Equal arguments give equal weights on a processor; torch's global generator is left as it was.

    Parameters
    ----------
    mels
        (N, 1, frames, n_mels), raw, on any device (a memory map too).
    config
        All defaults if left out.
    progress
        Called with every step.
    log
        Called with the number of each step, from 1, and its ``loss``, ``l1`` (in standard deviations of the log-mels) and
        ``kl`` (nats for each number of the latent).
    sizes
        Of :class:`~auscult.generation.autoencoder.MelAutoencoder`, in place of the preset's.

    Returns
    -------
    MelAutoencoder
        On ``device``, in evaluation mode, with ``config.scaling_factor`` = 1 / standard deviation of the latents.

    Raises
    ------
    ValueError
        Log-mels of another shape, or all of them one constant.
    GateError
        The loss stopped being a number.
    """
    config = config or AutoencoderTraining()
    mean, std = _moments(mels)
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = autoencoder(config.preset, mel_mean=mean, mel_std=std, **sizes).to(where).train()
        check_mels(mels, fold(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        for step, rows in enumerate(_batches(len(mels), config), start=1):
            losses = _step(model, mels[rows].to(where), optimizer, config, std)
            schedule.step()
            if not all(map(torch.isfinite, losses.values())):
                raise GateError(
                    f"the autoencoder's loss is no number at step {step}; lower learning_rate {config.learning_rate:g}"
                )
            if log is not None:
                log(step, {name: float(value) for name, value in losses.items()})
            progress(step, config.steps, f"autoencoder | L1 {float(losses['l1']):.3f}")
    model.eval()
    model.register_to_config(scaling_factor=1.0 / _latent_std(model, mels, config))
    return model


def _step(model: Any, batch: torch.Tensor, optimizer: Any, config: AutoencoderTraining, std: float) -> dict[str, torch.Tensor]:
    """One update; returns the losses."""
    posterior = model.encode(batch).latent_dist
    copy = model.decode(posterior.sample()).sample
    error = (copy - batch).abs().mean() / std
    divergence = posterior.kl().mean()
    loss = error + config.kl_weight * divergence
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    return {"loss": loss.detach(), "l1": error.detach(), "kl": divergence.detach() / posterior.mean[0].numel()}


def _batches(clips: int, config: AutoencoderTraining) -> Iterator[torch.Tensor]:
    """Rows of each step: every clip once before any comes again, in an order of its own every time."""
    generator = torch.Generator().manual_seed(config.seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(waiting) < config.batch_size:
            waiting = torch.cat([waiting, torch.randperm(clips, generator=generator)])
        rows, waiting = waiting.split([config.batch_size, len(waiting) - config.batch_size])
        yield rows


def _moments(mels: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of log-mels, in nats, clip by clip: the set may be larger than the memory."""
    if mels.ndim != 4 or not len(mels):
        raise ValueError(f"expected log-mels of shape (N, 1, frames, n_mels), at least one of them, got {tuple(mels.shape)}")
    means, squares = zip(*((float(one.double().mean()), float(one.double().square().mean())) for one in mels), strict=True)
    mean = sum(means) / len(means)
    variance = sum(squares) / len(squares) - mean**2
    if not variance > 1e-8 * max(mean**2, 1e-8):
        raise ValueError("all log-mels are one constant (silence?) or not finite; an autoencoder needs sound to be trained on")
    return mean, variance**0.5


@torch.no_grad()
def _latent_std(model: Any, mels: torch.Tensor, config: AutoencoderTraining) -> float:
    rows = torch.randperm(len(mels), generator=torch.Generator().manual_seed(config.seed))[:_SCALED_BY]
    latents = [to_latents(model, mels[some].to(model.device)).cpu() for some in rows.split(config.batch_size)]
    return float(torch.cat(latents).std(correction=0)) / model.config.scaling_factor
