"""The audit paper's second descriptor: audio embeddings of CLAP, which compare what a sound is rather than how it runs.

Source: Bralios et al., ICASSP 2024, section 3; the model is Wu et al., "Large-scale Contrastive Language-Audio
Pretraining with Feature Fusion and Keyword-to-Caption Augmentation", ICASSP 2023, as transformers implements it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import CPU, float32_products, torch_device
from ..errors import MissingExtraError, ModelError
from ..folders import file_digest
from .base import DescriptorSpec, FloatArray

SAMPLE_RATE_HZ = 48_000
WINDOW_S = 10
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ
DEFAULT_MODEL = "laion/clap-htsat-unfused"
BATCH = 8  # windows in the network at once: about 1 GB of activations at the size of the default model
GPU_BATCH = 64
SILENT_PEAK = 2.0**-24  # as in auscult.audio: what lies below the last bit of 24-bit audio is padding

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")  # transformers writes the one or the other


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
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            object.__setattr__(self, "model", str(folder.resolve()))  # workers may stand in another folder
            object.__setattr__(self, "digest", folder_digest(folder))
        elif folder.exists() or not _HUB_NAME.fullmatch(self.model):
            raise ModelError(
                f"{self.model}: no folder of a model here, and no name of a model on the hub such as {DEFAULT_MODEL!r}"
            )

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
        return int(self._loaded.model.config.projection_dim)

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
        vectors = np.empty((len(sounds), self.dimension), np.float32)
        batch = self._loaded.batch
        for start in range(0, len(sounds), batch):
            vectors[start : start + batch] = self._loaded.embed(sounds[start : start + batch])
        if not np.isfinite(vectors).all():
            raise ModelError(f"{self.model}: gives values that are not finite; are its weights damaged?")
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norm, np.finfo(np.float32).tiny), dtype=np.float32)

    @cached_property
    def _loaded(self) -> _Loaded:
        if self.digest and folder_digest(Path(self.model)) != self.digest:
            raise ModelError(f"{self.model}: its files have changed since their digest {self.digest} was taken; describe anew")
        return _load(self.model, self.device)


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
    weights = sorted(folder.glob("*.safetensors"))
    extractor = [folder / name for name in _EXTRACTOR_FILES if (folder / name).is_file()]
    config = folder / "config.json"
    for found, what in ((config.is_file(), "config.json"), (extractor, _EXTRACTOR_FILES[0]), (weights, "*.safetensors")):
        if not found:
            raise ModelError(
                f"{folder}: expected a folder that save_pretrained of a ClapModel and of its ClapFeatureExtractor wrote, but "
                f"there is no {what} in it"
            )
    digest = hashlib.sha256()
    for path in [config, *extractor, *sorted(folder.glob("*.safetensors.index.json")), *weights]:
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, its feature extractor, and where it runs."""

    model: Any
    extractor: Any
    device: Any

    @property
    def batch(self) -> int:
        return BATCH if self.device.type == CPU else GPU_BATCH

    def embed(self, sounds: list[FloatArray]) -> FloatArray:
        import torch

        with torch.inference_mode(), float32_products(tf32=False):
            if self.device.type == CPU:
                features = torch.from_numpy(self._extracted(sounds)).float()
            else:
                features = _log_mel(sounds, self.extractor, self.device)
            result = self.model.get_audio_features(input_features=features)
        result = getattr(result, "pooler_output", result)  # a tensor before transformers 5
        return np.asarray(result.float().cpu().numpy())

    def _extracted(self, sounds: list[FloatArray]) -> Any:
        return self.extractor(
            sounds,
            truncation="rand_trunc",  # never acts: no sound is longer than max_length
            padding="repeatpad",
            max_length=WINDOW_SAMPLES,
            sampling_rate=SAMPLE_RATE_HZ,
            return_tensors="np",
        )["input_features"]


def _log_mel(sounds: list[FloatArray], extractor: Any, device: Any) -> Any:
    """What the extractor makes of sounds, (n, 1, frames, bands) float32, computed on a device.

    Repeated as often as it fits whole, zeros after it; Hann window, centered frames with the ends mirrored, power, Slaney's mel
    bands, dB above 1e-10. The extractor's loop over frames would keep a GPU waiting.
    """
    import torch

    padded = np.zeros((len(sounds), WINDOW_SAMPLES), np.float32)
    for row, sound in zip(padded, sounds, strict=True):
        repeated = np.tile(sound, WINDOW_SAMPLES // len(sound))
        row[: len(repeated)] = repeated
    size = extractor.fft_window_size
    spectrum = torch.stft(
        torch.from_numpy(padded).to(device).double(),
        n_fft=size,
        hop_length=extractor.hop_length,
        window=torch.hann_window(size, periodic=True, dtype=torch.float64, device=device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bands = torch.from_numpy(np.asarray(extractor.mel_filters_slaney, np.float64)).to(device)
    power = spectrum.abs().square().transpose(1, 2) @ bands
    return (10.0 * torch.log10(power.clamp(min=1e-10))).float()[:, None]


def _load(name: str, device: str) -> _Loaded:
    try:
        import torch
        from transformers import AutoConfig, ClapConfig, ClapFeatureExtractor, ClapModel
    except ImportError as error:
        raise MissingExtraError("models", "the clap descriptor") from error
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of several workers: a second thread in each would only get in the way
    chosen = _device(device)
    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            _check_config(name, config, ClapConfig)
            extractor = ClapFeatureExtractor.from_pretrained(name)
            model, report = ClapModel.from_pretrained(
                name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except ModelError:
        raise
    except Exception as error:
        # transformers, safetensors and the hub's client raise whatever their own libraries do
        raise ModelError(
            f"{name}: cannot be loaded ({_first_line(error)}); give the name of a CLAP model on the Hugging Face hub that has "
            "safetensors weights, or a folder that save_pretrained of a ClapModel and of its ClapFeatureExtractor wrote"
        ) from error
    # what is missing was filled with random numbers
    if missing := sorted(key for key in report["missing_keys"] if key.startswith("audio_")):
        raise ModelError(f"{name}: its weights lack {len(missing)} of the audio encoder's, for example {missing[0]}")
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ModelError(f"{name}: expected a model for {SAMPLE_RATE_HZ} Hz, this one wants {extractor.sampling_rate} Hz")
    del model.text_model, model.text_projection  # four fifths of the memory, and no part of this
    return _Loaded(model.eval().to(chosen), extractor, chosen)


def _check_config(name: str, config: Any, expected: Any) -> None:
    if not isinstance(config, expected):
        raise ModelError(f"{name}: expected a CLAP model, this is one of type {config.model_type!r}")
    if config.audio_config.enable_fusion:
        raise ModelError(
            f"{name}: is a model with feature fusion, whose extractor draws at random; take one without, as {DEFAULT_MODEL!r}"
        )


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else CPU)
    if name.partition(":")[0] in {CPU, "cuda"}:
        return torch_device(name, "the clap descriptor")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device should be 'auto' or a device of torch's, got {name!r} ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no reports of transformers' own while it loads; as they were afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
