"""Compile the C sources with BCC and load the programs: the only module that imports bcc, and only when used.

BCC is the distribution's package. It is loaded by its path, so that an application in a virtual environment does not
suddenly see the distribution's other Python packages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bpf
from merbridge_lab.dataplane import abi, btf
from merbridge_lab.errors import KernelCannotError, LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSTALL = "apt-get install python3-bpfcc   # the distribution's package; PyPI's bcc is an unrelated lattice library"


class Program(NamedTuple):
    """One program: how it is loaded and what its failing means."""

    name: str
    type: int
    attach_type: int
    feature: str
    since: str


#: Every program, by the name it has in the kernel. Cookies of namespaces in sockops, sk_msg and sockopt came last.
PROGRAMS = (
    Program("merlab_connect4", bpf.PROG_CGROUP_SOCK_ADDR, bpf.CGROUP_INET4_CONNECT, "cgroup/connect4", "5.15"),
    Program("merlab_connect6", bpf.PROG_CGROUP_SOCK_ADDR, bpf.CGROUP_INET6_CONNECT, "cgroup/connect6", "5.15"),
    Program("merlab_getpeer4", bpf.PROG_CGROUP_SOCK_ADDR, bpf.CGROUP_INET4_GETPEERNAME, "cgroup/getpeername4", "5.8"),
    Program("merlab_getpeer6", bpf.PROG_CGROUP_SOCK_ADDR, bpf.CGROUP_INET6_GETPEERNAME, "cgroup/getpeername6", "5.8"),
    Program("merlab_sockops", bpf.PROG_SOCK_OPS, bpf.CGROUP_SOCK_OPS, "sockops with namespace cookies", "5.15"),
    Program("merlab_sk_msg", bpf.PROG_SK_MSG, bpf.SK_MSG_VERDICT, "sk_msg with namespace cookies", "5.15"),
    Program("merlab_sockopt", bpf.PROG_CGROUP_SOCKOPT, bpf.CGROUP_GETSOCKOPT, "cgroup/getsockopt", "5.15"),
    Program("merlab_sk_lookup", bpf.PROG_SK_LOOKUP, bpf.SK_LOOKUP, "sk_lookup", "5.9"),
    Program("merlab_unread", bpf.PROG_RAW_TRACEPOINT, -1, "test runs of raw tracepoint programs", "5.10"),
)

#: Kernel names of the maps, without their common prefix `merlab_`.
MAPS = ("config", "stamp", "pods", "pod_ips", "counters", "handover", "pairs", "flows", "listeners", "peers")

_TYPES = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
typedef u8 __u8; typedef u16 __u16; typedef u32 __u32; typedef u64 __u64;
typedef s8 __s8; typedef s16 __s16; typedef s32 __s32; typedef s64 __s64;
typedef u16 __be16; typedef u32 __be32; typedef u64 __be64; typedef u16 __le16; typedef u32 __le32; typedef u64 __le64;
typedef u32 __wsum; typedef u16 __sum16; typedef u64 __aligned_u64 __attribute__((aligned(8)));
typedef unsigned long size_t; typedef unsigned long uintptr_t; typedef _Bool bool;
#define __bitwise
"""


def _kernel_tree(at: Path) -> None:
    """Write the few near-empty headers that BCC looks for; our programs need none of a real kernel's."""
    version = [int(part) for part in re.findall(r"\d+", platform.release())[:3]] + [0, 0, 0]
    code = (version[0] << 16) + (version[1] << 8) + min(version[2], 255)
    page = "#define PAGE_SHIFT 12\n#define PAGE_SIZE (1UL << PAGE_SHIFT)\n"
    files = {
        "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
        "include/linux/types.h": _TYPES,
        "include/linux/bpf_common.h": "",
        "include/linux/version.h": f"#define LINUX_VERSION_CODE {code}\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n",
        "include/linux/log2.h": "",
        "include/uapi/linux/bpf.h": "",
        "include/uapi/linux/if_packet.h": "",
        "include/uapi/linux/ptrace.h": "",
        "include/uapi/linux/if_ether.h": "",
        "arch/x86/include/asm/page.h": page,
        "arch/arm64/include/asm/page.h": page,
    }
    for name, text in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = re.sub(r"\W", "_", name).upper()
        path.write_text(f"#ifndef {guard}\n#define {guard}\n{text}\n#endif\n")


