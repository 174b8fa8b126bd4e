"""The update rule of anti-memorization guidance: tensors in, tensors out, for any parameterization and batch.

Sources: Chen, Liu, Xu, "Towards Memorization-Free Diffusion Models", CVPR 2024, equations 9-17 ("CVPR" below); Messina et al.,
"Mitigating data replication in text-to-audio generative diffusion models through anti-memorization guidance", 2025.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from .terms import norms, rows_like

if TYPE_CHECKING:
    from .coefficients import Coefficients

Units = Literal["norm", "estimate", "paper", "released"]
UNITS = ("norm", "estimate", "paper", "released")
LEAST_SIGNAL = 0.05  # a of flow matching is 0 at the first step, where the rule divides by it


def spend(
    similarity: torch.Tensor, fired: torch.Tensor, scale: torch.Tensor, c1: float, c2: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of the guidance scale despecification and caption deduplication take away.

    ``s1 = clamp(c1 sim, 0, max(s0 - 1, 0))`` and ``s2 = clamp(c2 sim, 0, max(s0 - 1 - s1, 0))`` where fired, else 0: what is
    left of the prompt's own weight, ``s0 - s1 - s2``, never falls below 1, and s1 takes first.

    Parameters
    ----------
    similarity
        To the nearest reference, (B,).
    fired
        Whether it is above the threshold, (B,) bool.
    scale
        s0 of classifier-free guidance, (B,).
    c1, c2
        Strengths, at least 0.

    Returns
    -------
    tuple of Tensor
        s1 and s2, (B,) each.

    References
    ----------
    CVPR, equations 10 and 13-16.

    Examples
    --------
    >>> s1, s2 = spend(torch.tensor([0.5, 0.5]), torch.tensor([True, False]), torch.tensor([3.5, 3.5]), 4.0, 3.0)
    >>> s1.tolist(), s2.tolist()
    ([2.0, 0.0], [0.5, 0.0])
    """
    room = (scale - 1).clamp(min=0)
    s1 = torch.minimum((c1 * similarity).clamp(min=0), room)
    s2 = torch.minimum((c2 * similarity).clamp(min=0), room - s1)
    nothing = torch.zeros_like(s1)
    return torch.where(fired, s1, nothing), torch.where(fired, s2, nothing)


def caption_shift(
    direction: torch.Tensor, s1: torch.Tensor, s2: torch.Tensor, others: torch.Tensor | None, u: torch.Tensor
) -> torch.Tensor:
    """``- s1 direction - s2 (n - u)``: guidance towards the prompt lowered, and away from the neighbor's caption.

    Valid on raw outputs of any parameterization, since x0 is affine in the output and its coefficients do not depend on the
    condition. With ``direction = c - u`` the weights of u, c and n sum to 1.

    Parameters
    ----------
    direction
        (B, ...): c - u.
    s1, s2
        (B,) each.
    others
        n: predictions for the neighbors' captions, (B, ...); None where no s2 is above 0.
    u
        Predictions without condition, (B, ...).

    Returns
    -------
    Tensor (B, ...)

    References
    ----------
    CVPR, equations 13 and 15.
    """
    shift = -rows_like(s1, direction) * direction
    return shift if others is None else shift - rows_like(s2, direction) * (others - u)


def dissimilarity_shift(
    gradient: torch.Tensor,
    coefficients: Coefficients,
    c3: float,
    units: Units,
    *,
    of: Literal["x0", "x_t"],
    guidance: torch.Tensor | None = None,
    estimate: torch.Tensor | None = None,
) -> torch.Tensor:
    """By how much x0 is moved away from its nearest reference.

    Down the gradient g of similarity. In the units of the paper ``d_eps = c3 b g`` with g by x_t, which is
    ``d_x0 = -c3 (b^2 / a) g`` in the sampler's own coordinates; with g by x0 itself it is ``d_x0 = -c3 g``. ``"released"`` is
    that times ``1 / (sigma sqrt(1 + sigma^2))``, which is what the released code does: next to nothing at high noise, a lot at
    the end. ``"norm"`` moves by c3 times the length of what classifier-free guidance moves x0, whatever the size of g, so that
    c3 means the same for every model and step; but a model that knows a clip by heart may need no prompt to make it, and then
    there is next to nothing to take a share of. ``"estimate"`` moves by c3 times the length of the estimated x0 itself.

    Parameters
    ----------
    gradient
        g, (B, ...).
    coefficients
        Of the step.
    c3
        Strength, at least 0.
    units
        What c3 counts.
    of
        What the gradient was taken by.
    guidance
        ``s0 q (c - u)``, (B, ...); needed for ``"norm"``.
    estimate
        x0 as it is predicted, (B, ...); needed for ``"estimate"``.

    Returns
    -------
    Tensor (B, ...)
        d_x0; divide by q for the raw output. Zero where the gradient is.

    Raises
    ------
    ValueError
        ``"norm"`` without guidance, or ``"estimate"`` without an estimate: there is nothing that c3 could be a share of.

    References
    ----------
    CVPR, equation 17. Deviation: a is taken as at least 0.05, since flow matching begins with a = 0.

    Examples
    --------
    >>> from auscult.guidance.coefficients import Coefficients
    >>> step = Coefficients(a=0.6, b=0.8, p=1 / 0.6, q=-0.8 / 0.6)
    >>> dissimilarity_shift(torch.tensor([[3.0, 0.0]]), step, 2.0, "norm", of="x0", guidance=torch.tensor([[0.0, 5.0]]))
    tensor([[-10.,  -0.]])
    """
    if units == "norm":
        if guidance is None:
            raise ValueError(
                "units 'norm' make the dissimilarity term a share of classifier-free guidance, and this sampler runs without; "
                "take units 'estimate' or 'paper'"
            )
        return -c3 * _as_long_as(guidance, gradient)
    if units == "estimate":
        if estimate is None:
            raise ValueError("units 'estimate' make the dissimilarity term a share of the estimated sample; give estimate")
        return -c3 * _as_long_as(estimate, gradient)
    factor = c3
    if of == "x_t":
        factor *= coefficients.b**2 / max(coefficients.a, LEAST_SIGNAL)
    if units == "released":
        sigma = coefficients.b / max(coefficients.a, LEAST_SIGNAL)
        factor /= max(sigma, 1e-3) * math.sqrt(1 + sigma**2)
    return -factor * gradient


def _as_long_as(other: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient, each row at the length of that of the other; zero where it is."""
    length = norms(gradient)
    share = torch.where(length > 0, norms(other) / length.clamp(min=torch.finfo(length.dtype).tiny), length)
    return rows_like(share, gradient) * gradient
