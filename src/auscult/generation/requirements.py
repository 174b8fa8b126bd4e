"""What generation and training need, checked in one place."""

from __future__ import annotations

from importlib import import_module

from ..errors import MissingExtraError

MODULES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


def require_models(needed_for: str = "generating and training") -> None:
    """Check that the packages of the extra ``models`` are installed.

    Raises
    ------
    MissingExtraError
        One is missing; the message says what to install.

    Examples
    --------
    >>> require_models("auscult train")
    """
    for name in MODULES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in MODULES:
                raise  # an installation that is broken in itself
            raise MissingExtraError("models", needed_for) from error
