"""Before the first step: clips, codec, encoders, latents, neighbors, and the gates that each has to pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import CorpusError, ModelError
from ..folders import Progress, no_progress
from .autoencoder import MelAutoencoder, PatchPCACodec, fold
from .cached_arrays import cached
from .checkpoints import told_if_full
from .conditioning import Conditions, Tokens
from .data_gates import captions_gate, pairs_gate, split_gate
from .denoiser import DenoiserConfig, build, family_of
from .denoiser import preset as denoiser_preset
from .encoding import HASHED_TOKENS, Encoders, load_encoders
from .examples import (
    Clips,
    Listed,
    clips_key,
    duration_samples,
    latents_of,
    list_clips,
    mels_of,
    prompt_vectors,
    read_clips,
    text_tokens,
    written_tokens,
)
from .feed import Feed, encode_prompts
from .gates import GateResult, after, check
from .mel import MelSpec
from .neighbors import Neighbors, find_neighbors, hidden_rows, own_pairs, pair_tokens
from .splitting import split_clips
from .starting import load_start
from .training_config import NO_ENCODER, TrainConfig
from .training_parts import parts_of
from .vocoder import GriffinLimVocoder
from .weights import weights_digest

IntArray = npt.NDArray[np.int64]
CACHE = "cache"
MOST_FITTED = 2000  # clips that a codec is fitted on and judged by; more change nothing but the time and memory
MOST_READ = 16  # clips that a public denoiser is held against
PROMPT_TOKENS = 32  # of hashed captions where they are prompts, those of mixtures among them
_FOLDS = {"cpu4": 4, "cpu8": 8, "gpu": 4}


@dataclass(frozen=True)
class Prepared:
    """What the loop needs.

    Attributes
    ----------
    feed
        Makes batches.
    held_out
        (n,) rows of ``feed.clips`` that are not trained on; may be empty.
    unet
        The denoiser before the first step, on the CPU.
    brought
        Names of parameters that a warm start brought; empty if training starts from nothing.
    vocoder, duration_s
        For the pipeline.
    gates
        What was checked, all passed.
    parts
        Digests of what the run is made of, see :func:`~auscult.generation.training_parts.parts_of`.
    """

    feed: Feed
    held_out: IntArray
    unet: Any
    brought: frozenset[str]
    vocoder: Any
    duration_s: float
    gates: tuple[GateResult, ...]
    parts: dict[str, str]


def prepare(
    config: TrainConfig, out: Path, *, listed: Listed | None = None, device: Any = "cpu", progress: Progress = no_progress
) -> Prepared:
    """Read, compute and check everything that training needs; what was computed before is found in ``out/cache``.

    ``listed`` is what :func:`~auscult.generation.examples.list_clips` gave, where it was asked already.

    Raises
    ------
    CorpusError, ModelError, StoreError
        A clip, model or datastore cannot be used.
    GateError
        A check failed.
    """
    cache = out / CACHE
    start: Any = None if config.start.source is None else load_start(config, device=device)
    spec = MelSpec(win_length=config.mel.n_fft, **vars(config.mel)) if start is None else start.mel
    shape = None if start is not None else _denoiser_preset(config)
    encoders = start.encoders if start is not None else _load_encoders(config, shape, spec, device)
    codec = start.vae if start is not None else _load_codec(config)
    levels = len(start.unet.config.block_out_channels if shape is None else shape.channels)
    by = (fold(codec) if codec is not None else _FOLDS.get(config.codec.kind, config.codec.patch)) * 2 ** (levels - 1)
    samples = duration_samples(config.data.duration_s, spec, by)
    listed = list_clips(config.data) if listed is None else listed
    clips = read_clips(listed, config.data, spec, samples, cache, progress=progress)
    rows, held_out = _split(clips, config)
    gates = list(check([split_gate(clips, rows, held_out)]))
    if codec is None:
        codec = _make_codec(config, clips, rows, spec, cache, device, progress)
    codec = codec.to(device).eval().requires_grad_(False)
    made_here = config.codec.kind != "pretrained" and start is None
    with after(gates):
        gates += _codec_gates(config, codec, clips, spec, rows, made_here=made_here)
    unet = _new_unet(shape, config, codec, encoders) if start is None else start.unet
    codec_digest = weights_digest(codec)
    latents = latents_of(clips, codec, spec, cache, codec_digest, progress=progress)
    family = family_of(unet)
    by_whom = encoders.digests()
    if family == "retrieval":
        prompts = Conditions(prompt_vectors(clips.captions, encoders, cache, by_whom["prompt"], progress=progress))
    else:
        text = text_tokens(clips.captions, encoders, cache, by_whom["caption"], progress=progress)
        written = family == "audioldm2"
        audio = written_tokens(clips.captions, encoders, cache, by_whom, progress=progress) if written else (None, None)
        prompts = Conditions(None, *text, *audio)
    if start is not None and start.public and config.gates.start:
        with after(gates):
            gates += check([_start_gate(start, latents, prompts, device)])
    neighbors = _neighbors(config, clips, held_out, encoders, spec, samples, cache, by_whom, family != "tango", progress)
    pairs = None if neighbors is None else neighbors.store.pairs["caption"].to_pylist()
    gates.append(captions_gate(encoders, clips, rows, pairs, mixes=config.mixing.share > 0, seed=config.seed))
    if neighbors is not None:
        gates.append(pairs_gate(neighbors, clips, rows, held_out))
    feed = Feed(
        clips,
        rows,
        latents,
        prompts,
        encode_prompts(encoders, family, [""]),
        neighbors,
        family,
        codec,
        encoders,
        spec,
        config,
        config.objective.timesteps,
    )
    vocoder = start.vocoder if start is not None else _load_vocoder(config, spec)
    brought = frozenset() if start is None else start.brought
    parts = parts_of(clips, held_out, spec, codec_digest, by_whom, neighbors)
    return Prepared(feed, held_out, unet, brought, vocoder, samples / spec.sample_rate_hz, tuple(gates), parts)


def _start_gate(start: Any, latents: torch.Tensor, prompts: Conditions, device: Any) -> GateResult:
    from .starting_checks import prediction_gate

    rows = np.unique(np.linspace(0, len(latents) - 1, MOST_READ).astype(np.int64))
    start.unet.to(device)
    gate = prediction_gate(start.unet, start.scheduler, latents[rows].to(device), prompts.select(rows).to(device))
    start.unet.to("cpu")
    return gate


def _split(clips: Clips, config: TrainConfig) -> tuple[IntArray, IntArray]:
    if config.data.validation:
        source = np.array(clips.sources)
        if not (source == 0).any() or not (source == 1).any():
            raise CorpusError("of the two corpora [data] train and validation, one has no clip that can be used")
        return np.flatnonzero(source == 0), np.flatnonzero(source == 1)
    if config.data.validation_share == 0:
        return np.arange(len(clips)), np.zeros(0, np.int64)
    return split_clips(clips, config.data.validation_share, config.seed, config.data.group)


def _denoiser_preset(config: TrainConfig) -> DenoiserConfig:
    named = {name: value for name, value in vars(config.denoiser).items() if name != "preset" and value is not None}
    return denoiser_preset(config.denoiser.preset, **named)


def _load_encoders(config: TrainConfig, shape: DenoiserConfig | None, spec: MelSpec, device: Any) -> Encoders:
    """Those that the family needs; encoders of references with weights only where references are retrieved."""
    names, retrieves = config.encoders, config.retrieval.datastore is not None
    tango = shape is not None and shape.family == "tango"
    place = "cpu" if torch.device(device).type == "cpu" else str(device)  # gloo's processes have a cpu:0, cpu:1 ...
    caption = names.caption if retrieves or tango or names.caption == "hashed" else None
    audio = None if tango else names.audio if retrieves or names.audio == "mel" else None
    if tango and caption == NO_ENCODER:
        raise ValueError("[encoders] caption = 'none': a network of the family 'tango' reads its prompts by it; name one")
    caption, audio = (None if name == NO_ENCODER else name for name in (caption, audio))
    tokens = PROMPT_TOKENS if tango else HASHED_TOKENS
    return load_encoders(None if tango else names.prompt, caption, audio, device=place, mel=spec, hashed_tokens=tokens)


def _new_unet(shape: DenoiserConfig | None, config: TrainConfig, codec: Any, encoders: Encoders) -> Any:
    assert shape is not None
    widths = {"text_dim": encoders.text_dim, "audio_dim": encoders.audio_dim, "prompt_dim": encoders.prompt_dim}
    known = {name: width for name, width in widths.items() if width}  # without an encoder, as the preset says
    if shape.family == "tango":
        known = {"text_dim": encoders.text_dim}
    changes = {**vars(config.denoiser), **known, "latent_channels": int(codec.config.latent_channels)}
    changes.pop("preset")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build(denoiser_preset(config.denoiser.preset, **{k: v for k, v in changes.items() if v is not None}))


def _load_codec(config: TrainConfig) -> Any:
    """The pretrained codec; None for one that is made of the clips."""
    return None if config.codec.kind != "pretrained" else _part(str(config.codec.source), "vae")


def _load_vocoder(config: TrainConfig, spec: MelSpec) -> Any:
    return GriffinLimVocoder.of(spec) if config.codec.vocoder == "griffin-lim" else _part(config.codec.vocoder, "vocoder")


def _part(name: str, part: str) -> Any:
    """A codec or vocoder: the part of a pipeline, or by itself."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan

    folder = Path(name)
    loader: Any = AutoencoderKL if part == "vae" else SpeechT5HifiGan
    for path in (folder / part / "config.json", folder / "config.json"):
        if path.is_file():  # ours are told apart by their class
            own = (PatchPCACodec, MelAutoencoder, GriffinLimVocoder)
            found = json.loads(path.read_text("utf-8")).get("_class_name")
            loader = next((kind for kind in own if kind.__name__ == found), loader)
            break
    inside = {"subfolder": part} if not folder.is_dir() or (folder / part).is_dir() else {}
    try:
        return loader.from_pretrained(name, **inside)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{name}: no {part} can be loaded from here ({reason}); expected a folder or hub name of a pipeline with a {part}, "
            f"or of a {loader.__name__}"
        ) from error


