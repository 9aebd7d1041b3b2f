"""qemu: one virtual machine with this machine's files, four wires for what it says, and no network.

It leaves nothing behind: its initramfs is a file without a name, its wires are pipes, and the kernel ends it if merlab
is killed.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.adapters import system_tools
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

QEMU = "qemu-system-x86_64"
#: How to get what a guest needs; kmod finds the modules of its kernel, busybox starts it.
INSTALL = "apt-get install qemu-system-x86 busybox-static kmod"
#: Ports of the virtual serial device, by what goes through each; port 0 is for a terminal.
OUT, ERR, STATUS = 1, 2, 3
#: The guest's kernel's own messages have a device of their own.
_CONSOLE = 4
#: The mount tag of the directory that the guest has as its root, and how those of others begin.
ROOT, SHARE = "machine", "share"
KVM, EMULATED = "kvm", "tcg"
#: What a guest has for itself, unless it needs more, as qemu takes it.
MEMORY = "2G"

_CHUNK = 65536
#: How much of what the guest's kernel says is kept, in bytes.
_LAST_WORDS = 16384
#: How often a deadline is checked if the guest says nothing, in seconds.
_TICK = 0.5
#: How long a guest that has told its exit status may take to power off, in seconds.
_POWER_OFF = 10.0
#: Ctrl-], as for telnet: Ctrl-A, qemu's own, is "to the beginning of the line" in a shell.
_ESCAPE = "0x1d"


def qemu() -> str:
    """Return the path of qemu. Raise LabError if there is none."""
    program = system_tools.find(QEMU)
    if program is None:
        raise LabError(f"the command {QEMU} is not on this machine", hint=INSTALL, id="tool.missing")
    return program


class Machine:
    """A running virtual machine; leaving the block ends it, whatever it does.

    It is offered directories of this machine, read-only, each by its mount tag. `disk` is a file that it has as a block
    device; what it writes there is lost, too. With `on_terminal` it has the terminal that merlab was started on. `hear`
    gets the text of stdout (OUT) and stderr (ERR) as it comes. Raise LabError if qemu is missing or cannot be started.
    """

    def __init__(
        self,
        image: Path,
        initramfs: bytes,
        *,
        accelerator: str,
        hear: Callable[[int, str], None],
        shares: Mapping[str, Path],
        on_terminal: bool = False,
        memory: str = MEMORY,
        disk: Path | None = None,
    ) -> None:
        self._hear = hear
        self._shares = shares
        self._decoders = {port: codecs.getincrementaldecoder("utf-8")("replace") for port in (OUT, ERR)}
        self._status, self._said = b"", b""
        self._stack = contextlib.ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        try:
            self._start(initramfs, [*_options(image, accelerator, memory), *_disk(disk)], on_terminal)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, initramfs: bytes, options: Sequence[str], on_terminal: bool) -> None:
        program = qemu()
        archive = MemFile(initramfs)
        self._stack.callback(archive.close)
        if on_terminal:
            self._stack.enter_context(_terminal_kept())
        with contextlib.ExitStack() as theirs:
            wires = {}
            for port in (OUT, ERR, STATUS, _CONSOLE):
                read, wires[port] = os.pipe()
                theirs.callback(os.close, wires[port])
                self._stack.callback(os.close, read)
                self._selector.register(read, selectors.EVENT_READ, port)
            argv = [
                program,
                *options,
                *("-initrd", archive.path),
                *_directories(self._shares),
                *_wires(wires, on_terminal=on_terminal),
            ]
            try:
                # In a session of its own a Ctrl-C does not reach it: merlab ends it, and says so. On a terminal, Ctrl-C
                # is a key of the guest's.
                self._qemu = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *argv],
                    stdin=None if on_terminal else subprocess.DEVNULL,
                    stdout=None if on_terminal else wires[_CONSOLE],
                    stderr=wires[_CONSOLE],
                    pass_fds=[*wires.values()],
                    start_new_session=not on_terminal,
                )
            except OSError as error:
                raise LabError(f"{QEMU} cannot be started: {error.strerror}", hint=INSTALL, id="tool.failed") from error
        self._stack.callback(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def until(self, word: str, limit: float) -> str | None:
        """Wait until the guest says a line with `word` on its port for the status, and return all that it said there.

        Return None if it does not within `limit` seconds. Raise LabError if it ends before, and Interrupted.
        """
        deadline = time.monotonic() + limit
        with signals.cancelling(self._qemu.kill):
            while not (self._status.endswith(b"\n") and word in self._status.decode(errors="replace")):
                if not self._listen(min(_TICK, max(0.0, deadline - time.monotonic()))):
                    signals.checkpoint()
                    raise LabError(
                        "the guest ended before its command did",
                        hint="merlab kernels",
                        stderr=self.last_words(),
                        id="guest.failed",
                    )
                signals.checkpoint()
                if time.monotonic() > deadline:
                    return None
        return self._status.decode(errors="replace")

    def finish(self) -> None:
        """Hear the rest of what the guest says, until it has powered off."""
        deadline = time.monotonic() + _POWER_OFF
        with signals.cancelling(self._qemu.kill):
            while time.monotonic() < deadline and self._listen(_TICK):
                pass
        signals.checkpoint()

    def last_words(self) -> str:
        """Return the last lines that qemu and the guest's kernel said."""
        return self._said.decode(errors="replace").strip()

    def _listen(self, seconds: float) -> bool:
        """Read what comes within some seconds; return whether anything can still come."""
        if not self._selector.get_map():
            return False
        for key, _ in self._selector.select(seconds):
            chunk = os.read(key.fd, _CHUNK)
            if not chunk:
                self._selector.unregister(key.fd)
            if key.data == STATUS:
                self._status += chunk
            elif key.data == _CONSOLE:
                self._said = (self._said + chunk)[-_LAST_WORDS:]
            elif text := self._decoders[key.data].decode(chunk, final=not chunk):
                self._hear(key.data, text)
        return bool(self._selector.get_map())


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """Put back the settings of the terminal, which qemu changes and, killed, does not restore."""
    settings = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


