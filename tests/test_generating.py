"""Generation from prompts: seeds, batches, resuming, and what audits and evaluations make of the result."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch

import tiny_pipelines
from auscult import folders
from auscult.audit import audit
from auscult.corpus import Clip, open_corpus
from auscult.engine import Engine
from auscult.errors import ManifestError, ModelError, OutputFolderError
from auscult.folders import building, read_card
from auscult.generation.calling import Sampling, generate_batch
from auscult.generation.clips import MADE, clip_path, read_rows, write_clip
from auscult.generation.datastore import Datastore, DatastoreConfig, build_datastore
from auscult.generation.generating import GenerateConfig, Generation, generate
from auscult.generation.making import within_memory
from auscult.generation.pipelines import load_pipeline, locate_pipeline, quiet, sample_rate_hz, truncated
from auscult.generation.prompts import PlannedClip, PromptRow, clip_seed, plan_clips, prompts_digest, read_prompt_rows
from auscult.generation.retrieving import check_datastore, load_look_up
from auscult.generation.schedules import check_steps
from auscult.generation.trained_pairs import WITHOUT, beside, check_pairs, trained_beside
from auscult.metrics.evaluation import EvaluateConfig, System, evaluate
from auscult.metrics.pairing import read_prompts

PROMPTS = ["a dog", "rain and wind", "bell"]
SEEDS = [1, 2, 3]
FEW = GenerateConfig(steps=2)
KINDS = sorted(tiny_pipelines.PIPELINES)
OURS = "RetrievalAugmentedAudioPipeline"
SAMPLES = {"StableAudioPipeline": 799, OURS: 5120}


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other a thousand times as long as they compute
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_pipelines.save(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> str:
    return str(models["AudioLDMPipeline"])


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    return load_pipeline(locate_pipeline(model))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", "utf-8")
    return path


# --- every class of pipeline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_pipeline_from_its_folder(models: dict[str, Path], kind: str) -> None:
    pipe = load_pipeline(locate_pipeline(str(models[kind])))
    sampling = Sampling(steps=2)
    steps: list[int] = []
    batch = generate_batch(pipe, PROMPTS, SEEDS, sampling, on_step=lambda: steps.append(1))
    channels = 2 if kind == "StableAudioPipeline" else 1
    assert {clip.shape[0] for clip in batch} == {channels}
    assert {clip.shape[1] for clip in batch} == {SAMPLES.get(kind, 640)}
    assert len(steps) == 2
    assert sample_rate_hz(pipe) == tiny_pipelines.RATE_HZ
    scale = max(float(np.abs(clip).max()) for clip in batch)
    assert scale > 1e-2

    def away(clips: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
        return max(float(np.abs(one - other).max()) for one, other in zip(clips, others, strict=True)) / scale

    # rounding aside, which the first steps of a sampler amplify (sigma falls from 500), a batch is its clips one by one,
    # the shortest prompt among them, which the longest one pads
    singles = [generate_batch(pipe, [p], [s], sampling)[0] for p, s in zip(PROMPTS[:2], SEEDS, strict=False)]
    assert away(batch[:2], singles) < 1e-3
    again = generate_batch(pipe, PROMPTS, SEEDS, sampling)
    assert away(batch, again) == 0
    # everything that is asked for is heard
    base = singles[0]
    for prompt, seed, settings in (
        ("bell", 1, sampling),
        ("a dog", 2, sampling),
        ("a dog", 1, Sampling(steps=2, negative_prompt="wind")),
        ("a dog", 1, Sampling(steps=2, guidance_scale=6.0)),
        ("a dog", 1, Sampling(steps=3)),
    ):
        assert away([base], generate_batch(pipe, [prompt], [seed], settings)) > 1e-3
    half = generate_batch(pipe, ["a dog"], [1], Sampling(steps=2, guidance_scale=1.0, duration_s=0.02))[0]
    assert half.shape == (channels, 320)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits_make_nearly_the_same_clip(models: dict[str, Path], dtype: str) -> None:
    """Griffin-Lim computes in float32 whatever the model is in: its transforms know no other type on a processor."""
    batches = []
    for each in ("float32", dtype):
        pipe = load_pipeline(locate_pipeline(str(models[OURS])), dtype=each)
        assert {part.dtype for part in (pipe.unet, pipe.vae)} == {getattr(torch, each)}
        pair = ("a dog", np.sin(np.arange(5120) / 5).astype(np.float32))
        batches.append(generate_batch(pipe, PROMPTS, SEEDS, Sampling(steps=2), references=[[pair], [], [pair, pair]]))
    for exact, rough in zip(*batches, strict=True):
        one, other = (np.abs(np.fft.rfft(clip[0].reshape(10, 512) * np.hanning(512))) for clip in (exact, rough))
        away = float(np.linalg.norm(one - other) / np.linalg.norm(one))
        assert 0 < away < 0.3, away


@pytest.mark.parametrize(
    ("steps", "advice"),
    [(1000, "1,000 of 0 to 999.* take 999$"), (300, "898 .* take 250 or 317$"), (2000, "more than its 1,000")],
)
def test_steps_that_would_begin_below_the_noise_are_refused(
    models: dict[str, Path], prompts: Path, tmp_path: Path, steps: int, advice: str
) -> None:
    for kind in ("AudioLDMPipeline", OURS):
        with pytest.raises(ValueError, match=advice):
            generate(str(models[kind]), prompts, tmp_path / "out", config=GenerateConfig(steps=steps))
    assert not list(tmp_path.glob("out*"))
    pipe = load_pipeline(locate_pipeline(str(models[OURS])))
    with pytest.raises(ValueError, match=f"num_inference_steps = {steps:,} would"):
        pipe("rain", num_inference_steps=steps)


def test_what_is_refused_is_what_diffusers_would_begin_low() -> None:
    """Its own time steps are the oracle, of every number of steps that it takes."""
    sampler = tiny_pipelines.scheduler()
    for steps in range(1, 1001):
        sampler.set_timesteps(steps)
        first, apart = int(sampler.timesteps[0]), 1000 // steps
        wrong = first > 999 or 1000 - (first - 1 + apart) > 50
        try:
            check_steps("DDIMScheduler", sampler.config, steps)
        except ValueError as error:
            assert wrong, steps
            for text in str(error).partition("take ")[2].split(" or "):
                check_steps("DDIMScheduler", sampler.config, int(text))
        else:
            assert not wrong, steps
    check_steps("EDMDPMSolverMultistepScheduler", tiny_pipelines.EDM, 1000)  # has no such spacing
    trailing = {**sampler.config, "timestep_spacing": "trailing"}
    check_steps("DDIMScheduler", trailing, 1000)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_audioldm2_is_what_diffusers_makes_of_it(tmp_path: Path, guidance_scale: float) -> None:
    """With a language model that has its head, diffusers' own call works; the same weights without the head give the same."""
    headed = tiny_pipelines.save(tmp_path / "headed", "AudioLDM2Pipeline", headed=True)
    pipe = load_pipeline(locate_pipeline(str(headed)))
    generator = torch.Generator().manual_seed(5)
    own = pipe(
        "rain", num_inference_steps=2, guidance_scale=guidance_scale, generator=generator, negative_prompt="wind"
    ).audios[0]
    sampling = Sampling(steps=2, guidance_scale=guidance_scale, negative_prompt="wind" if guidance_scale > 1 else None)
    assert np.abs(generate_batch(pipe, ["rain"], [5], sampling)[0][0] - own).max() < 1e-6
    bare = headed / "bare"
    pipe.register_modules(language_model=pipe.language_model.transformer)
    pipe.save_pretrained(bare)
    assert json.loads((bare / "model_index.json").read_text())["language_model"][1] == "GPT2Model"
    loaded = load_pipeline(locate_pipeline(str(bare)))
    assert np.abs(generate_batch(loaded, ["rain"], [5], sampling)[0][0] - own).max() < 1e-6


