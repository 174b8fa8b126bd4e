"""Guidance around whole samplers: what it leaves alone, what it changes, and what it refuses."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch

import guidance_pipelines as gp
import tiny_pipelines
from auscult.errors import DescriptorMismatchError, ModelError
from auscult.guidance.adapters import Adapter
from auscult.guidance.amg import DEGENERATE, AmgConfig, AntiMemorization
from auscult.guidance.attach import attach
from auscult.guidance.basin import AttractionBasin, OppositeGuidance
from auscult.guidance.schedule import threshold
from auscult.guidance.terms import Correction, Moment, norms
from guidance_pipelines import PROMPTS, SUBJECTS, Fixed, Flat, Subject, index_of, one_each

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [3, 1, 4, 5]
ALWAYS = {"threshold_low": -2.0, "threshold_high": -2.0}
NEVER = {"threshold_low": float("inf"), "threshold_high": float("inf")}
OFF = {"despecification": 0.0, "deduplication": 0.0, "dissimilarity": 0.0}
SAMPLERS: dict[str, Any] = {
    "DDIM": lambda: d.DDIMScheduler(clip_sample=False),
    "DDPM": lambda: d.DDPMScheduler(clip_sample=False),
    "PNDM": lambda: d.PNDMScheduler(),
    "Euler": lambda: d.EulerDiscreteScheduler(prediction_type="v_prediction"),
    "EulerAncestral": lambda: d.EulerAncestralDiscreteScheduler(),
    "Heun": lambda: d.HeunDiscreteScheduler(),
    "KDPM2": lambda: d.KDPM2DiscreteScheduler(),
    "DPM++": lambda: d.DPMSolverMultistepScheduler(),
    "UniPC": lambda: d.UniPCMultistepScheduler(prediction_type="v_prediction"),
    "EDM": lambda: d.EDMDPMSolverMultistepScheduler(**tiny_pipelines.EDM),
    "Cosine": lambda: d.CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=80, prediction_type="v_prediction"),
    "FlowHeun": lambda: d.FlowMatchHeunDiscreteScheduler(),
}


@cache
def subject(name: str) -> Subject:
    return gp.made(name)


@cache
def plain(name: str, rows: int = 4, steps: int = 3, scale: float = 3.5) -> torch.Tensor:
    return subject(name)(PROMPTS[:rows], SEEDS[:rows], steps=steps, scale=scale)


def amg(index: Any, descriptor: Any = None, **settings: Any) -> AntiMemorization:
    return AntiMemorization(index, descriptor or Flat(), AmgConfig(**settings))


def close(found: torch.Tensor, expected: torch.Tensor, within: float = 2e-5) -> None:
    """Equal but for rounding, which random networks amplify; in shares of the largest number."""
    torch.testing.assert_close(found, expected, atol=within * float(expected.abs().max()), rtol=0)


def away(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).abs().max()) > 1e-3 * float(expected.abs().max())


def similarity(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(latents.flatten(1), reference.flatten(1), dim=1)


@dataclass
class Raises(Flat):
    error: BaseException | None = None
    at: int = 0

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        if step == self.at:
            raise self.error or RuntimeError("cannot describe this")
        return super().describe(x0, step)


# --- what cannot act changes nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", SUBJECTS)
def test_what_cannot_act_changes_no_bit_and_is_gone_afterwards(name: str, rows: int) -> None:
    it, expected = subject(name), plain(name, rows)
    before = {**vars(it.scheduler)}
    flags = [each.requires_grad for each in it.denoiser.parameters()]
    idle = [
        amg(index_of(expected), **OFF, **ALWAYS),
        amg(index_of(expected[:0]), **ALWAYS, deduplication=0),
        amg(index_of(expected), **NEVER, deduplication=0),
    ]
    with it.guided(*idle) as run:
        assert torch.equal(it(PROMPTS[:rows], SEEDS[:rows], steps=3), expected)
    assert len(run.trace.rows) == rows * len(it.scheduler.timesteps)
    assert all(row.scale == pytest.approx(3.5, abs=1e-5) for row in run.trace.rows)
    with pytest.raises(RuntimeError, match="cannot describe"), it.guided(amg(index_of(expected), Raises(at=1), **OFF)):
        it(PROMPTS[:rows], SEEDS[:rows], steps=3)
    assert torch.equal(it(PROMPTS[:rows], SEEDS[:rows], steps=3), expected)
    assert not it.denoiser._forward_hooks and vars(it.scheduler).keys() == before.keys()
    assert [each.requires_grad for each in it.denoiser.parameters()] == flags


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler(name: str) -> None:
    """Bitwise itself where nothing fires; with a similarity of 1/2 and c1 = 4, guidance of 6 is that of 4, at every stage."""
    if name == "Cosine":
        pytest.importorskip("torchsde")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array_")  # diffusers, of numpy 2
        it = gp.made("flow" if name == "FlowHeun" else "StableAudioPipeline", SAMPLERS[name]())
    signatures = [inspect.signature(getattr(it.scheduler, each)) for each in ("step", "set_timesteps")]
    expected = it(PROMPTS, SEEDS, scale=6)
    with it.guided(amg(index_of(expected), **NEVER, deduplication=0), Again()) as run:
        assert torch.equal(it(PROMPTS, SEEDS, scale=6), expected)
        assert [inspect.signature(getattr(it.scheduler, each)) for each in ("step", "set_timesteps")] == signatures
    steps = len(it.scheduler.timesteps)
    assert [(row.step, row.sample) for row in run.trace.rows] == [(step, row) for step in range(steps) for row in range(4)]
    lower = {**OFF, **ALWAYS, "despecification": 4.0}
    with it.guided(amg(one_each(PROMPTS), Fixed(), **lower)) as run:
        found = it(PROMPTS, SEEDS, scale=6)
    close(found, it(PROMPTS, SEEDS, scale=4))
    assert away(found, expected) and {round(row.s1, 4) for row in run.trace.rows} == {2.0}


# --- what acts does what the rule says --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_despecification_is_lower_guidance_and_so_is_deduplication_from_ones_own_caption(name: str) -> None:
    it, lower = subject(name), plain(name, scale=4)
    for term in ("despecification", "deduplication"):
        with it.guided(amg(one_each(PROMPTS), Fixed(), **{**OFF, **ALWAYS, term: 4.0})) as run:
            found = it(PROMPTS, SEEDS, steps=3, scale=6)
        close(found, lower)
        assert away(found, plain(name, scale=6))
        spent = "s1" if term == "despecification" else "s2"
        assert all(getattr(row, spent) == pytest.approx(2, abs=1e-4) and row.fired for row in run.trace.rows)
        assert [row.neighbor_caption for row in run.trace.rows[:4]] == PROMPTS


@dataclass
class Again:
    """Asks the denoiser again, and compares with what the pipeline heard."""

    captions: Sequence[str] | None = None
    name: str = "again"

    def __call__(self, moment: Moment) -> Correction:
        rows = torch.tensor([2, 0])
        again = moment.predict_again(moment.x_t[rows], rows)
        close(again, moment.c[rows])
        assert not away(moment.u + moment.scale.reshape(-1, *[1] * (again.ndim - 1)) * moment.direction, moment.guided)
        if self.captions is not None:
            close(moment.predict_others(rows, [self.captions[row] for row in rows.tolist()]), moment.c[rows])
            others = moment.predict_others(rows, ["thunder", "a frog"])
            assert norms(others - moment.c[rows]).min() > 1e-4 * norms(moment.c).max()
        return Correction()


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_denoiser_is_asked_again_as_the_loop_asked_it(name: str) -> None:
    it = subject(name)
    with it.guided(Again(PROMPTS)) as run:
        assert torch.equal(it(PROMPTS, SEEDS, steps=3), plain(name))
    assert len(run.trace.rows)


@pytest.mark.parametrize("family", ["retrieval", "tango", "audioldm2"])
def test_retrieved_pairs_stay_when_the_caption_is_another(family: str) -> None:
    it = subject(f"{gp.OURS}/{family}")
    waves = [np.sin(np.arange(8000) / (8 + number)).astype(np.float32) for number in range(3)]
    pairs = [[("a bell", waves[0]), ("a horn", waves[1])], [], [("a frog", waves[2])], []]
    for scales in ({}, {"retrieval_scale": 2.0}):
        expected = it(PROMPTS, SEEDS, steps=2, references=pairs, **scales)
        with it.guided(Again(PROMPTS)) as run:
            assert torch.equal(it(PROMPTS, SEEDS, steps=2, references=pairs, **scales), expected)
    assert len(run.trace.rows) == 8


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        (f"{gp.OURS}/tango", "x0"),
        ("AudioLDM2Pipeline", "denoiser"),
        ("MusicLDMPipeline", "x0"),
        ("StableAudioPipeline", "x0"),
        ("StableAudioPipeline", "denoiser"),
        ("flow", "denoiser"),
    ],
)
def test_a_batch_is_its_rows_alone_in_any_order(name: str, gradient: str) -> None:
    it, references = subject(name), plain(name)[:2]
    index = index_of(references, ["a bell", "a horn"])
    with it.guided(amg(index, **NEVER)) as watched:
        it(PROMPTS, SEEDS, steps=3)
    limit = float(np.median([row.similarity for row in watched.trace.rows]))
    settings = {"threshold_low": limit, "threshold_high": limit, "dissimilarity": 0.3, "gradient": gradient}
    found, patterns = [], []
    orders = [[0, 1, 2, 3], [2, 0, 3, 1], [0], [1], [2], [3]]
    for order in orders:
        with it.guided(amg(index, **settings)) as run:
            found.append(it([PROMPTS[row] for row in order], [SEEDS[row] for row in order], steps=3))
        patterns.append([[row.fired for row in run.trace.rows if row.sample == place] for place in range(len(order))])
    assert 0 < sum(map(sum, patterns[0])) < sum(map(len, patterns[0]))
    assert any(away(found[0][row], plain(name)[row]) for row in range(4))
    for order, latents, pattern in zip(orders[1:], found[1:], patterns[1:], strict=True):
        close(latents, found[0][order], 1e-4)
        assert pattern == [patterns[0][row] for row in order]


@pytest.mark.parametrize("gradient", ["x0", "denoiser"])
@pytest.mark.parametrize("name", ["StableAudioPipeline", "StableAudio3Pipeline", "LongCatAudioDiTPipeline", "AudioLDMPipeline"])
def test_in_inference_mode_and_again_it_is_the_same_and_draws_no_random_numbers(name: str, gradient: str) -> None:
    it = subject(name)
    term = amg(index_of(plain(name)[:1], ["a bell"]), **ALWAYS, gradient=gradient)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with it.guided(term) as run:
        one = it(PROMPTS, SEEDS, steps=3)
        with torch.inference_mode():
            other = it(PROMPTS, SEEDS, steps=3)
    assert torch.equal(one, other) and away(one, plain(name))
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert np.array_equal(states[1], np.random.get_state()[1])
    records = [replace(row, call=0) for row in run.trace.rows]
    assert records[: len(records) // 2] == records[len(records) // 2 :]
    assert {row.call for row in run.trace.rows} == {0, 1} and all(row.gradient_norm > 0 for row in run.trace.rows)


def test_the_more_dissimilarity_the_less_of_the_reference_is_left() -> None:
    it = subject("StableAudioPipeline")
    reference = plain("StableAudioPipeline", 1, 20)
    found = []
    for strength in (0.0, 0.1, 1.0, 3.0):
        with it.guided(amg(index_of(reference), **{**OFF, **ALWAYS, "dissimilarity": strength})) as run:
            found.append(float(similarity(it(PROMPTS[:1], SEEDS[:1], steps=20), reference)))
        if strength:
            assert all(row.shift_ratio == pytest.approx(strength, rel=1e-4) for row in run.trace.rows)
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(1) and found[-1] < 0.8


def test_corrections_of_several_terms_add_up() -> None:
    it, half = subject("flow"), {**OFF, **ALWAYS, "despecification": 2.0}
    terms = [amg(one_each(PROMPTS), Fixed(), **half) for _ in range(2)]
    with it.guided(*terms):
        found = it(PROMPTS, SEEDS, steps=3, scale=6)
    close(found, plain("flow", scale=4))


@dataclass
class Shift:
    """A term that adds the same everywhere, in some rows."""

    acts: Sequence[bool]
    by: float = 1.0
    name: str = "shift"

    def __call__(self, moment: Moment) -> Correction:
        return Correction(torch.full_like(moment.guided, self.by), torch.tensor(self.acts), {"fired": list(self.acts)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    """The scale is read off, what acts stays of the dtype and as exact as it, and rows that do not act keep every bit."""
    pipe = gp.made("StableAudioPipeline").pipe.to(dtype)
    it = gp.of_pipe(pipe)
    expected = it(PROMPTS, SEEDS, steps=3, scale=7)
    with it.guided(Shift([False, True, False, True], by=0.0)) as run:
        assert torch.equal(it(PROMPTS, SEEDS, steps=3, scale=7), expected)
    assert all(row.scale == pytest.approx(7, rel=1e-2 if dtype == torch.bfloat16 else 1e-3) for row in run.trace.rows)
    with it.guided(amg(one_each(PROMPTS), Fixed(), **{**ALWAYS, "dissimilarity": 0.0})) as run:
        found = it(PROMPTS, SEEDS, steps=3, scale=7)
    assert found.dtype == dtype and torch.isfinite(found).all() and away(found, expected)
    with it.guided(Shift([False, True, False, True])):
        found = it(PROMPTS, SEEDS, steps=3, scale=7)
    assert torch.equal(found[::2], expected[::2]) and all(away(found[row], expected[row]) for row in (1, 3))


# --- without guidance, or with a prompt that changes nothing ----------------------------------------------------------


def test_a_prompt_that_changes_nothing_leaves_the_gate_closed() -> None:
    it = subject("StableAudioPipeline")
    given = {"negative_prompt": ["hiss", PROMPTS[1], "hiss", PROMPTS[3]]}
    expected = it(PROMPTS, SEEDS, steps=3, **given)
    with it.guided(amg(index_of(expected, PROMPTS), **ALWAYS, units="norm")) as run:
        found = it(PROMPTS, SEEDS, steps=3, **given)
    assert torch.equal(found[1::2], expected[1::2]) and all(away(found[row], expected[row]) for row in (0, 2))
    assert [row.fired for row in run.trace.rows] == [True, False] * 6
    assert {row.reason for row in run.trace.rows if not row.fired} == {DEGENERATE}


def test_a_weak_prompt_in_half_precision_is_no_prompt_that_changes_nothing() -> None:
    """Of bfloat16's rounding a prompt may change little more in each number, and yet much in all of them together."""

    class Weak(torch.nn.Module):
        def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return (x + 0.02 * torch.sign(tokens) * torch.roll(x, 1, -1)).bfloat16()

    denoiser, scheduler = Weak(), d.FlowMatchEulerDiscreteScheduler()
    latents, adapter = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0)).bfloat16(), Adapter()
    scheduler.set_timesteps(2)
    with attach(None, denoiser=denoiser, scheduler=scheduler, adapter=adapter) as run:
        for timestep in scheduler.timesteps:
            u, c = denoiser(latents, torch.zeros(2, 1)), denoiser(latents, torch.ones(2, 1))
            latents = scheduler.step(u + 5 * (c - u), timestep, latents).prev_sample
    assert all(row.scale == pytest.approx(5, rel=0.02) for row in run.trace.rows)


