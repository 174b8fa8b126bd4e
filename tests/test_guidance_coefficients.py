"""The four numbers of a scheduler's step, against what each scheduler itself makes of an output, and against closed forms."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import diffusers
import pytest
import torch

from auscult.guidance.coefficients import Coefficients, check_scheduler, coefficients

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # of diffusers with NumPy 2
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),  # still an option, and taken on purpose
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # of torchsde, about the last bits of its times
]
SHAPE = (2, 3, 4)
LATENT = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
FLOW_SOLVERS = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver")
DATA_SOLVERS = ("dpmsolver++", "sde-dpmsolver++", "data_prediction")
FLOWS = {"use_flow_sigmas": True, "flow_shift": 3.0}
NOISE, VELOCITY, CLEAN, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"


def made(name: str, **settings: Any) -> Any:
    """A scheduler of diffusers; ``prediction`` is short for what it calls ``prediction_type``."""
    prediction = settings.pop("prediction", None)
    trained = {} if name.startswith(("EDM", "Cosine", "FlowMatch")) else dict(LATENT)
    if name.startswith("Cosine"):
        pytest.importorskip("torchsde")
    unclipped = {"clip_sample": False} if name.startswith(("DDIM", "DDPM")) else {}
    chosen = {} if prediction is None else {"prediction_type": prediction}
    return getattr(diffusers, f"{name}Scheduler")(**{**trained, **unclipped, **chosen, **settings})


def own_x0(scheduler: Any, output: torch.Tensor, timestep: Any, x_t: torch.Tensor) -> torch.Tensor:
    """x0 by the scheduler's own code: as it converts the output, or where it lands when told that its next level is clean."""
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith(("EDM", "Cosine")) or config.get("algorithm_type") in DATA_SOLVERS or config.get("predict_x0"):
        return scheduler.convert_model_output(output, sample=x_t)
    exact(scheduler)  # the rest say x0 only in a roundabout way, in which float32 would lose more digits than are asked for
    output, x_t = output.double(), x_t.double()
    if name.startswith("PNDM"):
        return scheduler._get_prev_sample(x_t, timestep, -1, output)  # to alpha_bar = 1: set_alpha_to_one
    if hasattr(scheduler, "convert_model_output"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
        return (x_t - sigma * scheduler.convert_model_output(output, sample=x_t)) / alpha  # it converts to noise
    if getattr(scheduler, "state_in_first_order", True):
        scheduler.sigmas[scheduler.step_index + 1] = float(config.get("invert_sigmas", False))
        return scheduler.step(output, timestep, x_t).prev_sample
    # second stage of Heun: the step averages two slopes; the second one is that of a straight line to x0
    now, start, first, dt = scheduler.sigmas[scheduler.step_index], scheduler.sample, scheduler.prev_derivative, scheduler.dt
    landed = scheduler.step(output, timestep, x_t).prev_sample
    return x_t - now * (2 * (landed - start) / dt - first)


def exact(scheduler: Any) -> None:
    """Its tables and its memory in float64."""
    for key, value in vars(scheduler).items():
        if torch.is_tensor(value) and value.is_floating_point() and key != "timesteps":
            setattr(scheduler, key, value.double())


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value expected."""
    assert torch.isfinite(expected).all()
    return float((got - expected).abs().max() / expected.abs().max())


def sampled(scheduler: Any, steps: int = 6) -> list[tuple[Coefficients, float, float]]:
    """A loop with random outputs: per output the numbers, and how far the scheduler's x0 and input scaling are from them."""
    scheduler.set_timesteps(steps)
    random = torch.Generator().manual_seed(0)
    x_t = torch.randn(SHAPE, generator=random) * getattr(scheduler, "init_noise_sigma", 1.0)
    seen = []
    for timestep in scheduler.timesteps:
        numbers, output = coefficients(scheduler, timestep), torch.randn(SHAPE, generator=random)
        scaling = 0.0
        if hasattr(scheduler, "scale_model_input"):
            scaling = distance(x_t * own_scale(scheduler, numbers), scheduler.scale_model_input(x_t, timestep))
        twin = copy.deepcopy(scheduler)
        if getattr(twin, "step_index", 0) is None:
            twin._init_step_index(timestep)
        step = scheduler.step(output, timestep, x_t)
        own = step.pred_original_sample if "pred_original_sample" in step else own_x0(twin, output, timestep, x_t)
        seen.append((numbers, distance(numbers.x0(x_t, output), own), scaling))
        x_t = step.prev_sample
    return seen


def own_scale(scheduler: Any, numbers: Coefficients) -> float:
    """What ``scale_model_input`` multiplies with at the noise level of these numbers, by each family's definition."""
    name = type(scheduler).__name__
    if name.startswith(("EDM", "Cosine")):
        return 1 / math.sqrt(numbers.b**2 + scheduler.config.sigma_data**2)
    return 1 / math.sqrt(numbers.b**2 + 1) if numbers.a == 1 else 1.0


VARIANCE_PRESERVING = [
    (name, {"prediction": prediction, **settings})
    for name, settings, predictions in (
        ("DDIM", {}, (NOISE, VELOCITY, CLEAN)),
        ("DDIMParallel", {}, (NOISE, VELOCITY, CLEAN)),
        ("DDPM", {}, (NOISE, VELOCITY, CLEAN)),
        ("DDPMParallel", {}, (NOISE, VELOCITY, CLEAN)),
        ("PNDM", {"set_alpha_to_one": True}, (NOISE,)),
        ("PNDM", {"set_alpha_to_one": True, "skip_prk_steps": True}, (NOISE, VELOCITY)),
        ("DPMSolverMultistep", {}, (NOISE, VELOCITY, CLEAN)),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, (VELOCITY,)),
        ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, (NOISE, VELOCITY, CLEAN)),
        ("DPMSolverSinglestep", {"final_sigmas_type": "zero"}, (NOISE, VELOCITY, CLEAN)),
        ("UniPCMultistep", {}, (NOISE, VELOCITY, CLEAN)),
        ("UniPCMultistep", {"predict_x0": False}, (NOISE, VELOCITY)),
        ("DEISMultistep", {}, (NOISE, VELOCITY, CLEAN)),
        ("SASolver", {}, (NOISE, VELOCITY, CLEAN)),
    )
    for prediction in predictions
]
VARIANCE_EXPLODING = [
    (name, {"prediction": prediction})
    for name, predictions in (
        ("EulerDiscrete", (NOISE, VELOCITY, CLEAN)),
        ("EulerAncestralDiscrete", (NOISE, VELOCITY)),
        ("LMSDiscrete", (NOISE, VELOCITY, CLEAN)),
        ("HeunDiscrete", (NOISE, VELOCITY, CLEAN)),
        ("KDPM2Discrete", (NOISE, VELOCITY)),
        ("KDPM2AncestralDiscrete", (NOISE, VELOCITY)),
    )
    for prediction in predictions
]
PRECONDITIONED = [
    (name, {"prediction": prediction, "sigma_data": data})
    for name in ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
    for prediction in (NOISE, VELOCITY)
    for data in (0.5, 1.0)
]
KARRAS = [
    (name, {"prediction": prediction, "use_karras_sigmas": True})
    for name in (
        *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete", "LMSDiscrete"),
        *("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
    )
    for prediction in (NOISE, VELOCITY)
]
FLOW_MATCHING = [
    ("FlowMatchEulerDiscrete", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}),
    *((name, {"prediction": prediction, **FLOWS}) for name in FLOW_SOLVERS for prediction in (FLOW, NOISE, CLEAN)),
]


