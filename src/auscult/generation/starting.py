"""What training starts from where it does not start from nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..pretrained import first_line, split_revision
from .denoiser import stream_widths
from .encoding import Encoders, load_encoders
from .mel import MelSpec
from .pipeline import RetrievalAugmentedAudioPipeline
from .pipelines import HUB_NAME, quiet
from .public_parts import at_revision
from .tango_checkpoint import CONFIGS, convert_tango, is_tango
from .training_config import ObjectiveConfig, TrainConfig
from .warmstart import brought_by, from_audioldm, from_audioldm2

OURS, TANGO = RetrievalAugmentedAudioPipeline.__name__, "TANGO"
KINDS = (OURS, "AudioLDMPipeline", "AudioLDM2Pipeline", TANGO)
INDEX = "model_index.json"


@dataclass(frozen=True)
class Start:
    """Parts of a model that training goes on from.

    Attributes
    ----------
    unet, vae, vocoder, scheduler, encoders, mel
        As the pipeline takes them.
    brought
        Names of the denoiser's parameters that were there before; those that are new are trained alone during
        ``optimizer.freeze_steps``.
    public
        Whether it is a public checkpoint, which has yet to show that it is read as it was trained.
    """

    unet: Any
    vae: Any
    vocoder: Any
    scheduler: Any
    encoders: Encoders
    mel: MelSpec
    brought: frozenset[str]
    public: bool


def load_start(config: TrainConfig, *, device: Any = "cpu") -> Start:
    """Load what ``[start] from`` names: a pipeline of ours, or a public AudioLDM, AudioLDM 2 or TANGO.

    Raises
    ------
    ModelError
        It is none of these, or cannot be loaded.
    ValueError
        The objective is another than what it was trained with.
    """
    source = str(config.start.source)
    kind, place = start_kind(source)
    if kind not in KINDS:
        raise ModelError(f"[start] from = {source!r}: is a {kind}, expected one of {', '.join(KINDS)}")
    if config.start.heads is not None and kind != "AudioLDMPipeline":
        raise ValueError(f"[start] heads is for an AudioLDMPipeline, and {source!r} is a {kind}; leave it out")
    try:
        with quiet():
            pipe = _load(kind, place, config)
    except ModelError as error:
        raise ModelError(f"[start] from: {error}") from error
    if kind == OURS and config.retrieval.datastore is not None:
        _complete(pipe, config)
    _check_objective(source, pipe.scheduler, config.objective)
    names = frozenset(name for name, _ in pipe.unet.named_parameters())
    brought = brought_by(pipe.unet) if kind == "AudioLDMPipeline" else names
    for encoder in (pipe.encoders.prompt, pipe.encoders.caption, pipe.encoders.audio):
        if encoder is not None:
            encoder.to(device).eval().requires_grad_(False)
    return Start(pipe.unet, pipe.vae, pipe.vocoder, pipe.scheduler, pipe.encoders, pipe.mel, brought, kind != OURS)


def start_kind(source: str) -> tuple[str, str]:
    """The class of a pipeline, or ``"TANGO"``, and where it is: the folder itself, the one in a training's, or the hub name as
    given.

    Raises
    ------
    ModelError
        There is no such folder or name.
    """
    folder = Path(source).expanduser()
    if is_tango(folder):
        return TANGO, str(folder)
    if not folder.exists() and HUB_NAME.fullmatch(source):
        return _hub_kind(source), source
    inside = folder if (folder / INDEX).is_file() else folder / "pipeline"
    try:
        return str(json.loads((inside / INDEX).read_text("utf-8")).get("_class_name")), str(inside)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"[start] from = {source!r}: no pipeline folder ({first_line(error)}); give OUT/pipeline of a training, or the "
            "folder or hub name of AudioLDM, AudioLDM 2 or TANGO"
        ) from error


def _hub_kind(source: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, revision = split_revision(source)
    if Path(name).is_dir():
        raise ModelError(f"[start] from = {source!r}: a revision is for names on the hub, {name} is a folder; leave it out")
    at = revision or None
    try:
        with quiet():
            return str(json.loads(Path(hf_hub_download(name, INDEX, revision=at)).read_text("utf-8")).get("_class_name"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        offline = isinstance(error, LocalEntryNotFoundError)
        cached = offline and isinstance(try_to_load_from_cache(name, CONFIGS[0], revision=at), str)
        if cached or (isinstance(error, EntryNotFoundError) and not offline):
            return TANGO  # no diffusers pipeline; the conversion names what it misses
        raise ModelError(
            f"[start] from = {source!r}: no such folder, and the Hugging Face hub does not give it ({first_line(error)}); "
            "check the name and the network, or download it elsewhere and give its folder"
        ) from error


def _load(kind: str, place: str, config: TrainConfig) -> Any:
    names, retrieves = config.encoders, config.retrieval.datastore is not None
    audio = names.audio if retrieves or names.audio == "mel" else None
    if kind == "AudioLDMPipeline":
        caption = names.caption if retrieves or names.caption == "hashed" else None
        return from_audioldm(
            place, caption=caption, audio=audio, heads=config.start.heads, mel=_given(config), seed=config.seed
        )
    if kind == "AudioLDM2Pipeline":
        return from_audioldm2(place, audio=audio if retrieves else None, mel=_given(config))
    if kind == TANGO:
        own = names.caption if names.caption != "hashed" else None
        return convert_tango(place, text_encoder=own, prediction_type=config.objective.prediction)
    try:
        name, at = at_revision(place)
        return RetrievalAugmentedAudioPipeline.from_pretrained(name, **at)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{place}: cannot be loaded ({first_line(error)}); copy it anew, or train it again") from error


def _complete(pipe: Any, config: TrainConfig) -> None:
    """Give a model that was trained without pairs the encoders of references that it lacks."""
    reads, names = stream_widths(pipe.unet), config.encoders
    if reads is None:  # of the family "tango": its one encoder reads prompts, so that it is there
        return
    lacks = {part: getattr(pipe.encoders, part) is None for part in ("caption", "audio")}
    found = load_encoders(
        None, names.caption if lacks["caption"] else None, names.audio if lacks["audio"] else None, device="cpu", mel=pipe.mel
    )
    widths = {"audio": (found.audio_dim, reads[0]), "caption": (found.text_dim, reads[1])}
    for part, (width, wanted) in widths.items():
        if lacks[part] and width != wanted:
            raise ValueError(
                f"[encoders] {part} = {getattr(names, part)!r} makes tokens of {width} numbers, and [start] from = "
                f"{config.start.source!r}, which has no such encoder, reads {wanted}; choose one of {wanted}, or leave out "
                "[retrieval] datastore"
            )
    helpers = {"caption": "caption_tokenizer", "audio": "audio_extractor"}
    for part in (part for part in helpers if lacks[part]):
        pipe.register_modules(**{f"{part}_encoder": getattr(found, part), helpers[part]: getattr(found, helpers[part])})


def _given(config: TrainConfig) -> MelSpec:
    """The log-mel of the configuration, by default the published one; the vocoder is held against it."""
    return MelSpec(win_length=config.mel.n_fft, **vars(config.mel))


def _check_objective(source: str, scheduler: Any, objective: ObjectiveConfig) -> None:
    trained = replace(
        objective,
        prediction=scheduler.config.prediction_type,
        timesteps=scheduler.config.num_train_timesteps,
        beta_start=scheduler.config.beta_start,
        beta_end=scheduler.config.beta_end,
        beta_schedule=scheduler.config.beta_schedule,
    )
    wrong = {name: value for name, value in vars(trained).items() if value != getattr(objective, name)}
    if wrong:
        lines = ", ".join(f"{name} = {json.dumps(value)}" for name, value in wrong.items())
        raise ValueError(f"[start] from = {source!r} was trained with another objective; set [objective] {lines}")