@pytest.mark.parametrize("name", ["StableAudioPipeline", f"{gp.OURS}/tango", "flow"])
def test_without_classifier_free_guidance_dissimilarity_acts_and_the_others_cannot(name: str) -> None:
    it, expected = subject(name), plain(name, scale=1)
    index = index_of(expected, PROMPTS)
    with it.guided(amg(index, **ALWAYS, deduplication=0.5, units="paper", dissimilarity=1000.0)) as run:
        assert away(it(PROMPTS, SEEDS, steps=3, scale=1), expected)
    assert all(row.fired and row.scale is None and row.s1 == row.s2 == 0 for row in run.trace.rows)
    assert all("no classifier-free guidance" in row.reason for row in run.trace.rows)
    for settings in ({**OFF, "despecification": 1.0}, {**OFF, "deduplication": 1.0}, {**OFF, "dissimilarity": 1.0}):
        # whether it fires or not: a run must not end hours later, at the first sample that does
        with (
            pytest.raises(ModelError, match=r"runs without.*guidance_scale above 1"),
            it.guided(amg(index, **settings, **NEVER)),
        ):
            it(PROMPTS, SEEDS, steps=3, scale=1)
    with it.guided(amg(index, **ALWAYS, **OFF)) as run:
        assert torch.equal(it(PROMPTS, SEEDS, steps=3, scale=1), expected)


