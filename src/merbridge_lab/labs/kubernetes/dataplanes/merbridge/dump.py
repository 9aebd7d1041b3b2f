"""The parts of a sysdump about upstream's Merbridge."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import cleanup, rollout
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.merbridge import kernel_objects

#: How much of its log a sysdump includes, in lines from its end.
_TAIL = 2000


def parts(
    api: Api, state: Callable[[], kernel_objects.State], place: Callable[[], NodeView]
) -> dict[str, Callable[[], object]]:
    """Return the parts, each with the function that returns its content."""
    return {
        "merbridge/daemonset.json": lambda: api.find(PATH),
        "merbridge/log.txt": lambda: "\n".join(
            rollout.log(api, pod, tail=_TAIL) for pod in daemonsets.pods(api, api.get(PATH))
        ),
        "merbridge/attached.json": lambda: asdict(state()),
        "merbridge/leavings.json": lambda: cleanup.found(place()),
    }
