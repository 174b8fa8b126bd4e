"""CLAP's embedding of what latents sound like; differentiable and deterministic.

Source: Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation", ICASSP 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from ..audio import SILENT_PEAK
from ..descriptors import DescriptorSpec
from ..descriptors.clap import ClapDescriptor
from ..devices import float32_products
from ..pretrained.clap import DEFAULT_MODEL, SAMPLE_RATE_HZ, WINDOW_S, WINDOW_SAMPLES, ClapTower, load_clap, spectrograms
from .codecs import LatentCodec
from .decoded import sound_of_step
from .latents import finite
from .resampling import resample
from .windows import DescribedAudio, FloatArray, describe_waves, fitted


@dataclass(frozen=True, eq=False)
class ClapOnAudio:
    """:class:`~auscult.descriptors.clap.ClapDescriptor` of decoded sound, of unit length.

    The sound is mixed down and resampled to 48 kHz; what sounds of a window (up to its last sample of at least 2^-24) is
    repeated as often as it fits whole into 10 s, as that descriptor has it. The extractor of transformers crops longer sounds
    at random; here nothing is longer than it takes.

    Parameters
    ----------
    codec
        Of the pipeline.
    tower
        The model.
    model
        Name of the model, as the descriptor's spec has it.
    window_s
        Length of a window, at most 10 s; of longer latents each step decodes one. At 10 s the vectors of stores compare.
    center, duration_s
        As in :class:`~auscult.guidance.latents.MelOnLatents`; CLAP's cosines are meaningful as they are.

    Raises
    ------
    ValueError
        The window is not from 0.1 to 10 seconds.
    """

    codec: LatentCodec
    tower: ClapTower
    model: DescriptorSpec
    window_s: float = float(WINDOW_S)
    center: bool = False
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.1 <= self.window_s <= WINDOW_S:
            raise ValueError(f"window_s should be from 0.1 to {WINDOW_S} s, what CLAP hears at once; got {self.window_s!r}")

    @classmethod
    def of(
        cls, pipe: Any, model: str = DEFAULT_MODEL, *, device: str = "auto", codec: LatentCodec | None = None, **settings: Any
    ) -> ClapOnAudio:
        """The descriptor of a pipeline and a CLAP model, loaded from a folder or the hub; see ``ClapDescriptor``."""
        descriptor = ClapDescriptor(model)
        tower = load_clap(descriptor.model, device, needed_for="guidance by clap", texts=False)
        tower.loaded.model.requires_grad_(False)  # it is this object's own; only the sound's gradient is wanted
        return cls(LatentCodec.of(pipe) if codec is None else codec, tower, descriptor.spec, **settings)

    @property
    def spec(self) -> str:
        """``clap-on-audio/1(...)`` with the model and its digest; a reference's vector does not depend on the pipeline."""
        own = {"window_s": float(self.window_s), "center": int(self.center), "rate_hz": self.rate_hz}
        return str(DescriptorSpec("clap-on-audio", 1, (*self.model.parameters, *own.items())))

    @property
    def store_spec(self) -> DescriptorSpec | None:
        """``clap/1`` with the model, for windows of 10 s."""
        return self.model if self.window_s == WINDOW_S else None

    @property
    def rate_hz(self) -> int:
        """48 kHz."""
        return SAMPLE_RATE_HZ

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`."""
        sound = sound_of_step(self.codec, x0, window_s=self.window_s, duration_s=self.duration_s, step=step)
        finite(sound, self.spec)
        wave = resample(sound.to(self.tower.loaded.device), self.codec.rate_hz, SAMPLE_RATE_HZ)
        return self._of_waves(fitted(wave, min(wave.shape[1], WINDOW_SAMPLES), 1)).to(x0.device)

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        """See :class:`~auscult.guidance.latents.LatentDescriptor`."""
        return describe_waves(waves, rate_hz, SAMPLE_RATE_HZ, round(self.window_s * SAMPLE_RATE_HZ), self._of_windows)

    def _of_windows(self, windows: FloatArray) -> FloatArray:
        with torch.no_grad():
            vectors = self._of_waves(torch.from_numpy(windows).to(self.tower.loaded.device))
        return np.asarray(vectors.float().cpu().numpy())

    def _of_waves(self, waves: torch.Tensor) -> torch.Tensor:
        """Vectors of waveforms (B, at most 480000) at 48 kHz; zeros where nothing sounds."""
        heard = (waves.detach().abs() >= SILENT_PEAK).any(1, keepdim=True)
        filled = torch.stack([_repeated(wave) for wave in waves])
        model = self.tower.loaded.model
        with float32_products(tf32=False):
            features = spectrograms(filled, self.tower.extractor).to(model.dtype)
            found = model.get_audio_features(input_features=features)
        found = getattr(found, "pooler_output", found)  # a tensor before transformers 5
        vectors = F.normalize(found if found.dtype == torch.float64 else found.float(), dim=1)
        return finite(torch.where(heard, vectors, torch.zeros_like(vectors)), self.spec)


def _repeated(wave: torch.Tensor) -> torch.Tensor:
    """What sounds of a waveform, as often as it fits whole into 10 s, and zeros after it: (480000,)."""
    loud = (wave.detach().abs() >= SILENT_PEAK).nonzero()
    length = int(loud[-1]) + 1 if len(loud) else len(wave)
    return fitted(wave[:length].repeat(WINDOW_SAMPLES // length), WINDOW_SAMPLES, 0)
