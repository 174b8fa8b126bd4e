"""Does guidance keep a memorizing model from replicating, and at what cost?

Data flow: clips -> a small training set and a memorizing model for each seed -> references as guidance hears them -> the same
prompts and the same noise under each arm -> audits by descriptors that guidance does not use, and quality against real clips
that no model has seen -> rates, costs and sweeps of each setting -> card and report. Each arrow is a stage that goes on where
it was stopped.

Sources: Chen, Liu, Xu, "Towards Memorization-Free Diffusion Models", CVPR 2024; Messina et al., "Mitigating data replication in
text-to-audio generative diffusion models through anti-memorization guidance", 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...errors import MissingExtraError, ModelError
from ...folders import CARD, Progress, no_progress
from ...generation.pipelines import locate_pipeline, scheduler_config
from ...generation.schedules import check_steps
from ..config import SOUNDS
from ..making import DESCRIBED, SOURCE, check_roles, clips_of, make_source, role_stages
from ..planning import clips_in, null_warnings, pool_of
from ..running import Study, run_study, stated, task_of
from ..stages import Plan, Stage, check_place, plan_stages
from .arms import (
    AUDITS,
    CONTROLS,
    GUIDES,
    MADE,
    MODELS,
    QUALITY,
    SETS,
    Arm,
    arms_of,
    audited_by,
    clips_made,
    model_name,
    other_seed,
    run_name,
    swept_arms,
)
from .config import MitigationConfig, windowed
from .making import (
    audit_stage,
    control_stage,
    describe_stage,
    divided,
    generate_stage,
    guide_stage,
    left_over,
    make_sets,
    quality_stage,
    train_stage,
)
from .page import write_mitigation_page
from .results import results_of, seeds_of, too_few_references

KIND = "mitigation study"


def plan_mitigation(config: MitigationConfig, output: str | Path) -> Plan:
    """What a study consists of and how long what is left of it will take; nothing is written.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    OutputFolderError
        The folder holds something else, another kind of study, or one with other settings.
    """
    check_place(Path(output), KIND, task_of(config, _threads(config)))
    with suppress(ModelError, MissingExtraError):  # a plan may be made before the model is there
        _check_pipeline(config, Path(output))
    there = _clips_there(config, Path(output))
    stages = stages_of(config, there.training, scored=there.enough(config))
    warnings = null_warnings(config.data, config.audits, there.pool)
    if not there.enough(config):
        warnings.append(f"Quality will not be measured: {too_few_references(config, there.reference)}")
    return replace(plan_stages(stages, Path(output), stated(config.rates)), warnings=tuple(warnings))


def study_mitigation(config: MitigationConfig, output: str | Path, *, progress: Progress = no_progress) -> Study:
    """Run a study, or go on with it; of a finished one, write card and report anew.

    Parameters
    ----------
    config
        See :func:`~auscult.studies.mitigation.config.load_mitigation_config`.
    output
        Folder of the study.
    progress
        Called with the stage and what is done of it.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    ModelError
        The given pipeline cannot be used or guided.
    OutputFolderError
        The folder holds something else, or a study with other settings.
    """
    threads = _threads(config)
    check_place(Path(output), KIND, task_of(config, threads))
    _check_pipeline(config, Path(output))
    there = _clips_there(config, Path(output))  # which checks, before there is a folder
    stages = stages_of(config, there.training, scored=there.enough(config))
    results = partial(results_of, config)
    return run_study(Path(output), KIND, config, stages, results, write_mitigation_page, progress, threads=threads)


def _threads(config: MitigationConfig) -> int:
    """How many a model has: the last bits depend on it, and arms are compared by them."""
    import torch

    return config.threads or torch.get_num_threads()


@dataclass(frozen=True)
class _There:
    """How many clips there are: in the source, that a model is trained on, and for quality."""

    pool: int
    training: int
    reference: int

    def enough(self, config: MitigationConfig) -> bool:
        """Whether quality can be measured."""
        return self.reference >= config.quality.least


def _clips_there(config: MitigationConfig, output: Path) -> _There:
    """What a study has to begin with; refuses a source that is too small."""
    if not (output / SOURCE / CARD).is_file():  # later it is written down, and may have gone
        check_roles(config.data, config.audits.clap, config.quality.clap)
        if config.quality.reference not in (None, SOUNDS):
            clips_of(config.quality.reference)
    pool = pool_of(config.data, _synthesized(config), output)
    named = config.quality.reference
    if config.data.source == SOUNDS:  # whose ids are no recordings' yet
        config = replace(config, data=replace(config.data, group=None))
    parts = divided(config, pool)
    if named is None:
        reference = len(left_over(config, parts)[1])
    else:
        found = config.quality.clips if named == SOUNDS else clips_in(named)
        reference = config.quality.least if found is None else found
    return _There(len(pool), len(parts[config.seeds[0]].training), reference)


def _check_pipeline(config: MitigationConfig, output: Path) -> None:
    """Refuse a given model that is not there, or cannot do the steps that are asked for, before anything is made."""
    if config.model.pipeline is None or (output / SOURCE / CARD).is_file():
        return
    sampler = scheduler_config(locate_pipeline(config.model.pipeline, offline=True))
    check_steps(str(sampler.get("_class_name")), sampler, config.generate.steps, "[generate] steps")


def _synthesized(config: MitigationConfig) -> int:
    """Clips that are synthesized as a source: enough that seeds differ."""
    return config.size * (1 if config.model.pipeline else len(config.seeds))


# --- the stages -------------------------------------------------------------------------------------------------------


def stages_of(config: MitigationConfig, training: int, *, scored: bool = True) -> list[Stage]:
    """All stages of a study, in order, with models of so many training clips, whose clips are scored if quality can be."""
    config = windowed(config)
    arms, swept = arms_of(config), swept_arms(config)
    stages = [
        Stage(SOURCE, "preparing", 1, "sets", partial(make_source, config, _synthesized(config))),
        Stage(SETS, "preparing", 1, "sets", partial(make_sets, config)),
    ]
    if config.model.pipeline is None:
        stages += [_training(config, seed) for seed in config.seeds]
    stages += role_stages(config)
    for name in config.audits.compared_by:
        for seed in config.seeds:
            make = partial(describe_stage, config, name, seed)
            stages.append(_preparing(f"{DESCRIBED}/{name}-{model_name(config, seed)}", make))
    for descriptor in dict.fromkeys(arm.descriptor for arm in (*arms, *swept)):
        for seed in config.seeds:
            place = f"{GUIDES}/{descriptor}-{model_name(config, seed)}"
            stages.append(_preparing(place, partial(guide_stage, config, seed, descriptor)))
    clips = clips_made(config, training)
    runs = []
    for arm in sorted(arms, key=lambda arm: arm.name != "none") + swept:  # what others are compared with comes first
        for seed in seeds_of(config, arm):
            stages += _stages_of_run(config, arm, seed, min(clips, config.sweeps.clips) if arm.swept else clips)
            runs.append((run_name(arm, seed), min(clips, config.sweeps.clips) if arm.swept else clips))
    names, amount = [name for name, _ in runs], sum(count for _, count in runs) if scored else 0
    stages.append(Stage(QUALITY, "scoring", amount, "clips", partial(quality_stage, config, names)))
    return stages


def _preparing(place: str, make: partial[None]) -> Stage:
    return Stage(place, "preparing", 1, "sets", make)


def _training(config: MitigationConfig, seed: int) -> Stage:
    make = partial(train_stage, config, seed)
    return Stage(f"{MODELS}/{model_name(config, seed)}", "training", config.train.steps, "training steps", make)


def _stages_of_run(config: MitigationConfig, arm: Arm, seed: int, clips: int) -> Iterator[Stage]:
    name = run_name(arm, seed)
    plain = not arm.acts or arm.beside in ("basin-static", "basin-dynamic", "opposite", "noise")  # as fast as no guidance
    make = partial(generate_stage, config, arm, seed)
    yield Stage(f"{MADE}/{name}", "generating" if plain else "guiding", clips, "clips", make)
    for descriptor in audited_by(config, arm):
        audit = partial(audit_stage, config, arm, seed, descriptor)
        yield Stage(f"{AUDITS}/{name}-{descriptor}", "auditing", clips, "clips", audit)
        if (other := other_seed(config, arm, seed)) is not None:
            control = partial(control_stage, config, arm, seed, other, descriptor)
            yield Stage(f"{CONTROLS}/{name}-{descriptor}", "auditing", clips, "clips", control)
