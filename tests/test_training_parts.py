"""The pure parts of training: mixing, targets and weights, batches by seed and step, splits, configurations."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("diffusers")

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from auscult.configuration import config_values, make_config
from auscult.generation.batches import Dropout, batch_rows, noise_seed, plan_batch
from auscult.generation.cached_arrays import cached
from auscult.generation.examples import Clips
from auscult.generation.feed import pick_neighbors
from auscult.generation.gates import GateResult, gates_text, read_gates
from auscult.generation.mixing import a_weighting_db, loudness_db, mix, mixed_caption, mixing_share
from auscult.generation.objective import (
    level_means,
    loss_weights,
    noisy_latents,
    signal_to_noise,
    squared_errors,
    target,
)
from auscult.generation.sheets import training_figure
from auscult.generation.splitting import split_clips
from auscult.generation.training_config import PRESETS, OptimizerConfig, TrainConfig, load_train_config, preset_values
from auscult.generation.validation import Levels, condition_gates

RATE = 16_000

# --- mixing ---------------------------------------------------------------------------------------------------------


def test_a_weighting_is_the_standards_table() -> None:
    table = {31.5: -39.4, 63: -26.2, 125: -16.1, 250: -8.6, 500: -3.2, 1000: 0.0, 2000: 1.2, 4000: 1.0, 8000: -1.1, 16000: -6.6}
    # the table is of the nominal bands' exact middles, 1000 * 10^(n/10) Hz
    exact = np.array([1000 * 10 ** (round(10 * np.log10(hz / 1000)) / 10) for hz in table])
    np.testing.assert_allclose(a_weighting_db(exact), list(table.values()), atol=0.06)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 30), st.floats(0.1, 0.9))
def test_both_parts_of_a_mixture_are_heard_as_the_ratio_says(seed: int, gain: float, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal(6000) * 0.1
    second = np.sin(np.arange(6000) * rng.uniform(0.05, 2)) * gain
    share = mixing_share(loudness_db(first, RATE), loudness_db(second, RATE), ratio)
    left, right = loudness_db(share * first, RATE), loudness_db((1 - share) * second, RATE)
    assert left - right == pytest.approx(20 * np.log10(ratio / (1 - ratio)), abs=1e-6)
    mixture = mix(first, second, RATE, ratio=ratio)
    assert np.abs(mixture).max() == pytest.approx(0.5)
    expected = share * first + (1 - share) * second
    np.testing.assert_allclose(mixture, expected * 0.5 / np.abs(expected).max(), atol=1e-6)


def test_a_mixture_does_not_depend_on_who_is_first() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5000))
    np.testing.assert_allclose(mix(first, second, RATE), mix(second, first, RATE), atol=1e-6)


def test_mixing_silence_leaves_the_other_and_lengths_must_agree() -> None:
    tone = np.sin(np.arange(4000))
    np.testing.assert_allclose(mix(tone, np.zeros(4000), RATE), 0.5 * tone / np.abs(tone).max(), atol=1e-6)
    assert not mix(np.zeros(4000), np.zeros(4000), RATE).any()
    with pytest.raises(ValueError, match=r"\(4000,\) and \(3999,\)"):
        mix(tone, tone[:-1], RATE)


def test_captions_join() -> None:
    assert mixed_caption("Rain falls", "A dog barks") == "Rain falls and a dog barks"
    assert mixed_caption("", "A dog") == "A dog"


# --- objective ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schedule() -> DDPMScheduler:
    return DDPMScheduler(1000, 0.0015, 0.0195, "scaled_linear", prediction_type="v_prediction", clip_sample=False)


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 64, 4, 8, 8, generator=generator)
    return latents, noise, torch.randint(0, 1000, (64,), generator=generator)


def test_targets_and_noisy_latents_are_those_of_diffusers(schedule: DDPMScheduler, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, at = drawn
    abar = schedule.alphas_cumprod
    torch.testing.assert_close(noisy_latents(latents, noise, abar, at), schedule.add_noise(latents, noise, at))
    torch.testing.assert_close(target(latents, noise, abar, at, "v_prediction"), schedule.get_velocity(latents, noise, at))
    assert target(latents, noise, abar, at, "epsilon") is noise
    torch.testing.assert_close(signal_to_noise(abar, at), compute_snr(schedule, at))
    with pytest.raises(ValueError, match="'sample'"):
        target(latents, noise, abar, at, "sample")  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_predictor_of_zero_has_a_loss_of_one(
    schedule: DDPMScheduler, drawn: tuple[torch.Tensor, ...], prediction: str
) -> None:
    latents, noise, at = drawn
    wanted = target(latents, noise, schedule.alphas_cumprod, at, prediction)  # type: ignore[arg-type]
    assert float(squared_errors(torch.zeros_like(wanted), wanted).mean()) == pytest.approx(1, abs=0.03)  # 16,384 numbers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_correct_weights_weigh_errors_of_the_clean_latents(
    schedule: DDPMScheduler, drawn: tuple[torch.Tensor, ...], prediction: str
) -> None:
    """Whatever is predicted: weight times its error is min(snr, 5) times the error of the x_0 that follows from it."""
    latents, noise, at = drawn
    abar = schedule.alphas_cumprod
    noisy, wanted = noisy_latents(latents, noise, abar, at), target(latents, noise, abar, at, prediction)  # type: ignore[arg-type]
    guess = wanted + 0.3 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    kept = abar[at].reshape(-1, 1, 1, 1)
    clean = kept.sqrt() * noisy - (1 - kept).sqrt() * guess
    if prediction == "epsilon":
        clean = (noisy - (1 - kept).sqrt() * guess) / kept.sqrt()
    snr = signal_to_noise(abar, at)
    weighed = loss_weights(snr, prediction) * squared_errors(guess, wanted)  # type: ignore[arg-type]
    torch.testing.assert_close(weighed, snr.clamp(max=5) * squared_errors(clean, latents), rtol=2e-3, atol=1e-5)


def test_tangos_weights_are_those_of_noise_and_equal_for_noise() -> None:
    snr = torch.logspace(-2, 2, 9)
    torch.testing.assert_close(loss_weights(snr, "v_prediction", mode="tango"), loss_weights(snr, "epsilon"))
    torch.testing.assert_close(loss_weights(snr, "epsilon", mode="tango"), loss_weights(snr, "epsilon"))
    assert loss_weights(snr, "epsilon", gamma=None).eq(1).all()


def test_levels_average_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    losses, at = torch.rand(500, generator=generator), torch.randint(0, 1000, (500,), generator=generator)
    means = level_means(losses, at, 1000)
    counts = torch.bincount(at // 100, minlength=10)
    assert float(losses.mean()) == pytest.approx(float((torch.tensor(means) * counts).sum() / 500), rel=1e-5)
    assert level_means(losses[:1], at[:1] * 0, 1000)[1:] == [None] * 9


# --- batches --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**40))
def test_epochs_follow_one_another_without_a_gap(clips: int, size: int, seed: int) -> None:
    steps = -(-4 * clips // size)
    rows = np.concatenate([batch_rows(clips, size, seed, step) for step in range(steps)])
    for epoch in range(len(rows) // clips):
        assert sorted(rows[epoch * clips : (epoch + 1) * clips]) == list(range(clips))


def test_a_plan_follows_from_seed_and_step_alone() -> None:
    def plan(seed: int, step: int) -> list[list[object]]:
        made = plan_batch(20, 8, seed, step, dropout=Dropout(), mixtures=3, counts=(0, 1, 3), neighbors=10)
        return [getattr(made, field.name).tolist() for field in dataclasses.fields(made)]

    later = plan(5, 100)
    assert plan(5, 0) != later and plan(5, 100) == later and plan(6, 100) != later
    assert len({noise_seed(seed, step) for seed in range(3) for step in range(100)}) == 300


def test_shares_of_dropout_and_counts_over_many_steps() -> None:
    plans = [plan_batch(50, 32, 0, step, dropout=Dropout(), counts=(0, 1, 3, 5), neighbors=50) for step in range(200)]
    prompt, references = (
        np.concatenate([getattr(plan, name) for plan in plans]) for name in ("drop_prompt", "drop_references")
    )
    # 6,400 coins: four standard deviations are at most 0.018
    assert (prompt & references).mean() == pytest.approx(0.1, abs=0.015)
    assert (references & ~prompt).mean() == pytest.approx(0.1, abs=0.015)
    assert (prompt & ~references).mean() == pytest.approx(0.05, abs=0.011)
    counts = np.concatenate([plan.counts for plan in plans])
    assert [float((counts == k).mean()) for k in (0, 1, 3, 5)] == pytest.approx([0.25] * 4, abs=0.022)
    picks = np.concatenate([plan.picks for plan in plans])
    assert (np.sort(picks, axis=1) == np.arange(50)).all()  # without repetition
    assert set(picks[:, 0]) == set(range(50))  # any neighbor, not only the nearest


@pytest.mark.parametrize("length", [50, 45, 10, 5, 2, 0])
def test_a_list_of_any_length_gives_the_number_that_was_drawn_if_it_has_it(length: int) -> None:
    found, plan = np.arange(100, 100 + length), plan_batch(100, 64, 0, 3, counts=(0, 1, 3, 5), neighbors=50)
    picked = [pick_neighbors(found, picks, count) for picks, count in zip(plan.picks, plan.counts, strict=True)]
    assert set(plan.counts) == {0, 1, 3, 5}
    assert [len(set(each)) for each in picked] == np.minimum(plan.counts, length).tolist()
    assert set(np.concatenate(picked)) <= set(found)


def test_a_mixture_never_mixes_a_clip_with_itself() -> None:
    for step in range(100):
        plan = plan_batch(3, 4, 1, step, mixtures=4)
        firsts = plan.rows[4:]
        assert (firsts != plan.partners).all() and set(firsts) <= set(plan.rows[:4])
    with pytest.raises(ValueError, match="two different clips"):
        plan_batch(1, 1, 0, 0, mixtures=1)


# --- examples -------------------------------------------------------------------------------------------------------


def _clips(ids: list[str], digests: list[str]) -> Clips:
    waves = np.zeros((len(ids), 4), np.float32)
    names = tuple(ids)
    return Clips(names, names, names, waves, tuple(digests), (), 0, 0, (), (0,) * len(ids))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20)), min_size=6, max_size=40),
    st.integers(0, 100),
    st.floats(0.05, 0.6),
)
def test_no_recording_and_no_audio_is_on_both_sides(pairs: list[tuple[int, int]], seed: int, share: float) -> None:
    clips = _clips([f"{recording}-{number}" for number, (recording, _) in enumerate(pairs)], [str(audio) for _, audio in pairs])
    try:
        train, held = split_clips(clips, share, seed, r"^(\d+)-")
    except ValueError:
        return  # all clips are linked to one another
    assert sorted([*train, *held]) == list(range(len(pairs))) and len(train) and len(held)
    for side in (0, 1):
        assert not {pairs[row][side] for row in train} & {pairs[row][side] for row in held}


def test_a_group_that_does_not_match_is_named() -> None:
    clips = _clips(["a-1", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"does not match 1 of \d clip ids \('b'\)"):
        split_clips(clips, 0.5, 0, r"^(\w+)-")
    with pytest.raises(ValueError, match="parentheses"):
        split_clips(clips, 0.5, 0, r"^\w+")


def test_a_part_of_the_cache_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), cached(tmp_path, "part", 1) as (folder, fresh):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt
    with cached(tmp_path, "part", 1) as (folder, fresh):
        assert fresh and not any(folder.iterdir())
    with cached(tmp_path, "part", 1) as (_, fresh):
        assert not fresh
    with cached(tmp_path, "part", 2) as (_, fresh):
        assert fresh


# --- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[optimizer]\nlearning_rat = 1e-3",
            r"run\.toml, \[optimizer\]: unknown key 'learning_rat'; did you mean",
        ),
        ("[optimiser]\nsteps = 3", r"unknown key 'optimiser'; did you mean optimizer\?"),
        ("optimizer = 3", "optimizer should be a table, got 3"),
        ("[optimizer]\nsteps = '3'", r"\[optimizer\]: steps should be a whole number, got '3'"),
        ("preset = 'tiny'", "there is no preset 'tiny'; there are tiny-cpu"),
        ("preset = 'tiny-cpu'", "nothing to train on"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_train_config(tmp_path / "run.toml")


def test_settings_go_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("preset = 'tiny-cpu'\n[data]\ntrain = 'a.csv'\n[optimizer]\nsteps = 7\n[start]\nfrom = 'x'\n")
    config = load_train_config(path, settings=("optimizer.batch=3", "data.group=^(\\d+)-"))
    assert (config.optimizer.steps, config.optimizer.batch, config.optimizer.ema) == (7, 3, 0.995)
    assert config.start.source == "x" and config.data.group == r"^(\d+)-"
    assert make_config(TrainConfig, config_values(config)) == config  # what a card echoes makes the same configuration


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole_and_known(name: str) -> None:
    from auscult.generation.denoiser import PRESETS as DENOISERS

    config = load_train_config(preset=name, settings=("data.train=x",))
    assert config.preset == name == preset_values(name)["preset"]
    assert config.denoiser.preset in DENOISERS


@pytest.mark.parametrize("name", ["paper-s", "paper-l", "tango"])
def test_a_published_model_takes_a_step_on_the_meta_device(name: str) -> None:
    """Shapes alone: latents of 10.24 s are 8 x 256 x 16, and every weight gets a gradient."""
    from auscult.generation.conditioning import Conditions, Tokens, references
    from auscult.generation.denoiser import build, predict
    from auscult.generation.examples import duration_samples
    from auscult.generation.mel import MelSpec
    from auscult.generation.preparing import _denoiser_preset

    config = load_train_config(preset=name, settings=("data.train=x",))
    spec, shape = MelSpec(win_length=config.mel.n_fft, **vars(config.mel)), _denoiser_preset(config)
    frames = duration_samples(config.data.duration_s, spec, 4 * 2 ** (len(shape.channels) - 1)) // spec.hop_length
    assert frames == 1024
    with torch.device("meta"):
        unet = build(shape)
        latents, noise = torch.empty(2, 2, shape.latent_channels, frames // 4, spec.n_mels // 4)
        text = Tokens(torch.empty(6, 50, shape.text_dim), torch.ones(6, 50, dtype=torch.bool))
        conditions = Conditions(None, text.values[:2], text.mask[:2])
        if shape.family == "retrieval":
            audio = Tokens(torch.empty(6, 75, shape.audio_dim), torch.ones(6, 75, dtype=torch.bool))
            conditions = dataclasses.replace(references(text, audio, [1, 5], 5), prompt=torch.empty(2, shape.prompt_dim))
        at, abar = torch.zeros(2, dtype=torch.long), torch.ones(1000)
        predicted = predict(unet, noisy_latents(latents, noise, abar, at), at, conditions)
        squared_errors(predicted, target(latents, noise, abar, at, config.objective.prediction)).mean().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_published_hyper_parameters() -> None:
    tango = load_train_config(preset="tango", settings=("data.train=x",))
    assert tango.optimizer == OptimizerConfig(62200, 32, 4, 3e-5, 0, "linear", 1e-2, (0.9, 0.999), 1.0, 0.0)
    assert (tango.objective.snr_mode, tango.objective.snr_gamma, tango.objective.prediction) == ("tango", 5.0, "v_prediction")
    assert (tango.objective.beta_start, tango.objective.beta_end, tango.mixing.share) == (0.00085, 0.012, 0.5)
    for name in ("paper-s", "paper-l"):
        paper = load_train_config(preset=name, settings=("data.train=x",))
        assert (paper.optimizer.learning_rate, paper.optimizer.batch, paper.optimizer.decay) == (5e-5, 4, "constant")
        assert (paper.objective.prediction, paper.objective.snr_mode, paper.data.duration_s) == ("epsilon", "none", 10.24)
        assert (paper.objective.beta_start, paper.objective.beta_end, paper.retrieval.neighbors) == (0.0015, 0.0195, 50)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.accumulation=3", "cannot be cut into 3"),
        ("dropout.everything=0.9", "at most 1"),
        ("retrieval.counts=[60]", "60 cannot be drawn"),
        ("mixing.ratio=1.0", "ratio"),
        ("data.duration_s=0", "positive"),
        ("codec.kind=pretrained", "source"),
        ("logging.validation_clips=0", "validation_clips should be at least 1, got 0"),
        ("logging.every=0", "every should be at least 1, got 0"),
        ("data.group=(a", "group is no regular expression"),
        ("data.group=^a-", "parentheses around the name"),
        ("threads=0", "threads should be at least 1, got 0"),
        ("optimizer", "such as optimizer.steps=100"),
    ],
)
def test_values_that_cannot_be_meant(setting: str, message: str) -> None:
    given = ("data.train=x", "dropout.retrieval=0.2", setting) if "dropout" in setting else ("data.train=x", setting)
    with pytest.raises(ValueError, match=message):
        load_train_config(preset="tiny-cpu", settings=given)


def test_a_stage_whose_name_tells_its_loss_is_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    from auscult.cli.progress import progress_bars

    with progress_bars() as progress:
        for step in range(1, 4):
            progress(step, 3, f"training | loss {1 / step:.2f}")
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("training | loss 0.33: 3 of 3")  # not a line for each new name


def test_the_rate_of_a_stage_that_goes_on_is_that_of_what_this_run_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from auscult.cli import progress as module

    clock = iter(range(100))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with module.progress_bars() as progress:
        for stage, first, total in (("training", 400, 404), ("a sheet", 0, 4), ("a sheet", 2, 4)):  # another sheet begins anew
            for step in range(first, total + 1):
                progress(step, total, f"{stage} | x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training | x: 404 of 404, 1.0/s"  # a second a step, not 101 of them
    assert [line.partition(", ")[2] for line in lines[1:]] == ["1.0/s", "1.0/s"]


def _levels_of(own: np.ndarray, null: np.ndarray) -> Levels:
    by_clip = {"own": tuple(own.tolist()), "null": tuple(null.tolist())}
    return Levels((500,), {name: (float(np.mean(values)),) for name, values in by_clip.items()}, len(own), by_clip)


def test_the_interval_of_the_gate_of_conditions_is_of_pairs() -> None:
    """Clips differ by 1 and more, the conditions spare 0.05 of each: unpaired, that would not be told from 0."""
    rng = np.random.default_rng(0)
    own, spared = rng.uniform(0.2, 3, 200), rng.normal(0.05, 0.02, 200)
    message = condition_gates(_levels_of(own, own + spared))[1].message
    low, high = (float(end) for end in message.partition("interval ")[2].split(" to "))
    exact = stats.t.interval(0.95, 199, spared.mean(), stats.sem(spared))
    assert (low, high) == pytest.approx(exact, abs=0.15 * (exact[1] - exact[0]))  # 200 draws


@pytest.mark.parametrize(("clips", "interval", "few"), [(5, False, True), (6, True, True), (19, True, True), (20, True, False)])
def test_the_gate_of_conditions_says_what_is_too_little_to_tell(clips: int, interval: bool, few: bool) -> None:
    own = np.linspace(0.5, 1, clips)
    for spared, chance in ((np.full(clips, 0.1), False), (np.resize([0.1, -0.09], clips), interval)):
        gate = condition_gates(_levels_of(own, own + spared))[1]
        assert gate.passed and ("95 % interval" in gate.message) == interval
        assert ("may be chance" in gate.message) == chance
        assert ("so few clips tell little: hold out more (data.validation_share)" in gate.message) == few


def test_gates_on_disk_are_json_and_come_back() -> None:
    gates = (GateResult("divergence", True, math.inf, 0.5, "nothing can collapse"), GateResult("data", True, 0.0, 0.0, "none"))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    rows = json.loads(gates_text(gates), parse_constant=refuse)
    assert [row["value"] for row in rows] == [None, 0.0]
    assert read_gates(gates_text(gates)) == gates


def test_the_figure_of_a_training_shows_differences_and_hides_no_curve() -> None:
    rng = np.random.default_rng(0)
    at = list(range(50, 1000, 100))
    own, other, null, zero = rng.random((4, len(at))).tolist()
    held_out = {"timesteps": at, "clips": 3, "losses": {"own": own, "other": other, "null": null, "zero": zero}}
    trained = {"timesteps": at, "clips": 3, "losses": {"own": own, "zero": zero}}
    lines = [{"step": 10, "error": 1.0}, {"step": 20, "training": trained, "validation": held_out}, {"step": 20, "error": 0.9}]
    figure = training_figure(lines)
    figure.canvas.draw()
    drawn = {line.get_label().split(" (")[0]: line.get_ydata() for line in figure.axes[2].lines}
    np.testing.assert_allclose(drawn["other"], np.subtract(other, own))
    np.testing.assert_allclose(drawn["null"], np.subtract(null, own))
    for area in figure.axes:
        below, box = area.get_legend().get_window_extent(), area.get_window_extent()
        assert not below.overlaps(box) and figure.bbox.contains(*below.min) and figure.bbox.contains(*below.max)
    without = training_figure([lines[0], {**lines[1], "validation": None}])  # nothing is held out
    assert not without.axes[2].axison and without.axes[1].lines
    assert not training_figure(lines[:1]).axes[1].axison  # nothing validated yet


def test_the_documentation_names_every_key() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text("utf-8")
    config = TrainConfig()
    for table in dataclasses.fields(TrainConfig):
        section = getattr(config, table.name)
        start = f"| `[{table.name}]` |" if dataclasses.is_dataclass(section) else "| (none) |"
        (row,) = [line for line in page.splitlines() if line.startswith(start)]
        fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else [table]
        for each in fields:
            assert f"`{each.metadata.get('key', each.name)}`" in row, (table.name, each.name)
            default = getattr(section, each.name) if dataclasses.is_dataclass(section) else section
            if isinstance(default, str) and default:
                assert f"`{each.name}` {default}" in row, (table.name, each.name)
            elif isinstance(default, (int, float)) and not isinstance(default, bool):
                number = row.partition(f"`{each.name}` ")[2].split()[0].rstrip(",")
                assert float(number) == default, (table.name, each.name)
