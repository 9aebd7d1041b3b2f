"""What the programs must know of the running kernel: what `struct kernel` holds."""

from __future__ import annotations

from pathlib import Path

from merbridge_lab.dataplane import btf, kernel_probes

_KALLSYMS = Path("/proc/kallsyms")
#: Where the kernel puts to sleep who waits for TCP's bytes (net/core/sock.c, sk_wait_data()).
_SLEEPS_IN = "woken_wake_function"
#: How many connections at once one pod may have, of the room for all: none takes the others' as well. A request has up
#: to two in the pod that sends it, and one in the pod that serves it.
QUOTA = 131072


def told() -> dict[str, int]:
    """Return the values, by the names of the members of `struct kernel`. Raises UnsupportedFeatureError, OSError."""
    return {**constant(), "charges": int(kernel_probes.is_charged())}


def constant() -> dict[str, int]:
    """Return those that are not probed; `woken` is missing if it is hidden now. Raises UnsupportedFeatureError."""
    address = woken()
    return {**btf.offsets(), "quota": QUOTA, **({"woken": address} if address else {})}


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
