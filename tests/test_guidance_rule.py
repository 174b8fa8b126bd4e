"""The update rule against the papers' equations, and the term on steps of a sampler that are made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.guidance.amg import DEGENERATE, NO_CAPTION, NO_GRADIENT, AmgConfig, AntiMemorization
from auscult.guidance.coefficients import Coefficients
from auscult.guidance.rule import caption_shift, dissimilarity_shift, spend
from auscult.guidance.schedule import SCHEDULES, threshold
from auscult.guidance.terms import Moment, norms
from guidance_pipelines import Flat, index_of

pytestmark = pytest.mark.usefixtures("one_thread")
F64 = torch.float64
ALWAYS = {"threshold_low": -2.0, "threshold_high": -2.0}
OFF = {"despecification": 0.0, "deduplication": 0.0, "dissimilarity": 0.0}
SIGMAS = (500.0, 71.0, 10.0, 3.0, 1.0, 0.3, 0.01)
numbers = st.floats(-1, 1)
strengths = st.floats(0, 100)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- how much is spent ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(numbers, st.booleans(), st.floats(-5, 20)), min_size=1, max_size=4), strengths, strengths)
@settings(deadline=None, max_examples=100)
def test_what_is_left_of_the_prompt_is_never_below_one(rows: Any, c1: float, c2: float) -> None:
    similarity, fired, scale = (torch.tensor(column) for column in zip(*rows, strict=True))
    s1, s2 = spend(similarity, fired, scale, c1, c2)
    room = (scale - 1).clamp(min=0)
    assert (s1 >= 0).all() and (s2 >= 0).all() and (s1 + s2 <= room + 1e-5).all()
    assert ((scale - s1)[scale >= 1] >= 1 - 1e-5).all()
    idle = ~fired | (similarity <= 0) | (scale <= 1)
    assert (s1[idle] == 0).all() and (s2[idle] == 0).all()
    wanted = c1 * similarity
    assert torch.equal(s1[~idle], torch.minimum(wanted, room)[~idle])  # it takes first, whatever c2 wants
    assert ((s2 >= torch.minimum(c2 * similarity, room - s1) - 1e-5) | idle).all()


def test_the_released_batch_settings_leave_deduplication_little() -> None:
    s1, s2 = spend(torch.tensor([0.8]), torch.tensor([True]), torch.tensor([7.0]), 6.0, 6.0)
    torch.testing.assert_close((s1, s2), (torch.tensor([4.8]), torch.tensor([1.2])))


def test_the_weights_of_all_predictions_sum_to_one() -> None:
    """Adding the same to all predictions adds it to the result; and each weight is what the equations say."""
    u, c, n = (random(3, 2, 5, seed=seed) for seed in range(3))
    s0, s1, s2 = (torch.tensor(values, dtype=F64)[:, None, None] for values in ([7, 5, 3], [2.0, 0, 1.5], [1, 3.0, 0]))

    def result(u: torch.Tensor, c: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return u + s0 * (c - u) + caption_shift(c - u, s1[:, 0, 0], s2[:, 0, 0], n, u)

    torch.testing.assert_close(result(u + 3, c + 3, n + 3), result(u, c, n) + 3)
    torch.testing.assert_close(result(u, c, n), (1 - s0 + s1 + s2) * u + (s0 - s1) * c - s2 * n)
    same = caption_shift(c - u, 0 * s1[:, 0, 0], s1[:, 0, 0], c, u)  # a neighbor with the user's own caption
    torch.testing.assert_close(same, caption_shift(c - u, s1[:, 0, 0], s2[:, 0, 0], None, u))


# --- dissimilarity in every parameterization --------------------------------------------------------------------------


def vp(sigma: float, kind: str) -> Coefficients:
    a = 1 / math.sqrt(1 + sigma**2)
    b = sigma * a
    return Coefficients(a, b, *((1 / a, -b / a) if kind == "eps" else (a, -b)))


FAMILIES: dict[str, Callable[[float], Coefficients]] = {
    "VP-eps": lambda sigma: vp(sigma, "eps"),
    "VP-v": lambda sigma: vp(sigma, "v"),
    "VE": lambda sigma: Coefficients(1.0, sigma, 1.0, -sigma),
    "EDM": lambda sigma: Coefficients(1.0, sigma, 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)),
    "flow": lambda sigma: Coefficients(1 / (1 + sigma), sigma / (1 + sigma), 1.0, -sigma / (1 + sigma)),
}
MIX = random(6, 6, seed=9) / 6**0.5


def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """One denoiser, of samples x0 + sigma eps."""
    return torch.tanh(x @ MIX / math.sqrt(1 + sigma**2)) + x / (1 + sigma**2)


def step(family: str, sigma: float, x: torch.Tensor, **more: Any) -> Moment:
    """A step without guidance, of this denoiser in the family's terms; x are samples x0 + sigma eps."""
    level = FAMILIES[family](sigma)

    def predict(x_t: torch.Tensor, rows: Any = None) -> torch.Tensor:
        return (denoised(x_t / level.a, sigma) - level.p * x_t) / level.q

    x_t = level.a * x
    output = predict(x_t)
    ones, no = torch.ones(len(x), dtype=x.dtype), torch.zeros(len(x), dtype=torch.bool)
    made = Moment(0, 4, 1.0, level, x_t, output, None, output, ones, torch.zeros_like(output), no, predict_again=predict)
    return replace(made, **more)


