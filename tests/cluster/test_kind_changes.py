"""The cluster changes under requests: pods come and go, the API server is away, the node is restarted.

What is lost is compared with the same on Istio's rules alone. The servers end gracefully, so that a lost request is not
Kubernetes' own.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from agent_host import Requests, agent, in_agent, rolled_out, say, served, status
from kind_host import NODE, docker, held, in_node, kubectl, merlab, pod_of, settled
from tests.cluster import builds
from tests.merlab_cli import told

from merbridge_lab.labs.kind import names
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("agent_lab")]

HERE = ("-n", "default")
#: Servers beside those of the walkthrough. The proxy drains for 5 s; the app goes on for as long and is asked no more.
_SERVERS = """
apiVersion: v1
kind: Service
metadata: {{name: scaled}}
spec:
  selector: {{app: scaled}}
  ports:
    - {{name: http, port: 5000, targetPort: 5000}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: scaled}}
spec:
  replicas: 1
  selector:
    matchLabels: {{app: scaled}}
  strategy:
    rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata:
      labels: {{app: scaled}}
      annotations:
        proxy.istio.io/config: '{{"terminationDrainDuration": "5s"}}'
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: helloworld
          image: {image}
          imagePullPolicy: IfNotPresent
          ports:
            - containerPort: 5000
          resources:
            requests: {{cpu: 10m, memory: 16Mi}}
          lifecycle:
            preStop:
              exec: {{command: [sleep, "7"]}}
"""
_SCALED = "deployment/scaled"


@pytest.fixture(scope="module")
def scaled() -> Iterator[None]:
    """A deployment of servers that end gracefully."""
    kubectl("apply", "-f", "-", stdin=_SERVERS.format(image=builds.ref("helloworld-v1")))
    rolled_out(_SCALED, *HERE)
    yield
    kubectl("delete", "service/scaled", _SCALED, "--ignore-not-found", "--wait", "--cascade=foreground")
    assert poll_until(lambda: not pods("app=scaled"), timeout=60, every=0.5, awaiting="the servers to end")


def pods(selector: str) -> set[str]:
    """Return the names of pods, of those that are ending, too."""
    return set(kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}").split())


def counter(name: str) -> int:
    """Return a counter of sleep's."""
    return int(agent("counters")[f"default/{pod_of('app=sleep')['metadata']['name']}"][name])


def lost_by_scaling(*, by_ebpf: bool) -> tuple[int, int]:
    """Scale from 1 to 10 and back under requests; return how many failed, of how many."""
    say("redirect", "on" if by_ebpf else "off")
    before = counter("outbound_connects")
    requests = Requests("scaled:5000/hello")
    try:
        kubectl("scale", _SCALED, "--replicas=10")
        rolled_out(_SCALED, *HERE)
        assert poll_until(lambda: len(pods("app=scaled") & served()) == 10, timeout=30, awaiting="ten served pods")
        kubectl("scale", _SCALED, "--replicas=1")
        assert poll_until(lambda: len(pods("app=scaled")) == 1, timeout=60, every=0.5, awaiting="nine ended pods")
    finally:
        answers = requests.end()
    intercepted = counter("outbound_connects") - before
    assert intercepted >= len(answers) if by_ebpf else not intercepted
    failed = [each for each in answers if each != "200"]
    print(f"by {'eBPF' if by_ebpf else 'the rules'}: {len(failed)} of {len(answers)} failed", failed)  # noqa: T201
    return len(failed), len(answers)


def compare_scaling() -> None:
    """Check that no more requests are lost with eBPF than with the rules alone."""
    try:
        by_rules, of_rules = lost_by_scaling(by_ebpf=False)
    finally:
        say("redirect", "on")
    by_ebpf, of_ebpf = lost_by_scaling(by_ebpf=True)
    assert min(of_rules, of_ebpf) > 100
    assert by_ebpf <= by_rules


def test_scaling_loses_no_more_than_with_the_rules(scaled: None) -> None:  # noqa: ARG001
    compare_scaling()


