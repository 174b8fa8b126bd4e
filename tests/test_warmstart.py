"""Warm starts: what public models of the same layout compute, the started ones compute, and what is new begins at nothing."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import diffusers
import torch

import tiny_pipelines
from auscult.errors import GateError, ModelError
from auscult.generation import warmstart
from auscult.generation.conditioning import Conditions
from auscult.generation.denoiser import build, family_of, predict, preset
from auscult.generation.mel import MelSpec
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.pipelines import quiet
from auscult.generation.warmstart import add_streams, brought_by, from_audioldm, from_audioldm2, preserved, with_heads
from tiny_encoders import save_ast

SPEC = MelSpec(n_fft=64, win_length=64, hop_length=20, n_mels=8)  # of the tiny vocoder: 8 bands, hop 20
SAMPLES = 640
PROMPTS = ["a dog barks", "rain"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def audioldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(tmp_path_factory.mktemp("audioldm") / "model", "AudioLDMPipeline")


def public(folder: Path, kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by diffusers
        pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(folder: Path, **settings: Any) -> Any:
    pipe = from_audioldm(
        str(folder), **{"caption": "hashed", "audio": "mel", "mel": SPEC, "duration_s": SAMPLES / 16_000, **settings}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(rows: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def pairs(count: int) -> list[tuple[str, np.ndarray]]:
    waves = np.random.default_rng(0).standard_normal((count, SAMPLES)).astype(np.float32)
    return [(f"sound {number}", wave) for number, wave in enumerate(waves)]


def test_audioldm_sounds_as_before_with_references_and_without(audioldm: Path) -> None:
    """The whole chain against diffusers' own pipeline: prompt encoder, guidance, sampler, codec and vocoder."""
    base, pipe = public(audioldm, "AudioLDMPipeline"), start(audioldm)
    latents = noise(2, pipe.latent_shape())
    expected = base(
        PROMPTS, latents=latents, num_inference_steps=3, guidance_scale=3.0, audio_length_in_s=SAMPLES / 16_000
    ).audios
    assert expected.shape == (2, SAMPLES) and not np.allclose(expected[0], expected[1], atol=1e-3)
    for references in (None, [pairs(2), pairs(1)]):
        found = pipe(PROMPTS, references=references, latents=latents, num_inference_steps=3).audios
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_a_step_of_the_new_attentions_lets_the_references_in(audioldm: Path) -> None:
    unet = start(audioldm).unet
    old, new = brought_by(unet), {name for name, _ in unet.named_parameters()} - brought_by(unet)
    assert len(old) == len(list(public(audioldm, "AudioLDMPipeline").unet.named_parameters()))
    noisy, steps, mask = noise(2, (4, 4, 4)), torch.tensor([10, 900]), torch.ones(2, 3, dtype=torch.bool)
    prompt = torch.nn.functional.normalize(noise(2, (16,)), dim=1)
    text, audio = noise(2, (3, 64), 1), noise(2, (3, 8), 2)
    shown = Conditions(prompt, text, mask, audio, mask)
    predict(unet, noisy, steps, shown).square().mean().backward()
    gradients = {name: value.grad for name, value in unet.named_parameters() if value.grad is not None}
    moved = {name for name in new if name in gradients and gradients[name].abs().max() > 0}
    assert moved == {name for name in new if ".proj_out." in name}  # all else of them waits behind these zeros
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if name in moved:
                value -= gradients[name]
        first = predict(unet, noisy, steps, shown)
        other_text = predict(unet, noisy, steps, Conditions(prompt, text + 1, mask, audio, mask))
        other_audio = predict(unet, noisy, steps, Conditions(prompt, text, mask, audio + 1, mask))
    for other in (other_text, other_audio):
        assert (other - first).abs().max() > 1e-4


