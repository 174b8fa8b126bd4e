"""AudioMAE's encoder and AST as encoders of retrieved sounds: spectrogram patches, pooled 4x4.

Sources: Huang et al., "Masked Autoencoders that Listen", NeurIPS 2022 (AudioMAE); Gong et al., "AST: Audio Spectrogram
Transformer", Interspeech 2021; Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024, section 3.2, which
reduces a clip to 32 vectors of AudioMAE. How it pools it does not say; of the square kernels only 4x4 gives 32, and the mean of
average and maximum is what AudioLDM's training code pools by.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from ..errors import MissingExtraError, ModelError
from ..pretrained import first_line

DEFAULT_MODEL = "hf_hub:gaunernst/vit_base_patch16_1024_128.audiomae_as2m"
POOLED = 4  # patches along time and frequency that become one token


def pooled_patches(patches: torch.Tensor, by: int = POOLED) -> torch.Tensor:
    """Patches (B, time, frequency, D) pooled by 4x4 to (average + maximum) / 2: (B, tokens, D), time outermost.

    Rows and columns that fill no square of 4x4 (``by`` x ``by``) are left out.

    Raises
    ------
    ValueError
        There are fewer than ``by`` patches in time or in frequency.

    Examples
    --------
    >>> pooled_patches(torch.zeros(1, 64, 8, 768)).shape, pooled_patches(torch.zeros(1, 101, 12, 768)).shape
    (torch.Size([1, 32, 768]), torch.Size([1, 75, 768]))
    >>> pooled_patches(torch.zeros(1, 64, 8, 768), 8).shape
    torch.Size([1, 8, 768])
    """
    if min(patches.shape[1:3]) < by:
        raise ValueError(f"expected at least {by} x {by} patches, this model makes {patches.shape[1]} x {patches.shape[2]}")
    grid = patches.permute(0, 3, 1, 2)
    return ((F.avg_pool2d(grid, by) + F.max_pool2d(grid, by)) / 2).flatten(2).mT


def ast_tokens(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Tokens of AST: (B, 75, 768) for the public models, whose 1,214 outputs are 101 x 12 patches and two others, left out.

    Parameters
    ----------
    model
        An ``ASTModel``.
    inputs
        (B, frames, bins), what ``ASTFeatureExtractor`` makes of sounds.
    """
    config = model.config
    times = (config.max_length - config.patch_size) // config.time_stride + 1
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    hidden = model(inputs.to(model.dtype)).last_hidden_state[:, 2:]  # behind the class token and the distillation token
    return pooled_patches(hidden.unflatten(1, (bands, times)).transpose(1, 2))  # AST's patches go through the bands outermost


def ast_token_frames(model: Any) -> tuple[int, int]:
    """Frames from a pooled column of AST's patches to the next, and tokens per column."""
    config = model.config
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return POOLED * config.time_stride, bands // POOLED


class AudioMAEEncoder(ModelMixin, ConfigMixin):
    """AudioMAE's encoder, a vision transformer of timm's over log filter banks: 32 tokens of 768 for 10.24 s.

    Parameters
    ----------
    frames, bins
        Of the input; multiples of four patches.
    patch_size, width, depth, heads
        Of the transformer.
    pooled
        Patches along time and frequency that become one token: 4 in Re-AudioLDM's reading, 8 in AudioLDM 2.

    Raises
    ------
    MissingExtraError
        timm is not installed.
    """

    @register_to_config
    def __init__(
        self,
        frames: int = 1024,
        bins: int = 128,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        pooled: int = POOLED,
    ) -> None:
        super().__init__()
        self.transformer = _timm().models.VisionTransformer(
            img_size=(frames, bins),
            patch_size=patch_size,
            in_chans=1,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depth=depth,
            num_heads=heads,
        )

    @property
    def token_frames(self) -> tuple[int, int]:
        """Frames from a pooled column of patches to the next, and tokens per column."""
        size = self.config.patch_size
        return self.config.pooled * size, self.config.bins // size // self.config.pooled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Tokens (B, n, width) of what ``ASTFeatureExtractor`` makes of sounds, (B, frames, bins): same bank, same scale."""
        size = self.config.patch_size
        hidden = self.transformer.forward_features(inputs.to(self.dtype).unsqueeze(1))[:, 1:]  # behind the class token
        patches = hidden.unflatten(1, (self.config.frames // size, self.config.bins // size))
        return pooled_patches(patches, self.config.pooled)

    @classmethod
    def from_timm(cls, name: str = DEFAULT_MODEL) -> AudioMAEEncoder:
        """Weights that timm loads by name, put into this class so that a pipeline's folder can hold them.

        Raises
        ------
        MissingExtraError
            timm is not installed.
        ModelError
            It cannot be loaded, or is no such transformer.
        """
        timm = _timm()
        try:
            loaded = timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
            frames, bins = loaded.patch_embed.img_size
            (size, _), width = loaded.patch_embed.patch_size, loaded.embed_dim
            encoder = cls(frames, bins, size, width, len(loaded.blocks), loaded.blocks[0].attn.num_heads)
            encoder.transformer.load_state_dict(loaded.state_dict())
        except Exception as error:
            # timm and the hub's client raise whatever their own libraries do
            raise ModelError(
                f"{name}: cannot be loaded as AudioMAE ({first_line(error)}); give a vision transformer of timm's for one "
                f"channel, such as {DEFAULT_MODEL!r}"
            ) from error
        return encoder.eval()


def _timm() -> Any:
    try:
        import timm
        import timm.models
    except ImportError as error:
        raise MissingExtraError("audiomae", "AudioMAE") from error
    except RuntimeError as error:
        raise ModelError(
            f"timm cannot be imported ({first_line(error)}); it imports torchvision, which has to be the build for torch "
            f"{torch.__version__}"
        ) from error
    return timm
