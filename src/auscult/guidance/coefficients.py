"""What one step of a scheduler says about the clean latents: four numbers, whatever the parameterization.

A sampler's state is ``x_t = a x0 + b eps``, and in every scheduler the clean latents are affine in the network's raw output:
``x0 = p x_t + q output``. ``p`` and ``q`` do not depend on the prompt. Whoever knows ``a, b, p, q`` can therefore correct raw
outputs without asking whether the network predicts noise, velocity or the clean latents. With ``s`` the scheduler's sigma and
``d`` its ``sigma_data``:

==========================================  ============  ==================  ===========================================
family                                      a, b          output              p, q
==========================================  ============  ==================  ===========================================
DDIM, DDPM, PNDM, DPM-Solver, UniPC, DEIS   a^2 + b^2 = 1  noise              1 / a, -b / a
(with ``use_flow_sigmas``: a = 1 - s,                      velocity           a, -b
b = s)                                                     clean latents      0, 1
Euler, LMS, Heun, KDPM2                     1, s           noise              1, -s
..                                                         velocity           1 / (s^2 + 1), -s / sqrt(s^2 + 1)
..                                                         clean latents      0, 1
EDM, Cosine-DPM-Solver                      1, s           noise; velocity    d^2 / (s^2 + d^2), +-s d / sqrt(s^2 + d^2)
flow matching                               1 - s, s       flow               1, -s
flow matching with ``invert_sigmas``        s, 1 - s       flow, backwards    1, 1 - s
==========================================  ============  ==================  ===========================================

At the ends. Pure noise (``a = 0``: a flow at s = 1, a velocity at zero terminal signal-to-noise ratio) is a step as any other:
``p`` and ``q`` are finite, ``sigma`` is inf. Only a network that predicts noise says nothing about ``x0`` there; that raises.
No grid of a scheduler's own steps from ``s = 0``, where it only ends. A grid of the user's that does gives ``b = 0``, and
``q = 0`` unless the output is x0 itself: the output has no say in x0 any more. Whoever divides by ``a`` or ``q`` must leave out
such steps.

Sources: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12; Salimans & Ho, "Progressive Distillation for
Fast Sampling of Diffusion Models", ICLR 2022, section 4 (velocity); Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models", NeurIPS 2022, eq. 7; Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023;
checked against each scheduler of diffusers 0.42.1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOISE, VELOCITY, CLEAN, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"


@dataclass(frozen=True)
class Coefficients:
    """The four numbers of one step: ``x_t = a x0 + b eps`` and ``x0 = p x_t + q output``.

    Attributes
    ----------
    a, b
        Shares of the clean latents and of unit noise in the sampler's state; at least 0.
    p, q
        How the clean latents follow from the state and the network's raw output. ``q`` is 0 where the output has no say.

    Examples
    --------
    >>> step = Coefficients(a=0.6, b=0.8, p=0.6, q=-0.8)  # velocity; v = a eps - b x0
    >>> round(step.x0(0.6 * 5 + 0.8 * 2, 0.6 * 2 - 0.8 * 5), 9)
    5.0
    >>> round(step.sigma, 3), round(step.alpha_bar, 3)
    (1.333, 0.36)
    """

    a: float
    b: float
    p: float
    q: float

    @property
    def sigma(self) -> float:
        """Noise level relative to the signal, ``b / a``; inf at pure noise."""
        return self.b / self.a if self.a > 0 else math.inf

    @property
    def alpha_bar(self) -> float:
        """Share of the signal in the state's variance, ``a^2 / (a^2 + b^2)``: 0 at pure noise, 1 without noise."""
        return self.a**2 / (self.a**2 + self.b**2)

    def x0(self, x_t: Any, output: Any) -> Any:
        """Clean latents that a raw output stands for.

        Parameters
        ----------
        x_t
            State of the sampler, as ``scheduler.step`` takes it (not as ``scale_model_input`` leaves it); tensor or number.
        output
            The network's raw output, of the same shape.

        Returns
        -------
        Any
            ``p x_t + q output``, in the inputs' precision.
        """
        return self.p * x_t + self.q * output


