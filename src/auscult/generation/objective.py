"""What the denoiser is asked for, and what an error counts at each noise level.

A noisy latent is ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e``. The denoiser predicts the noise ``e``, or the velocity
``v = sqrt(abar_t) e - sqrt(1 - abar_t) x_0`` (Salimans and Ho, "Progressive Distillation", ICLR 2022, appendix D).
Both have unit variance if the latents have, so a denoiser that says zero has a loss of 1: that is what a loss is read beside.
"""

from __future__ import annotations

from typing import Literal

import torch

Prediction = Literal["epsilon", "v_prediction"]
SnrMode = Literal["correct", "tango"]

LEVELS = 10  # bins of the noise level over which losses are reported


def signal_to_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """``snr_t = abar_t / (1 - abar_t)``.

    Parameters
    ----------
    alphas_cumprod
        (T,) products ``abar`` of the scheduler.
    timesteps
        (B,) in [0, T).

    Returns
    -------
    Tensor
        (B,) float32.

    Examples
    --------
    >>> signal_to_noise(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([1, 2]))
    tensor([1.0000, 0.2500])
    """
    kept = alphas_cumprod.to(device=timesteps.device, dtype=torch.float32)[timesteps]
    return kept / (1 - kept)


def noisy_latents(
    latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e``, each sample (B, ...) at its own timestep (B,)."""
    signal, disorder = _amplitudes(latents, alphas_cumprod, timesteps)
    return signal * latents + disorder * noise


def target(
    latents: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    timesteps: torch.Tensor,
    prediction: Prediction,
) -> torch.Tensor:
    """What the denoiser should say (B, ...): the noise, or the velocity ``sqrt(abar_t) e - sqrt(1 - abar_t) x_0``.

    Raises
    ------
    ValueError
        Another prediction type.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        signal, disorder = _amplitudes(latents, alphas_cumprod, timesteps)
        return signal * noise - disorder * latents
    raise ValueError(f"prediction should be 'epsilon' or 'v_prediction', got {prediction!r}")


def _amplitudes(like: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = alphas_cumprod.to(device=like.device, dtype=torch.float32)[timesteps]
    kept = kept.reshape(-1, *[1] * (like.ndim - 1))
    return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)


def loss_weights(
    snr: torch.Tensor, prediction: Prediction, *, gamma: float | None = 5.0, mode: SnrMode = "correct"
) -> torch.Tensor:
    """Weights of min-SNR (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023, section 3.4).

    In terms of ``x_0`` the weight is ``min(snr, gamma)``. An error of the noise is ``snr`` times the error of ``x_0``, one of
    the velocity ``snr + 1`` times, hence ``min(snr, gamma) / snr`` for the noise and ``min(snr, gamma) / (snr + 1)`` for the
    velocity. TANGO's published code predicts the velocity but takes the weights of the noise: ``mode="tango"`` repeats that.

    Parameters
    ----------
    snr
        (B,), see :func:`signal_to_noise`.
    prediction
        What the denoiser predicts.
    gamma
        Highest signal-to-noise ratio that counts; None weighs all levels equally.
    mode
        ``correct``, or ``tango`` as published; the same for the noise.

    Returns
    -------
    Tensor
        (B,).

    Examples
    --------
    >>> loss_weights(torch.tensor([0.25, 20.0]), "v_prediction")
    tensor([0.2000, 0.2381])
    >>> loss_weights(torch.tensor([0.25, 20.0]), "v_prediction", mode="tango")
    tensor([1.0000, 0.2500])
    """
    if mode not in ("correct", "tango"):
        raise ValueError(f"mode should be 'correct' or 'tango', got {mode!r}")
    if gamma is None:
        return torch.ones_like(snr)
    if gamma <= 0:
        raise ValueError(f"gamma should be positive, got {gamma}; None weighs all noise levels equally")
    shift = 1.0 if prediction == "v_prediction" and mode == "correct" else 0.0
    return snr.clamp(max=gamma) / (snr + shift)


def squared_errors(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample: (B, ...) against (B, ...) gives (B,) float32, whatever the precision of the model."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(dim=1)


def level_of(timesteps: torch.Tensor, total: int, levels: int = LEVELS) -> torch.Tensor:
    """Noise level (B,) in [0, levels) of timesteps in [0, total): level 0 is the least noisy.

    Examples
    --------
    >>> level_of(torch.tensor([0, 99, 100, 999]), 1000)
    tensor([0, 0, 1, 9])
    """
    return timesteps * levels // total


def level_timesteps(total: int, levels: int = LEVELS) -> torch.Tensor:
    """The middle timestep of each noise level (levels,).

    Examples
    --------
    >>> level_timesteps(1000)
    tensor([ 50, 150, 250, 350, 450, 550, 650, 750, 850, 950])
    """
    return (torch.arange(levels) * total + total // 2) // levels


def level_means(losses: torch.Tensor, timesteps: torch.Tensor, total: int, levels: int = LEVELS) -> list[float | None]:
    """Mean loss of each noise level; None where no sample fell.

    Parameters
    ----------
    losses, timesteps
        (B,), one of each for a sample.
    total
        Number of timesteps of the scheduler.

    Examples
    --------
    >>> level_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([10, 20, 990]), 1000, levels=2)
    [2.0, 5.0]
    """
    level = level_of(timesteps, total, levels)
    return [float(losses[level == one].mean()) if bool((level == one).any()) else None for one in range(levels)]
