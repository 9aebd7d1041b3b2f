"""One pod: namespaces, a link to the node, rules, an app and a sidecar."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup, iptables, links, mounts, netns, probe, process
from merbridge_lab.adapters.files import add_log, has, put
from merbridge_lab.adapters.proc import run
from merbridge_lab.drivers.embedded import by_hand, enter, furniture, inspection, layout, services, sidecar
from merbridge_lab.drivers.embedded.node import POD_SYSCTLS
from merbridge_lab.errors import LabError
from merbridge_lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.adapters.process import Process
    from merbridge_lab.drivers.embedded.layout import PodSpec
    from merbridge_lab.drivers.embedded.machine import Machine
    from merbridge_lab.drivers.embedded.node import Node

#: A sidecar older than this (seconds) that does not answer will not get ready any more.
_START = 15.0
_APP_LOG = "app.log"
_TICKS = 100  # USER_HZ, of which /proc/PID/stat counts; the same on every architecture


class Pod:
    """One pod, by its spec; what there is of it is in the kernel."""

    def __init__(self, machine: Machine, node: Node, spec: PodSpec) -> None:
        self._machine = machine
        self._node = node
        self.spec = spec
        self.netns: Path = machine.netns(spec.name)
        self.mntns: Path = machine.mntns(spec.name)
        self.cgroup: Path = machine.cgroup / spec.branch / spec.name
        self.folder: Path = machine.run / "pods" / spec.name
        self.access_log = self.folder / sidecar.ACCESS_LOG

    # -- making ----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Make what is missing and replace what is not what it should be; does not wait for the sidecar.

        Raises LabError, OSError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ensure_network()
        restart = self._ensure_sidecar_files() if self.spec.sidecar else False
        self._ensure_files()
        for kind in ("app", "sidecar"):
            (self.cgroup / kind).mkdir(parents=True, exist_ok=True)
        if self.spec.sidecar and (restart or not self._is_hopeful(self._process("sidecar")) or self._is_altered()):
            self._start("sidecar")
        app = self._process("app")
        if app is None or app.is_stopped:
            self._start("app")

    def _ensure_network(self) -> None:
        if not netns.is_pinned(self.netns):
            netns.create(self.netns, netns.NEWNET)
        links.set_up(self.netns, POD_SYSCTLS)
        if self._link_problems():
            links.connect(
                self._node.netns, self.spec.veth, self.spec.name, self.netns, self.spec.ip, layout.NODE_ADDRESS
            )
        if self._rule_problems():
            iptables.clear(self.netns, but=self.spec.backend, tables=services.OURS)
            iptables.load(self.netns, services.pod_rules(), self.spec.backend)

    def _ensure_sidecar_files(self) -> bool:
        """Write what a sidecar reads and writes to; say whether it must be started anew to know."""
        while mounts.at(self.access_log) is not None:
            mounts.umount(self.access_log)
        changed = sidecar.furnish(self._machine, self.spec, self.folder)
        running = self._process("sidecar")
        return changed or (running is not None and not running.has_open(self.access_log))

    def _ensure_files(self) -> None:
        changed = furniture.write(self.spec, self.folder)
        if self.spec.app == "helloworld" and not has(self.folder / "app.py", services.data("app/helloworld.py")):
            put(self.folder / "app.py", services.data("app/helloworld.py"))
        add_log(self.folder / _APP_LOG, layout.APP_ID)
        if changed or not netns.is_pinned(self.mntns):
            netns.unpin(self.mntns)
            envoy = sidecar.program(self._machine) if self.spec.sidecar else None
            netns.create(
                self.mntns,
                netns.NEWNS,
                lambda: furniture.arrange(self._machine.run, self.spec, self.folder, envoy),
            )

    def _start(self, kind: str) -> None:
        cgroup.clear(self.cgroup / kind, timeout=5)
        run(self._daemons()[kind])

    def _daemons(self) -> dict[str, list[str]]:
        """Give the argv that starts each of its processes, by kind."""
        daemons = {"app": self._daemon("app", self._app_argv())}
        if self.spec.sidecar:
            daemons["sidecar"] = self._daemon("sidecar", sidecar.argv(self._machine, self.folder))
        return daemons

    def _daemon(self, kind: str, argv: Sequence[str]) -> list[str]:
        user, log = (layout.SIDECAR_ID, sidecar.LOG) if kind == "sidecar" else (layout.APP_ID, _APP_LOG)
        return enter.as_daemon(self.cgroup / kind, self.netns, self.mntns, user, self.folder / log, argv)

    def _app_argv(self) -> list[str]:
        if self.spec.app == "sleep":
            return ["sleep", "infinity"]
        ports = [str(layout.HTTP_PORT), str(layout.ECHO_PORT)]
        # The distribution's: ours may lie in a directory that the app's user cannot enter.
        interpreter = ["/usr/bin/python3", "-I", "-B"]
        return [*interpreter, str(self.folder / "app.py"), self.spec.version, self.spec.name, *ports]

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float) -> None:
        """Wait until app and sidecar answer, at most `timeout` seconds.

        Raises LabError with the sidecar's last words when it ends, or does not get ready.
        """
        ended: list[str] = []

        def look() -> bool:
            ended[:] = [kind for kind in self._kinds() if not cgroup.processes(self.cgroup / kind)]
            return bool(ended) or self.is_ready

        what = f"the {'sidecar' if self.spec.sidecar else 'app'} of {self.spec.name} to be ready"
        if not until(look, timeout=timeout, awaiting=what) or ended:
            kind = (ended or [k for k in self._kinds() if not self._answers(k)] or ["sidecar"])[0]
            log = self.folder / (sidecar.LOG if kind == "sidecar" else _APP_LOG)
            fate = "ended" if ended else f"was not ready within {timeout:g} s"
            raise LabError(
                f"the {kind} of {self.spec.name} {fate}",
                hint=f"tail {log}",
                stderr=sidecar.last_words(log),
            )

    def _kinds(self) -> tuple[str, ...]:
        return ("sidecar", "app") if self.spec.sidecar else ("app",)

    def _answers(self, kind: str) -> bool:
        if kind == "sidecar":
            return sidecar.is_ready(self.netns)
        return self.spec.app == "sleep" or probe.says_ok(self.netns, layout.HTTP_PORT, "/hello")

    @property
    def is_ready(self) -> bool:
        """Whether its app and its sidecar answer now; known within a second."""
        return all(self._answers(kind) for kind in self._kinds())

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def is_there(self) -> bool:
        """Whether it has a network namespace: the part of it that the others are made around."""
        return netns.is_pinned(self.netns)

    @property
    def app_pid(self) -> int | None:
        """The app's process, found in its cgroup by what it runs; None if there is none."""
        found = self._process("app")
        return found.pid if found else None

    @property
    def sidecar_pid(self) -> int | None:
        """The sidecar's process, found in its cgroup by what it runs; None if there is none."""
        found = self._process("sidecar")
        return found.pid if found else None

    def _process(self, kind: str) -> Process | None:
        """Give the oldest process of a kind that runs what it should, where it should."""
        found = [each for each in self._processes(kind) if self._is_right(kind, each)]
        return min(found, key=lambda each: each.started, default=None)

    def _processes(self, kind: str) -> list[Process]:
        return [seen for pid in cgroup.processes(self.cgroup / kind) if (seen := process.look(pid))]

    def _is_right(self, kind: str, seen: Process) -> bool:
        if not (netns.is_pinned(self.netns) and netns.is_pinned(self.mntns)):
            return False
        if (seen.netns, seen.mntns) != (netns.inode(self.netns), netns.inode(self.mntns)):
            return False
        if kind == "sidecar":
            return seen.runs(self._machine.run / "envoy")
        return list(seen.argv) == self._app_argv()

    def _is_hopeful(self, seen: Process | None) -> bool:
        """Whether the sidecar answers, or is too young to be given up."""
        if seen is None or seen.is_stopped:
            return False
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - seen.started / _TICKS
        return age < _START or sidecar.is_ready(self.netns)

    def _is_altered(self) -> bool:
        """Whether the sidecar answers, but is not what was started here."""
        if not sidecar.is_ready(self.netns):
            return False
        seen = {kind: each for kind, each in self._seen().items() if kind == "sidecar"}
        return bool(inspection.differences(self.netns, self.spec, self.folder, seen))

    def problems(self) -> list[str]:
        """Say, a sentence each, what is not as `ensure` makes it; rules flushed on purpose are not a problem."""
        name = self.spec.name
        if not netns.is_pinned(self.netns):
            return [f"the network namespace of {name} is not there ({self.netns})"]
        found = [f"in the network namespace of {name} {each}" for each in links.differences(self.netns, POD_SYSCTLS)]
        found += self._link_problems() + self._rule_problems()
        if not netns.is_pinned(self.mntns):
            found.append(f"the mount namespace of {name} is not there ({self.mntns})")
        for kind in self._kinds():
            found += self._process_problems(kind)
        return found or inspection.differences(self.netns, self.spec, self.folder, self._seen())

    def _seen(self) -> dict[str, Process]:
        return {kind: seen for kind in self._kinds() if (seen := self._process(kind)) is not None}

    def _process_problems(self, kind: str) -> list[str]:
        seen, there = self._process(kind), self._processes(kind)
        where = f"the {kind} of {self.spec.name}"
        if seen is None and there:
            stray = ", in another network namespace" if there[0].netns != netns.inode(self.netns) else ""
            holds = f"{self.cgroup / kind} holds {there[0].command} (pid {there[0].pid}){stray}"
            return [f"{where} has been replaced: {holds}"]
        if seen is None:
            return [f"{where} is not running (no process in {self.cgroup / kind})"]
        if seen.is_stopped:
            return [f"{where} is stopped (pid {seen.pid})"]
        if not self._answers(kind):
            port = layout.HEALTH_PORT if kind == "sidecar" else layout.HTTP_PORT
            return [f"{where} does not answer on port {port} (pid {seen.pid})"]
        if kind == "sidecar" and not seen.has_open(self.access_log):
            return [f"the access log of {self.spec.name} is not the one that its sidecar writes ({self.access_log})"]
        return []

    def _link_problems(self) -> list[str]:
        name, address = self.spec.name, self.spec.ip
        found = []
        gateway = f"{layout.NODE_ADDRESS}/32"
        if not links.is_connected(self.netns, links.POD_END, address, {gateway, "0.0.0.0/0"}):
            found.append(f"{links.POD_END} of {name} is not there with its address {address} and its routes")
        if not netns.is_pinned(self._node.netns):
            found.append(f"{name} has no node to be linked to ({self._node.netns})")
        elif not links.is_connected(self._node.netns, self.spec.veth, layout.NODE_ADDRESS, {f"{address}/32"}):
            found.append(f"the node has no link {self.spec.veth} with a route to {name} ({address})")
        return found

    def _rule_problems(self) -> list[str]:
        if not self.spec.rules or self._is_flushed_on_purpose():
            return []
        name, backend = self.spec.name, self.spec.backend
        if not services.are_loaded(self.netns, services.pod_rules(), backend):
            return [f"the iptables rules of {name} are not Istio's ({backend} tables, {self.netns})"]
        if others := services.others(self.netns, backend):
            return [f"there are other rules in {name} than Istio's: {others[0]}"]
        return []

    def _is_flushed_on_purpose(self) -> bool:
        """Whether a save of this pod's rules is outstanding: a file in saved/ of its name, with any extension."""
        return any(saved.name.partition(".")[0] == self.spec.name for saved in self._machine.saved.glob("*"))

    # -- entering and removing -------------------------------------------------------------------------------------

    def argv_as_app(self, argv: Sequence[str]) -> list[str]:
        """Give the complete argv that runs `argv` as the app: its cgroup, namespaces and user, a clean environment.

        To be started by root on the host; the exit status is that of `argv`.
        """
        return enter.as_user(self.cgroup / "app", self.netns, self.mntns, layout.APP_ID, argv)

    def argv_as_root(self, argv: Sequence[str]) -> list[str]:
        """Give the complete argv that runs `argv` as root, with the host's tools, in the network namespace."""
        return enter.as_root(self.netns, argv)

    def remove(self, timeout: float = 10.0) -> None:
        """End the pod and delete everything of it; nothing there is fine. Raises LabError, OSError."""
        cgroup.remove(self.cgroup, timeout)
        if netns.is_pinned(self._node.netns):
            # A namespace is torn down at the kernel's leisure; its address may be wanted again at once.
            links.disconnect(self._node.netns, self.spec.veth)
        netns.unpin(self.netns)
        netns.unpin(self.mntns)
        shutil.rmtree(self.folder, ignore_errors=True)

    def typed(self) -> list[str]:
        """Give the lines a person would type as root to make it, once the node is there."""
        return by_hand.lines(self, self._node.netns, self._daemons())
