"""What could not be read from the kernel is reported, and is never treated as nothing (P6, M4)."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from merbridge_lab.adapters import (
    bpf_maps,
    bpf_syscall,
    capabilities,
    kernel_features,
    netlink_hooks,
    netns,
    process_sockets,
)
from merbridge_lab.dataplane import (
    Around,
    Dataplane,
    endpoint_health,
    health,
    inbound_listener,
    sockhash,
    strangers,
    upgrade,
)
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread
from merbridge_lab.requirements import host, privileges

REFUSING = Path(__file__).parents[1] / "kernel" / "kernel_refusing.py"


def refused(*_args, **_options):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def missing(*_args, **_options):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


@pytest.fixture
def pins(tmp_path):
    for folder in ("links/4711", "maps", "progs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "maps" / "stamp").touch()
    return Pins(tmp_path)


def test_a_pin_that_may_not_be_opened_is_no_missing_pin(pins, tmp_path, monkeypatch):
    monkeypatch.setattr(bpf_syscall, "pinned", refused)
    with pytest.raises(PermissionError):
        pins.stamp()
    told = health.problems(pins, [])
    assert told == [f"the dataplane below {tmp_path} could not be read: Operation not permitted"]
    monkeypatch.setattr(bpf_syscall, "pinned", missing)
    assert pins.stamp() is None
    assert health.problems(pins, [])[0] == f"the pins below {tmp_path} are incomplete: there is no valid stamp"


def test_nothing_is_made_anew_because_it_cannot_be_read(pins, monkeypatch):
    monkeypatch.setattr(bpf_syscall, "pinned", refused)
    with pytest.raises(PermissionError):
        health.objects_problems(pins)
    with pytest.raises(PermissionError):
        upgrade.is_due(pins)


@pytest.mark.parametrize("what", ["counters", "pairs", "programs", "links"])
def test_counters_and_connections_that_cannot_be_read_are_not_none(pins, monkeypatch, what):
    pins.link("4711", "connect4").touch()
    monkeypatch.setattr(bpf_syscall, "pinned", refused)
    with pytest.raises(LabError, match="could not be read: Operation not permitted"):
        getattr(Dataplane(pins.root), what)()


def test_a_debug_switch_that_cannot_be_read_is_not_off(pins, monkeypatch):
    monkeypatch.setattr(bpf_syscall, "pinned", refused)
    with pytest.raises(LabError, match="could not be read"):
        _ = Dataplane(pins.root).debug


@pytest.mark.parametrize(
    ("error", "says"),
    [(missing, "link x is not pinned"), (refused, "link x could not be read: Operation not permitted")],
)
def test_a_link_is_gone_or_unread(tmp_path, monkeypatch, error, says):
    monkeypatch.setattr(bpf_syscall, "pinned", error)
    assert endpoint_health._link_problem(tmp_path / "x", "x", (1, "cgroup 1"), tmp_path / "p", 10) == says


# -- strangers ---------------------------------------------------------------------------------------------------------


def answering(programs, *, unknown=()):
    """Replace the kernel's answers: (flags, attach type) → programs."""

    def attached_progs(_target, attach_type, flags=0):
        if attach_type not in strangers.CGROUP_TYPES or attach_type in unknown:
            raise OSError(errno.EINVAL, "Invalid argument")
        return list(programs.get((flags, attach_type), ()))

    return attached_progs


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(strangers, "_in_namespace", lambda *_: [])
    monkeypatch.setattr(strangers, "on_links", lambda *_: [])
    monkeypatch.setattr(strangers, "netfilter_links", list)
    monkeypatch.setattr(strangers, "named", lambda number: f"stranger (id {number})")


