"""Upstream Merbridge as a component of the lab: check it, install it, switch its debug output, remove it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.labs.kubernetes import manifests
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import (
    cleanup,
    commands,
    dump,
    health,
    installation,
    manifest,
    rollout,
    upstream_image,
)
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import NAME, NAMESPACE, PATH
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE
from merbridge_lab.labs.kubernetes.dataplanes.on_node import NodeComponent
from merbridge_lab.merbridge import kernel_objects, mbctl

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import Object


class MerbridgeDataplane(NodeComponent):
    """Upstream's DaemonSet and what it attaches; see ensure for `renew` (the apps) and `warm` (the first requests)."""

    roles = kernel_objects.ROLES

    def __init__(self, access: Access, renew: Callable[[], None], warm: Callable[[], int]) -> None:
        super().__init__(access)
        self._renew, self._warm = renew, warm
        self._maps: dict[str, int] = {}
        self._cold: int | None = None

    # -- looking ----------------------------------------------------------------------------------------------------

    def state(self) -> kernel_objects.State:
        """Return what is attached to the node's cgroup. Raises LabError."""
        try:
            return kernel_objects.look(self.place().cgroup)
        except OSError as error:
            raise LabError(
                f"what is attached to the node's cgroup cannot be seen: {error.strerror}",
                hint="merlab doctor",
                id="reading.failed",
            ) from error

    @property
    def attached(self) -> bool:
        """Report whether its programs are attached to the node's cgroup."""
        with contextlib.suppress(LabError):
            return not self.state().missing
        return False

    @property
    def debug(self) -> bool:
        """Report whether the running pod was told to write trace lines."""
        found = self._access.api().find(PATH)
        return bool(found and installation.debug(found) and daemonsets.rolled_out(found))

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates: the DaemonSet, its pod and its log, the kernel."""
        try:
            return health.problems(self._access, self.place, self.state)
        except OSError as error:  # a program or a map disappeared while it was read
            return [f"what Merbridge has in the kernel changes at this moment: {error.strerror}"]

    def readings(self) -> tuple[Reading, ...]:
        """Return what was read of it."""
        told = []
        with contextlib.suppress(LabError, OSError):
            found = self._access.api().find(PATH)
            if found is not None:
                told.append(Reading("kubernetes:merbridge/image", "", None, manifest.main(found)["image"]))
                if mended := daemonsets.noted(found, installation.MENDED):
                    told.append(Reading("kubernetes:merbridge/mended", "", None, f"crashed over its cgroup: {mended}"))
            state = self.state()
            told += [Reading(f"bpf:node/{hook}", "program", None, number) for hook, number in state.programs.items()]
            told.append(
                Reading(f"bpf:{kernel_objects.PODS}", "pods", None, ", ".join(kernel_objects.pods(state)) or "none")
            )
        if self._cold is not None:
            told.append(Reading("curl:sleep/warm-up", "503s", None, self._cold))
        return tuple(told)

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Install it, wait for its start, repair the walkthrough's crash, send the first requests. Raises LabError.

        The apps are recreated *before* it: their sidecars keep connections that Merbridge does not know. Also,
        Merbridge permanently marks a container "not in mesh", until Merbridge restarts, if it dials before its sidecar
        listens.
        """
        api, settings = self._access.api(), self._access.settings()
        found = api.find(PATH)
        if found is not None and not installation.is_ours(found):
            raise installation.foreign(f"{NAMESPACE}/{NAME}")
        if others := installation.others(api):
            raise installation.foreign(others[0])
        objects = manifest.objects(settings)
        wanted = manifest.daemonset(objects)
        installation.require_own(api, objects)
        # Stored before anything of it exists: whatever happens then, the lab knows what it has.
        api.apply(manifests.configuration(settings, finished=self._access.setup_complete()))
        upstream_image.SOURCE.load(self._access.node(), manifest.images(wanted), self._access.provider.images)
        notes = {installation.FROM: settings.merbridge_manifest, installation.OBJECTS: installation.paths(objects)}
        if found is None:
            cleanup.sweep(self.place())
        else:
            notes |= self._kept(wanted, found)
        self._renew()
        for one in objects:
            if one is not wanted:
                api.apply(one if one["kind"] == "Namespace" else daemonsets.marked(one))
        after = self._apply(wanted, notes)
        if self.attached and health.forgotten(self._access, self.place(), self.state()):
            for pod in daemonsets.pods(api, api.get(PATH)):
                api.delete(kubernetes_api.path("Pod", pod["metadata"]["name"], NAMESPACE))
        self._await(wanted, notes, after)
        self._cold = self._warm()

    def _apply(self, wanted: Object, notes: dict[str, str]) -> frozenset[str]:
        """Apply the DaemonSet, and return the uids of the pods that it will replace; none if nothing changes."""
        api = self._access.api()
        before = api.find(PATH)
        old = [] if before is None else daemonsets.every_pod(api, before)
        api.apply(installation.with_notes(wanted, notes))
        if before is None or before["metadata"]["generation"] == api.get(PATH)["metadata"]["generation"]:
            return frozenset()
        return frozenset(pod["metadata"]["uid"] for pod in old)

    def _kept(self, wanted: Object, found: Object) -> dict[str, str]:
        """Copy repairs and the debug flag into `wanted`; return the notes of both."""
        notes = {}
        if daemonsets.noted(found, installation.MENDED):
            notes[installation.MENDED] = manifest.mend(wanted, self.place().cgroup_mount)
        if installation.debug(found):
            manifest.set_debug(wanted, on=True)
            notes[installation.DEBUG] = daemonsets.noted(found, installation.DEBUG)
        return notes

    def _await(self, wanted: Object, notes: dict[str, str], after: frozenset[str]) -> None:
        """Wait until it is ready; repair, once each, the known causes of a crash."""
        api = self._access.api()
        told = "Merbridge starts"
        swept = False
        while True:
            try:
                with polling.progress(told):
                    return rollout.wait(api, self.problems, self._access.provider.images, after)
            except rollout.Crashed as crash:
                left = [] if swept else cleanup.sweep(self.place())
                swept = True
                if left:
                    told = f"Merbridge crashed over what a killed one had left; removed {' and '.join(left)}"
                elif mended := self._mend(wanted, notes, crash):
                    told = f"Merbridge crashed over its cgroup; mended by {mended}"
                else:
                    raise rollout.crashed(crash) from crash
                told += ", it starts again"
                after = self._apply(wanted, notes)
                api.delete(kubernetes_api.path("Pod", crash.pod, NAMESPACE), grace=0)

    def _mend(self, wanted: Object, notes: dict[str, str], crash: rollout.Crashed) -> str:
        """Change the cause of its crash, and describe the change; "" if the cause is unknown, or was changed before."""
        if crash.why is None or not crash.why.cgroup or installation.MENDED in notes:
            return ""
        mended = manifest.mend(wanted, self.place().cgroup_mount)
        if mended:
            notes[installation.MENDED] = mended
        return mended

    # -- debug output -------------------------------------------------------------------------------------------------

    def set_debug(self, *, on: bool) -> None:
        """Add -d to mbctl's arguments and wait until the pod runs with it; or remove merlab's -d, without waiting."""
        if not on and not self._access.answers():
            return
        api = self._access.api()
        found = api.find(PATH)
        if found is None or not installation.is_ours(found):
            if on:
                raise LabError("Merbridge is not installed", hint="merlab step 3", id="dataplane.incomplete")
            return
        if on == installation.debug(found):
            if on and not daemonsets.rolled_out(found):
                self._roll()
            return
        if not on and not daemonsets.noted(found, installation.DEBUG):
            return
        wanted = installation.as_applied(found)
        manifest.set_debug(wanted, on=on)
        if on:
            self._renew()  # the new pod does not know the connections that the sidecars keep
        kept = {
            key: daemonsets.noted(found, key) for key in (installation.FROM, installation.MENDED, installation.OBJECTS)
        }
        after = self._apply(wanted, {**kept, installation.DEBUG: "on" if on else ""})
        if on:
            self._roll(after)

    def _roll(self, after: frozenset[str] = frozenset()) -> None:
        try:
            rollout.wait(self._access.api(), self.problems, self._access.provider.images, after)
        except rollout.Crashed as crash:
            raise rollout.crashed(crash) from crash
        self._cold = self._warm()

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove it as its own cleanup does, and check that nothing of it is left on the node. Raises LabError."""
        if not self._access.answers():
            return
        api = self._access.api()
        found, had = api.find(PATH), self._had()
        alone = not installation.others(api)
        if alone:
            with contextlib.suppress(LabError):
                self._maps = dict(self.state().maps)
        if found is not None and installation.is_ours(found):
            api.delete(PATH)
            rollout.await_gone(api, found)
        for where in installation.objects_of(found):
            there = api.find(where)
            if there is not None and daemonsets.is_marked(there):
                api.delete(where)
        # On the node, another's looks like ours; in a lab that never had one, there is nothing to remove. Also clean up
        # if the DaemonSet is gone already: whoever removed it may have left its attached programs.
        if alone and had:
            cleanup.sweep(self.place())
            cleanup.require_none(self.place())

    def _had(self) -> bool:
        """Report whether the lab has a Merbridge, or may have: a failed read must not prevent its removal."""
        with contextlib.suppress(LabError):
            kept = self._access.kept()
            return kept is not None and kept.dataplane == MERBRIDGE
        return True

    def require_gone(self) -> None:
        """Check, once the pods are gone too, that its maps are gone. Raises LabError."""
        maps, self._maps = self._maps, {}
        cleanup.require_no_maps(maps)

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return its own parts of a sysdump."""
        return dump.parts(self._access.api(), self.state, self.place)

    # -- as a person would type it ----------------------------------------------------------------------------------

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to install it."""
        found = None
        with contextlib.suppress(LabError):
            found = self._access.api().find(PATH)
        return commands.put_in(
            self._access.best_known_settings(),
            self._access.provider,
            daemonsets.noted(found, installation.MENDED) if found else "",
        )

    def debug_commands(self) -> list[str]:
        """Return what one types to add -d, to wait for the rollout, and to show the resulting DaemonSet."""
        flag = "args/1"  # in merlab's own manifest
        with contextlib.suppress(LabError):
            found = self._access.api().find(PATH)
            if found is not None:
                flag = mbctl.place_of_flag(manifest.main(found))
        return commands.add_debug(flag, self._access.provider.context)

    def debug_shown(self) -> str:
        """Return the relevant lines of the last command's output."""
        found = self._access.api().find(PATH)
        return mbctl.excerpt(manifest.main(found)) if found else ""
