"""Programs of others in the places where ours decide: what is seen in the lab could be their effect.

Searched are every attach type of cgroups that this kernel knows, on the pods' cgroups and on those above; every link of
the pods and of the node (XDP, tc, tcx, netkit); netfilter's hooks; their network namespaces (sk_lookup, flow
dissector). sockhash.py checks what is on the sockhash.

A program that can rewrite, redirect or drop the mesh's TCP is a problem, wherever it is attached. Allowed are, by type
and place and never by name: device and sysctl programs, which runc and systemd attach to healthy machines; and, above
the pods' cgroups, programs that see no TCP. A cgroup_skb program above is a problem, although systemd attaches one for
IPAddressDeny= or IPAccounting= of a slice that contains us: nobody can tell from outside whether it drops, and what it
drops is missing from the proof. Not searched: congestion control by struct_ops (it delays, and neither rewrites nor
drops), and LSM and tracing programs for the whole machine (they deny or watch, and redirect nothing).
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_syscall, netlink_hooks, netns
from merbridge_lab.evidence import Unread
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.adapters.netlink_hooks import Hung

#: The attach types of cgroups, by the names of our own hooks and of bpftool. Others that a newer kernel knows are
#: checked as well, and are a problem.
CGROUP_TYPES = {
    0: "ingress (cgroup_skb)", 1: "egress (cgroup_skb)", 2: "sock_create", 3: "sockops", 6: "device",
    8: "bind4", 9: "bind6", 10: "connect4", 11: "connect6", 12: "post_bind4", 13: "post_bind6",
    14: "sendmsg4", 15: "sendmsg6", 18: "sysctl", 19: "recvmsg4", 20: "recvmsg6", 21: "getsockopt", 22: "setsockopt",
    29: "getpeername4", 30: "getpeername6", 31: "getsockname4", 32: "getsockname6", 34: "sock_release",
    43: "lsm_cgroup", 49: "connect_unix", 50: "sendmsg_unix", 51: "recvmsg_unix", 52: "getpeername_unix",
    53: "getsockname_unix",
}  # fmt: skip
#: runc and systemd attach these to the cgroup of every container or service that they create. They decide about device
#: nodes and files below /proc/sys, not about connections.
ALLOWED = frozenset({6, 18})
#: Above the pods' cgroups a load balancer or a firewall may serve the whole machine. These see UDP and Unix sockets, or
#: the end of a socket; the mesh uses TCP.
ALLOWED_ABOVE = ALLOWED | {14, 15, 19, 20, 34, 49, 50, 51, 52, 53}
#: Higher than any kernel's last attach type.
_LAST = 128
#: The kernel's answer for a number that is no attach type of cgroups.
_NOT_OF_CGROUPS = frozenset({errno.EINVAL, errno.ENODEV})
#: Its answer if the cgroup has just been removed.
_GONE = frozenset({errno.ENOENT, errno.ENODEV})


@dataclass(frozen=True)
class Around:
    """What exists beside the pods: other cgroups of the lab, also above the pods', and namespaces that requests pass.

    The namespaces are there by name.
    """

    cgroups: tuple[Path, ...] = ()
    namespaces: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Stranger:
    """A foreign program, or a filter (program 0), in a sentence; `allowed` if it cannot affect the proof."""

    sentence: str
    program: int
    allowed: bool = False


def named(program: int) -> str:
    """Return the name and the id of a loaded program."""
    try:
        fd = bpf_syscall.by_id("prog", program)
    except FileNotFoundError:
        return f"id {program}, gone meanwhile"
    except OSError as error:
        return f"id {program}, its name could not be read: {error.strerror}"
    try:
        return f"{bpf_syscall.prog_info(fd).name or 'nameless'} (id {program})"
    finally:
        os.close(fd)


def problems(ours: frozenset[int], pods: Sequence[Path], namespaces: Mapping[str, Path], around: Around) -> list[str]:
    """Describe, one sentence each, what others have attached on the path of the mesh's TCP, and what was unreadable."""
    return [
        str(each) if isinstance(each, Unread) else each.sentence
        for each in found(ours, pods, namespaces, around)
        if isinstance(each, Unread) or not each.allowed
    ]


