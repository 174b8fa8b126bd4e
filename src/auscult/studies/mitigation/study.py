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
from functools import partial
from pathlib import Path

from ...errors import MissingExtraError, ModelError
from ...folders import CARD, Progress, no_progress
from ...generation.pipelines import locate_pipeline, scheduler_config
from ...generation.schedules import check_steps
from ..config import SOUNDS
from ..making import CLIPS, DESCRIBED, SOURCE, check_group, check_roles, clips_of, make_source, role_stages
from ..running import Study, run_study, stated
from ..sets import divide, read_manifest, read_pool
from ..stages import Plan, Stage, plan_stages
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
    generate_stage,
    guide_stage,
    make_sets,
    quality_stage,
    train_stage,
)
from .page import write_mitigation_page
from .results import results_of, seeds_of

KIND = "mitigation study"


def plan_mitigation(config: MitigationConfig, output: str | Path) -> Plan:
    """What a study consists of and how long what is left of it will take; nothing is written.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips.
    """
    with suppress(ModelError, MissingExtraError):  # a plan may be made before the model is there
        _check_pipeline(config, Path(output))
    stages = stages_of(config, _training_clips(config, Path(output)))
    return plan_stages(stages, Path(output), stated(config.rates))


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
    import torch

    _check_pipeline(config, Path(output))
    stages = stages_of(config, _training_clips(config, Path(output)))  # which checks, before there is a folder
    results = partial(results_of, config)
    threads = config.threads or torch.get_num_threads()  # the last bits depend on it, and arms are compared by them
    return run_study(Path(output), KIND, config, stages, results, write_mitigation_page, progress, threads=threads)


def _training_clips(config: MitigationConfig, output: Path) -> int:
    """How many clips a model is trained on; refuses a source that is too small."""
    given = config.model.pipeline is not None
    if (output / SOURCE / CARD).is_file():  # it is written down, and may have gone since
        return len(read_manifest(output / SOURCE / CLIPS)) if given else config.size
    check_roles(config.data, config.audits.clap, config.quality.clap)
    if config.quality.reference not in (None, SOUNDS):
        clips_of(config.quality.reference)
    if config.data.source == SOUNDS:
        return _synthesized(config) if given else config.size
    clips = read_pool(config.data.source, audio_root=config.data.audio_root, encoding=config.data.encoding)
    check_group(config.data, [clip.clip_id for clip in clips])
    if not given:
        divide(clips, config.size, config.seeds[0], config.data.group)
    return len(clips) if given else config.size


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


def stages_of(config: MitigationConfig, training: int) -> list[Stage]:
    """All stages of a study, in order, with models of so many training clips."""
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
    names, amount = [name for name, _ in runs], sum(count for _, count in runs)
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
