"""The threshold of similarity over the steps of a sampler: low where a sample is still coarse, higher towards its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Schedule = Literal["alpha_bar", "progress", "constant"]
SCHEDULES = ("alpha_bar", "progress", "constant")
CustomSchedule = Callable[[int, int, float, float], float]
"""Step from 0, number of steps, sigma, alpha-bar -> threshold."""


def threshold(
    schedule: Schedule | CustomSchedule, low: float, high: float, *, step: int, steps: int, sigma: float, alpha_bar: float
) -> float:
    """The similarity above which guidance acts at a step.

    ``"alpha_bar"``: ``low + (high - low) alpha_bar^2``, as the released code of Messina et al. 2025 has it; a parabola in
    alpha-bar, so on schedules that are fine at high noise it stays at ``low`` for most steps and may never reach ``high``.
    ``"progress"``: ``low + (high - low) (step / (steps - 1))^2``, which means the same for every sampler.
    ``"constant"``: ``high``.

    Parameters
    ----------
    schedule
        One of these, or a function of step, steps, sigma and alpha-bar.
    low, high
        Similarities, ``low <= high``.
    step, steps
        Of the sampler, from 0.
    sigma, alpha_bar
        Noise in relation to signal, and the share of signal in the power, at this step.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        There is no such schedule.

    References
    ----------
    Chen et al., CVPR 2024, call it parabolic and give no closed form.

    Examples
    --------
    >>> [threshold("progress", 0.4, 0.5, step=n, steps=3, sigma=1.0, alpha_bar=0.5) for n in range(3)]
    [0.4, 0.42500000000000004, 0.5]
    >>> threshold("alpha_bar", 0.4, 0.5, step=0, steps=3, sigma=0.0, alpha_bar=1.0)
    0.5
    """
    if callable(schedule):
        return float(schedule(step, steps, sigma, alpha_bar))
    if schedule == "constant":
        return high
    if schedule == "alpha_bar":
        return low + (high - low) * alpha_bar**2
    if schedule == "progress":
        return low + (high - low) * (step / max(1, steps - 1)) ** 2
    raise ValueError(f"expected a schedule of {', '.join(SCHEDULES)} or a function, got {schedule!r}")