# --- what is computed, and what is written down -----------------------------------------------------------------------


def test_nothing_is_computed_that_is_not_needed() -> None:
    """The denoiser, the descriptor and the encoder of captions are asked no more often than a step's decision needs."""
    it, steps = gp.made("flow"), 6
    expected = it(PROMPTS, SEEDS, steps=steps)
    calls: list[str] = []
    encode = it.adapter.encode
    it = replace(it, adapter=replace(it.adapter, encode=lambda caption: calls.append(caption) or encode(caption)))
    counts: list[int] = []
    handle = it.denoiser.register_forward_hook(lambda *args: counts.append(len(args[2])))

    def counted(**settings: Any) -> tuple[list[int], Flat, list[str]]:
        counts.clear(), calls.clear()
        descriptor = Flat()
        with it.guided(amg(index_of(expected[:2], ["a bell", "a bell"]), descriptor, **settings)):
            it(PROMPTS, SEEDS, steps=steps)
        return [*counts], descriptor, [*calls]

    plainly = [4] * (2 * steps)
    found, descriptor, encoded = counted(**NEVER)
    assert found == plainly and descriptor.calls == [*range(steps)] and not encoded
    assert counted(**NEVER, every=4)[1].calls == [0, 1]
    assert counted(**NEVER, start=0.3, stop=0.8)[1].calls == [0, 1, 2]
    found, descriptor, encoded = counted(**ALWAYS, deduplication=0.0)
    assert found == plainly and descriptor.calls == sorted([*range(steps)] * 2) and not encoded
    found, descriptor, encoded = counted(**ALWAYS, deduplication=0.0, dissimilarity=0.0)
    assert found == plainly and descriptor.calls == [*range(steps)]
    found, _, encoded = counted(**ALWAYS, deduplication=0.1, despecification=0.0, dissimilarity=0.0)
    assert len(found) >= 2 * steps + 1 and encoded == ["a bell"]
    found, _, _ = counted(**ALWAYS, deduplication=0.0, gradient="denoiser")
    assert found == [4] * (3 * steps)
    handle.remove()


