"""The network that is trained: predicts noise or velocity in latents, steered by a prompt and by retrieved pairs.

Two families. ``"retrieval"``: the prompt's vector joins the time step in every residual block (concatenated, then projected and
added), and two cross-attention streams follow one self-attention wherever a level has attention: stream 0 reads audio tokens,
stream 1 text tokens of retrieved pairs. Without pairs it is a plain text-to-audio model. ``"tango"``: cross-attention on text
tokens alone. A third, ``"audioldm2"``, is not built here but started from: both streams, each of which begins with tokens
of the prompt, and no prompt's vector.

Sources: Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024, section 3; Liu et al., "AudioLDM:
Text-to-Audio Generation with Latent Diffusion Models", ICML 2023; Ghosal et al., "Text-to-Audio Generation using
Instruction-Tuned LLM and Latent Diffusion Model", 2023 (TANGO).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import AudioLDM2UNet2DConditionModel, UNet2DConditionModel

from .conditioning import Conditions, Tokens, null_tokens

Family = Literal["retrieval", "tango", "audioldm2"]
BUILT = ("retrieval", "tango")


@dataclass(frozen=True)
class DenoiserConfig:
    """The shape of a denoiser.

    Attributes
    ----------
    family
        ``"retrieval"`` or ``"tango"``.
    channels
        Per level, from the finest to the coarsest; each level halves both axes of the latents.
    layers
        Residual blocks per level.
    heads
        Attention heads per level; they divide the level's channels. Published: heads of 32 channels (TANGO: 64).
    attention
        Whether a level has attention. The middle always has.
    latent_channels
        Of the codec.
    prompt_dim
        Length of the prompt's vector; 0 in the family ``"tango"``, which has none.
    text_dim, audio_dim
        Width of text and audio tokens; ``audio_dim`` is 0 in the family ``"tango"``.
    norm_groups
        Groups of the group normalization; divides every level's channels.
    linear_projection
        Whether attention's input and output are linear layers (TANGO) instead of 1x1 convolutions.

    Raises
    ------
    ValueError
        The numbers cannot be built.

    Examples
    --------
    >>> DenoiserConfig(channels=(196, 392), heads=(6, 12), attention=(False, True))
    Traceback (most recent call last):
    ValueError: channels should all be multiples of norm_groups=32, got (196, 392)
    """

    family: Family = "retrieval"
    channels: tuple[int, ...] = (32, 64, 96)
    layers: int = 1
    heads: tuple[int, ...] = (2, 4, 6)
    attention: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 8
    prompt_dim: int = 64
    text_dim: int = 64
    audio_dim: int = 64
    norm_groups: int = 32
    linear_projection: bool = False

    def __post_init__(self) -> None:
        if self.family not in BUILT:
            raise ValueError(f"family should be one of {', '.join(BUILT)}, got {self.family!r}")
        if not len(self.channels) == len(self.heads) == len(self.attention) > 0:
            raise ValueError(
                "channels, heads and attention should have one entry per level, got "
                f"{len(self.channels)}, {len(self.heads)} and {len(self.attention)}"
            )
        if any(channels % self.norm_groups for channels in self.channels):
            raise ValueError(f"channels should all be multiples of norm_groups={self.norm_groups}, got {self.channels}")
        if any(heads < 1 or channels % heads for channels, heads in zip(self.channels, self.heads, strict=True)):
            raise ValueError(f"heads should divide channels level by level, got {self.heads} for {self.channels}")
        if min(self.layers, self.latent_channels, self.text_dim) < 1:
            raise ValueError("layers, latent_channels and text_dim should be at least 1")
        streams = (self.prompt_dim, self.audio_dim)
        if self.family == "tango" and any(streams):
            raise ValueError(f"the family 'tango' has prompt_dim=0 and audio_dim=0, got {streams[0]} and {streams[1]}")
        if self.family == "retrieval" and min(streams) < 1:
            raise ValueError(f"the family 'retrieval' needs prompt_dim and audio_dim, got {streams[0]} and {streams[1]}")


_PUBLISHED = {"layers": 2, "attention": (False, True, True, True), "prompt_dim": 512, "text_dim": 1024, "audio_dim": 768}

PRESETS: dict[str, DenoiserConfig] = {
    "tiny": DenoiserConfig(norm_groups=8),
    "tiny-tango": DenoiserConfig("tango", (48, 64, 96), heads=(3, 4, 6), prompt_dim=0, audio_dim=0, norm_groups=16),
    "small": DenoiserConfig(channels=(64, 128, 192, 320), layers=2, heads=(2, 4, 6, 10), attention=(False, True, True, True)),
    "re-audioldm-s": DenoiserConfig(channels=(128, 256, 384, 640), heads=(4, 8, 12, 20), **_PUBLISHED),  # type: ignore[arg-type]
    # the paper prints 196 channels, which no group normalization with 32 groups can take; AudioLDM's own next size is 192
    "re-audioldm-l": DenoiserConfig(channels=(192, 384, 576, 960), heads=(6, 12, 18, 30), **_PUBLISHED),  # type: ignore[arg-type]
    "tango": DenoiserConfig(
        "tango",
        (320, 640, 1280, 1280),
        layers=2,
        heads=(5, 10, 20, 20),
        attention=(True, True, True, False),
        prompt_dim=0,
        text_dim=1024,
        audio_dim=0,
        linear_projection=True,
    ),
}


def preset(name: str, **changes: Any) -> DenoiserConfig:
    """A named configuration, with some of its fields changed.

    Parameters
    ----------
    name
        ``"tiny"`` (5.0 M parameters), ``"tiny-tango"`` (2.9 M), ``"small"`` (82.5 M; 94.4 M with the widths of the published
        encoders), ``"re-audioldm-s"`` (351.5 M), ``"re-audioldm-l"`` (771.3 M) or ``"tango"`` (865.9 M).
    changes
        Fields of :class:`DenoiserConfig`, for example the widths of other encoders.

    Raises
    ------
    ValueError
        No such preset, or the changed numbers cannot be built.
    TypeError
        No such field.

    Examples
    --------
    >>> preset("tiny", prompt_dim=512).channels
    (32, 64, 96)
    """
    if name not in PRESETS:
        raise ValueError(f"preset should be one of {', '.join(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **changes)


def build(config: DenoiserConfig) -> Any:
    """A denoiser with random weights, from torch's global generator.

    Returns
    -------
    AudioLDM2UNet2DConditionModel or UNet2DConditionModel
        Of diffusers, for :func:`predict`; its ``save_pretrained`` and ``from_pretrained`` keep everything.
    """
    shared = {
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "attention_head_dim": config.heads,  # diffusers' name for the number of heads
        "norm_num_groups": config.norm_groups,
        "use_linear_projection": config.linear_projection,
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(config.attention)),
    }
    if config.family == "tango":
        return UNet2DConditionModel(cross_attention_dim=config.text_dim, **shared)
    # Streams are told apart by position: in a level's list, entries 0 and 1 read the first stream, 2 and 3 the second, and
    # None attends to the latents themselves. A flat list would be one width per level instead.
    return AudioLDM2UNet2DConditionModel(
        cross_attention_dim=[[None, config.audio_dim, config.text_dim] for _ in config.channels],
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        projection_class_embeddings_input_dim=config.prompt_dim,
        **shared,
    )


def family_of(unet: Any) -> Family:
    """Which family a network belongs to.

    Raises
    ------
    ValueError
        Neither.
    """
    config = unet.config
    if "class_embeddings_concat" not in config or config.get("class_embed_type") is None:
        if isinstance(config.get("cross_attention_dim"), int):
            return "tango"
        if stream_widths(unet) is not None and config.get("class_embed_type") is None:
            return "audioldm2"
    elif stream_widths(unet) is not None:
        return "retrieval"
    raise ValueError(
        f"expected a denoiser that auscult.generation.denoiser.build made, got a {type(unet).__name__} with "
        f"class_embed_type={config.get('class_embed_type')!r} and cross_attention_dim={config.get('cross_attention_dim')!r}"
    )


def stream_widths(unet: Any) -> tuple[int, int] | None:
    """Widths of audio and text tokens that a network of the family ``"retrieval"`` reads; None for any other network."""
    levels = unet.config.get("cross_attention_dim")
    if not isinstance(levels, (list, tuple)) or not isinstance(levels[0], (list, tuple)) or len(levels[0]) != 3:
        return None
    _, audio, text = levels[0]
    return int(audio), int(text)


def predict(unet: Any, noisy: torch.Tensor, timesteps: torch.Tensor | int, conditions: Conditions) -> torch.Tensor:
    """What the network makes of noisy latents: noise or velocity, as it was trained.

    Parameters
    ----------
    unet
        Of :func:`build`, or one wrapped by accelerate whose ``config`` can be read.
    noisy
        Latents (B, C, F, M).
    timesteps
        One for all, or (B,).
    conditions
        B rows. A stream that is None becomes its null token alone.

    Returns
    -------
    torch.Tensor
        (B, C, F, M).

    Raises
    ------
    ValueError
        A condition that the family needs is missing, one that it cannot use is there, or numbers of rows or widths differ.
    """
    if len(conditions) != len(noisy):
        raise ValueError(f"expected one row of conditions per row of latents, got {len(conditions)} for {len(noisy)}")
    family = family_of(unet)
    if family == "tango":
        return _predict_tango(unet, noisy, timesteps, conditions)
    audio_dim, text_dim = stream_widths(unet) or (0, 0)
    vector = conditions.prompt
    if family == "retrieval":
        if vector is None:
            raise ValueError("expected the prompt's vector in the conditions of a network of the family 'retrieval', got None")
        _check_width("prompt_dim", vector, unet.config["projection_class_embeddings_input_dim"])
    elif vector is not None or conditions.text is None or conditions.audio is None:
        raise ValueError("a network of the family 'audioldm2' reads the prompt as both streams of tokens, and no vector")
    audio = _stream(conditions.audio, audio_dim, "audio_dim", noisy)
    text = _stream(conditions.text, text_dim, "text_dim", noisy)
    return unet(
        noisy,
        timesteps,
        class_labels=None if vector is None else vector.to(noisy.dtype),
        encoder_hidden_states=audio.values,
        encoder_attention_mask=audio.mask,
        encoder_hidden_states_1=text.values,
        encoder_attention_mask_1=text.mask,
        return_dict=False,
    )[0]


def _predict_tango(unet: Any, noisy: torch.Tensor, timesteps: torch.Tensor | int, conditions: Conditions) -> torch.Tensor:
    if conditions.text is None:
        raise ValueError("expected the prompt's text tokens in the conditions of a network of the family 'tango', got None")
    if conditions.audio is not None:
        raise ValueError(
            "a network of the family 'tango' has no stream for audio tokens; retrieve captions alone, or train 'retrieval'"
        )
    text = _stream(conditions.text, unet.config["cross_attention_dim"], "text_dim", noisy)
    return unet(noisy, timesteps, encoder_hidden_states=text.values, encoder_attention_mask=text.mask, return_dict=False)[0]


def _stream(tokens: Tokens | None, width: int, name: str, noisy: torch.Tensor) -> Tokens:
    """A stream as the network takes it; never None, because diffusers would then read the other stream without its mask."""
    if tokens is None:
        return null_tokens(len(noisy), width, device=noisy.device, dtype=noisy.dtype)
    _check_width(name, tokens.values, width)
    return Tokens(tokens.values.to(noisy.dtype), tokens.mask)


def _check_width(name: str, values: torch.Tensor, width: int) -> None:
    if values.shape[-1] != width:
        raise ValueError(
            f"this network reads {name}={width}, got {values.shape[-1]}; take the encoders that it was trained with"
        )
