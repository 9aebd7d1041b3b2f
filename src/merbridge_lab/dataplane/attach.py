"""Load the programs once, attach each pod: create what is missing, recreate what is not in order, leave the rest."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall, kernel_features
from merbridge_lab.adapters.files import make_folder
from merbridge_lab.dataplane import (
    abi,
    artefact_loader,
    endpoint_health,
    garbage,
    health,
    interception_lists,
    kernel_facts,
    learning,
    sockhash,
    upgrade,
)
from merbridge_lab.dataplane import recompiled as source
from merbridge_lab.dataplane.detach import detach
from merbridge_lab.dataplane.detach_pod import forget
from merbridge_lab.dataplane.endpoints import netns_cookie, pod_entry, pod_flags
from merbridge_lab.dataplane.inbound_listener import inbound_listeners
from merbridge_lab.dataplane.pins import HOOKS, LOOKUP, MAPS, PREFIX, PROGRAMS, Hook, Pins, opened, u32, u64, unlink
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.loaded import Loaded
    from merbridge_lab.dataplane.recompiled import Recompiled

#: How long live connections of an older dataplane get to read what is in flight to them, in seconds.
_REPLACE = 3.0
#: What a directory on a bpffs and the map `pods` can hold.
_UID = re.compile(r"[\w-]{1,63}", re.ASCII)


def load(pins: Pins) -> None:
    """Load and pin every program and map; nothing is attached yet. If that fails, no pin is left."""
    try:
        make_folder(pins.root, mode=0o700)  # whoever opens a map can change it
        for folder in ("links", "maps", "progs"):
            make_folder(pins.root / folder, parents=True)
        loaded = artefact_loader.load()
        try:
            _pin(pins, loaded)
        finally:
            loaded.close()
    except BaseException:
        pins.clear()  # the half of it would stay in the kernel, and look like a dataplane that is switched off
        raise


def _pin(pins: Pins, loaded: Loaded) -> None:
    for name in PROGRAMS:
        bpf_syscall.pin(loaded.programs[PREFIX + name], pins.prog(name))
    told = kernel_facts.told()
    facts = abi.layouts()["kernel"].pack(**told)
    bpf_maps.update(loaded.maps["kernel"], bytes(4), facts)
    on = abi.layouts()["config"].pack(redirect=1, intercept=1)
    bpf_maps.update(loaded.maps["config"], bytes(4), on)
    if not told.get("woken"):
        learning.learn(loaded.learner(), loaded.maps["kernel"])
    for name in MAPS:  # the stamp comes last
        if name == "stamp":
            tags = " ".join(f"{each}={bpf_syscall.prog_info(loaded.programs[PREFIX + each]).tag}" for each in PROGRAMS)
            stamp = abi.layouts()["stamp"].pack(version=abi.stamp().encode(), programs=tags.encode())
            bpf_maps.update(loaded.maps[name], bytes(4), stamp)
        bpf_syscall.pin(loaded.maps[name], pins.map(name))


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


def _attach(pins: Pins, endpoint: Endpoint, hook: Hook) -> None:
    """Attach a hook of a pod, unless it is in order; take over the link of another version, if there is one."""
    pin, target = pins.link(endpoint.uid, hook.name), endpoint.cgroup
    if hook is LOOKUP:
        target = endpoint.netns
    if hook.name in upgrade.INHERITED:
        upgrade.inherit(pin, upgrade.link_before(pins, endpoint, hook), pins.prog(hook.program))
    if endpoint_health.hook_problem(pins, hook, endpoint) is None:
        return
    unlink(pin)
    with opened(pins.prog(hook.program)) as program:
        _link(program, target, hook.attach_type, pin, f"{hook.name} of {endpoint.name}")


def _register_endpoint(pins: Pins, endpoint: Endpoint, cookie: int) -> None:
    """Add an endpoint to the maps; existing counters continue."""
    layouts = abi.layouts()
    with pins.open_map("counters") as counters:
        if bpf_maps.per_cpu(counters, u64(cookie), layouts["counters"].size) is None:
            bpf_maps.update(counters, u64(cookie), bytes(layouts["counters"].size * bpf_maps.possible_cpus()))
    with pins.open_map("live") as live:
        if bpf_maps.lookup(live, u64(cookie), 8) is None:
            bpf_maps.update(live, u64(cookie), u64(0))
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


def _require_programs(pins: Pins, endpoint: Endpoint) -> None:
    """Raise LabError if this version's programs and maps are not there."""
    try:
        found = pins.stamp()
    except OSError as error:
        raise LabError(
            str(unread(f"the dataplane below {pins.root}", error)), hint="merlab doctor", id="reading.failed"
        ) from error
    if found != abi.stamp():
        raise LabError(
            f"{endpoint.name} cannot be served: the programs of merlab {abi.stamp()} are not loaded",
            hint="merlab up",
            id="dataplane.incomplete",
        )


