"""NAT that no rule explains: entries of conntrack that somebody created by hand, in the pods and in the node.

They are read at the end of a proof, while conntrack still remembers all its connections (TIME_WAIT is two minutes).
What Istio's rules did before a flush stays in the table as well, so each entry must have the form that those rules
produce. The rules ignore what is already for 15001 or 15006, and everything that eBPF sends there is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts
from merbridge_lab.adapters import conntrack, netns
from merbridge_lab.labs.embedded import topology
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from merbridge_lab.adapters.conntrack import Translated
    from merbridge_lab.labs.embedded.topology import PodSpec

_LOOPBACK = "127.0.0.1"
_SIDECARS = (istio_facts.OUTBOUND_PORT, istio_facts.INBOUND_PORT)


def problems(node: Path, specs: Mapping[str, PodSpec], spaces: Mapping[str, Path]) -> Iterator[str]:
    """Describe, one sentence each, each translation in the node and in the pods that their rules do not produce."""
    every = {topology.NODE: node, **spaces}
    # In parallel: for each namespace, the kernel walks through the whole machine's table.
    with ThreadPoolExecutor(len(every)) as pool:
        asked = {name: pool.submit(netns.run_inside, path, conntrack.translated) for name, path in every.items()}
    for name, answer in asked.items():
        try:
            found = answer.result()
        except OSError as error:
            yield str(unread(f"conntrack's table of {name}", error))
        else:
            is_of_rules = partial(is_redirected, specs[name]) if name in specs else is_of_service
            yield from (_sentence(name, each) for each in found if not (is_told_apart(each) or is_of_rules(each)))


def is_told_apart(each: Translated) -> bool:
    """Report whether conntrack itself did this to keep two connections apart: only the source's port changes."""
    return each.seen_destination == each.destination and each.seen_source[0] == each.source[0]


def is_redirected(pod: PodSpec, each: Translated) -> bool:
    """Report whether Istio's rules in `pod` do this: the pod's outgoing traffic to 15001, its incoming to 15006."""
    if each.seen_source[0] != each.source[0] or each.destination[1] in _SIDECARS:
        return False
    own = (pod.ip, _LOOPBACK)
    if each.seen_destination == (_LOOPBACK, istio_facts.OUTBOUND_PORT):
        return each.source[0] in own
    return each.seen_destination in [(ip, istio_facts.INBOUND_PORT) for ip in own] and (
        each.destination[0] in own or each.source[0] in own
    )


def is_of_service(each: Translated) -> bool:
    """Report whether the node's rules do this: traffic for a service goes to one of its pods."""
    to = [
        (endpoint.address, service.port)
        for service in topology.SERVICES
        for endpoint in service.endpoints
        if each.destination == (service.vip, service.port)
    ]
    return each.seen_source[0] == each.source[0] and each.seen_destination in to


def _sentence(name: str, each: Translated) -> str:
    ends = ("{}:{}".format(*end) for end in (each.source, each.destination, each.seen_destination, each.seen_source))
    source, destination, instead, seen = ends
    as_ = "" if each.seen_source == each.source else f", as from {seen}"
    return f"conntrack of {name} sends what goes from {source} to {destination} to {instead}{as_}, and no rule says so"
