"""merlab's own command line over an embedded lab that has one more service for each app.

The sidecars take mutual TLS only, and only on the ports of services. So an app of ours is reached through both sidecars
if, and only if, it is behind a service.
"""

from __future__ import annotations

from dataclasses import replace

from merbridge_lab.labs.embedded import topology

#: How many apps there may be; the lab has a service for each.
PLACES = 64
#: The last services are HTTP routes: their sidecars read and write HTTP/1.1 themselves.
ROUTES = 4
FIRST_PORT = 9100


def services() -> tuple[topology.Service, ...]:
    """Return the services for apps, each with one pod behind it, the two servers in turn."""
    servers = [topology.ServiceEndpoint(pod.ip, pod.name) for pod in topology.PODS[1:]]
    return tuple(
        topology.Service(
            name=f"app-{place}",
            vip=f"10.96.1.{place + 1}",
            port=FIRST_PORT + place,
            protocol="http" if place >= PLACES - ROUTES else "tcp",
            endpoints=(servers[place % len(servers)],),
        )
        for place in range(PLACES)
    )


def add_services() -> None:
    """Give the embedded lab of this process these services; before its other modules are imported."""
    topology.SERVICES = (*topology.SERVICES, *services())
    topology.PODS = tuple(replace(pod, services=topology.SERVICES) for pod in topology.PODS)


if __name__ == "__main__":
    add_services()
    from merbridge_lab.cli import main

    main()
