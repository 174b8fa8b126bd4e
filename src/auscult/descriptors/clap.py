"""The audit paper's second descriptor: audio embeddings of CLAP, which compare what a sound is rather than how it runs.

Source: Bralios et al., ICASSP 2024, section 3; the model is Wu et al., "Large-scale Contrastive Language-Audio
Pretraining with Feature Fusion and Keyword-to-Caption Augmentation", ICASSP 2023, as transformers implements it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import pretrained
from ..errors import ModelError
from ..pretrained.clap import CLAP, DEFAULT_MODEL, SAMPLE_RATE_HZ, WINDOW_SAMPLES, ClapTower, load_clap
from .base import DescriptorSpec, FloatArray

SILENT_PEAK = 2.0**-24  # as in auscult.audio: what lies below the last bit of 24-bit audio is padding


@dataclass(frozen=True)
class ClapDescriptor:
    """Audio embedding of a CLAP model, of unit length: ``v = P A(x) / |P A(x)|``.

    A is the audio encoder, P the projection into the space that audio and text share, x the log-mel spectrogram of a
    window of 10 s at 48 kHz. The model is loaded when it is first needed.

    Windows have exactly the 480,000 samples that the model was trained on, so the random crop that the feature extractor
    takes of longer audio never acts: equal windows have equal vectors, whatever the seeds.

    A clip shorter than a window arrives with zeros after it. The model has seen short clips repeated, never followed by
    seconds of silence, in which all short clips would agree; so what sounds of a window (everything up to its last sample
    of at least 2^-24) is repeated as often as it fits as a whole, and zeros follow only after that ("repeatpad", which is
    the extractor's rule for the clip itself). A clip longer than half a window fits once. This depends on nothing but the
    window.

    Parameters
    ----------
    model
        Name of a model on the Hugging Face hub, or a folder that ``save_pretrained`` of the model and of its feature
        extractor wrote. Weights are read from safetensors only, and no code is taken from the hub. Models with feature
        fusion are refused: their extractor draws at random even for short clips.
    device
        ``"auto"`` (CUDA if there, else the CPU), or a device as torch names it. Not a part of the spec, since it changes
        values by no more than rounding: elsewhere than on the CPU the spectrogram is computed on the device too, in float64
        by the extractor's rule, and tf32 is not taken.
    digest
        Of a folder's configuration and weights; computed if it is not given. With it the descriptor is made without
        looking at the folder, and loading refuses a folder whose content has another digest.

    Raises
    ------
    ModelError
        There is no such folder, or it lacks a file.

    References
    ----------
    Bralios et al., ICASSP 2024, section 3 (``laion/clap-htsat-unfused``, 512 values). Deviation: the paper does not say how it
    chose windows of longer clips; here consecutive windows cover them.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model should be the name of a model on the hub or a folder, got an empty text")
        if self.digest:
            return
        located = pretrained.locate(self.model, CLAP)
        if located.digest:
            object.__setattr__(self, "model", located.name)  # absolute: workers may stand in another folder
            object.__setattr__(self, "digest", located.digest)

    dtype = "float32"
    tail = "move"  # the last window of a long recording ends where it ends

    @property
    def spec(self) -> DescriptorSpec:
        """``clap/1(model='...')``, and the digest if the model is a folder; everything else is fixed by the version."""
        digest = (("digest", self.digest),) if self.digest else ()
        return DescriptorSpec("clap", 1, (("model", self.model), *digest))

    def on(self, device: str) -> ClapDescriptor:
        """The same descriptor on another device; with an equal spec."""
        return self if device == self.device else replace(self, device=device)

    @property
    def sample_rate_hz(self) -> int:
        """48 kHz."""
        return SAMPLE_RATE_HZ

    @property
    def window_samples(self) -> int:
        """480,000: 10 s."""
        return WINDOW_SAMPLES

    @property
    def dimension(self) -> int:
        """Length of a vector: the model's ``projection_dim``, 512 for the default; loads the model."""
        return self._loaded.dimension

    def describe(self, windows: FloatArray) -> FloatArray:
        """Describe windows.

        Parameters
        ----------
        windows
            (n, 480000) float32, mono at 48 kHz, none of them pure silence.

        Returns
        -------
        ndarray (n, dimension) float32
            Rows of unit length.

        Raises
        ------
        ValueError
            Wrong shape, or a window without sound.
        ModelError
            The model cannot be loaded, or its values are not finite.
        MissingExtraError
            torch or transformers is not installed.
        """
        if windows.ndim != 2 or windows.shape[1] != WINDOW_SAMPLES:
            raise ValueError(f"expected windows of shape (n, {WINDOW_SAMPLES}), got {windows.shape}")
        sounds = [_sounding(window) for window in windows]
        return self._loaded.embed_all(sounds, self.model)

    @cached_property
    def _loaded(self) -> ClapTower:
        if self.digest and folder_digest(Path(self.model)) != self.digest:
            raise ModelError(f"{self.model}: its files have changed since their digest {self.digest} was taken; describe anew")
        return load_clap(self.model, self.device, needed_for="the clap descriptor", texts=False)


def _sounding(window: FloatArray) -> FloatArray:
    """The window without the silence at its end."""
    loud = np.flatnonzero(np.abs(window) >= SILENT_PEAK)
    if len(loud) == 0:
        raise ValueError("the window is pure silence, which has no embedding of its own; leave silent windows out")
    return window[: loud[-1] + 1]


def folder_digest(folder: Path) -> str:
    """First 128 bits of a SHA-256 over the configurations and weights in a model's folder, hexadecimal.

    Raises
    ------
    ModelError
        The folder is missing, or lacks one of them.
    """
    return pretrained.folder_digest(folder, CLAP)
