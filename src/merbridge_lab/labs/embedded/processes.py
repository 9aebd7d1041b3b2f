"""The processes of one pod: started, found, told from others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts
from merbridge_lab.adapters import cgroup, cgroup_v1, http_probe, netns, procfs
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy, identity, namespaces, rule_templates, topology
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.adapters.procfs import Process
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.topology import PodSpec

APP_LOG = "app.log"
_SCRIPT = "app.py"
#: A sidecar older than this (seconds) that does not answer will not get ready any more.
_START = 15.0
#: A command that is entering the pod, or a thread that waits for its disk, has changed its state after this, in
#: seconds.
_SETTLED = 0.5
#: A killed process is gone after this, in seconds.
_END = 5.0
#: Describes a running process that cannot be identified.
_UNREAD = "which /proc/{pid} does not show (a mount covers it, or hidepid hides it)"


class Processes:
    """App and sidecar of the pod `spec`, with its namespaces, its cgroup and its folder."""

    def __init__(self, machine: Machine, spec: PodSpec, folder: Path) -> None:
        self._machine = machine
        self._spec = spec
        self._netns, self._mntns = machine.netns(spec.name), machine.mntns(spec.name)
        self.cgroup: Path = machine.cgroup / spec.branch / spec.name
        self._folder = folder
        self.kinds = ("sidecar", "app") if spec.sidecar else ("app",)

    # -- starting --------------------------------------------------------------------------------------------------

    def start(self, kind: str, *, first: bool = False) -> None:
        """Stop all processes of a kind, and start it again. Raises LabError, OSError.

        In a pod whose network namespace was made a moment ago it is the `first`: none can be in another cgroup.
        """
        cgroup.clear(self.cgroup / kind, timeout=5)
        if not first:
            self.end_astray(kind)
        if kind == "app" and self._spec.app == "helloworld":
            # Written first, so that the file is older than the process that reads it: this identifies it.
            write_atomic(self._folder / _SCRIPT, rule_templates.data("app/helloworld.py"))
        with change("start a process"):
            run(self.daemons()[kind])

    def release(self) -> None:
        """Thaw the cgroups of the pod and remove their limits. Raises OSError."""
        for each in [self.cgroup, *(self.cgroup / kind for kind in self.kinds)]:
            cgroup.release(each)

    def daemons(self) -> dict[str, list[str]]:
        """Return the argv that starts each, by kind."""
        return {kind: self._daemon(kind) for kind in reversed(self.kinds)}

    def _daemon(self, kind: str) -> list[str]:
        user, log = (istio_facts.SIDECAR_UID, envoy.LOG) if kind == "sidecar" else (topology.APP_ID, APP_LOG)
        argv = self._argv(kind)
        return namespaces.as_daemon(self.cgroup / kind, self._netns, self._mntns, user, self._folder / log, argv)

    def _argv(self, kind: str) -> list[str]:
        if kind == "sidecar":
            return envoy.argv(self._machine, self._folder)
        if self._spec.app == "sleep":
            return ["sleep", "infinity"]
        ports = [str(topology.HTTP_PORT), str(topology.ECHO_PORT)]
        # The distribution's Python: ours may be in a directory that the app's user cannot enter. It also runs isolated:
        # PYTHONPATH, sitecustomize and .pth files of the machine have no effect.
        interpreter = ["/usr/bin/python3", "-I", "-S", "-B"]
        return [*interpreter, str(self._folder / _SCRIPT), self._spec.version, self._spec.name, *ports]

    # -- finding ---------------------------------------------------------------------------------------------------

    def find(self, kind: str) -> Process | None:
        """Return the oldest process of a kind that is what it should be."""
        found = [each for each in self.there(kind) if not self.mismatch(kind, each)]
        return min(found, key=lambda each: each.started, default=None)

    def there(self, kind: str) -> list[Process]:
        """Return all processes in the cgroup of a kind."""
        return [seen for pid in cgroup.processes(self.cgroup / kind) if (seen := procfs.look(pid))]

    def hidden(self, kind: str) -> list[int]:
        """Return the processes in the cgroup of a kind that run but that /proc does not show."""
        return [pid for pid in cgroup.processes(self.cgroup / kind) if procfs.is_hidden(pid)]

    def astray(self, kind: str) -> list[Process]:
        """List the processes that match a kind in everything but are in another cgroup."""
        if not netns.is_pinned(self._netns):
            return []
        own = set(cgroup.processes(self.cgroup / kind))
        there = procfs.by_argv(self._argv(kind), netns.inode(self._netns))
        return [seen for seen in there if seen.pid not in own and not self.mismatch(kind, seen)]

    def end_astray(self, kind: str) -> None:
        """End those: they hold the ports that their successor needs. Raise LabError if one does not end."""
        # A control client or server is created and removed within one command: to search for those costs more than it
        # helps.
        if not self._spec.mesh or not (astray := self.astray(kind)):
            return
        for each in astray:
            procfs.end(each)
        if not poll_until(lambda: not self.astray(kind), timeout=_END, awaiting="processes in other cgroups to end"):
            what = f"{self._is_astray(kind, astray[0])}, and does not end"
            raise LabError(what, hint=f"ps -o pid,stat,wchan,args {astray[0].pid}", id="removal.failed")

    def _is_astray(self, kind: str, seen: Process) -> str:
        where = f"{self._machine.cgroup_root}{cgroup.of(seen.pid)}"
        return f"the {kind} of {self._spec.name} (pid {seen.pid}) is in the cgroup {where}, not in {self.cgroup / kind}"

    def seen(self) -> dict[str, Process]:
        """Return those that are what they should be, by kind."""
        return {kind: found for kind in self.kinds if (found := self.find(kind)) is not None}

    def mismatch(self, kind: str, seen: Process) -> str:
        """Describe why a process is not the one of its kind; "" if it is."""
        if not (netns.is_pinned(self._netns) and netns.is_pinned(self._mntns)):
            return "the pod's namespaces are not there"
        return identity.mismatch(seen, self._expected(kind))

    def _expected(self, kind: str) -> identity.Expected:
        argv = self._argv(kind)
        space, mounts = netns.inode(self._netns), netns.inode(self._mntns)
        if kind == "sidecar":
            return identity.Expected(argv, envoy.not_genuine, istio_facts.SIDECAR_UID, space, mounts)
        program = identity.program(argv[0], namespaces.PATH)
        script = (self._folder / _SCRIPT, rule_templates.data("app/helloworld.py"))
        is_script = self._spec.app == "helloworld"
        return identity.Expected(argv, program, topology.APP_ID, space, mounts, script if is_script else None)

    def answers(self, kind: str) -> bool:
        """Report whether it answers now, within a second."""
        if kind == "sidecar":
            return envoy.is_ready(self._netns)
        return self._spec.app == "sleep" or http_probe.says_ok(self._netns, topology.HTTP_PORT, "/hello")

    def is_hopeful(self, kind: str) -> bool:
        """Report whether a process of this kind is right and runs.

        A sidecar must also answer, or be too young to be given up.
        """
        seen = self.find(kind)
        if seen is None or self.held(kind, seen) or self.strangers(kind):
            return False
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - seen.started / identity.TICKS
        return kind == "app" or age < _START or self.answers(kind)

    # -- looking ---------------------------------------------------------------------------------------------------

    def held(self, kind: str, seen: Process) -> str:
        """Describe what prevents a process, or one of its threads, from running; "" if nothing does."""
        if cgroup.is_frozen(self.cgroup / kind):
            return f"is frozen (cgroup.freeze of {self.cgroup / kind} or of a cgroup above)"
        if where := cgroup_v1.frozen(seen.pid):
            return f"is frozen ({where})"
        if set("Tt") & {*procfs.threads(seen.pid)}:
            return "is stopped"
        if "D" in procfs.threads(seen.pid) and not poll_until(
            lambda: "D" not in procfs.threads(seen.pid), timeout=_SETTLED, awaiting="a disk"
        ):
            return "hangs in the kernel (state D)"
        return ""

    def strangers(self, kind: str) -> list[str]:
        """Return the other processes in the cgroup of a kind, except, for an app, those that `merlab exec` starts."""

        def found() -> list[str]:
            own = self.find(kind)
            others = [each for each in self.there(kind) if own is None or each.pid != own.pid]
            told = [f"{each.command} (pid {each.pid})" for each in others if not self._is_guest(kind, each)]
            return told + [f"process {pid}, {_UNREAD.format(pid=pid)}" for pid in self.hidden(kind)]

        if not found():
            return []
        # It may just have joined the cgroup, and not yet the rest.
        poll_until(lambda: not found(), timeout=_SETTLED, awaiting="processes to come in or to go")
        return found()

    def _is_guest(self, kind: str, seen: Process) -> bool:
        if kind != "app" or (seen.netns, seen.mntns) != (netns.inode(self._netns), netns.inode(self._mntns)):
            return False
        try:
            details = procfs.details(seen.pid)
        except OSError:
            return False
        return details is None or ({*details.users, *details.groups} == {topology.APP_ID} and not details.capabilities)

    def problems(self, kind: str, seen: Process | None, access_log: Path) -> list[str]:
        """Describe what is wrong with the process of a kind: at most one sentence, the one that explains the others.

        `seen` is what `find` has just returned.
        """
        there = self.there(kind)
        where = f"the {kind} of {self._spec.name}"
        if seen is not None:
            return [found] if (found := self._problem(kind, where, seen, access_log)) else []
        if not there and (hidden := self.hidden(kind)):
            return [
                f"{where} could not be read: {self.cgroup / kind} holds process {hidden[0]}, "
                + _UNREAD.format(pid=hidden[0])
            ]
        if astray := self.astray(kind):
            return [self._is_astray(kind, astray[0])]
        if not there:
            return [f"{where} is not running (no process in {self.cgroup / kind})"]
        why = self.mismatch(kind, there[0])
        holds = f"{self.cgroup / kind} holds {there[0].command} (pid {there[0].pid}), {why}"
        return [f"{where} has been replaced: {holds}"]

    def _problem(self, kind: str, where: str, seen: Process, access_log: Path) -> str:
        if held := self.held(kind, seen):
            return f"{where} {held} (pid {seen.pid})"
        if not self.answers(kind):
            port = istio_facts.HEALTH_PORT if kind == "sidecar" else topology.HTTP_PORT
            because = f": {why}" if (why := cgroup_v1.throttled(seen.pid)) else ""
            return f"{where} does not answer on port {port} (pid {seen.pid}){because}"
        if kind == "sidecar" and not seen.has_open(access_log):
            return f"the access log of {self._spec.name} is not the one that its sidecar writes ({access_log})"
        return ""

    def besides(self) -> list[str]:
        """Describe what else runs in the cgroups of app and sidecar."""
        return [
            f"in the cgroup of the {kind} of {self._spec.name} runs another process, {stranger}"
            for kind in self.kinds
            for stranger in self.strangers(kind)
        ]

    def limited(self) -> list[str]:
        """Describe what limits the cgroups of the pod, and what else is in them."""
        name = self._spec.name
        own = [self.cgroup, *(self.cgroup / kind for kind in self.kinds)]
        found = [f"the cgroup {each} of {name} is limited: {limit}" for each in own for limit in cgroup.limits(each)]
        if pids := cgroup.processes(self.cgroup):
            found.append(f"the cgroup {self.cgroup} of {name} holds process {pids[0]}, which is not the pod's")
        folders = [each for each in cgroup.subtree(self.cgroup) if each not in {*own, self.cgroup / "sidecar"}]
        return found + [f"the cgroup {each} of {name} is not merlab's" for each in folders]