def _make_codec(
    config: TrainConfig, clips: Clips, rows: IntArray, spec: MelSpec, cache: Path, device: Any, progress: Progress
) -> Any:
    """Fit or train a codec on the clips, or find it in the cache."""
    rows = _some_rows(rows, config.seed)
    settings = {name: value for name, value in vars(config.codec).items() if name != "vocoder"}
    key = [clips_key(clips), rows.tolist(), spec.to_dict(), settings, config.seed]
    with cached(cache, "codec", key) as (folder, fresh):
        if config.codec.kind == "patch-pca":
            if fresh:
                mels = mels_of(clips.waves, spec, rows)
                sizes = {"patch_size": config.codec.patch, "latent_channels": config.codec.components}
                fitted = PatchPCACodec.fit(mels, **sizes)
                with told_if_full(folder, "the codec"):
                    fitted.save_pretrained(folder)
            return PatchPCACodec.from_pretrained(folder)
        from .autoencoder_training import AutoencoderTraining, train_autoencoder

        assert config.codec.kind != "pretrained"
        if fresh:
            training = AutoencoderTraining(
                preset=config.codec.kind,
                steps=config.codec.steps,
                batch_size=config.codec.batch,
                learning_rate=config.codec.learning_rate,
                seed=config.seed,
            )
            mels = mels_of(clips.waves, spec, rows)
            trained = train_autoencoder(mels, training, device=device, progress=progress)
            with told_if_full(folder, "the codec"):
                trained.save_pretrained(folder)
        return MelAutoencoder.from_pretrained(folder)


