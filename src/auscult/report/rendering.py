"""Pages from the templates, every value escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **context: Any) -> str:
    """Fill a template of this package; a name that it needs and ``context`` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / "templates" / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
