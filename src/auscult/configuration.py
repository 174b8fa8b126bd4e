"""Configurations: frozen dataclasses, loadable from TOML, echoed into the cards."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, TypeVar

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
    return kind(**{**values, **{key: value for key, value in overrides.items() if value is not None}})
