"""The pod sandboxes of a node, from its container runtime's socket (CRI).

The runtime is asked and never told anything: of its methods, only Version, ListPodSandbox and PodSandboxStatus are
called.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self

#: How long an answer may take, in seconds.
_ANSWER = 2.0
#: A node with five hundred pods answers with less than one MB.
_LARGEST = 64 << 20
#: struct ucred
_CREDENTIALS = struct.Struct("=iII")


@dataclass(frozen=True)
class Sandbox:
    """A pod's sandbox, as the runtime describes it.

    `uid` is the pod's; a pod that gets a new sandbox has another `id`. `pid` is the first process in the sandbox, 0 if
    the runtime does not report it. `cgroup_parent` is the pod's cgroup, as the kubelet named it to the runtime.
    """

    id: str
    uid: str
    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    handler: str = ""
    runtime_type: str = ""
    is_on_host_network: bool = False
    pid: int = 0
    cgroup_parent: str = ""


class Runtime:
    """A connection to the runtime's socket; it reconnects by itself."""

    def __init__(self, place: Path) -> None:
        self._socket = place
        try:
            import grpc

            from merbridge_lab.adapters import cri_messages
        except ImportError as missing:
            raise LabError(
                f"merlab agent needs Python packages that are not installed: {missing}",
                hint="pip install '.[agent]'  # in merlab's checkout",
                id="installation.broken",
            ) from missing
        self._errors: type[Exception] = grpc.RpcError
        self._messages = cri_messages
        options = [
            ("grpc.max_receive_message_length", _LARGEST),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(f"unix://{place.absolute()}", options=options)
        classes = cri_messages.classes()
        self._methods = {
            name: self._channel.unary_unary(
                cri_messages.SERVICE + name,
                request_serializer=classes[asked].SerializeToString,
                response_deserializer=classes[told].FromString,
            )
            for name, (asked, told) in cri_messages.METHODS.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def _call(self, method: str, **fields: object) -> Any:  # noqa: ANN401 - messages are made at run time
        request = self._messages.classes()[self._messages.METHODS[method][0]](**fields)
        try:
            return self._methods[method](request, timeout=_ANSWER)
        except self._errors as error:
            code, details = (getattr(error, name, lambda: "")() for name in ("code", "details"))
            if getattr(code, "name", "") == "NOT_FOUND":
                raise KeyError(details) from error
            raise LabError(
                f"the container runtime does not answer at {self._socket}: {details or error}",
                hint=f"ls -l {self._socket}",
                id="reading.failed",
            ) from error

    def version(self) -> str:
        """Return the name and version of the runtime. Raises LabError."""
        told = self._call("Version")
        return f"{told.runtime_name} {told.runtime_version}"

    def pid(self) -> int:
        """Return the process that listens on the socket, as this process sees it. Raises OSError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER)
            connection.connect(str(self._socket))
            pid, _uid, _gid = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        return int(pid)

    def running(self) -> dict[str, str]:
        """Return the sandboxes that run: the id of each, and the uid of its pod. Raises LabError."""
        told = self._call("ListPodSandbox", filter={"state": {"state": self._messages.READY}})
        return {each.id: each.metadata.uid for each in told.items if each.state == self._messages.READY}

    def sandbox(self, identity: str) -> Sandbox | None:
        """Return a sandbox; None if it is gone, or does not run. Raises LabError."""
        try:
            told = self._call("PodSandboxStatus", pod_sandbox_id=identity, verbose=True)
        except KeyError:
            return None
        status = told.status
        if status.state != self._messages.READY:
            return None
        about: Mapping[str, Any] = {}
        with contextlib.suppress(ValueError):
            about = json.loads(told.info.get("info", "{}"))
        # What containerd calls "config" is the kubelet's request; CRI-O has only what it made of it.
        parent = _in(about, "config", "linux", "cgroup_parent")
        told_ips = (status.network.ip, *(each.ip for each in status.network.additional_ips))
        return Sandbox(
            id=status.id,
            uid=status.metadata.uid,
            namespace=status.metadata.namespace,
            name=status.metadata.name,
            addresses=tuple(filter(None, told_ips)),
            labels=dict(status.labels),
            annotations=dict(status.annotations),
            handler=status.runtime_handler or str(about.get("runtimeHandler") or ""),
            runtime_type=str(about.get("runtimeType") or ""),
            is_on_host_network=status.linux.namespaces.options.network == self._messages.NODE,
            pid=int(about.get("pid") or 0),
            cgroup_parent=str(parent or ""),
        )


def _in(about: Mapping[str, Any], *path: str) -> object:
    found: object = about
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
