"""Codecs, their gates, and the training of an autoencoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("diffusers")
import torch
from diffusers import AutoencoderKL

from auscult.audio import read_audio
from auscult.cli.progress import DETAIL
from auscult.descriptors.mel import MelDescriptor
from auscult.errors import GateError
from auscult.generation.autoencoder import MelAutoencoder, PatchPCACodec, autoencoder, fold, from_latents, to_latents
from auscult.generation.autoencoder_training import AutoencoderTraining, train_autoencoder
from auscult.generation.gates import check
from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from auscult.generation.reconstruction import (
    descriptors,
    divergence_gate,
    found_share,
    latent_gate,
    reconstruct,
    reconstruction_gate,
)
from auscult.generation.vocoder import GriffinLimVocoder
from conftest import sound

SPEC = MelSpec(hop_length=320)
TINY = {"block_out_channels": (8, 8, 16), "latent_channels": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    """Sixteen sounds of 1.28 s."""
    return prepare_waveform(torch.from_numpy(np.stack([sound(number, 1.28) for number in range(16)])).float())


@pytest.fixture(scope="module")
def mels(waves: torch.Tensor) -> torch.Tensor:
    """Their log-mels (16, 1, 64, 64)."""
    return log_mel(waves, SPEC)


def _blurred(mels: torch.Tensor) -> SimpleNamespace:
    """A codec with the right interface that keeps nothing of a clip but its level."""
    distribution = SimpleNamespace(mode=lambda: mels.new_zeros(1))

    def encode(x: torch.Tensor) -> SimpleNamespace:
        distribution.mode = lambda: x.mean((1, 2, 3), keepdim=True).expand(-1, 1, 8, 8)
        return SimpleNamespace(latent_dist=distribution)

    def decode(z: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=z.mean((1, 2, 3), keepdim=True).expand(-1, 1, *mels.shape[2:]))

    config = type("Config", (dict,), {"scaling_factor": 1.0})(patch_size=8)
    return SimpleNamespace(encode=encode, decode=decode, config=config, dtype=torch.float32, device=torch.device("cpu"))


def test_patch_pca_is_the_principal_components(mels: torch.Tensor) -> None:
    """Against numpy's singular values of the patches, cut out by hand."""
    codec = PatchPCACodec.fit(mels)
    standardized = ((mels - mels.mean()) / mels.std(correction=0)).double().numpy()[:, 0]
    cut = [
        one[row : row + 8, column : column + 8].ravel()
        for one in standardized
        for row in range(0, 64, 8)
        for column in range(0, 64, 8)
    ]
    patches = np.stack(cut)
    left, values, _ = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    latents = to_latents(codec, mels)
    assert latents.shape == (16, 8, 8, 8)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 8).numpy()
    np.testing.assert_allclose(np.abs(flat), np.abs(left[:, :8]) * np.sqrt(len(patches)), atol=2e-3)
    lost = float(((from_latents(codec, latents) - mels) / mels.std(correction=0)).double().square().mean())
    assert lost == pytest.approx(float((values[8:] ** 2).sum() / patches.size), rel=1e-3)


def test_all_components_lose_nothing(mels: torch.Tensor) -> None:
    codec = PatchPCACodec.fit(mels[:, :, :, :32], patch_size=4, latent_channels=16)
    some = mels[:3, :, :, 32:]  # other bands than it was fitted on: a full basis is exact everywhere
    torch.testing.assert_close(reconstruct(codec, some), some, atol=2e-4, rtol=0)


def test_latents_are_white_and_local(mels: torch.Tensor) -> None:
    codec = PatchPCACodec.fit(mels)
    latents = to_latents(codec, mels)
    flat = latents.permute(1, 0, 2, 3).reshape(8, -1)
    torch.testing.assert_close(torch.cov(flat, correction=0), torch.eye(8), atol=1e-4, rtol=0)
    changed = mels[:1].clone()
    changed[0, 0, 16:24, 40:48] += 1  # patch (2, 5)
    where = (to_latents(codec, changed) - latents[:1]).abs().amax((0, 1)) > 1e-5
    assert where.nonzero().tolist() == [[2, 5]]


def test_a_fit_repeats_and_is_saved(mels: torch.Tensor, tmp_path: Path) -> None:
    codec = PatchPCACodec.fit(mels)
    assert torch.equal(PatchPCACodec.fit(mels.clone()).basis, codec.basis)
    codec.save_pretrained(tmp_path)
    again = PatchPCACodec.from_pretrained(tmp_path)
    assert torch.equal(reconstruct(again, mels), reconstruct(codec, mels))
    posterior = again.encode(mels).latent_dist
    assert torch.equal(posterior.sample(), posterior.mode())
    assert torch.equal(again(mels).sample, again.decode(posterior.mode()).sample)


