"""Re-AudioLDM's experiment on an imbalanced training set, and what it did not ask: are the retrieved pairs copied?

Data flow: clips -> for each seed classes by rank, held-out recordings, near-duplicates -> datastores -> models without pairs,
with their sounds, with sounds and captions, and with duplicates allowed -> clips from training captions (memory and copies,
the swap, guidance) and from held-out ones (quality by frequency) -> one audit of all -> card and report. Each arrow is a stage
that goes on where it was stopped.

Source: Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024, sections 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...folders import CARD, Progress, no_progress
from ..config import SOUNDS
from ..making import SOURCE, check_group, check_roles, make_source, role_stages
from ..running import Study, run_study, stated, task_of
from ..sets import read_pool
from ..stages import Plan, Stage, check_place, plan_stages
from .arms import (
    AUDITS,
    BOTH,
    BY_ID,
    DUPLICATES,
    EVALUATED,
    EXCLUDING,
    ID,
    INDEXES,
    MADE,
    MODELS,
    NAMES,
    ON_TRAINING,
    OPENED,
    PLAIN,
    SENSITIVITY,
    SETS,
    STORES,
    THRESHOLDS,
    THROUGH_CODEC,
    clips_made,
    model_name,
    runs_of,
)
from .auditing import audit_stage, evaluate_stage, sensitivity_stage
from .config import LongtailConfig
from .drawing import Drawn, draw
from .making import (
    codec_stage,
    duplicates_stage,
    generate_stage,
    index_stage,
    make_set,
    store_stage,
    thresholds_stage,
    train_stage,
)
from .page import write_longtail_page
from .results import results_of

KIND = "long-tail study"
EACH_BY_ITSELF = (
    "each clip counts as a recording of its own, so that takes of one may be both trained on and held out; where clips are "
    "takes, name what they share in their ids by [data] group"
)


def plan_longtail(config: LongtailConfig, output: str | Path) -> Plan:
    """What a study consists of and how long what is left of it will take; nothing is written.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips or classes.
    OutputFolderError
        The folder holds something else, another kind of study, or one with other settings.
    """
    check_place(Path(output), KIND, task_of(config))
    _check_source(config, Path(output))
    plan = plan_stages(stages_of(config), Path(output), stated(config.rates))
    return replace(plan, warnings=() if config.data.group or config.data.source == SOUNDS else (EACH_BY_ITSELF,))


def study_longtail(config: LongtailConfig, output: str | Path, *, progress: Progress = no_progress) -> Study:
    """Run a study, or go on with it; of a finished one, write card and report anew.

    Parameters
    ----------
    config
        See :func:`~auscult.studies.longtail.config.load_longtail_config`.
    output
        Folder of the study.
    progress
        Called with the stage and what is done of it.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used, or has too few clips or classes.
    OutputFolderError
        The folder holds something else, or a study with other settings.
    """
    _check_source(config, Path(output))  # before there is a folder
    return run_study(Path(output), KIND, config, stages_of(config), partial(results_of, config), write_longtail_page, progress)


def _check_source(config: LongtailConfig, output: Path) -> None:
    if (output / SOURCE / CARD).is_file():
        return  # it is written down, and may have gone since
    if config.data.source != SOUNDS:
        clips = read_pool(config.data.source, audio_root=config.data.audio_root, encoding=config.data.encoding)
        check_group(config.data, [clip.clip_id for clip in clips])
        for seed in config.seeds:
            _check_pairs(config, draw(clips, config.tail, seed, config.data.group))
    check_roles(config.data, config.audits.clap, config.quality.clap)


def _check_pairs(config: LongtailConfig, drawn: Drawn) -> None:
    """Refuse a k that a clip cannot have: no clip of its recording or of an equal caption is its pair."""
    clips = [*drawn.training, *drawn.again]  # whose near-duplicates are of the same recordings and captions
    names = config.takes.of([clip.clip_id for clip in clips])
    captions = [clip.caption for clip in clips]
    kept = Counter(names), Counter(captions), Counter(zip(names, captions, strict=True))
    there = [
        len(clips) - kept[0][name] - kept[1][caption] + kept[2][name, caption]
        for name, caption in zip(names, captions, strict=True)
    ]
    if (most := max(*config.retrieval.k, *config.retrieval.counts)) > min(there):
        raise ValueError(
            f"[retrieval] asks for {most} pairs, and clip {clips[there.index(min(there))].clip_id!r} has {min(there)} in the "
            f"datastore of {len(clips)} training clips, without takes of its recording and equal captions; lower k and counts, "
            "or train on more"
        )


# --- the stages -------------------------------------------------------------------------------------------------------


def stages_of(config: LongtailConfig) -> list[Stage]:
    """All stages of a study, in order. The sets of all seeds come first, so that a source may change later."""
    stages = [Stage(SOURCE, "preparing", 1, "sets", partial(make_source, config, config.source_clips))]
    stages += [Stage(f"{SETS}/s{seed}", "preparing", 1, "sets", partial(make_set, config, seed)) for seed in config.seeds]
    stages += role_stages(config)
    for seed in config.seeds:
        stages += _stages_of_seed(config, seed)
    return stages


def _stages_of_seed(config: LongtailConfig, seed: int) -> Iterator[Stage]:
    yield Stage(f"{DUPLICATES}/s{seed}", "deduplicating", 1, "sets", partial(duplicates_stage, config, seed))
    for kind in (EXCLUDING, BY_ID, OPENED):
        yield Stage(f"{STORES}/s{seed}-{kind}", "preparing", 1, "sets", partial(store_stage, config, seed, kind))
    for model in NAMES:
        kind, make = "training" if model == PLAIN else "training with pairs", partial(train_stage, config, seed, model)
        yield Stage(f"{MODELS}/{model_name(seed, model)}", kind, config.train.steps, "training steps", make)
        if model in (BOTH, ID):
            place = f"{INDEXES}/{model_name(seed, model)}"
            yield Stage(place, "preparing", 1, "sets", partial(index_stage, config, seed, model))
            yield Stage(place + THRESHOLDS, "preparing", 1, "sets", partial(thresholds_stage, config, seed, model))
    runs = runs_of(config, seed)
    for run in runs:
        yield Stage(f"{MADE}/{run.name}", run.kind, clips_made(config, run), "clips", partial(generate_stage, config, run))
    clips = sum(clips_made(config, run) for run in runs)
    yield Stage(f"{THROUGH_CODEC}/s{seed}", "preparing", 1, "sets", partial(codec_stage, config, seed))
    for name in config.audits.compared_by:
        yield Stage(f"{AUDITS}/s{seed}-{name}", "auditing", clips, "clips", partial(audit_stage, config, seed, name))
        sensitivity = partial(sensitivity_stage, config, seed, name)
        yield Stage(f"{SENSITIVITY}/s{seed}-{name}", "auditing", config.prompts, "clips", sensitivity)
    scored = sum(clips_made(config, run) for run in runs if run.prompts != ON_TRAINING)
    yield Stage(f"{EVALUATED}/s{seed}", "evaluating", scored, "clips", partial(evaluate_stage, config, seed))
