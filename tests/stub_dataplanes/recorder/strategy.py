"""What it brings to a lab: one program, one requirement, and a record of what it saw."""

import contextlib

from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.interception import LEGS, AppConnections, Flow, Interception, Leg, RequestTrace, Witness
from merbridge_lab.lab import CONTROL_CLIENT, DATAPLANE, TRACE, ControlPair
from merbridge_lab.requirements import Requirement
from merbridge_lab.trace_event import TraceEvent


class Component:
    attached = debug = True

    def __init__(self, calls):
        self._calls = calls

    def ensure(self):
        self._calls.append("ensure")

    def remove(self):
        self._calls.append("remove")

    def problems(self):
        return ["the recorder is out of tape"]

    def readings(self):
        return ()

    def shell_commands(self):
        return ["recorder start"]


class Evidence:
    def begin(self):
        self.begun = True

    def trace(self):
        return (TraceEvent(1.0, "curl", 7, "seen", "a line"),)

    def interception(self, batch):
        moved = 6 * len(batch.exchanges)
        flow = Flow("{moved} of {needed}", 6, (Reading("tape:moved", "messages", 0, moved),), size=moved)
        return Interception(
            app=AppConnections(Reading("tape:connections", "", 0, len(batch.exchanges)), False, ""),
            legs=tuple(map(Leg, LEGS)),
            moved=(Witness((flow,), "{messages} messages on tape"),),
            traced={each.nonce: RequestTrace("tape:trace", batch.trace, says="on tape") for each in batch.exchanges},
        )


class Strategy:
    name = "recorder"
    intercepts = True
    needs_this_kernel = False
    capabilities = frozenset({DATAPLANE, TRACE, CONTROL_CLIENT})

    def __init__(self, around):
        self.around = around
        self.calls = []
        self.component = Component(self.calls)
        self.control_pair = lambda: ControlPair(None, None, "http://control/")

    def why_missing(self, capability):
        return f"a recorder has no {capability}"

    def requirements(self, settings):
        return [Requirement("recorder.tape", "pass", settings.sidecars, "tape")]

    def require_able(self):
        self.calls.append("require_able")

    def images(self, settings):
        return [f"tape:{settings.istio_tag}"]

    def evidence(self, servers):
        self.calls.append(f"evidence of {len(servers)}")
        return contextlib.nullcontext(Evidence())

    def bench_switch(self):
        raise LabError("a recorder serves nobody")

    def trace_command(self, node):
        return f"recorder play {node.name}"

    def follow_trace(self, *, pod, nonce):
        return iter([TraceEvent(1.0, "curl", 7, "seen", f"{pod} {nonce}")])

    def fingerprint(self):
        return {"the tape": "1"}

    def describe(self):
        return {"kind": self.name, "attached": True, "programs": 1}

    def dump(self):
        return {"recorder/tape.txt": lambda: "all of it"}

    def __getattr__(self, name):  # forget, close, sweep, release, require_gone
        return lambda: self.calls.append(name)
