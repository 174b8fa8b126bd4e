"""The frozen encoders of a pipeline behind one interface, whether they have weights or not; loading them by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import soxr
import torch

from ..devices import float32_products
from ..errors import ModelError
from ..pretrained import choose_device
from ..pretrained.loading import model_errors, place_of, quiet
from .audioldm2 import WrittenTokenEncoder
from .audiomae import DEFAULT_MODEL, AudioMAEEncoder, ast_token_frames, ast_tokens
from .conditioning import Tokens, stacked
from .encoders import HashedCaptionEncoder, HashedPromptEncoder, MelTokenEncoder, words
from .mel import MelSpec, prepare_waveform
from .weights import aligned, weights_digest

CAPTION_TOKENS = 50  # per caption, as in Re-AudioLDM (section 3.2)
HASHED_TOKENS = 12  # few, as a short caption of each of several pairs needs
CLAP_EXAMPLE, T5_EXAMPLE = "laion/clap-htsat-unfused", "google/flan-t5-large"
AST_EXAMPLE = "MIT/ast-finetuned-audioset-10-10-0.4593"
NEEDED_FOR = "a text-to-audio model"


@dataclass(frozen=True)
class Encoders:
    """What makes conditions of texts and sounds; nothing here is ever trained.

    Attributes
    ----------
    prompt, prompt_tokenizer
        ``ClapTextModelWithProjection`` and its tokenizer, or :class:`HashedPromptEncoder` and None.
    caption, caption_tokenizer
        ``T5EncoderModel`` and its tokenizer, or :class:`HashedCaptionEncoder` and None.
    audio, audio_extractor
        ``ASTModel`` or :class:`AudioMAEEncoder` and an ``ASTFeatureExtractor``, or :class:`MelTokenEncoder` and None.

    Any of the three may be missing (None); asking it is an error.
    """

    prompt: Any = None
    prompt_tokenizer: Any = None
    caption: Any = None
    caption_tokenizer: Any = None
    audio: Any = None
    audio_extractor: Any = None

    @property
    def prompt_dim(self) -> int:
        """Length of a prompt's vector; 0 without an encoder."""
        return _width(self.prompt, "dimension", "projection_dim")

    @property
    def text_dim(self) -> int:
        """Width of a caption's tokens; 0 without an encoder."""
        return _width(self.caption, "dimension", "d_model")

    @property
    def audio_dim(self) -> int:
        """Width of a sound's tokens; 0 without an encoder."""
        return _width(self.audio, "n_mels", "width", "hidden_size")

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (B, prompt_dim).

        Raises
        ------
        ValueError
            There is no prompt encoder.
        """
        encoder = self.prompt if self.prompt is not None else _missing("prompt")
        if self.prompt_tokenizer is None:
            return encoder(texts)
        tokens = self.prompt_tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest_prompt, return_tensors="pt"
        ).to(encoder.device)
        with float32_products(tf32=False):
            vectors = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds
        return torch.nn.functional.normalize(vectors, dim=1)

    def written(self, texts: Sequence[str], captions: Tokens) -> Tokens:
        """Tokens (B, 8, D) that AudioLDM 2's language model writes for prompts, of which ``captions`` are T5's tokens.

        Raises
        ------
        ValueError
            The prompt encoder is none of AudioLDM 2's.
        """
        if not self._writes:
            raise ValueError("expected AudioLDM 2's prompt encoder; load the pipeline with from_audioldm2")
        with float32_products(tf32=False):
            return self.prompt(texts, self.prompt_tokenizer, captions)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tokens:
        """Tokens (B, L, text_dim), L always the same: 50 of T5's.

        Raises
        ------
        ValueError
            There is no caption encoder.
        """
        encoder = self.caption if self.caption is not None else _missing("caption")
        if self.caption_tokenizer is None:
            return encoder(texts)
        tokens = self.caption_tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=CAPTION_TOKENS, return_tensors="pt"
        ).to(encoder.device)
        with float32_products(tf32=False):
            hidden = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        mask = tokens["attention_mask"].bool()
        return Tokens(hidden * mask[:, :, None], mask)

    @torch.no_grad()
    def audio_tokens(self, waves: Sequence[Any], rate_hz: int) -> Tokens:
        """Tokens of sounds, (B, n, audio_dim); what a sound gives does not depend on the others.

        A sound's level does not count (:func:`~auscult.generation.mel.prepare_waveform`), in training or in sampling: a quiet
        copy of a pair is the same pair.

        Parameters
        ----------
        waves
            Each (time,), mono; an array or a tensor. Transformers hear the first 10.24 s.
        rate_hz
            Of all of them; resampled to the encoder's.

        Raises
        ------
        ValueError
            There is no audio encoder, or a sound is empty or not finite.
        """
        encoder = self.audio if self.audio is not None else _missing("audio")
        if not len(waves):
            raise ValueError("expected at least one sound, got none")
        wanted = self.audio_extractor.sampling_rate if self.audio_extractor is not None else encoder.config.sample_rate_hz
        heard = None if self.audio_extractor is None else 400 + 160 * (self.audio_extractor.max_length - 1)
        resampled = [_at_rate(_sound(wave, number), rate_hz, wanted)[:heard] for number, wave in enumerate(waves)]
        sounds = [prepare_waveform(torch.from_numpy(sound)).numpy() for sound in resampled]
        if self.audio_extractor is None:
            return stacked([encoder(torch.from_numpy(sound)[None]) for sound in sounds])
        return self._patch_tokens(encoder, sounds)

    def prompt_tokens_cut(self, texts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each text no encoder reads: 0 where all are read.

        The prompt encoder's; the caption encoder's where that reads prompts, as in TANGO and AudioLDM 2.
        """
        if self.prompt is not None and not self._writes:
            return (
                [0] * len(texts) if self.prompt_tokenizer is None else _cut(self.prompt_tokenizer, texts, self._longest_prompt)
            )
        return self.caption_tokens_cut(texts)

    def caption_tokens_cut(self, texts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each text the caption encoder does not read: 0 where it reads all, or is missing."""
        if self.caption is None:
            return [0] * len(texts)
        if self.caption_tokenizer is None:
            return [max(0, len(words(text)) + 1 - self.caption.config.max_tokens) for text in texts]
        return _cut(self.caption_tokenizer, texts, CAPTION_TOKENS)

    def digests(self) -> dict[str, str]:
        """By part, what its vectors and tokens follow from: weights, configuration, and its tokenizer or extractor.

        A folder's name says none of it: another model may have been put there.
        """
        return {
            "prompt": _digest(self.prompt, self.prompt_tokenizer),
            "caption": _digest(self.caption, self.caption_tokenizer),
            "audio": _digest(self.audio, self.audio_extractor),
        }

    @property
    def _writes(self) -> bool:
        return isinstance(self.prompt, WrittenTokenEncoder)

    @property
    def _longest_prompt(self) -> int:
        """Tokens that the prompt encoder reads: RoBERTa counts positions from after its padding's number."""
        config = self.prompt.config
        return min(self.prompt_tokenizer.model_max_length, config.max_position_embeddings - config.pad_token_id - 1)

    def _patch_tokens(self, encoder: Any, sounds: list[npt.NDArray[np.float32]]) -> Tokens:
        extractor = self.audio_extractor
        padded = [np.pad(sound, (0, max(0, 400 - len(sound)))) for sound in sounds]  # one frame of 25 ms at 16 kHz
        inputs = extractor(padded, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]
        inputs = inputs.to(encoder.device, encoder.dtype)
        own = isinstance(encoder, AudioMAEEncoder)
        with float32_products(tf32=False):
            values = encoder(inputs) if own else ast_tokens(encoder, inputs)
        stretch, per_column = encoder.token_frames if own else ast_token_frames(encoder)
        columns = torch.arange(values.shape[1]) // per_column
        frames = torch.tensor([1 + (len(sound) - 400) // 160 for sound in padded])
        return Tokens(values, (columns[None] * stretch < frames[:, None]).to(values.device))  # silence behind a sound is none


def load_encoders(
    prompt: str | None = "hashed",
    caption: str | None = "hashed",
    audio: str | None = "mel",
    *,
    device: str = "cpu",
    mel: MelSpec | None = None,
    hashed_tokens: int = HASHED_TOKENS,
) -> Encoders:
    """Load encoders by name.

    Parameters
    ----------
    prompt
        ``"hashed"``, or a folder or a name on the hub of a CLAP model, of which the text side is taken.
    caption
        ``"hashed"``, or a folder or a name of a T5.
    audio
        ``"mel"``, ``"audiomae"`` (or a name of timm's that begins with ``hf_hub:`` or ``local-dir:``; needs the
        extra ``audiomae``), or a folder or a name of an AST.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    mel
        The log-mel of the encoder ``"mel"``.
    hashed_tokens
        Tokens per caption of the caption encoder ``"hashed"``.

    Raises
    ------
    ModelError
        One cannot be found or loaded, is of another kind, or lacks weights.
    MissingExtraError
        timm is not installed and AudioMAE was asked for.

    Examples
    --------
    >>> encoders = load_encoders()
    >>> encoders.prompt_dim, encoders.text_dim, encoders.audio_dim
    (64, 64, 64)
    """
    parts = (*_load_prompt(prompt), *_load_caption(caption, hashed_tokens), *_load_audio(audio, mel or MelSpec()))
    place = choose_device(device, NEEDED_FOR)
    for model in parts[::2]:
        if model is not None:
            model.to(place).eval().requires_grad_(False)
    return Encoders(*parts)


def _load_prompt(name: str | None) -> tuple[Any, Any]:
    if name is None or name == "hashed":
        return (None if name is None else HashedPromptEncoder()), None
    from transformers import AutoTokenizer, ClapTextModelWithProjection

    with _in_words(name, "a CLAP model", CLAP_EXAMPLE):
        _check_type(name, ("clap", "clap_text_model"))
        return _weights(ClapTextModelWithProjection, name), AutoTokenizer.from_pretrained(name)


def _load_caption(name: str | None, hashed_tokens: int) -> tuple[Any, Any]:
    if name is None or name == "hashed":
        return (None if name is None else HashedCaptionEncoder(max_tokens=hashed_tokens)), None
    from transformers import AutoTokenizer, T5EncoderModel

    with _in_words(name, "a T5", T5_EXAMPLE):
        _check_type(name, ("t5",))
        return _weights(T5EncoderModel, name), AutoTokenizer.from_pretrained(name)


def _load_audio(name: str | None, mel: MelSpec) -> tuple[Any, Any]:
    if name is None or name == "mel":
        return (None if name is None else MelTokenEncoder.of(mel)), None
    from transformers import ASTFeatureExtractor, ASTModel

    if name == "audiomae" or name.startswith(("hf_hub:", "hf-hub:", "local-dir:")):
        # mean and deviation of AST's extractor are AudioMAE's, and so is the doubled deviation
        encoder = AudioMAEEncoder.from_timm(DEFAULT_MODEL if name == "audiomae" else name)
        with quiet():
            return encoder, ASTFeatureExtractor(max_length=encoder.config.frames, num_mel_bins=encoder.config.bins)
    with _in_words(name, "an AST", AST_EXAMPLE):
        _check_type(name, ("audio-spectrogram-transformer",))
        return _weights(ASTModel, name), ASTFeatureExtractor.from_pretrained(name)


def _weights(kind: Any, name: str) -> Any:
    model, report = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: its weights lack {len(missing)} of {kind.__name__}'s, for example {missing[0]}")
    return aligned(model)


def _check_type(name: str, expected: tuple[str, ...]) -> None:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if found not in expected:
        raise ModelError(f"{name}: expected a model of type {expected[0]!r}, this one is of type {found!r}")


@contextmanager
def _in_words(name: str, title: str, example: str) -> Iterator[None]:
    advice = (
        "give a folder with config.json, *.safetensors and the files of its tokenizer or extractor, or a name such as "
        f"{example!r}"
    )
    with model_errors(name, f"this {place_of(name)} cannot be loaded as {title}", advice), quiet(), torch.random.fork_rng([]):
        yield


def _digest(model: Any, helper: Any) -> str:
    """SHA-256 of a model and the tokenizer or extractor before it; empty without a model."""
    if model is None:
        return ""
    fast = getattr(helper, "backend_tokenizer", None)
    facts = json.loads(fast.to_str()) if fast is not None else helper.to_dict() if hasattr(helper, "to_dict") else {}
    facts = {name: value for name, value in facts.items() if name not in ("truncation", "padding")}  # as they were last used
    return hashlib.sha256(f"{weights_digest(model)} {json.dumps(facts, sort_keys=True, default=str)}".encode()).hexdigest()


def _cut(tokenizer: Callable[..., Any], texts: Sequence[str], longest: int) -> list[int]:
    return [max(0, len(ids) - longest) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def _sound(wave: Any, number: int) -> npt.NDArray[np.float32]:
    sound = np.asarray(wave.detach().cpu() if isinstance(wave, torch.Tensor) else wave, dtype=np.float32)
    if sound.ndim != 1 or not len(sound):
        raise ValueError(f"expected a mono sound (time,) that is not empty, got shape {sound.shape} in item {number}")
    if not np.isfinite(sound).all():
        raise ValueError(f"sound {number} holds values that are not finite; leave it out or repair it")
    return sound


def _at_rate(sound: npt.NDArray[np.float32], rate_hz: int, wanted: int) -> npt.NDArray[np.float32]:
    return sound if rate_hz == wanted else np.asarray(soxr.resample(sound, rate_hz, wanted), dtype=np.float32)


def _width(encoder: Any, *names: str) -> int:
    """The first of the settings that the encoder's configuration has; 0 without an encoder."""
    config = getattr(encoder, "config", None)
    return next((int(getattr(config, name)) for name in names if hasattr(config, name)), 0)


def _missing(name: str) -> NoReturn:
    raise ValueError(f"there is no {name} encoder here to ask; load one with load_encoders({name}=...)")
