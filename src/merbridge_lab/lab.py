"""The Lab protocol: the nouns of the walkthrough, whatever they are made of.

A step never asks which lab it runs in; what a lab cannot do is missing from its capabilities, with a reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.dial_results import Dial
    from merbridge_lab.evidence import Reading
    from merbridge_lab.observation import Observation
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.ruleset import RuleSet

#: Capabilities a step may need.
DATAPLANE = "dataplane"
TRACE = "trace"
CONTROL_CLIENT = "twin"
#: Its debug output is switched while the dataplane runs; without it, the dataplane restarts for that.
DEBUG_TOGGLE = "switch"
#: Without one rule on the servers' side, requests still go through their sidecars.
INBOUND_WITHOUT_RULES = "inbound"
#: It dials in ways that curl does not, and tells connection by connection what the dataplane has of them.
DIALS = "dials"
#: The apps say who asked them.
APP_REPORTS_PEER = "peer"

HELLO = "http://helloworld:5000/hello"


@dataclass(frozen=True)
class CommandTranscript:
    """A command as a person would type it, and what it printed."""

    command: str
    output: str = ""

    def added_since(self, before: CommandTranscript) -> str:
        """Return the lines that were not there `before`, with a plus sign.

        bpftool describes a map or a program in several lines: of those only the first, with id, type and name.
        """
        known = set(lines_of(before.output))
        new = [line for line in lines_of(self.output) if line not in known]
        heads = [line for line in new if re.match(r"\d+: ", line)] or new
        return "\n".join(f"+ {line}" for line in heads) or "(nothing new)"


class Component(Protocol):
    """A part of the lab that an ensure step brings about."""

    def ensure(self) -> None:
        """Make what is missing and mend what is broken."""

    def remove(self) -> None:
        """Take it away; nothing to take away is fine."""

    def problems(self) -> list[str]:
        """Say, a sentence each, in what it is not as it should be; nothing when it is in order."""

    def readings(self) -> tuple[Reading, ...]:
        """Return what was seen of it, as evidence."""

    def shell_commands(self) -> list[str]:
        """Return the commands a person would type to make it."""


class Rules(Protocol):
    """The iptables rules in a workload's network namespace."""

    def snapshot(self) -> RuleSet:
        """Read them, in every backend."""

    def flushed(self) -> AbstractContextManager[RuleSet]:
        """Save and flush nat for the length of the block, giving the rules as they were before.

        They come back when the block ends, however it ends, unless the lab was asked to keep them flushed
        (`step 9 --keep`) and the block ended well.
        """

    def restore(self) -> bool:
        """Put back what a flush took, if one is outstanding; say whether one was."""

    def copy(self) -> None:
        """Save the rules as they are now to where `save_command` says."""

    @property
    def outstanding(self) -> bool:
        """Whether rules are flushed and saved right now."""

    def save_command(self) -> str:
        """Return the command a person would type to save the rules with their counters."""

    def flush_command(self) -> str:
        """Return the command a person would type to flush the nat rules."""

    def restore_command(self) -> str:
        """Return the command a person would type to put the saved rules back."""

    def list_command(self, chain: str = "") -> str:
        """Return the command a person would type to list the nat rules, or those of one chain, with their counters."""

    def listing(self, chain: str = "") -> str:
        """Return what `list_command` prints now."""


@dataclass(frozen=True)
class ProcessIdentity:
    """What the namespace of a workload's process looks like from inside, beside what it should be.

    `looked` is what the command that looked around in it printed.
    """

    workload: str
    pid: int | None
    comm: str
    expected_address: str
    addresses: tuple[str, ...]
    expected_netns: int
    netns: int
    expected_cgroup: str
    cgroup: str
    looked: str = ""


class Workload(Protocol):
    """A pod of the walkthrough."""

    name: str

    @property
    def url(self) -> str:
        """Where its app answers by its own address, past every service."""

    @property
    def rules(self) -> Rules:
        """Its iptables rules."""

    def enter(self) -> ProcessIdentity:
        """Find its process and look around in its namespaces."""

    def request_command(self) -> str:
        """Return the request of the walkthrough as a person would type it."""

    def enter_commands(self) -> list[str]:
        """Return the commands that find its process and enter its network namespace."""


