"""The evidence around one batch of requests, which the checks of a request evaluate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from merbridge_lab.evidence import Reading, Unread, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.interception import Interception
    from merbridge_lab.ruleset import RuleSet
    from merbridge_lab.trace_event import TraceEvent

HTTP_OK = 200
#: curl: connected, then closed before any HTTP status ("empty reply" and "failure receiving").
CURL_CLOSED = (52, 56)
#: How the names of pods end that the dataplane does not serve.
_CONTROL = re.compile(r"-twin\d*$")
#: Maximum number of repeats of a batch whose connections are not fresh ones for conntrack.
_ANEW = 2


@dataclass(frozen=True)
class Exchange:
    """One request on one fresh connection, and its result.

    `exit_status` is curl's. `status` is the HTTP status or None. `local` is the client's "ip:port" as the client sees
    it. `remote` is the peer as the client sees it (getpeername).
    """

    nonce: str
    url: str
    exit_status: int
    status: int | None
    body: str
    headers: Mapping[str, str]
    local: str
    seconds: float
    error: str = ""
    remote: str = ""

    @property
    def served(self) -> bool:
        """Report whether the response was a 200."""
        return self.exit_status == 0 and self.status == HTTP_OK

    @property
    def closed(self) -> bool:
        """Report whether the connection was established and then closed before any HTTP status."""
        return self.exit_status in CURL_CLOSED

    @property
    def peer_is_loopback(self) -> bool:
        """Report whether the app saw a loopback address as its peer."""
        return self.remote.startswith("127.")

    @property
    def instance(self) -> str:
        """Return who answered, according to the answer: helloworld names its pod; "" if the body names nobody."""
        found = re.search(r"\binstance: (\S+)", self.body)
        return found[1] if found else ""

    @property
    def answer(self) -> str:
        """Return what curl prints: the body, or its error."""
        return self.body or (self.error + "\n" if self.error else "")

    def __str__(self) -> str:
        if self.exit_status:
            return f"curl exit {self.exit_status}: {self.error or 'no message'}"
        return f"HTTP {self.status}"


def arrivals(sent: str, changed_sources: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return each "ip:port" that may be the source on arrival of what was sent from `sent`: the same or changed."""
    known, new = frozenset[str](), frozenset({sent})
    while new:
        known |= new
        new = frozenset(after for before in new for after in changed_sources.get(before, ())) - known
    return known


def in_words(pod: str) -> str:
    """Return what a sentence calls a pod: its name, or what it is, if it exists for the moment and nobody types it."""
    if not _CONTROL.search(pod):
        return pod
    return "the control client" if pod.startswith("sleep") else "the control server"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of requests of one client, with the records that they left in logs and in the dataplane's trace.

    `client_log` and `server_log` map a nonce to the line that the client's sidecar, or a server's, wrote about it;
    `server_log` also has the server's name.
    """

    client: str
    exchanges: tuple[Exchange, ...]
    client_log: Mapping[str, AccessLogLine] | Unread
    server_log: Mapping[str, tuple[str, AccessLogLine]] | Unread
    trace: tuple[TraceEvent, ...] | Unread = ()

    def __post_init__(self) -> None:
        if not self.exchanges:
            raise ValueError("a batch without a request proves nothing")

    @property
    def who(self) -> str:
        """The client, as a sentence calls it."""
        return in_words(self.client)

    @property
    def servers(self) -> frozenset[str]:
        """The workloads whose sidecar delivered one of the requests."""
        return frozenset(name for name, _ in value_of(self.server_log).values())


@dataclass(frozen=True, kw_only=True)
class Observation(Batch):
    """A batch of requests of one client, with the state of the world before and after it.

    `rejected` are connections that a server's inbound listener closed because they were plain text. `before` and
    `after` are the client's rules. `interception` is what the dataplane did. `control` is the same batch sent by a
    control client that the dataplane does not serve. `saved` and `restored` are the rules around a flush.
    `changed_sources` are those of conntrack (adapters.conntrack), read if the records of a request did not name the
    same ports. `by_tcp` exists for a lab that reads from the kernel's TCP what it carried: nonce → leg → the bytes that
    the dialling and the accepting end gave to TCP, over the life of their connection. Each value that could not be read
    is Unread.
    """

    rejected: tuple[tuple[str, AccessLogLine], ...] | Unread
    before: RuleSet
    after: RuleSet
    interception: Interception
    control: Observation | None = None
    saved: RuleSet | None = None
    restored: RuleSet | None = None
    changed_sources: Mapping[str, frozenset[str]] | Unread = field(default_factory=dict)
    by_tcp: Mapping[str, Mapping[str, tuple[int, int]]] | Unread | None = None

    def with_control(self, control: Observation) -> Observation:
        """Return this observation with `control` attached."""
        return replace(self, control=control)

    def with_rules(self, saved: RuleSet, restored: RuleSet | None) -> Observation:
        """Return this observation with the rules around the flush during which it was made.

        `restored` is None if the rules were left flushed on purpose.
        """
        return replace(self, saved=saved, restored=restored)

    def is_same(self, sent: str, arrived: str) -> bool:
        """Report whether what was sent from "ip:port" `sent` may have arrived as `arrived`. Raise UnreadError."""
        return sent == arrived or arrived in arrivals(sent, value_of(self.changed_sources))

    def has_ports_of(self, earlier: Iterable[Observation]) -> bool:
        """Report whether a connection, a sidecar's included, reuses a source port of an earlier one."""
        # For a connection that was never established, curl reports neither address nor port.
        known = {each.local for seen in earlier for each in seen.exchanges if each.local[:1].isdigit()}
        told = {} if isinstance(self.client_log, Unread) else self.client_log
        return not known.isdisjoint(
            (*(each.local for each in self.exchanges), *(line.upstream_local for line in told.values()))
        )

    @property
    def tally(self) -> str:
        """Count, in a few words, how many requests were answered, each on a connection of its own."""
        total, answered = len(self.exchanges), sum(exchange.served for exchange in self.exchanges)
        if answered == total:
            return f"{answered} of {total} answered, each on a new connection"
        if not answered and all(exchange.closed for exchange in self.exchanges):
            return f"{total} of {total} connected, then closed without an answer"
        return f"{answered} of {total} answered ({next(str(each) for each in self.exchanges if not each.served)})"

    @property
    def versions(self) -> frozenset[str]:
        """The versions of helloworld that answered."""
        return frozenset(
            word.rstrip(",")
            for exchange in self.exchanges
            if exchange.served and exchange.body.startswith("Hello version: ")
            for word in exchange.body.split()[2:3]
        )

    def rule(self, chain: str) -> Reading:
        """Return how many packets the client's rules in `chain` matched."""
        where = self.before.source(self.client, chain)
        return Reading(where, "packets", self.before.packets(chain), self.after.packets(chain))


def with_fresh_ports(observe: Callable[[], Observation], *closed: Observation) -> Observation:
    """Observe, and repeat if a connection reuses the source port of one that a server has reset before.

    Conntrack remembers such a connection for ten seconds more and takes the new connection for it. The new one then
    goes where the old one went, and no nat rule counts it. The kernel starts at another port every ten seconds, so this
    happens by chance and says nothing about the rules. A batch with fresh ports is accepted as it is, and so is the
    third batch in any case.
    """
    seen = observe()
    for _ in range(_ANEW):
        if not seen.has_ports_of(closed):
            break
        closed = (*closed, seen)
        seen = observe()
    return seen
