"""CLAP as transformers has it: windows of 10 s at 48 kHz, and texts, become vectors in one space.

Source: Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation", ICASSP 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..devices import float32_products
from ..errors import ModelError
from .loading import Pretrained, load
from .locating import Kind

FloatArray = npt.NDArray[np.float32]

SAMPLE_RATE_HZ = 48_000
WINDOW_S = 10
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ
DEFAULT_MODEL = "laion/clap-htsat-unfused"
BATCH = 8  # windows in the network at once: about 1 GB of activations at the size of the default model
GPU_BATCH = 64
CLAP = Kind("a CLAP model", "ClapModel", "ClapFeatureExtractor", "ClapConfig", DEFAULT_MODEL, "ClapProcessor")


@dataclass(frozen=True)
class ClapTower:
    """A loaded CLAP model, seen from its audio side."""

    loaded: Pretrained

    @property
    def dimension(self) -> int:
        """Length of a vector: ``projection_dim``, 512 for the public models."""
        return int(self.loaded.config.projection_dim)

    @property
    def batch(self) -> int:
        """How many sounds to embed at once."""
        return BATCH if self.loaded.on_cpu else GPU_BATCH

    @property
    def extractor(self) -> Any:
        """The feature extractor of transformers'."""
        return self.loaded.extractor

    def embed(self, sounds: list[FloatArray]) -> FloatArray:
        """Vectors of sounds, each of at most 480,000 samples, shorter ones repeated: (n, dimension) float32."""
        import torch

        with torch.inference_mode(), float32_products(tf32=False):
            if self.loaded.on_cpu:
                features = torch.from_numpy(self.extracted(sounds)).float()
            else:
                features = log_mel(sounds, self.extractor, self.loaded.device)
            result = self.loaded.model.get_audio_features(input_features=features)
        result = getattr(result, "pooler_output", result)  # a tensor before transformers 5
        return np.asarray(result.float().cpu().numpy())

    def embed_all(self, sounds: list[FloatArray], name: str) -> FloatArray:
        """The same of any number of sounds, batch by batch, of unit length.

        Raises
        ------
        ModelError
            A value is not finite.
        """
        vectors = np.empty((len(sounds), self.dimension), np.float32)
        for start in range(0, len(sounds), self.batch):
            vectors[start : start + self.batch] = self.embed(sounds[start : start + self.batch])
        return unit_rows(vectors, name)

    def extracted(self, sounds: list[FloatArray]) -> Any:
        """What the extractor makes of sounds, (n, 1, frames, bands)."""
        return self.extractor(
            sounds,
            truncation="rand_trunc",  # never acts: no sound is longer than max_length
            padding="repeatpad",
            max_length=WINDOW_SAMPLES,
            sampling_rate=SAMPLE_RATE_HZ,
            return_tensors="np",
        )["input_features"]


def load_clap(name: str, device: str, *, needed_for: str, texts: bool, revision: str = "") -> ClapTower:
    """Load a CLAP model without feature fusion.

    Parameters
    ----------
    name, device, needed_for, revision
        As :func:`auscult.pretrained.load` takes them.
    texts
        Whether the text side is wanted; without it, it is thrown away, and its weights may be missing.

    Raises
    ------
    ModelError
        It cannot be loaded, is no CLAP model, is one with feature fusion or for another rate, or lacks weights.
    """

    def check(config: Any) -> None:
        if config.audio_config.enable_fusion:
            raise ModelError(
                f"{name}: is a model with feature fusion, whose extractor draws at random; take one without, as "
                f"{DEFAULT_MODEL!r}"
            )

    loaded = load(
        name,
        CLAP,
        device,
        needed_for=needed_for,
        needed=lambda key: key.startswith(("audio_", "text_") if texts else "audio_"),
        part="the encoders'" if texts else "the audio encoder's",
        revision=revision,
        check=check,
    )
    if loaded.extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ModelError(
            f"{name}: expected a model for {SAMPLE_RATE_HZ} Hz, this one wants {loaded.extractor.sampling_rate} Hz"
        )
    if not texts:
        del loaded.model.text_model, loaded.model.text_projection  # four fifths of the memory, and no part of this
    return ClapTower(loaded)


def unit_rows(vectors: FloatArray, name: str) -> FloatArray:
    """Rows scaled to unit length.

    Raises
    ------
    ModelError
        A value is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ModelError(f"{name}: gives values that are not finite; are its weights damaged?")
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norm, np.finfo(np.float32).tiny), dtype=np.float32)


def log_mel(sounds: list[FloatArray], extractor: Any, device: Any) -> Any:
    """What the extractor makes of sounds, (n, 1, frames, bands) float32, computed on a device.

    Repeated as often as it fits whole, zeros after it; Hann window, centered frames with the ends mirrored, power, Slaney's mel
    bands, dB above 1e-10. The extractor's loop over frames would keep a GPU waiting.
    """
    import torch

    padded = np.zeros((len(sounds), WINDOW_SAMPLES), np.float32)
    for row, sound in zip(padded, sounds, strict=True):
        repeated = np.tile(sound, WINDOW_SAMPLES // len(sound))
        row[: len(repeated)] = repeated
    return spectrograms(torch.from_numpy(padded).to(device), extractor).float()


def spectrograms(padded: Any, extractor: Any) -> Any:
    """What the extractor makes of waveforms (n, 480000) that are filled up already: (n, 1, frames, bands) float64, by torch,
    differentiable."""
    import torch

    size = extractor.fft_window_size
    spectrum = torch.stft(
        padded.double(),
        n_fft=size,
        hop_length=extractor.hop_length,
        window=torch.hann_window(size, periodic=True, dtype=torch.float64, device=padded.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bands = torch.from_numpy(np.asarray(extractor.mel_filters_slaney, np.float64)).to(padded.device)
    power = spectrum.abs().square().transpose(1, 2) @ bands
    return (10.0 * torch.log10(power.clamp(min=1e-10)))[:, None]