def test_gradients_are_computed_for_fired_rows_alone() -> None:
    it, descriptor = subject("flow"), Flat()
    index = index_of(plain("flow")[2:3])
    with it.guided(amg(index, descriptor, **{**OFF, "dissimilarity": 0.1}, threshold_low=0.9, threshold_high=0.9)) as run:
        it(PROMPTS, SEEDS, steps=3)
    fired = [row.sample for row in run.trace.rows if row.fired]
    assert set(fired) == {2} and sorted(descriptor.rows) == [1] * len(fired) + [4] * 3


@pytest.mark.parametrize("schedule", ["alpha_bar", "progress", "constant"])
def test_the_trace_says_which_threshold_and_why(schedule: Any) -> None:
    it = subject("StableAudioPipeline")
    index = index_of(plain("StableAudioPipeline")[:2], ["a bell", None], ids=["bell", "horn"])
    with it.guided(amg(index, threshold_low=0.2, threshold_high=0.6, schedule=schedule)) as run:
        it(PROMPTS, SEEDS, steps=5)
    steps = {row.step: row for row in run.trace.rows}
    limits = [steps[step].threshold for step in range(5)]
    assert limits == sorted(limits) and limits[0] >= 0.2 and limits[-1] <= 0.6
    sigmas = [steps[step].sigma for step in range(5)]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] == pytest.approx(500)
    for row in run.trace.rows:
        expected = threshold(schedule, 0.2, 0.6, step=row.step, steps=5, sigma=row.sigma, alpha_bar=1 / (1 + row.sigma**2))
        assert row.threshold == pytest.approx(expected) and row.fired == (row.similarity > row.threshold)
        assert row.neighbor in ("bell", "horn") and row.neighbor_caption == {"bell": "a bell", "horn": None}[row.neighbor]
        assert ("has no caption" in row.reason) == (row.fired and row.neighbor == "horn" and row.s1 < row.scale - 1)
        assert row.timestep == pytest.approx(0.25 * np.log(row.sigma), abs=1e-5)
    assert any(row.fired for row in run.trace.rows) and not all(row.fired for row in run.trace.rows)


