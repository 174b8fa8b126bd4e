"""The arms of a mitigation study: what guides each, and where what it makes lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...guidance.amg import AmgConfig
from ...guidance.guided import LatentName
from .config import GAP, OTHER_THRESHOLDS, TERMS, MitigationConfig

SETS, MODELS, GUIDES, MADE, TRACES, AUDITS, CONTROLS, QUALITY = (
    "sets", "models", "guides", "generated", "traces", "audits", "controls", "quality"
)  # fmt: skip
TRAINING, PROMPTS, SWEPT_PROMPTS = "training.jsonl", "prompts.jsonl", "sweep-prompts.jsonl"
OTHER, REFERENCE = "others", "reference"
Beside = Literal["", "basin-static", "basin-dynamic", "opposite", "subspace", "noise"]
CONTROLLED = ("none", "full")  # arms whose clips are also compared with what they cannot have been copied from
KNOBS = {"c1": "despecification", "c2": "deduplication", "c3": "dissimilarity"}  # others are called as in AmgConfig
_OFF = dict.fromkeys(TERMS, 0.0)
_NAMES = {  # arms whose name does not say it
    "none": "no guidance",
    "without-dissimilarity": "despecification + deduplication",
    "without-deduplication": "despecification + dissimilarity",
    "without-despecification": "deduplication + dissimilarity",
    "full": "all three terms",
    "full-denoiser": "all three, gradient through the denoiser",
    "full-unshifted": "all three, references not shifted in time",
    "full-mel-latents": "all three, guided by mel of latents",
    "basin-static": "attraction basin, static",
    "basin-dynamic": "attraction basin, dynamic",
    "opposite": "opposite guidance",
    "subspace": "subspace of the nearest references",
    "noise": "adjusted noise",
}


@dataclass(frozen=True)
class Arm:
    """What guides the sampling of clips.

    Attributes
    ----------
    name
        Of its folders, and of tables in Python.
    changes
        To the settings of full guidance.
    descriptor
        That guidance compares by.
    shifted
        Whether references are taken at every shift in time, where the descriptor allows.
    beside
        What acts instead of anti-memorization guidance, which then only watches.
    swept
        Of a sweep: its settings are of one value, or of full guidance itself.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    descriptor: LatentName = "latents"
    shifted: bool = True
    beside: Beside = ""
    swept: bool = False

    @property
    def label(self) -> str:
        """For people."""
        if self.name.startswith("full-at-"):
            low = self.changes["threshold_low"]
            return f"all three, thresholds {low:g} to {self.changes['threshold_high']:g}"
        return _NAMES.get(self.name, self.name)

    @property
    def acts(self) -> bool:
        """Whether anything is done at all: without, nothing but a trace is."""
        return bool(self.beside) or any(self.changes.get(term, 1.0) for term in TERMS)

    def amg(self, full: AmgConfig) -> AmgConfig:
        """The settings of anti-memorization guidance, of those of full guidance."""
        return replace(full, **self.changes)


def arms_of(config: MitigationConfig) -> list[Arm]:
    """The arms that are asked for, without sweeps.

    Examples
    --------
    >>> config = MitigationConfig(arms=("none", "full", "other-thresholds"))
    >>> [arm.name for arm in arms_of(config)]
    ['none', 'full', 'full-at-0.2', 'full-at-0.4', 'full-at-0.6']
    """
    found: list[Arm] = []
    for name in config.arms:
        found += _named(name, config)
    return found


def _named(name: str, config: MitigationConfig) -> list[Arm]:
    by = config.guidance.descriptor
    if name == OTHER_THRESHOLDS:
        return [Arm(f"full-at-{low:g}", _thresholds(low), by) for low in config.guidance.other_thresholds]
    kept = {
        "none": (),
        "without-dissimilarity": TERMS[:2],
        "without-deduplication": (TERMS[0], TERMS[2]),
        "without-despecification": TERMS[1:],
        **{term: (term,) for term in TERMS},
    }
    if name in kept:
        return [Arm(name, {term: 0.0 for term in TERMS if term not in kept[name]}, by)]
    if name == "full-mel-latents":
        return [Arm(name, {}, "mel-latents")]
    if name.startswith("full"):
        gradient = {"gradient": "denoiser"} if name == "full-denoiser" else {}
        return [Arm(name, gradient, by, shifted=name != "full-unshifted")]
    beside: Any = name
    return [Arm(name, _OFF, by, beside=beside)]


def _thresholds(low: float) -> dict[str, Any]:
    return {"threshold_low": low, "threshold_high": round(low + GAP, 6)}


def _gap_apart(config: MitigationConfig) -> bool:
    """Whether the thresholds of full guidance lie as far apart as those of arms and sweeps that name the low one alone."""
    low, high = config.guidance.threshold_low, config.guidance.threshold_high
    return low is not None and high is not None and math.isclose(high - low, GAP)


def swept_arm(config: MitigationConfig, knob: str, value: float | str) -> Arm:
    """The arm of a value in a sweep; that of full guidance's own value is one for all sweeps.

    Examples
    --------
    >>> swept_arm(MitigationConfig(), "c3", 1.5).name, swept_arm(MitigationConfig(), "c3", 3.0).name
    ('sweep-c3-1.5', 'sweep-full')
    """
    by = config.guidance.descriptor
    shown = f"{value:g}" if isinstance(value, int | float) else value
    if value == getattr(config.guidance, knob) and (knob != "threshold_low" or _gap_apart(config)):
        return Arm("sweep-full", {}, by, swept=True)
    changes = _thresholds(float(value)) if knob == "threshold_low" else {KNOBS.get(knob, knob): value}
    return Arm(f"sweep-{knob}-{shown}", changes, by, swept=True)


def swept_arms(config: MitigationConfig) -> list[Arm]:
    """All arms of sweeps, each once."""
    found = {}
    for knob, values in config.sweeps.asked.items():
        for value in values:
            arm = swept_arm(config, knob, value)
            found[arm.name] = arm
    return list(found.values())


def audited_by(config: MitigationConfig, arm: Arm) -> tuple[str, ...]:
    """Descriptors of the arm's audits: none that hears what guides it."""
    return config.independent(arm.descriptor)


def other_seed(config: MitigationConfig, arm: Arm, seed: int) -> int | None:
    """The next seed, with whose training clips an arm's are compared as a control; None where they are not.

    Examples
    --------
    >>> config = MitigationConfig(seeds=(0, 1, 4))
    >>> [other_seed(config, Arm("full"), seed) for seed in (0, 4)], other_seed(config, Arm("noise"), 0)
    ([1, 0], None)
    """
    if arm.name not in CONTROLLED or len(config.seeds) < 2:
        return None
    return config.seeds[(config.seeds.index(seed) + 1) % len(config.seeds)]


def model_name(config: MitigationConfig, seed: int) -> str:
    """Of a model's folders: that of the memorization study's, for equal clips and seeds."""
    return f"given-s{seed}" if config.model.pipeline else f"n{config.size}-s{seed}"


def run_name(arm: Arm, seed: int) -> str:
    """Of the folders of what an arm makes with one model."""
    return f"{arm.name}-s{seed}"


def clips_made(config: MitigationConfig, training: int) -> int:
    """How many clips an arm makes with a model of so many training clips.

    Examples
    --------
    >>> from auscult.studies.config import StudySampling
    >>> [clips_made(MitigationConfig(generate=StudySampling(clips=40)), size) for size in (8, 24, 80)]
    [40, 48, 40]
    """
    wanted = config.generate.clips
    return training if wanted == 0 else wanted if wanted < training else training * round(wanted / training)