def test_published_sizes_grow() -> None:
    """AudioLDM's small model becomes Re-AudioLDM's, by numbers of parameters and by shape, without the memory for either."""
    channels = (128, 256, 384, 640)
    with torch.device("meta"):
        base = diffusers.UNet2DConditionModel(
            in_channels=8,
            out_channels=8,
            block_out_channels=channels,
            cross_attention_dim=channels,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=512,
            class_embeddings_concat=True,
        )
        grown = add_streams(base, 1024, 768)
        wanted = build(preset("re-audioldm-s"))
    assert {name: value.shape for name, value in grown.state_dict().items()} == {
        name: value.shape for name, value in wanted.state_dict().items()
    }
    counts = [sum(value.numel() for value in unet.parameters()) / 1e6 for unet in (base, grown)]
    assert counts == pytest.approx([185.0, 351.5], abs=0.05)


def test_it_is_a_folder_like_any_other(audioldm: Path, tmp_path: Path) -> None:
    pipe = start(audioldm)
    pipe.save_pretrained(tmp_path / "started")
    again = RetrievalAugmentedAudioPipeline.from_pretrained(tmp_path / "started")
    again.set_progress_bar_config(disable=True)
    assert family_of(again.unet) == "retrieval" and not again.scheduler.config.clip_sample
    assert again.scheduler.config.prediction_type == "epsilon" and again.mel == SPEC
    call = {"prompt": PROMPTS, "references": [pairs(1), []], "num_inference_steps": 2, "seeds": 3}
    np.testing.assert_array_equal(pipe(**call).audios, again(**call).audios)


def test_without_encoders_the_streams_have_the_published_widths(audioldm: Path) -> None:
    config = start(audioldm, caption=None, audio=None).unet.config
    assert config.cross_attention_dim == [[None, 768, 1024]] * 2


def test_heads_are_the_same_weights_read_otherwise(audioldm: Path) -> None:
    base = public(audioldm, "AudioLDMPipeline").unet
    noisy, steps, prompt = noise(1, (4, 4, 4)), torch.tensor([500]), noise(1, (16,))

    def output(unet: Any) -> torch.Tensor:
        with torch.no_grad():
            return unet(noisy, steps, encoder_hidden_states=None, class_labels=prompt).sample

    assert with_heads(base, None) is base
    torch.testing.assert_close(output(with_heads(base, [4, 4])), output(base), rtol=0, atol=1e-6)
    assert (output(with_heads(base, [2, 8])) - output(base)).abs().max() > 1e-4
    assert start(audioldm, heads=[2, 8]).unet.config.attention_head_dim == [2, 8]
    with pytest.raises(ModelError, match=r"heads .*\(8, 16\).*got \[2, 5\]"):
        with_heads(base, [2, 5])


