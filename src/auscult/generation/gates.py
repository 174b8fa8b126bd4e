"""Gates: checks between the stages of training that stop with a reason instead of letting a useless model be trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import GateError


@dataclass(frozen=True)
class GateResult:
    """What a gate measured.

    Attributes
    ----------
    name
        Of the gate.
    passed
        Whether the value is on the right side of the limit.
    value, limit
        The number that decides, and what it is held against.
    message
        One sentence for a person: what was measured, what it means, and what to do if it failed.
    """

    name: str
    passed: bool
    value: float
    limit: float
    message: str


def gate_rows(gates: Iterable[GateResult]) -> list[dict[str, Any]]:
    """What files say of gates: JSON knows no infinity, so a value that is not finite is None.

    Examples
    --------
    >>> gate_rows([GateResult("divergence", True, float("inf"), 0.5, "nothing can collapse")])[0]["value"] is None
    True
    """
    return [{**asdict(gate), "value": gate.value if math.isfinite(gate.value) else None} for gate in gates]


def gates_text(gates: Iterable[GateResult]) -> str:
    """The gates as JSON, which :func:`read_gates` reads."""
    return json.dumps(gate_rows(gates), indent=1, allow_nan=False)


def read_gates(text: str) -> tuple[GateResult, ...]:
    """The gates of :func:`gates_text`; a value that was not finite is infinite."""
    rows = json.loads(text)
    return tuple(GateResult(**{**row, "value": math.inf if row["value"] is None else row["value"]}) for row in rows)


@contextmanager
def after(gates: Iterable[GateResult]) -> Iterator[None]:
    """An error of gates that are checked in the block has these, which passed before, too.

    Examples
    --------
    >>> first, second = GateResult("data", True, 0.0, 0.0, "fine"), GateResult("latents", False, 2.0, 0.05, "too loud")
    >>> try:
    ...     with after([first]):
    ...         check([second])
    ... except GateError as error:
    ...     error.gates == (first, second)
    True
    """
    try:
        yield
    except GateError as error:
        error.gates = (*gates, *error.gates)
        raise


def check(gates: Iterable[GateResult]) -> tuple[GateResult, ...]:
    """Return the gates if all of them passed.

    Raises
    ------
    GateError
        One or more failed; the error names all of those, each with its reason.

    Examples
    --------
    >>> held = GateResult("latents", True, 1.01, 0.05, "the scaled latents have a standard deviation of 1.01")
    >>> check([held]) == (held,)
    True
    >>> check([held, GateResult("reconstruction", False, 0.5, 0.99, "half of the clips are lost; train longer")])
    Traceback (most recent call last):
    auscult.errors.GateError: 1 of 2 gates failed: reconstruction (0.5 against 0.99): half of the clips are lost; train longer
    """
    results = tuple(gates)
    failed = [gate for gate in results if not gate.passed]
    if failed:
        reasons = "; ".join(f"{gate.name} ({gate.value:.4g} against {gate.limit:.4g}): {gate.message}" for gate in failed)
        raise GateError(f"{len(failed)} of {len(results)} gates failed: {reasons}", results)
    return results