def _options(image: Path, accelerator: str, memory: str) -> Iterator[str]:
    # With a thread for each emulated CPU, a kernel that rewrites its own code at boot may run what it has just replaced
    # (qemu 7.2: "Oops: int3", once in twelve boots on a busy machine).
    # In one thread a second CPU makes nothing quicker, and each waits for its turn: with one, a tenth less is done.
    how, cpus = (f"{EMULATED},thread=single", "1") if accelerator == EMULATED else (accelerator, "2")
    yield from ("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none")
    yield from ("-machine", "q35", "-accel", how, "-cpu", "max", "-smp", cpus, "-m", memory)
    yield from ("-kernel", str(image))
    # no_timer_check: on a busy machine the emulated timer may be late at boot.
    yield "-append"
    yield "console=ttyS0 loglevel=4 panic=-1 cgroup_no_v1=all mitigations=off no_timer_check rdinit=/init"


def _disk(disk: Path | None) -> Iterator[str]:
    if disk is not None:
        # A snapshot: what the guest writes goes to a file without a name, of which nothing is left.
        named = str(disk).replace(",", ",,")
        yield from ("-drive", f"file={named},if=none,id=disk,format=raw,snapshot=on,cache=unsafe")
        yield from ("-device", "virtio-blk-pci,drive=disk")


def _directories(shares: Mapping[str, Path]) -> Iterator[str]:
    for tag, path in shares.items():
        # qemu takes one comma for the end of an option's value, and two for a comma in it.
        named = str(path).replace(",", ",,")
        yield from ("-fsdev", f"local,id={tag},path={named},security_model=none,readonly=on,multidevs=remap")
        yield from ("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")


def _wires(wires: dict[int, int], *, on_terminal: bool) -> Iterator[str]:
    yield from ("-device", "virtio-serial-pci")
    for port, descriptor in wires.items():
        yield from ("-chardev", f"file,id=wire{port},path=/proc/self/fd/{descriptor}")
        if port == _CONSOLE:
            yield from ("-serial", f"chardev:wire{port}")
        else:
            yield from ("-device", f"virtserialport,nr={port},chardev=wire{port}")
    if on_terminal:
        yield from ("-echr", _ESCAPE, "-chardev", "stdio,id=terminal,mux=on,signal=off")
        yield from ("-device", "virtconsole,nr=0,chardev=terminal")
