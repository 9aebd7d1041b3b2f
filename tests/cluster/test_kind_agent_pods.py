"""The kind lab with merlab's own dataplane, and pods that are not like sleep and helloworld.

What the agent tells of them is looked up at the API server; whether eBPF had a part in it, in the pinned maps.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from agent_host import (
    AGENT,
    DAEMONSET,
    PINS,
    agent,
    daemonset,
    kill_container,
    of_agent,
    on_node,
    restored,
    rolled_out,
    state_of,
    up,
)
from kind_host import _KUBECTL, _in_network_of, held, in_node, kubectl, merlab, pod_of, settled
from tests.cluster import builds

from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# ruff: noqa: ARG001 - what a test needs to be there, it does not always use

pytestmark = pytest.mark.cluster

PORT = 5000
_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{{labels}}}
  annotations: {{{annotations}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: {image}
      imagePullPolicy: IfNotPresent
      resources: {{requests: {{cpu: 1m, memory: 8Mi}}}}
"""
_SLEEP = "      command: [sleep, infinity]\n"
_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: again}
spec:
  selector: {app: again}
  ports: [{name: http, port: 5000}]
"""
_OUT = "sidecar.istio.io/inject: 'false'"
#: Pods that run during all tests: labels, annotations, image.
PODS: dict[str, tuple[str, str, str]] = {
    "not-followed": ("", "traffic.sidecar.istio.io/excludeInterfaces: eth9", "curl"),
    "opted-out": ("merlab.dev/dataplane: none", "", "curl"),
    "excluding": ("", "traffic.sidecar.istio.io/excludeOutboundPorts: '5000'", "curl"),
    "plain": (_OUT, "", "curl"),
    "plain-server": (_OUT, "", "helloworld-v1"),
}


def pod(name: str, labels: str = "", annotations: str = "", image: str = "curl") -> str:
    made = _POD.format(name=name, labels=labels, annotations=annotations, image=builds.ref(image))
    return made + (_SLEEP if image == "curl" else "")


def create(*texts: str, names: tuple[str, ...]) -> None:
    kubectl("apply", "-f", "-", stdin="---".join(texts))
    kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))


def ip_of(name: str) -> str:
    return kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")


def curl(client: str, url: str, *, container: str = "app") -> str:
    """Return what a server answers a pod; "" if there is no answer."""
    argv = ("exec", client, "-c", container, "--", "sh", "-c", f"curl -s -m 3 {url} || true")
    return kubectl(*argv)


def sleep() -> str:
    return str(pod_of("app=sleep")["metadata"]["name"])


def counters(name: str) -> Mapping[str, int]:
    return dict(agent("counters").get(f"default/{name}", {}))


def events(name: str) -> dict[str, dict[str, Any]]:
    """Return the agent's events on a pod by reason, as kubectl gets them: of several with one reason the newest."""
    chosen = f"involvedObject.name={name},reportingComponent={manifest.NAME}"
    found = json.loads(kubectl("get", "events", "--field-selector", chosen, "-o", "json"))["items"]
    # They come in the order of their names, which are digests.
    return {one["reason"]: one for one in sorted(found, key=lambda one: str(one.get("eventTime")))}


def last(name: str) -> tuple[str, str]:
    """Return the type and the reason of the agent's only event on a pod."""
    found = [(one["type"], reason) for reason, one in events(name).items()]
    return found[0] if len(found) == 1 else ("", f"{found}")


