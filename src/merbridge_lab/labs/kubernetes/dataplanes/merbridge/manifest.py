"""What installs upstream Merbridge: our own manifest, one of upstream's by name, or any other that is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.adapters import download, kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import manifest_templates, topology
from merbridge_lab.labs.kubernetes.settings import Settings, versions
from merbridge_lab.merbridge import mbctl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Object = dict[str, Any]
#: The name of this dataplane, and of its image.
MERBRIDGE = "merbridge"
#: The first releases' hostPath, with which they crash over the cgroup that they find, and its successor.
OLD_PATH, NEW_PATH = "/sys/fs", "/sys/fs/cgroup"
#: Which cgroup2 mount it must take, if it would take another one.
CGROUP2_PATH = "CGROUP2_PATH"


def shown(settings: Settings) -> str:
    """Return the manifest for people: merlab's own as it is, another one as it would be applied. Raises LabError."""
    return yaml.safe_dump_all(objects(settings), sort_keys=False) if settings.merbridge_manifest else text(settings)


def text(settings: Settings) -> str:
    """Return the manifest as it was found. Raises LabError."""
    name = settings.merbridge_manifest
    if not name:
        return manifest_templates.rendered(MERBRIDGE, settings)
    known = versions()["merbridge-manifests"]
    if name in known:
        return download.text(known[name]["url"], sha256=known[name]["sha256"])
    if "://" in name:
        return download.text(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LabError(
            f"the manifest {name} cannot be read: {why}",
            hint=f"--merbridge-manifest takes a URL, a file, or one of {', '.join(known)}",
            id="manifest.unusable",
        ) from error


def objects(settings: Settings) -> list[Object]:
    """Return what is applied: the manifest's objects, with the requested image. Raises LabError."""
    name = settings.merbridge_manifest
    where = name or "merlab's own manifest"
    try:
        found = [one for one in yaml.safe_load_all(text(settings)) if one]
        kinds = [one["kind"] for one in found]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        # The cluster may have supplied the name: the content of a file that is no manifest must not be shown.
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) else f"{type(error).__name__}: {error}"
        raise LabError(
            f"{where} is not a Kubernetes manifest",
            hint="merlab manifests merbridge",
            stderr=said,
            id="manifest.unusable",
        ) from error
    if unknown := sorted(set(kinds) - kubernetes_api.KINDS):
        raise LabError(
            f"{where} holds a {unknown[0]}, which merlab does not apply",
            hint="apply it yourself first",
            id="manifest.unusable",
        )
    if kinds.count("DaemonSet") != 1:
        raise LabError(f"{where} holds {kinds.count('DaemonSet')} DaemonSets; Merbridge is one", id="manifest.unusable")
    _require_merbridge(daemonset(found), where)
    for one in found:
        if not isinstance(one.get("metadata"), dict) or not _is_text(one["metadata"].get("name")):
            raise LabError(
                f"{where} holds a {one['kind']} without a name",
                hint="merlab manifests merbridge",
                id="manifest.unusable",
            )
    ours = name in ("", *versions()["merbridge-manifests"])
    asked = settings.images[MERBRIDGE] != Settings.default().images[MERBRIDGE]
    for one in found:
        if one["kind"] == "DaemonSet":
            _prepare(one, settings.images[MERBRIDGE] if ours or asked else "")
    return found


