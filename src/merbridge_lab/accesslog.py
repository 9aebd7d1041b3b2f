"""Istio's default access log format, read back.

A sidecar's own record of a request is what no application can forge. Format and field order: Istio's
"Envoy Access Logs" task, the default of `meshConfig.accessLogFormat` with the TEXT encoding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from merbridge_lab.text import lines_of

_LINE = re.compile(
    r"^\[(?P<time>[^\]]+)\] "
    r'"(?P<request>[^"]*)" (?P<code>\S+) (?P<flags>\S+) (?P<details>\S+) (?P<termination>\S+) '
    r'"(?P<tls_failure>[^"]*)" (?P<received>\S+) (?P<sent>\S+) (?P<duration>\S+) (?P<service_time>\S+) '
    r'"(?P<forwarded_for>[^"]*)" "(?P<agent>[^"]*)" "(?P<request_id>[^"]*)" "(?P<authority>[^"]*)" '
    r'"(?P<upstream_host>[^"]*)" (?P<upstream_cluster>\S+) (?P<upstream_local>\S+) '
    r"(?P<downstream_local>\S+) (?P<downstream_remote>\S+) (?P<sni>\S+) (?P<route>\S+)\s*$"
)


@dataclass(frozen=True)
class AccessLogLine:
    """One line of a sidecar's access log; addresses are "ip:port", "-" where there was none."""

    request_id: str
    code: str
    flags: str
    details: str
    tls_failure: str
    upstream_host: str
    upstream_cluster: str
    upstream_local: str
    downstream_local: str
    downstream_remote: str
    sni: str
    raw: str

    @property
    def outbound(self) -> bool:
        """Whether the client's sidecar wrote it, on the way out."""
        return self.upstream_cluster.startswith("outbound|")

    @property
    def inbound(self) -> bool:
        """Whether the server's sidecar wrote it, having delivered the request to its own app.

        Envoy's inbound clusters bind their source to 127.0.0.6; no other path does.
        """
        return self.upstream_cluster.startswith("inbound|") and self.upstream_local.startswith("127.0.0.6:")

    @property
    def broken_tls(self) -> bool:
        """Whether the connection to the other sidecar failed for a reason of TLS's."""
        return self.tls_failure not in ("", "-")

    @property
    def rejected_plain_text(self) -> bool:
        """Whether the listener closed a connection that matched no filter chain, as plain text under STRICT does."""
        return self.flags == "NR" and self.details == "filter_chain_not_found"


def parse(line: str) -> AccessLogLine | None:
    """Read one line; None for what is not in the format (a line cut by a full disk, another log's)."""
    found = _LINE.match(line)
    if found is None:
        return None
    names = (
        "request_id", "code", "flags", "details", "tls_failure", "upstream_host", "upstream_cluster", "upstream_local",
        "downstream_local", "downstream_remote", "sni",
    )  # fmt: skip
    return AccessLogLine(**{name: found[name] for name in names}, raw=line.rstrip("\n"))


def parse_all(text: str) -> tuple[AccessLogLine, ...]:
    """Read all lines of `text` that are complete and in the format."""
    return tuple(line for raw in lines_of(text) if (line := parse(raw)) is not None)