@pytest.mark.parametrize("name, settings", VARIANCE_PRESERVING + VARIANCE_EXPLODING + PRECONDITIONED + KARRAS + FLOW_MATCHING)
def test_the_numbers_reproduce_the_schedulers_own_clean_latents_at_every_output(name: str, settings: dict[str, Any]) -> None:
    seen = sampled(made(name, **settings))
    assert len(seen) >= 6
    assert max(error for _, error, _ in seen) < 1e-6
    assert max(scaled for _, _, scaled in seen) < 1e-6
    levels = [numbers.sigma for numbers, _, _ in seen]
    assert levels[0] > 5 * levels[-1] > 0  # they belong to different steps, down a grid
    assert all(numbers.alpha_bar == pytest.approx(1 / (1 + numbers.sigma**2)) for numbers, _, _ in seen)


@pytest.mark.parametrize("prediction", [NOISE, VELOCITY])
@pytest.mark.parametrize("name", ["HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"])
def test_a_second_stage_has_a_noise_level_of_its_own(name: str, prediction: str) -> None:
    sigmas = [numbers.sigma for numbers, _, _ in sampled(made(name, prediction=prediction))]
    first, second = sigmas[::2], sigmas[1::2]
    assert first == sorted(first, reverse=True) and len(first) == 6
    if name == "HeunDiscrete":  # the corrector looks at the end of the step, where the next step begins
        assert second == first[1:]
    if name == "KDPM2Discrete":  # the midpoint, in log sigma
        assert second == pytest.approx([math.sqrt(one * two) for one, two in itertools.pairwise(first)], rel=1e-5)
    if name == "KDPM2AncestralDiscrete":  # the midpoint of a step that goes further down, and then adds noise
        assert all(middle < math.sqrt(one * two) for middle, (one, two) in zip(second, itertools.pairwise(first), strict=True))