@dataclass(frozen=True)
class ControlPair:
    """A client and a server without eBPF, and where the client finds the server."""

    client: Workload
    server: Workload
    url: str


class Dataplane(Component, Protocol):
    """Whatever intercepts in the kernel."""

    @property
    def attached(self) -> bool:
        """Whether it intercepts new connections now."""

    def set_debug(self, *, on: bool) -> None:
        """Switch its trace lines on or off."""

    @property
    def debug(self) -> bool:
        """Whether it writes trace lines."""

    def debug_commands(self) -> list[str]:
        """Return the commands a person would type to switch its trace lines on; the last one shows what came of it."""

    def debug_shown(self) -> str:
        """Return what the last of these commands prints, or the part of it that matters."""


class Placeholders(Protocol):
    """What of a lab the `commands` of steps use; `words` are in them for what only a lab that is up has."""

    words: tuple[str, ...]


class Lab(Protocol):
    """One lab: what the steps speak to."""

    name: str
    #: Whether it is made of what the walkthrough was written for: what was typed in 2022 is told beside its commands.
    follows_original: bool

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can, of what a step may need."""

    @property
    def node(self) -> Component:
        """The machine the pods run on."""

    @property
    def mesh(self) -> Component:
        """The pods, their sidecars, rules and apps."""

    @property
    def dataplane(self) -> Dataplane:
        """The programs that intercept."""

    def why_missing(self, capability: str) -> str:
        """Say in a sentence why the lab is without `capability`."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""

    def require_able(self) -> None:
        """Raise LabError naming the first thing that this machine lacks, and the command that mends it."""

    def inventory(self) -> list[CommandTranscript]:
        """Show the eBPF that is in the kernel now: maps, programs, cgroup attachments."""

    def inventory_commands(self) -> list[str]:
        """Return the commands a person would type to see it."""

    def offline_commands(self) -> Placeholders | None:
        """Return what tells the commands of steps where there is no lab to ask; None where none is needed for that."""

    def workload(self, name: str) -> Workload:
        """Return a workload by name."""

    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> AbstractContextManager[Workload]:
        """Make, for the length of the block, a copy of `of` that the dataplane does not serve."""

    def control_pair(self) -> AbstractContextManager[ControlPair]:
        """Make, for the length of the block, a client and a server that the dataplane does not serve."""

    def servers(self) -> Sequence[Workload]:
        """Return the workloads behind the service helloworld."""

    def flushed(self, workloads: Sequence[Workload]) -> AbstractContextManager[Mapping[str, RuleSet]]:
        """Save and flush nat in all of `workloads` for the length of the block, giving the rules as they were."""

    def drain_idle_connections(self) -> bool:
        """Let the connections that sidecars keep run out, so that a request needs new ones; say whether all did."""

    def observe(
        self,
        client: Workload,
        *,
        count: int = 4,
        trace: bool = False,
        url: str = HELLO,
        server: Workload | None = None,
        logged: bool = True,
    ) -> Observation:
        """Send `count` requests by fresh connections as the app of `client`, and read everything around them.

        `server` is who answers at `url`, by default those behind helloworld. With `logged` off, nothing is awaited
        in the access logs.
        """

    def dial(self, client: Workload) -> Sequence[Dial]:
        """Dial as the app of `client` in ways that curl does not; for labs that can (DIALS)."""

    def logged(self, nonces: Iterable[str]) -> list[str]:
        """Return the access log lines, of any sidecar there is, that mention one of `nonces`."""

    def fingerprint(self) -> dict[str, str]:
        """Return what must not change while something is proven: processes, programs, rules; by a name for each."""

    def watched(self) -> AbstractContextManager[Callable[[], list[str]]]:
        """Listen, for the length of the block, for what comes and goes on the way of the requests.

        Gives what says, a sentence each, what did until then; it says nothing in a lab that cannot listen.
        """

    def trace_command(self) -> str:
        """Return the command a person would type to read the dataplane's trace."""

    def show(self, command: str, output: str = "") -> None:
        """Record a command that a person would type, with what it printed."""

    def shown(self) -> Sequence[CommandTranscript]:
        """Return what was recorded since this was last asked, and forget it."""

    def describe(self) -> Mapping[str, object]:
        """Return the state of the lab as `merlab status --json` has it."""
