"""The clap descriptor on a tiny real model: built from a configuration, saved, and loaded through the code that loads any."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from auscult.corpus import open_corpus
from auscult.descriptors import DescriptorSpec, load_descriptor, on_device
from auscult.descriptors.clap import WINDOW_SAMPLES, ClapDescriptor, folder_digest
from auscult.devices import float32_products
from auscult.engine import Engine
from auscult.errors import MissingExtraError, ModelError
from auscult.indexing import index
from auscult.pretrained import log_mel
from conftest import sound

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
AUDIO = {
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_classes": 4,
}


def save_model(folder: Path, seed: int, **audio: object) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClapModel(ClapConfig(text_config=TEXT, audio_config={**AUDIO, **audio}, projection_dim=24)).eval()
        with torch.no_grad():  # as initialized, the model gives nearly one vector for everything
            for parameter in model.audio_projection.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(folder)
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "it's, a (model)", 0)


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.stack([sound(number, 10.0, 48_000) for number in range(9)]).astype(np.float32)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A recording of 25 s, one of 3 s, and a silent one."""
    folder = tmp_path / "in"
    folder.mkdir()
    sf.write(folder / "long.wav", np.concatenate([sound(number, 5.0, 48_000) for number in range(5)]), 48_000)
    sf.write(folder / "short.wav", sound(7, 3.0, 48_000), 48_000)
    sf.write(folder / "silent.wav", np.zeros(48_000), 48_000)
    return folder


def directly(model: Path, clip: np.ndarray) -> np.ndarray:
    """The vector of one clip, from transformers' classes alone."""
    extractor = ClapFeatureExtractor.from_pretrained(model)
    features = extractor(clip, sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        result = ClapModel.from_pretrained(model).get_audio_features(**features).pooler_output[0].numpy()
    return np.asarray(result / np.linalg.norm(result))


def test_shape_norm_and_batches(model: Path, windows: np.ndarray) -> None:
    descriptor = ClapDescriptor(str(model))
    assert (descriptor.sample_rate_hz, descriptor.window_samples, descriptor.dimension) == (48_000, 480_000, 24)
    vectors = descriptor.describe(windows)
    assert (vectors.shape, vectors.dtype) == ((9, 24), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    single = np.concatenate([descriptor.describe(window[None]) for window in windows])
    np.testing.assert_allclose(single, vectors, atol=1e-5)  # sums of float32 in another order
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=2) + 2 * np.eye(9)
    assert distance.min() > 1e-3  # so the tolerances here are tight: sounds lie a hundred times further apart
    assert descriptor.describe(windows[:0]).shape == (0, 24)


def test_equals_transformers_own_classes(model: Path, windows: np.ndarray) -> None:
    clip = windows[2]
    np.testing.assert_allclose(ClapDescriptor(str(model)).describe(clip[None])[0], directly(model, clip), atol=1e-5)


@pytest.mark.parametrize("seconds", [0.3, 3.1, 7.0])
def test_a_padded_window_is_described_as_the_extractor_does_the_clip(model: Path, seconds: float) -> None:
    clip = sound(4, seconds, 48_000).astype(np.float32)
    clip[-1] = 0.01
    window = np.pad(clip, (0, WINDOW_SAMPLES - len(clip)))
    np.testing.assert_allclose(ClapDescriptor(str(model)).describe(window[None])[0], directly(model, clip), atol=1e-5)


def test_a_device_changes_neither_spec_nor_values(model: Path, windows: np.ndarray) -> None:
    descriptor = ClapDescriptor(str(model))
    there = on_device(descriptor, "cpu")
    assert (there.device, there.spec) == ("cpu", descriptor.spec)
    assert on_device(there, "cpu") is there  # and its model is not loaded again
    np.testing.assert_array_equal(there.describe(windows[:2]), ClapDescriptor(str(model), device="cpu").describe(windows[:2]))
    mel = load_descriptor("mel")
    assert on_device(mel, "cuda") is mel
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' was asked for, but torch"):
            on_device(descriptor, "cuda").describe(windows[:1])


@pytest.mark.parametrize("seconds", [0.3, 3.1, 7.0, 10.0])
def test_the_spectrogram_of_devices_is_the_extractors(model: Path, windows: np.ndarray, seconds: float) -> None:
    loaded = ClapDescriptor(str(model), device="cpu")._loaded
    clips = [window[: round(seconds * 48_000)] for window in windows[:3]]
    here, there = loaded.extracted(clips), log_mel(clips, loaded.extractor, torch.device("cpu")).numpy()
    assert there.shape == here.shape
    np.testing.assert_allclose(there, here, atol=1e-4)  # dB; the extractor rounds its spectrum to complex64


def test_tf32_is_not_taken_and_settings_are_left_as_they_were() -> None:
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    for tf32, name in ((True, "tf32"), (False, "ieee")):
        with float32_products(tf32=tf32):
            assert [setting.fp32_precision for setting in settings] == [name, name]
        assert [setting.fp32_precision for setting in settings] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(model: Path, windows: np.ndarray) -> None:
    here, there = (ClapDescriptor(str(model), device=name).describe(windows) for name in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_no_seed_matters_and_none_is_touched(model: Path, windows: np.ndarray) -> None:
    vectors = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        descriptor = ClapDescriptor(str(model))
        vectors += [descriptor.describe(windows[:2]), descriptor.describe(windows[:2])]
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    for other in vectors[1:]:
        np.testing.assert_array_equal(other, vectors[0])


def test_a_long_file_is_covered_and_a_stopped_index_is_continued(model: Path, corpus: Path, tmp_path: Path) -> None:
    descriptor = load_descriptor("clap", model=str(model))
    first = index(open_corpus(corpus), tmp_path / "store", descriptor=descriptor, engine=Engine(workers=1))
    loaded = first.load()
    by_clip = {name: loaded.start_s[loaded.clip == row].tolist() for row, name in enumerate(loaded.clip_ids)}
    assert by_clip == {"long.wav": [0.0, 10.0, 15.0], "short.wav": [0.0], "silent.wav": []}
    assert first.spec == descriptor.spec
    (tmp_path / "store" / "card.json").unlink()  # as after a kill
    sf.write(corpus / "new.wav", sound(9, 2.0, 48_000), 48_000)
    # from the store's spec, as a worker loads it
    again = index(open_corpus(corpus), tmp_path / "store", descriptor=load_descriptor(first.spec)).load()
    assert sorted(again.clip_ids) == ["long.wav", "new.wav", "short.wav", "silent.wav"]
    long = again.clip_ids.tolist().index("long.wav")
    np.testing.assert_array_equal(again.vectors[again.clip == long], loaded.vectors[:3])


def test_specs_of_local_models(model: Path, tmp_path: Path) -> None:
    spec = load_descriptor(f"clap/1(model={str(model)!r})").spec
    assert DescriptorSpec.parse(str(spec)) == spec
    assert load_descriptor(str(spec)).spec == spec
    other = save_model(tmp_path / "other", 1)
    assert folder_digest(other) != folder_digest(model) == dict(spec.parameters)["digest"]
    assert str(ClapDescriptor().spec) == "clap/1(model='laion/clap-htsat-unfused')"  # and nothing was loaded


def test_a_model_that_changed_is_refused(tmp_path: Path, windows: np.ndarray) -> None:
    folder = save_model(tmp_path / "model", 1)
    spec = ClapDescriptor(str(folder)).spec
    save_model(folder, 2)
    with pytest.raises(ModelError, match="have changed"):
        load_descriptor(spec).describe(windows[:1])


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text() | st.integers() | st.floats(allow_nan=False)))
)
def test_any_spec_parses_back(parameters: list[tuple[str, float | int | str]]) -> None:
    spec = DescriptorSpec("clap", 1, tuple(parameters))
    assert DescriptorSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["clap/1(model='a)", "clap/1(model=a b)", "clap/1(=1)", "clap/1(model='a'b'c')", "clap"])
