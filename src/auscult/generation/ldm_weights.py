"""Weights of the original latent-diffusion code under diffusers' and transformers' names: the autoencoder and its vocoder.

The original autoencoder counts the decoder's levels from the coarse end of the indices (its level 0 is the finest) and
attends by convolutions of one pixel; the original HiFi-GAN calls its transposed convolutions ``ups`` and may hold each weight
as a direction and a length. The numbers are the same.

Sources: the public code of AudioLDM and of HiFi-GAN (Kong, Kim & Bae, NeurIPS 2020), for the names and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from ..errors import ModelError
from .weights import aligned

Weights = Mapping[str, torch.Tensor]

_PLAIN = (  # wherever they stand
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
)
_UP = re.compile(r"^decoder\.up\.(\d+)\.(block|upsample)\.")
_VOCODER = "vocoder."


def autoencoder_of(weights: Weights, config: Mapping[str, Any], source: str) -> Any:
    """An ``AutoencoderKL`` of the original autoencoder's weights.

    Parameters
    ----------
    weights
        Its state dict; names that begin with ``vocoder.`` or ``loss.`` are passed over.
    config
        ``ddconfig`` (``ch``, ``ch_mult``, ``num_res_blocks``, ``z_channels``, ...), ``embed_dim`` and ``scale_factor``.
    source
        For messages.

    Raises
    ------
    ModelError
        It is of a form that diffusers' class has not, or weights are missing, unknown, or of another shape.
    """
    sizes = config["ddconfig"]
    channels = tuple(sizes["ch"] * factor for factor in sizes["ch_mult"])
    odd = {name: value for name, value in _unlike(config, sizes).items() if value}
    if odd:
        raise ModelError(f"{source}: vae_config.json asks for {odd}, which diffusers' AutoencoderKL has not")
    vae = AutoencoderKL(
        in_channels=sizes["in_channels"],
        out_channels=sizes["out_ch"],
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=sizes["num_res_blocks"],
        latent_channels=sizes["z_channels"],
        scaling_factor=float(config["scale_factor"]),
    )
    own = {name: value for name, value in weights.items() if not name.startswith((_VOCODER, "loss."))}
    return loaded(vae, {_renamed(name, len(channels)): value for name, value in own.items()}, source, "autoencoder")


def _unlike(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attn_resolutions": sizes.get("attn_resolutions"),
        "downsample_time": sizes.get("downsample_time"),
        "tanh_out": sizes.get("tanh_out"),
        "subband above 1": config.get("subband", 1) if config.get("subband", 1) != 1 else None,
        "embed_dim unlike z_channels": config["embed_dim"] if config["embed_dim"] != sizes["z_channels"] else None,
    }


def _renamed(name: str, levels: int) -> str:
    """
    >>> _renamed("decoder.up.0.block.1.nin_shortcut.weight", 3)
    'decoder.up_blocks.2.resnets.1.conv_shortcut.weight'
    """
    for pattern, replacement in _PLAIN:
        name = re.sub(pattern, replacement, name)
    parts = {"block": "resnets", "upsample": "upsamplers.0"}
    return _UP.sub(lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}.{parts[found[2]]}.", name)


def vocoder_of(weights: Weights, source: str, **settings: Any) -> Any:
    """A ``SpeechT5HifiGan`` of the weights ``vocoder.*`` of the original autoencoder.

    Parameters
    ----------
    weights
        State dict; channels, bands and kernels are read off the shapes.
    source
        For messages.
    settings
        Of ``SpeechT5HifiGanConfig`` that no shape tells: ``sampling_rate``, ``upsample_rates``, ``resblock_dilation_sizes``;
        by default the published ones.

    Raises
    ------
    ModelError
        Weights are missing, unknown, or of another shape.
    """
    own = _without_norm({name[len(_VOCODER) :]: value for name, value in weights.items() if name.startswith(_VOCODER)})
    if "conv_pre.weight" not in own:
        raise ModelError(f"{source}: there is no vocoder among the weights of its autoencoder (vocoder.conv_pre.weight)")
    kernels = [own[f"ups.{number}.weight"].shape[2] for number in range(_count(own, "ups"))]
    blocks = _count(own, "resblocks") // max(1, len(kernels))
    config = {
        "model_in_dim": own["conv_pre.weight"].shape[1],
        "upsample_initial_channel": own["conv_pre.weight"].shape[0],
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": [own[f"resblocks.{number}.convs1.0.weight"].shape[2] for number in range(blocks)],
        "resblock_dilation_sizes": [[1, 3, 5]] * blocks,
        "sampling_rate": 16_000,
        "upsample_rates": [5, 4, 2, 2, 2],
        "normalize_before": False,
    }
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**config, **settings}))
    renamed = {re.sub(r"^ups\.", "upsampler.", name): value for name, value in own.items()}
    unused = {name: vocoder.state_dict()[name] for name in ("mean", "scale")}  # of a normalization that is off
    return loaded(vocoder, {**unused, **renamed}, source, "vocoder")


def _count(weights: Weights, group: str) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith(f"{group}.")})


def _without_norm(weights: Weights) -> dict[str, torch.Tensor]:
    """Weights ``g v / |v|`` out of lengths g and directions v, where held so; |v| is over all axes but the first."""
    plain = {name: value for name, value in weights.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in weights.items():
        if name.endswith(".weight_v"):
            stem = name.removesuffix("_v")
            length = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            plain[stem] = weights[f"{stem}_g"] * direction / length
    return plain


def loaded(model: Any, weights: Weights, source: str, what: str) -> Any:
    """The model with exactly these weights; one-pixel convolutions become the linear layers that diffusers has for them.

    Raises
    ------
    ModelError
        Weights are missing, unknown, or of another shape.
    """
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        raise ModelError(
            f"{source}: the weights of the {what} lack {len(missing)} that are needed"
            f"{f' (such as {missing[0]})' if missing else ''} and hold {len(unknown)} that are unknown"
            f"{f' (such as {unknown[0]})' if unknown else ''}; download it anew, or check its configuration files"
        )
    fitting = {name: _fitted(value, wanted[name]) for name, value in weights.items()}
    for name, value in fitting.items():
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{source}: the {what}'s {name} has shape {tuple(value.shape)}, and its configuration says "
                f"{tuple(wanted[name].shape)}; the weights and the configuration files are not of one checkpoint"
            )
    model.load_state_dict(fitting)
    return aligned(model.float().eval())


def _fitted(value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    one_pixel = wanted.dim() == 2 and tuple(value.shape) == (*wanted.shape, 1, 1)
    return value[:, :, 0, 0] if one_pixel else value
