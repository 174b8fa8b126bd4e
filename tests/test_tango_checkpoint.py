"""TANGO's files converted: the original modules' numbers, and a message for every way in which files can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import DDIMScheduler
from transformers import AutoTokenizer

import original_tango
from auscult.errors import ModelError
from auscult.generation.autoencoder import from_latents, to_latents
from auscult.generation.ldm_weights import autoencoder_of, vocoder_of
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.tango_checkpoint import convert_tango, is_tango
from auscult.generation.vocoder import hifigan

SAMPLES = 5120


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    return original_tango.save(tmp_path_factory.mktemp("tango"))


def convert(folder: Path, **settings: Any) -> Any:
    pipe = convert_tango(str(folder), duration_s=SAMPLES / 16_000, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(original: tuple[Any, Any, Path]) -> Any:
    return convert(original[2])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_autoencoder_and_vocoder_compute_what_the_original_ones_do(original: tuple[Any, Any, Path], pipe: Any) -> None:
    _, codec, _ = original
    mel = -5 + 2 * noise(2, 1, 32, 16)
    latents = codec.encode(mel)
    torch.testing.assert_close(to_latents(pipe.vae, mel), latents, rtol=0, atol=1e-5)
    decoded = codec.decode(latents)
    torch.testing.assert_close(from_latents(pipe.vae, latents), decoded, rtol=0, atol=1e-5)
    wave = codec.vocoder(decoded.squeeze(1).mT)
    assert wave.std() > 0.01
    torch.testing.assert_close(pipe.vocoder(decoded.squeeze(1)), wave, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_whole_chain_is_tangos(original: tuple[Any, Any, Path], pipe: Any) -> None:
    """Prompt, guidance against the empty prompt, sampler and decoding, by the original modules."""
    model, codec, folder = original
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "t5")
    tokens = tokenizer(["", "rain on tin"], padding=True, return_tensors="pt")
    hidden = model.text_encoder(**tokens).last_hidden_state
    sampler = DDIMScheduler(
        1000,
        0.00085,
        0.012,
        "scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    sampler.set_timesteps(3)
    start = noise(1, *pipe.latent_shape())
    latents = start
    for step in sampler.timesteps:
        mask = tokens["attention_mask"].bool()
        nothing, prompt = model.unet(latents.repeat(2, 1, 1, 1), step, hidden, encoder_attention_mask=mask).sample.chunk(2)
        latents = sampler.step(nothing + 3 * (prompt - nothing), step, latents).prev_sample
    expected = codec.vocoder(codec.decode(latents).squeeze(1).mT)[:, :SAMPLES]
    found = pipe("rain on tin", latents=start, num_inference_steps=3, guidance_scale=3.0, output_type="pt").audios
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_published_sizes_convert() -> None:
    """Names, shapes and numbers of parameters of the published autoencoder and vocoder, without the memory for them."""
    sizes = {**original_tango.VAE["ddconfig"], "ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "z_channels": 8}
    with torch.device("meta"):
        weights = original_tango.OriginalAutoencoder(sizes, bands=64, channels=1024).state_dict()
        vae = autoencoder_of(weights, {**original_tango.VAE, "ddconfig": sizes, "embed_dim": 8}, "here")
        vocoder = vocoder_of(weights, "here")
        published = hifigan("audioldm").config
    assert sum(value.numel() for value in vae.parameters()) / 1e6 == pytest.approx(55.4, abs=0.05)
    assert sum(value.numel() for value in vocoder.parameters()) / 1e6 == pytest.approx(55.3, abs=0.05)
    for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes", "resblock_dilation_sizes"):
        assert json.dumps(getattr(vocoder.config, name)) == json.dumps(getattr(published, name))


def test_retrieved_captions_stand_behind_the_prompt_and_count(pipe: Any) -> None:
    call = {"prompt": "rain", "num_inference_steps": 2, "seeds": 1}
    silence = np.zeros(SAMPLES, np.float32)
    plain, none, one = (pipe(**call, references=each).audios for each in (None, [[]], [[("a dog", silence)]]))
    np.testing.assert_array_equal(plain, none)
    assert np.abs(one - plain).max() > 1e-3


def test_it_is_a_folder_like_any_other(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "started")
    again = RetrievalAugmentedAudioPipeline.from_pretrained(tmp_path / "started")
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.config.prediction_type == "v_prediction" and again.mel.padding == "tacotron"
    assert again.vae.config.scaling_factor == 0.5
    np.testing.assert_array_equal(pipe("rain", num_inference_steps=2).audios, again("rain", num_inference_steps=2).audios)


def test_the_text_encoders_own_weights_are_the_checkpoints(original: tuple[Any, Any, Path], pipe: Any) -> None:
    model, _, folder = original
    own = model.text_encoder.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in pipe.caption_encoder.state_dict().items())
    weights = torch.load(folder / "pytorch_model_main.bin", weights_only=True)
    assert any(not torch.equal(value, weights["text_encoder." + name]) for name, value in _plain_t5(folder).items())


def _plain_t5(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import T5EncoderModel

    return T5EncoderModel.from_pretrained(folder.parent / "t5").state_dict()  # type: ignore[no-any-return]


@torch.no_grad()
def test_weights_held_as_direction_and_length_are_the_same_vocoder(original: tuple[Any, Any, Path]) -> None:
    codec = original[1]
    normed: dict[str, torch.Tensor] = {}
    for number, (name, weight) in enumerate(codec.vocoder.state_dict().items()):
        if name.endswith(".weight"):
            axes = tuple(range(1, weight.dim()))
            normed[f"vocoder.{name}_g"] = weight.norm(dim=axes, keepdim=True)
            normed[f"vocoder.{name}_v"] = weight * (1 + number)  # of any length
        else:
            normed[f"vocoder.{name}"] = weight
    mel = noise(1, 8, 16)
    vocoder = vocoder_of(normed, "here", upsample_rates=list(original_tango.RATES))
    torch.testing.assert_close(vocoder(mel), codec.vocoder(mel.mT), rtol=0, atol=1e-5)


def test_published_sizes_without_a_configuration_file_are_tried(original: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """The denoiser's configuration is in TANGO's code, not in its checkpoint; a tiny one does not fit the published one."""
    folder = tmp_path / "tango"
    shutil.copytree(original[2], folder, ignore=shutil.ignore_patterns("configs"))
    path = original[2] / "configs" / "diffusion_model_config.json"
    assert convert(folder, unet_config=path).unet.config.block_out_channels == [8, 16]
    with torch.device("meta"), pytest.raises(ModelError, match=r"weights of the denoiser lack \d+ that are needed"):
        convert(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no vae", r"pytorch_model_vae\.bin is not here"),
        ("cut", r"pytorch_model_main\.bin cannot be read"),
        ("code", r"pytorch_model_main\.bin cannot be read"),
        ("list", r"pytorch_model_vae\.bin should hold weights by name"),
        ("json", r"vae_config\.json cannot be read"),
        ("lacking", r"the denoiser lack 1 that are needed \(such as conv_in\.bias\)"),
        ("shape", r"the autoencoder's .* has shape .*configuration files are not of one checkpoint"),
        ("subband", r"asks for \{'subband above 1': 4\}"),
        ("stable diffusion", r"began with Stable Diffusion's denoiser"),
        ("no vocoder", r"no vocoder among the weights"),
        ("stft", r"16 bands at 16,000 Hz with a hop of 160 samples"),
    ],
)
def test_damaged_and_other_checkpoints_are_named(
    original: tuple[Any, Any, Path], tmp_path: Path, damage: str, message: str
) -> None:
    folder = tmp_path / "tango"
    shutil.copytree(original[2], folder)
    main, vae = folder / "pytorch_model_main.bin", folder / "pytorch_model_vae.bin"
    weights = {path: torch.load(path, weights_only=True) for path in (main, vae)}
    if damage == "no vae":
        vae.unlink()
    elif damage == "cut":
        main.write_bytes(main.read_bytes()[:-1000])
    elif damage == "code":
        torch.save({"unet": Path("run me")}, main)
    elif damage == "list":
        torch.save([torch.zeros(1)], vae)
    elif damage == "json":
        (folder / "vae_config.json").write_text("{")
    elif damage == "lacking":
        torch.save({name: value for name, value in weights[main].items() if name != "unet.conv_in.bias"}, main)
    elif damage == "stable diffusion":
        torch.save({**weights[main], "group_in.0.weight": torch.zeros(1)}, main)
    elif damage == "no vocoder":
        torch.save({name: value for name, value in weights[vae].items() if not name.startswith("vocoder.")}, vae)
    elif damage == "stft":
        (folder / "stft_config.json").write_text(json.dumps({**original_tango.STFT, "hop_length": 80}))
    else:
        sizes = {**original_tango.VAE["ddconfig"], "ch": 64} if damage == "shape" else original_tango.VAE["ddconfig"]
        config = {**original_tango.VAE, "ddconfig": sizes, "subband": 4 if damage == "subband" else 1}
        (folder / "vae_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as caught:
        convert(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_tells_what_it_is(original: tuple[Any, Any, Path], tmp_path: Path) -> None:
    assert is_tango(original[2]) and not is_tango(tmp_path) and not is_tango("declare-lab/tango")
