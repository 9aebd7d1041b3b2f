"""Attach the dataplane: create what is missing, recreate what is not in order, leave the rest alone."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall, kernel_features
from merbridge_lab.adapters.files import make_folder
from merbridge_lab.dataplane import (
    abi,
    artefact_loader,
    garbage,
    health,
    interception_lists,
    kernel_facts,
    learning,
    printk_event,
    sockhash,
    upgrade,
)
from merbridge_lab.dataplane import recompiled as source
from merbridge_lab.dataplane.detach import UNREAD, detach
from merbridge_lab.dataplane.endpoints import netns_cookie, pod_entry, pod_flags
from merbridge_lab.dataplane.inbound_listener import inbound_listeners
from merbridge_lab.dataplane.pins import HOOKS, MAPS, PREFIX, PROGRAMS, Hook, Pins, opened, u32, u64, unlink
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.recompiled import Recompiled

#: How long live connections of an older dataplane get to read what is in flight to them, in seconds.
_REPLACE = 3.0


def load(pins: Pins, tracefs: Path | None) -> None:
    """Load and pin every program and map; nothing is attached yet."""
    for folder in ("links/sk_lookup", "maps", "progs"):
        make_folder(pins.root / folder, parents=True)
    with printk_event.kept(tracefs):
        loaded = artefact_loader.load()
        try:
            for name in PROGRAMS:
                bpf_syscall.pin(loaded.programs[PREFIX + name], pins.prog(name))
            told = kernel_facts.told()
            facts = abi.layouts()["kernel"].pack(**told)
            bpf_maps.update(loaded.maps["kernel"], bytes(4), facts)
            if not told.get("woken"):
                learning.learn(loaded.learner(), loaded.maps["kernel"])
            for name in MAPS:  # the stamp comes last
                if name == "stamp":
                    tags = " ".join(
                        f"{each}={bpf_syscall.prog_info(loaded.programs[PREFIX + each]).tag}" for each in PROGRAMS
                    )
                    stamp = abi.layouts()["stamp"].pack(version=abi.stamp().encode(), programs=tags.encode())
                    bpf_maps.update(loaded.maps[name], bytes(4), stamp)
                bpf_syscall.pin(loaded.maps[name], pins.map(name))
        finally:
            loaded.close()


def _blocked(cgroup: Path, attach_type: int) -> Path | None:
    """Return the nearest ancestor with a program that may be why the kernel refuses another one below it."""
    for ancestor in cgroup.parents:
        try:
            fd = os.open(ancestor, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            if bpf_syscall.attached_progs(fd, attach_type):
                return ancestor
        except OSError:
            return None  # not a cgroup any more
        finally:
            os.close(fd)
    return None


def _link(program: int, target: Path, attach_type: int, pin: Path, what: str) -> None:
    """Attach and pin at once: a crash in between leaves nothing, because the link goes with its last descriptor."""
    where = os.open(target, os.O_RDONLY)
    try:
        link = bpf_syscall.link_create(program, where, attach_type)
    except OSError as refused:
        if refused.errno == errno.EPERM and (ancestor := _blocked(target, attach_type)):
            raise LabError(
                f"{what} cannot be attached to {target}: {ancestor} holds a program that allows no other below it",
                hint="bpftool cgroup tree",
                id="program.foreign",
            ) from refused
        if refused.errno == errno.EINVAL:
            raise kernel_features.cannot("bpf.links", str(refused), named=f"links for {what}") from refused
        raise
    finally:
        os.close(where)
    try:
        bpf_syscall.pin(link, pin)
    finally:
        os.close(link)


def _hooks(pins: Pins, cgroup: Path, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        if hook.name.startswith("connect"):
            upgrade.inherit(pins.link(hook.name), upgrade.old(pins).link(hook.name), pins.prog(hook.program))
        if health.hook_problem(pins, hook, cgroup) is None:
            continue
        unlink(pins.link(hook.name))
        with opened(pins.prog(hook.program)) as program:
            _link(program, cgroup, hook.attach_type, pins.link(hook.name), hook.name)


def _register_endpoint(pins: Pins, endpoint: Endpoint, cookie: int) -> None:
    """Add an endpoint to the maps; existing counters continue."""
    layouts = abi.layouts()
    with pins.open_map("counters") as counters:
        if bpf_maps.per_cpu(counters, u64(cookie), layouts["counters"].size) is None:
            bpf_maps.update(counters, u64(cookie), bytes(layouts["counters"].size * bpf_maps.possible_cpus()))
    with pins.open_map("live") as live:
        for each in (garbage.ALL, cookie):
            if bpf_maps.lookup(live, u64(each), 8) is None:
                bpf_maps.update(live, u64(each), u64(0))
    with pins.open_map("pods") as pods:
        known = bpf_maps.lookup(pods, u64(cookie), layouts["pod"].size)
        bpf_maps.update(pods, u64(cookie), _with_sidecar(pod_entry(endpoint), known, endpoint))
    with pins.open_map("pod_ips") as ips:
        bpf_maps.update(ips, u32(endpoint.ip4), interception_lists.place(cookie, pod_flags(endpoint)))


def _with_sidecar(entry: bytes, known: bytes | None, endpoint: Endpoint) -> bytes:
    """Return `entry` with the user that is known from before, if the sidecar does not run now."""
    if endpoint.sidecar or not known:
        return entry
    layout = abi.layouts()["pod"]
    user = {name: layout.unpack(known)[name] for name in ("uid", "gid")}
    return layout.pack(**(layout.unpack(entry) | user))


def _listener(pins: Pins, endpoint: Endpoint, cookie: int) -> None:
    """Register a sidecar that listened before there was a program to see it."""
    if endpoint.sidecar is None or sockhash.listener_problem(pins, endpoint, cookie) is None:
        return
    with pins.open_map("listeners") as listeners:
        for key in sockhash.listener_keys(listeners, cookie):
            bpf_maps.delete(listeners, key)
        for slot, (sock, _) in enumerate(inbound_listeners(endpoint.sidecar.pid, cookie)):
            bpf_maps.update(listeners, sockhash.listener_key(cookie, slot), u64(sock))


def _attach_sk_lookup(pins: Pins, endpoint: Endpoint) -> None:
    pin = pins.lookup_link(endpoint.name)
    upgrade.inherit(pin, upgrade.old(pins).lookup_link(endpoint.name), pins.prog("lookup"))
    if health.lookup_problem(pins, endpoint) is None:
        return
    unlink(pin)
    with opened(pins.prog("lookup")) as program:
        _link(program, endpoint.netns, bpf_syscall.SK_LOOKUP, pin, f"sk_lookup of {endpoint.name}")


def _unregister(pins: Pins, cookies: set[int], endpoints: Sequence[Endpoint]) -> None:
    """Remove the endpoints that are no longer served."""
    ours = {pins.lookup_link(endpoint.name) for endpoint in endpoints}
    for pin in pins.lookup_links():
        if pin not in ours:
            unlink(pin)
    ips = {u32(endpoint.ip4) for endpoint in endpoints}
    with pins.open_map("pod_ips") as table:
        for key in bpf_maps.keys(table, 4):
            if key not in ips:
                bpf_maps.delete(table, key)
    with pins.open_map("listeners") as table:
        for key in sockhash.listener_keys(table):
            if abi.layouts()["listener"].unpack(key)["netns"] not in cookies:
                with contextlib.suppress(OSError):
                    bpf_maps.delete(table, key)
    for cookie in pins.pods():
        if cookie in cookies:
            continue
        for name in ("pods", "counters", "live"):
            with pins.open_map(name) as table, contextlib.suppress(OSError):
                bpf_maps.delete(table, u64(cookie))
        _forget_pairs(pins, cookie)


def _forget_pairs(pins: Pins, cookie: int) -> None:
    """Remove the connections of a pod that is gone, or no longer served: what they still send goes by TCP.

    If the pod is gone, its sockets may take minutes to end, because nobody acknowledges their last bytes. Somebody may
    also hold them, and then they are no pod's. So they leave `peers` as well, if nothing that was redirected to them is
    left to read.
    """
    gone: list[tuple[bytes, tuple[int, int]]] = []
    with pins.open_map("pairs") as pairs, opened(pins.prog("forget")) as forget:
        for key, pair in garbage.connections(pairs).items():
            if cookie in pair["netns"]:
                garbage.remove(forget, key, pair)
                gone += [
                    (sockhash.end_key(key, side), (pair["sk"][side], pair["cookie"][side]))
                    for side in (0, 1)
                    if pair["netns"][side] == cookie
                ]
    with pins.open_map("peers") as peers, opened(pins.prog("unread")) as unread:
        for end, socket in gone:
            if not bpf_syscall.test_run(unread, socket) & UNREAD:
                with contextlib.suppress(OSError):  # closed meanwhile, or never was in it
                    bpf_maps.delete(peers, end)


def _require_own_addresses(endpoints: Sequence[Endpoint]) -> None:
    """Raise LabError if two endpoints have one address: a connection to it could reach the other one's sidecar."""
    seen: dict[int, str] = {}
    for endpoint in endpoints:
        if (other := seen.setdefault(endpoint.ip4, endpoint.name)) != endpoint.name:
            raise LabError(
                f"{other} and {endpoint.name} have the same address, {endpoint.ip}",
                hint="merlab status",
                id="dataplane.failed",
            )