def test_decoding_is_differentiable(mels: torch.Tensor) -> None:
    for codec in (PatchPCACodec.fit(mels), MelAutoencoder(**TINY)):
        latents = to_latents(codec, mels[:1]).detach().requires_grad_()
        from_latents(codec, latents).sum().backward()
        assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_unfit_log_mels_are_named(mels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, frames, n_mels\), got \(16, 64, 64\)"):
        PatchPCACodec.fit(mels[:, 0])
    with pytest.raises(ValueError, match="multiples of 8, got 60 and 64"):
        PatchPCACodec.fit(mels[:, :, :60])
    with pytest.raises(ValueError, match="multiples of 4, got 62 and 64"):
        to_latents(MelAutoencoder(**TINY), mels[:, :, :62])
    with pytest.raises(ValueError, match="not finite"):
        PatchPCACodec.fit(mels.where(mels < mels.max(), torch.nan))
    with pytest.raises(ValueError, match="one constant"):
        PatchPCACodec.fit(torch.full((4, 1, 16, 16), -11.5))
    with pytest.raises(ValueError, match="have 1 components, fewer than the 8"):
        PatchPCACodec.fit(torch.arange(16.0)[:, None, None, None].expand(16, 1, 8, 8))
    with pytest.raises(ValueError, match="from 1 to 16"):
        PatchPCACodec(patch_size=4, latent_channels=17)


@pytest.mark.parametrize(
    ("preset", "millions", "shape"),
    [
        ("cpu4", 0.65, (8, 128, 16)),
        ("cpu8", 0.95, (8, 64, 8)),
        ("gpu", 10.8, (8, 128, 16)),
        ("audioldm", 55.4, (8, 128, 16)),
    ],
)
def test_presets_have_the_published_sizes(preset: str, millions: float, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = autoencoder(preset)  # type: ignore[arg-type]
        latents = model.encode(torch.zeros(1, 1, 512, 64)).latent_dist.mode()
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert latents.shape == (1, *shape)
    assert fold(model) == 512 // shape[1]
    assert (type(model) is AutoencoderKL) == (preset == "audioldm")


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="one of cpu4, cpu8, gpu, audioldm, got 'cpu'"):
        autoencoder("cpu")  # type: ignore[arg-type]


def test_an_autoencoder_standardizes(mels: torch.Tensor, tmp_path: Path) -> None:
    """It is diffusers' own class around numbers of mean 0: same weights, same result."""
    torch.manual_seed(0)
    model = MelAutoencoder(**TINY, mel_mean=-6.0, mel_std=2.5, scaling_factor=0.7).eval()
    plain = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        **TINY,
    ).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        latents = plain.encode((mels[:2] + 6) / 2.5).latent_dist.mode()
        expected = plain.decode(latents).sample * 2.5 - 6
    torch.testing.assert_close(to_latents(model, mels[:2]), latents * 0.7)
    torch.testing.assert_close(reconstruct(model, mels[:2]), expected)
    model.save_pretrained(tmp_path)
    again = MelAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(reconstruct(again, mels[:2]), reconstruct(model, mels[:2]))