@pytest.mark.parametrize("kind", ["AudioLDMPipeline", "MusicLDMPipeline", "StableAudioPipeline"])
def test_the_others_are_what_diffusers_makes_of_them(
    models: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load_pipeline(locate_pipeline(str(models[kind])))
    made = generate_batch(pipe, ["rain"], [5], Sampling(steps=2))[0]
    if kind == "MusicLDMPipeline":  # its call works where this gives a tensor, as it did before transformers 5
        features = pipe.text_encoder.get_text_features
        monkeypatch.setattr(pipe.text_encoder, "get_text_features", lambda *args, **kw: features(*args, **kw).pooler_output)
    with quiet():
        own = pipe("rain", num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)).audios[0]
    assert np.abs(made - np.asarray(own)).max() < 1e-6 * np.abs(made).max()


def test_a_long_prompt_is_known_to_be_cut(models: dict[str, Path], pipe: Any) -> None:
    assert not truncated(pipe, "a dog")
    assert truncated(pipe, "dog " * 2000)
    two_encoders = load_pipeline(locate_pipeline(str(models["AudioLDM2Pipeline"])))
    assert truncated(two_encoders, "abcdefghijklmnopqrstuvwxyz")  # of its tokenizers, one takes 32 and one 24


@pytest.mark.parametrize("index", ['{"_class_name": "StableDiffusionPipeline"}', '{"_class_name": ["code", "X"]}', "{", "[]"])
def test_other_models_are_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ModelError, match="which auscult cannot call; it knows|cannot be read"):
        locate_pipeline(str(tmp_path))


