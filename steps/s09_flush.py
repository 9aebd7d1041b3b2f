"""Flush the NAT rules of sleep, try again.

Once its nat rules are flushed, sleep has not one iptables rule to send a request to a sidecar. With eBPF it should go
through both all the same. To compare, a control client, which eBPF does not serve, will be flushed too: what it sends
is plain text, and a server's sidecar closes such a connection. At the end the saved rules are put back.
"""

from merbridge_lab.api import CONTROL_CLIENT, DATAPLANE, Kind, Lab, Observation, Step, Variant
from merbridge_lab.checks import dataplane, mesh, rules


def ask_flushed(lab: Lab, *, and_without_ebpf: bool) -> Observation:
    sleep = lab.workload("sleep")
    with lab.typing(sleep.rules.save_command()):
        sleep.rules.copy()
    with lab.flushing(sleep) as saved:
        with lab.typing(sleep.rules.list_command()) as typed:
            typed.prints(sleep.rules.listing())
        with lab.typing(sleep.request_command()) as typed:
            seen = lab.observe(sleep)
            typed.prints(seen.exchanges[0].answer)
            typed.notice(seen.tally)
        if and_without_ebpf:
            seen = seen.with_control(ask_without_ebpf(lab))
    return seen.with_rules(saved, None if sleep.rules.outstanding else sleep.rules.snapshot())


def ask_without_ebpf(lab: Lab) -> Observation:
    with lab.typing(lab.workload("sleep").request_command(without_ebpf=True)) as typed:
        with lab.control_client(sidecar=False) as starting, (client := starting.ready()).rules.flushed() as saved:
            left = client.rules.snapshot().nat_count
            typed.notice(f"nat rules of the control client, too: {saved.nat_count} → {left}")
            seen = lab.observe(client)
        typed.prints(seen.exchanges[0].answer)
        typed.notice(f"the same flush without eBPF: {seen.tally}")
    return seen


def act(lab: Lab) -> Observation:
    return ask_flushed(lab, and_without_ebpf=True)


def act_by_rules(lab: Lab) -> Observation:
    before = lab.observe(lab.workload("sleep"))
    return ask_flushed(lab, and_without_ebpf=False).with_control(before)


def commands_by_rules(lab: Lab) -> list[str]:
    sleep = lab.workload("sleep")
    return [
        sleep.rules.save_command(),
        sleep.rules.flush_command(),
        sleep.rules.list_command(),
        sleep.request_command(),
        sleep.rules.restore_command(),
    ]


def commands(lab: Lab) -> list[str]:
    *until_restored, restore = commands_by_rules(lab)
    return [*until_restored, lab.workload("sleep").request_command(without_ebpf=True), restore]


by_rules = Variant(
    act=act_by_rules,
    commands=commands_by_rules,
    verify=(rules.were_absent(), rules.flushed_is_closed(), rules.restored(), rules.were_untouched()),
    narration="""
This is the walkthrough's "before": no eBPF is in place. With the rules present the request goes through both sidecars.
Once they are flushed, the app will speak plain text straight to the server's sidecar, which takes mutual TLS only and
closes the connection. At the end the saved rules are put back.
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
    headline="redirect.ebpf_took_over",
    needs=frozenset({CONTROL_CLIENT}),
    variants={DATAPLANE: by_rules},
)
