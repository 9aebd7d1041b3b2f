"""Read, load and flush the iptables rules of a network namespace, in whichever backend they are.

The host, a node and a pod may each use the legacy or the nft tables. Reading the other one shows nothing, and flushing
it flushes nothing. So both are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from merbridge_lab.adapters import nftables, rule_text, rules_agreement, system_tools, xtables
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread, value_of
from merbridge_lab.ruleset import BACKENDS, RuleSet
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.adapters.nftables import Tables
    from merbridge_lab.adapters.rule_text import Kernels
    from merbridge_lab.ruleset import Rule

#: The programs for legacy tables, by address family.
_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables", "arp": "arptables"}
#: How often reading is repeated if rules change meanwhile.
_TRIES = 3


def inside(netns: Path, *argv: str) -> list[str]:
    """Return the argv that runs `argv` in the network namespace `netns`, with the host's own tools."""
    return ["nsenter", f"--net={netns}", *argv]


def _tool(backend: str, suffix: str = "", program: str = "iptables") -> list[str]:
    """Return the program of a backend; legacy ones without their lock file.

    They lock a file on the host, /run/xtables.lock, which would stay there. Nobody else writes the rules of the lab's
    namespaces, and merlab lets only one command at a time change them.
    """
    lock = ["env", "XTABLES_LOCKFILE=/dev/null"] if backend == "legacy" else []
    return [*lock, f"{program}-{backend}{suffix}"]


def snapshot(netns: Path) -> RuleSet:
    """Read all rules of `netns` with their counters.

    The texts are the tools'. The kernel is read as well, before and after, and a tool's output must agree with it: a
    tool that is missing, fails or lies leaves its backend unread. Raise LabError if there is no such namespace.
    """
    if not netns.exists():
        raise LabError(f"the network namespace {netns} is not there", hint="merlab status", id="lab.incomplete")
    for _ in range(_TRIES):
        before = kernels(netns)
        texts = {backend: _told(netns, backend, before) for backend in BACKENDS}
        after = kernels(netns)
        if _generation(before) == _generation(after) and (_has_legacy(before) or not _has_legacy(after)):
            break
    return confirmed(
        RuleSet(texts, rules_agreement.left_out(texts["nft"])), before, after, where=netns.name, exact=True
    )


def confirmed(told: RuleSet, before: Kernels, after: Kernels, *, where: str, exact: bool = False) -> RuleSet:
    """Return the tools' output about rules as far as it agrees with what the kernel reported before and after it.

    With `exact`, the tools are those that created the rules: their output must then agree word for word.
    """
    (earlier, _), (nft, legacy) = before, after
    texts = dict(told.texts)
    for backend in BACKENDS:
        texts.setdefault(backend, Unread(f"iptables:{where}/{backend}", "its tools are missing"))
    texts["nft"] = rules_agreement.nft(texts["nft"], earlier, nft, where=where)
    texts["legacy"] = rules_agreement.legacy(texts["legacy"], legacy, where=where)
    beside = rules_agreement.beside(nft, legacy)
    if isinstance(nft, Unread):
        found = RuleSet(texts, nft, nft, beside)
    else:
        named = () if isinstance(told.native, Unread) else told.native
        native = tuple(dict.fromkeys((*rules_agreement.foreign(nft), *named)))
        found = RuleSet(texts, native, nft.generation, beside)
    return _worded(found, told, before, after, where) if exact else found


def _worded(found: RuleSet, told: RuleSet, before: Kernels, after: Kernels, where: str) -> RuleSet:
    """Compare the texts with the kernel's own data, and add what it reports about tables and chains themselves."""
    texts = dict(found.texts)
    in_part: list[Rule] = []
    for backend, chains in rule_text.known(before, after).items():
        text = texts[backend]
        if isinstance(text, Unread) or isinstance(told.texts[backend], Unread):
            continue  # not read; or not needed, because there are no rules
        if why := rule_text.differing(f"iptables-{backend}-save", text, chains):
            texts[backend] = Unread(f"iptables:{where}/{backend}", why)
        else:
            in_part += rule_text.in_part(text, chains)
    return replace(found, texts=texts, altered=rule_text.altered(*after), in_part=tuple(in_part))


def backend_of(netns: Path, table: str) -> str | None:
    """Return the backend that has rules in `table`, or None if neither has; from the kernel, not from the tools."""
    nft, legacy = kernels(netns)
    if any((chain.family, chain.table) == ("ip", table) and chain.rules for chain in value_of(nft).chains):
        return "nft"
    there = any((each.family, each.name) == ("ip", table) and each.entries for each in value_of(legacy))
    return "legacy" if there else None


def kernels(netns: Path) -> Kernels:
    """Read from the kernel what is in nftables and in the legacy tables."""
    nft: Tables | Unread
    legacy: tuple[xtables.Table, ...] | Unread
    try:
        nft = nftables.read(netns)
    except OSError as error:
        nft = unread(f"nft:{netns.name}", error)
    try:
        legacy = xtables.read(netns)
    except OSError as error:
        legacy = unread(f"iptables:{netns.name}/legacy", error)
    return nft, legacy


