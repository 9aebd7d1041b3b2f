"""Look at the kernel: is the dataplane attached as it should be, and if not, what is wrong where."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import HOOKS, MAPS, PREFIX, PROGRAMS, Hook, Pins, number, opened, u32, u64
from merbridge_lab.dataplane.pods import Pod, address, inbound_cookies, netns_cookie
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence


HOOK_NAMES = frozenset(hook.name for hook in HOOKS)


@dataclass(frozen=True)
class ProgramInfo:
    """A loaded program: its name and id in the kernel, its type, and where it is attached, in words."""

    name: str
    type: str
    id: int
    attached_to: str


def _programs_problems(pins: Pins) -> tuple[list[str], set[int]]:
    """Say what is wrong with the pinned programs, and give the ids of the maps that they use."""
    found: list[str] = []
    used: set[int] = set()
    with opened(pins.map("stamp")) as fd:
        types = bpf.map_info(fd).btf_id
    for name, kind in PROGRAMS.items():
        try:
            with opened(pins.prog(name)) as fd:
                program = bpf.prog_info(fd)
        except OSError:
            found.append(f"program {name} is not pinned")
            continue
        if (program.name, program.type) != (PREFIX + name, kind):
            found.append(f"the pin of program {name} holds {program.name or 'another program'}")
        elif program.btf_id != types:
            found.append(f"program {name} (id {program.id}) is not the one that was loaded with the others")
        used.update(program.map_ids)
    return found, used


def objects_problems(pins: Pins) -> list[str]:
    """Say what is wrong with the pinned maps and programs; any of it means that they must be made anew."""
    made_by = pins.stamp()
    if made_by is None:
        return [f"the pins below {pins.root} are not whole: there is no valid stamp"]
    if made_by != abi.stamp():
        return [f"made by merlab {made_by}, not by this one, {abi.stamp()}"]
    found, used = _programs_problems(pins)
    for name in MAPS:
        try:
            with opened(pins.map(name)) as fd:
                table = bpf.map_info(fd)
        except OSError:
            found.append(f"map {name} is not pinned")
            continue
        if table.name != (PREFIX + name)[:15]:
            found.append(f"the pin of map {name} holds {table.name or 'another map'}")
        elif name != "stamp" and table.id not in used:
            found.append(f"map {name} is not the one that the programs use")
    return found


def _link_problem(pin: Path, what: str, target: tuple[int, str], program: Path) -> str | None:
    try:
        with opened(pin) as fd:
            link = bpf.link_info(fd)
    except OSError:
        return f"link {what} is not pinned"
    if link.target == 0:
        return f"{what} is attached to nothing: what it was attached to is gone, or it was detached"
    if link.target != target[0]:
        return f"{what} is attached to {_path_of(link)}, not to {target[1]}"
    try:
        with opened(program) as fd:
            wanted = bpf.prog_info(fd).id
    except OSError:
        return f"program {program.name} is not pinned"
    return None if link.prog_id == wanted else f"{what} runs program {link.prog_id}, not ours, {wanted}"


def _path_of(link: bpf.Link) -> str:
    return f"network namespace {link.target}" if link.attach_type == bpf.SK_LOOKUP else f"cgroup {link.target}"


def hook_problem(pins: Pins, hook: Hook, cgroup: Path) -> str | None:
    """Say what is wrong with one link on the cgroup, or None."""
    target = (cgroup.stat().st_ino, f"cgroup {cgroup.stat().st_ino} ({cgroup})")
    return _link_problem(pins.link(hook.name), hook.name, target, pins.prog(hook.program))


def lookup_problem(pins: Pins, pod: Pod) -> str | None:
    """Say what is wrong with a pod's sk_lookup link, or None."""
    target = (pod.netns.stat().st_ino, f"network namespace {pod.netns.stat().st_ino} ({pod.netns})")
    what = f"sk_lookup of {pod.name}"
    return _link_problem(pins.lookup_link(pod.name), what, target, pins.prog("lookup"))


def listener_problem(pins: Pins, pod: Pod, cookie: int) -> str | None:
    """Say whether a pod's sidecar is missing from the listeners, or something else is in its place."""
    port = abi.constants()["PORT_INBOUND"]
    registered = None
    with contextlib.suppress(OSError), pins.open_map("listeners") as fd:
        registered = bpf.lookup(fd, u64(cookie), 8)  # of a sockhash, this gives the socket's cookie
    if registered is None:
        return f"no {port} listener registered for {pod.name}"
    if pod.sidecar_pid is not None:
        own = inbound_cookies(pod.sidecar_pid, cookie)
        if own and number(registered) not in own:
            return f"the {port} listener registered for {pod.name} is not its sidecar's"
    return None


def redirects(program: int, peers: int) -> bool:
    """Is this sk_msg program the one on `peers`? Before Linux 5.18 nobody can tell, and the answer is no."""
    with contextlib.suppress(OSError):
        return bpf.prog_info(program).id in bpf.attached_progs(peers, bpf.SK_MSG_VERDICT)
    return False


def _sk_msg_problem(pins: Pins) -> str | None:
    with opened(pins.prog("sk_msg")) as program, opened(pins.map("peers")) as peers:
        try:
            bpf.attached_progs(peers, bpf.SK_MSG_VERDICT)
        except OSError:
            return None  # before Linux 5.18 the kernel does not say
        return None if redirects(program, peers) else "sk_msg is not attached to peers"


