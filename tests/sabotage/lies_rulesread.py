"""Lies about what the rules are: tools that print other rules than there are, of equal number; policies; flags."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from pathlib import Path

from lies_mesh import pod
from lies_readings import instead_of, machine_with
from lies_rules import nft, rule
from saboteur import lie

from merbridge_lab.adapters import iptables, system_tools
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import rule_templates

BACKENDS = {"backend": ["nft", "legacy"]}
#: What every pod has in ISTIO_REDIRECT, and the place of a rule in ISTIO_OUTPUT that is not needed.
REDIRECT = ("-p", "tcp", "-j", "REDIRECT", "--to-ports")
SPARE = 5  # -o lo -m owner ! --gid-owner 1337 -j RETURN


def replace(where, chain, number, *words, backend="nft"):
    rule(where, "-t", "nat", "-R", chain, str(number), *words, backend=backend)


@contextlib.contextmanager
def telling(where, expression, backend="nft"):
    """Make iptables-save print the rules of `where` as changed by sed."""
    with instead_of(f"iptables-{backend}-save", where, f'"$REAL" "$@" | sed \'{expression}\''):
        yield


@contextlib.contextmanager
def in_all_tools(expression, backwards):
    """Make iptables-nft-save print, and iptables-nft-restore load, other rules than there are, everywhere."""
    with tempfile.TemporaryDirectory(prefix="merlab-sabotage-") as folder:
        for tool, line in (
            ("iptables-nft-save", f'"$REAL" "$@" | sed \'{expression}\''),
            ("iptables-nft-restore", f'sed \'{backwards}\' | "$REAL" "$@"'),
        ):
            fake = Path(folder, tool)
            fake.write_text(f"#!/bin/sh\nREAL={system_tools.find(tool)}\n{line}\n")
            fake.chmod(0o755)
        with machine_with(folder, *system_tools.FOLDERS):
            yield


#: Prints the kernel's own rules and counts, with another rule in place of one in one chain.
_PERFECT = """import sys
from merbridge_lab.adapters import nftables

told = nftables.read("/proc/self/ns/net")
for table in (name.removeprefix("ip ") for name in told.names):
    chains = [each for each in told.chains if (each.family, each.table) == ("ip", table)]
    print(f"*{table}")
    for each in chains:
        print(f":{each.name} {'ACCEPT' if each.hook else '-'} [0:0]")
    for each in chains:
        for words, packets in each.told:
            print(f"[{packets}:0] -A {each.name} {sys.argv[2] if each.name == sys.argv[1] else words}")
    print("COMMIT")
"""


@contextlib.contextmanager
def perfectly_told(where, chain, words):
    """Make iptables-nft-save print the truth of `where` except for one rule, to the last packet."""
    with tempfile.TemporaryDirectory(prefix="merlab-sabotage-") as folder:
        liar = Path(folder, "liar.py")
        liar.write_text(_PERFECT)
        line = shlex.join([sys.executable, str(liar), chain, words])
        with instead_of("iptables-nft-save", where, line):
            yield


# -- tools -----------------------------------------------------------------------------------------------------------


@lie("a rule with another port than is told", r"lists .*--to-ports 15001, the kernel has .*--to-ports 15002")
def _(scene):
    """The rule that redirects in sleep leads to port 15002; iptables-nft-save tells of 15001."""
    where = pod(scene, "sleep").netns
    replace(where, "ISTIO_REDIRECT", 1, *REDIRECT, "15002")
    with telling(where, "s/15002/15001/"):
        yield


@lie("a rule that is told as another one", r"lists .*-d 127.0.0.1/32 -j RETURN, the kernel has .*-d 10.96.0.0/16")
def _(scene):
    """A rule in sleep lets everything for the services past the sidecar; told is the one of Istio's in its place."""
    where = pod(scene, "sleep").netns
    replace(where, "ISTIO_OUTPUT", 8, "-d", "10.96.0.0/16", "-j", "RETURN")
    with telling(where, "s|-d 10.96.0.0/16 -j RETURN|-d 127.0.0.1/32 -j RETURN|"):
        yield