def _codec_gates(
    config: TrainConfig, codec: Any, clips: Clips, spec: MelSpec, rows: IntArray, *, made_here: bool
) -> tuple[GateResult, ...]:
    from .reconstruction import FAR_FACTOR, divergence_gate, latent_gate, reconstruction_gate

    mels = mels_of(clips.waves, spec, _some_rows(np.arange(len(clips)), config.seed))
    gates = [reconstruction_gate(codec, mels, spec, limit=config.gates.reconstruction)]
    # held-out clips may be louder or quieter than a small set that was trained on
    trained_on = mels_of(clips.waves, spec, _some_rows(rows, config.seed))
    if made_here:
        gates += [latent_gate(codec, trained_on), divergence_gate(codec, trained_on)]
    elif config.start.source is None:  # a start's denoiser was trained at the scale of its own codec
        gates.append(latent_gate(codec, trained_on, factor=FAR_FACTOR))
    return check(gates)


def _some_rows(rows: IntArray, seed: int) -> IntArray:
    return rows if len(rows) <= MOST_FITTED else np.random.default_rng(seed).choice(rows, MOST_FITTED, replace=False)


def _neighbors(
    config: TrainConfig,
    clips: Clips,
    held_out: IntArray,
    encoders: Encoders,
    spec: MelSpec,
    samples: int,
    cache: Path,
    by_whom: Mapping[str, str],
    hears: bool,
    progress: Progress,
) -> Neighbors | None:
    if config.retrieval.datastore is None or max(config.retrieval.counts) == 0:
        return None
    from .datastore import Datastore

    store = Datastore.load(config.retrieval.datastore)
    most = max(config.retrieval.counts)
    if most > len(store) - 1:
        raise ValueError(
            f"[retrieval] counts asks for {most} pairs, and {store.path} holds {len(store):,}, of which one is the clip "
            "itself; lower counts or build a larger datastore"
        )
    if config.mixing.share and store.texts_spec is None:
        raise ValueError(
            f"{store.path}: mixtures retrieve by their joint caption, and this datastore cannot be asked with texts; build one "
            "with auscult datastore --model hashed --key text (or a CLAP model), or set [mixing] share = 0"
        )
    own = own_pairs(store, clips.ids, clips.digests)
    hidden = hidden_rows(store, own, [clips.ids[row] for row in held_out])
    rows = find_neighbors(store, own, clips.captions, config.retrieval.neighbors, hidden)
    text: Tokens | None
    hears = hears and encoders.audio is not None
    text, audio = pair_tokens(store, encoders, spec, samples, cache, by_whom, hears=hears, progress=progress)
    return Neighbors(store, rows, own, hidden, text, audio, config.retrieval.neighbors)
