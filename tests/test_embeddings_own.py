"""The backends whose code is here: log-mel levels, and VGGish and PANNs on files with the names and shapes of the public ones.

The weights in these files are random: what is tested is that a file of this structure becomes the network that the structure
means (against torch's own modules), that audio reaches it as the field's front ends have it (against definitions written out
and other libraries), and that any other file is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import soxr
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

from auscult.errors import MissingExtraError, ModelError
from auscult.folders import file_digest
from auscult.metrics.embeddings import Backend, load_backend, logmel, panns, spectra, vggish, weight_files
from conftest import sound


def noise(seed: int, n: int, level: float = 0.1) -> np.ndarray:
    """White noise with a slow swell, so that stretches differ."""
    rng = np.random.default_rng(seed)
    swell = 1 + 0.8 * np.sin(2 * np.pi * np.arange(n) / (5000 + 700 * seed))
    return (level * swell * rng.standard_normal(n)).astype(np.float32)


def spectra_by_definition(frames: np.ndarray, n_fft: int) -> np.ndarray:
    """|DFT| of windowed frames, each bin by its own sum."""
    window = scipy.signal.get_window("hann", frames.shape[1], fftbins=True)
    t, k = np.arange(frames.shape[1]), np.arange(n_fft // 2 + 1)
    return np.abs((frames.astype(np.float64) * window) @ np.exp(-2j * np.pi * np.outer(t, k) / n_fft))


def frames_by_loop(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    frames, start = [], 0
    while start + window <= len(samples):
        frames.append(samples[start : start + window])
        start += hop
    return np.array(frames)


def tensor(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """Random numbers of a shape, every row and column another stretch of few: files of the public shapes stay small."""
    strides = (5, 3, 2, 1)[: len(shape)] if len(shape) > 1 else (1,)
    needed = 1 + sum(stride * (length - 1) for stride, length in zip(strides, shape, strict=True))
    return (torch.randn(needed, generator=torch.Generator().manual_seed(seed)) * scale).as_strided(shape, strides)


# --- what all front ends share


def test_frames_are_counted_as_a_loop_counts_them() -> None:
    for n in (*range(12), 399, 400, 401, 559, 560, 561):
        for window, hop in ((1, 1), (4, 2), (5, 3), (400, 160)):
            assert spectra.count_frames(n, window, hop) == len(frames_by_loop(np.zeros(n), window, hop))


@pytest.mark.parametrize("magnitude", [True, False])
def test_bands_equal_sums_over_a_dft_by_definition(magnitude: bool) -> None:
    samples, bands = noise(1, 3000).astype(np.float64), np.random.default_rng(2).random((65, 7))
    expected = spectra_by_definition(frames_by_loop(samples, 100, 30), 128) ** (1 if magnitude else 2) @ bands
    got = spectra.band_sums(samples, bands, window=100, hop=30, n_fft=128, magnitude=magnitude)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_long_audio_is_worked_off_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(3, 40_000)
    whole = logmel.features(samples)
    monkeypatch.setattr(spectra, "_BLOCK", 7)
    np.testing.assert_allclose(logmel.features(samples), whole, atol=1e-5)


# --- logmel


def test_logmel_needs_nothing() -> None:
    backend = load_backend("logmel")
    assert (str(backend.spec), backend.dimension, backend.sample_rate_hz) == ("logmel/1()", 64, 16_000)
    assert (backend.frechet, backend.classes, backend.shortest_samples) == ("fd", 0, 16_000)
    assert load_backend(backend.spec).spec == backend.spec
    embedded = backend.embed(sound(1, 5.0))
    assert embedded.frames.shape == (9, 64) and embedded.frames.dtype == np.float32 and embedded.logits is None


def test_logmel_frames_are_the_seconds_that_fit_every_half_second() -> None:
    for n, frames in ((16_000, 1), (23_999, 1), (24_000, 2), (31_999, 2), (80_000, 9)):
        assert logmel.features(noise(0, n)).shape == (frames, 64)


def test_logmel_equals_its_definition() -> None:
    samples = noise(4, 40_000)
    filters = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=32)
    window = scipy.signal.get_window("hann", 800, fftbins=True)
    expected = []
    for start in (0, 8000, 16_000, 24_000):
        power = spectra_by_definition(frames_by_loop(samples[start : start + 16_000], 800, 400), 800) ** 2 / np.sum(window**2)
        levels = np.log10(power @ (filters / filters.sum(axis=1, keepdims=True)).T + 1e-8)
        assert len(levels) == 39
        expected.append([*levels.mean(axis=0), *levels.std(axis=0)])
    np.testing.assert_allclose(logmel.features(samples), expected, atol=1e-5)  # float32 powers: 1e-6 of a bel


def test_logmel_of_silence_is_the_floor() -> None:
    features = logmel.features(np.zeros(20_000, np.float32))
    assert (features[:, :32] == -8).all() and (features[:, 32:] == 0).all()
    soft = logmel.features(np.full(20_000, 1e-30, np.float32))
    np.testing.assert_allclose(soft, features, atol=1e-6)


def test_logmel_reads_the_level_of_noise() -> None:
    steady = (0.1 * np.random.default_rng(5).standard_normal(160_000)).astype(np.float32)
    means = logmel.features(steady)[:, :32].mean(axis=0)
    # the mean of the logarithm of few bins' power is below the logarithm of the mean, by up to 0.25 bel where it is one bin
    assert ((means > -2.3) & (means < -1.98)).all()
    louder = logmel.features(steady * np.float32(10**0.3))[:, :32].mean(axis=0)
    np.testing.assert_allclose(louder - means, 0.6, atol=1e-4)


def test_logmel_tells_steady_from_restless() -> None:
    t = np.arange(80_000) / 16_000
    steady = 0.1 * np.random.default_rng(6).standard_normal(80_000)
    pulsed = steady * (0.05 + (np.sin(2 * np.pi * 4 * t) > 0))
    quiet, restless = (logmel.features(x.astype(np.float32))[:, 32:].mean() for x in (steady, pulsed))
    assert restless > 3 * quiet


def test_logmel_hears_only_the_second_of_the_frame() -> None:
    samples, other = noise(7, 40_000), noise(7, 40_000)
    other[16_000:] = noise(8, 24_000)
    a, b = logmel.features(samples), logmel.features(other)
    np.testing.assert_array_equal(a[0], b[0])
    assert (np.abs(a[1:] - b[1:]).max(axis=1) > 0.1).all()


def test_logmel_takes_no_weights_and_no_settings() -> None:
    with pytest.raises(ValueError, match=r"has no weights and no settings, got 'model.pth'"):
        load_backend("logmel:model.pth")
    with pytest.raises(ValueError, match=r"no settings, got 'bands'"):
        logmel.load("logmel", None, "cpu", bands=3)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians, written out: |m - n|^2 + tr(A + B - 2 (A B)^1/2)."""
    first, second = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * roots)


