"""Pods of the kind lab with merlab's dataplane: a client and two servers by eBPF, and as many that are opted out of it.

An app is a process in a pod's app container: in its cgroup and in all its namespaces, as its user. This machine starts
it there, as the cluster's node is a container of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.apps import lab_command, place
from tests.apps.place import LabNotUpError, Service, Witness
from tests.cluster import builds
from tests.cluster.agent_host import agent, load_into_node, state_of
from tests.cluster.kind_host import NODE, docker, kubectl

from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.apps.kit import Kit

WAYS = ("rules", "ebpf")
IMAGE = "merlab.test/apps:dev"
_USER = 1000
_CLIENT, _SERVERS = "apps-client", ("apps-server-1", "apps-server-2")
#: The labels that decide who carries a pod's connections; what the agent must say of each.
_LABELS = {"rules": {"merlab.dev/dataplane": "none"}, "ebpf": {}}
_STATES = {"rules": ("refused", "opted_out"), "ebpf": ("served", "")}
#: A process joins the container's cgroup of version 2, where the programs are, and then its namespaces.
_ENTER = """
echo $$ >"$1/cgroup.procs" && pid=$2 user=$3 && shift 3 &&
exec nsenter --target $pid --mount --uts --ipc --net --pid --cgroup --setuid $user --setgid $user "$@"
"""


def _objects(way: str) -> list[dict[str, Any]]:
    """Return the pods of one way, and a service in front of each server, with a port for each of its apps."""
    found = [_pod(f"{name}-{way}", _LABELS[way]) for name in (_CLIENT, *_SERVERS)]
    for name in _SERVERS:
        ports = [
            {"name": f"{each.protocol}-{each.port}", "port": each.port}
            for number, each in enumerate(lab_command.services())
            if _server(number) == name
        ]
        spec = {"selector": {"app": f"{name}-{way}"}, "ports": ports}
        found.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{name}-{way}"}, "spec": spec})
    return found


def _server(number: int) -> str:
    """Return which of the servers has an app: by turns."""
    return _SERVERS[number % len(_SERVERS)]


def _pod(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    requests = {"cpu": "10m", "memory": "64Mi"}
    app = {
        "name": "app",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": {"runAsUser": _USER, "runAsGroup": _USER},
        "resources": {"requests": requests},
    }
    # Six sidecars beside the lab's own would ask for more than a node of two cores has.
    asks = {"sidecar.istio.io/proxyCPU": requests["cpu"], "sidecar.istio.io/proxyMemory": requests["memory"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **labels}, "annotations": asks},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [app]},
    }


class Container:
    """The app container of a pod, as this machine sees its first process."""

    def __init__(self, pod: str) -> None:
        found = json.loads(kubectl("get", "pod", pod, "-o", "json"))
        statuses = {each["name"]: each for each in found["status"]["containerStatuses"]}
        self.ip = str(found["status"]["podIP"])
        self.pid, self.cgroup = _process(statuses["app"]["containerID"].rpartition("/")[2])
        self.root = Path(f"/proc/{self.pid}/root")
        logs = f"var/log/pods/{found['metadata']['namespace']}_{pod}_{found['metadata']['uid']}/istio-proxy"
        node = docker("inspect", "--format", "{{.State.Pid}}", NODE).strip()
        self.access_log = Path(f"/proc/{node}/root/{logs}/{statuses['istio-proxy']['restartCount']}.log")


def _process(container: str) -> tuple[int, Path]:
    """Return the first process of a container, and its directory in the hierarchy of version 2."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
            own = next(path for number, _, path in lines if number == "0")
            if container not in own:
                continue
            status = (process / "status").read_text().splitlines()
            if next(line for line in status if line.startswith("NSpid:")).split()[-1] == "1":
                return int(process.name), _hierarchy() / own.lstrip("/")
    raise LabNotUpError(f"no process of the container {container} is on this machine: is its Docker daemon elsewhere?")


def _hierarchy() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(Path(each[1]) for each in mounts if each[2] == "cgroup2")