def attach(
    pins: Pins, tracefs: Path | None, cgroup: Path, endpoints: Sequence[Endpoint], recompiled: Recompiled | None = None
) -> None:
    """Ensure that exactly `endpoints` are served, below `cgroup`; see Dataplane.attach."""
    cookies = {endpoint.name: netns_cookie(endpoint.netns) for endpoint in endpoints}
    _require_own_addresses(endpoints)
    printk_event.put_back(tracefs)
    try:
        if upgrade.is_due(pins):
            upgrade.begin(pins, lambda coming: load(coming, tracefs))
        elif health.objects_problems(pins) or source.problems(pins, recompiled, needed=False):
            detach(pins, _REPLACE)
            load(pins, tracefs)
        with opened(pins.prog("sk_msg")) as program, pins.open_map("peers") as peers:
            if not sockhash.redirects(program, peers):
                bpf_syscall.prog_attach(program, peers, bpf_syscall.SK_MSG_VERDICT)
        pins.configure(redirect=1)
        _unregister(pins, set(cookies.values()), endpoints)
        early = [hook for hook in HOOKS if not hook.name.startswith("connect")]
        _hooks(pins, cgroup, early)
        interception_lists.write(pins, ((cookies[each.name], each.interception) for each in endpoints))
        for endpoint in endpoints:
            _register_endpoint(pins, endpoint, cookies[endpoint.name])
            _listener(pins, endpoint, cookies[endpoint.name])
            _attach_sk_lookup(pins, endpoint)
        _hooks(pins, cgroup, [hook for hook in HOOKS if hook not in early])
        garbage.collect(pins, {cookies[endpoint.name]: endpoint.netns for endpoint in endpoints})
        upgrade.finish(pins)
        Pins(pins.root / "next").clear()  # of one that was killed during a load
    except OSError as failed:
        raise LabError(
            f"the dataplane cannot be attached to {cgroup}: {failed.strerror or failed}",
            hint="merlab down",
            id="dataplane.failed",
        ) from failed