def test_logmel_orders_what_is_done_to_recordings(esc10: Path) -> None:
    # folds 1 and 2 have the same classes; a set of other classes would be far already
    paths = [sorted((esc10 / "audio").glob(f"{fold}-*.ogg")) for fold in (1, 2)]
    halves = [[soxr.resample(*sf.read(path, stop=100_000, dtype="float32"), 16_000) for path in half] for half in paths]
    reference = np.concatenate([logmel.features(clip) for clip in halves[0]]).astype(np.float64)

    def distance(change: Callable[[np.ndarray], np.ndarray]) -> float:
        features = [logmel.features(np.asarray(change(clip), np.float32)) for clip in halves[1]]
        return frechet(np.concatenate(features).astype(np.float64), reference)

    hiss = np.random.default_rng(9).standard_normal(40_000).astype(np.float32)

    def hissing(snr_db: float) -> float:
        return distance(lambda clip: clip + hiss[: len(clip)] * np.sqrt(np.mean(clip**2)) * 10 ** (-snr_db / 20))

    floor = distance(lambda clip: clip)
    noises = [hissing(snr_db) for snr_db in (40, 30, 20, 10, 0)]
    muffles = [
        distance(lambda clip, f=f: scipy.signal.sosfilt(scipy.signal.butter(6, f, fs=16_000, output="sos"), clip))
        for f in (4000, 1000)
    ]
    levels = [distance(lambda clip, g=g: clip * 10 ** (g / 20)) for g in (-6, -24)]
    for rising in (noises, muffles, levels):
        assert all(a < b for a, b in zip([floor, *rising], rising, strict=False))
    white, silence = distance(lambda clip: 0.1 * hiss[: len(clip)]), distance(lambda clip: 0 * clip)
    assert min(white, silence) > max(50 * floor, noises[-1])
    assert silence < 10 * noises[-1]  # far, but on the scale of the others