def test_what_is_no_spec(text: str) -> None:
    with pytest.raises(ValueError, match="expected a descriptor spec"):
        DescriptorSpec.parse(text)


def test_bad_windows_and_settings(model: Path) -> None:
    descriptor = ClapDescriptor(str(model))
    with pytest.raises(ValueError, match="480000"):
        descriptor.describe(np.zeros((1, 1000), np.float32))
    with pytest.raises(ValueError, match="pure silence"):
        descriptor.describe(np.zeros((1, WINDOW_SAMPLES), np.float32))
    with pytest.raises(ValueError, match="duration is a setting of mel only"):
        load_descriptor("clap", duration_s=5.0)
    with pytest.raises(ValueError, match="device should be"):
        _ = ClapDescriptor(str(model), device="abacus").dimension
    with pytest.raises(ValueError, match="given twice"):
        load_descriptor(f"clap/1(model={str(model)!r})", model="x")


def test_models_that_are_none(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder of a model here"):
        ClapDescriptor(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        ClapDescriptor(str(tmp_path / "empty"))
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        _ = ClapDescriptor(str(broken)).dimension
    fused = save_model(tmp_path / "fused", 0, enable_fusion=True, fusion_type="aff_2d")
    with pytest.raises(ModelError, match="feature fusion"):
        _ = ClapDescriptor(str(fused)).dimension
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="one of type 'bert'"):
        _ = ClapDescriptor(str(other)).dimension


def test_weights_that_lack_a_part_are_refused(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    removed = next(key for key in weights if key.startswith("audio_model."))
    save_file({k: v for k, v in weights.items() if k != removed}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 of the audio encoder's"):
        _ = ClapDescriptor(str(folder)).dimension


def test_without_torch_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"auscult\[models\]") as caught:
        _ = ClapDescriptor(str(model)).dimension
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # a worker can send it


@pytest.mark.parametrize(("name", "message"), [("nobody/nothing", "cannot be loaded"), ("./nothing", "no folder of a model")])
def test_the_command_line_shows_no_trace(name: str, message: str, corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "auscult", "index", str(corpus), "-o", "out", "--descriptor", f"clap/1(model={name!r})"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert (result.returncode, message in result.stderr, "Traceback" in result.stderr) == (2, True, False), result.stderr
