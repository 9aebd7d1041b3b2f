"""The dataplane's lines in a trace, decoded: what happened to which connection, in plain English."""

from __future__ import annotations

import re
from dataclasses import dataclass

from merbridge_lab.dataplane import abi, printk
from merbridge_lab.trace_event import TraceEvent

_SAID = re.compile(r"\[merlab\] (?P<kind>\w+) (?P<values>.*)$")
# The name of a task comes last, as it may contain blanks.
_VALUE = re.compile(r"(comm)=(.*)$|(\w+)=(\S+)")


@dataclass(frozen=True)
class MerlabEvent(TraceEvent):
    """A line of our own programs."""

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
}


def parse(line: str) -> MerlabEvent | None:
    """Decode a raw line of trace_pipe; None for lines of others."""
    told = printk.split(line)
    found = _SAID.match(told.said) if told else None
    if told is None or found is None:
        return None
    values = {each[1] or each[3]: each[2] or each[4] for each in _VALUE.finditer(found["values"])}
    place = next((values[name] for name in ("dst", "src", "at", "to") if name in values), "")
    ip, _, port = place.partition(":")
    return MerlabEvent(
        seconds=told.seconds,
        comm=values.get("comm") or told.comm,
        pid=told.pid,
        kind=found["kind"],
        raw=line.rstrip("\n"),
        pair=int(values.get("pair", "0"), 16),
        leg=_name(abi.legs(), values.get("leg")),
        side=int(values.get("side", "0")),
        ip=ip,
        port=int(port or 0),
        source=values.get("from", ""),
        size=int(values.get("bytes", "0")),
        reason=_name(abi.counter_names(), values.get("reason")).removeprefix("passed_"),
    )


def _name(names: tuple[str, ...], number: str | None) -> str:
    if number is None:
        return ""
    return names[int(number)] if int(number) < len(names) else number
