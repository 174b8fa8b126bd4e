"""How the pipelines that are known call their denoisers, and how a neighbor's caption becomes what a denoiser is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError
from ..generation.calling import clap_vectors  # MusicLDM's own way does not work with transformers 5

Given = Mapping[str, Any]
"""Keyword arguments of a denoiser."""


@dataclass(frozen=True)
class Adapter:
    """What guidance has to know of a sampler's loop.

    Attributes
    ----------
    encode
        A caption -> the denoiser's keyword arguments for it, of one row each. None: caption deduplication cannot be had.
    fit
        Arguments of n captions (each stacked) and the arguments of the user's own prompt for these rows -> what replaces the
        latter. By default the captions' as they are.
    conditional_first
        The loop predicts with the prompt first and then without; otherwise without comes first, in one call or in two.
    scale
        s0 of classifier-free guidance. None: read off what the pipeline makes of its predictions.
    """

    encode: Callable[[str], Given] | None = None
    fit: Callable[[Given, Given], Given] = lambda captions, own: captions
    conditional_first: bool = False
    scale: float | None = None


def adapter_of(pipe: Any) -> tuple[Any, Adapter]:
    """The denoiser of a pipeline, and its adapter.

    Raises
    ------
    ModelError
        The pipeline's class is not known.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in _KNOWN:
            part, make = _KNOWN[kind.__name__]
            return getattr(pipe, part), make(pipe)
    raise ModelError(
        f"a {type(pipe).__name__} is not known here, only {', '.join(_KNOWN)} and their subclasses are; for another loop call "
        "attach(denoiser=..., scheduler=..., adapter=Adapter(...))"
    )


# --- each kind --------------------------------------------------------------------------------------------------------


def _stable_audio(pipe: Any) -> Adapter:
    def encode(caption: str) -> Given:
        return {"encoder_hidden_states": pipe.encode_prompt(caption, pipe._execution_device, False)}

    def fit(captions: Given, own: Given) -> Given:
        # behind the text stand a token for the start and one for the length: the user's timing stays
        timing = own["encoder_hidden_states"][:, -2:]
        return {"encoder_hidden_states": _behind(captions["encoder_hidden_states"], timing)}

    return Adapter(encode, fit)


def _stable_audio_3(pipe: Any) -> Adapter:
    def encode(caption: str) -> Given:
        tokens, mask = pipe.encode_prompt(caption, pipe._execution_device, 1)
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def fit(captions: Given, own: Given) -> Given:
        return {
            name: _behind(captions[name], own[name][:, -1:]) for name in ("encoder_hidden_states", "encoder_attention_mask")
        }

    return Adapter(encode, fit)


def _longcat(pipe: Any) -> Adapter:
    from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text  # as it does to prompts

    def encode(caption: str) -> Given:
        tokens, _ = pipe.encode_prompt(_normalize_text(caption), pipe._execution_device)
        heard = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": heard}

    return Adapter(encode, conditional_first=True)


def _audioldm(pipe: Any) -> Adapter:
    return Adapter(lambda caption: {"class_labels": pipe._encode_prompt([caption], pipe._execution_device, 1, False)})


def _musicldm(pipe: Any) -> Adapter:
    return Adapter(lambda caption: {"class_labels": clap_vectors(pipe, [caption])})


def _audioldm2(pipe: Any) -> Adapter:
    def encode(caption: str) -> Given:
        tokens, mask, written = pipe.encode_prompt(caption, pipe._execution_device, 1, False)
        return {"encoder_hidden_states": written, "encoder_hidden_states_1": tokens, "encoder_attention_mask_1": mask}

    return Adapter(encode)


def _ours(pipe: Any) -> Adapter:
    """References that the user gave stay; the prompt's part of the conditions is the neighbor's."""
    from ..generation.denoiser import family_of
    from ..generation.guidance import encoded_prompts

    family = family_of(pipe.unet)

    def encode(caption: str) -> Given:
        found = encoded_prompts(pipe.encoders, family, [caption])
        if family == "retrieval":
            return {"class_labels": found.prompt}
        tango = family == "tango"
        given = {f"encoder_hidden_states{'' if tango else '_1'}": found.text_tokens}
        given[f"encoder_attention_mask{'' if tango else '_1'}"] = found.text_mask
        if not tango:
            given |= {"encoder_hidden_states": found.audio_tokens, "encoder_attention_mask": found.audio_mask}
        return given

    def fit(captions: Given, own: Given) -> Given:
        if family == "retrieval":
            return captions
        # the prompt's tokens come first in a stream, those of retrieved pairs behind them
        return {name: _behind(value, own[name][:, value.shape[1] :]) for name, value in captions.items()}

    return Adapter(encode, fit)


_KNOWN: dict[str, tuple[str, Callable[[Any], Adapter]]] = {
    "RetrievalAugmentedAudioPipeline": ("unet", _ours),
    "StableAudioPipeline": ("transformer", _stable_audio),
    "StableAudio3Pipeline": ("transformer", _stable_audio_3),
    "AudioLDMPipeline": ("unet", _audioldm),
    "AudioLDM2Pipeline": ("unet", _audioldm2),
    "MusicLDMPipeline": ("unet", _musicldm),
    "LongCatAudioDiTPipeline": ("transformer", _longcat),
}


def stacked(rows: Sequence[Given]) -> dict[str, torch.Tensor]:
    """Arguments of several captions as one; shorter ones are filled up with zeros, which a mask's mean hidden."""
    longest = {name: max(row[name].shape[1] for row in rows) for name in rows[0]}
    return {name: torch.cat([_padded(row[name], length) for row in rows]) for name, length in longest.items()}


def _padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    room = [0, 0] * (tokens.ndim - 2) + [0, length - tokens.shape[1]]
    return torch.nn.functional.pad(tokens, room)


def _behind(tokens: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    return torch.cat([tokens.to(tail.device, tail.dtype), tail], dim=1)
