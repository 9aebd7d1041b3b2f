"""Save the rules, list them with their counters, and ask again.

The rules are all there. Look at the packets of ISTIO_REDIRECT: with eBPF they do not move, however often we ask.
A twin of sleep that eBPF does not serve has the same rules, and its ISTIO_REDIRECT moves with every connection.
"""

from merbridge_lab.api import TWIN, Kind, Lab, Observation, Step
from merbridge_lab.checks import mesh, rules


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    seen = lab.observe(sleep)
    save, look = sleep.rules.save_commands()
    sleep.rules.copy()
    lab.show(save)
    lab.show(look, seen.after.listing("nat"))
    lab.show(sleep.request_command(), "".join(exchange.body for exchange in seen.exchanges))
    with lab.twin() as twin:
        return seen.beside(lab.observe(twin))


def commands(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    return [*sleep.rules.save_commands(), sleep.request_command()]


step = Step(
    number=8,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), mesh.both_sidecars_served(), rules.stood_still()),
    commands=commands,
    needs=frozenset({TWIN}),
)
