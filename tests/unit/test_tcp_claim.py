"""What the kernel's TCP carried, against what eBPF claims to have moved; and the programs' tags from their source."""

import contextlib
import hashlib
import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import fake_lab
from merbridge_lab.adapters.command import Beside
from merbridge_lab.adapters.tcp_bytes import Sent
from merbridge_lab.checks import dataplane
from merbridge_lab.dataplane import recompiled
from merbridge_lab.dataplane.pins import PROGRAMS, Pins
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread, UnreadError, Verdict
from merbridge_lab.labs.embedded import tcp_bytes

NOTHING = {"outbound": (0, 0), "mesh": (0, 0), "inbound": (0, 0)}


def flushed():
    seen = carried(fake_lab.flushed(), *[NOTHING] * 4)
    return replace(seen, control=carried(seen.control, *[{"outbound": (136, 0)}] * 4))


def carried(seen, *requests):
    return replace(seen, by_tcp={each.nonce: legs for each, legs in zip(seen.exchanges, requests, strict=True)})


def counted(seen, pod, **more):
    after = {name: dict(counters) for name, counters in seen.interception.counters.after.items()}
    for name, number in more.items():
        after[pod][name] = after[pod].get(name, 0) + number
    return fake_lab.seen_with(seen, counters_after=after)


def payload(seen):
    return dataplane.payload_moved().evaluate(seen)


def test_nothing_by_tcp_holds_with_the_twin_as_its_control():
    finding = payload(flushed())
    assert finding.held
    assert "and none by TCP, as the kernel counts" in finding.why
    assert finding.control.name == "redirect.twin_by_tcp"
    assert finding.control.verdict is Verdict.PASS
    assert "sock_diag:sleep/mesh/tcpi_bytes_sent" in [each.source for each in finding.evidence]


@pytest.mark.parametrize(
    ("leg", "ends", "pod"),
    [
        ("outbound", (136, 0), "sleep"),
        ("outbound", (0, 227), "sleep"),
        ("mesh", (1038, 0), "sleep"),
        ("mesh", (0, 1705), "helloworld-v1"),
        ("inbound", (822, 296), "helloworld-v1"),
    ],
)
def test_what_went_by_tcp_and_is_not_counted_so_is_a_lie(leg, ends, pod):
    finding = payload(carried(flushed(), NOTHING | {leg: ends}, *[NOTHING] * 3))
    assert not finding.held
    assert finding.why.startswith(f"the counters of {pod} claim that eBPF moved the payload, and the wire does not")
    assert f"carried {sum(ends)} bytes" in finding.why


def test_what_ebpf_says_to_have_left_to_tcp_is_none():
    seen = counted(carried(flushed(), NOTHING | {"mesh": (1038, 0)}, *[NOTHING] * 3), "sleep", passed_not_paired=1)
    assert "and 1038 of them by TCP" in payload(seen).why
    assert payload(seen).held
    assert not payload(carried(seen, *[NOTHING | {"mesh": (1038, 0)}] * 2, *[NOTHING] * 2)).held, "one was, not two"


def test_tls_saying_goodbye_to_nobody_is_no_payload():
    assert payload(carried(flushed(), *[NOTHING | {"mesh": (31, 31)}] * 4)).held


def test_half_of_a_leg_must_have_been_moved_whatever_is_counted():
    by_tcp = NOTHING | {"outbound": (136, 0)}
    seen = counted(carried(flushed(), by_tcp, by_tcp, by_tcp, NOTHING), "sleep", passed_on_tcp=99)
    assert payload(seen).why.startswith("on the outbound leg the kernel confirms that 1 of 4 requests")
    assert payload(counted(carried(seen, by_tcp, by_tcp, NOTHING, NOTHING), "sleep", passed_on_tcp=99)).held
    no_leg = {"outbound": (0, 0)}
    assert "on the mesh leg the kernel confirms that 0 of 4" in payload(carried(flushed(), *[no_leg] * 4)).why


def test_a_twin_of_which_the_kernel_counts_nothing_is_no_control():
    seen = flushed()
    finding = payload(seen.with_control(carried(seen.control, *[{"outbound": (0, 0)}] * 4)))
    assert not finding.held
    assert "the control did not hold: the kernel counts 0 bytes by TCP for" in finding.why


