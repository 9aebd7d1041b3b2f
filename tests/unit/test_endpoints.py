"""Endpoints and their discovery: what the dataplane is told, by whom."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import Dataplane, Discovery, Endpoint, Sidecar, endpoints, health, socket_filters
from merbridge_lab.dataplane.endpoints import address, packed
from merbridge_lab.dataplane.legs import ALL_LEGS
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import SIDECAR_UID
from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
from merbridge_lab.labs.embedded.discovery import EmbeddedDiscovery, left_to_rules

OWN = Path("/proc/self/ns/net")
SIDECAR = Sidecar(7, SIDECAR_UID, SIDECAR_UID)
SLEEP = Endpoint(
    "default", "sleep", "7f0c", "10.244.0.10", OWN, Path("/sys/fs/cgroup"), Sidecar(7, SIDECAR_UID, SIDECAR_UID)
)


class StubDiscovery:
    """Finds what it was given: as an agent would from the API of a cluster."""

    def __init__(self, *found: Endpoint) -> None:
        self.found = found

    def endpoints(self) -> list[Endpoint]:
        return list(self.found)


class Recorder:
    """Stands for the dataplane, and notes the endpoints that it is told of."""

    attached = True

    def __init__(self) -> None:
        self.told: list[tuple[str, list[Endpoint]]] = []
        self.known: dict[str, list[str]] = {}

    def __getattr__(self, name: str):
        def call(endpoints, known=()):
            self.told.append((name, endpoints))
            self.known[name] = known
            return []

        return call

    def programs(self):
        return []

    def not_compared(self):
        return None


def pod(name: str, **more) -> SimpleNamespace:
    """Return what the discovery reads of a pod of the embedded lab."""
    spec = SimpleNamespace(name=name, ip="10.244.0.10", annotations=more.pop("annotations", ()))
    return SimpleNamespace(
        **{"spec": spec, "netns": OWN, "cgroup": Path("/cg", name), "sidecar_pid": 7, "app_pid": 8, **more}
    )


def test_the_kernel_side_stores_an_address_in_network_order():
    assert address(SLEEP.ip4) == SLEEP.ip
    assert packed("127.0.0.1").to_bytes(4, sys.byteorder) == bytes([127, 0, 0, 1])


def test_the_embedded_labs_pods_are_its_endpoints(monkeypatch):
    monkeypatch.setattr(endpoints, "sidecar_of", {7: SIDECAR}.__getitem__)
    monkeypatch.setattr(netns, "cookie", {OWN: 4711}.__getitem__)
    found: Discovery = EmbeddedDiscovery([pod("sleep"), pod("helloworld-v1", sidecar_pid=None)], lambda: ALL_LEGS)
    first, second = found.endpoints()
    assert first == Endpoint(
        "", "sleep", "4711", "10.244.0.10", OWN, Path("/cg/sleep"), Sidecar(7, SIDECAR_UID, SIDECAR_UID)
    )
    assert second.sidecar is None


def test_a_pod_that_ebpf_cannot_serve_is_left_to_the_rules_with_the_reason(monkeypatch):
    def unknown(pid):
        raise LabError(f"the user of the sidecar (pid {pid}) is not known")

    monkeypatch.setattr(endpoints, "sidecar_of", unknown)
    name = "traffic.sidecar.istio.io/excludeInterfaces"
    found = EmbeddedDiscovery(
        [pod("sleep", annotations=((name, "eth1"),)), pod("helloworld-v1")], lambda: ALL_LEGS
    ).endpoints()
    assert left_to_rules(found) == [
        f"sleep is left to the rules: eBPF does not support the annotation {name}: 'eth1'",
        "helloworld-v1 is left to the rules: the user of the sidecar (pid 7) is not known",
    ]


def test_a_pods_annotations_are_read(monkeypatch):
    monkeypatch.setattr(endpoints, "sidecar_of", {7: SIDECAR}.__getitem__)
    annotations = (("traffic.sidecar.istio.io/excludeOutboundPorts", "22"),)
    (found,) = EmbeddedDiscovery([pod("sleep", annotations=annotations)], lambda: ALL_LEGS).endpoints()
    assert (found.interception.excluded_outbound_ports, found.left_to_rules) == ((22,), "")


def test_a_pod_that_is_made_again_is_another_endpoint(monkeypatch):
    cookies = iter((4711, 4712))
    monkeypatch.setattr(netns, "cookie", lambda _path: next(cookies))
    found = EmbeddedDiscovery([pod("sleep")], lambda: ALL_LEGS)
    first, second = found.endpoints(), found.endpoints()
    assert first != second
    assert [each.name for each in (*first, *second)] == ["sleep", "sleep"]


def test_a_pod_that_does_not_exist_has_no_uid(tmp_path):
    (found,) = EmbeddedDiscovery(
        [pod("sleep", netns=tmp_path / "missing", sidecar_pid=None)], lambda: ALL_LEGS
    ).endpoints()
    assert (found.uid, found.sidecar) == ("", None)


def test_the_dataplane_is_told_what_the_discovery_finds(monkeypatch, tmp_path):
    """Whoever finds the endpoints, a lab or an agent: every question about them is about exactly those."""
    machine = SimpleNamespace(
        name="merlab-unit", cgroup=tmp_path, mesh_cgroup=tmp_path / "mesh", bpffs=tmp_path,
        netns=lambda name: tmp_path / name, require_own=lambda: None,
    )  # fmt: skip
    mesh = SimpleNamespace(pods=(), pod=lambda _name: SimpleNamespace(app_pid=None))
    plane = EmbeddedDataplane(machine, mesh)
    plane.discovery, plane._manager = StubDiscovery(SLEEP), Recorder()
    monkeypatch.setattr(socket_filters, "problems", lambda name, processes: [f"{name} {processes}"])
    monkeypatch.setattr(plane, "_older_connections", set)
    plane.ensure()
    plane.pause_interception()
    assert plane.problems() == ["sleep {'sidecar': 7}"]
    assert plane.readings() == ()
    assert plane._manager.known["pause_interception"] == plane.problems()
    told = plane._manager.told[:4]
    assert [name for name, _ in told] == ["attach", "pause_interception", "problems", "others"]
    assert [endpoints for _, endpoints in told] == [[SLEEP]] * 4
    monkeypatch.setattr(plane._manager, "not_compared", lambda: "not that", raising=False)
    assert [reading.not_compared for reading in plane.readings()] == ["not that"]


def test_without_pins_no_endpoint_is_served(tmp_path):
    found = StubDiscovery(SLEEP).endpoints()
    assert health.problems(Pins(tmp_path), found) == [f"nothing is attached: {tmp_path} has no pins"]
    assert Dataplane(tmp_path).problems(found) == [f"nothing is attached: {tmp_path} has no pins"]


def test_sockets_that_may_not_be_read_are_told_of_by_kind(monkeypatch):
    def refused(_pid, what):
        raise LabError(f"{what} is not available")
        yield

    monkeypatch.setattr(socket_filters, "sockets_of", refused)
    with pytest.raises(LabError, match=r"the sockets of the app of sleep \(pid 8\) is not available"):
        list(socket_filters.problems("sleep", {"app": 8}))


def test_own_sockets_without_a_filter_are_no_problem():
    with socket.create_server(("127.0.0.1", 0)):
        try:
            assert list(socket_filters.problems("sleep", {"app": os.getpid()})) == []
        except LabError as barred:  # not every container may call pidfd_getfd
            assert "is not available" in barred.what  # noqa: PT017
