"""Send the walkthrough's request as the app would, and read what it left everywhere."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from merbridge_lab import accesslog
from merbridge_lab.adapters import cgroup, conntrack, nftables, system_tools
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.evidence import Unread, UnreadError
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.embedded import logs, tcp_bytes
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.adapters.tcp_bytes import Watch
    from merbridge_lab.labs.embedded.topology import PodSpec
    from merbridge_lab.labs.embedded.workload import EmbeddedWorkload
    from merbridge_lab.labs.request_batch import DataplaneEvidence, Log, TcpBytes
    from merbridge_lab.observation import Batch, Exchange, Observation

#: How many bytes before the new part identify a log.
_TAIL = 512


def ask(client: EmbeddedWorkload, url: str) -> Exchange:
    """Send one request as the app of `client`."""
    nonce = request_batch.new_nonce()
    # The machine's own curl, whatever /usr/local contains.
    curl, *words = request_batch.curl(nonce, url)
    try:
        with change("ask as an app"):  # in the app's cgroup, which the process enters
            done = run(
                client.app_argv([system_tools.find(curl) or curl, *words]),
                timeout=request_batch.REQUEST + 5,
                ok=range(256),
            )
    except LabError as error:
        # A process that joins a frozen cgroup freezes, too, and would never answer.
        if cgroup.is_frozen(client.pod.cgroup / "app"):
            raise ClaimFailedError(f"the app of {client.name} is frozen ({client.pod.cgroup / 'app'})") from error
        raise
    return by_name(request_batch.read(nonce, url, done.status, done.stdout, done.stderr), client.pod.spec)


def by_name(exchange: Exchange, spec: PodSpec) -> Exchange:
    """Mark a request as failed if it went to another address than the pod's /etc/hosts has for its name.

    A peer on the loopback is no failure: this is what the app sees if getpeername is not rewritten.
    """
    host = urlsplit(exchange.url).hostname or ""
    known = {service.vip for service in spec.services if host in service.names}
    address = exchange.remote.rpartition(":")[0]
    if not known or not address or address in known or exchange.peer_is_loopback:
        return exchange
    told = (
        f"it was sent to {address}, but {host} is {', '.join(sorted(known))}: its name was not resolved by /etc/hosts"
    )
    return replace(exchange, exit_status=request_batch.NOT_ONCE, error=told)


class _Log:
    """The lines that a sidecar appends to its access log from now on."""

    def __init__(self, name: str, path: Path) -> None:
        self._source = f"envoy:{name}/access"
        self._path = path
        self._before, self._inode, self._written, self._tail, self._new = 0, 0, 0, b"", b""
        with contextlib.suppress(OSError), logs.opened(path) as file:  # lines() will not find it either
            seen = os.fstat(file.fileno())
            self._before, self._inode, self._written = seen.st_size, seen.st_ino, seen.st_mtime_ns
            file.seek(max(0, self._before - _TAIL))
            self._tail = file.read(self._before - file.tell())

    def lines(self) -> tuple[AccessLogLine, ...] | Unread:
        """Return the lines; or Unread with what was done to the log, which may only be appended to."""
        try:
            with logs.opened(self._path) as file:
                return self._read(file)
        except OSError as error:
            return unread(self._source, error, f"{self._path}: {error.strerror}")

    def _read(self, file: BinaryIO) -> tuple[AccessLogLine, ...] | Unread:
        seen = os.fstat(file.fileno())
        if seen.st_ino != self._inode:
            return Unread(self._source, f"{self._path} was replaced by another file while it was read")
        file.seek(max(0, self._before - len(self._tail)))
        if file.read(len(self._tail)) != self._tail:
            return Unread(self._source, f"{self._path} was truncated or overwritten while it was read")
        # What is there now must be there at the next read, too.
        new = file.read()
        self._tail = (self._tail + new)[-_TAIL:]
        self._new += new
        self._before += len(new)
        if not self._new and seen.st_mtime_ns != self._written:
            return Unread(self._source, f"{self._path} was written and truncated again while it was read")
        space = os.fstatvfs(file.fileno())
        if space.f_blocks and not space.f_bavail:
            return Unread(self._source, f"the file system of {self._path} is full, so no line can be added")
        return accesslog.read(self._new.decode(errors="replace"), self._source)


@dataclass(frozen=True)
class _Source:
    """What this lab lends to one batch. `path` are the namespaces that its traffic passes; `sockets` are watched."""

    client: EmbeddedWorkload
    url: str
    client_log: Log
    server_logs: Mapping[str, Log]
    dataplane: DataplaneEvidence
    path: Sequence[Path]
    sockets: Mapping[str, Watch] | Unread

    def ask(self) -> Exchange:
        """Send one request as the app."""
        return ask(self.client, self.url)

    def changed_sources(self) -> Mapping[str, frozenset[str]]:
        """Return the source addresses that conntrack changed in these namespaces."""
        return conntrack.merge(map(conntrack.changed_sources, self.path))

    def tcp_bytes(self, batch: Batch) -> TcpBytes:
        """Return what the kernel's TCP carried; a control client without a sidecar has connections but no log."""
        mine = {} if isinstance(batch.client_log, Unread) else batch.client_log
        theirs = {} if isinstance(batch.server_log, Unread) else batch.server_log
        return tcp_bytes.read(self.sockets, batch.client, batch.exchanges, mine, theirs)


def observe(
    client: EmbeddedWorkload,
    servers: Sequence[EmbeddedWorkload],
    dataplane: DataplaneEvidence,
    *,
    url: str,
    count: int,
    between: Sequence[Path],
    logged: bool = True,
) -> Observation:
    """Send `count` requests, one after the other, and read all evidence around them; see request_batch.observe.

    `between` are the network namespaces, besides theirs, that their traffic passes.
    """
    client.pod.require_view()
    path = [client.pod.netns, *between, *(server.pod.netns for server in servers)]
    generations = _generations(path[1:])
    with tcp_bytes.watching({each.name: each.pod.netns for each in (client, *servers)}) as sockets:
        own = _Log(client.name, client.access_log)
        logs = {server.name: _Log(server.name, server.access_log) for server in servers}
        source = _Source(client, url, own, logs, dataplane, path, sockets)
        seen = request_batch.observe(source, count=count, logged=logged)
    # As before; otherwise something replaced curl while the requests were sent.
    client.pod.require_view()
    for name, number in _generations(path[1:]).items():
        if number != generations[name]:
            raise ClaimFailedError(f"the rules of {name} were changed while {client.name} sent its requests")
    return seen


def _generations(namespaces: Sequence[Path]) -> dict[str, int]:
    """Read the generation of nftables' rules in each, by name. Raises UnreadError."""
    try:
        return {where.name: nftables.generation(where) for where in namespaces}
    except OSError as error:
        raise UnreadError(unread("nft:generation", error)) from error
