"""The trace as a conversation: one line for each event, with pods and apps by name, and the totals at the end."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.markup import escape

from merbridge_lab.console import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.console.terminal import Terminal
    from merbridge_lab.trace_event import TraceContext, TraceEvent

#: How long the events of a connection are held until its pods are known, in seconds.
_MOMENT = 0.5
#: If no app dials in what is shown, a silence as long as this, in seconds, separates requests.
_SILENCE = 1.0
#: How many connections are remembered after they closed: a last message may come later.
_REMEMBERED = 1000
#: The kernel's name for a task whose name it does not know.
_NAMELESS = "<...>"


@dataclass(frozen=True)
class _Leg:
    """One leg of a request: its number, the colour of its mark, and what is at its ends."""

    number: int
    color: str
    ends: tuple[str, str]


_LEGS = {
    "outbound": _Leg(1, "cyan", ("app", "sidecar")),
    "mesh": _Leg(2, "green", ("sidecar", "sidecar")),
    "inbound": _Leg(3, "blue", ("sidecar", "app")),
}
_NO_LEG = _Leg(0, "default", ("one end", "the other end"))


@dataclass
class _Connection:
    """What is known of one connection; `pods` are those that dialled and accepted it, empty while unknown.

    `is_new` is true if it was dialled during the trace.
    """

    leg: str = ""
    pods: list[str] = field(default_factory=lambda: ["", ""])
    pid: int = 0
    comm: str = ""
    is_new: bool = False
    wanted: str = ""
    source: str = ""
    closed: set[int] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Report whether both pods are known, or never will be."""
        return all(self.pods) or not self.leg

    @property
    def ends(self) -> tuple[str, str]:
        """The two ends by name: sleep's app, sleep's sidecar."""
        leg = _LEGS.get(self.leg)
        if leg is None:
            return _NO_LEG.ends
        first, second = (
            f"{pod}'s {what}" if pod else f"{'an' if what == 'app' else 'a'} {what}"
            for pod, what in zip(self.pods, leg.ends, strict=True)
        )
        return first, second


@dataclass
class _Totals:
    """What was shown of one leg."""

    connections: int = 0
    messages: int = 0
    size: int = 0
    by_tcp: Counter[str] = field(default_factory=Counter)


