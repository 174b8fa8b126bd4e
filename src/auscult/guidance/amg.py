"""Anti-memorization guidance as a term: what a sample is becoming is compared with references, and led away from the nearest.

Sources: Chen, Liu, Xu, "Towards Memorization-Free Diffusion Models", CVPR 2024; Messina et al., "Mitigating data replication in
text-to-audio generative diffusion models through anti-memorization guidance", 2025.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from .attach import Run, attach
from .index import ReferenceIndex
from .rule import UNITS, Units, caption_shift, dissimilarity_shift, spend
from .schedule import SCHEDULES, CustomSchedule, Schedule, threshold
from .terms import Correction, Moment, Source, norms, rows_like

SHARPNESS = 20.0  # of the soft maximum over several neighbors: a tenth of similarity is a factor of e^2 in weight

DEGENERATE = "the prompt changes nothing: no scale can be read off"
NO_GUIDANCE = "no classifier-free guidance: only the dissimilarity term acts"
NO_CAPTION = "the neighbor has no caption"
NO_GRADIENT = "the gradient is zero"
NO_SAY = "the output has no say in the clean sample at this step"


@dataclass(frozen=True)
class AmgConfig:
    """Settings of anti-memorization guidance.

    Attributes
    ----------
    despecification
        c1 of the papers, at least 0: lowers guidance by the prompt. At ``(s0 - 1) / similarity`` nothing is left to take away,
        with s0 the guidance scale: a larger c1 has no further effect, and leaves deduplication no room.
    deduplication
        c2: guides away from the caption of the nearest reference, so the index has to know captions.
    dissimilarity
        c3: moves the sample down the gradient of its similarity. What it counts is said by ``units``.
    threshold_low, threshold_high
        lambda: similarities between which the threshold lies. They belong to a descriptor: measure them on your own
        references, whose similarities to each other are what must not fire.
    schedule
        How the threshold goes from low to high, see :func:`~auscult.guidance.schedule.threshold`.
    units
        See :func:`~auscult.guidance.rule.dissimilarity_shift`; ``"paper"`` and ``"released"`` need another c3 for every model,
        and ``"estimate"`` one below 1, or thereabouts.
    gradient
        ``"x0"``: by the clean sample that is predicted, without a backward pass through the denoiser. ``"denoiser"``: by the
        noisy sample through it, as the papers have it.
    x0_source
        Whether the predicted clean sample is that of the conditional branch or of guidance, as CVPR's equation 12 has it. The
        gradient of ``"denoiser"`` is that of the conditional branch in either case.
    nearest
        Neighbors that are led away from, by a soft maximum of their similarities; the trigger and the caption are of the first.
    every
        Look only at every so many steps, and keep what was decided in between.
    start, stop
        Fractions of the steps between which it looks at all.
    """

    despecification: float = 1.0
    deduplication: float = 4.0
    dissimilarity: float = 3.0
    threshold_low: float = 0.4
    threshold_high: float = 0.5
    schedule: Schedule | CustomSchedule = "alpha_bar"
    units: Units = "norm"
    gradient: Literal["x0", "denoiser"] = "x0"
    x0_source: Source = "cond"
    nearest: int = 1
    every: int = 1
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        for number, name in enumerate(("despecification", "deduplication", "dissimilarity"), 1):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} (c{number}) should be at least 0 (0 switches it off), got {getattr(self, name)!r}")
        if not self.threshold_low <= self.threshold_high:
            raise ValueError(f"threshold_low {self.threshold_low:g} should not be above threshold_high {self.threshold_high:g}")
        for name, allowed in (("units", UNITS), ("gradient", ("x0", "denoiser")), ("x0_source", ("cond", "guided"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} should be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise ValueError(f"schedule should be one of {', '.join(SCHEDULES)} or a function, got {self.schedule!r}")
        for name in ("nearest", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, got {getattr(self, name)!r}")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"expected fractions 0 <= start < stop <= 1, got {self.start:g} and {self.stop:g}")


class _Look(NamedTuple):
    """The how manieth look at a call's samples, from 0; similarity and rows (B, k) of the nearest references."""

    number: int
    similarity: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class AntiMemorization:
    """Anti-memorization guidance with an index of references; a :class:`~auscult.guidance.terms.GuidanceTerm`.

    Per sample: the similarity of the predicted clean sample to its nearest reference opens the gate where it is above the
    threshold of the step; then despecification, caption deduplication and dissimilarity act, see
    :mod:`~auscult.guidance.rule`. The gradient, and the prediction for the neighbor's caption, are computed only for samples
    whose gate is open. It draws no random numbers.

    Parameters
    ----------
    index
        References that must not be replicated. Empty: nothing ever fires.
    descriptor
        A latent descriptor, the one that the index was made with.
    config
        See :class:`AmgConfig`; with all three strengths 0 it detects only.

    Raises
    ------
    DescriptorMismatchError
        The index was made with another descriptor.
    ValueError
        Deduplication is wanted, and the index knows no captions.
    """

    index: ReferenceIndex
    descriptor: Any
    config: AmgConfig = field(default_factory=AmgConfig)

    name = "amg"

    def __post_init__(self) -> None:
        self.index.check(self.descriptor)
        if self.config.deduplication and len(self.index) and not any(self.index.captions):
            raise ValueError(
                "deduplication leads away from the captions of references, and this index knows none; make it of a corpus with "
                "captions, or set deduplication=0"
            )

    def attach(self, pipe: Any = None, **settings: Any) -> AbstractContextManager[Run]:
        """Steer a pipeline while the context lasts; see :func:`~auscult.guidance.attach.attach`."""
        return attach(pipe, self, **settings)

    @property
    def needs_guidance(self) -> bool:
        """Whether a sampler without classifier-free guidance is refused: nothing could act, or not as it is meant."""
        config = self.config
        if config.dissimilarity:
            return config.units == "norm"
        return config.despecification + config.deduplication > 0

    @property
    def lowers_scale(self) -> bool:
        """Whether it takes its share from the scale of guidance."""
        return self.config.despecification + self.config.deduplication > 0 and len(self.index) > 0

    @property
    def needs_captions(self) -> bool:
        """Whether it predicts with other captions."""
        return self.config.deduplication > 0 and len(self.index) > 0

    def __call__(self, moment: Moment) -> Correction:
        """What to change in this step."""
        config = self.config
        if not len(self.index) or not config.start <= moment.fraction < config.stop:
            return Correction(facts={"similarity": [None] * len(moment), "fired": [False] * len(moment)})
        x0 = moment.x0(config.x0_source)
        seen, fresh = self._looked_up(moment, x0)
        similarity, rows = seen.similarity, seen.rows
        limit = self._limit(moment)
        fired = (similarity[:, 0] > limit) & ~moment.degenerate
        facts: dict[str, list[Any]] = {
            "similarity": similarity[:, 0].tolist() if fresh else [None] * len(moment),
            "neighbor": [self.index.ids[row] for row in rows[:, 0].tolist()],
            "neighbor_caption": [self.index.captions[row] for row in rows[:, 0].tolist()],
            "threshold": [limit] * len(moment),
            "fired": fired.tolist(),
            "reason": [DEGENERATE if each else "" for each in moment.degenerate.tolist()],
        }
        if not fired.any() or not (config.despecification or config.deduplication or config.dissimilarity):
            return Correction(facts=facts)
        at = fired.nonzero()[:, 0]
        shift = torch.zeros_like(moment.guided)
        shift[at] = self._captions_part(moment, at, similarity[at, 0], facts)
        if config.dissimilarity and not moment.coefficients.q:
            _note(facts, at, NO_SAY)
        elif config.dissimilarity:
            shift[at] += self._dissimilarity_part(moment, at, x0, seen, facts)
        return Correction(shift, fired, facts)

    def _looked_up(self, moment: Moment, x0: torch.Tensor) -> tuple[_Look, bool]:
        """What was found in this step, or by the last look before it; and whether it looked."""
        held: _Look | None = moment.state.get(self.name)
        if held is not None and moment.number % self.config.every:
            return held, False
        # looks are counted, not steps, or some windows would never have their turn where only every so many steps look
        number = 0 if held is None else held.number + 1
        with torch.no_grad():
            nearest = self.index.nearest(self.descriptor.describe(x0, number), min(self.config.nearest, len(self.index)))
        found = _Look(number, nearest.similarity.to(x0.device), nearest.rows.to(x0.device))
        moment.state[self.name] = found
        return found, True

    def _limit(self, moment: Moment) -> float:
        return threshold(
            self.config.schedule,
            self.config.threshold_low,
            self.config.threshold_high,
            step=moment.number,
            steps=moment.total,
            sigma=moment.coefficients.sigma,
            alpha_bar=moment.coefficients.alpha_bar,
        )

    def _captions_part(
        self, moment: Moment, at: torch.Tensor, similarity: torch.Tensor, facts: dict[str, list[Any]]
    ) -> torch.Tensor:
        """Despecification and deduplication, for the fired rows."""
        if moment.u is None:
            _note(facts, at, NO_GUIDANCE)
            return torch.zeros_like(moment.guided[at])
        config, fired = self.config, torch.ones_like(at, dtype=torch.bool)
        s1, s2 = spend(similarity, fired, moment.scale[at], config.despecification, config.deduplication)
        captions = [facts["neighbor_caption"][row] for row in at.tolist()]
        unnamed = torch.tensor([not caption for caption in captions], device=at.device)
        _note(facts, at[unnamed & (s2 > 0)], NO_CAPTION)
        s2 = torch.where(unnamed, torch.zeros_like(s2), s2)
        others, wanted = None, (s2 > 0).nonzero()[:, 0]
        if len(wanted) and moment.predict_others is not None:
            others = moment.u[at].clone()
            others[wanted] = moment.predict_others(at[wanted], [captions[row] for row in wanted.tolist()])
        for name, values in (("s1", s1), ("s2", s2)):
            facts[name] = _spread(values, at, len(moment))
        return caption_shift(moment.direction[at], s1, s2, others, moment.u[at])

    def _dissimilarity_part(
        self, moment: Moment, at: torch.Tensor, x0: torch.Tensor, seen: _Look, facts: dict[str, list[Any]]
    ) -> torch.Tensor:
        """The dissimilarity term on raw outputs, for the fired rows."""
        config, coefficients = self.config, moment.coefficients
        gradient = self._gradient(moment, at, x0, seen)
        guidance = None
        if moment.u is not None:
            guidance = coefficients.q * rows_like(moment.scale[at], gradient) * moment.direction[at]
        of: Literal["x0", "x_t"] = "x0" if config.gradient == "x0" else "x_t"
        moved = dissimilarity_shift(
            gradient, coefficients, config.dissimilarity, config.units, of=of, guidance=guidance, estimate=x0[at].detach()
        )
        length = norms(gradient)
        _note(facts, at[length == 0], NO_GRADIENT)
        facts["gradient_norm"] = _spread(length, at, len(moment), nothing=None)
        if guidance is not None:
            share = norms(moved) / norms(guidance).clamp(min=torch.finfo(torch.float32).tiny)
            facts["shift_ratio"] = _spread(share, at, len(moment), nothing=None)
        return moved / coefficients.q

    def _gradient(self, moment: Moment, at: torch.Tensor, x0: torch.Tensor, seen: _Look) -> torch.Tensor:
        """Of the similarity, in the window that was looked at, to the references found there, by x0 or by x_t: (n, ...)."""
        with torch.enable_grad():
            if self.config.gradient == "x0":
                leaf = clean = x0[at].detach().clone().requires_grad_(True)
            else:
                if moment.predict_again is None:
                    raise ValueError("gradient 'denoiser' needs an adapter through which the denoiser can be called again")
                leaf = moment.x_t[at].detach().clone().requires_grad_(True)
                clean = moment.coefficients.x0(leaf, moment.predict_again(leaf, at))
            each = self.index.similarity(self.descriptor.describe(clean, seen.number), seen.rows[at])
            soft = torch.logsumexp(SHARPNESS * each, dim=1) / SHARPNESS
            (gradient,) = torch.autograd.grad(soft.sum(), leaf)
        return gradient.detach()


def _spread(values: torch.Tensor, at: torch.Tensor, count: int, *, nothing: float | None = 0.0) -> list[float | None]:
    """Values of some rows in a list of all."""
    spread: list[float | None] = [nothing] * count
    for row, value in zip(at.tolist(), values.tolist(), strict=True):
        spread[row] = value
    return spread


def _note(facts: dict[str, list[Any]], rows: torch.Tensor, reason: str) -> None:
    for row in rows.tolist():
        facts["reason"][row] = "; ".join(filter(None, (facts["reason"][row], reason)))