@pytest.mark.soak
@pytest.mark.parametrize("run", [1, 2, 3])
def test_scaling_again_and_again(scaled: None, run: int) -> None:  # noqa: ARG001
    compare_scaling()


@pytest.mark.soak
def test_a_rolling_restart_loses_nothing(scaled: None) -> None:  # noqa: ARG001
    before = pods("app=scaled")
    requests = Requests("scaled:5000/hello")
    try:
        kubectl("rollout", "restart", _SCALED)
        rolled_out(_SCALED, *HERE)
        assert poll_until(lambda: not pods("app=scaled") & before, timeout=60, every=0.5, awaiting="the old pod to end")
    finally:
        answers = requests.end()
    assert len(answers) > 50
    assert set(answers) == {"200"}
    assert pods("app=scaled") <= served()


# -- istiod is restarted ----------------------------------------------------------------------------------------------

_ISTIOD = ("-n", "istio-system")


def istiods() -> set[str]:
    """Return the names of istiod's pods, of those that are ending, too."""
    return set(kubectl(*_ISTIOD, "get", "pods", "-l", "app=istiod", "-o", "jsonpath={.items[*].metadata.name}").split())


def told_by(kubeconfig: Path) -> dict[str, str]:
    """Return the istiod that each sidecar gets its configuration from, by the names of the pods."""
    argv = ("istioctl", "--kubeconfig", kubeconfig, "proxy-status")
    rows = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()[1:]
    return {row.split()[0].rpartition(".")[0]: row.split()[2] for row in rows}


@pytest.mark.soak
def test_a_restart_of_istiod_and_then_of_servers_loses_nothing(scaled: None, tmp_path: Path) -> None:  # noqa: ARG001
    """The servers are restarted by the new istiod's injection, with its configuration and certificates."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(subprocess.run(
        ("kind", "get", "kubeconfig", "--name", names.CLUSTER), check=True, capture_output=True, text=True, timeout=60
    ).stdout)  # fmt: skip
    old, was_served, connects = istiods(), served(), counter("outbound_connects")
    old_servers = pods("app=scaled")
    plain, graceful = Requests(), Requests("scaled:5000/hello")
    try:
        kubectl(*_ISTIOD, "rollout", "restart", "deployment/istiod")
        rolled_out("deployment/istiod", *_ISTIOD)
        assert poll_until(lambda: not istiods() & old, timeout=90, every=0.5, awaiting="the old istiod to end")
        (new,) = istiods()
        wanted = dict.fromkeys(was_served, new)
        assert settled(lambda: told_by(kubeconfig), wanted, 60.0) == wanted
        assert served() == was_served
        kubectl("rollout", "restart", _SCALED)
        rolled_out(_SCALED, *HERE)
        ended = poll_until(
            lambda: not pods("app=scaled") & old_servers, timeout=60, every=0.5, awaiting="the old server"
        )
        assert ended
    finally:
        answers = {"helloworld": plain.end(), "scaled": graceful.end()}
    print({name: len(found) for name, found in answers.items()})  # noqa: T201
    assert min(map(len, answers.values())) > 100
    assert {name: set(found) for name, found in answers.items()} == {key: {"200"} for key in answers}
    assert plain.bypassed("app=helloworld,version=v1", "app=helloworld,version=v2") == set()
    assert counter("outbound_connects") - connects >= sum(map(len, answers.values())), "all were by eBPF"
    assert pods("app=scaled") <= served()


# -- the API server is away -------------------------------------------------------------------------------------------

_MANIFESTS, _ASIDE = "/etc/kubernetes/manifests", "/root"
_API = "kube-apiserver.yaml"
_STATIC = "alone"
#: Seconds; a lease of the node lasts 40.
_AWAY = 60.0
#: A sidecar's listeners, without istiod: whatever comes in is handed on to where it was meant to go.
_LISTENER = """
- name: "{port}"
  address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
  listener_filters:
    - name: destination
      typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}
  filter_chains:
    - filters:
        - name: proxy
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
            stat_prefix: proxy
            cluster: original
