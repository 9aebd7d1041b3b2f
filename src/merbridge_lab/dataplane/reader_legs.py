"""Which bytes of an app may be redirected, decided by who reads them and by what this kernel does to such readers.

Between sidecars always: the reader is Envoy, which is known. Out of an app, into its sidecar: only where an app's
socket in a sockhash does as before, since the app's other direction goes on by TCP. Into an app: only where asked for,
because no kernel so far hides redirected bytes from every way of reading. When in doubt, TCP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import kernel_features
from merbridge_lab.dataplane import kernel_probes, probe_sockets
from merbridge_lab.dataplane.kernel_probes import Counts
from merbridge_lab.dataplane.legs import ALL_LEGS, Legs, Profile

if TYPE_CHECKING:
    from merbridge_lab.dataplane.kernel_probes import Probes


@dataclass(frozen=True)
class AppSockets:
    """What this kernel does to an app whose sockets are in a sockhash.

    `tcp` and `redirected` name the ways of reading that go wrong on bytes that came so; None: not known.
    """

    counts: Counts | None
    tcp: tuple[str, ...] | None
    redirected: tuple[str, ...] | None
    #: May a child of an MPTCP listener be in a sockhash?
    is_mptcp_safe: bool


def app_sockets(probes: Probes | None, kernel: tuple[int, int, int]) -> AppSockets:
    """Sum up what was probed, and what is known of this kernel."""
    is_mptcp_safe = kernel_features.is_fixed(kernel_features.SOCKMAP_FIXES["mptcp"], kernel)
    if probes is None:
        return AppSockets(None, None, None, is_mptcp_safe)
    tcp = probes.wrong(probe_sockets.HASHED, probe_sockets.SENDER)
    redirected = probes.wrong(probe_sockets.REDIRECTED, probe_sockets.SWITCHED)
    return AppSockets(probes.fionread.counts, tuple(tcp), tuple(redirected), is_mptcp_safe)


def for_profile(profile: Profile) -> Legs:
    """Decide which legs this kernel's pods have; probe it if that matters. Raises OSError."""
    probes = kernel_probes.probe() if profile is Profile.SAFE else None
    return decide(profile, app_sockets(probes, kernel_features.stable_release()))


def unprobed(profile: Profile) -> Legs:
    """Decide where this kernel cannot be probed."""
    return decide(profile, app_sockets(None, kernel_features.stable_release()))


def decide(profile: Profile, found: AppSockets, *, may_use_mptcp: bool = True) -> Legs:
    """Decide which legs a pod has; `may_use_mptcp` is False if its apps are known not to, or if it is off there."""
    obstacle = _obstacle(profile, found, may_use_mptcp=may_use_mptcp)
    if obstacle is not None:
        return Legs(True, False, False, f"app sockets: TCP only, because {obstacle}")
    if profile is Profile.ALL:
        return ALL_LEGS
    why = (
        f"redirected bytes are read wrongly by {_list(found.redirected)}"
        if found.redirected
        else "it was not asked for"
    )
    return Legs(
        True, True, False, f"app sockets: what they send is redirected; what they read comes by TCP, because {why}"
    )


def _obstacle(profile: Profile, found: AppSockets, *, may_use_mptcp: bool) -> str | None:
    """Return why an app's sockets must stay out of the sockhash, or None."""
    if may_use_mptcp and not found.is_mptcp_safe:
        return "this kernel is not known to survive connections of MPTCP listeners in a sockhash"
    if profile is Profile.ALL:
        return None
    if found.tcp is None:
        return "it is not known what this kernel does to their readers"
    if found.counts is Counts.REDIRECTED and "FIONREAD" in found.tcp:
        return "FIONREAD counts redirected bytes only on this kernel"
    if found.tcp:
        differ = "differ" if len(found.tcp) > 1 else "differs"
        return f"in a sockhash {_list(found.tcp)} {differ} from TCP on this kernel"
    return None


def _list(names: tuple[str, ...] | None) -> str:
    *most, last = names or ("",)
    return f"{', '.join(most)} and {last}" if most else last
