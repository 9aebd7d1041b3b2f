"""Whether a sample counts: each request passed both sidecars, without errors, by the way that the sample claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.bench.model import Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.bench.generators import Loaded
    from merbridge_lab.bench.pod_sets import Readings, SidecarCounts


def why_invalid(way: Way, loaded: Loaded, before: Readings, after: Readings) -> str:
    """Return why a sample of `way` does not count, in one sentence; "" if it does."""
    if loaded.failed:
        return f"{loaded.failed} of {loaded.requests + loaded.failed} requests failed"
    if not loaded.requests and not loaded.moved:
        return "nothing was answered"
    if way is Way.DIRECT:
        return ""
    return _of_sidecars(loaded, before, after) or _of_way(way, loaded, before, after)


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
    dialled, moved = (_added(name, before, after) for name in ("outbound_connects", "mesh_redirected_messages"))
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
        ),
    }
    return next((why for is_wrong, why in wrong.get(way, ()) if is_wrong), "")


def _added(name: str, before: Readings, after: Readings) -> int:
    return after.ebpf.get(name, 0) - before.ebpf.get(name, 0)
