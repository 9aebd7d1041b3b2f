"""What the programs must know of the running kernel: what `struct kernel` holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.dataplane import btf, kernel_headers

if TYPE_CHECKING:
    from collections.abc import Mapping

_KALLSYMS = Path("/proc/kallsyms")
#: Where the kernel puts to sleep who waits for TCP's bytes (net/core/sock.c, sk_wait_data()).
_SLEEPS_IN = "woken_wake_function"
#: Since then redirected bytes count as received (commit 54f89b3178d5, "tcp_bpf: charge receive socket buffer").
_CHARGES = (6, 13, 0)
#: How many connections at once one pod may have, of the room for all: none takes the others' as well. A request has up
#: to two in the pod that sends it, and one in the pod that serves it.
QUOTA = 131072


def told() -> dict[str, int]:
    """Return the values, by the names of the members of `struct kernel`. Raises UnsupportedFeatureError."""
    return {
        **btf.offsets(),
        "woken": woken(),
        "charges": int(kernel_headers.release() >= _CHARGES),
        "quota": QUOTA,
    }


def woken(kallsyms: Path = _KALLSYMS) -> int:
    """Return the address of woken_wake_function(); 0 if it is hidden (kernel.kptr_restrict) or cannot be read."""
    try:
        with kallsyms.open(encoding="ascii", errors="replace") as symbols:
            for line in symbols:
                address, _, name = line.split(maxsplit=2)
                if name.rstrip() == _SLEEPS_IN:
                    return int(address, 16)
    except (OSError, ValueError):
        pass
    return 0


def problems(programs: Mapping[str, int]) -> list[str]:
    """Describe what the programs are told about this kernel that it is not. Raises UnsupportedFeatureError."""
    facts = told()
    if not facts["woken"]:  # hidden from us now; it may have been readable before
        facts.pop("woken")
    wrong = [name for name, value in facts.items() if programs[name] != value]
    return [f"the programs are told something else about this kernel than it is: {', '.join(wrong)}"] if wrong else []