@lie(
    "a verdict that is told as another one",
    r"lists .*-m owner --gid-owner 1337 -j RETURN, the kernel has .*-j ACCEPT",
)
def _(scene):
    """What the group of helloworld-v1's sidecar sends is accepted, and asked nothing more; told is a RETURN."""
    where = pod(scene, "helloworld-v1").netns
    replace(where, "ISTIO_OUTPUT", 7, "-m", "owner", "--gid-owner", "1337", "-j", "ACCEPT")
    with telling(where, "s/--gid-owner 1337 -j ACCEPT/--gid-owner 1337 -j RETURN/"):
        yield


@lie("an owner that is told as another one", r"lists .*--uid-owner 1337 .*the kernel has .*--uid-owner 1338")
def _(scene):
    """A rule in helloworld-v2 is for user 1338; told is 1337."""
    where = pod(scene, "helloworld-v2").netns
    replace(where, "ISTIO_OUTPUT", 3, "-o", "lo", "-m", "owner", "!", "--uid-owner", "1338", "-j", "RETURN")
    with telling(where, "s/1338/1337/"):
        yield


@lie("rules told in another order", r"lists .*--dport 15008 .*the kernel has .*--dport 15090")
def _(scene):
    """Two rules of helloworld-v1 have changed their places; iptables-nft-save tells of them in Istio's order."""
    where = pod(scene, "helloworld-v1").netns
    for number, port in ((1, 15090), (2, 15008)):
        words = ("-p", "tcp", "--dport", str(port), "-j", "RETURN")
        replace(where, "ISTIO_INBOUND", number, *words)
    with telling(where, "/INBOUND.*--dport 15090/{h;d};/INBOUND.*--dport 15008/{G}"):
        yield


@lie("a rule of an unknown kind, told as a known one", r"lists .*, the kernel has .*what merlab does not know: lookup")
def _(scene):
    """A rule of sleep looks into a map where to go; what iptables-nft-save tells is Istio's rules."""
    where = pod(scene, "sleep").netns
    nft(where, "flush chain ip nat ISTIO_REDIRECT\nadd rule ip nat ISTIO_REDIRECT meta l4proto tcp counter "
               "tcp dport vmap { 5000 : accept, 9000 : accept }\n")  # fmt: skip
    with perfectly_told(where, "ISTIO_REDIRECT", "-p tcp -j REDIRECT --to-ports 15001"):
        yield
    iptables.load(where, rule_templates.pod_rules(), "nft")


@lie("a rule without a counter, told as one that counts", r"the kernel has .*what merlab does not know: ")
def _(scene):
    """A native rule of sleep redirects without a counter, so that nothing moves; told is Istio's."""
    where = pod(scene, "sleep").netns
    nft(
        where, "flush chain ip nat ISTIO_REDIRECT\nadd rule ip nat ISTIO_REDIRECT meta l4proto tcp redirect to :15001\n"
    )
    with perfectly_told(where, "ISTIO_REDIRECT", "-p tcp -j REDIRECT --to-ports 15001"):
        yield
    iptables.load(where, rule_templates.pod_rules(), "nft")


@lie(
    "a rule of the node's with another address than is told",
    r"lists .*10.244.0.11:5000, the kernel has .*10.244.0.12",
)
def _(scene):
    """Both rules for helloworld in the node lead to helloworld-v2; told is one each."""
    where = scene.lab._node.netns
    found = run(iptables.inside(where, "iptables-nft", "-t", "nat", "-S", "MERLAB-SERVICES", "1")).stdout.split()
    replace(where, *found[1:2], 1, *(word.replace("10.244.0.11", "10.244.0.12") for word in found[2:]))
    with telling(where, "/probability/s/10.244.0.12:5000/10.244.0.11:5000/"):
        yield


@lie("save and restore that lie alike", r"lists .*--to-ports 15001, the kernel has .*--to-ports 15002")
def _(scene):
    """Whatever is loaded by iptables-nft-restore gets port 15002 in the place of 15001; iptables-nft-save hides it."""
    with in_all_tools("s/15002/15001/", "s/15001/15002/"):
        iptables.load(pod(scene, "sleep").netns, rule_templates.pod_rules(), "nft")
        yield