FORWARD = [
    *((name, {}) for name in ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", *FLOW_SOLVERS)),
    *((name, {"prediction": FLOW, **FLOWS}) for name in FLOW_SOLVERS[:-1]),  # SASolver's own adds the noise of a diffusion
    *((name, {}) for name in ("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete")),
    *((name, {}) for name in ("KDPM2AncestralDiscrete", "EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
]


@pytest.mark.parametrize("name, settings", FORWARD)
def test_the_state_is_what_the_schedulers_own_forward_process_makes(name: str, settings: dict[str, Any]) -> None:
    scheduler = made(name, **settings)
    scheduler.set_timesteps(6)
    random = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(SHAPE, generator=random), torch.randn(SHAPE, generator=random)
    for place in (0, 4):
        timestep = scheduler.timesteps[place : place + 1]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(place)
        numbers = coefficients(scheduler, timestep[0])
        if name.startswith("FlowMatch"):
            expected = scheduler.scale_noise(clean, timestep, noise)
        else:
            expected = scheduler.add_noise(clean, noise, timestep.repeat(len(clean)))
        assert distance(numbers.a * clean + numbers.b * noise, expected) < 1e-6


def output_of(prediction: str, clean: torch.Tensor, noise: torch.Tensor, sigma: float, data: float = 1.0) -> torch.Tensor:
    """What a network would say that knows x0 and the noise, by the definition of each output at ``sigma = b / a``."""
    if prediction == "edm":  # Karras et al., eq. 7: c_skip x + c_out F = x0, with velocity's sign
        skip, out = data**2 / (sigma**2 + data**2), -sigma * data / math.sqrt(sigma**2 + data**2)
        return (clean - skip * (clean + sigma * noise)) / out
    along, across = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    return {NOISE: noise, VELOCITY: along * noise - across * clean, CLEAN: clean, FLOW: noise - clean}[prediction]


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 7.0, 80.0])
def test_one_posterior_has_one_x0_in_every_parameterization(sigma: float) -> None:
    """Gaussian data: the ideal denoiser is known, sees the state in one coordinate alone, and must come back from every one."""
    random = torch.Generator().manual_seed(2)
    mean, spread = torch.randn(SHAPE, generator=random, dtype=torch.float64), 0.7
    drawn = torch.randn((2, *SHAPE), generator=random, dtype=torch.float64)
    unscaled = mean + spread * drawn[0] + sigma * drawn[1]
    clean = (sigma**2 * mean + spread**2 * unscaled) / (sigma**2 + spread**2)
    noise = (unscaled - clean) / sigma
    for name, settings, kind in (
        *(("DDIM", {"prediction": kind}, kind) for kind in (NOISE, VELOCITY, CLEAN)),
        *(("DPMSolverMultistep", {"prediction": kind}, kind) for kind in (NOISE, VELOCITY, CLEAN)),
        *(("EulerDiscrete", {"prediction": kind}, kind) for kind in (NOISE, VELOCITY, CLEAN)),
        *(("EDMEuler", {"prediction": VELOCITY, "sigma_data": data}, "edm") for data in (0.5, 1.0)),
        ("EDMEuler", {"prediction": NOISE}, "-edm"),
        ("FlowMatchEulerDiscrete", {}, FLOW),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "-flow"),
        ("UniPCMultistep", {"prediction": FLOW, **FLOWS}, FLOW),
    ):
        scheduler = made(name, **settings)
        scheduler.set_timesteps(4)
        plant(scheduler, sigma)
        numbers = coefficients(scheduler, scheduler.timesteps[0])
        assert numbers.sigma == pytest.approx(sigma, rel=1e-12)
        kinds = {"-edm": "edm", "-flow": FLOW}
        output = output_of(kinds.get(kind, kind), clean, noise, sigma, settings.get("sigma_data", 0.5))
        x0 = numbers.x0(numbers.a * unscaled, -output if kind in kinds else output)
        assert distance(x0, clean) < 1e-9, (name, settings)


