"""Whether a public denoiser is read as it was trained: what it predicts, and with how many attention heads.

Neither changes the shape of any weight, so a wrong reading loads without a word and only sounds wrong. On a few real clips the
loss tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .conditioning import Conditions
from .denoiser import predict
from .gates import GateResult
from .warmstart import with_heads

LIMIT = 1.0  # of the distance to what is declared, by that to the other
LEVELS = (300, 500, 700, 900)  # of 1,000: below, noise and velocity are nearly the same


class Readings(NamedTuple):
    """Mean squared distance of what a denoiser says to the noise that was added, and to the velocity."""

    epsilon: float
    v_prediction: float


@torch.no_grad()
def read_both_ways(unet: Any, scheduler: Any, latents: torch.Tensor, conditions: Conditions, *, seed: int = 0) -> Readings:
    """Hold a denoiser's output against both things that it may have been trained to predict.

    Parameters
    ----------
    unet, scheduler
        Of the model; of the scheduler the noise schedule counts.
    latents
        (B, C, F, M) of real clips, scaled as the denoiser sees them.
    conditions
        B rows, of the clips' captions.
    seed
        Of the noise.
    """
    alphas = scheduler.alphas_cumprod.to(latents.device)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, dtype=torch.float64)
    for level in LEVELS:
        step = level * len(alphas) // 1000
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        kept, added = alphas[step].sqrt(), (1 - alphas[step]).sqrt()
        said = predict(unet, kept * latents + added * noise, step, conditions)
        for place, wanted in enumerate((noise, kept * noise - added * latents)):
            sums[place] += (said - wanted).square().mean().double().cpu()
    return Readings(*(sums / len(LEVELS)).tolist())


def prediction_gate(unet: Any, scheduler: Any, latents: torch.Tensor, conditions: Conditions) -> GateResult:
    """The gate of a public denoiser: what its scheduler says it predicts fits real clips better than the other.

    The value is the ratio of the two distances of :func:`read_both_ways`, declared by other, which has to be below 1.
    """
    found = read_both_ways(unet, scheduler, latents, conditions)
    declared = scheduler.config.prediction_type
    own, other = (found.epsilon, found.v_prediction) if declared == "epsilon" else (found.v_prediction, found.epsilon)
    value = own / other
    message = f"the denoiser is said to predict {declared}, and is {own:.3g} from it on real clips, {other:.3g} from the other"
    advice = "" if value < LIMIT else "; its files may be of another model, or set prediction_type to the other"
    return GateResult("prediction", value < LIMIT, value, LIMIT, message + advice)


def compare_heads(
    unet: Any, scheduler: Any, latents: torch.Tensor, conditions: Conditions, candidates: Sequence[int | Sequence[int]]
) -> list[tuple[int | Sequence[int], float]]:
    """Losses of the same weights with other numbers of attention heads, the lowest first.

    For AudioLDM's public checkpoints: ``8``, which their configurations say, and ``(4, 8, 12, 20)``, which AudioLDM's own
    training code builds at the channels of its small model. Fifty clips are plenty; give
    :func:`~auscult.generation.warmstart.from_audioldm` the winner.

    Parameters
    ----------
    unet, scheduler, latents, conditions
        As for :func:`read_both_ways`.
    candidates
        Each one number for all levels, or one per level.

    Raises
    ------
    ModelError
        A number of channels is no multiple of its number of heads.
    """
    losses = []
    for heads in candidates:
        other = with_heads(unet, heads).to(latents.device)
        found = read_both_ways(other, scheduler, latents, conditions)
        losses.append((heads, found.epsilon if scheduler.config.prediction_type == "epsilon" else found.v_prediction))
    return sorted(losses, key=lambda each: each[1])
