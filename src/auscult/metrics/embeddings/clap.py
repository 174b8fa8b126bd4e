"""CLAP: what a clip is about, in a space that captions lie in too.

Source: Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation", ICASSP 2023, as transformers implements it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...devices import float32_products
from ...errors import ModelError
from ...pretrained.clap import CLAP, SAMPLE_RATE_HZ, WINDOW_S, WINDOW_SAMPLES, ClapTower, load_clap, unit_rows
from ...pretrained.loading import first_line, quiet
from .base import Backend, Embedded, FloatArray
from .hub import Weights, covering, pin, take

NEEDED_FOR = "the clap backend"
TEXT_BATCH = 64
_VOCABULARIES = ("tokenizer.json", "vocab.json")  # the one or the other makes a tokenizer
_TOKENIZER_FILES = (*_VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load(name: str, weights: str | None, device: str, *, revision: str = "", hop_s: float = WINDOW_S) -> Backend:
    """Load CLAP: frames are audio embeddings of windows of 10 s, of unit length; captions are embedded beside them.

    Windows have exactly the 480,000 samples that the model was trained on, every ``hop_s`` from the start of the clip, and if
    something is left, one more that ends where the clip ends. A shorter clip is repeated as often as it fits whole, then
    zeros follow ("repeatpad"). So the random crop of the feature extractor never acts. Silence is embedded like any sound.

    Texts are cut at the longest that the model takes: the tokenizer's ``model_max_length``, or the model's positions if these
    are fewer; 512 tokens for the public models. They were trained on captions of at most 77 tokens.

    Parameters
    ----------
    name
        ``"clap"``.
    weights
        A folder that ``save_pretrained`` of a ``ClapModel`` and of its ``ClapProcessor`` wrote, or ``NAME`` or
        ``NAME@REVISION`` on the hub: ``laion/clap-htsat-unfused`` (the default), ``laion/larger_clap_general``,
        ``laion/larger_clap_music_and_speech``. Models with feature fusion are refused: their extractor draws at random. Where
        the main branch holds pickled weights only, as the default's has been seen to, convert them once, as the message says,
        or name the pull request that adds safetensors.
    device
        As :func:`auscult.pretrained.choose_device` takes it.
    revision
        On the hub.
    hop_s
        From the start of a window to that of the next, in seconds, above 0 and at most 10.

    Raises
    ------
    ValueError
        ``hop_s`` is out of range, or there is no such device.
    ModelError
        The weights are missing, damaged, incomplete, or of another model.
    MissingExtraError
        torch or transformers is not installed.

    References
    ----------
    ICASSP 2023, section 2. Frechet distances of CLAP are published with hops of 1 s and of 10 s; the hop is in the spec.
    """
    hop = round(hop_s * SAMPLE_RATE_HZ)
    if not 0 < hop <= WINDOW_SAMPLES:
        raise ValueError(f"hop_s should be above 0 and at most {WINDOW_S} seconds, got {hop_s:g}")
    pinned = pin(weights, CLAP, revision=revision, needed_for=NEEDED_FOR, also=_TOKENIZER_FILES)
    tower = load_clap(pinned.name, device, needed_for=NEEDED_FOR, texts=True, revision=pinned.revision)
    both = _Both(tower, pinned, hop)
    return Backend(
        spec=pinned.spec(name, hop_s=float(hop_s)),
        sample_rate_hz=SAMPLE_RATE_HZ,
        dimension=tower.dimension,
        shortest_samples=1,
        frechet="fad",
        frame=f"a window of {WINDOW_S} s, every {hop_s:g} s",
        embed=both.embed,
        embed_texts=both.embed_texts,
    )


@dataclass(frozen=True)
class _Both:
    """A CLAP model with both of its sides."""

    tower: ClapTower
    weights: Weights
    hop: int

    def embed(self, samples: FloatArray) -> Embedded:
        """A row of unit length for each window."""
        clip = take(samples, 1)
        windows = [clip[start : start + WINDOW_SAMPLES] for start in covering(len(clip), WINDOW_SAMPLES, self.hop)]
        return Embedded(self.tower.embed_all(windows, self.weights.name))

    def embed_texts(self, captions: list[str]) -> FloatArray:
        """A row of unit length for each caption; a ``ValueError`` for one without words."""
        import torch

        for row, caption in enumerate(captions):
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"expected captions with words in them, got {caption!r} in row {row}; leave this row out")
        vectors = np.empty((len(captions), self.tower.dimension), np.float32)
        for start in range(0, len(captions), TEXT_BATCH):
            tokens = self._tokens(captions[start : start + TEXT_BATCH])
            with torch.inference_mode(), float32_products(tf32=False):
                result = self.tower.loaded.model.get_text_features(**tokens.to(self.tower.loaded.device))
            result = getattr(result, "pooler_output", result)  # a tensor before transformers 5
            vectors[start : start + TEXT_BATCH] = result.float().cpu().numpy()
        return unit_rows(vectors, self.weights.name)

    def _tokens(self, captions: list[str]) -> Any:
        config = self.tower.loaded.config.text_config
        positions = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts them from after the padding's id
        longest = min(self._tokenizer.model_max_length, positions)
        tokens = self._tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return tokens

    @cached_property
    def _tokenizer(self) -> Any:
        """Loaded when the first caption comes: frames need none."""
        from transformers import AutoTokenizer

        name, folder = self.weights.name, Path(self.weights.name)
        how = "save the model's ClapProcessor, which has the tokenizer, into the folder"
        if folder.is_dir() and not any((folder / each).is_file() for each in _VOCABULARIES):
            raise ModelError(f"{name}: expected a tokenizer for the captions, but there is no {_VOCABULARIES[0]} in it; {how}")
        at = {"revision": self.weights.revision} if self.weights.revision else {}
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **at)
        except Exception as error:
            raise ModelError(f"{name}: its tokenizer cannot be loaded ({first_line(error)}); {how}") from error
        if len(tokenizer) > (known := self.tower.loaded.config.text_config.vocab_size):
            raise ModelError(f"{name}: its tokenizer has {len(tokenizer)} tokens, but its model knows {known}; {how}")
        return tokenizer