@lie("a legacy rule told as another one", r"iptables-legacy-save lists .*--to-ports 15001, the kernel has .*15002")
def _(scene):
    """In a pod whose rules are in the legacy tables, ISTIO_REDIRECT leads to 15002; iptables-legacy-save hides it."""
    where = pod(scene, "sleep").netns
    iptables.load(where, rule_templates.pod_rules().partition("*filter")[0], "legacy")
    replace(where, "ISTIO_REDIRECT", 1, *REDIRECT, "15002", backend="legacy")
    with telling(where, "s/15002/15001/", backend="legacy"):
        yield
    for option in ("-F", "-X"):
        rule(where, "-t", "nat", option, backend="legacy")


@lie("a legacy policy told as another one", "the policy of chain OUTPUT of the legacy table ip filter is DROP in sleep")
def _(scene):
    """Sleep's legacy filter table drops what it sends; iptables-legacy-save tells of ACCEPT."""
    where = pod(scene, "sleep").netns
    rule(where, "-t", "filter", "-P", "OUTPUT", "DROP", backend="legacy")
    with telling(where, "s/DROP/ACCEPT/", backend="legacy"):
        yield
    rule(where, "-t", "filter", "-P", "OUTPUT", "ACCEPT", backend="legacy")


@lie(
    "{which} counts are told of each other",
    r"counts \d+ packets that matched .*, the kernel has \d+",
    {"which": ["two"]},
)
def _(scene, which):  # noqa: ARG001
    """In helloworld-v1, iptables-nft-save tells of each rule's packets at another rule of the same chain."""
    where = pod(scene, "helloworld-v1").netns
    program = (
        r"""/-A ISTIO_OUTPUT/ {n++; c[n]=$1; $1=""; r[n]=$0; next} """
        r"""n {for (i=1; i<=n; i++) print c[n+1-i] r[i]; n=0} {print}"""
    )
    with instead_of("iptables-nft-save", where, f'"$REAL" "$@" | awk \'{program}\''):
        yield


@lie("a lying save while sleep is flushed", r"(lists|counts) .*, the kernel has .*|nat rules .* are not what was saved")
def _(scene):
    """From step 9 on, iptables-nft-save tells of user 1338 in the place of 1337: what it tells must not be put back."""
    where = pod(scene, "sleep").netns
    with contextlib.ExitStack() as stack:
        scene.at("step 9 begins", lambda: stack.enter_context(telling(where, "s/owner 1337/owner 1338/")))
        yield
    told = run(iptables.inside(where, "iptables-nft-save", "-t", "nat")).stdout
    assert "1338" not in told, "the lie was put into the pod"
    assert "--to-ports 15001" in told, "the rules are gone"


# -- policies, and tables and chains themselves ----------------------------------------------------------------------


@lie(
    "a policy in sleep: {table} {chain}",
    "the policy of chain {chain} of table ip {table} is DROP in sleep",
    {"table": ["nat", "filter", "mangle"], "chain": ["OUTPUT", "INPUT"]},
    quick={"nat"},
)
def _(scene, table, chain):
    """The policy of chain {chain} in sleep's {table} table is DROP."""
    where = pod(scene, "sleep").netns
    if table == "nat":  # iptables itself refuses to do it
        place = {"OUTPUT": "output priority -100", "INPUT": "input priority 100"}[chain]
        nft(where, f"add chain ip nat {chain} {{ type nat hook {place}; policy drop; }}\n")
    else:
        rule(where, "-t", table, "-P", chain, "DROP")
    yield
    rule(where, "-t", table, "-P", chain, "ACCEPT")


@lie("the node does not forward, {backend}", "the policy of chain FORWARD of .* filter is DROP in the node", BACKENDS)
def _(scene, backend):
    """The policy of chain FORWARD in the node's filter table is DROP, as Docker sets it on a host."""
    where = scene.lab._node.netns
    rule(where, "-t", "filter", "-P", "FORWARD", "DROP", backend=backend)
    yield


@lie("a policy of ARP's in the node", "the policy of chain INPUT of table arp filter is DROP in the node")
def _(scene):
    """The node's ARP table takes in nothing."""
    where = scene.lab._node.netns
    nft(where, "table arp filter { chain INPUT { type filter hook input priority 0; policy drop; }; }\n")
    yield


