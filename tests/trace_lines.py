"""Events of merlab's programs, from lines as they once wrote them: packed as in the ring buffer, and decoded."""

from __future__ import annotations

import re
import socket
import sys

from merbridge_lab.dataplane import abi, trace
from merbridge_lab.merbridge import printk

_SAID = re.compile(r"\[merlab\] (?P<kind>\w+) (?P<values>.*)$")
# The name of a task comes last, as it may contain blanks.
_VALUE = re.compile(r"(comm)=(.*)$|(\w+)=(\S+)")
#: The counters of the version that wrote the lines, by number: since then they have others.
_REASONS = {"15": "passed_receiver_full", "16": "passed_redirect_failed"}


def _ip4(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text), sys.byteorder)


def record(line: str) -> bytes | None:
    """Return the record of a line; None for a line of others."""
    told = printk.split(line)
    found = _SAID.match(told.said) if told else None
    if told is None or found is None:
        return None
    values = {each[1] or each[3]: each[2] or each[4] for each in _VALUE.finditer(found["values"])}
    place = next((values[name] for name in ("dst", "src", "at", "to") if name in values), "0.0.0.0:0")
    ip, _, port = place.partition(":")
    return abi.layouts()["event"].pack(
        nanoseconds=round(told.seconds * 1e9),
        pair=int(values.get("pair", "0"), 16),
        kind=abi.event_kinds().index(found["kind"]),
        pid=told.pid,
        leg=int(values.get("leg", "0")),
        side=int(values.get("side", "0")),
        ip4=_ip4(ip),
        port=int(port),
        from_ip4=_ip4(values.get("from", "0.0.0.0")),
        size=int(values.get("bytes", "0")),
        reason=abi.counter_names().index(_REASONS[values["reason"]]) if "reason" in values else 0,
        comm=(values.get("comm") or told.comm).encode(),
    )


def parse(line: str) -> trace.MerlabEvent | None:
    """Return the event of a line; None for a line of others."""
    packed = record(line)
    return trace.decode(packed) if packed is not None else None
