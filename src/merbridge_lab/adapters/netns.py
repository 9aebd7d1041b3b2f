"""Network and mount namespaces: created, pinned to a path, entered for one call, told apart.

A namespace is pinned by bind-mounting /proc/…/ns/… on a file, as `ip netns add` does on /run/netns. The lab decides
where.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.change import change
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_LIBC = ctypes.CDLL(None, use_errno=True)

# <linux/sched.h>
NEWNET = 0x40000000
NEWNS = 0x00020000
_FS = 0x00000200

#: getsockopt option, since Linux 5.14 (include/uapi/asm-generic/socket.h).
_SO_NETNS_COOKIE = 71


def _call(name: str, *args: int) -> None:
    if getattr(_LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a separate thread, so that it can enter namespaces without moving another thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="merlab-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def run_inside(namespace: Path, work: Callable[[], T], kind: int = NEWNET) -> T:
    """Run `work` in the namespace of `kind` (NEWNET or NEWNS) pinned at `namespace`, and return its result.

    Sockets that it creates stay in that network namespace wherever they are used afterwards. Raise OSError if the
    namespace does not exist, and whatever `work` raises.
    """

    def entered() -> T:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if kind == NEWNS:
                # A thread that shares root and working directory with others cannot enter another one.
                _call("unshare", _FS)
            _call("setns", descriptor, kind)
        finally:
            os.close(descriptor)
        return work()

    return _in_thread(entered)


@change("make a namespace for a moment")
def run_in_new(work: Callable[[], T]) -> T:
    """Run `work` in a temporary network namespace, and return its result. Raises OSError, and what `work` raises."""

    def entered() -> T:
        _call("unshare", NEWNET)
        return work()

    return _in_thread(entered)


def create(pin: Path, kind: int, work: Callable[[], None] | None = None) -> None:
    """Create a namespace of `kind` (NEWNET or NEWNS), run `work` in it, and pin it at `pin` if that succeeded.

    A new mount namespace is a copy of ours that still follows it. If merlab is killed meanwhile, the namespace is
    removed with it. Raise LabError if the kernel refuses, and what `work` raises.
    """
    # A mount namespace can be pinned only in an older one (mnt_ns_loop in fs/namespace.c). The age is compared by
    # numbers that since Linux 6.18 each CPU assigns from a batch of its own. In a container started a moment ago, our
    # number may be higher than that of a namespace created now on another CPU; on the CPU where ours was created,
    # numbers continue from it.
    attempts: list[int | None] = [None, *sorted(os.sched_getaffinity(0))] if kind == NEWNS else [None]
    for cpu in attempts:
        try:
            _create(pin, kind, work, cpu)
        except OSError as error:
            if error.errno != errno.EINVAL or cpu == attempts[-1]:
                raise LabError(
                    f"the namespace {pin} cannot be made: {error}", hint="merlab doctor", id="requirement.missing"
                ) from error
        else:
            return


@change("make a namespace")
def _create(pin: Path, kind: int, work: Callable[[], None] | None, cpu: int | None) -> None:
    made, pinned = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def body() -> None:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})  # of this thread alone
        _call("unshare", kind)
        if kind == NEWNS:
            # Slave, not private: a pod must not keep busy what the host unmounts.
            mounts.mount("none", "/", flags=mounts.MS_REC | mounts.MS_SLAVE)
        if work is not None:
            work()
        made.set()
        pinned.wait()

    def guarded() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            errors.append(error)
            made.set()

    thread = threading.Thread(target=guarded, name="merlab-namespace")
    thread.start()
    try:
        made.wait()
        if not errors:
            name = "net" if kind == NEWNET else "mnt"
            pin.touch(mode=0o444)
            mounts.bind(f"/proc/self/task/{thread.native_id}/ns/{name}", pin)
    finally:
        pinned.set()
        thread.join()
    if errors:
        raise errors[0]


def is_pinned(pin: Path) -> bool:
    """Report whether a namespace is pinned at `pin` (a killed merlab may leave a plain file)."""
    try:
        return pin.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def unpin(pin: Path) -> None:
    """Remove the pin at `pin`; the namespace ends with its last process. Succeed if it is missing. Raises OSError."""
    mounts.take_away(pin)


def inode(namespace: Path) -> int:
    """Return the number with which the kernel shows a namespace (`net:[4026531840]`). Raises OSError."""
    return namespace.stat().st_ino


def cookie_of(sock: socket.socket) -> int:
    """Return the cookie of the network namespace that a socket is in. Raises OSError."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])


def cookie(netns: Path) -> int:
    """Return the cookie of a network namespace: what bpf_get_netns_cookie() returns in it, never used twice.

    Needs Linux 5.14. Raises OSError.
    """

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return cookie_of(probe)

    return run_inside(netns, ask)
