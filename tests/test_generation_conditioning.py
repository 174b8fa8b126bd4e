"""Conditions and the encoders that make them: the real classes of the hub's models, tiny, and those without weights."""

from __future__ import annotations

import copy
import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
import transformers

from auscult.errors import MissingExtraError, ModelError
from auscult.generation.audiomae import AudioMAEEncoder, ast_tokens, pooled_patches
from auscult.generation.conditioning import Conditions, Tokens, choose, concatenate, null_tokens, references
from auscult.generation.encoders import HashedCaptionEncoder, HashedPromptEncoder, MelTokenEncoder, hashed_signs
from auscult.generation.encoding import Encoders, load_encoders
from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from tiny_encoders import save_ast, save_t5
from tiny_models import BLOCKS, save

LETTERS = "abcdefghijklmnopqrstuvwxyz"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    """CLAP, T5 and AST of the public layouts."""
    root = tmp_path_factory.mktemp("models")
    ast = save_ast(root / "ast", frequency_stride=10, time_stride=10)
    return load_encoders(str(save(root / "clap", "clap")), str(save_t5(root / "t5")), str(ast))


def sounds(*samples: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.uniform(-0.3, 0.3, count).astype(np.float32) for count in samples]


# --- streams -------------------------------------------------------------------------------------------------------------


def test_references_lie_behind_one_another() -> None:
    text = Tokens(torch.arange(1.0, 7.0).reshape(3, 2, 1), torch.tensor([[True, True], [True, False], [True, True]]))
    streams = references(text, None, [2, 0, 1], k_max=3)
    assert streams.text_tokens is not None and streams.text_mask is not None
    assert streams.text_tokens[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 0, 0], [0] * 7, [0, 5, 6, 0, 0, 0, 0]]
    assert streams.text_mask.int().tolist() == [[1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]]
    assert streams.audio is None and len(streams) == 3


def test_published_lengths_of_streams() -> None:
    text, audio = (Tokens(torch.zeros(6, length, 2), torch.ones(6, length, dtype=torch.bool)) for length in (50, 32))
    streams = references(text, audio, [3, 3])
    assert streams.text_tokens is not None and streams.audio_tokens is not None
    assert streams.text_tokens.shape[1] == 1 + 150 and streams.audio_tokens.shape[1] == 1 + 96


