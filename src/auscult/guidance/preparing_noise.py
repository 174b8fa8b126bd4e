"""Adjusted starting noise for a pipeline: its first evaluation, asked for again and again from other noise.

A pipeline is called as for sampling and stopped just before its denoiser runs for the first time. What it would have been
given (time step, encoded prompts, masks) is kept, and the denoiser is then called with that and any other noise: prompts are
encoded once, by the pipeline itself, and no loop is copied.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import ModelError
from .adapters import adapter_of
from .coefficients import Coefficients, check_scheduler, coefficients
from .noise import AdjustedNoise, Predict, adjusted_noise

Adjust = Callable[[Predict, torch.Tensor, Coefficients], AdjustedNoise]
SAMPLE_NAMES = ("sample", "hidden_states")


class _Stopped(Exception):  # noqa: N818 - nothing has failed
    """The pipeline has got to its denoiser."""


@dataclass(frozen=True)
class FirstStep:
    """The first evaluation of a pipeline's call.

    Attributes
    ----------
    predict
        x_T (B, ...) -> raw outputs (B, ...) float32 without and with the prompt.
    x_t
        What the call begins with, (B, ...) float32 in the scheduler's coordinates.
    coefficients
        Of the step.
    """

    predict: Predict
    x_t: torch.Tensor
    coefficients: Coefficients


def prepare_latents(
    pipe: Any, prompt: Any = None, *, adjust: Adjust = adjusted_noise, denoiser: Any = None, **arguments: Any
) -> AdjustedNoise:
    """Adjust the noise that a pipeline's call would begin with.

    Sample with ``pipe(prompt, latents=prepare_latents(pipe, prompt, **arguments).latents, **arguments)``. The batch-wise form
    was published together with guidance that is off at first, up to step 4: ``AttractionBasin(before=0, until=5 / steps)``.

    Parameters
    ----------
    pipe
        Of diffusers (AudioLDM, AudioLDM2, MusicLDM, Stable Audio) or retrieval-augmented, on its device; any that asks its
        denoiser for ``[without; with the prompt]`` in one batch.
    prompt
        As the pipeline takes it; None where ``arguments`` hold encoded ones.
    adjust
        :func:`~auscult.guidance.noise.adjusted_noise`, :func:`~auscult.guidance.noise.descended_noise`, or either with other
        settings (``functools.partial``).
    denoiser
        The module, of a pipeline whose class is not known here.
    arguments
        Of the call, the same as for sampling: steps, scales, seeds or generators, negative prompts, or ``latents`` to begin
        with. A generator that is handed over has drawn the noise afterwards, as in a call: take a new one where the sampler
        draws more.

    Returns
    -------
    AdjustedNoise
        ``latents`` as the argument of that name: of standard deviation 1 whatever the scheduler makes of them.

    Raises
    ------
    ValueError
        The pipeline does not guide in this call, or asks for its predictions one by one; or its scheduler changes predictions
        in a way that does not allow for this.
    ModelError
        The pipeline's class is not known and no denoiser is given, or the denoiser is called in an unknown way.
    """
    first = first_step(pipe, prompt, denoiser=denoiser, **arguments)
    found = adjust(first.predict, first.x_t, first.coefficients)
    pipe.maybe_free_model_hooks()
    return replace(found, latents=found.latents / float(pipe.scheduler.init_noise_sigma))


def first_step(pipe: Any, prompt: Any = None, *, denoiser: Any = None, **arguments: Any) -> FirstStep:
    """The first evaluation of ``pipe(prompt, **arguments)``, see :func:`prepare_latents`; the denoiser does not run."""
    check_scheduler(pipe.scheduler)
    module = adapter_of(pipe)[0] if denoiser is None else denoiser
    call = {**arguments} if prompt is None else {"prompt": prompt, **arguments}
    with _stopping(module, pipe.scheduler) as seen:
        try:
            pipe(**call)
        except _Stopped:
            pass
        else:
            raise ValueError(f"this call of {type(pipe).__name__} never ran its denoiser ({type(module).__name__})")
    return _first(seen, pipe, module)


def _first(seen: Mapping[str, Any], pipe: Any, called: Callable[..., Any]) -> FirstStep:
    """The first step, of what the denoiser was about to be given; ``called`` in its place."""
    step = pipe.scheduler.timesteps[0]
    with torch.inference_mode(False):
        given, args, options = _owned((seen["sample"], seen["args"], seen["options"]))
        doubled = _owned(seen.get("x_t", seen["sample"])).float()
    rows = _rows(given, type(pipe).__name__)

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = _called(called, _both(x, pipe.scheduler, "x_t" in seen).to(given.dtype), args, options)
        raw = output.sample if hasattr(output, "sample") else output[0]
        u, c = raw.float().chunk(2)
        return u, c

    return FirstStep(predict, doubled[:rows], coefficients(pipe.scheduler, step))


def _both(x: torch.Tensor, scheduler: Any, scales: bool) -> torch.Tensor:
    """What a pipeline gives its denoiser of samples x_t (B, ...): twice, and scaled where the scheduler scales."""
    both = torch.cat([x, x])
    return scheduler.scale_model_input(both, scheduler.timesteps[0]) if scales else both


@contextmanager
def adjusting_noise(pipe: Any, *, adjust: Adjust = adjusted_noise, denoiser: Any = None) -> Iterator[list[AdjustedNoise]]:
    """Adjust the noise of the call that is made in this context, whoever makes it and whatever it gives the pipeline.

    The same as :func:`prepare_latents` before the call, where the arguments are not at hand: the noise is adjusted when the
    denoiser is asked for the first time, and denoiser and scheduler go on from there. Under
    :func:`~auscult.guidance.attach.attach`, enter that context first.

    Parameters
    ----------
    pipe, adjust, denoiser
        As in :func:`prepare_latents`.

    Yields
    ------
    list of AdjustedNoise
        Empty until the denoiser is asked; its latents are in the scheduler's coordinates.

    Raises
    ------
    ValueError, ModelError
        As :func:`prepare_latents`, from within the call.
    """
    check_scheduler(pipe.scheduler)
    module = adapter_of(pipe)[0] if denoiser is None else denoiser
    found: list[AdjustedNoise] = []
    with ExitStack() as stack:
        seen = stack.enter_context(_remembering(pipe.scheduler))

        def begin(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if found:
                return None
            seen.update(_given(args, options))
            # what is heard by hooks is the sampler's own evaluation, so these go around them
            first = _first(seen, pipe, module.forward)
            found.append(adjust(first.predict, first.x_t, first.coefficients))
            given = seen["sample"]
            return _with_sample(_both(found[0].latents, pipe.scheduler, "x_t" in seen).to(given.dtype), args, options)

        handle = module.register_forward_pre_hook(begin, with_kwargs=True)
        stack.callback(handle.remove)
        stack.enter_context(_first_sample(pipe.scheduler, found))
        yield found


@contextmanager
def _first_sample(scheduler: Any, found: list[AdjustedNoise]) -> Iterator[None]:
    """The scheduler's first step is taken from what was found."""
    own, original = vars(scheduler).get("step"), scheduler.step
    signature = inspect.signature(original)
    taken: list[bool] = []

    @functools.wraps(original)
    def step(*args: Any, **given: Any) -> Any:
        bound = signature.bind(*args, **given)
        if found and not taken:
            bound.arguments["sample"] = found[0].latents.to(bound.arguments["sample"])
            taken.append(True)
        return original(*bound.args, **bound.kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
        if own is not None:
            scheduler.step = own


@contextmanager
def _stopping(module: Any, scheduler: Any) -> Iterator[dict[str, Any]]:
    """Stop at the denoiser; what it would have been given is then in the dictionary."""
    with _remembering(scheduler) as seen:

        def stop(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            seen.update(_given(args, options))
            raise _Stopped

        handle = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()


def _given(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    named = next((name for name in SAMPLE_NAMES if name in options), None)
    return {"args": args, "options": options, "sample": args[0] if args else options[named] if named else None}


@contextmanager
def _remembering(scheduler: Any) -> Iterator[dict[str, Any]]:
    """What the scheduler was given to scale, until the denoiser is asked, under ``x_t``."""
    seen: dict[str, Any] = {}
    scale = getattr(scheduler, "scale_model_input", None)

    def remember(sample: Any, *args: Any, **options: Any) -> Any:
        if "sample" not in seen:
            seen["x_t"] = sample
        assert scale is not None
        return scale(sample, *args, **options)

    if scale is not None:
        scheduler.scale_model_input = remember
    try:
        yield seen
    finally:
        if scale is not None:
            del scheduler.scale_model_input


def _owned(value: Any) -> Any:
    """Tensors as clones that autograd may keep, in whatever they are nested."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(_owned(each) for each in value)
    if isinstance(value, Mapping):
        return {name: _owned(each) for name, each in value.items()}
    return value


def _rows(given: Any, kind: str) -> int:
    """Samples of a batch whose first half is its second."""
    if given is None:
        raise ModelError(f"{kind} hands its denoiser no sample, neither first nor under the names {', '.join(SAMPLE_NAMES)}")
    half = len(given) // 2
    if len(given) != 2 * half or not torch.equal(given[:half], given[half:]):
        raise ValueError(
            f"{kind} does not ask for predictions with and without the prompt in one batch of two halves in this call; "
            "adjusting noise needs both: take a guidance_scale above 1 and no second scale"
        )
    return half


def _called(module: Any, sample: torch.Tensor, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """The denoiser, as it was called, with another sample."""
    args, options = _with_sample(sample, args, options)
    return module(*args, **options)


def _with_sample(
    sample: torch.Tensor, args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with another sample."""
    if args:
        return (sample, *args[1:]), dict(options)
    return (), {**options, next(name for name in SAMPLE_NAMES if name in options): sample}
