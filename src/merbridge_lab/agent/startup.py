"""Start the agent of a node: one at a time, on a dataplane that it adopts, takes over, or loads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merbridge_lab import __version__, signals
from merbridge_lab.adapters import capabilities, cri_runtime, mounts
from merbridge_lab.agent import agent_log, agent_status, http_server
from merbridge_lab.agent.agent_status import Sources
from merbridge_lab.agent.node_state import NodeState, default_generation
from merbridge_lab.agent.pod_events import PodEvents
from merbridge_lab.agent.service import Service
from merbridge_lab.dataplane import Legs, Profile, Reconciler, abi, reader_legs
from merbridge_lab.errors import LabError
from merbridge_lab.polling import poll_until
from merbridge_lab.text import read_text

#: How long an agent waits for the one before it to end, in seconds, before it says so again.
_BUSY = 60.0
#: Without these the agent can serve no pod. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
_NEEDED = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
#: How long `remove` waits for a running agent to end, and for redirected bytes to be read, in seconds.
_END, _DRAIN = 30.0, 5.0


@dataclass(frozen=True)
class Places:
    """Where things are, as this process sees them.

    `pins` is a directory on the node's bpffs, `run` is lost when the node restarts, `state` is kept. `cri` is the
    runtime's socket, `cgroups` where cgroup2 is mounted.
    """

    pins: Path
    run: Path
    state: Path
    cri: Path
    cgroups: Path

    def reconciler(self) -> Reconciler:
        """Return the dataplane of the node."""
        return Reconciler(self.pins)

    def sources(self) -> Sources:
        """Return where the state of the node is. Raises LabError."""
        self.require_pins()
        return Sources(self.node(), self.reconciler())

    def node(self) -> NodeState:
        """Return what is kept of the node in files."""
        return NodeState(self.run, self.state)

    def require_pins(self) -> None:
        """Raise LabError if the directory of pins is not on a bpffs: nothing would be found there, nor removed."""
        if mounts.type_of(self.pins) != "bpf":
            raise LabError(
                f"{self.pins} is not on a bpffs: expected the agent's pins there; --pins names their directory",
                hint="findmnt -t bpf",
                id="agent.no_pins",
            )


def run(places: Places, profile: Profile, *, generation: int | None, port: int, debug: bool, once: bool) -> None:
    """Run the agent until it is told to end; programs and pins stay. Raises LabError."""
    agent_log.begin()
    generation = default_generation(__version__) if generation is None else generation
    node, reconciler = places.node(), places.reconciler()
    _take(node, generation)
    node.begin()
    with cri_runtime.Runtime(places.cri) as runtime:
        legs = _legs(profile)
        install = functools.partial(_install, places, reconciler, node, generation, debug=debug)
        agent_log.say(
            "started", version=__version__, generation=generation, legs=legs.why, redirecting=node.is_redirecting
        )
        pulse, written, events = http_server.Pulse(), _Written(node, generation), PodEvents()

        def changed(service: Service) -> None:
            written.write(service)
            events.update(service.pods)

        service = Service(
            runtime,
            reconciler,
            places.cgroups,
            legs,
            install=install,
            redirecting=lambda: node.is_redirecting,
            changed=changed,
            turned=pulse.beat,
        )
        if not once:
            from merbridge_lab.agent import metrics

            sources = Sources(node, reconciler)
            answers = http_server.start(port, sources, pulse, metrics.text(sources, events.results), service.look_again)
            agent_log.say("answers on the loopback", port=answers)
            events.start()
        service.run(once=once)
    agent_log.say("ends; what is served goes on")


def _install(places: Places, reconciler: Reconciler, node: NodeState, generation: int, *, debug: bool) -> None:
    """Have the programs in order, with the switches as they are wanted. Raises LabError, OSError."""
    places.require_pins()
    _require_capabilities()
    reconciler.install()
    node.record(generation, abi.stamp())
    if reconciler.redirecting != node.is_redirecting:
        reconciler.redirecting = node.is_redirecting
    if reconciler.debug != debug:
        reconciler.debug = debug


def _require_capabilities() -> None:
    """Raise LabError if this process may not attach programs: else the first of many refusals would be the reason."""
    if lacking := capabilities.missing(_NEEDED, read_text(Path("/proc/self/status"))):
        raise LabError(
            f"the agent may not attach programs: it lacks {' and '.join(lacking)}",
            hint="kubectl -n merlab-agent get daemonset merlab-agent -o yaml",
            id="agent.capabilities",
        )


def _take(node: NodeState, generation: int) -> int:
    """Take the node's lock; wait for the agent before this one to end. Raises LabError."""
    while True:
        node.require_not_older(generation, abi.stamp())
        descriptor = node.take()
        if descriptor is None:
            agent_log.say("waits for another agent of this node to end")
            descriptor = poll_until(node.take, timeout=_BUSY, awaiting="the other agent to end")
        if descriptor is not None:
            node.require_not_older(generation, abi.stamp())  # the other one may have been newer
            return descriptor
        signals.checkpoint()


def _legs(profile: Profile) -> Legs:
    """Decide which legs the pods have; probe the kernel if that matters.

    An agent that may not probe goes on with the fewest legs: it is to say of each pod why it cannot be served.
    """
    try:
        return reader_legs.for_profile(profile)
    except OSError as error:
        agent_log.warn("it cannot be read what this kernel does to sockets of apps", why=str(error))
        return reader_legs.unprobed(profile)


class _Written:
    """Writes the state to the node's disk when it differs from what was written last."""

    def __init__(self, node: NodeState, generation: int) -> None:
        self._node, self._generation = node, generation
        self._last: dict[str, Any] = {}

    def write(self, service: Service) -> None:
        state = agent_status.state(
            service.pods,
            generation=self._generation,
            ready=service.is_ready,
            programs_problem=service.programs_problem,
            runtime_problem=service.runtime_problem,
            namespaces_asked=service.are_namespaces_asked,
        )
        if state == self._last:
            return
        try:
            self._node.write(state)
        except OSError as error:
            agent_log.warn("the state cannot be written", why=str(error))
        else:
            self._last = state


def remove(places: Places) -> dict[str, Any]:
    """Detach everything and leave no pin and no file; wait for a running agent to end. Raises LabError."""
    places.require_pins()
    node = places.node()
    descriptor = node.take() or poll_until(node.take, timeout=_END, awaiting="the agent to end")
    if descriptor is None:
        raise LabError(
            "an agent runs on this node, and it would attach everything again",
            hint="kubectl -n merlab-agent delete daemonset merlab-agent",
            id="lab.busy",
        )
    detached = places.reconciler().remove(_DRAIN)
    node.forget()
    return {"schema": 1, "drained": detached.drained, "left": detached.left}


def redirect(places: Places, *, on: bool) -> None:
    """Switch redirecting for the whole node; it stays so when the agent starts again. Raises LabError."""
    places.require_pins()
    places.node().is_redirecting = on
    places.reconciler().redirecting = on


def debug(places: Places, *, on: bool) -> None:
    """Switch the trace for the whole node, until the agent starts again; off it is where nothing is loaded.

    Raises LabError.
    """
    places.require_pins()
    reconciler = places.reconciler()
    if on or reconciler.is_loaded:
        reconciler.debug = on
