"""Lies about eBPF: what is attached is not what it seems, or is incomplete."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace

from kernel_objects import held, map_like, nothing, pin_instead, update_link
from lies_mesh import link_of, links_of, pins, pod
from saboteur import again_and_again, lie

from merbridge_lab import dataplane
from merbridge_lab.adapters import bpf_maps, bpf_syscall, netns
from merbridge_lab.dataplane import abi, sockhash
from merbridge_lab.dataplane.endpoints import netns_cookie, packed
from merbridge_lab.dataplane.pins import HOOKS, LOOKUP, PREFIX, PROGRAMS, opened, u32, u64

CONNECT = bpf_syscall.CGROUP_INET4_CONNECT
HOOK = {hook.name: hook for hook in HOOKS}
#: The attach type with which each program must be loaded; -1 if it does not matter.
EXPECTED = {hook.program: hook.attach_type for hook in HOOKS if hook.name != "sockops"} | {
    "lookup": bpf_syscall.SK_LOOKUP
}


def do_nothing(program, name="nothing"):
    return held(nothing(PROGRAMS[program], EXPECTED.get(program, -1), name=name))


@lie("link {hook} removed", "link {hook} of sleep is not pinned", {"hook": list(HOOK)}, quick={"getsockopt"})
def _(scene, hook):
    """The pin of sleep's link {hook} is deleted, and with it the link."""
    link_of(scene, hook).unlink()
    yield


@lie("link sk_lookup of one server removed", "link sk_lookup of helloworld-v1 is not pinned", quick=False)
def _(scene):
    """The pin of helloworld-v1's sk_lookup link is deleted, and with it the link."""
    link_of(scene, "sk_lookup", "helloworld-v1").unlink()
    yield


@lie("link {hook} detached", "{hook} of sleep is attached to nothing", {"hook": ["connect4", "sockops"]}, quick=False)
def _(scene, hook):
    """Sleep's link {hook} is taken from its cgroup; its pin stays."""
    with opened(link_of(scene, hook)) as link:
        bpf_syscall.link_detach(link)
    yield


@lie(
    "link {hook} updated to a no-op",
    "{hook} of sleep runs program",
    {"hook": list(HOOK)},
    quick={"connect6", "sockops"},
)
def _(scene, hook):
    """BPF_LINK_UPDATE gives sleep's link {hook} a program of the same type that does nothing."""
    with opened(link_of(scene, hook)) as link, do_nothing(HOOK[hook].program) as program:
        update_link(link, program)
    yield


@lie("link sk_lookup of one server updated to a no-op", "sk_lookup of helloworld-v1 runs program")
def _(scene):
    """BPF_LINK_UPDATE gives helloworld-v1's sk_lookup link a program that does nothing."""
    with opened(link_of(scene, "sk_lookup", "helloworld-v1")) as link, do_nothing("lookup") as program:
        update_link(link, program)
    yield


@lie(
    "program {program} unpinned",
    "program {program} is not pinned",
    {"program": ["connect4", "sk_msg", "unread"]},
    quick={"sk_msg"},
)
def _(scene, program):
    """The pin of the program {program} is deleted."""
    pins(scene).prog(program).unlink()
    yield


@lie(
    "program {program} impersonated",
    "program {program}.* is not the one",
    {"program": list(PROGRAMS)},
    quick={"connect4", "getpeer6", "unread"},
)
def _(scene, program):
    """{program} is replaced, where it is attached and where it is pinned, by one of its name that does nothing."""
    own = pins(scene)
    with do_nothing(program, PREFIX + program) as fd:
        pin_instead(fd, own.prog(program))
        if program == "sk_msg":
            with own.open_map("peers") as peers:
                bpf_syscall.prog_attach(fd, peers, bpf_syscall.SK_MSG_VERDICT)
        for hook in (*HOOKS, LOOKUP):
            for pin in links_of(scene, hook.name) if hook.program == program else ():
                with opened(pin) as link:
                    update_link(link, fd)
    yield


@lie("sk_msg replaced on the sockhash", "sk_msg is not attached to peers")
def _(scene):
    """Another sk_msg program, which lets everything pass to TCP, takes the place of ours on `peers`."""
    with do_nothing("sk_msg") as program, pins(scene).open_map("peers") as peers:
        bpf_syscall.prog_attach(program, peers, bpf_syscall.SK_MSG_VERDICT)
    yield