def test_the_gate_finds_surgery_that_changes_the_model(audioldm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = public(audioldm, "AudioLDMPipeline").unet
    grown = add_streams(base, 6, 7)
    assert preserved(base, grown).value < 1e-6
    with torch.no_grad():
        grown.mid_block.attentions[2].proj_out.bias += 0.01
    assert not preserved(base, grown).passed
    monkeypatch.setattr(warmstart, "SLOTS", 2)  # weights in the wrong slot
    with pytest.raises((GateError, ModelError), match="start|no place"):
        start(audioldm)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"no unet can be loaded from this folder"),
        ("lacking", r"unet lack 2 of UNet2DConditionModel's, for example conv_in"),
        ("vocoder", r"no vocoder can be loaded"),
        ("other", r"expected AudioLDM's denoiser.*class_embed_type"),
    ],
)
def test_a_damaged_or_other_checkpoint_is_named(audioldm: Path, tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(audioldm, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "lacking":
        from safetensors.torch import load_file, save_file

        save_file({name: value for name, value in load_file(weights).items() if not name.startswith("conv_in")}, weights)
    elif damage == "vocoder":
        shutil.rmtree(folder / "vocoder")
    else:
        diffusers.UNet2DConditionModel(**tiny_pipelines.BLOCKS, cross_attention_dim=16).save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=message) as caught:
        start(folder)
    assert str(folder) in str(caught.value)


def test_a_log_mel_that_does_not_fit_the_vocoder_is_refused(audioldm: Path) -> None:
    with pytest.raises(ModelError, match=r"8 bands at 16,000 Hz with a hop of 20 samples.*mel="):
        start(audioldm, mel=None)


@pytest.fixture(scope="module")
def audioldm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(tmp_path_factory.mktemp("audioldm2") / "model", "AudioLDM2Pipeline", headed=True)


@pytest.fixture(scope="module")
def started2(audioldm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ast = save_ast(tmp_path_factory.mktemp("ast"), frequency_stride=30)
    pipe = from_audioldm2(str(audioldm2), audio=str(ast), mel=SPEC, duration_s=SAMPLES / 16_000)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_audioldm2_sounds_as_before(audioldm2: Path, started2: Any) -> None:
    """Against diffusers' own pipeline, whose language model needs a head to write; it pads the shorter prompt of two."""
    base = public(audioldm2, "AudioLDM2Pipeline")
    for prompt, negative, scale in (("a dog barks", "", 1.0), ("rain", "hiss", 3.0)):
        latents = noise(1, started2.latent_shape())
        call = {"latents": latents, "num_inference_steps": 3, "guidance_scale": scale, "negative_prompt": negative}
        expected = base(prompt, audio_length_in_s=SAMPLES / 16_000, **call).audios
        np.testing.assert_allclose(started2(prompt, **call).audios, expected, atol=2e-6, rtol=0)
        assert np.abs(expected - base("wind", audio_length_in_s=SAMPLES / 16_000, **call).audios).max() > 1e-3


def test_written_tokens_do_not_depend_on_the_batch_and_count(started2: Any) -> None:
    call = {"num_inference_steps": 2}
    both = started2(PROMPTS, seeds=[1, 2], **call).audios
    alone = np.concatenate(
        [started2(prompt, seeds=[seed], **call).audios for prompt, seed in zip(PROMPTS, (1, 2), strict=True)]
    )
    np.testing.assert_allclose(both, alone, atol=1e-6, rtol=0)
    encoders = started2.encoders
    text = encoders.captions(PROMPTS)
    written = encoders.written(PROMPTS, text)
    assert written.values.shape == (2, 8, 16) and written.mask.all()
    assert (written.values[0] - written.values[1]).abs().max() > 1e-3


def test_audioldm2_reads_pairs_behind_the_prompt(started2: Any, tmp_path: Path) -> None:
    call = {"prompt": PROMPTS, "num_inference_steps": 2, "seeds": 3}
    plain, none = started2(**call).audios, started2(**call, references=[[], []]).audios
    np.testing.assert_array_equal(plain, none)
    one, other_sound, other_caption = pairs(1), [("sound 0", pairs(2)[1][1])], [("a bell", pairs(1)[0][1])]
    given = [started2(**call, references=[each, []]).audios for each in (one, other_sound, other_caption)]
    for each in given:
        assert np.abs(each[0] - plain[0]).max() > 1e-3
        np.testing.assert_allclose(each[1], plain[1], atol=1e-6, rtol=0)  # the row without pairs
    assert np.abs(given[1] - given[0]).max() > 1e-4 and np.abs(given[2] - given[0]).max() > 1e-4
    started2.save_pretrained(tmp_path / "started")
    with quiet():
        again = RetrievalAugmentedAudioPipeline.from_pretrained(tmp_path / "started")
    again.set_progress_bar_config(disable=True)
    assert family_of(again.unet) == "audioldm2"
    np.testing.assert_array_equal(again(**call, references=[one, []]).audios, given[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("speaks", r"speaks transcriptions"),
        ("one stream", r"does not read two streams"),
        ("narrow", r"audio and text tokens of widths \(16, 16\), and the encoders' have \(8, 16\).*audiomae"),
    ],
)
def test_other_audioldm2s_are_named(audioldm2: Path, tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(audioldm2, folder)
    if damage == "speaks":
        diffusers.AudioLDM2ProjectionModel(16, 16, 16, use_learned_position_embedding=True, max_seq_length=4).save_pretrained(
            folder / "projection_model"
        )
    elif damage == "one stream":
        diffusers.AudioLDM2UNet2DConditionModel(**tiny_pipelines.BLOCKS, cross_attention_dim=16).save_pretrained(
            folder / "unet"
        )
    with pytest.raises(ModelError, match=message):
        from_audioldm2(str(folder), audio="mel" if damage == "narrow" else None, mel=SPEC)