def test_training_learns_scales_and_repeats(mels: torch.Tensor) -> None:
    config = AutoencoderTraining(steps=40, batch_size=4, learning_rate=5e-3, seed=3)
    logged: list[dict[str, float]] = []
    told: list[tuple[int, int | None, str]] = []
    before = torch.get_rng_state()
    model = train_autoencoder(
        mels, config, log=lambda _, losses: logged.append(losses), progress=lambda *args: told.append(args), **TINY
    )
    assert torch.equal(torch.get_rng_state(), before)
    first, last = (np.mean([losses["l1"] for losses in part]) for part in (logged[:5], logged[-5:]))
    assert last < 0.75 * first
    naive = (mels - mels.mean()).abs().mean()
    assert (reconstruct(model, mels) - mels).abs().mean() < 0.75 * naive
    assert latent_gate(model, mels).passed
    assert divergence_gate(model, mels).passed
    assert told[-1][:2] == (40, 40) and len(told) == 40
    assert {what.partition(DETAIL)[0] for _, _, what in told} == {"autoencoder"}  # one stage, however the loss changes
    torch.rand(7)
    short = AutoencoderTraining(steps=3, batch_size=4, seed=3)
    one, two = (train_autoencoder(mels, short, **TINY).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_stops_at_a_loss_that_is_no_number(mels: torch.Tensor) -> None:
    with pytest.raises(GateError, match="no number at step . lower learning_rate 1e\\+30".replace(". lower", r"\d; lower")):
        train_autoencoder(mels[:2], AutoencoderTraining(steps=4, batch_size=2, learning_rate=1e30), **TINY)
    with pytest.raises(ValueError, match="one constant"):
        train_autoencoder(torch.full((4, 1, 16, 16), -11.5))
    with pytest.raises(ValueError, match="steps should be above 0"):
        AutoencoderTraining(steps=0)


def test_descriptors_are_near_the_audits_own(waves: torch.Tensor, mels: torch.Tensor) -> None:
    """Of the sound itself; levels within a decibel on average, and the same cosines between clips."""
    own = torch.from_numpy(MelDescriptor(duration_s=1.28).describe(waves.numpy()))
    for spec in (SPEC, MelSpec(), MelSpec(padding="tacotron"), MelSpec(n_mels=128)):
        read = descriptors(log_mel(waves, spec), spec)
        assert read.shape == own.shape
        assert (read - own).abs().mean() < 1.5
        assert found_share(read, own) == 1.0
        cosines = [torch.nn.functional.normalize(vectors) for vectors in (read, own)]
        assert (cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T).abs().max() < 0.05


def test_the_gate_passes_a_codec_and_stops_a_blur(waves: torch.Tensor, mels: torch.Tensor) -> None:
    held = reconstruction_gate(PatchPCACodec.fit(mels), mels, SPEC)
    assert held.passed and held.value == 1.0
    failed = reconstruction_gate(_blurred(mels), mels, SPEC)
    assert not failed.passed and failed.value <= 2 / 16
    with pytest.raises(GateError, match="1 of 2 gates failed: reconstruction .*copies could not be detected later"):
        check([held, failed])
    heard = reconstruction_gate(
        PatchPCACodec.fit(mels), mels, SPEC, waves=waves, vocoder=GriffinLimVocoder.of(SPEC, iterations=4)
    )
    assert heard.value == 1.0


def test_the_gate_counts_by_hand(mels: torch.Tensor) -> None:
    """A codec that confuses two clips of sixteen has a share of 14 / 16."""
    order = list(range(16))
    order[3], order[7] = 7, 3
    read = descriptors(mels, SPEC)
    assert found_share(read[order], read) == 14 / 16
    twins = torch.cat([read, read[:1]])  # a duplicate in the corpus is no failure of the codec
    assert found_share(twins, twins) == 1.0


def test_silent_clips_are_left_out_and_counted(mels: torch.Tensor) -> None:
    silence = torch.full_like(mels[:2], float(np.log(1e-5)))
    codec = PatchPCACodec.fit(mels)
    result = reconstruction_gate(codec, torch.cat([silence[:1], mels, silence[1:]]), SPEC)
    assert result.value == 1.0 and "of 16 reconstructions" in result.message and "2 silent clips left out" in result.message
    with pytest.raises(ValueError, match="all 2 clips are silent"):
        reconstruction_gate(codec, silence, SPEC)
    with pytest.raises(ValueError, match="give both waves and vocoder"):
        reconstruction_gate(codec, mels, SPEC, vocoder=GriffinLimVocoder.of(SPEC))


def test_gates_of_the_latents(mels: torch.Tensor) -> None:
    codec = PatchPCACodec.fit(mels)
    assert latent_gate(codec, mels).passed and divergence_gate(codec, mels).passed
    codec.register_to_config(scaling_factor=2.0)
    off = latent_gate(codec, mels)
    assert not off.passed and off.value == pytest.approx(2.0, abs=1e-3) and "scaling_factor 2 by 0.5" in off.message
    assert latent_gate(codec, mels, factor=2.01).passed and not latent_gate(codec, mels, factor=1.99).passed
    codec.register_to_config(scaling_factor=0.5)
    assert latent_gate(codec, mels, factor=2.01).passed and not latent_gate(codec, mels, factor=1.99).passed
    collapsed = MelAutoencoder(**TINY)
    torch.nn.init.zeros_(collapsed.quant_conv.weight)  # mean 0 and variance 1 whatever the clip
    torch.nn.init.zeros_(collapsed.quant_conv.bias)
    result = divergence_gate(collapsed, mels)
    assert not result.passed and result.value == pytest.approx(0, abs=1e-6) and "lower kl_weight" in result.message


@pytest.mark.slow
def test_the_patch_pca_keeps_real_recordings_apart(esc10: Path) -> None:
    """All 240 field recordings, and the second half of them behind a codec that has not seen them."""
    clips = []
    for path in sorted((esc10 / "audio").glob("*.ogg")):
        samples = read_audio(str(path), sample_rate_hz=16_000).samples[:81_920]
        clips.append(np.pad(samples, (0, 81_920 - len(samples))))
    waves = prepare_waveform(torch.from_numpy(np.stack(clips)))
    mels = torch.cat([log_mel(some, SPEC) for some in waves.split(16)])
    codec = PatchPCACodec.fit(mels)
    assert to_latents(codec, mels).shape == (240, 8, 32, 8)
    assert reconstruction_gate(codec, mels, SPEC).passed
    assert float((reconstruct(codec, mels) - mels).square().mean() / mels.var()) < 0.03  # the specification measured 0.02
    assert reconstruction_gate(PatchPCACodec.fit(mels[:120]), mels[120:], SPEC).passed
    own = torch.from_numpy(MelDescriptor(duration_s=5.12).describe(waves.numpy()))
    assert found_share(descriptors(mels, SPEC), own) == 1.0
    some = slice(0, 240, 10)
    vocoder = GriffinLimVocoder.of(SPEC, iterations=16)
    assert reconstruction_gate(codec, mels[some], SPEC, waves=waves[some], vocoder=vocoder).value == 1.0
