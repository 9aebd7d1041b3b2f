"""The public interface of the dataplane."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.dataplane import abi, health, map_readings, orphaned_links, program_list, recompiled, trace_ring
from merbridge_lab.dataplane.endpoints import legs_of, netns_cookie, served
from merbridge_lab.dataplane.map_readings import Pair, reading
from merbridge_lab.dataplane.pins import Pins, remove_pin
from merbridge_lab.dataplane.reconciler import Reconciler
from merbridge_lab.dataplane.strangers import Around
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from merbridge_lab.dataplane.detach import Detached
    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.legs import Legs
    from merbridge_lab.trace_event import TraceEvent


class Dataplane:
    """Everything pinned below one directory on a bpffs, which must exist before something is attached.

    `around` is what exists beside the endpoints, and is searched for foreign programs.
    """

    def __init__(self, pins: Path, around: Around | None = None) -> None:
        self._pins = Pins(pins)
        self._reconciler = Reconciler(pins)
        self._around = around or Around()
        self._recompiled: recompiled.Recompiled | None = None
        self._is_proof = False

    def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """Serve exactly `endpoints`: create what is missing, recreate what is broken, detach what is not wanted.

        Those with a reason to leave them to the rules are not served. Compile only if there is nothing to continue
        with. Raise UnsupportedFeatureError for a feature that this kernel lacks; LabError if BCC is missing, another
        program is in the way, or a namespace cannot be entered.
        """
        wanted = served(endpoints)
        namespaces = {netns_cookie(endpoint.netns): endpoint.netns for endpoint in wanted}
        _require_own_addresses(wanted)
        self._reconciler.install(self._recompiled)
        self._reconciler.redirecting = True
        self._reconciler.forget_all_but(endpoint.uid for endpoint in wanted)
        for endpoint in wanted:
            self._reconciler.serve(endpoint)
        self._reconciler.settle(namespaces)

    def detach(self, timeout: float) -> Detached:
        """Detach and leave no pin. Sockets that have not read everything within `timeout` seconds stay redirected.

        Those keep the programs loaded until they are closed, and lose nothing. Succeed if nothing is attached.
        """
        return self._reconciler.remove(timeout)

    def serve_beside(self, endpoint: Endpoint) -> None:
        """Serve one pod more than `attach` did; the others are not touched.

        Raise LabError if nothing is attached, or the pod is one that eBPF does not serve.
        """
        if endpoint.left_to_rules or endpoint.sidecar is None:
            why = endpoint.left_to_rules or "its sidecar is not running"
            raise LabError(f"{endpoint.name} cannot be served by eBPF: {why}", hint="merlab up", id="dataplane.failed")
        with reading(self._pins):
            if self._pins.stamp() != abi.stamp():
                raise LabError("the dataplane is not attached", hint="merlab up", id="dataplane.incomplete")
        self._reconciler.serve(endpoint)

    def forget(self, names: Collection[str], uids: Collection[str] = ()) -> None:
        """Detach the pods of these names or uids, which may be gone; the others are not touched. Raises LabError.

        A pod that was not attached to its end has no name yet.
        """
        for uid, pod in self._reconciler.served().items():
            if pod.name in names or uid in uids:
                self._reconciler.forget(uid)

    def legs(self) -> Legs | None:
        """Return the legs that the first pod is served with; None if none is. Raises LabError."""
        with reading(self._pins), contextlib.suppress(FileNotFoundError):
            served = self._pins.pods().values() if self._pins.readable else ()
            return next(map(legs_of, served), None)
        return None

    def ours(self) -> frozenset[int]:
        """Return the ids of the programs that run as ours. Raises OSError."""
        return program_list.ours(self._pins)

    def pause_interception(self, endpoints: Sequence[Endpoint], known: Sequence[str] = ()) -> None:
        """If anything is wrong, intercept no new connection until the next `attach`; intercepted ones continue.

        `known` is what the caller found to be wrong. A complete dataplane of another version continues: `attach` takes
        over from it without a gap. Programs that are not those of the source are left to `pause_altered`.
        """
        if not self._is_another and (known or health.problems(self._pins, served(endpoints), self._around)):
            self._pause(endpoints)

    def pause_altered(self, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        """Do the same if a program is not what `recompile` compiles; wait for that."""
        with reading(self._pins):
            altered = recompiled.problems(self._pins, self._recompiled, needed=False)
        if altered and not self._is_another:
            self._pause(endpoints())

    @property
    def _is_another(self) -> bool:
        with reading(self._pins):
            return self._pins.stamp() not in (None, abi.stamp())

    def _pause(self, endpoints: Sequence[Endpoint]) -> None:
        for pin in self._pins.links():
            if pin.name.startswith("connect"):
                remove_pin(pin)
        orphaned_links.detach(self._pins, served(endpoints), self._around.cgroups)

    def problems(self, endpoints: Sequence[Endpoint]) -> list[str]:
        """List every way in which the attachment is not what it should be; nothing means healthy.

        After `recompile`, this includes the code of the programs, independent of what the pins say.
        """
        found = health.problems(self._pins, served(endpoints), self._around)
        with reading(self._pins):
            return found or recompiled.problems(self._pins, self._recompiled, needed=self._is_proof)

    def recompile(self, *, proof: bool) -> None:
        """Begin to compile merlab's own source, for the next check. Raises LabError.

        In a `proof`, a failure to compile is a problem, too.
        """
        self._is_proof = self._is_proof or proof
        if self._recompiled is None:
            self._recompiled = recompiled.Recompiled()

    @staticmethod
    def not_compared() -> str | None:
        """Describe what `recompile` cannot compare on this machine; None if it compares everything."""
        return recompiled.not_compared()

    def others(self, endpoints: Sequence[Endpoint]) -> list[str]:
        """Describe, one sentence each, which programs of others run where they may. Raises LabError."""
        with reading(self._pins):
            return health.listed(self._pins, served(endpoints), self._around)

    def programs(self) -> list[program_list.ProgramInfo]:
        """List the loaded programs and where each is attached. Raises LabError."""
        return self._reconciler.programs()

    def links(self) -> dict[str, str]:
        """Return the identity of each pinned link, and what runs where, by name: a recreated link is another one."""
        return self._reconciler.links()

    @property
    def attached(self) -> bool:
        """Report whether any hook is attached."""
        return any(self._pins.links())

    @property
    def debug(self) -> bool:
        """Report whether the dataplane tells all who read its trace what it does."""
        with reading(self._pins), contextlib.suppress(FileNotFoundError):
            return bool(self._pins.config()["debug"])
        return False

    @debug.setter
    def debug(self, on: bool) -> None:
        try:
            self._pins.configure(debug=int(on))
        except FileNotFoundError as missing:
            raise LabError(
                "the dataplane is not attached, so there is nothing to debug",
                hint="merlab up",
                id="dataplane.incomplete",
            ) from missing
        except OSError as failed:
            raise LabError(
                f"the dataplane's switches cannot be written: {failed.strerror or failed}",
                hint="merlab up",
                id="dataplane.incomplete",
            ) from failed

    def follow_trace(self) -> Iterator[TraceEvent | None]:
        """Yield the events of the trace as they arrive; see trace_ring.follow."""
        return trace_ring.follow(self._pins, self)

    def batch_trace(self) -> AbstractContextManager[Callable[[], tuple[TraceEvent, ...]]]:
        """Return what reads the events around a batch of requests; see trace_ring.of_batch."""
        return trace_ring.of_batch(self._pins)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return every counter of every pod served, by name, summed over CPUs; empty if nothing is attached."""
        counted = map_readings.counters(self._pins)
        pods = map_readings.pods(self._pins)
        return {str(pod["name"]): counted[cookie] for cookie, pod in pods.items() if cookie in counted}

    def pairs(self) -> list[Pair]:
        """Return the live connections that the dataplane carries."""
        return self._reconciler.pairs()


def _require_own_addresses(endpoints: Sequence[Endpoint]) -> None:
    """Raise LabError if two endpoints have one address: a connection to it could reach the other one's sidecar."""
    seen: dict[int, str] = {}
    for endpoint in endpoints:
        if (other := seen.setdefault(endpoint.ip4, endpoint.name)) != endpoint.name:
            raise LabError(
                f"{other} and {endpoint.name} have the same address, {endpoint.ip}",
                hint="merlab status",
                id="dataplane.failed",
            )
