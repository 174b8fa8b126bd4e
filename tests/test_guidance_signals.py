"""Signs of memorization against closed forms: Gaussian data, whose exact denoiser is known, in every parameterization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from auscult.guidance.coefficients import Coefficients  # noqa: E402
from auscult.guidance.signals import anisotropy, text_difference, text_norm, text_norm_score  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def edm(sigma: float, data: float, sign: float) -> Coefficients:
    total = sigma**2 + data**2
    return Coefficients(1.0, sigma, data**2 / total, sign * sigma * data / math.sqrt(total))


FAMILIES: dict[str, Callable[[float], Coefficients]] = {  # by sigma = b / a, so that all stand at the same noise level
    "vp epsilon": lambda s: Coefficients(a := 1 / math.hypot(1, s), s * a, 1 / a, -s),
    "vp velocity": lambda s: Coefficients(a := 1 / math.hypot(1, s), s * a, a, -s * a),
    "vp sample": lambda s: Coefficients(a := 1 / math.hypot(1, s), s * a, 0.0, 1.0),
    "ve epsilon": lambda s: Coefficients(1.0, s, 1.0, -s),
    "ve velocity": lambda s: Coefficients(1.0, s, 1 / (s**2 + 1), -s / math.hypot(1, s)),
    "edm epsilon": lambda s: edm(s, 0.5, 1.0),
    "edm velocity": lambda s: edm(s, 1.0, -1.0),
    "flow": lambda s: Coefficients(1 / (1 + s), s / (1 + s), 1.0, -s / (1 + s)),
}


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(
    levels: dict[Any, Coefficients], mean: Any, spread: float, base: Any = 0.0
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The exact denoiser of data N(base, spread^2), and of N(mean, spread^2) with the prompt.

    The expected clean latent is ``mean + a s^2 (x - a mean) / (a^2 s^2 + b^2)``.
    """

    def predict(x: Any, timestep: Any) -> tuple[Any, Any]:
        level = levels[timestep]
        gain = level.a * spread**2 / (level.a**2 * spread**2 + level.b**2)
        u, c = (((each + gain * (x - level.a * each)) - level.p * x) / level.q for each in (base, mean))
        return u, c

    return predict


def closed_form(sigma: float, mean: Any, spread: float) -> Any:
    """D of Gaussian data, from ``eps = b (x - a mean) / (a^2 s^2 + b^2)``: without x, as spreads are equal."""
    return -sigma * mean / (spread**2 + sigma**2)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 80.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_difference_is_that_of_noise_in_every_parameterization(family: str, sigma: float) -> None:
    level, mean = FAMILIES[family](sigma), random(3, 2, 5)
    u, c = gaussian({0: level}, mean, 0.7)(level.a * random(3, 2, 5, seed=1) + level.b * random(3, 2, 5, seed=2), 0)
    expected = closed_form(sigma, mean, 0.7)
    # outputs are as large as x / q; what they lose to rounding comes back multiplied
    assert torch.allclose(text_difference(u, c, level), expected, rtol=1e-9, atol=1e-12)
    rms = expected.square().mean(dim=(1, 2)).sqrt()
    assert torch.allclose(text_norm(u, c, level), rms, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.3, 7.0, 500.0])
def test_of_a_velocity_the_norm_shrinks_with_noise(sigma: float) -> None:
    u, c = random(2, 6), random(2, 6, seed=1)
    expected = (c - u).norm(dim=1) / math.sqrt(6) / math.sqrt(1 + sigma**2)
    assert torch.allclose(text_norm(u, c, FAMILIES["edm velocity"](sigma)), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_subtracted_exactly(dtype: Any) -> None:
    u = random(2, 100).to(dtype)
    c = (u + 0.01 * random(2, 100, seed=1)).to(dtype)
    found = text_norm(u, c, FAMILIES["ve epsilon"](500.0))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), (c.double() - u.double()).square().mean(dim=1).sqrt(), rtol=1e-5)


def test_the_score_is_a_mean_over_steps() -> None:
    norms = [random(4, seed=seed).abs() for seed in range(5)]
    assert torch.allclose(text_norm_score(norms), sum(norms) / 5)
    assert torch.allclose(text_norm_score(norms, first=2), (norms[0] + norms[1]) / 2)
    assert torch.equal(text_norm_score(norms, first=1), norms[0])
    assert torch.equal(text_norm_score(torch.stack(norms)), text_norm_score(norms))


def test_prompts_of_a_single_clip_score_higher_than_prompts_of_many() -> None:
    level = FAMILIES["vp velocity"](0.5)
    scores = []
    for spread in (0.02, 0.8):  # what is left open once the prompt is known: next to nothing, or much
        u, c = gaussian({0: level}, random(8, 40), spread)(random(8, 40, seed=3), 0)
        scores.append(text_norm_score([text_norm(u, c, level)]))
    assert scores[0].min() > 1.5 * scores[1].max()


