"""The mel descriptor, against a plain float64 implementation and librosa's filters."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.descriptors import DescriptorSpec, load_descriptor
from auscult.descriptors.mel import MelDescriptor, log_mel, mel_filterbank
from auscult.sounds import FAMILIES, synthesise
from conftest import sound


def reference_log_mel(samples: np.ndarray) -> np.ndarray:
    """The audit paper's descriptor in float64, frame by frame, with librosa's filters."""
    samples = samples.astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    padded = np.concatenate([np.zeros(1024), samples, np.zeros(1024)])
    filters = librosa.filters.mel(sr=16_000, n_fft=2048, n_mels=16, fmin=0, fmax=8000, dtype=np.float64)
    columns = []
    for start in range(0, len(padded) - 2048 + 1, 1536):
        columns.append(filters @ np.abs(np.fft.rfft(padded[start : start + 2048] * window)) ** 2)
    power = np.stack(columns, axis=1)
    return np.maximum(10 * np.log10(np.maximum(power / power.max(), 1e-30)), -40)


def test_filters_are_librosas() -> None:
    ours = mel_filterbank(16_000, 2048, 16, 8000.0)
    theirs = librosa.filters.mel(sr=16_000, n_fft=2048, n_mels=16, fmin=0, fmax=8000)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference_within_1e4_db(family: str) -> None:
    samples = synthesise(family, np.random.default_rng(0), duration_s=8.0).samples
    samples = np.pad(samples, (0, 163_872 - 128_000)).astype(np.float32)
    np.testing.assert_allclose(log_mel(samples), reference_log_mel(samples), atol=1e-4)


def test_equals_the_reference_on_real_recordings(esc10) -> None:
    from auscult.audio import read_audio

    for path in sorted((esc10 / "audio").glob("*.ogg"))[::12]:
        samples = read_audio(str(path), sample_rate_hz=16_000).samples
        np.testing.assert_allclose(log_mel(samples), reference_log_mel(samples), atol=1e-4, err_msg=path.name)


def test_length_and_range_at_the_papers_duration() -> None:
    descriptor = MelDescriptor()
    assert (descriptor.window_samples, descriptor.n_frames, descriptor.dimension) == (163_872, 107, 1712)
    vectors = descriptor.describe(np.stack([np.resize(sound(3, 5.0), 163_872)]).astype(np.float32))
    assert vectors.shape == (1, 1712)
    assert vectors.max() == 0.0
    assert vectors.min() >= -40.0


@given(st.floats(-100, 100), st.booleans())
@settings(deadline=None, max_examples=20)
def test_gain_and_polarity_change_nothing(gain_db: float, flipped: bool) -> None:
    samples = sound(1, 1.0).astype(np.float32)
    factor = np.float32((-1 if flipped else 1) * 10 ** (gain_db / 20))
    # scaling a float32 sample rounds it by up to 6e-8 of itself, which at the floor of -40 dB is 1e-5 dB
    np.testing.assert_allclose(log_mel(samples * factor), log_mel(samples), atol=1e-3)


def test_silence_is_refused_not_divided_by() -> None:
    with pytest.raises(ValueError, match="silence"):
        log_mel(np.zeros(16_000, np.float32))


def test_a_click_that_no_frame_sees_gives_finite_values() -> None:
    samples = np.zeros(163_872, np.float32)
    samples[-5] = 1.0
    assert np.isfinite(log_mel(samples)).all()


def test_batch_equals_single() -> None:
    windows = np.stack([sound(n, 1.0) for n in range(5)]).astype(np.float32)
    descriptor = MelDescriptor(duration_s=1.0)
    singles = np.concatenate([descriptor.describe(window[None]) for window in windows])
    np.testing.assert_array_equal(descriptor.describe(windows), singles)


def test_wrong_shapes_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="expected windows"):
        MelDescriptor(1.0).describe(np.ones((2, 100), np.float32))
    with pytest.raises(ValueError, match="duration_s"):
        MelDescriptor(0.0)
    with pytest.raises(ValueError, match="unknown descriptor"):
        load_descriptor("nope")


@given(st.floats(0.1, 600))
def test_spec_round_trip(duration_s: float) -> None:
    descriptor = MelDescriptor(duration_s)
    assert load_descriptor(str(descriptor.spec)) == descriptor
    assert DescriptorSpec.parse(str(descriptor.spec)) == descriptor.spec


def test_spec_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="describe the corpus again"):
        load_descriptor(DescriptorSpec("mel", 99, (("duration_s", 1.0),)))