def test_no_model(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(ModelError, match="model_index.json|no folder of a model"):
            locate_pipeline(name)
    with pytest.raises(ModelError, match="cannot be loaded"):
        locate_pipeline("nobody/nothing-at-all", offline=True)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    folder = tiny_pipelines.save(tmp_path / "model", "AudioLDMPipeline")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot be loaded .*; a file of it may be cut short or damaged"):
        load_pipeline(locate_pipeline(str(folder)))
    (tmp_path / "prompts.txt").write_text("a dog")
    with pytest.raises(ModelError, match="cannot be loaded"):
        generate(str(folder), tmp_path / "prompts.txt", tmp_path / "out", config=FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "prompts.txt"]


def test_numbers_that_are_not_finite_are_no_clip(pipe: Any) -> None:
    bias = pipe.vocoder.conv_post.bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias.fill_(float("nan"))
        with pytest.raises(ModelError, match="'rain' holds numbers that are not finite"):
            generate_batch(pipe, ["rain"], [0], Sampling(steps=1))
    finally:
        with torch.no_grad():
            bias.copy_(before)


# --- prompts and seeds ------------------------------------------------------------------------------------------------


def test_a_seed_depends_on_row_and_number_alone() -> None:
    rows = [PromptRow(number, "rain") for number in range(100)]
    few, many = plan_clips(rows[:10], per_prompt=1, seed=3), plan_clips(rows, per_prompt=4, seed=3)
    seeds = {(clip.prompt.number, clip.number): clip.seed for clip in many}
    assert all(seeds[clip.prompt.number, clip.number] == clip.seed for clip in few)
    assert len({seed % 2**32 for seed in seeds.values()}) == 400  # torch's CPU generator takes the low 32 bits
    assert all(0 <= seed < 2**53 for seed in seeds.values())
    assert clip_seed(3, 0, 0) != clip_seed(4, 0, 0)


def test_prompts_of_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\n  rain, wind \n", "utf-8")
    assert read_prompt_rows(tmp_path / "a.txt") == [PromptRow(0, "a dog"), PromptRow(1, "rain, wind")]
    (tmp_path / "a.csv").write_text('path,caption,labels\nx/1.wav,a dog,"dog;animal"\nx/2.wav,"rain, wind",\n')
    first, second = str(tmp_path / "x" / "1.wav"), str(tmp_path / "x" / "2.wav")
    wanted = [PromptRow(0, "a dog", "x/1.wav", ("dog", "animal"), first), PromptRow(1, "rain, wind", "x/2.wav", path=second)]
    assert read_prompt_rows(tmp_path / "a.csv") == wanted
    rows = [{"clip_id": "one", "path": "x/1.wav", "captions": ["a dog", "dogs"]}, {"clip_id": "two", "caption": "rain"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_prompt_rows(tmp_path / "a.jsonl") == [PromptRow(0, "a dog", "one", path=first), PromptRow(1, "rain", "two")]
    (tmp_path / "caps.csv").write_text("audiocap_id,youtube_id,start_time,caption\n7,abc,30,a dog\n8,abc,30,barking\n")
    assert [row.reference for row in read_prompt_rows(tmp_path / "caps.csv")] == ["abc_30", "abc_30"]
    (tmp_path / "clip.wav").write_bytes(b"")
    (tmp_path / "r.csv").write_text("caption,reference\nrain,clip.wav\nwind,an-id\n")
    assert [row.reference for row in read_prompt_rows(tmp_path / "r.csv")] == [str(tmp_path / "clip.wav"), "an-id"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "path\na.wav\n", "no 'caption' column; it has path"),
        ("p.csv", "path,caption\na.wav,rain\nb.wav,\nc.wav, \n", "2 of 3 prompts have no caption \\(number 2, 3\\)"),
        ("p.jsonl", '{"caption": "\\ud800"}', "characters that are no text"),
        ("p.jsonl", json.dumps({"caption": "a" * 100_001}), "more than 100,000 characters"),
        ("p.txt", "\n \n", "holds no prompts; expected one a line"),
        ("p.md", "rain", "expected a file of prompts"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_prompt_rows(tmp_path / name)


def test_prompts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_prompt_rows(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes("pluie d'été".encode("latin-1"))
    with pytest.raises(ManifestError, match="--encoding"):
        read_prompt_rows(tmp_path / "latin.txt")
    assert read_prompt_rows(tmp_path / "latin.txt", encoding="latin-1")[0].caption == "pluie d'été"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps should be at least 1"),
        ({"guidance_scale": 0.5}, "at least 1 \\(1 is no guidance\\)"),
        ({"guidance_scale": 1.0, "negative_prompt": "noise"}, "no effect without guidance"),
        ({"guidance_scale": math.nan}, "guidance_scale should be .* got nan"),
        ({"guidance_scale": math.inf}, "guidance_scale should be .* got inf"),
        ({"retrieval_scale": math.nan}, "retrieval_scale should be at least 0 .* got nan"),
        ({"retrieval_scale": -5.0}, "retrieval_scale should be at least 0 .* got -5"),
        ({"duration_s": 0.0}, "duration_s should be above 0"),
        ({"duration_s": math.nan}, "duration_s should be above 0, got nan"),
        ({"per_prompt": 0}, "per_prompt should be 1 to 1000"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**settings)


# --- clips on disk ----------------------------------------------------------------------------------------------------


def test_a_loud_clip_is_turned_down_and_a_silent_one_known(tmp_path: Path) -> None:
    clip = PlannedClip("000000-00", PromptRow(0, "rain"), 0, 1)
    wave = np.stack([np.linspace(-2.0, 2.0, 500), np.linspace(1.0, -1.0, 500)]).astype(np.float32)
    facts = write_clip(tmp_path, clip, wave, 44_100)
    back, rate = sf.read(tmp_path / facts["path"], dtype="float32")
    assert (rate, facts["channels"], facts["samples"], facts["peak"]) == (44_100, 2, 500, 2.0)
    gain = 10 ** (facts["gain_db"] / 20)
    assert gain == pytest.approx(0.5, abs=1e-4)
    assert np.abs(back.T - wave * gain).max() < 1e-4  # a 16-bit step is 3e-5; gain_db is rounded
    assert not facts["silent"]
    quiet = write_clip(tmp_path, clip, np.full((1, 500), 0.25, np.float32), 16_000)
    assert (quiet["gain_db"], quiet["silent"]) == (0.0, False)
    assert write_clip(tmp_path, clip, np.zeros((1, 500), np.float32), 16_000)["silent"]


def test_rows_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / MADE
    path.write_text('{"clip_id": "a"}\n{"clip_id": "b"')
    assert read_rows(path) == [{"clip_id": "a"}]


# --- the corridor -----------------------------------------------------------------------------------------------------


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != "card.json"}


def test_folder_manifest_and_card(model: str, prompts: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []
    result = generate(
        model,
        prompts,
        tmp_path / "out",
        config=GenerateConfig(steps=2, per_prompt=2),
        batch_size=4,
        progress=lambda *state: seen.append(state),
    )
    rows = result.rows()
    assert [(row["clip_id"], row["caption"]) for row in rows[1:3]] == [("000000-01", "a dog"), ("000001-00", "rain and wind")]
    assert [row["seed"] for row in rows] == [clip_seed(0, prompt, number) for prompt in range(3) for number in range(2)]
    assert sorted(path.name for path in result.path.iterdir()) == ["audio", "card.json", "manifest.jsonl"]
    assert {row["path"] for row in rows} == {f"audio/{path.name}" for path in (result.path / "audio").iterdir()}
    assert result.card["counts"] == {"prompts": 3, "clips": 6, "silent": 0, "turned_down": 0, "truncated": 0}
    assert set(result.card["files"]) == {"manifest.jsonl", *(row["path"] for row in rows)}
    done, totals, _ = zip(*seen, strict=True)
    assert set(totals) == {12} and list(done) == sorted(done) and done[0] == 0 and done[-1] == 12
    sounds = [sf.read(result.path / row["path"])[0] for row in rows]
    # the same command again finds it done, and leaves it
    before = (result.path / "card.json").stat().st_mtime_ns
    again = generate(model, prompts, tmp_path / "out", config=GenerateConfig(steps=2, per_prompt=2))
    assert again.card == result.card and (result.path / "card.json").stat().st_mtime_ns == before
    with pytest.raises(OutputFolderError, match="finished generation"):
        generate(model, prompts, tmp_path / "out", config=FEW)
    other = generate(model, prompts, tmp_path / "out", config=FEW, overwrite=True)
    before_of = {row["path"]: sound for row, sound in zip(rows, sounds, strict=True)}
    for (
        row
    ) in other.rows():  # the seeds are the prompts' own; batches of other sizes round otherwise, and a 16-bit step is 3e-5
        assert np.abs(sf.read(result.path / row["path"])[0] - before_of[row["path"]]).max() < 1e-4


def test_audits_and_evaluations_take_the_manifest(model: str, tmp_path: Path) -> None:
    """Captions of a training manifest as prompts; one generated clip is replaced by its training clip, and found."""
    training = tmp_path / "training"
    training.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{number}.wav" for number in range(12)]
    for name in names:
        sf.write(training / name, rng.normal(0, 0.1, 20_000) * np.repeat(rng.uniform(0, 1, 50), 400), 16_000)
    lines = [{"path": f"training/{name}", "caption": f"sound {'abcdefghijkl'[i]}"} for i, name in enumerate(names)]
    manifest = tmp_path / "training.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    config = GenerateConfig(steps=1, duration_s=1.25)
    result = generate(model, manifest, tmp_path / "out", config=config, batch_size=12)
    clips = [clip for clip in open_corpus(result.manifest) if isinstance(clip, Clip)]
    assert [clip.clip_id for clip in clips] == [row["clip_id"] for row in result.rows()]
    assert [clip.caption for clip in clips] == [line["caption"] for line in lines]
    asked = read_prompts(result.manifest)
    assert [row.reference for row in asked.rows] == [line["path"] for line in lines]

    evaluation = evaluate(
        {"tiny": System(open_corpus(result.manifest))},
        open_corpus(manifest),
        prompts=asked,
        config=EvaluateConfig(metrics=("kad",), resamples=0, brackets=False),
    )
    assert evaluation.results[0].name == "tiny"

    copied = result.path / "audio" / "000007-00.flac"
    sf.write(copied, sf.read(training / "7.wav")[0], 16_000)
    found = audit(open_corpus(result.manifest), open_corpus(manifest), output=tmp_path / "audit")
    best = max((row for row in found.matches().to_pylist()), key=lambda row: row["score"])
    assert (best["query_id"], best["reference_id"]) == ("000007-00", "training/7.wav")


def test_a_stopped_run_continues_to_the_same_bytes(model: str, prompts: Path, tmp_path: Path) -> None:
    config = GenerateConfig(steps=2, per_prompt=2)
    whole = generate(model, prompts, tmp_path / "whole", config=config, batch_size=2)

    def stop_in_second_batch(done: int, total: int | None, what: str) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        generate(model, prompts, tmp_path / "cut", config=config, batch_size=2, progress=stop_in_second_batch)
    assert "keeps 2 of 6 clips" in "".join(stopped.value.__notes__)
    partial = tmp_path / "cut.partial"
    first = partial / "audio" / "000000-00.flac"
    before = first.stat().st_mtime_ns
    with open(partial / MADE, "a") as handle:
        handle.write('{"clip_id": "000001-00", "path"')  # as a kill in the midst of a write leaves it
    (partial / "audio" / ".x.flac.1.tmp").write_bytes(b"")
    with pytest.raises(OutputFolderError, match="2 clips of a run with other settings \\(steps was 2, now 3\\)"):
        generate(model, prompts, tmp_path / "cut", config=GenerateConfig(steps=3, per_prompt=2))
    kept = r"cut\.partial: keeps finished clips of an unfinished generation; .* delete cut\.partial or pass --overwrite"
    with pytest.raises(OutputFolderError, match=kept), building(tmp_path / "cut", "datastore", task={}):
        pass
    prompts.write_text("other\nprompts\nnow\n")
    with pytest.raises(OutputFolderError, match="prompts was"):
        generate(model, prompts, tmp_path / "cut", config=config)
    prompts.write_text("\n".join(PROMPTS))
    totals: set[int | None] = set()
    continued = generate(
        model, prompts, tmp_path / "cut", config=config, batch_size=2, progress=lambda done, total, what: totals.add(total)
    )
    assert totals == {8}  # of 4 clips that were missing
    assert (continued.path / "audio" / "000000-00.flac").stat().st_mtime_ns == before
    assert folder_bytes(continued.path) == folder_bytes(whole.path)


def test_a_kill_just_before_the_folder_has_its_name_costs_no_clip(
    model: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(folder: Path) -> None:
        raise KeyboardInterrupt

    def made_again(*state: object) -> None:
        raise AssertionError(f"clips were made again: {state}")

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folders, "refuse_to_lose_verdicts", kill)  # asked last, before the folder is renamed
        generate(model, prompts, tmp_path / "out", config=FEW)
    made = folder_bytes(tmp_path / "out.partial")
    assert made.pop("task.json") and MADE not in made
    result = generate(model, prompts, tmp_path / "out", config=FEW, progress=made_again)
    assert folder_bytes(result.path) == made


def test_a_clip_that_was_lost_is_made_again(model: str, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts, tmp_path / "out", config=FEW, batch_size=2, progress=_stop_at(6))
    lost = tmp_path / "out.partial" / "audio" / "000001-00.flac"
    content = lost.read_bytes()
    lost.write_bytes(content[:-1])
    result = generate(model, prompts, tmp_path / "out", config=FEW, batch_size=2)
    assert (result.path / "audio" / "000001-00.flac").read_bytes() == content
    assert len(result.rows()) == 3


def test_only_what_is_kept_is_said_to_be_kept(model: str, prompts: Path, tmp_path: Path) -> None:
    for stop, kept in ((0, 0), (5, 2)):
        with pytest.raises(KeyboardInterrupt) as stopped:
            config = GenerateConfig(steps=2)
            generate(model, prompts, tmp_path / "out", config=config, batch_size=2, progress=_stop_at(stop))
        assert [f"keeps {kept} of 3 clips" in note for note in getattr(stopped.value, "__notes__", [])] == [True] * bool(kept)
        assert (tmp_path / "out.partial").exists() == bool(kept)


def test_threads_and_pairs_of_the_command(model: str, prompts: Path, tmp_path: Path) -> None:
    """Threads are torch's while clips are made, and no longer; a number of pairs needs something to take them from."""
    from typer.testing import CliRunner

    from auscult.cli import app
    from auscult.generation import making

    before, seen = torch.get_num_threads(), []
    whole = making.work_on_devices

    def work_on_devices(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return whole(*arguments)

    command = ["generate", "--model", model, "--prompts", str(prompts), "--steps", "1", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*command, "--k", "3"])
    assert "--k has no effect without pairs" in str(refused.exception) and not (tmp_path / "out").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "work_on_devices", work_on_devices)
        done = CliRunner().invoke(app, [*command, "--threads", str(before + 1)])
    assert done.exit_code == 0, done.output
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def _stop_at(number: int) -> Any:
    def show(done: int, total: int | None, what: str) -> None:
        if done >= number:
            raise KeyboardInterrupt

    return show


def test_what_a_reader_should_know_is_in_the_card(model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("rain\n" + "word " * 2000)
    result = generate(model, prompts, tmp_path / "out", config=GenerateConfig(steps=1))
    assert result.card["counts"]["truncated"] == 1
    assert result.card["warnings"] == [
        "1 clip (000001-00) is made from a prompt that is longer than the model reads; its end was not heard"
    ]
    assert [row["truncated"] for row in result.rows()] == [False, True]


# --- with retrieved pairs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 8 clips; two of them have one caption."""
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    captions = [
        "a dog barks",
        "a dog howls",
        "a loud dog",
        "rain on a roof",
        "rain and wind",
        "a bell",
        "a bell rings",
        "a bell",
    ]
    rows = []
    for number, caption in enumerate(captions):
        sf.write(folder / f"{number}.wav", rng.normal(0, 0.1, 8_000), 16_000)
        rows.append({"clip_id": f"clip{number}", "path": f"{number}.wav", "caption": caption})
    manifest = folder / "training.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


@pytest.fixture(scope="module")
def datastore(training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("datastore") / "store"
    config = DatastoreConfig(key="text", model="hashed")
    build_datastore(open_corpus(str(training)), output=output, config=config, engine=Engine(workers=1))
    return output


def test_pairs_are_retrieved_and_heard(models: dict[str, Path], training: Path, datastore: Path, tmp_path: Path) -> None:
    model = str(models[OURS])
    config = GenerateConfig(steps=2, k=2)
    plain = generate(model, training, tmp_path / "plain", config=config)
    given = generate(model, training, tmp_path / "given", config=config, datastore=datastore)
    none = generate(model, training, tmp_path / "none", config=GenerateConfig(steps=2, k=0), datastore=datastore)
    for row, before, without in zip(given.rows(), plain.rows(), none.rows(), strict=True):
        assert row["seed"] == before["seed"] and row["sha256"] != before["sha256"]
        assert without["sha256"] == before["sha256"] and without["retrieved"] == []
        assert len(row["retrieved"]) == 2 and row["target_passed_over"]
        assert row["reference"] not in row["retrieved"]
    of = {row["reference"]: row["retrieved"] for row in given.rows()}
    assert "clip7" not in of["clip5"] and "clip5" not in of["clip7"]  # an equal caption
    assert of["clip5"][0] == "clip6"
    assert plain.card["warnings"][0] == "the sound is of preview quality: the model has no trained vocoder"
    with pytest.raises(OutputFolderError, match="finished"):
        generate(model, training, tmp_path / "given", config=config)  # without the datastore it is another run


def test_a_reference_that_the_datastore_does_not_know(
    models: dict[str, Path], training: Path, datastore: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"caption": "an owl", "reference": "elsewhere"}, {"caption": "a cat", "reference": str(training.parent / "0.wav")}]
    path.write_text("\n".join(map(json.dumps, rows)))
    result = generate(str(models[OURS]), path, tmp_path / "out", config=GenerateConfig(steps=1, k=7), datastore=datastore)
    unknown, known = result.rows()
    assert not unknown["target_passed_over"] and known["target_passed_over"]
    assert "clip0" in unknown["retrieved"] and "clip0" not in known["retrieved"]
    assert any("1 clip (000000-00) is made with a datastore that does not hold" in text for text in result.card["warnings"])


def test_a_reference_is_known_by_its_audio(training: Path, datastore: Path, tmp_path: Path) -> None:
    wave, rate = sf.read(training.parent / "0.wav", dtype="int16")
    sf.write(tmp_path / "copy.flac", wave, rate)
    sf.write(tmp_path / "other.flac", wave // 2, rate)
    rows = [
        {"path": "copy.flac", "caption": "an owl"},
        {"clip_id": "x", "path": "other.flac", "caption": "an owl"},
        {"caption": "an owl", "reference": "copy.flac"},
        {"path": "copy.flac", "start_s": 0.1, "caption": "an owl"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    look_up = load_look_up(datastore, 7, rate_hz=16_000, duration_s=0.5)
    looked = look_up(read_prompt_rows(tmp_path / "p.jsonl"))
    assert [one.target for one in looked] == ["clip0", None, "clip0", None]
    assert ["clip0" in one.ids for one in looked] == [False, True, False, True]


@pytest.mark.parametrize("model", ["hashed", "mel"])
def test_pairs_of_the_prompts_own_caption_are_passed_over_however_pairs_are_found(
    training: Path, datastore: Path, tmp_path: Path, model: str
) -> None:
    """Also where the prompt is worded otherwise than its reference; a prompt that has too few pairs left gets those."""
    store = datastore
    if model == "mel":
        store = tmp_path / "store"
        build_datastore(open_corpus(str(training)), output=store, config=DatastoreConfig(model="mel"), engine=Engine(workers=1))
        with pytest.raises(ValueError, match="k=8 is more than the 7 neighbors of a clip"):
            check_datastore(store, 8)
    prompts = [
        PromptRow(0, "A bell.", reference="clip0"),
        PromptRow(1, "an owl", reference="clip1"),
        PromptRow(2, "a bell", reference="clip6"),
    ]
    for k, found in ((3, [3, 3, 3]), (7, [5, 7, 5])):
        looked = load_look_up(store, k, rate_hz=16_000, duration_s=0.5)(prompts)
        assert [len(one.ids) for one in looked] == [len(one.pairs) for one in looked] == found
        assert not {"clip0", "clip5", "clip7"} & set(looked[0].ids) and "clip1" not in looked[1].ids
        assert all(list(one.similarity) == sorted(one.similarity, reverse=True) for one in looked)
    if model == "mel":  # the order of the kept neighbors, less what was passed over
        kept = [name for name in Datastore.load(store).neighbors("clip0").ids if name not in ("clip5", "clip7")]
        assert list(looked[0].ids) == kept


def test_pairs_that_a_row_names_are_shown_as_they_are(training: Path, datastore: Path, tmp_path: Path) -> None:
    rows = [
        {"caption": "a bell", "clip_id": "clip0", "pairs": ["clip3", "clip5", "clip1"]},
        {"caption": "an owl", "clip_id": "x"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named, asked = load_look_up(datastore, 2, rate_hz=16_000, duration_s=0.5)(read_prompt_rows(tmp_path / "p.jsonl"))
    assert (named.ids, named.similarity, named.target) == (("clip3", "clip5"), (), "clip0")
    usual = load_look_up(datastore, 2, rate_hz=16_000, duration_s=0.5)([PromptRow(0, "an owl", "x")])[0]
    assert (asked.ids, asked.similarity) == (usual.ids, usual.similarity) and len(asked.similarity) == 2
    shown, others = (PromptRow(0, "a bell", pairs=pairs) for pairs in (("clip3",), ("gone",)))
    assert len({prompts_digest([row]) for row in (shown, others, PromptRow(0, "a bell"))}) == 3
    with pytest.raises(ValueError, match=r"prompt 1 \('a bell'\) names pairs: .*'gone' is not in this datastore"):
        load_look_up(datastore, 1, rate_hz=16_000, duration_s=0.5)([others])


def test_a_datastore_of_equal_captions_gives_them_to_prompts(training: Path, tmp_path: Path) -> None:
    config = DatastoreConfig(key="text", model="hashed", equal_captions=True)
    build_datastore(open_corpus(str(training)), output=tmp_path / "store", config=config, engine=Engine(workers=1))
    looked = load_look_up(tmp_path / "store", 2, rate_hz=16_000, duration_s=0.5)([PromptRow(0, "a bell", reference="clip5")])[0]
    assert "clip7" in looked.ids and "clip5" not in looked.ids  # the target alone is passed over


def test_a_prompt_with_too_few_pairs_left_is_made_and_named(models: dict[str, Path], datastore: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("an owl\na bell\n")
    config = GenerateConfig(steps=1, k=8)
    made = generate(str(models[OURS]), tmp_path / "p.txt", tmp_path / "out", config=config, datastore=datastore)
    assert [len(row["retrieved"]) for row in made.rows()] == [8, 6]
    (told,) = (text for text in made.card["warnings"] if "fewer pairs" in text)
    assert told.startswith("1 clip (000001-00) is made with fewer pairs than k = 8")


def test_datastores_that_cannot_be_used(
    models: dict[str, Path], model: str, prompts: Path, datastore: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="takes no retrieved pairs"):
        generate(model, prompts, tmp_path / "out", datastore=datastore)
    with pytest.raises(ValueError, match="k=9 is more than .* holds, 8 pairs"):
        generate(str(models[OURS]), prompts, tmp_path / "out", config=GenerateConfig(k=9), datastore=datastore)
    ours, unheard = str(models[OURS]), r"takes no retrieved pairs; leave|has no effect without pairs; give --datastore"
    for which, k, store in ((ours, 3, None), (ours, 0, datastore), (model, 3, None)):
        with pytest.raises(ValueError, match=unheard):
            generate(which, prompts, tmp_path / "out", config=GenerateConfig(k=k, retrieval_scale=2.0), datastore=store)
    assert not list(tmp_path.glob("out*"))


def test_pairs_are_for_models_that_were_trained_beside_pairs(
    models: dict[str, Path], datastore: Path, prompts: Path, tmp_path: Path
) -> None:
    store = Datastore.load(datastore)
    clap = {"counts": [0, 1], "key": "audio", "encoders": {"audio": "clap(...)", "text": "clap(some/model)"}}
    known = {"without": WITHOUT, "beside": beside((0, 1, 3), store), "other": clap}
    folders = {name: tiny_pipelines.save(tmp_path / name, OURS, retrieval=what) for name, what in known.items()}
    assert {name: trained_beside(locate_pipeline(str(folder))) for name, folder in folders.items()} == known

    def notes(model: Path, k: int, store: Path | None = datastore) -> list[str]:
        return check_pairs(locate_pipeline(str(model)), store, k)

    with pytest.raises(ValueError, match=r"without retrieved pairs.*leave out --datastore"):
        generate(str(folders["without"]), prompts, tmp_path / "out", datastore=datastore)
    assert notes(folders["without"], 3, None) == notes(folders["beside"], 3) == notes(models[OURS], 3, None) == []
    assert "give --datastore" in notes(folders["beside"], 3, None)[0] and "k = 0" in notes(folders["beside"], 0)[0]
    assert "3 at most" in notes(folders["beside"], 4)[0]
    (other,) = notes(folders["other"], 1)
    assert "text by hashed" in other and "audio by clap(some/model)" in other
    assert "does not say" in notes(models[OURS], 3)[0]
    made = generate(str(folders["beside"]), prompts, tmp_path / "made", config=GenerateConfig(steps=1))
    assert "k = 0" in made.card["warnings"][0]


def test_a_model_of_a_training_that_is_not_finished(prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "task.json").write_text("{}")
    with pytest.raises(ModelError, match="not finished, and there is no model yet"):
        locate_pipeline(str(run))
    tiny_pipelines.save(run / "pipeline", OURS)
    made = generate(str(run), prompts, tmp_path / "made", config=GenerateConfig(steps=1))
    assert made.card["warnings"][0] == "the model's training is not finished: the model is that of its last checkpoint"
    (run / "card.json").write_text("{}")
    assert not locate_pipeline(str(run / "pipeline")).unfinished


def test_memory_that_runs_out_halves_the_batch() -> None:
    clips = plan_clips([PromptRow(number, "rain") for number in range(7)], per_prompt=1, seed=0)
    sizes: list[int] = []

    def make(part: Sequence[PlannedClip], room: int = 2) -> list[np.ndarray]:
        sizes.append(len(part))
        if len(part) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [np.full((1, 1), clip.seed, np.float32) for clip in part]

    limit: list[int] = []
    made = within_memory(make, clips, limit)
    assert [clip.item() for clip in made] == [np.float32(clip.seed) for clip in clips]
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    sizes.clear()
    within_memory(make, clips[:4], limit)
    assert sizes == [1, 1, 1, 1]  # what did not fit is not tried again
    with pytest.raises(ModelError, match="memory does not suffice for one clip \\(000000-00\\)"):
        within_memory(lambda part: make(part, room=0), clips, [])
    with pytest.raises(RuntimeError, match="something else"):
        within_memory(_fail, clips, [])


def _fail(part: Sequence[PlannedClip]) -> list[np.ndarray]:
    raise RuntimeError("something else")


def test_nobody_is_asked(model: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    result = generate(model, prompts, tmp_path / "out", config=GenerateConfig(steps=1), offline=True)
    assert Generation.open(result.path).card["model"]["class"] == "AudioLDMPipeline"


# --- as a user runs it ------------------------------------------------------------------------------------------------


def auscult(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "auscult", *map(str, arguments)], capture_output=True, text=True, timeout=300, **settings
    )


@pytest.mark.slow
def test_command_line_on_several_processes_and_killed(model: str, prompts: Path, tmp_path: Path) -> None:
    whole = generate(model, prompts, tmp_path / "whole", config=GenerateConfig(steps=40, per_prompt=4), batch_size=2)
    command = ["generate", "--model", model, "--prompts", prompts, "--steps", 40, "--per-prompt", 4, "--batch-size", 2, "-j", 2]
    command = [*map(str, command), "-o", str(tmp_path / "out")]
    made = tmp_path / "out.partial" / MADE
    with subprocess.Popen([sys.executable, "-m", "auscult", *command], start_new_session=True) as run:
        while run.poll() is None and not (made.is_file() and made.stat().st_size):
            pass
        run.send_signal(signal.SIGKILL)
    kept = len(read_rows(made))
    assert 0 < kept < 12
    finished = auscult(*command)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[0] == f"12 clips of 3 prompts by {model}"
    rows = Generation.open(tmp_path / "out").rows()
    assert [row["clip_id"] for row in rows] == [row["clip_id"] for row in whole.rows()]
    for row in rows:  # unequal numbers of threads may change last bits, and a 16-bit step is 3e-5
        ours, theirs = (sf.read(folder / row["path"])[0] for folder in (tmp_path / "out", whole.path))
        assert np.abs(ours - theirs).max() < 1e-4
    verified = auscult("info", tmp_path / "out", "--verify")
    assert verified.returncode == 0 and "all digests agree: 13 files" in verified.stdout


@pytest.mark.slow
def test_a_model_of_the_hubs_cache(model: str, prompts: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(model, target_is_directory=True)
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    arguments = ["generate", "--prompts", prompts, "--steps", 1, "--offline", "-o", tmp_path / "out"]
    done = auscult(*map(str, arguments), "--model", "someone/tiny", env=environment)
    assert done.returncode == 0, done.stderr
    assert read_card(tmp_path / "out")["model"] == {
        "name": "someone/tiny",
        "class": "AudioLDMPipeline",
        "revision": commit,
        "digest": "",
    }
    missing = auscult(*map(str, arguments[:-1]), tmp_path / "other", "--model", "someone/else", env=environment)
    assert missing.returncode == 2 and len(missing.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_stable_audios_own_scheduler(tmp_path: Path) -> None:
    """Its noise comes from a Brownian tree for each clip, which takes the seed of the clip's generator."""
    pytest.importorskip("torchsde")
    import diffusers

    settings = {key: value for key, value in tiny_pipelines.EDM.items() if key != "solver_order"}
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(**settings)
    folder = tiny_pipelines.save(tmp_path / "model", "StableAudioPipeline", scheduler=scheduler)
    pipe = load_pipeline(locate_pipeline(str(folder)))
    batch = generate_batch(pipe, PROMPTS, SEEDS, Sampling(steps=3))
    single = generate_batch(pipe, PROMPTS[1:2], SEEDS[1:2], Sampling(steps=3))[0]
    assert np.abs(batch[1] - single).max() < 1e-3 * np.abs(single).max()


def test_clip_paths_are_plain() -> None:
    clip = plan_clips([PromptRow(0, "../../etc/passwd", "../x")], per_prompt=1, seed=0)[0]
    assert clip_path(clip) == "audio/000000-00.flac"
