"""Attach the eBPF dataplane.

This step loads small programs into the kernel, to decide what the rules decide without them: connect() goes straight
to the sidecar, the sidecar still learns the original destination, and the payload is handed from socket to socket. The
rules stay, but will have nothing left to do: ISTIO_REDIRECT will not count.
"""

from merbridge_lab.api import DATAPLANE, Kind, Lab, Observation, Step
from merbridge_lab.checks import components, dataplane, mesh, rules


def act(lab: Lab) -> None:
    before = {shown.command: shown for shown in lab.inventory()}
    first = lab.dataplane.shell_commands()
    with lab.typing(*first) as typed:
        lab.dataplane.ensure()
        for role in lab.dataplane.roles:
            typed.notice(role)
    for command in lab.dataplane.shell_commands():
        if command not in first:  # the first ones did not do, and were mended meanwhile
            lab.show(command)
    for shown in lab.inventory():
        with lab.typing(shown.command) as typed:
            typed.prints(shown.output)
            for line in shown.added_since(before[shown.command]):
                typed.notice(line)


def observe(lab: Lab) -> Observation:
    lab.needs_for_proof("a control client, which eBPF does not serve, sends the same requests")
    with lab.control_client() as control_client:
        seen = lab.observe(lab.workload("sleep"))
        return seen.with_control(lab.observe(control_client.ready()))


def commands(lab: Lab) -> list[str]:
    return [*lab.dataplane.shell_commands(), *lab.inventory_commands()]


def undo(lab: Lab) -> None:
    lab.dataplane.remove()


step = Step(
    number=3,
    kind=Kind.ENSURE,
    act=act,
    verify=(
        components.in_order(
            "dataplane", "programs, links and maps are where they should be", lambda lab: lab.dataplane
        ),
    ),
    observe=observe,
    request_checks=(mesh.served(), dataplane.intercepted(), rules.stood_still()),
    commands=commands,
    needs=frozenset({DATAPLANE}),
    undo=undo,
)
