"""How each stage of a mitigation study is made; all go on where they were stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...corpus import Clip, Corpus, open_corpus
from ...folders import Progress, read_card, write_card
from ...guidance.guided import LatentChoice, LatentName
from ...guidance.index import ReferenceIndex
from ...guidance.shifting import at_every_moment
from ...guidance.thresholds import FEWEST, measured_thresholds
from ...metrics.evaluation import EvaluateConfig, System, evaluate
from ...pretrained.clap import DEFAULT_MODEL
from ..config import SOUNDS
from ..making import (
    CLIPS,
    ROLES,
    SOURCE,
    audit_clips,
    audit_control,
    clips_of,
    clips_or_none,
    describe,
    described,
    generate_clips,
    given,
    torch_threads,
    train_model,
)
from ..sets import Parts, divide, prompted, read_manifest, write_manifest, write_sounds
from .arms import (
    GUIDES,
    MADE,
    MODELS,
    OTHER,
    PROMPTS,
    REFERENCE,
    SETS,
    SWEPT_PROMPTS,
    TRACES,
    TRAINING,
    Arm,
    audited_by,
    model_name,
    run_name,
)
from .config import MitigationConfig, train_config
from .guides import ArmGuide

OTHERS = 64  # clips of the source, none trained on, that tell guidance what all sounds share


def make_sets(config: MitigationConfig, place: Path, progress: Progress) -> None:
    """Manifests: what each model is trained on, its prompts; and clips that none is trained on, for guidance and for quality.

    Training sets are those of the memorization study. Prompts go round the captions, so that the first few are of all.
    """
    pool = read_manifest(place.parent / SOURCE / CLIPS)
    parts = divided(config, pool)
    for seed, part in parts.items():
        folder = place / model_name(config, seed)
        write_manifest(folder / TRAINING, part.training)
        some, each = prompted(part.training, config.generate.clips, seed)
        rows = [clip for _ in range(each) for clip in some]
        write_manifest(folder / PROMPTS, rows)
        write_manifest(folder / SWEPT_PROMPTS, rows[: config.sweeps.clips])
    others, left = left_over(config, parts)
    if config.quality.reference == SOUNDS:
        left = write_sounds(place.parent / SOURCE / REFERENCE, config.quality.clips, len(ROLES) + 1, config.duration_s)
    found = {OTHER: others, REFERENCE: left}
    for role, clips in found.items():
        write_manifest(place / f"{role}.jsonl", clips)
    write_card(place, "sets of a study", {"counts": {role: len(clips) for role, clips in found.items()}})
    progress(1, 1, "sets")


def divided(config: MitigationConfig, pool: Sequence[Clip]) -> dict[int, Parts]:
    """By seed, the clips that its model is trained on, and those that it is not."""
    size = len(pool) if config.model.pipeline else config.size
    return {seed: divide(pool, size, seed, config.data.group) for seed in config.seeds}


def left_over(config: MitigationConfig, parts: Mapping[int, Parts]) -> tuple[list[Clip], list[Clip]]:
    """Of the clips that no model is trained on: those for guidance, and those that quality is measured by."""
    kept = set.intersection(*({clip.clip_id for clip in part.rest} for part in parts.values()))
    rest = [clip for clip in parts[config.seeds[0]].rest if clip.clip_id in kept]
    others = rest[: min(OTHERS, len(rest) // 3)]
    return others, rest[len(others) :][: config.quality.clips]


def reference_of(config: MitigationConfig, folder: Path) -> Corpus | None:
    """Real clips for quality, as given or as drawn; None where there are none."""
    named = config.quality.reference
    return clips_of(named) if named not in (None, SOUNDS) else clips_or_none(folder / SETS / f"{REFERENCE}.jsonl")


def describe_stage(config: MitigationConfig, name: str, seed: int, place: Path, progress: Progress) -> None:
    """Descriptors of a model's training clips, once for all audits."""
    source = open_corpus(place.parents[1] / SETS / model_name(config, seed) / TRAINING)
    describe(config, name, source, place, progress)


def train_stage(config: MitigationConfig, seed: int, place: Path, progress: Progress) -> None:
    manifest = place.parents[1] / SETS / model_name(config, seed) / TRAINING
    train_model(train_config(config, manifest, seed), place, progress)


def model_of(config: MitigationConfig, seed: int, folder: Path) -> str:
    """The pipeline of a seed."""
    return config.model.pipeline or str(folder / MODELS / model_name(config, seed) / "pipeline")


# --- guides -----------------------------------------------------------------------------------------------------------


def choice_of(config: MitigationConfig, name: LatentName) -> LatentChoice:
    """A latent descriptor of the clips that are made."""
    return LatentChoice(name, config.duration_s, None, config.audits.clap or DEFAULT_MODEL)


