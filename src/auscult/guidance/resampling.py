"""Sound at another rate, differentiable.

Source: J. O. Smith, "Digital Audio Resampling Home Page", https://ccrma.stanford.edu/~jos/resample/ (band-limited
interpolation with a windowed sinc); the Kaiser window is that of Kaiser & Schafer, 1980.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812

from ..devices import float32_products

CROSSINGS = 48  # of the sinc on each side
ROLLOFF = 0.95  # of the lower rate's half, where the filter has fallen by 6 dB
BETA = 12.0  # of the Kaiser window: 118 dB of attenuation


def resample(waves: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """Sound at another rate: ``y(m) = sum_n x(n) h(m from / to - n)``, h a sinc below the lower rate's half.

    Parameters
    ----------
    waves
        (B, time), float32 or float64.
    from_hz, to_hz
        Rates.

    Returns
    -------
    Tensor (B, ceil(time * to_hz / from_hz))
        Of the same type; sample 0 lies where it lay.

    Raises
    ------
    ValueError
        Another shape, or a rate that is not positive.

    Examples
    --------
    >>> wave = torch.sin(2 * torch.pi * 440 * torch.arange(44_100) / 44_100)[None]
    >>> resample(wave, 44_100, 16_000).shape
    torch.Size([1, 16000])
    """
    if waves.ndim != 2:
        raise ValueError(f"expected waveforms of shape (B, time), got {tuple(waves.shape)}")
    if from_hz < 1 or to_hz < 1:
        raise ValueError(f"rates should be positive, got {from_hz} and {to_hz} Hz")
    if from_hz == to_hz:
        return waves
    common = math.gcd(from_hz, to_hz)
    old, new = from_hz // common, to_hz // common
    kernels = _kernels(old, new).to(waves)
    reach = (kernels.shape[1] - old) // 2
    wanted = -(-waves.shape[1] * new // old)
    steps = -(-wanted // new)
    behind = max(0, (steps - 1) * old + kernels.shape[1] - reach - waves.shape[1])
    with float32_products(tf32=False):
        phases = F.conv1d(F.pad(waves, (reach, behind))[:, None], kernels[:, None], stride=old)
    return phases[:, :, :steps].mT.flatten(1)[:, :wanted]


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> torch.Tensor:
    """(new, taps) float64: for each of ``new`` samples made of ``old``, the weights of the samples around them."""
    cutoff = ROLLOFF * min(1.0, new / old)  # in units of half the old rate
    reach = math.ceil(CROSSINGS / cutoff)
    at = torch.arange(-reach, old + reach, dtype=torch.float64)
    distance = at - torch.arange(new, dtype=torch.float64)[:, None] * old / new
    inside = (1 - (distance * cutoff / CROSSINGS).square()).clamp(min=0)
    window = torch.where(inside > 0, torch.special.i0(BETA * inside.sqrt()), 0.0) / torch.special.i0(
        torch.tensor(BETA).double()
    )
    kernels = torch.sinc(cutoff * distance) * window
    return kernels / kernels.sum(1, keepdim=True)  # a constant stays what it is
