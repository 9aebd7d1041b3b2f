"""The command that makes what machines without a compiler need: compile."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer

from merbridge_lab.cli.app import Debug, JsonFlag, NoColor, app
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError


@app.command("compile")
def compile_programs(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Output file (default: where merlab looks for it, beside its sources).",
        ),
    ] = None,
    json: JsonFlag = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Compile the eBPF programs with BCC into one file, from which a machine without BCC loads them.

    merlab uses the file beside its sources if BCC is missing; the variable MERLAB_COMPILED names another one, which is
    used in any case. The file is for any kernel, and for exactly this version of merlab.

    Examples:  merlab compile    merlab compile -o programs.json
    """
    with Session("compile", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab.adapters.files import require_writable, write_atomic
        from merbridge_lab.dataplane import artefact, compiler

        if os.geteuid() != 0:
            raise LabError(
                "compiling requires root, because BCC creates the maps", hint="sudo merlab compile", id="root.needed"
            )
        file = output or artefact.PLACE
        try:
            file = file.absolute()
            require_writable(file)
            made = compiler.compiled()
            write_atomic(file, made.text())
        except OSError as error:
            raise LabError(
                f"{file} cannot be written: {error.strerror}", hint="merlab compile -o FILE", id="file.not_written"
            ) from error
        programs = [program.name for program in made.programs]
        if json:
            told = {"file": str(file), "stamp": made.stamp, "compiler": made.compiler, "programs": programs}
            run.console.json({"schema": 1, **told})
        else:
            run.console.say(f"{file}: {len(programs)} programs of merlab {made.stamp}, compiled by {made.compiler}")
