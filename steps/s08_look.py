"""Save the rules, list them with their counters, and send the request again.

The rules are all there. Look at the packets of ISTIO_REDIRECT: with eBPF they do not move, however often we ask.
The control client, a copy of sleep that eBPF does not serve, has the same rules, and its ISTIO_REDIRECT moves with
every connection.
"""

from merbridge_lab.api import CONTROL_CLIENT, DATAPLANE, Kind, Lab, Observation, Step, Variant
from merbridge_lab.checks import mesh, rules
from merbridge_lab.checks.rules import REDIRECT


def ask(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    sleep.rules.copy()
    lab.show(sleep.rules.save_command())
    lab.show(sleep.rules.list_command(), sleep.rules.listing())
    lab.show(sleep.rules.list_command(REDIRECT), sleep.rules.listing(REDIRECT))
    seen = lab.observe(sleep)
    lab.show(sleep.request_command(), "".join(exchange.body for exchange in seen.exchanges))
    lab.show(sleep.rules.list_command(REDIRECT), sleep.rules.listing(REDIRECT))
    return seen


def act(lab: Lab) -> Observation:
    seen = ask(lab)
    with lab.control_client() as control_client:
        return seen.with_control(lab.observe(control_client))


def commands(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    look = sleep.rules.list_command(REDIRECT)
    return [sleep.rules.save_command(), sleep.rules.list_command(), look, sleep.request_command(), look]


by_rules = Variant(
    act=ask,
    verify=(mesh.served(), mesh.both_sidecars_served(), rules.do_the_work()),
    narration="""
The rules are all there. Look at the packets of ISTIO_REDIRECT before and after: without eBPF, every new connection
moves them by one, because this rule sends the connection to the sidecar.
""",
)

step = Step(
    number=8,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), mesh.both_sidecars_served(), rules.stood_still()),
    commands=commands,
    needs=frozenset({CONTROL_CLIENT}),
    variants={DATAPLANE: by_rules},
)
