"""Codecs between log-mels and latents: a patch PCA that is fitted in a second, and variational autoencoders.

All share the interface of diffusers' ``AutoencoderKL``: ``encode(x).latent_dist``, ``decode(z).sample`` and
``config.scaling_factor``, with log-mels (B, 1, frames, n_mels), raw, and latents (B, C, frames / fold, n_mels / fold).

Sources: the public code of AudioLDM and TANGO for the sizes; the patch PCA is auscult's own.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

Preset = Literal["cpu4", "cpu8", "gpu", "audioldm"]
# channels of the stages (each but the last halves both axes), residual blocks of a stage, groups of the normalization,
# attention in the middle
_SIZES: dict[str, tuple[tuple[int, ...], int, int, bool]] = {
    "cpu4": ((16, 32, 64), 1, 8, False),
    "cpu8": ((16, 32, 64, 64), 1, 8, False),
    "gpu": ((64, 128, 256), 1, 32, True),
    "audioldm": ((128, 256, 512), 2, 32, True),
}
LATENT_CHANNELS = 8


class PatchPCACodec(ModelMixin, ConfigMixin):
    """Principal components of patches of the log-mel, each scaled to unit variance: a codec without training.

    ``z = (B (p - m)) / s`` for each patch p of ``patch_size`` x ``patch_size`` values of the standardized log-mel, with
    the components B (orthonormal rows), the mean patch m and the components' standard deviations s, of :meth:`fit`;
    ``p = B' (s z) + m`` takes it back. It is linear and deterministic: ``latent_dist.sample()`` is ``mode()``.

    With patches of 8 x 8 and 8 components a latent has an eighth of the log-mel's numbers, and the shape of the latents
    of the autoencoder ``cpu8``.

    Parameters
    ----------
    patch_size
        Frames and bands of a patch.
    latent_channels
        Components that are kept.
    scaling_factor
        What latents are multiplied by for the denoiser; 1, for they have unit variance.

    Attributes
    ----------
    mean, std
        () of the log-mels it was fitted on, in nats.
    center, basis, spread
        The mean patch (patch_size^2,), components (latent_channels, patch_size^2), standard deviations (latent_channels,).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, patch_size: int = 8, latent_channels: int = LATENT_CHANNELS, scaling_factor: float = 1.0) -> None:
        super().__init__()
        values = patch_size**2
        if not 1 <= latent_channels <= values:
            raise ValueError(f"latent_channels should be from 1 to {values}, the values of a patch; got {latent_channels}")
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("center", torch.zeros(values))
        self.register_buffer("basis", torch.eye(latent_channels, values))
        self.register_buffer("spread", torch.ones(latent_channels))

    @classmethod
    def fit(cls, mels: torch.Tensor, *, patch_size: int = 8, latent_channels: int = LATENT_CHANNELS) -> PatchPCACodec:
        """Fit the components of log-mels.

        Parameters
        ----------
        mels
            (N, 1, frames, n_mels) raw log-mels; both axes multiples of ``patch_size``.

        Returns
        -------
        PatchPCACodec
            Its latents of ``mels`` have, in each channel, mean 0 and standard deviation 1. The sign of a component is such
            that its largest value is positive, so that a fit repeats.

        Raises
        ------
        ValueError
            Not such log-mels, not finite ones, or ones that have fewer than ``latent_channels`` components.

        Examples
        --------
        >>> mels = torch.randn(4, 1, 16, 64, generator=torch.Generator().manual_seed(0)).cumsum(2)
        >>> codec = PatchPCACodec.fit(mels)
        >>> latents = codec.encode(mels).latent_dist.mode()
        >>> latents.shape, round(latents.std().item(), 2)
        (torch.Size([4, 8, 2, 8]), 1.0)
        """
        codec = cls(patch_size=patch_size, latent_channels=latent_channels)
        check_mels(mels, patch_size)
        if not torch.isfinite(mels).all():
            raise ValueError("the log-mels hold values that are not finite; check the waveforms that they were made of")
        exact = mels.double()
        mean, std = exact.mean(), exact.std(correction=0)
        if not std > 0:
            raise ValueError("all log-mels are one constant (silence?); a codec needs sound to be fitted on")
        patches = _patches((exact - mean) / std, patch_size).flatten(0, 2)
        center = patches.mean(0)
        covariance = (patches - center).T @ (patches - center) / len(patches)
        variances, vectors = (part.flip(-1)[..., :latent_channels] for part in torch.linalg.eigh(covariance))
        if not variances[-1] > 1e-9:  # in float32 mels, less is rounding
            rank = int((variances > 1e-9).sum())
            raise ValueError(f"the log-mels have {rank} components, fewer than the {latent_channels} wanted; give more clips")
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        fitted = {"mean": mean, "std": std, "center": center, "basis": (vectors * largest.sign()).T, "spread": variances.sqrt()}
        codec.load_state_dict({name: value.float() for name, value in fitted.items()})
        return codec

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Latents of raw log-mels (B, 1, frames, n_mels): ``.latent_dist``, whose ``mode()`` is (B, C, frames/8, n_mels/8)."""
        check_mels(x, self.config.patch_size)
        patches = _patches((x - self.mean) / self.std, self.config.patch_size)
        latents = (((patches - self.center) @ self.basis.T) / self.spread).permute(0, 3, 1, 2)
        posterior = DiagonalGaussianDistribution(torch.cat([latents, torch.full_like(latents, -30.0)], 1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Raw log-mels (B, 1, frames, n_mels) of latents: ``.sample``."""
        patches = (z.permute(0, 2, 3, 1) * self.spread) @ self.basis + self.center
        size = self.config.patch_size
        batch, rows, columns, _ = patches.shape
        mel = patches.reshape(batch, rows, columns, size, size).transpose(2, 3).reshape(batch, 1, rows * size, columns * size)
        mel = mel * self.std + self.mean
        return DecoderOutput(sample=mel) if return_dict else (mel,)

    def forward(self, sample: torch.Tensor) -> Any:
        """The reconstruction of raw log-mels, as :meth:`decode` returns it."""
        return self.decode(self.encode(sample).latent_dist.mode())