def plant(scheduler: Any, sigma: float) -> None:
    """Make ``b / a = sigma`` the first level of a grid, in float64: the scheduler's own tables are in float32."""
    if hasattr(scheduler, "step_index"):
        level = sigma
        if type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas"):
            level = sigma / (1 + sigma)
            level = 1 - level if scheduler.config.get("invert_sigmas") else level
        scheduler.sigmas = torch.full((5,), level, dtype=torch.float64)
        scheduler.set_begin_index(0)
    else:
        scheduler.alphas_cumprod = torch.full((1000,), 1 / (1 + sigma**2), dtype=torch.float64)


def test_at_pure_noise_x0_is_finite_where_the_output_says_it() -> None:
    for name, settings, place, expected in (
        ("FlowMatchEulerDiscrete", {}, 0, Coefficients(a=0.0, b=1.0, p=1.0, q=-1.0)),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, 0, Coefficients(a=0.0, b=1.0, p=1.0, q=1.0)),
        ("DDIM", {"prediction": VELOCITY, "rescale_betas_zero_snr": True}, 0, Coefficients(a=0.0, b=1.0, p=0.0, q=-1.0)),
    ):
        scheduler = made(name, timestep_spacing="trailing", **settings) if name == "DDIM" else made(name, **settings)
        scheduler.set_timesteps(4)
        numbers = coefficients(scheduler, scheduler.timesteps[place])
        assert numbers == expected
        assert (numbers.sigma, numbers.alpha_bar) == (math.inf, 0.0)
    blind = made("DDIM", prediction=NOISE, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    blind.set_timesteps(4)
    with pytest.raises(ValueError, match="predicted noise says nothing about x0"):
        coefficients(blind, blind.timesteps[0])
    assert coefficients(blind, blind.timesteps[1]).alpha_bar > 0


def test_without_noise_the_output_has_no_say() -> None:
    scheduler = made("FlowMatchEulerDiscrete")
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    numbers = coefficients(scheduler, scheduler.timesteps[2])
    assert (numbers.sigma, numbers.alpha_bar, numbers.p, numbers.q) == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "FlowMatchEulerDiscrete", "CosineDPMSolverMultistep"])
