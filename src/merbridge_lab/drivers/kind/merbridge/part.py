"""Upstream Merbridge as a part of the lab: is it in order, put it in, switch its debug output, take it out."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING

from merbridge_lab import waiting
from merbridge_lab.adapters import kube
from merbridge_lab.dataplane.merbridge import arguments, kernel
from merbridge_lab.drivers.kind import manifests
from merbridge_lab.drivers.kind.merbridge import images, installed, leavings, manifest, order, place, starting, typed
from merbridge_lab.drivers.kind.merbridge.installed import NAME, NAMESPACE, PATH
from merbridge_lab.drivers.kind.settings import MERBRIDGE
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.drivers.kind.access import Access
    from merbridge_lab.drivers.kind.merbridge.installed import Object
    from merbridge_lab.drivers.kind.merbridge.place import Place

_GONE = 60.0
#: How much of its log goes into a sysdump, in lines from its end.
_TAIL = 2000


class MerbridgePart:
    """Upstream's DaemonSet and what it attaches; `renew` has the apps made anew, `warm` sends the first requests.

    `warm` gives how many of them were answered by 503 before all were served.
    """

    def __init__(self, access: Access, renew: Callable[[], None], warm: Callable[[], int]) -> None:
        self._access, self._renew, self._warm = access, renew, warm
        self._place: Place | None = None
        self._maps: dict[str, int] = {}
        self._cold: int | None = None

    # -- looking ----------------------------------------------------------------------------------------------------

    def place(self) -> Place:
        """Give the node as this machine's kernel has it. Raises LabError."""
        if self._place is None or self._place.node != self._access.node():
            self._place = place.find(self._access.node())
        return self._place

    def forget(self) -> None:
        """Find the node anew the next time: it was made or started meanwhile."""
        self._place = None

    def state(self) -> kernel.State:
        """Give what is attached to the node's cgroup. Raises LabError."""
        try:
            return kernel.look(self.place().cgroup)
        except OSError as error:
            raise LabError(
                f"what is attached to the node's cgroup cannot be seen: {error.strerror}",
                hint="merlab doctor --lab kind",
            ) from error

    @property
    def attached(self) -> bool:
        """Whether its programs are attached to the node's cgroup."""
        with contextlib.suppress(LabError):
            return not self.state().missing
        return False

    @property
    def debug(self) -> bool:
        """Whether the pod that runs was told to write trace lines."""
        found = self._access.api().find(PATH)
        return bool(found and installed.debug(found) and installed.rolled_out(found))

    def problems(self) -> list[str]:
        """Say what is not as `ensure` makes it: the DaemonSet, its pod and what that says, the kernel."""
        try:
            return order.problems(self._access, self.place, self.state)
        except OSError as error:  # a program or a map went while it was looked at
            return [f"what Merbridge has in the kernel changes at this moment: {error.strerror}"]

    def readings(self) -> tuple[Reading, ...]:
        """Give what was seen of it."""
        told = []
        with contextlib.suppress(LabError, OSError):
            found = self._access.api().find(PATH)
            if found is not None:
                told.append(Reading("kubernetes:merbridge/image", "", None, manifest.main(found)["image"]))
                if mended := installed.noted(found, installed.MENDED):
                    told.append(Reading("kubernetes:merbridge/mended", "", None, f"crashed over its cgroup: {mended}"))
            state = self.state()
            told += [Reading(f"bpf:node/{hook}", "program", None, number) for hook, number in state.programs.items()]
            told.append(Reading(f"bpf:{kernel.PODS}", "pods", None, ", ".join(kernel.pods(state)) or "none"))
        if self._cold is not None:
            told.append(Reading("curl:sleep/warm-up", "503s", None, self._cold))
        return tuple(told)

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Put it in, see it started, mend the crash of the walkthrough, send the first requests. Raises LabError.

        The apps are made anew *before*: their sidecars keep connections that Merbridge does not know, and one that it
        sees dial before it listens it takes for not in the mesh, for good. Where it does so, it forgets by a new start.
        """
        api, settings = self._access.api(), self._access.settings()
        found = api.find(PATH)
        if found is not None and not installed.is_ours(found):
            raise installed.foreign(f"{NAMESPACE}/{NAME}")
        if others := installed.others(api):
            raise installed.foreign(others[0])
        objects = manifest.objects(settings)
        wanted = manifest.daemonset(objects)
        installed.require_own(api, objects)
        # Before anything of it is there: whatever happens then, the lab knows what it has.
        api.apply(manifests.configuration(settings, finished=self._access.finished()))
        images.load(self._access.node(), [one["image"] for one in manifest.containers(wanted)])
        notes = {installed.FROM: settings.merbridge_manifest, installed.OBJECTS: installed.paths(objects)}
        if found is None:
            leavings.sweep(self.place())
        else:
            notes |= self._kept(wanted, found)
        self._renew()
        for one in objects:
            if one is not wanted:
                api.apply(one if one["kind"] == "Namespace" else installed.marked(one))
        after = self._apply(wanted, notes)
        if self.attached and order.forgotten(self._access, self.place(), self.state()):
            for pod in installed.pods(api, api.get(PATH)):
                api.delete(kube.path("Pod", pod["metadata"]["name"], NAMESPACE))
        self._await(wanted, notes, after)
        self._cold = self._warm()

    def _apply(self, wanted: Object, notes: dict[str, str]) -> frozenset[str]:
        """Apply the DaemonSet, and give the uids of the pods that it will replace; none where nothing changes."""
        api = self._access.api()
        before = api.find(PATH)
        old = [] if before is None else installed.every_pod(api, before)
        api.apply(installed.with_notes(wanted, notes))
        if before is None or before["metadata"]["generation"] == api.get(PATH)["metadata"]["generation"]:
            return frozenset()
        return frozenset(pod["metadata"]["uid"] for pod in old)

    def _kept(self, wanted: Object, found: Object) -> dict[str, str]:
        """Carry over into `wanted` what was mended, and the debug flag; give the notes of both."""
        notes = {}
        if installed.noted(found, installed.MENDED):
            notes[installed.MENDED] = manifest.mend(wanted, self.place().cgroup_mount)
        if installed.debug(found):
            manifest.set_debug(wanted, on=True)
            notes[installed.DEBUG] = installed.noted(found, installed.DEBUG)
        return notes

    def _await(self, wanted: Object, notes: dict[str, str], after: frozenset[str]) -> None:
        """Wait until it is ready; of each thing that it crashes over and that can be mended, once."""
        api = self._access.api()
        told = "Merbridge starts"
        swept = False
        while True:
            try:
                with waiting.during(told):
                    return starting.wait(api, self.problems, after)
            except starting.Crashed as crash:
                left = [] if swept else leavings.sweep(self.place())
                swept = True
                if left:
                    told = f"Merbridge crashed beside what a killed one had left; {' and '.join(left)} taken away"
                elif mended := self._mend(wanted, notes, crash):
                    told = f"Merbridge crashed over its cgroup; mended by {mended}"
                else:
                    raise starting.crashed(crash) from crash
                told += ", it starts again"
                after = self._apply(wanted, notes)
                api.delete(kube.path("Pod", crash.pod, NAMESPACE), grace=0)

    def _mend(self, wanted: Object, notes: dict[str, str], crash: starting.Crashed) -> str:
        """Change what it crashed over, and say what was changed; nothing where that is not known, or was done."""
        if crash.why is None or not crash.why.cgroup or installed.MENDED in notes:
            return ""
        mended = manifest.mend(wanted, self.place().cgroup_mount)
        if mended:
            notes[installed.MENDED] = mended
        return mended

    # -- debug output -------------------------------------------------------------------------------------------------

    def set_debug(self, *, on: bool) -> None:
        """Add -d to mbctl's arguments and wait until it runs so; or take merlab's -d away, and wait for nothing."""
        if not on and not self._access.answers():
            return
        api = self._access.api()
        found = api.find(PATH)
        if found is None or not installed.is_ours(found):
            if on:
                raise LabError("Merbridge is not installed", hint="merlab step 3")
            return
        if on == installed.debug(found):
            if on and not installed.rolled_out(found):
                self._roll()
            return
        if not on and not installed.noted(found, installed.DEBUG):
            return
        wanted = installed.as_applied(found)
        manifest.set_debug(wanted, on=on)
        if on:
            self._renew()  # the new pod knows nothing of the connections that the sidecars keep
        kept = {key: installed.noted(found, key) for key in (installed.FROM, installed.MENDED, installed.OBJECTS)}
        after = self._apply(wanted, {**kept, installed.DEBUG: "on" if on else ""})
        if on:
            self._roll(after)

    def _roll(self, after: frozenset[str] = frozenset()) -> None:
        try:
            starting.wait(self._access.api(), self.problems, after)
        except starting.Crashed as crash:
            raise starting.crashed(crash) from crash
        self._cold = self._warm()

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Take it out as its own clean-up does, and see that nothing of it is left on the node. Raises LabError."""
        if not self._access.answers():
            return
        api = self._access.api()
        found, had = api.find(PATH), self._had()
        alone = not installed.others(api)
        if alone:
            with contextlib.suppress(LabError):
                self._maps = dict(self.state().maps)
        if found is not None and installed.is_ours(found):
            api.delete(PATH)
            self._await_gone(found)
        for where in installed.objects_of(found):
            there = api.find(where)
            if there is not None and installed.is_marked(there):
                api.delete(where)
        # On the node another's looks like ours; and of a lab that never had one, there is nothing.
        # Also where the DaemonSet is gone already: who took it away may have left what it had attached.
        if alone and had:
            leavings.sweep(self.place())
            leavings.require_none(self.place())

    def _had(self) -> bool:
        """Whether the lab has a Merbridge, or may have: what cannot be read must not keep it from being removed."""
        with contextlib.suppress(LabError):
            kept = self._access.kept()
            return kept is not None and kept.dataplane == MERBRIDGE
        return True

    def require_gone(self) -> None:
        """Look, once the pods are gone too, whether its maps are. Raises LabError."""
        maps, self._maps = self._maps, {}
        leavings.require_no_maps(maps)

    def _await_gone(self, found: Object) -> None:
        api = self._access.api()
        awaiting = "Merbridge to take its programs away and end"
        if waiting.until(lambda: not installed.every_pod(api, found), timeout=_GONE, every=0.3, awaiting=awaiting):
            return
        for pod in installed.every_pod(api, found):  # its clean-up hangs: what it left is taken off below
            api.delete(kube.path("Pod", pod["metadata"]["name"], NAMESPACE), grace=0)

    def dump(self) -> dict[str, Callable[[], object]]:
        """Name the parts of a sysdump that are its own."""
        api = self._access.api()
        return {
            "merbridge/daemonset.json": lambda: api.find(PATH),
            "merbridge/log.txt": lambda: "\n".join(
                starting.log(api, pod, tail=_TAIL) for pod in installed.pods(api, api.get(PATH))
            ),
            "merbridge/attached.json": lambda: asdict(self.state()),
            "merbridge/leavings.json": lambda: leavings.found(self.place()),
        }

    # -- as a person would type it ----------------------------------------------------------------------------------

    def typed(self) -> list[str]:
        """Give the commands a person would type to put it in."""
        found = None
        with contextlib.suppress(LabError):
            found = self._access.api().find(PATH)
        return typed.put_in(self._access.likely(), installed.noted(found, installed.MENDED) if found else "")

    def debug_commands(self) -> list[str]:
        """Give what one types to add -d, to see it rolled out, and to look at what became of the DaemonSet."""
        place = "args/1"  # in merlab's own manifest
        with contextlib.suppress(LabError):
            found = self._access.api().find(PATH)
            if found is not None:
                place = arguments.place_of_flag(manifest.main(found))
        return typed.add_debug(place)

    def debug_shown(self) -> str:
        """Give the lines of the last one's output that matter."""
        found = self._access.api().find(PATH)
        return arguments.excerpt(manifest.main(found)) if found else ""