# --- files of weights


@pytest.mark.parametrize("name", ["vggish", "panns"])
def test_without_a_file_the_message_says_which_is_meant(name: str, tmp_path: Path) -> None:
    file = {"vggish": "vggish-10086976.pth", "panns": r"Cnn14_mAP=0\.431\.pth"}[name]
    with pytest.raises(ModelError, match=rf"needs the weights of .*{file}.*; give it as {name}:FILE"):
        load_backend(name)
    with pytest.raises(ModelError, match=rf"nowhere.pth: no such file.*{file}.*; give it as {name}:FILE"):
        load_backend(f"{name}:{tmp_path / 'nowhere.pth'}")


@pytest.mark.parametrize("name", ["vggish", "panns"])
def test_what_is_no_file_of_weights_is_refused(name: str, tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("not found")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "training.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "code.pth")  # pickled objects would run code
    with pytest.raises(ModelError, match=r"text.pth: holds no weights that can be read"):
        load_backend(f"{name}:{text}")
    with pytest.raises(ModelError, match=r"list.pth: .*got a list"):
        load_backend(f"{name}:{tmp_path / 'list.pth'}")
    with pytest.raises(ModelError, match=r"training.pth: .*got a dict with the keys 'epoch'"):
        load_backend(f"{name}:{tmp_path / 'training.pth'}")
    with pytest.raises(ModelError, match=r"code.pth: holds no weights that can be read"):
        load_backend(f"{name}:{tmp_path / 'code.pth'}")


@pytest.mark.parametrize("name", ["vggish", "panns"])
def test_without_torch_the_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=rf"the backend '{name}' needs .*auscult\[models\]"):
        load_backend(f"{name}:{tmp_path / 'any.pth'}")
    assert load_backend("logmel").embed(noise(0, 16_000)).frames.shape == (1, 64)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.randn(3, 2), "b": torch.ones(4)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = weight_files.read_weights("vggish", str(tmp_path / "x.safetensors"), "weights")
    assert all(torch.equal(file.tensors[key], value) for key, value in tensors.items()) and len(file.tensors) == 2
    assert file.digest == file_digest(tmp_path / "x.safetensors")


