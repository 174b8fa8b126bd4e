"""Mitigations beside AMG: a basin is left, noise is moved to where a prompt pulls less, a neighborhood is avoided."""

from __future__ import annotations

import itertools
import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch

import tiny_pipelines
from auscult.errors import DescriptorMismatchError
from auscult.generation.pipelines import quiet
from auscult.guidance.attach import attach
from auscult.guidance.basin import AttractionBasin, OppositeGuidance, transitions
from auscult.guidance.coefficients import Coefficients
from auscult.guidance.index import ReferenceIndex
from auscult.guidance.noise import LEVEL, RHO, adjusted_noise, descended_noise, text_pull
from auscult.guidance.preparing_noise import adjusting_noise, first_step, prepare_latents
from auscult.guidance.subspace import SubspaceRepulsion, log_distance, orthonormal_basis
from auscult.guidance.terms import Moment

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 16  # of a toy latent
MEMORIZED = torch.zeros(SIZE).index_fill_(0, torch.tensor([0]), 4.0)


# --- a denoiser with a closed form ------------------------------------------------------------------------------------


def unconditional(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x0 that is most likely on average if sounds are N(0, 1) and ``x = x0 + sigma noise``."""
    return x / (1 + sigma**2)


def conditional(x: torch.Tensor, sigma: float, weight: float = 0.7) -> torch.Tensor:
    """The same if a share of this prompt's sounds is one memorized clip, and the others are as without a prompt."""
    plain = unconditional(x, sigma)
    spread = 1 + sigma**2
    log_plain = math.log(1 - weight) - x.square().sum(-1) / (2 * spread) - SIZE / 2 * math.log(spread)
    log_copy = math.log(weight) - (x - MEMORIZED).square().sum(-1) / (2 * sigma**2) - SIZE * math.log(sigma)
    share = torch.sigmoid(log_copy - log_plain)[..., None]
    return share * MEMORIZED + (1 - share) * plain


def step_of(sigma: float) -> Coefficients:
    """Of a sampler whose network predicts x0."""
    return Coefficients(a=1.0, b=sigma, p=0.0, q=1.0)


def moment_of(
    u: torch.Tensor | None, c: torch.Tensor, scale: float | torch.Tensor, *, x: torch.Tensor | None = None, **settings: Any
) -> Moment:
    """A step in which guidance is as in the formula."""
    scales = torch.ones(len(c)) * scale
    direction = torch.zeros_like(c) if u is None else c - u
    guided = c if u is None else u + scales.reshape(-1, *[1] * (c.ndim - 1)) * direction
    values = {"number": 0, "total": 10, "timestep": 0.0, "coefficients": step_of(1.0)} | settings
    return Moment(
        x_t=torch.zeros_like(c) if x is None else x,
        guided=guided,
        u=u,
        c=c,
        scale=scales,
        direction=direction,
        degenerate=(direction == 0).flatten(1).all(1) if u is not None else torch.zeros(len(c), dtype=torch.bool),
        **values,
    )


def sampled(noise: torch.Tensor, *terms: Any, scale: float = 3.0, steps: int = 40) -> torch.Tensor:
    """Deterministic sampling from sigma 20 to 0.02 (Euler on the probability flow), guided by the formula and by terms."""
    sigmas = np.geomspace(20.0, 0.02, steps + 1).tolist()
    x, states = noise * sigmas[0], [{} for _ in terms]
    for number, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        moment = moment_of(
            unconditional(x, sigma),
            conditional(x, sigma),
            scale,
            x=x,
            number=number,
            total=steps,
            coefficients=step_of(sigma),
        )
        x0 = moment.guided
        for term, state in zip(terms, states, strict=True):
            found = term(replace(moment, state=state))
            x0 = x0 if found.shift is None else x0 + found.shift
        x = x0 + following / sigma * (x - x0)
    return x


def copies(sounds: torch.Tensor) -> float:
    """Share of the sounds that are the memorized one."""
    return float(((sounds - MEMORIZED).norm(dim=-1) < 1.0).double().mean())


def noises(count: int, seed: int = 0, size: tuple[int, ...] = (SIZE,)) -> torch.Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


# --- attraction basin -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", [AttractionBasin(), AttractionBasin(-1.0, 0.5)])
def test_a_sample_that_is_not_guided_at_first_leaves_the_basin(term: AttractionBasin) -> None:
    noise = noises(200)
    assert copies(sampled(noise)) > 0.95
    assert copies(sampled(noise, term)) < 0.05


def test_a_scale_of_one_copies_as_often_as_the_prompt_itself() -> None:
    """No norm has a minimum here, so the dynamic form samples what the network has learned: 7 copies in 10."""
    found = copies(sampled(noises(400), AttractionBasin.dynamic()))
    assert found == pytest.approx(0.7, abs=3 * math.sqrt(0.7 * 0.3 / 400))


def test_the_lower_scale_is_exact_and_ends_at_the_transition() -> None:
    u, c = noises(3, 1), noises(3, 2)
    term = AttractionBasin(before=-2.0, until=0.35)
    for number in range(20):
        moment = moment_of(u, c, 7.5, number=number, total=20)
        found = term(moment)
        if number < 7:
            assert found.shift is not None
            torch.testing.assert_close(moment.guided + found.shift, u - 2.0 * (c - u))
        else:
            assert found.shift is None


def test_rows_that_cannot_be_lowered_are_left_alone_and_say_why() -> None:
    u, c = noises(3, 1), noises(3, 2)
    c[2] = u[2]
    found = AttractionBasin(before=1.0)(moment_of(u, c, torch.tensor([3.0, 1.0, 3.0])))
    assert found.acts is not None and found.shift is not None
    assert found.acts.tolist() == found.facts["fired"] == [True, False, False]
    assert torch.equal(found.shift[1:], torch.zeros(2, SIZE))
    assert [bool(reason) for reason in found.facts["reason"]] == [False, True, True]
    unguided = AttractionBasin()(moment_of(None, c, 1.0))
    assert unguided.shift is None and all("without" in reason for reason in unguided.facts["reason"])


def first_minimum(curve: list[float]) -> int | None:
    """By looking back from each rise, over plateaus, for a fall."""
    for at in range(1, len(curve)):
        back = at - 1
        while back > 0 and curve[back] == curve[back - 1]:
            back -= 1
        if curve[at] > curve[at - 1] and back > 0 and curve[back - 1] > curve[back]:
            return at
    return None


def test_transitions_are_those_of_looking_back() -> None:
    curves = np.random.default_rng(0).integers(0, 4, (300, 7)).tolist()
    expected = [first_minimum(curve) for curve in curves]
    assert transitions(curves) == expected
    assert len(set(expected)) == 6  # 2 to 6, and none


def test_each_sample_has_a_transition_of_its_own() -> None:
    curves = np.random.default_rng(1).integers(1, 5, (20, 8))
    expected = transitions(curves.tolist())
    state: dict[str, Any] = {}
    held = np.zeros(curves.shape, bool)
    for number in range(8):
        c = torch.ones(20, SIZE) * torch.from_numpy(curves[:, number, None]).float()  # text norm: the curve
        found = AttractionBasin.dynamic()(moment_of(torch.zeros(20, SIZE), c, 3.0, number=number, total=8, state=state))
        held[:, number] = found.facts["fired"]
    assert [int(row.sum()) for row in held] == [8 if at is None else at for at in expected]
    assert all(row[: int(row.sum())].all() for row in held)


def test_the_latest_transition_ends_what_has_no_minimum() -> None:
    term = AttractionBasin.dynamic(latest=0.5)
    nothing, state, fired = torch.zeros(1, SIZE), {}, []
    for number in range(10):
        fired += term(moment_of(nothing, nothing + number + 1, 3.0, number=number, state=state)).facts["fired"]
    assert fired == [True] * 5 + [False] * 5


def test_opposite_guidance_turns_the_sign_until_the_point_of_the_run_before() -> None:
    u, c = noises(2, 1), noises(2, 2)
    term = OppositeGuidance.after([[5.0, 3.0, 4.0], [1.0, 2.0, 3.0]])
    for number in range(4):
        moment = moment_of(u, c, 7.5, number=number)
        found = term(moment)
        assert found.facts["fired"] == [number < 2, False]
        if number < 2:
            torch.testing.assert_close(moment.guided[0] + found.shift[0], u[0] - 7.5 * (c - u)[0])


def test_opposite_guidance_reads_a_trace() -> None:
    def row(sample: int, step: int, text_norm: float | None, call: int = 0) -> Any:
        return SimpleNamespace(call=call, sample=sample, step=step, text_norm=text_norm)

    curves = [[5.0, 3.0, 4.0], [1.0, 2.0, 3.0]]
    rows = [row(sample, step, curves[sample][step]) for step in range(3) for sample in range(2)]
    assert OppositeGuidance.after_run(rows) == OppositeGuidance.after(curves)
    with pytest.raises(ValueError, match="one call"):
        OppositeGuidance.after_run([*rows, row(0, 0, 1.0, call=1)])
    with pytest.raises(ValueError, match="without guidance"):
        OppositeGuidance.after_run([row(0, 0, None)])


def test_basins_refuse_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="share of the steps"):
        AttractionBasin(until=500)
    with pytest.raises(ValueError, match="points of 2 samples, and the batch has 3"):
        OppositeGuidance((1, 2))(moment_of(noises(3, 1), noises(3, 2), 3.0))


