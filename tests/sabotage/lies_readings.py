"""Lies about what merlab reads: tools that lie, crash or are missing, logs that are cut, rules of odd families."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from lies_mesh import pod
from lies_rules import NATIVE, RETURNING, _while_flushed, nft, rule
from saboteur import again_and_again, lie

from merbridge_lab.adapters import iptables, netns, system_tools
from merbridge_lab.adapters.command import run

AROUND = ("-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "DNAT", "--to", "10.244.0.11:5000")


@contextlib.contextmanager
def machine_with(*folders):
    """Make the machine's own tools be those of `folders`, in this order."""
    before = system_tools.FOLDERS, os.environ["PATH"]
    system_tools.FOLDERS, os.environ["PATH"] = folders, os.pathsep.join(folders)
    try:
        yield
    finally:
        system_tools.FOLDERS, os.environ["PATH"] = before


@contextlib.contextmanager
def instead_of(tool, where, text):
    """Replace `tool` by a shell text, for callers in the network namespace `where`; $REAL is the tool."""
    with tempfile.TemporaryDirectory(prefix="merlab-sabotage-") as folder:
        fake = Path(folder, tool)
        fake.write_text(
            f"#!/bin/sh\nREAL={system_tools.find(tool)}\n"
            f'[ "$(stat -L -c %i /proc/self/ns/net)" = {netns.inode(where)} ] || exec "$REAL" "$@"\n{text}\n'
        )
        fake.chmod(0o755)
        with machine_with(folder, *system_tools.FOLDERS):
            yield Path(folder)


@contextlib.contextmanager
def without(tool):
    """Remove one program from the machine, and only that one."""
    with tempfile.TemporaryDirectory(prefix="merlab-sabotage-") as folder:
        for place in system_tools.path().split(os.pathsep):
            for each in Path(place).glob("*"):
                link = Path(folder, each.name)
                if each.name != tool and not link.is_symlink():
                    link.symlink_to(each)
        with machine_with(folder):
            yield


@contextlib.contextmanager
def native(where, text, *table):
    """Load a native table for the duration of the block."""
    nft(where, text)
    try:
        yield
    finally:
        run(iptables.inside(where, "nft", "delete", "table", *table))


# -- tools ---------------------------------------------------------------------------------------------------------


@lie("native nftables in sleep, and no nft on PATH", "there are other rules in sleep than Istio's: table inet detour")
def _(scene):
    """P3: a native table of sleep redirects to the sidecar, on a machine where nobody finds nft."""
    with native(pod(scene, "sleep").netns, NATIVE, "inet", "detour"), without("nft"):
        yield


@lie("native nftables in sleep, and an nft that crashes", "there are other rules in sleep than Istio's: table inet")
def _(scene):
    """A native table of sleep redirects to the sidecar; nft, asked for it, is ended by a signal."""
    where = pod(scene, "sleep").netns
    with native(where, NATIVE, "inet", "detour"), instead_of("nft", where, "kill -SEGV $$"):
        yield


@lie("iptables-nft-save that says nothing", "iptables-nft-save lists 0 rules in .*the kernel has")
def _(scene):
    """A rule in sleep sends its requests past the sidecar; iptables-nft-save prints nothing there."""
    where = pod(scene, "sleep").netns
    rule(where, *AROUND)
    with instead_of("iptables-nft-save", where, "exit 0"):
        yield


@lie("iptables-nft-save that fails", "iptables-nft-save.* failed with exit status 1|could not be read: nsenter failed")
def _(scene):
    """A rule in sleep sends its requests past the sidecar; iptables-nft-save cannot be used there."""
    where = pod(scene, "sleep").netns
    rule(where, *AROUND)
    with instead_of("iptables-nft-save", where, "echo broken >&2; exit 1"):
        yield


@lie(
    "iptables-nft-save that tells of another pod",
    r"iptables-nft-save (lists|counts) \d+ (rules|packets) in .*the kernel has",
)
def _(scene):
    """A rule in sleep leads past the sidecar; iptables-nft-save prints the rules of helloworld-v1 there."""
    where = pod(scene, "sleep").netns
    rule(where, *AROUND)
    other = pod(scene, "helloworld-v1").netns
    with instead_of("iptables-nft-save", where, f'exec nsenter --net={other} "$REAL" "$@"'):
        yield


@lie(
    "iptables-nft-save that repeats itself", r"iptables-nft-save (lists|counts) \d+ (rules|packets) in .*the kernel has"
)
def _(scene):
    """In sleep, iptables-nft-save prints for ever what it printed first: no counter moves, whatever the rules do."""
    where = pod(scene, "sleep").netns
    with instead_of(
        "iptables-nft-save", where, 'told="${0%/*}/told"; [ -e "$told" ] || "$REAL" "$@" >"$told"; cat "$told"'
    ):
        yield


