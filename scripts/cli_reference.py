"""Write docs/cli.md from the help of the command line: `make docs`.

.venv/bin/python scripts/cli_reference.py docs/cli.md
"""

from __future__ import annotations

import inspect
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer

from merbridge_lab import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """\
# The commands

Generated from the help by `make docs`; do not edit. The same is in `merlab --help` and `merlab COMMAND --help`.

Which lab a command means: [labs.md](labs.md#which-lab-a-command-means). Exit statuses and JSON: [json.md](json.md).
On the embedded lab a command needs root; without it, merlab prints the line to type instead.
"""


def reference() -> str:
    """Return the whole document."""
    group: Any = typer.main.get_command(cli.app)
    commands = [command for command in group.commands.values() if not command.hidden]
    listed = [f"- [merlab {each.name}](#merlab-{each.name}): {paragraphs(each.help)[0]}" for each in commands]
    parts = [HEAD, *listed, "", *section("merlab", group)]
    for command in commands:
        parts += section(f"merlab {command.name}", command)
        for each in getattr(command, "commands", {}).values():
            parts += section(f"merlab {command.name} {each.name}", each)
    return "\n".join(parts).rstrip() + "\n"


def section(title: str, command: Any) -> Iterator[str]:  # noqa: ANN401 - typer brings its own copy of click
    """Return the lines about one command."""
    parameters = [each for each in command.params if each.name != "help"]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    names = " ".join(each.metavar if each.required else f"[{each.metavar}]" for each in arguments)
    yield f"## {title}\n"
    passed_on = " -- CMD…" if (command.context_settings or {}).get("allow_extra_args") else ""
    yield f"`{title} [OPTIONS]{' ' if names else ''}{names}{passed_on}`\n"
    for paragraph in paragraphs(command.help):
        examples = re.match(r"Examples?:\s+(.*)", paragraph, re.DOTALL)
        if examples:
            yield "```sh\n" + "\n".join(re.split(r"\s{2,}", examples[1].strip())) + "\n```\n"
        else:
            yield f"{paragraph}\n"
    values = choices(command.callback)
    yield "| argument or option | meaning |\n|---|---|"
    for each in parameters:
        yield f"| {cell(written(each, values.get(each.name)))} | {cell(getattr(each, 'help', None) or '')} |"
    yield ""


def paragraphs(text: str | None) -> list[str]:
    """Split a help text, without the backspaces that keep lines apart on a terminal."""
    return [each.strip() for each in re.split(r"\n\s*\n", (text or "").replace("\b", "")) if each.strip()]


def choices(callback: Any) -> dict[str, str]:  # noqa: ANN401 - any function
    """Return the values that parameters of a command may have, where they are a few; typer hides them."""
    found: dict[str, str] = {}
    if callback is None:  # a group without options of its own
        return found
    for name, annotation in get_type_hints(inspect.unwrap(callback)).items():
        for each in (annotation, *get_args(annotation)):
            if isinstance(each, type) and issubclass(each, Enum):
                found[name] = "|".join(str(one.value) for one in each)
    return found


def written(parameter: Any, values: str | None) -> str:  # noqa: ANN401 - typer brings its own copy of click
    """Return how an argument or an option is written, with the word for its value."""
    value = (parameter.metavar or values or "").strip("<>")  # as typer writes a few values
    if parameter.param_type_name == "argument":
        return f"`{value}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}{f' {value}' if value and name.startswith('--') else ''}`" for name in names)


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def main() -> None:
    """Write it into the file named on the command line."""
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
