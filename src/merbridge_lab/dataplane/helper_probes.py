"""Which helpers of the kernel each kind of program of the dataplane calls, and whether this kernel has them for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_program
from merbridge_lab.adapters.bpf_features import PROGRAMS
from merbridge_lab.adapters.bpf_program import Helper

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOKUP = Helper("map_lookup_elem", 1)
_UID, _SOCKET_COOKIE = Helper("get_current_uid_gid", 15), Helper("get_socket_cookie", 46)
_STORAGE, _READ = Helper("sk_storage_get", 107), Helper("probe_read_kernel", 113)
_NETNS_COOKIE = Helper("get_netns_cookie", 122)
_DELETE, _COARSE_TIME = Helper("map_delete_elem", 3), Helper("ktime_get_coarse_ns", 160)
#: What the trace takes.
_TRACE = (Helper("ktime_get_ns", 5), Helper("get_current_task", 35), _READ, Helper("ringbuf_output", 130))
_COMMON = (_LOOKUP, *_TRACE)
_CONNECT = (
    *_COMMON,
    _UID,
    _SOCKET_COOKIE,
    Helper("bind", 64),
    _STORAGE,
    _NETNS_COOKIE,
)

#: By the name of a kind of program (adapters/bpf_features.py), every helper that the dataplane calls in it.
CALLED: Mapping[str, tuple[Helper, ...]] = {
    "bpf.connect4": _CONNECT,
    "bpf.connect6": _CONNECT,
    "bpf.getpeername4": (_STORAGE,),
    "bpf.getsockopt": (*_COMMON, _UID, _STORAGE, _NETNS_COOKIE),
    "bpf.sock_ops": (
        *_COMMON,
        Helper("map_update_elem", 2),
        _DELETE,
        _SOCKET_COOKIE,
        Helper("setsockopt", 49),
        Helper("sock_ops_cb_flags_set", 59),
        Helper("sock_hash_update", 70),
        _STORAGE,
        _NETNS_COOKIE,
        _COARSE_TIME,
    ),
    "bpf.sk_msg": (*_COMMON, Helper("msg_redirect_hash", 71), _STORAGE, _NETNS_COOKIE, _COARSE_TIME),
    "bpf.sk_lookup": (*_COMMON, Helper("sk_release", 86), Helper("sk_assign", 124)),
    "bpf.raw_tracepoint": (_LOOKUP, _DELETE, _READ),
}


def missing_helpers() -> list[str]:
    """Return the calls that this kernel does not allow, as "kind of program: helper". Raises OSError."""
    return [
        f"{name.removeprefix('bpf.')}: bpf_{helper.name}"
        for name, helpers in CALLED.items()
        for helper in helpers
        if not bpf_program.knows_helper(PROGRAMS[name].kind, PROGRAMS[name].attach, helper.number)
    ]
