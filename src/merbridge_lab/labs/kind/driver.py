"""The kind lab: a kind cluster with Istio, on this machine's Docker."""

from __future__ import annotations

import contextlib
import functools
import shutil
from typing import TYPE_CHECKING

from merbridge_lab.adapters import docker_messages
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names
from merbridge_lab.labs.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
    from merbridge_lab.requirements import Requirement

#: How long Docker may take to answer, in seconds. One that hangs must not delay the other labs.
_ANSWER = 5.0
_COMMANDS = {"docker": "Docker", "kind": "kind", "istioctl": "istioctl"}


class KindDriver:
    """Opens the kind lab."""

    name = names.LAB
    context = names.CONTEXT
    lab_name = names.CLUSTER

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.docker = docker_messages.other_daemon()

    def is_up(self) -> bool:
        """Report whether anything of the lab exists; False if no Docker answers."""
        from merbridge_lab.labs.kind import ownership

        if not all(shutil.which(command) for command in ("docker", "kind")) or self.silence:
            return False
        try:
            return ownership.exists()
        except LabError:
            return False

    def is_possible(self) -> bool:
        """Report whether kind, istioctl and a Docker that answers are available."""
        return all(shutil.which(command) for command in _COMMANDS) and not self.silence

    @functools.cached_property
    def silence(self) -> str:
        """Explain in a sentence why Docker does not answer; "" if it does. Docker is asked once."""
        from merbridge_lab.adapters import docker

        try:
            docker.engine(timeout=_ANSWER)
        except LabError as error:
            return error.what
        return ""

    def require_able(self) -> None:
        """Raise LabError if the lab cannot be used at all: a command is missing, or no Docker answers.

        Raise UsageError for a name that merlab does not know.
        """
        from merbridge_lab.adapters import docker
        from merbridge_lab.labs.kubernetes.settings import Settings

        Settings.default().asked(self.options)  # an unknown name is wrong usage, whatever this machine has
        # The step that installs Istio checks for istioctl itself; only the removal of Istio from a cluster also needs
        # it.
        needed = _COMMANDS if self.options.keep_cluster else {name: _COMMANDS[name] for name in ("docker", "kind")}
        for command, what in needed.items():
            if shutil.which(command) is None:
                raise LabError(
                    f"the kind lab needs {what}, and {command} is not on PATH",
                    hint="merlab doctor --lab kind",
                    id="tool.missing",
                )
        if docker.engine().rootless:
            raise LabError(
                "this Docker is rootless: a node in it may not change network namespaces as the walkthrough does",
                hint="export DOCKER_HOST=unix:///var/run/docker.sock  # the daemon of the system",
                id="docker.unsupported",
            )
        self._require_context()

    def _require_context(self) -> None:
        if self.options.context not in (None, names.CONTEXT):
            raise LabError(
                f"the kind lab is the context {names.CONTEXT}, not {self.options.context}",
                hint="another cluster is for --lab cluster, which is planned",
                id="feature.not_built",
            )

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        return self._lab().requirements()

    def _lab(self, *, keep: bool = False) -> ManagedKubernetesLab:
        from merbridge_lab.labs.kind.provider import KindProvider
        from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab

        return ManagedKubernetesLab(KindProvider(self.options), self.options, keep=keep)

    @contextlib.contextmanager
    def open(
        self, *, keep: bool = False, backend: str | None = None, legs: str | None = None, pods: int | None = None
    ) -> Iterator[ManagedKubernetesLab]:
        """Yield the lab for the duration of the block.

        Raise LabError for a backend, as Istio chooses it itself, and for legs, which only merlab's own dataplane knows.
        """
        if legs is not None:
            raise LabError(
                "--legs is for the embedded lab: it is a setting of merlab's own dataplane",
                hint="merlab up",
                id="capability.missing",
            )
        if pods is not None:
            raise LabError(
                "--pods is for the embedded lab: on a cluster, kubectl scale makes more",
                hint="merlab up",
                id="capability.missing",
            )
        if backend is not None:
            raise LabError(
                "--iptables is for the embedded lab: on a cluster, Istio chooses the tables",
                hint="merlab up",
                id="capability.missing",
            )
        lab = self._lab(keep=keep)
        try:
            yield lab
        finally:
            lab.close()