@pytest.mark.parametrize(
    ("counts", "k_max", "message"),
    [
        ([2, 2], None, "sum to the pairs given"),
        ([4, -1], None, "sum to"),
        ([3, 0], 2, "at most k_max=2 .* got 3"),
        ([], None, "sum"),
    ],
)
def test_numbers_of_references_that_do_not_fit(counts: list[int], k_max: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        references(null_tokens(3, 2), None, counts, k_max)
    with pytest.raises(ValueError, match="got neither"):
        references(None, None, [0])


def test_concatenated_conditions_are_padded_and_lack_nothing() -> None:
    short = Conditions(torch.ones(1, 4), *null_tokens(1, 3))
    long = references(Tokens(torch.ones(2, 2, 3), torch.ones(2, 2, dtype=torch.bool)), null_tokens(2, 5), [2])
    with pytest.raises(ValueError, match="all have a prompt or all have none"):
        concatenate([short, long])
    long = Conditions(2 * torch.ones(1, 4), *(long.text or ()), *(long.audio or ()))
    both = concatenate([short, long])
    assert both.text_mask is not None and both.audio_mask is not None
    assert both.text_mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert both.audio_mask.int().tolist() == [[1, 0, 0], [1, 1, 1]]
    back = both.select([1])
    assert back.text_tokens is not None and back.text_tokens.equal(long.text_tokens)  # type: ignore[arg-type]
    chosen = choose(torch.tensor([True]), short, long)
    assert chosen.prompt is not None and chosen.prompt[0, 0] == 2


def test_conditions_move_and_keep_their_masks() -> None:
    moved = Conditions(torch.ones(2, 4), *null_tokens(2, 3)).to(dtype=torch.bfloat16)
    assert moved.prompt is not None and moved.prompt.dtype == torch.bfloat16
    assert moved.text_mask is not None and moved.text_mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "need a prompt or a stream"),
        ({"prompt": torch.ones(2, 3), "text_tokens": torch.ones(1, 1, 3), "text_mask": torch.ones(1, 1).bool()}, r"\[1, 2\]"),
        ({"text_tokens": torch.ones(1, 1, 3)}, "both be there, or neither"),
        ({"audio_tokens": torch.ones(1, 2, 3), "audio_mask": torch.ones(1, 2)}, "of type bool"),
        ({"audio_tokens": torch.ones(1, 2, 3), "audio_mask": torch.zeros(1, 2).bool()}, "audio_mask is False throughout"),
    ],
)
def test_conditions_that_cannot_be(fields: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conditions(**fields)


# --- encoders without weights --------------------------------------------------------------------------------------------


def test_hashes_are_those_of_every_machine() -> None:
    assert hashed_signs("dog", 16, 0).tolist() == [-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, -1, 1, 1, 1, -1, 1]
    byte = hashlib.shake_256(b"3:dog").digest(1)[0]
    assert hashed_signs("dog", 8, 3).tolist() == [1 if byte >> place & 1 else -1 for place in range(8)]


def test_different_words_are_nearly_orthogonal() -> None:
    vectors = torch.stack([hashed_signs(f"word{number}", 64, 0) for number in range(300)]) / 8
    cosines = (vectors @ vectors.T)[~torch.eye(300, dtype=torch.bool)]
    assert abs(cosines.mean()) < 0.005 and cosines.std() == pytest.approx(1 / 8, rel=0.03)  # as independent coins have it


def test_prompts_are_bags_of_words() -> None:
    encoder = HashedPromptEncoder()
    first, order, more, other, nothing = encoder(["a dog barks", "Barks, a DOG!", "a dog barks twice", "rain", " ...!"])
    assert first.equal(order) and torch.allclose(encoder(["a dog barks", "rain"])[0], first)
    assert first @ more > 0.75 > 0.5 > first @ other
    assert all(vector.norm() == pytest.approx(1) for vector in (first, other, nothing))
    assert not HashedPromptEncoder(seed=1)(["rain"])[0].equal(other)
    tiny = HashedPromptEncoder(dimension=1)
    assert tiny([f"{a} {b}" for a in LETTERS for b in LETTERS]).abs().eq(1).all()  # where signs cancel, too


def test_caption_tokens_end_and_are_cut() -> None:
    tokens = HashedCaptionEncoder(max_tokens=4)(["rain", "rain on a tin roof", ""])
    assert tokens.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    end = tokens.values[2, 0]
    assert tokens.values[0, 1].equal(end) and tokens.values[1, 3].equal(end)
    assert tokens.values[0, 0].equal(tokens.values[1, 0]) and not tokens.values[0, 2:].any()


def test_mel_tokens_are_averages_of_the_log_mel() -> None:
    spec, (sound,) = MelSpec(hop_length=320), sounds(81_920)
    encoder = MelTokenEncoder.of(spec, mean=-5.0, std=2.0)
    wave = torch.from_numpy(sound)[None]
    tokens = encoder(wave)
    frames = log_mel(prepare_waveform(wave), spec)[0, 0].numpy()  # 256 of them
    expected = (frames.reshape(4, 64, 64).mean(1) + 5) / 2
    np.testing.assert_allclose(tokens.values[0], expected, atol=1e-4)
    np.testing.assert_allclose(encoder(wave[:, : 320 * 80]).values[0, 1].shape, (64,))
    assert torch.allclose(encoder(0.1 * wave).values, tokens.values, atol=1e-4)  # whatever the level


def test_the_last_mel_token_averages_what_is_left() -> None:
    (sound,) = sounds(160 * 80)
    wave = torch.from_numpy(sound)[None]
    frames = log_mel(prepare_waveform(wave), MelSpec())[0, 0]
    expected = (frames[64:].mean(0) + 6.9) / 2.3
    assert torch.allclose(MelTokenEncoder()(wave).values[0, 1], expected, atol=1e-5)
    assert MelTokenEncoder()(wave[:, :10]).values.shape == (1, 1, 64)  # shorter than the ends that are mirrored


def test_encoders_of_several_sounds_and_rates() -> None:
    encoders = load_encoders()
    long, short = sounds(81_920, 20_480)
    both = encoders.audio_tokens([long, torch.from_numpy(short)], 16_000)
    assert both.mask.sum(1).tolist() == [8, 2]
    assert torch.allclose(both.values[1, :2], encoders.audio_tokens([short], 16_000).values[0], atol=1e-6)
    tone = np.sin(2 * np.pi * 440 * np.arange(81_920) / 16_000).astype(np.float32)
    double = np.sin(2 * np.pi * 440 * np.arange(2 * 81_920) / 32_000).astype(np.float32)
    here, there = (encoders.audio_tokens([wave], rate).values for wave, rate in ((tone, 16_000), (double, 32_000)))
    loud = here > here.amax() - 2  # 4.6 nats: what resampling leaves far below the tone is not compared
    assert torch.allclose(here[loud], there[loud], atol=0.05)


@pytest.mark.parametrize(
    "encoder", [HashedPromptEncoder(seed=4), HashedCaptionEncoder(max_tokens=3), MelTokenEncoder(mean=1.0)]
)
def test_saved_encoders_are_the_same(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path)
    given = torch.from_numpy(sounds(20_480)[0])[None] if isinstance(encoder, MelTokenEncoder) else ["rain on a roof"]
    first, second = (each if isinstance(each, torch.Tensor) else each.values for each in (encoder(given), loaded(given)))
    assert first.equal(second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HashedPromptEncoder(dimension=0), "dimension should be at least 1"),
        (lambda: HashedCaptionEncoder(max_tokens=0), "max_tokens should be at least 1"),
        (lambda: MelTokenEncoder(std=0.0), "std should be above 0"),
        (lambda: load_encoders().audio_tokens([], 16_000), "at least one sound"),
        (lambda: load_encoders().audio_tokens([np.zeros((2, 9), np.float32)], 16_000), r"mono .* shape \(2, 9\) in item 0"),
        (lambda: load_encoders().audio_tokens([np.full(9, np.nan, np.float32)], 16_000), "sound 0 holds values that are not"),
        (lambda: Encoders().prompts(["rain"]), "no prompt encoder"),
        (lambda: Encoders().captions(["rain"]), "no caption encoder"),
        (lambda: Encoders().audio_tokens([np.zeros(9)], 16_000), "no audio encoder"),
    ],
)
def test_what_encoders_refuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- real encoders -------------------------------------------------------------------------------------------------------


