"""Lies about what the kernel does in the lab's network namespaces: settings, lifetimes, attributes, names."""

from __future__ import annotations

from lies_mesh import pod
from lies_pods import at, at_node
from saboteur import lie

# -- settings --------------------------------------------------------------------------------------------------------

#: Setting → (value, how the cause calls it).
SETTINGS = {
    "net.ipv4.ip_default_ttl": ("1", "ipv4/ip_default_ttl is 1, not 64"),
    "net.core.somaxconn": ("0", "core/somaxconn is 0, not"),
    "net.ipv4.tcp_rmem": ("1 1 1", "ipv4/tcp_rmem is 1 1 1, not"),
    "net.ipv4.tcp_max_syn_backlog": ("1", "ipv4/tcp_max_syn_backlog is 1, not"),
    "net.ipv4.tcp_synack_retries": ("0", "ipv4/tcp_synack_retries is 0, not 5"),
    "net.ipv4.tcp_tw_reuse": ("1", "ipv4/tcp_tw_reuse is 1, not"),
    "net.ipv4.conf.eth0.forwarding": ("1", "ipv4/conf/eth0/forwarding is 1, not 0"),
    "net.ipv4.conf.all.arp_announce": ("2", "ipv4/conf/all/arp_announce is 2, not 0"),
    "net.ipv4.conf.default.promote_secondaries": ("1", "ipv4/conf/default/promote_secondaries is 1, not 0"),
    "net.ipv4.conf.lo.disable_policy": ("0", "ipv4/conf/lo/disable_policy is 0, not 1"),
    "net.ipv4.neigh.eth0.ucast_solicit": ("0", "ipv4/neigh/eth0/ucast_solicit is 0, not 3"),
    "net.ipv6.conf.eth0.disable_ipv6": ("1", "ipv6/conf/eth0/disable_ipv6 is 1, not 0"),
    "net.netfilter.nf_conntrack_tcp_timeout_established": (
        "1",
        "netfilter/nf_conntrack_tcp_timeout_established is 1, not 432000",
    ),
}


def _set(setting, value, cause):
    def sabotage(scene):
        at(pod(scene, "helloworld-v2"), "sysctl", "-q", "-w", f"{setting}={value}")
        yield

    sabotage.__doc__ = f"In helloworld-v2's network namespace {setting} is {value}, which no new one has."
    quick = setting in {"net.ipv4.ip_default_ttl", "net.ipv4.tcp_rmem"}
    lie(f"{setting} altered in helloworld-v2", f"in the network namespace of helloworld-v2 {cause}", quick=quick)(
        sabotage
    )


for _setting, (_value, _cause) in SETTINGS.items():
    _set(_setting, _value, _cause)


@lie("one link of the node does not forward", "in the node's network namespace ipv4/conf/veth11/forwarding is 0, not 1")
def _(scene):
    """The node forwards nothing that comes in from helloworld-v1; ip_forward is on as before."""
    at_node(scene, "sysctl", "-q", "-w", "net.ipv4.conf.veth11.forwarding=0")
    yield


# -- links, addresses, routes, IPsec ---------------------------------------------------------------------------------

WAYS = {
    "an address for a limited time": (
        ["ip", "address", "change", "10.244.0.10/32", "dev", "eth0", "valid_lft", "600", "preferred_lft", "600"],
        "in the network namespace of sleep the address 10.244.0.10/32 dev eth0 is for a limited time",
    ),
    "a deprecated address": (
        ["ip", "address", "change", "10.244.0.10/32", "dev", "eth0", "preferred_lft", "0"],
        "in the network namespace of sleep the address 10.244.0.10/32 dev eth0 is deprecated",
    ),
    "a promiscuous link": (
        ["ip", "link", "set", "eth0", "promisc", "on"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is promiscuous",
    ),
    "a link in a group, with small segments": (
        ["ip", "link", "set", "eth0", "group", "7", "gso_max_segs", "1"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is group 7 GSO segments 1",
    ),
    "a short queue": (
        ["ip", "link", "set", "eth0", "txqueuelen", "1"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is queue length 1",
    ),
    "a route with a path MTU": (
        ["ip", "route", "change", "default", "via", "10.244.0.1", "mtu", "lock", "600"],
        "in the network namespace of sleep the route unicast default .*RTAX_MTU.* 600",
    ),
    "a route that takes its time": (
        ["ip", "route", "change", "default", "via", "10.244.0.1", "rto_min", "4s", "initcwnd", "1"],
        "in the network namespace of sleep the route unicast default .*RTAX_RTO_MIN",
    ),
    "a next hop object": (
        ["ip", "nexthop", "add", "id", "7", "via", "10.244.0.1", "dev", "eth0"],
        "the network namespace of sleep has a next hop that is not merlab's",
    ),
    "IPsec's default policy": (
        ["ip", "xfrm", "policy", "setdefault", "out", "block"],
        "the network namespace of sleep has an IPsec rule that is not merlab's: by default: output is blocked",
    ),
}


def _register(way, argv, cause):
    def sabotage(scene):
        at(pod(scene, "sleep"), *argv)
        yield

    sabotage.__doc__ = f"In sleep's network namespace there is {way}: {' '.join(argv)}."
    lie(f"{way} in sleep", cause, quick=way in {"an address for a limited time", "IPsec's default policy"})(sabotage)


for _way, (_argv, _cause) in WAYS.items():
    _register(_way, _argv, _cause)


@lie("a node that drops by IPsec", "the node's network namespace has an IPsec rule .*by default: forward is blocked")
def _(scene):
    """The node's default policy of IPsec is to forward nothing."""
    at_node(scene, "ip", "xfrm", "policy", "setdefault", "fwd", "block")
    yield
