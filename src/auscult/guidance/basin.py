"""Less classifier-free guidance at first: until a sample has left the basin that draws a prompt to one memorized clip.

Early in sampling, the guidance of a memorized prompt points to its training clip from nearly everywhere; a sample that was led
elsewhere until this attraction ends is free of it. Both terms here lower the scale until a step of transition and leave it
alone after. They need no references and cost nothing. The later the transition, the less a sample follows its prompt.

Source: Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .signals import text_norm
from .terms import Correction, Moment, rows_like
from .trace import TraceRow

NO_GUIDANCE = "the pipeline runs without classifier-free guidance"
DEGENERATE = "the prompt changes nothing, so the scale of guidance is not known"
NOT_ABOVE = "the scale of guidance is not above what the term would set"


class _Watch(NamedTuple):
    """A curve per row, as far as it has been seen.

    Attributes
    ----------
    last
        Its last value, (B,).
    falling
        Whether it last moved down, (B,) bool.
    over
        Whether it has risen after a fall, (B,) bool.
    """

    last: torch.Tensor
    falling: torch.Tensor
    over: torch.Tensor


def _watched(seen: _Watch | None, values: torch.Tensor) -> _Watch:
    """The next values (B,) of the curves; a plateau is part of the fall before it."""
    if seen is None:
        never = torch.zeros_like(values, dtype=torch.bool)
        return _Watch(values, never, never)
    falling = torch.where(values == seen.last, seen.falling, values < seen.last)
    return _Watch(values, falling, seen.over | (seen.falling & (values > seen.last)))


def transitions(norms: Sequence[Sequence[float]]) -> list[int | None]:
    """The step at which each curve has passed its first local minimum.

    Parameters
    ----------
    norms
        One curve per sample: the text-conditional norm at each step, as the column ``text_norm`` of a trace has it.

    Returns
    -------
    list of int
        The first step at which a curve rises after a fall, one step behind the minimum: earlier nobody can know that it was
        one. None where there is none. A rise from the start is no minimum: in the coordinates of samplers that begin at a
        very high noise level, every curve rises at first.

    References
    ----------
    Jain et al. 2025, dynamic transition point.

    Examples
    --------
    >>> transitions([[5.0, 3.0, 2.0, 4.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    [3, None]
    """
    found: list[int | None] = []
    for curve in norms:
        seen, at = None, None
        for step, value in enumerate(curve):
            seen = _watched(seen, torch.tensor([value], dtype=torch.float64))
            if bool(seen.over):
                at = step
                break
        found.append(at)
    return found


@dataclass(frozen=True)
class AttractionBasin:
    """A lower scale of guidance until a transition: ``guided + (before - s0) (c - u)``, which is ``u + before (c - u)``.

    Static (the default): until a share of the steps is done. The paper's settings for Stable Diffusion are
    ``before=0, until=0.5`` and ``before=-2, until=0.35``. :meth:`dynamic`: until each sample's own text-conditional norm has
    passed its first local minimum.

    Attributes
    ----------
    before
        The scale before the transition; 1 follows the prompt without amplifying it, 0 ignores it, below 0 leads away from it.
        Where the pipeline's own scale is not above it, nothing is changed.
    until
        The transition in shares of the steps, in [0, 1]; with ``own_minimum``, the latest one.
    own_minimum
        Whether each sample's first local minimum ends the lower scale. A sample that shows none is held until ``until``.

    Raises
    ------
    ValueError
        ``until`` is outside [0, 1].

    References
    ----------
    Jain et al. 2025, static and dynamic transition points. Deviation: steps are counted, not noise levels; both are the same
    where a sampler's timesteps are evenly spaced.

    Examples
    --------
    >>> AttractionBasin.dynamic()
    AttractionBasin(before=1.0, until=1.0, own_minimum=True)
    """

    before: float = 0.0
    until: float = 0.5
    own_minimum: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"until should be a share of the steps, from 0 to 1, got {self.until:g}")

    @classmethod
    def dynamic(cls, before: float = 1.0, latest: float = 1.0) -> AttractionBasin:
        """Until each sample's first local minimum, or ``latest`` where it has none by then."""
        return cls(before, latest, own_minimum=True)

    @property
    def name(self) -> str:
        return "attraction basin"

    @property
    def sets_scale(self) -> bool:
        """Yes: beside another term that takes from the same scale, both would take from all of it."""
        return True

    def __call__(self, moment: Moment) -> Correction:
        if moment.u is None:
            return _without_guidance(moment)
        inside = torch.full_like(moment.degenerate, moment.fraction < self.until)
        if self.own_minimum:
            seen = _watched(moment.state.get(self.name), text_norm(moment.u, moment.c, moment.coefficients))
            moment.state[self.name] = seen
            inside &= ~seen.over
        return _held(moment, inside, torch.full_like(moment.scale, self.before))


@dataclass(frozen=True)
class OppositeGuidance:
    """The user's own scale with its sign turned until the point that a run before has shown, for each sample its own.

    Attributes
    ----------
    points
        A step per row of the batch from which on guidance is as the pipeline has it; None: turned at no step.
    before
        The scale before; None takes ``-s0``, as published (-7.5 for 7.5).

    References
    ----------
    Jain et al. 2025, opposite guidance. As the paper describes it: the released script turns the sign at every step.

    Examples
    --------
    >>> OppositeGuidance.after([[5.0, 3.0, 4.0], [1.0, 2.0, 3.0]])
    OppositeGuidance(points=(2, None), before=None)
    """

    points: tuple[int | None, ...]
    before: float | None = None

    @classmethod
    def after(cls, norms: Sequence[Sequence[float]], before: float | None = None) -> OppositeGuidance:
        """From the curves of a run before of the same prompts and seeds, see :func:`transitions`."""
        return cls(tuple(transitions(norms)), before)

    @classmethod
    def after_run(cls, rows: Sequence[TraceRow], before: float | None = None) -> OppositeGuidance:
        """From the rows of a trace of one call.

        Raises
        ------
        ValueError
            The rows are of no call or of several, or lack norms.
        """
        calls = {row.call for row in rows}
        if len(calls) != 1:
            raise ValueError(f"expected the rows of one call of the pipeline, got those of {len(calls)}; choose by row.call")
        curves: dict[int, list[float]] = {}
        for row in sorted(rows, key=lambda row: (row.sample, row.step)):
            if row.text_norm is None:
                raise ValueError(f"step {row.step} of sample {row.sample} has no text_norm: it was sampled without guidance")
            curves.setdefault(row.sample, []).append(row.text_norm)
        return cls.after(list(curves.values()), before)

    @property
    def name(self) -> str:
        return "opposite guidance"

    @property
    def sets_scale(self) -> bool:
        """Yes: beside another term that takes from the same scale, both would take from all of it."""
        return True

    def __call__(self, moment: Moment) -> Correction:
        if len(self.points) != len(moment):
            raise ValueError(
                f"opposite guidance has points of {len(self.points)} samples, and the batch has {len(moment)}; "
                "take the run before with the same prompts and seeds"
            )
        if moment.u is None:
            return _without_guidance(moment)
        inside = torch.tensor([point is not None and moment.number < point for point in self.points])
        before = -moment.scale if self.before is None else torch.full_like(moment.scale, self.before)
        return _held(moment, inside.to(moment.degenerate.device), before)


def _held(moment: Moment, inside: torch.Tensor, before: torch.Tensor) -> Correction:
    """The scale (B,) in the rows that are inside (B,) bool, and can be lowered."""
    lower = moment.scale > before
    acts = inside & lower & ~moment.degenerate
    reasons = [
        DEGENERATE if nothing else "" if not held or can else NOT_ABOVE
        for nothing, held, can in zip(moment.degenerate.tolist(), inside.tolist(), lower.tolist(), strict=True)
    ]
    facts = {"fired": acts.tolist(), "reason": reasons}
    if not bool(acts.any()):
        return Correction(facts=facts)
    shift = rows_like(before - moment.scale, moment.direction) * moment.direction
    return Correction(torch.where(rows_like(acts, shift), shift, torch.zeros_like(shift)), acts, facts)


def _without_guidance(moment: Moment) -> Correction:
    return Correction(facts={"reason": [NO_GUIDANCE] * len(moment), "fired": [False] * len(moment)})
