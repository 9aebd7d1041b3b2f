"""Read the trace of one request.

Three things to notice, in this order: the app's connect() is intercepted, the sidecar asks where the app wanted to
go, and bytes are moved from socket to socket. Where a dataplane leaves no line of the second, its map tells it.
"""

from merbridge_lab.api import DATAPLANE, TRACE, Kind, Lab, Observation, Step, value_of
from merbridge_lab.checks import mesh, trace


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    seen = lab.observe(sleep, count=1, trace=True)
    lab.show(lab.trace_command(), "\n".join(event.sentence() for event in value_of(seen.trace)))
    return seen


def commands(lab: Lab) -> list[str]:
    return [lab.trace_command(), lab.workload("sleep").request_command()]


step = Step(
    number=5,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), trace.tells_the_request()),
    commands=commands,
    needs=frozenset({DATAPLANE, TRACE}),
)
