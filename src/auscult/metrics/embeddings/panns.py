"""PANNs Cnn14 with the public weights: features for FD and 527 AudioSet logits for KL and IS, as the field computes them.

Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition", IEEE/ACM TASLP 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ...descriptors import DescriptorSpec
from ...devices import float32_products
from ...errors import ModelError
from .base import Backend, Embedded, FloatArray
from .spectra import band_sums, check_samples, hann
from .weight_files import WeightFile, check_tensors, network_device, read_weights

N_BANDS = 64
DIMENSION = 2048
CLASSES = 527
POWER_FLOOR = 1e-10
LONGEST_S = 30  # longer clips are cut: AudioSet's have 10 s, and memory grows with the length
MIN_FRAMES = 32  # five poolings by two leave one

MEANT = (
    "the weights of Cnn14 of PANNs: the file Cnn14_mAP=0.431.pth (32 kHz) or Cnn14_16k_mAP=0.438.pth (16 kHz) that its authors "
    "published on Zenodo, a dict of tensors under the key 'model'"
)
_MEL = "logmel_extractor.melW"
_REAL, _IMAGINARY = (f"spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag"))
_CHANNELS = (1, 64, 128, 256, 512, 1024, 2048)
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class FrontEnd:
    """How a version of the network hears.

    Attributes
    ----------
    sample_rate_hz
        Of the audio.
    window
        Length of a frame and of the transform, in samples.
    hop
        Distance of frames, in samples.
    """

    sample_rate_hz: int
    window: int
    hop: int

    @property
    def shortest(self) -> int:
        """Samples of 32 frames, ``31 hop``, to which shorter clips are filled up with zeros: 0.31 s."""
        return (MIN_FRAMES - 1) * self.hop


FRONT_ENDS = (FrontEnd(32_000, 1024, 320), FrontEnd(16_000, 512, 160))  # bands from 50 Hz to 14 and 8 kHz: the file has them


def shapes(front: FrontEnd) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public weights, in the order of the layers; without the counters of batches.

    >>> shapes(FRONT_ENDS[0])["conv_block6.conv2.weight"]
    (2048, 2048, 3, 3)
    """
    bins = front.window // 2 + 1
    result: dict[str, tuple[int, ...]] = dict.fromkeys((_REAL, _IMAGINARY), (bins, 1, front.window))
    result[_MEL] = (bins, N_BANDS)
    result |= {f"bn0.{part}": (N_BANDS,) for part in _NORM}
    for block, (inputs, outputs) in enumerate(pairwise(_CHANNELS), start=1):
        for layer, channels in ((1, inputs), (2, outputs)):
            result[f"conv_block{block}.conv{layer}.weight"] = (outputs, channels, 3, 3)
            result |= {f"conv_block{block}.bn{layer}.{part}": (outputs,) for part in _NORM}
    for linear, outputs in (("fc1", DIMENSION), ("fc_audioset", CLASSES)):
        result |= {f"{linear}.weight": (outputs, DIMENSION), f"{linear}.bias": (outputs,)}
    return result


def load(name: str, weights: str | None, device: str, **parameters: object) -> Backend:
    """The backend ``panns``: 2048 values of a clip (after the ReLU that follows ``fc1``) and its 527 logits before the sigmoid.

    Which version it is, 32 or 16 kHz, the shape of the file's mel matrix tells.

    A clip of up to 30 s is one input of the network, as in the public code; a longer one is cut into stretches of 30 s, the
    last of them shorter, whose features and logits are averaged by their lengths. A clip or last stretch of less than 0.31 s is
    filled up with zeros to that, which the network's five poolings need. (``audioldm_eval`` fills up to 32,000 samples, so its
    features of shorter clips are others. The mean that it takes off the samples lies below the lowest band.)

    Parameters
    ----------
    name
        Of the backend.
    weights
        Path of the public file (.pth, or the tensors under its key ``model`` as .safetensors).
    device
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ValueError
        Settings were given, or there is no such device.
    ModelError
        No such file, or not these weights.
    MissingExtraError
        torch is not installed.
    """
    if parameters:
        raise ValueError(f"the backend {name!r} has no settings, got {', '.join(parameters)}")
    chosen = network_device(device, f"the backend {name!r}")
    file = read_weights(name, weights, MEANT)
    front = _front_end(file)
    tensors = check_tensors(file, shapes(front), MEANT, ignored=lambda key: key.endswith(".num_batches_tracked"))
    _check_transform(file, tensors.pop(_REAL), tensors.pop(_IMAGINARY), front)
    bands = tensors.pop(_MEL).numpy().astype(np.float64)
    return Backend(
        spec=DescriptorSpec(name, 1, file.parameters()),
        sample_rate_hz=front.sample_rate_hz,
        dimension=DIMENSION,
        shortest_samples=1,
        frechet="fd",
        frame="the clip as a whole",
        embed=partial(_embed, {key: tensor.to(chosen) for key, tensor in tensors.items()}, front, bands),
        classes=CLASSES,
    )


