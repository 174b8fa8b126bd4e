"""What a step of a sampler looks like to guidance, and what a term of guidance answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

if TYPE_CHECKING:
    from .coefficients import Coefficients

Source = Literal["cond", "guided"]
PredictOthers = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]
PredictAgain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Moment:
    """One step of a sampler, just before it is taken, for the B samples of a batch.

    Attributes
    ----------
    number, total
        Of the step, from 0, and how many there will be.
    timestep
        As the scheduler counts it.
    coefficients
        a, b, p and q of this step: ``x_t = a x0 + b eps`` and ``x0 = p x_t + q output``.
    x_t
        Samples (B, ...) float32 in the scheduler's own coordinates.
    guided
        What the scheduler is about to be given, (B, ...) float32.
    u, c
        Predictions (B, ...) float32 without and with the condition; u is None where the pipeline runs without classifier-free
        guidance, and then c is ``guided``.
    scale
        s0 of classifier-free guidance, (B,) float32: ``guided = u + s0 direction``; 1 where there is none.
    direction
        (B, ...): c - u, or what the pipeline's own combination makes of it.
    degenerate
        (B,) bool: u and c are equal, so that no scale can be read off.
    predict_others
        Row numbers (n,), n captions -> predictions (n, ...) for these rows with other captions; None where the adapter cannot
        encode captions.
    predict_again
        Samples (n, ...) that carry a gradient and row numbers (n,) -> conditional predictions (n, ...), with autograd.
    state
        What a term remembers between steps; emptied when the sampler begins anew.
    """

    number: int
    total: int
    timestep: float
    coefficients: Coefficients
    x_t: torch.Tensor
    guided: torch.Tensor
    u: torch.Tensor | None
    c: torch.Tensor
    scale: torch.Tensor
    direction: torch.Tensor
    degenerate: torch.Tensor
    predict_others: PredictOthers | None = None
    predict_again: PredictAgain | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x_t)

    @property
    def fraction(self) -> float:
        """Of the sampler's steps that lie behind, 0 to below 1."""
        return self.number / self.total

    def x0(self, source: Source = "cond") -> torch.Tensor:
        """The clean samples that a prediction means, (B, ...): ``p x_t + q output`` of c, or of what guidance makes of it."""
        output = self.c if source == "cond" else self.guided
        clean: torch.Tensor = self.coefficients.x0(self.x_t, output)
        return clean


@dataclass(frozen=True)
class Correction:
    """What a term wants changed.

    Attributes
    ----------
    shift
        (B, ...) float32, to be added to the network's raw output; None: nothing anywhere.
    acts
        (B,) bool: the rows in which ``shift`` is meant; all others stay what they are to the last bit.
    facts
        By name of a trace's column, a value per row.
    """

    shift: torch.Tensor | None = None
    acts: torch.Tensor | None = None
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class GuidanceTerm(Protocol):
    """Something that steers a sampler, step by step."""

    @property
    def name(self) -> str:
        """What traces and messages call it."""

    def __call__(self, moment: Moment) -> Correction:
        """What to change in this step."""


def rows_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (B,) shaped so that they multiply (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def norms(values: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row of (B, ...): (B,)."""
    return values.flatten(1).norm(dim=1)