def test_prompt_vectors_are_those_of_the_whole_clap(real: Encoders, tmp_path: Path) -> None:
    folder = save(tmp_path, "clap")
    whole, tokenizer = transformers.ClapModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = whole.get_text_features(**tokenizer(["a dog barks"], return_tensors="pt")).pooler_output
    # beside a longer prompt: padding has no part in it
    got = real.prompts(["a dog barks", "rain on roofs"])
    assert torch.allclose(got[:1], torch.nn.functional.normalize(expected, dim=1), atol=1e-5)
    assert torch.allclose(got.norm(dim=1), torch.ones(2)) and not torch.allclose(got[0], got[1], atol=1e-2)
    assert real.prompt_dim == 24


def test_caption_tokens_are_fifty_of_t5(real: Encoders) -> None:
    tokens = real.captions(["a dog", "", "rain " * 40])
    assert tokens.values.shape == (3, 50, 16) and real.text_dim == 16
    assert tokens.mask.sum(1).tolist() == [7, 1, 50]  # begin, a, begin, d, o, g, end
    assert not tokens.values[~tokens.mask].any()
    ids = real.caption_tokenizer(["a dog"], return_tensors="pt")["input_ids"]  # not padded
    with torch.no_grad():
        expected = real.caption(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(tokens.values[0, :7], expected, atol=1e-5)


def test_prompts_that_are_cut_are_counted(real: Encoders) -> None:
    assert real.prompt_tokens_cut(["dog", "a dog"]) == [0, 0]
    longest = real.prompt.config.max_position_embeddings - real.prompt.config.pad_token_id - 1
    assert real.prompt_tokens_cut(["x" * longest]) == [2]  # and two that begin and end the text
    assert real.prompts(["word " * 2000]).isfinite().all()
    assert Encoders(None, None, real.caption, real.caption_tokenizer).prompt_tokens_cut(["x" * 50]) == [2]
    assert Encoders(caption=HashedCaptionEncoder()).prompt_tokens_cut(["rain", "a b c d e f g h i j k l m"]) == [0, 2]
    assert load_encoders().prompt_tokens_cut(["word " * 2000]) == [0]  # a bag of words holds any number


def test_ast_has_1214_tokens_of_which_75_are_kept(real: Encoders) -> None:
    inputs = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = real.audio(inputs).last_hidden_state[0]
        tokens = ast_tokens(real.audio, inputs)[0]
    assert hidden.shape[0] == 1214 and tokens.shape == (75, 16)
    for time, band in ((0, 0), (24, 2), (7, 1)):
        square = torch.stack([hidden[2 + 101 * (4 * band + b) + 4 * time + t] for b in range(4) for t in range(4)])
        assert torch.allclose(tokens[3 * time + band], (square.mean(0) + square.amax(0)) / 2, atol=1e-6)


def test_ast_tokens_follow_time_and_frequency(tmp_path: Path) -> None:
    settings = {"frequency_stride": 10, "time_stride": 10, "num_hidden_layers": 0}  # patches that have not yet met
    encoders = load_encoders(None, None, str(save_ast(tmp_path, **settings)))
    before = torch.zeros(1, 1024, 128)
    after = before.clone()
    after[0, 560:580, 100:110] = (
        1  # frames 560-579 are in patches 55-57 and so in columns 13, 14; bands in patches 9, 10: row 2
    )
    with torch.no_grad():
        moved = (ast_tokens(encoders.audio, after) != ast_tokens(encoders.audio, before)).any(2)[0]
    assert moved.nonzero().flatten().tolist() == [3 * 13 + 2, 3 * 14 + 2]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_encoders_of_half_precision_hear_and_read_nearly_the_same(real: Encoders, kind: torch.dtype) -> None:
    names = ("prompt", "caption", "audio")
    half = replace(real, **{name: copy.deepcopy(getattr(real, name)).to(kind) for name in names})
    waves = sounds(16_000, 32_000)
    exact = (real.audio_tokens(waves, 16_000).values, real.captions(["a dog"]).values, real.prompts(["a dog"]))
    rough = (half.audio_tokens(waves, 16_000).values, half.captions(["a dog"]).values, half.prompts(["a dog"]))
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == kind and (one - other.float()).norm() < 0.05 * one.norm()


def test_ast_masks_what_lies_behind_a_sound(real: Encoders) -> None:
    half, whole = sounds(16_000 * 5, 16_000 * 12)
    both = real.audio_tokens([half, whole], 16_000)
    assert both.values.shape == (2, 75, 16) and real.audio_dim == 16
    assert both.mask.sum(1).tolist() == [3 * 13, 75]  # 498 frames, 40 to a column
    assert torch.allclose(real.audio_tokens([half], 16_000).values[0], both.values[0], atol=1e-5)
    assert torch.allclose(real.audio_tokens([whole[: 16_000 * 11]], 16_000).values[0], both.values[1], atol=1e-5)  # 10.24 s
    assert real.audio_tokens([half[:10]], 16_000).mask.sum() == 3


def test_pooling_is_the_mean_of_average_and_maximum() -> None:
    patches = torch.randn(2, 9, 8, 3, generator=torch.Generator().manual_seed(0))
    pooled = pooled_patches(patches).numpy()
    squares = patches[:, :8].numpy().reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 16, 3)
    np.testing.assert_allclose(pooled, (squares.mean(2) + squares.max(2)) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="at least 4 x 4 patches, this model makes 9 x 3"):
        pooled_patches(patches[:, :, :3])


