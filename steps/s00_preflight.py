"""Check the machine, list its eBPF.

Interception needs features of the kernel. Each one is probed by using it once, not by reading a version. Then we list
the eBPF that is already loaded: `bpftool map`, `bpftool prog`, `bpftool cgroup tree`. Step 3 will show what it adds to
these lists.
"""

from merbridge_lab.api import Kind, Lab, Step
from merbridge_lab.checks import components


def act(lab: Lab) -> None:
    lab.require_able()
    for shown in lab.inventory():
        lab.show(shown.command, shown.output)


def commands(lab: Lab) -> list[str]:
    return ["uname -r", *lab.inventory_commands()]


step = Step(number=0, kind=Kind.ENSURE, act=act, verify=(components.able(),), commands=commands, always=True)
