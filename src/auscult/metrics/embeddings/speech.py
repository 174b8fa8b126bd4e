"""Models of speech, whose states the field also measures sounds with: wav2vec 2.0, HuBERT, WavLM and Whisper's encoder.

Sources, all as transformers implements them: Baevski et al., "wav2vec 2.0", NeurIPS 2020; Hsu et al., "HuBERT", TASLP 2021;
Chen et al., "WavLM", JSTSP 2022; Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ...devices import float32_products
from ...errors import ModelError
from ...pretrained import Kind, Pretrained
from ...pretrained import load as load_pretrained
from .base import Backend, Embedded, FloatArray
from .hub import Weights, batched, even_spans, finite, pin, take

KINDS = {
    "wav2vec2": Kind(
        "a wav2vec2 model", "Wav2Vec2Model", "Wav2Vec2FeatureExtractor", "Wav2Vec2Config", "facebook/wav2vec2-base"
    ),
    "hubert": Kind("a HuBERT model", "HubertModel", "Wav2Vec2FeatureExtractor", "HubertConfig", "facebook/hubert-base-ls960"),
    "wavlm": Kind("a WavLM model", "WavLMModel", "Wav2Vec2FeatureExtractor", "WavLMConfig", "microsoft/wavlm-base"),
    "whisper": Kind("a Whisper model", "WhisperModel", "WhisperFeatureExtractor", "WhisperConfig", "openai/whisper-small"),
}
WINDOW_S = 30
BATCH = 1  # 30 s take about half a GB of activations, and a processor gains nothing from more at once
GPU_BATCH = 8
LAST = -1
_STRIDE_OF_STATES = 2  # Whisper's second convolution: spectrogram frames a state


def load(name: str, weights: str | None, device: str, *, revision: str = "", layer: int = LAST) -> Backend:
    """Load a model of speech: a frame is a hidden state of its transformer, 50 a second, 768 values each in the public ones.

    *wav2vec2, hubert, wavlm.* The convolutions before the transformer see R samples for a state and move on by S: R = 400 and
    S = 320 at 16 kHz (25 and 20 ms) in the public models. n samples have ``floor((n - R) / S) + 1`` frames, so the shortest
    clip has R samples. A clip is brought to zero mean and unit variance as a whole, if the feature extractor says so
    (``do_normalize``). Clips of more than 30 s of frames are cut into windows of at most that, as few and as even as there can
    be, which bounds the memory. Each window begins where its first frame does, so the number of frames is that of the whole
    clip; but states near the ends of a window (not of the clip) see less context, and models that normalize the first
    convolution over time ("group") do so window by window.

    *whisper.* The encoder takes windows of 30 s, consecutive ones, of which the last is filled up with zeros; its log-mel
    levels are relative to the loudest of the window. Of S = 320 samples for a state, n samples have ``ceil(n / S)`` frames:
    those of the zeros are left out. The shortest clip is one sample.

    Parameters
    ----------
    name
        ``"wav2vec2"``, ``"hubert"``, ``"wavlm"`` or ``"whisper"``.
    weights
        A folder that ``save_pretrained`` of the model and of its feature extractor wrote, or ``NAME`` or ``NAME@REVISION`` on
        the hub; None for ``facebook/wav2vec2-base``, ``facebook/hubert-base-ls960``, ``microsoft/wavlm-base`` or
        ``openai/whisper-small``. The main branches of the first three have been seen to hold pickled weights only, which are
        refused: convert them once, as the message says, or name the pull request that adds safetensors (for the first two
        ``@refs/pr/2``).
    device
        As :func:`auscult.pretrained.choose_device` takes it.
    revision
        On the hub.
    layer
        Of which transformer layer the states are taken, from 1; 0 is what enters the first one. -1 means the last one, with the
        normalization that follows it; the spec holds its number.

    Raises
    ------
    ValueError
        There is no such layer or device.
    ModelError
        The weights are missing, damaged, incomplete, or of another model.
    MissingExtraError
        torch or transformers is not installed.
    """
    kind, needed_for = KINDS[name], f"the {name} backend"
    pinned = pin(weights, kind, revision=revision, needed_for=needed_for)
    whisper = name == "whisper"
    loaded = load_pretrained(
        pinned.name,
        kind,
        device,
        needed_for=needed_for,
        # the vector that masks time steps in training is not in every checkpoint, and masks nothing here
        needed=(lambda key: key.startswith("encoder.")) if whisper else (lambda key: key != "masked_spec_embed"),
        part="the encoder's",
        revision=pinned.revision,
        check=partial(_check_config, pinned.name),
    )
    build = _whisper if whisper else _waves
    layers = int(loaded.config.encoder_layers if whisper else loaded.config.num_hidden_layers)
    chosen = layers if layer == LAST else layer
    if not 0 <= chosen <= layers:
        raise ValueError(f"layer should be from 0 to {layers} in {pinned.name}, or -1 for the last one, got {layer}")
    return build(name, pinned, loaded, None if chosen == layers else chosen, chosen)


def _waves(name: str, weights: Weights, loaded: Pretrained, layer: int | None, number: int) -> Backend:
    """Models that begin with convolutions of the samples."""
    stride = prod(loaded.config.conv_stride)
    sight = _receptive_field(loaded.config.conv_kernel, loaded.config.conv_stride)
    rate = int(loaded.extractor.sampling_rate)
    model = _Waves(loaded, layer, weights.name, sight, stride, rate * WINDOW_S // stride)
    return Backend(
        spec=weights.spec(name, layer=number),
        sample_rate_hz=rate,
        dimension=int(loaded.config.hidden_size),
        shortest_samples=sight,
        frechet="fad",
        frame=f"a state of layer {number}, {rate / stride:g} a second",
        embed=model.embed,
    )


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Samples that a stack of convolutions without padding sees.

    Examples
    --------
    >>> _receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2])
    400
    """
    seen = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        seen = (seen - 1) * stride + kernel
    return seen


