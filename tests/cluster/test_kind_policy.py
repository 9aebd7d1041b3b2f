"""NetworkPolicies by a real controller, kube-router's, on the lab with merlab's own dataplane.

It writes rules of iptables on the node for each pod. They see the connections between sidecars as they are dialled:
with the port that the app asked for, not with one of the sidecar's. Where eBPF carries the bytes, it is the same.
The image is a lazy one (versions.yaml): kube-router is built when this file runs, so not for `make test-cluster`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent_host import Requests, agent, load_into_node, rolled_out, served
from kind_host import _in_network_of, in_node, kubectl, pod_of
from tests.cluster import builds

from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.usefixtures("agent_lab")]

PORT = 5000
_CONTROLLER = Path(__file__).with_name("kube-router.yaml")
#: Chains, rules and sets that have one of these in their name are kube-router's.
_ITS_OWN = re.compile(r"KUBE-(ROUTER|NWPLCY|POD-FW|DST|SRC)-")
_NOTHING = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nothing}
spec:
  podSelector: {}
  policyTypes: [Ingress]
"""
_PORT_OF_THE_APP = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: port-of-the-app}}
spec:
  podSelector: {{matchLabels: {{app: helloworld}}}}
  policyTypes: [Ingress]
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: sleep}}}}}}]
      ports: [{{protocol: TCP, port: {PORT}}}]
"""


def rules_with(*parts: str) -> dict[str, int]:
    """Return the filter rules of the node that contain all parts, each with the number of packets that it matched."""
    saved = in_node("iptables-save", "-c", "-t", "filter").splitlines()
    found = (re.fullmatch(r"\[(\d+):\d+] (-A .*)", line) for line in saved if all(part in line for part in parts))
    return {match[2]: int(match[1]) for match in found if match}


def matched(*rules: tuple[str, ...]) -> list[int]:
    """Return how many packets each of these rules matched."""
    return [sum(rules_with(*each).values()) for each in rules]


def its_own() -> list[str]:
    """Return what there is of kube-router's in the node's kernel: lines of iptables, and sets."""
    lines = [*in_node("iptables-save").splitlines(), *in_node("ipset", "list", "-n").splitlines()]
    return [line for line in lines if _ITS_OWN.search(line)]


@pytest.fixture(scope="module")
def controller() -> Iterator[None]:
    """kube-router as a controller of NetworkPolicies alone; in the end nothing of it is left."""
    image = builds.on_request("kube-router")
    load_into_node(image)
    text = _CONTROLLER.read_text().replace("@IMAGE@", image)
    assert not its_own()
    kubectl("apply", "-f", "-", stdin=text)
    try:
        rolled_out("daemonset/kube-router", "-n", "kube-system")
        assert poll_until(its_own, timeout=30, every=0.5, awaiting="its first rules")
        yield
    finally:
        kubectl("delete", "networkpolicy", "--all")
        kubectl("delete", "-f", "-", "--wait", "--cascade=foreground", stdin=text)
        # It leaves its rules when it ends. The others of the table are put back as they are, in one go.
        saved = in_node("iptables-save", "-t", "filter").splitlines(keepends=True)
        in_node("iptables-restore", stdin="".join(line for line in saved if not _ITS_OWN.search(line)))
        for name in in_node("ipset", "list", "-n").split():
            if _ITS_OWN.search(name):
                in_node("ipset", "destroy", name)
        in_node("ctr", "-n", "k8s.io", "images", "rm", image)
    assert not its_own()


def applied(policy: str, *parts: str) -> None:
    """Apply a NetworkPolicy, and wait until the controller has written rules that contain all parts."""
    kubectl("apply", "-f", "-", stdin=policy)
    assert poll_until(lambda: rules_with(*parts), timeout=30, every=0.5, awaiting="the controller's rules")


def servers() -> list[dict[str, Any]]:
    return [pod_of(f"app=helloworld,version={version}") for version in ("v1", "v2")]


def forget(client: str, addresses: list[str]) -> None:
    """End the connections to the servers, which policies let go on, and have the kernel forget their flows."""
    _in_network_of("app=sleep", "ss", "--kill", "state", "established", "dport", "=", f":{PORT}")
    for address in addresses:
        in_node("conntrack", "-D", "-p", "tcp", "-s", client, "-d", address, check=False)


def flows(client: str, addresses: list[str]) -> set[tuple[str, str]]:
    """Return the flows from the client that the node's connection tracking knows, by their address and port."""
    found = set()
    for address in addresses:
        listed = in_node("conntrack", "-L", "-p", "tcp", "-s", client, "-d", address)
        found |= {(address, port) for port in re.findall(r" dport=(\d+) src=", listed)}
    return found


