"""How nat is read, saved, flushed and loaded in a pod, by backend: iptables' tables, or nftables' own."""

from __future__ import annotations

from dataclasses import dataclass

from merbridge_lab.ruleset import NATIVE, NATIVE_TABLE

#: For scripts whose $1 is the backend. `save` prints a text that `load` accepts and that ends in "# Completed", with
#: counters. `load` and `flush` are one transaction each. When nft reads what it lists, it adds it: so `load` flushes
#: first.
SHELL = f"""
case "$1" in
{NATIVE})
    save() {{ echo "flush table {NATIVE_TABLE}" && inside nft list table {NATIVE_TABLE} && echo "# Completed"; }}
    load() {{ inside nft -f -; }}
    flush() {{ inside nft flush table {NATIVE_TABLE}; }} ;;
*)
    tool="iptables-$1"
    save() {{ inside "$tool-save" -c -t nat; }}
    load() {{ inside "$tool-restore" -w 5 -c; }}
    flush() {{ inside "$tool" -w 5 -t nat -F; }} ;;
esac
"""


@dataclass(frozen=True)
class Commands:
    """What a person types in the pod's network namespace; to save or load, `> FILE` or `< FILE` is appended."""

    save: str
    flush: tuple[str, ...]
    load: str
    list_all: tuple[str, ...]
    list_chain: tuple[str, ...]


def commands(backend: str) -> Commands:
    """Return the commands of a backend; the name of a chain is appended to `list_chain`."""
    if backend == NATIVE:
        return Commands(
            save=f"sh -c 'echo flush table {NATIVE_TABLE}; nft list table {NATIVE_TABLE}'",
            flush=("nft", "flush", "table", *NATIVE_TABLE.split()),
            load="nft -f -",
            list_all=("nft", "list", "table", *NATIVE_TABLE.split()),
            list_chain=("nft", "list", "chain", *NATIVE_TABLE.split()),
        )
    tool = f"iptables-{backend}"
    listing = (tool, "-t", "nat", "-vnL")
    return Commands(f"{tool}-save -c -t nat", (tool, "-t", "nat", "-F"), f"{tool}-restore -c", listing, listing)


def chain_name(backend: str, chain: str) -> str:
    """Return a chain's name as the backend has it."""
    return chain.replace("_", "-").lower() if backend == NATIVE else chain
