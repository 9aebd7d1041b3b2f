"""Why kind created no cluster: what kind printed, and what the kubelet logged about it on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import docker, kind_messages
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import local_state, names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.docker import Container

#: How much of a kubelet's journal is kept, in lines from its end.
_JOURNAL = 400


def kubelets_journal(nodes: Sequence[Container]) -> str:
    """Return the end of the log of the kubelet of a node that did not come up, or why it could not be read.

    kubeadm reports only that the kubelet is not healthy. Return "" if no node of merlab's runs.
    """
    argv = ["journalctl", "--unit=kubelet", "--no-pager", "--output=cat", f"--lines={_JOURNAL}"]
    try:
        for node in nodes:
            if node.running and names.MARK in node.mounts:
                return docker.execute(node.name, argv).stdout
    except LabError as error:
        return f"the kubelet's journal could not be read: {error.what}"
    return ""


def not_made(error: LabError, image: str, journal: str = "") -> LabError:
    """Describe why kind created no cluster: the cause and the lines that show it; a file keeps the complete output.

    `journal` is what the kubelet logged.
    """
    said = error.stderr or ""
    why, hint = kind_messages.cause(said, image)
    kubelets = kind_messages.of_kubelet(journal)
    if kubelets and kind_messages.is_kubelets(said):
        # kubeadm only waits for the kubelet; the kubelet itself logs why it is not healthy.
        why, hint = kind_messages.cause(kubelets, image)
        why, hint = why or f"its kubelet ended: {kubelets}", hint or "merlab doctor"
    # If kind printed nothing, for example because it did not end in time, the cause is what ended it.
    what = f"kind could not make the cluster {names.CLUSTER} of {image}: {why or error.what}"
    parts = [f"$ {error.command}\n{said}\n", *([f"-- the kubelet's journal\n{journal}\n"] if journal else [])]
    where = local_state.keep_log("".join(parts)) if said or journal else ""
    lines = [kind_messages.summary(said) or error.what, *([f"kubelet: {kubelets}"] if kubelets else [])]
    lines += [f"the complete output of kind: less {where}"] if where else []
    return LabError(
        what,
        hint=hint or "merlab doctor",
        command=error.command,
        stderr="\n".join(lines),
        id="cluster.failed",
    )
