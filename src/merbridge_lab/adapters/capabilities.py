"""The capabilities of this process: in a container, root may be root in name only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Their bits (linux/capability.h).
_BITS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}


def missing(wanted: Iterable[str], status: str, *, among: str = "CapEff") -> list[str]:
    """Return those that are not effective according to /proc/self/status, or not in another set of it (CapBnd)."""
    there = next((line.split()[1] for line in lines_of(status) if line.startswith(f"{among}:")), "0")
    bits = int(there, 16)
    return [name for name in wanted if not bits >> _BITS[name] & 1]