def moved(term: AntiMemorization, moment: Moment) -> torch.Tensor:
    """By how much a term moves x0."""
    shift = term(moment).shift
    assert shift is not None
    return moment.coefficients.q * shift


def dissimilar(reference: torch.Tensor, **more: Any) -> AntiMemorization:
    given = {**ALWAYS, **OFF, "dissimilarity": 1.0, "units": "paper", **more}
    return AntiMemorization(index_of(reference), Flat(), AmgConfig(**given))


def cosines(x0: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(x0, reference.to(x0), dim=1)


@pytest.mark.parametrize("source", ["cond", "guided"])
@pytest.mark.parametrize("units", ["paper", "released", "estimate"])
@pytest.mark.parametrize("gradient", ["x0", "denoiser"])
@pytest.mark.parametrize("sigma", [10.0, 1.0, 0.3])
def test_every_parameterization_moves_x0_by_the_same(sigma: float, gradient: Any, units: Any, source: Any) -> None:
    x, term = random(3, 6), dissimilar(random(2, 6, seed=1), gradient=gradient, units=units, x0_source=source)
    expected = moved(term, step("VE", sigma, sigma * x))
    assert norms(expected).min() > 1e-6 * max(1, sigma)
    for family in FAMILIES:
        torch.testing.assert_close(moved(term, step(family, sigma, sigma * x)), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_released_scale_is_that_of_the_paper_by_this_factor(sigma: float) -> None:
    moment, reference = step("EDM", sigma, sigma * random(3, 6)), random(2, 6, seed=1)
    paper, released = (
        moved(dissimilar(reference, gradient="denoiser", units=units), moment) for units in ("paper", "released")
    )
    torch.testing.assert_close(released, paper / (sigma * math.sqrt(1 + sigma**2)))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_dissimilarity_goes_down_the_gradient(sigma: float) -> None:
    """By x0: the similarity of what is predicted falls. Through the denoiser: it falls when the sample is moved."""
    x, reference = random(4, 6), random(1, 6, seed=1)
    moment = step("VE", sigma, (1 + sigma) * x)
    before = cosines(moment.x0(), reference)
    small = 0.05 * norms(moment.x0()).min().item() ** 2
    assert (cosines(moment.x0() + moved(dissimilar(reference, dissimilarity=small), moment), reference) < before).all()
    through = moved(dissimilar(reference, gradient="denoiser"), moment) / sigma**2  # paper: d_x0 = - c3 sigma^2 g
    x_t = moment.x_t + 1e-3 * through / norms(through)[:, None] * norms(moment.x_t)[:, None]
    assert (cosines(denoised(x_t, sigma), reference) < before).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gradient", ["x0", "denoiser"])
def test_the_gradient_is_that_of_a_finite_difference(family: str, gradient: Any) -> None:
    sigma, reference, width = 1.3, random(1, 6, seed=1), 1e-6
    moment = step(family, sigma, 2 * random(1, 6))
    level, leaf = moment.coefficients, moment.x0() if gradient == "x0" else moment.x_t

    def similarity(at: torch.Tensor) -> torch.Tensor:
        return cosines(at if gradient == "x0" else level.p * at + level.q * moment.predict_again(at, None), reference)

    units = torch.eye(6, dtype=F64)
    slope = torch.cat([(similarity(leaf + width * unit) - similarity(leaf - width * unit)) / (2 * width) for unit in units])
    factor = 1.0 if gradient == "x0" else level.b**2 / level.a
    found = moved(dissimilar(reference, gradient=gradient, dissimilarity=2.0), moment)[0]
    torch.testing.assert_close(found, -2 * factor * slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("units", "measure"), [("norm", "guidance"), ("estimate", "estimate")])
def test_shares_do_not_depend_on_the_size_of_the_gradient(units: Any, measure: str) -> None:
    gradient, other = random(3, 2, 4), random(3, 2, 4, seed=1)
    gradient[1] *= 1e-9
    gradient[2] = 0
    level = FAMILIES["flow"](2.0)
    for of in ("x0", "x_t"):
        # what they are no share of may be anything
        given = {"guidance": 0 * other, "estimate": 0 * other, measure: other}
        found = dissimilarity_shift(gradient, level, 0.3, units, of=of, **given)
        torch.testing.assert_close(norms(found)[:2], 0.3 * norms(other)[:2])
        cosine = torch.nn.functional.cosine_similarity(found[:2].flatten(1), gradient[:2].flatten(1), dim=1, eps=1e-30)
        torch.testing.assert_close(cosine, -torch.ones(2, dtype=F64))
        assert not found[2].any()
    with pytest.raises(ValueError, match="units 'estimate' or 'paper'" if units == "norm" else "give estimate"):
        dissimilarity_shift(gradient, level, 0.3, units, of="x0")


def test_a_sample_that_needs_no_prompt_is_moved_by_shares_of_the_estimate_alone() -> None:
    reference, moment = random(2, 6, seed=1), step("VE", 2.0, random(3, 6))
    moment = replace(moment, u=moment.guided)  # the prompt makes no difference
    assert not moved(dissimilar(reference, units="norm"), moment).any()
    shift = moved(dissimilar(reference, units="estimate", dissimilarity=0.3), moment)
    torch.testing.assert_close(norms(shift), 0.3 * norms(moment.x0()))


@pytest.mark.parametrize("units", ["paper", "released", "norm", "estimate"])
def test_pure_noise_gives_finite_numbers(units: Any) -> None:
    gradient = random(2, 4)
    found = dissimilarity_shift(
        gradient, Coefficients(0.0, 1.0, 1.0, -1.0), 1.0, units, of="x_t", guidance=gradient, estimate=gradient
    )
    assert torch.isfinite(found).all() and found.any()


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.floats(-1, 1), st.floats(0, 1), st.integers(1, 40), st.floats(0.01, 1000))
@settings(deadline=None, max_examples=50)
def test_thresholds_rise_along_a_run_and_stay_between(schedule: Any, low: float, room: float, steps: int, start: float) -> None:
    sigmas = [start * (1e-3 / start) ** (number / steps) for number in range(steps)]
    found = [
        threshold(schedule, low, low + room, step=number, steps=steps, sigma=sigma, alpha_bar=1 / (1 + sigma**2))
        for number, sigma in enumerate(sigmas)
    ]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(found))
    assert low - 1e-12 <= found[0] and found[-1] <= low + room + 1e-12


