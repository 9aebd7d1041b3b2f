"""Sockets in a sockhash: what this kernel does to their readers, and which legs can therefore be redirected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.kernel_features import SOCKMAP_FIXES, stable_release
from merbridge_lab.dataplane import helper_probes, kernel_probes, probe_sockets, reader_legs
from merbridge_lab.dataplane.legs import Profile
from merbridge_lab.requirements import privileges
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement

if TYPE_CHECKING:
    from merbridge_lab.dataplane.kernel_probes import Probes


def helpers() -> Requirement:
    """Check that each kind of program may call the helpers that the dataplane calls in it."""
    name, needed = "bpf.helpers", "known to each kind of program"
    try:
        missing = helper_probes.missing_helpers()
    except PermissionError:
        return Requirement(name, FAIL, "not permitted", needed, privileges.remedy())
    if missing:
        return Requirement(name, FAIL, f"not known: {', '.join(missing)}", needed, "boot a newer kernel")
    return Requirement(name, PASS, f"{sum(map(len, helper_probes.CALLED.values()))} calls known", needed)


def readers() -> list[Requirement]:
    """Probe the kernel with throw-away sockets, and say what follows for the sockets of apps. Raises OSError."""
    return judge_readers(kernel_probes.probe(), stable_release())


def judge_readers(probes: Probes, kernel: tuple[int, int, int]) -> list[Requirement]:
    """Assess what was probed on a kernel of this stable release."""
    found = reader_legs.app_sockets(probes, kernel)
    legs = reader_legs.decide(Profile.SAFE, found)
    wrong = probes.wrong(probe_sockets.REDIRECTED)
    hashed = probes.wrong(probe_sockets.HASHED, probe_sockets.SENDER)
    return [
        Requirement(
            "sockmap.fionread",
            PASS,
            f"FIONREAD counts {probes.fionread.counts.value} ({probes.fionread})",
            "what FIONREAD counts in a sockhash",
        ),
        Requirement(
            "sockmap.memory",
            PASS,
            f"redirected bytes are {'' if probes.is_charged else 'not '}charged to their reader",
            "who is charged for redirected bytes",
        ),
        Requirement(
            "sockmap.senders",
            PASS,
            f"on a socket in a sockhash these differ: {', '.join(hashed)}"
            if hashed
            else "a socket in a sockhash does as TCP",
            "what being in a sockhash, and sending by it, does to a socket",
        ),
        Requirement(
            "sockmap.readers",
            PASS,
            f"redirected bytes are read wrongly by {', '.join(wrong)}"
            if wrong
            else "redirected bytes are read like TCP's",
            "how redirected bytes are read",
        ),
        _mptcp(kernel, is_safe=found.is_mptcp_safe),
        Requirement("sockmap.legs", PASS, legs.why, "what follows for apps"),
    ]


def _mptcp(kernel: tuple[int, int, int], *, is_safe: bool) -> Requirement:
    fix = SOCKMAP_FIXES["mptcp"]
    said = ".".join(map(str, kernel))
    releases = [f"{major}.{minor}.{patch}" for (major, minor), patch in sorted(fix.backports.items())]
    needed = f"{fix.what}: fixed in Linux {', '.join(releases)} and {'.'.join(map(str, fix.since or ()))}"
    if is_safe:
        return Requirement("sockmap.mptcp", PASS, f"{said} has the fix for {fix.what}", needed)
    hint = "boot one of these, or set net.mptcp.enabled to 0 in pods"
    return Requirement("sockmap.mptcp", WARN, f"{said} is not known to have the fix", needed, hint)
