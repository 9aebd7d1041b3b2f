"""What a sidecar of a bench pod has served, by Envoy's own statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import istio_facts
from merbridge_lab.adapters import http_probe
from merbridge_lab.bench.pod_sets import SidecarCounts
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

#: The statistics that count. Istio's sidecars have them only if they are asked to.
NAMES = r"^(http|tcp)\.(out|in)bound.*\.downstream_(rq_total|rq_2xx|cx_total)$"


def read(netns: Path, pod: str) -> SidecarCounts:
    """Return what the sidecar in a pod's network namespace has served so far. Raise LabError if it does not say."""
    text = http_probe.fetch(netns, istio_facts.ADMIN_PORT, f"/stats?filter={NAMES}")
    if text is None:
        what = f"what the sidecar of {pod} has served could not be read: its admin port does not answer"
        raise LabError(what, hint="merlab status", id="reading.failed")
    found = dict.fromkeys(("rq_total", "rq_2xx", "cx_total"), 0)
    for line in text.split("\n"):
        name, _, value = line.rpartition(": ")
        kind = name.rpartition("downstream_")[2]
        if kind in found and (kind != "cx_total" or name.startswith("tcp.")):
            found[kind] += int(value)
    return SidecarCounts(found["rq_total"], found["rq_2xx"], found["cx_total"])
