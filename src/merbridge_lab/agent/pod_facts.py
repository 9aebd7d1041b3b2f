"""What the kernel shows of one pod: its namespace, its cgroup, Istio's rules, and who accepts its connections."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup, nftables, routes, xtables
from merbridge_lab.adapters.listening_sockets import Listening
from merbridge_lab.dataplane import istio_rules
from merbridge_lab.dataplane.endpoints import netns_cookie, sidecar_of
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import INBOUND_PORT, OUTBOUND_PORT
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from merbridge_lab.adapters.cri_runtime import Sandbox
    from merbridge_lab.adapters.tcp_sockets import Listener
    from merbridge_lab.dataplane import Sidecar
    from merbridge_lab.dataplane.istio_annotations import Range

_USER = re.compile(r"-m owner (?:! )?--uid-owner (\d+)\b")

#: The chains of Istio's interception mode TPROXY.
_TPROXY = frozenset({"ISTIO_TPROXY", "ISTIO_DIVERT"})


@dataclass(frozen=True)
class Rules:
    """Istio's rules in a pod: the users that they exempt, that is, those that a sidecar may have.

    `chains` is the nat table, each chain with its rules in iptables' words. `has_tproxy`: Istio's chains for TPROXY are
    there, in the mangle table.
    """

    users: frozenset[int]
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    has_tproxy: bool = False


@dataclass(frozen=True)
class PodFacts:
    """What was read of a pod; `unread` says what could not be read, and then the rest means nothing.

    `netns` is the inode of its network namespace. `sharing` names another pod that has the same. `cgroup` is the
    directory of its own, None if it has none. `is_proven`: it is served already, and goes on if its rules are flushed.
    `difference` is how its rules differ from those that its annotations imply.
    `foreign`: a socket on the inbound port is held by no process of the pod.
    `sidecar` is the process that holds it; `unknown_user` is why its user is not known. `routes` as in Interception.
    """

    netns: int = 0
    is_host_netns: bool = False
    sharing: str = ""
    cgroup: Path | None = None
    rules: Rules | None = None
    difference: str = ""
    is_proven: bool = False
    listeners: tuple[Listener, ...] = ()
    foreign: bool = False
    sidecar: Sidecar | None = None
    unknown_user: str = ""
    routes: tuple[tuple[Range, bool], ...] = ()
    unread: str = ""


def netns_of(pid: int) -> Path:
    """Return the file that represents the network namespace of a process."""
    return Path("/proc", str(pid), "ns/net")


def has_cookie(pid: int, cookie: int) -> bool:
    """Report whether the network namespace of a process is the one with this cookie."""
    try:
        return netns_cookie(netns_of(pid)) == cookie
    except LabError:
        return False


def read(
    sandbox: Sandbox, root: Path, node: Collection[int], others: Mapping[int, str], *, is_proven: bool = False
) -> PodFacts:
    """Read a pod; `node` are the inodes of the node's own namespaces, `others` names its other pods by theirs.

    `is_proven`: it is served already, so its rules were there when it was enrolled.
    """
    if not sandbox.pid:
        return PodFacts(unread="the runtime does not report the process of its sandbox")
    if not node:
        return PodFacts(unread="the node's own network namespace cannot be read, so it may be the pod's, too")
    netns = netns_of(sandbox.pid)
    try:
        inode = netns.stat().st_ino
        found = PodFacts(inode, inode in node, others.get(inode, ""), pod_cgroup(root, sandbox), is_proven=is_proven)
        if not (found.is_host_netns or found.sharing or found.cgroup is None):
            found = _of_sockets(found, sandbox.pid, found.cgroup)
        if found.rules is not None:
            found = replace(found, difference=istio_rules.difference(found.rules.chains, sandbox.annotations))
        is_same = netns.stat().st_ino == inode
    except (OSError, LabError, ValueError) as error:
        return PodFacts(unread=f"it cannot be read: {error}")
    return found if is_same else PodFacts(unread="its sandbox changed while it was read")


def _of_sockets(found: PodFacts, pid: int, where: Path) -> PodFacts:
    """Add who listens in the pod, and Istio's rules; `pid` is its sandbox's process. Raises OSError, LabError."""
    netns = netns_of(pid)
    with contextlib.closing(Listening(netns)) as told:
        listening = told.listeners()
    holders = _holders(where, [each.inode for each in listening if each.port == INBOUND_PORT])
    pids = set.intersection(*holders.values()) if holders else set()
    sidecar, unknown = None, ""
    try:
        sidecar = sidecar_of(min(pids)) if pids else None
    except LabError as error:
        unknown = error.what
    return replace(
        found,
        rules=_as_the_node_sees(read_rules(netns), read_text(Path("/proc", str(pid), "uid_map"))),
        listeners=tuple(listening),
        routes=tuple(routes.routed(netns).items()),
        foreign=bool(holders) and not pids,
        sidecar=sidecar,
        unknown_user=unknown,
    )


def _holders(where: Path, sockets: Collection[int]) -> dict[int, set[int]]:
    """Return which processes in a pod's cgroup hold each of these sockets. Raises OSError, LabError."""
    found: dict[int, set[int]] = {inode: set() for inode in sockets}
    wanted = {f"socket:[{inode}]": inode for inode in sockets}
    for pid in cgroup.all_processes(where) if sockets else ():
        for link in _links(pid):
            if (inode := wanted.get(link)) is not None:
                found[inode].add(pid)
    return found


