"""Save the rules, list them with their counters, and ask again.

The rules are all there. Look at the packets of ISTIO_REDIRECT: with eBPF they do not move, however often we ask.
A twin of sleep that eBPF does not serve has the same rules, and its ISTIO_REDIRECT moves with every connection.
"""

from merbridge_lab.api import TWIN, Kind, Lab, Observation, Step
from merbridge_lab.checks import mesh, rules
from merbridge_lab.checks.rules import REDIRECT


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    sleep.rules.copy()
    lab.show(sleep.rules.save_command())
    lab.show(sleep.rules.list_command(), sleep.rules.listing())
    lab.show(sleep.rules.list_command(REDIRECT), sleep.rules.listing(REDIRECT))
    seen = lab.observe(sleep)
    lab.show(sleep.request_command(), "".join(exchange.body for exchange in seen.exchanges))
    lab.show(sleep.rules.list_command(REDIRECT), sleep.rules.listing(REDIRECT))
    with lab.twin() as twin:
        return seen.beside(lab.observe(twin))


def commands(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    look = sleep.rules.list_command(REDIRECT)
    return [sleep.rules.save_command(), sleep.rules.list_command(), look, sleep.request_command(), look]


step = Step(
    number=8,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), mesh.both_sidecars_served(), rules.stood_still()),
    commands=commands,
    needs=frozenset({TWIN}),
)
