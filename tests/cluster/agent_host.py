"""The agent of merlab's dataplane on the test cluster: its word, the kernel's, and requests that go on beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

from tests.cluster import builds
from tests.cluster.kind_host import NODE, docker, in_node, kubectl, merlab

from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest
from merbridge_lab.polling import poll_until

AGENT = ("-n", manifest.NAMESPACE)
DAEMONSET = f"daemonset/{manifest.NAME}"
PINS = f"/sys/fs/bpf/{manifest.PINS}"
#: Seconds within which sidecars have written their access logs: Envoy keeps lines back for a while.
_LOGGED = 20.0


def up(*words: str) -> Any:
    return merlab("up", "--dataplane", "merlab", "--json", *words)


def say(*words: str) -> str:
    """Run a command of merlab in the agent's container by kubectl; return what it prints."""
    return kubectl(*AGENT, "exec", DAEMONSET, "--", "merlab", "agent", *words)


def in_agent(*words: str) -> tuple[int, str]:
    """Run a command of merlab in the agent's container, by the node's runtime; return its exit status and output."""
    ctr = ("ctr", "-n", "k8s.io")
    containers = in_node(*ctr, "containers", "ls", "-q", f'labels."io.kubernetes.container.name"=={manifest.CONTAINER}')
    running = [row.split() for row in in_node(*ctr, "tasks", "ls").splitlines()]
    (container,) = {row[0] for row in running if row[2:] == ["RUNNING"]} & set(containers.split())
    argv = (*ctr, "tasks", "exec", "--exec-id", uuid.uuid4().hex[:8], container, "merlab", "agent", *words)
    done = subprocess.run(("docker", "exec", NODE, *argv), check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def agent(*words: str) -> Any:
    """Return what the agent prints as JSON."""
    return json.loads(say(*words, "--json"))


def status() -> dict[str, Any]:
    """Return what the agent tells of the node, whether it is ready or not."""
    words = (*AGENT, "exec", DAEMONSET, "--", "sh", "-c", "merlab agent status --json || true")
    return dict(json.loads(kubectl(*words)))


def state_of(pod: str) -> tuple[str, str]:
    """Return the state of a pod, and the id of its reason, as the agent tells; empty if it does not know the pod."""
    found = [one for one in status()["pods"] if one["name"] == pod]
    return (found[0]["state"], found[0].get("reason_id") or "") if found else ("", "")


def served() -> set[str]:
    """Return the names of the pods that are served."""
    return {one["name"] for one in status()["pods"] if one["state"] == "served"}


def loaded() -> set[str]:
    """Return the programs of the agent, and the maps that they use, by their ids in this machine's kernel."""
    found = set()
    for each in agent("programs")["programs"]:
        found.add(f"prog {each['id']}")
        argv = ("bpftool", "--json", "prog", "show", "id", str(each["id"]))
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        found |= {f"map {number}" for number in json.loads(said).get("map_ids", ())}
    return found


def in_kernel(objects: set[str]) -> set[str]:
    """Return those that are still in the kernel."""
    left = set()
    for each in objects:
        kind, number = each.split()
        argv = ("bpftool", kind, "show", "id", number)
        if subprocess.run(argv, check=False, capture_output=True).returncode == 0:
            left.add(each)
    return left


def on_node() -> dict[str, list[Any]]:
    """Return what `down --keep-cluster` must leave on the node as it was: pins, programs, files, namespaces."""
    process = docker("inspect", "--format", "{{.State.Pid}}", NODE).strip()
    root = Path(f"/proc/{process}/root/sys/fs/cgroup")
    cgroup = root if (root / "cgroup.controllers").exists() else root / "unified"
    tree = subprocess.run(("bpftool", "cgroup", "tree", cgroup), check=True, capture_output=True, text=True).stdout
    return {
        "pins": in_node("find", "/sys/fs/bpf").splitlines(),
        "attached": [line.split()[1:] for line in tree.splitlines()[1:] if line.startswith(" ")],
        "files": in_node("sh", "-c", "ls -d /run/merlab* /var/lib/merlab* 2>/dev/null || true").split(),
        "namespaces": kubectl("get", "namespaces", "-o", "name").split(),
    }


def of_agent(path: str) -> list[str]:
    """Return a field of the agent's pods, by its JSONPath."""
    return kubectl(*AGENT, "get", "pods", "-o", f"jsonpath={path}").split()


def rolled_out(resource: str = DAEMONSET, *where: str) -> None:
    """Wait until a change of a DaemonSet or a Deployment has reached its pods."""
    kubectl(*(where or AGENT), "rollout", "status", resource, "--timeout=120s")


def kill_container(container: str) -> None:
    """End a container's process, by its id."""
    tasks = [line.split() for line in in_node("ctr", "-n", "k8s.io", "tasks", "ls").splitlines()]
    in_node("kill", "-9", next(row[1] for row in tasks if row[0] == container.rpartition("/")[2]))


def restored(stored: str) -> None:
    """Put the DaemonSet back as it was, with a node that remembers no generation, and wait until all is served."""
    in_node("rm", "-f", "/var/lib/merlab-agent/generation")
    kubectl("replace", "-f", "-", stdin=stored)
    rolled_out()


def daemonset() -> str:
    """Return the DaemonSet, as it can be put back."""
    found = json.loads(kubectl(*AGENT, "get", DAEMONSET, "-o", "json"))
    for each in ("resourceVersion", "uid", "generation", "creationTimestamp"):
        found["metadata"].pop(each, None)
    return json.dumps({**found, "status": {}})


#: Run in the image's build: the same programs under another digest of their sources, so another version of the pins.
_CHANGE = """
import json
from merbridge_lab.dataplane import abi
source, compiled = abi.BPF / "merlab.c", abi.BPF / "compiled.json"
with source.open("a") as text:
    text.write("// another version\\n")
compiled.write_text(json.dumps({**json.loads(compiled.read_text()), "stamp": abi.stamp()}))
"""


def another_version() -> str:
    """Make an image of the agent with another version of the programs, load it into the node, and return its name."""
    name = builds.ref("agent").rpartition(":")[0] + ":another"
    text = f"FROM {builds.ref('agent')}\nRUN {json.dumps(['python3', '-c', _CHANGE])}\n"
    argv = ("docker", "build", "-q", "--network=none", "-t", name, "-")
    subprocess.run(
        argv, input=text, text=True, check=True, capture_output=True, env=os.environ | {"DOCKER_BUILDKIT": "0"}
    )
    load_into_node(name)
    return name


def load_into_node(name: str) -> None:
    """Copy an image of the Docker daemon to the node's runtime."""
    with subprocess.Popen(("docker", "save", name), stdout=subprocess.PIPE) as saved:
        into = ("docker", "exec", "-i", NODE, "ctr", "-n", "k8s.io", "images", "import", "-")
        subprocess.run(into, stdin=saved.stdout, check=True, capture_output=True)


# -- requests ---------------------------------------------------------------------------------------------------------

#: Run in sleep. What became of each is a line "NUMBER STATUS"; the last line is "ended".
_STREAM = """
n=0
while [ ! -e {answers}.end ]; do
    n=$((n + 1))
    status=$(curl -s -m 20 -o /dev/null -w '%{{http_code}}' -H 'x-request-id: {id}-'$n {url})
    echo "$n $status"
done >{answers}
echo ended >>{answers}
"""


class Requests:
    """Requests of sleep without a pause, from now until `end`: one curl in its pod, on one connection after another.

    They go on in the pod, also while the API server is away, through which the pod is reached.
    """

    def __init__(self, url: str = "helloworld:5000/hello") -> None:
        self.id = uuid.uuid4().hex
        self._answers = f"/tmp/{self.id}"  # noqa: S108 - in a pod
        #: What each was answered, by its number.
        self.statuses: dict[int, str] = {}
        script = _STREAM.format(id=self.id, url=url, answers=self._answers)
        _in_sleep("sh", "-c", f"({script}) </dev/null >/dev/null 2>&1 &")

    def number(self) -> int:
        """Return how many were answered until now."""
        return len(self._read())

    def end(self) -> list[str]:
        """Stop, and return the status of each."""
        _in_sleep("touch", f"{self._answers}.end")
        assert poll_until(self._has_ended, timeout=30, every=0.5, awaiting="the last request")
        self.statuses = self._read()
        return list(self.statuses.values())

    def _has_ended(self) -> bool:
        return _in_sleep("tail", "-n", "1", self._answers) == "ended\n"

    def bypassed(self, *selectors: str) -> set[str]:
        """Return the answered ones that are missing in the access log of the client's or of all servers' sidecars."""
        wanted = {f"{self.id}-{number}" for number, status in self.statuses.items() if status == "200"}
        missing: set[str] = wanted

        def found() -> bool:
            nonlocal missing
            client = self._logged("app=sleep")
            servers = set().union(*map(self._logged, selectors))
            missing = wanted - (client & servers)
            return not missing

        poll_until(found, timeout=_LOGGED, every=2.0, awaiting="the sidecars' access logs")
        return missing

    def _logged(self, selector: str) -> set[str]:
        log = kubectl("logs", "-l", selector, "-c", "istio-proxy", "--tail=-1")
        return set(re.findall(rf"{self.id}-\d+", log))

    def _read(self) -> dict[int, str]:
        lines = [line.split() for line in _in_sleep("cat", self._answers).splitlines()]
        return {int(line[0]): line[1] for line in lines if len(line) == 2}


def _in_sleep(*argv: str) -> str:
    return kubectl("exec", "deploy/sleep", "-c", "sleep", "--", *argv)