def test_the_place_on_the_grid_is_the_one_that_the_step_takes(name: str) -> None:
    scheduler = made(name)
    scheduler.set_timesteps(6)
    asked = [coefficients(scheduler, timestep).sigma for timestep in scheduler.timesteps]
    assert scheduler.step_index is None
    assert asked == sorted(asked, reverse=True)
    scheduler.set_begin_index(2)  # as a pipeline does that starts from given audio: the time step no longer decides
    assert coefficients(scheduler, scheduler.timesteps[0]).sigma == asked[2]
    assert scheduler.step_index is None


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("DDIM", {"clip_sample": True}, "clip_sample=True in DDIMScheduler.*from_config.*clip_sample=False"),
        ("DDPMParallel", {"clip_sample": True}, "clip_sample=True in DDPMParallelScheduler"),
        ("HeunDiscrete", {"clip_sample": True}, "clip_sample=True in HeunDiscreteScheduler"),
        ("DDIM", {"thresholding": True}, "thresholding=True in DDIMScheduler.*thresholding=False"),
        ("DPMSolverMultistep", {"thresholding": True}, "thresholding=True in DPMSolverMultistepScheduler"),
        ("EDMDPMSolverMultistep", {"thresholding": True}, "thresholding=True in EDMDPM"),
        ("DDPM", {"variance_type": "learned_range"}, "variance_type='learned_range'.*half of the output"),
        ("PNDM", {"prediction": CLEAN}, "PNDMScheduler should be one of epsilon, v_prediction, got 'sample'"),
        ("EulerAncestralDiscrete", {"prediction": CLEAN}, "got 'sample'"),
        ("DPMSolverMultistep", {"prediction": FLOW}, "needs use_flow_sigmas=True"),
        ("LCM", {}, "LCMScheduler samples from distilled models"),
        ("TCD", {}, "TCDScheduler samples from distilled models"),
        ("FlowMatchLCM", {}, "FlowMatchLCMScheduler samples from distilled models"),
        ("DDIMInverse", {}, "should be one of .*DDIMScheduler.*, got DDIMInverseScheduler"),
        ("IPNDM", {}, "got IPNDMScheduler"),
    ],
)
def test_a_scheduler_that_cannot_be_trusted_is_refused_in_words(name: str, settings: dict[str, Any], words: str) -> None:
    if name in ("LCM", "TCD", "IPNDM", "DDIMInverse"):
        scheduler = getattr(diffusers, f"{name}Scheduler")()
    else:
        scheduler = made(name, **settings)
    with pytest.raises(ValueError, match=words):
        check_scheduler(scheduler)
    with pytest.raises(ValueError, match=words):
        coefficients(scheduler, 1)


def test_only_settings_that_the_class_obeys_count() -> None:
    """``from_config`` keeps the clip_sample of a file for a scheduler that never clips; a subclass that hides it still does."""
    carried = diffusers.DPMSolverMultistepScheduler.from_config({"clip_sample": True})
    assert carried.config["clip_sample"]
    check_scheduler(carried)

    class Mine(diffusers.DDIMScheduler):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)

    check_scheduler(Mine(clip_sample=False))
    with pytest.raises(ValueError, match="clip_sample=True in DDIMScheduler"):
        check_scheduler(Mine(clip_sample=True))


def test_a_time_step_that_is_not_of_the_grid_is_refused() -> None:
    euler = made("EulerDiscrete")
    euler.set_timesteps(6)
    with pytest.raises(ValueError, match="should be one of the time steps of EulerDiscreteScheduler, got 12345"):
        coefficients(euler, 12345)
    assert euler.step_index is None
    with pytest.raises(ValueError, match="from 0 to 999, got 1000"):
        coefficients(made("DDIM"), 1000)
