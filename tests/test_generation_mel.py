"""The log-mel front end and the way back to sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
import torch

from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from auscult.generation.vocoder import GriffinLimVocoder, hifigan, vocode
from conftest import sound

SPECS = [
    MelSpec(),
    MelSpec(hop_length=320),
    MelSpec(padding="tacotron"),
    MelSpec(n_fft=1024, win_length=600, hop_length=150, n_mels=80, f_min=55.0, f_max=7600.0),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def _waves(count: int = 2, duration_s: float = 1.0) -> torch.Tensor:
    """Sounds of different loudness, the second with digital silence and the last with a very quiet end."""
    waves = torch.from_numpy(np.stack([sound(number, duration_s) for number in range(count)])).float()
    waves = prepare_waveform(waves)
    waves[1, 4000:8000] = 0
    waves[-1, 9000:] *= 1e-4
    return waves


@pytest.mark.parametrize("spec", SPECS)
def test_equals_librosa(spec: MelSpec) -> None:
    librosa = pytest.importorskip("librosa")
    waves = _waves()
    bank = librosa.filters.mel(
        sr=spec.sample_rate_hz, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.f_min, fmax=spec.f_max, dtype=np.float64
    )
    for wave, mel in zip(waves.double().numpy(), log_mel(waves, spec)[:, 0].numpy(), strict=True):
        edge = 512 if spec.padding == "tacotron" else (spec.n_fft - spec.hop_length) // 2
        padded = np.pad(wave, edge, mode="reflect")
        spectrum = librosa.stft(
            padded, n_fft=spec.n_fft, hop_length=spec.hop_length, win_length=spec.win_length, center=False, dtype=np.complex128
        )
        expected = np.log(np.maximum(bank @ np.abs(spectrum), 1e-5)).T[: len(wave) // spec.hop_length]
        assert mel.shape == expected.shape
        # filters of float32; at the floor's edge, bands of rounding alone differ by nothing that counts
        np.testing.assert_allclose(mel, expected, atol=1e-4)


def test_a_low_tone_leaves_high_bands_on_the_floor() -> None:
    """A loud low tone must not lift silent high bands off the floor, as the rounding of a float32 transform may."""
    tone = 0.5 * torch.sin(2 * torch.pi * 250 * torch.arange(16_384, dtype=torch.float64) / 16_000)
    high = log_mel(tone[None], MelSpec())[0, 0, 20:80, 50:]
    assert high.max() == pytest.approx(np.log(1e-5), abs=1e-5)


def test_paddings_differ_by_half_a_hop() -> None:
    wave = _waves()[:1]
    later = torch.nn.functional.pad(wave, (80, 0))
    reflect, tacotron = log_mel(wave, MelSpec()), log_mel(later, MelSpec(padding="tacotron"))
    # frame i + 1 is centered on sample 160 (i + 1), where the shifted sound has what was in the middle of hop i
    torch.testing.assert_close(tacotron[:, :, 6:91], reflect[:, :, 5:90], atol=1e-5, rtol=0)


def test_waveforms_are_prepared_one_by_one() -> None:
    waves = torch.stack([3 + 0.01 * torch.randn(500), torch.full((500,), 0.1), torch.zeros(500), 100 * torch.randn(500)])
    prepared = prepare_waveform(waves)
    assert prepared.abs().amax(1).tolist() == pytest.approx([0.5, 0, 0, 0.5])
    assert prepared.mean(1).abs().max() < 1e-3  # of a peak of 0.5; the samples lie around 3 in float32
    for wave, expected in zip(waves, prepared, strict=True):
        assert torch.equal(prepare_waveform(wave), expected)


def test_loudness_shifts_a_log_mel() -> None:
    waves = _waves()[:1]
    quiet, loud = log_mel(waves / 2, MelSpec()), log_mel(waves, MelSpec())
    above = quiet > -11
    torch.testing.assert_close((loud - quiet)[above], torch.full_like(quiet[above], np.log(2)), atol=1e-4, rtol=0)


def test_gradients_reach_the_waveform() -> None:
    wave = _waves()[:1].requires_grad_()
    log_mel(wave, MelSpec()).sum().backward()
    assert wave.grad is not None
    assert torch.isfinite(wave.grad).all() and wave.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "zeros"}, "'reflect' or 'tacotron'"),
        ({"hop_length": 2000}, "hop_length should be at most win_length"),
        ({"hop_length": 161}, "should be even"),
        ({"f_max": 9000.0}, "half the sample rate"),
        ({"floor": 0.0}, "floor above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelSpec.from_dict(settings)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no settings hop; it has sample_rate_hz"):
        MelSpec.from_dict({"hop": 160})
    with pytest.raises(ValueError, match=r"\(B, time\), got \(100,\)"):
        log_mel(torch.zeros(100), MelSpec())
    with pytest.raises(ValueError, match="more than 432 samples, got 400"):
        log_mel(torch.zeros(1, 400), MelSpec())


@pytest.mark.parametrize("spec", SPECS[:3])
def test_griffin_lim_round_trip(spec: MelSpec) -> None:
    """Gate of the specification: below 0.3 nat after 32 iterations."""
    waves = _waves()
    mel = log_mel(waves, spec)
    vocoder = GriffinLimVocoder.of(spec)
    wave = vocode(vocoder, mel, spec.samples(mel.shape[2]))
    assert wave.shape == (2, spec.samples(spec.frames(16_000)))
    error = (log_mel(wave, spec) - mel)[:, :, 4:-4]
    assert error.abs().mean() < 0.3
    assert error.abs().mean() < 0.25 * (log_mel(wave.roll(4 * spec.hop_length, 1), spec) - mel).abs().mean()
    assert vocoder.preview_quality


def test_griffin_lim_puts_sound_where_it_was() -> None:
    wave = torch.zeros(1, 16_000)
    wave[0, 6000:6400] = 0.3 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    for spec in SPECS[:3]:
        made = vocode(GriffinLimVocoder.of(spec), log_mel(wave, spec), spec.samples(spec.frames(16_000)))
        center = (made.square() * torch.arange(made.shape[1])).sum() / made.square().sum()
        assert center == pytest.approx(6200, abs=80)  # half a hop; the energy's center, whatever the phases


def test_griffin_lim_depends_on_its_log_mel_alone() -> None:
    spec = MelSpec(hop_length=320)
    mel = log_mel(_waves(3), spec)[:, 0]
    vocoder = GriffinLimVocoder.of(spec, iterations=3)
    together = vocoder(mel)
    torch.manual_seed(5)
    assert all(torch.equal(vocoder(one)[0], row) for one, row in zip(mel.split(1), together, strict=True))
    assert not torch.equal(GriffinLimVocoder.of(spec, iterations=3, seed=1)(mel), together)


def test_griffin_lim_is_saved_with_its_settings(tmp_path: Path) -> None:
    spec = MelSpec(hop_length=320, n_mels=32, f_min=50.0)
    vocoder = GriffinLimVocoder.of(spec, iterations=2, seed=3)
    vocoder.save_pretrained(tmp_path)
    again = GriffinLimVocoder.from_pretrained(tmp_path)
    assert again.spec == spec
    mel = log_mel(_waves(), spec)[:, 0]
    assert torch.equal(again(mel), vocoder(mel))


def test_silence_stays_silent() -> None:
    mel = log_mel(torch.zeros(1, 8000), MelSpec())
    assert vocode(GriffinLimVocoder(iterations=2), mel, 8000).abs().max() == 0


def test_griffin_lim_is_the_same_in_every_type() -> None:
    mel = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0)) - 5
    wave = vocode(GriffinLimVocoder(iterations=2), mel, 3000)
    for kind in (torch.float16, torch.bfloat16):
        other = GriffinLimVocoder(iterations=2).to(kind)
        assert vocode(other, mel, 3000).equal(wave)
        assert vocode(other.to(kind).to(torch.float32), mel, 3000).equal(wave)  # the tables are not what they were rounded to


def test_hifigan_is_the_published_one() -> None:
    with torch.device("meta"):
        published = hifigan(MelSpec())
    assert sum(parameter.numel() for parameter in published.parameters()) / 1e6 == pytest.approx(55.3, abs=0.05)
    small = hifigan("audioldm", upsample_initial_channel=32).eval()
    with torch.no_grad():
        assert small(torch.zeros(1, 64, 64)).shape == (1, 64 * 160 + 32)
        wave = vocode(small, torch.zeros(2, 1, 64, 64), 64 * 160)
    assert wave.shape == (2, 10_240)
    with pytest.raises(ValueError, match="64 frames make 10272 samples, fewer than the 11000"):
        vocode(small, torch.zeros(1, 1, 64, 64), 11_000)
    with pytest.raises(ValueError, match="hop of 320; take GriffinLimVocoder"):
        hifigan(MelSpec(hop_length=320))
    with pytest.raises(ValueError, match=r"\(B, frames, 64\), got \(1, 10, 80\)"):
        GriffinLimVocoder()(torch.zeros(1, 10, 80))
