"""merlab's agent as a component of the lab: check it, install it, switch its trace, remove it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.dataplane.roles import ROLES
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.labs.kubernetes import manifests
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab import (
    agent_exec,
    agent_image,
    commands,
    health,
    manifest,
    node_maps,
    removal,
    rollout,
)
from merbridge_lab.labs.kubernetes.dataplanes.on_node import NodeComponent

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.dataplane import Reconciler
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import Surroundings
    from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import Object

#: How long redirected bytes may take to be read when merlab itself detaches, in seconds.
_DRAIN = 5.0


class MerlabDataplane(NodeComponent):
    """The agent's DaemonSet, and what it attached; see ensure for what it asks of the mesh."""

    roles = ROLES

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around.access)
        self._mesh = around
        self._loaded = removal.Loaded()
        self._cold: int | None = None

    # -- looking ----------------------------------------------------------------------------------------------------

    def reader(self) -> Reconciler:
        """Return what reads the pins of the node. Raises LabError."""
        return node_maps.reader(self.place())

    @property
    def attached(self) -> bool:
        """Report whether it intercepts connections of a pod now."""
        with contextlib.suppress(LabError):
            reader = self.reader()
            return bool(reader.served()) and reader.redirecting
        return False

    @property
    def debug(self) -> bool:
        """Report whether the programs tell all who read the trace what they do."""
        with contextlib.suppress(LabError):
            return self.reader().debug
        return False

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates: DaemonSet and pods, pins, the pods that are served."""
        return health.problems(self._access, self.place)

    def readings(self) -> tuple[Reading, ...]:
        """List the programs in the kernel, where they are attached, and the pods that are served."""
        told = []
        with contextlib.suppress(LabError):
            found = self._access.api().find(manifest.PATH)
            if found is not None:
                image = found["spec"]["template"]["spec"]["containers"][0]["image"]
                told.append(Reading("kubernetes:merlab-agent/image", "", None, image))
            reader = self.reader()
            told += [
                Reading(f"bpf:{each.name}", "", None, each.attached_to, f"{each.type}, id {each.id}")
                for each in reader.programs()
            ]
            names = sorted(f"{each.namespace}/{each.name}" for each in reader.served().values())
            told.append(Reading("bpf:pods", "pods", None, ", ".join(names) or "none"))
        if self._cold is not None:
            told.append(Reading("curl:sleep/warm-up", "503s", None, self._cold))
        return tuple(told)

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Install the agent, wait until it serves the apps, and send the first requests. Raises LabError.

        The sidecars of pods that were there before it keep connections that eBPF does not know, and use them for an
        hour: they are ended; where that is not possible, the apps are recreated.
        """
        api, settings = self._access.api(), self._access.settings()
        objects = manifest.objects(settings)
        self._require_alone(objects)
        # Stored before anything of it exists: whatever happens then, the lab knows what it has.
        api.apply(manifests.configuration(settings, finished=self._access.setup_complete()))
        wanted = manifest.daemonset(objects)
        image = wanted["spec"]["template"]["spec"]["containers"][0]["image"]
        agent_image.SOURCE.load(self._access.node(), [image], self._access.provider.images)
        before, found = self._served(), api.find(manifest.PATH)
        for each in objects:
            api.apply(each)
        if found is not None:
            self._restart(found)
        self._await("merlab's agent to be ready", lambda: health.of_daemonset(self._access) or self._starting())
        self._await("merlab's agent to serve the pods", self.problems)
        is_new = any(pod.uid not in before for pods in node_maps.workload_pods(api).values() for pod in pods)
        if is_new and not self._mesh.drain():
            self._mesh.renew()
            self._await("merlab's agent to serve the pods", self.problems)
        self._cold = self._mesh.warm()

    def _require_alone(self, objects: list[Object]) -> None:
        """Raise LabError if something else intercepts in the cluster, or has the names of what is to be applied."""
        api = self._access.api()
        found = api.find(manifest.PATH)
        foreign = [f"{manifest.NAMESPACE}/{manifest.NAME}"] if found and not daemonsets.is_marked(found) else []
        for name in (*foreign, *daemonsets.intercepting(api, but=(manifest.NAMESPACE, manifest.NAME))):
            namespace, _, daemonset = name.partition("/")
            raise LabError(
                f"the DaemonSet {name} intercepts connections already, and is not what merlab would install:"
                " it stays untouched",
                hint=f"kubectl -n {namespace} delete daemonset {daemonset}  # if you do not need it",
                id="agent.foreign",
            )
        for each in manifest.of_cluster(objects):
            there = api.find(manifest.path_of(each))
            if there is not None and not daemonsets.is_marked(there):
                kind, name = each["kind"], each["metadata"]["name"]
                raise LabError(
                    f"there is a {kind} {name} already, and merlab did not make it: it stays untouched",
                    hint=f"kubectl delete {kind.lower()} {name}  # if you do not need it",
                    id="agent.foreign",
                )

    def _restart(self, found: Object) -> None:
        """Recreate the pods of a DaemonSet that was there, if they are not in order: their image may be another now."""
        api = self._access.api()
        if not (health.of_pods(self._access) or health.of_node(self.place())):
            return
        for pod in daemonsets.every_pod(api, found):
            where = kubernetes_api.path("Pod", pod["metadata"]["name"], manifest.NAMESPACE)
            api.delete(where)
            rollout.await_gone(api, where, "the previous agent")

    def _served(self) -> frozenset[str]:
        """Return the uids of the pods that are served already; none if nothing can be read."""
        with contextlib.suppress(LabError):
            return frozenset(self.reader().served())
        return frozenset()

    def _starting(self) -> list[str]:
        return health.of_pods(self._access)

    def _await(self, awaiting: str, problems: Callable[[], list[str]]) -> None:
        with polling.progress(awaiting):
            rollout.wait(self._access.api(), problems, self._access.provider.images, awaiting)

    # -- debug output -------------------------------------------------------------------------------------------------

    def set_debug(self, *, on: bool) -> None:
        """Switch the trace of every node on or off; off succeeds where nothing is installed. Raises LabError."""
        if not on and not (self._access.answers() and self._access.api().find(manifest.PATH)):
            return
        agent_exec.run(self._access.api(), ["debug", "on" if on else "off"])

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Have the agents remove what they attached, then remove them; nothing is left on the node. Raises LabError."""
        if not self._access.answers():
            return
        api = self._access.api()
        found = api.find(manifest.PATH)
        if found is not None and not daemonsets.is_marked(found):
            return
        place = None
        with contextlib.suppress(LabError):
            place = self.place()
            self._loaded = removal.loaded(place)
        pinned = place is not None and node_maps.are_there(place)
        failed: LabError | None = None
        if found is not None or pinned:
            try:
                self._detach()
            except LabError as error:
                failed = error
        for each in manifest.of_cluster(manifest.objects(self._access.settings())):
            where = manifest.path_of(each)
            there = api.find(where)
            if there is not None and daemonsets.is_marked(there):
                api.delete(where)
                rollout.await_gone(api, where, f"the {each['kind']} {each['metadata']['name']}")
        if failed is not None and place is None:
            raise failed
        if place is not None and node_maps.are_there(place):
            # The agents could not: their image is gone, or they crash. They have ended, and this kernel is the node's.
            node_maps.reader(place).remove(_DRAIN)
        # The kubelet made them for the manifest, and they are empty by now.
        self._access.node().execute(["rm", "-rf", *manifest.FOLDERS])
        if place is not None:
            removal.require_none(place)
        self._access.node().execute(["sh", "-c", manifest.UNMOUNT])

    def _detach(self) -> None:
        """Replace the agents by their own removal, and wait until it is done. Raises LabError."""
        api, settings = self._access.api(), self._access.settings()
        for each in manifest.objects(settings):
            api.apply(manifest.removing(each) if each["kind"] == "DaemonSet" else each)
        self._await("merlab's agent to remove its programs", self._starting)

    def require_gone(self) -> None:
        """Check, once the pods are gone too, that its programs and maps are out of the kernel. Raises LabError."""
        loaded, self._loaded = self._loaded, removal.Loaded()
        removal.require_unloaded(loaded)

    # -- as a person would type it ----------------------------------------------------------------------------------

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to install it."""
        return commands.put_in(self._access.best_known_settings(), self._access.provider)

    def debug_commands(self) -> list[str]:
        """Return the commands that switch the trace on, and show that it is."""
        return commands.debug_on(self._access.provider.context)

    def debug_shown(self) -> str:
        """Return what the last of these commands printed."""
        return "\n".join(agent_exec.run(self._access.api(), ["status"], ok=(0, 1, 3))).rstrip()
