"""Gates: checks between the stages of training that stop with a reason instead of letting a useless model be trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
        raise GateError(f"{len(failed)} of {len(results)} gates failed: {reasons}")
    return results
