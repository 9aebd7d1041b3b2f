"""Start the mesh: three pods with sidecars.

Every pod gets an Envoy beside its app, and Istio's iptables rules, which send the app's traffic to it. The sidecars
speak mutual TLS with each other and accept nothing else. Without eBPF the rules do the work: the counter of
ISTIO_REDIRECT moves with every new connection.
"""

from merbridge_lab.api import Kind, Lab, Observation, Step
from merbridge_lab.checks import components, mesh, rules


def act(lab: Lab) -> None:
    first = lab.mesh.shell_commands()
    with lab.typing(*first):
        lab.mesh.ensure()
    for command in lab.mesh.shell_commands():
        if command not in first:  # what only the mesh as it is now asks for
            lab.show(command)


def observe(lab: Lab) -> Observation:
    if not lab.dataplane.attached:
        return ask(lab)
    lab.needs_for_proof("a control client, which eBPF does not serve, sends the same requests")
    with lab.control_client() as control_client:
        seen = ask(lab)
        return seen.with_control(lab.observe(control_client.ready()))


def ask(lab: Lab) -> Observation:
    seen = lab.observe(lab.workload("sleep"))
    if len(seen.versions) == 1:  # versions take turns, but other requests also advance the turn
        seen = lab.observe(lab.workload("sleep"), count=16)
    return seen


def commands(lab: Lab) -> list[str]:
    return [*lab.mesh.shell_commands(), lab.workload("sleep").request_command()]


def undo(lab: Lab) -> None:
    lab.mesh.remove()


step = Step(
    number=2,
    kind=Kind.ENSURE,
    act=act,
    verify=(components.in_order("mesh", "pods, rules, sidecars and apps are there and ready", lambda lab: lab.mesh),),
    observe=observe,
    request_checks=(mesh.served(), mesh.both_versions_answered(), mesh.both_sidecars_served(), rules.do_the_work()),
    commands=commands,
    undo=undo,
)
