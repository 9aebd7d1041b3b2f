"""Send the walkthrough's request as the app would, and read what it left everywhere."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from merbridge_lab import accesslog
from merbridge_lab.adapters.proc import run
from merbridge_lab.observation import Exchange, Observation
from merbridge_lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.dataplane.events import TraceEvent
    from merbridge_lab.drivers.embedded.workload import EmbeddedWorkload

    #: A line with the name of the server that wrote it.
    _Entry = tuple[str, AccessLogLine]

#: Longest a request may take, in seconds; a healthy one takes a few milliseconds.
_REQUEST = 5
#: How long a sidecar may take to write a request into its log, in seconds (it flushes ten times a second).
_LOGGED = 3.0


def curl(nonce: str, url: str) -> list[str]:
    """Give the curl that asks `url` once, on a fresh connection, and tells all about it."""
    tell = "\\n%{json}"
    return ["curl", "-sS", "-i", "--max-time", str(_REQUEST), "-H", f"x-request-id: {nonce}", "-w", tell, url]


def ask(client: EmbeddedWorkload, url: str) -> Exchange:
    """Ask once, as the app of `client`."""
    nonce = str(uuid.uuid4())
    done = run(client.app_argv(curl(nonce, url)), timeout=_REQUEST + 5, ok=range(256))
    response, _, told = done.stdout.rpartition("\n")
    try:
        facts = json.loads(told)
    except ValueError:
        facts, response = {}, done.stdout
    head, _, body = response.replace("\r\n", "\n").partition("\n\n")
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
    return Exchange(
        nonce=nonce,
        url=url,
        exit_status=done.status,
        status=facts.get("http_code") or None,
        body=body,
        headers=headers,
        local=f"{facts.get('local_ip', '')}:{facts.get('local_port', 0)}",
        seconds=float(facts.get("time_total") or 0.0),
        error=done.stderr.strip(),
        remote=f"{facts.get('remote_ip', '')}:{facts.get('remote_port', 0)}",
    )


class _Log:
    """What a sidecar appends to its access log from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def lines(self) -> tuple[AccessLogLine, ...]:
        if not self._path.exists():
            return ()
        with self._path.open("rb") as file:
            file.seek(self._start)
            return accesslog.parse_all(file.read().decode(errors="replace"))


def observe(
    client: EmbeddedWorkload,
    servers: Sequence[EmbeddedWorkload],
    *,
    url: str,
    count: int,
    counters: Callable[[], Mapping[str, Mapping[str, int]]],
    trace: Callable[[], tuple[TraceEvent, ...]] | None = None,
    logged: bool = True,
) -> Observation:
    """Send `count` requests, one after the other, and read everything around them.

    The rules are read before the first request and after the last; the logs are awaited to a deadline, by nonce,
    unless `logged` is off.
    """
    own = _Log(client.access_log)
    logs = {server.name: _Log(server.access_log) for server in servers}
    if trace is not None:
        trace()
    counted = counters()
    before = client.rules.snapshot()
    exchanges = tuple(ask(client, url) for _ in range(count))
    after = client.rules.snapshot()
    answered = {exchange.nonce for exchange in exchanges if exchange.status is not None}
    closed = {exchange.local for exchange in exchanges if exchange.closed}

    def found() -> tuple[dict[str, AccessLogLine], dict[str, _Entry], list[_Entry]]:
        nonces = {exchange.nonce for exchange in exchanges}
        mine = {line.request_id: line for line in own.lines() if line.outbound and line.request_id in nonces}
        theirs: dict[str, _Entry] = {}
        refused = []
        for name, log in logs.items():
            for line in log.lines():
                if line.request_id in nonces and not line.outbound:
                    # Of several attempts, the one that the client's sidecar tells of: its last.
                    last = mine.get(line.request_id)
                    if line.request_id not in theirs or (last and last.upstream_local == line.downstream_remote):
                        theirs[line.request_id] = (name, line)
                elif line.rejected_plain_text and line.downstream_remote in closed:
                    refused.append((name, line))
        return mine, theirs, refused

    def all_logged() -> bool:
        mine, theirs, refused = found()
        told = {
            nonce
            for nonce in mine.keys() & theirs.keys()
            if theirs[nonce][1].downstream_remote == mine[nonce].upstream_local
        }
        return answered <= told and closed <= {line.downstream_remote for _, line in refused}

    # A deadline that passes is no error here: the checks see that a line is missing, and say which.
    if logged:
        until(all_logged, timeout=_LOGGED, awaiting="the sidecars to write their access logs")
    client_log, server_log, rejected = found()
    return Observation(
        client=client.name,
        exchanges=exchanges,
        client_log=client_log,
        server_log=server_log,
        rejected=tuple(rejected),
        before=before,
        after=after,
        counters_before=counted,
        counters_after=counters(),
        trace=trace() if trace is not None else (),
    )
