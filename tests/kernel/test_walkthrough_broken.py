"""A lab that is broken in one place does not pass `verify`, which reports what is wrong and where; `up` repairs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.merlab_cli import told
from walkthrough_host import Lab, failed_checks, is_plain, merlab

from merbridge_lab.adapters import bpf_maps, bpf_syscall, mounts, process_sockets
from merbridge_lab.dataplane import abi, sockhash
from merbridge_lab.dataplane.pins import HOOKS, opened, u32, u64
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

_PROG_DETACH = 9
_SO_ATTACH_FILTER = 26


@dataclass(frozen=True)
class Break:
    """One way to break a lab; `check` is the one that must fail, `cause` (a pattern) what it must report.

    Those that are not in QUICK are similar to others there, or slow, and run only in soak.
    """

    name: str
    do: Callable[[Lab], contextlib.AbstractContextManager[None] | None]
    check: str
    cause: str


def _unlink(hook: str) -> Callable[[Lab], None]:
    return lambda lab: lab.link(hook).unlink()


def _detach_link(lab: Lab) -> None:
    with opened(lab.link("connect4")) as link:
        bpf_syscall.link_detach(link)


def _detach_sk_msg(lab: Lab) -> None:
    with opened(lab.pins.prog("sk_msg")) as program, opened(lab.pins.map("peers")) as peers:
        bpf_syscall.call(
            _PROG_DETACH, struct.pack("=IIII", peers, program, bpf_syscall.SK_MSG_VERDICT, 0), "detach sk_msg"
        )


def _forget(table: str, key: Callable[[Lab], bytes]) -> Callable[[Lab], None]:
    def do(lab: Lab) -> None:
        with opened(lab.pins.map(table)) as fd:
            assert bpf_maps.delete(fd, key(lab))

    return do


def _forget_listeners(lab: Lab) -> None:
    with opened(lab.pins.map("listeners")) as fd:
        keys = sockhash.listener_keys(fd, lab.cookie("helloworld-v2"))
        assert keys
        for key in keys:
            bpf_maps.delete(fd, key)


@contextlib.contextmanager
def _meanwhile(turn: Callable[[], None]) -> Iterator[None]:
    """Call `turn` repeatedly for the duration of the block."""
    over = threading.Event()

    def body() -> None:
        while not over.wait(0.001):
            turn()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _empty_peers(lab: Lab) -> Iterator[None]:
    size = abi.layouts()["end"].size
    with opened(lab.pins.map("peers")) as peers:

        def turn() -> None:
            for key in bpf_maps.keys(peers, size):
                with contextlib.suppress(OSError):
                    bpf_maps.delete(peers, key)

        with _meanwhile(turn):
            yield


def _filter_a_listener(lab: Lab) -> None:
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF))  # let 65535 bytes pass
    program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code))
    for _, sock in process_sockets.sockets_of(lab.pid("helloworld-v1", "sidecar"), "its sockets"):
        with contextlib.suppress(OSError):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == 15006:
                sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _signal(pod: str, kind: str, number: int) -> Callable[[Lab], None]:
    def do(lab: Lab) -> None:
        pid = lab.pid(pod, kind)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            assert poll_until(lambda: pid not in lab.pids(), timeout=5, awaiting="the process to end")

    return do


def _in(pod: str, *argv: str, stdin: str | None = None) -> Callable[[Lab], None]:
    def do(lab: Lab) -> None:
        lab.in_pod(pod, *argv, stdin=stdin)

    return do


def _move_rules(lab: Lab) -> None:
    rules = lab.in_pod("sleep", "iptables-nft-save", "-t", "nat")
    lab.in_pod("sleep", "iptables-nft", "-t", "nat", "-F")
    lab.in_pod("sleep", "env", "XTABLES_LOCKFILE=/dev/null", "iptables-legacy-restore", stdin=rules)


#: Does what Istio's rules do, in one line that a flush of the other backend does not remove.
_REDIRECT = (
    *("env", "XTABLES_LOCKFILE=/dev/null", "iptables-legacy", "-t", "nat"),
    *("-A", "OUTPUT", "-p", "tcp", "--dport", "5000", "-m", "owner", "!", "--uid-owner", "1337"),
    *("-j", "REDIRECT", "--to-ports", "15001"),
)
_NATIVE = """
table ip handmade {
  chain output {
    type nat hook output priority -100;
    tcp dport 5000 meta skuid != 1337 redirect to :15001
  }
}
"""


@contextlib.contextmanager
def _rule_that_comes_when_flushed(lab: Lab) -> Iterator[None]:
    there = False

    def turn() -> None:
        nonlocal there
        if lab.is_flushed and not there:
            lab.in_pod("sleep", *_REDIRECT)
            there = True

    with _meanwhile(turn):
        yield
    assert there


def _move_app(lab: Lab) -> None:
    pid = lab.pid("sleep", "app")
    (lab.cgroup("helloworld-v1", "app") / "cgroup.procs").write_text(str(pid))


def _app_in_another_netns(lab: Lab) -> None:
    old = lab.pid("sleep", "app")
    script = 'echo 0 >"$0/cgroup.procs" && exec nsenter "--net=$1" setsid --fork sleep infinity'
    argv = ["sh", "-c", script, str(lab.cgroup("sleep", "app")), str(lab.netns("helloworld-v1"))]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.kill(old, signal.SIGKILL)
    assert poll_until(lambda: old not in lab.pids(), timeout=5, awaiting="the process to end")


def _log(pod: str) -> Callable[[Lab], None]:
    """Replace the log that the sidecar has open by an empty one."""

    def do(lab: Lab) -> None:
        path = lab.run / "pods" / pod / "access.log"
        path.rename(path.with_name("access.log.1"))
        path.touch()
        os.chown(path, 1337, 1337)

    return do


def _covered_log(lab: Lab) -> None:
    """Cover the log by a frozen copy of it."""
    path = lab.run / "pods" / "helloworld-v1" / "access.log"
    copy = path.with_name("frozen")
    copy.write_bytes(path.read_bytes())
    mounts.bind(copy, path)


BREAKS = [
    *(
        Break(f"no_{h.name}", _unlink(h.name), "dataplane.in_order", f"link {h.name} of sleep is not pinned")
        for h in HOOKS
    ),
    Break(
        "connect4_attached_to_nothing", _detach_link, "dataplane.in_order", "connect4 of sleep is attached to nothing"
    ),
    Break(
        "no_sk_lookup_of_a_pod",
        lambda lab: lab.link("sk_lookup", "helloworld-v1").unlink(),
        "dataplane.in_order",
        "sk_lookup of helloworld-v1 is not pinned",
    ),
    Break("sk_msg_detached", _detach_sk_msg, "dataplane.in_order", "sk_msg is not attached to peers"),
    Break("program_unpinned", lambda lab: lab.pins.prog("sk_msg").unlink(), "dataplane.in_order", "program sk_msg"),
    Break("map_unpinned", lambda lab: lab.pins.map("pods").unlink(), "dataplane.in_order", "map pods is not pinned"),
    Break(
        "pod_not_in_the_map",
        _forget("pods", lambda lab: u64(lab.cookie())),
        "dataplane.in_order",
        "pod sleep is not in the pod map",
    ),
    Break(
        "address_not_in_the_map",
        _forget("pod_ips", lambda _: u32(struct.unpack("=I", bytes([10, 244, 0, 12]))[0])),
        "dataplane.in_order",
        "the address 10.244.0.12 does not lead to pod helloworld-v2",
    ),
    Break(
        "listener_not_registered",
        _forget_listeners,
        "dataplane.in_order",
        "no 15006 listener registered for helloworld-v2",
    ),
    Break("redirect_off", lambda lab: lab.pins.configure(redirect=0), "dataplane.in_order", "redirect is switched off"),
    Break("peers_emptied", _empty_peers, "mesh.served", "requests of sleep .* were not served"),
    Break(
        "client_sidecar_killed",
        _signal("sleep", "sidecar", signal.SIGKILL),
        "mesh.in_order",
        "the sidecar of sleep is not running",
    ),
    Break(
        "server_sidecar_killed",
        _signal("helloworld-v1", "sidecar", signal.SIGKILL),
        "mesh.in_order",
        "the sidecar of helloworld-v1 is not running",
    ),
    Break(
        "client_sidecar_stopped",
        _signal("sleep", "sidecar", signal.SIGSTOP),
        "mesh.in_order",
        "the sidecar of sleep is stopped",
    ),
    Break(
        "server_sidecar_stopped",
        _signal("helloworld-v2", "sidecar", signal.SIGSTOP),
        "mesh.in_order",
        "the sidecar of helloworld-v2 is stopped",
    ),
    Break(
        "client_app_killed", _signal("sleep", "app", signal.SIGKILL), "mesh.in_order", "the app of sleep is not running"
    ),
    Break(
        "one_server_app_killed",
        _signal("helloworld-v2", "app", signal.SIGKILL),
        "mesh.in_order",
        "the app of helloworld-v2 is not running",
    ),
    Break(
        "a_filter_on_a_listener",
        _filter_a_listener,
        "dataplane.in_order",
        "on the listener at .*:15006 of the sidecar of helloworld-v1 .* socket filter",
    ),
    Break("app_in_another_cgroup", _move_app, "mesh.in_order", "the app of sleep .* is in the cgroup"),
    Break("app_in_another_netns", _app_in_another_netns, "mesh.in_order", "the app of sleep has been replaced"),
    Break("rules_flushed", _in("sleep", "iptables-nft", "-t", "nat", "-F"), "mesh.in_order", "iptables rules of sleep"),
    Break(
        "server_rules_flushed",
        _in("helloworld-v1", "iptables-nft", "-t", "nat", "-F"),
        "mesh.in_order",
        "iptables rules of helloworld-v1",
    ),
    Break(
        "a_rule_deleted",
        _in("sleep", "iptables-nft", "-t", "nat", "-D", "ISTIO_OUTPUT", "1"),
        "mesh.in_order",
        "iptables rules of sleep",
    ),
    Break("rules_in_the_other_backend", _move_rules, "mesh.in_order", "rules of sleep"),
    Break("another_rule_in_legacy", _in("sleep", *_REDIRECT), "mesh.in_order", "sleep.*legacy"),
    Break("another_rule_in_native_nft", _in("sleep", "nft", "-f", "-", stdin=_NATIVE), "mesh.in_order", "handmade"),
    Break(
        "a_rule_that_comes_when_flushed",
        _rule_that_comes_when_flushed,
        "rules.were_absent",
        "rules? were present in sleep|rules of sleep changed",
    ),
    Break(
        "no_service_address",
        _in("node", "iptables-nft", "-t", "nat", "-D", "MERLAB-SERVICES", "1"),
        "node.in_order",
        "services' addresses",
    ),
    Break(
        "node_does_not_forward", _in("node", "sysctl", "-qw", "net.ipv4.ip_forward=0"), "node.in_order", "ip_forward"
    ),
    Break("no_veth", _in("node", "ip", "link", "delete", "veth10"), "mesh.in_order", "sleep"),
    Break(
        "no_default_route", _in("helloworld-v1", "ip", "route", "delete", "default"), "mesh.in_order", "helloworld-v1"
    ),
    Break("client_log_replaced", _log("sleep"), "mesh.in_order", "log of .*sleep"),
    Break("server_log_replaced", _log("helloworld-v2"), "mesh.in_order", "log of .*helloworld-v2"),
    Break("server_log_covered", _covered_log, "mesh.in_order", "log of .*helloworld-v1"),
    Break("no_mount_namespace", lambda lab: mounts.umount(lab.run / "mnt" / "sleep"), "mesh.in_order", "sleep"),
    Break("no_net_namespace", lambda lab: mounts.umount(lab.netns()), "mesh.in_order", "sleep"),
    Break("no_bpffs", lambda lab: mounts.umount(lab.machine.bpffs), "node.in_order", "BPF file system"),
]

QUICK = [
    *("no_connect4", "no_sk_lookup_of_a_pod", "listener_not_registered", "redirect_off", "server_sidecar_stopped"),
    *("app_in_another_netns", "rules_flushed", "rules_in_the_other_backend", "no_veth", "no_bpffs"),
    "a_filter_on_a_listener",
]
_BY_NAME = {one.name: one for one in BREAKS}


@pytest.fixture(scope="module")
def lab():
    merlab("down")
    try:
        done = merlab("up", "--until", "3", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        yield Lab()
    finally:
        assert merlab("down").returncode == 0


def broken(lab: Lab, one: Break) -> None:
    with one.do(lab) or contextlib.nullcontext():
        done = merlab("verify", "--json")
    report = told(done)
    assert is_plain(done)
    assert (report["verdict"], done.returncode) == ("fail", 1), report["cause"]
    assert re.search(one.cause, report["cause"]), report["cause"]
    assert one.check in failed_checks(report)


def problems(lab: Lab) -> list[str]:
    """Return the problems that merlab itself finds, without its command line."""
    seen = ManagedEmbeddedLab(name=lab.machine.name)
    return [*seen.node.problems(), *seen.mesh.problems(), *seen.dataplane.problems()]


@pytest.mark.parametrize("name", QUICK)
def test_a_broken_lab_is_noticed_and_mended(lab, name):
    assert problems(lab) == []
    broken(lab, _BY_NAME[name])
    mended = merlab("up", "--until", "3", "--json")
    assert mended.returncode == 0, told(mended)["cause"] or told(mended)["error"]
    assert problems(lab) == []


@pytest.mark.usefixtures("lab")
def test_after_all_of_them_the_lab_is_as_good_as_new():
    done = merlab("verify", "--json")
    assert (done.returncode, told(done)["cause"]) == (0, None)


@pytest.mark.soak
@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.name)
def test_a_broken_lab_is_mended_to_a_whole_one(lab, one):
    broken(lab, one)
    for words in (("up", "--json"), ("verify", "--json")):
        done = merlab(*words)
        assert (done.returncode, told(done)["cause"]) == (0, None)


# -- what only a demonstration needs ----------------------------------------------------------------------------------


def test_without_debug_output_step_5_fails_and_step_4_mends_it(lab):
    assert merlab("step", "4").returncode == 0
    lab.pins.configure(debug=0)
    done = merlab("step", "5", "--json")
    assert done.returncode == 1
    assert failed_checks(told(done)) == {"trace.tells_the_request"}
    assert "the trace does not show the request" in told(done)["cause"]
    mended = merlab("step", "4..5", "--json")
    assert (mended.returncode, told(mended)["cause"]) == (0, None)
    assert told(mended)["steps"][0]["acted"]
