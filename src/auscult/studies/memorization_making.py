"""How each stage of a memorization study is made; all go on where they were stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..audit import AuditConfig, audit
from ..corpus import Clip, Corpus, open_corpus
from ..descriptors.base import load_descriptor
from ..duplicates import CLUSTERS, DedupConfig, deduplicate
from ..errors import CorpusError
from ..folders import CARD, Progress, write_card
from ..indexing import index
from ..inputs import Source, is_store
from ..store import DescriptorStore
from .memorization_arms import BACKGROUND, DEDUPLICATED, MADE, MODELS, NULL, PROMPTS, REPEATED, SETS, TRAINING, WITH_COPIES, Arm
from .memorization_config import SOUNDS, MemorizationConfig, train_config
from .sets import (
    background_and_null,
    chosen,
    divide,
    prompted,
    read_manifest,
    read_pool,
    repeated,
    write_manifest,
    write_sounds,
)


def make_source(config: MemorizationConfig, place: Path, progress: Progress) -> None:
    """The clips that everything is drawn from, written down once."""
    place.mkdir(exist_ok=True)
    data, duration_s = config.data, model_duration_s(config)
    most = {"background": config.audits.background_clips, "null": config.audits.null_clips}
    if data.source == SOUNDS:
        pool = write_sounds(place / SOUNDS, config.sizes[-1], 0, duration_s)
    else:
        pool = read_pool(data.source, audio_root=data.audio_root, encoding=data.encoding)
    write_manifest(place / "clips.jsonl", pool)
    for number, (role, count) in enumerate(most.items(), 1):
        if getattr(data, role) == SOUNDS:
            write_manifest(place / f"{role}.jsonl", write_sounds(place / role, count, number, duration_s))
        progress(number, len(most), "preparing clips")
    write_card(place, "clips of a study", {"source": data.source, "clips": len(pool)})


def make_set(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    """Manifests of an arm: what is trained on, prompts, and, unless they are given, background and null."""
    place.mkdir(exist_ok=True)
    parts = divide(read_manifest(place.parents[1] / "source" / "clips.jsonl"), arm.size, arm.seed, config.data.group)
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


def describe_stage(config: MemorizationConfig, name: str, role: str, place: Path, progress: Progress) -> None:
    """Descriptors of a given background or null, once for all audits."""
    source = given(config, role, place.parents[1])
    descriptor = load_descriptor(name, **_parameters(config, name))
    index(source, place, descriptor=descriptor, progress=progress)


def given(config: MemorizationConfig, role: str, folder: Path) -> Corpus:
    """Background or null, as they are given."""
    named = getattr(config.data, role)
    return open_corpus(folder / "source" / f"{role}.jsonl") if named == SOUNDS else clips_of(named)


def clips_of(source: str) -> Corpus:
    """A corpus that is no store.

    Raises
    ------
    CorpusError
        It is one: a study compares by several descriptors.
    """
    if is_store(source):
        raise CorpusError(f"{source}: is a store of one descriptor, and a study compares by several; give the clips themselves")
    return open_corpus(source)


def _parameters(config: MemorizationConfig, name: str) -> dict[str, Any]:
    """Settings of a descriptor: mel's window is as long as the model's sounds."""
    if name == "mel":
        return {"duration_s": mel_window_s(config)}
    return {"model": config.audits.clap} if name == "clap" and config.audits.clap else {}


def model_duration_s(config: MemorizationConfig) -> float:
    """Length of the generated clips."""
    return train_config(config, "clips.jsonl", 0).data.duration_s


def mel_window_s(config: MemorizationConfig) -> float:
    """Window of mel."""
    return config.audits.duration_s or model_duration_s(config)


def train_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    from ..generation.training import train

    folder = place.parents[1]
    manifest = folder / SETS / arm.name / (TRAINING if arm.copies is None else WITH_COPIES)
    if arm.deduplicated:
        manifest = folder / DEDUPLICATED / f"{arm.name}.jsonl"
    train(train_config(config, str(manifest), arm.seed, repeated=arm.copies is not None), place, progress=progress)
    for name in ("cache", "checkpoints"):  # only a run that goes on needs these, and there are many models
        shutil.rmtree(place / name, ignore_errors=True)


def generate_stage(config: MemorizationConfig, arm: Arm, place: Path, progress: Progress) -> None:
    from ..generation.generating import GenerateConfig, generate

    folder, sampling = place.parents[1], config.generate
    with _threads(config.threads):
        generate(
            str(folder / MODELS / arm.model / "pipeline"),
            folder / SETS / arm.name / PROMPTS,
            place,
            config=GenerateConfig(steps=sampling.steps, guidance_scale=sampling.guidance_scale, seed=arm.seed),
            device=config.device,
            batch_size=sampling.batch,
            offline=True,
            progress=progress,
        )


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        described = folder / "described" / f"{name}-{role}"
        return DescriptorStore.open(described) if (described / CARD).is_file() else given(config, role, folder)
    manifest = folder / SETS / arm.name / f"{role}.jsonl"
    return open_corpus(manifest) if read_manifest(manifest) else None


def audit_stage(config: MemorizationConfig, arm: Arm, name: str, place: Path, progress: Progress) -> None:
    from ..report import write_report

    folder, tau = place.parents[1], config.audits.taus().get(name)
    settings = AuditConfig(
        descriptor=_named(config, name),
        duration_s=mel_window_s(config) if name == "mel" else None,
        tau=tau,
        fdr=config.audits.fdr if tau is None else None,
    )
    finish: Callable[[Path], object] = partial(write_report, progress=progress)
    audit(
        open_corpus(folder / MADE / arm.name / "manifest.jsonl"),
        open_corpus(folder / SETS / arm.name / TRAINING),
        _of_audit(config, arm, name, "background", folder),
        null=_of_audit(config, arm, name, "null", folder),
        output=place,
        config=settings,
        progress=progress,
        finish=finish,
    )


def _named(config: MemorizationConfig, name: str) -> str:
    """A descriptor as an audit is asked for it; stores that are given say the rest."""
    given = config.data.background is not None or config.data.null is not None
    return f"clap/1(model={config.audits.clap!r})" if name == "clap" and config.audits.clap and not given else name
