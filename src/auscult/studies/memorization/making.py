"""How each stage of a memorization study is made; all go on where they were stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...corpus import Clip, open_corpus
from ...duplicates import CLUSTERS, DedupConfig, deduplicate
from ...folders import Progress, write_card
from ..making import (
    CLIPS,
    MADE_MANIFEST,
    SOURCE,
    audit_clips,
    audit_control,
    generate_clips,
    given,
    mel_window_s,
    through_codec,
    train_model,
)
from ..sets import chosen, divide, prompted, read_manifest, repeated, write_manifest
from .arms import (
    DEDUPLICATED,
    MADE,
    MODELS,
    PROMPTS,
    REPEATED,
    SETS,
    THROUGH_CODEC,
    TRAINING,
    WITH_COPIES,
    Arm,
    asked_for,
    other_seed,
)
from .config import MemorizationConfig, train_config


def make_set(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """Manifests of an arm: what is trained on, and prompts."""
    place.mkdir(exist_ok=True)
    training = divide(read_manifest(place.parents[1] / SOURCE / CLIPS), arm.size, arm.seed, config.data.group).training
    write_manifest(place / TRAINING, training)
    again = chosen(training, config.duplicates.share, arm.seed) if arm.copies is not None else ()
    write_manifest(place / REPEATED, again)
    if arm.copies is not None:
        write_manifest(place / WITH_COPIES, repeated(training, again, arm.copies))
    ids = {clip.clip_id for clip in again}
    groups = [training] if arm.copies is None else [again, [clip for clip in training if clip.clip_id not in ids]]
    wanted = [wanted for _, wanted in asked_for(config, arm)]
    rows = [clip for group, some in zip(groups, wanted, strict=True) for clip in _prompt_rows(*prompted(group, some, arm.seed))]
    write_manifest(place / PROMPTS, rows)
    facts = {"training": len(training), "repeated": len(again), "prompts": len(rows)}
    write_card(place, "sets of a study", {"arm": vars(arm), **facts})
    progress(1, 1, "sets")


def _prompt_rows(clips: Sequence[Clip], each: int) -> list[Clip]:
    """A row for each clip that is to be made: its number of rows may differ between groups."""
    return [clip for clip in clips for _ in range(each)]


def deduplicate_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """Deduplicate the set with copies; what is kept is the training set of the arm."""
    folder = place.parents[1]
    sets = folder / SETS / arm.name
    # copies of a file are found by their digests; mel finds what is alike without being the same
    settings = DedupConfig(duration_s=mel_window_s(config), tau=config.duplicates.tau)

    def kept(made: Path) -> None:
        dropped = {row["clip_id"] for row in _cluster_rows(made) if not row["keep"]}
        clips = [clip for clip in read_manifest(sets / WITH_COPIES) if clip.clip_id not in dropped]
        write_manifest(place.with_name(f"{arm.name}.jsonl"), clips)

    deduplicate(
        open_corpus(sets / WITH_COPIES),
        background=given(config.data, "background", folder),
        output=place,
        config=settings,
        progress=progress,
        finish=kept,
    )


def _cluster_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / CLUSTERS).to_pylist()
    return rows


def train_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    manifest = folder / SETS / arm.name / (TRAINING if arm.copies is None else WITH_COPIES)
    if arm.deduplicated:
        manifest = folder / DEDUPLICATED / f"{arm.name}.jsonl"
    train_model(train_config(config, manifest, arm.seed, repeated=arm.copies is not None, steps=arm.steps), place, progress)


def generate_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    generate_clips(
        config, folder / MODELS / arm.model / "pipeline", folder / SETS / arm.name / PROMPTS, arm.seed, place, progress
    )


def audit_stage(config: MemorizationConfig, arm: Arm, name: str, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    made, training = folder / MADE / arm.name / "manifest.jsonl", folder / SETS / arm.name / TRAINING
    audit_clips(config, name, open_corpus(made), open_corpus(training), folder, place, progress)


def codec_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """The training clips of an arm's prompts behind its model's codec."""
    folder = place.parents[1]
    sets = folder / SETS / arm.name
    wanted = {json.loads(line)["clip_id"] for line in (sets / PROMPTS).read_text("utf-8").splitlines()}  # some several times
    asked = [clip for clip in read_manifest(sets / TRAINING) if clip.clip_id in wanted]
    through_codec(config, folder / MODELS / arm.model / "pipeline", asked, place, progress)


def sensitivity_stage(config: MemorizationConfig, arm: Arm, name: str, place: Path, progress: Progress) -> None:
    """How many of the prompts' own clips are flagged, behind the model's codec?"""
    folder = place.parents[1]
    copies, training = folder / THROUGH_CODEC / arm.name / MADE_MANIFEST, folder / SETS / arm.name / TRAINING
    audit_clips(config, name, open_corpus(copies), open_corpus(training), folder, place, progress)


def control_stage(config: MemorizationConfig, arm: Arm, name: str, place: Path, progress: Progress) -> None:
    """The arm's clips against another seed's training clips, less recordings of its own: how often are no copies flagged?"""
    folder = place.parents[1]
    own, theirs = (folder / SETS / one.name / TRAINING for one in (arm, other_seed(config, arm)))
    audit_control(config, name, folder / MADE / arm.name / "manifest.jsonl", own, theirs, folder, place, progress)
