"""The offsets of members in this kernel's structures: what we read from its BTF compared with what bpftool reads."""

from __future__ import annotations

import json
import subprocess

import pytest

from merbridge_lab.dataplane import btf
from merbridge_lab.errors import UnsupportedFeatureError

pytestmark = pytest.mark.kernel

#: The member behind each name that bpf/queue.h uses.
#: What the programs are told; bpftool is asked independently where each member is.
MEMBERS = btf._MEMBERS | btf._OF_MEMORY
#: Beyond those: bit fields, and members of anonymous structures and unions within anonymous ones.
MORE = [
    ("sock", "sk_no_check_tx"),
    ("sock", "sk_shutdown"),
    ("sock", "sk_protocol"),
    ("sock", "__sk_common.skc_daddr"),
    ("sock", "__sk_common.skc_num"),
    ("sk_buff", "sk"),
    ("sk_buff", "tcp_tsorted_anchor"),
    ("sk_buff", "pkt_type"),
    ("sk_buff", "protocol"),
    ("inet_connection_sock", "icsk_ack.pending"),
    ("tcp_sock", "repair"),
]


@pytest.fixture(scope="module")
def types() -> dict[int, dict]:
    argv = ["bpftool", "btf", "dump", "file", str(btf.VMLINUX), "format", "raw", "-j"]
    done = subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return {each["id"]: each for each in json.loads(done.stdout)["types"]}


def places(types: dict[int, dict], type_id: int, prefix: str = "", start: int = 0) -> dict[str, int]:
    """Return where every member of a structure begins, in bits; those of anonymous ones have the names that C gives."""
    found: dict[str, int] = {}
    seen = types[type_id]
    while seen["kind"] in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"):
        seen = types[seen["type_id"]]
    for member in seen["members"] if seen["kind"] in ("STRUCT", "UNION") else ():
        at = start + member["bits_offset"]
        if member["name"] == "(anon)":
            found |= places(types, member["type_id"], prefix, at)
        else:
            found[prefix + member["name"]] = at
            found |= places(types, member["type_id"], f"{prefix}{member['name']}.", at)
    return found


def bits(types: dict[int, dict], struct: str, member: str) -> int:
    ids = [each["id"] for each in types.values() if (each["kind"], each["name"]) == ("STRUCT", struct)]
    assert len(ids) == 1
    return places(types, ids[0])[member]


@pytest.mark.smoke
def test_every_offset_that_the_programs_get_is_the_one_that_bpftool_tells(types):
    expected = {name: bits(types, *member) // 8 for name, member in MEMBERS.items()}
    expected |= {f"{name}_shift": bits(types, *MEMBERS[name]) % 8 for name in ("sk_userlocks", "sk_ipv6only")}
    assert btf.offsets() == expected


def test_members_of_anonymous_structures_and_bit_fields_are_where_bpftool_says(types):
    described = btf.Btf(btf.VMLINUX.read_bytes())
    found = {each: described.member(*each) for each in MORE}
    assert found == {each: divmod(bits(types, *each), 8) for each in MORE}
    assert any(place.shift for place in found.values()), "a bit field that does not begin a byte is among them"


@pytest.mark.parametrize(
    "member", [member.rpartition(".")[2] for name, (_, member) in MEMBERS.items() if name not in btf._OF_MEMORY]
)
def test_a_kernel_without_a_member_is_refused_by_its_name(tmp_path, member):
    """The kernel's own description, with that one name changed."""
    blob = btf.VMLINUX.read_bytes()
    name = b"\0" + member.encode() + b"\0"
    assert name in blob
    changed = tmp_path / "vmlinux"
    changed.write_bytes(blob.replace(name, b"\0" + b"x" * len(member) + b"\0"))
    with pytest.raises(UnsupportedFeatureError, match=rf"struct \w+ has no member \S*{member}"):
        btf.offsets(changed)


def test_a_kernel_without_memory_cgroups_is_told_so(tmp_path):
    blob = btf.VMLINUX.read_bytes()
    changed = tmp_path / "vmlinux"
    changed.write_bytes(blob.replace(b"\0sk_memcg\0", b"\0xx_memcg\0"))
    found = btf.offsets(changed)
    assert [name for name in btf._OF_MEMORY if found[name]] == []
    assert found["psock_refcnt"] == btf.offsets()["psock_refcnt"]


@pytest.mark.parametrize("blob", [None, b"", b"\x9f\xeb\1\0", b"\xeb\x9f" + bytes(30), b"no BTF, but long enough"])
def test_a_kernel_without_btf_is_refused(tmp_path, blob):
    path = tmp_path / "vmlinux"
    if blob is not None:
        path.write_bytes(blob)
    with pytest.raises(UnsupportedFeatureError, match="BTF"):
        btf.offsets(path)
