"""Whether a sampler can take a number of steps: the first one has to begin where there is next to nothing but noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPACED = ("DDIMScheduler", "DDPMScheduler")  # others that know the word "leading" count otherwise
MOST_LEFT_OUT = 0.05  # of the noise levels: 50 and 200 of 1,000 leave out none, 300 a tenth


def check_steps(kind: str, config: Mapping[str, Any], steps: int, name: str = "steps") -> None:
    """See that steps begin at the top of the noise levels.

    With the spacing ``"leading"``, which AudioLDM's models have, n steps of T levels lie ``T // n`` levels apart, from the
    offset up: what is left over of T is left out at the top, and with T steps the first lies beyond the last level.

    Parameters
    ----------
    kind, config
        Class of one of diffusers' schedulers and its configuration. Where it is none of :data:`SPACED` or has another spacing,
        there is nothing to see.
    steps
        Of sampling.
    name
        What messages call them.

    Raises
    ------
    ValueError
        They do not; the message names the nearest numbers that do.

    Examples
    --------
    >>> levels = {"timestep_spacing": "leading", "num_train_timesteps": 1000, "steps_offset": 1}
    >>> check_steps("DDIMScheduler", levels, 200)
    >>> check_steps("DDIMScheduler", levels, 300)
    Traceback (most recent call last):
    ValueError: steps = 300 would begin at noise level 898 of 0 to 999, and this model's begin with noise alone; take 250 or 317
    """
    total = int(config.get("num_train_timesteps") or 0)
    if kind not in SPACED or config.get("timestep_spacing", "leading") != "leading" or not total:
        return
    offset = int(config.get("steps_offset") or 0)
    if _reaches(steps, total, offset):
        return
    fitting = [each for each in range(1, total + 1) if _reaches(each, total, offset)]
    near = [*[each for each in fitting if each < steps][-1:], *[each for each in fitting if each > steps][:1]]
    advice = " or ".join(f"{each:,}" for each in near)
    first = (steps - 1) * (total // steps) + offset
    where = (
        f"begin at noise level {first:,} of 0 to {total - 1:,}"
        if steps <= total
        else f"be more than its {total:,} noise levels"
    )
    raise ValueError(f"{name} = {steps:,} would {where}, and this model's begin with noise alone; take {advice}")


def _reaches(steps: int, total: int, offset: int) -> bool:
    apart = total // steps
    return apart > 0 and (steps - 1) * apart + offset < total and total - steps * apart <= MOST_LEFT_OUT * total
