"""Run a command on a kernel that does not know a file system, or IPv6: kernel_without.py KIND command...

mount(2) and fsopen(2) of that kind then fail with ENODEV, for the command and everything it starts. A seccomp filter
cannot read the name, which is in the caller's memory. So it asks a supervisor, which can (SECCOMP_RET_USER_NOTIF,
seccomp_unotify(2), Linux 5.5 for letting the others continue).

The family of a socket is a number, which a filter can read: with the KIND "ipv6", socket(2) of that family fails with
EAFNOSUPPORT, as on a kernel that was booted with ipv6.disable=1.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
import threading
from pathlib import Path

SYS_MOUNT, SYS_SECCOMP = {"x86_64": (165, 317), "aarch64": (40, 277)}[platform.machine()]
SYS_FSOPEN = 430
SYS_SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
#: Which argument points at the name of the file system.
NAME_IN = {SYS_MOUNT: 2, SYS_FSOPEN: 0}

# <linux/seccomp.h>, <linux/filter.h>
SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
RET_ALLOW, RET_USER_NOTIF, RET_ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
LD_ABS, JEQ, RET = 0x20, 0x15, 0x06
NOTIF = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; nr, arch, instruction pointer, arguments
ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
CONTINUE = 1


def lacking(kind: str) -> tuple[str, ...]:
    """Return the prefix for the argv of a command."""
    return (sys.executable, __file__, kind)


def unmounted(kind: str) -> str:
    """Return the line of shell that unmounts everything of a kind; for a separate mount namespace."""
    return f"awk '$3 == \"{kind}\" {{ print $2 }}' /proc/mounts | xargs -r -n 1 umount -l"


ASKED = (
    (LD_ABS, 0, 0, 0),  # the number of the system call
    (JEQ, 2, 0, SYS_MOUNT),
    (JEQ, 1, 0, SYS_FSOPEN),
    (RET, 0, 0, RET_ALLOW),
    (RET, 0, 0, RET_USER_NOTIF),
)
NO_IPV6 = (
    (LD_ABS, 0, 0, 0),
    (JEQ, 0, 3, SYS_SOCKET),
    (LD_ABS, 0, 0, 16),  # the lower half of its first argument
    (JEQ, 0, 1, socket.AF_INET6),
    (RET, 0, 0, RET_ERRNO | errno.EAFNOSUPPORT),
    (RET, 0, 0, RET_ALLOW),
)


def install(program: tuple[tuple[int, int, int, int], ...], flags: int) -> int:
    """Install a filter; return the descriptor for its questions, if it asks."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_long(each) for each in (SYS_SECCOMP, SET_MODE_FILTER, flags)]
    listener = libc.syscall(*arguments, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no filter can be installed")
    return int(listener)


def is_named(pid: int, address: int, kind: bytes) -> bool:
    """Report whether a process has this name at an address of its memory."""
    if not address:
        return False
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(len(kind) + 1) == kind + b"\0"


def supervise(listener: int, kind: bytes) -> None:
    """Answer forever."""
    while True:
        asked = bytearray(NOTIF.size)
        try:
            fcntl.ioctl(listener, NOTIF_RECV, asked)
            number, pid, _, call, *rest = NOTIF.unpack(asked)
            refused = is_named(pid, rest[2 + NAME_IN[call]], kind)
            answer = ANSWER.pack(number, 0, -errno.ENODEV if refused else 0, 0 if refused else CONTINUE)
            fcntl.ioctl(listener, NOTIF_SEND, answer)
        except OSError as failed:
            if failed.errno not in (errno.ENOENT, errno.EINTR):  # the caller has ended meanwhile
                raise


def main(kind: str, argv: list[str]) -> int:
    if kind == "ipv6":
        install(NO_IPV6, 0)
        os.execvp(argv[0], argv)  # noqa: S606
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        socket.send_fds(theirs, [b"\0"], [install(ASKED, NEW_LISTENER)])
        os.execvp(argv[0], argv)  # noqa: S606
    _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    threading.Thread(target=supervise, args=(listener, kind.encode()), daemon=True).start()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