def test_arrays_that_an_old_numpy_left_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    content = {"iteration": 3, "model": {"a": torch.ones(3)}, "sampler": {"indexes": np.arange(4), "pointer": 7}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert torch.equal(weight_files.read_weights("panns", str(path), "weights").tensors["a"], torch.ones(3))


def test_an_array_in_place_of_a_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": np.ones(3, np.float32)}, tmp_path / "x.pth")
    file = weight_files.read_weights("vggish", str(tmp_path / "x.pth"), "weights")
    with pytest.raises(ModelError, match=r"'b' should be a tensor, is a ndarray \(save it as torch.from_numpy"):
        weight_files.check_tensors(file, {"a": (2,), "b": (3,)}, "weights", ignored=lambda key: False)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    def check(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.save(tensors, tmp_path / "x.pth")
        file = weight_files.read_weights("panns", str(tmp_path / "x.pth"), "what is meant")
        return weight_files.check_tensors(file, {"a": (2,), "b": (3, 1)}, "what is meant", ignored="more".__eq__)

    a, b = torch.ones(2), torch.ones(3, 1)
    assert set(check(a=a, b=b, more=a)) == {"a", "b"}
    assert check(a=a.half(), b=b)["a"].dtype == torch.float32
    for wrong, message in (
        ({"b": b}, "'a' is missing"),
        ({"a": a, "b": b, "c": a}, "'c' is in it, which this network does not have"),
        ({"a": a, "b": b.T}, r"'b' should have the shape \(3, 1\), has \(1, 3\)"),
        ({"a": a * torch.nan, "b": b}, "'a' has values that are not finite"),
    ):
        with pytest.raises(ModelError, match=rf"x.pth: {message}"):
            check(**wrong)


# --- VGGish


class PublicVggish(nn.Module):
    """The network as torch's own modules, with the names that the public file has."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(12_288, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
        )

    def before_the_last_relu(self, patches: torch.Tensor) -> torch.Tensor:
        maps = self.features(patches)  # (n, 512, 6, 4); the first linear wants time, then band, then channel
        flat = torch.stack([maps[:, :, time, band] for time in range(6) for band in range(4)], dim=1).reshape(len(maps), -1)
        return self.embeddings[:-1](flat)


def as_public(module: nn.Module, **fixed: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state dict of a module, of random numbers that keep activations in range."""
    state = {}
    for seed, (key, value) in enumerate(module.state_dict().items()):
        shape = tuple(value.shape)
        if key in fixed:
            state[key] = fixed[key]
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif len(shape) > 1:
            state[key] = tensor(seed, shape, math.sqrt(2 / math.prod(shape[1:])))
        elif key.endswith("running_var"):
            state[key] = 0.5 + tensor(seed, shape).abs()
        elif "bn" in key and key.endswith("weight"):
            state[key] = 1 + 0.1 * tensor(seed, shape)
        else:
            state[key] = 0.1 * tensor(seed, shape)
    return state


@pytest.fixture(scope="module")
def vggish_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        module = PublicVggish()
    path = tmp_path_factory.mktemp("vggish") / "weights.pth"
    torch.save({**as_public(module), "pproc.pca_eigen_vectors": torch.ones(128, 128)}, path)
    return path


@pytest.fixture(scope="module")
def vggish_backend(vggish_file: Path) -> Backend:
    return load_backend(f"vggish:{vggish_file}")


def test_vggish_has_the_names_and_shapes_of_the_public_file() -> None:
    with torch.device("meta"):
        public = {key: tuple(value.shape) for key, value in PublicVggish().state_dict().items()}
    assert vggish.shapes() == public
    assert list(public)[::2] == [f"features.{n}.weight" for n in (0, 3, 6, 8, 11, 13)] + [
        f"embeddings.{n}.weight" for n in (0, 2, 4)
    ]


def test_vggish_counts_examples_as_a_loop_does() -> None:
    # k examples need 400 + (96 k - 1) 160 samples: 15,600, then 15,360 more each
    edges = (0, 1, 399, 400, 15_599, 15_600, 15_601, 30_959, 30_960, 46_319, 46_320, 80_000, 160_000, 163_840)
    for n in edges:
        frames = len(frames_by_loop(np.zeros(n), 400, 160))
        assert vggish.count_examples(n) == len(frames_by_loop(np.zeros(frames), 96, 96))
    assert [vggish.count_examples(n) for n in edges[4:11]] == [0, 1, 1, 1, 2, 2, 3]
    assert vggish.SHORTEST == 15_600


@pytest.mark.slow
def test_vggish_bands_are_triangles_over_mel() -> None:
    bands = vggish.mel_bands()
    peer = mel_filter_bank(257, 64, 125.0, 7500.0, 16_000, mel_scale="htk", triangularize_in_mel_space=True)
    np.testing.assert_allclose(bands, peer, atol=1e-9)
    assert bands.shape == (257, 64) and (bands[0] == 0).all()
    over_hz = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None).T
    assert np.abs(bands - over_hz).max() > 1e-3  # what most libraries have is something else


def test_vggish_examples_equal_their_definition() -> None:
    samples = noise(10, 33_333)
    frames = frames_by_loop(samples, 400, 160)[: 2 * 96]
    bands = mel_filter_bank(257, 64, 125.0, 7500.0, 16_000, mel_scale="htk", triangularize_in_mel_space=True)
    expected = np.log(spectra_by_definition(frames, 512) @ bands + 0.01).reshape(2, 96, 64)
    np.testing.assert_allclose(vggish.examples(samples), expected, atol=1e-6)


def test_vggish_drops_the_remainder() -> None:
    samples = noise(11, 46_319)
    np.testing.assert_array_equal(vggish.examples(samples), vggish.examples(samples[:30_960]))


def test_vggish_of_silence_is_the_offset() -> None:
    np.testing.assert_array_equal(vggish.examples(np.zeros(15_600, np.float32)), np.float32(np.log(0.01)))


def test_vggish_equals_torchs_own_modules(vggish_file: Path, vggish_backend: Backend) -> None:
    with torch.device("meta"):
        module = PublicVggish()
    state = torch.load(vggish_file, weights_only=True)
    del state["pproc.pca_eigen_vectors"]
    module.load_state_dict(state, assign=True)
    samples = noise(12, 31_000)
    with torch.inference_mode():
        expected = module.before_the_last_relu(torch.from_numpy(vggish.examples(samples))[:, None]).numpy()
    got = vggish_backend.embed(samples)
    np.testing.assert_allclose(got.frames, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert got.frames.shape == (2, 128) and got.frames.dtype == np.float32 and got.logits is None
    assert (got.frames < 0).any()  # the last ReLU is not in it
    assert np.abs(got.frames[0] - got.frames[1]).max() > 0.01 * np.abs(expected).max()


def test_vggish_says_what_it_is(vggish_file: Path, vggish_backend: Backend) -> None:
    assert load_backend(vggish_backend.spec).spec == vggish_backend.spec
    assert vggish_backend.spec.name == "vggish"
    assert dict(vggish_backend.spec.parameters) == {"weights": str(vggish_file), "digest": file_digest(vggish_file)}
    assert (vggish_backend.dimension, vggish_backend.sample_rate_hz, vggish_backend.shortest_samples) == (128, 16_000, 15_600)
    assert (vggish_backend.frechet, vggish_backend.classes) == ("fad", 0)


def test_vggish_clips_do_not_meet(vggish_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = noise(13, 47_000), noise(14, 16_000)
    once = vggish_backend.embed(first).frames
    other = vggish_backend.embed(second).frames
    torch.manual_seed(5)
    np.testing.assert_array_equal(vggish_backend.embed(first).frames, once)
    np.testing.assert_array_equal(vggish_backend.embed(second).frames, other)
    monkeypatch.setattr(vggish, "BATCH", 1)
    np.testing.assert_allclose(vggish_backend.embed(first).frames, once, atol=1e-5 * np.abs(once).max())
    assert np.isfinite(vggish_backend.embed(np.zeros(15_600, np.float32)).frames).all()


def test_vggish_refuses_other_audio_files_and_settings(vggish_file: Path, vggish_backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 15600 samples \(0.975 s at 16000 Hz\), got 15599"):
        vggish_backend.embed(noise(0, 15_599))
    with pytest.raises(ValueError, match=r"shape \(time,\), mono, got \(2, 16000\)"):
        vggish_backend.embed(np.zeros((2, 16_000), np.float32))
    with pytest.raises(ValueError, match="no settings, got pca"):
        vggish.load("vggish", str(vggish_file), "cpu", pca=1)
    state = torch.load(vggish_file, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "features.8.bias"}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x.pth: 'features.8.bias' is missing; expected the weights of VGGish"):
        load_backend(f"vggish:{tmp_path / 'x.pth'}")


# --- PANNs


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


BLOCKS = ((1, 1, 64), (2, 64, 128), (3, 128, 256), (4, 256, 512), (5, 512, 1024), (6, 1024, 2048))


class PublicCnn14(nn.Module):
    """The network as torch's own modules, with the names that the public files have: its transform is a convolution."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.window, bins = window, window // 2 + 1
        self.spectrogram_extractor = nn.Module()
        self.spectrogram_extractor.stft = nn.Module()
        for part in ("conv_real", "conv_imag"):
            setattr(self.spectrogram_extractor.stft, part, nn.Conv1d(1, bins, window, stride=hop, bias=False))
        self.logmel_extractor = nn.Module()
        self.logmel_extractor.melW = nn.Parameter(torch.empty(bins, 64))
        self.bn0 = nn.BatchNorm2d(64)
        for number, inputs, outputs in BLOCKS:
            setattr(self, f"conv_block{number}", Block(inputs, outputs))
        self.fc1, self.fc_audioset = nn.Linear(2048, 2048), nn.Linear(2048, 527)

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        mirrored = nn.functional.pad(samples[None, None], (self.window // 2,) * 2, mode="reflect")
        stft = self.spectrogram_extractor.stft
        power = stft.conv_real(mirrored) ** 2 + stft.conv_imag(mirrored) ** 2
        return 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ self.logmel_extractor.melW, min=1e-10))

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.bn0(self.log_mel(samples)[:, None].transpose(1, 3)).transpose(1, 3)
        for number in range(1, 6):
            x = nn.functional.avg_pool2d(getattr(self, f"conv_block{number}")(x), kernel_size=(2, 2))
        x = torch.mean(self.conv_block6(x), dim=3)
        x = torch.relu(self.fc1(torch.max(x, dim=2)[0] + torch.mean(x, dim=2)))
        return x, self.fc_audioset(x)


def public_cnn14(sample_rate_hz: int, window: int, hop: int, highest_hz: float) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        module = PublicCnn14(window, hop)
    t, k = np.arange(window), np.arange(window // 2 + 1)
    wave = scipy.signal.get_window("hann", window, fftbins=True) * np.exp(-2j * np.pi * np.outer(k, t) / window)
    mel = librosa.filters.mel(sr=sample_rate_hz, n_fft=window, n_mels=64, fmin=50, fmax=highest_hz).T
    fixed = {
        "spectrogram_extractor.stft.conv_real.weight": torch.from_numpy(wave.real[:, None].astype(np.float32)),
        "spectrogram_extractor.stft.conv_imag.weight": torch.from_numpy(wave.imag[:, None].astype(np.float32)),
        "logmel_extractor.melW": torch.from_numpy(np.ascontiguousarray(mel)),
        "bn0.running_mean": torch.full((64,), -30.0),
        "bn0.running_var": torch.full((64,), 400.0),
    }
    return as_public(module, **fixed)


VERSIONS = {32_000: (1024, 320, 14_000.0), 16_000: (512, 160, 8000.0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A file of each version."""
    folder = tmp_path_factory.mktemp("panns")
    paths = {rate: folder / f"{rate}.pth" for rate in VERSIONS}
    for rate, path in paths.items():
        torch.save({"iteration": 10, "model": public_cnn14(rate, *VERSIONS[rate])}, path)
    return paths


@pytest.fixture(scope="module")
def cnn14(files: dict[int, Path]) -> Backend:
    return load_backend(f"panns:{files[16_000]}")


def test_panns_has_the_names_and_shapes_of_the_public_files() -> None:
    for front in panns.FRONT_ENDS:
        with torch.device("meta"):
            public = {key: tuple(value.shape) for key, value in PublicCnn14(front.window, front.hop).state_dict().items()}
        assert panns.shapes(front) == {key: shape for key, shape in public.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("rate", VERSIONS)
def test_panns_equals_torchs_own_modules(rate: int, files: dict[int, Path]) -> None:
    path, backend = files[rate], load_backend(f"panns:{files[rate]}")
    assert backend.sample_rate_hz == rate  # which the file tells
    assert dict(backend.spec.parameters) == {"weights": str(path), "digest": file_digest(path)}
    assert (backend.dimension, backend.classes, backend.frechet, backend.shortest_samples) == (2048, 527, "fd", 1)
    window, hop, _ = VERSIONS[rate]
    with torch.device("meta"):
        module = PublicCnn14(window, hop)
    module.load_state_dict(torch.load(path, weights_only=True)["model"], assign=True)
    samples = noise(15, 12_345 * hop // 160)
    with torch.inference_mode():
        heard = module.eval().log_mel(torch.from_numpy(samples))[0].numpy()
        expected, expected_logits = (part[0].numpy() for part in module(torch.from_numpy(samples)))
    mel = module.logmel_extractor.melW.detach().numpy().astype(np.float64)
    front = panns.FrontEnd(rate, window, hop)
    np.testing.assert_allclose(panns.log_mel(samples, front, mel), heard, atol=1e-2)  # dB; the modules compute in float32
    got = backend.embed(samples)
    assert got.logits is not None and got.frames.shape == (1, 2048) and got.logits.shape == (527,)
    assert got.frames.dtype == got.logits.dtype == np.float32
    np.testing.assert_allclose(got.frames[0], expected, atol=1e-3 * expected.max())
    np.testing.assert_allclose(got.logits, expected_logits, atol=1e-3 * np.abs(expected_logits).max())
    assert (got.frames >= 0).all() and 100 < (got.frames > 0).sum() < 2000  # after a ReLU


def test_panns_fills_short_clips_up(cnn14: Backend) -> None:
    backend, shortest = cnn14, 31 * 160  # 1 + floor(n / hop) is 32 from here
    short = noise(16, shortest - 1)
    filled = backend.embed(np.append(short, np.float32(0)))
    got = backend.embed(short)
    np.testing.assert_array_equal(got.frames, filled.frames)
    np.testing.assert_array_equal(got.logits, filled.logits)
    assert np.isfinite(backend.embed(short[:1]).frames).all()
    assert np.isfinite(backend.embed(np.zeros(shortest, np.float32)).frames).all()
    with pytest.raises(ValueError, match="panns needs at least 1 samples"):
        backend.embed(short[:0])


def test_panns_averages_long_clips_by_length(cnn14: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, rate = cnn14, 16_000
    monkeypatch.setattr(panns, "LONGEST_S", 1)
    samples = np.concatenate([noise(17, rate), noise(18, rate, 0.01), noise(19, rate // 2)])
    parts = [backend.embed(part) for part in np.split(samples, [rate, 2 * rate])]
    got = backend.embed(samples)
    for name in ("frames", "logits"):
        first, second, third = (getattr(part, name).astype(np.float64) for part in parts)
        expected = 0.4 * first + 0.4 * second + 0.2 * third
        np.testing.assert_allclose(getattr(got, name), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(backend.embed(samples[:rate]).frames, parts[0].frames)  # whatever came between


def test_panns_refuses_other_files(files: dict[int, Path], tmp_path: Path) -> None:
    state = torch.load(files[16_000], weights_only=True)["model"]
    real = "spectrogram_extractor.stft.conv_real.weight"
    for change, message in (
        ({"logmel_extractor.melW": None}, "'logmel_extractor.melW' is missing"),
        (
            {"logmel_extractor.melW": torch.ones(129, 64)},
            r"'logmel_extractor.melW' should have the shape \(513, 64\) at 32000",
        ),
        ({"conv_block3.bn1.running_var": None}, "'conv_block3.bn1.running_var' is missing"),
        ({"att_block.weight": torch.ones(1)}, "'att_block.weight' is in it, which this network does not have"),
        ({"fc_audioset.bias": torch.ones(10)}, r"'fc_audioset.bias' should have the shape \(527,\), has \(10,\)"),
        ({real: torch.zeros_like(state[real])}, f"'{real}' is not the transform of a Hann window, row 0"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save({"model": changed}, tmp_path / "x.pth")
        with pytest.raises(ModelError, match=rf"x.pth: {message}.*; expected the weights of Cnn14"):
            load_backend(f"panns:{tmp_path / 'x.pth'}")
