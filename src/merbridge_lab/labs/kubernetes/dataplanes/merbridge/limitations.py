"""The legs of a request that upstream is known not to accelerate: by the sidecars' kind and the apps' sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import tcp_sockets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.preflight import NATIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

_PORT = 5000


def of(place: NodeView, sidecars: str, servers: Sequence[KubernetesWorkload]) -> dict[str, str]:
    """Return, by leg, why it is not accelerated."""
    if sidecars != "classic":
        return dict.fromkeys(("mesh", "inbound"), NATIVE)
    blind = [one.name for one in servers if _only_ipv6(place.process(one.found(refresh=False)[1].pid))]
    if not blind:
        return {}
    why = "listens on a socket for IPv6 and IPv4 alike, and Merbridge looks at sockets of IPv4 alone"
    return {"inbound": f"the app of {' and of '.join(blind)} {why}"}


def _only_ipv6(process: Path) -> bool:
    """Report whether the app accepts IPv4 connections on an IPv6 socket."""
    try:
        return not listens((process / "net/tcp").read_text()) and listens((process / "net/tcp6").read_text())
    except OSError:  # it ended: the next call to it reports that
        return False


def listens(table: str) -> bool:
    """Report whether a socket in the table of /proc/net/tcp or tcp6 listens on the apps' port."""
    return any(each.port == _PORT for each in tcp_sockets.listeners(table))
