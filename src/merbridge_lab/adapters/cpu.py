"""The machine's processors: which they are, how busy they were, and whether they are emulated."""

from __future__ import annotations

import os
from pathlib import Path

from merbridge_lab.text import lines_of, read_text

_TICKS = os.sysconf("SC_CLK_TCK")
#: The columns of /proc/stat in which somebody works: user, nice, system, steal. user includes guest. Not irq and
#: softirq: with CONFIG_IRQ_TIME_ACCOUNTING they are in no process's time, so the traffic of the bench would be others'.
_BUSY = (1, 2, 3, 8)
_CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")


def model() -> str:
    """Return the processor's name; "unknown" if the kernel does not know it."""
    for line in lines_of(read_text(Path("/proc/cpuinfo"))):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def cores() -> int:
    """Return the number of processors."""
    return os.cpu_count() or 1


def busy_seconds() -> float:
    """Return how long all processors together have worked since boot, without interrupts, in s. Raises OSError."""
    fields = lines_of(read_text(Path("/proc/stat")))[0].split()
    return sum(int(fields[column]) for column in _BUSY) / _TICKS


def own_seconds() -> float:
    """Return the processor time that merlab itself has used, without the commands that it ran, in seconds."""
    times = os.times()
    return times.user + times.system


def is_emulated() -> bool:
    """Report whether the processor is emulated in software (QEMU without KVM): every time is then the emulator's."""
    clocks = read_text(_CLOCKS) if _CLOCKS.exists() else ""
    return "QEMU" in model() and "kvm-clock" not in clocks
