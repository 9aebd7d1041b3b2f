"""The lab on a cluster as a whole: whether it exists, what is flushed, what is left of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from merbridge_lab import signals
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import bench_objects, bench_pods, dataplanes, manifests, status
from merbridge_lab.labs.kubernetes.lab import KubernetesLab
from merbridge_lab.trace_event import TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.bench.pod_sets import PodSets
    from merbridge_lab.model import Step


class ManagedKubernetesLab(KubernetesLab):
    """The ManagedLab protocol over a cluster."""

    def close(self) -> None:
        """Remove what was created for as long as this merlab runs."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._access.close)
            for strategy in self._strategies.values():
                stack.callback(strategy.close)

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists. Raise LabError if that cannot be determined."""
        return self.provider.exists()

    def require_up(self) -> None:
        """Raise LabError if no lab is up."""
        self.provider.require_up()

    @contextlib.contextmanager
    def bench_pods(self, *, direct: bool) -> Iterator[PodSets]:
        """Create the bench pods in namespaces of their own, for the duration of the block; see bench_pods.made.

        Raise LabError if the dataplane cannot serve some pods and leave others to the rules.
        """
        with bench_pods.made(self._access, self.strategy.bench_switch(), direct=direct) as made:
            yield made

    def choices(self) -> list[str]:
        """Describe what was chosen because nothing was requested, where that is not the usual."""
        self._access.best_known_settings()
        return self._access.choices

    def require_unchanged(self) -> None:
        """Raise LabError if another dataplane is requested than the lab has: two must not follow each other unseen."""
        kept = self._access.kept() if self.provider.state().up else None
        wanted = self._access.best_known_settings().dataplane
        if kept is not None and dataplanes.NONE not in (kept.dataplane, wanted) and kept.dataplane != wanted:
            raise LabError(
                f"this lab has the dataplane {kept.dataplane}, not {wanted}: remove it first, then ask for {wanted}",
                hint=f"merlab up --dataplane none && merlab up --dataplane {wanted}",
                id="dataplane.another",
            )

    def recover(self) -> None:
        """Restore what a killed merlab left flushed, if the cluster is up. Raise LabError for another dataplane."""
        self.require_unchanged()
        if self.provider.state().up:
            with signals.shielded(), contextlib.suppress(LabError):
                bench_objects.remove(self.api())
            with signals.shielded(), contextlib.suppress(LabError):
                self.restore()
                self._mend_dataplane()

    def _mend_dataplane(self) -> None:
        """Remove what a killed merlab left beside the pods; remove a dataplane if it is no longer requested."""
        kept = self._access.kept()
        if kept is None:
            return
        strategy = self._named(kept.dataplane)
        strategy.sweep()
        if strategy.intercepts and strategy is not self.strategy:
            strategy.component.remove()
            # No more than that: the steps handle everything else that is requested.
            without = replace(kept, dataplane=dataplanes.NONE)
            self.api().apply(manifests.configuration(without, finished=self._access.setup_complete()))

    @staticmethod
    def trace_context() -> TraceContext:
        """Return nothing: no dataplane of a cluster identifies connections in its trace."""
        return TraceContext()

    def sweep(self) -> list[str]:
        """Remove what a killed merlab left beside the lab's pods, as far as that can be done now; return namespaces."""
        removed: list[str] = []
        with contextlib.suppress(LabError):
            removed = bench_objects.remove(self.api())
        with contextlib.suppress(LabError):
            kept = self._access.kept()
            if kept is not None:
                self._named(kept.dataplane).sweep()
        return removed

    def restore(self) -> list[str]:
        """Restore everything that is flushed; return the names of the workloads."""
        return [workload.name for workload in self.workloads() if workload.rules.restore()]

    def remove(self, timeout: float) -> None:  # noqa: ARG002 - the protocol's; a provider has its own
        """Remove everything that is left of the lab."""
        if self._access.answers():
            with contextlib.suppress(LabError):  # they go with the cluster, or the next command removes them
                bench_objects.remove(self.api())
        if self.strategy.intercepts and self._access.answers():
            self.strategy.release()
        self.node.remove()
        for strategy in self._strategies.values():
            strategy.require_gone()

    def stays(self) -> list[str]:
        """Return what `down` leaves on purpose, with the command that removes it."""
        settings = self._access.best_known_settings()
        return self.provider.stays(status.images(settings, self.strategy.images(settings)))

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Return for each step whether what it ensures holds now."""
        return status.states(self, steps)

    def describe(self) -> dict[str, Any]:
        """Return the state of the lab as `merlab status --json` prints it."""
        return status.describe(self)

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""
        return status.dump(self)

    def keep_report(self, told: dict[str, Any]) -> None:
        """Store the report of the last run on the node, for a sysdump."""
        with contextlib.suppress(LabError):
            status.keep_report(self, told)
