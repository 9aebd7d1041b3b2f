"""The first file system of a guest: busybox, the modules for its disk and its wires, and a script that starts the rest.

The script mounts this machine's own root directory, read-only, with an overlay in memory on top. The guest sees the
files of the machine, and what it writes is gone with it.
"""

from __future__ import annotations

import gzip
import lzma
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import templates
from merbridge_lab.adapters import system_tools, virtual_machine
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from merbridge_lab.guest.kernels import Kernel

#: The root directory's file system, its overlay, the bus they are on, and the wires for output.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_UNPACK: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}
_FOLDERS = ("bin", "proc", "sys", "dev", "machine", "memory", "root", "modules")
_FILE, _FOLDER = 0o100755, 0o040755
#: The last entry of an archive.
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Task:
    """What a guest runs, as root: a command, the directory it starts in, and all of its environment.

    `terminal` is the size of the terminal that it gets, (columns, lines); without one, it gets pipes. `brought` are
    directories of this machine, by where the guest has them, read-only. With `init`, a systemd, that program is process
    1, and the command is a service of it, once it has booted.
    """

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    terminal: tuple[int, int] | None = None
    brought: Mapping[str, Path] = field(default_factory=dict)
    init: str = ""

    @property
    def shares(self) -> dict[str, tuple[str, Path]]:
        """What is brought, by its mount tag: where the guest has it, and the directory of this machine."""
        return {f"{virtual_machine.SHARE}{number}": each for number, each in enumerate(self.brought.items())}


def build(kernel: Kernel, task: Task) -> bytes:
    """Return the initramfs of a guest that runs `task`. Raise LabError if a module or busybox is missing."""
    modules = dict(_modules(kernel))
    values = {
        "tag": virtual_machine.ROOT,
        "shares": [(tag, shlex.quote(place)) for tag, (place, _) in task.shares.items()],
        "init": task.init,
        "out": virtual_machine.OUT,
        "err": virtual_machine.ERR,
        "status": virtual_machine.STATUS,
        "folder": shlex.quote(str(task.folder)),
        "environment": " ".join(shlex.quote(f"{name}={value}") for name, value in task.environment.items()),
        "command": shlex.join(task.command),
        "terminal": "cols {} rows {}".format(*task.terminal) if task.terminal else "",
    }
    files = {
        "bin/busybox": busybox().read_bytes(),
        "init": script("init", **values),
        "second": script("second", **values),
        "command": script("command", **values),
        "modules/order": "".join(f"{name}\n" for name in modules).encode(),
        **{f"modules/{name}": data for name, data in modules.items()},
    }
    return b"".join(_archive(files))


def script(name: str, **values: object) -> bytes:
    """Return a script of data/guest, filled in."""
    text = resources.files("merbridge_lab").joinpath(f"data/guest/{name}.sh.j2").read_text()
    return templates.render(text, **values).encode()


def busybox() -> Path:
    """Return the path of a busybox that needs no library. Raise LabError if there is none."""
    found = shutil.which("busybox")
    if found is None or b"/ld-linux" in Path(found).read_bytes():
        raise LabError(
            "a guest needs busybox, linked statically, and there is none here",
            hint=virtual_machine.INSTALL,
            id="tool.missing",
        )
    return Path(found)


def _modules(kernel: Kernel) -> Iterator[tuple[str, bytes]]:
    """Yield the modules for the way to the root directory, unpacked, each after those that it needs."""
    base = kernel.modules.parent.parent.parent
    found: dict[Path, None] = {}
    for module in _MODULES:
        ask = ["modprobe", "-d", str(base), "-S", kernel.version, "--show-depends", module]
        try:
            told = run(ask).stdout
        except LabError as error:
            if error.id == "tool.missing":
                raise LabError(error.what, hint=virtual_machine.INSTALL, id=error.id) from error
            raise LabError(
                f"the kernel {kernel.version} has no {module}, which a guest needs to see this machine's files",
                hint="merlab kernels",
                stderr=error.stderr,
                id="guest.failed",
            ) from error
        found |= {Path(line.split()[1]): None for line in lines_of(told) if line.startswith("insmod ")}
    for path in found:
        yield path.name.removesuffix(path.suffix).removesuffix(".ko") + ".ko", _unpacked(path)


def _unpacked(path: Path) -> bytes:
    """Return a module as the kernel takes it. Raise LabError if it is compressed in a way that cannot be read here."""
    data = path.read_bytes()
    if path.suffix in _UNPACK:
        return _UNPACK[path.suffix](data)
    if path.suffix != ".zst":
        raise LabError(
            f"{path} is compressed in a way that merlab cannot read", hint="merlab kernels", id="guest.failed"
        )
    # Ubuntu's and Arch's are. Python has it since 3.14 only.
    program = system_tools.find("zstd")
    if program is None:
        raise LabError(
            f"{path} is compressed by zstd, and that command is not on this machine",
            hint="apt-get install zstd",
            id="tool.missing",
        )
    done = subprocess.run([program, "--decompress", "--stdout"], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(
            f"{path} cannot be decompressed",
            hint="merlab kernels",
            stderr=done.stderr.decode(errors="replace"),
            id="guest.failed",
        )
    return done.stdout


def _archive(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield an archive in the kernel's format, "newc" of cpio(5): its Documentation/driver-api/early-userspace."""
    entries = [*((name, _FOLDER, b"") for name in _FOLDERS), *((name, _FILE, data) for name, data in files.items())]
    for number, (name, mode, data) in enumerate([*entries, (_TRAILER, 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
