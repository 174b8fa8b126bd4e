"""What an evaluation says of a system: scores with intervals and brackets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .glossary import BRACKETS, METRICS, metric_of
from .intervals import Interval


@dataclass(frozen=True)
class Score:
    """One metric of one system.

    Attributes
    ----------
    metric
        As in ``METRICS``: ``fad``, ``kl_sigmoid``.
    backend
        Name of the features' backend, or its whole spec; empty where there is none.
    value, low, high
        The value and the ends of its 95 % interval, all finite; None where there is none.
    higher_is_better
        Which side is the better one; None: neither.
    floor, noise, silence, shuffled
        The same metric of sets that are known to be as good or as bad as can be (``BRACKETS``); None where there is none.
    n_generated, n_reference
        Clips that it was computed from.
    n_generated_frames, n_reference_frames
        Their frames; None where it is not of features.
    reason
        Why there is no value; None if there is one.
    note
        What a reader has to know of this value; empty if nothing.
    settings
        Beyond the backend, what it was measured with, by name, as JSON can hold it: systems compare only where it is equal.
    """

    metric: str
    backend: str
    value: float | None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None
    floor: float | None = None
    noise: float | None = None
    silence: float | None = None
    shuffled: float | None = None
    n_generated: int = 0
    n_reference: int = 0
    n_generated_frames: int | None = None
    n_reference_frames: int | None = None
    reason: str | None = None
    note: str = ""
    settings: Mapping[str, str | float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", *BRACKETS):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"{self.key}: {name} should be finite, got {number}; give None, and the reason if it is the value"
                )
        if (self.value is None) != (self.reason is not None):
            raise ValueError(
                f"{self.key}: expected a value or the reason why there is none, got {self.value} and {self.reason!r}"
            )
        if (self.low is None) != (self.high is None) or (self.value is None and self.low is not None):
            raise ValueError(
                f"{self.key}: expected a value with both ends of its interval or none, got {self.low}, {self.high}"
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.key}: an interval goes from its low to its high end, got {self.low} to {self.high}")

    @property
    def key(self) -> str:
        """Its name in tables and files: ``fad_vggish``."""
        name = self.backend.partition("/")[0]
        return f"{self.metric}_{name}" if name and not metric_of(self.metric).memorization else self.metric

    @classmethod
    def of(cls, metric: str, backend: str, interval: Interval, **facts: Any) -> Score:
        """From a metric's :class:`~auscult.metrics.intervals.Interval`, NaN ends meaning none; the better side is that of
        ``METRICS``.

        Examples
        --------
        >>> score = Score.of("fad", "logmel", Interval(1.5, 1.2, 1.9), n_generated=40, n_reference=80)
        >>> score.key, score.low, score.higher_is_better
        ('fad_logmel', 1.2, False)
        """
        ends = (None, None) if math.isnan(interval.low) or math.isnan(interval.high) else (interval.low, interval.high)
        facts.setdefault("higher_is_better", METRICS[metric].higher_is_better if metric in METRICS else None)
        return cls(metric, backend, interval.value, *ends, **facts)

    @classmethod
    def refused(cls, metric: str, backend: str, reason: str, **facts: Any) -> Score:
        """A score without a value, and why."""
        facts.setdefault("higher_is_better", METRICS[metric].higher_is_better if metric in METRICS else None)
        return cls(metric, backend, None, reason=reason, **facts)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Score:
        """From :meth:`to_json`; a ``ValueError`` if a field is missing or unknown."""
        return cls(**_fields(cls, content))


@dataclass(frozen=True)
class SystemResult:
    """All that was measured of one system.

    Attributes
    ----------
    name
        Of the system, as given by the user.
    scores
        By name (``fad_vggish``), in the order of the tables.
    facts
        What they were computed from, as JSON can hold it: counts, frames, policy, backends with digests, seeds, digests of
        the lists of files.
    warnings
        What makes the scores less reliable than they look: silent clips, duplicates, few clips.
    """

    name: str
    scores: Mapping[str, Score]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        scores = {key: score.to_json() for key, score in self.scores.items()}
        return {"name": self.name, "scores": scores, "facts": dict(self.facts), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SystemResult:
        """From :meth:`to_json`; a ``ValueError`` if a field is missing or unknown."""
        found = _fields(cls, content)
        found["scores"] = {key: Score.from_json(score) for key, score in found["scores"].items()}
        return cls(**{**found, "warnings": tuple(found.get("warnings", ()))})


def _fields(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as arguments of a dataclass."""
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = [name for name in content if name not in fields]
    needed = [
        name
        for name, one in fields.items()
        if name not in content and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if unknown or needed:
        raise ValueError(
            f"{kind.__name__}: "
            + (f"unknown field {unknown[0]!r}" if unknown else f"no field {needed[0]!r}")
            + ", so this was "
            f"not written by this version of auscult; it has {', '.join(fields)}"
        )
    return dict(content)
