"""Configurations: frozen dataclasses, loadable from TOML, echoed into the cards."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def load_config(kind: type[Config], path: str | Path, **overrides: Any) -> Config:
    """Read a configuration from TOML; ``overrides`` that are not None take precedence.

    Raises
    ------
    ValueError
        The file is no TOML, or has a key that the configuration does not know (named, with the nearest known ones).
    """
    try:
        with open(path, "rb") as handle:
            values = tomllib.load(handle)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from error
    return make_config(kind, values, where=str(path), **overrides)


def make_config(kind: type[Config], values: dict[str, Any], *, where: str = "configuration", **overrides: Any) -> Config:
    """Make a configuration of a mapping, refusing unknown keys; see :func:`load_config`.

    A field that is itself a dataclass is a table (``[optimizer]`` in TOML), made in the same way. A field whose name Python
    does not allow says in its metadata what it is called in the file: ``field(metadata={"key": "from"})``.
    """
    import difflib

    hints = get_type_hints(kind)
    fields = {field.metadata.get("key", field.name): field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(fields)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
    settings = {fields[key]: value for key, value in values.items()}
    settings |= {key: value for key, value in overrides.items() if value is not None}
    for key, name in fields.items():
        wanted = hints[name]
        if name not in settings:
            continue
        if dataclasses.is_dataclass(wanted) and isinstance(settings[name], dict):
            settings[name] = make_config(cast("type[Any]", wanted), settings[name], where=f"{where}, [{key}]")
        elif not _fits(settings[name], wanted):
            raise ValueError(f"{where}: {key} should be {_name(wanted)}, got {settings[name]!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def config_values(config: Any) -> dict[str, Any]:
    """A configuration as the mapping that :func:`make_config` makes it of: what a card echoes.

    Examples
    --------
    >>> from dataclasses import dataclass, field
    >>> @dataclass(frozen=True)
    ... class Start:
    ...     source: str | None = field(default=None, metadata={"key": "from"})
    >>> config_values(Start("a model"))
    {'from': 'a model'}
    """
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = config_values(value)
        values[field.metadata.get("key", field.name)] = list(value) if isinstance(value, tuple) else value
    return values


def flat_values(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys.

    Examples
    --------
    >>> flat_values({"seed": 3, "optimizer": {"steps": 700}})
    {'seed': 3, 'optimizer.steps': 700}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flat_values(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one: ``more`` takes precedence, tables are merged key by key.

    Examples
    --------
    >>> merged({"seed": 0, "optimizer": {"steps": 10, "batch": 4}}, {"optimizer": {"steps": 20}})
    {'seed': 0, 'optimizer': {'steps': 20, 'batch': 4}}
    """
    both = dict(base)
    for key, value in more.items():
        there = both.get(key)
        both[key] = merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return both


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers pass for float, booleans never for numbers."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is Callable:
        return callable(value)
    if get_origin(wanted) is tuple:  # tuple[str, ...]; a list where it comes from TOML
        return isinstance(value, (list, tuple)) and all(_fits(one, get_args(wanted)[0]) for one in value)
    if get_args(wanted):
        return any(_fits(value, option) for option in get_args(wanted))
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if dataclasses.is_dataclass(wanted):
        return isinstance(value, cast(type, wanted))
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))


def _name(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(map(repr, get_args(wanted)))
    if get_origin(wanted) is tuple:
        return f"a list, of which each is {_name(get_args(wanted)[0])}"
    if dataclasses.is_dataclass(wanted):
        return "a table"
    options = [option for option in get_args(wanted) if get_origin(option) is not Callable] or [wanted]  # no file holds one
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "left out"}
    return " or ".join(_name(option) if get_args(option) else words.get(option, str(option)) for option in options)