def test_calls_are_told_apart_also_when_one_stops_halfway_or_a_loop_sets_no_time_steps() -> None:
    pipe = gp.made(f"{gp.OURS}/tango").pipe
    it = gp.of_pipe(pipe)

    def stop(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    with it.guided() as run:
        it(PROMPTS[:1], SEEDS[:1], steps=3, callback_on_step_end=stop)
        it(PROMPTS[:2], SEEDS[:2], steps=3)
    assert [row.call for row in run.trace.rows] == [0] * 2 + [1] * 6
    loop = gp.made("flow", d.FlowMatchEulerDiscreteScheduler())
    loop.scheduler.set_timesteps(3)
    with loop.guided() as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.scheduler, "set_timesteps", lambda *args, **given: setattr(loop.scheduler, "_step_index", None))
        for _ in range(2):
            loop(PROMPTS[:1], SEEDS[:1], steps=3)
    assert [(row.call, row.step) for row in run.trace.rows] == [(call, step) for call in range(2) for step in range(3)]


def test_several_waveforms_of_a_prompt_are_rows() -> None:
    it = subject("StableAudioPipeline")
    given = {"num_waveforms_per_prompt": 2}
    expected = it(PROMPTS[:2], SEEDS, steps=3, **given)
    with it.guided(amg(index_of(expected[2:3], ["a bell"]), **ALWAYS)) as run:
        found = it(PROMPTS[:2], SEEDS, steps=3, **given)
    assert len(run.trace.rows) == 12 and all(away(found[row], expected[row]) for row in range(4))


