"""Check in the kernel that one pod is attached as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, garbage, interception_lists, sockhash, strangers
from merbridge_lab.dataplane.endpoints import Endpoint, address, netns_cookie, pod_entry, pod_flags
from merbridge_lab.dataplane.pins import HOOKS, LOOKUP, Hook, Pins, opened, u32, u64
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from pathlib import Path


def missing(what: str, error: OSError) -> str:
    """Report that a pin is missing, or that it could not be read: the two differ."""
    if isinstance(error, FileNotFoundError):
        return f"{what} is not pinned"
    return str(unread(what, error))


def _link_problem(pin: Path, what: str, target: tuple[int, str], program: Path, attach_type: int) -> str | None:
    try:
        with opened(pin) as fd:
            link = bpf_syscall.link_info(fd)
    except OSError as error:
        return missing(f"link {what}", error)
    if link.target == 0:
        return f"{what} is attached to nothing: what it was attached to is gone, or it was detached"
    if link.target != target[0]:
        return f"{what} is attached to {_path_of(link)}, not to {target[1]}"
    if link.attach_type != attach_type:
        return f"{what} is attached as {strangers.CGROUP_TYPES.get(link.attach_type, link.attach_type)}"
    try:
        with opened(program) as fd:
            wanted = bpf_syscall.prog_info(fd).id
    except OSError as error:
        return missing(f"program {program.name}", error)
    return None if link.prog_id == wanted else f"{what} runs program {link.prog_id}, not merlab's, {wanted}"


def _path_of(link: bpf_syscall.Link) -> str:
    return f"network namespace {link.target}" if link.attach_type == bpf_syscall.SK_LOOKUP else f"cgroup {link.target}"


def hook_problem(pins: Pins, hook: Hook, endpoint: Endpoint) -> str | None:
    """Describe what is wrong with the link of a hook of an endpoint, or None."""
    what = f"{hook.name} of {endpoint.name}"
    place, kind = (endpoint.netns, "network namespace") if hook is LOOKUP else (endpoint.cgroup, "cgroup")
    try:
        number = place.stat().st_ino
    except FileNotFoundError:
        return f"{what} has nothing to be attached to: {place} does not exist"
    target = (number, f"{kind} {number} ({place})")
    return _link_problem(pins.link(endpoint.uid, hook.name), what, target, pins.prog(hook.program), hook.attach_type)


def links_problems(pins: Pins, endpoint: Endpoint) -> list[str]:
    """Describe what is wrong with the links of an endpoint."""
    if not endpoint.cgroup.is_dir():
        return [f"the cgroup {endpoint.cgroup} does not exist"]
    return [wrong for hook in (*HOOKS, LOOKUP) if (wrong := hook_problem(pins, hook, endpoint))]


def _counts_problems(pins: Pins, name: str, cookie: int) -> list[str]:
    with pins.open_map("counters") as fd:
        counted = bpf_maps.per_cpu(fd, u64(cookie), abi.layouts()["counters"].size) is not None
    found = [] if counted else [f"pod {name} has no counters"]
    if not garbage.has_count(pins, cookie):
        found.append(f"pod {name} is left to the rules: its connections, or those of all pods, have no count")
    return found


def entries_problems(pins: Pins, endpoint: Endpoint) -> list[str]:
    """Describe what is wrong with what the maps hold for an endpoint. Raises OSError."""
    try:
        cookie = netns_cookie(endpoint.netns)
    except LabError as gone:
        return [f"pod {endpoint.name}: {gone.what}"]
    found: list[str] = []
    entry, expected = pins.pod(cookie), abi.layouts()["pod"].unpack(pod_entry(endpoint))
    if entry is None:
        found.append(f"pod {endpoint.name} is not in the pod map")
    elif (entry["ip4"], entry["name"]) != (endpoint.ip4, endpoint.name):
        told = f"{entry['name']} with {address(entry['ip4'])}"
        found.append(f"pod {endpoint.name} is in the pod map as {told}, not {endpoint.ip}")
    elif (entry["id"], entry["namespace"]) != (endpoint.uid, endpoint.namespace):
        found.append(f"pod {endpoint.name} is in the pod map as another pod of that name, with the uid {entry['id']}")
    elif any(entry[each] != expected[each] for each in ("flags", *(("uid", "gid") if endpoint.sidecar else ()))):
        found.append(f"pod {endpoint.name} is in the pod map with another sidecar's user, or other legs")
    elif entry["cgroup"] != expected["cgroup"]:
        found.append(f"pod {endpoint.name} is in the pod map with another cgroup, {entry['cgroup']}")
    with pins.open_map("pod_ips") as fd:
        place = interception_lists.place(cookie, pod_flags(endpoint))
        if bpf_maps.lookup(fd, u32(endpoint.ip4), len(place)) != place:
            found.append(f"the address {endpoint.ip} does not lead to pod {endpoint.name}")
    found += interception_lists.problems(pins, endpoint.name, endpoint.interception, cookie)
    found += _counts_problems(pins, endpoint.name, cookie)
    try:
        if endpoint.sidecar is not None and (missing := sockhash.listener_problem(pins, endpoint, cookie)):
            found.append(missing)
    except LabError as error:
        found.append(str(unread(f"whether the listener registered for {endpoint.name} is its sidecar's", error)))
    return found
