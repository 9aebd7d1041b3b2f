"""Istio's default access log format, read back.

A sidecar's own record of a request is what no application can forge. Format and field order: Istio's
"Envoy Access Logs" task, the default of `meshConfig.accessLogFormat` with the TEXT encoding. With the JSON encoding
the same fields have names: those of EnvoyJSONLogFormatIstio in pilot/pkg/model/telemetry_logging.go.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from merbridge_lab.evidence import Unread
from merbridge_lab.istio_facts import INBOUND_SOURCE
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
        """Report whether the client's sidecar wrote it, on the way out."""
        return self.upstream_cluster.startswith("outbound|")

    @property
    def inbound(self) -> bool:
        """Report whether the server's sidecar wrote it, after it delivered the request to its own app.

        Envoy's inbound clusters bind their source to 127.0.0.6. No other path does.
        """
        return self.upstream_cluster.startswith("inbound|") and self.upstream_local.startswith(f"{INBOUND_SOURCE}:")

    @property
    def broken_tls(self) -> bool:
        """Report whether the connection to the other sidecar failed because of TLS."""
        return self.tls_failure not in ("", "-")

    @property
    def rejected_plain_text(self) -> bool:
        """Report whether the listener closed a connection that matched no filter chain (plain text under STRICT)."""
        return self.flags == "NR" and self.details == "filter_chain_not_found"


_NAMES = {
    "request_id": "request_id",
    "code": "response_code",
    "flags": "response_flags",
    "details": "response_code_details",
    "tls_failure": "upstream_transport_failure_reason",
    "upstream_host": "upstream_host",
    "upstream_cluster": "upstream_cluster",
    "upstream_local": "upstream_local_address",
    "downstream_local": "downstream_local_address",
    "downstream_remote": "downstream_remote_address",
    "sni": "requested_server_name",
}
#: Without these, a record proves nothing. Without the last two, which tell TLS from plain text, a server's record
#: proves nothing.
_NEEDED = frozenset({"request_id", "code", "flags", "upstream_cluster", "upstream_local", "downstream_remote"})
_NEEDED_OF_SERVER = frozenset({"details", "sni"})
#: Lines that Envoy and Istio's agent log themselves to the same stream: they begin with a time and a level.
_SAID = re.compile(
    r"^(?:\[[^\]]+\]\[\d+\]\[\w+\]|\S+T\S+Z?\s+(?:trace|debug|info|warn|warning|error|critical|fatal)\b"
    r'|\{(?=.*"level":)(?=.*"(?:msg|message)":))'
)
#: Maximum length of the excerpt of a line in an unknown format, in characters.
_SHOWN = 120


def parse(line: str) -> AccessLogLine | None:
    """Parse one line. Return None if it is not in the format (a line cut by a full disk, a line of another log)."""
    if line.startswith("{"):
        return _parse_json(line)
    found = _LINE.match(line)
    if found is None:
        return None
    return AccessLogLine(**{name: found[name] for name in _NAMES}, raw=line.rstrip("\n"))


def _parse_json(line: str) -> AccessLogLine | None:
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    # A value that does not exist is null, or "-" in older versions of Envoy. A field that the format lacks is absent.
    fields = {name: told[key] for name, key in _NAMES.items() if key in told}
    by_client = str(fields.get("upstream_cluster") or "").startswith("outbound|")
    if not (_NEEDED | (frozenset() if by_client else _NEEDED_OF_SERVER)) <= fields.keys():
        return None
    texts = {name: "-" if fields.get(name) in (None, "") else str(fields[name]) for name in _NAMES}
    return AccessLogLine(**texts, raw=line.rstrip("\n"))


def parse_all(text: str) -> tuple[AccessLogLine, ...]:
    """Parse all lines of `text` that are complete and in the format."""
    return tuple(line for raw in lines_of(text) if (line := parse(raw)) is not None)


def read(text: str, source: str) -> tuple[AccessLogLine, ...] | Unread:
    """Parse the log `source`, or return Unread if it holds lines but none in a known format."""
    lines = parse_all(text)
    odd = "" if lines else _strange(text)
    return Unread(source, f"the log is in another format than Istio's: {odd[:_SHOWN]}") if odd else lines


def _strange(text: str) -> str:
    """Return the first complete line of `text` that may be a record of a request, in some other format."""
    for line in text.split("\n")[:-1]:
        if line.strip() and not _SAID.match(line):
            return line.strip()
    return ""
