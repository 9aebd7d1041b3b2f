"""The settings of the kernel in the lab's network namespaces: all of them, and the one list of allowed differences.

merlab sets those that decide about the path of TCP, whatever the host has. Every other one must have the value of a new
namespace: the kernel's own default, or what the host passes on to each new namespace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import sysctls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

#: For each link. A namespace inherits the host's settings. A strict rp_filter would drop what REDIRECT answers from
#: 127.0.0.6. With route_localnet or accept_local, packets may arrive that no healthy node sends. Nobody in the lab may
#: announce routes.
_CONF = {
    **dict.fromkeys(
        (
            "rp_filter", "accept_local", "route_localnet", "proxy_arp", "arp_ignore", "arp_filter", "accept_redirects",
            "accept_source_route", "arp_accept", "arp_announce", "arp_notify", "bc_forwarding", "bootp_relay",
            "drop_gratuitous_arp", "drop_unicast_in_l2_multicast", "force_igmp_version", "ignore_routes_with_linkdown",
            "log_martians", "medium_id", "promote_secondaries", "proxy_arp_pvlan", "send_redirects", "src_valid_mark",
            "tag",
        ),
        "0",
    ),
    **dict.fromkeys(("arp_evict_nocarrier", "secure_redirects", "shared_media"), "1"),
    "igmpv2_unsolicited_report_interval": "10000",
    "igmpv3_unsolicited_report_interval": "1000",
}  # fmt: skip
#: These are on only on lo.
_OFF_BUT_ON_LO = ("disable_policy", "disable_xfrm")
#: For the whole namespace: the kernel's defaults.
_TCP = {
    "ipv4/ip_nonlocal_bind": "0",
    "ipv4/fwmark_reflect": "0",
    "ipv4/ip_local_port_range": "32768 60999",
    "ipv4/ip_local_reserved_ports": "",
    "ipv4/ip_unprivileged_port_start": "1024",
    "ipv4/tcp_abort_on_overflow": "0",
    "ipv4/tcp_early_demux": "1",
    "ipv4/tcp_fwmark_accept": "0",
    "ipv4/tcp_l3mdev_accept": "0",
    "ipv4/tcp_migrate_req": "0",
    "ipv4/tcp_retries2": "15",
    "ipv4/tcp_sack": "1",
    "ipv4/tcp_syn_retries": "6",
    "ipv4/tcp_syncookies": "1",
    "ipv4/tcp_timestamps": "1",
    "ipv4/tcp_window_scaling": "1",
    "netfilter/nf_conntrack_helper": "0",
    "netfilter/nf_conntrack_tcp_be_liberal": "0",
    "netfilter/nf_conntrack_tcp_loose": "1",
}
#: Every kernel has these: if one is missing, nothing was read.
_ALWAYS = ("ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv4/conf/lo/rp_filter", "ipv4/tcp_rmem")


def wanted(links: Iterable[str], *, forward: bool) -> dict[str, str]:
    """Return what merlab sets in a namespace with these links besides `lo`: paths below /proc/sys/net, and values.

    If the kernel has no such file, there is nothing to set, and nothing to differ.
    """
    # Writing ip_forward resets others, so it comes first.
    found = {"ipv4/ip_forward": "1" if forward else "0"}
    # The kernel's own link-local addresses then follow from the hardware's, and can be told from others.
    found |= {f"ipv6/conf/{each}/addr_gen_mode": "0" for each in ("default", *links)}
    for each in ("all", "default", "lo", *links):
        own = _CONF | dict.fromkeys(_OFF_BUT_ON_LO, "1" if each == "lo" else "0")
        found |= {f"ipv4/conf/{each}/{name}": value for name, value in own.items()}
        found[f"ipv4/conf/{each}/forwarding"] = "1" if forward else "0"
    return found | _TCP


#: The same for `sysctl` and bash, without what a host seldom has otherwise.
TYPED = " ".join(
    (
        "net.ipv4.conf.{all,default,lo}.{" + ",".join(name for name in _CONF if _CONF[name] == "0") + "}=0",
        "net.ipv4.conf.{all,default,lo}.{secure_redirects,shared_media}=1",
    )
)


# -- what may differ -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowance:
    """Settings, by path, whose value may differ from a new namespace's if it `fits`."""

    name: str
    reason: str
    paths: re.Pattern[str]
    fits: Callable[[str, str], bool]


