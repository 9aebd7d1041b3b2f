"""On the node, in the network namespace of a pod: find pod → node → container → PID, and execute commands there.

Commands run on the node, or in a helper pod on it: see node_exec. Each one first opens the namespace and compares its
inode, so none can run in the namespace of another pod that has got the PID meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import conntrack, iptables, rules_agreement
from merbridge_lab.adapters.procfs import started
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread
from merbridge_lab.ruleset import BACKENDS, NATIVE, NATIVE_TABLE, RuleSet
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.command import Result
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.labs.kubernetes.provider import Node

#: The containerd namespace of the kubelet's containers.
CTR = ("ctr", "-n", "k8s.io")

# Fixed texts; what varies is an argument. Exit statuses from 90 on tell what was not as expected.
_NO_SUCH = 97
_ENTER = (
    '{ [ -e "/proc/$1/ns/net" ] && exec 9<"/proc/$1/ns/net"; } || exit 97\n'
    '[ "$(stat -L -c %i /proc/self/fd/9)" = "$2" ] || exit 97\n'
    'shift 2\ninside() { nsenter --net=/proc/self/fd/9 -- "$@"; }\n'
)
_LOOK = """
[ -e "/proc/$1/ns/net" ] || exit 97
line() { tr '\\n' ' ' <"$1" && echo; }  # a process may have line ends in its name
line "/proc/$1/stat" && stat -L -c %i "/proc/$1/ns/net" && line "/proc/$1/comm" && cat "/proc/$1/cgroup" || exit 97
nsenter -t "$1" -n ip -o -4 address show
"""
# What could not be read is reported in a section of its own, with the reason. If the kernel has created no legacy
# tables in the namespace, there is nothing that iptables-legacy-save could show.
_SNAPSHOT = f"""
for backend in nft legacy; do
    tool="iptables-$backend-save"
    if command -v "$tool" >/dev/null; then
        if rules=$(inside "$tool" -c 2>&1); then echo "#= $backend"; else echo "#= no_$backend"; fi
        echo "$rules"
    elif [ "$backend" = legacy ] &&
        names=$(inside sh -c '[ ! -e /proc/net/ip_tables_names ] || cat /proc/net/ip_tables_names') && [ -z "$names" ]
    then echo "#= legacy"
    else echo "#= no_$backend" && echo "$tool is not on the node"
    fi
done
command -v nft >/dev/null || exit 0
if rules=$(inside nft list chains 2>&1); then echo "#= chains"; else echo "#= no_chains"; fi
echo "$rules"
! rules=$(inside nft list table {NATIVE_TABLE} 2>/dev/null) || {{ echo "#= {NATIVE}" && echo "$rules"; }}
echo "#= others"
for table in {" ".join(sorted(repr(name) for name in rules_agreement.ISTIOS_OTHERS))}; do
    inside nft list table $table 2>/dev/null || true
done
"""
_CONNTRACK = """
list() { "$@" conntrack -L -p tcp 2>/dev/null || "$@" cat /proc/net/nf_conntrack; }
inside true && list inside && list env
"""
#: End the connections to a port, as if the network had; succeed if none is left. Both ends close them at once.
_END_CONNECTIONS = """
inside ss -K -H -t -n state established "( dport = :$1 )" >/dev/null 2>&1
[ -z "$(inside ss -H -t -n state established "( dport = :$1 )")" ]
"""
#: A line of /proc/PID/cgroup: number, controllers, path.
_CGROUP = re.compile(r"\d+:[^:\s]*:/")
_SECTION = re.compile(r"^#= (\w+)$", re.MULTILINE)


class RestartedError(LabError):
    """The process is gone, or is in another namespace: the pod was restarted."""

    default_id = "pod.restarted"


@dataclass(frozen=True)
class Process:
    """A process of a pod, as seen on its node. `started` is in clock ticks after boot, `netns` is an inode."""

    node_exec: NodeExec
    pid: int
    started: int
    netns: int
    comm: str
    cgroup: str
    looked: str

    @property
    def node(self) -> Node:
        """The node that it runs on."""
        return self.node_exec.node

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IPv4 addresses in its namespace, except for the loopback's."""
        rows = [line.split() for line in lines_of(self.looked)]
        return tuple(row[3].partition("/")[0] for row in rows if row[1] != "lo")