def _pod_problems(pins: Pins, pod: Pod) -> list[str]:
    try:
        cookie = netns_cookie(pod.netns)
    except LabError as gone:
        return [f"pod {pod.name}: {gone.what}"]
    found: list[str] = []
    entry = pins.pods().get(cookie)
    if entry is None:
        found.append(f"pod {pod.name} is not in the pod map")
    elif (entry["ip4"], entry["name"]) != (pod.ip4, pod.name):
        found.append(f"pod {pod.name} is in the pod map as {entry['name']} with {address(entry['ip4'])}, not {pod.ip}")
    with pins.open_map("pod_ips") as fd:
        if bpf.lookup(fd, u32(pod.ip4), 8) != u64(cookie):
            found.append(f"the address {pod.ip} does not lead to pod {pod.name}")
    with pins.open_map("counters") as fd:
        if bpf.per_cpu(fd, u64(cookie), abi.layouts()["counters"].size) is None:
            found.append(f"pod {pod.name} has no counters")
    if pod.sidecar_pid is not None and (missing := listener_problem(pins, pod, cookie)):
        found.append(missing)
    if wrong := lookup_problem(pins, pod):
        found.append(wrong)
    return found


def _attached(target: Path, attach_type: int) -> list[int]:
    """Give the ids of the programs that are attached to a cgroup or network namespace itself; none if it is gone."""
    try:
        fd = os.open(target, os.O_RDONLY)
    except OSError:
        return []
    try:
        return bpf.attached_progs(fd, attach_type)
    except OSError:
        return []
    finally:
        os.close(fd)


def _named(program: int) -> str:
    with contextlib.suppress(OSError):
        fd = bpf.by_id("prog", program)
        try:
            return f"{bpf.prog_info(fd).name or 'nameless'} (id {program})"
        finally:
            os.close(fd)
    return f"id {program}"


def strangers(pins: Pins, cgroup: Path, pods: Sequence[Pod]) -> list[str]:
    """Name the programs of others in the places where ours decide: what is seen there could be their work.

    Those on cgroups above are none of our business: they were there for every process of the machine.
    """
    ours = {link.prog_id for _, link in _links(pins)}
    found = [
        f"on the cgroup {place} {hook.name} runs another program, {_named(program)}"
        for place in (Path(folder) for folder, _names, _files in os.walk(cgroup))
        for hook in HOOKS
        for program in _attached(place, hook.attach_type)
        if program not in ours
    ]
    return found + [
        f"in the network namespace of {pod.name} sk_lookup runs another program, {_named(program)}"
        for pod in pods
        for program in _attached(pod.netns, bpf.SK_LOOKUP)
        if program not in ours
    ]


def problems(pins: Pins, cgroup: Path, pods: Sequence[Pod]) -> list[str]:
    """Name every way in which the dataplane is not attached as it should be."""
    if not pins.any:
        return [f"nothing is attached: {pins.root} has no pins"]
    found = objects_problems(pins)
    if pins.stamp() not in (None, abi.stamp()):
        return found  # another version's layouts are not ours to read
    if not cgroup.is_dir():
        return [*found, f"the cgroup {cgroup} does not exist"]
    found += [wrong for hook in HOOKS if (wrong := hook_problem(pins, hook, cgroup))]
    try:
        if wrong := _sk_msg_problem(pins):
            found.append(wrong)
        if not pins.config()["redirect"]:
            found.append("redirect is switched off")
        for pod in pods:
            found += _pod_problems(pins, pod)
        names = {pod.name for pod in pods}
        found += [
            f"pod {entry['name']} is in the pod map, but not in this lab"
            for entry in pins.pods().values()
            if entry["name"] not in names
        ]
    except OSError as failed:
        if not found:
            found.append(f"the pins below {pins.root} cannot be read: {failed}")
    # What is wrong with our own programs explains a stranger better than the other way round.
    return found or strangers(pins, cgroup, pods)


def links(pins: Pins) -> dict[str, bpf.Link]:
    """Give every pinned link by its name."""
    return {f"sk_lookup/{pin}" if pin not in HOOK_NAMES else pin: link for pin, link in _links(pins)}


def _links(pins: Pins) -> list[tuple[str, bpf.Link]]:
    found: list[tuple[str, bpf.Link]] = []
    for pin in [*(pins.link(hook.name) for hook in HOOKS), *pins.lookup_links()]:
        with contextlib.suppress(OSError), opened(pin) as fd:
            found.append((pin.name, bpf.link_info(fd)))
    return found


def programs(pins: Pins) -> list[ProgramInfo]:
    """List the pinned programs with where they are attached."""
    links = _links(pins)
    found: list[ProgramInfo] = []
    for name in PROGRAMS:
        with contextlib.suppress(OSError), opened(pins.prog(name)) as fd:
            info = bpf.prog_info(fd)
            places = [
                f"netns of {pin.replace(':', '.')}" if name == "lookup" else _path_of(link)
                for pin, link in links
                if link.prog_id == info.id and link.target
            ]
            if name == "sk_msg":
                with contextlib.suppress(OSError), pins.open_map("peers") as peers:
                    places += ["map peers"] if redirects(fd, peers) else []
            kind = bpf.PROG_TYPES.get(info.type, str(info.type))
            found.append(ProgramInfo(info.name, kind, info.id, ", ".join(places) or "nothing"))
    return found
