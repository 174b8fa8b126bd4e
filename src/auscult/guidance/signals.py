"""Signs of memorization that need no reference: how strongly, and in what direction, a prompt pulls on the noise.

All are about ``D = eps(x_t, prompt) - eps(x_t)``, what the prompt changes in the predicted noise. The network may predict
something else (velocity, the clean latent). With ``x_t = a x0 + b eps`` and ``x0 = p x_t + q output`` that is
``D = -(a / b) q (c - u)``, where ``c`` and ``u`` are the outputs with and without the prompt.

Published thresholds are those of image models and do not carry over: calibrate on prompts that are known not to be memorized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .coefficients import Coefficients
from .terms import norms

Predict = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
"""Called as ``predict(x_t, timestep)``; returns the outputs of the network without and with the prompt. It scales ``x_t`` for
the network as the pipeline does (``scheduler.scale_model_input``)."""


@dataclass(frozen=True)
class Anisotropy:
    """Result of :func:`anisotropy`, of one value for each row.

    Attributes
    ----------
    norm
        (B,) 2-norm of D on pure noise at the first timestep. It grows with the root of the size of a latent.
    cosine
        (B,) mean over positions of the cosine, over channels, of the unconditional noise and D at a late timestep; -1 to 1.
    score
        (B,) their weighted sum; high: memorized.
    """

    norm: Tensor
    cosine: Tensor
    score: Tensor


def text_difference(u: Tensor, c: Tensor, coefficients: Coefficients) -> Tensor:
    """What the prompt changes in the predicted noise: ``D = -(a / b) q (c - u)``.

    Parameters
    ----------
    u, c
        (B, ...) outputs of the network without and with the prompt, in any parameterization.
    coefficients
        Of the step, as floats.

    Returns
    -------
    Tensor
        (B, ...), at least float32: two outputs that are close differ by little more than what half precision rounds.

    Raises
    ------
    ValueError
        Unequal shapes, or a step without noise (b = 0), where a prediction of noise means nothing.

    Examples
    --------
    >>> velocity = Coefficients(a=0.6, b=0.8, p=0.6, q=-0.8)
    >>> text_difference(torch.zeros(1, 2), torch.tensor([[1.0, -2.0]]), velocity)
    tensor([[ 0.6000, -1.2000]])
    """
    if u.shape != c.shape or u.ndim < 2:
        raise ValueError(
            f"expected outputs (rows, ...) of equal shape without and with a prompt, got {tuple(u.shape)} and {tuple(c.shape)}"
        )
    return _noise_factor(coefficients) * (_precise(c) - _precise(u))


def text_norm(u: Tensor, c: Tensor, coefficients: Coefficients) -> Tensor:
    """How strongly the prompt pulls: root mean square of D, ``||D||_2 / sqrt(values of a row)``.

    For prompts that are memorized it is high at every step (Wen et al. 2024, who take ``||D||_2``; divided by the root of the
    size, latents of unequal length compare). It costs nothing: guidance has computed both outputs anyway.

    Parameters
    ----------
    u, c, coefficients
        As in :func:`text_difference`.

    Returns
    -------
    Tensor
        (B,), 0 or more.

    Raises
    ------
    ValueError
        As :func:`text_difference`.

    References
    ----------
    Y. Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024.

    Examples
    --------
    >>> noise = Coefficients(a=1.0, b=5.0, p=1.0, q=-5.0)
    >>> text_norm(torch.zeros(2, 4), torch.tensor([[2.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]), noise)
    tensor([2., 0.])
    """
    return norms(text_difference(u, c, coefficients)) / math.sqrt(math.prod(u.shape[1:]))


def text_norm_score(curve: Sequence[Tensor], *, first: int | None = None) -> Tensor:
    """Mean of text norms over steps: high for prompts that are memorized.

    Wen et al. average over steps and seeds; rows that are one prompt with several seeds are the caller's to average. The
    first step alone tells much already.

    Parameters
    ----------
    curve
        Text norms (B,) of each step, in the order of sampling.
    first
        Number of steps to take, by default all.

    Returns
    -------
    Tensor
        (B,).

    Raises
    ------
    ValueError
        No steps, or ``first`` below 1.

    Examples
    --------
    >>> text_norm_score([torch.tensor([4.0, 1.0]), torch.tensor([2.0, 1.0])])
    tensor([3., 1.])
    """
    if not len(curve) or (first is not None and first < 1):
        raise ValueError(f"expected norms of at least one step, got {len(curve)} and were asked for the first {first}")
    return torch.stack([*curve[:first]]).mean(dim=0)


def anisotropy(
    predict: Predict,
    noise: Tensor,
    timesteps: Sequence[Any],
    coefficients: Callable[[Any], Coefficients],
    *,
    weights: tuple[float, float] = (1.0, 2.0),
    channel_dim: int = 1,
) -> Anisotropy:
    """Tell memorized prompts from pure noise: two evaluations of the network, no sampling.

    ``g1 ||D(x_T, T)||_2 + g2 mean cos(eps_u(x_T, t'), D(x_T, t'))``, where t' is the third-last timestep, whose network is
    still shown pure noise. The paper's x_T has variance 1 at both; here it is scaled to ``a^2 + b^2`` of each step, which is
    the same in any coordinates.

    Parameters
    ----------
    predict
        ``predict(x_t, timestep) -> (u, c)``.
    noise
        (B, ...) the latents that sampling starts from, scaled as the sampler scales them (``init_noise_sigma``).
    timesteps
        Of the sampler, in the order of sampling; at least three.
    coefficients
        Of a timestep. For a scheduler: :func:`~auscult.guidance.coefficients.coefficients` of a fresh copy at each call, as
        reading may set the scheduler's place.
    weights
        g1 and g2. The published ones are (1, 2) for Stable Diffusion 1.4 and (1, 0.1) for 2; for audio none are known.
    channel_dim
        Which dimension of ``noise`` is channels: 1 for (rows, channels, time, ...), -1 for (rows, time, channels).

    Returns
    -------
    Anisotropy
        Without gradients. Where D is 0 the cosine counts as 0.

    Raises
    ------
    ValueError
        Fewer than three timesteps; rows instead of channels; unequal shapes.

    References
    ----------
    arXiv 2601.20642, ICLR 2026.

    Examples
    --------
    >>> level = Coefficients(a=0.6, b=0.8, p=1 / 0.6, q=-0.8 / 0.6)  # the network predicts noise
    >>> found = anisotropy(lambda x, t: (x, x + 2.0), torch.ones(1, 4, 9), [9, 5, 1], lambda t: level)
    >>> found.norm, found.cosine, found.score
    (tensor([12.]), tensor([1.]), tensor([14.]))
    """
    if len(timesteps) < 3:
        raise ValueError(f"expected at least 3 timesteps, of which the third-last is looked at, got {len(timesteps)}")
    if noise.ndim < 2 or channel_dim % noise.ndim == 0:
        raise ValueError(f"expected channels in another dimension than rows, got {channel_dim} of {tuple(noise.shape)}")
    first, late = coefficients(timesteps[0]), coefficients(timesteps[-3])
    later = noise * (math.hypot(late.a, late.b) / math.hypot(first.a, first.b))
    with torch.no_grad():
        norm = norms(text_difference(*predict(noise, timesteps[0]), first))
        u, c = predict(later, timesteps[-3])
        difference = text_difference(u, c, late)
        unconditional = (_precise(later) * (1 - late.a * late.p) - late.a * late.q * _precise(u)) / late.b
        cosine = torch.nn.functional.cosine_similarity(unconditional, difference, dim=channel_dim)
    cosine = cosine.reshape(len(noise), -1).mean(dim=1)
    return Anisotropy(norm, cosine, weights[0] * norm + weights[1] * cosine)


def _noise_factor(coefficients: Coefficients) -> float:
    if not coefficients.b:
        raise ValueError("expected a step with noise (b > 0), got b = 0: a clean latent has no noise to predict")
    return -coefficients.a * coefficients.q / coefficients.b


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