# --- starting noise ---------------------------------------------------------------------------------------------------

SIGMA = 10.0


def pulling(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return unconditional(x, SIGMA), conditional(x, SIGMA)


def test_adjusted_noise_is_the_published_formula() -> None:
    # noise is predicted, and the sampler begins where Stable Diffusion's does: D is the plain difference of predictions
    a = LEVEL / math.hypot(1, LEVEL)
    b = a / LEVEL
    step = Coefficients(a, b, 1 / a, -b / a)
    matrix = noises(SIZE, 3) / 4

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -x, torch.tanh(x @ matrix) - x

    noise = noises(5)
    expected = noise.double().numpy().copy()
    weights = matrix.double().numpy()
    for row in expected:
        for _ in range(2):
            here = np.tanh(row @ weights)
            there = np.tanh((row + 50 / 128 * math.sqrt(SIZE) * here / np.linalg.norm(here)) @ weights)
            row -= 0.7 * (there - here)
    found = adjusted_noise(predict, noise, step)
    np.testing.assert_allclose(found.latents.numpy(), expected, rtol=0, atol=1e-5)
    assert found.evaluations == 5


def test_published_numbers_are_those_of_stable_diffusion() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)[981]
    assert pytest.approx(math.sqrt(kept / (1 - kept)), abs=5e-5) == LEVEL
    assert math.sqrt(4 * 64 * 64) * RHO == 50


