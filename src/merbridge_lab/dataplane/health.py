"""Check in the kernel that the dataplane is attached as it should be; if not, describe what is wrong and where."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, garbage, interception_lists, map_entries, sockhash, strangers
from merbridge_lab.dataplane.endpoints import Endpoint, address, netns_cookie, pod_entry, pod_flags
from merbridge_lab.dataplane.pins import HOOKS, MAPS, PREFIX, PROGRAMS, Hook, Pins, opened, u32, u64
from merbridge_lab.dataplane.strangers import Around
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_NOTHING = Around()


@dataclass(frozen=True)
class ProgramInfo:
    """A loaded program: its name and id in the kernel, its type, and a description of where it is attached."""

    name: str
    type: str
    id: int
    attached_to: str


def _missing(what: str, error: OSError) -> str:
    """Report that a pin is missing, or that it could not be read: the two differ."""
    if isinstance(error, FileNotFoundError):
        return f"{what} is not pinned"
    return str(unread(what, error))


def _programs_problems(pins: Pins) -> tuple[list[str], dict[str, set[int]]]:
    """Describe what is wrong with the pinned programs; also return the ids of the maps that they use, by name."""
    found: list[str] = []
    used: dict[str, set[int]] = {}
    with opened(pins.map("stamp")) as fd:
        types = bpf_syscall.map_info(fd).btf_id
    tags = pins.tags()
    for name, kind in PROGRAMS.items():
        try:
            with opened(pins.prog(name)) as fd:
                program = bpf_syscall.prog_info(fd)
        except OSError as error:
            found.append(_missing(f"program {name}", error))
            continue
        if (program.name, program.type) != (PREFIX + name, kind):
            found.append(f"the pin of program {name} holds {program.name or 'another program'}")
        elif program.btf_id != types:
            found.append(f"program {name} (id {program.id}) is not the one that was loaded with the others")
        elif program.tag != tags.get(name):
            found.append(f"program {name} (id {program.id}) does not do what merlab's does")
        for number in program.map_ids:
            if (table := _map_name(number)) is not None:
                used.setdefault(table, set()).add(number)
    return found, used


def _map_name(number: int) -> str | None:
    try:
        fd = bpf_syscall.by_id("map", number)
    except FileNotFoundError:
        return None  # its program is gone, and the map with it
    try:
        return bpf_syscall.map_info(fd).name
    finally:
        os.close(fd)


def objects_problems(pins: Pins) -> list[str]:
    """Describe what is wrong with the pinned maps and programs; any problem means that they must be recreated.

    Raise OSError if the pins cannot be read: that is no reason to recreate anything.
    """
    made_by = pins.stamp()
    if made_by is None:
        return [f"the pins below {pins.root} are incomplete: there is no valid stamp"]
    if made_by != abi.stamp():
        return [f"made by merlab {made_by}, not by this one, {abi.stamp()}"]
    found, used = _programs_problems(pins)
    for name in MAPS:
        try:
            with opened(pins.map(name)) as fd:
                table, is_frozen = bpf_syscall.map_info(fd), bpf_syscall.is_frozen(fd)
        except OSError as error:
            found.append(_missing(f"map {name}", error))
            continue
        users = used.get(table.name, set())
        if table.name != (PREFIX + name)[:15]:
            found.append(f"the pin of map {name} holds {table.name or 'another map'}")
        elif name != "stamp" and table.id not in users:
            found.append(f"map {name} is not the one that the programs use")
        elif others := sorted(users - {table.id}):
            found.append(f"some programs use another map {name} (id {others[0]}) than the pinned one (id {table.id})")
        elif is_frozen:
            found.append(f"map {name} is frozen (BPF_MAP_FREEZE): nobody can change it any more, not even merlab")
    return found


def _link_problem(pin: Path, what: str, target: tuple[int, str], program: Path, attach_type: int) -> str | None:
    try:
        with opened(pin) as fd:
            link = bpf_syscall.link_info(fd)
    except OSError as error:
        return _missing(f"link {what}", error)
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
        return _missing(f"program {program.name}", error)
    return None if link.prog_id == wanted else f"{what} runs program {link.prog_id}, not merlab's, {wanted}"


def _path_of(link: bpf_syscall.Link) -> str:
    return f"network namespace {link.target}" if link.attach_type == bpf_syscall.SK_LOOKUP else f"cgroup {link.target}"


def hook_problem(pins: Pins, hook: Hook, cgroup: Path) -> str | None:
    """Describe what is wrong with one link on the cgroup, or None."""
    target = (cgroup.stat().st_ino, f"cgroup {cgroup.stat().st_ino} ({cgroup})")
    return _link_problem(pins.link(hook.name), hook.name, target, pins.prog(hook.program), hook.attach_type)


def lookup_problem(pins: Pins, endpoint: Endpoint) -> str | None:
    """Describe what is wrong with the sk_lookup link of an endpoint, or None."""
    target = (endpoint.netns.stat().st_ino, f"network namespace {endpoint.netns.stat().st_ino} ({endpoint.netns})")
    what = f"sk_lookup of {endpoint.name}"
    return _link_problem(pins.lookup_link(endpoint.name), what, target, pins.prog("lookup"), bpf_syscall.SK_LOOKUP)


def _counts_problems(pins: Pins, name: str, cookie: int) -> list[str]:
    with pins.open_map("counters") as fd:
        counted = bpf_maps.per_cpu(fd, u64(cookie), abi.layouts()["counters"].size) is not None
    found = [] if counted else [f"pod {name} has no counters"]
    if not garbage.has_count(pins, cookie):
        found.append(f"pod {name} is left to the rules: its connections, or those of all pods, have no count")
    return found


def _endpoint_problems(pins: Pins, endpoint: Endpoint) -> list[str]:
    try:
        cookie = netns_cookie(endpoint.netns)
    except LabError as gone:
        return [f"pod {endpoint.name}: {gone.what}"]
    found: list[str] = []
    entry, expected = pins.pods().get(cookie), abi.layouts()["pod"].unpack(pod_entry(endpoint))
    if entry is None:
        found.append(f"pod {endpoint.name} is not in the pod map")
    elif (entry["ip4"], entry["name"]) != (endpoint.ip4, endpoint.name):
        told = f"{entry['name']} with {address(entry['ip4'])}"
        found.append(f"pod {endpoint.name} is in the pod map as {told}, not {endpoint.ip}")
    elif any(entry[each] != expected[each] for each in ("flags", *(("uid", "gid") if endpoint.sidecar else ()))):
        found.append(f"pod {endpoint.name} is in the pod map with another sidecar's user, or other legs")
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
    if wrong := lookup_problem(pins, endpoint):
        found.append(wrong)
    return found


def problems(pins: Pins, cgroup: Path, endpoints: Sequence[Endpoint], around: Around = _NOTHING) -> list[str]:
    """List every way in which the dataplane is not attached as it should be, and what of it could not be read."""
    try:
        return _problems(pins, cgroup, endpoints, around)
    except OSError as error:
        return [str(unread(f"the dataplane below {pins.root}", error))]


def _problems(pins: Pins, cgroup: Path, endpoints: Sequence[Endpoint], around: Around) -> list[str]:
    if not pins.any:
        return [f"nothing is attached: {pins.root} has no pins"]
    found = objects_problems(pins)
    if pins.stamp() not in (None, abi.stamp()):
        return found  # we cannot read another version's layouts
    found += [
        f"another version's programs are still there, in {pins.root / rest}: an upgrade did not finish"
        for rest in ("old", "next")
        if (pins.root / rest).exists()
    ]
    if not cgroup.is_dir():
        return [*found, f"the cgroup {cgroup} does not exist"]
    found += [wrong for hook in HOOKS if (wrong := hook_problem(pins, hook, cgroup))]
    try:
        found += sockhash.programs_problems(pins)
        if not pins.config()["redirect"]:
            found.append("redirect is switched off")
        for endpoint in endpoints:
            found += _endpoint_problems(pins, endpoint)
        if not found:  # each pod is there, with its namespace
            namespaces = {netns_cookie(endpoint.netns): endpoint.netns for endpoint in endpoints}
            found += _too_many(pins, endpoints, namespaces.keys()) or sockhash.members_problems(pins, namespaces)
            found += map_entries.problems(pins, namespaces)
    except OSError as failed:
        if not found:
            raise
        if not isinstance(failed, FileNotFoundError):  # what is missing was already reported
            found.append(str(unread(f"the pins below {pins.root}", failed)))
    # What is wrong with our own programs explains a foreign program better than the reverse.
    return found or strangers.problems(ours(pins), cgroup, _namespaces(endpoints), around)


def _too_many(pins: Pins, endpoints: Sequence[Endpoint], cookies: Collection[int]) -> list[str]:
    """List what the maps hold besides `endpoints`, whose network namespaces have these cookies.

    Raises OSError.
    """
    names, addresses = {endpoint.name for endpoint in endpoints}, {u32(endpoint.ip4) for endpoint in endpoints}
    found = []
    for cookie, entry in pins.pods().items():
        if entry["name"] not in names:
            found.append(f"pod {entry['name']} is in the pod map, but not in this lab")
        elif cookie not in cookies:
            found.append(
                f"the pod map holds {entry['name']} a second time, for the network namespace {cookie}, which is of no"
                " pod"
            )
    with pins.open_map("pod_ips") as ips:
        strange = [key for key in bpf_maps.keys(ips, 4) if key not in addresses]
    found += interception_lists.strangers(pins, cookies)
    return found + [f"the address {socket.inet_ntoa(key)} is in the pod map, but no pod has it" for key in strange]


def _namespaces(endpoints: Sequence[Endpoint]) -> dict[str, Path]:
    return {endpoint.name: endpoint.netns for endpoint in endpoints}


def ours(pins: Pins) -> frozenset[int]:
    """Return the ids of the programs that the pinned links run. Raises OSError."""
    return frozenset(link.prog_id for _, link in _links(pins))


def listed(pins: Pins, cgroup: Path, endpoints: Sequence[Endpoint], around: Around = _NOTHING) -> list[str]:
    """Describe, one sentence each, which programs of others run where they may. Raises OSError."""
    return strangers.listed(ours(pins), cgroup, _namespaces(endpoints), around)


def links(pins: Pins) -> dict[str, bpf_syscall.Link]:
    """Return every pinned link by its name."""
    return {pin if pin in {hook.name for hook in HOOKS} else f"sk_lookup/{pin}": link for pin, link in _links(pins)}


def _links(pins: Pins) -> list[tuple[str, bpf_syscall.Link]]:
    found: list[tuple[str, bpf_syscall.Link]] = []
    for pin in [*(pins.link(hook.name) for hook in HOOKS), *pins.lookup_links()]:
        with contextlib.suppress(FileNotFoundError), opened(pin) as fd:
            found.append((pin.name, bpf_syscall.link_info(fd)))
    return found


def programs(pins: Pins) -> list[ProgramInfo]:
    """List the pinned programs with where they are attached. Raises OSError."""
    links = _links(pins)
    found: list[ProgramInfo] = []
    for name in PROGRAMS:
        with contextlib.suppress(FileNotFoundError), opened(pins.prog(name)) as fd:
            info = bpf_syscall.prog_info(fd)
            places = [
                f"netns of {pin.replace(':', '.')}" if name == "lookup" else _path_of(link)
                for pin, link in links
                if link.prog_id == info.id and link.target
            ]
            if name == "sk_msg":
                places += _place_of_sk_msg(pins, fd)
            kind = bpf_syscall.PROG_TYPES.get(info.type, str(info.type))
            found.append(ProgramInfo(info.name, kind, info.id, ", ".join(places) or "nothing"))
    return found


def _place_of_sk_msg(pins: Pins, program: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError), pins.open_map("peers") as peers:
        told = sockhash.redirects(program, peers)
        if told is None:
            return [f"map peers, as its counters show (not read: {sockhash.NOT_TOLD})"]
        return ["map peers"] if told else []
    return []
