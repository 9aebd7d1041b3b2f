"""Upstream's lines in the kernel's trace, decoded: the formats of its releases 0.4 to 0.8.1 and of its main branch.

The formats are facts about upstream's output (bpf/mb_*.c of each release, github.com/merbridge/merbridge).
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass

from merbridge_lab.merbridge import printk
from merbridge_lab.trace_event import TraceEvent

_SAID = re.compile(r"(?P<debug>\[debug\] )?(?P<said>.*)$")
# The first releases print an address as a number in network order, later ones in the usual notation.
_IP = r"(?P<ip>[0-9a-fA-F.:]*[0-9a-fA-F]|0x[0-9a-fA-F]+)"
# The cookie has 64 bits and is printed as %d: the printed value may be truncated, and negative.
_COOKIE = r"(?:cookie: (?P<cookie>-?\d+), )?"
_ENDS = rf", src: (?P<source>\S+), dst: {_IP}(?::(?P<port>\d+))?"
_PLACE = rf"addr: {_IP}:(?P<port>\d+)"

# These appear without the mark of debug mode, and so must not be taken for other programs' output.
_FAILURES = (
    r"(?:write cookie_original_dst|update cookie origin|update origin cookie) failed.*"
    r"|failed (?:to )?get origin|not from pod|request origin not found .*|resp origin (?:flags \S+ error|not found)"
    r"|optname: \d+: invalid getsockopt optval|bind \S+ error|get ip for mark \S+ error"
    r"|cg_info can not be NULL|update cgroup_info_map of .* error"
    r"|read level ?\S* (?:of pid )?error|error (?:out perf event|delete hostpid).*"
)
_FORMATS: tuple[tuple[str, str], ...] = (
    ("connect", rf"call from user container: {_COOKIE}ip: {_IP}, port: (?P<port>\d+)"),
    ("sidecar_connect", rf"call from sidecar container: {_COOKIE}ip: {_IP}, port: (?P<port>\d+)"),
    ("elsewhere", rf"dest ip: {_IP} not in this node, bypass"),
    ("no_pod_ip", r"get current pod ip error"),
    ("to_sidecar", r"enovy to other, rewrite dst port from -?\d+ to (?P<port>\d+)"),
    ("policy", r"(?:ignored dest|dest (?:port )?\S+ not in pod|exclude ipranges).*"),
    ("not_in_mesh", r"can not get port listen for cgroup\(-?\d+\)"),
    ("original_dst", rf"origin dst: {_PLACE}"),
    ("asks", rf"optname: \d+, (?P<reason>dst|source): {_PLACE}"),
    ("no_original_dst", r"can not get original dst.*"),
    (
        "redirect",
        rf"redirect (?P<size>\d+) bytes with eBPF successfully(?:{_ENDS})?",
    ),
    ("detected", r"detected process (?P<process>\d+)'s ip is (?P<ip>-?[0-9a-fA-F.:]+)"),
    ("reconnect", r"incorrect connection: cookie=-?\d+"),
    ("dns", r"successfully deal DNS redirect query"),
    ("tc", r"tc (?:ingress|egress): .*"),
    ("bind", r"change bind address from \S+ to \S+"),
    ("failure", _FAILURES),
)
_KNOWN = tuple((kind, re.compile(rf"(?:{text})\s*$")) for kind, text in _FORMATS)

_SENTENCES = {
    "connect": "connect() by {comm} ({pid}) to {at} intercepted: it goes to its sidecar",
    "sidecar_connect": "the sidecar ({comm} {pid}) dials {at}, a mesh pod of this node",
    "elsewhere": "the sidecar ({comm} {pid}) dials {ip}, which is not in local_pod_ips: left alone",
    "no_pod_ip": "the address of the pod is not known: normal outside CNI mode",
    "to_sidecar": "sidecar to sidecar: the port becomes {port}",
    "policy": "left alone by the pod's annotations: {said}",
    "not_in_mesh": "{comm} ({pid}) dialled before its sidecar listened: permanently marked 'not in mesh'",
    "original_dst": "{comm} ({pid}) asked for the original destination: {at}",
    "asks": "{comm} ({pid}) asks for an original destination; {reason} of its connection: {at}",
    "no_original_dst": "{comm} ({pid}) asked for an original destination, and none was kept",
    "redirect": "{size} bytes sent by {comm} ({pid}) moved from socket to socket",
    "detected": "the sidecar's address is {ip}, learned from its first connection",
    "reconnect": "the sidecar dialled itself while its address was not known: refused, it tries once more",
    "dns": "a DNS query went to the sidecar",
    "tc": "in CNI mode, at the pod's interface: {said}",
    "bind": "a listener was moved from the loopback to all addresses",
    "other": "upstream says: {said}",
    "failure": "upstream says that something failed: {said}",
}


@dataclass(frozen=True)
class MerbridgeEvent(TraceEvent):
    """A line of upstream's. `said` is its text; `pair` is 0, because upstream names no connection."""

    said: str = ""

    def sentence(self) -> str:
        """Describe the event in plain English."""
        at = f"{self.ip}:{self.port}"
        facts = {"comm": self.comm, "pid": self.pid, "ip": self.ip, "port": self.port, "size": self.size, "at": at}
        return _SENTENCES[self.kind].format(**facts, reason=self.reason, said=self.said)


def parse(line: str) -> MerbridgeEvent | None:
    """Decode a raw line of trace_pipe; None for lines of others."""
    told_line = printk.split(line)
    found = _SAID.match(told_line.said) if told_line else None
    if told_line is None or found is None:
        return None
    said = found["said"].strip()
    kind, values = _told(said) or ("other", {})
    if kind == "other" and not found["debug"]:
        return None
    return MerbridgeEvent(
        seconds=told_line.seconds,
        comm=told_line.comm,
        pid=told_line.pid,
        kind=kind,
        raw=line.rstrip("\n"),
        ip=dotted(values.get("ip", "")),
        port=int(values.get("port", 0)),
        source=values.get("source", ""),
        size=int(values.get("size", 0)),
        reason=values.get("reason", ""),
        said=said,
    )


def _told(said: str) -> tuple[str, dict[str, str]] | None:
    for kind, pattern in _KNOWN:
        if (told := pattern.match(said)) is not None:
            return kind, {name: value for name, value in told.groupdict().items() if value is not None}
    return None


def dotted(ip: str) -> str:
    """Return an address in the usual notation: a number, in any base, is an IPv4 address in network order."""
    if ip.startswith("0x"):
        return socket.inet_ntoa(struct.pack("=I", int(ip, 16)))
    return socket.inet_ntoa(struct.pack("=i", int(ip))) if ip.lstrip("-").isdigit() else ip
