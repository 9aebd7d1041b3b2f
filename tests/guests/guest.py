"""Boot a kernel in a virtual machine with this machine's own files, run one command in it as root, and end it.

The guest has no network. Whatever happens, it ends: with the command, with a panic, with its time, or with us.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.guests import initramfs
from tests.guests.kernels import NoGuestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.guests.kernels import Kernel

#: How long a boot may take. With KVM it takes a second or two; emulated 8 s, several times that beside other work.
_BOOT_KVM, _BOOT_EMULATED = 20.0, 300.0
_CHUNK = 65536


class GuestError(Exception):
    """A guest did not boot, panicked, or took too long; `console` is what its kernel said."""

    def __init__(self, what: str, console: str) -> None:
        super().__init__(f"{what}\n{console}" if console else what)
        self.console = console


@dataclass(frozen=True)
class Ran:
    """What became of a command in a guest."""

    status: int
    output: str
    errors: str
    seconds: float
    is_emulated: bool


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    timeout: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    live: IO[str] | None = None,
    accelerator: str | None = None,
) -> Ran:
    """Run a command under a kernel and return its output and exit status; what it writes to files is lost.

    `timeout` is from its start; the boot has a limit of its own. `live` gets its output at once. `accelerator` is
    "kvm" or "tcg"; if it is not given, KVM is used where it boots this kernel. Raise GuestError, or NoGuestError.
    """
    chosen = accelerator or ("kvm" if kvm_boots(kernel) else "tcg")
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory(prefix="merlab-guest-") as made:
        room = Path(made)
        initramfs.build(kernel, room / "initramfs", command, folder or Path.cwd(), variables)
        machine = _Machine(kernel, room, chosen, live)
        try:
            return machine.wait(timeout)
        finally:
            machine.end()


def kvm_boots(kernel: Kernel) -> bool:
    """Report whether KVM boots this kernel here: /dev/kvm may exist and not run a guest."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        return run(kernel, ["true"], timeout=_BOOT_KVM, accelerator="kvm").status == 0
    except GuestError:
        return False


class _Machine:
    """A running guest."""

    def __init__(self, kernel: Kernel, room: Path, accelerator: str, live: IO[str] | None) -> None:
        self._room = room
        self._is_emulated = accelerator == "tcg"
        self._outputs: list[list[bytes]] = [[], []]
        pipes = [os.pipe() for _ in self._outputs]
        writing = [write for _, write in pipes]
        try:
            with (room / "qemu").open("wb") as said:
                self._qemu = subprocess.Popen(
                    _command(kernel, room, accelerator, writing),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=writing,
                )
        except FileNotFoundError as missing:
            raise NoGuestError(f"there is no {missing.filename} here") from missing
        finally:
            for descriptor in writing:
                os.close(descriptor)
        self._threads = [
            threading.Thread(target=self._copy, args=(read, kept, live), name="guest-output")
            for (read, _), kept in zip(pipes, self._outputs, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End the guest, whatever it does."""
        self._qemu.kill()
        self._qemu.wait()
        for thread in self._threads:
            thread.join()

    @staticmethod
    def _copy(read: int, kept: list[bytes], live: IO[str] | None) -> None:
        while chunk := os.read(read, _CHUNK):
            kept.append(chunk)
            if live is not None:
                live.write(chunk.decode(errors="replace"))
                live.flush()
        os.close(read)

    def wait(self, timeout: float) -> Ran:
        """Wait until the guest has started, then until it has ended; each has its time."""
        self._until("started", _BOOT_EMULATED if self._is_emulated else _BOOT_KVM, "did not boot")
        began = time.monotonic()
        told = self._until("exit ", timeout, "did not end")
        seconds = time.monotonic() - began
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._qemu.wait(10)
        self._qemu.kill()
        for thread in self._threads:
            thread.join()
        output, errors = (b"".join(kept).decode(errors="replace") for kept in self._outputs)
        return Ran(int(told.split()[-1]), output, errors, seconds, self._is_emulated)

    def _until(self, word: str, limit: float, otherwise: str) -> str:
        """Wait for a word on the port of the status; return all that it said."""
        end = time.monotonic() + limit
        status = self._room / "status"
        while True:
            has_ended = self._qemu.poll() is not None
            told = status.read_text() if status.exists() else ""
            if word in told and told.endswith("\n"):
                return told
            if has_ended:
                raise GuestError("the guest ended before its command did", self._console())
            if time.monotonic() > end:
                raise GuestError(f"the guest {otherwise} within {limit:.0f} s", self._console())
            time.sleep(0.05)

    def _console(self) -> str:
        """Return the end of what qemu and the guest's kernel said."""
        files = [self._room / "qemu", self._room / "console"]
        said = [file.read_text(errors="replace").strip() for file in files if file.exists()]
        return "\n".join("\n".join(said).splitlines()[-100:])


def _command(kernel: Kernel, room: Path, accelerator: str, outputs: list[int]) -> list[str]:
    ports = []
    for number, descriptor in zip((initramfs.OUT, initramfs.ERR), outputs, strict=True):
        ports += ["-chardev", f"file,id=port{number},path=/proc/self/fd/{descriptor}"]
        ports += ["-device", f"virtserialport,nr={number},chardev=port{number}"]
    ports += ["-chardev", f"file,id=port{initramfs.STATUS},path={room / 'status'}"]
    ports += ["-device", f"virtserialport,nr={initramfs.STATUS},chardev=port{initramfs.STATUS}"]
    # With a thread for each emulated CPU, a kernel that rewrites its own code at boot may run what it has just replaced
    # (qemu 7.2: "Oops: int3", once in twelve boots on a busy machine).
    how = "tcg,thread=single" if accelerator == "tcg" else accelerator
    # For the same reason no_timer_check: on a busy machine the emulated timer may be late at boot.
    # Without us the guest ends, even if we are killed.
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-machine", "q35", "-accel", how, "-cpu", "max", "-smp", "2", "-m", "2G"),
        *("-kernel", str(kernel.image), "-initrd", str(room / "initramfs")),
        *("-append", "console=ttyS0 loglevel=4 panic=-1 cgroup_no_v1=all mitigations=off no_timer_check rdinit=/init"),
        *("-serial", f"file:{room / 'console'}"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev=root,mount_tag={initramfs.TAG}"),
        *("-device", "virtio-serial-pci", *ports),
    ]
