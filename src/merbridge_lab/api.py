"""All that steps and checks may import."""

from __future__ import annotations

from merbridge_lab.evidence import Control, Finding, Reading, Unread, Verdict, assess, fails, holds, skips, value_of
from merbridge_lab.lab import (
    DATAPLANE,
    DIALS,
    HELLO,
    INBOUND,
    PEER,
    SWITCH,
    TRACE,
    TWIN,
    Entered,
    Lab,
    Part,
    Twins,
    Workload,
)
from merbridge_lab.model import Check, Kind, Step, Variant
from merbridge_lab.observation import Exchange, Observation
from merbridge_lab.ruleset import RuleSet, place

__all__ = [
    "DATAPLANE",
    "DIALS",
    "HELLO",
    "INBOUND",
    "PEER",
    "SWITCH",
    "TRACE",
    "TWIN",
    "Check",
    "Control",
    "Entered",
    "Exchange",
    "Finding",
    "Kind",
    "Lab",
    "Observation",
    "Part",
    "Reading",
    "RuleSet",
    "Step",
    "Twins",
    "Unread",
    "Variant",
    "Verdict",
    "Workload",
    "assess",
    "fails",
    "holds",
    "place",
    "skips",
    "value_of",
]
