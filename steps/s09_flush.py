"""Flush the NAT rules of sleep, and ask again.

With eBPF in place the request still goes through both sidecars, although not one iptables rule is left to send it
there. A flushed twin without eBPF speaks plain text to the server's sidecar, which closes it: that is what a flush
does otherwise. Afterwards the saved rules are put back.
"""

from merbridge_lab.api import TWIN, Kind, Lab, Observation, Step
from merbridge_lab.checks import mesh, redirect, rules


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    sleep.rules.copy()
    lab.show(sleep.rules.save_command())
    with sleep.rules.flushed() as saved:
        lab.show(sleep.rules.flush_command())
        seen = lab.observe(sleep)
        lab.show(sleep.rules.list_command(), sleep.rules.listing())
        lab.show(sleep.request_command(), "".join(exchange.body or f"{exchange}\n" for exchange in seen.exchanges))
    with lab.twin(sidecar=False) as twin, twin.rules.flushed():
        control = lab.observe(twin)
        lab.show(twin.request_command(), "\n".join(str(exchange) for exchange in control.exchanges))
    seen = seen.beside(control)
    if sleep.rules.outstanding:  # asked to leave them flushed
        return seen.around(saved, None)
    lab.show(sleep.rules.restore_command())
    return seen.around(saved, sleep.rules.snapshot())


def commands(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    return [
        sleep.rules.save_command(),
        sleep.rules.flush_command(),
        sleep.rules.list_command(),
        sleep.request_command(),
        sleep.rules.restore_command(),
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
