"""Kubernetes Events on the mesh's pods: that eBPF serves one, or why it is left to Istio's rules.

They are told by a thread of their own, and nothing waits for it. What is to be told of a pod is what it is now: a pod
that changes again before its turn has one note, so there are never more notes than pods. Without the API server they
wait, and the pods are served all the same.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from merbridge_lab.agent import agent_log, service_account
from merbridge_lab.agent.service_account import ServiceAccount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from merbridge_lab.agent.refusals import RefusalId
    from merbridge_lab.agent.tracked_pod import TrackedPod

CONTROLLER = "merlab-agent"
#: Istio's injector writes it: whatever its state, this pod belongs to the mesh.
_INJECTED = "sidecar.istio.io/status"
#: The refusals that show rules or a sidecar in a pod, with that annotation or without it.
_OF_MESH: frozenset[RefusalId] = frozenset(
    {"no_rules", "rules_differ", "listener_foreign", "listener_user", "sidecar_user", "no_listener", "not_attached"}
)
#: What somebody chose, and no fault.
_CHOSEN: frozenset[RefusalId] = frozenset(
    {"opted_out", "namespace_opted_out", "ambient", "interception_mode", "gateway"}
)
#: How long a refusal must last before it is told, in seconds, and what a pod that starts goes through.
_LASTS, _STARTS = 10.0, 60.0
_STARTING: frozenset[RefusalId] = frozenset({"no_sidecar", "no_listener", "unread"})
#: Seconds between two events of one pod, and of all; and before another try, at first and at most.
_OF_ONE, _OF_ALL, _AGAIN, _AGAIN_MOST = 30.0, 0.5, 1.0, 60.0
#: How many pods are remembered at most: a kubelet takes 110 by default.
_ROOM = 1024
#: The longest name and the longest note that the API takes, without what is added to them.
_NAME, _NOTE = 230, 1000
#: What the API server says of a request that may do better later.
_LATER = (http.client.UNAUTHORIZED, http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)

#: What became of an event: it is there; it was there, of the agent before; the API server was away, and it is tried
#: again; the API server does not take it; there were too many pods.
Result: TypeAlias = Literal["created", "repeated", "failed", "refused", "dropped"]
RESULTS: tuple[Result, ...] = ("created", "repeated", "failed", "refused", "dropped")


class _Note(NamedTuple):
    """What is to be told of a pod."""

    reason: str
    text: str
    is_warning: bool
    lasts: float


@dataclass
class _Told:
    """A pod: its note, since when it has that (seconds of the monotonic clock), and what was told of it.

    `seen` has how often a reason was told, and when first.
    """

    pod: TrackedPod
    note: _Note | None = None
    since: float = 0.0
    told: _Note | None = None
    told_at: float = float("-inf")
    not_before: float = float("-inf")
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def due(self) -> float | None:
        """Return when to tell the note; None if there is nothing to tell."""
        if self.note is None or self.note == self.told:
            return None
        return max(self.since + self.note.lasts, self.told_at + _OF_ONE, self.not_before)


class PodEvents:
    """Tells the API server of the pods of this node, by their latest state."""

    def __init__(self, account: ServiceAccount | None = None) -> None:
        self._account = account or ServiceAccount()
        self._pods: dict[str, _Told] = {}
        self._changed = threading.Condition()
        self._next, self._failures = 0.0, 0
        #: The pods that found no room, as long as they are there: each is counted once.
        self._dropped: set[str] = set()
        #: How many events came to which end.
        self.results: Counter[Result] = Counter(dict.fromkeys(RESULTS, 0))

    def start(self) -> None:
        """Begin to tell, in a thread that ends with the process; do nothing without a token."""
        if self._account.exists:
            threading.Thread(target=self._run, name="merlab-events", daemon=True).start()

    def update(self, pods: Iterable[TrackedPod]) -> None:
        """Note the state of all pods of the node; those that are not named are gone. Returns at once."""
        if not self._account.exists:
            return
        now = time.monotonic()
        with self._changed:
            before, self._pods = self._pods, {}
            dropped, self._dropped = self._dropped, set()
            for pod in pods:
                uid = pod.sandbox.uid
                known = before.get(uid)
                if known is None and not _is_of_mesh(pod):
                    continue
                if known is None and len(self._pods) >= _ROOM:
                    self.results["dropped"] += uid not in dropped
                    self._dropped.add(uid)
                    continue
                known = self._pods[uid] = known or _Told(pod)
                known.pod, note = pod, _note(pod)
                if note != known.note:
                    known.note, known.since = note, now
            self._changed.notify()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while (found := self._first()) is None or found[0] > 0:
                    self._changed.wait(found[0] if found else None)
                _, known, note = found
            self._tell(known, note)

    def _first(self) -> tuple[float, _Told, _Note] | None:
        """Return the event that is due first, and in how many seconds; None if there is nothing to tell."""
        waiting = [(each.due, each) for each in self._pods.values() if each.due is not None]
        due, known = min(waiting, key=lambda each: each[0], default=(0.0, None))
        if known is None or known.note is None:
            return None
        return max(due, self._next) - time.monotonic(), known, known.note

    def _tell(self, known: _Told, note: _Note) -> None:
        """Send one event, and note what became of it."""
        result, why = self._send(known, note)
        now = time.monotonic()
        with self._changed:
            self.results[result] += 1
            if result == "failed":
                again = now + min(_AGAIN_MOST, _AGAIN * 2.0**self._failures)
                self._next, self._failures = again, min(self._failures + 1, 16)
                # Others first: what the API server says of this one need not concern them.
                known.not_before = again + _AGAIN
            else:
                self._next, self._failures = now + _OF_ALL, 0
                # Of the agent before this one: told. Of this one, earlier: told once more, with a higher count.
                if result != "repeated" or known.told is None:
                    known.told, known.told_at = note, now
        if result == "refused" or (result == "failed" and self._failures == 1):
            agent_log.warn("the API server does not take an event", pod=known.pod.full_name, why=why)

    def _send(self, known: _Told, note: _Note) -> tuple[Result, str]:
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        times, first = known.seen.get(note.reason, (0, now))
        known.seen[note.reason] = times + 1, first
        namespace = urllib.parse.quote(known.pod.sandbox.namespace, safe="")
        try:
            answer = self._account.ask(
                "POST",
                f"/apis/events.k8s.io/v1/namespaces/{namespace}/events",
                event(known.pod, note, times + 1, first, now),
            )
        except service_account.FAILURES as error:
            known.seen[note.reason] = times, first
            return "failed", str(error)
        why = f"it answers {answer.status} {answer.reason}"
        if answer.status == http.client.CONFLICT:
            return "repeated", why
        if answer.status < http.client.MULTIPLE_CHOICES:
            return "created", ""
        if answer.status >= http.client.INTERNAL_SERVER_ERROR or answer.status in _LATER:
            known.seen[note.reason] = times, first
            return "failed", why
        return "refused", why


def _is_of_mesh(pod: TrackedPod) -> bool:
    """Report whether a pod belongs to the mesh: others have no interest in why eBPF does not serve them."""
    if _INJECTED in pod.sandbox.annotations or pod.state == "served":
        return True
    return pod.refusal is not None and pod.refusal.id in _OF_MESH


def _note(pod: TrackedPod) -> _Note | None:
    """Return what is to be told of a pod; None as long as it has not been looked at.

    A pod that only waits for something stays attached if it was, as when its sidecar restarts: nothing is told of it.
    """
    refusal = pod.refusal
    if refusal is None:
        legs = f": {pod.endpoint.legs.why}" if pod.endpoint and pod.endpoint.legs.why else ""
        return _Note("Served", f"eBPF serves it over Istio's rules{legs}", False, 0.0) if pod.endpoint else None
    if refusal.is_pending and pod.endpoint is not None:
        return None
    reason = refusal.id.title().replace("_", "")
    lasts = _STARTS if refusal.id in _STARTING else _LASTS
    return _Note(reason, f"It is left to Istio's rules: {refusal.sentence}", refusal.id not in _CHOSEN, lasts)


def event(pod: TrackedPod, note: _Note, times: int, first: str, now: str) -> dict[str, Any]:
    """Return the Event of a note, told for the `times`th time; its name is the same for an agent that tells it again.

    `first` and `now` are times as the API writes them.
    """
    sandbox = pod.sandbox
    told = "\0".join((sandbox.uid, *map(str, note[:2]), str(times)))
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    made: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{sandbox.name[:_NAME].rstrip('-.')}.{digest}", "namespace": sandbox.namespace},
        "eventTime": first,
        "type": "Warning" if note.is_warning else "Normal",
        "reason": note.reason,
        "action": "Serving" if note.reason == "Served" else "LeavingToRules",
        "note": note.text.encode()[:_NOTE].decode(errors="ignore"),
        "reportingController": CONTROLLER,
        "reportingInstance": socket.gethostname()[:128],
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": sandbox.namespace,
            "name": sandbox.name,
            "uid": sandbox.uid,
        },
    }
    if times > 1:
        made["series"] = {"count": times, "lastObservedTime": now}
    return made
