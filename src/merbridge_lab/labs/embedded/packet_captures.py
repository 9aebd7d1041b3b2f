"""Who captures packets in the lab's network namespaces: told, and no failure.

A learner's tcpdump has a packet socket, and changes nothing. One that sends can forge packets; but what the proof
counts went through two sidecars that know each other by mutual TLS, over links, routes and neighbours that are compared
exactly: forged packets can break that, which is seen, and cannot make it up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns, packet_sockets
from merbridge_lab.evidence import Reading
from merbridge_lab.labs.embedded import envoy_drift
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from pathlib import Path


def readings(name: str, namespace: Path) -> tuple[Reading, ...]:
    """Name who has packet sockets in a network namespace."""
    source = f"packet:{name}"
    try:
        found = netns.run_inside(namespace, packet_sockets.here)
    except FileNotFoundError:
        return ()  # no namespace, no sockets
    except OSError as error:
        return (Reading(source, "", None, str(unread(f"who captures packets in {name}", error))),)
    told = (
        f"{envoy_drift.owner(each.inode)} gets {each.what} of {each.link or 'all links'}, and may send any"
        for each in found
    )
    return tuple(Reading(source, "", None, each) for each in told)
