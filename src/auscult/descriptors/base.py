"""What a descriptor is, and how its settings are written down so that unequal ones never meet silently."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_SPEC = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)/(?P<version>\d+)\((?P<parameters>.*)\)")
# A parameter: a key, then a number, or text as Python quotes it, in which commas, brackets and escaped quotes may stand.
_PARAMETER = re.compile(r"""(?P<key>[A-Za-z_]\w*)=(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,'"\s]+)(?:,|$)""")


@dataclass(frozen=True)
class DescriptorSpec:
    """Name, version and parameters of a descriptor; ``str(spec)`` parses back.

    Examples
    --------
    >>> spec = DescriptorSpec("mel", 1, (("duration_s", 10.242), ("n_mels", 16)))
    >>> str(spec)
    'mel/1(duration_s=10.242,n_mels=16)'
    >>> DescriptorSpec.parse(str(spec)) == spec
    True
    """

    name: str
    version: int
    parameters: tuple[tuple[str, float | int | str], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}/{self.version}({','.join(f'{key}={value!r}' for key, value in self.parameters)})"

    @classmethod
    def parse(cls, text: str) -> DescriptorSpec:
        """Read what ``str`` wrote.

        Raises
        ------
        ValueError
            The text is no spec.
        """
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(_no_spec(text))
        written, position = match["parameters"], 0
        parameters: list[tuple[str, float | int | str]] = []
        while position < len(written):
            pair = _PARAMETER.match(written, position)
            if pair is None:
                raise ValueError(_no_spec(text))
            try:
                parameters.append((pair["key"], _literal(pair["value"])))
            except (ValueError, SyntaxError):
                raise ValueError(_no_spec(text)) from None
            position = pair.end()
        return cls(match["name"], int(match["version"]), tuple(parameters))


def _no_spec(text: str) -> str:
    return f"expected a descriptor spec such as 'mel/1(duration_s=10.242)', got {text!r}"


def _literal(text: str) -> float | int | str:
    if text[0] in "'\"":
        return str(ast.literal_eval(text))
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


class Descriptor(Protocol):
    """Turns windows of audio into vectors. Implementations are holders of settings or of a loaded model."""

    @property
    def spec(self) -> DescriptorSpec:
        """Name and every setting that changes a value."""

    @property
    def sample_rate_hz(self) -> int:
        """Rate that :meth:`describe` wants."""

    @property
    def window_samples(self) -> int:
        """Length of a window in samples."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def dtype(self) -> str:
        """How vectors are kept: ``float32``, or ``uint8`` for levels that are not to be scaled."""

    @property
    def tail(self) -> str:
        """What becomes of the end of a long recording: ``move`` the last window back, or ``pad`` it."""

    def describe(self, windows: FloatArray) -> npt.NDArray[Any]:
        """Describe windows (n, window_samples) float32; returns vectors (n, dimension) of ``dtype``, finite."""


def on_device(descriptor: Descriptor, device: str) -> Descriptor:
    """A descriptor on a device, if it is one whose model can be put there; otherwise as it is. The spec is the same."""
    move = getattr(descriptor, "on", None)
    return descriptor if move is None else move(device)


_CLASSES = {"clap": "ClapDescriptor", "contrast": "ContrastDescriptor", "mel": "MelDescriptor"}  # each in a module of its name


def check_request(name: str | None, duration_s: float | None) -> None:
    """Check what was asked for by name (or spec as text) and duration, before anything is loaded.

    Raises
    ------
    ValueError
        There is no such descriptor, the duration is not positive, or it is given for a descriptor that has none.
    """
    family = None if name is None else name.partition("/")[0].partition("(")[0]
    if family is not None and family not in _CLASSES:
        raise ValueError(f"unknown descriptor {family!r}; there are: {', '.join(sorted(_CLASSES))}")
    if duration_s is None:
        return
    if not duration_s > 0:
        raise ValueError(f"duration must be positive, got {duration_s:g} seconds")
    if family not in {None, "mel"}:
        raise ValueError(f"duration is a setting of mel only; leave it out for {family}, or ask for mel")


def load_descriptor(spec: DescriptorSpec | str, **parameters: Any) -> Descriptor:
    """Make the descriptor of a name (``"mel"``, with parameters) or of a spec.

    A spec written as text may leave parameters out, which then have their defaults: ``"clap/1(model='folder')"``. A
    :class:`DescriptorSpec`, as stores have it, must be matched to the last parameter.

    Raises
    ------
    ValueError
        The name is unknown, a parameter is unknown or out of range, or the spec is of another version.
    """
    written = isinstance(spec, str)
    if isinstance(spec, str) and "(" in spec:
        spec = DescriptorSpec.parse(spec)
    name = spec if isinstance(spec, str) else spec.name
    check_request(name, parameters.get("duration_s"))
    own = {} if isinstance(spec, str) else dict(spec.parameters)
    if twice := own.keys() & parameters.keys():
        raise ValueError(f"{', '.join(sorted(twice))} was given twice: in {spec} and beside it")
    settings = {**own, **parameters}
    kind = getattr(import_module(f"auscult.descriptors.{name}"), _CLASSES[name])
    known = list(inspect.signature(kind).parameters)
    if foreign := sorted(settings.keys() - set(known)):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"descriptor {name!r} takes no such settings: {', '.join(foreign)}; {has}")
    try:
        descriptor: Descriptor = kind(**settings)
    except TypeError as error:
        raise ValueError(f"descriptor {name!r} cannot take {settings} ({error})") from None
    if isinstance(spec, str) or (written and descriptor.spec.version == spec.version):
        return descriptor
    if descriptor.spec != spec:
        raise ValueError(f"this version of auscult computes {descriptor.spec}, not {spec}; describe the corpus again")
    return descriptor
