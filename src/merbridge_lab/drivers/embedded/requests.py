"""Send the walkthrough's request as the app would, and read what it left everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import accesslog
from merbridge_lab.adapters import conntrack
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.proc import run
from merbridge_lab.drivers import batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.dataplane.events import TraceEvent
    from merbridge_lab.drivers.embedded.workload import EmbeddedWorkload
    from merbridge_lab.observation import Exchange, Observation


def ask(client: EmbeddedWorkload, url: str) -> Exchange:
    """Ask once, as the app of `client`."""
    nonce = batch.new_nonce()
    with change("ask as an app"):  # in the app's cgroup, which the process enters
        done = run(client.app_argv(batch.curl(nonce, url)), timeout=batch.REQUEST + 5, ok=range(256))
    return batch.read(nonce, url, done.status, done.stdout, done.stderr)


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
    between: Sequence[Path],
    counters: Callable[[], Mapping[str, Mapping[str, int]]],
    trace: Callable[[], tuple[TraceEvent, ...]] | None = None,
    logged: bool = True,
) -> Observation:
    """Send `count` requests, one after the other, and read everything around them; see batch.observe.

    `between` are the network namespaces, besides theirs, that what they say to each other passes.
    """
    path = [client.pod.netns, *between, *(server.pod.netns for server in servers)]
    return batch.observe(
        client,
        ask=lambda: ask(client, url),
        own=_Log(client.access_log),
        logs={server.name: _Log(server.access_log) for server in servers},
        count=count,
        counters=counters,
        changed_sources=lambda: conntrack.together(map(conntrack.changed_sources, path)),
        trace=trace,
        logged=logged,
    )
