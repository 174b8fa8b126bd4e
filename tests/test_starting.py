"""``[start] from``: every kind of model is known and trained on; one that is read otherwise than it was trained is stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch

import original_tango
import tiny_pipelines
from auscult.corpus import open_corpus
from auscult.errors import GateError, ModelError
from auscult.generation.conditioning import Conditions
from auscult.generation.datastore import DatastoreConfig, build_datastore
from auscult.generation.denoiser import DenoiserConfig, build, predict
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline, scheduler
from auscult.generation.preparing import prepare
from auscult.generation.starting import load_start, start_kind
from auscult.generation.starting_checks import compare_heads, prediction_gate, read_both_ways
from auscult.generation.training import train
from auscult.generation.training_config import load_train_config
from auscult.generation.warmstart import brought_by
from tiny_encoders import save_t5

RATE = 16_000
EPSILON = ("objective.prediction=epsilon",)
TINY_MEL = ("mel.n_fft=64", "mel.hop_length=20", "mel.n_mels=8")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    _, _, tango = original_tango.save(root)
    kinds = ("AudioLDMPipeline", "AudioLDM2Pipeline", "RetrievalAugmentedAudioPipeline", "StableAudioPipeline")
    return {"TANGO": tango, **{kind: tiny_pipelines.save(root / kind, kind) for kind in kinds}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = ["path,caption"]
    for number in range(6):
        wave = 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * np.arange(RATE // 2) / RATE)
        wave += 0.05 * np.random.default_rng(number).standard_normal(len(wave))
        sf.write(folder / f"{number}.wav", wave, RATE)
        lines.append(f"{number}.wav,sound {'abcdef'[number]}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def config(source: Path | str, *settings: str, corpus: Path | str = "none.csv") -> Any:
    given = (f"start.from={source}", f"data.train={corpus}", *settings)
    return load_train_config(None, preset="tiny-cpu", settings=given)


@pytest.mark.parametrize(
    ("kind", "settings", "family"),
    [
        ("AudioLDMPipeline", (*EPSILON, *TINY_MEL), "retrieval"),
        ("AudioLDM2Pipeline", (*EPSILON, *TINY_MEL), "audioldm2"),
        ("TANGO", ("objective.beta_start=0.00085", "objective.beta_end=0.012"), "tango"),
        ("RetrievalAugmentedAudioPipeline", EPSILON, "retrieval"),
    ],
)
def test_each_kind_is_known_and_its_objective_held_against_the_configuration(
    models: dict[str, Path], kind: str, settings: tuple[str, ...], family: str
) -> None:
    from auscult.generation.denoiser import family_of

    assert start_kind(str(models[kind]))[0] == kind
    start = load_start(config(models[kind], *settings))
    assert family_of(start.unet) == family and start.public == (kind != "RetrievalAugmentedAudioPipeline")
    new = {name for name, _ in start.unet.named_parameters()} - start.brought
    assert bool(new) == (kind == "AudioLDMPipeline")
    other = [each for each in settings if not each.startswith("objective")]
    if kind != "TANGO":
        with pytest.raises(ValueError, match=r'trained with another objective; set \[objective\] prediction = "epsilon"'):
            load_start(config(models[kind], *other))
    else:
        with pytest.raises(ValueError, match=r"beta_start = 0\.00085, beta_end = 0\.012"):
            load_start(config(models[kind], *other))


def test_a_trainings_folder_and_its_pipeline_are_the_same_start(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["RetrievalAugmentedAudioPipeline"], tmp_path / "out" / "pipeline")
    assert start_kind(str(tmp_path / "out")) == start_kind(str(tmp_path / "out" / "pipeline"))


def test_other_starts_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a StableAudioPipeline, expected one of .*AudioLDM2Pipeline, TANGO"):
        load_start(config(models["StableAudioPipeline"]))
    with pytest.raises(ModelError, match="no pipeline folder"):
        load_start(config(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"\[start\] heads is for an AudioLDMPipeline.*leave it out"):
        load_start(config(models["AudioLDM2Pipeline"], "start.heads=[4, 4]", *EPSILON, *TINY_MEL))
    with pytest.raises(ModelError, match=r"\[start\] from: .*8 bands at 16,000 Hz with a hop of 20"):
        load_start(config(models["AudioLDMPipeline"], *EPSILON))


def test_a_hub_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cvssp/audioldm-s-full-v2.*hub does not give it.*give its folder"):
        start_kind("cvssp/audioldm-s-full-v2")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, in which earlier downloads lie, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("kind", ["AudioLDMPipeline", "AudioLDM2Pipeline", "TANGO", "RetrievalAugmentedAudioPipeline"])
def test_a_revision_of_the_hub_is_the_start(models: dict[str, Path], hub: Path, kind: str) -> None:
    """The cache holds one revision alone: whatever asked for the default branch would not find it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(models[kind], target_is_directory=True)
    for part in ("tokenizer", "tokenizer_2"):  # what a download notes of a file that it asked for in vain
        absent = repository / ".no_exist" / commit / part / "config.json"
        absent.parent.mkdir(parents=True)
        absent.touch()
    settings = ("objective.beta_start=0.00085", "objective.beta_end=0.012") if kind == "TANGO" else EPSILON
    settings += TINY_MEL if kind.startswith("AudioLDM") else ()
    expected = load_start(config(models[kind], *settings))
    for revision in ("v1", commit):
        found = load_start(config(f"someone/tiny@{revision}", *settings))
        states = [start.unet.state_dict() for start in (found, expected)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for other in ("someone/tiny", "someone/tiny@v2"):
        with pytest.raises(ModelError, match=rf"'{other}': no such folder, and the Hugging Face hub does not give it"):
            load_start(config(other, *settings))


def test_a_folder_has_no_revision(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models["AudioLDMPipeline"]
    monkeypatch.chdir(folder.parent.parent)
    name = f"{folder.parent.name}/{folder.name}"
    with pytest.raises(ModelError, match=f"{name}@main': a revision is for names on the hub, {name} is a folder"):
        start_kind(f"{name}@main")


QUICK = (
    "data.duration_s=0.16",
    "optimizer.batch=2",
    "optimizer.warmup=0",
    "optimizer.ema=0",
    "logging.sheet_prompts=0",
    "gates.reconstruction=0",
    "gates.overfit=0",
    "gates.first_loss=0",
    "gates.conditions=false",
    "gates.start=false",
    "threads=1",
)


@pytest.mark.parametrize("frozen", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_training_starts_with_the_new_attentions_and_leaves_the_old_alone(
    models: dict[str, Path], corpus: Path, tmp_path: Path, frozen: int
) -> None:
    """From the public files to a pipeline folder: frozen for all of its steps, AudioLDM's own weights stay bit by bit; frozen
    for one of two, they move in the other."""
    settings = (*EPSILON, *TINY_MEL, *QUICK, "optimizer.steps=2", f"optimizer.freeze_steps={frozen}")
    train(config(models["AudioLDMPipeline"], *settings, corpus=corpus), tmp_path / "out")
    before = load_start(config(models["AudioLDMPipeline"], *settings)).unet
    after = RetrievalAugmentedAudioPipeline.from_pretrained(tmp_path / "out" / "pipeline").unet
    moved = {name for name, value in after.named_parameters() if not torch.equal(value, before.state_dict()[name])}
    old = brought_by(before)
    assert bool(moved & old) == (frozen < 2)
    assert {name for name in moved if ".proj_out." in name}


def test_a_model_that_was_trained_without_pairs_is_given_what_reads_them(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """The encoders that it lacks are those of the configuration; one of another width is named."""
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(models["RetrievalAugmentedAudioPipeline"])
    pipe.register_modules(caption_encoder=None, audio_encoder=None)
    pipe.save_pretrained(tmp_path / "plain")
    build_datastore(open_corpus(corpus), output=tmp_path / "store", config=DatastoreConfig(key="text", model="hashed"))
    beside = (*EPSILON, *QUICK, f"retrieval.datastore={tmp_path / 'store'}", "retrieval.counts=[0, 2]", "mixing.share=0")
    given = prepare(config(tmp_path / "plain", *beside, corpus=corpus), tmp_path / "out")
    conditions = given.feed.batch(0).conditions
    assert conditions.text_tokens is not None and conditions.audio_tokens is not None
    encoders = load_start(config(tmp_path / "plain", *EPSILON)).encoders
    assert encoders.caption is None and encoders.audio is None  # nothing to read
    save_t5(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"\[encoders\] caption = .*t5' makes tokens of \d+ numbers, .* reads 64; choose"):
        load_start(config(tmp_path / "plain", *beside, f"encoders.caption={tmp_path / 't5'}"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AudioLDM2Pipeline", "TANGO"])
def test_training_goes_on_from_the_others(models: dict[str, Path], corpus: Path, tmp_path: Path, kind: str) -> None:
    tango = ("objective.beta_start=0.00085", "objective.beta_end=0.012")
    given = tango if kind == "TANGO" else (*EPSILON, *TINY_MEL)
    train(config(models[kind], *given, *QUICK, "optimizer.steps=1", corpus=corpus), tmp_path / "out")
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(pipe("sound", num_inference_steps=2).audios).all()
    assert json.loads((tmp_path / "out" / "card.json").read_text())


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, torch.Tensor, Conditions]:
    """A tiny denoiser fitted to predict velocity on two latents."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build(DenoiserConfig(channels=(16, 32), heads=(2, 4), attention=(False, True), norm_groups=8))
    latents, conditions = torch.randn(4, 8, 4, 4, generator=generator), Conditions(torch.randn(4, 64, generator=generator))
    alphas = scheduler().alphas_cumprod
    optimizer = torch.optim.AdamW(unet.parameters(), 4e-3)
    for _ in range(50):
        steps, noise = torch.randint(200, 1000, (4,), generator=generator), torch.randn(4, 8, 4, 4, generator=generator)
        kept, added = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[steps], 1 - alphas[steps]))
        said = predict(unet, kept * latents + added * noise, steps, conditions)
        loss = (said - (kept * noise - added * latents)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet.eval(), latents, conditions


def test_what_a_denoiser_predicts_is_told_from_clips(fitted: tuple[Any, torch.Tensor, Conditions]) -> None:
    found = read_both_ways(fitted[0], scheduler(), *fitted[1:])
    assert found.v_prediction < 0.7 < 1.0 < found.epsilon
    assert prediction_gate(fitted[0], scheduler("v_prediction"), *fitted[1:]).passed
    gate = prediction_gate(fitted[0], scheduler("epsilon"), *fitted[1:])
    assert not gate.passed and gate.value == pytest.approx(found.epsilon / found.v_prediction)
    assert "said to predict epsilon" in gate.message and "prediction_type" in gate.message


def test_a_velocity_is_what_the_scheduler_calls_so(fitted: tuple[Any, torch.Tensor, Conditions]) -> None:
    """Against diffusers' own definition, at one level."""
    from diffusers import DDPMScheduler

    from auscult.generation import starting_checks

    unet, latents, conditions = fitted
    public = DDPMScheduler(1000, 0.0015, 0.0195, "scaled_linear", clip_sample=False)
    steps, noise = torch.full((4,), 500), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting_checks, "LEVELS", (500,))
        found = read_both_ways(unet, scheduler(), latents, conditions)
        said = predict(unet, public.add_noise(latents, noise, steps), 500, conditions)
    assert found.v_prediction == pytest.approx(
        float((said - public.get_velocity(latents, noise, steps)).square().mean()), rel=1e-5
    )
    assert found.epsilon == pytest.approx(float((said - noise).square().mean()), rel=1e-5)


def test_the_heads_that_it_was_trained_with_have_the_lowest_loss(fitted: tuple[Any, torch.Tensor, Conditions]) -> None:
    unet, latents, conditions = fitted
    compared = compare_heads(unet, scheduler(), latents, conditions, [1, (2, 4), (8, 16)])
    losses = dict(compared)
    assert list(losses.values()) == sorted(losses.values()) and len(set(losses.values())) == 3
    own = read_both_ways(unet, scheduler(), latents, conditions).v_prediction
    assert losses[2, 4] == pytest.approx(own, rel=1e-6)
    assert compared[0][0] == (2, 4)


def test_a_checkpoint_that_predicts_something_else_stops_the_training(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights predict neither; the limit is put where they fail for certain."""
    from auscult.generation import starting_checks

    monkeypatch.setattr(starting_checks, "LIMIT", 0.0)
    settings = (*EPSILON, *TINY_MEL, *(each for each in QUICK if each != "gates.start=false"), "optimizer.steps=1")
    with pytest.raises(GateError, match=r"prediction .*said to predict epsilon"):
        train(config(models["AudioLDMPipeline"], *settings, corpus=corpus), tmp_path / "out")
