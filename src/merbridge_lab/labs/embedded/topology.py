"""What the embedded lab is made of, as data: pods, services, addresses, ports, users and names.

Istio's own ports and its user are in istio_facts.py; addresses are what a kind cluster would assign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

#: Everything that the lab creates has this name and is found by it.
NAME = "merlab"
RUN = Path("/run") / NAME
#: What MERLAB_NAME may be.
LAB_NAME = re.compile(r"merlab(-[a-z0-9]{1,16})?")

NODE = "node"
NODE_ADDRESS = "10.244.0.1"
DOMAIN = "default.svc.cluster.local"
TRUST_DOMAIN = "cluster.local"

#: The user of an app ("nobody").
APP_ID = 65534

HTTP_PORT = 5000
ECHO_PORT = 9000

BACKENDS = ("nft", "legacy")


#: The annotations of a pod: pairs of a name and a value.
Annotations = Sequence[tuple[str, str]]


def lab_names() -> list[str]:
    """List the names of the embedded labs that may exist; their directory is made first and removed last."""
    return sorted(each.name for each in RUN.parent.glob(f"{NAME}*") if LAB_NAME.fullmatch(each.name))


@dataclass(frozen=True)
class ServiceEndpoint:
    """One pod behind a service, and the account that its certificate must name."""

    address: str
    account: str

    @property
    def identity(self) -> str:
        """The SPIFFE identity in the certificate, as Istio writes it."""
        return spiffe(self.account)


@dataclass(frozen=True)
class Service:
    """A Kubernetes Service: a name and a virtual address for several pods; `protocol` is "http" or "tcp"."""

    name: str
    vip: str
    port: int
    protocol: str
    endpoints: tuple[ServiceEndpoint, ...]

    @property
    def host(self) -> str:
        """The full name, as in a cluster."""
        return f"{self.name}.{DOMAIN}"

    @property
    def cluster(self) -> str:
        """The name of the outbound cluster in a sidecar, as Istio forms it."""
        return f"outbound|{self.port}||{self.host}"

    @property
    def sni(self) -> str:
        """The server name that a sidecar sends in its TLS hello, as Istio forms it."""
        return f"outbound_.{self.port}_._.{self.host}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the service in /etc/hosts of every pod."""
        return (self.name, self.host)


def spiffe(account: str) -> str:
    """Return the SPIFFE identity of a service account."""
    return f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}"


_HELLOWORLDS = (ServiceEndpoint("10.244.0.11", "helloworld-v1"), ServiceEndpoint("10.244.0.12", "helloworld-v2"))

SERVICES = (
    Service("helloworld", "10.96.0.10", HTTP_PORT, "http", _HELLOWORLDS),
    Service("echo", "10.96.0.11", ECHO_PORT, "tcp", _HELLOWORLDS),
)


@dataclass(frozen=True)
class PodSpec:
    """All properties that tell one pod from another.

    `app` is "sleep" or "helloworld". `mesh` puts the pod where the dataplane serves it; it is false for a control pod.
    `backend` is the kind of iptables that its rules are loaded with. `permissive` accepts plain text beside mutual TLS.
    `foreign` gives it a certificate of an authority that nobody else trusts. `services` is what its sidecar and its
    /etc/hosts know; `serves` are those of them that its app answers. `annotations` are Istio's: its rules are made from
    them, and eBPF decides alike. `logged` has its sidecar write an access log. `idle` is how long a sidecar keeps a
    connection to another that carries nothing, as Envoy writes a duration.
    """

    name: str
    ip: str
    app: str
    version: str = ""
    mesh: bool = True
    sidecar: bool = True
    rules: bool = True
    backend: str = "nft"
    permissive: bool = False
    foreign: bool = False
    services: tuple[Service, ...] = SERVICES
    annotations: tuple[tuple[str, str], ...] = ()
    serves: tuple[Service, ...] = ()
    logged: bool = True
    idle: str = "1s"

    @property
    def identity(self) -> str:
        """The SPIFFE identity in its certificate."""
        return spiffe(self.name)

    @property
    def branch(self) -> str:
        """The path of its cgroup below the lab's."""
        return "mesh" if self.mesh else "twins"

    @property
    def inbound(self) -> tuple[Service, ...]:
        """The services whose ports its app serves."""
        return SERVICES if self.app == "helloworld" else self.serves

    @property
    def has_envoy(self) -> bool:
        """Whether the pod sees Envoy's program: as its sidecar, or as the server of a bench pod."""
        return self.sidecar or bool(self.serves)

    @property
    def veth(self) -> str:
        """The node's end of its link; an interface name holds 15 characters, too few for a pod's."""
        _, _, subnet, host = self.ip.split(".")
        return f"veth{host}" if subnet == "0" else f"veth{subnet}-{host}"


