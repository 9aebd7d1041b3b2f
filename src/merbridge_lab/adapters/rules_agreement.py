"""Compare what the tools print of a namespace's rules with what the kernel reports.

A tool may be missing, crash, be another program of that name, or not know what another one created. The kernel reports
how many rules there are and how many packets they have counted; a text that does not agree counts as unread.
rule_text.py checks whether the rules are the printed ones.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from merbridge_lab.evidence import Unread
from merbridge_lab.ruleset import parse
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from merbridge_lab.adapters.nftables import Chain, Tables
    from merbridge_lab.adapters.xtables import Table

#: Tables that iptables-nft and its kin create themselves; every other one is native nftables.
COMPAT = re.compile(r"(?:ip|ip6|arp|bridge) (?:nat|filter|mangle|raw|security|broute)")
#: The base chains that they create in them; every other one is native, although they do not show it.
BASE_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "BROUTING"})
#: Istio's own tables that have no part in bringing connections to the sidecar: DNS capture, dropping invalid packets.
ISTIOS_OTHERS = frozenset({"inet istio-proxy-raw", "inet istio-proxy-mangle"})
#: Expressions with which a rule can do it all the same, by the kernel's names.
_DIVERTING = frozenset({"redir", "nat", "masq", "tproxy", "fwd", "dup", "queue"})
#: The same as a person types them.
_DIVERTS = re.compile(r"\b(?:redirect|dnat|snat|masquerade|tproxy|fwd|dup|queue)\b")
_LEFT_OUT = re.compile(r"^# Table `(\w+)' .*incompatible", re.MULTILINE)


def left_out(saved: str | Unread) -> tuple[str, ...]:
    """Return the tables that iptables-save does not show, or not completely: it says so in a comment."""
    return () if isinstance(saved, Unread) else tuple(f"table ip {name}" for name in _LEFT_OUT.findall(saved))


def native_in(chains: str) -> tuple[str, ...]:
    """Return the same as `foreign` and `beside`, from nft's list of chains, and of Istio's other tables.

    For when the kernel itself cannot be read.
    """
    found: dict[str, None] = {}
    table = chain = ""
    for line in (line.strip() for line in lines_of(chains)):
        if line.startswith("table "):
            table = line.removeprefix("table ").removesuffix("{").strip()
            if not COMPAT.fullmatch(table) and table not in ISTIOS_OTHERS:
                found[f"table {table}"] = None
        elif line.startswith("chain "):
            chain = line.split()[1]
        elif table in ISTIOS_OTHERS and (line.startswith("type nat ") or _DIVERTS.search(line)):
            found[f"table {table}"] = None
        elif line.startswith("type ") and COMPAT.fullmatch(table) and chain not in BASE_CHAINS:
            found[f"chain {table} {chain}"] = None
    return tuple(found)


def nft(saved: str | Unread, before: Tables | Unread, after: Tables | Unread, *, where: str) -> str | Unread:
    """Return the text of iptables-nft-save if it agrees with the kernel, which was read before and after it."""
    if isinstance(before, Unread) or isinstance(after, Unread):
        return before if isinstance(before, Unread) else after if isinstance(after, Unread) else saved
    low, high = _counted(before.chains), _counted(after.chains)
    if isinstance(saved, Unread):
        return saved if high else ""
    source = f"iptables:{where}/nft"
    if left := left_out(saved):
        return Unread(source, f"iptables does not show all of {left[0]}, to which another tool has added rules")
    told: dict[tuple[str, str], tuple[int, int]] = {}
    for rule in parse(saved):
        rules, packets = told.get((rule.table, rule.chain), (0, 0))
        told[rule.table, rule.chain] = rules + 1, packets + rule.packets
    for key in sorted({*told, *high}):
        (rules, packets), (there, most) = told.get(key, (0, 0)), high.get(key, (0, 0))
        place = f"chain {key[1]} of {key[0]}"
        if rules != there:
            return Unread(source, f"iptables-nft-save lists {rules} rules in {place}, the kernel has {there}")
        least = low.get(key, (0, 0))[1]
        if not least <= packets <= most:
            return Unread(source, f"iptables-nft-save counts {packets} packets in {place}, the kernel has {most}")
    return saved


def _counted(chains: Iterable[Chain]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return rules and packets of each chain that iptables-nft-save must show, by table and name."""
    return {
        (chain.table, chain.name): (chain.rules, chain.packets)
        for chain in chains
        if chain.family == "ip" and chain.rules and COMPAT.fullmatch(f"ip {chain.table}") and not _is_hidden(chain)
    }


def _is_hidden(chain: Chain) -> bool:
    return bool(chain.hook) and chain.name not in BASE_CHAINS


def legacy(saved: str | Unread, tables: tuple[Table, ...] | Unread, *, where: str) -> str | Unread:
    """Return the text of iptables-legacy-save if it agrees with the kernel."""
    if isinstance(tables, Unread):
        return tables
    there = {table.name: table.entries for table in tables if table.family == "ip" and table.entries}
    if isinstance(saved, Unread):
        return saved if there else ""
    told: dict[str, int] = {}
    table = ""
    for line in lines_of(saved):
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and line.split()[1] == "-":  # a chain that somebody created: its head and its end
            told[table] = told.get(table, 0) + 2
        elif re.match(r"(?:\[\d+:\d+\] )?-A ", line):
            told[table] = told.get(table, 0) + 1
    for name in sorted({*told, *there}):
        if told.get(name, 0) != there.get(name, 0):
            numbers = f"{told.get(name, 0)} entries in {name}, the kernel has {there.get(name, 0)}"
            return Unread(f"iptables:{where}/legacy", f"iptables-legacy-save lists {numbers}")
    return saved


def foreign(tables: Tables) -> tuple[str, ...]:
    """List the tables and base chains that no iptables created and that could act like nat, as nft names them."""
    own = [name for name in tables.names if name not in _harmless(tables) and not COMPAT.fullmatch(name)]
    hidden = [each for each in tables.chains if COMPAT.fullmatch(f"{each.family} {each.table}") and _is_hidden(each)]
    return (
        *(f"table {name}" for name in own),
        *(f"chain {chain.family} {chain.table} {chain.name}" for chain in hidden),
    )


def beside(tables: Tables | Unread, legacy_: tuple[Table, ...] | Unread) -> tuple[str, ...] | Unread:
    """List what else there is: Istio's tables outside nat, and rules of other address families."""
    if isinstance(tables, Unread):
        return tables
    if isinstance(legacy_, Unread):
        return legacy_
    others = [f"{chain.family} {chain.table}" for chain in tables.chains if chain.rules and chain.family != "ip"]
    named = dict.fromkeys((*_harmless(tables), *(name for name in others if COMPAT.fullmatch(name))))
    kin = (f"legacy {table.family} {table.name}" for table in legacy_ if table.family != "ip" and table.entries)
    return (*(f"table {name}" for name in named), *kin)


def _harmless(tables: Tables) -> tuple[str, ...]:
    """Return those of Istio's tables outside nat that contain only what Istio puts into them."""
    return tuple(
        name
        for name in tables.names
        if name in ISTIOS_OTHERS
        and not any(
            chain.hook == "nat" or chain.does & _DIVERTING
            for chain in tables.chains
            if f"{chain.family} {chain.table}" == name
        )
    )
