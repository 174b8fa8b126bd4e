"""EnCodec: what a neural codec keeps of the sound, before it is quantized.

Source: Defossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, as transformers implements it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...devices import float32_products
from ...errors import ModelError
from ...pretrained import Kind, Pretrained
from ...pretrained import load as load_pretrained
from .base import Backend, Embedded, FloatArray
from .hub import batched, even_spans, finite, pin, take

NEEDED_FOR = "the encodec backend"
ENCODEC = Kind("an EnCodec model", "EncodecModel", "EncodecFeatureExtractor", "EncodecConfig", "facebook/encodec_24khz")
WINDOW_S = 30
BATCH = 1  # 30 s take about half a GB of activations, and a processor gains nothing from more at once
GPU_BATCH = 8


def load(name: str, weights: str | None, device: str, *, revision: str = "") -> Backend:
    """Load EnCodec: a frame is the output of the encoder for 320 samples at 24 kHz, 75 a second, 128 values each.

    n samples have ``ceil(n / 320)`` frames; the encoder fills up the last one, so the shortest clip is one sample. The encoder
    is causal. Clips longer than 30 s are cut into windows of at most 30 s, as few and as even as there can be, which bounds the
    memory; each starts afresh, so the first frames of a window (not of the clip) see less of what was before.

    Parameters
    ----------
    name
        ``"encodec"``.
    weights
        A folder that ``save_pretrained`` of an ``EncodecModel`` and of its ``EncodecFeatureExtractor`` wrote, or ``NAME`` or
        ``NAME@REVISION`` on the hub; None for ``facebook/encodec_24khz``. Stereo models, and those that scale the level of
        each second (``facebook/encodec_48khz``), are refused.
    device
        As :func:`auscult.pretrained.choose_device` takes it.
    revision
        On the hub.

    Raises
    ------
    ValueError
        There is no such device.
    ModelError
        The weights are missing, damaged, incomplete, or of another model.
    MissingExtraError
        torch or transformers is not installed.
    """
    pinned = pin(weights, ENCODEC, revision=revision, needed_for=NEEDED_FOR)

    def check(config: Any) -> None:
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise ModelError(
                f"{pinned.name}: expected a mono model that takes a clip whole and at its level, as "
                f"{ENCODEC.example}; this one is stereo, cuts clips or scales them"
            )

    loaded = load_pretrained(
        pinned.name,
        ENCODEC,
        device,
        needed_for=NEEDED_FOR,
        needed=lambda key: key.startswith("encoder."),
        part="the encoder's",
        revision=pinned.revision,
        check=check,
    )
    rate, hop = int(loaded.config.sampling_rate), prod(loaded.config.upsampling_ratios)
    return Backend(
        spec=pinned.spec(name),
        sample_rate_hz=rate,
        dimension=int(loaded.config.hidden_size),
        shortest_samples=1,
        frechet="fad",
        frame=f"{hop} samples at {rate} Hz ({rate / hop:g} a second), none overlapping",
        embed=_Encoder(loaded, hop, rate * WINDOW_S // hop, pinned.name).embed,
    )


@dataclass(frozen=True)
class _Encoder:
    loaded: Pretrained
    hop: int
    longest: int  # frames in a window
    name: str

    def embed(self, samples: FloatArray) -> Embedded:
        """A row for each hop of the encoder, before it is quantized."""
        clip = take(samples, 1)
        rows = batched(self._windows(clip), BATCH if self.loaded.on_cpu else GPU_BATCH, self._run)
        return Embedded(finite(np.concatenate(rows), self.name))

    def _windows(self, clip: FloatArray) -> Iterator[FloatArray]:
        for first, end in even_spans(-(-len(clip) // self.hop), self.longest):
            yield clip[first * self.hop : end * self.hop]

    def _run(self, windows: FloatArray) -> Any:
        """(n, frames, dimension) of windows (n, samples)."""
        import torch

        with torch.inference_mode(), float32_products(tf32=False):
            states = self.loaded.model.encoder(torch.from_numpy(windows)[:, None].to(self.loaded.device))
            return states.transpose(1, 2).float().cpu().numpy()
