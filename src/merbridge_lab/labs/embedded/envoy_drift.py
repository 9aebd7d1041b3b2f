"""Check that a sidecar is what merlab started. The source is the running process, not the files it was started with."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

from merbridge_lab import istio_facts, yaml_text
from merbridge_lab.adapters import descriptors, http_probe, tcp_sockets
from merbridge_lab.dataplane import listener_options
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import certificates, envoy, filesystem, topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from merbridge_lab.adapters.procfs import Process
    from merbridge_lab.labs.embedded.topology import PodSpec

#: Which process must serve which port of a pod.
_PORTS = {
    istio_facts.OUTBOUND_PORT: "sidecar",
    istio_facts.INBOUND_PORT: "sidecar",
    istio_facts.HEALTH_PORT: "sidecar",
    istio_facts.ADMIN_PORT: "sidecar",
    istio_facts.STATS_PORT: "sidecar",
    topology.HTTP_PORT: "app",
    topology.ECHO_PORT: "app",
}
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
#: Default values, which protobuf omits from its JSON.
_DEFAULTS: tuple[object, ...] = (None, False, 0, "", "STATIC", "ROUND_ROBIN", [], {})


def differences(
    netns: Path, pod: PodSpec, folder: Path, processes: dict[str, Process], guests: Iterable[Process] = ()
) -> list[str]:
    """Describe, one sentence each, how the pod's processes differ from what merlab started. Raises OSError.

    `guests` are the processes of the app's cgroup: those that `merlab exec` starts may listen on other ports.
    """
    found = list(_usurped(netns, pod, processes, guests))
    if "sidecar" in processes and not found:
        found += _certificate(pod, folder) or _configuration(netns, pod, folder)
    if "app" in processes:
        found += filesystem.differences(pod, processes["app"].pid)
    return found


# -- ports -----------------------------------------------------------------------------------------------------------


def _usurped(netns: Path, pod: PodSpec, processes: dict[str, Process], guests: Iterable[Process]) -> Iterator[str]:
    """Find listeners of other processes than the owners, and ports without one: the more specific address wins."""
    own = {kind: seen.sockets() for kind, seen in processes.items()}
    served = _served(pod)
    there = set()
    for listener in tcp_sockets.listening(netns):
        kind = _PORTS.get(listener.port, "")
        there.add(listener.port)
        if kind in own and listener.inode in own[kind] and listener.port in served:
            continue
        if kind in own:
            besides = f"not only by its {kind}"
        elif listener.uid != topology.APP_ID or not any(listener.inode in guest.sockets() for guest in guests):
            besides = "which is not the pod's"
        else:
            continue
        yield f"port {listener.port} of {pod.name} is served by {descriptors.owner(listener.inode)}, {besides}"
    for port in sorted(served - there):
        kind = _PORTS[port]
        alive = f", although its {kind} (pid {processes[kind].pid}) is there" if kind in processes else ""
        yield f"nobody listens on port {port} of {pod.name}{alive}"


def options(netns: Path, name: str, processes: dict[str, Process]) -> list[str]:
    """Describe which options of the listeners of a pod's processes somebody else has set. Raises OSError.

    If nobody may read their sockets, the dataplane's programs read the same ones and report it.
    """
    with contextlib.suppress(LabError):
        pids = {kind: seen.pid for kind, seen in processes.items()}
        return list(dict.fromkeys(listener_options.problems(name, netns, pids)))
    return []


def _served(pod: PodSpec) -> set[int]:
    """Return the ports on which a pod must listen."""
    served = {port for port, kind in _PORTS.items() if kind == "app"} if pod.app == "helloworld" else set()
    return served | ({port for port, kind in _PORTS.items() if kind == "sidecar"} if pod.sidecar else set())


# -- configuration ---------------------------------------------------------------------------------------------------


def _configuration(netns: Path, pod: PodSpec, folder: Path) -> list[str]:
    """Compare the configuration that the sidecar reports with the one that merlab would give it."""
    where = f"the sidecar of {pod.name}"
    if not envoy.is_configured(pod, folder):
        return [f"the configuration file of {where} is not merlab's ({folder})"]
    dumped = _ask(netns, "/config_dump")
    running = next((each["bootstrap"] for each in dumped.get("configs", ()) if "bootstrap" in each), None)
    if running is None:
        return [f"{where} does not report the configuration that it runs with"]
    wanted = yaml_text.load(envoy.render(pod, folder))
    running["node"] = {key: running["node"].get(key) for key in wanted["node"]}  # Envoy adds its version to the node
    differing = next(_unlike(_plain(wanted), _plain(running), ""), None)
    return [f"{where} runs with another configuration than merlab's: {differing}"] if differing else []


def _ask(netns: Path, path: str) -> dict[str, Any]:
    answer = http_probe.fetch(netns, istio_facts.ADMIN_PORT, path)
    told: Any = json.loads(answer) if answer else {}
    return told if isinstance(told, dict) else {}


def _plain(value: Any) -> Any:  # noqa: ANN401 - YAML and JSON
    """Remove default values, and the place of a private key, which Envoy does not show; convert numbers to strings."""
    if isinstance(value, dict):
        plain = {key: _plain(each) for key, each in value.items() if key != "private_key"}
        return {key: each for key, each in plain.items() if each not in _DEFAULTS}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    # JSON has no 64-bit numbers, so protobuf writes them as strings.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value else value


def _unlike(wanted: Any, running: Any, path: str) -> Iterator[str]:  # noqa: ANN401
    if isinstance(wanted, dict) and isinstance(running, dict):
        for key in wanted.keys() | running.keys():
            yield from _unlike(wanted.get(key), running.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(wanted, list) and isinstance(running, list):
        if len(wanted) != len(running):
            yield f"{path} is {_names(running)}, not {_names(wanted)}"
        for at, (one, other) in enumerate(zip(wanted, running, strict=False)):
            name = one.get("name", at) if isinstance(one, dict) else at
            yield from _unlike(one, other, f"{path}[{name}]")
    elif wanted != running:
        yield f"{path} is {_short(running)}, not {_short(wanted)}"


def _names(values: list[Any]) -> str:
    return ", ".join(str(each.get("name", each) if isinstance(each, dict) else each) for each in values) or "empty"


def _short(value: object) -> str:
    if isinstance(value, str) and (count := value.count(_CERTIFICATE)):
        return f"{count} certificate{'s' * (count > 1)} of SHA-256 {hashlib.sha256(value.encode()).hexdigest()[:12]}"
    text = "not set" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a sentence, not a dump


# -- certificates ----------------------------------------------------------------------------------------------------


def _certificate(pod: PodSpec, folder: Path) -> list[str]:
    """Check the certificate on disk, and its authority's. The configuration shows that Envoy uses them."""
    authority = folder.parent.parent / "ca.pem"
    if problem := certificates.authority_problem(authority):
        return [f"the certificate of the lab's authority {problem}"]
    seen = certificates.look(folder / envoy.CERTIFICATES, authority)
    if problem := _certificate_problem(pod, seen):
        return [f"the certificate of {pod.name} {problem}"]
    if not certificates.trusts(folder / envoy.CERTIFICATES, authority):
        return [f"{pod.name} trusts another authority than the lab's ({folder / envoy.CERTIFICATES})"]
    if problem := certificates.key_problem(folder / envoy.CERTIFICATES):
        return [f"the private key of the sidecar of {pod.name} {problem}"]
    return []


def _certificate_problem(pod: PodSpec, seen: certificates.Seen | str) -> str | None:
    if isinstance(seen, str):
        return f"cannot be read: {seen}"
    if seen.signed is pod.foreign:
        return "is issued by the lab's authority" if seen.signed else "is not issued by the lab's authority"
    if untimely := seen.untimely:
        return untimely
    if seen.identities != (pod.identity,):
        return f"names {', '.join(seen.identities) or 'nobody'}, not {pod.identity}"
    return None
