"""The audit paper's experiment: how much of what a model makes are replicas, against the size of its training set.

Data flow: clips -> nested training sets, for each seed -> a model for each, all trained for the same number of steps ->
clips from the training captions -> audits -> the replication rate against N, the same where clips are repeated, and where
duplicates are taken out -> card and report. Each arrow is a stage that goes on where it was stopped.

Source: Bralios et al., "Generation or Replication: Auscultating Audio Latent Diffusion Models", ICASSP 2024,
sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...folders import CARD, Progress, no_progress
from ..config import SOUNDS
from ..making import SOURCE, check_roles, make_source, role_stages
from ..planning import null_warnings, pool_of
from ..running import Study, run_study, stated, task_of
from ..sets import divide
from ..stages import Plan, Stage, check_place, plan_stages
from .arms import AUDITS, CONTROLS, DEDUPLICATED, MADE, MODELS, SENSITIVITY, SETS, THROUGH_CODEC, Arm, arms_of, clips_made
from .config import MemorizationConfig
from .making import (
    audit_stage,
    codec_stage,
    control_stage,
    deduplicate_stage,
    generate_stage,
    make_set,
    sensitivity_stage,
    train_stage,
)
from .page import write_memorization_page
from .results import results_of

KIND = "memorization study"


def plan_memorization(config: MemorizationConfig, output: str | Path) -> Plan:
    """What a study consists of and how long what is left of it will take; nothing is written.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    OutputFolderError
        The folder holds something else, another kind of study, or one with other settings.
    """
    pool = _checked(config, Path(output))
    plan = plan_stages(stages_of(config), Path(output), stated(config.rates))
    return replace(plan, warnings=tuple(null_warnings(config.data, config.audits, pool)))


def study_memorization(config: MemorizationConfig, output: str | Path, *, progress: Progress = no_progress) -> Study:
    """Run a study, or go on with it; of a finished one, write card and report anew, with the verdicts that came meanwhile.

    Parameters
    ----------
    config
        See :func:`~auscult.studies.memorization.config.load_memorization_config`.
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
    _checked(config, Path(output))  # before there is a folder
    results = partial(results_of, config, arms_of(config))
    return run_study(Path(output), KIND, config, stages_of(config), results, write_memorization_page, progress)


def _checked(config: MemorizationConfig, output: Path) -> int:
    """How many clips the source has; refuses one that is too small, and a folder of something else."""
    check_place(output, KIND, task_of(config))
    pool = pool_of(config.data, config.sizes[-1], output)
    if not (output / SOURCE / CARD).is_file():  # it is written down, and may have gone since
        divide(pool, config.sizes[-1], config.seeds[0], None if config.data.source == SOUNDS else config.data.group)
        check_roles(config.data, config.audits.clap)
    return len(pool)


# --- the stages -------------------------------------------------------------------------------------------------------


def stages_of(config: MemorizationConfig) -> list[Stage]:
    """All stages of a study, in order. The sets of a seed come first, so that a source may change later."""
    arms = arms_of(config)
    stages = [Stage(SOURCE, "preparing", 1, "sets", partial(make_source, config, config.sizes[-1]))]
    stages += [Stage(f"{SETS}/{arm.name}", "preparing", 1, "sets", partial(make_set, config, arm)) for arm in arms]
    stages += role_stages(config)
    for arm in arms:
        stages += _stages_of_arm(config, arm)
    return stages


def _stages_of_arm(config: MemorizationConfig, arm: Arm) -> Iterator[Stage]:
    if arm.deduplicated:
        make = partial(deduplicate_stage, config, arm)
        yield Stage(f"{DEDUPLICATED}/{arm.name}", "deduplicating", 1, "sets", make)
    if arm.trains:
        yield Stage(
            f"{MODELS}/{arm.name}",
            "training",
            arm.steps or config.train.steps,
            "training steps",
            partial(train_stage, config, arm),
        )
    clips = clips_made(config, arm)
    yield Stage(f"{MADE}/{arm.name}", "generating", clips, "clips", partial(generate_stage, config, arm))
    if arm.plain:
        yield Stage(f"{THROUGH_CODEC}/{arm.name}", "preparing", 1, "sets", partial(codec_stage, config, arm))
    for name in config.audits.compared_by:
        yield Stage(f"{AUDITS}/{arm.name}-{name}", "auditing", clips, "clips", partial(audit_stage, config, arm, name))
        if arm.plain:
            asked, make = min(clips, arm.size), partial(sensitivity_stage, config, arm, name)
            yield Stage(f"{SENSITIVITY}/{arm.name}-{name}", "auditing", asked, "clips", make)
        if arm.plain and len(config.seeds) > 1:
            control = partial(control_stage, config, arm, name)
            yield Stage(f"{CONTROLS}/{arm.name}-{name}", "auditing", clips, "clips", control)
