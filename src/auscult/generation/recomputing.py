"""Gradient checkpointing of denoisers: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

from diffusers import AudioLDM2UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.utils.checkpoint import checkpoint


def recompute_activations(unet: Any) -> None:
    """Switch gradient checkpointing on; what is computed stays the same.

    AudioLDM 2's blocks hand the arguments of an attention layer to the checkpointing function by position, one place off
    (diffusers 0.42): the mask of the tokens would arrive as the mask of the latents. Here they get their names back.
    """
    if isinstance(unet, AudioLDM2UNet2DConditionModel):
        unet.enable_gradient_checkpointing(_named)
    else:
        unet.enable_gradient_checkpointing()


def _named(module: Any, *arguments: Any) -> Any:
    if isinstance(module, BasicTransformerBlock):
        return module(*arguments)  # inside an attention layer, which is computed again as a whole
    if not isinstance(module, Transformer2DModel):
        return checkpoint(module, *arguments, use_reentrant=False)
    hidden, tokens, _, _, cross_attention_kwargs, attention_mask, tokens_mask = arguments
    return checkpoint(
        module,
        hidden,
        encoder_hidden_states=tokens,
        cross_attention_kwargs=cross_attention_kwargs,
        attention_mask=attention_mask,
        encoder_attention_mask=tokens_mask,
        return_dict=False,
        use_reentrant=False,
    )
