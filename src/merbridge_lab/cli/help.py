"""`merlab help` and `merlab version`, which people type before they know --help and --version."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from merbridge_lab import __version__
from merbridge_lab.cli.app import app


@app.command("help", hidden=True)
def show_help(context: typer.Context, command: Annotated[str | None, typer.Argument(metavar="COMMAND")] = None) -> None:
    """Print what `merlab --help` or `merlab COMMAND --help` does."""
    above = context.parent
    assert above is not None  # noqa: S101 - a command of an application has one
    group: Any = above.command
    found = group if command is None else group.get_command(above, command)
    if found is None:
        raise typer.BadParameter(f"there is no command called {command!r}; merlab --help lists them")
    typer.echo(found.get_help(above if command is None else typer.Context(found, info_name=command, parent=above)))


@app.command("version", hidden=True)
def version() -> None:
    """Print what `merlab --version` does."""
    typer.echo(f"merlab {__version__}")
