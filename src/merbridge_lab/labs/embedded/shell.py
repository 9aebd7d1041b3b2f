"""A shell in a pod, and what it changed."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from merbridge_lab import hints
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import make_folder
from merbridge_lab.labs.embedded import rule_templates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.labs.embedded.mesh import Pod

_TOOLS = ("iptables", "iptables-save", "iptables-restore")


@contextlib.contextmanager
def shell(pod: Pod, *, netns: bool, request: str = "") -> Iterator[tuple[list[str], str]]:
    """Yield the argv of a shell in `pod`, and a welcome text; the files it needs exist for the duration of the block.

    `request` is the command that sends a request as the app.
    """
    name = pod.spec.name
    if not netns:
        argv = pod.argv_as_app(["env", f"PS1=merlab:{name}$ ", "sh", "-i"])
        yield argv, f"you are {name}'s app; try: curl -s helloworld:5000/hello. exit leaves."
        return
    # In the lab's own tmpfs, so that nothing of it outlasts the lab, whatever ends this shell.
    folder = pod.run / "shell" / pod.spec.backend
    make_folder(folder, parents=True)
    for tool in _TOOLS:
        found = shutil.which(tool.replace("iptables", f"iptables-{pod.spec.backend}"))
        if found and not (folder / tool).is_symlink():
            with change("link a shell's tools"):
                (folder / tool).symlink_to(found)
    path = f"PATH={folder}{os.pathsep}{os.environ['PATH']}"
    # bash reads the user's own files after PS1 is set; the plain sh does not, and every system has one.
    argv = pod.argv_as_root(["env", path, f"PS1=merlab:{name}(netns)# ", "sh", "-i"])
    yield (
        argv,
        (
            f"you are root in the network namespace of {name}; iptables is iptables-{pod.spec.backend}."
            " Try: iptables -t nat -vnL. exit leaves.\n" + hints.as_the_app(request)
        ),
    )


def changes(pod: Pod, *, saved: bool) -> list[str]:
    """Describe how the pod's rules differ from merlab's, and how to restore them; `saved`: merlab flushed them."""
    if saved:
        return [f"the nat rules of {pod.spec.name} are flushed; merlab restore puts them back"]
    wrong = f"the rules of {pod.spec.name} are not as merlab made them"
    stray = f"there are other rules in {pod.spec.name} than those that merlab made"
    where = pod.spec.name
    found = rule_templates.problems(
        pod.netns,
        rule_templates.pod_rules(pod.spec.annotations),
        pod.spec.backend,
        where=where,
        wrong=wrong,
        stray=stray,
    )
    return [f"{each}; merlab up puts them back" for each in found[:1]]
