"""Save and list the rules, send a request.

The rules are all there. Look at the packets of ISTIO_REDIRECT: with eBPF they do not move, however often we ask.
The control client, a copy of sleep that eBPF does not serve, gets the same rules, and its ISTIO_REDIRECT moves with
every connection.
"""

from merbridge_lab.api import CONTROL_CLIENT, DATAPLANE, Kind, Lab, Observation, Starting, Step, Variant, Workload
from merbridge_lab.checks import mesh, rules
from merbridge_lab.checks.rules import REDIRECT


def ask(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    with lab.typing(sleep.rules.save_command()):
        sleep.rules.copy()
    with lab.typing(sleep.rules.list_command()) as typed:
        typed.prints(sleep.rules.listing())
    with lab.typing(sleep.rules.list_command(REDIRECT)) as typed:
        typed.prints(sleep.rules.listing(REDIRECT))
        typed.notice("the rule that sends new connections to the sidecar; the first number counts them")
    with lab.typing(sleep.request_command()) as typed:
        seen = lab.observe(sleep)
        typed.prints(seen.exchanges[0].answer)
        typed.notice(seen.tally)
    with lab.typing(sleep.rules.list_command(REDIRECT)) as typed:
        typed.prints(sleep.rules.listing(REDIRECT))
        typed.notice(f"ISTIO_REDIRECT {seen.rule(REDIRECT).moved:+} for {len(seen.exchanges)} new connections")
    return seen


def ask_without_ebpf(lab: Lab, control_client: Starting[Workload]) -> Observation:
    with lab.typing(lab.workload("sleep").request_command(without_ebpf=True)) as typed:
        seen = lab.observe(control_client.ready())
        typed.prints(seen.exchanges[0].answer)
        typed.notice(
            f"without eBPF: ISTIO_REDIRECT {seen.rule(REDIRECT).moved:+} for {len(seen.exchanges)} new connections"
        )
    return seen


def act(lab: Lab) -> Observation:
    with lab.control_client() as control_client:  # it starts beside what is asked of sleep
        return ask(lab).with_control(ask_without_ebpf(lab, control_client))


def commands_by_rules(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    look = sleep.rules.list_command(REDIRECT)
    return [sleep.rules.save_command(), sleep.rules.list_command(), look, sleep.request_command(), look]


def commands(lab: Lab) -> list[str]:
    return [*commands_by_rules(lab), lab.workload("sleep").request_command(without_ebpf=True)]


by_rules = Variant(
    act=ask,
    commands=commands_by_rules,
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