def _require_merbridge(daemonset: Object, where: str) -> None:
    """Refuse a manifest that could not be found again, or has no container."""
    try:
        name = f"{daemonset['metadata'].get('namespace', 'default')}/{daemonset['metadata']['name']}"
        selects = bool(daemonset["spec"]["selector"]["matchLabels"])
        every = list(containers(daemonset))
        nameless = any(not isinstance(one.get("name"), str) for one in every)
        bare = next((str(one["name"]) for one in every if not _is_text(one.get("image"))), "")
        empty = not daemonset["spec"]["template"]["spec"]["containers"]
    except (KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"the DaemonSet of {where} is incomplete: it lacks {error}",
            hint="merlab manifests merbridge",
            id="manifest.unusable",
        ) from error
    wanted = f"{topology.ISTIO}/{MERBRIDGE}"
    if name != wanted:
        raise LabError(f"the DaemonSet of {where} is {name}; merlab looks for it at {wanted}", id="manifest.unusable")
    if not selects:
        raise LabError(
            f"the DaemonSet of {where} selects no pods", hint="merlab manifests merbridge", id="manifest.unusable"
        )
    if empty:
        raise LabError(
            f"the DaemonSet of {where} has no container", hint="merlab manifests merbridge", id="manifest.unusable"
        )
    if nameless:
        raise LabError(
            f"a container of the DaemonSet of {where} has no name",
            hint="merlab manifests merbridge",
            id="manifest.unusable",
        )
    if bare:
        raise LabError(
            f"the container {bare} of the DaemonSet of {where} has no image",
            hint="merlab manifests merbridge",
            id="manifest.unusable",
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _prepare(daemonset: Object, image: str) -> None:
    """Set the image, and allow one that was loaded into the node: Always would look for it elsewhere."""
    for container in containers(daemonset):
        if image and MERBRIDGE in str(container.get("image", "")):
            container["image"] = image
        container["imagePullPolicy"] = "IfNotPresent"


def daemonset(found: Sequence[Object]) -> Object:
    """Return the DaemonSet of a manifest."""
    return next(one for one in found if one["kind"] == "DaemonSet")


def containers(daemonset: Object) -> Iterator[Object]:
    """Return all containers of a DaemonSet, including init containers."""
    spec = daemonset["spec"]["template"]["spec"]
    yield from spec.get("initContainers") or []
    yield from spec["containers"]


def images(daemonset: Object) -> list[str]:
    """Return the images of its containers."""
    return [str(one["image"]) for one in containers(daemonset)]


def main(daemonset: Object) -> Object:
    """Return the container that is Merbridge's own."""
    found: Sequence[Object] = daemonset["spec"]["template"]["spec"]["containers"]
    return next((one for one in found if MERBRIDGE in one["name"]), found[0])


def replaced(daemonset: Object, container: Object) -> None:
    """Replace the container of the same name by a changed one."""
    found = daemonset["spec"]["template"]["spec"]["containers"]
    found[:] = [container if one["name"] == container["name"] else one for one in found]


def set_debug(daemonset: Object, *, on: bool) -> None:
    """Set whether its mbctl writes trace lines."""
    change = mbctl.with_debug if on else mbctl.without_debug
    replaced(daemonset, change(main(daemonset)))


# -- the cgroup crash ------------------------------------------------------------------------------------------------


def mend(daemonset: Object, cgroup_mount: str) -> str:
    """Change the cause of its crash, and describe the change; "" if everything is already as it should be.

    Upstream's own fix (#106) is the hostPath; if that is there, CGROUP2_PATH tells which mount to take.
    """
    container, spec = main(daemonset), daemonset["spec"]["template"]["spec"]
    volumes = spec.setdefault("volumes", [])
    for volume in volumes:
        if (volume.get("hostPath") or {}).get("path", "").rstrip("/") == OLD_PATH:
            volume["hostPath"]["path"] = NEW_PATH
            for mount in container.get("volumeMounts") or []:
                if mount["name"] == volume["name"]:
                    mount["mountPath"] = NEW_PATH
            return f"hostPath {NEW_PATH} instead of {OLD_PATH}"
    if not any((volume.get("hostPath") or {}).get("path") == NEW_PATH for volume in volumes):
        volumes.append({"name": "cgroup", "hostPath": {"path": NEW_PATH}})
        container.setdefault("volumeMounts", []).append({"name": "cgroup", "mountPath": NEW_PATH})
        return f"hostPath {NEW_PATH}, which was missing"
    environment = [one for one in container.get("env") or [] if one["name"] != CGROUP2_PATH]
    wanted = {"name": CGROUP2_PATH, "value": cgroup_mount}
    if wanted in (container.get("env") or []) or not cgroup_mount:
        return ""
    container["env"] = [*environment, wanted]
    return f"{CGROUP2_PATH}={cgroup_mount}"
