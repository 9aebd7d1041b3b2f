"""One pod: namespaces, a link to the node, rules, an app and a sidecar."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup, iptables, links, mounts, netns
from merbridge_lab.adapters.files import add_log, delete_tree, make_folder, set_mode
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.labs.embedded import (
    commands,
    envoy,
    envoy_drift,
    filesystem,
    lab_paths,
    mount_view,
    mtls_probe,
    namespaces,
    pod_link,
    rule_templates,
    topology,
)
from merbridge_lab.labs.embedded.processes import APP_LOG, Processes
from merbridge_lab.labs.embedded.saved_rules import SaveFile
from merbridge_lab.polling import limit, poll_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.adapters.network_dump import Network
    from merbridge_lab.adapters.procfs import Process
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.topology import PodSpec


#: How often a pod that starts is asked whether it is ready, in seconds: an Envoy takes a tenth of a second.
_OFTEN = 0.02


class Pod:
    """One pod, by its spec; its state is in the kernel."""

    def __init__(self, machine: Machine, node: Node, spec: PodSpec) -> None:
        self._machine = machine
        self._node = node
        self.spec = spec
        self.netns: Path = machine.netns(spec.name)
        self.mntns: Path = machine.mntns(spec.name)
        self.run: Path = machine.run
        self.folder: Path = machine.run / "pods" / spec.name
        self.processes = Processes(machine, spec, self.folder)
        self.cgroup = self.processes.cgroup
        self.access_log = self.folder / envoy.ACCESS_LOG

    # -- making ----------------------------------------------------------------------------------------------------

    def ensure(self, node: Network | None = None) -> None:
        """Create what is missing and replace what is not in order; do not wait for the sidecar.

        `node` is what was just read of the node's namespace. Raises LabError, OSError.
        """
        make_folder(self.folder, parents=True)
        set_mode(self.folder, 0o755)
        is_new = self._ensure_network(node)
        restart = self._ensure_sidecar_files() if self.spec.sidecar else False
        self._ensure_files()
        for kind in ("app", "sidecar"):
            make_folder(self.cgroup / kind, parents=True)
        self.processes.release()
        if self.spec.sidecar and (restart or not self.processes.is_hopeful("sidecar") or self._is_altered()):
            self.processes.start("sidecar", first=is_new)
        if not self.processes.is_hopeful("app"):
            self.processes.start("app", first=is_new)

    def _ensure_network(self, node: Network | None) -> bool:
        """Create the network namespace, or mend it; return whether it is a new one."""
        if not self._lives_in(self.netns):
            # Nothing is changed in it: it may be another pod's, or the machine's, under this pod's name.
            self._create_network()
            return True
        links.set_up(self.netns, pod_link.POD_SYSCTLS)
        is_new = False
        if self._link_problems(node):
            self._connect()
            if is_new := bool(self._link_problems()):
                # Something other than the link is wrong in it: it is recreated, and the processes in it are restarted.
                self._create_network()
        if not is_new and self._rule_problems():
            iptables.clear(self.netns, but=self.spec.backend, tables=rule_templates.OURS)
            self._load_rules()
        return is_new

    def _create_network(self) -> None:
        netns.unpin(self.netns)
        netns.create(self.netns, netns.NEWNET)
        links.set_up(self.netns, pod_link.POD_SYSCTLS)
        self._connect()
        if self.spec.rules:
            self._load_rules()

    def _load_rules(self) -> None:
        iptables.load(self.netns, rule_templates.pod_rules(self.spec.annotations), self.spec.backend)

    def _lives_in(self, pin: Path) -> bool:
        """Report whether a process of the pod is in the namespace pinned at `pin`, and that is not the machine's."""
        there = [seen for kind in self.processes.kinds for seen in self.processes.there(kind)]
        return netns.is_pinned(pin) and not lab_paths.is_machines(pin) and netns.inode(pin) in {p.netns for p in there}

    def _connect(self) -> None:
        links.connect(self._node.netns, self.spec.veth, self.spec.name, self.netns, self.spec.ip, topology.NODE_ADDRESS)

    def _link_problems(self, node: Network | None = None) -> list[str]:
        return list(pod_link.of_pod(self.spec, self.netns, self._node.netns, node))

    def _ensure_sidecar_files(self) -> bool:
        """Write the files that a sidecar reads and writes; return whether it must be restarted to read them."""
        while mounts.at(self.access_log) is not None:
            mounts.umount(self.access_log)
        changed = envoy.furnish(self._machine, self.spec, self.folder)
        running = self.processes.find("sidecar")
        return changed or (running is not None and not running.has_open(self.access_log))

    def _ensure_files(self) -> None:
        changed = filesystem.write(self.spec, self.folder)
        add_log(self.folder / APP_LOG, topology.APP_ID)
        if changed or not netns.is_pinned(self.mntns) or self.view_problems() or not self._has_view():
            netns.unpin(self.mntns)
            program = envoy.program(self._machine) if self.spec.has_envoy else None
            netns.create(
                self.mntns,
                netns.NEWNS,
                lambda: filesystem.populate_mount_namespace(self._machine.run, self.spec, self.folder, program),
            )

    def _has_view(self) -> bool:
        """Report whether the pod sees the package's Envoy, in the lab's current view and not in an earlier one."""
        if not self.spec.sidecar:
            return True
        own = self._machine.run / "envoy"
        with contextlib.suppress(OSError):
            if os.path.samestat(own.stat(), netns.run_inside(self.mntns, own.stat, netns.NEWNS)):
                return not mount_view.shows_another_envoy(self.mntns, self._machine.run)
        return False

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float) -> None:
        """Wait until app and sidecar are ready, at most `timeout` seconds.

        Raise LabError with the sidecar's last log lines if it ends, or does not get ready.
        """
        ended: list[str] = []

        def look() -> bool:
            ended[:] = [kind for kind in self.processes.kinds if not cgroup.processes(self.cgroup / kind)]
            return bool(ended) or self.is_ready

        what = f"the {'sidecar' if self.spec.sidecar else 'app'} of {self.spec.name} to be ready"
        if not poll_until(look, timeout=timeout, awaiting=what, every=_OFTEN) or ended:
            kind = (ended or [k for k in self.processes.kinds if not self._answers(k)] or ["sidecar"])[0]
            log = self.folder / (envoy.LOG if kind == "sidecar" else APP_LOG)
            fate = "ended" if ended else f"was not ready within {limit(timeout):g} s"
            raise LabError(
                f"the {kind} of {self.spec.name} {fate}",
                hint=f"tail {log}",
                stderr=envoy.last_words(log),
                id="sidecar.failed",
            )

    def _answers(self, kind: str) -> bool:
        return self.processes.answers(kind)

    @property
    def is_ready(self) -> bool:
        """Report whether its app and its sidecar answer now, within a second."""
        return all(self._answers(kind) for kind in self.processes.kinds)

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def app_pid(self) -> int | None:
        """The app's process, found in its cgroup by its program; None if there is none."""
        found = self.processes.find("app")
        return found.pid if found else None

    @property
    def sidecar_pid(self) -> int | None:
        """The sidecar's process, found in its cgroup by its program; None if there is none."""
        found = self.processes.find("sidecar")
        return found.pid if found else None

    def _is_right(self, kind: str, seen: Process) -> bool:
        return not self.processes.mismatch(kind, seen)

    def _is_altered(self) -> bool:
        """Report whether the sidecar answers, but is not the one that merlab started."""
        if not envoy.is_ready(self.netns):
            return False
        seen = {kind: each for kind, each in self.processes.seen().items() if kind == "sidecar"}
        return bool(self._differences(seen))

    def problems(self, node: Network | None = None) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates, except rules flushed on purpose.

        `node` is what was just read of the node's namespace.
        """
        name = self.spec.name
        if not netns.is_pinned(self.netns):
            return [f"the network namespace of {name} is not there ({self.netns})"]
        seen = self.processes.seen()
        # Before app and sidecar are contacted: a setting on their listeners may be the reason why they do not answer.
        found = self._link_problems(node) + self._rule_problems() + envoy_drift.options(self.netns, name, seen)
        if not netns.is_pinned(self.mntns):
            found.append(f"the mount namespace of {name} is not there ({self.mntns})")
        for kind in self.processes.kinds:
            found += self.processes.problems(kind, seen.get(kind), self.access_log)
        found += self.processes.limited()
        return found or self._differences(seen) or self.view_problems() or self.processes.besides()

    def view_problems(self) -> list[str]:
        """Describe which replaced files its processes see, and the requests that are sent as one of them.

        Raises OSError.
        """
        return mount_view.differences(self.mntns, self.spec, self._machine.run, self.folder)

    def require_view(self) -> None:
        """Raise ClaimFailedError if it sees something else than merlab arranged."""
        if netns.is_pinned(self.mntns) and (found := self.view_problems()):
            raise ClaimFailedError(found[0])

    def _differences(self, seen: dict[str, Process]) -> list[str]:
        found = envoy_drift.differences(self.netns, self.spec, self.folder, seen, self.processes.there("app"))
        is_strict_server = self.spec.app == "helloworld" and self.spec.sidecar and not self.spec.permissive
        if found or "sidecar" not in seen or not is_strict_server:
            return found
        return mtls_probe.problems(self._node.netns, self.spec)

    def _rule_problems(self) -> list[str]:
        if not self.spec.rules or self._is_flushed_on_purpose():
            return []
        name, backend = self.spec.name, self.spec.backend
        return rule_templates.problems(
            self.netns,
            rule_templates.pod_rules(self.spec.annotations),
            backend,
            where=name,
            wrong=f"the iptables rules of {name} are not Istio's ({backend} tables, {self.netns})",
            stray=f"there are other rules in {name} than Istio's",
        )

    def _is_flushed_on_purpose(self) -> bool:
        """Report whether there is a good save of the rules of exactly this network namespace."""
        return SaveFile(self._machine.saved, self.spec.name).is_of(self.netns)

    # -- entering and removing -------------------------------------------------------------------------------------

    def argv_as_app(self, argv: Sequence[str]) -> list[str]:
        """Return the complete argv that runs `argv` as the app: its cgroup, namespaces and user, a clean environment.

        Root must start it on the host; the exit status is that of `argv`.
        """
        return namespaces.as_user(self.cgroup / "app", self.netns, self.mntns, topology.APP_ID, argv)

    def argv_as_root(self, argv: Sequence[str]) -> list[str]:
        """Return the complete argv that runs `argv` as root, with the host's tools, in the network namespace."""
        return namespaces.as_root(self.netns, argv)

    def remove(self, timeout: float = 10.0) -> None:
        """Stop the pod and delete everything of it; succeed if nothing is there. Raises LabError, OSError."""
        for kind in self.processes.kinds:
            self.processes.end_astray(kind)
        cgroup.remove(self.cgroup, timeout)
        if netns.is_pinned(self._node.netns) and not lab_paths.is_machines(self._node.netns):
            # The kernel removes a namespace some time later; its address may be needed again at once.
            links.disconnect(self._node.netns, self.spec.veth)
        netns.unpin(self.netns)
        netns.unpin(self.mntns)
        delete_tree(self.folder)

    def shell_commands(self) -> list[str]:
        """Return the lines that a person would type as root to create it, once the node exists."""
        return commands.lines(self, self._node.netns, self.processes.daemons())
