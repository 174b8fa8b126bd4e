"""Starting noise from which a prompt does not fall to its memorized clip at once.

Source: Han et al., "Adjusting Initial Noise to Mitigate Memorization in Text-to-Image Diffusion Models", NeurIPS 2025: the
length of what a prompt changes in the first prediction is lowered by moving the starting noise, for all samples alike by a few
steps without gradients (:func:`adjusted_noise`), or for each sample until it is short enough (:func:`descended_noise`). Nothing
is known of the references. :func:`~auscult.guidance.preparing_noise.prepare_latents` does either for a whole pipeline.

The length is that of ``D = -l q (c - u)`` with l = 0.0762. In Stable Diffusion, for which the published numbers were found,
a / b is l at the first of 50 steps, and D is the paper's difference of predicted noise, ``-(a / b) q (c - u)``. Other samplers
begin at other levels, down to a = 0 in flow matching, where that difference is next to nothing for any prompt: with a fixed l,
a number means the same for all of them. Lengths are divided by the root of the size of a latent, that of pure noise: the
published 50 and 0.9 are 50 / 128 and 0.9 / 128, since latents of 4 x 64 x 64 have the length 128.

Noise is not made Gaussian again afterwards. The further it was moved, the less it is what the denoiser was trained on; look at
``latents.std()``, which should still be near 1 in a pipeline's own units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .coefficients import Coefficients
from .terms import norms, rows_like

Predict = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Starting samples x_T (B, ...) in the scheduler's coordinates -> raw outputs (B, ...) without and with the prompt."""
LEVEL = 0.0762  # a / b at timestep 981 of 1,000: root of beta evenly spaced between those of 0.00085 and 0.012
RHO = 50 / 128
TARGET = 0.9 / 128


@dataclass(frozen=True)
class AdjustedNoise:
    """Where a sampler should begin.

    Attributes
    ----------
    latents
        (B, ...) float32. In the scheduler's coordinates, or from :func:`prepare_latents` as a pipeline takes them.
    lengths
        Of D per round, before and after the last included, divided by the root of the size, (rounds + 1, B).
    evaluations
        How often the denoiser was asked for both predictions.
    """

    latents: torch.Tensor
    lengths: torch.Tensor
    evaluations: int

    def reached(self, target: float = TARGET) -> torch.Tensor:
        """Which samples are short enough in the end, (B,) bool."""
        return self.lengths[-1] <= target


