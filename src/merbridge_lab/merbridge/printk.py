"""The prefix that the kernel puts before a line of bpf_trace_printk(), parsed whatever the tracer's options are."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The name of a task has at most 15 bytes and may contain blanks, parentheses, colons and hyphens; the kernel writes it
# right-aligned in 16. After the PID come the thread group (record-tgid), the CPU and, unless irq-info is off, flags.
_TASK = r"^\s*(?P<comm>\S.{0,15}?)-(?P<pid>\d+)\s+(?:\(\s*(?:\d+|-+)\)\s+)?"
_SAID = r"(?:bpf_trace_printk|0|0x0*1): (?P<said>.*)$"
# The clock may count in seconds, or be a plain counter (trace_clock).
_USUAL = re.compile(rf"{_TASK}\[\d+\]\s+(?:\S+\s+)?(?P<seconds>\d+(?:\.\d+)?): {_SAID}")
# latency-format: CPU and flags in one word, and microseconds since the first line.
_LATENCY = re.compile(rf"{_TASK}\d+\S*\s+(?P<micros>\d+)us.?\s*: {_SAID}")


@dataclass(frozen=True)
class Line:
    """A line of bpf_trace_printk(): which task was running, when, and the text of the program."""

    comm: str
    pid: int
    seconds: float
    said: str


def split(line: str) -> Line | None:
    """Split a line of trace_pipe; None for lines of other events."""
    found = _USUAL.match(line)
    if found is not None:
        return Line(found["comm"], int(found["pid"]), float(found["seconds"]), found["said"])
    found = _LATENCY.match(line)
    return Line(found["comm"], int(found["pid"]), int(found["micros"]) / 1e6, found["said"]) if found else None
