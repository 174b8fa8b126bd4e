"""Configurations: frozen dataclasses, loadable from TOML, echoed into the cards."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

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
    """Make a configuration of a mapping, refusing unknown keys; see :func:`load_config`."""
    import difflib

    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
    settings = {**values, **{key: value for key, value in overrides.items() if value is not None}}
    for key, wanted in get_type_hints(kind).items():
        if key in settings and not _fits(settings[key], wanted):
            raise ValueError(f"{where}: {key} should be {_name(wanted)}, got {settings[key]!r}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers pass for float, booleans never for numbers."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is tuple:  # tuple[str, ...]; a list where it comes from TOML
        return isinstance(value, (list, tuple)) and all(_fits(one, get_args(wanted)[0]) for one in value)
    if get_args(wanted):
        return any(_fits(value, option) for option in get_args(wanted))
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))


def _name(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(map(repr, get_args(wanted)))
    if get_origin(wanted) is tuple:
        return f"a list, of which each is {_name(get_args(wanted)[0])}"
    options = get_args(wanted) or (wanted,)
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "left out"}
    return " or ".join(words.get(option, str(option)) for option in options)
