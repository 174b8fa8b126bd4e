"""A tiny TANGO as its authors save it: an autoencoder and a vocoder of the original code's names, written anew from the papers.

They are the oracle of the conversion: what they compute of their weights under the old names, the converted ones must compute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import nn

from tiny_encoders import save_t5

GROUPS = 32
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 16,
    "use_linear_projection": True,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "image_key": "fbank",
    "subband": 1,
    "embed_dim": 4,
    "time_shuffle": 1,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "scale_factor": 0.5,
}
STFT = {
    "filter_length": 1024,
    "hop_length": 160,
    "win_length": 1024,
    "n_mel_channels": 16,
    "sampling_rate": 16000,
    "mel_fmin": 0,
    "mel_fmax": 8000,
}
RATES, KERNELS = (5, 4, 2, 2, 2), (16, 16, 8, 4, 4)  # as published


def conv(inputs: int, outputs: int, size: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, **settings})


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs), conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = conv(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(x)
        query, key, value = (layer(hidden).flatten(2) for layer in (self.q, self.k, self.v))
        shares = torch.softmax(query.mT @ key / x.shape[1] ** 0.5, dim=2)
        return x + self.proj_out((value @ shares.mT).reshape(x.shape))


class Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([Residual(inputs if number == 0 else outputs, outputs) for number in range(blocks)])


class Resampling(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = conv(channels, channels, stride=2, padding=0) if down else conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def middle(channels: int) -> nn.Module:
    return nn.ModuleDict(
        {"block_1": Residual(channels, channels), "attn_1": Attention(channels), "block_2": Residual(channels, channels)}
    )


class Encoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = conv(1, widths[0])
        self.down = nn.ModuleList()
        for number, width in enumerate(widths):
            level = Level(widths[max(0, number - 1)], width, blocks)
            if number < len(widths) - 1:
                level.downsample = Resampling(width, down=True)
            self.down.append(level)
        self.mid = middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), conv(widths[-1], 2 * latent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        for layer in self.mid.values():
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = conv(latent, widths[-1])
        self.mid = middle(widths[-1])
        levels = []
        for number, width in enumerate(widths):  # the finest first
            level = Level(widths[min(number + 1, len(widths) - 1)], width, blocks + 1)
            if number > 0:
                level.upsample = Resampling(width, down=False)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(z)
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Dilated(nn.Module):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            [nn.Conv1d(channels, channels, size, dilation=by, padding=by * (size - 1) // 2) for by in (1, 3, 5)]
        )
        self.convs2 = nn.ModuleList([nn.Conv1d(channels, channels, size, padding=size // 2) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    """HiFi-GAN of (B, bands, frames)."""

    def __init__(self, bands: int, channels: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.conv_pre = nn.Conv1d(bands, channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(RATES, KERNELS, strict=True):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            self.resblocks.extend(Dilated(channels, size) for size in sizes)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(mel)
        for number, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[number * len(self.sizes) : (number + 1) * len(self.sizes)]
            x = sum(block(x) for block in blocks) / len(self.sizes)
        return torch.tanh(self.conv_post(F.leaky_relu(x))).squeeze(1)


class OriginalAutoencoder(nn.Module):
    def __init__(self, sizes: dict[str, Any] = VAE["ddconfig"], bands: int = 16, channels: int = 32) -> None:  # type: ignore[assignment]
        super().__init__()
        widths = [sizes["ch"] * factor for factor in sizes["ch_mult"]]
        latent = sizes["z_channels"]
        self.encoder = Encoder(widths, sizes["num_res_blocks"], latent)
        self.decoder = Decoder(widths, sizes["num_res_blocks"], latent)
        self.quant_conv, self.post_quant_conv = conv(2 * latent, 2 * latent, 1), conv(latent, latent, 1)
        self.vocoder = Generator(bands, channels, (3, 5) if channels == 32 else (3, 7, 11))

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """The mean of the latents, scaled."""
        return self.quant_conv(self.encoder(mel)).chunk(2, dim=1)[0] * VAE["scale_factor"]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latents / VAE["scale_factor"]))


class AudioDiffusion(nn.Module):
    def __init__(self, t5: Path) -> None:
        super().__init__()
        self.unet = diffusers.UNet2DConditionModel(**UNET)
        self.text_encoder = transformers.T5EncoderModel.from_pretrained(t5)


def save(folder: Path) -> tuple[AudioDiffusion, OriginalAutoencoder, Path]:
    """Write ``folder/tango`` as on the hub, and ``folder/t5``, whose weights are others than the checkpoint's own."""
    t5, tango = save_t5(folder / "t5"), folder / "tango"
    (tango / "configs").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model, autoencoder = AudioDiffusion(t5).eval(), OriginalAutoencoder().eval()
        for weight in (*model.parameters(), *autoencoder.vocoder.parameters()):
            if weight.dim() > 1:
                weight.normal_(std=1.0 / weight[0].numel() ** 0.5)
    torch.save(model.state_dict(), tango / "pytorch_model_main.bin")
    torch.save(autoencoder.state_dict(), tango / "pytorch_model_vae.bin")
    main = {
        "text_encoder_name": str(t5),
        "scheduler_name": "stabilityai/stable-diffusion-2-1",
        "unet_model_name": None,
        "unet_model_config_path": "configs/diffusion_model_config.json",
        "snr_gamma": 5.0,
    }
    for name, content in (("main", main), ("vae", VAE), ("stft", STFT)):
        (tango / f"{name}_config.json").write_text(json.dumps(content))
    (tango / "configs" / "diffusion_model_config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **UNET}))
    return model, autoencoder, tango
