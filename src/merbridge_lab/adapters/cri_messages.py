"""The messages of the container runtime's interface (CRI, package runtime.v1) that merlab exchanges.

Only the fields that merlab reads are described, by number and type: a receiver skips those that it does not know.
Enumerations are read as numbers. tests/unit/test_cri_runtime.py serves the same messages.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "runtime.v1"
SERVICE = f"/{PACKAGE}.RuntimeService/"
#: The methods, each with the messages of its request and its answer.
METHODS = {
    "Version": ("VersionRequest", "VersionResponse"),
    "ListPodSandbox": ("ListPodSandboxRequest", "ListPodSandboxResponse"),
    "PodSandboxStatus": ("PodSandboxStatusRequest", "PodSandboxStatusResponse"),
}
#: PodSandboxState and NamespaceMode.
READY, NODE = 0, 2

_MAP = "map"
#: Each message: the name of a field, its number, its type, and whether it is repeated.
_MESSAGES: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "VersionRequest": (("version", 1, "string", False),),
    "VersionResponse": (("runtime_name", 2, "string", False), ("runtime_version", 3, "string", False)),
    "PodSandboxMetadata": (
        ("name", 1, "string", False),
        ("uid", 2, "string", False),
        ("namespace", 3, "string", False),
        ("attempt", 4, "uint32", False),
    ),
    "PodSandbox": (
        ("id", 1, "string", False),
        ("metadata", 2, "PodSandboxMetadata", False),
        ("state", 3, "int32", False),
    ),
    "PodSandboxStateValue": (("state", 1, "int32", False),),
    "PodSandboxFilter": (("state", 2, "PodSandboxStateValue", False),),
    "ListPodSandboxRequest": (("filter", 1, "PodSandboxFilter", False),),
    "ListPodSandboxResponse": (("items", 1, "PodSandbox", True),),
    "PodSandboxStatusRequest": (("pod_sandbox_id", 1, "string", False), ("verbose", 2, "bool", False)),
    "PodIP": (("ip", 1, "string", False),),
    "PodSandboxNetworkStatus": (("ip", 1, "string", False), ("additional_ips", 2, "PodIP", True)),
    "NamespaceOption": (("network", 1, "int32", False),),
    "Namespace": (("options", 2, "NamespaceOption", False),),
    "LinuxPodSandboxStatus": (("namespaces", 1, "Namespace", False),),
    "PodSandboxStatus": (
        ("id", 1, "string", False),
        ("metadata", 2, "PodSandboxMetadata", False),
        ("state", 3, "int32", False),
        ("network", 5, "PodSandboxNetworkStatus", False),
        ("linux", 6, "LinuxPodSandboxStatus", False),
        ("labels", 7, _MAP, True),
        ("annotations", 8, _MAP, True),
        ("runtime_handler", 9, "string", False),
    ),
    "PodSandboxStatusResponse": (("status", 1, "PodSandboxStatus", False), ("info", 2, _MAP, True)),
}
_TYPES = {"string": 9, "bool": 8, "int32": 5, "uint32": 13}
_MESSAGE, _ONE, _MANY = 11, 1, 3


def _field(message: Any, name: str, number: int, kind: str, *, many: bool) -> None:  # noqa: ANN401 - made at run time
    field = message.field.add(name=name, number=number, label=_MANY if many else _ONE)
    if kind == _MAP:
        entry = message.nested_type.add(name="".join(map(str.title, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        for at, part in enumerate(("key", "value"), 1):
            _field(entry, part, at, "string", many=False)
        field.type, field.type_name = _MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type, field.type_name = _MESSAGE, f".{PACKAGE}.{kind}"


@functools.cache
def classes() -> dict[str, Any]:
    """Return the class of each message, by its name."""
    file = descriptor_pb2.FileDescriptorProto(name="merlab/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, many in fields:
            _field(message, field, number, kind, many=many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }
