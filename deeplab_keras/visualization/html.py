"""HTML pages from the templates in `templates/`."""

from __future__ import annotations

import functools
from typing import Any

import jinja2

from deeplab_keras.config import render_options


def render(template: str, **values: Any) -> str:
    """Returns an HTML page. Values are escaped, so class and file names may contain anything.

    Args:
        template: The name of a file in `templates/`.
        **values: The values that the template shows.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deeplab_keras.visualization"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["message"] = render_options  # of a `UserError`
    return environment
