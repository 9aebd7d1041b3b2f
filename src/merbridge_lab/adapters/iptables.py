"""Read, load and flush the iptables rules of a network namespace, in whichever backend they are.

The host, a node and a pod may each use the legacy or the nft tables; reading the other one shows nothing and
flushing it flushes nothing. So reading probes both.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from merbridge_lab.adapters import nftables
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.proc import pasteable, run
from merbridge_lab.ruleset import BACKENDS, RuleSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Tables that iptables-nft makes itself; every other one is native nftables.
_COMPAT = re.compile(r"^table (?:ip|ip6|arp|bridge) (?:nat|filter|mangle|raw|security)\b")
#: The base chains that iptables-nft makes in them; every other one is native, though iptables shows nothing of it.
_BASE_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "BROUTING"})


def inside(netns: Path, *argv: str) -> list[str]:
    """Give `argv` as it runs in the network namespace `netns`, with the host's own tools."""
    return ["nsenter", f"--net={netns}", *argv]


def _tool(backend: str, suffix: str = "") -> list[str]:
    """Give the program of a backend; legacy ones without their lock file.

    They lock a file on the host, /run/xtables.lock, which would stay there. Nobody else writes the rules of the lab's
    namespaces, and merlab lets only one of itself work at a time.
    """
    lock = ["env", "XTABLES_LOCKFILE=/dev/null"] if backend == "legacy" else []
    return [*lock, f"iptables-{backend}{suffix}"]


def snapshot(netns: Path) -> RuleSet:
    """Read all rules of `netns` with their counters.

    Raises LabError when the namespace cannot be entered.
    """
    texts = {}
    for backend in BACKENDS:
        tool = f"iptables-{backend}-save"
        if shutil.which(tool):
            texts[backend] = run(inside(netns, tool, "-c")).stdout
    native: tuple[str, ...] = ()
    if shutil.which("nft"):
        native = native_in(run(inside(netns, "nft", "list", "chains")).stdout) or _left_out(texts.get("nft", ""))
    return RuleSet(texts, native, nftables.generation(netns))


def native_in(chains: str) -> tuple[str, ...]:
    """Name the tables and base chains that no iptables made, from what `nft list chains` prints; as nft names them."""
    found: dict[str, None] = {}
    table = chain = ""
    for line in (line.strip() for line in chains.splitlines()):
        if line.startswith("table "):
            table = line.removesuffix("{").strip()
            if not _COMPAT.match(table):
                found[table] = None
        elif line.startswith("chain "):
            chain = line.split()[1]
        elif line.startswith("type ") and _COMPAT.match(table) and chain not in _BASE_CHAINS:
            found[f"chain {table.removeprefix('table ')} {chain}"] = None
    return tuple(found)


def _left_out(saved: str) -> tuple[str, ...]:
    """Name the tables that iptables-save left out, with a comment, for rules in them that it cannot have made."""
    return tuple(
        f"table ip {found[1]}" for found in re.finditer(r"^# Table `(\w+)' .*incompatible", saved, re.MULTILINE)
    )


def save(netns: Path, backend: str, table: str) -> str:
    """Give one table of `netns` as a text that `load` takes, counters included."""
    return run(save_argv(netns, backend, table)).stdout


@change("load rules")
def load(netns: Path, text: str, backend: str) -> None:
    """Replace the tables that `text` names by its rules and counters, in one transaction a table."""
    run(inside(netns, *_tool(backend, "-restore"), "-c"), stdin=text)


@change("flush rules")
def flush(netns: Path, backend: str, table: str) -> None:
    """Delete every rule of `table`; its chains stay, empty."""
    run(flush_argv(netns, backend, table))


@change("clear rules")
def clear(netns: Path, *, but: str, tables: Sequence[str]) -> None:
    """Delete every rule and chain of `netns`, whoever made them; the `tables` of the backend `but` stay."""
    found = snapshot(netns)
    for backend, text in found.texts.items():
        present = {line[1:] for line in text.splitlines() if line.startswith("*")}
        for table in sorted(present - set(tables if backend == but else ())):
            for option in ("-F", "-X"):
                run(inside(netns, *_tool(backend), "-t", table, option))
    for table in found.native:
        run(inside(netns, "nft", "delete", *table.split()))


def save_argv(netns: Path, backend: str, table: str) -> list[str]:
    """Give the command behind `save`."""
    return inside(netns, f"iptables-{backend}-save", "-c", "-t", table)


def list_argv(netns: Path, backend: str, table: str, chain: str = "") -> list[str]:
    """Give the command that lists a table, or one chain of it, with its counters for a person."""
    return inside(netns, *_tool(backend), "-t", table, "-vnL", *([chain] if chain else []))


def flush_argv(netns: Path, backend: str, table: str) -> list[str]:
    """Give the command behind `flush`."""
    return inside(netns, *_tool(backend), "-t", table, "-F")


def restore_line(netns: Path, backend: str, saved: Path) -> str:
    """Give the line a person types to put rules back from a file."""
    return f"{pasteable(inside(netns, *_tool(backend, '-restore'), '-c'))} < {saved}"
