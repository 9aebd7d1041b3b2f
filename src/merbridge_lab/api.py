"""All that steps and checks may import."""

from __future__ import annotations

from merbridge_lab.command_events import Excerpt
from merbridge_lab.evidence import Control, Finding, Reading, Unread, Verdict, assess, fails, holds, skips, value_of
from merbridge_lab.interception import DIRECTIONS, LEGS, Interception, Witness
from merbridge_lab.lab import (
    APP_REPORTS_PEER,
    CONTROL_CLIENT,
    DATAPLANE,
    DEBUG_TOGGLE,
    DIALS,
    HELLO,
    INBOUND_WITHOUT_RULES,
    TRACE,
    Component,
    ControlPair,
    Lab,
    ServerGroup,
    Workload,
)
from merbridge_lab.model import Check, Kind, Step, Variant
from merbridge_lab.observation import Exchange, Observation, in_words
from merbridge_lab.process_identity import ProcessIdentity
from merbridge_lab.requirement_groups import tally
from merbridge_lab.ruleset import RuleSet, place
from merbridge_lab.starting import Starting

__all__ = [
    "APP_REPORTS_PEER",
    "CONTROL_CLIENT",
    "DATAPLANE",
    "DEBUG_TOGGLE",
    "DIALS",
    "DIRECTIONS",
    "HELLO",
    "INBOUND_WITHOUT_RULES",
    "LEGS",
    "TRACE",
    "Check",
    "Component",
    "Control",
    "ControlPair",
    "Excerpt",
    "Exchange",
    "Finding",
    "Interception",
    "Kind",
    "Lab",
    "Observation",
    "ProcessIdentity",
    "Reading",
    "RuleSet",
    "ServerGroup",
    "Starting",
    "Step",
    "Unread",
    "Variant",
    "Verdict",
    "Witness",
    "Workload",
    "assess",
    "fails",
    "holds",
    "in_words",
    "place",
    "skips",
    "tally",
    "value_of",
]
