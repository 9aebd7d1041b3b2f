"""Who captures packets in the lab's network namespaces: reported, but no failure.

A learner's tcpdump has a packet socket, and changes nothing. A process that sends on one can forge packets. But the
proof counts only what went through two sidecars that authenticate each other by mutual TLS, over links, routes and
neighbours that are compared exactly. Forged packets can break such traffic, which is detected, but cannot fake it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import descriptors, netns, packet_sockets
from merbridge_lab.evidence import Reading
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from pathlib import Path


def readings(name: str, namespace: Path) -> tuple[Reading, ...]:
    """Return who has packet sockets in a network namespace."""
    source = f"packet:{name}"
    try:
        found = netns.run_inside(namespace, packet_sockets.here)
    except FileNotFoundError:
        return ()  # no namespace, no sockets
    except OSError as error:
        return (Reading(source, "", None, str(unread(f"who captures packets in {name}", error))),)
    told = (
        f"{descriptors.owner(each.inode)} gets {each.what} of {each.link or 'all links'}, and may send any"
        for each in found
    )
    return tuple(Reading(source, "", None, each) for each in told)
