"""Send a request from sleep to helloworld.

The request of the walkthrough, as the app sends it: four times, each on a new connection. Both sidecars write it into
their access logs, and eBPF counts the bytes that it moves past TCP/IP.
"""

from merbridge_lab.api import DATAPLANE, Kind, Lab, Observation, Step, Variant
from merbridge_lab.checks import dataplane, mesh, rules


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    with lab.typing(sleep.request_command()) as typed:
        seen = lab.observe(sleep)
        typed.prints(seen.exchanges[0].answer)
        typed.notice(seen.tally)
    return seen


def commands(lab: Lab) -> list[str]:
    return [lab.workload("sleep").request_command()]


by_rules = Variant(
    verify=(mesh.served(), mesh.both_sidecars_served(), rules.do_the_work()),
    narration="""
The request of the walkthrough, as the app sends it: four times, each on a new connection. Both sidecars write it into
their access logs, and it is the rules that send it there: ISTIO_REDIRECT moves with each connection.
""",
)

step = Step(
    number=6,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), mesh.both_sidecars_served(), dataplane.payload_moved()),
    commands=commands,
    needs=frozenset({DATAPLANE}),
    variants={DATAPLANE: by_rules},
)
