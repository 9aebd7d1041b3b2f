"""Istio's rules as values: parsed from `iptables-save -c` or `nft list table`, counted and compared.

Source of the chains: Istio's REDIRECT mode, tools/istio-iptables and tools/istio-nftables in its repository.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from merbridge_lab.text import lines_of

_RULE = re.compile(r"^(?:\[(?P<packets>\d+):(?P<bytes>\d+)\] )?-A (?P<chain>\S+) ?(?P<spec>.*)$")

BACKENDS = ("nft", "legacy")
#: The third place where Istio may put its rules, from 1.27 on: a table of nftables' own. iptables shows nothing of it.
NATIVE = "native"
NATIVE_TABLE = "inet istio-proxy-nat"
_COUNTER = re.compile(r"\bcounter packets (?P<packets>\d+) bytes \d+ ?")


@dataclass(frozen=True)
class Rule:
    """One `-A` line: where it stands and how many packets it has matched."""

    table: str
    chain: str
    spec: str
    packets: int

    @property
    def is_istio(self) -> bool:
        """Whether the rule stands in, or jumps to, one of Istio's chains."""
        return self.chain.startswith("ISTIO_") or "-j ISTIO_" in self.spec or "jump istio-" in self.spec

    def __str__(self) -> str:
        return f"-t {self.table} -A {self.chain} {self.spec}"


def parse(text: str) -> tuple[Rule, ...]:
    """Read the rules of an `iptables-save` text, with or without counters, in their order; or see parse_native."""
    if any(line.startswith("table ") for line in lines_of(text)):
        return parse_native(text)
    rules = []
    table = ""
    for line in lines_of(text):
        if line.startswith("*"):
            table = line[1:].strip()
        elif found := _RULE.match(line.strip()):
            rules.append(Rule(table, found["chain"], found["spec"], int(found["packets"] or 0)))
    return tuple(rules)


def parse_native(text: str) -> tuple[Rule, ...]:
    """Read the rules of Istio's nftables table, as `nft list table` prints it; its chains by iptables' names.

    Istio gives every rule a counter. Its chains are called in small letters and with hyphens what they are called
    in capitals and with underscores elsewhere.
    """
    rules = []
    chain = ""
    for line in (line.strip() for line in lines_of(text)):
        if line.startswith("chain "):
            chain = line.split()[1].replace("-", "_").upper()
        elif line == "}":
            chain = ""
        elif chain and line and not line.startswith(("type ", "#")):
            counted = _COUNTER.search(line)
            rules.append(Rule("nat", chain, _COUNTER.sub("", line), int(counted["packets"]) if counted else 0))
    return tuple(rules)


def place(backend: str) -> str:
    """Name a backend for a person."""
    return "native nftables" if backend == NATIVE else backend


@dataclass(frozen=True)
class RuleSet:
    """The rules of one network namespace in all backends at one moment.

    `texts` maps a backend ("nft", "legacy") to its `iptables-save -c` text; a backend whose tools are not there
    is absent; and "native" to what nft lists of Istio's own table, where there is one. `native` lists all other
    nftables tables that no iptables made. `generation`
    moves with every change of nftables' rules, so two equal ones mean that nothing changed in between.
    """

    texts: dict[str, str] = field(default_factory=dict)
    native: tuple[str, ...] = ()
    generation: int | None = None

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in (*BACKENDS, NATIVE) if name in self.texts)

    def source(self, workload: str, chain: str = "") -> str:
        """Name the nat table of `workload`, or a chain of it, as the source of a reading."""
        if NATIVE in self.texts:
            path = [f"nft:{workload}", NATIVE_TABLE, chain.replace("_", "-").lower()]
        else:
            path = [f"iptables:{workload}", "nat", chain]
        return "/".join(filter(None, path))

    @property
    def backend(self) -> str:
        """The backend that holds Istio's rules, or "" where neither does."""
        return next((name for name in self._present if any(r.is_istio for r in parse(self.texts[name]))), "")

    def backend_of(self, table: str) -> str | None:
        """Give the backend that has any rules in `table`, or None where neither has."""
        return next((name for name in self._present if any(r.table == table for r in parse(self.texts[name]))), None)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules of all backends."""
        return tuple(rule for name in self._present for rule in parse(self.texts[name]))

    @property
    def istio(self) -> tuple[Rule, ...]:
        """Those of them that are Istio's."""
        return tuple(rule for rule in self.rules if rule.is_istio)

    @property
    def nat(self) -> tuple[Rule, ...]:
        """All rules of the nat tables, whoever made them."""
        return tuple(rule for rule in self.rules if rule.table == "nat")

    def packets(self, chain: str) -> int:
        """Packets matched by the rules of `chain`; nat rules see the first packet of a connection only."""
        return sum(rule.packets for rule in self.rules if rule.chain == chain)

    def specs(self, table: str) -> tuple[str, ...]:
        """List the rules of `table` without their counters, for comparison."""
        return tuple(str(rule) for rule in self.rules if rule.table == table)