def _has_legacy(told: Kernels) -> bool:
    """Report whether there is a legacy table of IPv4, or whether that is not known."""
    return isinstance(told[1], Unread) or any(table.family == "ip" for table in told[1])


def _told(netns: Path, backend: str, before: Kernels) -> str | Unread:
    """Return what the tool of a backend prints: nothing if there is no table, and it then need not be started.

    The caller reads the kernel again afterwards, so that a table that somebody creates meanwhile is noticed.
    """
    return _saved(netns, backend) if backend == "nft" or _has_legacy(before) else ""


def _generation(told: Kernels) -> int | Unread:
    return told[0] if isinstance(told[0], Unread) else told[0].generation


def _saved(netns: Path, backend: str) -> str | Unread:
    tool = f"iptables-{backend}-save"
    source = f"iptables:{netns.name}/{backend}"
    if not system_tools.find(tool):
        return Unread(source, f"{tool} is not on this machine")
    try:
        return run(inside(netns, tool, "-c")).stdout
    except LabError as error:
        return unread(source, error, *filter(None, (tool, error.what, (error.stderr or "").partition("\n")[0])))


def save(netns: Path, backend: str, table: str) -> str:
    """Return one table of `netns` as a text that `load` accepts, with counters."""
    return run(save_argv(netns, backend, table)).stdout


@change("load rules")
def load(netns: Path, text: str, backend: str) -> None:
    """Replace the tables that `text` names by its rules and counters, in one transaction per table."""
    run(inside(netns, *_tool(backend, "-restore"), "-c"), stdin=text)


@change("flush rules")
def flush(netns: Path, backend: str, table: str) -> None:
    """Delete every rule of `table`; its chains stay, empty."""
    run(flush_argv(netns, backend, table))


@change("clear rules")
def clear(netns: Path, *, but: str, tables: Sequence[str]) -> None:
    """Delete every rule and chain of `netns`, whoever made them; the `tables` of the backend `but` stay.

    Raise UnreadError if the existing rules are not known.
    """
    found = snapshot(netns)
    spoilt = (f"table {name}" for name in rule_text.spoilt(nftables.read(netns)))
    for name in dict.fromkeys((*value_of(found.native), *value_of(found.beside), *spoilt)):
        kind, *rest = name.split()
        if kind == "legacy":
            family, table = rest
            _empty(netns, _PROGRAMS[family], "legacy", table)
        else:
            run(inside(netns, "nft", "delete", *name.split()))
    present = {
        "nft": [name.removeprefix("ip ") for name in nftables.read(netns).names if name.startswith("ip ")],
        "legacy": [table.name for table in xtables.read(netns) if table.family == "ip" and table.entries],
    }
    for backend in BACKENDS:
        for table in sorted(set(present[backend]) - set(tables if backend == but else ())):
            _empty(netns, "iptables", backend, table)
    _accept(netns)


def _accept(netns: Path) -> None:
    """Set the policy of iptables' chains to accept."""
    for chain in nftables.read(netns).chains:
        if chain.drops and chain.family == "ip" and rules_agreement.COMPAT.fullmatch(f"ip {chain.table}"):
            run(inside(netns, *_tool("nft"), "-t", chain.table, "-P", chain.name, "ACCEPT"))
        elif chain.drops and rules_agreement.COMPAT.fullmatch(f"{chain.family} {chain.table}"):
            run(inside(netns, "nft", "delete", "table", chain.family, chain.table))
    for table in xtables.read(netns):
        for name in table.dropping:
            tool = _tool("legacy", program=_PROGRAMS[table.family])
            run(inside(netns, *tool, "-t", table.name, "-P", name, "ACCEPT"))


def _empty(netns: Path, program: str, backend: str, table: str) -> None:
    for option in ("-F", "-X"):
        run(inside(netns, *_tool(backend, program=program), "-t", table, option))


def save_argv(netns: Path, backend: str, table: str) -> list[str]:
    """Return the command behind `save`."""
    return inside(netns, f"iptables-{backend}-save", "-c", "-t", table)


def list_argv(netns: Path, backend: str, table: str, chain: str = "") -> list[str]:
    """Return the command that lists a table, or one of its chains, with its counters for a person."""
    return inside(netns, *_tool(backend), "-t", table, "-vnL", *([chain] if chain else []))


def flush_argv(netns: Path, backend: str, table: str) -> list[str]:
    """Return the command behind `flush`."""
    return inside(netns, *_tool(backend), "-t", table, "-F")


def restore_line(netns: Path, backend: str, saved: Path) -> str:
    """Return the line that a person types to restore rules from a file."""
    return f"{pasteable(inside(netns, *_tool(backend, '-restore'), '-c'))} < {saved}"
