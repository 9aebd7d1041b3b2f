"""Compile the C sources with BCC and load the programs: the only place where BCC is needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bcc_import, bpf_syscall, kernel_features
from merbridge_lab.dataplane import abi, kernel_headers
from merbridge_lab.dataplane.pins import MAPS
from merbridge_lab.errors import LabError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Program(NamedTuple):
    """One program: how it is loaded, and what its failure means (in words, and in kernel_features.FEATURES)."""

    name: str
    type: int
    attach_type: int
    feature: str
    needs: str


#: Every program, by its name in the kernel. Those that read cookies of namespaces need the newest kernel.
PROGRAMS = (
    Program(
        "merlab_connect4",
        bpf_syscall.PROG_CGROUP_SOCK_ADDR,
        bpf_syscall.CGROUP_INET4_CONNECT,
        "cgroup/connect4",
        "bpf.netns_cookie",
    ),
    Program(
        "merlab_connect6",
        bpf_syscall.PROG_CGROUP_SOCK_ADDR,
        bpf_syscall.CGROUP_INET6_CONNECT,
        "cgroup/connect6",
        "bpf.netns_cookie",
    ),
    Program(
        "merlab_getpeer4",
        bpf_syscall.PROG_CGROUP_SOCK_ADDR,
        bpf_syscall.CGROUP_INET4_GETPEERNAME,
        "cgroup/getpeername4",
        "bpf.getpeername4",
    ),
    Program(
        "merlab_getpeer6",
        bpf_syscall.PROG_CGROUP_SOCK_ADDR,
        bpf_syscall.CGROUP_INET6_GETPEERNAME,
        "cgroup/getpeername6",
        "bpf.getpeername4",
    ),
    Program(
        "merlab_sockops",
        bpf_syscall.PROG_SOCK_OPS,
        bpf_syscall.CGROUP_SOCK_OPS,
        "sockops with namespace cookies",
        "bpf.netns_cookie",
    ),
    Program(
        "merlab_sk_msg",
        bpf_syscall.PROG_SK_MSG,
        bpf_syscall.SK_MSG_VERDICT,
        "sk_msg with namespace cookies",
        "bpf.netns_cookie",
    ),
    Program(
        "merlab_sockopt",
        bpf_syscall.PROG_CGROUP_SOCKOPT,
        bpf_syscall.CGROUP_GETSOCKOPT,
        "cgroup/getsockopt",
        "bpf.netns_cookie",
    ),
    Program("merlab_lookup", bpf_syscall.PROG_SK_LOOKUP, bpf_syscall.SK_LOOKUP, "sk_lookup", "bpf.sk_lookup"),
    *(
        Program(name, bpf_syscall.PROG_RAW_TRACEPOINT, -1, "test runs of raw tracepoint programs", "bpf.test_run")
        for name in ("merlab_unread", "merlab_forget", "merlab_release")
    ),
)

_LEARNER = Program("merlab_learn", bpf_syscall.PROG_SK_MSG, bpf_syscall.SK_MSG_VERDICT, "sk_msg", "bpf.netns_cookie")


@contextlib.contextmanager
def _caught_stderr() -> Iterator[list[str]]:
    """Capture what C code writes to stderr: errors of clang and of the verifier."""
    lines: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        saved = os.dup(2)
        try:
            os.dup2(caught.fileno(), 2)
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            lines += lines_of(caught.read().decode(errors="replace"))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Loaded(NamedTuple):
    """File descriptors of what was loaded; after `close`, only what is pinned remains."""

    programs: dict[str, int]
    maps: dict[str, int]
    module: Any

    def close(self) -> None:
        """Close everything; the kernel frees what is not pinned or attached."""
        self.module.cleanup()


def _load(module: Any, program: Program) -> int:  # noqa: ANN401
    lines: list[str] = []
    try:
        with _caught_stderr() as lines:
            function = module.load_func(program.name.encode(), program.type, attach_type=program.attach_type)
    except Exception as refused:  # BCC raises nothing more specific
        if os.geteuid() != 0:
            raise LabError("loading BPF programs requires root", hint="sudo merlab up", id="root.needed") from refused
        # The verifier's reason is the last line before its statistics.
        said = [line for line in lines if line and not line.startswith(("processed ", "HINT", "bpf:"))]
        why = said[-1] if said else str(refused)
        raise kernel_features.cannot(program.needs, why, named=program.feature) from refused
    return int(function.fd)


def load_learner(loaded: Loaded) -> int:
    """Load merlab_learn, which is needed for a moment only; it ends with `loaded`. Raises UnsupportedFeatureError."""
    return _load(loaded.module, _LEARNER)


def _compile(bcc: Any) -> Any:  # noqa: ANN401
    lines: list[str] = []
    # On a file system that is mounted nowhere: a directory in /tmp would remain if we are killed.
    with kernel_features.detached_mount("tmpfs") as mounted:
        tree = f"/proc/self/fd/{mounted}"
        kernel_headers.write(Path(tree))
        try:
            with _environment("BCC_KERNEL_SOURCE", tree), _caught_stderr() as lines:
                return bcc.BPF(text=abi.source().encode(), cflags=["-Wno-everything"])
        except Exception as failed:  # BCC raises nothing more specific
            raise LabError(
                "BCC could not compile the BPF programs",
                hint="merlab doctor",
                stderr="\n".join(lines),
                id="dataplane.failed",
            ) from failed


def load() -> Loaded:
    """Compile and load everything; nothing is attached or pinned.

    This changes the working directory for a moment (BCC does): call it before starting threads. Raise LabError without
    BCC, UnsupportedFeatureError for a missing feature.
    """
    bcc: Any = bcc_import.load()
    module = _compile(bcc)
    try:
        programs = {program.name: _load(module, program) for program in PROGRAMS}
        table_fd = bcc.libbcc.lib.bpf_table_fd
        maps = {name: int(table_fd(module.module, f"merlab_{name}".encode())) for name in MAPS}
    except BaseException:
        module.cleanup()
        raise
    return Loaded(programs, maps, module)


def instructions() -> dict[str, bytes]:
    """Compile and return the instructions of each program, by its name in the kernel; nothing is loaded.

    Raises LabError as `load` does.
    """
    bcc: Any = bcc_import.load()
    module = _compile(bcc)
    lib = bcc.libbcc.lib
    try:
        return {
            program.name: ctypes.string_at(
                lib.bpf_function_start(module.module, program.name.encode()),
                lib.bpf_function_size(module.module, program.name.encode()),
            )
            for program in PROGRAMS
        }
    finally:
        module.cleanup()
