"""Find sleep's process and enter its network namespace.

A pod's rules live in its network namespace. Before we touch any, we make sure that the process we found is really
the pod's: its address, its namespace and its cgroup must agree.
"""

from merbridge_lab.api import Kind, Lab, ProcessIdentity, Step
from merbridge_lab.checks import components


def act(lab: Lab) -> ProcessIdentity:
    sleep = lab.workload("sleep")
    find, look = sleep.enter_commands()
    with lab.typing(find) as typed:
        entered = sleep.enter()
        typed.prints(str(entered.pid or ""))
    with lab.typing(look) as typed:
        typed.prints(entered.looked)
        typed.notice(f"the address of {sleep.name}: we are in its network namespace")
    return entered


def commands(lab: Lab) -> list[str]:
    return lab.workload("sleep").enter_commands()


step = Step(number=7, kind=Kind.DEMONSTRATE, act=act, verify=(components.entered(),), commands=commands)
