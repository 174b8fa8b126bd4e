"""Away from a whole neighborhood of references, not from the nearest one alone.

The vectors of the k nearest references span a subspace. The volume that they span together with a sample's own vector e is a
constant times the length of the part of e that is orthogonal to them, so the sample gains volume where
``log ||e - Q Q' e||`` rises; Q is an orthonormal basis of the neighbors, computed once. Where a training set holds a clip many
times over, leaving one copy means to arrive at the next: a subspace has no next.

Source: the volume guidance of GRAM, a fork of the released code of Messina et al., "Mitigating data replication in
text-to-audio generative diffusion models through anti-memorization guidance", 2025. Deviations: a threshold, per sample, and
any units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .references import units_of
from .rule import UNITS, Units, dissimilarity_shift
from .schedule import CustomSchedule, Schedule, threshold
from .terms import Correction, Moment, Source, norms, rows_like

if TYPE_CHECKING:
    from .index import Nearest, ReferenceIndex

RIDGE = 1e-6  # added to the squared length under the logarithm, whose slope has no end where a sample is in the span
ROUNDING = 1e-6  # of a unit vector in float32
SPAN = 1e-6  # neighbors that differ by less than this share span no direction of their own
NOTHING_TO_COMPARE = "the index is empty"
NO_SHARE = "the prompt changes nothing, and the strength is a share of that"
IN_SPAN = "the sample lies in the span of its neighbors, where no direction leads out more than another"


def orthonormal_basis(vectors: torch.Tensor) -> torch.Tensor:
    """Directions that span the rows.

    Parameters
    ----------
    vectors
        (k, D).

    Returns
    -------
    Tensor
        (r, D) float64, orthonormal; r is less than k where rows depend on each other, as copies of one clip do.

    Examples
    --------
    >>> orthonormal_basis(torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])).abs()
    tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    _, lengths, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
    return directions[lengths > SPAN * lengths[0]]


