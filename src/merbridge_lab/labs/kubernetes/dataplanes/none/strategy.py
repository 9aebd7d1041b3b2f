"""What the absence of a dataplane brings to a lab: nothing, and the sentences that say so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

from merbridge_lab.errors import LabError
from merbridge_lab.lab import CONTROL_CLIENT
from merbridge_lab.labs.dataplane_strategy import NoEvidence
from merbridge_lab.labs.kubernetes import commands
from merbridge_lab.labs.kubernetes.dataplanes import NONE
from merbridge_lab.labs.kubernetes.dataplanes.none.dataplane import WHY, NoDataplane, why

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import ClusterDataplane, Surroundings
    from merbridge_lab.labs.kubernetes.provider import Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.labs.request_batch import DataplaneEvidence
    from merbridge_lab.requirements import Requirement


class Strategy:
    """The ClusterDataplane protocol where nothing intercepts."""

    name = NONE
    intercepts = False
    needs_this_kernel = False
    capabilities = frozenset[str]()

    def __init__(self, around: Surroundings) -> None:
        del around
        self.component = NoDataplane()

    @staticmethod
    def why_missing(capability: str) -> str:
        """Describe why a capability is missing."""
        return why(capability)

    def requirements(self, settings: Settings) -> list[Requirement]:  # noqa: ARG002 - the protocol's
        """Return nothing."""
        return []

    def require_able(self) -> None:
        """Succeed."""

    def images(self, settings: Settings) -> list[str]:  # noqa: ARG002 - the protocol's
        """Return nothing."""
        return []

    def evidence(self, servers: Sequence[KubernetesWorkload]) -> AbstractContextManager[DataplaneEvidence]:  # noqa: ARG002 - the protocol's
        """Return what shows that nothing intercepts."""
        return contextlib.nullcontext(NoEvidence())

    def control_pair(self) -> NoReturn:
        """Raise LabError: sleep itself shows what the rules do."""
        raise LabError(self.why_missing(CONTROL_CLIENT), id="capability.missing")

    def disposable_server(self) -> None:
        """Return None: nothing serves a pod without its rules."""

    def bench_switch(self) -> NoReturn:
        """Raise LabError: there is nothing to compare with the rules."""
        raise LabError(
            "this lab has no eBPF dataplane (--dataplane none), so there is nothing to compare with the rules",
            hint="merlab up --dataplane merlab",
            id="dataplane.none",
        )

    def trace_command(self, node: Node) -> str:
        """Return the walkthrough's command, which shows nothing."""
        return commands.trace(node)

    def follow_trace(self, *, pod: str | None, nonce: str | None) -> NoReturn:  # noqa: ARG002 - the protocol's
        """Raise LabError: nobody writes a trace."""
        raise LabError(WHY, hint="merlab up --dataplane merbridge", id="dataplane.none")

    def fingerprint(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def describe(self) -> dict[str, object]:
        """Return its state as `merlab status --json` prints it."""
        return {"kind": self.name, "attached": False, "programs": 0}

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return nothing."""
        return {}

    def forget(self) -> None:
        """Do nothing: it knows nothing."""

    close = sweep = release = require_gone = forget


if TYPE_CHECKING:
    _KEEPS_TO: type[ClusterDataplane] = Strategy
