"""The pipeline: the same sound from a seed whatever surrounds it, from memory or from a folder, and guidance as its formula."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from auscult.generation.autoencoder import PatchPCACodec, autoencoder
from auscult.generation.conditioning import Conditions, references
from auscult.generation.denoiser import DenoiserConfig, build, predict
from auscult.generation.encoding import load_encoders
from auscult.generation.guidance import prompt_conditions
from auscult.generation.mel import MelSpec, log_mel
from auscult.generation.pipeline import TANGO_BETAS, RetrievalAugmentedAudioPipeline, scheduler
from auscult.generation.vocoder import GriffinLimVocoder, hifigan
from tiny_encoders import save_ast, save_t5
from tiny_models import save

TINY = DenoiserConfig(channels=(16, 32), heads=(2, 4), attention=(False, True), norm_groups=8)
SPEC = MelSpec()
SAMPLES = 10_240  # 64 frames: latents (8, 8, 8)
PROMPTS = ["a dog barks", "rain on a roof"]


def sounds(count: int, samples: int = SAMPLES) -> list[np.ndarray]:
    """Noise through one band each: sounds that differ."""
    generator = np.random.default_rng(0)
    times = np.arange(samples) / SPEC.sample_rate_hz
    return [
        (0.2 * np.sin(2 * np.pi * 300 * (number + 1) * times) + 0.02 * generator.standard_normal(samples)).astype(np.float32)
        for number in range(count)
    ]


PAIRS = [[("dog barking", wave), ("a puppy", other)] for wave, other in zip(sounds(2), sounds(4)[2:], strict=True)]


pytestmark = pytest.mark.usefixtures("one_thread")


def assemble(config: DenoiserConfig, sampler: Any = None, **encoders: Any) -> RetrievalAugmentedAudioPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = build(config).eval()
    codec = PatchPCACodec.fit(log_mel(torch.from_numpy(np.stack(sounds(8))), SPEC))
    vocoder = GriffinLimVocoder.of(SPEC, iterations=2)
    duration_s = SAMPLES / SPEC.sample_rate_hz
    pipe = RetrievalAugmentedAudioPipeline.of(
        codec, unet, sampler or scheduler(), vocoder, load_encoders(**encoders), mel=SPEC, duration_s=duration_s
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> RetrievalAugmentedAudioPipeline:
    return assemble(TINY)


@pytest.fixture(scope="module")
def tango() -> RetrievalAugmentedAudioPipeline:
    config = replace(TINY, family="tango", prompt_dim=0, audio_dim=0)
    return assemble(config, scheduler(betas=TANGO_BETAS), prompt=None, audio=None)


def latents(pipe: RetrievalAugmentedAudioPipeline, prompt: Any = PROMPTS, **settings: Any) -> torch.Tensor:
    return pipe(prompt, **{"num_inference_steps": 3, "output_type": "latent", **settings}).audios


def differ(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool((first - second).abs().max() > 1e-3)


# --- seeds and batches -----------------------------------------------------------------------------------------------------


def test_a_seed_is_a_sound_bit_by_bit(pipe: RetrievalAugmentedAudioPipeline) -> None:
    first = pipe(PROMPTS, references=PAIRS, num_inference_steps=3, seeds=5).audios
    torch.manual_seed(99)  # the global generator has no part in it
    assert np.array_equal(pipe(PROMPTS, references=PAIRS, num_inference_steps=3, seeds=5).audios, first)
    assert first.shape == (2, SAMPLES) and first.dtype == np.float32 and np.isfinite(first).all() and first.std() > 1e-4
    assert not np.allclose(pipe(PROMPTS, references=PAIRS, num_inference_steps=3, seeds=6).audios, first, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_is_what_its_sounds_are(pipe: RetrievalAugmentedAudioPipeline, eta: float) -> None:
    uneven = [PAIRS[0], PAIRS[1][:1]]  # rows of different lengths: the batch pads what the single does not
    batch = latents(pipe, references=uneven, seeds=[7, 3], eta=eta)
    for row in range(2):
        alone = latents(pipe, PROMPTS[row], references=[uneven[row]], seeds=[[7, 3][row]], eta=eta)
        assert torch.allclose(alone[0], batch[row], atol=1e-4)


def test_audio_of_a_batch_is_what_its_sounds_are(pipe: RetrievalAugmentedAudioPipeline) -> None:
    batch = pipe(PROMPTS, seeds=[7, 3], num_inference_steps=3).audios
    alone = pipe(PROMPTS[1], seeds=3, num_inference_steps=3).audios
    assert np.abs(alone[0] - batch[1]).max() < 1e-3 * np.abs(alone).max()


def test_several_sounds_per_prompt(pipe: RetrievalAugmentedAudioPipeline) -> None:
    four = latents(pipe, num_waveforms_per_prompt=2, seeds=10, references=PAIRS)
    assert len(four) == 4
    assert torch.allclose(four[2:3], latents(pipe, PROMPTS[1], seeds=[12], references=[PAIRS[1]]), atol=1e-4)
    assert differ(four[0], four[1])


def test_noise_that_is_given_takes_the_place_of_the_seeds(pipe: RetrievalAugmentedAudioPipeline) -> None:
    noise = torch.stack([torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)])
    assert torch.equal(latents(pipe, latents=noise, seeds=77), latents(pipe, seeds=4))
    with pytest.raises(ValueError, match=r"latents of shape \(2, 8, 8, 8\)"):
        latents(pipe, latents=noise[:1])


# --- conditions ------------------------------------------------------------------------------------------------------------


def test_each_condition_changes_the_sound(pipe: RetrievalAugmentedAudioPipeline) -> None:
    base = latents(pipe, references=PAIRS)
    captions = [[("thunder", wave) for _, wave in pairs] for pairs in PAIRS]
    waves = [[(caption, wave[::-1].copy() ** 2) for caption, wave in pairs] for pairs in PAIRS]
    assert differ(base, latents(pipe, ["a cat", "wind"], references=PAIRS))
    assert differ(base, latents(pipe, references=captions))
    assert differ(base, latents(pipe, references=waves))
    assert differ(base, latents(pipe))
    assert differ(base, latents(pipe, references=PAIRS, negative_prompt="noise"))


def test_no_reference_is_no_reference(pipe: RetrievalAugmentedAudioPipeline) -> None:
    plain = latents(pipe)
    assert torch.equal(plain, latents(pipe, references=PAIRS, k=0))
    assert torch.equal(plain, latents(pipe, references=[[], []]))
    half = latents(pipe, references=[PAIRS[0], []])
    assert torch.allclose(half[1], plain[1], atol=1e-4) and differ(half[0], plain[0])


def test_k_takes_the_first(pipe: RetrievalAugmentedAudioPipeline) -> None:
    assert torch.equal(latents(pipe, references=PAIRS, k=1), latents(pipe, references=[pairs[:1] for pairs in PAIRS]))
    with pytest.raises(ValueError, match="at least k=3 references for prompt 0, got 2"):
        latents(pipe, references=PAIRS, k=3)


def test_references_that_are_encoded_already(pipe: RetrievalAugmentedAudioPipeline) -> None:
    pairs = [pair for of_prompt in PAIRS for pair in of_prompt]
    text = pipe.encoders.captions([caption for caption, _ in pairs])
    audio = pipe.encoders.audio_tokens([wave for _, wave in pairs], 16_000)
    encoded = references(text, audio, [2, 2])
    assert torch.equal(latents(pipe, references=encoded), latents(pipe, references=PAIRS))
    assert torch.equal(latents(pipe, references=encoded, k=0), latents(pipe))
    with pytest.raises(ValueError, match="encoded already"):
        latents(pipe, references=encoded, k=1)


def test_tango_is_steered_by_its_text_and_by_captions_behind_it(tango: RetrievalAugmentedAudioPipeline) -> None:
    plain = latents(tango)
    assert differ(plain, latents(tango, ["a cat", "wind"]))
    assert differ(plain, latents(tango, references=PAIRS))
    silent = [[(caption, np.zeros(0)) for caption, _ in pairs] for pairs in PAIRS]  # sounds are not asked for
    assert torch.equal(latents(tango, references=PAIRS), latents(tango, references=silent))
    with pytest.warns(UserWarning, match=r"prompt 0 \('word word .* the last 1989 tokens have no influence"):
        latents(tango, "word " * 2000)


def test_captions_follow_the_prompt_in_tango(tango: RetrievalAugmentedAudioPipeline) -> None:
    encoders = tango.encoders
    made = prompt_conditions(encoders, "tango", PROMPTS, [PAIRS[0], PAIRS[1][:1]], None, "", 16_000)
    for row, texts in enumerate((["a dog barks", "dog barking", "a puppy"], ["rain on a roof", "dog barking"])):
        tokens = encoders.captions(texts)
        full = made.full.select([row]).text
        assert full is not None and full.values[full.mask].equal(tokens.values[tokens.mask])
    assert made.null.text is not None and made.null.text.mask.sum(1).tolist() == [1, 1]


# --- guidance --------------------------------------------------------------------------------------------------------------


def by_hand(pipe: RetrievalAugmentedAudioPipeline, combine: Any, sampler: Any) -> torch.Tensor:
    """The sampling loop anew: three predictions, a formula, and the scheduler's step."""
    encoders = pipe.encoders
    pairs = [pair for of_prompt in PAIRS for pair in of_prompt]
    streams = references(encoders.captions([c for c, _ in pairs]), encoders.audio_tokens([w for _, w in pairs], 16_000), [2, 2])
    text = Conditions(encoders.prompts(PROMPTS))
    null, full = Conditions(encoders.prompts(["", ""])), replace(streams, prompt=text.prompt)
    sampler.set_timesteps(3)
    state = torch.stack([torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    with torch.no_grad():
        for step in sampler.timesteps:
            state = sampler.step(
                combine(*(predict(pipe.unet, state, step, c) for c in (null, text, full))), step, state
            ).prev_sample
    return state


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_guidance_is_its_formula(prediction: str) -> None:
    sampler = scheduler(prediction)
    pipe = assemble(TINY, sampler)
    fresh = DDIMScheduler.from_config(sampler.config)
    one = by_hand(pipe, lambda u, t, tr: u + 2.5 * (tr - u), fresh)
    assert torch.allclose(latents(pipe, references=PAIRS, guidance_scale=2.5), one, atol=1e-4, rtol=1e-4)
    two = by_hand(pipe, lambda u, t, tr: u + 2.5 * (t - u) + 0.7 * (tr - t), fresh)
    assert torch.allclose(latents(pipe, references=PAIRS, guidance_scale=2.5, retrieval_scale=0.7), two, atol=1e-4, rtol=1e-4)
    none = by_hand(pipe, lambda u, t, tr: tr, fresh)
    assert torch.allclose(latents(pipe, references=PAIRS, guidance_scale=1), none, atol=1e-4, rtol=1e-4)


def test_scales_at_their_ends(pipe: RetrievalAugmentedAudioPipeline) -> None:
    assert torch.equal(latents(pipe, guidance_scale=0), latents(pipe, ["a cat", "wind"], guidance_scale=0))
    assert torch.equal(latents(pipe, guidance_scale=1), latents(pipe, guidance_scale=1, negative_prompt="noise"))
    both = latents(pipe, references=PAIRS, guidance_scale=2, retrieval_scale=2)
    assert torch.equal(both, latents(pipe, references=PAIRS, guidance_scale=2))
    deaf = latents(pipe, references=PAIRS, guidance_scale=2, retrieval_scale=0)
    assert torch.allclose(deaf, latents(pipe, guidance_scale=2), atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers with NumPy 2
@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_of_diffusers(pipe: RetrievalAugmentedAudioPipeline, kind: Any) -> None:
    other = RetrievalAugmentedAudioPipeline(
        **{**pipe.components, "scheduler": kind.from_config(pipe.scheduler.config)}, mel=SPEC
    )
    other.set_progress_bar_config(disable=True)
    first = latents(other, duration_s=0.64, seeds=[1, 2])
    assert torch.equal(first, latents(other, duration_s=0.64, seeds=[1, 2])) and differ(first, latents(pipe, seeds=[1, 2]))
    assert torch.allclose(first[1:], latents(other, PROMPTS[1], duration_s=0.64, seeds=2), atol=1e-4)


# --- folders ---------------------------------------------------------------------------------------------------------------


def reloaded(pipe: RetrievalAugmentedAudioPipeline, folder: Path) -> RetrievalAugmentedAudioPipeline:
    pipe.save_pretrained(folder)
    loaded = RetrievalAugmentedAudioPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_a_saved_pipeline_makes_the_same_audio(pipe: RetrievalAugmentedAudioPipeline, tmp_path: Path) -> None:
    loaded = reloaded(pipe, tmp_path)
    assert loaded.mel == SPEC and loaded.config.duration_s == pipe.config.duration_s and loaded.preview_quality
    given = {"references": PAIRS, "num_inference_steps": 3, "seeds": 5}
    assert np.array_equal(loaded(PROMPTS, **given).audios, pipe(PROMPTS, **given).audios)


def test_a_saved_tango_makes_the_same_audio(tango: RetrievalAugmentedAudioPipeline, tmp_path: Path) -> None:
    loaded = reloaded(tango, tmp_path)
    assert loaded.prompt_encoder is None and loaded.audio_encoder is None
    assert np.array_equal(loaded(PROMPTS, num_inference_steps=2).audios, tango(PROMPTS, num_inference_steps=2).audios)


def test_a_pipeline_of_real_classes_throughout(tmp_path: Path) -> None:
    """CLAP, T5, AST, AutoencoderKL and HiFi-GAN, tiny: from one folder to another and the same audio."""
    root = tmp_path / "encoders"
    names = {
        "prompt": str(save(root / "clap", "clap")),
        "caption": str(save_t5(root / "t5")),
        "audio": str(save_ast(root / "ast", frequency_stride=10, time_stride=10)),
    }
    encoders = load_encoders(**names)
    torch.manual_seed(0)
    codec = autoencoder("audioldm", block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4).eval()
    widths = {"prompt_dim": encoders.prompt_dim, "text_dim": encoders.text_dim, "audio_dim": encoders.audio_dim}
    unet = build(replace(TINY, **widths)).eval()
    pipe = RetrievalAugmentedAudioPipeline.of(
        codec, unet, scheduler("epsilon"), hifigan(upsample_initial_channel=32).eval(), encoders, mel=SPEC, duration_s=0.63
    )
    with torch.no_grad():
        for weight in pipe.vocoder.parameters():
            weight *= 10  # as initialized, it whispers at 1e-11
    pipe.set_progress_bar_config(disable=True)
    given = {"references": PAIRS, "num_inference_steps": 2, "seeds": 5}
    with pytest.warns(UserWarning, match="prompt 1 .* the last 2 tokens"):  # tiny CLAP reads 14
        audio = pipe(["a dog", "rain on a roof"], **given).audios
    assert audio.shape == (2, 10_080) and 1e-4 < audio.std() < 1 and not pipe.preview_quality
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")  # AST's own setting
        loaded = reloaded(pipe, tmp_path / "pipeline")
    with pytest.warns(UserWarning, match="prompt 1 "):
        assert np.array_equal(loaded(["a dog", "rain on a roof"], **given).audios, audio)


# --- calls -----------------------------------------------------------------------------------------------------------------


def test_durations_are_exact(pipe: RetrievalAugmentedAudioPipeline) -> None:
    audio = pipe(PROMPTS[0], num_inference_steps=1, duration_s=0.7123).audios
    assert audio.shape == (1, round(0.7123 * 16_000))
    assert pipe.latent_shape(10.24) == (8, 128, 8) and pipe.latent_shape(10.25) == (8, 129, 8)
    with pytest.raises(ValueError, match="duration_s should be above 0, got -1"):
        pipe.latent_shape(-1)


def test_callbacks_see_change_and_stop(pipe: RetrievalAugmentedAudioPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def watch(which: Any, number: int, step: torch.Tensor, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((number, int(step)))
        which._interrupt = number == 1
        return {"latents": torch.zeros_like(given["latents"])} if number == 1 else {}

    assert not latents(pipe, num_inference_steps=4, callback_on_step_end=watch).any()
    assert seen == [(0, 751), (1, 501)]
    seen.clear()
    base = latents(pipe, callback_on_step_end=lambda *given: None)  # and is no longer interrupted
    assert torch.equal(base, latents(pipe))


def test_kinds_of_output(pipe: RetrievalAugmentedAudioPipeline) -> None:
    (tensor,) = pipe(PROMPTS, num_inference_steps=2, output_type="pt", return_dict=False)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), pipe(PROMPTS, num_inference_steps=2).audios)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "prompt 0 is empty"),
        (["rain", "  "], {}, "prompt 1 is empty"),
        ([], {}, "at least one prompt"),
        (PROMPTS, {"seeds": [1]}, "one seed per sound, 2, got 1"),
        (PROMPTS, {"references": PAIRS[:1]}, "references for 2 prompts, got them for 1"),
        (PROMPTS, {"k": 2}, "k=2 references are wanted, and none are given"),
        (PROMPTS, {"num_inference_steps": 0}, "at least 1, got 0 and 1"),
        (PROMPTS, {"output_type": "mp3"}, "output_type should be"),
        (PROMPTS, {"callback_on_step_end_tensor_inputs": ["noise"]}, r"can only be \['latents'\]"),
        (PROMPTS, {"num_inference_steps": 1001}, "more than its 1,000 noise levels"),
    ],
)
def test_calls_that_are_refused(pipe: RetrievalAugmentedAudioPipeline, prompt: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **settings)


def test_references_that_no_encoder_can_read() -> None:
    pipe = assemble(TINY, caption=None, audio=None)
    with pytest.raises(ValueError, match="no encoder for captions or sounds"):
        latents(pipe, references=PAIRS)