def test_a_threshold_of_ones_own() -> None:
    seen = threshold(lambda *args: sum(args), 0, 0, step=1, steps=20, sigma=300.0, alpha_bar=0.5)
    assert seen == 321.5
    with pytest.raises(ValueError, match=r"alpha_bar, progress, constant.*'cubic'"):
        threshold("cubic", 0, 0, step=1, steps=2, sigma=3.0, alpha_bar=0.5)  # type: ignore[arg-type]


# --- the term on a step made by hand ----------------------------------------------------------------------------------


def guided(x0: torch.Tensor, reference: torch.Tensor | None = None, **more: Any) -> Moment:
    """A step whose conditional prediction is x0, with guidance of 5 from nothing."""
    level = Coefficients(1.0, 1.0, 0.0, 1.0)
    rows = len(x0)
    made = Moment(
        number=0,
        total=10,
        timestep=1.0,
        coefficients=level,
        x_t=torch.zeros_like(x0),
        guided=5 * x0,
        u=torch.zeros_like(x0),
        c=x0,
        scale=torch.full((rows,), 5.0),
        direction=x0,
        degenerate=torch.zeros(rows, dtype=torch.bool),
        predict_others=lambda rows, captions: torch.stack([torch.full_like(x0[0], len(caption)) for caption in captions]),
    )
    return replace(made, **more)


