"""Switch the dataplane's debug output on.

With debug on, the programs tell each of their decisions to all who read the trace. Each reader has a BPF ring buffer of
its own, so nobody takes another's events, and while nobody reads, nothing is written.
"""

from merbridge_lab.api import DATAPLANE, DEBUG_TOGGLE, TRACE, Kind, Lab, Observation, Step, Variant
from merbridge_lab.checks import trace


def act(lab: Lab) -> None:
    with lab.typing(*lab.dataplane.debug_commands()) as typed:
        lab.dataplane.set_debug(on=True)
        typed.prints(lab.dataplane.debug_shown())


def observe(lab: Lab) -> Observation:
    return lab.observe(lab.workload("sleep"), count=1, trace=True)


def commands(lab: Lab) -> list[str]:
    return lab.dataplane.debug_commands()


def undo(lab: Lab) -> None:
    lab.dataplane.set_debug(on=False)


by_rollout = Variant(
    narration="""
Edit the DaemonSet and add -d after /app/mbctl. The flag is compiled in, so the pod is recreated, and the
programs start again with empty maps. From then on each decision leaves a line in the kernel's trace buffer.
""",
    needs=frozenset({DATAPLANE, TRACE}),
)

step = Step(
    number=4,
    kind=Kind.ENSURE,
    act=act,
    verify=(trace.debug_is_on(),),
    observe=observe,
    request_checks=(trace.lines_appear(),),
    commands=commands,
    needs=frozenset({DATAPLANE, TRACE}),
    variants={DEBUG_TOGGLE: by_rollout},
    undo=undo,
)
