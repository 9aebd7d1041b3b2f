"""The loop of the agent: woken by the kernel, it reconciles one pod at a time.

A pod's cgroup that appears or changes, and a sandbox or sidecar that ends, wake it at once. Only a pod that has Istio's
rules and waits for its sidecar is looked at again and again: its listeners, 20 times a second.
"""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.agent import agent_log, look_intervals, pod_facts
from merbridge_lab.agent.namespace_labels import NamespaceLabels
from merbridge_lab.agent.node_pods import NodePods
from merbridge_lab.agent.pod_watch import PodWatch
from merbridge_lab.agent.refusals import Refusal
from merbridge_lab.agent.signal_wakeups import Bell, woken_by_signals
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from merbridge_lab.adapters.cri_runtime import Runtime
    from merbridge_lab.agent.tracked_pod import TrackedPod
    from merbridge_lab.dataplane import Legs, Reconciler

#: Seconds between questions to the runtime: while a pod's cgroup has no sandbox yet, for how long, and otherwise.
_LIST_SOON, _LIST_FIRST, _LIST = 0.1, 20.0, 10.0
#: After how many seconds without an answer of the runtime the agent is not ready: it misses pods that are new.
_SILENT = 60.0
#: Seconds between clean-ups of what belongs to no connection any more.
_SETTLE = 60.0


