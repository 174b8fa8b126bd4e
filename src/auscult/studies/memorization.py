"""The audit paper's experiment: how much of what a model makes are replicas, against the size of its training set.

Data flow: clips -> nested training sets, for each seed -> a model for each, all trained for the same number of steps ->
clips from the training captions -> audits -> the replication rate against N, the same where clips are repeated, and where
duplicates are taken out -> card and report. Each arrow is a stage that goes on where it was stopped.

Source: Bralios et al., "Generation or Replication: Auscultating Audio Latent Diffusion Models", ICASSP 2024,
sections 4.1 and 4.2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..configuration import config_values
from ..folders import CARD, Progress, no_progress, read_card, write_card
from .memorization_arms import AUDITS, DEDUPLICATED, MADE, MODELS, SETS, Arm, arms_of, clips_made
from .memorization_config import SOUNDS, MemorizationConfig
from .memorization_making import (
    audit_stage,
    clips_of,
    deduplicate_stage,
    describe_stage,
    generate_stage,
    make_set,
    make_source,
    train_stage,
)
from .memorization_page import write_memorization_page
from .memorization_results import results_of
from .sets import divide, read_pool
from .stages import Plan, Stage, plan_stages, read_times, run_stages, study_folder

KIND = "memorization study"
_NOT_A_RESULT = ("preset", "rates", "device", "threads")  # settings that may change when a study goes on


@dataclass(frozen=True)
class MemorizationStudy:
    """A finished study on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> MemorizationStudy:
        """Open a finished study; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))


def plan_memorization(config: MemorizationConfig, output: str | Path) -> Plan:
    """What a study consists of and how long what is left of it will take; nothing is written.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    """
    _check_source(config, Path(output))
    return plan_stages(stages_of(config), Path(output), _rates(config))


def study_memorization(
    config: MemorizationConfig, output: str | Path, *, progress: Progress = no_progress
) -> MemorizationStudy:
    """Run a study, or go on with it; of a finished one, write card and report anew, with the verdicts that came meanwhile.

    Parameters
    ----------
    config
        See :func:`~auscult.studies.memorization_config.load_memorization_config`.
    output
        Folder of the study.
    progress
        Called with the stage and what is done of it.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    OutputFolderError
        The folder holds something else, or a study with other settings.
    """
    folder = Path(output).absolute()
    _check_source(config, folder)  # before there is a folder
    task = {key: value for key, value in config_values(config).items() if key not in _NOT_A_RESULT}
    with study_folder(folder, KIND, task):
        stages = stages_of(config)
        run_stages(stages, folder, progress)
        results = results_of(config, arms_of(config), folder)
        plan = plan_stages(stages, folder, _rates(config))
        content = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(sum(line["seconds"] for line in read_times(folder)), 1),
            "counts": _counts(stages),
            "config": config_values(config),
            **results,
            "plan": plan.to_json(),
        }
        write_memorization_page(folder, content, progress)
        write_card(folder, KIND, content)
    return MemorizationStudy.open(folder)


def _check_source(config: MemorizationConfig, output: Path) -> None:
    if (output / "source" / CARD).is_file():
        return  # it is written down, and may have gone since
    if config.data.source != SOUNDS:
        clips = read_pool(config.data.source, audio_root=config.data.audio_root, encoding=config.data.encoding)
        divide(clips, config.sizes[-1], config.seeds[0], config.data.group)
    for role in (config.data.background, config.data.null):
        if role not in (None, SOUNDS):
            clips_of(role)


def _counts(stages: Sequence[Stage]) -> dict[str, int]:
    names = {"training": "models", "auditing": "audits"}
    found = {name: sum(stage.kind == kind for stage in stages) for kind, name in names.items()}
    return {**found, "clips": round(sum(stage.amount for stage in stages if stage.kind == "generating"))}


def _rates(config: MemorizationConfig) -> dict[str, float]:
    return {name: value for name, value in vars(config.rates).items() if value}


# --- the stages -------------------------------------------------------------------------------------------------------


def stages_of(config: MemorizationConfig) -> list[Stage]:
    """All stages of a study, in order. The sets of a seed come first, so that a source may change later."""
    arms = arms_of(config)
    stages = [Stage("source", "preparing", 1, "sets", partial(make_source, config))]
    stages += [Stage(f"{SETS}/{arm.name}", "preparing", 1, "sets", partial(make_set, config, arm)) for arm in arms]
    roles = [role for role in ("background", "null") if getattr(config.data, role) is not None]
    for name in config.audits.compared_by if roles else ():
        for role in roles:
            make = partial(describe_stage, config, name, role)
            stages.append(Stage(f"described/{name}-{role}", "preparing", 1, "sets", make))
    for arm in arms:
        stages += _stages_of_arm(config, arm)
    return stages


def _stages_of_arm(config: MemorizationConfig, arm: Arm) -> Iterator[Stage]:
    if arm.deduplicated:
        make = partial(deduplicate_stage, config, arm)
        yield Stage(f"{DEDUPLICATED}/{arm.name}", "deduplicating", 1, "sets", make)
    if arm.trains:
        yield Stage(f"{MODELS}/{arm.name}", "training", config.train.steps, "training steps", partial(train_stage, config, arm))
    clips = clips_made(config, arm)
    yield Stage(f"{MADE}/{arm.name}", "generating", clips, "clips", partial(generate_stage, config, arm))
    for name in config.audits.compared_by:
        yield Stage(f"{AUDITS}/{arm.name}-{name}", "auditing", clips, "clips", partial(audit_stage, config, arm, name))