def counters(pod: Mapping[str, Any]) -> Mapping[str, int]:
    return dict(agent("counters")[f"default/{pod['metadata']['name']}"])


def answered(least: int) -> Requests:
    """Make requests, at least so many, and end them."""
    requests = Requests()
    try:
        assert poll_until(lambda: requests.number() >= least, timeout=90, every=0.5, awaiting=f"{least} answers")
    finally:
        requests.end()
    return requests


def metrics(address: str) -> str:
    """Return how sleep is answered on a port of the pod that is no Service's; "000" if it is not."""
    dial = f"curl -s -m 5 -o /dev/null -w %{{http_code}} http://{address}:15020/stats/prometheus || true"
    return kubectl("exec", "deploy/sleep", "-c", "sleep", "--", "sh", "-c", dial)


def test_port_5000_alone_is_allowed_by_a_controller_and_served(controller: None) -> None:  # noqa: ARG001
    client, targets = pod_of("app=sleep"), servers()
    here, there = client["status"]["podIP"], [each["status"]["podIP"] for each in targets]
    names = {pod["metadata"]["name"] for pod in (client, *targets)}
    assert set(answered(10).statuses.values()) == {"200"}, "a controller without policies changes nothing"
    assert [metrics(each) for each in there] == ["200", "200"], "nor for another port"

    rejects = [("REJECT", f"POD name:{each['metadata']['name']} ") for each in targets]
    for address in there:
        applied(_NOTHING, f"-d {address}/32", "nw policy nothing")
    forget(here, there)
    before_that = matched(*rejects)
    assert set(answered(8).statuses.values()) == {"503"}, "nothing is allowed"
    assert all(now > then for now, then in zip(matched(*rejects), before_that, strict=True))

    allow = ("policy name port-of-the-app ", f"--dport {PORT}", "-j MARK")
    applied(_PORT_OF_THE_APP, *allow)
    assert served() >= names
    forget(here, there)
    assert flows(here, there) == set()
    refused, allowed = matched(*rejects), matched(allow)
    before = {pod["metadata"]["name"]: counters(pod) for pod in (client, *targets)}
    requests = answered(30)
    assert set(requests.statuses.values()) == {"200"}
    assert requests.bypassed("app=helloworld,version=v1", "app=helloworld,version=v2") == set()
    after = {pod["metadata"]["name"]: counters(pod) for pod in (client, *targets)}
    print(json.dumps({"flows": sorted(flows(here, there)), "allowed": rules_with(*allow)}))  # noqa: T201

    def moved(pod: Mapping[str, Any], name: str) -> int:
        return after[pod["metadata"]["name"]][name] - before[pod["metadata"]["name"]][name]

    assert moved(client, "outbound_connects") >= len(requests.statuses)
    assert moved(client, "mesh_connects") >= len(targets), "each has a new connection, intercepted by eBPF"
    for each in targets:
        assert moved(each, "mesh_redirected_bytes") > 0, "and eBPF carries it"
    # What the node's flow log and the policy's rule say of it is the port that the app dialled.
    assert flows(here, there) == {(address, str(PORT)) for address in there}
    assert matched(allow) > allowed
    assert matched(*rejects) == refused

    # Another port of theirs is refused: so it was the policy that let 5000 through.
    before_that = matched(*rejects)
    assert [metrics(each) for each in there] == ["000", "000"]
    assert all(now > then for now, then in zip(matched(*rejects), before_that, strict=True))