def text_pull(u: torch.Tensor, c: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """``D = -l q (c - u)``: what the prompt changes, in units of the noise at Stable Diffusion's first level.

    Parameters
    ----------
    u, c
        Raw outputs (B, ...) without and with the prompt.
    coefficients
        Of the first step.

    Returns
    -------
    Tensor (B, ...)
    """
    return -LEVEL * coefficients.q * (c - u)


def adjusted_noise(
    predict: Predict,
    noise: torch.Tensor,
    coefficients: Coefficients,
    *,
    iterations: int = 2,
    rho: float = RHO,
    gamma: float = 0.7,
) -> AdjustedNoise:
    """Move noise to where the prompt pulls less, by differences: ``x <- x - gamma (D(x + rho D / ||D||) - D(x))``.

    The difference is rho times the slope of ||D|| where D's Jacobian is symmetric, so this is a descent that needs no
    gradient: two evaluations a round. Each row is moved by what it says alone.

    Parameters
    ----------
    predict
        At the first step of the sampler.
    noise
        x_T, (B, ...) in the scheduler's coordinates.
    coefficients
        Of the first step.
    iterations
        Rounds; 0 measures.
    rho
        How far ahead to look, as a share of the length of pure noise (the root of a latent's size).
    gamma
        How far to go.

    Returns
    -------
    AdjustedNoise

    Raises
    ------
    ValueError
        A setting is out of range.

    References
    ----------
    Han et al. 2025, batch-wise. Deviations: the units of D and rho, see the head of this module; where a scheduler's noise has
    another standard deviation than 1 (``sqrt(a^2 + b^2)``), moves are stretched by it.

    Examples
    --------
    A denoiser whose prompt pulls to 1 everywhere; the move divides the pull by a constant.

    >>> step = Coefficients(a=0.0, b=1.0, p=0.0, q=1.0)
    >>> moved = adjusted_noise(lambda x: (0 * x, 1 - x), torch.tensor([[3.0]]), step, iterations=1)
    >>> moved.lengths.tolist()[1] < moved.lengths.tolist()[0]
    True
    """
    _check(iterations, rho=rho, gamma=gamma)
    spread = math.hypot(coefficients.a, coefficients.b)
    ahead = spread * rho * math.sqrt(noise[0].numel())
    x = noise.detach().float()
    lengths: list[torch.Tensor] = []
    with torch.no_grad():
        here = text_pull(*predict(x), coefficients)
        lengths.append(_length(here))
        for _ in range(iterations):
            there = text_pull(*predict(x + ahead * _unit(here)), coefficients)
            x = x - spread * gamma * (there - here)
            here = text_pull(*predict(x), coefficients)
            lengths.append(_length(here))
    return AdjustedNoise(x, torch.stack(lengths), 1 + 2 * iterations)


def descended_noise(
    predict: Predict,
    noise: torch.Tensor,
    coefficients: Coefficients,
    *,
    target: float = TARGET,
    rate: float = 0.01,
    iterations: int = 50,
) -> AdjustedNoise:
    """Lower each sample's ||D|| by AdamW on its noise, until it is at most ``target``.

    Samples that are there stay where they are, from the first round on, whatever the others of the batch do; the rounds end
    when all are. A sample may fail to get there: see :meth:`AdjustedNoise.reached`. Each round costs an evaluation with its
    gradient.

    Parameters
    ----------
    predict
        At the first step of the sampler; autograd has to go through it.
    noise
        x_T, (B, ...) in the scheduler's coordinates.
    coefficients
        Of the first step.
    target
        Length of D over the root of a latent's size. The published one is of images; take one from prompts that are known not
        to be memorized (``adjusted_noise(..., iterations=0).lengths``).
    rate
        AdamW's learning rate, for noise of standard deviation 1.
    iterations
        At most.

    Returns
    -------
    AdjustedNoise

    Raises
    ------
    ValueError
        A setting is out of range.

    References
    ----------
    Han et al. 2025, per sample. AdamW with its usual decay of 0.01.
    """
    _check(iterations, target=target, rate=rate)
    spread = math.hypot(coefficients.a, coefficients.b)
    with torch.inference_mode(False), torch.enable_grad():
        # a clone: a tensor made in inference mode could not carry a gradient
        leaf = (noise.detach().float().clone() / spread).requires_grad_()
        optimizer = torch.optim.AdamW([leaf], lr=rate)
        lengths = []
        for number in range(iterations + 1):
            length = _length(text_pull(*predict(spread * leaf), coefficients))
            lengths.append(length.detach())
            wanted = lengths[-1] > target
            if number == iterations or not bool(wanted.any()):
                break
            (leaf.grad,) = torch.autograd.grad(length.sum(), leaf)
            kept = leaf.detach().clone()
            optimizer.step()
            with torch.no_grad():
                leaf.copy_(torch.where(rows_like(wanted, leaf), leaf, kept))
    found = torch.where(rows_like(lengths[0] > target, noise), spread * leaf.detach(), noise.detach().float())
    return AdjustedNoise(found, torch.stack(lengths), len(lengths))


def _length(pull: torch.Tensor) -> torch.Tensor:
    return norms(pull) / math.sqrt(pull[0].numel())


def _unit(pull: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, and zero where they are zero."""
    length = rows_like(norms(pull), pull)
    return torch.where(length > 0, pull / length.clamp(min=torch.finfo(pull.dtype).tiny), torch.zeros_like(pull))


def _check(iterations: int, **positive: float) -> None:
    if iterations < 0:
        raise ValueError(f"iterations should be at least 0, got {iterations}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} should be above 0, got {value:g}")