def term(reference: torch.Tensor, captions: Any = (), **more: Any) -> AntiMemorization:
    return AntiMemorization(index_of(reference, captions), Flat(), AmgConfig(**{**OFF, **more}))


PLANE = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])


def test_only_what_is_above_the_threshold_fires_and_each_row_by_its_own_similarity() -> None:
    assert term(PLANE[:1], threshold_low=0.6, threshold_high=0.6)(guided(PLANE)).facts["fired"] == [True] + [False] * 3
    found = term(PLANE[:1], threshold_low=0.5, threshold_high=0.5, despecification=4.0)(guided(2 * PLANE))
    assert found.facts["fired"] == [True, True, False, False]
    assert found.facts["similarity"] == pytest.approx([1, 0.6, 0, -1])
    assert found.facts["s1"] == pytest.approx([4, 2.4, 0, 0]) and found.facts["s2"] == [0] * 4
    torch.testing.assert_close(found.shift, -2 * PLANE * torch.tensor([[4.0], [2.4], [0], [0]]))
    assert found.acts.tolist() == found.facts["fired"]


def test_deduplication_leads_away_from_the_neighbors_caption() -> None:
    index = PLANE[[0, 2]]
    given = {**ALWAYS, "deduplication": 3.0}
    found = term(index, ["four", None], **given)(guided(PLANE[:3]))
    assert found.facts["s2"] == pytest.approx([3, 0, 0]) and found.facts["neighbor"] == ["clip-0", "clip-1", "clip-1"]
    torch.testing.assert_close(found.shift[0], torch.full((2,), -3.0 * 4))
    assert not found.shift[1:].any() and found.facts["reason"] == ["", NO_CAPTION, NO_CAPTION]


def test_several_neighbors_are_led_away_from_together_and_the_first_triggers() -> None:
    """The gradient is that of a soft maximum: nearly that of the nearest alone where it leads, the mean of equal ones."""
    given = {**ALWAYS, "dissimilarity": 1.0, "units": "paper"}
    near, far = PLANE[:1], PLANE[2:3]
    one = term(near, **given)(guided(PLANE[1:2])).shift
    led = term(torch.cat([near, -near]), nearest=2, **given)(guided(PLANE[1:2]))
    torch.testing.assert_close(led.shift, one, rtol=1e-4, atol=1e-6)
    between = torch.tensor([[1.0, 1.0]])
    both = term(torch.cat([near, far]), nearest=9, **given)(guided(between)).shift
    torch.testing.assert_close(both, torch.zeros(1, 2), atol=1e-6, rtol=0)
    assert term(torch.cat([near, far]), nearest=1, **given)(guided(between)).shift.abs().max() > 0.1


def test_between_looks_the_last_decision_holds() -> None:
    it, state = term(PLANE[:1], threshold_low=0.9, threshold_high=0.9, despecification=1.0, every=3), {}
    seen = []
    for number, x0 in enumerate([PLANE[[2]], PLANE[[0]], PLANE[[0]], PLANE[[0]], PLANE[[2]]]):
        seen.append(it(guided(x0, number=number, state=state)).facts["fired"][0])
    assert seen == [False, False, False, True, True]
    assert it(guided(PLANE[[2]], number=1)).facts["fired"] == [False]  # nothing is held yet, so it looks


class TwoWindows(Flat):
    """Half of a sample at a time, in turn."""

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        return x0.reshape(len(x0), 2, -1)[:, step % 2]


