"""Lies about the rules: others than Istio's do the work, or they come and go while nobody looks."""

from __future__ import annotations

import contextlib

from lies_mesh import pod
from saboteur import again_and_again, lie

from merbridge_lab.adapters import iptables
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import rule_templates, topology

BOTH = {"name": ["sleep", "helloworld-v1"]}

#: What one types to send an app's connections to the sidecar without iptables.
NATIVE = """table inet detour {
  chain output {
    type nat hook output priority -110; policy accept;
    meta skuid != 1337 ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -110; policy accept;
    meta l4proto tcp tcp dport 5000 redirect to :15006
  }
}
"""
#: The same in a table that iptables thinks is its own.
HIDDEN = (
    NATIVE.replace("table inet detour", "table ip nat")
    .replace("chain output", "chain quiet_output")
    .replace("chain prerouting", "chain quiet_prerouting")
)


def nft(where, text):
    run(iptables.inside(where, "nft", "-f", "-"), stdin=text)


def rule(where, *words, backend="nft"):
    run(iptables.inside(where, *iptables._tool(backend), "-w", *words))


@lie("rules of {name} flushed behind merlab's back", "the iptables rules of {name} are not Istio's", BOTH, quick=False)
def _(scene, name):
    """The nat table of {name} is flushed, not by merlab."""
    iptables.flush(pod(scene, name).netns, "nft", "nat")
    yield


@lie(
    "rules of {name} in the other backend too",
    "there are other rules in {name} than Istio's: .*legacy",
    BOTH,
    quick=False,
)
def _(scene, name):
    """Istio's rules are loaded into the legacy tables of {name} as well, where flushing nft leaves them."""
    where = pod(scene, name).netns
    iptables.load(where, rule_templates.pod_rules().partition("*filter")[0], "legacy")
    yield
    rule(where, "-t", "nat", "-F", backend="legacy")
    rule(where, "-t", "nat", "-X", backend="legacy")


@lie("native nftables in {name}", "there are other rules in {name} than Istio's: table inet detour", BOTH, quick=False)
def _(scene, name):
    """A native nftables table of {name} redirects to the sidecar, so that flushing iptables changes nothing."""
    where = pod(scene, name).netns
    nft(where, NATIVE)
    yield
    run(iptables.inside(where, "nft", "delete", "table", "inet", "detour"))


@lie(
    "native chains hidden in iptables' own table of {name}",
    "there are other rules in {name} .*: chain ip nat quiet",
    BOTH,
)
def _(scene, name):
    """Native chains that redirect to the sidecar are in `table ip nat`, the one that iptables keeps its rules in."""
    where = pod(scene, name).netns
    nft(where, HIDDEN)
    yield
    with contextlib.suppress(LabError):  # gone already, with a flush of the whole table
        for chain in ("quiet_output", "quiet_prerouting"):
            run(iptables.inside(where, "nft", "delete", "chain", "ip", "nat", chain))


@lie(
    "native chains brought by the flush",
    "native nftables were present in sleep|rules of sleep changed while",
)
def _(scene):
    """Native chains appear in sleep's `table ip nat` as soon as it is flushed, and go before the rules come back."""
    where, saved = pod(scene, "sleep").netns, scene.lab.workload("sleep").rules.saved_at
    present = False

    def follow():
        nonlocal present
        if saved.exists() != present:
            present = not present
            with contextlib.suppress(Exception):
                if present:
                    nft(where, HIDDEN)
                else:
                    for chain in ("quiet_output", "quiet_prerouting"):
                        run(iptables.inside(where, "nft", "delete", "chain", "ip", "nat", chain))

    with again_and_again(follow):
        yield


