"""Istio's fixed values: ports, the sidecars' user, and the address from which they dial their apps.

bpf/abi.h has the same for C. tests/unit/test_facts.py checks that the two agree, and that no other module writes them.
"""

from __future__ import annotations

#: The user, and the group, of a sidecar. Istio's rules and the dataplane tell a sidecar from its app by it.
SIDECAR_UID = 1337

#: Envoy's admin interface, on the loopback.
ADMIN_PORT = 15000
#: Where a sidecar accepts what its app dials.
OUTBOUND_PORT = 15001
#: Where a sidecar accepts what arrives for its app.
INBOUND_PORT = 15006
#: HBONE, of ambient mode.
HBONE_PORT = 15008
#: Metrics of Istio's agent, of Envoy and of the app together.
AGENT_PORT = 15020
#: Readiness.
HEALTH_PORT = 15021
#: DNS of Istio's agent.
DNS_PORT = 15053
#: Envoy's own metrics.
STATS_PORT = 15090

#: The address from which a sidecar dials its own app: Envoy's inbound clusters bind to it, and nothing else does.
INBOUND_SOURCE = "127.0.0.6"