def test_encoders_are_frozen(real: Encoders) -> None:
    for model in (real.prompt, real.caption, real.audio):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not real.prompts(["dog"]).requires_grad


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    t5 = save_t5(tmp_path / "t5")
    with pytest.raises(ModelError, match="t5: expected a model of type 'clap', this one is of type 't5'"):
        load_encoders(str(t5), None, None)
    with pytest.raises(ModelError, match="cannot be loaded as a T5"):
        load_encoders(None, str(tmp_path / "nothing"), None)
    transformers.BertModel(transformers.BertConfig(**BLOCKS, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="expected a model of type 'audio-spectrogram-transformer'"):
        load_encoders(None, None, str(tmp_path / "bert"))
    weights = t5 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="t5: this folder cannot be loaded as a T5"):
        load_encoders(None, str(t5), None)


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = save_t5(tmp_path)
    config = transformers.T5Config.from_pretrained(folder)
    config.num_layers = 2
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match="weights lack .* of T5EncoderModel's"):
        load_encoders(None, str(folder), None)


def test_audiomae_without_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"auscult\[audiomae\]"):
        load_encoders(None, None, "audiomae")


def test_audiomae_has_32_tokens_for_ten_seconds(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    shape = {"img_size": (1024, 128), "in_chans": 1, "depth": 1, "embed_dim": 48, "global_pool": "token"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape).eval()
        timm.models.save_for_hf(saved, tmp_path, model_args=shape)
        encoders = load_encoders(None, None, f"local-dir:{tmp_path}")
    inputs = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = saved.forward_features(inputs[:, None])[0, 1:].reshape(64, 8, 48)
        tokens = encoders.audio(inputs)[0]
    square = grid[8:12, 4:].flatten(0, 1)
    assert tokens.shape == (32, 48)
    assert torch.allclose(tokens[2 * 2 + 1], (square.mean(0) + square.amax(0)) / 2, atol=1e-5)
    assert encoders.audio_tokens(sounds(81_920), 16_000).mask.sum() == 16
    encoders.audio.save_pretrained(tmp_path / "own")
    with torch.no_grad():
        assert AudioMAEEncoder.from_pretrained(tmp_path / "own")(inputs)[0].equal(tokens)
