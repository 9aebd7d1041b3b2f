"""Other kernels: `merlab kernels`, and the option --kernel of other commands."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab.cli.app import Debug, JsonFlag, NoColor, app
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.guest.kernels import Kernel


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


def run_in_guest(run: Session, context: typer.Context, asked: str) -> None:
    """Do up, the command of `context` and down in a guest with the kernel `asked`; end with its exit status.

    Raise BadParameter for a lab that no guest can have, and LabError if the kernel cannot be had or run.
    """
    from merbridge_lab.adapters.virtual_machine import KVM
    from merbridge_lab.guest import boot, initramfs, kernels
    from merbridge_lab.guest.walkthrough import Walkthrough, expected

    command, lab = run.command, context.params.get("lab")
    if lab not in (None, "auto", "embedded"):
        raise typer.BadParameter(f"--kernel is for the embedded lab: a guest has no network for a lab called {lab}")
    if context.params.get("record"):
        raise typer.BadParameter("--record goes with a lab on this machine: what a guest writes to files is lost")
    initramfs.busybox()
    kernel = kernels.find(asked, run.console.note)
    run.console.awaits(f"KVM to boot Linux {kernel.version}")
    by = boot.accelerator(kernel)
    run.console.close()
    how = "by KVM" if by == KVM else "emulated, because KVM boots none here"
    run.console.note(f"Linux {kernel.version} in a guest, {how}: expect {expected(command, by)}")
    on_terminal = command == "up" and not run.as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        run.console.note("after `up` it has a shell; Ctrl-] x ends the guest at once")
    else:
        run.console.awaits(f"Linux {kernel.version} to boot")
    task = Walkthrough(command, _typed(context), as_json=run.as_json, opens_shell=on_terminal)
    size = shutil.get_terminal_size((80, 24)) if on_terminal else None
    raise typer.Exit(task.run(kernel, by, run.console.pass_on, terminal=size))


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


@app.command("kernels")
def list_kernels(json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False) -> None:
    """List the kernels that --kernel can boot: those at hand, and those of the distribution's packages.

    merlab downloads a package itself, unpacks it in your cache, and installs nothing.

    Examples:  merlab kernels    merlab doctor --kernel 6.12    merlab verify --kernel newest
    """
    with Session("kernels", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab.guest import debian, kernels

        at_hand = kernels.at_hand()
        have = {kernel.version for kernel in at_hand}
        packages = [each for each in debian.newest_of_series(debian.offered()) if each not in have]
        releases = list(debian.RELEASES) if debian.mirrors() else []
        if json:
            run.console.json(
                {
                    "schema": 1,
                    "kernels": [_described(kernel) for kernel in at_hand]
                    + [{"version": each, "at_hand": False, "get": debian.command(each)} for each in packages],
                    "releases": releases,
                }
            )
            return
        if not (at_hand or packages or releases):
            raise LabError(
                "there is no kernel at hand: none with its modules is installed, and apt knows none",
                hint="name the directory of an unpacked kernel package after --kernel",
                id="kernel.unknown",
            )
        run.console.kernels(
            [(kernel.version, str(kernel.image)) for kernel in at_hand],
            [(version, debian.command(version)) for version in packages],
            ", ".join(releases),
        )


def _described(kernel: Kernel) -> dict[str, object]:
    return {
        "version": kernel.version,
        "at_hand": True,
        "image": str(kernel.image),
        "modules": str(kernel.modules),
    }