def tasks(node: Node) -> dict[str, int]:
    """Return the PIDs, on the node, of the containers that run there, by container id."""
    return read_tasks(node.execute([*CTR, "tasks", "ls"]).stdout)


def read_tasks(told: str) -> dict[str, int]:
    """Parse the output of `ctr tasks ls`."""
    rows = [line.split() for line in lines_of(told)[1:]]
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[2] == "RUNNING"}  # noqa: PLR2004 - task, PID, status


def sandboxes(node: Node, uid: str) -> list[str]:
    """Return the ids of the containers that hold, or held, a pod's namespaces, by the labels of the runtime."""
    wanted = f'labels."io.kubernetes.pod.uid"=={uid},labels."io.cri-containerd.kind"==sandbox'
    return node.execute([*CTR, "containers", "ls", "--quiet", wanted]).stdout.split()


def look(node_exec: NodeExec, pid: int) -> Process:
    """Read a process on the node. Raise RestartedError if it is gone."""
    told = node_exec.execute(["sh", "-c", _LOOK, "sh", str(pid)], ok=(0, _NO_SUCH))
    if told.status:
        raise RestartedError(f"there is no process {pid} on {node_exec.node.name} any more", hint="merlab status")
    return read_process(node_exec, told.stdout)


def read_process(node_exec: NodeExec, told: str) -> Process:
    """Parse the output of `_LOOK`: proc_pid_stat(5), inode, name, the lines of its cgroups, addresses."""
    stat, netns, comm, *lines = told.split("\n")
    cgroups = [line for line in lines if _CGROUP.match(line)]
    addresses = [line for line in lines if line and not _CGROUP.match(line)]
    return Process(
        node_exec=node_exec,
        pid=int(stat.split()[0]),
        started=started(stat),
        netns=int(netns),
        comm=comm.strip(),
        cgroup=cgroup_of_pod(cgroups),
        looked="".join(f"{line}\n" for line in addresses),
    )


def find(node_exec: NodeExec, pod: Pod, container: str) -> Process:
    """Find the process of a container of a pod. Raise LabError if it is not the pod's: its address shows that."""
    pids = tasks(node_exec.node)
    cid = pod.containers.get(container, "")
    if cid not in pids:
        raise RestartedError(
            f"the container {container} of {pod.name} does not run on {pod.node} any more", hint="merlab status"
        )
    process = look(node_exec, pids[cid])
    if pod.ip not in process.addresses:
        raise LabError(
            f"PID {process.pid} on {pod.node} is not in the network of {pod.name}: it has"
            f" {', '.join(process.addresses) or 'no address'}, not {pod.ip}; nothing was touched",
            hint="merlab step 7",
            id="pod.restarted",
        )
    return process


def cgroup_of_pod(lines: Sequence[str]) -> str:
    """Return the cgroup, from the lines of /proc/PID/cgroup, that identifies a container.

    That is the one of version 2, if it names one. An old runc on cgroup v1 creates none there: its processes stay in
    containerd's cgroup, and the other hierarchies name the container. If these disagree, all of them are returned.
    """
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
    unified = paths.pop("", "")
    if _named(unified):
        return unified
    others = {cgroup_names(path): path for path in paths.values() if _named(path)}
    return " and ".join(others.values()) or unified


def _named(path: str) -> bool:
    return cgroup_names(path) != path


def cgroup_names(path: str) -> str:
    """Return "pod…/container" of a cgroup's path, however the kubelet's driver writes it."""
    pod = re.search(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})", path)
    container = re.search(r"([0-9a-f]{64})", path)
    return f"pod{pod[1].replace('_', '-')}/{container[1]}" if pod and container else path


# -- in the namespace ------------------------------------------------------------------------------------------------


