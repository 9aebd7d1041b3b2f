"""A workload as the steps see it."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from merbridge_lab import accesslog, hints, polling
from merbridge_lab.adapters import kubernetes_exec
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.adapters.kubernetes_api import NotFoundError
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.evidence import Unread
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.kubernetes import commands, nat_backends, pod_netns, pods, topology
from merbridge_lab.labs.kubernetes.rules import PodRules
from merbridge_lab.process_identity import ProcessIdentity
from merbridge_lab.ruleset import NATIVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.pod_netns import Process
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec
    from merbridge_lab.observation import Exchange

#: The character of an x-request-id that Envoy changes if it decides about tracing (its UUID extension).
_TRACED = 14
#: Seconds until Istio has told a sidecar of a new service.
_KNOWN = 20.0
_SHELL_BIN = f"{topology.STATE}/bin"


class KubernetesWorkload:
    """A workload on the cluster; `keep` leaves its rules flushed after a flush."""

    def __init__(self, api: Api, spec: WorkloadSpec, node_exec: NodeExec, *, keep: bool = False) -> None:
        self._api, self.spec, self._node_exec = api, spec, node_exec
        self.name = spec.name
        self._known: tuple[Pod, Process] | None = None
        self.rules = PodRules(spec.name, node_exec, self.found, keep=keep)

    @property
    def url(self) -> str:
        """The URL of its app at the pod's own address."""
        return f"http://{self.pod.ip}:5000/hello"

    def found(self, refresh: bool) -> tuple[Pod, Process]:
        """Return its pod and its app's process, as they were first found or, with `refresh`, as they are now."""
        if self._known is None or refresh:
            pod = pods.running_pod(pods.active_pods(self._api, self.spec), self.spec)
            self._known = (pod, pod_netns.find(self._node_exec, pod, self.spec.container))
        return self._known

    def see(self, pod: Pod) -> None:
        """Record the pod as it is now; discard what was found of a pod that was restarted."""
        if self._known and (self._known[0].uid, self._known[0].containers) != (pod.uid, pod.containers):
            self._known = None

    @property
    def pod(self) -> Pod:
        """Its pod."""
        return self.found(refresh=False)[0]

    # -- requests ---------------------------------------------------------------------------------------------------

    def ask(self, url: str) -> Exchange:
        """Send one request, as its app."""
        nonce = request_batch.new_nonce()
        argv = request_batch.curl(nonce, url)
        pod = self.pod
        try:
            status, stdout, stderr = kubernetes_exec.execute(
                self._api, topology.NAMESPACE, pod.name, self.spec.container, argv, request_batch.REQUEST + 5
            )
        except NotFoundError as error:
            raise pod_netns.RestartedError(
                f"the pod {pod.name} is gone: {self.name} was restarted meanwhile", hint="type this again"
            ) from error
        return request_batch.read(nonce, url, status, stdout, stderr)

    def await_answer(self, url: str) -> None:
        """Wait until its app is served at `url`: its sidecar learns of a new service with a delay. Raises LabError."""
        last = "not asked yet"

        def answers() -> bool:
            nonlocal last
            exchange = self.ask(url)
            last = str(exchange)
            return exchange.served

        if not polling.poll_until(answers, timeout=_KNOWN, every=0.2, awaiting=f"{self.name} to reach {url}"):
            raise LabError(
                f"{self.name} did not reach {url} within {_KNOWN:.0f} s: {last}",
                hint="merlab status",
                id="pod.not_ready",
            )

    def log(self) -> SidecarLog:
        """Return what its sidecar writes into its access log from now on. Raise ClaimFailedError if it has none."""
        if not self.pod.sidecar:
            raise ClaimFailedError(f"{self.pod.name} has no sidecar: merlab up gives it one")
        return SidecarLog(self._api, self.pod.name)

    def changed_sources(self) -> Mapping[str, frozenset[str]]:
        """Return the source addresses that conntrack changed in its network, and on its node."""
        return pod_netns.changed_sources(self.found(refresh=False)[1])

    def end_connections(self, port: int) -> bool:
        """End what was dialled from its pod to a port, as a sidecar keeps for an hour; return whether none is left."""
        return pod_netns.end_connections(self.found(refresh=False)[1], port)

    def logged(self, tail: int = 2000) -> str:
        """Return the end of its sidecar's log."""
        return self._api.log(topology.NAMESPACE, self.pod.name, topology.SIDECAR, tail=tail)

    def request_command(self, *, without_ebpf: bool = False) -> str:
        """Return the walkthrough's request, as one types it in this lab."""
        if without_ebpf:
            return commands.request_without_ebpf(self.spec)
        return commands.request(self.spec, self._api.context)

    # -- entering ---------------------------------------------------------------------------------------------------

    def enter_commands(self) -> list[str]:
        """Return the command that finds the app's process, and the one that inspects its namespaces."""
        pod, process = self.found(refresh=False)
        return commands.enter(process, pod.containers[self.spec.container])

    def enter(self) -> ProcessIdentity:
        """Find the app's process and inspect its namespaces; the pod's sandbox shows what they should be."""
        pod = pods.running_pod(pods.active_pods(self._api, self.spec), self.spec)
        pids = pod_netns.tasks(self._node_exec.node)
        cid = pod.containers[self.spec.container]
        holder = next((pids[each] for each in pod_netns.sandboxes(self._node_exec.node, pod.uid) if each in pids), None)
        expected = pod_netns.look(self._node_exec, holder).netns if holder else 0
        cgroup = f"pod{pod.uid}/{cid}"
        if cid not in pids:
            return ProcessIdentity(self.name, None, "", pod.ip, (), expected, 0, cgroup, "")
        process = pod_netns.look(self._node_exec, pids[cid])
        return ProcessIdentity(
            workload=self.name,
            pid=process.pid,
            comm=process.comm,
            expected_address=pod.ip,
            addresses=process.addresses,
            expected_netns=expected,
            netns=process.netns,
            expected_cgroup=cgroup,
            cgroup=pod_netns.cgroup_names(process.cgroup),
            looked=process.looked,
        )

    # -- by hand ----------------------------------------------------------------------------------------------------

    def app_argv(self, argv: Sequence[str], *, terminal: bool | None = None) -> list[str]:
        """Return the argv that runs `argv` as the app: its user, its files, its network; it needs no kubeconfig.

        It uses a terminal if we have one, unless told otherwise.
        """
        pod = self.pod
        if terminal is None:
            terminal = sys.stdin.isatty() and sys.stdout.isatty()
        options = ["--exec-id", f"merlab-{uuid.uuid4().hex[:12]}", *(["--tty"] if terminal else [])]
        command = [*pod_netns.CTR, "tasks", "exec", *options, pod.containers[self.spec.container], *argv]
        return self._node_exec.node.argv(command, terminal=terminal)

    @contextlib.contextmanager
    def shell(self, *, netns: bool) -> Iterator[tuple[list[str], str]]:
        """Yield the argv of a shell as the app (with `netns`: as root in the network namespace), and a welcome text."""
        if not netns:
            argv = self.app_argv(["env", f"PS1=merlab:{self.name}$ ", "sh", "-i"], terminal=True)
            yield argv, f"you are {self.name}'s app; try: curl -s helloworld:5000/hello. exit leaves."
            return
        _, process = self.found(refresh=True)
        backend = self.rules.backend
        if backend == NATIVE:
            told = f"its rules are nftables' own. Try: {pasteable(nat_backends.commands(NATIVE).list_all)}"
        else:
            told = f"iptables is iptables-{backend}. Try: iptables -t nat -vnL"
            self._node_exec.execute(["sh", "-c", _LINKS, "sh", f"{_SHELL_BIN}/{backend}", backend])
        path = f"PATH={_SHELL_BIN}/{backend}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        run = ["nsenter", "-t", str(process.pid), "-n", "env", path, f"PS1=merlab:{self.name}(netns)# ", "sh", "-i"]
        welcome = f"you are root on the node, in the network namespace of {self.name}; {told}. exit leaves."
        yield self._node_exec.argv(run), f"{welcome}\n{hints.as_the_app(_AS_APP.format(self.name))}"

    def changes(self) -> list[str]:
        """Describe how the rules differ from Istio's, and how to restore them."""
        if self.rules.outstanding:
            return [f"the nat rules of {self.name} are flushed; merlab restore puts them back"]
        seen = self.rules.snapshot()
        if unread := seen.unread:
            return [f"whether the rules of {self.name} are as Istio made them is not known: {unread[0]}"]
        if fault := seen.fault():
            return [f"the rules of {self.name} are not as Istio made them: they {fault}; merlab up recreates the pod"]
        return []


