"""Lies by others (P6): foreign programs wherever the kernel accepts them, and a dataplane that is half another."""

# ruff: noqa: SIM117 - what a program is attached with, and the program, are two things

from __future__ import annotations

import contextlib
import os
import socket

import kernel_objects as objects
from kernel_objects import held, nothing
from lies_mesh import end, links_of, pins, pod
from saboteur import lie, oddity

from merbridge_lab.adapters import bpf_maps, bpf_syscall, netns
from merbridge_lab.adapters.command import run
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.endpoints import netns_cookie, packed
from merbridge_lab.dataplane.interception_lists import place
from merbridge_lab.dataplane.pins import PREFIX, opened, u32, u64

#: hook → (program type, attach type)
ON_CGROUPS = {
    "ingress": (objects.CGROUP_SKB, 0), "egress": (objects.CGROUP_SKB, 1), "sock_create": (objects.CGROUP_SOCK, 2),
    "bind4": (18, 8), "bind6": (18, 9), "post_bind4": (objects.CGROUP_SOCK, 12), "sendmsg4": (18, 14),
    "setsockopt": (25, 22), "getsockname4": (18, 31), "sock_release": (objects.CGROUP_SOCK, 34),
    "device": (objects.CGROUP_DEVICE, 6), "sysctl": (objects.CGROUP_SYSCTL, 18), "connect4": (18, 10),
}  # fmt: skip


@contextlib.contextmanager
def stranger(place, hook):
    """Attach a program that does nothing, called stranger, to a cgroup."""
    kind, attach_type = ON_CGROUPS[hook]
    target = os.open(place, os.O_RDONLY)
    with held(target), held(nothing(kind, attach_type, name="stranger")) as program:
        with held(objects.link(program, target, attach_type)):
            yield


@contextlib.contextmanager
def inside(path, work, undo=lambda _made: None):
    """Do `work` in a network namespace and undo it there."""
    made = netns.run_inside(path, work)
    try:
        yield made
    finally:
        netns.run_inside(path, lambda: undo(made))


def node(scene):
    return scene.lab.machine.netns("node")


@lie(
    "a foreign {hook} on a pod's cgroup",
    r"on the cgroup .*mesh/sleep {hook}.* runs another program, stranger \(id \d+\)",
    {"hook": ["bind4", "setsockopt", "ingress", "sock_create", "post_bind4", "getsockname4", "sock_release"]},
    quick={"bind4", "setsockopt", "ingress"},
)
def _(scene, hook):
    """A program of type {hook} that is not ours is attached to sleep's cgroup."""
    with stranger(scene.lab.machine.mesh_cgroup / "sleep", hook):
        yield


@lie(
    "a foreign {hook} above the pods' cgroups",
    r"on the cgroup .*merlab-sab\w* {hook}.* runs another program, stranger \(id \d+\)",
    {"hook": ["egress", "bind6"]},
    quick={"egress"},
)
def _(scene, hook):
    """A program of type {hook} that is not ours is attached to the cgroup above the mesh's: it may drop."""
    with stranger(scene.lab.machine.cgroup, hook):
        yield


@lie("a foreign connect4 on the twins' cgroup", r"on the cgroup .*/twins connect4 runs another program, stranger")
def _(scene):
    """A program that is not ours decides about the connections of the twins, which are the controls."""
    with stranger(scene.lab.machine.cgroup / "twins", "connect4"):
        yield


@lie(
    "a tc filter on a server's link",
    r"on the link eth0 of helloworld-v1 there is tc egress filter \(bpf\): stranger \(id \d+\)",
)
def _(scene):
    """A BPF filter hangs on the egress of helloworld-v1's eth0, in a clsact qdisc."""
    with held(nothing(objects.SCHED_CLS, verdict=-1, name="stranger")) as program:
        number = netns.run_inside(pod(scene, "helloworld-v1").netns, lambda: socket.if_nametoindex("eth0"))
        with inside(
            pod(scene, "helloworld-v1").netns,
            lambda: objects.cls_bpf(number, program),
            lambda _: objects.no_clsact(number),
        ):
            yield


