"""Random annotations of Istio's, and random destinations that lie at their edges."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random

TRAFFIC = "traffic.sidecar.istio.io/"
#: Ports that annotations and destinations share, so that they meet: Istio's own among them.
PORTS = (22, 53, 80, 443, 3306, 5000, 8080, 9000, 15000, 15001, 15006, 15008, 15020, 15021, 15053, 15090, 65535)
#: Blocks that ranges are cut from: some within others.
BLOCKS = ("10.0.0.0/8", "10.96.0.0/12", "10.99.7.0/24", "10.99.0.0/16", "172.16.0.0/12", "192.0.2.0/24")


class Destination(NamedTuple):
    """What a process dials."""

    ip: str
    port: int


def _ports(rng: random.Random) -> str:
    return ",".join(str(port) for port in rng.sample(PORTS, rng.randint(1, 5)))


def _range(rng: random.Random) -> str:
    block = ipaddress.ip_network(rng.choice(BLOCKS))
    at = rng.randrange(block.num_addresses)
    return f"{block[at]}/{rng.choice((block.prefixlen, rng.randint(block.prefixlen, 32), 32))}"


def _ranges(rng: random.Random) -> str:
    odd = rng.choice(("0.0.0.0/0", "127.0.0.0/8", "::1/128", "2001:db8::/32"))
    found = [_range(rng) for _ in range(rng.randint(1, 5))] + [odd] * (rng.random() < 0.15)
    rng.shuffle(found)
    return ",".join(found)


def annotations(rng: random.Random) -> dict[str, str]:
    """Return the annotations of a pod, each there or not."""
    values = {
        "includeOutboundIPRanges": lambda: rng.choice(("*", "", _ranges(rng), _ranges(rng), _ranges(rng))),
        "excludeOutboundIPRanges": lambda: rng.choice(("", _ranges(rng), _ranges(rng))),
        "includeOutboundPorts": lambda: rng.choice(("", _ports(rng), _ports(rng))),
        "excludeOutboundPorts": lambda: rng.choice(("", _ports(rng), _ports(rng))),
        "includeInboundPorts": lambda: rng.choice(("*", "", _ports(rng), _ports(rng))),
        "excludeInboundPorts": lambda: rng.choice(("", _ports(rng), _ports(rng))),
    }
    return {TRAFFIC + name: value() for name, value in values.items() if rng.random() < 0.5}


def destination(rng: random.Random, made: dict[str, str], others: tuple[str, ...]) -> Destination:
    """Return an address and a port: often at the first or last address of a range, or just outside; or of `others`."""
    ranges = [
        ipaddress.ip_network(each, strict=False)
        for name, text in made.items()
        if "Ranges" in name
        for each in text.split(",")
        if "." in each
    ]
    kind = rng.random()
    if kind < 0.4:
        ip = rng.choice(others)
    elif kind < 0.8 and ranges:
        block = rng.choice(ranges)
        first, last = int(block[0]), int(block[-1])
        ip = str(
            ipaddress.ip_address((rng.choice((first, last, first - 1, last + 1, rng.randint(first, last)))) % 2**32)
        )
    else:
        block = ipaddress.ip_network(rng.choice(BLOCKS))
        ip = str(block[rng.randrange(block.num_addresses)])
    ports = [int(port) for name, text in made.items() if "Ports" in name for port in text.split(",") if port.isdigit()]
    return Destination(ip, rng.choice((*PORTS, *ports, *ports)))
