"""Compare the text of iptables-save with the kernel's own data, rule by rule and chain by chain.

The numbers of rules and packets may agree although a tool prints other rules than there are. So every rule that the
kernel holds is converted to the words of iptables-save, without any tool, and must be equal to the printed one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import xt_rule
from merbridge_lab.adapters.rules_agreement import BASE_CHAINS, COMPAT
from merbridge_lab.evidence import Unread
from merbridge_lab.ruleset import parse
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from merbridge_lab.adapters.nftables import Chain, Tables
    from merbridge_lab.adapters.xtables import Table
    from merbridge_lab.ruleset import Rule

    #: nftables and the legacy tables, as the kernel reports them.
    Kernels = tuple[Tables | Unread, tuple[Table, ...] | Unread]

#: The tables of IPv4 that iptables creates, the hooks of its chains by number, and the priorities.
_HOOKS = {"PREROUTING": 0, "INPUT": 1, "FORWARD": 2, "OUTPUT": 3, "POSTROUTING": 4}
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT = {"PREROUTING": -100, "INPUT": 100, "OUTPUT": -100, "POSTROUTING": 100}
_HEADER = re.compile(r":(\S+) (\S+) \[\d+:\d+\]")
#: What else a complete text may contain: iptables-restore would execute anything beyond that.
_LINE = re.compile(r"(?:#.*|COMMIT|(?:\[\d+:\d+\] )?-A .+)?")
_LONGEST = 4096  # iptables-restore cuts lines that are longer than its buffer, and continues to parse in the middle

#: A chain by its table and its name.
Key = tuple[str, str]


class Known(NamedTuple):
    """What the kernel reports of a chain: its policy, "-" for none; its rules, the fewest and the most packets."""

    policy: str
    rules: tuple[tuple[str, int, int], ...]


def known(before: Kernels, after: Kernels) -> dict[str, dict[Key, Known]]:
    """Return the chains of each backend that was read from the kernel before and after."""
    found = {}
    if not isinstance(before[0], Unread) and not isinstance(after[0], Unread):
        found["nft"] = _of_nft(before[0], after[0])
    if not isinstance(before[1], Unread) and not isinstance(after[1], Unread):
        found["legacy"] = _of_legacy(before[1], after[1])
    return found


def _of_nft(before: Tables, after: Tables) -> dict[Key, Known]:
    """Return the chains of iptables-nft for IPv4, without those that it does not show."""
    earlier = {(chain.table, chain.name): chain for chain in before.chains if chain.family == "ip"}
    found = {}
    for chain in after.chains:
        if chain.family == "ip" and COMPAT.fullmatch(f"ip {chain.table}") and not (chain.hook and _misplaced(chain)):
            then = earlier.get((chain.table, chain.name))
            policy = ("DROP" if chain.drops else "ACCEPT") if chain.hook else "-"
            found[chain.table, chain.name] = Known(policy, _since(then.told if then else (), chain.told))
    return found


def _of_legacy(before: Sequence[Table], after: Sequence[Table]) -> dict[Key, Known]:
    """Return the chains of iptables-legacy."""
    earlier = {(table.name, chain.name): chain.told for table in before for chain in table.chains or ()}
    return {
        (table.name, chain.name): Known(chain.policy, _since(earlier.get((table.name, chain.name), ()), chain.told))
        for table in after
        for chain in table.chains or ()
    }


def _since(then: Sequence[tuple[str, int]], now: Sequence[tuple[str, int]]) -> tuple[tuple[str, int, int], ...]:
    same = [words for words, _ in then] == [words for words, _ in now]
    return tuple((words, then[at][1] if same else 0, packets) for at, (words, packets) in enumerate(now))


def differing(tool: str, text: str, there: Mapping[Key, Known]) -> str:
    """Describe how a text differs from what is there; "" if it does not."""
    if odd := _no_line_of_it(text):
        return f"{tool} prints {odd}, which is not its format"
    policies = dict(_policies(text))
    told: dict[Key, list[Rule]] = {}
    for rule in parse(text):
        told.setdefault((rule.table, rule.chain), []).append(rule)
    for key in sorted({*told, *there, *policies}):
        table, chain = key
        place = f"chain {chain} of {table}"
        known = there.get(key, Known("", ()))
        # The tool shows chains of its own that do not exist (yet) as they would be.
        if (policy := policies.get(key, "")) != known.policy and (known.policy or policy != "ACCEPT"):
            said = f"{policy or 'no policy'} as the policy of {place}"
            return f"{tool} lists {said}, the kernel has {known.policy or 'no such chain'}"
        rules = told.get(key, [])
        if len(rules) != len(known.rules):
            return f"{tool} lists {len(rules)} rules in {place}, the kernel has {len(known.rules)}"
        for rule, (words, least, most) in zip(rules, known.rules, strict=True):
            if not xt_rule.agrees(words, rule.spec):
                return f"{tool} lists {rule}, the kernel has -t {table} -A {chain} {xt_rule.shown(words)}"
            if not least <= rule.packets <= most:
                return f"{tool} counts {rule.packets} packets that matched {rule}, the kernel has {most}"
    return ""


def in_part(text: str, there: Mapping[Key, Known]) -> Iterator[Rule]:
    """Return the rules of a text that is not `differing` whose words are not all known from the kernel."""
    at: dict[Key, int] = {}
    for rule in parse(text):
        key = rule.table, rule.chain
        number = at[key] = at.get(key, -1) + 1
        if xt_rule.ANY in there[key].rules[number][0]:
            yield rule


def _no_line_of_it(text: str) -> str:
    """Return the first line of a text that iptables-save does not print, or a table that occurs twice; else ""."""
    tables = set()
    for line in lines_of(text):
        if line.startswith("*") and line not in tables:
            tables.add(line)
        elif len(line) > _LONGEST or not (_LINE.fullmatch(line) or _HEADER.fullmatch(line)):
            return repr(line[:80])
    return ""


def _policies(text: str) -> Iterator[tuple[Key, str]]:
    table = ""
    for line in lines_of(text):
        if line.startswith("*"):
            table = line[1:].strip()
        elif found := _HEADER.fullmatch(line):
            yield (table, found[1]), found[2]


# -- tables and chains themselves ------------------------------------------------------------------------------------


def spoilt(tables: Tables) -> tuple[str, ...]:
    """List the tables of iptables that only recreation can repair: switched off, or with chains on other hooks."""
    off = [name for name in tables.dormant if COMPAT.fullmatch(name)]
    odd = (f"ip {each.table}" for each in tables.chains if each.family == "ip" and _is_ours(each) and _misplaced(each))
    return tuple(dict.fromkeys((*off, *odd)))


def altered(tables: Tables | Unread, legacy: Sequence[Table] | Unread) -> tuple[str, ...] | Unread:
    """Describe how iptables' own tables and chains differ from how it creates them, in every family."""
    if isinstance(tables, Unread) or isinstance(legacy, Unread):
        return next(each for each in (tables, legacy) if isinstance(each, Unread))
    found = [f"table {name} is switched off (dormant)" for name in tables.dormant if COMPAT.fullmatch(name)]
    for chain in tables.chains:
        if not COMPAT.fullmatch(f"{chain.family} {chain.table}"):
            continue
        place = f"chain {chain.name} of table {chain.family} {chain.table}"
        if chain.drops:
            found.append(f"the policy of {place} is DROP")
        if chain.family == "ip" and _is_ours(chain) and _misplaced(chain):
            found.append(f"{place} is not on the hook where iptables has it")
    found += [
        f"the policy of chain {chain} of the legacy table {table.family} {table.name} is DROP"
        for table in legacy
        for chain in table.dropping
    ]
    return tuple(found)


def _is_ours(chain: Chain) -> bool:
    return bool(COMPAT.fullmatch(f"{chain.family} {chain.table}")) and chain.name in BASE_CHAINS


def _misplaced(chain: Chain) -> bool:
    """Report whether this base chain is not as iptables creates it, or should be one and is not."""
    nat = chain.table == "nat"
    kind = "nat" if nat else "route" if (chain.table, chain.name) == ("mangle", "OUTPUT") else "filter"
    priority = _NAT.get(chain.name) if nat else _PRIORITIES.get(chain.table)
    return chain.hook != kind or chain.place != (_HOOKS.get(chain.name), priority)
