"""What each of our programs is for, as an audience is told it."""

from __future__ import annotations

#: A line each: program, hook, and which rule it replaces.
ROLES: tuple[str, ...] = (
    "connect4, connect6 · connect() · instead of ISTIO_REDIRECT in nat OUTPUT",
    "sockopt · getsockopt(SO_ORIGINAL_DST) · instead of conntrack's memory",
    "lookup · sk_lookup · instead of ISTIO_IN_REDIRECT in nat PREROUTING",
    "sockops, sk_msg · sends and receives · no rule: payload from socket to socket",
)
