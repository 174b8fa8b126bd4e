"""Settings of a guard, and what contradicts itself in them before hours of work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..audit_config import AuditConfig
from ..configuration import make_config
from ..generation.order import GenerateConfig
from .amg import AmgConfig
from .guided import FAMILY, LatentChoice, LatentName

THRESHOLDS = ("threshold_low", "threshold_high")


@dataclass(frozen=True)
class GuardConfig:
    """Settings of a guard.

    Attributes
    ----------
    descriptor
        That guidance compares with, see :class:`~auscult.guidance.guided.LatentChoice`.
    audit
        The descriptor that decides what is a copy; of another family than the guiding one, which guidance has learned to evade.
    attempts
        How often a clip that is flagged is made again.
    strengthen
        Factor of guidance's strengths from attempt to attempt; thresholds are divided by it.
    alpha
        P-value up to which a clip is made again, whatever the other clips are: the share of innocent clips that are, too.
        Where there are too few null scores for it, clips that score above all of them are.
    tau, fdr
        Of the audit, see :class:`~auscult.comparison.AuditConfig`; where one is given it decides alone.
    clap_model
        For the descriptor ``clap``.
    """

    descriptor: LatentName = "latents"
    audit: Literal["contrast", "mel", "clap"] = "contrast"
    attempts: int = 2
    strengthen: float = 1.5
    alpha: float = 0.01
    tau: str | float | None = None
    fdr: float | None = None
    clap_model: str = LatentChoice.clap_model

    def __post_init__(self) -> None:
        guided = FAMILY[self.descriptor]
        if guided == self.audit:
            family = "" if self.descriptor == guided else f", which hears what {guided} does,"
            others = [name for name in ("contrast", "mel", "clap") if name != guided]
            raise ValueError(
                f"guidance compares by {self.descriptor}{family} and so would the audit: what evades the one evades the "
                f"other, and a copy would pass; audit by {' or '.join(others)}"
            )
        if not 0 <= self.attempts <= 20:
            raise ValueError(f"attempts should be 0 to 20, got {self.attempts}")
        if not self.strengthen >= 1:
            raise ValueError(f"strengthen should be at least 1, got {self.strengthen:g}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha should be above 0 and below 1, got {self.alpha:g}")
        self.of_audit()

    @property
    def level(self) -> float | None:
        """P-value up to which clips are made again; None: the audit alone decides."""
        return self.alpha if self.tau is None and self.fdr is None else None

    def of_audit(self) -> AuditConfig:
        """Settings of the audits."""
        return AuditConfig(descriptor=self.audit, tau=self.tau, fdr=self.fdr)


def checked_strengths(amg: AmgConfig | Mapping[str, Any] | None, config: GenerateConfig) -> dict[str, Any]:
    """Settings of guidance as far as they are given, checked."""
    given = dataclasses.asdict(amg) if isinstance(amg, AmgConfig) else dict(amg or {})
    low, high = (given.get(name) for name in THRESHOLDS)
    known = {"threshold_low": low if low is not None else high, "threshold_high": high if high is not None else low}
    checked = make_config(AmgConfig, {**given, **{name: value for name, value in known.items() if value is not None}})
    if config.guidance_scale <= 1:
        if checked.dissimilarity == 0:
            raise ValueError("without classifier-free guidance only dissimilarity acts; give it, or a guidance_scale above 1")
        if checked.units == "norm":
            raise ValueError(
                "units 'norm' count in shares of classifier-free guidance, and there is none with a guidance_scale of 1; give "
                "units 'estimate' or 'paper' and a dissimilarity for it, or a guidance_scale above 1"
            )
    return given