# --- what is refused, and what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), MemoryError(), torch.OutOfMemoryError("no memory"), KeyboardInterrupt()], ids=repr
)
def test_what_a_descriptor_raises_is_raised(error: BaseException) -> None:
    it = subject("flow")
    with pytest.raises(type(error)), it.guided(amg(index_of(plain("flow")), Raises(error=error, at=2), **OFF)):
        it(PROMPTS, SEEDS, steps=3)
    assert torch.equal(it(PROMPTS, SEEDS, steps=3), plain("flow"))


def test_a_context_goes_on_after_an_error_within() -> None:
    it = subject("flow")
    with it.guided(amg(index_of(plain("flow")), Raises(at=2), **OFF)) as run:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot describe"):
                it(PROMPTS, SEEDS, steps=3)
    assert [row.call for row in run.trace.rows] == [0] * 8 + [1] * 8


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (d.DDIMScheduler(), "clip_sample"),
        (d.DPMSolverMultistepScheduler(thresholding=True), "thresholding"),
        (d.LCMScheduler(), "distilled"),
        (d.VQDiffusionScheduler(4), "should be one of"),
    ],
)
def test_samplers_whose_steps_cannot_be_corrected_are_refused(scheduler: Any, message: str) -> None:
    pipe = gp.made("StableAudioPipeline", scheduler).pipe
    with pytest.raises(ValueError, match=message), attach(pipe):
        pass
    assert not vars(scheduler).keys() & {"step", "set_timesteps"} and not pipe.transformer._forward_hooks