def coefficients(scheduler: Any, timestep: Any) -> Coefficients:
    """The numbers of the step that ``scheduler.step(output, timestep, x_t)`` is about to take.

    Call it before that step: the step moves the scheduler on. The scheduler is left as it was. Second-order schedulers take two
    outputs per step of their grid; each has its own noise level, and this is that of the output that comes next.

    Parameters
    ----------
    scheduler
        Of diffusers, after ``set_timesteps``; one of those that :func:`check_scheduler` accepts.
    timestep
        As the sampling loop gives it to ``scheduler.step``.

    Returns
    -------
    Coefficients
        Plain numbers; the scheduler's own tables are in float32.

    Raises
    ------
    ValueError
        The scheduler does not qualify, has no such time step, or its output does not determine x0 at this step.

    Notes
    -----
    With ``s_churn`` (Euler, EDM-Euler, Heun for flows), which no audio pipeline passes, a step first adds noise to its state;
    the numbers are those of the state before.

    Examples
    --------
    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> flow = FlowMatchEulerDiscreteScheduler()
    >>> flow.set_timesteps(sigmas=[1.0, 0.75, 0.5])
    >>> coefficients(flow, flow.timesteps[1])
    Coefficients(a=0.25, b=0.75, p=1.0, q=-0.75)
    """
    check_scheduler(scheduler)
    family, _ = _SUPPORTED[_known_class(scheduler).__name__]
    return family(scheduler, timestep)


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose steps are not affine in the network's output, or not known.

    Parameters
    ----------
    scheduler
        Of diffusers. It goes by the name of its class or of a class that it inherits from.

    Raises
    ------
    ValueError
        It clips or thresholds x0, belongs to a distilled model, is of an unknown class, or its network predicts what that class
        cannot use.

    Examples
    --------
    >>> from diffusers import DDIMScheduler
    >>> check_scheduler(DDIMScheduler(clip_sample=False))
    >>> check_scheduler(DDIMScheduler())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: clip_sample=True in DDIMScheduler: x0 is cut to a range and no longer follows from the output; ...
    """
    name = _known_class(scheduler).__name__
    for setting in ("clip_sample", "thresholding"):
        if _setting(scheduler, setting, False):
            raise ValueError(
                f"{setting}=True in {name}: x0 is cut to a range and no longer follows from the output; latents have no "
                f"such range; set pipe.scheduler = {name}.from_config(pipe.scheduler.config, {setting}=False)"
            )
    variance = str(_setting(scheduler, "variance_type", ""))
    if variance.startswith("learned"):
        raise ValueError(f"variance_type={variance!r} in {name}: half of the output is no prediction; use a model without one")
    prediction, allowed = _prediction(scheduler), _SUPPORTED[name][1]
    if prediction not in allowed:
        raise ValueError(f"prediction_type of {name} should be one of {', '.join(allowed)}, got {prediction!r}")
    if prediction == FLOW and name not in _ALWAYS_FLOW and not _setting(scheduler, "use_flow_sigmas", False):
        raise ValueError(f"prediction_type={FLOW!r} in {name} needs use_flow_sigmas=True, else its sigmas are no flow's")


def _known_class(scheduler: Any) -> type:
    """The nearest class of a scheduler that is supported; a subclass goes by what it inherits from."""
    for cls in type(scheduler).__mro__:
        if cls.__name__ in _DISTILLED:
            raise ValueError(
                f"{type(scheduler).__name__} samples from distilled models, whose few steps leave no room for a correction; "
                "use the model that it was distilled from, with that model's own scheduler"
            )
        if cls.__name__ in _SUPPORTED:
            return cls
    raise ValueError(
        f"scheduler should be one of {', '.join(sorted(_SUPPORTED))}, or inherit from one, got {type(scheduler).__name__}; "
        "set pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), or the like for a flow"
    )


def _setting(scheduler: Any, name: str, default: Any) -> Any:
    """A setting that the scheduler's class knows, else the default."""
    # from_config keeps settings of the scheduler that it was made from: clip_sample=True may lie in one that never clips
    if name not in inspect.signature(_known_class(scheduler).__init__).parameters:  # type: ignore[misc]
        return default
    return getattr(scheduler.config, name, default)


def _prediction(scheduler: Any) -> str:
    """What the network's output is."""
    return FLOW if _known_class(scheduler).__name__ in _ALWAYS_FLOW else str(_setting(scheduler, "prediction_type", NOISE))


def _index(scheduler: Any, timestep: Any) -> int:
    """Place on the scheduler's grid that the next step starts from."""
    known: int | None = scheduler.step_index
    try:
        if known is None:
            scheduler._init_step_index(timestep)  # its own rule: a given start, repeated time steps
        return int(scheduler.step_index)
    except IndexError:
        raise ValueError(
            f"timestep should be one of the time steps of {type(scheduler).__name__}, got {timestep}; "
            "call scheduler.set_timesteps first and pass one of scheduler.timesteps"
        ) from None
    finally:
        scheduler._step_index = known  # looking must not move it


