"""VGGish with the public weights: the features of the field's Frechet audio distance.

Source: Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017, and the front end of its public
release; Kilgour et al., "Frechet Audio Distance", Interspeech 2019.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...descriptors import DescriptorSpec
from ...devices import float32_products
from .base import Backend, Embedded, FloatArray
from .spectra import band_sums, check_samples, count_frames
from .weight_files import check_tensors, network_device, read_weights

SAMPLE_RATE_HZ = 16_000
WINDOW = 400  # samples, 25 ms
HOP = 160  # 10 ms
N_FFT = 512
N_BANDS = 64
BAND_EDGES_HZ = (125.0, 7500.0)
LOG_OFFSET = 0.01
EXAMPLE = 96  # frames: 0.96 s
SHORTEST = WINDOW + (EXAMPLE - 1) * HOP  # 15,600 samples, 0.975 s
DIMENSION = 128
BATCH = 32  # examples in the network at once: about 100 MB of activations

MEANT = (
    "the weights of VGGish as PyTorch has them: the file vggish-10086976.pth of the torchvggish release, a dict with "
    "features.N and embeddings.N"
)
# Where the layers stand in the two sequences of the public file, with their outputs and inputs; a pooling comes before the
# convolutions 3, 6 and 11, and after the last.
_CONVOLUTIONS = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
_POOLED_BEFORE = (3, 6, 11)
_LINEARS = {0: (4096, 512 * 6 * 4), 2: (4096, 4096), 4: (DIMENSION, 4096)}


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public weights, in the order of the layers.

    >>> shapes()["features.13.weight"], shapes()["embeddings.0.weight"]
    ((512, 512, 3, 3), (4096, 12288))
    """
    result: dict[str, tuple[int, ...]] = {}
    for position, (outputs, inputs) in _CONVOLUTIONS.items():
        result |= {f"features.{position}.weight": (outputs, inputs, 3, 3), f"features.{position}.bias": (outputs,)}
    for position, (outputs, inputs) in _LINEARS.items():
        result |= {f"embeddings.{position}.weight": (outputs, inputs), f"embeddings.{position}.bias": (outputs,)}
    return result


def load(name: str, weights: str | None, device: str, **parameters: object) -> Backend:
    """The backend ``vggish``: 128 values for each 0.96 s, before the last ReLU and without the release's PCA.

    Parameters
    ----------
    name
        Of the backend.
    weights
        Path of the public file (.pth, or the same tensors as .safetensors). PCA parameters in it (``pproc.``) are not used.
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
    tensors = check_tensors(file, shapes(), MEANT, ignored=lambda key: key.startswith("pproc."))
    return Backend(
        spec=DescriptorSpec(name, 1, file.parameters()),
        sample_rate_hz=SAMPLE_RATE_HZ,
        dimension=DIMENSION,
        shortest_samples=SHORTEST,
        frechet="fad",
        frame="0.96 s, none overlapping",
        embed=partial(_embed, {key: tensor.to(chosen) for key, tensor in tensors.items()}),
    )


def count_examples(n_samples: int) -> int:
    """Examples of a clip: ``floor(frames / 96)`` with ``frames = 1 + floor((n - 400) / 160)``; what remains is dropped.

    >>> count_examples(15_599), count_examples(15_600), count_examples(160_000)
    (0, 1, 10)
    """
    return count_frames(n_samples, WINDOW, HOP) // EXAMPLE


def examples(samples: FloatArray) -> FloatArray:
    """Log-mel patches: ``log(0.01 + |rfft(hann x_t)| B)``, 96 frames each.

    Frames of 25 ms every 10 ms (not centered, nothing padded), periodic Hann window, transform of 512, magnitudes (not
    powers), the bands B of :func:`mel_bands`, natural logarithm; in float64 up to here.

    Parameters
    ----------
    samples
        (time,) mono at 16 kHz, in [-1, 1], at least 15,600.

    Returns
    -------
    ndarray (count_examples(time), 96, 64) float32

    Raises
    ------
    ValueError
        Other shape, or too short.
    """
    check_samples(samples, SHORTEST, SAMPLE_RATE_HZ, "vggish")
    n = count_examples(len(samples))
    used = np.asarray(samples[: WINDOW + (n * EXAMPLE - 1) * HOP], np.float64)
    mel = band_sums(used, mel_bands(), window=WINDOW, hop=HOP, n_fft=N_FFT, magnitude=True)
    return np.log(mel + LOG_OFFSET).astype(np.float32).reshape(n, EXAMPLE, N_BANDS)


@lru_cache(maxsize=1)
def mel_bands() -> npt.NDArray[np.float64]:
    """(257, 64) weights: triangles over the mel scale of HTK, 1 at their tops, 125 to 7500 Hz.

    A bin's weight falls linearly with its distance *in mel* from the center of a band to the centers of its neighbors. (Most
    libraries draw these triangles over Hz, which gives other weights.) The bin at 0 Hz is in no band.
    """
    mel = 1127.0 * np.log1p(np.arange(N_FFT // 2 + 1) * (SAMPLE_RATE_HZ / N_FFT) / 700.0)[:, None]
    lowest, highest = 1127.0 * np.log1p(np.array(BAND_EDGES_HZ) / 700.0)
    edges = np.linspace(lowest, highest, N_BANDS + 2)
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _embed(tensors: dict[str, Any], samples: FloatArray) -> Embedded:
    import torch

    patches = torch.from_numpy(examples(samples))[:, None]
    device = tensors["embeddings.0.weight"].device
    with torch.inference_mode(), float32_products(tf32=False):
        results = [_network(tensors, batch.to(device)).cpu() for batch in patches.split(BATCH)]
    return Embedded(torch.cat(results).numpy())


def _network(tensors: dict[str, Any], x: Any) -> Any:
    """(n, 1, 96, 64) -> (n, 128)."""
    import torch.nn.functional as F  # noqa: N812 - the name that everyone gives it

    for position in _CONVOLUTIONS:
        if position in _POOLED_BEFORE:
            x = F.max_pool2d(x, 2)
        x = F.relu(F.conv2d(x, tensors[f"features.{position}.weight"], tensors[f"features.{position}.bias"], padding=1))
    x = F.max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # channels last: the weights come from TensorFlow
    for position in _LINEARS:
        x = x if position == 0 else F.relu(x)
        x = F.linear(x, tensors[f"embeddings.{position}.weight"], tensors[f"embeddings.{position}.bias"])
    return x
