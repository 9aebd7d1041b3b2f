"""Render templates: of YAML and iptables rules as they are, and of HTML with what is filled in escaped."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def render(text: str, **values: object) -> str:
    """Render a template. A line that holds only a statement leaves nothing; a name that is missing is an error."""
    return str(_compiled(text, html=False).render(**values))


def render_html(text: str, **values: object) -> str:
    """Render a template of HTML: what is filled in is text, and no markup."""
    return str(_compiled(text, html=True).render(**values))


@functools.cache
def _compiled(text: str, *, html: bool) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,  # noqa: S701 - the other templates are of our own data, and no HTML
    )
    return environment.from_string(text)
