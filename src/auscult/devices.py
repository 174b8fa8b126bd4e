"""Names of devices: checked before anything is loaded, with a message that says what is there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import MissingExtraError

CPU = "cpu"
_PRECISION_LOCK = threading.RLock()  # the settings are the process's
_NAME = re.compile(r"cpu|cuda(:\d+)?")


def check_name(name: str) -> None:
    """Check that a device is called as auscult calls devices, without looking whether it is there.

    Raises
    ------
    ValueError
        It is not.

    Examples
    --------
    >>> check_name("cuda:1")
    >>> check_name("gpu")
    Traceback (most recent call last):
    ValueError: device should be 'cpu', 'cuda' or 'cuda:N' (N counts from 0), got 'gpu'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"device should be 'cpu', 'cuda' or 'cuda:N' (N counts from 0), got {name!r}")


def torch_device(name: str, needed_for: str) -> Any:
    """The ``torch.device`` of a name, if it is there.

    Parameters
    ----------
    name
        ``cpu``, ``cuda`` or ``cuda:N``.
    needed_for
        What wants it, for the message when torch is not installed.

    Raises
    ------
    ValueError
        No such name, or this machine has no such device.
    MissingExtraError
        torch is not installed.
    """
    check_name(name)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("models", needed_for) from error
    if name == CPU:
        return torch.device(CPU)
    if not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA device (see nvidia-smi)"
        raise ValueError(f"device {name!r} was asked for, but torch {torch.__version__} {why}; take 'cpu'")
    there = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= there:
        raise ValueError(f"device {name!r} was asked for, but there are {there}: cuda:0 to cuda:{there - 1}")
    return torch.device(name)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Within it, products and convolutions of float32 numbers take tf32 exactly if ``tf32``, whatever the process has set.

    By default torch lets convolutions take tf32 on a GPU, and a process may have set more; then it would be 11 bits that
    decide what is computed. Afterwards all is as it was. It holds for the whole process, so one thread at a time is within it.
    """
    import torch

    with _PRECISION_LOCK:
        on, settings = _precision_settings(torch.backends)
        before = [getattr(setting, name) for setting, name in settings]
        for setting, name in settings:
            setattr(setting, name, on[tf32])
        try:
            yield
        finally:
            for (setting, name), was in zip(settings, before, strict=True):
                setattr(setting, name, was)


def _precision_settings(backends: Any) -> tuple[tuple[Any, Any], list[tuple[Any, str]]]:
    """The two values (off, on), and where they are written."""
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since torch 2.9, for the processor's bf16 too
        places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        return ("ieee", "tf32"), [(place, "fp32_precision") for place in places]
    return (False, True), [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