def log_mel(samples: FloatArray, front: FrontEnd, bands: npt.NDArray[np.float64]) -> FloatArray:
    """``10 log10(max(|rfft(hann x_t)|^2 B, 10^-10))`` with centered frames, the ends mirrored; B is the file's mel matrix.

    Parameters
    ----------
    samples
        (time,), filled up to ``front.shortest`` with zeros if shorter.
    bands
        (window // 2 + 1, 64).

    Returns
    -------
    ndarray (1 + time // hop, 64) float32
        dB; -100 in digital silence. Computed in float64.
    """
    filled = np.zeros(max(len(samples), front.shortest))
    filled[: len(samples)] = samples
    mirrored = np.pad(filled, front.window // 2, mode="reflect")
    power = band_sums(mirrored, bands, window=front.window, hop=front.hop, n_fft=front.window)
    return (10.0 * np.log10(np.maximum(power, POWER_FLOOR))).astype(np.float32)


def _embed(tensors: dict[str, Any], front: FrontEnd, bands: npt.NDArray[np.float64], samples: FloatArray) -> Embedded:
    import torch

    check_samples(samples, 1, front.sample_rate_hz, "panns")
    longest = LONGEST_S * front.sample_rate_hz
    stretches = [samples[start : start + longest] for start in range(0, len(samples), longest)]
    total = np.zeros(DIMENSION + CLASSES)
    with torch.inference_mode(), float32_products(tf32=False):
        for stretch in stretches:
            mel = torch.from_numpy(log_mel(stretch, front, bands)).to(tensors["fc1.weight"].device)
            total += np.concatenate([part.cpu().numpy() for part in _network(tensors, mel)]) * (len(stretch) / len(samples))
    features, logits = np.split(total.astype(np.float32), [DIMENSION])
    return Embedded(features[None], logits)


def _network(tensors: dict[str, Any], mel: Any) -> tuple[Any, Any]:
    """(frames, 64) -> features (2048,) and logits (527,); the random parts of training are left out."""
    import torch.nn.functional as F  # noqa: N812 - the name that everyone gives it

    x = _normalized(tensors, "bn0", mel.T[None, :, :, None]).permute(0, 3, 2, 1)  # bands are the channels of this norm
    for block in range(1, len(_CHANNELS)):
        for layer in (1, 2):
            x = F.conv2d(x, tensors[f"conv_block{block}.conv{layer}.weight"], padding=1)
            x = F.relu(_normalized(tensors, f"conv_block{block}.bn{layer}", x))
        if block < len(_CHANNELS) - 1:
            x = F.avg_pool2d(x, 2)
    over_bands = x[0].mean(dim=2)
    pooled = over_bands.max(dim=1).values + over_bands.mean(dim=1)
    features = F.relu(F.linear(pooled, tensors["fc1.weight"], tensors["fc1.bias"]))
    return features, F.linear(features, tensors["fc_audioset.weight"], tensors["fc_audioset.bias"])


def _normalized(tensors: dict[str, Any], layer: str, x: Any) -> Any:
    import torch.nn.functional as F  # noqa: N812

    weight, bias, mean, variance = (tensors[f"{layer}.{part}"] for part in _NORM)
    return F.batch_norm(x, mean, variance, weight, bias)


def _front_end(file: WeightFile) -> FrontEnd:
    if _MEL not in file.tensors:
        raise ModelError(f"{file.path}: {_MEL!r} is missing; expected {MEANT}")
    shape = tuple(file.tensors[_MEL].shape)
    for front in FRONT_ENDS:
        if shape == (front.window // 2 + 1, N_BANDS):
            return front
    known = " or ".join(f"({front.window // 2 + 1}, {N_BANDS}) at {front.sample_rate_hz} Hz" for front in FRONT_ENDS)
    raise ModelError(f"{file.path}: {_MEL!r} should have the shape {known}, has {shape}; expected {MEANT}")


def _check_transform(file: WeightFile, real: Any, imaginary: Any, front: FrontEnd) -> None:
    """Refuse a file whose transform is not the one computed here: row k is the Hann window times cos, -sin of 2 pi k t / n."""
    phase = 2 * np.pi / front.window * np.arange(front.window)
    for key, matrix, wave in ((_REAL, real, np.cos), (_IMAGINARY, imaginary, lambda angle: -np.sin(angle))):
        for row in (0, 1, front.window // 4):
            if not np.allclose(matrix[row, 0].numpy(), hann(front.window) * wave(row * phase), atol=1e-4):
                raise ModelError(f"{file.path}: {key!r} is not the transform of a Hann window, row {row}; expected {MEANT}")
