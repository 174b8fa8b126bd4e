"""Encoders without weights: they share the interfaces of the real ones, so that everything can be trained and tested anywhere.

Interfaces, here and in the real encoders' wrappers. A prompt encoder: texts -> (B, D) unit vectors. A caption encoder: texts ->
:class:`~auscult.generation.conditioning.Tokens` (B, L, D) with a mask that is True at least once per text. An audio encoder:
waveforms (B, T) at its rate -> ``Tokens`` (B, n, D).

A word's vector are the bits of its hash, +1 or -1: the same on every machine, and two words are orthogonal up to about
1 / sqrt(D). Nothing is known of meanings: "dog" and "puppy" are as far apart as "dog" and "rain".
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .conditioning import Tokens
from .mel import MelSpec, Padding, log_mel, prepare_waveform

_WORD = re.compile(r"\w+")
_END = " end"  # no word: words hold no blanks
_NOTHING = " nothing"


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, without regard to case.

    Examples
    --------
    >>> words("A dog barks, then it's quiet.")
    ['a', 'dog', 'barks', 'then', 'it', 's', 'quiet']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def hashed_signs(word: str, dimension: int, seed: int) -> torch.Tensor:
    """Bits of a word's hash as +1 and -1: (dimension,) float32.

    Examples
    --------
    >>> hashed_signs("dog", 8, 0).tolist() == hashed_signs("dog", 64, 0)[:8].tolist()
    True
    >>> hashed_signs("dog", 64, 0).equal(hashed_signs("dog", 64, 1))
    False
    """
    size = -(-dimension // 8)
    digest = hashlib.shake_256(f"{seed}:{word}".encode()).digest(size)  # of any length; Python's own hash differs run by run
    bits = [(byte >> place) & 1 for byte in digest for place in range(8)]
    return torch.tensor(bits[:dimension], dtype=torch.float32) * 2 - 1


class HashedPromptEncoder(ModelMixin, ConfigMixin):
    """A text's vector is the sum of its words' vectors, scaled to length 1: words count, their order does not.

    A text without words has a vector of its own.

    Parameters
    ----------
    dimension
        Length of the vectors.
    seed
        Another seed, other vectors.

    Examples
    --------
    >>> encoder = HashedPromptEncoder()
    >>> dog, same, rain = encoder(["a dog barks", "A dog, barks!", "rain on a roof"])
    >>> bool(dog.equal(same)), bool(dog @ rain < 0.7)
    (True, True)
    """

    @register_to_config
    def __init__(self, dimension: int = 64, seed: int = 0) -> None:
        super().__init__()
        _check_positive(dimension=dimension)
        self.register_buffer("place", torch.zeros(1))  # says where it is and of which type, as the weights of others do

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (B, dimension)."""
        dimension, seed = self.config.dimension, self.config.seed
        sums = torch.zeros(len(texts), dimension)
        for row, text in zip(sums, texts, strict=True):
            for word in words(text) or [_NOTHING]:
                row += hashed_signs(word, dimension, seed)
            if not row.any():  # opposite words, or a dimension so small that their signs cancel
                row += hashed_signs(_NOTHING, dimension, seed)
        return torch.nn.functional.normalize(sums, dim=1).to(self.place)


class HashedCaptionEncoder(ModelMixin, ConfigMixin):
    """A caption's tokens are its words' vectors, in order, and an end token, as T5's tokens end.

    Parameters
    ----------
    dimension
        Width of a token, whose entries are +1 and -1.
    max_tokens
        Tokens per caption, the end token among them; words beyond are cut, and what is missing is masked.
    seed
        Another seed, other vectors.

    Examples
    --------
    >>> tokens = HashedCaptionEncoder(max_tokens=5)(["a dog barks", ""])
    >>> tokens.values.shape, tokens.mask.sum(1).tolist()
    (torch.Size([2, 5, 64]), [4, 1])
    """

    @register_to_config
    def __init__(self, dimension: int = 64, max_tokens: int = 12, seed: int = 0) -> None:
        super().__init__()
        _check_positive(dimension=dimension, max_tokens=max_tokens)
        self.register_buffer("place", torch.zeros(1))

    def forward(self, texts: Sequence[str]) -> Tokens:
        """Tokens (B, max_tokens, dimension) and their mask."""
        length = self.config.max_tokens
        values = torch.zeros(len(texts), length, self.config.dimension)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            for position, word in enumerate([*words(text)[: length - 1], _END]):
                values[row, position] = hashed_signs(word, self.config.dimension, self.config.seed)
                mask[row, position] = True
        return Tokens(values.to(self.place), mask.to(self.place.device))


class MelTokenEncoder(ModelMixin, ConfigMixin):
    """A sound's tokens are its log-mel, averaged over stretches of time and standardized: 8 tokens for 5.12 s by default.

    The sound's level does not count (:func:`~auscult.generation.mel.prepare_waveform`).

    Parameters
    ----------
    frames_per_token
        Frames averaged to one token; the last token averages the frames that are left.
    mean, std
        Taken off and divided by, in nats: those of the log-mels of a set of sounds.
    sample_rate_hz, n_fft, win_length, hop_length, n_mels, f_min, f_max, floor, padding
        Those of :class:`~auscult.generation.mel.MelSpec`; a token has ``n_mels`` entries.

    Examples
    --------
    >>> MelTokenEncoder()(torch.zeros(1, 81_920)).values.shape
    torch.Size([1, 8, 64])
    """

    @register_to_config
    def __init__(
        self,
        frames_per_token: int = 64,
        mean: float = -6.9,
        std: float = 2.3,
        sample_rate_hz: int = 16_000,
        n_fft: int = 1024,
        win_length: int = 1024,
        hop_length: int = 160,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        floor: float = 1e-5,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        _check_positive(frames_per_token=frames_per_token)
        if not std > 0:
            raise ValueError(f"std should be above 0, got {std}")
        self.register_buffer("place", torch.zeros(1))

    @classmethod
    def of(cls, spec: MelSpec, *, frames_per_token: int = 64, mean: float = -6.9, std: float = 2.3) -> MelTokenEncoder:
        """The encoder of a log-mel."""
        return cls(frames_per_token, mean, std, **spec.to_dict())

    @property
    def spec(self) -> MelSpec:
        """The settings of the log-mel."""
        return MelSpec.of_config(self.config)

    def forward(self, waves: torch.Tensor) -> Tokens:
        """Tokens (B, n, n_mels) of waveforms (B, T) at ``sample_rate_hz``; none is masked."""
        spec, stretch = self.spec, self.config.frames_per_token
        least = max(spec.edge + 1, spec.hop_length)
        waves = torch.nn.functional.pad(waves, (0, max(0, least - waves.shape[1])))
        mel = (log_mel(prepare_waveform(waves.to(self.place.device).float()), spec)[:, 0] - self.config.mean) / self.config.std
        values = torch.stack([part.mean(1) for part in mel.split(stretch, dim=1)], dim=1).to(self.place)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} should be at least 1, got {number}")