def script(process: Process, text: str, *argv: str, ok: Sequence[int] = (0,)) -> Result:
    """Run a fixed shell text on the node; `inside` runs a command in the namespace. Raises RestartedError, LabError."""
    command = ["sh", "-c", _ENTER + text, "sh", str(process.pid), str(process.netns), *argv]
    told = process.node_exec.execute(command, ok=(*ok, _NO_SUCH))
    if told.status == _NO_SUCH:
        raise RestartedError(
            f"PID {process.pid} on {process.node.name} is gone, or is another one: the pod was restarted meanwhile",
            hint="type this again",
        )
    return told


def snapshot(process: Process) -> RuleSet:
    """Read all rules with their counters, in every backend whose tools are on the node. Raises LabError.

    If the node's processes are this machine's, the kernel is read as well, and must agree with what the tools print.
    """
    own = _namespace(process)
    first = iptables.kernels(own) if isinstance(own, Path) else (own, own)
    rules = read_snapshot(script(process, _SNAPSHOT).stdout)
    if not rules.texts or all(isinstance(text, Unread) for text in rules.texts.values()):
        why = "".join(f" ({each.why})" for each in rules.unread[:1])
        raise LabError(
            f"iptables prints nothing on the node {process.node.name}, so its pods' rules are not known{why}",
            hint="merlab up",
            id="node.no_tools",
        )
    if not isinstance(own, Path):
        return replace(rules, generation=own)
    return _but_istios(iptables.confirmed(rules, first, iptables.kernels(own), where=process.node.name))


def _namespace(process: Process) -> Path | Unread:
    """Find from here the network namespace of a process of the node: root can, if the kernel is the same."""
    source = f"nft:{process.node.name}/generation"
    try:
        path = Path(f"/proc/{process.node.init_pid()}/root/proc/{process.pid}/ns/net")
        if path.stat().st_ino == process.netns:
            return path
    except PermissionError:
        return Unread(source, "only root of this machine can ask the kernel itself")
    except (OSError, LabError) as error:
        return Unread(source, f"the node's processes cannot be seen from here: {error}")
    return Unread(source, "the node's processes are not this machine's")


def changed_sources(process: Process) -> conntrack.Sources:
    """Read which source addresses conntrack changed in the namespace, and on the node. Raises LabError."""
    return conntrack.read_changed_sources(script(process, _CONNTRACK).stdout)


def end_connections(process: Process, port: int) -> bool:
    """End the TCP connections that were dialled from the namespace to a port; return whether none is left.

    That needs ss on the node, and a kernel with CONFIG_INET_DIAG_DESTROY. Raises LabError.
    """
    return script(process, _END_CONNECTIONS, str(port), ok=range(_NO_SUCH)).status == 0


def read_snapshot(told: str) -> RuleSet:
    """Parse the output of `_SNAPSHOT`."""
    _, *parts = _SECTION.split(told)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    if not sections:
        return RuleSet({}, Unread("nft", "nothing was reported"))
    texts: dict[str, str | Unread] = {}
    for backend in BACKENDS:
        if backend in sections:
            texts[backend] = sections[backend]
        elif backend == "nft" or f"no_{backend}" in sections:
            why = sections.get(f"no_{backend}", "").strip() or "its tools are not on the node"
            texts[backend] = Unread(f"iptables:{backend}", why)
    if NATIVE in sections:
        texts[NATIVE] = sections[NATIVE]
    native: tuple[str, ...] | Unread
    if "chains" in sections:
        found = rules_agreement.native_in(sections["chains"] + sections.get("others", ""))
        native = (*found, *rules_agreement.left_out(texts["nft"]))
    else:
        native = Unread("nft:chains", sections.get("no_chains", "").strip() or "nft is not on the node")
    if left := rules_agreement.left_out(texts["nft"]):
        texts["nft"] = Unread("iptables:nft", f"iptables does not show all of {left[0]}")
    return _but_istios(RuleSet(texts, native))


def _but_istios(rules: RuleSet) -> RuleSet:
    """Remove Istio's own nat table from what is foreign, if its rules were read."""
    if NATIVE not in rules.texts or isinstance(rules.native, Unread):
        return rules
    return replace(rules, native=tuple(name for name in rules.native if name != f"table {NATIVE_TABLE}"))
