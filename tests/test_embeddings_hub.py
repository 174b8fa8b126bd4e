"""The backends of transformers' models, on tiny real models: built from configurations, saved, loaded as any other."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from auscult.descriptors import DescriptorSpec
from auscult.errors import MissingExtraError, ModelError
from auscult.metrics.embeddings import Backend, load_backend, speech
from auscult.metrics.embeddings import ast as ast_backend
from auscult.metrics.embeddings import clap as clap_backend
from auscult.metrics.embeddings import encodec as encodec_backend
from auscult.pretrained import clap as pretrained_clap
from conftest import sound
from tiny_models import save

RATE = {"clap": 48_000, "encodec": 24_000}
KINDS = {"clap": clap_backend.CLAP, "ast": ast_backend.AST, "encodec": encodec_backend.ENCODEC, **speech.KINDS}
WAVES = ("wav2vec2", "hubert", "wavlm")
NAMES = tuple(KINDS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(root / name, name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def backends(folders: Callable[[str], Path]) -> Callable[[str], Backend]:
    made: dict[str, Backend] = {}

    def backend(name: str) -> Backend:
        if name not in made:
            made[name] = load_backend(f"{name}:{folders(name)}")
        return made[name]

    return backend


def clip(name: str, seconds: float, number: int = 0) -> np.ndarray:
    rate = RATE.get(name, 16_000)
    return sound(number, seconds, rate).astype(np.float32)


def directly(name: str, folder: Path, samples: np.ndarray, layer: int | None = None) -> np.ndarray:
    """Frames of a clip that one window holds, from transformers' classes alone, as their documentation calls them."""
    t = transformers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = getattr(t, KINDS[name].extractor).from_pretrained(folder)
    inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        if name == "clap":
            frames = t.ClapModel.from_pretrained(folder).get_audio_features(**inputs).pooler_output
        elif name == "ast":
            frames = t.ASTModel.from_pretrained(folder)(**inputs).pooler_output
        elif name == "encodec":
            frames = t.EncodecModel.from_pretrained(folder).encoder(inputs["input_values"])[0].T
        elif name == "whisper":
            states = t.WhisperModel.from_pretrained(folder).encoder(**inputs, output_hidden_states=True)
            frames = (states.last_hidden_state if layer is None else states.hidden_states[layer])[0]
        else:
            states = getattr(t, KINDS[name].model).from_pretrained(folder)(**inputs, output_hidden_states=True)
            frames = (states.last_hidden_state if layer is None else states.hidden_states[layer])[0]
    return np.asarray(frames.numpy())


def apart(frames: np.ndarray) -> float:
    return float(np.linalg.norm(frames - frames.mean(axis=0), axis=1).mean() / np.linalg.norm(frames, axis=1).mean())