def guide_stage(config: MitigationConfig, seed: int, name: LatentName, place: Path, progress: Progress) -> None:
    """The references of a model as a latent descriptor hears them, and thresholds of similarity.

    What all sounds share is told by other clips, or the background clips where none are left: few references do not tell it.
    """
    from ...generation.pipelines import load_pipeline, locate_pipeline

    folder = place.parents[1]
    others = clips_or_none(folder / SETS / f"{OTHER}.jsonl") or given(config.data, "background", folder)
    with torch_threads(config.threads):
        located = locate_pipeline(model_of(config, seed, folder), offline=True)
        pipe = load_pipeline(located, device=config.device, dtype="float32")
        descriptor = choice_of(config, name).of(pipe, config.device)
        whole = ReferenceIndex.from_audio(others, descriptor, progress=progress)
        training = open_corpus(folder / SETS / model_name(config, seed) / TRAINING)
        center = whole.center if descriptor.center else None
        index = ReferenceIndex.from_audio(training, descriptor, center=center, progress=progress)
        index.save(place / "index", overwrite=True)
        low, high, of = thresholds_of(config, name, index, whole, descriptor)
    facts = {"threshold_low": low, "threshold_high": high, "measured_on": of, "references": len(set(index.ids))}
    write_card(place, "references of guidance", {"spec": index.spec, **facts})


def thresholds_of(
    config: MitigationConfig, name: LatentName, index: ReferenceIndex, others: ReferenceIndex, descriptor: Any
) -> tuple[float, float, str | None]:
    """Low and high threshold of a model's references, and what they were measured on, if they were.

    Those that are given are of ``[guidance] descriptor``: similarities of another are others, so its thresholds are measured.
    """
    low, high = config.guidance.threshold_low, config.guidance.threshold_high
    if name != config.guidance.descriptor:
        low = high = None
    if low is not None and high is not None:
        return low, high, None
    many = len(set(index.ids)) >= FEWEST
    measured_on = index if many else others
    found = measured_thresholds(measured_on, others=at_every_moment(measured_on, descriptor))
    return *found.beside(low, high), "training clips" if many else "other clips"


def guide_of(config: MitigationConfig, arm: Arm, seed: int, folder: Path) -> ArmGuide:
    """What guides an arm's sampling with a model."""
    place = folder / GUIDES / f"{arm.descriptor}-{model_name(config, seed)}"
    card = read_card(place, "references of guidance")
    before = folder / TRACES / f"none-s{seed}" if arm.beside == "opposite" else None
    return ArmGuide(
        place / "index",
        choice_of(config, arm.descriptor),
        arm.amg(config.guidance.amg(card["threshold_low"], card["threshold_high"])),
        folder / TRACES / run_name(arm, seed),
        arm.shifted,
        arm.beside,
        before,
    )


def generate_stage(config: MitigationConfig, arm: Arm, seed: int, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    guide = guide_of(config, arm, seed, folder)
    guide.traces.mkdir(parents=True, exist_ok=True)
    prompts = folder / SETS / model_name(config, seed) / (SWEPT_PROMPTS if arm.swept else PROMPTS)
    guidance = {"arm": arm.name, "descriptor": arm.descriptor, "amg": vars(guide.config), "beside": arm.beside or None}
    own = {"duration_s": config.duration_s} if config.model.pipeline else {}
    noise = config.guidance.first_seed + seed
    generate_clips(
        config, model_of(config, seed, folder), prompts, noise, place, progress, guide=guide, guidance=guidance, **own
    )


# --- audits and quality -----------------------------------------------------------------------------------------------


def audit_stage(config: MitigationConfig, arm: Arm, seed: int, name: str, place: Path, progress: Progress) -> None:
    if name not in audited_by(config, arm):
        raise ValueError(f"{run_name(arm, seed)}: {name} hears what guides it, and judges nothing")
    folder = place.parents[1]
    made = open_corpus(folder / MADE / run_name(arm, seed) / "manifest.jsonl")
    audit_clips(config, name, made, described(folder, name, model_name(config, seed)), folder, place, progress)


def control_stage(
    config: MitigationConfig, arm: Arm, seed: int, other: int, name: str, place: Path, progress: Progress
) -> None:
    """What an arm made with a model against another seed's training clips, which cannot have been copied."""
    folder = place.parents[1]
    own, theirs = (folder / SETS / model_name(config, one) / TRAINING for one in (seed, other))
    made = folder / MADE / run_name(arm, seed) / "manifest.jsonl"
    audit_control(config, name, made, own, theirs, folder, place, progress)


def quality_stage(config: MitigationConfig, runs: list[str], place: Path, progress: Progress) -> None:
    """Scores of what each arm made with each model, against real clips."""
    folder = place.parent
    reference = reference_of(config, folder)
    count = 0 if reference is None else sum(1 for _ in reference)
    place.mkdir(exist_ok=True)
    scores: dict[str, Any] = {}
    if reference is not None and count >= config.quality.least:
        model = config.quality.clap or config.audits.clap
        clap = (f"clap:{model}",) if model else ()
        metrics = config.quality.metrics + (("clap_score",) if clap else ())
        asked = EvaluateConfig(backends=("logmel", *clap), metrics=tuple(dict.fromkeys(metrics)))
        systems = {name: System(open_corpus(folder / MADE / name / "manifest.jsonl")) for name in runs}
        with torch_threads(config.threads):
            found = evaluate(systems, reference, config=asked, cache=place / "cache", progress=progress)
        scores = {one.name: {key: score.to_json() for key, score in one.scores.items()} for one in found.results}
    content = {"reference": count if scores else 0, "scores": scores}
    write_card(place, "scores of a study", content)
