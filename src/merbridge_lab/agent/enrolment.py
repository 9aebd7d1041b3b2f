"""Enrolment by proof: decide whether eBPF can serve a pod as Istio's rules would.

Nothing here is by name. A pod is enrolled if the kernel shows that its own sidecar accepts its inbound connections, as
the user that Istio's rules exempt. Whatever cannot be shown is left to the rules, with the reason.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from merbridge_lab.agent.refusals import Refusal
from merbridge_lab.dataplane import istio_annotations
from merbridge_lab.istio_facts import HEALTH_PORT, INBOUND_PORT, STATS_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.adapters.cri_runtime import Sandbox
    from merbridge_lab.agent.pod_facts import PodFacts

#: The label, of a pod or a namespace, that names its dataplane; any other value than ours opts out.
LABEL, OURS = "merlab.dev/dataplane", "merlab"
#: Parts of the names of runtimes whose pods have a kernel of their own, or none.
_SANDBOXED = ("runsc", "gvisor", "kata", "firecracker", "wasm", "quark", "peerpod", "remote")
_AMBIENT_ANNOTATIONS = {"ambient.istio.io/redirection": ("enabled", "pending")}
_AMBIENT_LABELS = {"istio.io/dataplane-mode": ("ambient",)}
_MODE = "sidecar.istio.io/interceptionMode"


def of_sandbox(sandbox: Sandbox) -> Refusal | None:
    """Return why a pod is refused by what its sandbox says alone; None if the kernel must be asked."""
    return _of_its_kind(sandbox) or _of_annotations(sandbox) or _addresses(sandbox.addresses)


def _of_its_kind(sandbox: Sandbox) -> Refusal | None:
    if opts_out(sandbox.labels):
        return Refusal("opted_out", f"it has the label {LABEL}={sandbox.labels[LABEL]}")
    if sandbox.is_on_host_network:
        return Refusal("host_network", "it is on the network of the node")
    runtime = f"{sandbox.handler} {sandbox.runtime_type}".lower()
    if any(each in runtime for each in _SANDBOXED):
        return Refusal("sandboxed_runtime", f"its runtime {sandbox.handler!r} does not use the kernel of the node")
    return None


def _of_annotations(sandbox: Sandbox) -> Refusal | None:
    for found, names in ((sandbox.annotations, _AMBIENT_ANNOTATIONS), (sandbox.labels, _AMBIENT_LABELS)):
        for name, values in names.items():
            if found.get(name) in values:
                return Refusal("ambient", f"it is in ambient mode: {name} is {found[name]}")
    mode = sandbox.annotations.get(_MODE, "REDIRECT")
    if mode != "REDIRECT":
        return Refusal("interception_mode", f"{_MODE} is {mode}, not REDIRECT")
    why = istio_annotations.unsupported(sandbox.annotations)
    return Refusal("annotation", why) if why else None


def opts_out(labels: Mapping[str, str]) -> bool:
    """Report whether the labels of a pod or a namespace name another dataplane than ours."""
    return labels.get(LABEL, OURS) != OURS


def _addresses(addresses: tuple[str, ...]) -> Refusal | None:
    if len(addresses) == 1 and ipaddress.ip_address(addresses[0]).version == 4:  # noqa: PLR2004 - of IP
        return None
    if not addresses:
        return Refusal("unread", "the runtime does not report its address yet")
    return Refusal("addresses", f"it has the addresses {', '.join(addresses)}, and eBPF serves one IPv4 address")


def of_kernel(facts: PodFacts) -> Refusal | None:
    """Return why a pod is refused by what the kernel shows of it; None if it is to be served."""
    return _of_namespaces(facts) or _of_listeners(facts) or _of_sidecar(facts)


def _of_namespaces(facts: PodFacts) -> Refusal | None:
    if facts.unread:
        return Refusal("unread", facts.unread)
    if facts.is_host_netns:
        return Refusal("host_network", "its network namespace is the node's")
    if facts.sharing:
        return Refusal("shared_netns", f"its network namespace is also that of {facts.sharing}")
    if facts.cgroup is None:
        return Refusal("cgroup", "it has no cgroup of its own in the hierarchy of version 2")
    return None


def _of_listeners(facts: PodFacts) -> Refusal | None:
    ports = {each.port for each in facts.listeners}
    if facts.rules is None and not facts.is_proven:
        return _without_rules(ports)
    if facts.rules is not None and facts.rules.has_tproxy:
        return Refusal("interception_mode", "its rules are those of TPROXY, not REDIRECT")
    if facts.difference:
        return Refusal("rules_differ", f"its rules are not those that its annotations imply: {facts.difference}")
    if INBOUND_PORT not in ports:
        return Refusal("no_listener", f"nothing listens on port {INBOUND_PORT} in it yet")
    return None


def _without_rules(ports: set[int]) -> Refusal:
    if INBOUND_PORT in ports:
        return Refusal("no_rules", f"Istio's rules are not in it, although something listens on port {INBOUND_PORT}")
    if ports & {HEALTH_PORT, STATS_PORT}:
        return Refusal("gateway", f"it has an Envoy, but nothing listens on port {INBOUND_PORT}: a gateway")
    return Refusal("no_sidecar", "it has neither Istio's rules nor a sidecar")


def _of_sidecar(facts: PodFacts) -> Refusal | None:
    if facts.foreign:
        return Refusal(
            "listener_foreign", f"no process of the pod holds the socket that listens on port {INBOUND_PORT}"
        )
    if facts.sidecar is None:
        return Refusal("sidecar_user", facts.unknown_user)
    uid = facts.sidecar.uid
    owners = {each.uid for each in facts.listeners if each.port == INBOUND_PORT}
    if owners != {uid}:
        others = ", ".join(map(str, sorted(owners - {uid})))
        return Refusal(
            "listener_user", f"the socket on port {INBOUND_PORT} is of user {others}, its process runs as user {uid}"
        )
    if facts.rules is not None and uid not in facts.rules.users:
        users = ", ".join(map(str, sorted(facts.rules.users))) or "no user"
        return Refusal(
            "listener_user",
            f"user {uid} listens on port {INBOUND_PORT}, but Istio's rules exempt {users}: it is not the sidecar",
        )
    if facts.rules is not None and (besides := facts.rules.users - {uid}):
        users = ", ".join(map(str, sorted(besides)))
        return Refusal("rules_differ", f"its rules exempt user {users}, too, who is not the sidecar: eBPF would not")
    return None