@pytest.mark.parametrize(
    ("name", "seconds"), [*((name, 0.9) for name in NAMES), ("clap", 10.0), ("ast", 10.24), ("wavlm", 3.3)]
)
def test_frames_are_those_of_transformers_own_classes(name, seconds, folders, backends) -> None:
    samples = clip(name, seconds, 3)
    expected = directly(name, folders(name), samples)
    frames = backends(name).embed(samples).frames
    assert (frames.dtype, frames.shape[1]) == (np.float32, backends(name).dimension)
    if name == "whisper":
        expected = expected[:45]  # 0.9 s of 50 states a second; the rest was padding
    assert frames.shape == expected.shape
    np.testing.assert_allclose(frames, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if len(frames) > 1:
        assert apart(frames) > 1e-2  # a thousand times the tolerance, so that equality means something


@pytest.mark.parametrize("name", NAMES)
def test_what_a_backend_says_of_itself(name, folders, backends) -> None:
    backend = backends(name)
    assert backend.sample_rate_hz == RATE.get(name, 16_000)
    assert backend.dimension == {"clap": 24, "encodec": 8}.get(name, 16)
    assert backend.frechet == ("fd" if name == "ast" else "fad")
    assert (backend.classes, backend.embed_texts is not None) == (5 if name == "ast" else 0, name == "clap")
    settings = dict(backend.spec.parameters)
    assert (backend.spec.name, settings["weights"]) == (name, str(folders(name).resolve()))
    assert len(settings["digest"]) == 32
    again = load_backend(backend.spec)  # from the spec alone
    samples = clip(name, 1.0)
    np.testing.assert_array_equal(again.embed(samples).frames, backend.embed(samples).frames)


@pytest.mark.parametrize("name", NAMES)
def test_the_shortest_clip_and_silence(name, backends) -> None:
    backend = backends(name)
    shortest = backend.shortest_samples
    assert shortest == {"ast": 400, **dict.fromkeys(WAVES, 400)}.get(name, 1)
    for samples in (np.zeros(shortest, np.float32), clip(name, 1.0)[:shortest], np.zeros(backend.sample_rate_hz, np.float32)):
        embedded = backend.embed(samples)
        assert len(embedded.frames) >= 1
        assert np.isfinite(embedded.frames).all()
        assert embedded.logits is None or np.isfinite(embedded.logits).all()
    with pytest.raises(ValueError, match=f"at least {shortest} samples"):
        backend.embed(np.zeros(shortest - 1, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_matters_none_is_touched_and_nothing_is_remembered(name, folders) -> None:
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        backend = load_backend(f"{name}:{folders(name)}")
        if seed == 2:
            backend.embed(clip(name, 1.7, 5))  # another clip before it
        results.append(backend.embed(clip(name, 2.1)))
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    np.testing.assert_array_equal(results[0].frames, results[1].frames)
    np.testing.assert_array_equal(results[0].logits, results[1].logits)


@pytest.mark.parametrize("name", NAMES)
def test_bad_samples(name, backends) -> None:
    embed = backends(name).embed
    with pytest.raises(ValueError, match="mono samples"):
        embed(np.zeros((2, 16_000), np.float32))
    with pytest.raises(ValueError, match="floating samples from -1 to 1, got int16"):
        embed(np.zeros(16_000, np.int16))  # type: ignore[arg-type]
    samples = clip(name, 0.5)
    samples[7] = np.nan
    with pytest.raises(ValueError, match="nan at sample 7"):
        embed(samples)


def _module(name: str) -> Any:
    return {"clap": pretrained_clap, "ast": ast_backend, "encodec": encodec_backend}.get(name, speech)


@pytest.mark.parametrize("name", ["clap", "ast", "encodec", "hubert", "whisper"])
def test_batches_change_nothing(name, folders, backends, monkeypatch) -> None:
    if name in WAVES or name == "encodec":
        monkeypatch.setattr(_module(name), "WINDOW_S", 1)
    seconds = {"clap": 15.0, "ast": 15.0}.get(name, 5.3)
    results = []
    for batch in (1, 3):
        monkeypatch.setattr(_module(name), "BATCH", batch)
        results.append(load_backend(f"{name}:{folders(name)}").embed(clip(name, seconds)))
    np.testing.assert_allclose(results[1].frames, results[0].frames, rtol=1e-4, atol=1e-5 * np.abs(results[0].frames).max())
    if name == "ast":
        np.testing.assert_allclose(results[1].logits, results[0].logits, atol=1e-4)


# --- windows and frames -------------------------------------------------------------------------------------------------------


def test_windows_of_clap_cover_a_clip(folders, backends) -> None:
    samples = clip("clap", 13.0)
    frames = backends("clap").embed(samples).frames
    assert frames.shape == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(frames, axis=1), 1.0, atol=1e-6)
    for row, start in enumerate((0, 3)):
        window = samples[start * 48_000 : (start + 10) * 48_000]
        expected = directly("clap", folders("clap"), window)
        np.testing.assert_allclose(frames[row : row + 1], expected, atol=1e-5)
    hopped = clap_backend.load("clap", str(folders("clap")), "cpu", hop_s=2.0)
    assert hopped.spec != backends("clap").spec
    overlapping = hopped.embed(samples).frames  # 0, 2, and 3, which ends at the end
    assert len(overlapping) == 3
    np.testing.assert_allclose(overlapping[[0, 2]], frames, atol=1e-5)
    for hop_s in (0.0, 10.1, -1.0):
        with pytest.raises(ValueError, match="hop_s should be"):
            clap_backend.load("clap", str(folders("clap")), "cpu", hop_s=hop_s)


def test_windows_of_ast_are_averaged_before_the_link(folders, backends) -> None:
    samples = clip("ast", 25.0)
    embedded = backends("ast").embed(samples)
    model = transformers.ASTForAudioClassification.from_pretrained(folders("ast"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = transformers.ASTFeatureExtractor.from_pretrained(folders("ast"))
    logits = []
    for row, start in enumerate((0, 163_840, 400_000 - 163_840)):
        window = samples[start : start + 163_840]
        with torch.inference_mode():
            logits.append(model(**extractor(window, sampling_rate=16_000, return_tensors="pt")).logits[0].numpy())
        np.testing.assert_allclose(embedded.frames[row], directly("ast", folders("ast"), window)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedded.logits, np.mean(logits, axis=0), rtol=1e-4, atol=1e-5)
    assert np.std(logits, axis=0).min() > 1e-4


def test_a_short_clip_of_ast_is_filled_up_in_the_filter_bank(backends) -> None:
    """Zeros after the clip are something else: in a filter bank, digital silence is far below zero."""
    samples = clip("ast", 1.0)
    short = backends("ast").embed(samples).logits
    padded = backends("ast").embed(np.pad(samples, (0, 15 * 1_000))).logits
    assert np.abs(short - padded).max() > 1e-3


def test_features_of_ast_say_whose_filter_bank_they_are_of(backends) -> None:
    """Features of both would stand side by side in the cache after somebody installed torchaudio."""
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=20)
    here = "numpy" if hasattr(extractor, "mel_filters") else "torchaudio"  # as the extractor itself decided
    spec = backends("ast").spec
    assert dict(spec.parameters)["filter_bank"] == here
    other = {"numpy": "torchaudio", "torchaudio": "numpy"}[here]
    moved = DescriptorSpec(
        spec.name, spec.version, tuple((key, other if key == "filter_bank" else text) for key, text in spec.parameters)
    )
    with pytest.raises(ModelError, match=rf"the filter bank of {other}, but the one that is there is {here}'s: .* torchaudio"):
        load_backend(moved)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 640, 24_000, 24_001])
def test_frames_of_encodec(samples: int, backends) -> None:
    assert len(backends("encodec").embed(clip("encodec", 2.0)[:samples]).frames) == -(-samples // 320)


@pytest.mark.parametrize("name", WAVES)
@pytest.mark.parametrize("samples", [400, 719, 720, 721, 1039, 1040, 16_000])
def test_frames_of_waves(name: str, samples: int, backends) -> None:
    assert len(backends(name).embed(clip(name, 2.0)[:samples]).frames) == (samples - 400) // 320 + 1


@pytest.mark.parametrize("samples", [1, 320, 321, 15_999, 16_000, 16_001, 16_320, 16_321, 40_000])
def test_frames_of_whisper_are_those_of_real_audio(samples: int, folders, backends) -> None:
    frames = backends("whisper").embed(clip("whisper", 3.0)[:samples]).frames
    assert len(frames) == -(-samples // 320)
    whole, rest = divmod(samples, 16_000)  # windows of this model have 1 s
    # transformers' own rule, from the mask that its extractor makes
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folders("whisper"))
    mask = extractor(np.ones(max(rest, 1), np.float32), sampling_rate=16_000, return_attention_mask=True).attention_mask
    lengths = transformers.WhisperModel.from_pretrained(folders("whisper"))._get_feat_extract_output_lengths
    assert len(frames) == 50 * whole + (int(lengths(mask.sum())) if rest else 0)


def test_windows_of_whisper_follow_each_other(folders, backends) -> None:
    samples = clip("whisper", 2.5)
    frames = backends("whisper").embed(samples).frames
    parts = [directly("whisper", folders("whisper"), samples[at : at + 16_000]) for at in (0, 16_000, 32_000)]
    np.testing.assert_allclose(frames, np.concatenate(parts)[:125], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WAVES)
def test_windows_of_waves(name, folders, backends, monkeypatch) -> None:
    """Each begins where its first frame does, and ends where its last one does; the last takes the rest."""
    samples = clip(name, 4.7)  # 75,200 samples: 234 frames, in windows of at most 100
    monkeypatch.setattr(speech, "WINDOW_S", 2)
    frames = load_backend(f"{name}:{folders(name)}").embed(samples).frames
    assert len(frames) == len(backends(name).embed(samples).frames) == 234
    level = ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)
    model = getattr(transformers, KINDS[name].model).from_pretrained(folders(name))
    for number, (start, end) in enumerate([(0, 25_040), (24_960, 50_000), (49_920, 75_200)]):
        with torch.inference_mode():
            expected = model(torch.from_numpy(level[None, start:end])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(frames[number * 78 : (number + 1) * 78], expected, rtol=1e-4, atol=1e-4)


def test_what_enters_the_transformer_differs_only_near_cuts(tmp_path: Path, monkeypatch) -> None:
    """In models that normalize each frame by itself, as the large ones do: so windows fit together to the frame."""
    settings = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    folder = save(tmp_path / "model", "hubert", **settings)
    samples = clip("hubert", 4.7)
    whole = speech.load("hubert", str(folder), "cpu", layer=0).embed(samples).frames
    monkeypatch.setattr(speech, "WINDOW_S", 2)
    cut = speech.load("hubert", str(folder), "cpu", layer=0).embed(samples).frames
    different = np.flatnonzero(np.abs(cut - whole).max(axis=1) > 1e-4 * np.abs(whole).max())
    # the embedding of positions sees four frames: two before, itself, one after
    assert set(different) <= {76, 77, 78, 79, 154, 155, 156, 157}
    assert {77, 78, 155, 156} & set(different)


def test_windows_of_encodec(folders, backends, monkeypatch) -> None:
    samples = clip("encodec", 4.7)  # 353 frames, in windows of at most 150: 118, 118, 117
    whole = backends("encodec").embed(samples).frames
    monkeypatch.setattr(encodec_backend, "WINDOW_S", 2)
    frames = load_backend(f"encodec:{folders('encodec')}").embed(samples).frames
    assert len(frames) == len(whole) == 353
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(whole).max()}
    np.testing.assert_allclose(frames[:117], whole[:117], **tolerance)  # causal: nothing of what comes later was known
    for first, end in ((118, 236), (236, 353)):
        expected = directly("encodec", folders("encodec"), samples[first * 320 : end * 320])
        np.testing.assert_allclose(frames[first:end], expected, **tolerance)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_levels_matter_only_if_the_extractor_says_so(do_normalize, folders, tmp_path: Path) -> None:
    name = "wav2vec2"
    folder = shutil.copytree(folders(name), tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": do_normalize}))
    backend, samples = load_backend(f"{name}:{folder}"), clip(name, 1.0)
    np.testing.assert_allclose(backend.embed(samples).frames, directly(name, folder, samples), rtol=1e-4, atol=1e-4)
    # Without it, the normalization over time after the first convolution still takes out most of the level
    quieter = np.abs(backend.embed(samples / 1000).frames - backend.embed(samples).frames).max()
    assert (quieter < 0.02) == do_normalize


@pytest.mark.parametrize("name", ["wavlm", "whisper"])
def test_layers(name, folders, backends) -> None:
    samples = clip(name, 0.7)
    last = backends(name).embed(samples).frames
    for layer in (0, 1, -1):
        backend = speech.load(name, str(folders(name)), "cpu", layer=layer)
        assert dict(backend.spec.parameters)["layer"] == (2 if layer == -1 else layer)
        frames = backend.embed(samples).frames
        expected = directly(name, folders(name), samples, None if layer == -1 else layer)[: len(frames)]
        np.testing.assert_allclose(frames, expected, rtol=1e-4, atol=1e-4)
        assert (np.abs(frames - last).max() > 1e-2) == (layer in (0, 1))
    for layer in (3, -2):
        with pytest.raises(ValueError, match="layer should be from 0 to 2"):
            speech.load(name, str(folders(name)), "cpu", layer=layer)


def test_states_of_a_layer_are_what_leaves_it(folders, backends) -> None:
    """Numbers of layers, from a hook rather than from the lists that the models return."""
    model = transformers.HubertModel.from_pretrained(folders("hubert"))
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folders("hubert"))
    seen: list[torch.Tensor] = []
    model.encoder.layers[0].register_forward_hook(lambda module, inputs, result: seen.append(result))
    samples = clip("hubert", 0.7)
    with torch.inference_mode():
        model(**extractor(samples, sampling_rate=16_000, return_tensors="pt"))
    first = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    frames = speech.load("hubert", str(folders("hubert")), "cpu", layer=1).embed(samples).frames
    np.testing.assert_allclose(frames, first[0].numpy(), rtol=1e-4, atol=1e-5)


# --- captions -----------------------------------------------------------------------------------------------------------------


def test_captions_lie_where_transformers_puts_them(folders, backends) -> None:
    captions = ["a dog", "rain on the roof", "a b"]
    vectors = backends("clap").embed_texts(captions)
    assert (vectors.shape, vectors.dtype) == ((3, 24), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    tokenizer = transformers.RobertaTokenizer.from_pretrained(folders("clap"))
    model = transformers.ClapModel.from_pretrained(folders("clap"))
    for row, caption in enumerate(captions):  # one by one: what is padded in a batch changes nothing
        with torch.inference_mode():
            tokens = tokenizer([caption], return_tensors="pt", truncation=True, max_length=14)
            expected = model.get_text_features(**tokens).pooler_output[0].numpy()
        np.testing.assert_allclose(vectors[row], expected / np.linalg.norm(expected), atol=1e-5)
    assert min(np.linalg.norm(vectors[0] - vectors[1]), np.linalg.norm(vectors[0] - vectors[2])) > 1e-2
    assert backends("clap").embed_texts([]).shape == (0, 24)


def test_long_captions_are_cut_and_empty_ones_refused(backends, monkeypatch) -> None:
    embed = backends("clap").embed_texts
    long = "abcdefghijkl" * 3  # a token a letter: 12 fit beside the two that mark the ends
    np.testing.assert_allclose(embed([long]), embed([long[:12]]), atol=1e-5)
    assert np.abs(embed([long[:12]]) - embed([long[:11]])).max() > 1e-3
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="in row 1; leave"):
            embed(["a dog", empty])
    with pytest.raises(ValueError, match="None in row 0"):
        embed([None])  # type: ignore[list-item]
    many = [f"{first} {second}" for first in "abcdef" for second in "ghijk"]
    expected = embed(many)
    monkeypatch.setattr(clap_backend, "TEXT_BATCH", 7)
    np.testing.assert_allclose(embed(many), expected, atol=1e-5)


def test_the_tokenizer_counts_and_may_be_missing_for_frames(folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("clap"), tmp_path / "model")
    tokenizer = folder / "tokenizer.json"
    before = load_backend(f"clap:{folder}").spec
    tokenizer.write_text(tokenizer.read_text().replace('"a":', '"ä":'))
    assert load_backend(f"clap:{folder}").spec != before
    for path in (tokenizer, folder / "vocab.json", folder / "merges.txt"):
        path.unlink(missing_ok=True)
    backend = load_backend(f"clap:{folder}")
    assert len(backend.embed(clip("clap", 1.0)).frames) == 1
    with pytest.raises(ModelError, match=r"no tokenizer\.json in it; save the model's ClapProcessor"):
        backend.embed_texts(["a dog"])


# --- weights that will not do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_lies_nowhere_or_is_another(name, folders, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder of a model here, and no name of a model on the hub such as"):
        load_backend(f"{name}:{tmp_path / 'missing'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json in it"):
        load_backend(f"{name}:{tmp_path / 'empty'}")
    other = "ast" if name == "clap" else "clap"
    with pytest.raises(
        ModelError, match=f"expected an? .* model, this is one of type '{'audio-s' if other == 'ast' else 'clap'}"
    ):
        load_backend(f"{name}:{folders(other)}")


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_lack_a_part_are_damaged_or_pickled(name, folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(name), tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    used = [key for key in weights if "encoder" in key and "decoder" not in key and "mask" not in key] or list(weights)
    save_file({key: value for key, value in weights.items() if key != used[0]}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack 1 of the .*, for example"):
        load_backend(f"{name}:{folder}")
    for key in (key for key in used if weights[key].is_floating_point()):
        weights[key] = torch.full_like(weights[key], torch.nan)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match="not finite; are its weights damaged"):
        load_backend(f"{name}:{folder}").embed(clip(name, 1.0))
    path.write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backend(f"{name}:{folder}")
    path.unlink()
    with pytest.raises(ModelError, match=r"there is no \*\.safetensors in it$"):
        load_backend(f"{name}:{folder}")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"\.bin files are pickles.*convert them once, .*save_pretrained\('FOLDER'\)"):
        load_backend(f"{name}:{folder}")


def test_the_vector_that_masks_in_training_may_be_missing(folders, backends, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("hubert"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    samples = clip("hubert", 1.0)
    np.testing.assert_array_equal(
        load_backend(f"hubert:{folder}").embed(samples).frames, backends("hubert").embed(samples).frames
    )


@pytest.mark.parametrize("name", ["encodec", "wav2vec2"])
def test_old_names_of_normalized_weights_are_understood(name, folders, backends, tmp_path: Path) -> None:
    """The public checkpoints were written when torch called the two halves of a normalized weight g and v."""
    folder = shutil.copytree(folders(name), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {}
    for key, value in weights.items():
        for new_end, old_end in ends.items():
            key = key.replace(new_end, old_end)
        old[key] = value
    assert old.keys() != weights.keys() or any(key.endswith("weight_g") for key in weights)
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    samples = clip(name, 0.5)
    np.testing.assert_array_equal(load_backend(f"{name}:{folder}").embed(samples).frames, backends(name).embed(samples).frames)


def test_models_that_a_backend_does_not_take(tmp_path: Path, folders) -> None:
    fused = save(tmp_path / "fused", "clap", enable_fusion=True, fusion_type="aff_2d")
    with pytest.raises(ModelError, match="feature fusion"):
        load_backend(f"clap:{fused}")
    for number, settings in enumerate(({"audio_channels": 2}, {"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01})):
        with pytest.raises(ModelError, match="is stereo, cuts clips or scales them"):
            load_backend(f"encodec:{save(tmp_path / f'encodec{number}', 'encodec', **settings)}")
    with pytest.raises(ModelError, match="has an adapter"):
        load_backend(f"wav2vec2:{save(tmp_path / 'adapter', 'wav2vec2', add_adapter=True, num_adapter_layers=1)}")
    for name, key, value in (("whisper", "chunk_length", 2), ("ast", "max_length", 512)):
        folder = shutil.copytree(folders(name), tmp_path / name)
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        with pytest.raises(ModelError, match="save both of one"):
            load_backend(f"{name}:{folder}")


def test_a_folder_that_changed_is_another_backend(tmp_path: Path, folders) -> None:
    folder = save(tmp_path / "model", "hubert", seed=1)
    spec = load_backend(f"hubert:{folder}").spec
    save(folder, "hubert", seed=2)
    with pytest.raises(ModelError, match="compute the features again"):
        load_backend(spec)
    with pytest.raises(ValueError, match="a revision is for names on the hub"):
        speech.load("hubert", str(folder), "cpu", revision="main")


def test_settings_that_a_backend_has_not(folders) -> None:
    spec = DescriptorSpec("hubert", 1, (("weights", str(folders("hubert"))), ("hop_s", 1.0)))
    with pytest.raises(ValueError, match="takes no such settings: hop_s; it has weights, revision, layer"):
        load_backend(spec)


def test_devices(folders, backends) -> None:
    with pytest.raises(ValueError, match="device should be"):
        load_backend(f"hubert:{folders('hubert')}", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' was asked for, but torch"):
            load_backend(f"hubert:{folders('hubert')}", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name, folders, backends) -> None:
    samples = clip(name, 35.0)
    here, there = backends(name).embed(samples), load_backend(f"{name}:{folders(name)}", device="cuda").embed(samples)
    np.testing.assert_allclose(there.frames, here.frames, rtol=1e-3, atol=1e-4 * np.abs(here.frames).max())


# --- the hub ------------------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, in which earlier downloads lie, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def downloaded(cache: Path, name: str, folder: Path, commit: str = COMMIT) -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_hub_is_pinned_to_its_commit(name, cache: Path, folders, backends) -> None:
    downloaded(cache, "someone/tiny", folders(name))
    backend = load_backend(f"{name}:someone/tiny")
    settings = dict(backend.spec.parameters)
    assert (settings["weights"], settings["revision"], "digest" in settings) == ("someone/tiny", COMMIT, False)
    samples = clip(name, 0.5)
    np.testing.assert_array_equal(backend.embed(samples).frames, backends(name).embed(samples).frames)
    if name == "clap":
        np.testing.assert_array_equal(backend.embed_texts(["a dog"]), backends(name).embed_texts(["a dog"]))


def test_a_spec_holds_to_its_commit_when_the_hub_moves_on(cache: Path, folders, tmp_path: Path) -> None:
    downloaded(cache, "someone/tiny", folders("hubert"))
    spec = load_backend("hubert:someone/tiny").spec
    other = COMMIT[::-1]
    downloaded(cache, "someone/tiny", save(tmp_path / "other", "hubert", seed=3), other)
    assert dict(load_backend("hubert:someone/tiny").spec.parameters)["revision"] == other
    samples = clip("hubert", 0.5)
    then, first = load_backend(spec), load_backend(f"hubert:someone/tiny@{COMMIT}")
    assert then.spec == spec == first.spec
    now = load_backend("hubert:someone/tiny")
    assert np.abs(then.embed(samples).frames - now.embed(samples).frames).max() > 1e-2
    with pytest.raises(ValueError, match="given twice"):
        speech.load("hubert", f"someone/tiny@{COMMIT}", "cpu", revision=other)


@pytest.mark.parametrize("name", NAMES)
def test_pickled_weights_on_the_hub(name, cache: Path, folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(name), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    downloaded(cache, "someone/tiny", folder)
    with pytest.raises(ModelError, match=r"convert them once, .*; or look at .* and give someone/tiny@refs/pr/ITS_NUMBER$"):
        load_backend(f"{name}:someone/tiny")


def test_the_command_that_converts_pickles_makes_a_folder_that_loads(folders, backends, tmp_path: Path) -> None:
    """The folder's weights as a pickle, and the command of the message."""
    folder = shutil.copytree(folders("clap"), tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        load_backend(f"clap:{folder}")
    code = str(caught.value).split('python -c "')[1].split('"')[0].replace("FOLDER", str(tmp_path / "converted"))
    exec(code, {})
    backend = load_backend(f"clap:{tmp_path / 'converted'}")
    samples = clip("clap", 1.0)
    np.testing.assert_array_equal(backend.embed(samples).frames, backends("clap").embed(samples).frames)
    np.testing.assert_array_equal(backend.embed_texts(["a dog"]), backends("clap").embed_texts(["a dog"]))


DEFAULTS = {
    "clap": "laion/clap-htsat-unfused",
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "encodec": "facebook/encodec_24khz",
    "wav2vec2": "facebook/wav2vec2-base",
    "hubert": "facebook/hubert-base-ls960",
    "wavlm": "microsoft/wavlm-base",
    "whisper": "openai/whisper-small",
}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_it_says_what_to_give(name, cache: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded .*give the name of an? .* on the Hugging Face hub") as caught:
        load_backend(name)  # the default, which is not in the cache
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{DEFAULTS[name]}: ")


# --- imports ------------------------------------------------------------------------------------------------------------------


def test_importing_the_modules_is_light() -> None:
    modules = ", ".join(f"auscult.metrics.embeddings.{name}" for name in ("clap", "ast", "encodec", "speech", "hub"))
    code = f"import sys, {modules}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_without_transformers_it_says_what_to_install(name, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders(name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=rf"the {name} backend needs .*auscult\[models\]"):
        load_backend(f"{name}:{folder}")