@pytest.fixture(scope="module")
def lab(agent_lab: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
    """The lab with merlab's dataplane and the pods; what was on its node before the dataplane."""
    create(*(pod(name, *told) for name, told in PODS.items()), _SERVICE, names=tuple(PODS))
    yield agent_lab
    kubectl("delete", "service/again", *(f"pod/{name}" for name in PODS), "--ignore-not-found", "--wait=false")


# -- events -----------------------------------------------------------------------------------------------------------


def test_pods_of_the_mesh_have_events_that_say_whether_ebpf_serves_them(lab: object) -> None:
    wanted = {
        "not-followed": ("Warning", "Annotation"),
        "opted-out": ("Normal", "OptedOut"),
        "excluding": ("Normal", "Served"),
        sleep(): ("Normal", "Served"),
    }
    assert settled(lambda: {name: last(name) for name in wanted}, wanted, 40.0) == wanted
    refused = events("not-followed")["Annotation"]
    assert refused["message"].startswith("It is left to Istio's rules: ")
    assert "excludeInterfaces" in refused["message"]
    assert refused["involvedObject"]["uid"] == kubectl("get", "pod", "not-followed", "-o", "jsonpath={.metadata.uid}")
    assert "Annotation" in kubectl("describe", "pod", "not-followed")
    assert state_of("not-followed") == ("refused", "annotation")
    assert not events("plain"), "it is not of the mesh"


def test_the_agent_may_do_no_more_at_the_api_than_it_does(lab: object) -> None:
    account = f"--as=system:serviceaccount:{manifest.NAMESPACE}:{manifest.NAME}"
    may = {
        (verb, what): in_node(*_KUBECTL, "auth", "can-i", verb, what, "-A", account, check=False).strip()
        for verb, what in (
            ("create", "events.events.k8s.io"), ("patch", "events.events.k8s.io"), ("create", "events"),
            ("get", "namespaces"), ("list", "namespaces"), ("get", "pods"), ("get", "secrets"),
        )
    }  # fmt: skip
    assert [each for each, answer in may.items() if answer == "yes"] == [
        ("create", "events.events.k8s.io"),
        ("get", "namespaces"),
    ]


# -- what its pods ask for --------------------------------------------------------------------------------------------


def test_an_excluded_port_is_left_alone_and_works(lab: object) -> None:
    """The same request from sleep, which excludes nothing, is intercepted: so it would have been seen."""
    url = f"http://{ip_of('plain-server')}:{PORT}/hello"
    for client, container, intercepted in (("excluding", "app", 0), (sleep(), "sleep", 1)):
        before = counters(client)
        assert "instance: plain-server" in curl(client, url, container=container)
        assert counters(client)["outbound_connects"] - before["outbound_connects"] == intercepted, client
    before = counters("excluding")
    curl("excluding", f"http://{ip_of('plain-server')}:{PORT + 1}/")
    assert counters("excluding")["outbound_connects"] - before["outbound_connects"] == 1, "no other port is excluded"


_POLICY = """
table inet merlab_test {{
  set pods {{ type ipv4_addr; elements = {{ {pods} }} }}
  counter new_5000 {{ }}
  counter other {{ }}
  chain forward {{
    type filter hook forward priority filter;
    ip daddr @pods tcp dport 5000 ct state new counter name new_5000 accept
    ip daddr @pods ct state established,related accept
    ip daddr @pods counter name other drop
  }}
}}
"""


def packets(counter: str) -> int:
    told = json.loads(in_node("nft", "--json", "list", "counter", "inet", "merlab_test", counter))
    return int(next(each["counter"]["packets"] for each in told["nftables"] if "counter" in each))


@pytest.fixture
def policy(lab: object) -> Iterator[None]:
    """Stand in for a controller of NetworkPolicies: to helloworld's pods port 5000 is allowed, and nothing else."""
    pods = kubectl("get", "pods", "-l", "app=helloworld", "-o", "jsonpath={.items[*].status.podIP}").split()
    in_node("nft", "-f", "-", stdin=_POLICY.format(pods=", ".join(pods)))
    yield
    in_node("nft", "delete", "table", "inet", "merlab_test")


def test_where_a_policy_allows_port_5000_alone_requests_are_served_on_that_port(policy: None) -> None:
    server = pod_of("app=helloworld,version=v1")
    address, name = server["status"]["podIP"], server["metadata"]["name"]
    _in_network_of("app=sleep", "ss", "--kill", "state", "established", "dport", "=", f":{PORT}")
    before = counters(sleep()), counters(name)
    answers = [curl(sleep(), f"helloworld:{PORT}/hello", container="sleep") for _ in range(8)]
    assert all(answer.startswith("Hello version") for answer in answers), answers
    assert {answer.split()[2].strip(",") for answer in answers} == {"v1", "v2"}
    assert packets("new_5000") >= 1, "the connection of the sidecars has the port that the app dialled"
    assert packets("other") == 0
    after = counters(sleep()), counters(name)
    assert after[0]["mesh_connects"] > before[0]["mesh_connects"]
    assert after[1]["mesh_redirected_bytes"] > before[1]["mesh_redirected_bytes"], "and eBPF carried it"
    assert curl("plain", f"http://{address}:15006/") == ""
    assert packets("other") >= 1, "what goes to the sidecar's own port is seen, and dropped"


# -- sidecars with several workers ------------------------------------------------------------------------------------

_WORKERS = 4
#: More than the two that a sidecar has by default; and Envoy's own count of who of them took a connection.
_MANY = (
    f"proxy.istio.io/config: '{{concurrency: {_WORKERS}, "
    'proxyStatsMatcher: {inclusionRegexps: ["listener.*worker_.*downstream_cx_total"]}}\''
)
_STREAMS = """
apiVersion: v1
kind: Service
metadata: {name: working}
spec:
  selector: {app: working}
  ports: [{name: tcp, port: 5000}]
"""
#: Connections; that none of them comes to a second worker has a chance of 4 to the power of -39.
_DIALS = 40


@pytest.fixture
def workers(lab: object) -> Iterator[None]:
    """A client and a server whose sidecars have several workers, each with a listening socket of its own."""
    texts = pod("dialling", "", _MANY), pod("working", "app: working", _MANY, "helloworld-v1")
    create(*texts, _STREAMS, names=("dialling", "working"))
    yield
    kubectl("delete", "service/working", "pod/dialling", "pod/working", "--ignore-not-found", "--wait=false")


def envoys_statistics(name: str) -> str:
    return kubectl("exec", name, "-c", "istio-proxy", "--", "curl", "-s", "localhost:15000/stats")


def busy_workers(name: str, listener: str) -> set[str]:
    """Return the workers of a sidecar that have had a connection of a listener, by Envoy's own statistics."""
    counted = rf"^listener\.{re.escape(listener)}\.(worker_\d+)\.downstream_cx_total: [1-9]"
    return set(re.findall(counted, envoys_statistics(name), re.MULTILINE))


def dial() -> list[str]:
    """Return the status of each of many requests, one after another, each on a connection of its own."""
    script = f"for i in $(seq {_DIALS}); do curl -s -m 5 -o /dev/null -w '%{{http_code}} ' working:{PORT}/hello; done"
    return kubectl("exec", "dialling", "-c", "app", "--", "sh", "-c", f"{script}; true").split()


def check_that_all_go_by_ebpf() -> None:
    """Check that connections go by eBPF on all three legs, and that several workers take them at both ends."""
    for name in ("dialling", "working"):
        assert settled(lambda name=name: state_of(name), ("served", "")) == ("served", "")
    assert poll_until(lambda: set(dial()) == {"200"}, timeout=20, every=0.5, awaiting="the service to be known")
    before = counters("dialling"), counters("working")
    assert dial() == ["200"] * _DIALS
    after = counters("dialling"), counters("working")
    client, server = ({key: now[key] - then[key] for key in now} for then, now in zip(before, after, strict=True))
    seen = [client[each] for each in ("outbound_connects", "accepted_outbound", "mesh_connects")]
    seen += [server[each] for each in ("accepted_mesh", "inbound_connects", "accepted_inbound")]
    assert seen == [_DIALS] * 6
    assert client["mesh_redirected_messages"] >= _DIALS <= server["mesh_redirected_messages"]
    assert client["mesh_tcp_messages"] == 0 == server["mesh_tcp_messages"]
    # The one on port 15001 hands its connections over to that of the service.
    address = kubectl("get", "service", "working", "-o", "jsonpath={.spec.clusterIP}")
    for name, listener in (("dialling", f"{address}_{PORT}"), ("working", "0.0.0.0_15006")):
        assert len(busy_workers(name, listener)) > 1, name


def test_sidecars_with_several_workers_are_served_also_after_a_restart(workers: None) -> None:
    for name in ("dialling", "working"):
        assert f"server.concurrency: {_WORKERS}\n" in envoys_statistics(name)
    check_that_all_go_by_ebpf()
    for name in ("dialling", "working"):
        kill_container(proxy_of(name)["containerID"])
        restarted = lambda name=name: (proxy := proxy_of(name))["restartCount"] and proxy["ready"]  # noqa: E731
        assert poll_until(restarted, timeout=60, every=0.5, awaiting="the sidecar to be started again")
    check_that_all_go_by_ebpf()


def proxy_of(name: str) -> dict[str, Any]:
    """Return the state of a pod's sidecar, which is a container or, as the newer form, an init container."""
    found = json.loads(kubectl("get", "pod", name, "-o", "json"))["status"]
    containers = (*found["containerStatuses"], *found.get("initContainerStatuses", ()))
    return dict(next(one for one in containers if one["name"] == "istio-proxy"))


# -- addresses --------------------------------------------------------------------------------------------------------


def at_once(gone: str, name: str, *told: str) -> str:
    """Replace a pod by another one that gets its address at once; return the address."""
    address = ip_of(gone)
    kubectl("delete", "pod", gone, "--wait")
    # The CNI plugin continues behind the address that it gave last.
    first, _, number = address.rpartition(".")
    in_node("sh", "-c", f"echo -n {first}.{int(number) - 1} > $(ls /run/cni-ipam-state/*/last_reserved_ip.0)")
    create(pod(name, *told), names=(name,))
    assert ip_of(name) == address
    return address


@pytest.mark.soak
def test_pods_that_have_one_address_after_another_are_never_mixed(lab: object) -> None:
    """Two with sidecars, then one without: who dials the address reaches the pod that has it, in the way that it is."""
    create(pod("again-1", "app: again", "", "helloworld-v1"), names=("again-1",))
    url = f"again:{PORT}/hello"
    assert poll_until(lambda: "again-1" in curl(sleep(), url, container="sleep"), timeout=20, awaiting="the first pod")
    assert settled(lambda: state_of("again-1"), ("served", "")) == ("served", "")

    address = at_once("again-1", "again-2", "app: again", "", "helloworld-v2")
    assert settled(lambda: state_of("again-2"), ("served", "")) == ("served", "")
    assert poll_until(lambda: "Hello" in curl(sleep(), url, container="sleep"), timeout=20, awaiting="the second pod")
    answers = {curl(sleep(), url, container="sleep").strip() for _ in range(10)}
    assert answers == {"Hello version: v2, instance: again-2"}
    assert counters("again-2")["accepted_mesh"] >= 1 <= counters("again-2")["mesh_redirected_bytes"]
    assert "default/again-1" not in agent("counters")
    assert state_of("again-1") == ("", "")

    assert at_once("again-2", "again-3", _OUT, "", "helloworld-v1") == address
    assert settled(lambda: state_of("again-3"), ("refused", "no_sidecar")) == ("refused", "no_sidecar")
    for client, container in (("plain", "app"), (sleep(), "sleep")):
        before = counters(client)
        answers = {curl(client, f"http://{address}:{PORT}/hello", container=container).strip() for _ in range(5)}
        assert answers == {"Hello version: v1, instance: again-3"}, client
        assert counters(client).get("mesh_connects", 0) == before.get("mesh_connects", 0), "it is no pod of the mesh"
    kubectl("delete", "pod", "again-3", "--wait=false")


# -- what a node lacks ------------------------------------------------------------------------------------------------


def told(*arguments: str) -> None:
    """Give the agent's container other arguments; a new pod has them when this returns."""
    patched({"op": "replace", "path": "containers/0/args", "value": ["run", *arguments]})


def patched(*operations: dict[str, Any]) -> None:
    """Change the agent's pods by operations of JSON Patch; a new pod runs when this returns."""
    before = _agent_uid()
    patch = [{**each, "path": f"/spec/template/spec/{each['path']}"} for each in operations]
    kubectl(*AGENT, "patch", DAEMONSET, "--type=json", "-p", json.dumps(patch))
    assert poll_until(
        lambda: (now := _agent_uid()) and now != before and _is_running(), timeout=60, every=0.5, awaiting="a new agent"
    )


def _agent_uid() -> str:
    return kubectl(*AGENT, "get", "pods", "-l", f"app={manifest.NAME}", "-o", "jsonpath={.items[*].metadata.uid}")


def _is_running() -> bool:
    path = "jsonpath={.items[*].status.containerStatuses[*].state.running}"
    return bool(kubectl(*AGENT, "get", "pods", "-o", path))


def status() -> tuple[dict[str, Any], str]:
    """Return what the agent's status says as JSON, and what it says instead."""
    words = (*AGENT, "exec", f"ds/{manifest.NAME}", "--", "sh", "-c", "merlab agent status --json 2>&1 || true")
    said = kubectl(*words)
    try:
        return json.loads(said), ""
    except ValueError:
        return {}, said


@pytest.mark.soak
def test_without_the_runtimes_socket_it_says_so_and_what_is_served_goes_on(lab: object) -> None:
    told("--cri", "/run/containerd/none.sock")
    found = poll_until(lambda: status()[0].get("runtime"), timeout=20, every=0.5, awaiting="the reason")
    assert "/run/containerd/none.sock" in str(found)
    assert not status()[0]["ready"]
    before = counters(sleep())
    assert curl(sleep(), f"helloworld:{PORT}/hello", container="sleep").startswith("Hello version")
    assert counters(sleep())["outbound_connects"] == before["outbound_connects"] + 1
    told()
    kubectl(*AGENT, "rollout", "status", f"daemonset/{manifest.NAME}", "--timeout=60s")


def lacking(*operations: dict[str, Any]) -> None:
    """Have the agent run again, on a node that nothing is attached to, with such changes of its container."""
    kubectl(*AGENT, "set", "env", DAEMONSET, "MERLAB_AGENT=remove")
    rolled_out()
    patched({"op": "remove", "path": "containers/0/env"}, *operations)


@pytest.fixture
def as_it_was(lab: object) -> Iterator[None]:
    """The DaemonSet is as it was in the end, and serves again."""
    stored = daemonset()
    yield
    restored(stored)
    assert settled(lambda: state_of(sleep()), ("served", ""), 20.0) == ("served", "")


def nothing_is_attached(before: dict[str, list[Any]]) -> bool:
    """Report whether no pin and no program is on the node; requests go by the rules all the same."""
    found = on_node()
    assert curl(sleep(), f"helloworld:{PORT}/hello", container="sleep").startswith("Hello version")
    return [found[each] for each in ("pins", "attached")] == [before[each] for each in ("pins", "attached")]


@pytest.mark.soak
def test_without_btf_every_pod_has_the_reason_and_nothing_is_half_attached(
    lab: dict[str, list[Any]], as_it_was: None
) -> None:
    """An empty volume covers what the kernel tells of its types."""
    mount = {"name": "nothing", "mountPath": "/sys/kernel/btf", "readOnly": True}
    lacking(
        {"op": "add", "path": "volumes/-", "value": {"name": "nothing", "emptyDir": {}}},
        {"op": "add", "path": "containers/0/volumeMounts/-", "value": mount},
    )
    assert poll_until(lambda: status()[0].get("programs"), timeout=20, every=0.5, awaiting="the reason")
    found = status()[0]
    assert "BTF" in found["programs"]
    assert (found["ready"], found["redirecting"]) == (False, None)
    assert settled(lambda: state_of(sleep()), ("refused", "not_attached")) == ("refused", "not_attached")
    assert poll_until(lambda: "NotAttached" in events(sleep()), timeout=60, every=1.0, awaiting="the event")
    assert "BTF" in events(sleep())["NotAttached"]["message"]
    assert nothing_is_attached(lab)


@pytest.mark.soak
@pytest.mark.parametrize("capability", ["NET_ADMIN", "SYS_ADMIN"])
def test_without_a_capability_it_says_so_and_nothing_is_half_attached(
    lab: dict[str, list[Any]], as_it_was: None, capability: str
) -> None:
    path = "containers/0/securityContext/capabilities/add"
    had = json.loads(daemonset())["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]
    lacking({"op": "replace", "path": path, "value": [each for each in had if each != capability]})
    assert poll_until(lambda: status()[0].get("programs"), timeout=20, every=0.5, awaiting="the reason")
    found = status()[0]
    assert found["programs"] == f"the agent may not attach programs: it lacks CAP_{capability}"
    assert (found["ready"], found["redirecting"]) == (False, None)
    assert settled(lambda: state_of(sleep()), ("pending", "unread")) == ("pending", "unread")
    assert of_agent("{.items[*].status.containerStatuses[*].restartCount}") == ["0"], "it goes on, and tries again"
    assert nothing_is_attached(lab)


@pytest.mark.soak
def test_without_a_bpffs_every_pod_has_the_reason_and_nothing_is_half_attached(lab: dict[str, list[Any]]) -> None:
    kubectl(*AGENT, "set", "env", f"daemonset/{manifest.NAME}", "MERLAB_AGENT=remove")
    kubectl(*AGENT, "rollout", "status", f"daemonset/{manifest.NAME}", "--timeout=60s")
    removed = on_node()
    assert [removed[each] for each in ("pins", "attached")] == [lab[each] for each in ("pins", "attached")]
    kubectl(*AGENT, "set", "env", f"daemonset/{manifest.NAME}", "MERLAB_AGENT-")
    told("--pins", "/tmp/merlab-agent")  # noqa: S108 - in a pod, where it is no bpffs
    why = "/tmp/merlab-agent is not on a bpffs"  # noqa: S108
    # An earlier test may have left an event of that reason, for another cause.
    seen = lambda: why in events(sleep()).get("NotAttached", {}).get("message", "")  # noqa: E731
    assert poll_until(seen, timeout=60, every=1.0, awaiting="the event")
    assert events(sleep())["NotAttached"]["type"] == "Warning"
    assert "is not on a bpffs" in _status_with_pins("/tmp/merlab-agent")  # noqa: S108
    assert state_of(sleep()) == ("refused", "not_attached")
    assert on_node()["pins"] == lab["pins"], f"no {PINS}"
    assert on_node()["attached"] == lab["attached"]
    assert curl(sleep(), f"helloworld:{PORT}/hello", container="sleep").startswith("Hello version"), "by the rules"


def _status_with_pins(pins: str) -> str:
    command = f"merlab agent status --pins {pins} 2>&1 || true"
    return kubectl(*AGENT, "exec", f"ds/{manifest.NAME}", "--", "sh", "-c", command)


@pytest.mark.soak
def test_merlab_repairs_the_daemonset_and_leaves_nothing(lab: dict[str, list[Any]]) -> None:
    assert held(up("--until", "3"))
    assert settled(lambda: state_of(sleep()), ("served", ""), 20.0) == ("served", "")
    assert held(merlab("down", "--keep-cluster"))
    wanted = [lab[each] for each in ("pins", "attached")]
    assert settled(lambda: [on_node()[each] for each in ("pins", "attached")], wanted) == wanted
    assert held(up("--until", "3")), "for the tests that follow"
