"""Istio's rules as values: parsed from `iptables-save -c` or `nft list table`, counted and compared.

Source of the chains: Istio's REDIRECT mode, tools/istio-iptables and tools/istio-nftables in its repository.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merbridge_lab.evidence import Unread, UnreadError, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping

from merbridge_lab.text import lines_of

_RULE = re.compile(r"^(?:\[(?P<packets>\d+):(?P<bytes>\d+)\] )?-A (?P<chain>\S+) ?(?P<spec>.*)$")

BACKENDS = ("nft", "legacy")
#: The third place where Istio may put its rules, from 1.27 on: its own table of nftables. iptables shows nothing of it.
NATIVE = "native"
NATIVE_TABLE = "inet istio-proxy-nat"
_NOT_ASKED = Unread("nft:generation", "not requested")
_COUNTER = re.compile(r"\bcounter packets (?P<packets>\d+) bytes \d+ ?")


@dataclass(frozen=True)
class Rule:
    """One `-A` line: its place and how many packets it has matched."""

    table: str
    chain: str
    spec: str
    packets: int

    @property
    def is_istio(self) -> bool:
        """Report whether the rule is in, or jumps to, one of Istio's chains."""
        return self.chain.startswith("ISTIO_") or "-j ISTIO_" in self.spec or "jump istio-" in self.spec

    def __str__(self) -> str:
        return f"-t {self.table} -A {self.chain} {self.spec}"


