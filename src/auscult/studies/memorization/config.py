"""The configuration of the memorization study: tables of a TOML file over a preset."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...generation.training_config import TrainConfig
from ..config import StudyAudits, StudyData, StudyRates, StudySampling, StudyTraining, check_sampling, load_study_config


@dataclass(frozen=True)
class StudyDuplicates:
    """``[duplicates]``: are clips that the training set holds several times replicated more?

    Attributes
    ----------
    size
        Of the training set whose clips are repeated, one of the sizes; 0: this is not asked.
    share
        Of its clips that are repeated, drawn at random.
    copies
        How often each of these is there; a model for each number beyond 1. The models of the sizes themselves are the 1.
    deduplicate
        Deduplicate the set with most copies, and train on what is kept.
    tau
        Threshold of that, of ``mel``, or ``"gap"``; the audit paper's is 0.5025.
    """

    size: int = 0
    share: float = 0.1
    copies: tuple[int, ...] = (1, 4, 16)
    deduplicate: bool = True
    tau: float | str = "gap"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"[duplicates] share should be between 0 and 1, got {self.share}")
        if min(self.copies, default=0) < 1 or list(self.copies) != sorted(set(self.copies)):
            raise ValueError(f"[duplicates] copies should be rising numbers from 1, got {list(self.copies)}")

    @property
    def repeated(self) -> tuple[int, ...]:
        """Numbers of copies that need a model of their own."""
        return tuple(copies for copies in self.copies if copies > 1) if self.size else ()


@dataclass(frozen=True)
class StudyEpochs:
    """``[epochs]``: does a model that is trained for longer replicate more?

    Attributes
    ----------
    size
        Of the training set, one of the sizes; 0: this is not asked.
    steps
        Numbers of steps, rising, each a training of its own, beside that of ``[train]``.
    """

    size: int = 0
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.steps, default=1) < 1 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"[epochs] steps should be rising numbers from 1, got {list(self.steps)}")


@dataclass(frozen=True)
class MemorizationConfig:
    """A memorization study. See the classes of its tables.

    Attributes
    ----------
    sizes
        N: clips of the training sets, rising; for a seed, each set holds the smaller ones.
    seeds
        Of each, the order of the clips, the weights and the noise are others.
    threads, device
        Of training and sampling.
    """

    preset: str | None = None
    sizes: tuple[int, ...] = (8, 24, 80, 240)
    seeds: tuple[int, ...] = (0, 1, 2)
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    data: StudyData = field(default_factory=StudyData)
    train: StudyTraining = field(default_factory=StudyTraining)
    generate: StudySampling = field(default_factory=StudySampling)
    audits: StudyAudits = field(default_factory=StudyAudits)
    epochs: StudyEpochs = field(default_factory=StudyEpochs)
    duplicates: StudyDuplicates = field(default_factory=StudyDuplicates)
    rates: StudyRates = field(default_factory=StudyRates)

    def __post_init__(self) -> None:
        if min(self.sizes, default=0) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes should be rising numbers from 2, got {list(self.sizes)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds should be one or more numbers from 0, each once, got {list(self.seeds)}")
        for name, size in (("duplicates", self.duplicates.size), ("epochs", self.epochs.size)):
            if size and size not in self.sizes:
                raise ValueError(
                    f"[{name}] size should be one of sizes {list(self.sizes)}, or 0 to leave it out, got {size} (of the "
                    "preset, if you did not name it)"
                )
        if self.train.steps in self.epochs.steps:
            raise ValueError(f"[epochs] steps are beside those of [train], {self.train.steps:,}; leave these out")


def load_memorization_config(
    path: str | Path | None = None, *, preset: str | None = None, source: str | None = None
) -> MemorizationConfig:
    """Read a configuration, see :func:`~auscult.studies.config.load_study_config`.

    Examples
    --------
    >>> config = load_memorization_config(preset="mini-cpu", source="clips.csv")
    >>> config.sizes, config.seeds, config.train.preset
    ((8, 24, 80, 240), (0, 1, 2), 'tiny-cpu')
    """
    config = load_study_config(MemorizationConfig, "memorization", path, preset=preset, source=source)
    check_sampling(
        train_config(config, "clips.csv", 0), config.generate
    )  # unknown settings are refused before anything is made
    return config


def train_config(
    config: MemorizationConfig, manifest: str | Path, seed: int, *, repeated: bool = False, steps: int | None = None
) -> TrainConfig:
    """How a model is trained on the clips of a manifest.

    Where clips are ``repeated``, the gate of the codec's reconstructions is off, which cannot tell copies apart.
    """
    more = ["gates.reconstruction=0.0"] if repeated else []
    training = config.train if steps is None else replace(config.train, steps=steps)
    return training.config(manifest, seed, device=config.device, threads=config.threads, more=more)
