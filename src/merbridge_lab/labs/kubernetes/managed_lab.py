"""The lab on a cluster as a whole: whether it exists, what is flushed, what is left of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from merbridge_lab import signals
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import ownership
from merbridge_lab.labs.kubernetes import manifests, status, topology
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import (
    evidence,
)
from merbridge_lab.labs.kubernetes.lab import KubernetesLab
from merbridge_lab.labs.kubernetes.settings import MERBRIDGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.model import Step


class ManagedKubernetesLab(KubernetesLab):
    """The ManagedLab protocol over a cluster."""

    def close(self) -> None:
        """Remove what was created for as long as this merlab runs."""
        try:
            if self._pair.made:
                self._pair.close()
        finally:
            self._access.close()

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists. Raise LabError if Docker does not answer."""
        return ownership.exists()

    def require_up(self) -> None:
        """Raise LabError if no lab is up."""
        found = ownership.nodes()
        if found and not ownership.are_ours(found):
            raise ownership.foreign()
        if not found:
            raise LabError("no lab is up", hint="merlab up --lab kind", id="lab.not_up")
        if stopped := [node.name for node in found if not node.running]:
            raise LabError(
                f"the node {stopped[0]} of the kind lab does not run", hint="merlab up --lab kind", id="node.stopped"
            )

    def recover(self) -> None:
        """Restore what a killed merlab left flushed, if the cluster is up."""
        found = ownership.nodes()
        if ownership.are_ours(found) and all(node.running for node in found):
            with signals.shielded(), contextlib.suppress(LabError):
                self.restore()
                self._mend_dataplane()

    def _mend_dataplane(self) -> None:
        """Remove what a killed merlab left beside the pods; remove Merbridge if it is no longer requested."""
        kept = self._access.kept()
        if kept is None or kept.dataplane != MERBRIDGE:
            return
        self._pair.close()
        evidence.sweep(self.merbridge.place())
        if not self.intercepts:
            self.merbridge.remove()
            # No more than that: the steps handle everything else that is requested.
            without = replace(kept, dataplane="none")
            self.api().apply(manifests.configuration(without, finished=self._access.setup_complete()))

    def sweep(self) -> None:
        """Do nothing: what a killed merlab left of control pods is removed when they are recreated."""

    def restore(self) -> list[str]:
        """Restore everything that is flushed; return the names of the workloads."""
        return [workload.name for workload in self.workloads() if workload.rules.restore()]

    def remove(self, timeout: float) -> None:  # noqa: ARG002 - the protocol's; kind has its own
        """Remove everything that is left of the lab."""
        if self.intercepts and self._access.answers():
            self._pair.close()
            with contextlib.suppress(LabError):
                evidence.sweep(self.merbridge.place())
        self.node.remove()
        self.merbridge.require_gone()

    def stays(self) -> list[str]:
        """Return what `down` leaves on purpose, with the command that removes it."""
        kept = (
            [f"the cluster {topology.CLUSTER} stays, as asked; merlab down removes it"] if self._keeps_cluster else []
        )
        return [*kept, *status.pulled(self._access.best_known_settings())]

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
