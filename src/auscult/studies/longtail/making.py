"""How each stage of a long-tail study is made; all go on where they were stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...corpus import Clip, open_corpus
from ...duplicates import DedupConfig, deduplicate
from ...folders import Progress, read_card, write_card, write_text
from ..making import (
    CLIPS,
    SOURCE,
    generate_clips,
    given,
    mel_window_s,
    through_codec,
    train_model,
)
from ..sets import read_manifest, write_manifest
from .arms import (
    ALL,
    AUDIO,
    BOTH,
    BY_ID,
    COPIES,
    DUPLICATES,
    EXCLUDING,
    HELD_OUT,
    ID,
    INDEXES,
    MODELS,
    ON_TRAINING,
    OPEN,
    OPENED,
    PLAIN,
    PROMPTS,
    SETS,
    STORES,
    THRESHOLDS,
    TRAINING,
    WITH_COPIES,
    Run,
    model_name,
)
from .config import LongtailConfig, train_config
from .drawing import class_of, draw, prompts_of, write_copies
from .reading import rows_of
from .takes import Takes

if TYPE_CHECKING:
    from ...guidance.thresholds import Thresholds

THRESHOLDS_CARD = "thresholds of guidance"
STORE_OF = {PLAIN: None, AUDIO: EXCLUDING, BOTH: EXCLUDING, ID: BY_ID}
"""The datastore that each kind of model is trained beside."""


def make_set(config: LongtailConfig, seed: int, place: Path, progress: Progress) -> None:
    """Manifests of a seed: what is trained on, held out and asked for."""
    place.mkdir(exist_ok=True)
    drawn = draw(read_manifest(place.parents[1] / SOURCE / CLIPS), config.tail, seed, config.data.group)
    copies = write_copies(place / "copies", drawn.again, seed)
    lists = {
        TRAINING: drawn.training,
        COPIES: copies,
        WITH_COPIES: [*drawn.training, *copies],
        ALL: [*drawn.training, *copies, *drawn.opened],
        OPEN: drawn.opened,
        HELD_OUT: drawn.held_out,
        PROMPTS: prompts_of(drawn, config.prompts, seed),
    }
    for name, clips in lists.items():
        write_manifest(place / name, clips)
    counts = {Path(name).stem: len(clips) for name, clips in lists.items()}
    write_card(place, "sets of a study", {"seed": seed, "frequency": drawn.frequency, "counts": counts})
    progress(1, 1, "sets")


def duplicates_stage(config: LongtailConfig, seed: int, place: Path, progress: Progress) -> None:
    """What of a seed's clips are duplicates, as ``auscult dedup`` finds them."""
    folder = place.parents[1]
    clips, background = open_corpus(folder / SETS / f"s{seed}" / ALL), given(config.data, "background", folder)
    settings = DedupConfig(duration_s=mel_window_s(config), tau=config.tail.tau)
    deduplicate(clips, background=background, output=place, config=settings, progress=progress)


def store_stage(config: LongtailConfig, seed: int, kind: str, place: Path, progress: Progress) -> None:
    """A datastore: no clip of a target's recording is its pair. That which excludes the target alone knows neither recordings
    nor duplicates, and lets equal captions in.
    """
    from ...generation.datastore import DatastoreConfig, build_datastore

    folder = place.parents[1]
    source = folder / SETS / f"s{seed}" / (ALL if kind == OPENED else WITH_COPIES)
    asked = config.retrieval
    kept = max(asked.neighbors, *asked.k)
    settings = DatastoreConfig(key=asked.key, model=asked.model, neighbors=kept, equal_captions=kind == BY_ID)
    if kind == BY_ID:
        build_datastore(open_corpus(source), output=place, config=settings, progress=progress)
        return
    ids = [clip.clip_id for clip in read_manifest(source)]
    build_datastore(
        open_corpus(source),
        output=place,
        duplicates=folder / DUPLICATES / f"s{seed}",
        together=dict(zip(ids, config.takes.of(ids), strict=True)),
        config=settings,
        progress=progress,
    )


