"""Compile the C sources with BCC and load the programs: the only place where BCC is needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bcc_import, bpf_objects, bpf_syscall, kernel_features
from merbridge_lab.dataplane import abi, kernel_headers
from merbridge_lab.dataplane.artefact import Artefact, CompiledProgram, unlinked
from merbridge_lab.dataplane.loaded import Loaded
from merbridge_lab.dataplane.pins import MAPS, PREFIX
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
    # In memory: on a machine that is read-only, no folder for temporary files may be left to write to.
    with os.fdopen(os.memfd_create("merlab"), "r+b") as caught:
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


@contextlib.contextmanager
def _outside_of_cwd() -> Iterator[None]:
    """Leave the current directory for the block: BCC cannot come back to one that was deleted."""
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(here)
        os.close(here)


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


def _compile(bcc: Any) -> Any:  # noqa: ANN401
    lines: list[str] = []
    # On a file system that is mounted nowhere: a directory in /tmp would remain if we are killed.
    with kernel_features.detached_mount("tmpfs") as mounted:
        tree = f"/proc/self/fd/{mounted}"
        kernel_headers.write(Path(tree))
        try:
            with _outside_of_cwd(), _environment("BCC_KERNEL_SOURCE", tree), _caught_stderr() as lines:
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
        maps = _maps(bcc, module)
    except BaseException:
        module.cleanup()
        raise
    return Loaded(programs, maps, lambda: _load(module, _LEARNER), module.cleanup)


def _maps(bcc: Any, module: Any) -> dict[str, int]:  # noqa: ANN401
    table_fd = bcc.libbcc.lib.bpf_table_fd
    return {name: int(table_fd(module.module, f"{PREFIX}{name}".encode())) for name in MAPS}


def compiled() -> Artefact:
    """Compile everything, and return it as it is written into a file; no program is loaded.

    Raises LabError as `load` does. It must be root, because BCC creates the maps when it compiles.
    """
    bcc: Any = bcc_import.load()
    module = _compile(bcc)
    try:
        maps = {PREFIX + name: fd for name, fd in _maps(bcc, module).items()}
        license_ = bcc.libbcc.lib.bpf_module_license(module.module).decode()
        return Artefact(
            stamp=abi.stamp(),
            compiler=f"BCC {bcc.__version__}",
            byte_order=sys.byteorder,
            maps=tuple(bpf_objects.map_shape(fd, name) for name, fd in maps.items()),
            programs=tuple(
                _compiled(program, _code(bcc, module, program), license_, {fd: name for name, fd in maps.items()})
                for program in (*PROGRAMS, _LEARNER)
            ),
        )
    finally:
        module.cleanup()


def _compiled(program: Program, code: bytes, license_: str, names: dict[int, str]) -> CompiledProgram:
    plain, maps = unlinked(code, names)
    return CompiledProgram(
        program.name, program.type, program.attach_type, license_, program.feature, program.needs, maps, plain
    )


def _code(bcc: Any, module: Any, program: Program) -> bytes:  # noqa: ANN401
    lib, name = bcc.libbcc.lib, program.name.encode()
    start, size = lib.bpf_function_start(module.module, name), lib.bpf_function_size(module.module, name)
    return ctypes.string_at(start, size)
