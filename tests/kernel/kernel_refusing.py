"""Run a command on a kernel that lets nobody take another process's descriptors: kernel_refusing.py command...

pidfd_getfd(2) returns EPERM for the command and everything it starts, as with kernel.yama.ptrace_scope at 3. No test
may write that value, because a running kernel never accepts another one afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PIDFD_GETFD = 438
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LD_ABS, JEQ, RET = 0x20, 0x15, 0x06


def refusing() -> tuple[str, ...]:
    """Return the prefix for the argv of a command."""
    return (sys.executable, __file__)


def install() -> None:
    """Install the filter in this process, permanently."""
    program = (
        (LD_ABS, 0, 0, 0),  # the number of the system call
        (JEQ, 0, 1, PIDFD_GETFD),
        (RET, 0, 0, RET_ERRNO | errno.EPERM),
        (RET, 0, 0, RET_ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter can be installed")
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header) != 0:
        raise OSError(ctypes.get_errno(), "no filter can be installed")


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