def train_stage(config: LongtailConfig, seed: int, model: str, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    kind = STORE_OF[model]
    store = None if kind is None else folder / STORES / f"s{seed}-{kind}"
    manifest = folder / SETS / f"s{seed}" / WITH_COPIES
    train_model(train_config(config, model, manifest, store, seed), place, progress)


# --- generation -------------------------------------------------------------------------------------------------------


def generate_stage(config: LongtailConfig, run: Run, place: Path, progress: Progress) -> None:
    folder = place.parents[1]
    model = folder / MODELS / model_name(run.seed, run.model) / "pipeline"
    prompts = _prompts(config, run, folder)
    store = None if run.store is None else folder / STORES / f"s{run.seed}-{run.store}"
    pairs = {} if store is None else {"datastore": store, "k": run.k}
    guide = _guide(config, run, folder) if run.guided else {}
    generate_clips(config, model, prompts, run.seed, place, progress, **pairs, **guide)


def _prompts(config: LongtailConfig, run: Run, folder: Path) -> Path:
    """The manifest of a run's prompts; that of a swap names the pairs of other prompts."""
    sets = folder / SETS / f"s{run.seed}"
    if run.prompts != ON_TRAINING:
        return sets / HELD_OUT
    if not run.swapped:
        return sets / PROMPTS
    clips = read_manifest(sets / PROMPTS)
    usual = dataclasses.replace(run, swapped=False)
    shown = {row["reference"]: tuple(row["retrieved"]) for row in rows_of(folder, usual)}
    partners = swap_partners(clips, shown, run.seed, config.takes)
    rows = [
        {"clip_id": clip.clip_id, "caption": clip.caption, "labels": list(clip.labels), "pairs": list(shown[partner.clip_id])}
        for clip, partner in zip(clips, partners, strict=True)
    ]
    path = folder / SETS / f"s{run.seed}" / f"{run.way}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def swap_partners(
    clips: Sequence[Clip], shown: dict[str, tuple[str, ...]], seed: int, takes: Takes | None = None
) -> list[Clip]:
    """For each prompt another, whose pairs it is shown instead: of another class where there is one, never one that is
    shown a take of the prompt's own recording.

    Raises
    ------
    ValueError
        A prompt has none.
    """
    import numpy as np

    takes = takes or Takes()
    held = {one: {takes.recording(pair) for pair in shown[one]} for one in (clip.clip_id for clip in clips)}
    rng = np.random.default_rng([seed, 1])
    partners = []
    for clip in clips:
        able = [
            other
            for other in clips
            if other.clip_id != clip.clip_id and takes.recording(clip.clip_id) not in held[other.clip_id]
        ]
        others = [other for other in able if class_of(other) != class_of(clip)] or able
        if not others:
            raise ValueError(f"no other prompt's pairs can be shown with {clip.clip_id!r}: all hold it; raise [generate] clips")
        partners.append(others[int(rng.integers(len(others)))])
    return partners


def codec_stage(config: LongtailConfig, seed: int, place: Path, progress: Progress) -> None:
    """The clips of a seed's training prompts behind the codec, which all of its models have alike."""
    folder = place.parents[1]
    clips = read_manifest(folder / SETS / f"s{seed}" / PROMPTS)
    through_codec(config, folder / MODELS / model_name(seed, PLAIN) / "pipeline", clips, place, progress)


def index_stage(config: LongtailConfig, seed: int, model: str, place: Path, progress: Progress) -> None:
    """All clips of a seed as guidance knows them, by a model's latents."""
    from ...generation.pipelines import load_pipeline, locate_pipeline
    from ...guidance.index import ReferenceIndex
    from ...guidance.statistics import LatentStatistics

    folder = place.parents[1]
    located = locate_pipeline(str(folder / MODELS / model_name(seed, model) / "pipeline"), offline=True)
    pipe = load_pipeline(located, device=config.device)
    clips = open_corpus(folder / SETS / f"s{seed}" / ALL)
    ReferenceIndex.from_audio(clips, LatentStatistics.of(pipe), progress=progress).save(place)


def _guide(config: LongtailConfig, run: Run, folder: Path) -> dict[str, Any]:
    """Guidance away from the very pairs that the unguided run has shown, and what the card says of it."""
    from .guiding import AwayFromOwn

    shown = {row["clip_id"]: tuple(row["retrieved"]) for row in rows_of(folder, dataclasses.replace(run, guided=False))}
    index = folder / INDEXES / model_name(run.seed, run.model)
    amg = amg_config(config, index.with_name(index.name + THRESHOLDS))
    said = json.loads(json.dumps(dataclasses.asdict(amg), default=repr))
    return {"guide": AwayFromOwn(index, amg, shown), "guidance": {"away from": "own pairs", "amg": said}}


def thresholds_stage(config: LongtailConfig, seed: int, model: str, place: Path, progress: Progress) -> None:
    """What guidance by a model counts as similar, measured once on all clips that could be shown, those of the open datastore
    among them, without the near-duplicates: how similar copies are is no measure of sounds that are none. What is given stays
    as it is."""
    low, high = config.guidance.threshold_low, config.guidance.threshold_high
    measured: dict[str, Any] | None = None
    if low is None or high is None:
        found = _measured(config, place.parents[1], seed, model)
        low, high = found.beside(low, high)
        measured = dataclasses.asdict(found)
    place.mkdir(exist_ok=True)
    write_card(place, THRESHOLDS_CARD, {"threshold_low": low, "threshold_high": high, "measured": measured})
    progress(1, 1, "thresholds")


def _measured(config: LongtailConfig, folder: Path, seed: int, model: str) -> Thresholds:
    from ...generation.pipelines import load_pipeline, locate_pipeline
    from ...guidance.index import ReferenceIndex
    from ...guidance.shifting import at_every_moment
    from ...guidance.statistics import LatentStatistics
    from ...guidance.thresholds import measured_thresholds

    name = model_name(seed, model)
    references = ReferenceIndex.load(folder / INDEXES / name)
    copies = {clip.clip_id for clip in read_manifest(folder / SETS / f"s{seed}" / COPIES)}
    references = references.without(copies & set(references.ids))  # a silent one is not in it
    pipe = load_pipeline(locate_pipeline(str(folder / MODELS / name / "pipeline"), offline=True), device=config.device)
    descriptor = LatentStatistics.of(pipe)
    return measured_thresholds(references, others=at_every_moment(references, descriptor))


def amg_config(config: LongtailConfig, thresholds: Path) -> Any:
    """Guidance with the thresholds of a card."""
    from ...guidance.amg import AmgConfig

    card = read_card(thresholds, THRESHOLDS_CARD)
    return AmgConfig(**vars(config.guidance) | {key: card[key] for key in ("threshold_low", "threshold_high")})
