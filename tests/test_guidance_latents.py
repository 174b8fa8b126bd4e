"""Latent descriptors: what they make of latents is what the audit's descriptors make of the sound, and they draw nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import soundfile as sf
import soxr
import torch

import tiny_models
import tiny_pipelines
from auscult.audio import cut_windows
from auscult.corpus import Clip
from auscult.descriptors.clap import ClapDescriptor
from auscult.descriptors.mel import MelDescriptor
from auscult.errors import DescriptorMismatchError, ModelError
from auscult.generation.autoencoder import PatchPCACodec, autoencoder, from_latents, to_latents
from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from auscult.generation.pipelines import quiet
from auscult.generation.reconstruction import descriptors
from auscult.guidance.clap_latents import ClapOnAudio
from auscult.guidance.codecs import LatentCodec, oobleck_reach
from auscult.guidance.decoded import DecodedMel, mel_vectors
from auscult.guidance.index import ReferenceIndex
from auscult.guidance.latents import LatentDescriptor, MelOnLatents
from auscult.guidance.resampling import resample
from auscult.guidance.statistics import LatentStatistics
from auscult.guidance.windows import crop, window_starts
from conftest import sound

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = MelSpec()
DECODED = (
    "RetrievalAugmentedAudioPipeline",
    "AudioLDMPipeline",
    "AudioLDM2Pipeline",
    "MusicLDMPipeline",
    "StableAudioPipeline",
)


def raw(rate_hz: int, frame: int = 160, seconds: float = 2.0) -> LatentCodec:
    """The codec whose latents (B, frame, T) are the samples themselves."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return latents.mT.flatten(1)

    def encode(waves: torch.Tensor) -> torch.Tensor:
        return waves.unflatten(1, (-1, frame)).mT

    return LatentCodec(decode, encode, frame, rate_hz, 0, round(seconds * rate_hz) // frame)


def sounds(n: int, seconds: float, rate_hz: int = 16_000, first: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.stack([sound(first + number, seconds, rate_hz) for number in range(n)]).astype(np.float32))


@pytest.fixture(scope="module")
def pca() -> PatchPCACodec:
    """A codec of log-mels fitted on sounds."""
    return PatchPCACodec.fit(log_mel(prepare_waveform(sounds(12, 1.28)), SPEC), latent_channels=32)


@pytest.fixture(scope="module")
def oobleck() -> Any:
    """An autoencoder whose latents have as many channels on both sides."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return diffusers.AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4, 8],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[1, 2, 4],
            sampling_rate=16_000,
        ).eval()


@pytest.fixture(scope="module")
def stable_audio(oobleck: Any) -> Any:
    pipe = tiny_pipelines.make("StableAudioPipeline")
    pipe.vae = oobleck
    return pipe


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "clap", "clap")


@pytest.fixture(scope="module")
def clap(clap_folder: Path) -> ClapOnAudio:
    return ClapOnAudio.of(None, str(clap_folder), device="cpu", codec=raw(48_000))


@pytest.fixture
def each(pca: PatchPCACodec, stable_audio: Any, clap: ClapOnAudio) -> dict[str, tuple[LatentDescriptor, torch.Tensor]]:
    """Each descriptor with some latents of sounds."""
    codec, waves = raw(16_000), sounds(3, 0.96)
    return {
        "mel": (MelOnLatents(pca, SPEC, 0.64), to_latents(pca, log_mel(prepare_waveform(waves), SPEC))),
        "statistics": (LatentStatistics.of(stable_audio, duration_s=0.32), torch.randn(3, 4, 100)),
        "decoded": (DecodedMel(codec, 0.5), codec.encode(waves)),
        "clap": (replace(clap, codec=codec), codec.encode(waves)),
    }


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 99, 100, 104, 105, 199, 200, 204, 250, 305])
def test_windows_follow_each_other_as_those_of_audits_do(total: int) -> None:
    theirs = cut_windows(iter([np.ones(total, np.float32)]), window_samples=100, sample_rate_hz=1)
    assert window_starts(total, 100, 100) == [int(window.start_s) for window in theirs]


def test_a_window_is_decoded_out_of_what_it_depends_on(oobleck: Any, stable_audio: Any) -> None:
    codec, latents = LatentCodec.of(stable_audio), torch.randn(2, 4, 90)
    assert codec.samples_per_frame == 64
    assert codec.halo == oobleck_reach([2, 4, 8])
    whole = oobleck.decode(latents).sample.mean(1)
    for start, length in ((0, 640), (1234, 700), (5760 - 321, 321)):
        part = crop(start, length, per_frame=64, frames=90, halo=codec.halo)
        made = codec.decode(latents[:, :, part.first : part.last]).mean(1)[:, part.offset : part.offset + length]
        torch.testing.assert_close(made, whole[:, start : start + length], atol=1e-6, rtol=0)
    assert part.last - part.first < 45  # of 90


def test_no_sample_depends_on_latents_beyond_the_reach(oobleck: Any) -> None:
    latents = torch.randn(1, 4, 60, requires_grad=True)
    middle = oobleck.decode(latents).sample[..., 30 * 64 : 31 * 64]
    (gradient,) = torch.autograd.grad(middle.sum(), latents)
    touched = gradient.abs().amax((0, 1)).nonzero().flatten()
    reach = oobleck_reach([2, 4, 8])
    assert 30 - reach <= int(touched.min()) <= 30 - reach + 2  # no more than needed, nearly
    assert 30 + reach - 2 <= int(touched.max()) <= 30 + reach


def test_a_window_of_a_log_mel_is_nearly_that_of_the_whole() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae, latents = autoencoder("cpu4", mel_mean=-7.0, mel_std=2.3).eval(), torch.randn(1, 8, 96, 16)
    with torch.no_grad():
        whole = from_latents(vae, latents)[:, :, 64:128]
        wanted = descriptors(whole, SPEC)
        off = [(MelOnLatents(vae, SPEC, 0.64, halo=halo).describe(latents, 1) - wanted).abs().mean() for halo in (0, 8)]
    assert off[1] < 0.6  # dB, the norms hear the whole
    assert off[1] < 0.6 * off[0]


@pytest.mark.parametrize("kind", ["decoded", "clap", "mel"])
def test_a_step_describes_its_window(each: dict[str, Any], kind: str) -> None:
    descriptor, x0 = each[kind]
    descriptor = replace(descriptor, window_s=0.32)
    windows = x0.split(x0.shape[2] // 3, dim=2)  # 0.32 s each
    alone = [descriptor.describe(window) for window in windows]
    for step in (0, 1, 2, 3, 7):
        torch.testing.assert_close(descriptor.describe(x0, step), alone[step % 3], atol=1e-3, rtol=1e-4)
    for step in (1, 3):  # what counts has one window
        torch.testing.assert_close(replace(descriptor, duration_s=0.32).describe(x0, step), alone[0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["decoded", "clap", "mel"])
def test_a_window_of_2_seconds_finds_what_plays_at_its_moment_or_another(
    tmp_path: Path, pca: PatchPCACodec, clap: ClapOnAudio, kind: str
) -> None:
    codec = raw(16_000)
    for number in range(5):
        sf.write(tmp_path / f"{number}.wav", sound(number, 6.0), 16_000, subtype="FLOAT")
    kinds = {
        "decoded": DecodedMel(codec, 2.0),
        "clap": replace(clap, codec=codec, window_s=2.0),
        "mel": MelOnLatents(pca, SPEC, 2.0),
    }
    descriptor = kinds[kind]
    clips = [Clip(str(number), str(tmp_path / f"{number}.wav"), caption=f"sound {number}") for number in range(5)]
    index = ReferenceIndex.from_audio(clips, descriptor)
    wave = sounds(1, 6.0, first=3)[0]
    elsewhere = torch.cat([sounds(1, 4.0, first=77)[0], wave[3 * 16_000 : 5 * 16_000]])  # from 3 s, now at 4 s
    for given, step, start in ((wave, 0, 0), (wave, 1, 2), (wave, 2, 4), (elsewhere, 2, 3)):
        x0 = to_latents(pca, log_mel(prepare_waveform(given[None]), SPEC)) if kind == "mel" else codec.encode(given[None])
        found = index.nearest(descriptor.describe(x0, step))
        row = int(found.rows)
        assert (index.captions[row], index.starts_s[row]) == ("sound 3", start)
        assert found.similarity.item() > 0.9


# --- equality with the descriptors of audits --------------------------------------------------------------------------


def test_mel_in_torch_is_the_descriptor_of_audits() -> None:
    waves = torch.cat([sounds(6, 2.0), 1e-5 * sounds(1, 2.0), torch.eye(1, 32_000)])
    np.testing.assert_allclose(mel_vectors(waves), MelDescriptor(2.0).describe(waves.numpy()), atol=2e-4)


@pytest.mark.parametrize("kind", DECODED)
def test_decoded_mel_is_the_mel_of_what_the_pipeline_sounds_like(kind: str) -> None:
    pipe = tiny_pipelines.make(kind)
    codec = LatentCodec.of(pipe)
    shape = {"RetrievalAugmentedAudioPipeline": (8, 12, 8), "StableAudioPipeline": (4, 300)}.get(kind, (4, 60, 4))
    x0 = torch.randn(2, *shape)
    with torch.no_grad():
        wave = codec.decode(x0)
        mono = (wave.mean(1) if wave.ndim == 3 else wave).numpy()
        ours = DecodedMel.of(pipe, window_s=1.0).describe(x0)
    theirs = MelDescriptor(1.0).describe(np.pad(mono, ((0, 0), (0, 16_000 - mono.shape[1]))))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("kind", ["RetrievalAugmentedAudioPipeline", "AudioLDM2Pipeline", "StableAudioPipeline"])
def test_codec_of_a_pipeline_sounds_as_the_pipeline_does(kind: str) -> None:
    pipe = tiny_pipelines.make(kind, **({"headed": True} if kind == "AudioLDM2Pipeline" else {}))
    made = {}
    for output in ("latent", "pt"):
        seeds = {"seeds": [3]} if kind.startswith("Retr") else {"generator": [torch.Generator().manual_seed(3)]}
        with quiet():
            made[output] = pipe("a", num_inference_steps=2, guidance_scale=1.0, output_type=output, **seeds).audios
    with torch.no_grad():
        decoded = LatentCodec.of(pipe).decode(made["latent"]).squeeze()
    audio = made["pt"].squeeze()
    torch.testing.assert_close(decoded[..., : audio.shape[-1]], audio, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.64, 1.28, 10.242])
def test_mel_on_latents_is_read_off_the_decoded_log_mel(pca: PatchPCACodec, seconds: float) -> None:
    latents = to_latents(pca, log_mel(prepare_waveform(sounds(2, 1.28)), SPEC))
    mels = from_latents(pca, latents)
    descriptor = MelOnLatents(pca, SPEC, seconds)
    frames = descriptor.frames
    padded = torch.cat([mels, torch.full((2, 1, max(0, frames - 128), 64), np.log(1e-5))], 2)[:, :, :frames]
    vectors = descriptor.describe(latents)
    torch.testing.assert_close(vectors, descriptors(padded, SPEC), atol=1e-4, rtol=0)
    assert vectors.shape[1] == MelDescriptor(seconds).dimension


@pytest.mark.parametrize("seconds", [0.1, 0.57, 1.0, 2.0, 3.3, 10.0, 10.24, 10.242])
@pytest.mark.parametrize("spec", [SPEC, MelSpec(sample_rate_hz=24_000, hop_length=300, win_length=1200, n_fft=2048)])
def test_mel_on_latents_has_as_many_values_as_vectors_of_stores(pca: PatchPCACodec, seconds: float, spec: MelSpec) -> None:
    descriptor = MelOnLatents(pca, spec, seconds)
    assert descriptors(torch.zeros(1, 1, descriptor.frames, 64), spec).shape[1] == MelDescriptor(seconds).dimension


def test_log_mels_are_close_to_vectors_of_stores(pca: PatchPCACodec) -> None:
    descriptor, waves = MelOnLatents(pca, SPEC, 1.0), sounds(8, 1.0).numpy()
    ours = np.concatenate(descriptor.of_audio(list(waves), 16_000).vectors)
    theirs = MelDescriptor(1.0).describe(waves)
    units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (ours, theirs)]
    cosines = units[0] @ units[1].T
    assert (cosines.diagonal() > 0.98).all()
    assert (cosines.argmax(1) == np.arange(8)).all()


@pytest.mark.parametrize("seconds", [0.4, 3.0, 6.0, 10.0])
def test_clap_is_the_descriptor_of_audits(clap_folder: Path, clap: ClapOnAudio, seconds: float) -> None:
    waves = sounds(2, seconds, 48_000)
    waves[1, -4800:] = 0  # the silence at its end does not count
    padded = np.pad(waves.numpy(), ((0, 0), (0, 480_000 - waves.shape[1])))
    theirs = ClapDescriptor(str(clap_folder), "cpu").describe(padded)
    ours = clap.describe(raw(48_000).encode(waves))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(np.concatenate(clap.of_audio(list(waves.numpy()), 48_000).vectors), theirs, atol=2e-5)
    assert clap.store_spec == ClapDescriptor(str(clap_folder)).spec
    assert replace(clap, window_s=2.0).store_spec is None


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_sound_at_another_rate_has_nearly_the_same_vectors(clap_folder: Path, clap: ClapOnAudio, rate_hz: int) -> None:
    frame = rate_hz // 100
    codec, wave = raw(rate_hz, frame), sounds(1, 2.0, rate_hz)
    at = {hz: soxr.resample(wave[0].numpy(), rate_hz, hz, "VHQ").astype(np.float32) for hz in (16_000, 48_000)}
    mel = DecodedMel(codec, 2.0).describe(codec.encode(wave))[0].numpy() - MelDescriptor(2.0).describe(at[16_000][None])[0]
    assert np.abs(mel).mean() < 0.05  # dB; only the band at the edge of 8 kHz differs by more
    theirs = ClapDescriptor(str(clap_folder), "cpu").describe(np.pad(at[48_000], (0, 480_000 - 96_000))[None])[0]
    assert float(replace(clap, codec=codec).describe(codec.encode(wave))[0].numpy() @ theirs) > 0.999


@pytest.mark.parametrize(
    ("old", "new"), [(44_100, 16_000), (16_000, 48_000), (44_100, 48_000), (48_000, 16_000), (16_000, 16_000)]
)
def test_resampling_agrees_with_soxr(old: int, new: int) -> None:
    time = np.arange(2 * old) / old
    rng = np.random.default_rng(0)
    tones = sum(np.sin(2 * np.pi * hz * time + rng.uniform(0, 6)) for hz in np.geomspace(20, 0.43 * min(old, new), 40))
    tones = tones + 0.3
    ours = resample(torch.from_numpy(tones)[None], old, new)[0].numpy()
    theirs = soxr.resample(tones, old, new, "VHQ")
    assert ours.shape == theirs.shape
    inner = slice(new // 20, -new // 20)
    error = (ours - theirs)[inner]
    assert np.sqrt((error**2).mean()) < 1e-4 * theirs.std()  # -80 dB


def test_resampling_keeps_out_what_the_lower_rate_cannot_hold() -> None:
    time = torch.arange(44_100, dtype=torch.float64) / 44_100
    for hz in (8800.0, 12_000.0, 20_000.0):
        made = resample(torch.sin(2 * torch.pi * hz * time)[None], 44_100, 16_000)[0, 800:-800]
        assert made.abs().max() < 1e-3
    for shape, rates, message in (((5,), (1, 2), "shape"), ((1, 5), (0, 2), "positive")):
        with pytest.raises(ValueError, match=message):
            resample(torch.zeros(shape), *rates)


# --- statistics of latents --------------------------------------------------------------------------------------------


def test_statistics_are_means_over_blocks(stable_audio: Any) -> None:
    descriptor = LatentStatistics.of(stable_audio, duration_s=0.4, block_s=0.16)
    assert (descriptor.frames, descriptor.block) == (100, 40)
    x0 = torch.randn(2, 4, 120)
    values = x0.numpy().astype(np.float64)
    expected = [values[:, :, a:b].mean(2) for a, b in ((0, 40), (40, 80), (80, 100))]
    np.testing.assert_allclose(descriptor.describe(x0), np.concatenate(expected, 1), atol=1e-6)
    with pytest.raises(ValueError, match="100 frames or more, got 99"):
        descriptor.describe(x0[:, :, :99])


def test_references_of_statistics_are_encoded_by_the_pipelines_own_autoencoder(stable_audio: Any) -> None:
    descriptor = LatentStatistics.of(stable_audio, duration_s=0.32)
    waves = sounds(2, 0.64)
    described = descriptor.of_audio(list(waves.numpy()), 16_000)
    assert described.starts_s == [[0, 0.16, 0.32]] * 2
    with torch.no_grad():
        whole = stable_audio.vae.encode(waves[:, None, :5120].expand(-1, 2, -1)).latent_dist.mode()
        np.testing.assert_allclose(np.stack([one[0] for one in described.vectors]), descriptor.describe(whole), atol=1e-5)
    ours = tiny_pipelines.make("RetrievalAugmentedAudioPipeline")
    own = LatentStatistics.of(ours, block_s=0.16)
    mels = log_mel(prepare_waveform(sounds(1, 0.32)), SPEC)
    found = own.of_audio([sounds(1, 0.32)[0].numpy()], 16_000).vectors[0]
    blocks = to_latents(ours.vae, mels).unflatten(2, (2, 2)).mean(3).transpose(1, 2)
    np.testing.assert_allclose(found, blocks.flatten(1), atol=1e-4)


def test_another_autoencoder_is_another_descriptor(stable_audio: Any) -> None:
    first = LatentStatistics.of(stable_audio).spec
    assert LatentStatistics.of(stable_audio).spec == first
    weight = next(stable_audio.vae.parameters())
    with torch.no_grad():
        weight.flatten()[0] += 1
    try:
        assert LatentStatistics.of(stable_audio).spec != first
    finally:
        with torch.no_grad():
            weight.flatten()[0] -= 1


# --- what holds for all -----------------------------------------------------------------------------------------------

KINDS = ("mel", "statistics", "decoded", "clap")


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_do_not_depend_on_generators_or_touch_them(each: dict[str, Any], kind: str) -> None:
    descriptor, x0 = each[kind]
    wave = [sound(1, 0.9)]
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        made.append((descriptor.describe(x0, 1), descriptor.of_audio(wave, 16_000).vectors[0]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])
    assert made[0][0].dtype == torch.float32
    assert made[0][0].shape[1] == made[0][1].shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_its_rows_are(each: dict[str, Any], kind: str) -> None:
    descriptor, x0 = each[kind]
    rows = torch.cat([descriptor.describe(row) for row in x0.split(1)])
    torch.testing.assert_close(descriptor.describe(x0), rows, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(pca: PatchPCACodec, clap_folder: Path) -> None:
    codec, waves = raw(16_000), sounds(3, 0.96)
    there = ClapOnAudio.of(None, str(clap_folder), device="cuda", codec=codec)
    given = {
        "decoded": (DecodedMel(codec, 0.5), DecodedMel(codec, 0.5), codec.encode(waves)),
        "clap": (ClapOnAudio.of(None, str(clap_folder), device="cpu", codec=codec), there, codec.encode(waves)),
    }
    mels = to_latents(pca, log_mel(prepare_waveform(waves), SPEC))
    moved = PatchPCACodec(latent_channels=32)
    moved.load_state_dict(pca.state_dict())
    given["mel"] = (MelOnLatents(pca, SPEC, 0.64), MelOnLatents(moved.cuda(), SPEC, 0.64), mels)
    for here, away, x0 in given.values():
        expected, found = here.describe(x0, 1), away.describe(x0.cuda(), 1)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
        index = ReferenceIndex(here.spec, ("a", "b", "c"), (None,) * 3, (0.0,) * 3, torch.nn.functional.normalize(expected))
        for one in (index, index.to("cuda")):
            assert one.nearest(found, 2).rows[:, 0].tolist() == [0, 1, 2]
            assert one.similarity(found, one.nearest(found, 1).rows).min() > 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(each: dict[str, Any], kind: str) -> None:
    descriptor, x0 = each[kind]
    generator = torch.Generator().manual_seed(0)
    x0 = x0[:1].double() + 1e-3 * torch.randn(x0[:1].shape, generator=generator, dtype=torch.float64)
    if kind == "mel":
        descriptor = replace(descriptor, vae=PatchPCACodec(latent_channels=32).double())
        descriptor.vae.load_state_dict(each[kind][0].vae.state_dict())
    if kind == "clap":
        descriptor.tower.loaded.model.double()
    try:
        x0.requires_grad_()
        vectors = descriptor.describe(x0, 1)
        assert vectors.dtype == torch.float64
        weights = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((weights * vectors).sum(), x0)
        along = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        along = along / along.norm() + gradient / gradient.norm()  # a derivative that is not nearly 0
        step = 1e-6
        with torch.no_grad():
            ahead, behind = ((weights * descriptor.describe(x0 + sign * step * along, 1)).sum() for sign in (1, -1))
        torch.testing.assert_close((ahead - behind) / (2 * step), (gradient * along).sum(), rtol=1e-4, atol=1e-6)
    finally:
        if kind == "clap":
            descriptor.tower.loaded.model.float()


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_an_error(each: dict[str, Any], kind: str) -> None:
    descriptor, x0 = each[kind]
    for value in (torch.nan, torch.inf):
        broken = x0.clone()
        broken[1, 0, 3] = value
        with pytest.raises(ModelError, match="not finite in rows"):
            descriptor.describe(broken)


@pytest.mark.parametrize("kind", ["decoded", "clap"])
def test_errors_of_the_decoder_are_not_caught(each: dict[str, Any], kind: str) -> None:
    def full(latents: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory is left")

    descriptor, x0 = each[kind]
    with pytest.raises(torch.OutOfMemoryError):
        replace(descriptor, codec=replace(descriptor.codec, decode=full)).describe(x0)


@pytest.mark.parametrize("kind", ["decoded", "clap", "mel"])
def test_silence_is_a_row_of_zeros_without_a_gradient(each: dict[str, Any], kind: str, pca: PatchPCACodec) -> None:
    descriptor, x0 = each[kind]
    x0 = x0.clone()
    x0[1] = 0
    if kind == "mel":  # all components: silence comes back exactly
        mels = log_mel(prepare_waveform(sounds(3, 0.96)), SPEC)
        mels[1] = np.log(1e-5)
        whole = PatchPCACodec.fit(mels.repeat(2, 1, 1, 1) + 0.01 * torch.randn(6, 1, 96, 64), latent_channels=64)
        descriptor, x0 = replace(descriptor, vae=whole), to_latents(whole, mels)
    x0.requires_grad_()
    vectors = descriptor.describe(x0)
    (gradient,) = torch.autograd.grad(vectors.sum(), x0)
    assert not vectors[1].any()
    assert not gradient[1].any()
    assert torch.isfinite(gradient).all()
    assert vectors[0].any()
    assert gradient[0].any()
    assert descriptor.of_audio([np.zeros(9000, np.float32)], 16_000).starts_s == [[]]


def test_a_wild_estimate_does_not_overflow(pca: PatchPCACodec) -> None:
    vectors = MelOnLatents(pca, SPEC, 0.64).describe(1e4 * torch.randn(2, 32, 8, 8))
    assert torch.isfinite(vectors).all()


def test_latents_of_half_the_bits_have_vectors_of_float32(each: dict[str, Any]) -> None:
    for descriptor, x0 in each.values():
        exact, rounded = descriptor.describe(x0), descriptor.describe(x0.bfloat16())
        assert rounded.dtype == torch.float32
        assert float(torch.cosine_similarity(exact, rounded).min()) > 0.98


def test_an_autoencoder_of_half_the_bits_has_nearly_the_gradient_of_float32() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = tiny_pipelines.make("AudioLDM2Pipeline")
        pipe.vae.to(dtype)
        leaf = torch.randn(2, 4, 16, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        vectors = MelOnLatents.of(pipe, window_s=0.1).describe(leaf)
        (gradient,) = torch.autograd.grad((vectors * vectors.detach().roll(1, 0)).sum(), leaf)
        found.append(gradient.flatten(1))
    assert not torch.equal(*found) and found[1].dtype == torch.float32
    assert float(torch.cosine_similarity(*found).min()) > 0.9


def test_a_vocoder_that_passes_no_gradient_is_refused_where_one_is_wanted() -> None:
    pipe = tiny_pipelines.make("RetrievalAugmentedAudioPipeline")
    descriptor = DecodedMel.of(pipe)
    x0 = torch.randn(1, *pipe.latent_shape())
    assert descriptor.window_s == pytest.approx(0.32)
    assert torch.isfinite(descriptor.describe(x0)).all()
    with pytest.raises(ValueError, match="Griffin-Lim"):
        descriptor.describe(x0.requires_grad_())
    with torch.no_grad():
        descriptor.describe(x0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MelOnLatents.of(tiny_pipelines.make("StableAudioPipeline")), "no autoencoder of log-mels"),
        (lambda: LatentCodec.of(object()), "LatentCodec of your own"),
        (lambda: MelOnLatents(PatchPCACodec(), SPEC, 0.05), "0.1 to 600"),
        (lambda: DecodedMel(raw(16_000), 601), "0.1 to 600"),
        (lambda: LatentStatistics(raw(16_000), "", 3, 4), "from 1 to 3 latent frames"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_clap_hears_10_seconds_at_most(clap: ClapOnAudio) -> None:
    with pytest.raises(ValueError, match="0.1 to 10 s"):
        replace(clap, window_s=10.5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_references_is_in_the_spec(each: dict[str, Any], kind: str) -> None:
    descriptor, _ = each[kind]
    changes: dict[str, Any] = {"center": not descriptor.center}
    changes |= {"frames": 200, "block": 2, "digest": "other"} if kind == "statistics" else {"window_s": 0.25}
    changes |= {"mel": MelSpec(padding="tacotron")} if kind == "mel" else {}
    specs = {descriptor.spec, *(replace(descriptor, **{name: value}).spec for name, value in changes.items())}
    assert len(specs) == 1 + len(changes)
    index = ReferenceIndex(descriptor.spec, (), (), (), torch.zeros(0, 1))
    index.check(descriptor)
    for name, value in changes.items():
        with pytest.raises(DescriptorMismatchError):
            index.check(replace(descriptor, **{name: value}))
