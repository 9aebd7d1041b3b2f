"""What Python parses from the C header and from BTF."""

import struct

import pytest

from merbridge_lab.dataplane import abi, btf


def test_counters_have_the_names_that_users_see():
    names = abi.counter_names()
    assert names[0] == "outbound_connects"
    assert {"mesh_redirected_bytes", "passed_receiver_full", "original_dst_answered", "sk_lookup_assigned"} <= set(
        names
    )
    assert abi.constants()["PORT_INBOUND"] == 15006
    assert abi.constants()["COUNTERS"] == len(names) <= len(abi.layouts()["counters"].unpack(bytes(512))["value"])


def test_bytes_by_tcp_are_counted_for_each_reason():
    """The kernel side goes from one to the other by their distance within each of three groups."""
    names = abi.counter_names()
    passed, sizes = (
        {name.removeprefix(prefix): at for at, name in enumerate(names) if name.startswith(prefix)}
        for prefix in ("passed_", "tcp_bytes_")
    )
    assert passed.pop("ended"), "what is not sent has no bytes"
    assert list(passed) == list(sizes)
    groups = (("not_paired", "on_tcp", 5), ("reader_asleep", "memory", 3), ("refresh", "refresh", 1))
    for first, last, members in groups:
        assert passed[last] - passed[first] == sizes[last] - sizes[first] == members - 1


def test_layouts_are_those_of_c():
    layouts = abi.layouts()
    assert {
        name: layouts[name].size
        for name in (
            "config",
            "kernel",
            "pod",
            "place",
            "port",
            "range",
            "end",
            "wire",
            "handshake",
            "listener",
            "flow",
        )
    } == {
        "config": 12,
        "kernel": 128,
        "pod": 408,
        "place": 16,
        "port": 16,
        "range": 16,
        "end": 12,
        "wire": 16,
        "handshake": 8,
        "listener": 16,
        "flow": 72,
    }
    raw = layouts["end"].pack(side=1)
    assert raw == struct.pack("=III", 0, 0, 1)
    assert layouts["end"].unpack(raw) == {"handshake": {"from_dialling": 0, "from_accepting": 0}, "side": 1}
    assert layouts["pair"].unpack(bytes(layouts["pair"].size))["wire"]["dst_port"] == 0


def test_the_source_is_one_text_without_our_own_includes():
    assert '#include "' not in abi.source()
    assert abi.source().count("struct wire {") == 1


def blob() -> bytes:
    """BTF of: struct outer { int a; struct { int hidden; } ; struct inner named; int bits : 4 at bit 100; }"""
    strings = b"\0outer\0a\0hidden\0inner\0deep\0named\0bits\0int\0"

    def at(name: str) -> int:
        return strings.index(b"\0" + name.encode() + b"\0") + 1 if name else 0

    types = struct.pack("<IIII", at("int"), 1 << 24, 4, 32)
    types += struct.pack("<III", 0, 4 << 24 | 1, 4) + struct.pack("<III", at("hidden"), 1, 0)
    types += struct.pack("<III", at("inner"), 4 << 24 | 1, 8) + struct.pack("<III", at("deep"), 1, 32)
    types += struct.pack("<III", at("outer"), 1 << 31 | 4 << 24 | 4, 24)
    for name, kind, bit in (("a", 1, 0), ("", 2, 32), ("named", 3, 64), ("bits", 1, 4 << 24 | 132)):
        types += struct.pack("<III", at(name), kind, bit)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def test_btf_members():
    described = btf.Btf(blob())
    assert described.member("outer", "a") == (0, 0)
    assert described.member("outer", "hidden") == (4, 0)
    assert described.member("outer", "named.deep") == (12, 0)
    assert described.member("outer", "bits") == (16, 4)
    with pytest.raises(KeyError):
        described.member("outer", "missing")
    with pytest.raises(KeyError):
        described.member("nothing", "a")
