"""Which of the bench pods the agent serves: their namespaces opt out by its label, and it is told to look at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import http_probe
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import bench_objects, pod_netns, pods
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab import agent_exec, manifest, node_maps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import BenchSwitch
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView

#: Where the agent listens on the loopback of its pod, and what it is told there.
_PORT, _LOOK, _TAKEN = 15099, "/look", 202
#: Seconds until it has done what the labels say.
_DONE = 15.0


class AgentSwitch:
    """The BenchSwitch protocol over the agent of the node `place`."""

    def __init__(self, access: Access, place: NodeView) -> None:
        self._access, self._place = access, place
        self._reader = node_maps.reader(place)
        self._agent: Path | None = None
        self._out: dict[str, bool] = {}

    @property
    def legs(self) -> str:
        """Whose messages it moves: those of all, or those between sidecars alone where that is safer."""
        found = node_maps.legs(self._place)
        return "all" if found is not None and found.into_app else "safe"

    def serve(self, slot: str | None, uids: Mapping[str, frozenset[str]]) -> None:
        """Serve exactly the pods of this set, and wait until it does. Raises LabError."""
        api = self._access.api()
        for each in uids:
            if self._out.get(each) is not (each != slot):
                bench_objects.opt_out(api, each, out=each != slot)
                self._out[each] = each != slot
        self._look()
        wanted, among = uids.get(slot or "", frozenset()), frozenset[str]().union(*uids.values())
        what = "the agent to serve the bench pods of one set alone"
        if not polling.poll_until(
            lambda: self._reader.served().keys() & among == wanted, timeout=_DONE, every=0.02, awaiting=what
        ):
            why = {agent_exec.why_left(api, uid) for uid in wanted} - {""}
            said = f": {'; '.join(sorted(why))}" if why else ""
            raise LabError(f"{what}: not within {_DONE:g} s{said}", hint="merlab status", id="dataplane.incomplete")

    def counters(self, uid: str) -> Mapping[str, int]:
        """Return its counters of a pod; empty if it does not serve it. Raises LabError."""
        return self._reader.counters().get(uid, {})

    def _look(self) -> None:
        """Have the agent read the labels of the namespaces again and look at all pods. Raises LabError."""
        if self._agent is None:
            self._agent = self._find()
        answer = http_probe.post(self._agent, _PORT, _LOOK)
        if answer != _TAKEN:
            said = "it does not answer" if answer is None else f"it answers {answer}"
            raise LabError(
                f"merlab's agent cannot be told to look at the bench pods: {said}, as one of an older version does",
                hint="merlab up",
                id="dataplane.incomplete",
            )

    def _find(self) -> Path:
        """Return the network namespace of the agent on this node. Raises LabError."""
        api, node_exec = self._access.api(), self._access.node_exec()
        found = api.find(manifest.PATH)
        for told in daemonsets.pods(api, found) if found else []:
            pod = pods.read(told)
            if pod.node == node_exec.node.name and manifest.CONTAINER in pod.containers:
                return self._place.process(pod_netns.find(node_exec, pod, manifest.CONTAINER).pid) / "ns/net"
        raise LabError("no pod of merlab's agent runs", hint="merlab step 3", id="dataplane.incomplete")


if TYPE_CHECKING:
    _KEEPS_TO: type[BenchSwitch] = AgentSwitch
