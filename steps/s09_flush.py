"""Flush the NAT rules of sleep, and ask again.

With eBPF in place the request still goes through both sidecars, although not one iptables rule is left to send it
there. A flushed twin without eBPF speaks plain text to the server's sidecar, which closes it: that is what a flush
does otherwise. Afterwards the saved rules are put back.
"""

from merbridge_lab.api import TWIN, Kind, Lab, Observation, Step
from merbridge_lab.checks import mesh, redirect, rules


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    flush, look = sleep.rules.flush_commands()
    sleep.rules.copy()
    lab.show(sleep.rules.save_commands()[0])
    with sleep.rules.flushed() as saved:
        seen = lab.observe(sleep)
        lab.show(flush)
        lab.show(look, seen.after.listing("nat") or "(not one rule)")
        lab.show(sleep.request_command(), "".join(exchange.body or f"{exchange}\n" for exchange in seen.exchanges))
    with lab.twin(sidecar=False) as twin, twin.rules.flushed():
        control = lab.observe(twin)
        lab.show(twin.request_command(), "\n".join(str(exchange) for exchange in control.exchanges))
    seen = seen.beside(control)
    if sleep.rules.outstanding:  # asked to leave them flushed
        return seen.around(saved, None)
    for command in sleep.rules.restore_commands():
        lab.show(command)
    return seen.around(saved, sleep.rules.snapshot())


def commands(lab: Lab) -> list[str]:
    rules_ = lab.workload("sleep").rules
    return [
        *rules_.save_commands()[:1],
        *rules_.flush_commands(),
        lab.workload("sleep").request_command(),
        *rules_.restore_commands(),
    ]


step = Step(
    number=9,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(
        mesh.served(),
        rules.were_absent(),
        redirect.ebpf_took_over(),
        redirect.payload_moved(),
        rules.restored(),
    ),
    commands=commands,
    needs=frozenset({TWIN}),
)