@pytest.mark.parametrize("flags", [0, bpf_syscall.QUERY_EFFECTIVE])
def test_a_cgroup_that_cannot_be_asked_is_a_problem(quiet, tmp_path, monkeypatch, flags):  # noqa: ARG001
    answers = answering({})

    def attached_progs(target, attach_type, asked=0):
        if asked == flags and attach_type == 10:
            refused()
        return answers(target, attach_type, asked)

    monkeypatch.setattr(bpf_syscall, "attached_progs", attached_progs)
    told = strangers.problems(frozenset(), [tmp_path], {}, Around())
    assert told == [f"what runs on the cgroup {tmp_path} could not be read: Operation not permitted"]


def test_an_older_kernel_has_fewer_hooks_and_that_is_no_problem(quiet, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(bpf_syscall, "attached_progs", answering({}, unknown={29, 30, 43, 49, 50, 51, 52, 53}))
    assert strangers.problems(frozenset(), [tmp_path], {}, Around()) == []


def test_what_runs_from_above_of_what_can_be_seen_is_told(quiet, tmp_path, monkeypatch):  # noqa: ARG001
    """In a container, the cgroup that a program is attached to may be one that cannot be opened."""
    monkeypatch.setattr(
        bpf_syscall, "attached_progs", answering({(1, 10): [7], (1, 6): [8], (1, 14): [9], (1, 11): [5]})
    )
    told = strangers.problems(frozenset({5}), [tmp_path], {}, Around())
    assert len(told) == 1
    assert "above" in told[0]
    assert told[0].endswith("cannot be seen from here, connect4 runs another program, stranger (id 7)")
    assert len(strangers.listed(frozenset({5}), [tmp_path], {}, Around())) == 2


@pytest.mark.parametrize(
    ("kind", "allowed"), [(6, True), (18, True), (14, False), (34, False), (0, False), (22, False), (43, False)]
)
def test_on_the_pods_own_cgroups_devices_and_sysctls_may_be(quiet, tmp_path, monkeypatch, kind, allowed):  # noqa: ARG001
    monkeypatch.setattr(strangers, "_above", lambda _cgroup: [])
    monkeypatch.setattr(bpf_syscall, "attached_progs", answering({(0, kind): [7], (1, kind): [7]}))
    assert (strangers.problems(frozenset(), [tmp_path], {}, Around()) == []) is allowed


@pytest.mark.parametrize(("kind", "allowed"), [(6, True), (14, True), (34, True), (0, False), (1, False), (10, False)])
def test_above_what_sees_no_tcp_may_be(quiet, tmp_path, monkeypatch, kind, allowed):  # noqa: ARG001
    """A cgroup_skb program above may drop: a problem, whoever owns it."""
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    monkeypatch.setattr(strangers, "_above", lambda _cgroup: [tmp_path])
    monkeypatch.setattr(
        strangers,
        "_runs",
        lambda place, _types, flags=0: {kind: [7]} if flags or place == tmp_path else {},
    )
    monkeypatch.setattr(bpf_syscall, "attached_progs", answering({}))
    told = strangers.problems(frozenset(), [mesh], {}, Around())
    assert (told == []) is allowed
    assert all(str(tmp_path) + " " in each for each in told)


def test_netfilter_programs_in_places_that_cannot_be_told_are_a_problem(quiet, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(strangers, "_on_cgroup", lambda *_, **_more: [])
    monkeypatch.setattr(strangers, "netfilter_links", lambda: [7])

    def unknown(*_args):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(netns, "run_inside", unknown)
    (told,) = strangers.problems(frozenset(), [tmp_path], {"sleep": tmp_path}, Around())
    assert "stranger (id 7)" in told
    assert "could not be read: this kernel cannot report it (CONFIG_NETFILTER_NETLINK_HOOK)" in told
    monkeypatch.setattr(netns, "run_inside", lambda *_: [netlink_hooks.Hung("ip output", "netfilter", 7)])
    (told,) = strangers.problems(frozenset(), [tmp_path], {"sleep": tmp_path}, Around())
    assert told == "on netfilter's hook ip output of sleep runs another program, stranger (id 7)"
    monkeypatch.setattr(netns, "run_inside", lambda *_: [])
    assert strangers.problems(frozenset(), [tmp_path], {"sleep": tmp_path}, Around()) == []


def test_links_and_namespaces_that_cannot_be_asked_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(strangers, "_on_cgroup", lambda *_, **_more: [])
    monkeypatch.setattr(strangers, "netfilter_links", refused)
    told = strangers.problems(frozenset(), [tmp_path], {}, Around((), (("node", tmp_path / "none"),)))
    assert [each.partition(" could not be read")[0] for each in told] == [
        "what runs in the network namespace of node",
        "what hangs on the links of node",
        "what BPF runs on netfilter's hooks",
    ]


# -- the sockhash ------------------------------------------------------------------------------------------------------


def test_before_linux_5_18_nobody_tells_what_is_on_a_sockhash(monkeypatch):
    def unknown(*_args):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(bpf_syscall, "attached_progs", unknown)
    assert sockhash.redirects(3, 4) is None
    monkeypatch.setattr(bpf_syscall, "attached_progs", refused)
    with pytest.raises(PermissionError):
        sockhash.redirects(3, 4)


def test_before_linux_5_18_others_that_could_be_there_are_unread_and_none_is_none(monkeypatch):
    loaded = {1: bpf_syscall.PROG_SK_MSG, 2: bpf_syscall.PROG_SOCK_OPS, 3: bpf_syscall.PROG_SK_SKB}
    monkeypatch.setattr(sockhash, "named", lambda number: f"id {number}")
    monkeypatch.setattr(bpf_syscall, "ids", lambda _kind: iter(loaded))
    monkeypatch.setattr(bpf_syscall, "by_id", lambda _kind, number: os.open(f"/proc/self/fd/{number % 1}", os.O_PATH))
    infos = iter(loaded.items())

    def info(_fd):
        number, kind = next(infos)
        return bpf_syscall.Prog(number, kind, "", "", 0, 0, (), 0)

    monkeypatch.setattr(bpf_syscall, "prog_info", info)
    why = "could not be read: Linux before 5.18 cannot report it"
    assert sockhash._by_elimination(1) == [f"whether id 3 is attached to the sockhash peers {why}"]
    del loaded[3]
    infos = iter(loaded.items())
    assert sockhash._by_elimination(1) == []


# -- M4: descriptors that nobody may take ------------------------------------------------------------------------------

LOOK = """
import os, socket, sys
from merbridge_lab.dataplane import inbound_listener
sock = socket.create_server(("127.0.0.1", 0))
try:
    print(inbound_listener.inbound_cookies(os.getpid(), 1))
except Exception as error:
    print(type(error).__name__, error.what, error.hint, sep="|")
"""


def test_m4_a_refused_descriptor_is_told_and_not_taken_for_none():
    """If the kernel refuses pidfd_getfd, the reason is reported, with what to type."""
    done = subprocess.run(
        [sys.executable, str(REFUSING), sys.executable, "-c", LOOK], check=True, capture_output=True, text=True
    )
    kind, what, hint = done.stdout.strip().split("|")
    assert kind == "LabError"
    assert "is not available" in what
    assert "Operation not permitted" in what
    assert hint in ("merlab doctor", kernel_features.FIND_PTRACE_SCOPE)


def test_m4_a_descriptor_that_was_closed_is_no_refusal(monkeypatch):
    def closed(*_args):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(process_sockets, "_pidfd_getfd", closed)
    with socket.create_server(("127.0.0.1", 0)):
        assert inbound_listener.inbound_cookies(os.getpid(), 1) == set()


def test_m4_yama_at_3_is_named_with_who_sets_it(monkeypatch):
    monkeypatch.setattr(process_sockets, "_pidfd_getfd", refused)
    monkeypatch.setattr(process_sockets, "ptrace_scope", lambda: 3)
    with socket.create_server(("127.0.0.1", 0)), pytest.raises(LabError, match="ptrace_scope is 3") as caught:
        inbound_listener.inbound_cookies(os.getpid(), 1)
    assert caught.value.hint == kernel_features.FIND_PTRACE_SCOPE
    subprocess.run(["sh", "-n", "-c", kernel_features.FIND_PTRACE_SCOPE], check=True)


@pytest.mark.parametrize(
    ("content", "verdict", "found"),
    [
        (None, "pass", "no Yama"),
        ("0\n", "pass", "kernel.yama.ptrace_scope is 0"),
        ("2\n", "pass", "kernel.yama.ptrace_scope is 2"),
        ("3\n", "fail", "kernel.yama.ptrace_scope is 3, until the next boot without it"),
    ],
)
def test_m4_doctor_looks_at_ptrace_scope(tmp_path, content, verdict, found):
    place = tmp_path / "proc/sys/kernel/yama"
    place.mkdir(parents=True)
    if content is not None:
        (place / "ptrace_scope").write_text(content)
    told = host.ptrace(tmp_path)
    assert (told.verdict, told.found) == (verdict, found)
    assert told.hint == ("" if verdict == "pass" else kernel_features.FIND_PTRACE_SCOPE) or told.hint is None


@pytest.mark.parametrize("name", ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"])
def test_m4_doctor_looks_for_the_capability(name):
    bits = 0x1FFFFFFFFFF & ~(1 << capabilities._BITS[name])
    assert capabilities.missing(privileges.CAPABILITIES, f"CapEff:\t{bits:016x}\n") == [name]


def test_unread_is_said_in_one_way():
    assert str(Unread("what runs on x", "EPERM")) == "what runs on x could not be read: EPERM"


# -- a dataplane that is half another one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ({7}, []),
        ({9}, ["map pods is not the one that the programs use"]),
        ({7, 9}, ["some programs use another map pods (id 9) than the pinned one (id 7)"]),
    ],
)
def test_p6_a_map_of_the_same_name_is_not_the_same_map(pins, monkeypatch, users, says):
    monkeypatch.setattr(health, "MAPS", ("pods",))
    monkeypatch.setattr(health, "_programs_problems", lambda _pins: ([], {"merlab_pods": users}))
    monkeypatch.setattr(Pins, "stamp", lambda _self: health.abi.stamp())
    monkeypatch.setattr(bpf_syscall, "pinned", lambda _path: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(bpf_syscall, "map_info", lambda _fd: bpf_syscall.Map(7, 1, "merlab_pods", 8, 8, 8, 1))
    assert health.objects_problems(pins) == says


def test_p6_a_stamp_of_an_older_merlab_names_that_one_and_no_tags(pins, monkeypatch):
    old = b"0.1.0+abcdef012345".ljust(64, b"\0")
    monkeypatch.setattr(bpf_syscall, "pinned", lambda _path: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(bpf_syscall, "map_info", lambda _fd: bpf_syscall.Map(7, 2, "merlab_stamp", 4, 64, 1, 1))
    monkeypatch.setattr(bpf_maps, "lookup", lambda *_: old)
    assert pins.stamp() == "0.1.0+abcdef012345"
    assert pins.tags() == {}
    assert upgrade.is_due(pins)


def test_a_link_that_is_being_made_is_waited_for(monkeypatch):
    """Seen while another program attached links: the kernel lists the number of one that it does not open yet."""
    answers = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")] * 2

    def call(*_args):
        if answers:
            raise answers.pop()
        return 7, b""

    monkeypatch.setattr(bpf_syscall, "call", call)
    assert bpf_syscall.by_id("link", 1) == 7
    monkeypatch.setattr(bpf_syscall, "_BEING_MADE", 0.01)
    monkeypatch.setattr(bpf_syscall, "call", lambda *_: (_ for _ in ()).throw(BlockingIOError(errno.EAGAIN, "again")))
    with pytest.raises(BlockingIOError):
        bpf_syscall.by_id("link", 1)
