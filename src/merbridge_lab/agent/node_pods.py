"""The pods of the node: which there are, and what is known of each. It asks the runtime and the kernel, nobody else."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from merbridge_lab.agent import agent_log, enrolment, pod_facts
from merbridge_lab.agent.tracked_pod import TrackedPod
from merbridge_lab.dataplane import Endpoint, istio_annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from merbridge_lab.adapters.cri_runtime import Runtime, Sandbox
    from merbridge_lab.agent.pod_facts import PodFacts
    from merbridge_lab.agent.refusals import Refusal
    from merbridge_lab.dataplane import Legs


class NodePods:
    """The pods of the node, by the id of their sandboxes; `selector` is told of the processes to wait for."""

    def __init__(self, runtime: Runtime, cgroups: Path, legs: Legs, selector: selectors.BaseSelector) -> None:
        self._runtime, self._cgroups, self._legs, self._selector = runtime, cgroups, legs, selector
        self.pods: dict[str, TrackedPod] = {}
        self._node: set[int] = set()
        #: May a pod be served, by its namespace's labels? Asked before the kernel is.
        self.of_namespace: Callable[[Sandbox], Refusal | None] = lambda _sandbox: None

    def refresh(self) -> list[TrackedPod]:
        """Ask the runtime which pods there are; return those that are gone. Raises LabError."""
        running = self._runtime.running()
        gone = [self.drop(identity) for identity in self.pods.keys() - running.keys()]
        now = time.monotonic()
        for identity in running.keys() - self.pods.keys():
            sandbox = self._runtime.sandbox(identity)
            if sandbox is not None:
                self.pods[identity] = TrackedPod(sandbox, woken=now, due=now)
                self._wait_for(self.pods[identity], "sandbox", sandbox.pid)
        return gone

    def drop_ended(self, watched: Collection[str]) -> list[TrackedPod]:
        """Drop and return the pods without processes, and without one of the cgroups `watched` (of pods, by uid)."""
        gone = [
            identity
            for identity, pod in self.pods.items()
            if "sandbox" not in pod.processes and pod.sandbox.uid not in watched
        ]
        return [self.drop(identity) for identity in gone]

    def drop(self, identity: str) -> TrackedPod:
        """Remove a pod that is gone, and return it."""
        pod = self.pods.pop(identity)
        pod.stop_listening()
        for role in list(pod.processes):
            self._stop_waiting(pod, role)
        return pod

    def ended(self, pod: TrackedPod, role: str) -> None:
        """Note that a process of a pod has ended."""
        self._stop_waiting(pod, role)
        pod.woken = pod.due = time.monotonic()

    def examine(self, pod: TrackedPod, *, is_proven: bool) -> Endpoint | None:
        """Read a pod, and return the endpoint to serve; None if it is left to the rules, with the refusal in the pod.

        `is_proven`: it is served already, so its rules were there, and it stays if they are flushed.
        """
        sandbox = pod.sandbox
        refusal = enrolment.of_sandbox(sandbox)
        if refusal is not None and refusal.is_pending:
            fresh = self._runtime.sandbox(sandbox.id)
            if fresh is not None:
                pod.sandbox = sandbox = fresh
                self._wait_for(pod, "sandbox", fresh.pid)
                refusal = enrolment.of_sandbox(fresh)
        if refusal is None:
            refusal = self.of_namespace(sandbox)
            if is_proven and refusal is not None and refusal.id == "namespace_unknown":
                refusal = None  # what is served goes on while the API server is away
        facts = None
        if refusal is None:
            facts = pod_facts.read(sandbox, self._cgroups, self._node_netns(), self._others(pod), is_proven=is_proven)
            pod.netns = facts.netns
            refusal = enrolment.of_kernel(facts)
        if refusal is not None:
            self.refuse(pod, refusal)
            return None
        return self._endpoint(pod, facts) if facts else None

    def _node_netns(self) -> set[int]:
        """Return the network namespaces of the node: that of its first process, and of the runtime.

        A security module may deny the one, and in a node that is a container itself both are the node's.
        """
        if not self._node:
            with contextlib.suppress(OSError):
                self._node.add(pod_facts.netns_of(1).stat().st_ino)
            with contextlib.suppress(OSError):
                self._node.add(pod_facts.netns_of(self._runtime.pid()).stat().st_ino)
        return self._node

    def _others(self, pod: TrackedPod) -> dict[int, str]:
        """Return the names of the other pods by the inode of their namespace; those of the host's do not count."""
        found = {}
        for other in self.pods.values():
            if other is not pod and other.sandbox.pid and not other.sandbox.is_on_host_network:
                if not other.netns:
                    with contextlib.suppress(OSError):
                        other.netns = pod_facts.netns_of(other.sandbox.pid).stat().st_ino
                found[other.netns] = other.full_name
        return found

    @staticmethod
    def refuse(pod: TrackedPod, refusal: Refusal) -> None:
        """Note that a pod is left to the rules, and why."""
        if pod.refusal != refusal:
            agent_log.say("left to the rules", pod=pod.full_name, reason=refusal.id, why=refusal.sentence)
        pod.refusal = refusal

    def _endpoint(self, pod: TrackedPod, facts: PodFacts) -> Endpoint | None:
        sandbox, where, sidecar = pod.sandbox, facts.cgroup, facts.sidecar
        if where is None or sidecar is None:
            return None
        self._wait_for(pod, "sidecar", sidecar.pid)
        return Endpoint(
            namespace=sandbox.namespace,
            name=sandbox.name,
            uid=sandbox.uid,
            ip=sandbox.addresses[0],
            netns=pod_facts.netns_of(sandbox.pid),
            cgroup=where,
            sidecar=sidecar,
            legs=self._legs,
            interception=replace(istio_annotations.parse(sandbox.annotations), routes=facts.routes),
        )

    def _wait_for(self, pod: TrackedPod, role: str, pid: int) -> None:
        """Be woken when a process ends; one that is waited for in this role already is not waited for any more."""
        self._stop_waiting(pod, role)
        if not pid:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # it has ended: the next look shows it
        pod.processes[role] = descriptor
        self._selector.register(descriptor, selectors.EVENT_READ, (pod.sandbox.id, role))

    def _stop_waiting(self, pod: TrackedPod, role: str) -> None:
        descriptor = pod.processes.pop(role, None)
        if descriptor is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)
            os.close(descriptor)