def _sigma(scheduler: Any, timestep: Any) -> float:
    """Noise level of the next step, in the scheduler's own unit; that of the stage where a step has two."""
    index = _index(scheduler, timestep)
    name = _known_class(scheduler).__name__
    if name.startswith("KDPM2") and not scheduler.state_in_first_order:
        # the midpoint; Heun's second stage needs no such rule, as it lies on the grid
        ancestral = name == "KDPM2AncestralDiscreteScheduler"
        return float(scheduler.sigmas_interpol[index - 1 if ancestral else index])
    return float(scheduler.sigmas[index])


def _by_timestep(scheduler: Any, timestep: Any) -> Coefficients:
    """Schedulers that keep no place and look alpha_bar up by the time step of training."""
    steps = len(scheduler.alphas_cumprod)
    if not 0 <= int(timestep) < steps:
        raise ValueError(f"timestep should be one of scheduler.timesteps, from 0 to {steps - 1}, got {timestep}")
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return _variance_preserving(_prediction(scheduler), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def _by_sigma(scheduler: Any, timestep: Any) -> Coefficients:
    """Schedulers that keep a grid of sigma, and their state as the forward process has it."""
    sigma = _sigma(scheduler, timestep)
    if _setting(scheduler, "use_flow_sigmas", False):
        return _variance_preserving(_prediction(scheduler), 1 - sigma, sigma)
    a = 1 / math.sqrt(sigma**2 + 1)
    return _variance_preserving(_prediction(scheduler), a, sigma * a)


def _variance_preserving(prediction: str, a: float, b: float) -> Coefficients:
    if prediction == NOISE:
        if a == 0:
            raise ValueError(
                "the state is noise alone at this step (zero terminal signal-to-noise ratio), and predicted noise says nothing "
                "about x0; use a model that predicts the velocity, or rescale_betas_zero_snr=False"
            )
        return Coefficients(a, b, 1 / a, -b / a)
    if prediction == VELOCITY:
        return Coefficients(a, b, a, -b)
    return Coefficients(a, b, 0.0, 1.0) if prediction == CLEAN else Coefficients(a, b, 1.0, -b)


def _variance_exploding(scheduler: Any, timestep: Any) -> Coefficients:
    """Schedulers whose state is the clean latents plus sigma times noise."""
    sigma, prediction = _sigma(scheduler, timestep), _prediction(scheduler)
    if prediction == CLEAN:
        return Coefficients(1.0, sigma, 0.0, 1.0)
    if prediction == NOISE:
        return Coefficients(1.0, sigma, 1.0, -sigma)
    return Coefficients(1.0, sigma, 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1))


def _preconditioned(scheduler: Any, timestep: Any) -> Coefficients:
    """The EDM family. What it calls noise is its velocity with the other sign."""
    sigma, data = _sigma(scheduler, timestep), float(scheduler.config.sigma_data)
    variance = sigma**2 + data**2
    sign = 1 if _prediction(scheduler) == NOISE else -1
    return Coefficients(1.0, sigma, data**2 / variance, sign * sigma * data / math.sqrt(variance))


def _flow(scheduler: Any, timestep: Any) -> Coefficients:
    """Straight paths between noise and data; inverted, sigma grows from 0 (noise) to 1 (data)."""
    sigma = _sigma(scheduler, timestep)
    if _setting(scheduler, "invert_sigmas", False):
        return Coefficients(sigma, 1 - sigma, 1.0, 1 - sigma)
    return Coefficients(1 - sigma, sigma, 1.0, -sigma)


Family = Callable[[Any, Any], Coefficients]

_SUPPORTED: dict[str, tuple[Family, tuple[str, ...]]] = {
    f"{name}Scheduler": (family, predictions)
    for family, predictions, names in (
        (_by_timestep, (NOISE, VELOCITY, CLEAN), "DDIM DDIMParallel DDPM DDPMParallel"),
        (_by_timestep, (NOISE, VELOCITY), "PNDM"),
        (
            _by_sigma,
            (NOISE, VELOCITY, CLEAN, FLOW),
            "DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep SASolver",
        ),
        (_variance_exploding, (NOISE, VELOCITY, CLEAN), "EulerDiscrete LMSDiscrete HeunDiscrete"),
        (_variance_exploding, (NOISE, VELOCITY), "EulerAncestralDiscrete KDPM2Discrete KDPM2AncestralDiscrete"),
        (_preconditioned, (NOISE, VELOCITY), "EDMEuler EDMDPMSolverMultistep CosineDPMSolverMultistep"),
        (_flow, (FLOW,), "FlowMatchEulerDiscrete FlowMatchHeunDiscrete"),
    )
    for name in names.split()
}
_ALWAYS_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_DISTILLED = (
    *("LCMScheduler", "TCDScheduler", "SCMScheduler", "CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler"),
    *("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "HeliosDMDScheduler", "PiflowScheduler"),
)