class MelAutoencoder(AutoencoderKL):
    """An ``AutoencoderKL`` that standardizes raw log-mels on the way in and undoes it on the way out.

    An autoencoder of few parameters learns numbers around 0 faster than ones around -7. ``mel_mean`` and ``mel_std``, in
    nats, are of the training set and live in the configuration; all else is diffusers' class with one channel.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (16, 32, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        latent_channels: int = LATENT_CHANNELS,
        mid_block_add_attention: bool = False,
        scaling_factor: float = 1.0,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
    ) -> None:
        stages = len(block_out_channels)
        super().__init__(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            latent_channels=latent_channels,
            mid_block_add_attention=mid_block_add_attention,
            scaling_factor=scaling_factor,
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Latents of raw log-mels (B, 1, frames, n_mels): ``.latent_dist``."""
        check_mels(x, fold(self))
        return super().encode((x - self.config.mel_mean) / self.config.mel_std, return_dict=return_dict)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Raw log-mels (B, 1, frames, n_mels) of latents: ``.sample``."""
        standardized = super().decode(z, return_dict=False)[0]
        mel = standardized * self.config.mel_std + self.config.mel_mean
        return DecoderOutput(sample=mel) if return_dict else (mel,)


def autoencoder(preset: Preset, **settings: Any) -> Any:
    """An autoencoder of a preset's size with random weights, of torch's global generator.

    ======== =============== ========== ==== ========================================================
    preset   channels        parameters fold for
    ======== =============== ========== ==== ========================================================
    cpu4     16, 32, 64      0.65 M     4    a processor
    cpu8     16, 32, 64, 64  0.95 M     8    a processor, latents as small as the patch PCA's
    gpu      64, 128, 256    10.8 M     4    a GPU
    audioldm 128, 256, 512   55.4 M     4    AudioLDM's, AudioLDM 2's and TANGO's weights
    ======== =============== ========== ==== ========================================================

    Parameters
    ----------
    settings
        Of :class:`MelAutoencoder`, such as ``mel_mean`` and ``mel_std``; for ``"audioldm"`` of diffusers' ``AutoencoderKL``,
        which is what that preset is.

    Raises
    ------
    ValueError
        No such preset.
    """
    if preset not in _SIZES:
        raise ValueError(f"preset should be one of {', '.join(get_args(Preset))}, got {preset!r}")
    channels, layers, groups, attention = _SIZES[preset]
    sizes = {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "latent_channels": LATENT_CHANNELS,
        "mid_block_add_attention": attention,
    }
    if preset != "audioldm":
        return MelAutoencoder(**{**sizes, **settings})
    stages = len(channels)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * stages, "up_block_types": ("UpDecoderBlock2D",) * stages}
    return AutoencoderKL(**{"in_channels": 1, "out_channels": 1, **blocks, **sizes, **settings})


def fold(codec: Any) -> int:
    """By what a codec divides both axes of a log-mel.

    >>> fold(PatchPCACodec()), fold(MelAutoencoder(block_out_channels=(8, 8, 8)))
    (8, 4)
    """
    patch = codec.config.get("patch_size")
    return int(patch) if patch is not None else 2 ** (len(codec.config.block_out_channels) - 1)


def to_latents(codec: Any, mels: torch.Tensor) -> torch.Tensor:
    """What the denoiser sees of log-mels: ``mode * scaling_factor``.

    Parameters
    ----------
    codec
        Any of this module's, or an ``AutoencoderKL`` of one channel.
    mels
        (B, 1, frames, n_mels), raw; both axes multiples of :func:`fold`.

    Returns
    -------
    Tensor (B, C, frames / fold, n_mels / fold)
        Of the codec's type.
    """
    check_mels(mels, fold(codec))
    return codec.encode(mels.to(codec.dtype)).latent_dist.mode() * codec.config.scaling_factor


def from_latents(codec: Any, latents: torch.Tensor) -> torch.Tensor:
    """Raw log-mels (B, 1, frames, n_mels) of latents as :func:`to_latents` gives them; differentiable."""
    return codec.decode(latents.to(codec.dtype) / codec.config.scaling_factor).sample


def check_mels(mels: torch.Tensor, multiple: int) -> None:
    """Check the shape of log-mels.

    Raises
    ------
    ValueError
        Not (B, 1, frames, n_mels), or an axis that is no multiple.
    """
    if mels.ndim != 4 or mels.shape[1] != 1:
        raise ValueError(f"expected log-mels of shape (B, 1, frames, n_mels), got {tuple(mels.shape)}")
    if mels.shape[2] % multiple or mels.shape[3] % multiple:
        raise ValueError(f"frames and bands should be multiples of {multiple}, got {mels.shape[2]} and {mels.shape[3]}")


def _patches(mels: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 1, F, M) -> (B, F / size, M / size, size^2), a patch row by row."""
    batch, _, frames, bands = mels.shape
    grid = mels.reshape(batch, frames // size, size, bands // size, size)
    return grid.transpose(2, 3).reshape(batch, frames // size, bands // size, size * size)