def listed(ours: frozenset[int], pods: Sequence[Path], namespaces: Mapping[str, Path], around: Around) -> list[str]:
    """Describe, one sentence each, what others have attached that is allowed there."""
    seen = found(ours, pods, namespaces, around)
    return [each.sentence for each in seen if isinstance(each, Stranger) and each.allowed]


def found(
    ours: frozenset[int], pods: Sequence[Path], namespaces: Mapping[str, Path], around: Around
) -> Iterator[Stranger | Unread]:
    """Find every foreign program, and what could not be read; `pods` are the cgroups of the pods."""
    every = {**namespaces, **dict(around.namespaces)}
    apart = [pod for pod in pods if not set(around.cgroups).intersection(pod.parents)]
    for place in (*around.cgroups, *apart):
        yield from _read(f"what runs on the cgroup {place}", partial(_on_cgroup, ours, place, pods))
    for name, path in every.items():
        yield from _read(f"what runs in the network namespace of {name}", partial(_in_namespace, ours, name, path))
        yield from _read(f"what hangs on the links of {name}", partial(on_links, name, path))
    yield from on_netfilter(every)


def _read(source: str, look: Callable[[], Sequence[Stranger]]) -> Sequence[Stranger | Unread]:
    try:
        return look()
    except OSError as error:
        return [unread(source, error)]


# -- cgroups ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def cgroup_types(cgroup: int) -> tuple[int, ...]:
    """Return every attach type of cgroups that this kernel knows. Raises OSError.

    The query is for effective programs, not attached ones: for the latter, tcx would take the number for an
    interface's.
    """
    known = []
    for number in range(_LAST):
        try:
            bpf_syscall.attached_progs(cgroup, number, bpf_syscall.QUERY_EFFECTIVE)
        except OSError as error:
            if error.errno not in _NOT_OF_CGROUPS:
                raise
        else:
            known.append(number)
    if not known:
        raise OSError(errno.ENODEV, "it is not a cgroup any more")
    return tuple(known)


def _above(cgroup: Path) -> list[Path]:
    """Return the cgroups above, the nearest first, up to the mount point of the hierarchy."""
    device = cgroup.stat().st_dev
    return [parent for parent in cgroup.parents if parent.stat().st_dev == device]


def _below(cgroup: Path) -> Iterator[Path]:
    """Return `cgroup` and all cgroups below; skip those that disappear meanwhile. Raises OSError."""

    def refuse(error: OSError) -> None:
        if error.errno not in _GONE:
            raise error

    for folder, _, _ in os.walk(cgroup, onerror=refuse):
        yield cgroup / folder


def _runs(place: Path, types: Sequence[int], flags: int = 0) -> dict[int, list[int]]:
    """Return the programs on a cgroup by attach type; none if it has just disappeared. Raises OSError."""
    try:
        with _opened(place) as fd:
            return {number: programs for number in types if (programs := bpf_syscall.attached_progs(fd, number, flags))}
    except OSError as error:
        if error.errno in _GONE:
            return {}
        raise