@lie("sockhash emptied all the time", r"eBPF moved \d+ messages of at least|were not served", steps=(6,))
def _(scene):
    """Every socket is deleted from `peers` as soon as it is there, so nothing can be redirected."""
    with pins(scene).open_map("peers") as peers:
        size = abi.layouts()["end"].size

        def empty():
            for key in bpf_maps.keys(peers, size):
                with contextlib.suppress(OSError):
                    bpf_maps.delete(peers, key)

        with again_and_again(empty):
            yield


@lie(
    "pod map without {name}", "pod {name} is not in the pod map", {"name": ["sleep", "helloworld-v2"]}, quick={"sleep"}
)
def _(scene, name):
    """The entry of {name} is deleted from the pod map."""
    with pins(scene).open_map("pods") as pods:
        bpf_maps.delete(pods, u64(netns_cookie(pod(scene, name).netns)))
    yield


@lie("a server's address leads nowhere", r"the address 10\.244\.0\.11 does not lead to pod helloworld-v1", quick=False)
def _(scene):
    """helloworld-v1's address is deleted from pod_ips: its sidecar is dialled by no one."""
    with pins(scene).open_map("pod_ips") as ips:
        bpf_maps.delete(ips, u32(packed(pod(scene, "helloworld-v1").spec.ip)))
    yield


@lie("wrong listener registered", r"port 15999 of helloworld-v1 is served by .*, which is not the pod's")
def _(scene):
    """A socket that nobody accepts from is in `listeners` for helloworld-v1."""
    target = pod(scene, "helloworld-v1")

    def listen():
        return socket.create_server(("127.0.0.1", 15999))

    with netns.run_inside(target.netns, listen) as sock, pins(scene).open_map("listeners") as listeners:
        key = sockhash.listener_key(netns_cookie(target.netns), abi.constants()["LISTENERS"] - 1)
        bpf_maps.update(listeners, key, u64(sock.fileno()))
        yield
        bpf_maps.delete(listeners, key)


@lie("no listener registered", r"no 15006 listener registered for helloworld-v2", quick=False)
def _(scene):
    """helloworld-v2's entry is deleted from `listeners`."""
    with pins(scene).open_map("listeners") as listeners:
        for key in sockhash.listener_keys(listeners, netns_cookie(pod(scene, "helloworld-v2").netns)):
            bpf_maps.delete(listeners, key)
    yield


@lie("attached to another cgroup", r"connect4 of sleep is attached to cgroup \d+, not to cgroup")
def _(scene):
    """The whole dataplane is attached to the twins' cgroup instead of those of the pods."""
    lab = scene.lab
    plane = dataplane.Dataplane(lab.machine.bpffs / lab.machine.name)
    cgroup = lab.machine.cgroup / "twins"
    plane.attach([replace(each, cgroup=cgroup) for each in lab.dataplane.discovery.endpoints()])
    yield


@lie(
    "merlab's own connect4 on the cgroup above the pods", r"on the cgroup .*mesh connect4 runs merlab's own merlab_con"
)
def _(scene):
    """Our own connect4 is attached to the cgroup above all pods, too, as versions did that had one link for all."""
    with opened(pins(scene).prog("connect4")) as program:
        target = os.open(scene.lab.machine.mesh_cgroup, os.O_RDONLY)
        with held(target), held(bpf_syscall.link_create(program, target, CONNECT)):
            yield


@lie("a pod's link is another pod's", r"connect4 of sleep is attached to cgroup \d+, not to cgroup")
def _(scene):
    """In the place of sleep's link connect4 the one of helloworld-v1 is pinned."""
    with opened(link_of(scene, "connect4", "helloworld-v1")) as other:
        pin_instead(other, link_of(scene, "connect4"))
    yield


@lie("links of a pod that is none", "links are pinned for the pod another, which is not in this lab", quick=False)
def _(scene):
    """Links of helloworld-v1's are pinned a second time, as those of another pod."""
    (pins(scene).root / "links" / "another").mkdir()
    with opened(link_of(scene, "connect4", "helloworld-v1")) as link:
        bpf_syscall.pin(link, pins(scene).link("another", "connect4"))
    yield


@lie("interception switched off", "intercept is switched off", quick=False)
def _(scene):
    """The second switch in `config` is set to 0: new connections are left to the rules."""
    pins(scene).configure(intercept=0)
    yield


