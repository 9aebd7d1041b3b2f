"""merlab's own dataplane: eBPF programs that carry a mesh's traffic from socket to socket, without NAT rules."""

from merbridge_lab.dataplane.detach import Detached
from merbridge_lab.dataplane.discovery import Discovery
from merbridge_lab.dataplane.endpoints import Endpoint, Sidecar
from merbridge_lab.dataplane.istio_annotations import Interception
from merbridge_lab.dataplane.legs import Legs, Profile
from merbridge_lab.dataplane.manager import Dataplane
from merbridge_lab.dataplane.map_readings import Pair
from merbridge_lab.dataplane.program_list import ProgramInfo
from merbridge_lab.dataplane.reconciler import Reconciler, Served
from merbridge_lab.dataplane.strangers import Around

__all__ = [
    "Around",
    "Dataplane",
    "Detached",
    "Discovery",
    "Endpoint",
    "Interception",
    "Legs",
    "Pair",
    "Profile",
    "ProgramInfo",
    "Reconciler",
    "Served",
    "Sidecar",
]
