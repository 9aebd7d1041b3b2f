"""BPF objects of our own for sabotage: programs that do nothing, links updated to them, maps that count nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_syscall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# enum bpf_cmd
_MAP_CREATE, _PROG_LOAD, _PROG_DETACH, _LINK_UPDATE, _RAW_TRACEPOINT_OPEN = 0, 5, 9, 29, 17
_INSN = struct.Struct("=BBhi")


def _bpf(command: int, attr: bytes, what: str) -> int:
    return bpf_syscall.call(command, attr, what)[0]


def nothing(kind: int, attach_type: int = -1, *, name: str = "nothing", verdict: int = 1) -> int:
    """Load `return verdict`, with which a hook behaves as if it did not exist; return a descriptor."""
    code = _INSN.pack(0xB7, 0, 0, verdict) + _INSN.pack(0x95, 0, 0, 0)  # r0 = verdict; exit
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII",
        kind, len(code) // _INSN.size, ctypes.addressof(instructions), ctypes.addressof(licence),
        0, 0, 0, 0, 0, name.encode()[:15], 0, max(attach_type, 0),
    )  # fmt: skip
    return _bpf(_PROG_LOAD, attr, f"load {name}")


def update_link(link: int, program: int) -> None:
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "update a link")


def detach_from_map(program: int, target: int) -> None:
    _bpf(_PROG_DETACH, struct.pack("=III", target, program, bpf_syscall.SK_MSG_VERDICT), "detach from a map")


def open_tracepoint(program: int, name: str) -> int:
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI", ctypes.addressof(text), program), f"trace {name}")


def map_like(fd: int) -> int:
    """Create an empty map that has the name, type and sizes of the one behind `fd`."""
    seen = bpf_syscall.map_info(fd)
    attr = struct.pack(
        "=IIIIIII16s", seen.type, seen.key_size, seen.value_size, seen.max_entries, 0, 0, 0, seen.name.encode()
    )
    return _bpf(_MAP_CREATE, attr, f"make {seen.name}")


@contextlib.contextmanager
def held(fd: int) -> Iterator[int]:
    """Close `fd` when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


def pin_instead(fd: int, path: Path) -> None:
    path.unlink()
    bpf_syscall.pin(fd, path)


# -- strangers of every kind -----------------------------------------------------------------------------------------

#: enum bpf_prog_type
SOCKET_FILTER, SCHED_CLS, XDP, CGROUP_SKB, CGROUP_SOCK, SK_SKB, FLOW_DISSECTOR, NETFILTER = 1, 3, 6, 8, 9, 14, 22, 32
CGROUP_DEVICE, CGROUP_SYSCTL = 15, 23
TCX_INGRESS, XDP_LINK, NETFILTER_LINK, SK_SKB_VERDICT, FLOW_DISSECTOR_HOOK = 46, 37, 45, 38, 17
_NF_INET_LOCAL_OUT, _PF_INET, _NF_ACCEPT = 3, 2, 1


def link(program: int, target: int, attach_type: int) -> int:
    """Attach through a link, to a cgroup, a namespace or an interface by number; return the link's descriptor."""
    return _bpf(28, struct.pack("=IIIIQQQQ", program, target, attach_type, 0, 0, 0, 0, 0), "attach a stranger")


def netfilter_link(program: int) -> int:
    """Attach a program to the IPv4 output hook of the thread's network namespace; return the link's descriptor."""
    attr = struct.pack("=IIIIIIiI", program, 0, NETFILTER_LINK, 0, _PF_INET, _NF_INET_LOCAL_OUT, -5, 0)
    return _bpf(28, attr, "attach to netfilter")


def attach_to_map(program: int, target: int, attach_type: int) -> None:
    _bpf(8, struct.pack("=IIII", target, program, attach_type, 0), "attach to a map")


def detach(program: int, target: int, attach_type: int) -> None:
    _bpf(_PROG_DETACH, struct.pack("=III", target, program, attach_type), "detach")


def cls_bpf(interface: int, program: int) -> None:
    """Add a clsact qdisc with a BPF filter on its egress, through netlink, in the thread's network namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.tc("add", "clsact", interface)
        netlink.tc("add-filter", "bpf", interface, ":1", fd=program, name="stranger", parent="ffff:fff3")


def no_clsact(interface: int) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.tc("del", "clsact", interface)


def with_types(kind: int, attach_type: int, name: str, model: int) -> int:
    """Load `return 1` with the types (BTF) of the program behind `model`: only the types make it one of its set."""
    info, functions = ctypes.create_string_buffer(256), ctypes.create_string_buffer(8)
    struct.pack_into("=I", info, 132, 8)
    struct.pack_into("=Q", info, 136, ctypes.addressof(functions))
    struct.pack_into("=I", info, 144, 1)
    _bpf(15, struct.pack("=IIQ", model, len(info), ctypes.addressof(info)), "look at the types")
    types = _bpf(19, struct.pack("=III", bpf_syscall.prog_info(model).btf_id, 0, 0), "open the types")
    code = _INSN.pack(0xB7, 0, 0, 1) + _INSN.pack(0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    with held(types):
        attr = struct.pack(
            "=IIQQIIQII16sIIIIQI",
            kind, len(code) // _INSN.size, ctypes.addressof(instructions), ctypes.addressof(licence),
            0, 0, 0, 0, 0, name.encode()[:15], 0, attach_type, types, 8, ctypes.addressof(functions), 1,
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attr, f"load {name}")