PODS = (
    PodSpec("sleep", "10.244.0.10", "sleep"),
    PodSpec("helloworld-v1", "10.244.0.11", "helloworld", version="v1"),
    PodSpec("helloworld-v2", "10.244.0.12", "helloworld", version="v2"),
)

#: How many pods a lab may have: the last one has the last address of the range of replicas.
FEWEST_PODS, MOST_PODS = len(PODS), 254


def replica(number: int, backend: str = "nft") -> PodSpec:
    """Return pod `number` of a lab that has more than the walkthrough's three: one more sleep, with its own sidecar.

    It is a client, because an app that only sleeps adds next to nothing to its Envoy's memory.
    """
    return replace(PODS[0], name=f"{PODS[0].name}-{number}", ip=f"10.244.2.{number}", backend=backend)


def replicas(count: int, backend: str = "nft") -> tuple[PodSpec, ...]:
    """Return the pods of a lab of `count` pods that are not those of the walkthrough."""
    return tuple(replica(number, backend) for number in range(FEWEST_PODS + 1, count + 1))


#: All pods that a lab may have at most, except for control and bench pods.
ALL_PODS = (*PODS, *replicas(MOST_PODS))

#: The first address of a control pod is 10.244.0.(this).
FIRST_TWIN = 100


def pods(backend: str = "nft") -> tuple[PodSpec, ...]:
    """Return the pods of the walkthrough with their rules in `backend`."""
    return tuple(replace(pod, backend=backend) for pod in PODS)


def control_client(of: PodSpec, number: int = 0, **changes: object) -> PodSpec:
    """Return a copy of `of` that the dataplane does not serve; `number` (0 to 9) tells several of one pod apart.

    `changes` are other fields of PodSpec.
    """
    place = int(of.ip.rpartition(".")[2]) - int(PODS[0].ip.rpartition(".")[2])
    address = f"10.244.0.{FIRST_TWIN + 10 * number + place}"
    fields = {"name": f"{of.name}-twin{number or ''}", "ip": address, "mesh": False, **changes}
    return replace(of, **fields)  # type: ignore[arg-type]


#: The control pair with which `verify` shows what happens without eBPF.
TWIN_SERVICE = "helloworld-twin"
#: Another node's range of addresses: to the pods here, the control client is a client from outside.
_OUTSIDE = "10.244.1.200"


def control_pair(backend: str = "nft") -> tuple[PodSpec, PodSpec]:
    """Return a client and a server that the dataplane does not serve, complete with sidecars of their own.

    The client also knows the real services. The server is behind a service of its own, without a virtual address (in
    Kubernetes: headless), so it takes no traffic from the real pods and the node needs no rule for it.
    """
    sleep, helloworld, *_ = pods(backend)
    server = control_client(helloworld, version="twin")
    headless = Service(TWIN_SERVICE, server.ip, HTTP_PORT, "http", (ServiceEndpoint(server.ip, server.name),))
    client = control_client(sleep, 2, ip=_OUTSIDE, services=(*SERVICES, headless))
    return client, server


#: The ports of a bench pod's server besides HTTP_PORT: where iperf3 listens, and a server that does not read.
BULK_PORT = 9000
UNREAD_PORT = 9001
#: The two equal sets of bench pods, and the one without sidecars.
BENCH_SLOTS = ("a", "b")
BENCH_DIRECT = "direct"
#: The first address of a bench pod is 10.244.0.(this).
_FIRST_BENCH = 210


def bench_pods(slot: str, backend: str = "nft") -> tuple[PodSpec, PodSpec]:
    """Return client and server of a set of bench pods: "a" and "b" are alike, "direct" is without sidecars and rules.

    Their sidecars write no access log, as by Istio's default: each request would be a line. They keep idle connections
    for so short that a set can change its way between two rounds.
    """
    place = _FIRST_BENCH + 2 * (*BENCH_SLOTS, BENCH_DIRECT).index(slot)
    address, name = f"10.244.0.{place + 1}", f"bench-{slot}-server"
    endpoint = ServiceEndpoint(address, name)
    ports = ((HTTP_PORT, "http"), (BULK_PORT, "tcp"), (UNREAD_PORT, "tcp"))
    services = tuple(Service(f"bench-{slot}", address, port, protocol, (endpoint,)) for port, protocol in ports)
    meshed = slot != BENCH_DIRECT
    client = PodSpec(
        f"bench-{slot}-client",
        f"10.244.0.{place}",
        "sleep",
        mesh=False,
        sidecar=meshed,
        rules=meshed,
        backend=backend,
        services=services,
        logged=False,
        idle="0.2s",
    )
    return client, replace(client, name=name, ip=address, serves=services)


#: The names of all bench pods.
BENCH_NAMES = frozenset(pod.name for slot in (*BENCH_SLOTS, BENCH_DIRECT) for pod in bench_pods(slot))