def parse(text: str) -> tuple[Rule, ...]:
    """Parse the rules of an `iptables-save` text, with or without counters, in order. For nftables see parse_native."""
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
    """Parse the rules of Istio's nftables table, as `nft list table` prints it; chains get the names of iptables.

    Istio gives every rule a counter. The names of its chains here are in lower case with hyphens, elsewhere in upper
    case with underscores.
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
    """Return the name of a backend for a person."""
    return "native nftables" if backend == NATIVE else backend


@dataclass(frozen=True)
class RuleSet:
    """The rules of one network namespace in all backends at one moment.

    `texts` maps a backend ("nft", "legacy") to its `iptables-save -c` text, and "native" to what nft lists of Istio's
    own nat table, if there is one. A backend that is absent cannot have rules. A backend that could not be read is
    Unread: reading its rules raises UnreadError. `native` lists what else of nftables could act like nat, although
    iptables did not make it. `beside` lists what cannot: Istio's raw and mangle tables, and other address families.
    `generation` changes with every change of nftables' rules, so two equal ones mean that nothing changed in between.
    `altered` describes, in sentences, how iptables' own tables and chains differ from how iptables makes them: a policy
    that drops, a table that is switched off. `in_part` lists rules of which not all of the kernel's words are known.
    """

    texts: Mapping[str, str | Unread] = field(default_factory=dict)
    native: tuple[str, ...] | Unread = ()
    generation: int | Unread = _NOT_ASKED
    beside: tuple[str, ...] | Unread = ()
    altered: tuple[str, ...] | Unread = ()
    in_part: tuple[Rule, ...] = ()

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in (*BACKENDS, NATIVE) if name in self.texts)

    def _parsed(self, backend: str) -> tuple[Rule, ...]:
        return parse(value_of(self.texts[backend]))

    @property
    def unread(self) -> tuple[Unread, ...]:
        """The parts of the rules that could not be read."""
        readings = (*(self.texts[name] for name in self._present), self.native, self.beside, self.altered)
        return tuple(each for each in readings if isinstance(each, Unread))

    def source(self, workload: str, chain: str = "") -> str:
        """Return the name of the nat table of `workload`, or of one of its chains, as the source of a reading."""
        if NATIVE in self.texts:
            path = [f"nft:{workload}", NATIVE_TABLE, chain.replace("_", "-").lower()]
        else:
            path = [f"iptables:{workload}", "nat", chain]
        return "/".join(filter(None, path))

    @property
    def backend(self) -> str:
        """The backend that holds Istio's nat rules; "" if none does."""
        return next((name for name in self._present if any(_is_istios_nat(r) for r in self._parsed(name))), "")

    def backend_of(self, table: str) -> str | None:
        """Return the backend that has rules in `table`; None if none has."""
        return next((name for name in self._present if any(r.table == table for r in self._parsed(name))), None)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules of all backends."""
        return tuple(rule for name in self._present for rule in self._parsed(name))

    @property
    def istio(self) -> tuple[Rule, ...]:
        """Istio's rules in nat, which bring connections to the sidecar; those in raw and mangle do not."""
        return tuple(rule for rule in self.rules if _is_istios_nat(rule))

    @property
    def nat(self) -> tuple[Rule, ...]:
        """All rules of the nat tables, whoever made them."""
        return tuple(rule for rule in self.rules if rule.table == "nat")

    @property
    def nat_count(self) -> str:
        """How many rules the nat tables hold, as text; "not read" if that is not known."""
        return "not read" if self.unread else str(len(self.nat))

    @property
    def diverting(self) -> tuple[Rule, ...]:
        """Rules outside nat that can bring a connection to another listener than its original destination."""
        return tuple(rule for rule in self.rules if rule.table != "nat" and _DIVERTS.search(rule.spec))

    def packets(self, chain: str) -> int:
        """Return how many packets the nat rules of `chain` matched: they see only the first packet of a connection."""
        return sum(rule.packets for rule in self.nat if rule.chain == chain)

    def specs(self, table: str) -> tuple[str, ...]:
        """List the rules of `table` without their counters, for comparison."""
        return tuple(str(rule) for rule in self.rules if rule.table == table)

    def text(self, backend: str, table: str) -> str:
        """Return one table as text with counters, as iptables-save -t prints it; "" if it does not list the table."""
        found = re.search(
            rf"(?:^# Generated by .*\n)?^\*{re.escape(table)}\n(?:.*\n)*?COMMIT\n(?:# Completed on .*\n)?",
            value_of(self.texts[backend]),
            re.MULTILINE,
        )
        return found[0] if found else ""

    def fingerprint(self, table: str) -> str:
        """Return the rules of `table` as one text, or the reason why they could not be read."""
        return "\n".join(map(str, self.unread)) or "\n".join(self.specs(table))

    def to_json(self) -> dict[str, Any]:
        """Return it as `merlab status --json` prints it; `unread` is present if the rules could not be read."""
        told: dict[str, Any] = {"backend": "", "istio_rules": 0}
        try:
            told |= {"backend": self.backend, "istio_rules": len(self.istio)}
        except UnreadError as error:
            told["unread"] = error.cause
        return told

    def change_since(self, before: RuleSet, *, between: bool = True) -> str:
        """Return the first difference in any table of any backend, without counters; "" if there is none.

        The generation reveals rules that changed and changed back `between` the two, if it was read.
        """
        for name in dict.fromkeys((*before._present, *self._present)):
            old, new = (_lines(value_of(each.texts.get(name, ""))) for each in (before, self))
            if old != new:
                differing = next(iter(set(old) ^ set(new)), "their order")
                return f"{differing} ({place(name)})"
        pairs = (before.native, self.native), (before.beside, self.beside), (before.altered, self.altered)
        for were, are in pairs:
            if others := set(value_of(were)) ^ set(value_of(are)):
                return min(others)
        numbers = before.generation, self.generation
        if not between or any(isinstance(number, Unread) for number in numbers) or numbers[0] == numbers[1]:
            return ""
        return f"nftables' generation went from {numbers[0]} to {numbers[1]}"

    def fault(self) -> str:
        """Describe how Istio's nat rules differ from what every version of Istio makes; "" if they do not.

        The chains that bring a connection to the sidecar must be reached and must redirect, once and in one backend. (A
        change of the backend leaves the rules in both: istio/istio#61020.)
        """
        holding = [name for name in self._present if any(_is_istios_nat(rule) for rule in self._parsed(name))]
        if len(holding) != 1:
            return f"are in {' and in '.join(map(place, holding))}" if holding else "are not in the nat table"
        nat = [rule for rule in self._parsed(holding[0]) if rule.table == "nat"]
        for chain, target in _WAY:
            specs = [rule.spec for rule in nat if rule.chain == chain and re.search(target, rule.spec)]
            if not specs:
                return f"lack the one in {chain} that leads on to the sidecar"
            if len(specs) != len(set(specs)):
                return f"lead on to the sidecar twice in {chain}"
        return ""


#: The chains that a connection passes on its way to the sidecar, and what leads on in each.
_WAY = (
    ("OUTPUT", r"-j ISTIO_OUTPUT\b|jump istio-output\b"),
    ("ISTIO_OUTPUT", r"-j ISTIO_REDIRECT\b|jump istio-redirect\b"),
    ("ISTIO_REDIRECT", r"-j REDIRECT\b|\bredirect to\b"),
)
_DIVERTS = re.compile(r"-[jg] (?:TPROXY|REDIRECT|DNAT|NFQUEUE|NETMAP|TEE)\b")
_COUNTERS = re.compile(r"\[\d+:\d+\]|\bpackets \d+ bytes \d+")


def _is_istios_nat(rule: Rule) -> bool:
    return rule.table == "nat" and rule.is_istio


def _lines(text: str) -> list[str]:
    """Return the lines of a text of rules without comments and counters; empty chains are among them."""
    lines = (_COUNTERS.sub("", line).strip() for line in lines_of(text))
    return [line for line in lines if line and not line.startswith("#")]