def bcc_module() -> Any:  # noqa: ANN401  (a module without types)
    """Import the distribution's bcc. Raises LabError where it is missing or does not fit this Python."""
    if "bcc" in sys.modules and hasattr(sys.modules["bcc"], "BPF"):
        return sys.modules["bcc"]
    places = [Path("/usr/lib/python3/dist-packages/bcc")]
    places += [Path(f"/usr/lib/python3{minor}/site-packages/bcc") for minor in ("", *(f".{n}" for n in range(8, 16)))]
    found = next((p for p in places if (p / "libbcc.py").is_file() and (p / "table.py").is_file()), None)
    if found is None:
        raise LabError("BCC, which compiles the BPF programs, is not installed", hint=_INSTALL)
    spec = importlib.util.spec_from_file_location("bcc", found / "__init__.py", submodule_search_locations=[str(found)])
    if spec is None or spec.loader is None:
        raise LabError(f"BCC in {found} cannot be imported", hint=_INSTALL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its regular expressions predate raw strings
            spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError) as broken:
        for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
            del sys.modules[name]
        raise LabError(f"BCC in {found} cannot be imported: {broken}", hint=_INSTALL) from broken
    return module


@contextlib.contextmanager
def _caught_stderr() -> Iterator[list[str]]:
    """Catch what C code writes to stderr: clang's and the verifier's complaints."""
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
            lines += caught.read().decode(errors="replace").splitlines()


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
    """File descriptors of what was loaded; closed by `close`, which keeps only what is pinned by then."""

    programs: dict[str, int]
    maps: dict[str, int]
    module: Any

    def close(self) -> None:
        """Give everything back that is not pinned or attached."""
        self.module.cleanup()


def _load(bcc: Any, module: Any, program: Program) -> int:  # noqa: ANN401
    lines: list[str] = []
    try:
        with _caught_stderr() as lines:
            function = module.load_func(program.name, program.type, attach_type=program.attach_type)
    except Exception as refused:  # BCC raises nothing narrower
        if os.geteuid() != 0:
            raise LabError("loading BPF programs takes root", hint="sudo merlab up") from refused
        # The verifier's reason is the last thing it says before its statistics.
        said = [line for line in lines if line and not line.startswith(("processed ", "HINT", "bpf:"))]
        raise KernelCannotError(program.feature, program.since, said[-1] if said else str(refused)) from refused
    _ = bcc
    return int(function.fd)


def load() -> Loaded:
    """Compile and load everything; nothing is attached or pinned.

    Changes the working directory for a moment (BCC does): call it before starting threads.
    Raises LabError without BCC, KernelCannotError for a missing feature.
    """
    flags = btf.defines()
    release = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    if release >= [6, 13]:
        flags.append("-DPSOCK_CHARGES_RMEM=1")
    bcc = bcc_module()
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="merlab-") as tree:
        _kernel_tree(Path(tree))
        try:
            with _environment("BCC_KERNEL_SOURCE", tree), _caught_stderr() as lines:
                module = bcc.BPF(text=abi.source(), cflags=["-Wno-everything", *flags])
        except Exception as failed:  # BCC raises nothing narrower
            raise LabError(
                "BCC could not compile the BPF programs", hint="merlab doctor", stderr="\n".join(lines)
            ) from failed
    try:
        programs = {program.name: _load(bcc, module, program) for program in PROGRAMS}
        table_fd = bcc.libbcc.lib.bpf_table_fd
        maps = {name: int(table_fd(module.module, f"merlab_{name}".encode())) for name in MAPS}
    except BaseException:
        module.cleanup()
        raise
    return Loaded(programs, maps, module)
