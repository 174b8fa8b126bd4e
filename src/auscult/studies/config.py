"""What the configurations of all studies share: their tables, and how a file is laid over a preset."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..configuration import make_config, merged
from ..generation.schedules import check_steps
from ..generation.training_config import TrainConfig, load_train_config
from ..identity import recording_pattern

PRESETS = ("smoke", "mini-cpu", "small-gpu", "paper")
SOUNDS = "sounds"  # as a source: synthesized clips
POOL = "pool"  # as null clips: those of the source itself
_OWN_KEYS = (  # of a training that the study decides about
    "data.train", "data.validation", "data.validation_share", "seed", "device", "threads", "optimizer.steps", "mixing.share",
    "gates.conditions",
)  # fmt: skip
MATCH = "match:"
Config = TypeVar("Config")


@dataclass(frozen=True)
class StudyData:
    """``[data]``: the clips.

    Attributes
    ----------
    source
        Captioned clips, of which the training sets are drawn: a folder, manifest or archive; ``"sounds"`` are synthesized ones.
    background
        Of all audits: unrelated clips, or ``"sounds"`` as above.
    null
        Of all audits: clips that are in no training set, or ``"sounds"``, or ``"pool"``: all clips of the source, each compared
        with the training clips of other recordings only. So every size of a training set is measured by the same rule.
    group
        Regular expression on the clip id, whose first group names the recording that a clip was cut from. Clips of one
        recording come one after another in the order that training sets are taken from.
    audio_root, encoding
        Of manifests.
    """

    source: str = ""
    background: str = SOUNDS
    null: str = POOL
    group: str | None = None
    audio_root: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if not self.background or not self.null:
            raise ValueError("[data] background and null should name clips: a source, 'sounds', or for null 'pool'")
        if self.group is not None:
            recording_pattern(self.group)


@dataclass(frozen=True)
class StudyTraining:
    """``[train]``: the model, the same for every size.

    Attributes
    ----------
    preset
        Of ``auscult train``.
    steps
        Of the optimizer, the same for every size.
    mixing
        Mixtures of two clips added to each batch, as a share of its clips; 0: none.
    settings
        Further settings, as ``auscult train --set`` takes them: ``["optimizer.batch=32"]``.
    """

    preset: str = "tiny-cpu"
    steps: int = 700
    mixing: float = 0.0
    settings: tuple[str, ...] = ()

    def config(
        self, manifest: str | Path, seed: int, *, device: str = "cpu", threads: int | None = None, more: Sequence[str] = ()
    ) -> TrainConfig:
        """How a model is trained on the clips of a manifest.

        Nothing is held out, for learning by heart is what is studied, and its gate is off. ``more`` are settings of the
        study itself, over which those of this table prevail.

        Raises
        ------
        ValueError
            A setting is unknown or cannot be.
        """
        named = [key for key in (text.partition("=")[0].strip() for text in self.settings) if key in _OWN_KEYS]
        if named:
            raise ValueError(f"[train] settings: {', '.join(named)} is what the study itself decides about; use its own keys")
        settings = [
            f"data.train={manifest}",
            "data.validation_share=0",
            f"seed={seed}",
            f"device={device}",
            f"optimizer.steps={self.steps}",
            f"mixing.share={self.mixing}",
            "gates.conditions=false",
            *([] if threads is None else [f"threads={threads}"]),
            *more,
        ]
        return load_train_config(preset=self.preset, settings=(*settings, *self.settings))

    @property
    def duration_s(self) -> float:
        """Length of the clips that the model makes."""
        return self.config("clips.jsonl", 0).data.duration_s


@dataclass(frozen=True)
class StudySampling:
    """``[generate]``: clips from the captions of the training set. Steps and scale are the audit paper's by default.

    Attributes
    ----------
    steps, guidance_scale
        Of sampling.
    clips
        About how many clips each model makes: of so many training captions drawn at random, or several of each if there are
        fewer; 0: one of each.
    batch
        Clips made at once.
    """

    steps: int = 200
    guidance_scale: float = 3.0
    clips: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        if self.clips < 0 or self.batch < 1 or self.steps < 1:
            raise ValueError(
                f"[generate] expected clips >= 0, batch and steps >= 1, got {self.clips}, {self.batch}, {self.steps}"
            )
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"[generate] guidance_scale should be a number, got {self.guidance_scale}")


def check_sampling(training: TrainConfig, sampling: StudySampling) -> None:
    """Refuse a number of steps that the sampler of a model that is trained so cannot do, before any is trained.

    Raises
    ------
    ValueError
        The message names the nearest numbers that it can do.

    Examples
    --------
    >>> training = StudyTraining().config("clips.jsonl", 0)
    >>> check_sampling(training, StudySampling(steps=200))
    >>> check_sampling(training, StudySampling(steps=300))
    Traceback (most recent call last):
    ValueError: [generate] steps = 300 would begin at noise level 898 of 0 to 999, and this model's begin with noise alone; take 250 or 317
    """  # noqa: E501 - a message
    levels = {"num_train_timesteps": training.objective.timesteps, "steps_offset": 1}
    check_steps("DDIMScheduler", levels, sampling.steps, "[generate] steps")


@dataclass(frozen=True)
class StudyAudits:
    """``[audits]``: how generated clips are compared with the training set.

    Attributes
    ----------
    descriptors
        Of which each makes an audit: ``contrast``, the default detector, ``mel``, the audit paper's, ``clap``.
    clap
        Folder or hub name of the CLAP model; with it, ``clap`` is compared by as well.
    level
        A clip is flagged if no more than this share of null clips scores as high (``p <= level``), whatever the others do: a
        rate that can be compared between models. With n null clips it cannot be below ``1 / (n + 1)``.
    fdr
        Share of false alarms in each audit's own list, which depends on how many others are copies.
    tau
        Instead of the level, by descriptor: fixed thresholds, ``["mel=0.5005"]``, or as many as by another,
        ``["clap=match:mel"]``.
    duration_s
        Window of mel; None: as long as what the model makes.
    background_clips, null_clips
        So many, where they are synthesized.
    """

    descriptors: tuple[str, ...] = ("contrast", "mel")
    clap: str | None = None
    level: float = 0.01
    fdr: float = 0.1
    tau: tuple[str, ...] = ()
    duration_s: float | None = None
    background_clips: int = 64
    null_clips: int = 200

    def __post_init__(self) -> None:
        if not self.descriptors or len(set(self.descriptors)) < len(self.descriptors):
            raise ValueError(f"[audits] descriptors should be one or more, each once, got {list(self.descriptors)}")
        if unknown := set(self.descriptors) - {"contrast", "mel", "clap"}:
            raise ValueError(f"[audits] descriptors are contrast, mel and clap, got {', '.join(sorted(unknown))}")
        if min(self.background_clips, self.null_clips) < 1:
            raise ValueError("[audits] background_clips and null_clips should be at least 1")
        if not 0 < self.level < 1 or not 0 < self.fdr < 1:
            raise ValueError(f"[audits] level and fdr should be between 0 and 1, got {self.level} and {self.fdr}")
        for name, value in self.taus().items():
            if name not in self.compared_by:
                raise ValueError(f"[audits] tau: {name!r} is not compared by; that is {', '.join(self.compared_by)}")
            earlier = self.compared_by[: self.compared_by.index(name)]
            if isinstance(value, str) and value.removeprefix(MATCH) not in earlier:
                known = ", ".join(earlier) or "there is none"
                raise ValueError(f"[audits] tau: {name} = {value!r} wants one that is compared by before it: {known}")

    @property
    def compared_by(self) -> tuple[str, ...]:
        """All descriptors."""
        return self.descriptors + (("clap",) if self.clap and "clap" not in self.descriptors else ())

    def taus(self) -> dict[str, float | str]:
        """Thresholds by descriptor: numbers, or ``match:`` and another descriptor."""
        pairs = [(name.strip(), value.strip()) for name, _, value in (text.partition("=") for text in self.tau)]
        try:
            return {name: value if value.startswith(MATCH) else float(value) for name, value in pairs}
        except ValueError:
            raise ValueError(f"[audits] tau should be such as ['mel=0.5005', 'clap=match:mel'], got {list(self.tau)}") from None


@dataclass(frozen=True)
class StudyRates:
    """``[rates]``: amounts per second, for the plan, until they are measured; 0: not known."""

    training: float = 0.0
    generating: float = 0.0
    auditing: float = 0.0
    deduplicating: float = 0.0
    preparing: float = 0.0


def load_study_config(
    kind: type[Config], study: str, path: str | Path | None = None, *, preset: str | None = None, source: str | None = None
) -> Config:
    """Read the configuration of a study: the preset, and over it the file.

    Parameters
    ----------
    kind
        Of the configuration: a frozen dataclass with a field ``preset`` and a table ``data``.
    study
        Name of the study, which its presets are named after.
    path
        TOML file; its ``preset = "NAME"`` names the preset it is laid over. None: the preset alone.
    preset
        Preset instead of the file's.
    source
        Instead of ``[data] source``.

    Raises
    ------
    ValueError
        The file is no TOML, has an unknown key (named, with its table and the nearest known ones), settings contradict each
        other, or nothing is said about data.
    """
    where = "configuration" if path is None else str(path)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from error
    name = preset or values.get("preset")
    if name is not None:
        values = merged(preset_values(study, str(name)), {**values, "preset": name})
    if source is not None:
        values = merged(values, {"data": {"source": source}})
    if not values.get("data", {}).get("source"):
        raise ValueError(f"{where}: no clips to train on; name captioned ones: [data] source = 'clips.csv', or --source")
    return make_config(kind, values, where=where)


def preset_values(study: str, name: str) -> dict[str, Any]:
    """The tables of a study's preset.

    Raises
    ------
    ValueError
        There is no preset of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return tomllib.loads(resources.files(__package__).joinpath("presets", f"{study}-{name}.toml").read_text("utf-8"))
