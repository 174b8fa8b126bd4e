"""Adjusted starting noise for a pipeline: its first evaluation, asked for again and again from other noise.

A pipeline is called as for sampling and stopped just before its denoiser runs for the first time. What it would have been
given (time step, encoded prompts, masks) is kept, and the denoiser is then called with that and any other noise: prompts are
encoded once, by the pipeline itself, and no loop is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    step = pipe.scheduler.timesteps[0]
    with torch.inference_mode(False):
        given, args, options = _owned((seen["sample"], seen["args"], seen["options"]))
        doubled = _owned(seen.get("x_t", seen["sample"])).float()
    rows = _rows(given, type(pipe).__name__)
    scales = "x_t" in seen

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([x, x])
        scaled = pipe.scheduler.scale_model_input(both, step) if scales else both
        output = _called(module, scaled.to(given.dtype), args, options)
        raw = output.sample if hasattr(output, "sample") else output[0]
        u, c = raw.float().chunk(2)
        return u, c

    return FirstStep(predict, doubled[:rows], coefficients(pipe.scheduler, step))


@contextmanager
def _stopping(module: Any, scheduler: Any) -> Iterator[dict[str, Any]]:
    """Stop at the denoiser; what it would have been given is then in the dictionary."""
    seen: dict[str, Any] = {}

    def stop(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        named = next((name for name in SAMPLE_NAMES if name in options), None)
        seen.update(args=args, options=options, sample=args[0] if args else options[named] if named else None)
        raise _Stopped

    scale = getattr(scheduler, "scale_model_input", None)

    def remember(sample: Any, *args: Any, **options: Any) -> Any:
        seen["x_t"] = sample
        assert scale is not None
        return scale(sample, *args, **options)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    if scale is not None:
        scheduler.scale_model_input = remember
    try:
        yield seen
    finally:
        handle.remove()
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
    if args:
        return module(sample, *args[1:], **options)
    return module(**{**options, next(name for name in SAMPLE_NAMES if name in options): sample})
