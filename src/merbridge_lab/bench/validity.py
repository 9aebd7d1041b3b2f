"""Whether a sample counts: each request passed both sidecars, without errors, by the way that the sample claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.bench.model import Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.bench.generators import Loaded
    from merbridge_lab.bench.pod_sets import Readings, SidecarCounts

#: This share of the requests by eBPF, and one more, may go by TCP between the sidecars: one a minute and connection
#: does so on purpose. Each is one message of the client's sidecar.
_BY_TCP = 0.1


def why_invalid(way: Way, loaded: Loaded, before: Readings, after: Readings) -> str:
    """Return why a sample of `way` does not count, in one sentence; "" if it does."""
    if loaded.failed:
        return f"{loaded.failed} of {loaded.requests + loaded.failed} requests failed"
    if not loaded.requests and not loaded.moved:
        return "nothing was answered"
    if way is Way.DIRECT:
        return ""
    return _of_sidecars(loaded, before, after) or _of_way(way, loaded, before, after)


def why_alone(beside: Loaded) -> str:
    """Return why the transfer in the background was none, in one sentence; "" if it was one."""
    if beside.failed:
        return f"{beside.failed} requests of the transfer in the background failed"
    return "" if beside.moved else "the transfer in the background moved nothing"


def bypassed(others: Sequence[tuple[Readings, Readings]]) -> str:
    """Return why a sample without sidecars does not count, from the readings before and after of the sets with some."""
    for before, after in others:
        for earlier, later in ((before.client, after.client), (before.server, after.server)):
            if earlier is not None and later is not None and later != earlier:
                return "a sidecar took part in what should go without sidecars"
    return ""


def _of_sidecars(loaded: Loaded, before: Readings, after: Readings) -> str:
    for role, earlier, later in (("client", before.client, after.client), ("server", before.server, after.server)):
        if earlier is None or later is None:
            return f"the {role} has no sidecar"
        if why := _served(role, loaded, later.since(earlier)):
            return why
    return ""


def _served(role: str, loaded: Loaded, counts: SidecarCounts) -> str:
    if loaded.requests and counts.requests < loaded.requests:
        return f"the {role}'s sidecar saw {counts.requests} of {loaded.requests} requests"
    if loaded.requests and counts.answered < loaded.requests:
        return f"the {role}'s sidecar saw {counts.answered} answers of status 200 to {loaded.requests} requests"
    if not loaded.requests and counts.connections < loaded.connections:
        return f"the {role}'s sidecar saw {counts.connections} of {loaded.connections} connections"
    return ""


def _of_way(way: Way, loaded: Loaded, before: Readings, after: Readings) -> str:
    redirected = after.redirected - before.redirected
    dialled = _added("outbound_connects", before, after)
    moved, by_tcp = (_added(f"mesh_{way}_messages", before, after) for way in ("redirected", "tcp"))
    wrong = {
        Way.RULES: (
            (bool(after.ebpf), "eBPF serves the pod that should go by the rules"),
            (
                redirected < loaded.connections,
                f"the rules redirected {redirected} of {loaded.connections} connections",
            ),
        ),
        Way.EBPF: (
            (redirected > 0, f"the rules redirected {redirected} connections of a pod that eBPF serves"),
            (dialled < loaded.connections, f"eBPF intercepted {dialled} of {loaded.connections} connections"),
            (moved == 0, "eBPF moved no message between the sidecars"),
            (
                moved < loaded.requests * (1 - _BY_TCP) - 1,
                f"eBPF moved {moved} messages of {loaded.requests} requests between the sidecars; {by_tcp} went by TCP",
            ),
        ),
    }
    return next((why for is_wrong, why in wrong.get(way, ()) if is_wrong), "")


def _added(name: str, before: Readings, after: Readings) -> int:
    return after.ebpf.get(name, 0) - before.ebpf.get(name, 0)
