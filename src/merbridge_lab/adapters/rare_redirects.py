"""The rarer ways in which a kernel sends TCP elsewhere or nowhere, which pyroute2 cannot read.

Each function works in the network namespace of the calling thread (netns.run_inside), returns a line of text for each
thing found, and raises OSError.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

from merbridge_lab.adapters import netlink_hooks
from merbridge_lab.text import lines_of

_RTM_GETNEIGH, _NTF_PROXY = 30, 0x08
_RTM_GETNEXTHOP = 106
_NETLINK_XFRM = 6
_XFRM_GET = {"state": 0x12, "policy": 0x15}  # XFRM_MSG_GETSA, XFRM_MSG_GETPOLICY
_XFRM_GET_DEFAULT, _XFRM_BLOCK = 0x28, 1
#: The prefixes of lines of /proc/net/ip_vs that describe a service.
_IPVS = ("TCP", "UDP", "SCTP", "FWM")


def neighbours_answered_for() -> list[str]:
    """Count the addresses that the namespace answers for in ARP or neighbour discovery."""
    asked = struct.pack("=BBHiHBB", 0, 0, 0, 0, 0, _NTF_PROXY, 0)
    return [f"proxy {number}" for number in range(len(netlink_hooks.dump(socket.NETLINK_ROUTE, _RTM_GETNEIGH, asked)))]


def ipsec() -> list[str]:
    """Count the policies and states of IPsec, and report what its default policy blocks."""
    found = [f"{kind} {number}" for kind in _XFRM_GET for number in range(_xfrm(kind))]
    return found + [f"by default: {way} is blocked" for way in _blocked()]


def _xfrm(kind: str) -> int:
    """Count the IPsec policies or states here; a kernel without such a socket has none."""
    try:
        return len(netlink_hooks.dump(_NETLINK_XFRM, _XFRM_GET[kind], b""))
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return 0
        raise


def _blocked() -> list[str]:
    """List what IPsec's default policy blocks (Linux 5.15)."""
    try:
        found = netlink_hooks.dump(_NETLINK_XFRM, _XFRM_GET_DEFAULT, bytes(3), single=True)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            return []  # an older kernel, or one without IPsec: none can be set
        raise
    return [way for way, action in zip(("input", "forward", "output"), found[0], strict=False) if action == _XFRM_BLOCK]


def next_hops() -> list[str]:
    """Count the next hops that are separate objects (Linux 5.3); the kernel itself creates none."""
    try:
        found = netlink_hooks.dump(socket.NETLINK_ROUTE, _RTM_GETNEXTHOP, bytes(8))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return []
        raise
    return [f"object {number}" for number in range(len(found))]


def ipvs() -> list[str]:
    """List the virtual services of IPVS, which redirects incoming connections; no file means no IPVS."""
    try:
        told = Path("/proc/thread-self/net/ip_vs").read_text()
    except FileNotFoundError:
        return []
    return read_ipvs(told)


def read_ipvs(told: str) -> list[str]:
    """Parse the services, with their servers, in /proc/net/ip_vs. Addresses are in hexadecimal digits there."""
    found: list[str] = []
    for words in map(str.split, lines_of(told)):
        if words[:1] and words[0] in _IPVS:
            found.append(" ".join(words[:2]))
        elif words[:1] == ["->"] and found:
            found[-1] += f" to {words[1]}"
    return found
