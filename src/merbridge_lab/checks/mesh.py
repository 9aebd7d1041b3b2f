"""Whether the mesh served the request: both sidecars' access logs show it, found by a nonce."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Control, Finding, Reading, Unread, Verdict, fails, holds, in_words, value_of
from merbridge_lab.istio_facts import INBOUND_SOURCE

if TYPE_CHECKING:
    from merbridge_lab.api import Observation


def served() -> Check:
    """Check that every request of the batch was answered with 200."""
    return Check("mesh.served", "every request is answered", assess_served, hint="merlab status")


def assess_served(seen: Observation) -> Finding:
    """Assess curl's exit statuses and the HTTP statuses."""
    good = sum(exchange.served for exchange in seen.exchanges)
    reading = Reading(f"curl:{seen.client}", "200s", 0, good, seen.exchanges[0].body.strip() or None)
    for exchange in seen.exchanges:
        if not exchange.served:
            line = None if isinstance(seen.client_log, Unread) else seen.client_log.get(exchange.nonce)
            reason = f": its sidecar, to {line.upstream_host}: {line.tls_failure}" if line and line.broken_tls else ""
            if exchange.closed and not isinstance(seen.client_log, Unread) and line is None and seen.saved is not None:
                reason = "; its own sidecar has no record of it: with the rules flushed, nothing sent it there"
            return fails(
                f"{len(seen.exchanges) - good} of {len(seen.exchanges)} requests of {seen.who} to {exchange.url}"
                f" were not served ({exchange}{reason})",
                reading,
            )
    told = "1 request of {0}, 1 answer" if good == 1 else "{1} requests of {0}, {1} answers"
    return holds(told.format(seen.who, good), reading)


def both_versions_answered() -> Check:
    """Check that both versions of helloworld answered within the batch."""
    return Check("mesh.both_versions_answered", "v1 and v2 both answer", assess_both_versions, hint="merlab status")


def assess_both_versions(seen: Observation) -> Finding:
    """Assess the bodies of the answers."""
    reading = Reading(f"curl:{seen.client}", "versions", 0, len(seen.versions), ", ".join(sorted(seen.versions)))
    missing = {"v1", "v2"} - seen.versions
    if missing:
        return fails(f"helloworld {' and '.join(sorted(missing))} did not answer {seen.who}", reading)
    return holds("v1 and v2 both answered", reading)


def both_sidecars_served() -> Check:
    """Check that every request went through the client's sidecar and a server's sidecar."""
    return Check(
        "mesh.both_sidecars_served",
        "both sidecars are in the path of every request",
        assess_both_sidecars,
        hint="merlab status",
    )


def assess_both_sidecars(seen: Observation) -> Finding:
    """Assess whether each nonce is in the client's and the servers' access logs."""
    nonces = [exchange.nonce for exchange in seen.exchanges]
    client_log, server_log = value_of(seen.client_log), value_of(seen.server_log)
    out = [line for nonce in nonces if (line := client_log.get(nonce)) is not None and line.outbound]
    into = [(name, line) for nonce in nonces if (entry := server_log.get(nonce)) for name, line in [entry]]
    delivered = [(name, line) for name, line in into if line.inbound]
    evidence = [
        Reading(f"envoy:{seen.client}/access", "requests", 0, len(out), out[-1].raw if out else None),
        *(
            Reading(
                f"envoy:{server}/access",
                "requests",
                0,
                sum(name == server for name, _ in delivered),
                next(line.raw for name, line in delivered if name == server),
            )
            for server in sorted({name for name, _ in delivered})
        ),
    ]
    total = len(nonces)
    if len(out) < total:
        return fails(
            f"the sidecar of {seen.who} has no record of {total - len(out)} of {total} requests"
            f" (first outcome: {seen.exchanges[0]})",
            *evidence,
        )
    if len(delivered) < total:
        astray = next((f": {line.raw}" for _, line in into if not line.inbound), "")
        return fails(
            f"no server's sidecar delivered {total - len(delivered)} of {total} requests of {seen.who}{astray}",
            *evidence,
        )
    chain = assess_one_chain(seen)
    if not chain.held:
        return fails(chain.why, *evidence)
    return holds(
        f"{'the request appears' if total == 1 else f'all {total} requests appear'} in the access logs of {seen.who}"
        f" and {', '.join(map(in_words, sorted(seen.servers)))},"
        f" delivered from {INBOUND_SOURCE}",
        *evidence,
    )


def assess_one_chain(seen: Observation) -> Finding:
    """Assess whether the records of each request name one chain of connections, from client to server, in TLS.

    Whoever saw a nonce can copy it into a log. Nobody can guess the ports of the connections that carried it.
    """
    client_log, server_log = value_of(seen.client_log), value_of(seen.server_log)
    for exchange in seen.exchanges:
        out = client_log[exchange.nonce]
        server, into = server_log[exchange.nonce]
        if not seen.is_same(exchange.local, out.downstream_remote):
            return fails(
                f"the record in the access log of {seen.who} is of a connection from {out.downstream_remote}:"
                f" the request came from {exchange.local}"
            )
        if not seen.is_same(out.upstream_local, into.downstream_remote):
            return fails(
                f"the record in the access log of {server} is of a connection from {into.downstream_remote}:"
                f" the sidecar of {seen.who} sent the request from {out.upstream_local}"
            )
        if "-" not in (out.upstream_host, into.downstream_local) and out.upstream_host != into.downstream_local:
            return fails(
                f"the sidecar of {seen.who} sent a request to {out.upstream_host}, and that of {server} got it, at"
                f" {into.downstream_local}"
            )
        if exchange.instance not in ("", server) and not exchange.instance.startswith(f"{server}-"):
            return fails(
                f"a request that the sidecar of {server} delivered was answered by {exchange.instance}, not by its app"
            )
        if into.sni == "-":
            return fails(f"the request came to the sidecar of {server} in plain text, not by mutual TLS")
    return holds("the records name one chain of connections from the client to the server, in TLS")


def assess_closed_as_plain_text(seen: Observation) -> Finding:
    """Assess whether each connection closed before any HTTP status because the server refused plain text."""
    rejected = value_of(seen.rejected)
    by_server = {server: [line for name, line in rejected if name == server] for server, _ in rejected}
    evidence = (
        Reading(f"curl:{seen.client}", "closed", 0, sum(exchange.closed for exchange in seen.exchanges)),
        *(
            Reading(f"envoy:{server}/access", "plain text refused", 0, len(lines), lines[-1].raw)
            for server, lines in sorted(by_server.items())
        ),
    )
    for exchange in seen.exchanges:
        if not exchange.closed:
            return fails(
                f"{seen.who}, flushed and without eBPF, was not closed before an HTTP status ({exchange})", *evidence
            )
        if not any(seen.is_same(exchange.local, line.downstream_remote) for _, line in rejected):
            return fails(
                f"{seen.who}, flushed and without eBPF, was closed, but no server's inbound listener"
                f" logged plain text from {exchange.local}",
                *evidence,
            )
    return holds(
        f"{seen.who}, flushed and without eBPF, connects and is closed: the server's sidecar refuses plain text",
        *evidence,
    )


def as_control(name: str, finding: Finding) -> Control:
    """Turn the finding of a control experiment into the control of a check."""
    return Control(name, Verdict.PASS if finding.held else Verdict.FAIL, finding.evidence)