def log_distance(vector: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """``1/2 log(||e - Q Q' e||^2 + 1e-6)``: the log-volume of neighbors and vector, less that of the neighbors.

    Parameters
    ----------
    vector
        e, (D,), of unit length.
    basis
        Q', (r, D), see :func:`orthonormal_basis`.

    Returns
    -------
    Tensor
        Scalar float64; autograd goes through it.

    Examples
    --------
    >>> basis = orthonormal_basis(torch.eye(3)[:1])
    >>> [round(log_distance(torch.tensor(vector), basis).item(), 3) for vector in ([0.0, 1.0, 0.0], [0.8, 0.6, 0.0])]
    [0.0, -0.511]
    """
    e = vector.double()
    outside = e - basis.T @ (basis @ e)
    return 0.5 * torch.log(outside.square().sum() + RIDGE)


class _Neighborhood(NamedTuple):
    """The references that a sample is kept away from: their rows in the index, and their basis (r, D)."""

    rows: frozenset[int]
    basis: torch.Tensor


@dataclass(frozen=True)
class SubspaceRepulsion:
    """Move a sample out of the span of its k nearest references, at steps where it is too close to one of them.

    A sample's neighbors are those of the first step at which it is too close, and stay so; only when it comes too close to a
    reference that is not among them are they taken anew.

    Attributes
    ----------
    index
        Of references.
    descriptor
        The latent descriptor that the index was made with.
    k
        Neighbors; fewer than a vector has dimensions.
    strength
        At least 0; 0 watches only. In ``"norm"`` units a share of what classifier-free guidance moves x0.
    low, high, schedule
        Of the similarity above which the term acts, see :func:`~auscult.guidance.schedule.threshold`.
    units
        What ``strength`` counts, see :func:`~auscult.guidance.rule.dissimilarity_shift`.
    source
        Which prediction of x0 is described: of the condition, or the guided one.

    Raises
    ------
    ValueError
        A setting is out of range.
    DescriptorMismatchError
        The index was made with another descriptor.
    """

    index: ReferenceIndex
    descriptor: Any
    k: int = 8
    strength: float = 1.0
    low: float = 0.4
    high: float = 0.5
    schedule: Schedule | CustomSchedule = "progress"
    units: Units = "norm"
    source: Source = "cond"

    def __post_init__(self) -> None:
        self.index.check(self.descriptor)
        if len(self.index) and not 1 <= self.k < self.index.vectors.shape[1]:
            raise ValueError(
                f"k should be at least 1 and below the {self.index.vectors.shape[1]} dimensions of a vector, since so many "
                f"neighbors span everything; got {self.k}"
            )
        if not self.strength >= 0:
            raise ValueError(f"strength should be at least 0, got {self.strength:g}")
        if self.units not in UNITS:
            raise ValueError(f"units should be one of {', '.join(UNITS)}, got {self.units!r}")

    @property
    def name(self) -> str:
        return "subspace repulsion"

    def __call__(self, moment: Moment) -> Correction:
        if not len(self.index):
            count = len(moment)
            unknown: dict[str, list[Any]] = {
                "similarity": [None] * count,
                "reason": [NOTHING_TO_COMPARE] * count,
                "fired": [False] * count,
            }
            return Correction(facts=unknown)
        x0 = moment.x0(self.source)
        with torch.no_grad():
            nearest = self.index.nearest(self.descriptor.describe(x0, step=moment.number), min(self.k, len(self.index)))
        limit = self._limit(moment)
        fired = nearest.similarity[:, 0] > limit
        facts = self._facts(nearest, limit, fired)
        rows = fired.nonzero().flatten()
        if not len(rows) or not self.strength or moment.coefficients.q == 0:  # q of 0: the output has no say in x0
            return Correction(facts=facts)
        gradient = self._gradient(moment, x0[rows], self._bases(moment, nearest, rows))
        return self._correction(moment, rows, gradient, facts)

    def _limit(self, moment: Moment) -> float:
        at = moment.coefficients
        place = {"step": moment.number, "steps": moment.total}
        return threshold(self.schedule, self.low, self.high, sigma=at.sigma, alpha_bar=at.alpha_bar, **place)

    def _facts(self, nearest: Nearest, limit: float, fired: torch.Tensor) -> dict[str, list[Any]]:
        first = nearest.rows[:, 0].tolist()
        return {
            "similarity": nearest.similarity[:, 0].tolist(),
            "neighbor": [self.index.ids[row] for row in first],
            "neighbor_caption": [self.index.captions[row] for row in first],
            "threshold": [limit] * len(first),
            "fired": fired.tolist(),
            "reason": [""] * len(first),
        }

    def _bases(self, moment: Moment, nearest: Nearest, rows: torch.Tensor) -> list[torch.Tensor]:
        """One per fired row: as it was, unless the nearest reference is a new one."""
        kept: dict[int, _Neighborhood] = moment.state.setdefault(self.name, {})
        for row in rows.tolist():
            near = nearest.rows[row]
            if row not in kept or int(near[0]) not in kept[row].rows:
                vectors = self.index.vectors[near.to(self.index.vectors.device)].to(near.device)
                kept[row] = _Neighborhood(frozenset(near.tolist()), orthonormal_basis(vectors))
        return [kept[row].basis for row in rows.tolist()]

    def _gradient(self, moment: Moment, x0: torch.Tensor, bases: list[torch.Tensor]) -> torch.Tensor:
        """Of the log-distance by x0, (n, ...); zero for those in the span, whose slope is one of rounding."""
        with torch.inference_mode(False), torch.enable_grad():
            # a clone: a tensor made in inference mode could not carry a gradient
            leaf = x0.detach().float().clone().requires_grad_()
            vectors = units_of(self.descriptor.describe(leaf, step=moment.number).double(), self.index.center)
            distances = torch.stack([log_distance(vector, basis) for vector, basis in zip(vectors, bases, strict=True)])
            (gradient,) = torch.autograd.grad(distances.sum(), leaf)
        outside = (2 * distances.detach()).exp() - RIDGE
        return torch.where(rows_like(outside > ROUNDING**2, gradient), gradient, torch.zeros_like(gradient))

    def _correction(
        self, moment: Moment, rows: torch.Tensor, gradient: torch.Tensor, facts: dict[str, list[Any]]
    ) -> Correction:
        at = moment.coefficients
        guidance = None
        if moment.u is not None:
            guidance = rows_like(moment.scale[rows], gradient) * at.q * moment.direction[rows]
        # away: up the distance, so the rule, which goes down its gradient, is given the opposite
        moved = dissimilarity_shift(
            -gradient, at, self.strength, self.units, of="x0", guidance=guidance, estimate=moment.x0(self.source)[rows]
        )
        lengths = norms(gradient)
        acts = torch.zeros(len(moment), dtype=torch.bool, device=gradient.device)
        acts[rows] = norms(moved) > 0
        shift = torch.zeros_like(moment.guided)
        shift[rows] = (moved / at.q).to(shift.dtype)
        facts["gradient_norm"] = [None] * len(moment)
        facts["shift_ratio"] = [None] * len(moment)
        for place, row in enumerate(rows.tolist()):
            facts["gradient_norm"][row] = float(lengths[place])
            if guidance is not None and norms(guidance)[place] > 0:
                facts["shift_ratio"][row] = float(norms(moved)[place] / norms(guidance)[place])
            if not acts[row]:
                facts["reason"][row] = NO_SHARE if lengths[place] > 0 else IN_SPAN
        return Correction(shift if bool(acts.any()) else None, acts if bool(acts.any()) else None, facts)
