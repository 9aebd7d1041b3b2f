"""Lies about eBPF that looks right: programs that count what they do not do, frozen maps, filters on sockets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from unittest import mock

import kernel_objects as objects
from kernel_objects import held, nothing
from lies_mesh import end, pins, pod
from saboteur import lie

from merbridge_lab.adapters import bpf_maps, bpf_syscall, netns, process_sockets
from merbridge_lab.dataplane import abi, sockhash
from merbridge_lab.dataplane.endpoints import packed
from merbridge_lab.dataplane.inbound_listener import inbound_listeners
from merbridge_lab.dataplane.interception_lists import place
from merbridge_lab.dataplane.pins import u32, u64

_FREEZE = 22
_SO_ATTACH_FILTER, _SO_ATTACH_BPF = 26, 50
_REDIRECT = "merlab_peers.msg_redirect_hash(msg, &other, BPF_F_INGRESS) != SK_PASS"
_COUNT = "count(netns, COUNTER_OUTBOUND_REDIRECTED_MESSAGES + leg - LEG_OUTBOUND, 1);"
NOT_OURS = r"program {} \(id \d+\) is not what merlab's source compiles to"
ON_THE_WIRE = (
    r"counters of \S+ claim that eBPF moved the payload, and the wire does not confirm it: the kernel's TCP carried \d+"
)


@contextlib.contextmanager
def another_source(scene, *changes):
    """Load merlab's dataplane from a changed source; stamp, tags, types and pins are as merlab creates them."""
    abi.stamp()
    text = abi.source()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    lab = scene.lab
    lab.dataplane.remove()
    try:
        with mock.patch.object(abi, "source", return_value=text):
            lab.dataplane.ensure()
        yield
    finally:
        lab.dataplane.remove()
        lab.dataplane.ensure()


@lie("sk_msg counts and moves nothing", f"{ON_THE_WIRE}|{NOT_OURS.format('sk_msg')}")
def _(scene):
    """sk_msg counts each message as moved and lets it go by TCP; stamp and tags say that it is merlab's."""
    with another_source(scene, (_REDIRECT, "0")):
        yield


@lie("sk_msg counts and moves nothing, asked once", ON_THE_WIRE, steps=(6,), quick=False)
def _(scene):
    """sk_msg counts each message as moved and lets it go by TCP; stamp and tags say that it is merlab's."""
    with another_source(scene, (_REDIRECT, "0")):
        yield


@lie(
    "sk_msg counts everything and moves nothing",
    r"on the outbound leg the kernel confirms that 0 of 4 requests bypassed TCP",
    steps=(6,),
)
def _(scene):
    """sk_msg counts each message as moved, and as left to TCP as well, to which it goes."""
    with another_source(scene, (_REDIRECT, "0"), (_COUNT, f"{_COUNT} count(netns, COUNTER_PASSED_ON_TCP, 1);")):
        yield


@lie("sk_msg moves one leg of three", ON_THE_WIRE, steps=(6,), quick=False)
def _(scene):
    """sk_msg counts on all legs, and redirects on the leg between the sidecars only."""
    instead = f"leg == LEG_MESH && {_REDIRECT}"
    with another_source(scene, (_REDIRECT, instead)):
        yield


@lie("a program that does more than merlab's", NOT_OURS.format("sockopt"))
def _(scene):
    """sockopt counts everything twice, which no request notices; stamp and tags say that it is merlab's."""
    once = "count(netns, counter, 1);"
    with another_source(scene, (once, f"{once} {once}")):
        yield


@lie(
    "map {name} frozen",
    r"map {name} is frozen \(BPF_MAP_FREEZE\)",
    {"name": ["config", "pods", "counters", "peers"]},
    quick={"config"},
)
def _(scene, name):
    """The map {name} is frozen: merlab, and whoever else calls, cannot write it any more."""
    with pins(scene).open_map(name) as table:
        bpf_syscall.call(_FREEZE, struct.pack("=I", table), "freeze a map")
    yield