"""
_CLUSTER = {"name": "original", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}


def envoy_settings() -> str:
    """Return the configuration of that Envoy; YAML is a superset of JSON."""
    listeners = [one for port in (15001, 15006) for one in yaml.safe_load(_LISTENER.format(port=port))]
    return json.dumps({"static_resources": {"clusters": [_CLUSTER], "listeners": listeners}})


def static_pod() -> dict[str, Any]:
    """Return a pod that the kubelet starts by itself: Istio's rules as sleep has them, and an Envoy without istiod."""
    sleep = pod_of("app=sleep")["spec"]
    rules = copy.deepcopy(next(one for one in sleep["initContainers"] if one["name"] == "istio-init"))
    proxy = next(one for one in sleep["containers"] if one["name"] == "istio-proxy")
    rules.pop("volumeMounts", None)
    envoy = {
        "name": "istio-proxy",
        "image": proxy["image"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["envoy", "--config-yaml", envoy_settings(), "--concurrency", "1", "--base-id", "7"],
        "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
    }
    app = {
        "name": "app",
        "image": builds.ref("helloworld-v1"),
        "imagePullPolicy": "IfNotPresent",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _STATIC, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 1, "initContainers": [rules], "containers": [envoy, app]},
    }


def api_answers() -> bool:
    """Report whether the API server answers on the node."""
    return in_node("curl", "-sk", "-m", "2", "https://127.0.0.1:6443/readyz", check=False) == "ok"


def state_on_the_node(pod: str) -> str:
    """Return the state of a pod as the agent tells without the API server: asked on the node, by its runtime."""
    found = [one for one in json.loads(in_agent("status", "--json")[1])["pods"] if one["name"] == pod]
    return str(found[0]["state"]) if found else ""


@pytest.mark.soak
def test_without_the_api_server_requests_go_on_and_a_new_pod_is_served() -> None:
    pod, requests = static_pod(), Requests()
    began = time.monotonic()
    try:
        in_node("mv", f"{_MANIFESTS}/{_API}", f"{_ASIDE}/{_API}")
        assert poll_until(lambda: not api_answers(), timeout=60, every=0.5, awaiting="the API server to end")
        in_node("sh", "-c", f"cat >{_MANIFESTS}/{_STATIC}.yaml", stdin=json.dumps(pod))
        name = f"{_STATIC}-{NODE}"
        assert settled(lambda: state_on_the_node(name), "served", 60.0) == "served"
        code, text = in_agent("status")
        assert code == 0, text
        assert "the API server does not answer; what is served goes on" in text
        assert poll_until(lambda: time.monotonic() - began > _AWAY, timeout=_AWAY, every=0.5, awaiting="a minute")
        assert state_on_the_node(name) == "served"
    finally:
        in_node("rm", "-f", f"{_MANIFESTS}/{_STATIC}.yaml")
        in_node("mv", f"{_ASIDE}/{_API}", f"{_MANIFESTS}/{_API}")
        assert poll_until(api_answers, timeout=90, every=0.5, awaiting="the API server")
        answers = requests.end()
    assert len(answers) > 100
    assert set(answers) == {"200"}
    assert requests.bypassed("app=helloworld,version=v1", "app=helloworld,version=v2") == set()
    # It answers on the node before the cluster's own address leads to it again.
    assert settled(lambda: status()["api_server"], None, 30.0) is None


# -- the node is restarted --------------------------------------------------------------------------------------------


def served_or_none() -> set[str]:
    """Return the names of the pods that are served; none while the agent cannot be asked yet."""
    try:
        return served()
    except subprocess.CalledProcessError:
        return set()


@pytest.mark.soak
def test_after_a_restart_of_the_node_all_is_served_again() -> None:
    before = served()
    docker("restart", "--time", "5", NODE)
    assert poll_until(api_answers, timeout=120, every=1.0, awaiting="the API server")
    for each in ("sleep", "helloworld-v1", "helloworld-v2"):
        rolled_out(f"deployment/{each}", *HERE)
    rolled_out()
    assert settled(served_or_none, before, 60.0) == before
    assert held(merlab("step", "6"))
    assert told(merlab("status", "--json"))["problems"] == []
