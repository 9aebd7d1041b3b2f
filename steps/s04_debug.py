"""Switch the dataplane's debug output on.

Each decision of the programs now leaves a line in the kernel's trace buffer. Ours go to a buffer of the lab's own,
so nothing is taken from other readers of the trace.
"""

from merbridge_lab.api import DATAPLANE, TRACE, Kind, Lab, Observation, Step
from merbridge_lab.checks import trace


def act(lab: Lab) -> None:
    lab.dataplane.set_debug(on=True)
    for command in lab.dataplane.debug_commands():
        lab.show(command)


def observe(lab: Lab) -> Observation:
    return lab.observe(lab.workload("sleep"), count=1, trace=True)


def commands(lab: Lab) -> list[str]:
    return lab.dataplane.debug_commands()


def undo(lab: Lab) -> None:
    lab.dataplane.set_debug(on=False)


step = Step(
    number=4,
    kind=Kind.ENSURE,
    act=act,
    verify=(trace.debug_is_on(),),
    observe=observe,
    witness=(trace.lines_appear(),),
    commands=commands,
    needs=frozenset({DATAPLANE, TRACE}),
    undo=undo,
)