def test_every_window_has_its_turn_and_a_held_look_moves_the_window_that_it_saw() -> None:
    settings = AmgConfig(**{**OFF, "threshold_low": 0.9, "threshold_high": 0.9, "dissimilarity": 1.0, "every": 2})
    it, state = AntiMemorization(index_of(PLANE[:1]), TwoWindows(), settings), {}
    x0 = torch.tensor([[0.0, 1.0, 0.9, 0.3]])  # its second half is the copy
    found = [it(guided(x0, number=number, state=state)) for number in range(6)]
    assert [each.facts["fired"][0] for each in found] == [False, False, True, True, False, False]
    assert [each.facts["similarity"][0] is None for each in found] == [False, True] * 3
    assert all(not each.shift[0, :2].any() and each.shift[0, 2:].all() for each in found[2:4])


def test_norm_units_are_shares_of_what_guidance_moves() -> None:
    """By 0.3 of s0 |q| |c - u| = 5 * 2 * |c|, whatever the gradient's length."""
    moment = guided(PLANE[[1]], coefficients=Coefficients(1.0, 1.0, 0.0, -2.0))
    moved = -2 * term(-PLANE[:1], **ALWAYS, dissimilarity=0.3)(moment).shift
    torch.testing.assert_close(norms(moved), 0.3 * 5 * 2 * norms(moment.c))


@pytest.mark.parametrize(("number", "looks"), [(0, False), (2, False), (3, True), (7, True), (8, False)])
def test_outside_of_its_stretch_it_does_not_look(number: int, looks: bool) -> None:
    found = term(PLANE[:1], **ALWAYS, despecification=1.0, start=0.3, stop=0.8)(guided(PLANE[:1], number=number))
    assert (found.shift is not None) == looks == (found.facts["similarity"] != [None])


def test_what_it_cannot_do_is_said() -> None:
    x0 = PLANE[[0, 1]]
    degenerate = torch.tensor([True, False])
    found = term(PLANE[:1], **ALWAYS, despecification=1.0)(guided(x0, degenerate=degenerate))
    assert found.facts["fired"] == [False, True] and found.facts["reason"] == [DEGENERATE, ""]
    # a sample that is its reference: a cosine of 1 has no slope
    exact = term(PLANE[2:3], **ALWAYS, dissimilarity=1.0)(guided(PLANE[2:3]))
    assert not exact.shift.any() and exact.facts["reason"] == [NO_GRADIENT] and exact.facts["gradient_norm"] == [0]
    again = AmgConfig(**{**OFF, **ALWAYS, "dissimilarity": 1.0, "gradient": "denoiser"})
    with pytest.raises(ValueError, match="called again"):
        AntiMemorization(index_of(PLANE[:1]), Flat(), again)(guided(x0))
    assert term(PLANE[:0], **ALWAYS, despecification=1.0)(guided(x0)).shift is None


def test_the_source_of_x0_is_what_is_compared() -> None:
    moment = guided(PLANE[:1], guided=PLANE[2:3])
    for source, expected in (("cond", 1.0), ("guided", 0.0)):
        assert term(PLANE[:1], **ALWAYS, x0_source=source)(moment).facts["similarity"] == [expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"despecification": -1.0}, r"despecification .c[123]. should be at least 0"),
        ({"deduplication": math.nan}, r"deduplication .c[123]. should be at least 0"),
        ({"dissimilarity": -0.1}, r"dissimilarity .c[123]. should be at least 0"),
        ({"threshold_low": 0.6}, "threshold_low 0.6 should not be above threshold_high 0.5"),
        ({"threshold_high": math.nan}, "threshold"),
        ({"units": "mm"}, "units should be one of norm, estimate, paper, released, got 'mm'"),
        ({"gradient": "u"}, "gradient should be one of x0, denoiser"),
        ({"x0_source": "u"}, "x0_source should be one of cond, guided"),
        ({"schedule": "cubic"}, "schedule should be one of"),
        ({"nearest": 0}, "nearest should be at least 1"),
        ({"every": 0}, "every should be at least 1"),
        ({"start": 0.5, "stop": 0.5}, "0 <= start < stop <= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AmgConfig(**settings)
