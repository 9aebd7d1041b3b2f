"""The first file system of a guest: busybox, the modules for its disk and its wires, and a script that starts the rest.

The script mounts this machine's own root directory, read-only, with an overlay in memory on top. The guest sees the
files of the machine, and what it writes is gone with it.
"""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guests.kernels import NoGuestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.guests.kernels import Kernel

#: The root directory's file system, its overlay, the bus they are on, and the wires for output.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
#: Ports of the virtual serial device, by what goes through each.
OUT, ERR, STATUS = 1, 2, 3
TAG = "machine"

_INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
exec >/dev/kmsg 2>&1
fail() {{ echo "guest: $1"; $B poweroff -f; }}
$B cat /modules/order | while read -r module; do $B insmod "/modules/$module" || echo "guest: no module $module"; done
$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 {tag} /machine || fail "no root directory"
$B mount -t tmpfs -o mode=755 tmpfs /memory
$B mkdir /memory/upper /memory/work
$B mount -t overlay -o lowerdir=/machine,upperdir=/memory/upper,workdir=/memory/work overlay /root || fail "no overlay"
$B mount -t tmpfs -o mode=755 tmpfs /root/run
$B mkdir /root/run/guest
$B cp /bin/busybox /second /root/run/guest/
for each in proc sys dev; do $B mount -o move "/$each" "/root/$each"; done
exec $B switch_root /root /run/guest/busybox sh /run/guest/second
"""

# What systemd mounts on a machine with cgroup v2 alone. A virtual port can be open only once, but a command may open
# its standard output again (/dev/stderr): so it writes to pipes.
_SECOND = """B=/run/guest/busybox
$B mkdir -p /dev/pts /dev/shm /run/lock "/lib/modules/{version}"
$B mount -t devpts -o mode=600,ptmxmode=666 devpts /dev/pts
$B mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B mount -t tracefs tracefs /sys/kernel/tracing
$B mount -t securityfs securityfs /sys/kernel/security
$B mount -t bpf -o mode=700 bpf /sys/fs/bpf
$B mount -o bind "{modules}" "/lib/modules/{version}"
$B ln -sf /proc/self/fd /dev/fd
$B ln -sf /proc/self/fd/0 /dev/stdin
$B ln -sf /proc/self/fd/1 /dev/stdout
$B ln -sf /proc/self/fd/2 /dev/stderr
$B hostname guest
$B ip link set lo up
cd /run/guest
port=$(echo /dev/vport*p{status})
port=${{port%{status}}}
[ -c "${{port}}{status}" ] || {{ echo "guest: no wires for output" >/dev/kmsg; $B poweroff -f; }}
$B mkfifo out err
$B cat out >"${{port}}{out}" & OUT=$!
$B cat err >"${{port}}{err}" & ERR=$!
echo started >"${{port}}{status}"
( cd {folder} && exec /usr/bin/env -i {environment} setsid {command} ) </dev/null >/run/guest/out 2>/run/guest/err
status=$?
# What the command left running may hold the pipes open: its output is not waited for forever.
for i in $($B seq 50); do
    if $B kill -0 $OUT 2>/dev/null || $B kill -0 $ERR 2>/dev/null; then $B sleep 0.2; fi
done
echo "exit $status" >"${{port}}{status}"
$B sleep 0.1
$B poweroff -f
"""


def build(kernel: Kernel, into: Path, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Write the initramfs of a guest that runs `command` in `folder`."""
    with tempfile.TemporaryDirectory(prefix="merlab-initramfs-") as made:
        tree = Path(made)
        for each in ("bin", "proc", "sys", "dev", "machine", "memory", "root", "modules"):
            (tree / each).mkdir()
        shutil.copy(str(shutil.which("busybox")), tree / "bin/busybox")
        order = [_copy(module, tree / "modules") for module in _needed(kernel)]
        (tree / "modules/order").write_text("".join(f"{name}\n" for name in order))
        (tree / "init").write_text(_INIT.format(tag=TAG))
        (tree / "init").chmod(0o755)
        values = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        (tree / "second").write_text(
            _SECOND.format(
                version=kernel.version,
                modules=kernel.modules,
                out=OUT,
                err=ERR,
                status=STATUS,
                folder=shlex.quote(str(folder)),
                environment=values,
                command=shlex.join(command),
            )
        )
        names = "\n".join(str(each.relative_to(tree)) for each in sorted(tree.rglob("*")))
        with into.open("wb") as file:
            pack = ["busybox", "cpio", "-o", "-H", "newc"]
            subprocess.run(pack, cwd=tree, input=names.encode(), stdout=file, stderr=subprocess.DEVNULL, check=True)


def _needed(kernel: Kernel) -> list[Path]:
    """Return the files of the modules for the way to the root directory, each after those that it needs."""
    base = kernel.modules.parent.parent.parent
    found: dict[Path, None] = {}
    for module in _MODULES:
        ask = ["modprobe", "-d", str(base), "-S", kernel.version, "--show-depends", module]
        done = subprocess.run(ask, check=False, capture_output=True, text=True)
        if done.returncode:
            raise NoGuestError(f"the kernel {kernel.version} has no {module}: {done.stderr.strip()}")
        found |= {Path(line.split()[1]): None for line in done.stdout.splitlines() if line.startswith("insmod ")}
    return list(found)


def _copy(module: Path, into: Path) -> str:
    """Copy a module, unpacked; return its name."""
    name, data = module.name, module.read_bytes()
    if name.endswith(".xz"):
        name, data = name.removesuffix(".xz"), lzma.decompress(data)
    elif not name.endswith(".ko"):
        raise NoGuestError(f"{module.name} is packed in a way that is not known here")
    (into / name).write_bytes(data)
    return name
