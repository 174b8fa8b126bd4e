"""TANGO's public checkpoints, which are no diffusers folders, as pipelines of the family ``"tango"``.

The weights of the denoiser and its text encoder are in ``pytorch_model_main.bin``, those of the autoencoder and its vocoder in
``pytorch_model_vae.bin``; ``main_config.json``, ``vae_config.json`` and ``stft_config.json`` describe them. The noise schedule
is written down here: TANGO's own code asks the hub for that of Stable Diffusion 2.1, which is no longer there.

Source: Ghosal et al., "Text-to-Audio Generation using Instruction-Tuned LLM and Latent Diffusion Model", 2023, and its code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ..errors import ModelError
from ..pretrained import first_line, split_revision
from .denoiser import build, family_of, preset
from .encoding import T5_EXAMPLE, Encoders
from .ldm_weights import autoencoder_of, loaded, vocoder_of
from .mel import MelSpec
from .pipeline import TANGO_BETAS, RetrievalAugmentedAudioPipeline, scheduler
from .public_parts import in_words, mel_of

MAIN, VAE = "pytorch_model_main.bin", "pytorch_model_vae.bin"
CONFIGS = ("main_config.json", "vae_config.json", "stft_config.json")
_STFT = {
    "filter_length": "n_fft",
    "win_length": "win_length",
    "hop_length": "hop_length",
    "n_mel_channels": "n_mels",
    "sampling_rate": "sample_rate_hz",
    "mel_fmin": "f_min",
    "mel_fmax": "f_max",
}


def is_tango(folder: str | Path) -> bool:
    """Whether a folder has the files of a TANGO checkpoint."""
    return all((Path(folder) / name).is_file() for name in CONFIGS[:2])


def convert_tango(
    source: str,
    *,
    text_encoder: str | None = None,
    unet_config: str | Path | None = None,
    prediction_type: str = "v_prediction",
    duration_s: float = 10.24,
    vocoder_settings: Mapping[str, Any] | None = None,
) -> Any:
    """TANGO as a pipeline of ours: prompts, and retrieved captions behind them, as tokens of one T5.

    Retrieved captions need no new weights: their tokens are appended to the prompt's. Without references it is TANGO.

    Parameters
    ----------
    source
        Folder, or hub name such as ``"declare-lab/tango"``.
    text_encoder
        Folder or hub name of the T5 whose tokenizer and configuration are taken; by default what ``main_config.json`` names.
        Its weights are the checkpoint's own.
    unet_config
        The denoiser's configuration, a JSON file; by default the one that ``main_config.json`` names, if it is in the
        folder, and the published one otherwise.
    prediction_type
        What the denoiser predicts. The published models predict v; check it on a few clips by
        :func:`~auscult.generation.starting_checks.prediction_gate`.
    duration_s
        How long a sound is unless a call says otherwise.
    vocoder_settings
        Of :func:`~auscult.generation.ldm_weights.vocoder_of`, where they are not the published ones.

    Returns
    -------
    RetrievalAugmentedAudioPipeline

    Raises
    ------
    ModelError
        A file is missing or damaged, weights are missing or unknown, or it is another kind of model.
    """
    folder = _folder(source)
    main, vae, stft = (_json(folder / name, source) for name in CONFIGS)
    weights = _weights(folder / MAIN, source)
    if any(name.startswith(("group_in.", "group_out.")) for name in weights):
        raise ModelError(
            f"{source}: this TANGO began with Stable Diffusion's denoiser, with layers around it (group_in, group_out) that no "
            "class of diffusers has; take one whose denoiser was trained from random weights, such as declare-lab/tango"
        )
    unet = loaded(_unet(folder, main, unet_config), _part(weights, "unet."), source, "denoiser")
    family_of(unet)
    caption, tokenizer = _text_encoder(weights, text_encoder or main.get("text_encoder_name") or T5_EXAMPLE, source)
    codec_weights = _weights(folder / VAE, source)
    settings = {"sampling_rate": stft["sampling_rate"], **(vocoder_settings or {})}
    vocoder = vocoder_of(codec_weights, source, **settings)
    mel = MelSpec(**{ours: stft[theirs] for theirs, ours in _STFT.items()}, padding="tacotron")
    return RetrievalAugmentedAudioPipeline.of(
        autoencoder_of(codec_weights, vae, source),
        unet,
        scheduler(prediction_type, TANGO_BETAS),
        vocoder,
        Encoders(caption=caption, caption_tokenizer=tokenizer),
        mel=mel_of(vocoder, source, mel),
        duration_s=duration_s,
    )


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with in_words(source, "TANGO checkpoint"):
            name, revision = split_revision(source)
            folder = Path(snapshot_download(name, allow_patterns=[MAIN, VAE, "*.json"], revision=revision or None))
    absent = [name for name in (*CONFIGS, MAIN, VAE) if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{source}: a TANGO checkpoint has {', '.join((*CONFIGS, MAIN, VAE))}; {', '.join(absent)} is not here"
        )
    return folder


def _json(path: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: {path.name} cannot be read ({first_line(error)}); download it anew") from error
    if not isinstance(content, dict):
        raise ModelError(f"{source}: {path.name} should hold one object, got {type(content).__name__}; download it anew")
    return content


def _weights(path: Path, source: str) -> dict[str, torch.Tensor]:
    try:  # tensors alone: a pickle could run anything
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # torch raises whatever its zip reader and unpickler do
        raise ModelError(f"{source}: {path.name} cannot be read ({first_line(error)}); download it anew") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{source}: {path.name} should hold weights by name; download it anew")
    return dict(weights)


def _part(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _unet(folder: Path, main: Mapping[str, Any], given: str | Path | None) -> Any:
    """The denoiser with random weights, by its configuration file or as published."""
    named = main.get("unet_model_config_path")
    candidates = [Path(given)] if given else [folder / str(named), folder / Path(str(named)).name] if named else []
    path = next((path for path in candidates if path.is_file()), None)
    if given and path is None:
        raise ModelError(f"{given}: no such file; unet_config is the JSON file of the denoiser's configuration")
    with torch.random.fork_rng(devices=[]):
        if path is None:
            return build(preset("tango"))
        with in_words(str(path), "denoiser's configuration"):
            settings = {name: value for name, value in _json(path, str(path)).items() if not name.startswith("_")}
            return UNet2DConditionModel.from_config(settings)


def _text_encoder(weights: Mapping[str, torch.Tensor], name: str, source: str) -> tuple[Any, Any]:
    """The T5 with the checkpoint's own weights, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

    with in_words(name, "T5's tokenizer and configuration"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "t5":
            raise ModelError(f"{name}: expected a model of type 't5', this one is of type {config.model_type!r}")
        tokenizer = AutoTokenizer.from_pretrained(name)
        encoder = T5EncoderModel(config)
    own = _part(weights, "text_encoder.")
    shared = own.get("shared.weight", own.get("encoder.embed_tokens.weight"))
    if shared is not None:  # one table under two names, of which a file may hold either
        names = [each for each in encoder.state_dict() if each in ("shared.weight", "encoder.embed_tokens.weight")]
        own = {key: value for key, value in own.items() if key not in ("shared.weight", "encoder.embed_tokens.weight")}
        own |= dict.fromkeys(names, shared)
    return loaded(encoder, own, source, "text encoder"), tokenizer
