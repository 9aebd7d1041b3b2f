"""The objects that bring the agent to every node: merlab's own manifest."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.labs.kubernetes import manifest_templates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.kubernetes.settings import Settings

Object = dict[str, Any]
#: The name of this dataplane, and of its image.
MERLAB = "merlab"
#: The name of its namespace and of everything in it, and of the folder of pins on a node.
NAME = NAMESPACE = PINS = "merlab-agent"
CONTAINER = "agent"
PATH = kubernetes_api.path("DaemonSet", NAME, NAMESPACE)
#: Where the agent keeps files on the node: the manifest mounts them.
FOLDERS = ("/run/merlab-agent", "/var/lib/merlab-agent")
#: For a shell of the node: unmount its bpffs, if the manifest's init container mounted it and nothing is in it.
#: The two files are the kernel's own (CONFIG_BPF_PRELOAD).
UNMOUNT = (
    '[ -n "$(find /sys/fs/bpf -mindepth 1 ! -name maps.debug ! -name progs.debug)" ]'
    f' || ! grep -q "^{NAME} /sys/fs/bpf bpf " /proc/mounts || umount /sys/fs/bpf'
)
#: The variable of the container with which it removes everything from its node: see images/agent/entrypoint.
REMOVE = {"name": "MERLAB_AGENT", "value": "remove"}


def shown(settings: Settings) -> str:
    """Return the manifest for people."""
    return manifest_templates.rendered(MERLAB, settings)


def objects(settings: Settings) -> list[Object]:
    """Return what is applied."""
    return [one for one in yaml.safe_load_all(shown(settings)) if one]


def daemonset(found: Sequence[Object]) -> Object:
    """Return the DaemonSet of a manifest."""
    return next(one for one in found if one["kind"] == "DaemonSet")


def path_of(one: Object) -> str:
    """Return where in the API an object of the manifest is."""
    meta = one["metadata"]
    return kubernetes_api.path(one["kind"], meta["name"], meta.get("namespace", ""))


def of_cluster(found: Sequence[Object]) -> list[Object]:
    """Return the objects of a manifest that are in no namespace: what is in one goes with it."""
    return [one for one in found if "namespace" not in one["metadata"]]


def removing(wanted: Object) -> Object:
    """Return the DaemonSet whose pods remove everything from their nodes; they are ready when that is done."""
    told = copy.deepcopy(wanted)
    container = told["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [*(container.get("env") or []), REMOVE]
    return told


def is_removing(found: Object) -> bool:
    """Report whether the pods of a DaemonSet remove everything."""
    return REMOVE in (found["spec"]["template"]["spec"]["containers"][0].get("env") or [])
