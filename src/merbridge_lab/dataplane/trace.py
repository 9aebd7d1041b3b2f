"""The events of the dataplane's trace, decoded: what happened to which connection, in plain English."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.endpoints import address
from merbridge_lab.trace_event import LOST, TraceEvent


@dataclass(frozen=True)
class MerlabEvent(TraceEvent):
    """An event of our own programs."""

    @property
    def short(self) -> str:
        """The line without the time."""
        return f"{self.comm}-{self.pid} … {self.raw.partition(': ')[2]}"

    def sentence(self) -> str:
        """Describe the event in plain English."""
        say = _SENTENCES.get(self.kind)
        who = "the side that dialled" if self.side == 0 else "the side that accepted"
        if say is None:
            return f"{self.kind} (connection {self.pair:x})"
        return say.format(
            comm=self.comm,
            pid=self.pid,
            pair=f"{self.pair:x}",
            leg=_LEGS.get(self.leg, self.leg),
            at=f"{self.ip}:{self.port}",
            source=self.source,
            who=who,
            size=self.size,
            reason=self.reason_in_words(),
        )

    def reason_in_words(self) -> str:
        """Describe in plain English why a message went by TCP."""
        return _REASONS.get(self.reason, self.reason)


_LEGS = {
    "outbound": "from the application to its own sidecar",
    "mesh": "from the sidecar to the other pod's sidecar",
    "inbound": "from the sidecar to its own application",
}

_REASONS = {
    "not_paired": "the other end was not known yet",
    "redirect_off": "redirecting is switched off",
    "receiver_full": "the receiver does not keep up, so TCP's flow control takes over",
    "redirect_failed": "the other end has left",
    "on_tcp": "bytes sent by TCP before are not read yet",
    "reader_asleep": "a reader waits where it would not see redirected bytes",
    "ktls": "the kernel encrypts or decrypts this connection",
    "memory": "the receiver is at its memory limit",
    "refresh": "one message a minute goes by TCP, for those who track connections by their packets",
}

_SENTENCES = {
    "connect": "connect() by {comm} ({pid}) intercepted: connection {pair} goes {leg}",
    "wanted": "connection {pair} was meant for {at}",
    "established": "connection {pair} is established, from {at}",
    "accepted": "connection {pair} is accepted at {at}",
    "original_dst": "{comm} ({pid}) asks for the original destination of connection {pair}: {at}",
    "redirect": "{size} bytes moved from socket to socket, sent by {who} of connection {pair}",
    "passed": "a message sent by {who} of connection {pair} goes by TCP: {reason}",
    "steered": "a connection from {source} to {at} is steered to the inbound listener of the sidecar",
    "closed": "connection {pair} is closed by {who}",
    LOST: "{size} events were lost: they came faster than they were read",
}

#: What the line of an event has after its kind.
_TEXTS = {
    "connect": "pair={pair} leg={leg}",
    "wanted": "pair={pair} dst={at}",
    "established": "pair={pair} src={at}",
    "accepted": "pair={pair} at={at}",
    "original_dst": "pair={pair} dst={at}",
    "redirect": "pair={pair} side={side} bytes={size}",
    "passed": "pair={pair} side={side} reason={reason}",
    "steered": "to={at} from={source}",
    "closed": "pair={pair} side={side}",
    LOST: "events={size}",
}


def decode(record: bytes) -> MerlabEvent:
    """Decode a record of the ring buffer, `struct event` in bpf/abi.h."""
    said = abi.layouts()["event"].unpack(record)
    kind = _name(abi.event_kinds(), said["kind"])
    is_there = kind in ("wanted", "established", "accepted", "original_dst", "steered")
    return event(
        kind,
        seconds=said["nanoseconds"] / 1e9,
        comm=said["comm"].decode(errors="replace"),
        pid=said["pid"],
        pair=said["pair"],
        leg=_name(abi.legs(), said["leg"]) if kind == "connect" else "",
        side=said["side"],
        ip=address(said["ip4"]) if is_there else "",
        port=said["port"],
        source=address(said["from_ip4"]) if kind == "steered" else "",
        size=said["size"],
        reason=_name(abi.counter_names(), said["reason"]).removeprefix("passed_") if kind == "passed" else "",
    )


def lost(number: int, seconds: float) -> MerlabEvent:
    """Return the event that says that `number` events found no room, at or before `seconds` since boot."""
    return event(LOST, seconds=seconds, comm="merlab", size=number)


def event(kind: str, *, seconds: float, comm: str = "", pid: int = 0, **values: Any) -> MerlabEvent:  # noqa: ANN401
    """Return an event of these values, with its line."""
    made = MerlabEvent(seconds=seconds, comm=comm, pid=pid, kind=kind, raw="", **values)
    told = {**vars(made), "pair": f"{made.pair:x}", "at": f"{made.ip}:{made.port}"}
    line = f"{comm:>16}-{pid:<7} {seconds:.6f}: {kind} {_TEXTS.get(kind, '').format(**told)}"
    return replace(made, raw=line.rstrip())


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)