@lie("tcx on the node's end of a link", r"on the link veth11 of node there is tcx ingress: stranger \(id \d+\)")
def _(scene):
    """A tcx program hangs on the node's end of helloworld-v1's link."""

    def work():
        return objects.link(program, socket.if_nametoindex("veth11"), objects.TCX_INGRESS)

    with held(nothing(objects.SCHED_CLS, objects.TCX_INGRESS, name="stranger", verdict=-1)) as program:
        with inside(node(scene), work, os.close):
            yield


@lie("XDP on a link of the node", r"on the link veth10 of node there is XDP: stranger \(id \d+\)")
def _(scene):
    """An XDP program sees all that sleep sends before the node does."""

    def work():
        return objects.link(program, socket.if_nametoindex("veth10"), objects.XDP_LINK)

    with held(nothing(objects.XDP, objects.XDP_LINK, name="stranger", verdict=2)) as program:
        with inside(node(scene), work, os.close):
            yield


@lie("a BPF program on a netfilter hook", r"(on )?netfilter.* stranger \(id \d+\)", shared=True)
def _(scene):
    """A netfilter program is on the output hook of sleep, where no list of rules shows it."""
    with held(nothing(objects.NETFILTER, objects.NETFILTER_LINK, name="stranger")) as program:
        with inside(pod(scene, "sleep").netns, lambda: objects.netfilter_link(program), os.close):
            yield


@lie("sk_skb on the sockhash", r"on the sockhash peers sk_skb verdict runs another program, stranger \(id \d+\)")
def _(scene):
    """A verdict program on `peers` decides about what the sockets in it receive."""
    with held(nothing(objects.SK_SKB, objects.SK_SKB_VERDICT, name="stranger")) as program:
        with pins(scene).open_map("peers") as peers:
            objects.attach_to_map(program, peers, objects.SK_SKB_VERDICT)
            yield
            objects.detach(program, peers, objects.SK_SKB_VERDICT)


@lie(
    "a flow dissector in a pod", r"in the network namespace of sleep the flow dissector runs another program, stranger"
)
def _(scene):
    """A flow dissector of somebody else's takes packets apart in sleep."""
    target = os.open(pod(scene, "sleep").netns, os.O_RDONLY)
    with held(target), held(nothing(objects.FLOW_DISSECTOR, name="stranger")) as program:
        with held(objects.link(program, target, objects.FLOW_DISSECTOR_HOOK)):
            yield


@lie("a foreign sk_lookup on the node", r"in the network namespace of node sk_lookup runs another program, stranger")
def _(scene):
    """A program that is not ours decides who gets the connections to the node itself."""
    target = os.open(node(scene), os.O_RDONLY)
    with held(target), held(nothing(30, bpf_syscall.SK_LOOKUP, name="stranger")) as program:
        with held(objects.link(program, target, bpf_syscall.SK_LOOKUP)):
            yield


