"""Tables of a mitigation study's configuration that other studies do not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...guidance.amg import AmgConfig
from ...guidance.guided import LatentName
from ...guidance.rule import Units
from ...guidance.schedule import Schedule
from ...metrics.request import EvaluateConfig


@dataclass(frozen=True)
class StudyModel:
    """``[model]``: a model that is there already, instead of one that the study trains for each seed.

    Attributes
    ----------
    pipeline
        Its folder, or its name on the hub; its training clips are ``[data] source``. None: models are trained.
    duration_s
        Length of the clips that it is asked for.
    """

    pipeline: str | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.pipeline is not None and not (self.duration_s and self.duration_s > 0):
            raise ValueError("[model] duration_s should say how long the clips of the pipeline are to be, such as 10.0")


@dataclass(frozen=True)
class StudyGuidance:
    """``[guidance]``: the settings of full guidance, which all other arms change in one thing.

    Attributes
    ----------
    descriptor
        That guidance compares by, see :class:`~auscult.guidance.guided.LatentChoice`; no audit may hear what it hears.
    c1, c2, c3
        Strengths of despecification, caption deduplication and dissimilarity.
    threshold_low, threshold_high
        Of similarity. Where one is not given it is measured: on the training clips, or where these are fewer than 10 on other
        clips of the source (:func:`~auscult.guidance.thresholds.measured_thresholds`). Thresholds belong to the descriptor: for
        arms that are guided by another they are measured, even where they are given.
    schedule, units, gradient, nearest, every, stop
        See :class:`~auscult.guidance.amg.AmgConfig`.
    other_thresholds
        Low thresholds of further arms of full guidance; the high ones are 0.1 above.
    first_seed
        Added to a model's seed for the noise of sampling: what settings were chosen by should not be what judges them.
    """

    descriptor: LatentName = "latents"
    c1: float = 1.0
    c2: float = 4.0
    c3: float = 3.0
    threshold_low: float | None = None
    threshold_high: float | None = None
    schedule: Schedule = "alpha_bar"
    units: Units = "norm"
    gradient: Literal["x0", "denoiser"] = "x0"
    nearest: int = 1
    every: int = 1
    stop: float = 1.0
    other_thresholds: tuple[float, ...] = (0.2, 0.4, 0.6)
    first_seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.threshold_low, self.threshold_high
        if low is not None and high is not None and low > high:
            raise ValueError(f"[guidance] threshold_low {low:g} should not be above threshold_high {high:g}")
        if self.first_seed < 0 or len(set(self.other_thresholds)) < len(self.other_thresholds):
            raise ValueError("[guidance] first_seed should be at least 0, and other_thresholds each once")
        self.amg(0.0, 0.0)  # which checks the rest

    def amg(self, low: float, high: float) -> AmgConfig:
        """Full guidance, with the thresholds that were given or measured."""
        return AmgConfig(
            despecification=self.c1,
            deduplication=self.c2,
            dissimilarity=self.c3,
            threshold_low=low,
            threshold_high=high,
            schedule=self.schedule,
            units=self.units,
            gradient=self.gradient,
            nearest=self.nearest,
            every=self.every,
            stop=self.stop,
        )


@dataclass(frozen=True)
class StudySweeps:
    """``[sweeps]``: values of one setting of full guidance after the other, on the first seed, with fewer clips.

    Attributes
    ----------
    clips
        At most so many a value, the first of those of an arm.
    c1, c2, c3, threshold_low, schedule, nearest, every, stop
        Values; none: not asked. The high threshold stays 0.1 above the low one.
    """

    clips: int = 16
    c1: tuple[float, ...] = ()
    c2: tuple[float, ...] = ()
    c3: tuple[float, ...] = ()
    threshold_low: tuple[float, ...] = ()
    schedule: tuple[Schedule, ...] = ()
    nearest: tuple[int, ...] = ()
    every: tuple[int, ...] = ()
    stop: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"[sweeps] clips should be at least 1, got {self.clips}")
        for knob, values in self.asked.items():
            if len(values) < 2 or len(set(values)) < len(values):
                raise ValueError(f"[sweeps] {knob} should be two or more values, each once, got {list(values)}")

    @property
    def asked(self) -> dict[str, tuple[float | str, ...]]:
        """Values by knob, of those that are asked for."""
        return {knob: values for knob, values in vars(self).items() if knob != "clips" and values}


@dataclass(frozen=True)
class StudyQuality:
    """``[quality]``: what guidance costs, against real clips that no model has seen.

    Attributes
    ----------
    metrics
        Of ``auscult evaluate``.
    clap
        Folder or hub name of a CLAP model, by which ``clap_score`` is measured as well; None: that of ``[audits] clap``.
    reference
        Real clips; ``"sounds"`` are synthesized ones. None: clips of the source that no model is trained on and that guidance
        does not know; where fewer than ``least`` are left, nothing is measured.
    clips
        At most so many, where they are drawn or synthesized.
    least
        See ``reference``.
    """

    metrics: tuple[str, ...] = ("fd", "kad")
    clap: str | None = None
    reference: str | None = None
    clips: int = 200
    least: int = 20

    def __post_init__(self) -> None:
        if not self.metrics or min(self.clips, self.least) < 2:
            raise ValueError("[quality] metrics should name at least one, clips and least should be at least 2")
        try:
            EvaluateConfig(metrics=self.metrics)
        except ValueError as error:
            raise ValueError(f"[quality] metrics: {error}") from error


@dataclass(frozen=True)
class MitigationRates:
    """``[rates]``: amounts per second, for the plan, until they are measured; 0: not known."""

    training: float = 0.0
    generating: float = 0.0
    guiding: float = 0.0
    auditing: float = 0.0
    scoring: float = 0.0
    preparing: float = 0.0