# gamma: in these few dimensions the slope is small
@pytest.mark.parametrize(
    "adjust",
    [
        partial(adjusted_noise, gamma=50.0, iterations=4),
        partial(descended_noise, target=0.3 * LEVEL, rate=0.3, iterations=8),
    ],
)
class TestBothForms:
    def test_the_prompt_pulls_less(self, adjust: Any) -> None:
        noise = SIGMA * noises(30)
        found = adjust(pulling, noise, step_of(SIGMA))
        before, after = found.lengths[0], found.lengths[-1]
        assert bool((after < before).all())
        assert float(after.mean()) < 0.7 * float(before.mean())
        again = text_pull(*pulling(found.latents), step_of(SIGMA)).norm(dim=1) / math.sqrt(SIZE)
        torch.testing.assert_close(again, after)

    def test_samples_do_not_know_of_each_other(self, adjust: Any) -> None:
        noise = SIGMA * noises(6)
        together = adjust(pulling, noise, step_of(SIGMA)).latents
        singles = torch.cat([adjust(pulling, noise[row : row + 1], step_of(SIGMA)).latents for row in range(6)])
        torch.testing.assert_close(together, singles, rtol=0, atol=1e-5)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(adjust(pulling, noise[order], step_of(SIGMA)).latents, together[order], rtol=0, atol=1e-5)

    def test_a_parameterization_changes_nothing(self, adjust: Any) -> None:
        """The same denoiser in the coordinates of a sampler of variance 1 that predicts noise."""
        noise = noises(6)
        spread = math.hypot(1, SIGMA)
        a, b = 1 / spread, SIGMA / spread

        def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            u, c = pulling(spread * x)
            return (x - a * u) / b, (x - a * c) / b

        expected = adjust(pulling, spread * noise, step_of(SIGMA)).latents / spread
        found = adjust(predict, noise, Coefficients(a, b, 1 / a, -b / a)).latents
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)

    def test_it_draws_nothing_and_runs_in_inference_mode(self, adjust: Any) -> None:
        before = torch.get_rng_state()
        expected = adjust(pulling, SIGMA * noises(3), step_of(SIGMA)).latents
        with torch.inference_mode():
            found = adjust(pulling, SIGMA * noises(3), step_of(SIGMA)).latents
        assert torch.equal(found, expected)
        assert torch.equal(before, torch.get_rng_state())

    def test_a_prompt_without_effect_moves_nothing(self, adjust: Any) -> None:
        noise = noises(2)
        found = adjust(lambda x: (x / 2, x / 2), noise, step_of(SIGMA))
        assert torch.equal(found.latents, noise)


