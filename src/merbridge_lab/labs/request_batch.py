"""A batch of requests, whichever lab sends it: the requests, their results, and what they left in rules and logs."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Protocol, TypeVar

from merbridge_lab.evidence import Unread
from merbridge_lab.observation import Batch, Exchange, Observation, arrivals
from merbridge_lab.polling import limit, poll_until
from merbridge_lab.shortage import taken
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.interception import Interception
    from merbridge_lab.lab import Workload
    from merbridge_lab.trace_event import TraceEvent

    #: A log line with the name of the server that wrote it.
    Entry = tuple[str, AccessLogLine]
    #: Nonce → leg → the bytes that the dialling and the accepting end gave to TCP.
    TcpBytes = Mapping[str, Mapping[str, tuple[int, int]]]

T = TypeVar("T")

#: Maximum duration of a request, in seconds; a healthy one takes a few milliseconds.
REQUEST = 5
#: Replaces curl's exit status if curl did something else than requested, or does not report it. curl has no such
#: number.
NOT_ONCE = 255
#: What curl reports about a request that was sent once on one new connection, and the first libcurl that reports it. If
#: a curl of that version or a later one does not report a value, the value was not read.
_ONCE = {
    "num_connects": (1, (7, 70)),
    "num_redirects": (0, (7, 70)),
    "proxy_used": (0, (8, 7)),
    "num_retries": (0, (8, 9)),
}
#: How long a sidecar may take to write a request into its log, in seconds (Istio flushes once a second).
_LOGGED = 3.0


class Log(Protocol):
    """What a sidecar has written into its access log since this object was created."""

    def lines(self) -> tuple[AccessLogLine, ...] | Unread:
        """Return the lines written until now; or Unread with the reason if they could not be read."""


class DataplaneEvidence(Protocol):
    """What a dataplane shows of one batch."""

    def begin(self) -> None:
        """Take the readings from before the first request."""

    def trace(self) -> tuple[TraceEvent, ...] | Unread:
        """Return the events of the dataplane's trace since `begin`; nothing if no trace is wanted, or there is none."""

    def interception(self, batch: Batch) -> Interception:
        """Take the readings from after the last request, and return the record of what the dataplane did."""


class BatchSource(Protocol):
    """What a lab lends to one batch: it sends the requests of `client`, and reads what they left.

    `client_log` is the log of the client's sidecar, `server_logs` are those of the servers by name. `dataplane` shows
    what intercepted.
    """

    @property
    def client(self) -> Workload:
        """The workload whose app asks."""

    @property
    def client_log(self) -> Log:
        """The log of its sidecar."""

    @property
    def server_logs(self) -> Mapping[str, Log]:
        """The logs of the servers' sidecars, by name."""

    @property
    def dataplane(self) -> DataplaneEvidence:
        """What shows what intercepted."""

    def ask(self) -> Exchange:
        """Send one request. Raises LabError."""

    def changed_sources(self) -> Mapping[str, frozenset[str]]:
        """Return the source addresses that conntrack changed on the way of the requests. Raises LabError."""

    def tcp_bytes(self, batch: Batch) -> TcpBytes | None:
        """Return what the kernel's TCP carried of a batch; None if this lab cannot read it. Raises UnreadError."""


def new_nonce() -> str:
    """Return a unique x-request-id."""
    return str(uuid.uuid4())


def curl(nonce: str, url: str) -> list[str]:
    """Return the curl command that requests `url` once, on a fresh connection, and reports everything about it.

    It ignores ~/.curlrc and proxies: otherwise a request that was closed might be sent again and be answered.
    """
    tell = "\\n%{json}"
    once = ["-q", "-sS", "-i", "--noproxy", "*", "--retry", "0", "--max-redirs", "0"]
    once += ["--max-time", f"{limit(REQUEST):g}"]
    return ["curl", *once, "-H", f"x-request-id: {nonce}", "-w", tell, url]


def read(nonce: str, url: str, exit_status: int, stdout: str, stderr: str) -> Exchange:
    """Build an exchange from the output of such a curl."""
    response, _, told = stdout.rpartition("\n")
    try:
        facts = dict(json.loads(told))
    except (ValueError, TypeError):
        facts, response = {}, stdout
    head, _, body = response.replace("\r\n", "\n").partition("\n\n")
    if (more := _not_once(facts)) and not exit_status:
        # Any answer was not (seen to be) the answer to the one request that is judged.
        exit_status, stderr = NOT_ONCE, more
    headers = dict(line.lower().split(": ", 1) for line in lines_of(head)[1:] if ": " in line)
    return Exchange(
        nonce=nonce,
        url=url,
        exit_status=exit_status,
        status=facts.get("http_code") or None,
        body=body,
        headers=headers,
        local=f"{facts.get('local_ip', '')}:{facts.get('local_port', 0)}",
        seconds=float(facts.get("time_total") or 0.0),
        error=stderr.strip(),
        remote=f"{facts.get('remote_ip', '')}:{facts.get('remote_port', 0)}",
    )


def _or_none(log: Mapping[str, T] | Unread) -> Mapping[str, T]:
    """Return the records; none if there is no log: a control client without a sidecar has connections all the same."""
    return {} if isinstance(log, Unread) else log