# --- anisotropy -------------------------------------------------------------------------------------------------------

TIMESTEPS = [999, 700, 400, 100, 1]
SIGMAS = dict(zip(TIMESTEPS, [80.0, 12.0, 2.0, 0.5, 0.1], strict=True))  # the third-last has sigma 2


def levels(family: str) -> dict[Any, Coefficients]:
    return {timestep: FAMILIES[family](sigma) for timestep, sigma in SIGMAS.items()}


def start(family: str, noise: Any) -> Any:
    """Pure noise as the sampler of a family stores it at its first step."""
    first = levels(family)[TIMESTEPS[0]]
    return noise * math.hypot(first.a, first.b)


@pytest.mark.parametrize("family", FAMILIES)
def test_anisotropy_is_the_closed_form_in_every_parameterization(family: str) -> None:
    noise, mean, base = (random(3, 4, 6, 5, seed=seed) for seed in range(3))
    table = levels(family)
    predict = gaussian(table, mean, 0.6, base)
    found = anisotropy(predict, start(family, noise), TIMESTEPS, table.__getitem__, weights=(0.5, 3.0))
    norm = closed_form(80.0, mean - base, 0.6).flatten(1).norm(dim=1)
    unconditional = noise - base / math.hypot(1, 2.0)  # noise of variance 1 is shown at sigma 2, where a = 1 / sqrt(5)
    pull = base - mean
    angle = (unconditional * pull).sum(1) / unconditional.norm(dim=1) / pull.norm(dim=1)
    cosine = angle.mean(dim=(1, 2))
    assert torch.allclose(found.norm, norm, rtol=1e-8)
    assert torch.allclose(found.cosine, cosine, rtol=1e-8)
    assert torch.allclose(found.score, 0.5 * norm + 3.0 * cosine, rtol=1e-8)


def test_anisotropy_asks_twice_at_the_first_and_the_third_last_timestep_without_gradients() -> None:
    table, asked = levels("vp epsilon"), []
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    exact = gaussian(table, random(2, 4, 6, seed=1), 0.6)

    def predict(x: Any, timestep: Any) -> tuple[Any, Any]:
        asked.append((timestep, x))
        u, c = exact(x, timestep)
        return weight * u, weight * c

    noise = random(2, 4, 6)
    found = anisotropy(predict, noise, TIMESTEPS, table.__getitem__)
    assert [timestep for timestep, _ in asked] == [999, 400]
    assert all(torch.allclose(x, noise) for _, x in asked)  # variance 1 at both, as published
    assert not found.score.requires_grad


def test_channels_may_stand_last_and_rows_alone() -> None:
    table, noise, mean = levels("flow"), start("flow", random(2, 4, 6)), random(2, 4, 6, seed=1)
    first = anisotropy(gaussian(table, mean, 0.6), noise, TIMESTEPS, table.__getitem__)
    last = anisotropy(gaussian(table, mean.mT, 0.6), noise.mT, TIMESTEPS, table.__getitem__, channel_dim=-1)
    assert torch.allclose(first.score, last.score)
    vectors = noise[:, :, 0]  # one position
    alone = anisotropy(gaussian(table, mean[:, :, 0], 0.6), vectors, TIMESTEPS, table.__getitem__)
    assert torch.allclose(alone.cosine, -torch.cosine_similarity(vectors, mean[:, :, 0]))
    one = anisotropy(gaussian(table, mean[1:], 0.6), noise[1:], TIMESTEPS, table.__getitem__)
    assert torch.allclose(one.score, first.score[1:])


def test_a_prompt_that_changes_nothing_has_score_0() -> None:
    table = levels("ve velocity")
    found = anisotropy(gaussian(table, torch.zeros(2, 4, 6), 0.6), random(2, 4, 6), TIMESTEPS, table.__getitem__)
    assert found.score.tolist() == [0.0, 0.0]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: text_norm(torch.zeros(2, 3), torch.zeros(1, 3), Coefficients(1, 1, 1, -1)), "equal shape"),
        (lambda: text_norm(torch.zeros(3), torch.zeros(3), Coefficients(1, 1, 1, -1)), "rows"),
        (lambda: text_norm(torch.zeros(2, 3), torch.zeros(2, 3), Coefficients(1, 0.0, 1, -1)), "b = 0"),
        (lambda: text_norm_score([]), "at least one step"),
        (lambda: text_norm_score([torch.zeros(2)], first=0), "first 0"),
        (lambda: anisotropy(max, torch.zeros(2, 3), [2, 1], {}.get), "at least 3 timesteps"),
        (lambda: anisotropy(max, torch.zeros(2, 3), [3, 2, 1], {}.get, channel_dim=-2), "channels"),
    ],
)
def test_what_cannot_be_meant_is_refused(act: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()
