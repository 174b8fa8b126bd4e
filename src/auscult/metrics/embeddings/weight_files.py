"""Public weight files: read without running what is in them, and compared with the layers that they are to fill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from ...devices import torch_device
from ...errors import MissingExtraError, ModelError
from ...folders import file_digest

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that was read.

    Attributes
    ----------
    path
        Where it lies, absolute.
    digest
        SHA-256 of its bytes, hexadecimal.
    tensors
        Its tensors by name, on the CPU, and the arrays that lie among them.
    """

    path: Path
    digest: str
    tensors: dict[str, Any]

    def parameters(self) -> tuple[tuple[str, str], ...]:
        """What the spec of a backend says of the file."""
        return (("weights", str(self.path)), ("digest", self.digest))


def network_device(device: str, needed_for: str) -> Any:
    """The ``torch.device`` of a name, with torch ready to run in this process.

    Raises
    ------
    ValueError
        No such device.
    MissingExtraError
        torch is not installed.
    """
    chosen = torch_device(device, needed_for)
    if multiprocessing.parent_process() is not None:
        import torch

        torch.set_num_threads(1)  # one of several workers: a second thread in each would only get in the way
    return chosen


def read_weights(name: str, weights: str | None, meant: str) -> WeightFile:
    """Read a ``.pth`` or ``.safetensors`` file.

    Parameters
    ----------
    name
        The backend's, for messages.
    weights
        Path of the file. A dict under the key ``model`` is taken for the tensors, if there is one.
    meant
        Which public file is meant, in words, for messages.

    Raises
    ------
    ModelError
        There is no such file, or it holds no tensors.
    MissingExtraError
        torch is not installed.
    """
    if not weights:
        raise ModelError(f"the backend {name!r} needs {meant}; give it as {name}:FILE")
    path = Path(weights).expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"{weights}: no such file; the backend {name!r} needs {meant}; give it as {name}:FILE")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except MissingExtraError:
        raise
    except Exception as error:
        # torch, pickle, zipfile and safetensors raise whatever a damaged file leads them to
        raise ModelError(f"{weights}: holds no weights that can be read ({_first_line(error)}); expected {meant}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(hasattr(value, "shape") for value in content.values()):
        raise ModelError(f"{weights}: expected {meant}, a dict of tensors, got {_described(content)}")
    return WeightFile(path, file_digest(path), dict(content))


def check_tensors(file: WeightFile, shapes: Shapes, meant: str, *, ignored: Callable[[str], bool]) -> dict[str, Any]:
    """The tensors that a network needs, float32, if the file has just these in just these shapes.

    Parameters
    ----------
    shapes
        Names and shapes, all of which must be there.
    meant
        Which public file is meant, in words, for messages.
    ignored
        Whether a name beyond ``shapes`` may be there.

    Raises
    ------
    ModelError
        With the first name that is missing, is not known, is no tensor, has another shape, or has values that are not finite.
    """
    import torch

    for problem in _differences(file.tensors, shapes, ignored):
        raise ModelError(f"{file.path}: {problem}; expected {meant}")
    tensors = {key: file.tensors[key].to(torch.float32).contiguous() for key in shapes}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{file.path}: {key!r} has values that are not finite; get the file again")
    return tensors


def _differences(tensors: Mapping[str, Any], shapes: Shapes, ignored: Callable[[str], bool]) -> Iterator[str]:
    for key in shapes:
        if key not in tensors:
            yield f"{key!r} is missing"
    for key in tensors:
        if key not in shapes and not ignored(key):
            yield f"{key!r} is in it, which this network does not have"
    for key, shape in shapes.items():
        if not hasattr(tensors[key], "contiguous"):  # arrays are read, too, since they may lie beside the weights
            yield f"{key!r} should be a tensor, is a {type(tensors[key]).__name__} (save it as torch.from_numpy(...))"
        elif (got := tuple(tensors[key].shape)) != shape:
            yield f"{key!r} should have the shape {shape}, has {got}"


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("models", f"reading {path.name}") from error
    return load_file(path)


def _read_pickle(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("models", f"reading {path.name}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
            raise
    with _arrays_allowed(torch.serialization.safe_globals):
        return torch.load(path, map_location="cpu", weights_only=True)


def _arrays_allowed(safe_globals: Any) -> AbstractContextManager[Any]:
    """Let ``weights_only`` pass arrays of numbers, which lie beside the weights in the public 16 kHz file of PANNs.

    Written by an old numpy, whose names are not all today's; arrays are data and run nothing.
    """
    reconstruct = np.empty(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("bool", "u1", "u4", "i4", "i8", "u8", "f4", "f8")]
    names = [(reconstruct, f"numpy.{module}.multiarray._reconstruct") for module in ("core", "_core")]
    allowed: AbstractContextManager[Any] = safe_globals([*names, np.ndarray, np.dtype, *kinds])
    return allowed


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with the keys {', '.join(repr(key) for key in list(content)[:4])}"
    return f"a {type(content).__name__}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