def test_one_guidance_at_a_time_and_a_scheduler_of_two_pipelines() -> None:
    it, other = gp.made("StableAudioPipeline"), gp.made("StableAudioPipeline")
    other.pipe.scheduler = it.pipe.scheduler
    with it.guided() as run:
        for pipe in (it.pipe, other.pipe):
            with pytest.raises(ModelError, match=r"under guidance already.*attach\(pipe, term, another\)"), attach(pipe):
                pass
        it(PROMPTS, SEEDS, steps=3)
        with pytest.raises(ModelError, match="StableAudioDiTModel under guidance was not called before"):
            gp.of_pipe(other.pipe)(PROMPTS, SEEDS, steps=3)
    assert len(run.trace.rows) == 12
    with other.guided() as run:
        gp.of_pipe(other.pipe)(PROMPTS, SEEDS, steps=3)


def test_a_wrapper_of_somebody_else_is_there_again_afterwards() -> None:
    it, steps = gp.made("flow"), []
    original = it.scheduler.step
    it.scheduler.step = lambda model_output, timestep, sample: (
        steps.append(timestep) or original(model_output, timestep, sample)
    )
    wrapper = it.scheduler.step
    with it.guided():
        it(PROMPTS, SEEDS, steps=3)
    assert it.scheduler.step is wrapper and len(steps) == 3


def test_a_scheduler_that_is_never_stepped_is_said() -> None:
    """Not to be taken for a run in which nothing fired."""
    it = gp.made("flow")
    with pytest.raises(ModelError, match=r"called 6 times.*FlowMatchEulerDiscreteScheduler.*never stepped"), it.guided():
        gp._run_flow(replace(it, scheduler=d.FlowMatchEulerDiscreteScheduler()), PROMPTS, SEEDS, 3, 3.5)
    with it.guided() as run:
        pass
    assert not run.trace.rows


@pytest.mark.parametrize(("steps", "calls"), [(3, 6), (12, 9)])
def test_a_scheduler_replaced_between_two_calls_is_said(steps: int, calls: int) -> None:
    """At the end, or as soon as more calls wait than a step takes."""
    it = gp.made("flow")
    with pytest.raises(ModelError, match=rf"called {calls} times.*not stepped since"), it.guided() as run:
        it(PROMPTS, SEEDS, steps=3)
        gp._run_flow(replace(it, scheduler=d.FlowMatchEulerDiscreteScheduler()), PROMPTS, SEEDS, steps, 3.5)
    assert len(run.trace.rows) == 12


def test_whether_it_fired_is_of_the_term_that_compares() -> None:
    it = subject("flow")
    for settings in ({**NEVER}, {**ALWAYS, "start": 0.9}):  # a gate that is shut, and a step at which nobody looks
        watching = amg(one_each(PROMPTS), Fixed(), **{**OFF, **settings})
        for terms in ([watching, AttractionBasin()], [AttractionBasin(), watching]):
            with it.guided(*terms) as run:
                it(PROMPTS, SEEDS, steps=2)
            assert [row.facts for row in run.trace.rows] == [{"attraction basin": True}] * 4 + [{"attraction basin": False}] * 4
            assert not any(row.fired for row in run.trace.rows)
    with it.guided(AttractionBasin()) as run:
        it(PROMPTS, SEEDS, steps=2)
    assert [row.fired for row in run.trace.rows] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("basin", [AttractionBasin(), OppositeGuidance((1,) * 4)])