def test_samples_are_left_where_they_are_short_enough() -> None:
    noise = SIGMA * noises(30)
    lengths = adjusted_noise(pulling, noise, step_of(SIGMA), iterations=0).lengths[0]
    target = float(lengths.median())
    found = descended_noise(pulling, noise, step_of(SIGMA), target=target, iterations=400)
    short = lengths <= target
    assert torch.equal(found.latents[short], noise[short]) and not bool((found.latents[~short] == noise[~short]).all(1).any())
    assert bool(found.reached(target).all()) and found.evaluations < 401
    hurried = descended_noise(pulling, noise, step_of(SIGMA), target=target, iterations=1)
    assert hurried.evaluations == 2 and not bool(hurried.reached(target).all())


def test_less_is_copied_from_adjusted_noise() -> None:
    """With guidance off in the first steps, as published, which alone is too short to leave the basin."""
    noise, start = noises(200), step_of(20.0)
    held = AttractionBasin(until=0.1)
    moved = descended_noise(
        lambda x: (unconditional(x, 20.0), conditional(x, 20.0)), 20.0 * noise, start, target=1e-9, rate=0.02
    )
    assert copies(sampled(noise, held)) > 0.9
    assert copies(sampled(moved.latents / 20.0, held)) < 0.3


@pytest.mark.parametrize("settings", [{"iterations": -1}, {"rho": 0.0}, {"gamma": float("nan")}])
def test_adjusted_noise_refuses_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        adjusted_noise(pulling, noises(1), step_of(SIGMA), **settings)


# --- starting noise of a pipeline -------------------------------------------------------------------------------------

KINDS = ["RetrievalAugmentedAudioPipeline", "AudioLDM2Pipeline", "StableAudioPipeline"]
PROMPTS = ["a dog barks", "rain on a roof"]


def call_of(kind: str) -> dict[str, Any]:
    """Arguments of a call; generators are made anew each time."""
    common = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    if kind == "RetrievalAugmentedAudioPipeline":
        return {**common, "seeds": [3, 4]}
    return {**common, "generator": [torch.Generator().manual_seed(seed) for seed in (3, 4)]}


@pytest.fixture(scope="module", params=KINDS)
def pipeline(request: pytest.FixtureRequest) -> tuple[str, Any]:
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        settings = {"headed": True} if request.param == "AudioLDM2Pipeline" else {}
        pipe = tiny_pipelines.PIPELINES[request.param](**settings)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


def module_of(pipe: Any) -> torch.nn.Module:
    found: torch.nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return found


