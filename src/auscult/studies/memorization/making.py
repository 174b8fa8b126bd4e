"""How each stage of a memorization study is made; all go on where they were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...corpus import Clip, open_corpus
from ...duplicates import CLUSTERS, DedupConfig, deduplicate
from ...folders import Progress, write_card
from ...inputs import Source
from ..making import (
    CLIPS,
    ROLES,
    SOURCE,
    audit_clips,
    clips_or_none,
    describe,
    described,
    generate_clips,
    given,
    mel_window_s,
    train_model,
)
from ..sets import background_and_null, chosen, divide, prompted, read_manifest, repeated, write_manifest
from .arms import BACKGROUND, DEDUPLICATED, MADE, MODELS, NULL, PROMPTS, REPEATED, SETS, TRAINING, WITH_COPIES, Arm
from .config import MemorizationConfig, train_config


def make_set(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """Manifests of an arm: what is trained on, prompts, and, unless they are given, background and null."""
    place.mkdir(exist_ok=True)
    parts = divide(read_manifest(place.parents[1] / SOURCE / CLIPS), arm.size, arm.seed, config.data.group)
    write_manifest(place / TRAINING, parts.training)
    again = chosen(parts.training, config.duplicates.share, arm.seed) if arm.copies is not None else ()
    write_manifest(place / REPEATED, again)
    if arm.copies is not None:
        write_manifest(place / WITH_COPIES, repeated(parts.training, again, arm.copies))
    background, null = background_and_null(parts.rest, config.audits.background_clips, config.audits.null_clips)
    write_manifest(place / BACKGROUND, background)
    write_manifest(place / NULL, null)
    ids = {clip.clip_id for clip in again}
    half = (config.generate.clips + 1) // 2
    groups = [parts.training] if arm.copies is None else [again, [c for c in parts.training if c.clip_id not in ids]]
    wanted = config.generate.clips if arm.copies is None else half
    rows = [clip for group in groups for clip in _prompt_rows(*prompted(group, wanted, arm.seed))]
    write_manifest(place / PROMPTS, rows)
    facts = {"training": len(parts.training), "repeated": len(again), "background": len(background), "null": len(null)}
    write_card(place, "sets of a study", {"arm": vars(arm), **facts, "prompts": len(rows)})
    progress(1, 1, "sets")


def _prompt_rows(clips: Sequence[Clip], each: int) -> list[Clip]:
    """A row for each clip that is to be made: its number of rows may differ between groups."""
    return [clip for clip in clips for _ in range(each)]


def deduplicate_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """Deduplicate the set with copies; what is kept is the training set of the arm."""
    folder = place.parents[1]
    sets = folder / SETS / arm.name
    background = _of_audit(config, arm, "mel", "background", folder)
    # copies of a file are found by their digests; mel finds what is alike without being the same
    settings = DedupConfig(duration_s=mel_window_s(config), tau=config.audits.taus().get("mel", "gap"))

    def kept(made: Path) -> None:
        dropped = {row["clip_id"] for row in _cluster_rows(made) if not row["keep"]}
        clips = [clip for clip in read_manifest(sets / WITH_COPIES) if clip.clip_id not in dropped]
        write_manifest(place.with_name(f"{arm.name}.jsonl"), clips)

    deduplicate(
        open_corpus(sets / WITH_COPIES),
        background=background,
        output=place,
        config=settings,
        progress=progress,
        finish=kept,
    )


def _cluster_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / CLUSTERS).to_pylist()
    return rows


def _of_audit(config: MemorizationConfig, arm: Arm, name: str, role: str, folder: Path) -> Source | None:
    """Background or null of an arm's audit: as given, or what the source leaves over; None where that is nothing."""
    if getattr(config.data, role) is not None:
        return described(folder, name, role) or given(config.data, role, folder)
    return clips_or_none(folder / SETS / arm.name / f"{role}.jsonl")


def describe_stage(config: MemorizationConfig, name: str, role: str, place: Path, progress: Progress) -> None:
    """Descriptors of a given background or null, once for all audits."""
    describe(config, name, given(config.data, role, place.parents[1]), place, progress)


def train_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    manifest = folder / SETS / arm.name / (TRAINING if arm.copies is None else WITH_COPIES)
    if arm.deduplicated:
        manifest = folder / DEDUPLICATED / f"{arm.name}.jsonl"
    train_model(train_config(config, manifest, arm.seed, repeated=arm.copies is not None), place, progress)


def generate_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    generate_clips(
        config, folder / MODELS / arm.model / "pipeline", folder / SETS / arm.name / PROMPTS, arm.seed, place, progress
    )


def audit_stage(config: MemorizationConfig, arm: Arm, name: str, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    background, null = (_of_audit(config, arm, name, role, folder) for role in ROLES)
    made, training = folder / MADE / arm.name / "manifest.jsonl", folder / SETS / arm.name / TRAINING
    audit_clips(config, name, open_corpus(made), open_corpus(training), background, null, place, progress)
