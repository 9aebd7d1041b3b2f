"""Flush the NAT rules of sleep, and send the request again.

With eBPF in place the request still goes through both sidecars, although not one iptables rule is left to send it
there. A flushed control client, which eBPF does not serve, speaks plain text to the server's sidecar, which closes the
connection: that is what a flush does without eBPF. Afterwards the saved rules are put back.
"""

from merbridge_lab.api import CONTROL_CLIENT, DATAPLANE, Kind, Lab, Observation, RuleSet, Step, Variant
from merbridge_lab.checks import dataplane, mesh, rules


def ask_flushed(lab: Lab) -> tuple[Observation, RuleSet]:
    sleep = lab.workload("sleep")
    sleep.rules.copy()
    lab.show(sleep.rules.save_command())
    with sleep.rules.flushed() as saved:
        lab.show(sleep.rules.flush_command())
        seen = lab.observe(sleep)
        lab.show(sleep.rules.list_command(), sleep.rules.listing())
        lab.show(sleep.request_command(), "".join(exchange.body or f"{exchange}\n" for exchange in seen.exchanges))
    return seen, saved


def with_restored(lab: Lab, seen: Observation, saved: RuleSet) -> Observation:
    sleep = lab.workload("sleep")
    if sleep.rules.outstanding:  # the user asked to leave them flushed
        return seen.with_rules(saved, None)
    lab.show(sleep.rules.restore_command())
    return seen.with_rules(saved, sleep.rules.snapshot())


def act(lab: Lab) -> Observation:
    seen, saved = ask_flushed(lab)
    with lab.control_client(sidecar=False) as control_client, control_client.rules.flushed():
        control = lab.observe(control_client)
        lab.show(control_client.request_command(), "\n".join(str(exchange) for exchange in control.exchanges))
    return with_restored(lab, seen.with_control(control), saved)


def act_by_rules(lab: Lab) -> Observation:
    control = lab.observe(lab.workload("sleep"))
    seen, saved = ask_flushed(lab)
    return with_restored(lab, seen.with_control(control), saved)


def commands(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    return [
        sleep.rules.save_command(),
        sleep.rules.flush_command(),
        sleep.rules.list_command(),
        sleep.request_command(),
        sleep.rules.restore_command(),
    ]


by_rules = Variant(
    act=act_by_rules,
    verify=(rules.were_absent(), rules.flushed_is_closed(), rules.restored(), rules.were_untouched()),
    narration="""
This is the walkthrough's "before": no eBPF is in place. With the rules present the request goes through both sidecars.
With not one of them left, the app speaks plain text straight to the server's sidecar, which takes mutual TLS only and
closes the connection. Afterwards the saved rules are put back.
""",
)

step = Step(
    number=9,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(
        mesh.served(),
        rules.were_absent(),
        dataplane.ebpf_took_over(),
        dataplane.payload_moved(),
        rules.restored(),
        rules.were_untouched(),
    ),
    commands=commands,
    needs=frozenset({CONTROL_CLIENT}),
    variants={DATAPLANE: by_rules},
)
