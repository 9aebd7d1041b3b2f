"""The agent is killed, upgraded and downgraded under requests without a pause: none fails, none bypasses a sidecar."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from agent_host import (
    AGENT,
    DAEMONSET,
    Requests,
    agent,
    another_version,
    daemonset,
    kill_container,
    of_agent,
    restored,
    rolled_out,
    served,
    status,
)
from kind_host import NODE, docker, in_node, kubectl, pod_of
from tests.cluster import builds

from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("agent_lab")]

CLIENT = "app=sleep"
SERVERS = ("app=helloworld,version=v1", "app=helloworld,version=v2")


@contextlib.contextmanager
def requests_that_all_pass(least: int = 50) -> Iterator[Requests]:
    """Check of the requests during the block that each was answered, intercepted by eBPF, and seen by both sidecars."""
    requests = Requests()
    try:
        yield requests
    finally:
        answers = requests.end()
    assert len(answers) > least
    assert set(answers) == {"200"}
    assert requests.bypassed(*SERVERS) == set()


def intercepted() -> int:
    """Return how many connections of sleep eBPF has intercepted."""
    return int(agent("counters")[f"default/{pod_of(CLIENT)['metadata']['name']}"]["outbound_connects"])


def bpftool(*words: str) -> str:
    """Run bpftool on this machine, whose kernel the node has."""
    return subprocess.run(("bpftool", *words), check=True, capture_output=True, text=True).stdout


def pinned() -> set[int]:
    """Return the ids of the pinned programs; no agent need run."""
    shown = in_node("sh", "-c", f"ls /sys/fs/bpf/{manifest.PINS}/progs").split()
    process = docker("inspect", "--format", "{{.State.Pid}}", NODE).strip()
    root = f"/proc/{process}/root/sys/fs/bpf/{manifest.PINS}/progs"
    found = [json.loads(bpftool("--json", "prog", "show", "pinned", f"{root}/{name}")) for name in shown]
    return {each["id"] for each in found}


def the_pods() -> set[str]:
    """Return the names of the mesh's pods."""
    return {pod_of(selector)["metadata"]["name"] for selector in (CLIENT, *SERVERS)}


@pytest.fixture(scope="module")
def another() -> Iterator[str]:
    """An image with another version of the programs; in the end the node is as it was, with the first one."""
    before, image = daemonset(), another_version()
    yield image
    restored(before)
    assert status()["ready"]
    docker("image", "rm", image)


def run_version(image: str, **env: str) -> None:
    """Have the DaemonSet run an image, with variables of its environment; do not wait for its pods."""
    container = {"name": manifest.CONTAINER, "image": image}
    variables = [{"name": name, "value": value} for name, value in env.items()]
    pods = {"spec": {"containers": [{**container, "env": variables}]}}
    kubectl(*AGENT, "patch", DAEMONSET, "-p", json.dumps({"spec": {"template": pods}}))


def test_it_is_killed_and_the_next_adopts_its_pins() -> None:
    before, counted, restarts = pinned(), intercepted(), _restarts()
    with requests_that_all_pass() as requests:
        (container,) = of_agent("{.items[*].status.containerStatuses[*].containerID}")
        kill_container(container)
        awaited = "the agent to be started again"
        assert poll_until(lambda: _restarts() > restarts, timeout=30, every=0.5, awaiting=awaited)
        rolled_out()
    assert pinned() == before, "the same programs, by their ids"
    assert intercepted() - counted >= len(requests.statuses), "each of them was intercepted"


def _restarts() -> int:
    return sum(map(int, of_agent("{.items[*].status.containerStatuses[*].restartCount}")))


def test_it_is_upgraded(another: str) -> None:
    before = pinned()
    with requests_that_all_pass():
        run_version(another)
        rolled_out()
    assert not pinned() & before
    assert served() == the_pods()
    counted = intercepted()
    with requests_that_all_pass(5) as requests:
        assert poll_until(lambda: requests.number() > 5, timeout=20, every=0.5, awaiting="requests")
    assert intercepted() - counted >= len(requests.statuses), "each of them was intercepted"


@pytest.mark.usefixtures("another")
def test_it_is_downgraded_on_purpose_and_never_by_itself() -> None:
    """Two versions that are both installed must not replace each other in turns."""
    before, first = pinned(), builds.ref("agent")
    generation = status()["generation"]
    with requests_that_all_pass():
        run_version(first)
        refusal = "a newer agent has been in charge of this node"
        awaited = "the older agent to refuse"
        assert poll_until(lambda: refusal in _log(first), timeout=60, every=1.0, awaiting=awaited)
        assert pinned() == before
        run_version(first, MERLAB_GENERATION=str(generation + 1))
        rolled_out()
    assert not pinned() & before
    assert served() == the_pods()
    assert status()["generation"] == generation + 1


def _log(image: str) -> str:
    """Return the log of the agent's pod that runs an image; empty if there is none yet."""
    found = json.loads(kubectl(*AGENT, "get", "pods", "-o", "json"))["items"]
    names = [one["metadata"]["name"] for one in found if one["spec"]["containers"][0]["image"] == image]
    return "".join(kubectl(*AGENT, "logs", name, check=False) for name in names)