def _on_cgroup(ours: frozenset[int], cgroup: Path, pods: Sequence[Path]) -> list[Stranger]:
    """Find programs on `cgroup` and below it; ours belong only on those of pods, once per hook. Raises OSError."""
    with _opened(cgroup) as fd:
        types = cgroup_types(fd)
    above, of_pods = _above(cgroup), frozenset(pods)
    attached = {place: _runs(place, types) for place in above}
    told: dict[str, Stranger] = {}
    for place in _below(cgroup):
        attached[place] = _runs(place, types)
        for kind, programs in attached[place].items():
            for program in ours.intersection(programs):
                if place not in of_pods or programs.count(program) > 1:
                    stray = f"merlab's own {named(program)}, which should not be there"
                    sentence = f"on the cgroup {place} {_name(kind)} runs {stray}"
                    told[sentence] = Stranger(sentence, program)
        parents = frozenset(place.parents)  # looked up for each cgroup of each pod
        chain = [place, *(each for each in attached if each in parents)]
        for kind, programs in _runs(place, types, bpf_syscall.QUERY_EFFECTIVE).items():
            for program in programs:
                if program in ours:
                    continue
                own = next((each for each in chain if program in attached[each].get(kind, ())), None)
                outside = own is None or own in above
                where = str(own) if own else f"above {above[-1] if above else cgroup}, which cannot be seen from here,"
                sentence = f"on the cgroup {where} {_name(kind)} runs another program, {named(program)}"
                allowed = kind in (ALLOWED_ABOVE if outside else ALLOWED)
                told[sentence] = Stranger(sentence, program, allowed)
    return list(told.values())


def _name(kind: int) -> str:
    return CGROUP_TYPES.get(kind, f"attach type {kind}")


# -- network namespaces ----------------------------------------------------------------------------------------------


def _in_namespace(ours: frozenset[int], name: str, path: Path) -> list[Stranger]:
    told = []
    with _opened(path) as fd:
        for kind, hook in ((bpf_syscall.SK_LOOKUP, "sk_lookup"), (bpf_syscall.FLOW_DISSECTOR, "the flow dissector")):
            for program in bpf_syscall.attached_progs(fd, kind):
                if program not in ours:
                    sentence = f"in the network namespace of {name} {hook} runs another program, {named(program)}"
                    told.append(Stranger(sentence, program))
    return told


def on_links(name: str, path: Path) -> list[Stranger]:
    """Find what is attached to the links of the network namespace at `path`, of `name`. Raises OSError."""
    return [
        Stranger(f"on the link {hung.where} of {name} there is {_described(hung)}", hung.program)
        for hung in netns.run_inside(path, netlink_hooks.on_links)
    ]


def _described(hung: Hung) -> str:
    return f"{hung.what}: {named(hung.program)}" if hung.program else hung.what


def netfilter_links() -> list[int]:
    """Return the ids of the programs that are on netfilter's hooks anywhere on this machine. Raises OSError."""
    programs = []
    for number in bpf_syscall.ids("link"):
        try:
            fd = bpf_syscall.by_id("link", number)
        except FileNotFoundError:
            continue  # gone meanwhile
        try:
            link = bpf_syscall.link_info(fd)
        finally:
            os.close(fd)
        if link.type == bpf_syscall.LINK_NETFILTER:
            programs.append(link.prog_id)
    return programs


def on_netfilter(namespaces: Mapping[str, Path]) -> Iterator[Stranger | Unread]:
    """Find netfilter programs. The kernel reports what a link runs, but not in which namespace.

    If no process on this machine has one, that answers it; otherwise each namespace is queried.
    """
    try:
        anywhere = netfilter_links()
    except OSError as error:
        yield unread("what BPF runs on netfilter's hooks", error)
        return
    if not anywhere:
        return
    for name, path in namespaces.items():
        try:
            hooked = netns.run_inside(path, netlink_hooks.on_netfilter)
        except OSError as error:
            programs = ", ".join(named(each) for each in anywhere)
            why = (
                "this kernel cannot report it (CONFIG_NETFILTER_NETLINK_HOOK)" if error.errno == errno.EINVAL else error
            )
            yield unread(f"where on netfilter's hooks {programs} runs, in {name} or elsewhere,", error, str(why))
            return
        for hung in hooked:
            sentence = f"on netfilter's hook {hung.where} of {name} runs another program, {named(hung.program)}"
            yield Stranger(sentence, hung.program)