@lie("the table nat is switched off in sleep", r"table ip nat is switched off \(dormant\) in sleep")
def _(scene):
    """Sleep has all of Istio's rules in a table that is dormant, so that none of them does anything."""
    where = pod(scene, "sleep").netns
    nft(where, "add table ip nat { flags dormant; }\n")
    yield


@lie(
    "a chain without its hook in sleep",
    "chain OUTPUT of table ip nat is not on the hook where iptables has it in sleep",
)
def _(scene):
    """Sleep's chain OUTPUT has its rule, and is called by nobody."""
    where = pod(scene, "sleep").netns
    nft(where, "flush chain ip nat OUTPUT\ndelete chain ip nat OUTPUT\nadd chain ip nat OUTPUT\n")
    with contextlib.suppress(LabError):  # iptables does not touch what it does not know
        rule(where, "-t", "nat", "-A", "OUTPUT", "-j", "ISTIO_OUTPUT")
    yield


@lie(
    "a chain on another hook in helloworld-v1",
    "chain PREROUTING of table ip nat is not on the hook|chain ip nat PREROUT",
)
def _(scene):
    """The chain PREROUTING of helloworld-v1 stands on the hook for what the pod sends."""
    where = pod(scene, "helloworld-v1").netns
    nft(where, "flush chain ip nat PREROUTING\ndelete chain ip nat PREROUTING\n"
               "add chain ip nat PREROUTING { type nat hook output priority -100; }\n")  # fmt: skip
    yield


# -- comments --------------------------------------------------------------------------------------------------------


@lie(
    "a comment that looks like a rule", "the iptables rules of sleep are not Istio's|(lists|counts) .*, the kernel has"
)
def _(scene):
    """A rule of sleep is a RETURN, with a comment that reads like the rule of Istio's in whose place it stands."""
    where = pod(scene, "sleep").netns
    words = '-j RETURN" -o lo -m owner ! --gid-owner 1337 -j RETURN'
    replace(where, "ISTIO_OUTPUT", SPARE + 1, "-m", "comment", "--comment", words, "-j", "RETURN")
    yield


@lie(
    "a comment with the end of a line",
    "(lists|counts) .*, the kernel has .*|the iptables rules of sleep are not Istio's",
)
def _(scene):
    """A rule of sleep has a comment of two lines, the second of which reads like a rule of Istio's."""
    where = pod(scene, "sleep").netns
    words = "x\n[0:0] -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n"
    replace(where, "ISTIO_REDIRECT", 1, "-p", "tcp", "-m", "comment", "--comment", words, "-j", "RETURN")
    yield


@lie("a comment that hides, and a save without comments", r"lists .*, the kernel has .*--comment hidden")
def _(scene):
    """A rule of sleep has a comment that iptables-nft-save leaves out."""
    where = pod(scene, "sleep").netns
    replace(where, "ISTIO_REDIRECT", 1, "-p", "tcp", "-m", "comment", "--comment", "hidden", "-j", "REDIRECT",
            "--to-ports", "15001")  # fmt: skip
    with telling(where, "s/-m comment --comment hidden //"):
        yield


@lie(
    "a save with a command of its own while sleep is flushed",
    "prints '-I OUTPUT .*', which is not its format",
)
def _(scene):
    """From step 9 on, iptables-nft-save adds a line that no count shows, and that iptables-restore would do."""
    where = pod(scene, "sleep").netns
    with contextlib.ExitStack() as stack:
        line = "/^:ISTIO_OUTPUT/a -I OUTPUT -p tcp --dport 5000 -j RETURN"
        scene.at("step 9 begins", lambda: stack.enter_context(telling(where, line)))
        yield
    told = run(iptables.inside(where, "iptables-nft-save", "-t", "nat")).stdout
    assert "-A OUTPUT -p tcp -m tcp --dport 5000" not in told, "the lie was put into the pod"


@lie(
    "a base chain that iptables never makes, and a save that hides it",
    "chain FORWARD of table ip nat is not on the hook",
)
def _(scene):
    """Sleep's table nat has a chain FORWARD, on the hook of what it sends; iptables-nft-save does not say so."""
    where = pod(scene, "sleep").netns
    nft(where, "add chain ip nat FORWARD { type nat hook output priority -110; }\n")
    with perfectly_told(where, "FORWARD", ""):
        yield
    nft(where, "delete chain ip nat FORWARD\n")
