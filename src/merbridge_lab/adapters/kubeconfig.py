"""Credentials for the API of a cluster: of a kubeconfig and one of its contexts, or of a pod's service account."""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Object = dict[str, Any]

#: Where the kubelet puts a pod's token and the certificate of the API's authority.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Entries of a cluster or a user whose value is the path of a file; those with "-data" hold the content itself.
_CLUSTERS_FILES = ("certificate-authority",)
_USERS_FILES = ("client-certificate", "client-key", "tokenFile")
_NAME = "merlab"


@dataclass(frozen=True)
class Credentials:
    """Access to one cluster: the entries of one context of a kubeconfig.

    A cluster with `direct` is on this machine, and no proxy is asked for it. With `service_account`, the token is read
    from that folder, and again after a minute: it changes while the pod runs.
    """

    cluster: Mapping[str, Any]
    user: Mapping[str, Any]
    context: str = ""
    direct: bool = False
    service_account: Path | None = None
    _files: list[MemFile] = field(default_factory=list, repr=False, compare=False)

    @property
    def server(self) -> str:
        """The address of the API."""
        return str(self.cluster["server"]).rstrip("/")

    @property
    def certificate(self) -> bytes | None:
        """The client certificate, as PEM; None if the user has none or it cannot be read."""
        try:
            if "client-certificate-data" in self.user:
                return base64.b64decode(self.user["client-certificate-data"])
            if "client-certificate" in self.user:
                return Path(self.user["client-certificate"]).read_bytes()
        except (OSError, ValueError):
            pass
        return None

    def kubeconfig(self) -> Object:
        """Return a kubeconfig with this one context, for other programs."""
        return _one_context(self.context or _NAME, self.cluster, self.user)

    def configuration(self) -> Any:  # noqa: ANN401 - the library has no types
        """Return the configuration of the kubernetes library with them. Raise LabError naming what is invalid.

        An exec plugin runs now. No key is written to a disk, except by the library for a plugin that returns one.
        """
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader
        from kubernetes.config.kube_config import load_kube_config_from_dict

        made = Configuration()
        try:
            if self.service_account is not None:
                InClusterConfigLoader(
                    token_filename=str(self.service_account / "token"),
                    cert_filename=str(self.service_account / "ca.crt"),
                ).load_and_set(made)
            else:
                told = _one_context(self.context or _NAME, self._held(self.cluster), self._held(self.user))
                with _logged_errors() as said:
                    load_kube_config_from_dict(told, client_configuration=made, persist_config=False)
                if said and "exec" in self.user:
                    raise ConfigException("; ".join(said))  # noqa: TRY301 - as the library should
        except (ConfigException, OSError, ValueError) as error:
            raise LabError(
                f"the credentials for the cluster at {self.server} cannot be used",
                hint="kubectl config view",
                id="kubeconfig.unusable",
                stderr=str(error),
            ) from error
        if self.direct:
            made.proxy = None
        elif "proxy-url" in self.cluster:  # older releases of the library do not read it
            made.proxy = self.cluster["proxy-url"]
        made.retries = 0  # we do that, and report it
        return made

    def _held(self, entry: Mapping[str, Any]) -> Object:
        """Return an entry with a path in memory instead of each content: the library would write it to a disk."""
        told = dict(entry)
        for name in (*_CLUSTERS_FILES, *_USERS_FILES):
            if f"{name}-data" in told:
                self._files.append(MemFile(base64.b64decode(told.pop(f"{name}-data"))))
                told[name] = self._files[-1].path
        return told


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Yield the errors that are logged during the block: the library logs those of exec plugins, and goes on."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)


def _one_context(name: str, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": dict(cluster)}],
        "users": [{"name": name, "user": dict(user)}],
    }


def of_mapping(
    told: Mapping[str, Any], context: str = "", *, direct: bool = False, folder: Path | None = None
) -> Credentials:
    """Return the credentials of a context, by default the current one. Raise LabError if the kubeconfig lacks them.

    Relative paths in it are below `folder`, which is that of its file.
    """
    name = context or str(told.get("current-context") or "")
    try:
        contexts = {one["name"]: one["context"] for one in told.get("contexts") or []}
        wanted = contexts.get(name)
        entries = None if wanted is None else _entries(told, wanted, folder)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise LabError(
            f"the context {name} of the kubeconfig is incomplete: {error}",
            hint="kubectl config view",
            id="kubeconfig.unusable",
        ) from error
    if entries is None:
        known = f"it has {', '.join(sorted(contexts))}" if contexts else "it has none"
        raise LabError(
            f"the kubeconfig has no context {name!r}: {known}",
            hint="kubectl config get-contexts",
            id="kubeconfig.unusable",
        )
    return Credentials(*entries, name, direct)


def _entries(
    told: Mapping[str, Any], context: Mapping[str, Any], folder: Path | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the entries of a context's cluster and user. Raise KeyError, TypeError, … for what is not there."""
    clusters = {one["name"]: one["cluster"] for one in told["clusters"]}
    cluster = clusters[context["cluster"]]
    user = next((one["user"] for one in told.get("users") or [] if one["name"] == context.get("user")), None)
    entries = _with_paths(cluster, _CLUSTERS_FILES, folder), _with_paths(user, _USERS_FILES, folder)
    _ = entries[0]["server"]
    for entry in entries:
        for key in (key for key in entry if key.endswith("-data")):
            base64.b64decode(entry[key], validate=True)
    return entries


def _with_paths(entry: Mapping[str, Any] | None, names: tuple[str, ...], folder: Path | None) -> Object:
    told = dict(entry or {})
    for name in names:
        if told.get(name) and folder is not None:
            told[name] = str(folder / told[name])
    plugin = told.get("exec")
    if folder is not None and plugin and "/" in plugin["command"]:  # a name without it is searched on PATH
        told["exec"] = {**plugin, "command": str(folder / plugin["command"])}
    return told


def of_file(path: Path, context: str = "") -> Credentials:
    """Return the credentials of a context of a file. Raise LabError for a file that is no kubeconfig."""
    try:
        told = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise LabError(
            f"{path} is no kubeconfig that can be read",
            hint="name another file by --kubeconfig",
            id="kubeconfig.unusable",
            stderr=str(error),
        ) from error
    return of_mapping(told, context, folder=path.absolute().parent)


def of_service_account(folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """Return the credentials that the kubelet gave to the pod that this process runs in. Raise LabError elsewhere."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port or not (folder / "token").is_file():
        raise LabError(
            "merlab does not run in a pod that has a service account",
            hint="kubectl config get-contexts",
            id="kubeconfig.unusable",
        )
    address = f"[{host}]" if ":" in host else host
    cluster = {"server": f"https://{address}:{port}", "certificate-authority": str(folder / "ca.crt")}
    return Credentials(cluster, {"tokenFile": str(folder / "token")}, service_account=folder)
