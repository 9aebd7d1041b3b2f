"""One event of a dataplane's trace, as a value, and what explains it: names of addresses, and known connections."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


#: The kind of the event that says how many others were lost: `size` of them.
LOST = "lost"


@dataclass(frozen=True)
class TraceEvent:
    """One event. `kind` is what happened, in one word; fields that a kind does not report are 0 or empty.

    `seconds` is the time since boot. `comm` and `pid` are the task that was running, which for arriving packets may be
    any. `pair` identifies the connection: the cookie of the socket that dialled; 0 if the dataplane does not name it.
    `side` is 0 for actions of the dialling side, 1 for the accepting side. `ip` and `port` are: the original
    destination of a connect (wanted), its source (established), where it was accepted (accepted), the answer
    (original_dst), what was dialled (steered).
    """

    seconds: float
    comm: str
    pid: int
    kind: str
    raw: str
    pair: int = 0
    leg: str = ""
    side: int = 0
    ip: str = ""
    port: int = 0
    source: str = ""
    size: int = 0
    reason: str = ""

    @property
    def is_loss(self) -> bool:
        """Report whether it says that other events were lost, and nothing of a connection."""
        return self.kind == LOST

    @property
    def short(self) -> str:
        """The line without the columns that the kernel writes between the task and the text."""
        return re.sub(r"^\s*(\S.*?-\d+)\s.*?: bpf_trace_printk: ", r"\1 … ", self.raw)

    def sentence(self) -> str:
        """Describe the event in plain English; each dataplane has its own words."""
        return f"{self.kind}: {self.raw}"

    def reason_in_words(self) -> str:
        """Describe in plain English why a message went by TCP; each dataplane has its own words."""
        return self.reason


@dataclass(frozen=True)
class KnownConnection:
    """A connection from before the trace: its leg, the pod that dialled, and the pod that accepted."""

    pair: int
    leg: str
    client: str
    server: str


@dataclass(frozen=True)
class TraceContext:
    """What a lab knows about the addresses and connections in its trace.

    `names` are the pods and services by address. `connections` are those that the dataplane carries now. `pairs` says
    that the dataplane identifies connections by TraceEvent.pair.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    connections: tuple[KnownConnection, ...] = ()
    pairs: bool = False
