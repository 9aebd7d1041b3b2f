"""Render templates of YAML and iptables rules, all in one environment."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def render(text: str, **values: object) -> str:
    """Render a template. A line that holds only a statement leaves nothing; a name that is missing is an error."""
    return str(_compiled(text).render(**values))


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - from our own data, and no HTML
    )
    return environment.from_string(text)
