"""What a sampler asks of its denoiser, overheard; and the denoiser asked again, with other captions or with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError
from .adapters import Adapter, stacked

MOST_WAITING = 8  # calls between two steps: more than any loop makes


@dataclass
class Call:
    """One call of a denoiser: its arguments, and what it predicted."""

    args: tuple[Any, ...]
    given: dict[str, Any]
    output: torch.Tensor


class Hearing:
    """Keeps the calls of a denoiser since the last step of the scheduler.

    Parameters
    ----------
    denoiser
        The network; :meth:`hear` is its forward hook.
    scheduler
        Whose steps take what was heard.
    adapter
        How the sampler's loop calls it.
    """

    def __init__(self, denoiser: Any, scheduler: Any, adapter: Adapter) -> None:
        self.denoiser, self.scheduler, self.adapter = denoiser, scheduler, adapter
        self.calls: list[Call] = []
        self.rows = 0
        self._muted = False
        self._encoded: dict[str, Mapping[str, Any]] = {}

    def hear(self, module: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        """A forward hook, with keyword arguments."""
        if not self._muted:
            self.calls.append(Call(args, given, _tensor(output)))
            self.check_taken(MOST_WAITING)

    def check_taken(self, most: int = 0) -> None:
        """Whether the scheduler takes what is heard; another one in its place would leave a run unguided.

        Raises
        ------
        ModelError
            More than ``most`` calls wait for a step.
        """
        waiting = len(self.calls)
        if waiting > most:
            raise ModelError(
                f"the {type(self.denoiser).__name__} was called {waiting} times, and the {type(self.scheduler).__name__} under "
                f"guidance was {'not stepped since' if self.rows else 'never stepped'}, so nothing of it was guided; set the "
                "pipeline's scheduler before attaching, or attach to the loop's own"
            )

    def predictions(self, rows: int, guided: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Without and with the prompt, (B, ...) float32 each, of what was heard since the last step.

        Where only one was computed, there is no guidance: None, and ``guided``.

        Raises
        ------
        ModelError
            Nothing was heard, or not B rows of each.
        """
        self.rows = rows
        if not self.calls:
            raise ModelError(
                f"the scheduler was stepped, and the {type(self.denoiser).__name__} under guidance was not called before; "
                "attach to the denoiser that this loop calls"
            )
        outputs = [call.output for call in self.calls]
        if len(outputs) == 1 and len(outputs[0]) % rows == 0:
            outputs = list(outputs[0].chunk(len(outputs[0]) // rows))
        if any(len(each) != rows for each in outputs):
            raise ModelError(
                f"expected predictions for {rows} samples each, heard {[len(call.output) for call in self.calls]} rows in "
                f"{len(self.calls)} calls; write an Adapter for this loop"
            )
        if len(outputs) == 1:
            return None, guided
        first, last = plain(outputs[0]), plain(outputs[-1])
        return (last, first) if self.adapter.conditional_first else (first, last)

    def predict_others(self, rows: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        encode = self.adapter.encode
        assert encode is not None
        for caption in captions:
            if caption not in self._encoded:
                self._encoded[caption] = encode(caption)
        args, given = self._conditional(rows)
        others = self.adapter.fit(stacked([self._encoded[caption] for caption in captions]), given)
        for name, value in others.items():
            given[name] = value.to(given[name].device, given[name].dtype) if torch.is_tensor(given.get(name)) else value
        return self._called(args, given)

    def predict_again(self, x_t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Conditional predictions as a function of x_t, of which the denoiser reads a multiple, whatever the scheduler."""
        args, given = self._conditional(rows)
        name, read = _input(args, given)
        was = plain(read).double()
        factor = float((was * x_t.detach().double()).sum() / x_t.detach().double().square().sum())
        scaled = (factor * x_t).to(read.dtype)
        if name is None:
            args = (scaled, *args[1:])
        else:
            given[name] = scaled
        flags = [each.requires_grad for each in self.denoiser.parameters()]
        self.denoiser.requires_grad_(False)  # or activations would be kept for gradients that nobody asks for
        try:
            return self._called(args, given)
        finally:
            for each, flag in zip(self.denoiser.parameters(), flags, strict=True):
                each.requires_grad_(flag)

    def _conditional(self, rows: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the denoiser's call with the prompt, for some rows."""
        call = self.calls[0 if self.adapter.conditional_first else -1]
        total, batch = len(call.output), self.rows  # the prompt's rows are at an end of a call, or all of it
        start = 0 if self.adapter.conditional_first else total - batch

        def of_rows(value: Any) -> Any:
            if torch.is_tensor(value) and value.ndim and len(value) == total:
                return _detached(value[start : start + batch][rows.to(value.device)])
            return _detached(value)

        return tuple(map(of_rows, call.args)), {name: of_rows(value) for name, value in call.given.items()}

    def _called(self, args: tuple[Any, ...], given: dict[str, Any]) -> torch.Tensor:
        self._muted = True
        try:
            return _tensor(self.denoiser(*args, **given)).float()
        finally:
            self._muted = False


def _tensor(output: Any) -> torch.Tensor:
    """The prediction in what a denoiser returns."""
    if torch.is_tensor(output):
        return output
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found


def plain(values: torch.Tensor) -> torch.Tensor:
    """float32, without history, and usable outside of an inference mode."""
    found: torch.Tensor = _detached(values).float()
    return found


def _detached(value: Any) -> Any:
    """Tensors, also those in a tuple or list, that autograd may keep: those of an inference mode it may not."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_detached, value))
    if not torch.is_tensor(value):
        return value
    value = value.detach()
    return value.clone() if value.is_inference() else value


def _input(args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[str | None, torch.Tensor]:
    """Where a denoiser is given its noisy samples: the first argument, or the name of a keyword."""
    if args:
        return None, args[0]
    for name in ("sample", "hidden_states"):
        if name in given:
            return name, given[name]
    raise ModelError(f"cannot tell which of {', '.join(given)} are the noisy samples; pass them first, or as 'sample'")
