"""Make the node.

The node is what the pods will run on. It will have the routes between them, and translate the virtual addresses of
services to the addresses of pods.
"""

from merbridge_lab.api import Kind, Lab, Step
from merbridge_lab.checks import components


def act(lab: Lab) -> None:
    with lab.typing(*lab.node.shell_commands()):
        lab.node.ensure()


def commands(lab: Lab) -> list[str]:
    return lab.node.shell_commands()


def undo(lab: Lab) -> None:
    lab.node.remove()


step = Step(
    number=1,
    kind=Kind.ENSURE,
    act=act,
    verify=(components.in_order("node", "the node is there, with all that pods need of it", lambda lab: lab.node),),
    commands=commands,
    undo=undo,
)