class Conversation:
    """Hears the events of a trace and prints them.

    Connections are identified by their events; those from before the trace, and names, are in `context`. An event is
    held until the pods of its connection are known, but not for long. Later events wait with it, so the order stays.
    """

    def __init__(self, terminal: Terminal, context: TraceContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._context, self._clock = terminal, context, clock
        self._connections = {
            each.pair: _Connection(each.leg, [each.client, each.server]) for each in context.connections
        }
        self._gone: deque[int] = deque()
        self._counted: set[int] = set()
        self._totals = {leg: _Totals() for leg in (*_LEGS, "")}
        self._held: deque[tuple[TraceEvent, float]] = deque()
        self._start: float | None = None
        self._last = 0.0
        self._apps_dial = self._shows_older = False

    def hear(self, event: TraceEvent | None) -> None:
        """Take the next event; None if nothing arrived for a moment."""
        now = self._clock()
        if event is not None:
            self._learn(event)
            self._held.append((event, now))
        while self._held and (self._is_ready(self._held[0][0]) or now - self._held[0][1] > _MOMENT):
            self._print(self._held.popleft()[0])

    def end(self) -> None:
        """Print what is still held, and the totals."""
        while self._held:
            self._print(self._held.popleft()[0])
        self._terminal.line("")
        for leg, totals in self._totals.items():
            for line in self._total(leg, totals):
                self._terminal.line(line)
        if all(totals == _Totals() for totals in self._totals.values()):
            self._terminal.line("no message was seen")
        self._terminal.out.file.flush()

    # -- what is known ------------------------------------------------------------------------------------------------

    def _is_ready(self, event: TraceEvent) -> bool:
        return not event.pair or self._of(event).known

    def _of(self, event: TraceEvent) -> _Connection:
        return self._connections.setdefault(event.pair, _Connection())

    def _learn(self, event: TraceEvent) -> None:
        """Take from an event what it reveals about its connection."""
        if not event.pair:
            return
        if event.kind == "connect":
            self._connections[event.pair] = _Connection(event.leg, pid=event.pid, is_new=True)
        connection = self._of(event)
        if event.pid == connection.pid and event.comm != _NAMELESS:
            connection.comm = event.comm
        if event.kind == "wanted":
            connection.wanted = self._place(event)
        elif event.kind == "established":
            connection.source = f"{event.ip}:{event.port}"
        pod = self._context.names.get(event.ip, event.ip)
        # The app dials from its pod; the sidecars' destinations are pods; a sidecar dials its app from a fixed address.
        if connection.leg == "outbound" and event.kind == "established":
            connection.pods = [pod, pod]
        elif connection.leg == "mesh" and event.kind == "established":
            connection.pods[0] = pod
        elif connection.leg == "mesh" and event.kind in ("wanted", "accepted"):
            connection.pods[1] = pod
        elif connection.leg == "inbound" and event.kind in ("wanted", "accepted"):
            connection.pods = [pod, pod]

    def _place(self, event: TraceEvent) -> str:
        return f"{self._context.names.get(event.ip, event.ip)}:{event.port}"

    # -- what is printed ----------------------------------------------------------------------------------------------

    def _print(self, event: TraceEvent) -> None:
        connection = self._of(event) if event.pair else _Connection()
        self._count(event, connection)
        said = self._said(event, connection)
        if event.kind == "closed" and len(connection.closed) > 1:
            self._forget_later(event.pair)
        if not said:
            return
        begins = self._begins_request(event, connection)
        is_older = bool(self._context.pairs and event.pair and not connection.is_new and not self._apps_dial)
        if begins:
            if self._start is not None:
                self._terminal.line("")
            self._start = event.seconds
        if is_older and not self._shows_older:
            self._shows_older = True
            self._terminal.line("[faint]on connections that were open before the trace began:[/]")
        self._last = event.seconds
        mark = self._mark(_LEGS.get(connection.leg, _NO_LEG))
        style = "warn" if event.kind == "passed" else "faint" if is_older else "default"
        since = event.seconds - (self._start or 0.0)
        self._terminal.line(f"[faint]{since:+.3f}[/]  {mark} [{style}]{escape(said)}[/]")
        self._terminal.out.file.flush()

    def _forget_later(self, pair: int) -> None:
        self._gone.append(pair)
        if len(self._gone) > _REMEMBERED:
            oldest = self._gone.popleft()
            self._connections.pop(oldest, None)
            self._counted.discard(oldest)

    def _mark(self, leg: _Leg) -> str:
        mark = (" ", *picture.marks(unicode=self._terminal.unicode))[leg.number]
        return f"[{leg.color}]{mark}[/]"

    @property
    def _arrow(self) -> str:
        return "→" if self._terminal.unicode else "->"

    def _begins_request(self, event: TraceEvent, connection: _Connection) -> bool:
        """Report whether a request begins: an app dials. If none does in what is shown, the next best sign counts."""
        dials = event.kind == "connect" and connection.leg in ("outbound", "")
        self._apps_dial = self._apps_dial or dials
        if dials or self._start is None or self._apps_dial:
            return dials or self._start is None
        is_late = event.seconds - self._last > _SILENCE
        return (event.kind == "connect" and connection.leg == "mesh") or (event.kind == "redirect" and is_late)

    def _said(self, event: TraceEvent, connection: _Connection) -> str:
        """Return the event in words; nothing for one that another line includes."""
        if not event.pair:
            return self._from_outside(event)
        if event.kind == "connect":
            return self._dials(event, connection)
        ends = connection.ends
        way = f"{ends[event.side]} {self._arrow} {ends[1 - event.side]}"
        if event.kind == "closed":
            connection.closed.add(event.side)
            return "" if len(connection.closed) > 1 else f"{ends[0]} and {ends[1]}: closed"
        told = {
            "wanted": "",
            "established": "",
            "accepted": f"{ends[1]} accepts" + (f", from {connection.source}" if connection.source else ""),
            "original_dst": f"{ends[1]} asks where it was going: {self._place(event)}",
            "redirect": f"{way}: {_plural(event.size, 'byte')} by eBPF",
            "passed": f"{way}: a message by TCP ({self._reason(event, connection)})",
        }
        return told.get(event.kind, event.sentence())

    @staticmethod
    def _dials(event: TraceEvent, connection: _Connection) -> str:
        dialler = connection.ends[0]
        wanted = connection.wanted or "an address"
        if connection.leg == "outbound":
            app = f"{dialler} ({connection.comm})" if connection.comm else dialler
            return f"{app} dials {wanted}; eBPF leads it to its sidecar"
        if connection.leg == "mesh":
            return f"{dialler} dials {wanted}; eBPF leads it to the sidecar"
        if connection.leg == "inbound":
            return f"{dialler} dials its app; eBPF will carry the messages"
        return event.sentence()

    @staticmethod
    def _reason(event: TraceEvent, connection: _Connection) -> str:
        """Return why a message went by TCP; an end that closed was known before."""
        return "the other end has left" if connection.closed else event.reason_in_words()

    def _from_outside(self, event: TraceEvent) -> str:
        """Return an event without a connection in words: one of a dataplane that names none, or from outside."""
        if self._context.pairs and event.kind == "steered":
            source = self._context.names.get(event.source, event.source)
            return f"{source} dials {self._place(event)} from outside; eBPF leads it to the sidecar"
        if self._context.pairs and event.kind == "original_dst":
            return f"a sidecar asks where a connection was going: {self._place(event)}"
        return event.sentence()

    # -- totals -------------------------------------------------------------------------------------------------------

    def _count(self, event: TraceEvent, connection: _Connection) -> None:
        totals = self._totals[connection.leg if connection.leg in _LEGS else ""]
        used = event.kind in ("connect", "redirect", "passed")
        if used and event.pair and event.pair not in self._counted:
            self._counted.add(event.pair)
            totals.connections += 1
        if event.kind == "redirect":
            totals.messages += 1
            totals.size += event.size
        elif event.kind == "passed":
            totals.by_tcp[self._reason(event, connection)] += 1

    def _total(self, name: str, totals: _Totals) -> list[str]:
        """Return the lines of one leg: what eBPF moved, and what went by TCP and why."""
        if totals == _Totals():
            return []
        leg = _LEGS.get(name, _NO_LEG)
        way = f"{leg.ends[0]} {self._arrow} {leg.ends[1]}" if name else ""
        told = [f"{way:<18}"] if name else []
        if totals.connections:
            told.append(f"{_plural(totals.connections, 'connection'):<14}")
        told.append(f"{_plural(totals.messages, 'message')} by eBPF ({_plural(totals.size, 'byte')})")
        lines = [f"{self._mark(leg)} {'  '.join(told)}"]
        for reason, times in totals.by_tcp.items():
            lines.append(f"  [warn]{_plural(times, 'message')} by TCP: {escape(reason)}[/]")
        return lines


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