def _links(pid: int) -> Iterable[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names alone, of a hundred
    except (FileNotFoundError, ProcessLookupError):
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")  # noqa: PTH115 - a hundred of them
        except (FileNotFoundError, ProcessLookupError):
            continue


def read_rules(netns: Path) -> Rules | None:
    """Return Istio's rules in a network namespace, from either backend; None if they are not there. Raises OSError.

    The legacy tables are read only if nftables does not have them.
    """
    tables = nftables.read(netns)
    mangle = {each.name for each in tables.chains if (each.family, each.table) == ("ip", "mangle")}
    found = rules_of({each.name: each.told for each in tables.chains if (each.family, each.table) == ("ip", "nat")})
    if found is None:
        legacy = {each.name: each.chains or () for each in xtables.read(netns) if each.family == "ip"}
        mangle |= {chain.name for chain in legacy.get("mangle", ())}
        found = rules_of({chain.name: chain.told for chain in legacy.get("nat", ())})
    return replace(found, has_tproxy=bool(mangle & _TPROXY)) if found else None


def _as_the_node_sees(rules: Rules | None, uid_map: str) -> Rules | None:
    """Return the rules with the numbers that users have on the node: rules hold those of the pod's user namespace."""
    return None if rules is None else replace(rules, users=frozenset(mapped(rules.users, uid_map)))


def mapped(users: Iterable[int], uid_map: str) -> set[int]:
    """Return the numbers of users on the node, by the text of a /proc/PID/uid_map; those without one are left out."""
    lines = [tuple(map(int, line.split())) for line in lines_of(uid_map)]
    return {outside + user - inside for user in users for inside, outside, size in lines if 0 <= user - inside < size}


def rules_of(chains: Mapping[str, tuple[tuple[str, int], ...]]) -> Rules | None:
    """Return Istio's rules among the chains of a nat table, each with its rules in iptables' words; None without them.

    It takes the jump into ISTIO_OUTPUT, and the rule of ISTIO_REDIRECT that leads to the sidecar.
    """
    jumps = any("-j ISTIO_OUTPUT" in words for words, _ in chains.get("OUTPUT", ()))
    redirects = any(
        re.search(rf"-j REDIRECT --to-ports {OUTBOUND_PORT}\b", words) for words, _ in chains.get("ISTIO_REDIRECT", ())
    )
    if not (jumps and redirects):
        return None
    said = {name: tuple(words for words, _ in told) for name, told in chains.items()}
    return Rules(frozenset(int(user) for words in said.get("ISTIO_OUTPUT", ()) for user in _USER.findall(words)), said)


# -- cgroups ----------------------------------------------------------------------------------------------------------


def pod_cgroup(root: Path, sandbox: Sandbox) -> Path | None:
    """Return the directory of the pod's own cgroup; None if it has none, or if its sandbox is not in it.

    `root` is where cgroup2 is mounted. The runtime knows the cgroup by the kubelet's name; the kernel then confirms
    that the sandbox's process is below it. The path that /proc/PID/cgroup shows depends on the reader's namespace.
    """
    name = sandbox.cgroup_parent
    own = (f"pod{sandbox.uid}", f"pod{sandbox.uid.replace('-', '_')}.slice")  # of the drivers cgroupfs and systemd
    if not sandbox.uid or not name.endswith(own):
        return None
    place = root / (sliced(name) if name.endswith(".slice") else name.lstrip("/"))
    return place if place.is_dir() and sandbox.pid in cgroup.all_processes(place) else None


def sliced(name: str) -> str:
    """Return where systemd puts a slice: each dash in its name is one level."""
    parts = name.rpartition("/")[2].removesuffix(".slice").split("-")
    return "/".join(f"{'-'.join(parts[: at + 1])}.slice" for at in range(len(parts)))
