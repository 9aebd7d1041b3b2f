"""Check in the kernel that the dataplane is attached as it should be; if not, describe what is wrong and where."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, interception_lists, map_entries, program_list, sockhash, strangers
from merbridge_lab.dataplane.endpoint_health import entries_problems, links_problems, missing
from merbridge_lab.dataplane.endpoints import Endpoint, netns_cookie
from merbridge_lab.dataplane.pins import MAPS, PREFIX, PROGRAMS, Pins, opened, u32
from merbridge_lab.dataplane.strangers import Around
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_NOTHING = Around()


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
            found.append(missing(f"program {name}", error))
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
            found.append(missing(f"map {name}", error))
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


def problems(pins: Pins, endpoints: Sequence[Endpoint], around: Around = _NOTHING) -> list[str]:
    """List every way in which the dataplane is not attached as it should be, and what of it could not be read."""
    try:
        return _problems(pins, endpoints, around)
    except OSError as error:
        return [str(unread(f"the dataplane below {pins.root}", error))]


def _problems(pins: Pins, endpoints: Sequence[Endpoint], around: Around) -> list[str]:
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
    for endpoint in endpoints:
        found += links_problems(pins, endpoint)
    try:
        found += sockhash.programs_problems(pins)
        config = pins.config()
        found += [f"{switch} is switched off" for switch in ("redirect", "intercept") if not config[switch]]
        for endpoint in endpoints:
            found += entries_problems(pins, endpoint)
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
    return found or strangers.problems(program_list.ours(pins), _cgroups(endpoints), _namespaces(endpoints), around)


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
    uids = {endpoint.uid for endpoint in endpoints}
    found += [f"links are pinned for the pod {uid}, which is not in this lab" for uid in pins.uids() if uid not in uids]
    return found + [f"the address {socket.inet_ntoa(key)} is in the pod map, but no pod has it" for key in strange]


def _namespaces(endpoints: Sequence[Endpoint]) -> dict[str, Path]:
    return {endpoint.name: endpoint.netns for endpoint in endpoints}


def _cgroups(endpoints: Sequence[Endpoint]) -> list[Path]:
    return [endpoint.cgroup for endpoint in endpoints]


def listed(pins: Pins, endpoints: Sequence[Endpoint], around: Around = _NOTHING) -> list[str]:
    """Describe, one sentence each, which programs of others run where they may. Raises OSError."""
    return strangers.listed(program_list.ours(pins), _cgroups(endpoints), _namespaces(endpoints), around)
