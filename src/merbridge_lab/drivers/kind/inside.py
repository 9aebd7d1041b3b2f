"""On the node, in the network namespace of a pod: pod → node → container → PID, and what is done there.

Commands go into the node, or into a helper pod on it: see hands. Every one first opens the namespace and looks at its
inode, so none can end up in the namespace of another pod that has got the PID meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import conntrack, docker, iptables
from merbridge_lab.errors import LabError
from merbridge_lab.ruleset import BACKENDS, NATIVE, NATIVE_TABLE, RuleSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.proc import Result
    from merbridge_lab.drivers.kind.hands import Hands
    from merbridge_lab.drivers.kind.pods import Pod

#: The namespace of containerd in which the kubelet's containers are.
CTR = ("ctr", "-n", "k8s.io")

# Fixed texts; what varies is an argument. An exit status from 90 on says what was not as expected.
_NO_SUCH = 97
_TOOLS_MISSING = 95
_ENTER = (
    '{ [ -e "/proc/$1/ns/net" ] && exec 9<"/proc/$1/ns/net"; } || exit 97\n'
    '[ "$(stat -L -c %i /proc/self/fd/9)" = "$2" ] || exit 97\n'
    'shift 2\ninside() { nsenter --net=/proc/self/fd/9 -- "$@"; }\n'
)
_LOOK = """
[ -e "/proc/$1/ns/net" ] || exit 97
cat "/proc/$1/stat" && stat -L -c %i "/proc/$1/ns/net" && cat "/proc/$1/comm" && tail -n 1 "/proc/$1/cgroup" || exit 97
nsenter -t "$1" -n ip -o -4 address show
"""
_SNAPSHOT = f"""
for backend in nft legacy; do
    command -v "iptables-$backend-save" >/dev/null || continue
    rules=$(inside "iptables-$backend-save" -c 2>&1) && echo "#= $backend" && echo "$rules"
done
command -v nft >/dev/null || exit 0
echo "#= chains" && inside nft list chains
! rules=$(inside nft list table {NATIVE_TABLE} 2>/dev/null) || {{ echo "#= {NATIVE}" && echo "$rules"; }}
"""
_CONNTRACK = """
list() { "$@" conntrack -L -p tcp 2>/dev/null || "$@" cat /proc/net/nf_conntrack; }
inside true && list inside && list env
"""
_SECTION = re.compile(r"^#= (\w+)$", re.MULTILINE)


class RestartedError(LabError):
    """The process is gone, or is in another namespace: the pod was restarted."""


@dataclass(frozen=True)
class Process:
    """A process of a pod, seen on its node. `started` in clock ticks after boot, `netns` an inode."""

    hands: Hands
    pid: int
    started: int
    netns: int
    comm: str
    cgroup: str
    looked: str

    @property
    def node(self) -> str:
        """The node it is on."""
        return self.hands.node

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IPv4 addresses in its namespace, the loopback's aside."""
        rows = [line.split() for line in self.looked.splitlines()]
        return tuple(row[3].partition("/")[0] for row in rows if row[1] != "lo")


def tasks(node: str) -> dict[str, int]:
    """Give the PIDs, on the node, of the containers that run there; by their ids."""
    return read_tasks(docker.execute(node, [*CTR, "tasks", "ls"]).stdout)


def read_tasks(told: str) -> dict[str, int]:
    """Read what `ctr tasks ls` prints."""
    rows = [line.split() for line in told.splitlines()[1:]]
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[2] == "RUNNING"}  # noqa: PLR2004 - task, PID, status


def sandboxes(node: str, uid: str) -> list[str]:
    """Give the ids of the containers that hold, or have held, a pod's namespaces, by the labels of the runtime."""
    wanted = f'labels."io.kubernetes.pod.uid"=={uid},labels."io.cri-containerd.kind"==sandbox'
    return docker.execute(node, [*CTR, "containers", "ls", "--quiet", wanted]).stdout.split()