def test_what_was_not_read_is_not_a_pass():
    gone = Unread("sock_diag:sleep", "nobody could look")
    assert "sock_diag:sleep could not be read: nobody could look" in payload(replace(flushed(), by_tcp=gone)).why
    seen = flushed()
    assert not payload(seen.with_control(replace(seen.control, by_tcp=gone))).held


class FakeWatch:
    def __init__(self, *sent):
        self._sent = list(sent)

    def look(self):
        return self._sent


def test_the_connections_of_a_request_are_found_by_its_records():
    seen = flushed()
    one = seen.exchanges[0]
    mine, (server, theirs) = seen.client_log[one.nonce], seen.server_log[one.nonce]
    watches = {
        "sleep": FakeWatch(
            Sent(one.local, "127.0.0.1:15001", 1, 10),
            Sent("127.0.0.1:15001", one.local, 2, 20),
            Sent(mine.upstream_local, "10.244.0.11:15006", 3, 30),
        ),
        server: FakeWatch(
            Sent("10.244.0.11:15006", theirs.downstream_remote, 4, 40),
            Sent(theirs.upstream_local, "10.244.0.11:5000", 5, 50),
            Sent("10.244.0.11:5000", theirs.upstream_local, 6, 60),
        ),
    }
    found = tcp_bytes.read(watches, "sleep", [one], seen.client_log, seen.server_log)
    assert found == {one.nonce: {"outbound": (10, 20), "mesh": (30, 40), "inbound": (50, 60)}}
    no_records = tcp_bytes.read(watches, "sleep", [one], {}, {})
    assert no_records == {one.nonce: {"outbound": (10, 0)}}
    with pytest.raises(UnreadError, match=rf"sock_diag:{server} could not be read: the kernel reports no connection"):
        tcp_bytes.read(watches | {server: FakeWatch()}, "sleep", [one], seen.client_log, seen.server_log)
    with pytest.raises(UnreadError, match="nobody could look"):
        tcp_bytes.read(Unread("sock_diag", "nobody could look"), "sleep", [one], {}, {})


def test_a_tag_leaves_out_the_numbers_of_maps():
    def program(number):
        wide = struct.pack("=BBhi", 0x18, 0x11, 0, number) + struct.pack("=BBhi", 0, 0, 0, 0)  # a map into r1
        constant = struct.pack("=BBhi", 0x18, 0x02, 0, 7) + struct.pack("=BBhi", 0, 0, 0, 9)
        return wide + constant + struct.pack("=BBhi", 0x95, 0, 0, 0)

    assert recompiled.tags(program(3)) == recompiled.tags(program(12)) == recompiled.tags(program(0))
    assert recompiled.tags(program(0))[0] == hashlib.sha256(program(0)).digest()[:8].hex()
    assert recompiled.tags(program(0)[:-8]) != recompiled.tags(program(0))


def test_what_cannot_be_compiled_is_said(monkeypatch):
    monkeypatch.setattr(recompiled, "Beside", lambda _: Beside([sys.executable, "-c", "exit('no BCC here')"]))
    with pytest.raises(LabError, match="could not be compiled: no BCC here"):
        recompiled.Recompiled().tags()


def test_a_compiler_that_tells_of_no_program_proves_none(monkeypatch, tmp_path):
    monkeypatch.setattr(recompiled, "Beside", lambda _: Beside([sys.executable, "-c", "print('{}')"]))
    monkeypatch.setattr(recompiled, "opened", lambda _: contextlib.nullcontext(0))
    monkeypatch.setattr(recompiled.bpf_syscall, "prog_info", lambda _: SimpleNamespace(id=7, tag="ab" * 8))
    told = recompiled.problems(Pins(tmp_path), recompiled.Recompiled(), needed=True)
    assert len(told) == len(PROGRAMS)
    assert "is not what merlab's source compiles to" in told[0]


def test_a_command_beside_us_ends_with_us():
    beside = Beside([sys.executable, "-c", "import time; time.sleep(60)"])
    process = beside._process
    del beside
    assert process.returncode is not None
    assert Beside([sys.executable, "-c", "print('done')"]).result(20).stdout == "done\n"
    with pytest.raises(LabError, match="cannot be started"):
        Beside(["/nowhere"])