def _require_uid(endpoint: Endpoint) -> None:
    """Raise LabError if nothing can be kept by the uid of this pod."""
    if not _UID.fullmatch(endpoint.uid):
        raise LabError(
            f"{endpoint.name} cannot be served: {endpoint.uid!r} is no uid of a pod",
            hint="merlab status",
            id="dataplane.failed",
        )


def _free_identity(pins: Pins, endpoint: Endpoint, cookie: int) -> None:
    """Detach what has the uid, the address or the namespace of this pod and is another one: it is gone, or will be."""
    own = (endpoint.uid, cookie)
    for other, entry in pins.pods().items():
        if (entry["id"], other) != own and (entry["id"] in own or other in own or entry["ip4"] == endpoint.ip4):
            forget(pins, entry["id"])


def serve(pins: Pins, endpoint: Endpoint) -> None:
    """Attach one pod, or repair what is wrong with it; see Reconciler.serve."""
    _require_programs(pins, endpoint)
    try:
        cookie = netns_cookie(endpoint.netns)
        _require_uid(endpoint)
        _free_identity(pins, endpoint, cookie)
        make_folder(pins.links_of(endpoint.uid))
        early = [hook for hook in HOOKS if not hook.name.startswith("connect")]
        for hook in early:
            _attach(pins, endpoint, hook)
        interception_lists.write(pins, cookie, endpoint.interception)
        _register_endpoint(pins, endpoint, cookie)
        _listener(pins, endpoint, cookie)
        for hook in (LOOKUP, *(each for each in HOOKS if each not in early)):
            _attach(pins, endpoint, hook)
    except BaseException as failed:
        with contextlib.suppress(OSError):  # what cannot be removed now is removed by the next forget
            forget(pins, endpoint.uid)
        if isinstance(failed, OSError):
            raise LabError(
                f"the dataplane cannot be attached to {endpoint.name}: {failed.strerror or failed}",
                hint="merlab down",
                id="dataplane.failed",
            ) from failed
        raise


def install(pins: Pins, recompiled: Recompiled | None = None) -> None:
    """Load programs and maps, or adopt those that are there; see Reconciler.install."""
    try:
        if upgrade.is_due(pins):
            upgrade.begin(pins, load)
        elif health.objects_problems(pins) or source.problems(pins, recompiled, needed=False):
            detach(pins, _REPLACE)
            load(pins)
        with opened(pins.prog("sk_msg")) as program, pins.open_map("peers") as peers:
            if not sockhash.redirects(program, peers):
                bpf_syscall.prog_attach(program, peers, bpf_syscall.SK_MSG_VERDICT)
        with pins.open_map("live") as live:
            if bpf_maps.lookup(live, u64(garbage.ALL), 8) is None:
                bpf_maps.update(live, u64(garbage.ALL), u64(0))
        Pins(pins.root / "next").clear()  # of one that was killed during a load
    except OSError as failed:
        raise LabError(
            f"the dataplane cannot be loaded: {failed.strerror or failed}",
            hint="merlab down",
            id="dataplane.failed",
        ) from failed