_AS_APP = "merlab exec {} -- curl -s helloworld:5000/hello"

_LINKS = """
mkdir -p "$1" && for tool in iptables iptables-save iptables-restore; do
    ln -sf "$(command -v "iptables-$2${tool#iptables}")" "$1/$tool"
done
"""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SidecarLog:
    """What a sidecar has printed since this object was created.

    The cluster's clock is not ours, so lines are selected by age. The age is measured by a clock that continues while
    the machine is suspended, as the cluster's does.
    """

    def __init__(self, api: Api, pod: str) -> None:
        self._api, self._pod = api, pod
        self._source = f"envoy:{pod}/access"
        self._began = _now()

    def lines(self) -> tuple[AccessLogLine, ...] | Unread:
        """Return the lines of the access log; or Unread if they are in another format."""
        since = int(_now() - self._began) + 1
        return read_log(self._api.log(topology.NAMESPACE, self._pod, topology.SIDECAR, since=since), self._source)


def read_log(text: str, source: str = "envoy:sidecar/access") -> tuple[AccessLogLine, ...] | Unread:
    """Parse an access log whose request ids may have been marked by Envoy for tracing."""
    lines = accesslog.read(text, source)
    if isinstance(lines, Unread):
        return lines
    return tuple(replace(line, request_id=unmarked(line.request_id)) for line in lines)


def unmarked(request_id: str) -> str:
    """Return an x-request-id as it was sent: a UUID of version 4."""
    if len(request_id) > _TRACED and request_id[_TRACED] in "9ab":
        return f"{request_id[:_TRACED]}4{request_id[_TRACED + 1 :]}"
    return request_id
