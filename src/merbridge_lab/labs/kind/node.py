"""A node that is a container."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import docker
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.command import Result


#: The first process of each node, by its name, as Docker told it; whoever uses it looks whether the mark is below it.
_FOUND: dict[str, int] = {}


@dataclass(frozen=True)
class DockerNode:
    """The Node protocol with docker exec; its container has the node's name."""

    name: str
    image: str = ""

    def execute(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30.0, ok: Sequence[int] = (0,)
    ) -> Result:
        """Run a command on the node. Raise LabError if it ends with a status that is not in `ok`."""
        return docker.execute(self.name, argv, stdin=stdin, timeout=timeout, ok=ok)

    def argv(self, argv: Sequence[str], *, terminal: bool = True) -> list[str]:
        """Return the command with which this process runs `argv` there."""
        return docker.exec_argv(self.name, argv, stdin=True, terminal=terminal)

    def shell_command(self, argv: Sequence[str]) -> str:
        """Return the command that a person types to run `argv` there."""
        return pasteable(docker.exec_argv(self.name, argv))

    def init_pid(self) -> int:
        """Return the PID of the container's first process. Raise LabError if that is not on this machine's kernel.

        Docker returns the PID on its own machine, where the mark of merlab's cluster can be seen below it.
        """
        try:
            # Docker is asked again only if the mark is no longer there: the node was started again.
            for known in (_FOUND.get(self.name), None):
                pid = known or docker.pid(self.name)
                if pid and Path(f"/proc/{pid}/root{names.MARK}").exists():
                    _FOUND[self.name] = pid
                    return pid
        except OSError as error:
            if isinstance(error, PermissionError) and os.geteuid() != 0:
                raise
        raise LabError(
            f"the processes of the node {self.name} are not on this machine:"
            " its Docker is elsewhere, or in a virtual machine",
            hint="run merlab where Docker runs; or --dataplane none",
            id="node.elsewhere",
        )
