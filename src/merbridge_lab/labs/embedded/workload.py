"""A pod as the steps see it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup, netns
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.lab import HELLO
from merbridge_lab.labs.embedded import envoy, shell, topology
from merbridge_lab.labs.embedded.rules import PodRules
from merbridge_lab.process_identity import ProcessIdentity
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.mesh import Pod


class EmbeddedWorkload:
    """A pod of the embedded lab; `keep` leaves its rules flushed after a flush."""

    def __init__(self, machine: Machine, pod: Pod, *, keep: bool = False) -> None:
        self.pod = pod
        self._lab = machine.name
        self.name = pod.spec.name
        self.url = f"http://{pod.spec.ip}:{topology.HTTP_PORT}/hello"
        self.access_log = pod.access_log
        self.rules = PodRules(
            self.name, pod.netns, machine.saved, backend=pod.spec.backend, keep=keep, covers=machine.covers
        )

    @property
    def exists(self) -> bool:
        """Report whether its network namespace exists."""
        return netns.is_pinned(self.pod.netns)

    @property
    def sidecar_ready(self) -> bool:
        """Report whether its sidecar reports readiness."""
        return self.exists and envoy.is_ready(self.pod.netns)

    def app_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the pod's app, from a root process on the host."""
        return self.pod.argv_as_app(argv)

    def shell(self, *, netns: bool) -> AbstractContextManager[tuple[list[str], str]]:
        """Yield the argv of a shell as the app (with `netns`: as root in the network namespace), and a welcome text."""
        return shell.shell(self.pod, netns=netns, request=self.request_command())

    def changes(self) -> list[str]:
        """Describe how the rules differ from merlab's, and how to restore them."""
        return shell.changes(self.pod, saved=self.rules.outstanding)

    def request_command(self, *, without_ebpf: bool = False) -> str:
        """Return the walkthrough's request, as one types it in this lab."""
        url = HELLO.removeprefix("http://")
        if self.pod.spec.mesh:
            named = "" if self._lab == topology.NAME else f"MERLAB_NAME={self._lab} "
            if without_ebpf:  # -S: what is to be seen is curl's error
                return f"{named}merlab exec --without-ebpf {self.name} -- curl -sS {url}"
            return f"{named}merlab exec {self.name} -- curl -s {url}"
        return pasteable(self.app_argv(["curl", "-s", url]))

    def enter_commands(self) -> list[str]:
        """Return the command that finds the app's process, and the one that inspects its namespaces."""
        found = f"head -1 {self._app_cgroup}/cgroup.procs"
        return [found, f"nsenter -t $({found}) --net ip -o -4 address show"]

    def enter(self) -> ProcessIdentity:
        """Find the app's process and inspect its namespaces."""
        pid = self.pod.app_pid
        expected = netns.inode(self.pod.netns)
        if pid is None:
            return ProcessIdentity(self.name, None, "", self.pod.spec.ip, (), expected, 0, str(self._app_cgroup), "")
        looked = run(["nsenter", "-t", str(pid), "--net", "ip", "-o", "-4", "address", "show"]).stdout
        addresses = tuple(line.split()[3].partition("/")[0] for line in lines_of(looked) if line.split()[1] != "lo")
        process = Path("/proc", str(pid))
        hierarchy = cgroup.in_version_2(read_text(process / "cgroup"))
        root = str(self._app_cgroup).removesuffix(hierarchy)
        return ProcessIdentity(
            workload=self.name,
            pid=pid,
            comm=read_text(process / "comm").rstrip("\n"),
            expected_address=self.pod.spec.ip,
            addresses=addresses,
            expected_netns=expected,
            netns=netns.inode(process / "ns" / "net"),
            expected_cgroup=str(self._app_cgroup),
            cgroup=f"{root}{hierarchy}" if root != str(self._app_cgroup) else hierarchy,
            looked=looked,
        )

    @property
    def _app_cgroup(self) -> Path:
        return self.pod.cgroup / "app"
