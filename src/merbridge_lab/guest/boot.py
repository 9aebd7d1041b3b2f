"""Boot a kernel in a virtual machine with this machine's own files, run one command in it as root, and end it.

The guest has no network. Whatever happens, it ends: with the command, with a panic, with its time, or with merlab.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import system_tools
from merbridge_lab.adapters.virtual_machine import EMULATED, ERR, KVM, MEMORY, OUT, ROOT, Machine
from merbridge_lab.errors import LabError
from merbridge_lab.guest import initramfs
from merbridge_lab.guest.initramfs import Task
from merbridge_lab.polling import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.guest.kernels import Kernel

#: How long a boot may take, in seconds. With KVM it takes one or two; emulated 8, several times that on a busy machine.
_BOOT = {KVM: 20.0, EMULATED: 300.0}
#: How many times longer it takes until a systemd has started its services.
_WITH_INIT = 3
_KVM = Path("/dev/kvm")
_JOIN = "become a member of the group kvm (as root: usermod -aG kvm NAME), and log in again"


@dataclass(frozen=True)
class Ran:
    """What became of a command in a guest: its exit status, both streams, and how long it took, in seconds."""

    status: int
    output: str
    errors: str
    seconds: float


def accelerator(kernel: Kernel) -> str:
    """Return KVM where it boots this kernel, found by booting it (/dev/kvm may run no guest); else EMULATED."""
    if _barred() is not None:
        return EMULATED
    try:
        return KVM if run(kernel, ["true"], timeout=_BOOT[KVM], by=KVM).status == 0 else EMULATED
    except LabError as error:
        if error.id != "guest.failed":
            raise
        return EMULATED


def why_emulated() -> str:
    """Return why a guest is emulated, once accelerator() has found that it is."""
    return _barred() or "KVM boots no guest here"


def refuse_timings(by: str | None = None) -> None:
    """Raise LabError for a measurement of time in a guest that is emulated: it would say nothing about the kernel.

    Without `by`, before a guest was booted, only what keeps KVM from being tried is known.
    """
    if by == EMULATED or (by is None and _barred() is not None):
        raise LabError(
            f"{why_emulated()}, and in an emulated guest nothing that is measured in seconds means anything",
            hint=_JOIN if _KVM.exists() and _barred() else "measure on a machine where KVM boots guests",
            id="guest.no_timings",
        )


def _barred() -> str | None:
    """Return what keeps KVM from being tried; None if nothing does."""
    if not _KVM.exists():
        return "there is no /dev/kvm here"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "this user may not use /dev/kvm (the group kvm may)"
    return None


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    timeout: float,
    by: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    hear: Callable[[int, str], None] | None = None,
    terminal: tuple[int, int] | None = None,
    root: Path = Path("/"),
    brought: Mapping[str, Path] | None = None,
    init: str = "",
    memory: str = MEMORY,
    disk: Path | None = None,
) -> Ran:
    """Run a command under a kernel and return its output and exit status; what it writes to files is lost.

    `by` is KVM or EMULATED. `timeout` is from its start, in seconds; the boot has a limit of its own. `hear` gets its
    output at once. With `terminal`, (columns, lines), it has the terminal that merlab was started on, and its output is
    not returned. With `root`, that directory is its root instead of this machine's; `brought` and `init` are those of
    Task, `memory` and `disk` those of Machine. Raise LabError if a guest needs what is missing, does not boot, panics,
    or takes too long.
    """
    variables = {
        "PATH": system_tools.path(),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb") if terminal else "dumb",
        **(environment or {}),
    }
    there = {f"/lib/modules/{kernel.version}": kernel.modules, **(brought or {})}
    task = Task(command, folder or _here(), variables, terminal, there, init)
    archive = initramfs.build(kernel, task)
    shares = {ROOT: root, **{tag: path for tag, (_, path) in task.shares.items()}}
    heard: dict[int, list[str]] = {OUT: [], ERR: []}

    def listen(port: int, text: str) -> None:
        heard[port].append(text)
        if hear is not None:
            hear(port, text)

    with Machine(
        kernel.image,
        archive,
        accelerator=by,
        hear=listen,
        shares=shares,
        on_terminal=terminal is not None,
        memory=memory,
        disk=disk,
    ) as machine:
        limit = _BOOT[by] * (_WITH_INIT if init else 1)
        with progress(f"Linux {kernel.version} to boot"):
            if machine.until("started", limit) is None:
                raise _late(machine, "did not boot", limit)
        began = time.monotonic()
        told = machine.until("exit ", timeout)
        seconds = time.monotonic() - began
        if told is None:
            raise _late(machine, "did not end", timeout)
        machine.finish()
    return Ran(int(told.split()[-1]), "".join(heard[OUT]), "".join(heard[ERR]), seconds)


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return Path("/")


def _late(machine: Machine, what: str, seconds: float) -> LabError:
    return LabError(
        f"the guest {what} within {seconds:.0f} s",
        hint="merlab kernels",
        stderr=machine.last_words(),
        id="guest.failed",
    )
