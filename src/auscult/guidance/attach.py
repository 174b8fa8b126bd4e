"""Guidance around any sampler of diffusers: the denoiser is overheard, and the scheduler is given a corrected output.

A forward hook on the denoiser hears its predictions with and without the prompt; the scheduler's ``step`` is wrapped, and what
it is given is corrected first. No loop is copied, so this works with every pipeline that calls one denoiser and one scheduler,
and whatever combines the predictions: the scale of classifier-free guidance is read off the result.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import ModelError
from .adapters import Adapter, adapter_of
from .coefficients import check_scheduler, coefficients
from .hearing import Hearing, plain
from .signals import text_norm
from .terms import Correction, GuidanceTerm, Moment, norms, rows_like
from .trace import Trace, TraceRow

_MARK = "_auscult_guided"
_WRAPPED = ("step", "set_timesteps")
_LOOKED_UP = ("similarity", "neighbor", "neighbor_caption", "threshold")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 3e-2  # of float16 and bfloat16, whose rounding classifier-free guidance multiplies


@dataclass
class Run:
    """What happens under guidance.

    Attributes
    ----------
    trace
        A row for each step and sample.
    """

    trace: Trace = field(default_factory=Trace)


@contextmanager
def attach(
    pipe: Any = None,
    *terms: GuidanceTerm,
    denoiser: Any = None,
    scheduler: Any = None,
    adapter: Adapter | None = None,
) -> Iterator[Run]:
    """Steer a sampler while the context lasts, and keep a trace.

    Parameters
    ----------
    pipe
        A pipeline of diffusers', or this package's; or None, with ``denoiser`` and ``scheduler`` of a loop of your own.
    terms
        What steers, see :class:`~auscult.guidance.terms.GuidanceTerm`; their corrections add up. None: nothing is changed, and
        the trace holds the signals that need no references.
    denoiser, scheduler
        The network that the loop calls and the scheduler whose ``step`` it calls.
    adapter
        How the loop calls them; by default, a pipeline's own.

    Yields
    ------
    Run
        With the trace. Where no term acts, the scheduler is given the very tensor that the pipeline computed.

    Raises
    ------
    ModelError
        The pipeline or its scheduler cannot be guided, it is guided already, the scheduler is called without the denoiser, or
        the term could never act; or the denoiser was called, and the scheduler not stepped after it.
    ValueError
        Neither a pipeline nor a denoiser with its scheduler, or both; or terms that take from the same scale twice.
    """
    own = [each is not None for each in (denoiser, scheduler)]
    if any(own) if pipe is not None else not all(own):
        raise ValueError("give a pipeline, or None and a denoiser and a scheduler")
    if pipe is not None:
        denoiser, known = adapter_of(pipe)
        scheduler, adapter = pipe.scheduler, adapter or known
    check_scheduler(scheduler)
    if getattr(scheduler, _MARK, False) or getattr(denoiser, _MARK, False):
        raise ModelError(
            f"this {type(scheduler).__name__} or its {type(denoiser).__name__} is under guidance already; give all terms "
            "to one attach(pipe, term, another), and leave the first context before the next"
        )
    _check_offloading(denoiser)
    adapter = adapter or Adapter()
    _check_terms(terms, adapter)
    watch = _Watch(denoiser, scheduler, adapter, terms)
    with _patched(denoiser, scheduler, watch):
        yield watch.run


@contextmanager
def _patched(denoiser: Any, scheduler: Any, watch: _Watch) -> Iterator[None]:
    own = {name: vars(scheduler)[name] for name in _WRAPPED if name in vars(scheduler)}  # wrapped by somebody else
    handle = denoiser.register_forward_hook(watch.hearing.hear, with_kwargs=True)
    for each in (denoiser, scheduler):
        setattr(each, _MARK, True)
    scheduler.step = watch.stepping(scheduler.step)
    scheduler.set_timesteps = watch.beginning(scheduler.set_timesteps)
    try:
        yield
    finally:
        handle.remove()
        for name in _WRAPPED:
            delattr(scheduler, name)  # that of the class shows again
        vars(scheduler).update(own)
        for each in (denoiser, scheduler):
            delattr(each, _MARK)
    watch.hearing.check_taken()


# --- what is done at a step ------------------------------------------------------------------------------------------


class _Watch:
    """Hears the denoiser, and corrects what the scheduler is given."""

    def __init__(self, denoiser: Any, scheduler: Any, adapter: Adapter, terms: Sequence[GuidanceTerm]) -> None:
        self.scheduler, self.adapter, self.terms = scheduler, adapter, terms
        self.run, self.hearing = Run(), Hearing(denoiser, scheduler, adapter)
        self.call, self.number = -1, 0
        self.states: list[dict[str, Any]] = []
        self._begin()

    def beginning(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_timesteps(*args: Any, **given: Any) -> Any:
            self._begin()
            return original(*args, **given)

        return set_timesteps

    def stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A step that first corrects; with the same signature, which pipelines look at."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def step(*args: Any, **given: Any) -> Any:
            bound = signature.bind(*args, **given)
            output, timestep, sample = (bound.arguments[name] for name in ("model_output", "timestep", "sample"))
            bound.arguments["model_output"] = self.corrected(output, timestep, sample)
            return original(*bound.args, **bound.kwargs)

        return step

    def _begin(self) -> None:
        if self.number or self.call < 0:
            self.call += 1
        self.number = 0
        self.hearing.calls.clear()
        self.states = [{} for _ in self.terms]

    def corrected(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        """What the scheduler should be given: ``output`` itself where nothing acts."""
        total = len(self.scheduler.timesteps)
        if self.number >= total:  # a loop of one's own that goes through the same steps again
            self._begin_again()
        try:
            return self._corrected(output, timestep, sample, total)
        finally:
            self.hearing.calls.clear()
            self.number += 1

    def _corrected(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor, total: int) -> torch.Tensor:
        # tensors of an inference mode cannot carry gradients, so all is done on plain copies, outside of it
        with torch.inference_mode(False), torch.no_grad():
            moment = self._moment(output, timestep, sample, total)
            corrections = [self._asked(term, moment, state) for term, state in zip(self.terms, self.states, strict=True)]
            result = _applied(output, moment.guided, corrections)
            self.run.trace.add(self._rows(moment, corrections))
        return result

    def _begin_again(self) -> None:
        heard = [*self.hearing.calls]
        self._begin()
        self.hearing.calls.extend(heard)

    def _asked(self, term: GuidanceTerm, moment: Moment, state: dict[str, Any]) -> Correction:
        if moment.u is None and getattr(term, "needs_guidance", False):
            raise ModelError(
                f"{term.name}: despecification and deduplication lower classifier-free guidance, dissimilarity in units 'norm' "
                "is a share of it, and this sampler runs without; give a guidance_scale above 1, or a dissimilarity in units "
                "'estimate' or 'paper'"
            )
        return term(replace(moment, state=state))

    def _moment(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor, total: int) -> Moment:
        x_t, guided = plain(sample), plain(output)
        u, c = self.hearing.predictions(len(x_t), guided)
        scale, direction, degenerate = self._guidance(u, c, guided, output.dtype)
        return Moment(
            self.number,
            total,
            float(timestep),
            coefficients(self.scheduler, timestep),
            x_t,
            guided,
            u,
            c,
            scale,
            direction,
            degenerate,
            self.hearing.predict_others if self.adapter.encode is not None else None,
            self.hearing.predict_again,
        )

    def _guidance(
        self, u: torch.Tensor | None, c: torch.Tensor, guided: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """s0, (guided - u) / s0, and whether u and c are equal, per row.

        s0 is the least-squares scale ``<guided - u, c - u> / |c - u|^2``. Where a pipeline combines otherwise (two scales, a
        rescaling), what is left over belongs to the direction.
        """
        ones = torch.ones(len(c), device=c.device)
        if u is None:
            return ones, torch.zeros_like(c), torch.zeros_like(ones, dtype=torch.bool)
        apart, moved = c - u, guided - u
        # the rounding of ``guided`` is spread over all its numbers: s0 is known well where none of them alone would tell it
        rounding = max(8 * torch.finfo(dtype).eps / apart[0].numel() ** 0.5, 4 * torch.finfo(torch.float32).eps)
        degenerate = norms(apart) <= rounding * norms(c)
        square = apart.flatten(1).double().square().sum(1)
        inner = (moved.flatten(1).double() * apart.flatten(1).double()).sum(1)
        found = torch.where(
            degenerate, torch.ones_like(inner), inner / torch.where(degenerate, torch.ones_like(square), square)
        )
        scale = ones * self.adapter.scale if self.adapter.scale is not None else found.float()
        off = norms(moved - rows_like(scale, apart) * apart) > _TOLERANCE.get(dtype, _HALF_TOLERANCE) * norms(moved)
        own = moved / rows_like(torch.where(scale == 0, ones, scale), moved)
        return scale, torch.where(rows_like(off & ~degenerate, apart), own, apart), degenerate

    # --- the trace ----------------------------------------------------------------------------------------------------

    def _rows(self, moment: Moment, corrections: Sequence[Correction]) -> list[TraceRow]:
        known = moment.u is not None and moment.coefficients.b > 0  # without noise no prediction of it means anything
        signal = text_norm(moment.u, moment.c, moment.coefficients).tolist() if known else None
        scale = moment.scale.tolist()
        rows = []
        for sample in range(len(moment)):
            facts = _facts([term.name for term in self.terms], corrections, sample)
            rows.append(
                TraceRow(
                    call=self.call,
                    step=moment.number,
                    n_steps=moment.total,
                    timestep=moment.timestep,
                    sigma=moment.coefficients.sigma,
                    alpha_bar=moment.coefficients.alpha_bar,
                    sample=sample,
                    scale=None if moment.u is None else scale[sample],
                    text_norm=None if signal is None else signal[sample],
                    **facts,
                )
            )
        return rows


def _facts(names: Sequence[str], corrections: Sequence[Correction], sample: int) -> dict[str, Any]:
    """What the terms say of a sample; where several speak of the same, the first one's word.

    What was looked up, and whether it fired, is of the first term that compares with references; of the others, ``facts`` say
    by name whether they fired. Where none compares, whether any fired.
    """
    facts: dict[str, Any] = {}
    comparing = next((number for number, each in enumerate(corrections) if "similarity" in each.facts), None)
    for number, (term, correction) in enumerate(zip(names, corrections, strict=True)):
        first = comparing in (number, None)
        for name, values in correction.facts.items():
            if name == "fired" and not first:
                facts["facts"] = {**facts.get("facts", {}), term: bool(values[sample])}
            elif name == "fired":
                facts[name] = facts.get(name, False) or values[sample]
            elif (first or name not in _LOOKED_UP) and facts.get(name) in (None, ""):
                facts[name] = values[sample]
    return facts


def _applied(output: torch.Tensor, guided: torch.Tensor, corrections: Sequence[Correction]) -> torch.Tensor:
    """The output with all shifts where they are meant, and bit for bit itself elsewhere."""
    acting = [each for each in corrections if each.shift is not None and each.acts is not None and bool(each.acts.any())]
    if not acting:
        return output
    acts, total = torch.zeros_like(acting[0].acts), torch.zeros_like(guided)
    for each in acting:
        rows = rows_like(each.acts, guided)
        total = torch.where(rows, total + each.shift, total)
        acts = acts | each.acts
    corrected = output.to(torch.promote_types(output.dtype, total.dtype)).add(total).to(output.dtype)
    if not torch.isfinite(corrected[acts]).all():
        raise ModelError(
            "guidance gave numbers that are not finite; lower its strengths, or run in float32 (bfloat16) instead of float16"
        )
    return torch.where(rows_like(acts, output), corrected, output)


def _check_terms(terms: Sequence[GuidanceTerm], adapter: Adapter) -> None:
    setting = [term.name for term in terms if getattr(term, "sets_scale", False)]
    lowering = [term.name for term in terms if getattr(term, "lowers_scale", False)]
    if setting and lowering:
        raise ValueError(
            f"{setting[0]} and the despecification and deduplication of {lowering[0]} would each take from the whole scale of "
            "guidance, which could fall below what either means; set despecification=0 and deduplication=0, or leave one out"
        )
    for term in terms:
        if getattr(term, "needs_captions", False) and adapter.encode is None:
            raise ModelError(
                f"{term.name}: deduplication predicts with the captions of references, and this loop's adapter cannot encode "
                "them; give Adapter(encode=...), or set deduplication=0"
            )


def _check_offloading(denoiser: Any) -> None:
    hook = getattr(denoiser, "_hf_hook", None)
    if hook is not None:
        warnings.warn(
            "the pipeline moves its parts on and off the device; guidance that decodes or encodes captions moves them at every "
            "step that fires. Latent or log-mel descriptors, and deduplication=0, avoid this",
            UserWarning,
            stacklevel=4,
        )