@lie("iptables-legacy-save that says nothing", "iptables-legacy-save lists 0 entries in nat, the kernel has 1")
def _(scene):
    """A legacy rule in sleep redirects, where flushing nft leaves it; iptables-legacy-save is silent."""
    where = pod(scene, "sleep").netns
    rule(where, "-t", "nat", "-A", *RETURNING, backend="legacy")
    with instead_of("iptables-legacy-save", where, "exit 0"):
        yield
    rule(where, "-t", "nat", "-F", backend="legacy")


@lie("a legacy rule returns in the middle of the batch", "nat rules were present in sleep|rules of sleep changed while")
def _(scene):
    """As soon as a request has left flushed sleep, a REDIRECT rule comes into its legacy tables, and stays."""
    where = pod(scene, "sleep").netns
    with _while_flushed(scene, lambda: rule(where, "-t", "nat", "-A", *RETURNING, backend="legacy")):
        yield
    rule(where, "-t", "nat", "-F", backend="legacy")


# -- rules in odd places ------------------------------------------------------------------------------------------

ODD = {
    "a map": (
        "inet",
        "bymap",
        "type nat hook output priority -110; tcp dport 5000 redirect to tcp dport map { 5000 : 15001 }",
    ),
    "an ingress chain": ("netdev", "early", "type filter hook ingress device eth0 priority 0; counter accept"),
    "a chain of ARP": ("arp", "filter", "type filter hook input priority 0; counter accept"),
    "a bridge's chain": ("bridge", "filter", "type filter hook input priority 0; counter accept"),
}


@lie(
    "{what} in helloworld-v1",
    "there are other rules in helloworld-v1 than Istio's: table (inet|netdev|arp|bridge) ",
    {"what": list(ODD)},
)
def _(scene, what):
    """Nftables' rules are in helloworld-v1 by {what}, of which no iptables tells."""
    family, table, text = ODD[what]
    chain = "INPUT" if table == "filter" else "odd"
    whole = f"table {family} {table} {{\n chain {chain} {{\n {text.replace('; ', ';' + chr(10))}\n }}\n}}\n"
    with native(pod(scene, "helloworld-v1").netns, whole, family, table):
        yield


@lie("a set in iptables' own chain", "there are other rules in sleep than Istio's: table ip nat")
def _(scene):
    """A native rule with a set redirects in sleep's chain OUTPUT, so that iptables shows nothing of all nat."""
    what = "meta skuid != 1337 tcp dport { 5000, 5001 } redirect to :15001"
    nft(pod(scene, "sleep").netns, f"add rule ip nat OUTPUT {what}\n")
    yield


@lie("rules for IPv6 in sleep, {backend}", "there are other rules in sleep than Istio's: (table|legacy) ip6 nat",
     {"backend": ["nft", "legacy"]})  # fmt: skip
def _(scene, backend):
    """A rule of ip6tables-{backend} in sleep redirects to the sidecar."""
    where = pod(scene, "sleep").netns
    tool = iptables._tool(backend, program="ip6tables")
    run(iptables.inside(where, *tool, "-t", "nat", "-A", *RETURNING))
    yield
    run(iptables.inside(where, *tool, "-t", "nat", "-F"))


@lie("a zone of conntrack in raw", "there are other rules in sleep than Istio's: -t raw")
def _(scene):
    """A rule in sleep's raw table gives its requests a zone of conntrack of their own."""
    where = pod(scene, "sleep").netns
    rule(where, "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "CT", "--zone", "7")
    yield
    rule(where, "-t", "raw", "-F")


# -- logs ----------------------------------------------------------------------------------------------------------


@lie("the access log of {name} is cut all the time", "envoy:{name}/access could not be read: .* truncated ",
     {"name": ["sleep", "helloworld-v2"]})  # fmt: skip
def _(scene, name):
    """P7: somebody empties the access log of {name} whenever something is written to it."""
    log = scene.lab.workload(name).access_log

    def cut():
        with contextlib.suppress(OSError):
            if log.stat().st_size:
                os.truncate(log, 0)

    with again_and_again(cut):
        yield


@lie("the access log of helloworld-v1 is replaced under it", "envoy:helloworld-v1/access could not be read: .*replaced")
def _(scene):
    """P7: between the requests and the look at the log, another file with the same lines takes its place."""
    log = scene.lab.workload("helloworld-v1").access_log
    copy = log.with_name("access.copy")
    size = log.stat().st_size

    def follow():
        if log.stat().st_size != size and not copy.exists():
            shutil.copy(log, copy)
            os.chown(copy, 1337, 1337)
            copy.rename(log)

    with again_and_again(follow):
        yield