def look(hands: Hands, pid: int) -> Process:
    """Look at a process on the node. Raises RestartedError where it is gone."""
    told = hands.execute(["sh", "-c", _LOOK, "sh", str(pid)], ok=(0, _NO_SUCH))
    if told.status:
        raise RestartedError(f"there is no process {pid} on {hands.node} any more", hint="merlab status")
    return read_process(hands, told.stdout)


def read_process(hands: Hands, told: str) -> Process:
    """Read what `_LOOK` prints: proc_pid_stat(5), inode, name, cgroup, addresses."""
    stat, netns, comm, cgroup, *addresses = told.splitlines()
    # The name may hold blanks and brackets; what follows the last bracket does not.
    fields = stat.rpartition(")")[2].split()
    return Process(
        hands=hands,
        pid=int(stat.split()[0]),
        started=int(fields[19]),
        netns=int(netns),
        comm=comm,
        cgroup=cgroup.rpartition("::")[2],
        looked="".join(f"{line}\n" for line in addresses),
    )


def find(hands: Hands, pod: Pod, container: str) -> Process:
    """Find the process of a container of a pod. Raises LabError where it is not the pod's: its address tells."""
    pids = tasks(pod.node)
    cid = pod.containers.get(container, "")
    if cid not in pids:
        raise RestartedError(
            f"the container {container} of {pod.name} does not run on {pod.node} any more", hint="merlab status"
        )
    process = look(hands, pids[cid])
    if pod.ip not in process.addresses:
        raise LabError(
            f"PID {process.pid} on {pod.node} is not in the network of {pod.name}: it has"
            f" {', '.join(process.addresses) or 'no address'}, not {pod.ip}; nothing was touched",
            hint="merlab step 7",
        )
    return process


def cgroup_names(path: str) -> str:
    """Give "pod…/container" of a cgroup's path, however the kubelet's driver writes it."""
    pod = re.search(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})", path)
    container = re.search(r"([0-9a-f]{64})", path)
    return f"pod{pod[1].replace('_', '-')}/{container[1]}" if pod and container else path


# -- in the namespace ------------------------------------------------------------------------------------------------


def script(process: Process, text: str, *argv: str, ok: Sequence[int] = (0,)) -> Result:
    """Run a fixed shell text on the node; `inside` runs a command in the namespace. Raises RestartedError, LabError."""
    command = ["sh", "-c", _ENTER + text, "sh", str(process.pid), str(process.netns), *argv]
    told = process.hands.execute(command, ok=(*ok, _NO_SUCH))
    if told.status == _NO_SUCH:
        raise RestartedError(
            f"PID {process.pid} on {process.node} is gone, or is another one: the pod was restarted meanwhile",
            hint="type this again",
        )
    return told


def snapshot(process: Process) -> RuleSet:
    """Read all rules with their counters, in every backend whose tools are on the node. Raises LabError."""
    rules = read_snapshot(script(process, _SNAPSHOT).stdout)
    if not rules.texts:
        raise LabError(
            f"iptables reads nothing on the node {process.node}, so its pods' rules are not known",
            hint="merlab up --lab kind",
        )
    return rules


def changed_sources(process: Process) -> conntrack.Sources:
    """Read which source addresses conntrack changed in the namespace, and on the node. Raises LabError."""
    return conntrack.read_changed_sources(script(process, _CONNTRACK).stdout)


def read_snapshot(told: str) -> RuleSet:
    """Read what `_SNAPSHOT` prints."""
    _, *parts = _SECTION.split(told)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    texts = {name: sections[name] for name in (*BACKENDS, NATIVE) if name in sections}
    native = iptables.native_in(sections.get("chains", ""))
    if NATIVE in texts:
        native = tuple(table for table in native if table != f"table {NATIVE_TABLE}")
    return RuleSet(texts, native, None)