class TestOfPipelines:
    def test_the_first_step_is_the_pipelines_own(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        heard: list[torch.Tensor] = []
        handle = module_of(pipe).register_forward_hook(lambda _, args, output: heard.append(output[0]))
        with quiet(), torch.no_grad():
            pipe(PROMPTS, **call_of(kind))
            del heard[1:]
            first = first_step(pipe, PROMPTS, **call_of(kind))
            assert len(heard) == 1  # it does not run the denoiser
            u, c = first.predict(first.x_t)
        handle.remove()
        torch.testing.assert_close(torch.cat([u, c]), heard[0].float(), rtol=1e-5, atol=1e-5)
        assert not torch.equal(u, c)

    def test_measured_noise_is_the_pipelines_own(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        with quiet():
            expected = pipe(PROMPTS, **call_of(kind)).audios
            found = prepare_latents(pipe, PROMPTS, adjust=partial(adjusted_noise, iterations=0), **call_of(kind))
            again = pipe(PROMPTS, latents=found.latents, **call_of(kind)).audios
        assert float(found.latents.std()) == pytest.approx(1.0, abs=0.2)
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-5 * float(expected.std()))

    @pytest.mark.parametrize("adjust", [adjusted_noise, partial(descended_noise, target=1e-9, iterations=2)])
    def test_the_pipeline_is_as_before(self, pipeline: tuple[str, Any], adjust: Any) -> None:
        kind, pipe = pipeline
        with quiet():
            expected = pipe(PROMPTS, **call_of(kind)).audios
            found = prepare_latents(pipe, PROMPTS, adjust=adjust, **call_of(kind))
            assert torch.equal(pipe(PROMPTS, **call_of(kind)).audios, expected)
            assert not torch.equal(pipe(PROMPTS, latents=found.latents, **call_of(kind)).audios, expected)
        assert "scale_model_input" not in vars(pipe.scheduler)
        assert not module_of(pipe)._forward_pre_hooks
        if adjust is not adjusted_noise:  # whose way is a descent only where a Jacobian is symmetric, as random weights' is not
            assert bool((found.lengths[-1] < found.lengths[0]).all())

    @pytest.mark.parametrize("watched", [False, True])
    def test_noise_adjusted_within_a_call_is_that_adjusted_before_it(self, pipeline: tuple[str, Any], watched: bool) -> None:
        kind, pipe = pipeline
        with quiet():
            plain = pipe(PROMPTS, **call_of(kind)).audios
            before = prepare_latents(pipe, PROMPTS, **call_of(kind))
            expected = pipe(PROMPTS, latents=before.latents, **call_of(kind)).audios
            with attach(pipe) if watched else nullcontext() as run, adjusting_noise(pipe) as found:
                within = pipe(PROMPTS, **call_of(kind)).audios
            after = pipe(PROMPTS, **call_of(kind)).audios
        torch.testing.assert_close(within, expected, rtol=0, atol=1e-5 * float(expected.std()))
        torch.testing.assert_close(found[0].lengths, before.lengths, rtol=1e-5, atol=0)
        assert float((plain - expected).abs().max()) > 1e-3 * float(expected.std())
        assert torch.equal(after, plain) and not {"step", "scale_model_input"} & set(vars(pipe.scheduler))
        if watched:  # the evaluations of the search are not the sampler's
            assert len(run.trace.rows) == 2 * 2

    def test_rows_are_those_of_single_calls(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        start = prepare_latents(pipe, PROMPTS, adjust=partial(adjusted_noise, iterations=0), **call_of(kind)).latents
        call = {"guidance_scale": 3.0, "num_inference_steps": 2}
        with quiet():
            together = prepare_latents(pipe, PROMPTS[:1] * 2, latents=start, **call).latents
            singles = [prepare_latents(pipe, PROMPTS[0], latents=start[row : row + 1], **call).latents for row in range(2)]
        torch.testing.assert_close(together, torch.cat(singles), rtol=0, atol=1e-5)

    def test_a_basin_to_the_end_is_another_scale(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        with quiet():
            plain, expected = (pipe(PROMPTS, **(call_of(kind) | {"guidance_scale": scale})).audios for scale in (3.0, 2.0))
            with attach(pipe, AttractionBasin(before=2.0, until=1.0)) as run:
                found = pipe(PROMPTS, **call_of(kind)).audios
            with attach(pipe, OppositeGuidance.after_run(run.trace.rows)):  # two steps have no minimum between them
                untouched = pipe(PROMPTS, **call_of(kind)).audios
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
        assert float((plain - expected).abs().max()) > 1e-3 * float(expected.std())
        assert torch.equal(untouched, plain)
        assert [row.fired for row in run.trace.rows] == [True] * 4

    def test_a_call_without_guidance_is_refused(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        with quiet(), pytest.raises(ValueError, match="guidance_scale above 1"):
            prepare_latents(pipe, PROMPTS, **(call_of(kind) | {"guidance_scale": 1.0}))
        assert not module_of(pipe)._forward_pre_hooks

    def test_errors_of_the_call_come_through(self, pipeline: tuple[str, Any]) -> None:
        kind, pipe = pipeline
        with quiet(), pytest.raises(TypeError, match="no_such_argument"):
            prepare_latents(pipe, PROMPTS, no_such_argument=1, **call_of(kind))
        assert not module_of(pipe)._forward_pre_hooks and "scale_model_input" not in vars(pipe.scheduler)


# --- subspace ---------------------------------------------------------------------------------------------------------

WIDTH = 8  # of a toy vector


@dataclass(frozen=True)
class Projected:
    """A latent descriptor that is a matrix."""

    matrix: torch.Tensor
    spec: str = "projected"
    center: bool = False
    store_spec: None = None
    window_s: None = None
    rate_hz: int = 16_000

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        return x0.flatten(1) @ self.matrix


DESCRIPTOR = Projected(noises(SIZE, 5, (WIDTH,)))


def index_of(sounds: torch.Tensor, descriptor: Projected = DESCRIPTOR, center: torch.Tensor | None = None) -> ReferenceIndex:
    vectors = torch.nn.functional.normalize(descriptor.describe(sounds), dim=1)
    if center is not None:
        vectors = torch.nn.functional.normalize(vectors - center, dim=1)
    names = tuple(f"clip{number}" for number in range(len(sounds)))
    return ReferenceIndex(descriptor.spec, names, (None,) * len(sounds), (0.0,) * len(sounds), vectors, center)


def repelled(index: ReferenceIndex, descriptor: Projected = DESCRIPTOR, **settings: Any) -> SubspaceRepulsion:
    return SubspaceRepulsion(index, descriptor, **{"k": 2, "low": 0.9, "high": 0.9, **settings})


REFERENCES = noises(6, 6)
CLOSE = REFERENCES[[0, 3, 5]] + 0.1 * noises(3, 7)
FAR = -REFERENCES[[1, 2]] - REFERENCES[[4, 4]]


def test_the_gradient_is_that_of_the_volume() -> None:
    generator = torch.Generator().manual_seed(0)
    neighbors = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=generator, dtype=torch.float64), dim=1)
    basis = orthonormal_basis(neighbors)
    volumes, distances = [], []
    for _ in range(5):
        e = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator, dtype=torch.float64), dim=0)
        ours, theirs = e.clone().requires_grad_(), e.clone().requires_grad_()
        spanned = torch.cat([theirs[None], neighbors])
        volume = 0.5 * torch.logdet(spanned @ spanned.T + 1e-6 * torch.eye(5, dtype=torch.float64))
        distance = log_distance(ours, basis)
        (expected,) = torch.autograd.grad(volume, theirs)
        (found,) = torch.autograd.grad(distance, ours)
        tangential = [each - (each @ e) * e for each in (expected, found)]  # e is of unit length whatever is done to x0
        torch.testing.assert_close(tangential[1], tangential[0], rtol=1e-4, atol=1e-4)
        volumes.append(volume.item())
        distances.append(distance.item())
    np.testing.assert_allclose(np.diff(volumes), np.diff(distances), atol=1e-4)


