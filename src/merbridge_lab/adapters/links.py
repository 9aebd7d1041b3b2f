"""Links, addresses and routes inside network namespaces, through netlink.

pyroute2 is imported when it is first needed: loading it takes longer than creating a veth.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import netlink_hooks
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.netns import run_inside
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The pod's end of its link.
POD_END = "eth0"
_SCOPE_LINK = 253
_ANYWHERE = "0.0.0.0"  # noqa: S104 - the default route, not a socket


def load() -> None:
    """Load pyroute2 now, because it will be needed and there is nothing else to do."""
    import pyroute2  # noqa: F401


def _index(asked: Any, name: str) -> int | None:  # noqa: ANN401 - pyroute2 has no types
    found = asked.link_lookup(ifname=name)
    return found[0] if found else None


@change("set up a namespace's loopback")
def set_up(netns: Path, sysctls: Mapping[str, str]) -> None:
    """Bring the loopback of `netns` up and set `sysctls` (paths below /proc/sys/net) in it.

    Settings that the kernel lacks are skipped; those that are right already are not written. Raises OSError,
    NetlinkError.
    """

    def work() -> None:
        from pyroute2 import IPRoute

        for name, value in sysctls.items():
            # The namespace of a path below /proc/sys/net is that of the thread that opens it.
            setting = Path("/proc/sys/net", name)
            with contextlib.suppress(FileNotFoundError):
                if " ".join(setting.read_text().split()) != value:
                    setting.write_text(f"{value}\n")
        with IPRoute() as asked:
            asked.link("set", index=1, state="up")

    run_inside(netns, work)


@change("link two namespaces")
def connect(node: Path, veth: str, alias: str, pod: Path, address: str, gateway: str) -> None:
    """Link the namespaces `node` and `pod` as the CNI plugin ptp does: a veth, an address on each side, routes.

    An old link is removed first. Neither end is ever in another namespace than these two. Raise LabError if the kernel
    has no such links. Raises OSError, NetlinkError.
    """
    disconnect(node, veth)
    disconnect(pod, POD_END)
    descriptor = os.open(pod, os.O_RDONLY | os.O_CLOEXEC)

    def at_node() -> None:
        from pyroute2 import IPRoute, NetlinkError

        with IPRoute() as asked:
            peer = {"ifname": POD_END, "net_ns_fd": descriptor}
            try:
                asked.link("add", ifname=veth, kind="veth", peer=peer)
            except NetlinkError as error:
                raise LabError(
                    f"the link {veth} between node and pod cannot be made: {error.args[1]}",
                    hint="modprobe veth",
                    id="requirement.missing",
                ) from error
            index = _index(asked, veth)
            asked.link("set", index=index, ifalias=alias)
            asked.addr("add", index=index, address=gateway, prefixlen=32)
            asked.link("set", index=index, state="up")
            asked.route("add", dst=f"{address}/32", oif=index, scope=_SCOPE_LINK)

    def at_pod() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as asked:
            index = _index(asked, POD_END)
            asked.addr("add", index=index, address=address, prefixlen=32)
            asked.link("set", index=index, state="up")
            asked.route("add", dst=f"{gateway}/32", oif=index, scope=_SCOPE_LINK)
            asked.route("add", dst="0.0.0.0/0", gateway=gateway)

    try:
        run_inside(node, at_node)
    finally:
        os.close(descriptor)
    run_inside(pod, at_pod)


@change("delete a link")
def disconnect(netns: Path, name: str) -> None:
    """Delete the link `name` in `netns`, with its other end and the routes over it; succeed if it does not exist."""

    def work() -> None:
        from pyroute2 import IPRoute, NetlinkError

        with IPRoute() as asked, contextlib.suppress(NetlinkError):
            index = _index(asked, name)
            if index is not None:
                asked.link("del", index=index)

    run_inside(netns, work)


def names(netns: Path) -> tuple[str, ...]:
    """List the links in `netns`. Raises OSError."""

    def work() -> tuple[str, ...]:
        from pyroute2 import IPRoute

        with IPRoute() as asked:
            return tuple(each.get_attr("IFLA_IFNAME") for each in asked.get_links())

    return run_inside(netns, work)


def hardware(netns: Path, name: str) -> str:
    """Return the hardware address of the link `name` in `netns`; "" if there is no such link. Raises OSError."""

    def work() -> str:
        from pyroute2 import IPRoute

        with IPRoute() as asked:
            found = [each for each in asked.get_links() if each.get_attr("IFLA_IFNAME") == name]
            return str(found[0].get_attr("IFLA_ADDRESS")) if found else ""

    return run_inside(netns, work)


def number_of(netns: Path, other: Path) -> int | None:
    """Return the number with which links in `netns` refer to the namespace `other`, or None. Raises OSError."""
    descriptor = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return run_inside(netns, lambda: netlink_hooks.number_of(descriptor))
    finally:
        os.close(descriptor)


def addresses(netns: Path) -> tuple[str, ...]:
    """List the IPv4 addresses in `netns`, except for those of the loopback. Raises OSError."""

    def work() -> tuple[str, ...]:
        from pyroute2 import IPRoute

        with IPRoute() as asked:
            return tuple(each.get_attr("IFA_ADDRESS") for each in asked.get_addr(family=2) if each["index"] != 1)

    return run_inside(netns, work)