@dataclass(frozen=True)
class _Waves:
    loaded: Pretrained
    layer: int | None
    name: str
    sight: int  # samples that a frame sees
    stride: int  # samples from a frame to the next
    longest: int  # frames in a window

    def embed(self, samples: FloatArray) -> Embedded:
        """A row for each state of the chosen layer."""
        clip = take(samples, self.sight)
        extractor = self.loaded.extractor
        values = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_values"][0]
        rows = batched(self._windows(values), BATCH if self.loaded.on_cpu else GPU_BATCH, self._run)
        return Embedded(finite(np.concatenate(rows), self.name))

    def _windows(self, clip: FloatArray) -> Iterator[FloatArray]:
        spans = even_spans((len(clip) - self.sight) // self.stride + 1, self.longest)
        for first, end in spans[:-1]:
            yield clip[first * self.stride : (end - 1) * self.stride + self.sight]
        yield clip[spans[-1][0] * self.stride :]

    def _run(self, windows: FloatArray) -> Any:
        """(n, frames, dimension) of windows (n, samples)."""
        return _states(self.loaded.model, windows, self.layer, self.loaded.device)


def _whisper(name: str, weights: Weights, loaded: Pretrained, layer: int | None, number: int) -> Backend:
    extractor, config = loaded.extractor, loaded.config
    made = extractor.nb_max_frames, extractor.feature_size
    wanted = _STRIDE_OF_STATES * config.max_source_positions, config.num_mel_bins
    if made != wanted:
        raise ModelError(
            f"{weights.name}: its extractor makes (frames, bands) {made}, but its encoder wants {wanted}; save both of one"
        )
    extractor.dither = 0.0  # or every call would draw other noise
    del loaded.model.decoder  # more than half of the memory, and no part of this
    rate, stride = int(extractor.sampling_rate), _STRIDE_OF_STATES * int(extractor.hop_length)
    return Backend(
        spec=weights.spec(name, layer=number),
        sample_rate_hz=rate,
        dimension=int(config.d_model),
        shortest_samples=1,
        frechet="fad",
        frame=f"a state of layer {number} of the encoder, {rate / stride:g} a second",
        embed=_Whisper(loaded, layer, weights.name, stride).embed,
    )


@dataclass(frozen=True)
class _Whisper:
    loaded: Pretrained
    layer: int | None
    name: str
    stride: int  # samples from a frame to the next

    def embed(self, samples: FloatArray) -> Embedded:
        """A row for each state of the encoder's chosen layer that is of the clip, and not of what fills up its window."""
        clip = take(samples, 1)
        window = int(self.loaded.extractor.n_samples)
        windows = (clip[start : start + window] for start in range(0, len(clip), window))
        rows = batched(windows, BATCH if self.loaded.on_cpu else GPU_BATCH, self._run)
        # a window has a whole number of states, so the frames that zeros filled up are the last ones
        return Embedded(finite(np.concatenate(rows)[: -(-len(clip) // self.stride)], self.name))

    def _run(self, windows: FloatArray) -> Any:
        """(n, frames, dimension) of windows (n, samples)."""
        extractor = self.loaded.extractor
        with float32_products(tf32=False):  # the extractor works on the device
            features = extractor(
                list(windows), sampling_rate=extractor.sampling_rate, return_tensors="np", device=str(self.loaded.device)
            )["input_features"]
        return _states(self.loaded.model.encoder, features, self.layer, self.loaded.device)


def _states(model: Callable[..., Any], inputs: FloatArray, layer: int | None, device: Any) -> Any:
    """(n, frames, dimension): the last states of a model, or those of an earlier layer."""
    import torch

    with torch.inference_mode(), float32_products(tf32=False):
        there = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).to(device)
        if layer is None:
            states = model(there).last_hidden_state
        else:
            states = model(there, output_hidden_states=True).hidden_states[layer]
        return states.float().cpu().numpy()


def _check_config(name: str, config: Any) -> None:
    if getattr(config, "add_adapter", False):
        raise ModelError(f"{name}: has an adapter, which thins out the states; take a model without one")
