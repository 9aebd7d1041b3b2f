"""The probes of what a sockhash and redirecting do to readers, on this machine's kernel."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from merbridge_lab.adapters import bpf_program, bpf_syscall, kernel_features
from merbridge_lab.dataplane import compiler, helper_probes, kernel_probes, probe_sockets, reader_probes
from merbridge_lab.dataplane.kernel_probes import Counts
from merbridge_lab.dataplane.probe_sockets import apart, pair

pytestmark = pytest.mark.kernel


#: The kind of program that each of the dataplane's is.
KINDS = {
    "merlab_connect4": "bpf.connect4",
    "merlab_connect6": "bpf.connect6",
    "merlab_getpeer4": "bpf.getpeername4",
    "merlab_getpeer6": "bpf.getpeername4",
    "merlab_sockops": "bpf.sock_ops",
    "merlab_sk_msg": "bpf.sk_msg",
    "merlab_sockopt": "bpf.getsockopt",
    "merlab_lookup": "bpf.sk_lookup",
    "merlab_unread": "bpf.raw_tracepoint",
    "merlab_forget": "bpf.raw_tracepoint",
    "merlab_release": "bpf.raw_tracepoint",
}


def state():
    """Return what a probe could leave behind."""
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "netns": Path("/proc/self/ns/net").readlink(),
        "threads": threading.active_count(),
    }


def programs():
    """Return the programs of a probe that the kernel still has."""
    return [each for each in bpf_syscall.ids("prog") if _name("prog", each, bpf_syscall.prog_info) == "merlab_probe"]


def _name(kind, number, read):
    try:
        descriptor = bpf_syscall.by_id(kind, number)
    except OSError:
        return None
    try:
        return read(descriptor).name
    finally:
        os.close(descriptor)


def test_the_probes_take_under_a_second_and_leave_nothing():
    kernel_probes.probe()
    before = state()
    found = kernel_probes.probe()
    assert state() == before
    # The kernel frees what belonged to a socket a moment after the socket.
    end = time.monotonic() + 30
    while programs() and time.monotonic() < end:
        time.sleep(0.1)
    assert programs() == []
    assert found.seconds < 3  # 0.5 s on an idle machine; the tests run beside others


@pytest.mark.smoke
def test_the_answers_hang_together():
    found = kernel_probes.probe()
    # The reader in no sockhash is as TCP's documentation has it.
    reference = {name: answer.reference for name, answer in found.readers[probe_sockets.HASHED].items()}
    assert reference == {
        "FIONREAD": "1000 of 1000",
        "MSG_PEEK": "the same bytes again",
        "splice": "1000 bytes",
        "MSG_WAITALL": "1000 of 1000",
        "SO_RCVLOWAT": "not readable below the mark, readable at it",
        "MSG_TRUNC": "500 discarded, 500 left",
        "recv() beside send()": "1000 bytes",
        "MSG_ZEROCOPY": "completed",
    }
    assert found.fionread.counts is not Counts.NEITHER
    wrong_on_tcp = "FIONREAD" in found.wrong(probe_sockets.HASHED)
    wrong_on_redirected = "FIONREAD" in found.wrong(probe_sockets.REDIRECTED)
    assert wrong_on_tcp == (found.fionread.counts is Counts.REDIRECTED)
    assert wrong_on_redirected == (found.fionread.counts is Counts.TCP)
    # No kernel so far: a send that gets room wakes a blocking recv() of the same socket, which then gives up.
    assert "recv() beside send()" in found.wrong(probe_sockets.HASHED)
    assert found.wrong(probe_sockets.SENDER) == [*found.wrong(probe_sockets.HASHED), "MSG_ZEROCOPY"]


def test_a_verdict_program_mends_fionread_and_breaks_other_readers():
    found = kernel_probes.probe_verdict()
    assert "FIONREAD" not in found.wrong(probe_sockets.VERDICT_TCP, probe_sockets.VERDICT_SWITCHED)
    assert found.wrong(probe_sockets.VERDICT_TCP) == ["splice", "MSG_WAITALL", "MSG_TRUNC", "recv() beside send()"]


@pytest.mark.smoke
def test_a_stream_to_a_slow_reader_is_whole_and_bounded():
    found = kernel_probes.probe_streams(64 << 20)
    for flow in (found.without, found.with_verdict):
        assert flow.is_whole, str(flow)
        assert flow.let_in < 16 << 20


def test_a_stream_that_loses_its_order_is_noticed(monkeypatch):
    real = kernel_probes._receive_some
    monkeypatch.setattr(kernel_probes, "_receive_some", lambda reader: real(reader)[::-1])
    assert not kernel_probes.probe_streams(1 << 20).without.is_whole


def test_a_reader_without_redirect_is_told_from_one_with():
    def ask():
        found = {}
        for arrangement in (probe_sockets.HASHED, probe_sockets.REDIRECTED):
            with pair(arrangement) as made:
                made.send(b"x" * 32768)
                reader_probes.is_readable(made.reader)
                info = made.reader.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                # tcpi_bytes_received: TCP knows nothing of redirected bytes.
                found[arrangement] = int.from_bytes(info[128:136], "little")
        return found

    found = apart(ask)
    assert found == {probe_sockets.HASHED: 32768, probe_sockets.REDIRECTED: 0}


def test_helpers_are_known_where_they_are_and_nowhere_else():
    assert helper_probes.missing_helpers() == []
    redirect, unheard_of = 71, 60000
    assert bpf_program.knows_helper(bpf_syscall.PROG_SK_MSG, 0, redirect)
    assert not bpf_program.knows_helper(bpf_syscall.PROG_SOCK_OPS, 0, redirect)
    assert not bpf_program.knows_helper(bpf_syscall.PROG_SK_MSG, 0, unheard_of)


def test_a_kind_of_program_that_does_not_exist_has_no_helpers():
    with pytest.raises(OSError, match="load a program"):
        bpf_program.knows_helper(4000, 0, 1)


def test_the_helpers_that_are_probed_are_those_that_the_programs_call():
    """In what BCC makes of the sources, a call of a helper is code 0x85 with 0 as its source register."""
    called = {}
    for program in compiler.compiled().programs:
        name, code = program.name, program.code
        if name == "merlab_learn":  # attached for a moment, not probed
            continue
        calls = (code[at : at + 8] for at in range(0, len(code), 8) if code[at] == 0x85 and code[at + 1] >> 4 == 0)
        called.setdefault(KINDS[name], set()).update(int.from_bytes(call[4:], "little") for call in calls)
    assert called == {name: {helper.number for helper in helpers} for name, helpers in helper_probes.CALLED.items()}


@pytest.mark.smoke
def test_this_kernels_stable_release_is_known():
    assert kernel_features.stable_release() > (5, 15, 0)