def test_copies_span_no_direction_of_their_own() -> None:
    vectors = noises(3, 1, (WIDTH,))
    rounded = vectors[:1] * (1 + 1e-7) + 1e-8 * noises(1, 2, (WIDTH,))
    basis = orthonormal_basis(torch.cat([vectors, vectors[:1], rounded]))
    assert basis.shape == (3, WIDTH)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(vectors.double() @ basis.T @ basis, vectors.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("center", [None, 0.2 * torch.ones(WIDTH)])
def test_close_samples_move_out_of_the_span(center: torch.Tensor | None) -> None:
    descriptor = replace(DESCRIPTOR, center=center is not None)
    index = index_of(REFERENCES, descriptor, center)
    x0 = torch.cat([CLOSE, FAR])
    moment = moment_of(noises(5, 8), x0, 4.0, coefficients=Coefficients(1.0, 1.0, 0.0, 0.5), x=2 * x0)
    moment = replace(moment, c=2 * x0, direction=2 * x0 - moment.u)
    found = repelled(index, descriptor, strength=0.05)(moment)
    assert found.acts is not None and found.shift is not None
    assert found.acts.tolist() == found.facts["fired"] == [True] * 3 + [False] * 2
    assert found.facts["neighbor"][:3] == ["clip0", "clip3", "clip5"]
    assert torch.equal(found.shift[3:], torch.zeros(2, SIZE))
    # the unit of strength is what guidance moves x0 by
    moved, guidance = 0.5 * found.shift[:3], 0.5 * 4.0 * moment.direction[:3]
    torch.testing.assert_close(moved.norm(dim=1), 0.05 * guidance.norm(dim=1))
    np.testing.assert_allclose(found.facts["shift_ratio"][:3], 0.05, rtol=1e-5)
    assert found.facts["shift_ratio"][3:] == [None, None]
    # to first order it gains distance from the span of both neighbors
    near = index.nearest(descriptor.describe(x0[:3]), 2).rows
    for row in range(3):
        basis = orthonormal_basis(index.vectors[near[row]])

        def distance(sample: torch.Tensor, basis: torch.Tensor = basis) -> float:
            vector = torch.nn.functional.normalize(descriptor.describe(sample[None])[0], dim=0)
            if center is not None:
                vector = torch.nn.functional.normalize(vector - center, dim=0)
            return float(log_distance(vector, basis))

        assert distance(x0[row] + 0.02 * moved[row]) > distance(x0[row])


@pytest.mark.parametrize("units", ["norm", "paper"])
def test_samples_in_a_batch_do_not_know_of_each_other(units: Any) -> None:
    x0 = torch.cat([CLOSE, FAR])[[0, 3, 1, 4, 2]]
    u = noises(5, 8)
    term = repelled(index_of(REFERENCES), units=units)
    together = term(moment_of(u, x0, 4.0))
    for row in range(5):
        alone = term(moment_of(u[row : row + 1], x0[row : row + 1], 4.0))
        expected = torch.zeros(1, SIZE) if alone.shift is None else alone.shift
        torch.testing.assert_close(together.shift[row : row + 1], expected, rtol=1e-5, atol=1e-6)
        assert alone.facts["neighbor"] == together.facts["neighbor"][row : row + 1]
    order = torch.tensor([4, 2, 0, 1, 3])
    permuted = term(moment_of(u[order], x0[order], 4.0))
    torch.testing.assert_close(permuted.shift, together.shift[order], rtol=1e-5, atol=1e-6)
    assert permuted.facts["similarity"] == pytest.approx([together.facts["similarity"][row] for row in order])


def test_neighbors_stay_until_another_reference_is_too_near() -> None:
    """The first two references are alike, and so are the next two: each pair is a neighborhood."""
    pairs = REFERENCES[[0, 0, 1, 1]] + 0.2 * noises(4, 9)
    index, state = index_of(pairs), {}
    term = repelled(index)
    u = noises(1, 8)

    def shift_at(x0: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        found = term(moment_of(u, x0, 4.0, state=state)).shift
        assert found is not None
        return found

    shift_at(pairs[:1] + 0.05 * noises(1, 10), state)
    kept = state[term.name][0]
    assert kept.rows == {0, 1}
    shift_at(pairs[1:2] + 0.05 * noises(1, 11), state)  # the other one of the pair
    assert state[term.name][0] is kept
    x0 = pairs[2:3] + 0.05 * noises(1, 12)
    torch.testing.assert_close(shift_at(x0, state), shift_at(x0, {}))
    assert state[term.name][0].rows == {2, 3}


def test_what_lies_in_the_span_says_so() -> None:
    vectors = torch.eye(WIDTH)[:3]
    descriptor = Projected(torch.cat([torch.eye(WIDTH), torch.zeros(SIZE - WIDTH, WIDTH)]))
    index = ReferenceIndex("projected", ("a", "b", "c"), (None,) * 3, (0.0,) * 3, vectors)
    x0 = torch.zeros(2, SIZE)
    x0[0, 0], x0[1, 0], x0[1, 6] = 1.0, 1.0, 0.1
    found = repelled(index, descriptor)(moment_of(noises(2, 8), x0, 4.0))
    assert found.acts is not None and found.acts.tolist() == [False, True]
    assert "span" in found.facts["reason"][0] and found.facts["reason"][1] == ""
    assert found.facts["fired"] == [True, True]


def test_a_prompt_without_effect_leaves_nothing_to_be_a_share_of() -> None:
    u, x0 = noises(2, 8), CLOSE[:2]
    u[0] = x0[0]
    found = repelled(index_of(REFERENCES))(moment_of(u, x0, 4.0))
    assert found.acts is not None and found.acts.tolist() == [False, True]
    assert "share" in found.facts["reason"][0]
    with pytest.raises(ValueError, match="units 'estimate' or 'paper'"):
        repelled(index_of(REFERENCES))(moment_of(None, x0, 1.0))
    assert repelled(index_of(REFERENCES), units="paper")(moment_of(None, x0, 1.0)).shift is not None


def test_it_acts_at_no_step_where_it_cannot() -> None:
    moment = moment_of(noises(3, 8), CLOSE, 4.0)
    assert repelled(index_of(REFERENCES), low=1.0, high=1.0)(moment).shift is None
    watching = repelled(index_of(REFERENCES), strength=0.0)(moment)
    assert watching.shift is None and watching.facts["fired"] == [True] * 3
    empty = ReferenceIndex("projected", (), (), (), torch.zeros(0, WIDTH))
    assert repelled(empty)(moment).shift is None
    last = moment_of(noises(3, 8), CLOSE, 4.0, x=CLOSE, coefficients=Coefficients(1.0, 0.0, 1.0, 0.0))
    assert repelled(index_of(REFERENCES))(last).shift is None


def test_it_draws_nothing_and_asks_for_gradients_of_fired_rows_alone() -> None:
    asked: list[tuple[int, bool]] = []

    class Counting(Projected):
        def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
            asked.append((len(x0), x0.requires_grad))
            return super().describe(x0, step)

    counting = Counting(DESCRIPTOR.matrix)
    before = torch.get_rng_state()
    moment = moment_of(noises(5, 8), torch.cat([CLOSE, FAR]), 4.0)
    repelled(index_of(REFERENCES), counting)(moment)
    assert asked == [(5, False), (3, True)]
    assert torch.equal(before, torch.get_rng_state())
    with torch.inference_mode():
        again = repelled(index_of(REFERENCES), counting)(moment)
    assert torch.equal(again.shift, repelled(index_of(REFERENCES), counting)(moment).shift)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"k": 0}, "k should"), ({"k": WIDTH}, "8 dimensions"), ({"strength": -1.0}, "strength"), ({"units": "meters"}, "units")],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        repelled(index_of(REFERENCES), **settings)


def test_another_descriptor_is_refused() -> None:
    with pytest.raises(DescriptorMismatchError):
        repelled(index_of(REFERENCES), replace(DESCRIPTOR, spec="another"))


def test_memorized_sounds_are_left_with_references_alone() -> None:
    """Without lowering guidance: the memorized clip and a copy of it with a little noise are the references."""
    descriptor = Projected(torch.eye(SIZE))
    references = MEMORIZED + torch.cat([torch.zeros(1, SIZE), 0.05 * noises(1, 13)])
    term = SubspaceRepulsion(index_of(references, descriptor), descriptor, k=2, low=0.7, high=0.7)
    noise = noises(100)
    assert copies(sampled(noise)) > 0.95
    assert copies(sampled(noise, term)) < 0.05