def _not_once(facts: Mapping[str, object]) -> str:
    """Describe what curl did, or left unreported, other than one request on one new connection; "" if nothing."""
    known = re.match(r"libcurl/(\d+)\.(\d+)", str(facts.get("curl_version", "")))
    version = (int(known[1]), int(known[2])) if known else None
    # curl always reports its version. One that does not is treated as the newest, which reports everything.
    told = {name: wanted for name, (wanted, since) in _ONCE.items() if version is None or version >= since}
    if silent := [name for name in told if not isinstance(facts.get(name), int)]:
        missing = ", ".join(silent)
        return f"curl does not report whether it sent one request over one connection: its output has no {missing}"
    found = [f"{name} is {facts[name]}" for name, (wanted, _) in _ONCE.items() if facts.get(name, wanted) != wanted]
    return f"curl did not send exactly one request over one connection: {', '.join(found)}" if found else ""


class _Records:
    """What the sidecars wrote about a batch. `changed` is what conntrack answered, None if it was not asked."""

    def __init__(self, exchanges: Sequence[Exchange], source: BatchSource) -> None:
        self._source = source
        self._local = {exchange.nonce: exchange.local for exchange in exchanges}
        self._answered = {exchange.nonce for exchange in exchanges if exchange.status is not None}
        self._closed = {exchange.local for exchange in exchanges if exchange.closed}
        self.changed: Mapping[str, frozenset[str]] | Unread | None = None

    def _same(self, sent: str, arrived: str) -> bool:
        if sent != arrived and self.changed is None:
            self.changed = taken("conntrack", self._source.changed_sources)
        return arrived in self._arrivals(sent)

    def _arrivals(self, sent: str) -> frozenset[str]:
        changed = self.changed
        return arrivals(sent, {} if changed is None or isinstance(changed, Unread) else changed)

    def _refused(self, line: AccessLogLine) -> bool:
        return line.rejected_plain_text and any(self._same(sent, line.downstream_remote) for sent in self._closed)

    def read_client(self) -> dict[str, AccessLogLine] | Unread:
        """Return the client's lines written until now, by nonce."""
        lines = self._source.client_log.lines()
        if isinstance(lines, Unread):
            return lines
        return {line.request_id: line for line in lines if line.request_id in self._local and line.outbound}

    def read_servers(
        self, mine: Mapping[str, AccessLogLine]
    ) -> tuple[dict[str, Entry] | Unread, tuple[Entry, ...] | Unread]:
        """Return the servers' lines by nonce, and the refusals of plain text; every server's log must be readable."""
        theirs: dict[str, Entry] = {}
        refused = []
        for name, log in self._source.server_logs.items():
            lines = log.lines()
            if isinstance(lines, Unread):
                return lines, lines
            for line in lines:
                if line.request_id in self._local and not line.outbound:
                    # Of several attempts, the one that the client's sidecar records: its last.
                    last = mine.get(line.request_id)
                    is_last = last and self._same(last.upstream_local, line.downstream_remote)
                    if is_last or line.request_id not in theirs:
                        theirs[line.request_id] = (name, line)
                elif self._refused(line):
                    refused.append((name, line))
        return theirs, tuple(refused)

    def complete(self) -> bool:
        """Report whether each answer is in both logs, and each closed connection is in a server's log."""
        mine: Mapping[str, AccessLogLine] | Unread = self.read_client()
        if not self._answered:  # nothing to find: a control client without a sidecar has no log
            mine = _or_none(mine)
        theirs, refused = self.read_servers({} if isinstance(mine, Unread) else mine)
        if isinstance(mine, Unread) or isinstance(theirs, Unread) or isinstance(refused, Unread):
            return False
        told = {
            nonce
            for nonce in mine.keys() & theirs.keys()
            if self._same(self._local[nonce], mine[nonce].downstream_remote)
            and self._same(mine[nonce].upstream_local, theirs[nonce][1].downstream_remote)
        }
        sources = {line.downstream_remote for _, line in refused}
        return self._answered <= told and all(self._arrivals(sent) & sources for sent in self._closed)


def observe(source: BatchSource, *, count: int, logged: bool = True) -> Observation:
    """Send `count` requests, one after the other, and read all evidence around them.

    The rules are read before the first request and after the last. The logs are awaited by nonce, with a deadline,
    unless `logged` is false. Conntrack is asked at most once, and only if two records do not name the same port.
    """
    rules = source.client.rules
    source.dataplane.begin()
    before = rules.snapshot()
    exchanges = tuple(source.ask() for _ in range(count))
    after = rules.snapshot()
    records = _Records(exchanges, source)
    # A missed deadline is no error here: the checks see that a line is missing, and name it.
    if logged:
        poll_until(records.complete, timeout=_LOGGED, awaiting="the sidecars to write their access logs")
    client_log = records.read_client()
    server_log, rejected = records.read_servers({} if isinstance(client_log, Unread) else client_log)
    batch = Batch(
        client=source.client.name,
        exchanges=exchanges,
        client_log=client_log,
        server_log=server_log,
        trace=source.dataplane.trace(),
    )
    return Observation(
        **vars(batch),
        rejected=rejected,
        before=before,
        after=after,
        interception=source.dataplane.interception(batch),
        changed_sources=records.changed or {},
        by_tcp=taken("sock_diag", lambda: source.tcp_bytes(batch)),
    )