@lie("redirect switched off", "redirect is switched off", quick=False)
def _(scene):
    """The switch in `config` is set to 0."""
    pins(scene).configure(redirect=0)
    yield


@lie("redirect switched off meanwhile", r"eBPF moved \d+ messages of at least", quick=False)
def _(scene):
    """The switch in `config` is set to 0 when the matrix begins."""
    scene.at("matrix begins", lambda: pins(scene).configure(redirect=0))
    yield


@lie("counters frozen", "map counters is not the one that the programs use")
def _(scene):
    """A copy of the counters, which nobody counts in, is pinned in their place."""
    own = pins(scene)
    with own.open_map("counters") as ours, held(map_like(ours)) as copy:
        size = abi.layouts()["counters"].size
        for key in bpf_maps.keys(ours, 8):
            bpf_maps.update(copy, key, b"".join(bpf_maps.per_cpu(ours, key, size)))
        pin_instead(copy, own.map("counters"))
    yield


@lie("map {name} unpinned", "map {name} is not pinned", {"name": ["peers", "flows"]}, quick=False)
def _(scene, name):
    """The pin of the map {name} is deleted."""
    pins(scene).map(name).unlink()
    yield


@lie("a pod without counters", "pod sleep has no counters")
def _(scene):
    """sleep's counters are deleted: what is decided for it is counted nowhere."""
    with pins(scene).open_map("counters") as counters:
        bpf_maps.delete(counters, u64(netns_cookie(pod(scene, "sleep").netns)))
    yield


@lie("a link detached meanwhile", "the link connect4 of sleep changed during verification", quick=False)
def _(scene):
    """Sleep's link connect4 is detached after the last request of the last cell but one."""

    def strike():
        with opened(link_of(scene, "connect4")) as link:
            bpf_syscall.link_detach(link)

    scene.at("cell 6 ends", strike)
    yield


@lie("a link recreated meanwhile", "the link connect4 of sleep changed during verification")
def _(scene):
    """Sleep's link connect4 is made again between step 9 and the matrix: nothing intercepts for a moment."""

    def strike():
        link_of(scene, "connect4").unlink()
        lab = scene.lab
        dataplane.Dataplane(lab.machine.bpffs / lab.machine.name).attach(lab.dataplane.discovery.endpoints())

    scene.at("matrix begins", strike)
    yield


@lie("a second dataplane on the cgroups", r"on the cgroup .*mesh.* another program, merlab_\w+ \(id \d+\)")
def _(scene):
    """Another merlab has attached its own dataplane to the same cgroups, for the same pods."""
    lab = scene.lab
    other = dataplane.Dataplane(lab.machine.bpffs / "other")
    try:
        other.attach(lab.dataplane.discovery.endpoints())
        yield
    finally:
        other.detach(1.0)
        lab.dataplane.drain_idle_connections()


@lie("a foreign connect4 on sleep's own cgroup", r"on the cgroup .*mesh/sleep/app.* another program, stranger")
def _(scene):
    """A program that is not ours decides about sleep's connections, on a cgroup below the mesh's."""
    target = os.open(scene.lab.machine.mesh_cgroup / "sleep" / "app", os.O_RDONLY)
    with held(target), do_nothing("connect4", "stranger") as fd, held(bpf_syscall.link_create(fd, target, CONNECT)):
        yield


@lie(
    "a foreign sk_lookup in a server's namespace",
    r"in the network namespace of helloworld-v1 .*another program, stranger",
)
def _(scene):
    """A program that is not ours decides which socket gets helloworld-v1's connections."""
    target = os.open(pod(scene, "helloworld-v1").netns, os.O_RDONLY)
    with (
        held(target),
        do_nothing("lookup", "stranger") as fd,
        held(bpf_syscall.link_create(fd, target, bpf_syscall.SK_LOOKUP)),
    ):
        yield


@lie("a stranger comes meanwhile", "on the cgroup .*mesh.* another program, stranger")
def _(scene):
    """A program that is not ours is attached to the mesh's cgroup when the matrix begins."""
    with contextlib.ExitStack() as stack:

        def strike():
            target = stack.enter_context(held(os.open(scene.lab.machine.mesh_cgroup, os.O_RDONLY)))
            program = stack.enter_context(do_nothing("connect4", "stranger"))
            stack.enter_context(held(bpf_syscall.link_create(program, target, CONNECT)))

        scene.at("matrix begins", strike)
        yield