@lie(
    "a strange socket in the sockhash", r"the sockhash peers, for side 0 of .* holds a socket .* that belongs to no pod"
)
def _(scene):
    """A connection of the machine's own is in `peers`: what is redirected there would leave the mesh."""
    key = abi.layouts()["end"].pack(side=0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        with pins(scene).open_map("peers") as peers:
            bpf_maps.update(peers, key, u64(client.fileno()))
            yield
            with contextlib.suppress(OSError):
                bpf_maps.delete(peers, key)


@lie("an address of nobody's leads to a pod", r"the address 10\.244\.0\.99 is in the pod map, but no pod has it")
def _(scene):
    """An address that no pod has is in pod_ips: sidecars that dial it would end in helloworld-v1."""
    address = u32(packed("10.244.0.99"))
    with pins(scene).open_map("pod_ips") as ips:
        bpf_maps.update(ips, address, place(netns_cookie(pod(scene, "helloworld-v1").netns), 0))
        yield
        bpf_maps.delete(ips, address)


@lie(
    "a listener of no pod's registered",
    r"a listener is registered for the network namespace 4711, which belongs to no pod",
)
def _(scene):
    """A socket is in `listeners` for a network namespace that no pod has."""
    with socket.create_server(("127.0.0.1", 0)) as sock, pins(scene).open_map("listeners") as listeners:
        bpf_maps.update(listeners, u64(4711), u64(sock.fileno()))
        yield
        bpf_maps.delete(listeners, u64(4711))


@lie("a take-over that did not finish", r"another version's programs are still there, in .*/old")
def _(scene):
    """A link of another version runs on beside ours, as a merlab killed while it took over leaves it."""
    own = pins(scene)
    place = own.root / "old" / "links"
    place.mkdir(parents=True)
    target = os.open(scene.lab.machine.mesh_cgroup, os.O_RDONLY)
    with held(target), held(nothing(18, bpf_syscall.CGROUP_INET4_CONNECT, name=PREFIX + "connect4")) as program:
        with held(objects.link(program, target, bpf_syscall.CGROUP_INET4_CONNECT)) as link:
            bpf_syscall.pin(link, place / "connect4")
            yield


@lie("a program of the same types that does nothing", r"program connect4 \(id \d+\) does not do what merlab's does")
def _(scene):
    """connect4 is replaced, pin and link, by one of its name and with its types that does nothing."""
    own = pins(scene)
    with opened(own.prog("connect4")) as ours:
        program = objects.with_types(18, bpf_syscall.CGROUP_INET4_CONNECT, PREFIX + "connect4", ours)
    with held(program) as fd:
        objects.pin_instead(fd, own.prog("connect4"))
        for pin in links_of(scene, "connect4"):
            with opened(pin) as link:
                objects.update_link(link, fd)
    yield


@oddity("a {hook} program of the machine's", {"hook": ["device", "sysctl"]}, quick={"device"}, shared=True)
def _(scene, hook):
    """A program of type {hook} is on the pods' own cgroups, as runc and systemd attach one."""
    with stranger(scene.lab.machine.mesh_cgroup, hook):
        yield


@oddity("a foreign sendmsg4 above the pods' cgroups")
def _(scene):
    """A program that sees UDP only is on the cgroup above the mesh's."""
    with stranger(scene.lab.machine.cgroup, "sendmsg4"):
        yield


# -- what no curl would notice (P7) ----------------------------------------------------------------------------------


@contextlib.contextmanager
def unnoticed(scene, name, hook, attach_type):
    """Replace a program by one that does nothing, in pin and link, with its types, and with its tag in the stamp."""
    own, layout = pins(scene), abi.layouts()["stamp"]
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(opened(own.prog(name)))
        links = [stack.enter_context(opened(pin)) for pin in links_of(scene, hook)]
        stamp = stack.enter_context(opened(own.map("stamp")))
        fd = stack.enter_context(held(objects.with_types(18, attach_type, PREFIX + name, ours)))
        before = bpf_maps.lookup(stamp, bytes(4), layout.size)
        tags = own.tags() | {name: bpf_syscall.prog_info(fd).tag}
        words = " ".join(f"{each}={tag}" for each, tag in tags.items()).encode()
        bpf_maps.update(stamp, bytes(4), layout.pack(version=layout.unpack(before)["version"], programs=words))
        objects.pin_instead(fd, own.prog(name))
        for link in links:
            objects.update_link(link, fd)
        yield
        # Nothing tells `ensure` that there is something to repair.
        bpf_maps.update(stamp, bytes(4), before)
        objects.pin_instead(ours, own.prog(name))
        for link in links:
            objects.update_link(link, ours)


@lie("connect6 blind, and nothing tells", "eBPF did not intercept the connection of sleep by an IPv6 socket")
def _(scene):
    """connect6 does nothing, and whatever is read of the kernel's objects says that it is merlab's."""
    with unnoticed(scene, "connect6", "connect6", bpf_syscall.CGROUP_INET6_CONNECT):
        yield


@lie("getpeername6 blind, and nothing tells", r"by an IPv6 socket, .*sees that it speaks to 127\.0\.0\.1:15001")
def _(scene):
    """getpeername6 does nothing, and whatever is read of the kernel's objects says that it is merlab's."""
    with unnoticed(scene, "getpeer6", "getpeername6", bpf_syscall.CGROUP_INET6_GETPEERNAME):
        yield


@lie(
    "echo has stopped listening",
    r"nobody listens on port 9000 of helloworld-v1, although its app \(pid \d+\) is there",
)
def _(scene):
    """The sockets on which helloworld's apps listen for echo are destroyed; their processes, and HTTP, go on."""
    for name in ("helloworld-v1", "helloworld-v2"):
        run(pod(scene, name).argv_as_root(["ss", "-H", "-K", "-l", "-t", "sport", "=", ":9000"]))
    yield
    for name in ("helloworld-v1", "helloworld-v2"):
        end(pod(scene, name), "app")