@lie("another namespace under a pod's name", r"the pod map holds sleep a second time, for the network namespace \d+")
def _(scene):
    """The node's network namespace is in the pod map as sleep: its counters would be told as sleep's."""
    sleep = pod(scene, "sleep")
    layout = abi.layouts()["pod"]
    entry = layout.pack(ip4=packed(sleep.spec.ip), name=b"sleep")
    key = u64(netns.cookie(scene.lab._node.netns))
    with pins(scene).open_map("pods") as table:
        bpf_maps.update(table, key, entry)
        yield
        with contextlib.suppress(OSError):
            bpf_maps.delete(table, key)


@lie("a server's address leads to the other server", r"the address 10\.244\.0\.11 does not lead to pod helloworld-v1")
def _(scene):
    """helloworld-v1's address is in pod_ips with the network namespace of helloworld-v2."""
    one, other = pod(scene, "helloworld-v1"), pod(scene, "helloworld-v2")
    with pins(scene).open_map("pod_ips") as table:
        bpf_maps.update(table, u32(packed(one.spec.ip)), place(netns.cookie(other.netns), 0))
    yield


@lie(
    "a server's listener is the other server's", r"the 15006 listener registered for helloworld-v1 is not its sidecar's"
)
def _(scene):
    """In `listeners`, helloworld-v2's inbound listener stands for helloworld-v1: it would get its connections."""
    one, other = pod(scene, "helloworld-v1"), pod(scene, "helloworld-v2")
    with (
        contextlib.closing(inbound_listeners(other.sidecar_pid, netns.cookie(other.netns))) as found,
        pins(scene).open_map("listeners") as table,
    ):
        sock, _ = next(found)
        bpf_maps.update(table, sockhash.listener_key(netns.cookie(one.netns), 0), u64(sock))
    yield


# -- socket filters --------------------------------------------------------------------------------------------------


def listeners(target, kind, port):
    """Return our own descriptors of the sockets on which a process of the pod listens."""
    pid = target.app_pid if kind == "app" else target.sidecar_pid
    for _, sock in process_sockets.sockets_of(pid, "its sockets"):
        with contextlib.suppress(OSError):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == port:
                yield sock


@lie(
    "a classic filter on the {kind} of a server",
    r"on the listener at \S+ of the {kind} of helloworld-v1 .* socket filter, 1 instructions of classic BPF",
    {"kind": ["app", "sidecar"]},
)
def _(scene, kind):
    """On the listeners of helloworld-v1's {kind} there is a filter, which lets everything pass today."""
    target = pod(scene, "helloworld-v1")
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF))  # return 65535
    program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code))
    for sock in listeners(target, kind, {"app": 5000, "sidecar": 15006}[kind]):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    yield
    end(target, kind)


@lie("an eBPF filter on a sidecar", r"on the listener at \S+:15006 of the sidecar of helloworld-v2 .*an eBPF program")
def _(scene):
    """On the inbound listeners of helloworld-v2's sidecar there is an eBPF filter, which cuts after 64 kB."""
    target = pod(scene, "helloworld-v2")
    with held(nothing(objects.SOCKET_FILTER, verdict=65535, name="stranger")) as program:
        for sock in listeners(target, "sidecar", 15006):
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
    yield
    end(target, "sidecar")


@lie(
    "a filter on a live connection", r"on the connection at \S+ of the sidecar of sleep .*1 instructions of classic BPF"
)
def _(scene):
    """On a connection that sleep's sidecar has open there is a filter."""
    target = pod(scene, "sleep")
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF))
    program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code))
    with netns.run_inside(target.netns, lambda: socket.create_connection(("127.0.0.1", 15000))) as ours:
        name = ours.getsockname()
        found = False
        while not found:
            for _, sock in process_sockets.sockets_of(target.sidecar_pid, "its sockets"):
                with contextlib.suppress(OSError):
                    if sock.getpeername() == name:
                        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
                        found = True
            os.sched_yield()
        yield
