"""The configuration of the mitigation study: tables of a TOML file over a preset."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...generation.training_config import TrainConfig
from ...guidance.guided import FAMILY, LatentName
from ..config import StudyAudits, StudyData, StudySampling, StudyTraining, check_sampling, load_study_config
from .tables import MitigationRates, StudyGuidance, StudyModel, StudyQuality, StudySweeps

GAP = 0.1  # between the thresholds of arms and sweeps that name the low one alone
OTHER_THRESHOLDS = "other-thresholds"
TERMS = ("despecification", "deduplication", "dissimilarity")
ARMS = (
    "none",
    *TERMS,
    "without-dissimilarity",
    "without-deduplication",
    "without-despecification",
    "full",
    OTHER_THRESHOLDS,
    "full-denoiser",
    "full-unshifted",
    "full-mel-latents",
    "basin-static",
    "basin-dynamic",
    "opposite",
    "subspace",
    "noise",
)
"""Names that ``arms`` may hold, in the order of tables."""


@dataclass(frozen=True)
class MitigationConfig:
    """A mitigation study. See the classes of its tables.

    Attributes
    ----------
    size
        Clips that each model is trained on.
    seeds
        A model for each: the clips drawn, the weights and the noise are others.
    arms
        What is compared, of ``ARMS``; ``none`` is what all others are compared with.
    threads, device
        Of training and sampling.
    """

    preset: str | None = None
    size: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = ARMS
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    data: StudyData = field(default_factory=StudyData)
    train: StudyTraining = field(default_factory=StudyTraining)
    model: StudyModel = field(default_factory=StudyModel)
    generate: StudySampling = field(default_factory=StudySampling)
    audits: StudyAudits = field(default_factory=StudyAudits)
    guidance: StudyGuidance = field(default_factory=StudyGuidance)
    sweeps: StudySweeps = field(default_factory=StudySweeps)
    quality: StudyQuality = field(default_factory=StudyQuality)
    rates: MitigationRates = field(default_factory=MitigationRates)

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"size should be at least 2, got {self.size}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds should be one or more numbers from 0, each once, got {list(self.seeds)}")
        if self.model.pipeline is not None and len(self.seeds) > 1:
            raise ValueError(f"[model] pipeline is one model: give one seed (for its noise), got {list(self.seeds)}")
        if unknown := [name for name in self.arms if name not in ARMS]:
            raise ValueError(f"arms are {', '.join(ARMS)}; got {', '.join(unknown)}")
        if "none" not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError("arms should be named once each, and 'none' be among them, which all others are compared with")
        self.independent(self.guidance.descriptor)
        if "full-mel-latents" in self.arms:
            self.independent("mel-latents")
        if self.generate.guidance_scale <= 1 and (named := self._led_by_the_prompt()):
            raise ValueError(
                f"[generate] guidance_scale {self.generate.guidance_scale:g} samples without classifier-free guidance, which "
                f"{', '.join(named)} would change; take one above 1, or other arms and sweeps"
            )

    def _led_by_the_prompt(self) -> list[str]:
        """Arms and sweeps that change classifier-free guidance, or take its size as a measure."""
        dissimilar = self.guidance.units != "norm" and self.guidance.c3 > 0  # which acts without
        free = {"none", *(name for name in ARMS if dissimilar and (name == "subspace" or name.startswith("full")))}
        if dissimilar:
            free |= {"dissimilarity", "without-deduplication", "without-despecification", OTHER_THRESHOLDS}
        swept = [knob for knob in self.sweeps.asked if not dissimilar or (knob == "c3" and 0.0 in self.sweeps.c3)]
        return [name for name in self.arms if name not in free] + [f"[sweeps] {knob}" for knob in swept]

    def independent(self, guiding: LatentName) -> tuple[str, ...]:
        """Descriptors that may judge what was guided by one: none that hears the same.

        Raises
        ------
        ValueError
            Guidance of all arms compares by what an audit would hear; or no audit is left for one arm.
        """
        found = tuple(name for name in self.audits.compared_by if name != FAMILY[guiding])
        if guiding == self.guidance.descriptor and len(found) < len(self.audits.compared_by):
            raise ValueError(
                f"[guidance] descriptor {guiding} hears what audits by {FAMILY[guiding]} do: what evades the one evades the "
                f"other, and a copy would pass; leave {FAMILY[guiding]} out of [audits], or guide by another"
            )
        if not found:
            raise ValueError(
                f"the arm full-{guiding} could not be judged: all audits ({', '.join(self.audits.compared_by)}) hear what "
                "guides it; name another descriptor in [audits], or leave the arm out"
            )
        return found

    @property
    def duration_s(self) -> float:
        """Length of the clips that are made."""
        return self.model.duration_s if self.model.pipeline and self.model.duration_s else self.train.duration_s


def load_mitigation_config(
    path: str | Path | None = None, *, preset: str | None = None, source: str | None = None
) -> MitigationConfig:
    """Read a configuration, see :func:`~auscult.studies.config.load_study_config`.

    Examples
    --------
    >>> config = load_mitigation_config(preset="mini-cpu", source="clips.csv")
    >>> config.size, config.seeds, (config.guidance.c1, config.guidance.c2, config.guidance.c3)
    (8, (0, 1, 2), (1.0, 4.0, 3.0))
    """
    config = load_study_config(MitigationConfig, "mitigation", path, preset=preset, source=source)
    training = train_config(config, "clips.csv", 0)  # which refuses unknown settings before anything is made
    if config.model.pipeline is None:
        check_sampling(training, config.generate)
    return config


def train_config(config: MitigationConfig, manifest: str | Path, seed: int) -> TrainConfig:
    """How a model is trained on the clips of a manifest: as in the memorization study, so that equal sets make equal models."""
    return config.train.config(manifest, seed, device=config.device, threads=config.threads)


def windowed(config: MitigationConfig) -> MitigationConfig:
    """With the window of mel as long as the clips that are made, where it is not given."""
    if config.audits.duration_s is not None:
        return config
    return replace(config, audits=replace(config.audits, duration_s=config.duration_s))
