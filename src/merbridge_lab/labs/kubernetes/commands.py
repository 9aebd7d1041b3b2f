"""What a person types for a workload: its request, the way into its pod, and the commands for its rules there.

None of it reads from the cluster: values that only the cluster knows are arguments, or a placeholder (see
offline_commands).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from merbridge_lab.adapters import istioctl
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.lab import HELLO
from merbridge_lab.labs.kubernetes import manifests, nat_backends, topology
from merbridge_lab.labs.kubernetes.pod_netns import CTR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider, Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec

#: How many characters of a container's id are enough to identify it.
_SHORT = 12


class Process(Protocol):
    """A process of a pod: its PID on the node, and what one enters it with."""

    @property
    def node_exec(self) -> NodeExec:
        """What executes commands in it."""

    @property
    def pid(self) -> int | str:
        """The PID, or the placeholder for it."""


def inside(process: Process, *argv: str) -> str:
    """Return the command with which a person executes something in its network namespace."""
    return process.node_exec.shell_command(["nsenter", "-t", str(process.pid), "-n", *argv])


def shell(process: Process, text: str, *, before: str = "") -> str:
    """Return a person's command that reads or writes a file on the node; it needs `before`."""
    return process.node_exec.shell_command(["sh", "-c", f"{before}nsenter -t {process.pid} -n {text}"])


def request(spec: WorkloadSpec, context: str) -> str:
    """Return the walkthrough's request, as one types it in this lab."""
    asked = ["curl", "-s", HELLO.removeprefix("http://")]
    return pasteable(
        ["kubectl", "--context", context, "exec", f"deploy/{spec.name}", "-c", spec.container, "--", *asked]
    )


def request_without_ebpf(spec: WorkloadSpec) -> str:
    """Return the same request as the control experiment: sent by a client that the dataplane does not serve."""
    return f"merlab exec --without-ebpf {spec.name} -- curl -sS {HELLO.removeprefix('http://')}"


def enter(process: Process, container: str) -> list[str]:
    """Return the commands that find the process by its container's id and inspect its namespace."""
    tasks = process.node_exec.node.shell_command([*CTR, "tasks", "ls"])
    return [f"{tasks} | grep {container[:_SHORT]}", inside(process, "ip", "-o", "-4", "address", "show")]


def trace(node: Node) -> str:
    """Return the command that reads the trace on the node."""
    return node.shell_command(["cat", "/sys/kernel/tracing/trace_pipe"])


class Rules(ABC):
    """The commands for the nat rules of the workload `name`; subclasses know the tables and where they are."""

    def __init__(self, name: str) -> None:
        #: A copy for a person to look at.
        self.copied_at = f"{topology.STATE}/{name}.rules"

    @property
    @abstractmethod
    def backend(self) -> str:
        """The tables that hold the rules."""

    @property
    @abstractmethod
    def process(self) -> Process:
        """The process whose network namespace holds them."""

    def save_command(self) -> str:
        """Return the command that saves the rules with their counters."""
        save = f"{nat_backends.commands(self.backend).save} > {self.copied_at}"
        return shell(self.process, save, before=f"mkdir -p {topology.STATE} && ")

    def flush_command(self) -> str:
        """Return the command that flushes nat."""
        return inside(self.process, *nat_backends.commands(self.backend).flush)

    def restore_command(self) -> str:
        """Return the command that restores the saved rules."""
        return shell(self.process, f"{nat_backends.commands(self.backend).load} < {self.copied_at}")

    def list_command(self, chain: str = "") -> str:
        """Return the command that lists the nat rules, or those of one chain, with their counters."""
        return inside(self.process, *self.list_argv(chain))

    def list_argv(self, chain: str) -> Sequence[str]:
        """Return that command as it is typed in the namespace."""
        known = nat_backends.commands(self.backend)
        return [*known.list_chain, nat_backends.chain_name(self.backend, chain)] if chain else known.list_all


def put_in(settings: Settings, provider: ClusterProvider, *, helped: bool) -> list[str]:
    """Return the commands that install Istio and the pods; `helped` if the node needs a helper pod for its tools."""
    kubectl = f"kubectl --context {provider.context}"
    loaded = [ref for ref in settings.pod_images() if not ref.startswith("docker.io/")]
    hub, tag = f"--istio-hub={settings.istio_hub}", f"--istio-tag={settings.istio_tag}"
    helper = pasteable(["merlab", "manifests", "helper", hub, tag])
    install = [*istioctl.install_argv(settings.istio()), "--context", provider.context]
    return [
        *([provider.images.load_command(loaded)] if loaded else []),
        pasteable(install),
        *(f"merlab manifests {name}{_changed(name, settings)} | {kubectl} apply -f -" for name in manifests.APPLIED),
        *([f"{helper} | {kubectl} apply -f -"] if helped else []),
        f"{kubectl} wait --for=condition=Available deployment --all --timeout=120s",
    ]


def _changed(name: str, settings: Settings) -> str:
    """Return the options that named the images of a manifest."""
    default = type(settings).default().images
    mine = {key: ref for key, ref in settings.images.items() if key.startswith(name) and ref != default[key]}
    return "".join(f" --image {key}={ref}" for key, ref in mine.items())
