"""The rules that Istio writes for a pod's annotations, and how the rules of a pod differ from them.

Only TCP's count, and not those by a process's owner: who the sidecar is, is shown otherwise. Rules that follow one
another and do the same commute: Istio's CNI writes them in another order than its init container.
"""

from __future__ import annotations

import functools
import itertools
import re
from importlib.resources import files
from typing import TYPE_CHECKING, TypeAlias

from merbridge_lab import ruleset, templates
from merbridge_lab.dataplane import istio_annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    #: The rules of chains, in iptables' words.
    Chains: TypeAlias = Mapping[str, Iterable[str]]
    #: Rules in order; those that commute are together.
    _Steps: TypeAlias = list[frozenset[str]]

#: Where connections enter Istio's chains: there a jump to them counts, and what returns before it.
_ENTRIES = {"PREROUTING": "ISTIO_INBOUND", "OUTPUT": "ISTIO_OUTPUT"}
_INBOUND, _OUTBOUND = ("ISTIO_INBOUND", "ISTIO_IN_REDIRECT"), ("ISTIO_OUTPUT", "ISTIO_REDIRECT")
#: What says nothing of what the app dials and what arrives for it.
_BESIDES = re.compile(r"-m owner |-p udp ")
_TARGET = re.compile(r"-j .*")


@functools.cache
def _template() -> str:
    return (files("merbridge_lab") / "data/iptables/pod.rules.j2").read_text()


def text(annotations: Mapping[str, str]) -> str:
    """Return the rules of a pod with these annotations, to be restored. Raise ValueError for a wrong one."""
    return templates.render(_template(), traffic=istio_annotations.parse(annotations))


def difference(found: Chains, annotations: Mapping[str, str]) -> str:
    """Describe the first rule of a pod's nat table that its annotations do not imply, or that is missing; else "".

    Raise ValueError for a wrong annotation.
    """
    implied: dict[str, list[str]] = {}
    for rule in ruleset.parse(text(annotations)):
        if rule.table == "nat":
            implied.setdefault(rule.chain, []).append(rule.spec)
    ours, theirs = _steps(implied), _steps(found)
    if ours.keys() != theirs.keys():
        what = "does not lead" if len(theirs) < len(ours) else "leads"
        return f"PREROUTING {what} to ISTIO_INBOUND"
    for chain, steps in ours.items():
        for wanted, there in itertools.zip_longest(steps, theirs[chain], fillvalue=frozenset[str]()):
            if wanted != there:
                extra, missing = sorted(there - wanted), sorted(wanted - there)
                return f"{chain} has {extra[0]}" if extra else f"{chain} has not {missing[0]}"
    return _without_loopback(implied, found)


def _without_loopback(implied: Chains, found: Chains) -> str:
    """Describe a rule about what the app dials in its own pod that is there and should not be, or is missing."""
    spares = [
        any(re.match(r"-o lo -m owner ! ", rule) for rule in of.get("ISTIO_OUTPUT", ())) for of in (implied, found)
    ]
    if spares[0] == spares[1]:
        return ""
    return f"ISTIO_OUTPUT {'spares' if spares[1] else 'does not spare'} what the app dials in its own pod"


def _steps(chains: Chains) -> dict[str, _Steps]:
    """Return what is done to connections, by chain; without the chains for what arrives if nothing leads there."""
    found = {}
    for chain, istios in _ENTRIES.items():
        rules = [rule for rule in chains.get(chain, ()) if rule.endswith((f"-j {istios}", "-j RETURN"))]
        found[chain] = _grouped(rules)
    arrives = any("ISTIO_INBOUND" in rule for rule in chains.get("PREROUTING", ()))
    for chain in (*(_INBOUND if arrives else ()), *_OUTBOUND):
        found[chain] = _grouped(chains.get(chain, ()))
    return found


def _grouped(rules: Iterable[str]) -> _Steps:
    # Older versions of Istio write "-p tcp" where later ones have TCP alone anyhow.
    relevant = [rule.replace("-p tcp -j", "-j") for rule in rules if not _BESIDES.search(rule)]
    return [frozenset(group) for _, group in itertools.groupby(relevant, key=_done)]


def _done(rule: str) -> str:
    found = _TARGET.search(rule)
    return found[0] if found else ""