@pytest.mark.parametrize("taking", ["despecification", "deduplication"])
def test_two_terms_do_not_take_from_the_same_scale(basin: Any, taking: str) -> None:
    it = subject("flow")
    beside = amg(one_each(PROMPTS), Fixed(), **{**OFF, taking: 1.0})
    with (
        pytest.raises(ValueError, match=f"{basin.name} and the despecification.*set despecification=0"),
        it.guided(beside, basin),
    ):
        pass
    with it.guided(amg(one_each(PROMPTS), Fixed(), **{**OFF, **NEVER, "dissimilarity": 1.0}), basin):
        it(PROMPTS, SEEDS, steps=2)


def test_what_cannot_be_attached_to_is_named() -> None:
    it = subject("flow")
    loop = {"denoiser": it.denoiser, "scheduler": it.scheduler}
    pipe = subject("StableAudioPipeline").pipe
    for given in ({}, {"denoiser": it.denoiser}, {"pipe": pipe, **loop}, {"pipe": pipe, "scheduler": it.scheduler}):
        with pytest.raises(ValueError, match="give a pipeline, or None and a denoiser and a scheduler"), attach(**given):
            pass
    with pytest.raises(ModelError, match=r"a Shift is not known.*StableAudioPipeline.*attach\(denoiser="), attach(Shift([])):
        pass
    captioned = amg(index_of(plain("flow"), PROMPTS))
    with pytest.raises(ModelError, match=r"cannot encode them.*deduplication=0"), attach(None, captioned, **loop):
        pass
    with pytest.raises(ValueError, match="knows none"):
        amg(index_of(plain("flow")))
    with pytest.raises(DescriptorMismatchError):
        amg(index_of(plain("flow")), Flat("another"))


def test_a_loop_that_an_adapter_does_not_describe() -> None:
    denoiser, scheduler = torch.nn.Identity(), d.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    with (
        attach(None, denoiser=denoiser, scheduler=scheduler),
        pytest.raises(ModelError, match=r"predictions for 2 samples each, heard \[3\] rows in 1 calls"),
    ):
        denoiser(torch.zeros(3, 4))
        scheduler.step(torch.zeros(2, 4), scheduler.timesteps[0], torch.zeros(2, 4))


def test_numbers_that_are_not_finite_stop_the_run() -> None:
    it = subject("flow")
    with pytest.raises(ModelError, match=r"not finite.*lower its strengths"), it.guided(Shift([True] * 4, by=float("inf"))):
        it(PROMPTS, SEEDS, steps=3)
    with it.guided(Shift([False] * 4, by=float("nan"))):
        assert torch.equal(it(PROMPTS, SEEDS, steps=3), plain("flow"))
    with it.guided(Shift([False, True, False, False]), Shift([False, False, True, False], by=2.0)):
        found = it(PROMPTS, SEEDS, steps=3)
    assert [away(found[row], plain("flow")[row]) for row in range(4)] == [False, True, True, False]


def test_offloading_is_warned_of() -> None:
    it = gp.made("flow")
    it.denoiser._hf_hook = object()
    with pytest.warns(UserWarning, match="on and off the device"), it.guided():
        it(PROMPTS, SEEDS, steps=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_denoisers(whole: bool) -> None:
    pipe = gp.made("StableAudioPipeline").pipe
    index = index_of(plain("StableAudioPipeline"), PROMPTS)
    if whole:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile(backend="eager")
    it = gp.of_pipe(pipe)
    close(it(PROMPTS, SEEDS, steps=3), plain("StableAudioPipeline"))
    for gradient in ("x0", "denoiser"):
        term = amg(index, **ALWAYS, gradient=gradient)
        with it.guided(term) as run:
            found = it(PROMPTS, SEEDS, steps=3)
        with subject("StableAudioPipeline").guided(term):
            close(found, subject("StableAudioPipeline")(PROMPTS, SEEDS, steps=3), 1e-4)
        assert len(run.trace.rows) == 12
    close(it(PROMPTS, SEEDS, steps=3), plain("StableAudioPipeline"))
    assert not pipe.transformer._forward_hooks
