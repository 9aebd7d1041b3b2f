"""NAT that no rule explains: entries of conntrack that somebody made by hand, in the pods and in the node.

Asked at the end of a proof, when all it sent is remembered still (TIME_WAIT is two minutes). What Istio's rules have
done before a flush stays in the table as well, so each entry must be of the form that those rules give: whatever is
for 15001 or 15006 already, as all is that eBPF sends there, they leave alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab.adapters import conntrack, netns
from merbridge_lab.labs.embedded import topology
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from merbridge_lab.adapters.conntrack import Translated
    from merbridge_lab.labs.embedded.topology import PodSpec

_LOOPBACK = "127.0.0.1"
_SIDECARS = (topology.OUTBOUND_PORT, topology.INBOUND_PORT)


def problems(node: Path, specs: Mapping[str, PodSpec], spaces: Mapping[str, Path]) -> Iterator[str]:
    """Say, a sentence each, what is translated in the node and in each pod that no rule of theirs translates so."""
    every = {topology.NODE: node, **spaces}
    # Side by side: for each namespace the kernel walks through the whole machine's table.
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
    """Whether conntrack did this by itself, where two connections would be alike: nothing but the source's port."""
    return each.seen_destination == each.destination and each.seen_source[0] == each.source[0]


def is_redirected(pod: PodSpec, each: Translated) -> bool:
    """Whether Istio's rules in `pod` do this: what goes out to 15001, what comes in to 15006, of the pod itself."""
    if each.seen_source[0] != each.source[0] or each.destination[1] in _SIDECARS:
        return False
    own = (pod.ip, _LOOPBACK)
    if each.seen_destination == (_LOOPBACK, topology.OUTBOUND_PORT):
        return each.source[0] in own
    return each.seen_destination in [(ip, topology.INBOUND_PORT) for ip in own] and (
        each.destination[0] in own or each.source[0] in own
    )


def is_of_service(each: Translated) -> bool:
    """Whether the node's rules do this: what is for a service goes to one of its pods."""
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