class Service:
    """Reconciles the pods of a node until `stop`.

    `install` makes the programs be in order. `redirecting` tells if the kill switch lets them redirect. `changed` is
    called when something is new for who reads the state, `turned` each time that the loop has turned.
    """

    def __init__(
        self,
        runtime: Runtime,
        reconciler: Reconciler,
        cgroups: Path,
        legs: Legs,
        *,
        install: Callable[[], None],
        redirecting: Callable[[], bool],
        changed: Callable[[Service], None],
        turned: Callable[[], None],
    ) -> None:
        self._reconciler, self._install, self._redirecting = reconciler, install, redirecting
        self._changed, self._turned = changed, turned
        self._selector = selectors.DefaultSelector()
        self._pods = NodePods(runtime, cgroups, legs, self._selector)
        labels = NamespaceLabels()
        self._pods.of_namespace = labels.refusal
        self._ask_again = labels.forget
        #: Whether namespaces may opt out: only the API server knows their labels.
        self.are_namespaces_asked = labels.are_asked
        self._watch = PodWatch(cgroups)
        self._stopping = False
        self._asked = Bell()
        self._list_at, self._scan_at, self._unknown_since, self._answered_at = 0.0, 0.0, 0.0, 0.0
        self._listed = False
        self._told: object = None
        self._settle_at = 0.0
        #: Why the runtime cannot be asked; "" if it can.
        self.runtime_problem = ""
        #: Why the programs cannot be loaded; "" if they are.
        self.programs_problem = ""

    @property
    def pods(self) -> list[TrackedPod]:
        """Return the pods of the node."""
        return sorted(self._pods.pods.values(), key=lambda pod: pod.full_name)

    @property
    def is_ready(self) -> bool:
        """Report whether every pod of the node is served or has its reason, and the runtime answers."""
        answers = time.monotonic() - self._answered_at < _SILENT
        return self._listed and answers and all(pod.endpoint or pod.refusal for pod in self._pods.pods.values())

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self, *, once: bool = False) -> None:
        """Reconcile until `stop`, or, `once`, until every pod has been looked at. Programs and pins stay."""
        with self._watch, self._selector, woken_by_signals(self._selector, self.stop):
            signals.checkpoint()  # one that came before these handlers
            if not self.are_namespaces_asked:
                agent_log.warn("namespaces cannot opt out: there is no token to ask the API server with")
            self._selector.register(self._watch, selectors.EVENT_READ, None)
            self._selector.register(self._asked, selectors.EVENT_READ, None)
            self._watch.scan()
            self._install_programs()
            while not self._stopping:
                self._turn()
                if once and self.is_ready:
                    return
                self._wait()

    def stop(self) -> None:
        """End the loop soon; safe in a signal handler."""
        self._stopping = True

    def look_again(self) -> None:
        """Have the loop ask for the namespaces again and look at all pods, soon; safe in another thread."""
        self._asked.ring()

    def _wait(self) -> None:
        now = time.monotonic()
        due = min([self._list_at, self._settle_at, *(pod.due for pod in self._pods.pods.values())])
        for key, _ in self._selector.select(max(0.0, due - now)):
            if isinstance(key.data, tuple):
                self._process_ended(*key.data)
        if asked := self._asked.rang():
            self._ask_again()
        woken = self._watch.events()
        if woken.changed or woken.gone:
            self._list_at = 0.0
        now = time.monotonic()
        for pod in self._pods.pods.values():
            if asked or pod.sandbox.uid in woken.changed:
                pod.woken = pod.due = now

    def _process_ended(self, identity: str, role: str) -> None:
        pod = self._pods.pods.get(identity)
        if pod is not None:
            agent_log.say("a process ended", pod=pod.full_name, role=role)
            self._pods.ended(pod, role)
            self._list_at = 0.0

    def _turn(self) -> None:
        if time.monotonic() >= self._list_at:
            self._list()
        for pod in list(self._pods.pods.values()):
            if self._stopping:
                return
            if time.monotonic() >= pod.due:
                self._reconcile(pod)
        if self._listed and time.monotonic() >= self._settle_at:
            self._settle()
        problems = (self.programs_problem, self.runtime_problem)
        told = (problems, self.is_ready, [(pod.sandbox.id, pod.refusal, pod.endpoint) for pod in self.pods])
        if told != self._told:
            self._changed(self)
            self._told = told
        self._turned()

    # -- which pods there are -----------------------------------------------------------------------------------------

    def _list(self) -> None:
        now = time.monotonic()
        try:
            gone = self._pods.refresh()
        except LabError as error:
            gone = self._pods.drop_ended(self._watch.pods.keys())
            if error.what != self.runtime_problem:
                agent_log.warn("the runtime does not answer; what is served goes on", why=error.what)
            self.runtime_problem = error.what
            self._list_at = now + 1.0
        else:
            if self.runtime_problem:
                agent_log.say("the runtime answers again")
            self.runtime_problem = ""
            self._answered_at = now
            self._list_at = now + self._next_list(now)
        for pod in gone:
            self._forget(pod)
        self._watch_again(now)
        if not self._listed and not self.runtime_problem:
            self._listed = True
            self._forget_strangers()

    def _watch_again(self, now: float) -> None:
        """Look for the cgroups of pods that are not watched: the kubelet's root may be newer than the watch."""
        if now >= self._scan_at and any(pod.sandbox.uid not in self._watch.pods for pod in self._pods.pods.values()):
            self._scan_at = now + _LIST
            self._watch.scan()

    def _next_list(self, now: float) -> float:
        """Return when to ask again: soon while the runtime is late to name a new pod, or to drop one that has ended."""
        known = {pod.sandbox.uid for pod in self._pods.pods.values()}
        has_ended = any(pod.sandbox.pid and "sandbox" not in pod.processes for pod in self._pods.pods.values())
        if self._watch.pods.keys() <= known and not has_ended:
            self._unknown_since = 0.0
            return _LIST
        self._unknown_since = self._unknown_since or now
        return _LIST_SOON if now - self._unknown_since < _LIST_FIRST else _LIST / 5

    def _forget(self, pod: TrackedPod) -> None:
        """Detach a pod that is gone, unless another sandbox of the same pod has taken its place."""
        agent_log.say("gone", pod=pod.full_name)
        self._detach(pod)
        for other in self._pods.pods.values():
            if other.sandbox.uid == pod.sandbox.uid:
                other.due = 0.0

    def _detach(self, pod: TrackedPod) -> None:
        try:
            self._reconciler.forget(pod.sandbox.uid)
        except LabError as error:
            agent_log.warn("cannot be detached", pod=pod.full_name, why=error.what)
        pod.endpoint = None

    def _forget_strangers(self) -> None:
        """Detach what an agent before this one served and is no pod any more."""
        try:
            known = {pod.sandbox.uid for pod in self._pods.pods.values()}
            for uid in self._reconciler.served().keys() - known:
                agent_log.say("gone while no agent ran", uid=uid)
                self._reconciler.forget(uid)
        except LabError as error:
            agent_log.warn("pods that are gone cannot be detached", why=error.what)

    # -- one pod ------------------------------------------------------------------------------------------------------

    def _reconcile(self, pod: TrackedPod) -> None:
        now = time.monotonic()
        is_quiet = pod.woken + look_intervals.CHANGED < now
        if pod.state == "pending" and pod.refusal and pod.refusal.id == "no_listener" and is_quiet:
            # The usual case: a pod that waits. Only this is asked until it listens.
            if pod.is_listening():
                self._look(pod)
        else:
            self._look(pod)
        is_watched = pod.sandbox.uid in self._watch.pods
        pod.due = time.monotonic() + look_intervals.interval(pod, now, is_watched=is_watched)

    def _look(self, pod: TrackedPod) -> None:
        """Examine a pod, and serve it, or detach it if it may not be served any more."""
        began = time.monotonic()
        try:
            served = self._reconciler.served().get(pod.sandbox.uid)
            is_proven = served is not None and pod_facts.has_cookie(pod.sandbox.pid, served.netns)
            endpoint = self._pods.examine(pod, is_proven=is_proven)
        except LabError as error:
            self._pods.refuse(pod, Refusal("unread", f"it cannot be read: {error.what}"))
            return
        if endpoint is None:
            # A sidecar that restarts keeps its pod attached, as it keeps its rules.
            if served is not None and pod.refusal is not None and not pod.refusal.is_pending:
                self._detach(pod)
            return
        why = self.programs_problem
        try:
            if not why:
                self._reconciler.serve(endpoint)
        except (LabError, OSError) as error:
            why = str(error)
        if why:
            pod.endpoint = None
            self._pods.refuse(pod, Refusal("not_attached", why))
            return
        if pod.endpoint is None or pod.refusal is not None or pod.endpoint != endpoint:
            took = round((time.monotonic() - began) * 1000, 1)
            agent_log.say("served", pod=pod.full_name, ip=endpoint.ip, milliseconds=took, legs=endpoint.legs.why)
        pod.endpoint, pod.refusal = endpoint, None
        pod.stop_listening()

    def _install_programs(self) -> None:
        """Load the programs, or have them in order; if this kernel cannot, every pod is refused for that reason."""
        try:
            self._install()
        except (LabError, OSError) as error:
            agent_log.warn("the programs cannot be loaded; all pods are left to the rules", why=str(error))
            self.programs_problem = str(error)
        else:
            self.programs_problem = ""

    def _settle(self) -> None:
        """End a takeover from another version, and remove what belongs to no connection any more."""
        self._settle_at = time.monotonic() + _SETTLE
        try:
            problems = self._reconciler.programs_problems()
            if problems or self.programs_problem:
                why = "; ".join(problems) or self.programs_problem
                agent_log.warn("the programs are not in order, and are installed again", why=why)
                self._install_programs()
                for pod in self._pods.pods.values():
                    pod.due = 0.0
            if self.programs_problem:
                return
            # Off in the maps alone stays: somebody without merlab did it (ADR 38).
            if not self._redirecting() and self._reconciler.redirecting:
                agent_log.warn("the kill switch was not in force, and is set again")
                self._reconciler.redirecting = False
            served = self._reconciler.served()
            endpoints = {pod.sandbox.uid: pod.endpoint for pod in self._pods.pods.values() if pod.endpoint}
            self._reconciler.settle(
                {each.netns: endpoints[uid].netns for uid, each in served.items() if uid in endpoints}
            )
        except LabError as error:
            agent_log.warn("the programs cannot be checked, or former connections removed", why=error.what)
