"""One pod of the node, as the agent knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.listening_sockets import Listening
from merbridge_lab.istio_facts import INBOUND_PORT

if TYPE_CHECKING:
    from merbridge_lab.adapters.cri_runtime import Sandbox
    from merbridge_lab.agent.refusals import Refusal
    from merbridge_lab.dataplane import Endpoint


@dataclass
class TrackedPod:
    """A pod: its sandbox, whether it is served, and when to look at it again (seconds of the monotonic clock).

    `netns` is the inode of its network namespace. `woken` is
    when something last happened in its cgroup. `processes` are descriptors that become readable when its sandbox or its
    sidecar ends, by their role. `listening` tells whether its sidecar listens, while it waits for that.
    """

    sandbox: Sandbox
    woken: float
    due: float
    refusal: Refusal | None = None
    endpoint: Endpoint | None = None
    netns: int = 0
    processes: dict[str, int] = field(default_factory=dict)
    listening: Listening | None = None

    @property
    def state(self) -> str:
        """Return "served", "refused" or "pending"."""
        if self.refusal is not None:
            return "pending" if self.refusal.is_pending else "refused"
        return "served" if self.endpoint is not None else "pending"

    @property
    def full_name(self) -> str:
        """Return the pod's name with its namespace."""
        return f"{self.sandbox.namespace}/{self.sandbox.name}"

    def is_listening(self) -> bool:
        """Report whether something accepts inbound connections in it; True if it must be looked at to know.

        The socket that asks stays open: the pod is asked again and again.
        """
        try:
            if self.listening is None:
                self.listening = Listening(Path("/proc", str(self.sandbox.pid), "ns/net"))
            return any(each.port == INBOUND_PORT for each in self.listening.listeners())
        except OSError:
            self.stop_listening()
            return True

    def stop_listening(self) -> None:
        """Close what `is_listening` keeps open."""
        if self.listening is not None:
            self.listening.close()
            self.listening = None

    def describe(self) -> dict[str, Any]:
        """Return the pod as `merlab agent status --json` prints it."""
        legs = self.endpoint.legs if self.endpoint is not None and self.state == "served" else None
        return {
            "namespace": self.sandbox.namespace,
            "name": self.sandbox.name,
            "uid": self.sandbox.uid,
            "ip": next(iter(self.sandbox.addresses), ""),
            "state": self.state,
            "reason": self.refusal.sentence if self.refusal else None,
            "reason_id": self.refusal.id if self.refusal else None,
            "legs": vars(legs) if legs else {},
        }