@lie("DNAT around the sidecar in sleep", "the iptables rules of sleep are not Istio's")
def _(scene):
    """A rule in sleep sends its requests straight to helloworld-v1's app."""
    where = pod(scene, "sleep").netns
    rule(where, "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "DNAT", "--to", "10.244.0.11:5000")
    yield


@lie("DNAT around the sidecar in the node", "the rules for the services' addresses are not in the nat table of .*node")
def _(scene):
    """A rule in the node sends what is for helloworld-v1's sidecar straight to its app."""
    where = scene.lab._node.netns
    rule(where, "-t", "nat", "-I", "PREROUTING", "-d", "10.244.0.11", "-p", "tcp", "--dport", "15006",
         "-j", "DNAT", "--to", "10.244.0.11:5000")  # fmt: skip
    yield


@lie("native DNAT in the node", "there are other rules in the node than those of the services: table ip shortcut")
def _(scene):
    """A native table in the node sends helloworld's virtual address to helloworld-v1 alone."""
    where = scene.lab._node.netns
    nft(where, "table ip shortcut { chain pre { type nat hook prerouting priority -110; "
               "ip daddr 10.96.0.10 tcp dport 5000 dnat to 10.244.0.11:5000\n}\n}\n")  # fmt: skip
    yield
    run(iptables.inside(where, "nft", "delete", "table", "ip", "shortcut"))


@lie("TPROXY does the servers' side", "there are other rules in helloworld-v1 than Istio's: -t mangle")
def _(scene):
    """A rule in helloworld-v1's mangle table steers connections to 15006, so that no nat rule need be there."""
    where = pod(scene, "helloworld-v1").netns
    rule(
        where, "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "--dport", "5000", "-j", "TPROXY", "--on-port", "15006"
    )
    yield
    rule(where, "-t", "mangle", "-F")


@lie("a service with one endpoint", "the rules for the services' addresses are not in the nat table")
def _(scene):
    """The node's rules know helloworld-v1 only."""
    service, *others = topology.SERVICES
    alone = topology.Service(service.name, service.vip, service.port, service.protocol, service.endpoints[:1])
    iptables.load(scene.lab._node.netns, rule_templates.service_rules((alone, *others)), "nft")
    yield


def _while_flushed(scene, act):
    """Act between two requests, every time that sleep is flushed and has sent one."""
    saved, lab = scene.lab.workload("sleep").rules.saved_at, scene.lab
    mark = None

    def follow():
        nonlocal mark
        if not saved.exists():
            mark = None
            return
        now = lab.dataplane.counters()["sleep"]["outbound_connects"]
        if mark is None:
            mark = now
        elif now > mark:
            mark = now
            with contextlib.suppress(Exception):  # restored meanwhile
                act()

    return again_and_again(follow)


#: Not for the sidecar itself, as in Istio's rules: its connections keep the port that was dialled.
APPS = ("-m", "owner", "!", "--uid-owner", "1337")
RETURNING = ("OUTPUT", "-p", "tcp", "--dport", "5000", *APPS, "-j", "REDIRECT", "--to-ports", "15001")


@lie("a rule returns in the middle of the batch", "nat rules were present in sleep|rules of sleep changed while")
def _(scene):
    """As soon as a request has left flushed sleep, a REDIRECT rule comes back, and stays."""
    where = pod(scene, "sleep").netns
    with _while_flushed(scene, lambda: rule(where, "-t", "nat", "-A", *RETURNING)):
        yield


@lie("a rule returns and goes between two requests", "rules of sleep changed while|nat rules were present in sleep")
def _(scene):
    """As soon as a request has left flushed sleep, a REDIRECT rule comes back, and goes at once."""
    where = pod(scene, "sleep").netns

    def strike():
        rule(where, "-t", "nat", "-A", *RETURNING)
        rule(where, "-t", "nat", "-D", *RETURNING)

    with _while_flushed(scene, strike):
        yield


@lie("saved rules tampered with", "sleep.rules was changed while the rules of sleep were flushed")
def _(scene):
    """While sleep is flushed, someone deletes a rule from the file that the rules will be restored from."""
    saved = scene.lab.workload("sleep").rules.saved_at
    done = False

    def follow():
        nonlocal done
        if not saved.exists():
            done = False
        elif not done:
            done = True
            with contextlib.suppress(OSError):
                saved.write_text(
                    "".join(line for line in saved.read_text().splitlines(True) if "--gid-owner" not in line)
                )

    with again_and_again(follow):
        yield


@lie("rules changed meanwhile", "the nat rules of helloworld-v2 changed during verification", quick=False)
def _(scene):
    """A rule is added to helloworld-v2 when the last cell has been measured."""
    where = pod(scene, "helloworld-v2").netns
    scene.at("cell 6 ends", lambda: rule(where, "-t", "nat", "-A", *RETURNING))
    yield
