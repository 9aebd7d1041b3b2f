"""Whether the namespace of a pod opts out: the one thing that only the API server knows.

It is asked if the agent's pod has a service account's token, which may then read namespaces. Where it cannot be asked,
a new pod is left to the rules until it can; for a namespace that is known, the last answer counts.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.agent import enrolment, service_account
from merbridge_lab.agent.refusals import Refusal
from merbridge_lab.agent.service_account import ServiceAccount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.adapters.cri_runtime import Sandbox

#: How long an answer counts, and how long to wait after a failure, in seconds.
_FRESH, _AGAIN = 30.0, 3.0
_BROKEN = http.client.INTERNAL_SERVER_ERROR


class _Answer(NamedTuple):
    """The labels of a namespace, None if they are not known, for the reason `why`; asked again at `until`."""

    labels: Mapping[str, str] | None
    why: str
    until: float


class NamespaceLabels:
    """Asks the API server for namespaces, and remembers the answers."""

    def __init__(self, account: ServiceAccount | None = None) -> None:
        self._account = account or ServiceAccount()
        self._known: dict[str, _Answer] = {}
        #: Until when nothing is asked, because a question has failed, and why it has.
        self._quiet_until, self._why = 0.0, ""

    @property
    def are_asked(self) -> bool:
        """Report whether the agent may ask the API server at all."""
        return self._account.exists

    def silence(self) -> str:
        """Ask the API server now; return why it does not answer, "" if it does or is not to be asked."""
        if not self.are_asked:
            return ""
        try:
            answer = self._account.ask("GET", "/readyz")
        except service_account.FAILURES as error:
            return str(error)
        # Whoever refuses to say whether the API server is ready has answered.
        return f"it answers {answer.status} {answer.reason}" if answer.status >= _BROKEN else ""

    def forget(self) -> None:
        """Ask for each namespace again when it is needed next; until the API server answers, the last answer counts."""
        self._known = {name: each._replace(until=0.0) for name, each in self._known.items()}

    def refusal(self, sandbox: Sandbox) -> Refusal | None:
        """Return why the namespace of a pod leaves it to the rules; None if it does not, or if nobody can be asked."""
        if not self.are_asked:
            return None
        name, now = sandbox.namespace, time.monotonic()
        found = self._known.get(name)
        if found is None or now >= found.until:
            found = self._ask(name, now, found)
            self._known[name] = found
        if found.labels is None:
            return Refusal("namespace_unknown", f"the labels of its namespace {name} are not known: {found.why}")
        if enrolment.opts_out(found.labels):
            value = found.labels[enrolment.LABEL]
            return Refusal("namespace_opted_out", f"its namespace {name} has the label {enrolment.LABEL}={value}")
        return None

    def _ask(self, name: str, now: float, before: _Answer | None) -> _Answer:
        """Ask for one namespace; after a failure for none, for some seconds: a silent server takes its time."""
        if now >= self._quiet_until:
            try:
                return _Answer(self._labels(name), "", now + _FRESH)
            except service_account.FAILURES as error:
                self._quiet_until, self._why = time.monotonic() + _AGAIN, str(error)
        return _Answer(before.labels if before else None, self._why, self._quiet_until)

    def _labels(self, name: str) -> dict[str, str]:
        """Return the labels of a namespace; none if it is gone. Raises OSError, HTTPException, ValueError."""
        told = self._get(f"/api/v1/namespaces/{urllib.parse.quote(name, safe='')}")
        return {} if told is None else dict(json.loads(told)["metadata"].get("labels") or {})

    def _get(self, path: str) -> bytes | None:
        """Return what is at a path of the API; None if nothing is. Raises OSError, HTTPException, ValueError."""
        answer = self._account.ask("GET", path)
        if answer.status == http.client.NOT_FOUND:
            return None
        if answer.status != http.client.OK:
            raise ValueError(f"the API server answers {answer.status} {answer.reason}")
        return answer.body