class ClusterPods:
    """The pods of one way: a `Place`."""

    #: Envoy keeps lines of its access log back for 10 s.
    logs_within = 25.0
    rooms = Path("/var/cache/merlab-apps-cluster")

    def __init__(self, way: str) -> None:
        self.way, self.name = way, f"the cluster's pods by {'eBPF' if way == 'ebpf' else 'the rules'}"
        self.client = f"{_CLIENT}-{way}"
        self.servers = {name: f"{name}-{way}" for name in _SERVERS}
        self.pods = {pod: Container(pod) for pod in (self.client, *self.servers.values())}
        self._addresses = {
            pod: kubectl("get", "service", pod, "-o", "jsonpath={.spec.clusterIP}") for pod in self.servers.values()
        }

    def require_way(self) -> None:
        """Raise LabNotUpError if the agent does not serve exactly the pods that are by eBPF."""
        wanted = dict.fromkeys(self.pods, _STATES[self.way])

        def found() -> dict[str, tuple[str, str]]:
            return {pod: state_of(pod) for pod in self.pods}

        if not poll_until(lambda: found() == wanted, timeout=30, every=0.5, awaiting="the agent to say so"):
            raise LabNotUpError(f"the agent says {found()}, and not {wanted}")

    def require_services(self) -> None:
        """Wait until the client's sidecar knows the servers behind the services. Raise LabNotUpError."""
        argv = ["nsenter", f"--net=/proc/{self.pods[self.client].pid}/ns/net", "curl", "-s", "localhost:15000/clusters"]
        wanted = [f"||{pod}.default.svc.cluster.local::{self.pods[pod].ip}:" for pod in self.servers.values()]

        def known() -> bool:
            told = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout
            return all(each in told for each in wanted)

        if not poll_until(known, timeout=60, every=0.5, awaiting="the services to be known"):
            raise LabNotUpError(f"the sidecar of {self.client} does not know all servers")

    def service(self, number: int) -> Service:
        """Return one of the services for apps."""
        pod = self.servers[_server(number)]
        return Service(pod, self._addresses[pod], lab_command.services()[number].port)

    def argv(self, pod: str, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` in the app container of a pod."""
        entered = self.pods[pod]
        return ["sh", "-c", _ENTER, "sh", str(entered.cgroup), str(entered.pid), str(_USER), *argv]

    def bring(self, pod: str, room: Path) -> None:
        """Copy a directory to the app container of a pod, in the place of what an app before has left."""
        into = self.pods[pod].root / room.relative_to("/")
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(room, into, symlinks=True)

    def witness(self) -> Witness:
        """Read the counters: of the client's rules in its pod, of the programs by the agent."""
        seen = Witness(redirect_rule=place.redirect_rule(f"/proc/{self.pods[self.client].pid}/ns/net"))
        for name, counters in agent("counters").items():
            if name.removeprefix("default/") in self.pods:
                seen.add(counters)
        return seen

    def logged(self, port: int, server: str) -> tuple[int, int]:
        """Return how many lines both sidecars have written about a service: the client's, the server's."""
        return place.logged(port, *(self.pods[pod].access_log for pod in (self.client, server)))


def _build(kit: Kit) -> None:
    """Make the image of the apps' containers, of this machine's kit, and load it into the node."""
    told = {"BASE": builds.ref("base"), "TOP": str(kit.top)}
    options = [word for name, value in told.items() for word in ("--build-arg", f"{name}={value}")]
    dockerfile = Path(__file__).with_name("Dockerfile")
    argv = ("docker", "build", "-q", "--network=host", "-f", dockerfile, "-t", IMAGE, *options, kit.top)
    built = subprocess.run(argv, check=False, capture_output=True, text=True, env=os.environ | {"DOCKER_BUILDKIT": "0"})
    if built.returncode:
        raise LabNotUpError(f"docker could not build {IMAGE}:\n{built.stdout[-3000:]}{built.stderr[-3000:]}")
    load_into_node(IMAGE)


@contextlib.contextmanager
def both(kit: Kit) -> Iterator[dict[str, ClusterPods]]:
    """Start the pods of both ways on the kind lab that is up, and remove them afterwards. Raise LabNotUpError."""
    if not shutil.which("docker") or not kubectl("get", "nodes", check=False):
        raise LabNotUpError("no kind lab is up here: make up-kind, then the line for a root shell that it prints")
    objects = [each for way in WAYS for each in _objects(way)]
    names = [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects]
    try:
        _build(kit)
        kubectl("delete", *names, "--ignore-not-found", "--wait")
        kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        pods = [name for name in names if name.startswith("pod/")]
        kubectl("wait", "--for=condition=Ready", "--timeout=180s", *pods)
        labs = {way: ClusterPods(way) for way in WAYS}
        for lab in labs.values():
            lab.require_way()
            lab.require_services()
        yield labs
        for lab in labs.values():
            lab.require_way()
    except subprocess.CalledProcessError as failed:
        raise LabNotUpError(f"{failed}: {failed.stderr}") from failed
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            kubectl("delete", *names, "--ignore-not-found", "--wait=false")
        shutil.rmtree(ClusterPods.rooms, ignore_errors=True)
