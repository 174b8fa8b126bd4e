"""AST: the Audio Spectrogram Transformer, which names the 527 classes of AudioSet in a clip.

Source: Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, as transformers implements it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...devices import float32_products
from ...errors import ModelError
from ...pretrained import Kind, Pretrained
from ...pretrained import load as load_pretrained
from .base import Backend, Embedded, FloatArray
from .hub import batched, covering, finite, pin, take

NEEDED_FOR = "the ast backend"
AST = Kind(
    "an AST model",
    "ASTForAudioClassification",
    "ASTFeatureExtractor",
    "ASTConfig",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
)
SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = SAMPLE_RATE_HZ // 100  # of the filter bank: 10 ms
FRAME_SAMPLES = SAMPLE_RATE_HZ // 40  # 25 ms
BATCH = 4
GPU_BATCH = 32


def load(name: str, weights: str | None, device: str, *, revision: str = "", filter_bank: str = "") -> Backend:
    """Load AST: a frame is a window of 10.24 s, as the mean of the class and distillation tokens; logits are of the clip.

    Windows of 1024 hops of the filter bank (163,840 samples) follow each other; if something is left, one more ends where the
    clip ends. The extractor fills up windows with zeros *in the filter bank*: two frames at the end of a whole window, whose
    last frames would need later samples, and all that is missing of a clip shorter than that. The logits of a clip are the mean
    of its windows' logits (before the sigmoid), in which the overlap of the last two windows counts twice.

    A filter bank needs 25 ms, so the shortest clip has 400 samples.

    Parameters
    ----------
    name
        ``"ast"``.
    weights
        A folder that ``save_pretrained`` of an ``ASTForAudioClassification`` and of its ``ASTFeatureExtractor`` wrote, or
        ``NAME`` or ``NAME@REVISION`` on the hub; None for ``MIT/ast-finetuned-audioset-10-10-0.4593`` (527 classes).
    device
        As :func:`auscult.pretrained.choose_device` takes it.
    revision
        On the hub.
    filter_bank
        As a spec has it, ``"torchaudio"`` or ``"numpy"``; empty: the one that is there.

    Raises
    ------
    ValueError
        There is no such device.
    ModelError
        The weights are missing, damaged, incomplete, of another model, or for another rate; or the filter bank is not the one
        that is there.
    MissingExtraError
        torch or transformers is not installed.

    Notes
    -----
    The extractor takes torchaudio's filter bank where torchaudio is installed, and its own in numpy elsewhere. Logarithms of
    energies differ by rounding (in noise and in a tone by 0.0006 at most), so the spec says which it was.
    """
    pinned = pin(weights, AST, revision=revision, needed_for=NEEDED_FOR)
    loaded = load_pretrained(
        pinned.name,
        AST,
        device,
        needed_for=NEEDED_FOR,
        needed=lambda key: True,
        part="the model's",
        revision=pinned.revision,
    )
    _check_extractor(pinned.name, loaded)
    there = _filter_bank()
    if filter_bank not in ("", there):
        raise ModelError(
            f"{pinned.name}: expected features from the filter bank of {filter_bank}, but the one that is there is {there}'s: "
            f"{'remove' if there == 'torchaudio' else 'install'} torchaudio, or compute the features again"
        )
    window = loaded.extractor.max_length * HOP_SAMPLES
    return Backend(
        spec=pinned.spec(name, filter_bank=there),
        sample_rate_hz=SAMPLE_RATE_HZ,
        dimension=int(loaded.config.hidden_size),
        classes=int(loaded.config.num_labels),
        shortest_samples=FRAME_SAMPLES,
        frechet="fd",
        frame=f"a window of {window / SAMPLE_RATE_HZ:g} s, none overlapping but the last",
        embed=_Classifier(loaded, window, pinned.name).embed,
    )


@dataclass(frozen=True)
class _Classifier:
    loaded: Pretrained
    window: int
    name: str

    def embed(self, samples: FloatArray) -> Embedded:
        """A row for each window, and the logits of the clip."""
        clip = take(samples, FRAME_SAMPLES)
        windows = (clip[start : start + self.window] for start in covering(len(clip), self.window, self.window))
        rows = batched(windows, BATCH if self.loaded.on_cpu else GPU_BATCH, self._run)
        values = finite(np.stack(rows), self.name)
        pooled, logits = values[:, : self.loaded.config.hidden_size], values[:, self.loaded.config.hidden_size :]
        return Embedded(np.ascontiguousarray(pooled), logits.mean(axis=0))

    def _run(self, windows: FloatArray) -> Any:
        """(n, features and then logits) of windows (n, samples)."""
        import torch

        inputs = self.loaded.extractor(list(windows), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_values"]
        with torch.inference_mode(), float32_products(tf32=False):
            inputs = inputs.float().to(self.loaded.device)
            pooled = self.loaded.model.audio_spectrogram_transformer(inputs).pooler_output
            return torch.cat([pooled, self.loaded.model.classifier(pooled)], dim=1).float().cpu().numpy()


def _filter_bank() -> str:
    """Whose filter bank transformers' extractor takes in this installation."""
    from transformers.utils import is_speech_available

    return "torchaudio" if is_speech_available() else "numpy"


def _check_extractor(name: str, loaded: Pretrained) -> None:
    extractor, config = loaded.extractor, loaded.config
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ModelError(f"{name}: expected a model for {SAMPLE_RATE_HZ} Hz, this one wants {extractor.sampling_rate} Hz")
    made, wanted = (extractor.max_length, extractor.num_mel_bins), (config.max_length, config.num_mel_bins)
    if made != wanted:
        raise ModelError(f"{name}: its extractor makes (frames, bands) {made}, but its model wants {wanted}; save both of one")