#: The kernel's initial values (neigh_table in net/ipv4/arp.c and net/ipv6/ndisc.c), by the file's name.
_NEIGHBOURS = {
    "anycast_delay": "100", "app_solicit": "0", "base_reachable_time": "30", "base_reachable_time_ms": "30000",
    "delay_first_probe_time": "5", "gc_stale_time": "60", "interval_probe_time_ms": "5000", "mcast_resolicit": "0",
    "mcast_solicit": "3", "proxy_delay": "80", "proxy_qlen": "64", "retrans_time_ms": "1000", "ucast_solicit": "3",
}  # fmt: skip
_LEAST_ROOM = (1, 16384, 65536)
#: Those of Linux; a BPF program can be one, too, with a name of its own.
_CONTROLS = frozenset(
    {
        "bbr", "bic", "cdg", "cubic", "dctcp", "highspeed", "htcp", "hybla", "illinois", "lp", "nv", "reno", "scalable",
        "vegas", "veno", "westwood", "yeah",
    }
)  # fmt: skip


def _has_room(_name: str, value: str) -> bool:
    words = value.split()
    enough = len(words) == len(_LEAST_ROOM) and all(word.isdigit() for word in words)
    return enough and all(int(word) >= least for word, least in zip(words, _LEAST_ROOM, strict=True))


MAY_DIFFER = (
    Allowance(
        "a count of connections",
        "the kernel counts what conntrack knows; nobody can write it",
        re.compile(r"netfilter/nf_conntrack_count"),
        lambda _name, value: value.isdigit(),
    ),
    Allowance(
        "room for TCP",
        "a namespace keeps what the host had when it was made; this changes how fast packets go, not where",
        re.compile(r"ipv4/tcp_[rw]mem"),
        _has_room,
    ),
    Allowance(
        "the control of congestion",
        "as with the room; any that Linux itself has",
        re.compile(r"ipv4/tcp_congestion_control"),
        lambda _name, value: value in _CONTROLS,
    ),
    Allowance(
        "how neighbours are asked for",
        "as with the room; the host may have changed its own since, and the lab has still the kernel's",
        re.compile(r"ipv[46]/neigh/[^/]+/[^/]+"),
        lambda name, value: _NEIGHBOURS.get(name) == value,
    ),
)


# -- comparing -------------------------------------------------------------------------------------------------------


def differing(found: Mapping[str, str], links: Iterable[str], *, forward: bool) -> list[str]:
    """Describe which settings of a namespace with these links are not as they should be. Raises OSError."""
    links = tuple(links)
    if told := list(_differing(found, links, sysctls.of_new_namespace(), forward=forward)):
        # The host may have changed its own, or loaded a module, since that was read.
        sysctls.of_new_namespace.cache_clear()
        told = list(_differing(found, links, sysctls.of_new_namespace(), forward=forward))
    return told


def _differing(
    found: Mapping[str, str], links: tuple[str, ...], new: Mapping[str, str], *, forward: bool
) -> Iterator[str]:
    ours = wanted(links, forward=forward)
    # What every namespace with IPv6 has of each link: its own.
    ours |= {f"ipv6/conf/{each}/mtu": "1500" for each in links}
    for name in sorted({*new, *_ALWAYS} - found.keys()):
        if name in _ALWAYS or _of_link(name) in ("", "lo"):
            yield f"{name} could not be read"
    for name, have in sorted(found.items()):
        if have == ours.get(name, new.get(name)):
            continue
        link = _of_link(name)
        if link and link not in ("all", "default", "lo", *links):
            continue  # of a link that should not be there, or an inactive tunnel: the check of links reports those
        want = ours.get(name, new.get(name.replace(f"/{link}/", f"/{_like(name, link)}/")))
        if have != want and not any(each.paths.fullmatch(name) and each.fits(name.rpartition("/")[2], have)
                                    for each in MAY_DIFFER):  # fmt: skip
            yield f"{name} is {have or 'empty'}, not {want or ('empty' if want is not None else 'there at all')}"


def _of_link(name: str) -> str:
    """Return the link (or "all", "default") of a setting; "" for settings of the whole namespace."""
    _, kind, link, *rest = [*name.split("/"), "", ""]
    return link if kind in ("conf", "neigh") and any(rest) else ""


def _like(name: str, link: str) -> str:
    """Return where a link's settings come from: the namespace's default; for neighbours, the same ones of lo."""
    if link in ("all", "default", "lo"):
        return link
    return "lo" if "/neigh/" in name else "default"
