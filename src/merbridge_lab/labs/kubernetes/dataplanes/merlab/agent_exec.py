"""Commands of the agent, run in its container on each node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import kubernetes_exec
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.kubernetes_api import Api

#: How long one may take, in seconds.
_TIMEOUT = 30.0


def run(api: Api, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> list[str]:
    """Run `merlab agent ARGV` in every pod of the agent; return what each printed. Raises LabError."""
    found = api.find(manifest.PATH)
    pods = daemonsets.pods(api, found) if found else []
    if not pods:
        raise LabError("no pod of merlab's agent runs", hint="merlab step 3", id="dataplane.incomplete")
    said = []
    for pod in pods:
        name = pod["metadata"]["name"]
        command = ["merlab", "agent", *argv]
        status, out, err = kubernetes_exec.execute(api, manifest.NAMESPACE, name, manifest.CONTAINER, command, _TIMEOUT)
        if status not in ok:
            raise LabError(
                f"merlab agent {argv[0]} failed with exit status {status} in {name}",
                hint=f"kubectl -n {manifest.NAMESPACE} logs {name}",
                stderr=err.strip() or out.strip(),
                id="tool.failed",
            )
        said.append(out)
    return said


def status(api: Api) -> list[dict[str, Any]]:
    """Return what the agent of each node says of its pods. Raises LabError."""
    # Its exit status says whether it is ready, which is in the answer as well.
    return [json.loads(each) for each in run(api, ["status", "--json"], ok=(0, 1, 3))]


def why_left(api: Api, uid: str) -> str:
    """Return why a pod is left to the rules, as the agent says; "" if it does not know the pod. Raises LabError."""
    pods = [pod for each in status(api) for pod in each["pods"]]
    return next((str(pod.get("reason") or pod["state"]) for pod in pods if pod["uid"] == uid), "")
