"""The option --kernel of other commands: the command runs in a guest. Here is no command of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab.cli.cluster_options import PANEL
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.cli.session import Session


def _complete(incomplete: str) -> list[str]:
    """Complete a kernel to one that is at hand, or to a name of one."""
    from merbridge_lab.guest import debian, kernels

    names = [kernels.NEWEST, *(kernel.version for kernel in kernels.at_hand()), *debian.RELEASES]
    return [name for name in names if name.startswith(incomplete)]


KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="VERSION|PATH",
        autocompletion=_complete,
        help="Do it in a virtual machine with this kernel and this machine's files; merlab kernels lists kernels.",
    ),
]
#: Options that are about this machine, not about the guest.
_STAY_HERE = frozenset({"kernel", "lab", "wait", "wait_timeout"})
#: Options that name a file to be written.
_WRITES_FILE = frozenset({"record", "report"})


def run_in_guest(run: Session, context: typer.Context, asked: str) -> None:
    """Do up, the command of `context` and down in a guest with the kernel `asked`; end with its exit status.

    Raise BadParameter for what no guest can have, and LabError if the kernel cannot be had or run.
    """
    from merbridge_lab.adapters import virtual_machine
    from merbridge_lab.guest import boot, initramfs, kernels
    from merbridge_lab.guest.walkthrough import Walkthrough, expected

    command = run.command
    _refuse(context)
    if command == "bench":
        boot.refuse_timings()
    # All that a guest needs is looked for before anything is downloaded.
    initramfs.busybox()
    virtual_machine.qemu()
    kernel = kernels.find(asked, run.console.note)
    if not os.access(kernel.image, os.R_OK):
        raise LabError(
            f"this user may not read the kernel {kernel.image}",
            hint=shlex.join(["sudo", "merlab", command, "--kernel", asked]),
            id="root.needed",
        )
    run.console.awaits(f"KVM to boot Linux {kernel.version}")
    by = boot.accelerator(kernel)
    run.console.close()
    if command == "bench":
        boot.refuse_timings(by)
    how = "by KVM" if by == virtual_machine.KVM else f"emulated, because {boot.why_emulated()}"
    run.console.note(f"Linux {kernel.version} in a guest, {how}: expect {expected(command, by)}")
    on_terminal = command == "up" and not run.as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        run.console.note("after `up` it has a shell; Ctrl-] x ends the guest at once")
    else:
        run.console.awaits(f"Linux {kernel.version} to boot")
    task = Walkthrough(command, _typed(context), as_json=run.as_json, opens_shell=on_terminal)
    size = shutil.get_terminal_size((80, 24)) if on_terminal else None
    raise typer.Exit(task.run(kernel, by, run.console.pass_on, terminal=size))


def _refuse(context: typer.Context) -> None:
    """Raise BadParameter for a lab that no guest can have, and for options that mean nothing there."""
    lab = context.params.get("lab")
    if lab not in (None, "auto", "embedded"):
        raise typer.BadParameter(f"--kernel is for the embedded lab: a guest has no network for a lab called {lab}")
    for option in context.command.params:
        name = str(option.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if name in _WRITES_FILE:
            raise typer.BadParameter(f"--{name} goes with a lab on this machine: what a guest writes to files is lost")
        if getattr(option, "rich_help_panel", None) == PANEL:
            raise typer.BadParameter(f"{option.opts[0]} is for labs on a cluster, but a guest has the embedded lab")


def _typed(context: typer.Context) -> Sequence[str]:
    """Return the options of a call as they were typed, without those that are about this machine."""
    words: list[str] = []
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if option.name in _STAY_HERE or source is None or source.name != "COMMANDLINE":
            continue
        name, value = max(option.opts, key=len), context.params[str(option.name)]
        if isinstance(value, bool):
            words += [name] if value else []
        elif getattr(option, "count", False):
            words += [name] * value
        else:
            each = value if isinstance(value, (list, tuple)) else [value]
            words += [word for one in each for word in (name, str(getattr(one, "value", one)))]
    return words
