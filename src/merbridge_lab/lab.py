"""The Lab protocol: the nouns of the walkthrough, for every kind of lab.

A step never asks which lab it runs in. If a lab cannot do something, its capabilities lack it, and the lab gives a
reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.command_events import CommandEvent, CommandTranscript, RunningCommand
    from merbridge_lab.dial_results import Dial
    from merbridge_lab.evidence import Reading
    from merbridge_lab.observation import Observation
    from merbridge_lab.process_identity import ProcessIdentity
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.ruleset import RuleSet
    from merbridge_lab.starting import Starting

#: Capabilities a step may need.
DATAPLANE = "dataplane"
TRACE = "trace"
CONTROL_CLIENT = "twin"
#: The debug output can be switched while the dataplane runs. Without this capability, the dataplane restarts to switch
#: it.
DEBUG_TOGGLE = "switch"
#: Without any rule on the servers' side, requests still go through their sidecars.
INBOUND_WITHOUT_RULES = "inbound"
#: The lab dials in ways that curl does not, and reports for each connection what the dataplane records of it.
DIALS = "dials"
#: The apps report which peer they see.
APP_REPORTS_PEER = "peer"

HELLO = "http://helloworld:5000/hello"


class Component(Protocol):
    """A part of the lab that an ensure step creates."""

    def ensure(self) -> None:
        """Create what is missing and repair what is broken."""

    def remove(self) -> None:
        """Remove it; succeed if there is nothing to remove."""

    def problems(self) -> list[str]:
        """Describe each problem in one sentence; return nothing if there is none."""

    def readings(self) -> tuple[Reading, ...]:
        """Return what was read of it, as evidence."""

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to create it."""


class Rules(Protocol):
    """The iptables rules in a workload's network namespace."""

    def snapshot(self) -> RuleSet:
        """Read the rules in every backend."""

    def flushed(self) -> AbstractContextManager[RuleSet]:
        """Save and flush nat for the duration of the block; yield the rules from before.

        The rules are restored when the block ends, even if it fails. They stay flushed only if the lab was told to keep
        them flushed (`step 9 --keep`) and the block succeeded.
        """

    def restore(self) -> bool:
        """Restore what a flush removed, if a flush is outstanding; return whether one was."""

    def copy(self) -> None:
        """Save the current rules to the place that `save_command` names."""

    @property
    def outstanding(self) -> bool:
        """Report whether rules are flushed and saved now."""

    def save_command(self) -> str:
        """Return the command that a person would type to save the rules with their counters."""

    def flush_command(self) -> str:
        """Return the command that a person would type to flush the nat rules."""

    def restore_command(self) -> str:
        """Return the command that a person would type to restore the saved rules."""

    def list_command(self, chain: str = "") -> str:
        """Return the command that a person would type to list the nat rules, or those of one chain, with counters."""

    def listing(self, chain: str = "") -> str:
        """Return what `list_command` prints now."""


class Workload(Protocol):
    """A pod of the walkthrough."""

    name: str

    @property
    def url(self) -> str:
        """The URL of its app at the pod's own address, without a service."""

    @property
    def rules(self) -> Rules:
        """Its iptables rules."""

    def enter(self) -> ProcessIdentity:
        """Find its process and inspect its namespaces."""

    def request_command(self, *, without_ebpf: bool = False) -> str:
        """Return the request of the walkthrough as a person would type it; or the same, sent by a control client."""

    def enter_commands(self) -> list[str]:
        """Return the commands that find its process and enter its network namespace."""


@dataclass(frozen=True)
class ControlPair:
    """A client and a server without eBPF, and the URL where the client reaches the server."""

    client: Workload
    server: Workload
    url: str


@dataclass(frozen=True)
class ServerGroup:
    """Servers, and the URL at which one of them answers."""

    servers: Sequence[Workload]
    url: str = HELLO


class Dataplane(Component, Protocol):
    """The programs that intercept connections in the kernel; `roles` tells of each its hook and what it replaces."""

    roles: tuple[str, ...]

    @property
    def attached(self) -> bool:
        """Report whether the dataplane intercepts new connections now."""

    def set_debug(self, *, on: bool) -> None:
        """Switch the trace lines on or off."""

    @property
    def debug(self) -> bool:
        """Report whether the dataplane writes trace lines."""

    def debug_commands(self) -> list[str]:
        """Return the commands that a person would type to switch the trace lines on; the last one shows the result."""

    def debug_shown(self) -> str:
        """Return the output of the last of these commands, or the relevant part of it."""


class Placeholders(Protocol):
    """What the `commands` of steps use of a lab. `words` are placeholders for values that only a running lab has."""

    words: tuple[str, ...]


class Lab(Protocol):
    """One lab: the interface that steps use."""

    name: str
    #: True if the lab consists of what the walkthrough was written for: then its commands are shown beside those typed
    #: in 2022.
    follows_original: bool

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities of the lab that a step may need."""

    @property
    def node(self) -> Component:
        """The machine that the pods run on."""

    @property
    def mesh(self) -> Component:
        """The pods, their sidecars, rules and apps."""

    @property
    def dataplane(self) -> Dataplane:
        """The programs that intercept connections."""

    def why_missing(self, capability: str) -> str:
        """Explain in one sentence why the lab lacks `capability`."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and what it lacks."""

    def require_able(self) -> None:
        """Raise LabError if this machine lacks something; name the first thing and the command that fixes it."""

    def inventory(self) -> list[CommandTranscript]:
        """List the eBPF objects that are in the kernel now: maps, programs, cgroup attachments."""

    def inventory_commands(self) -> list[str]:
        """Return the commands that a person would type to see them."""

    def offline_commands(self) -> Placeholders | None:
        """Return the placeholders for the commands of steps when no lab is up; None if none are needed."""

    def workload(self, name: str) -> Workload:
        """Return a workload by name."""

    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> AbstractContextManager[Starting[Workload]]:
        """Begin, for the duration of the block, a copy of `of` that the dataplane does not serve."""

    def control_pair(self) -> AbstractContextManager[Starting[ControlPair]]:
        """Begin, for the duration of the block, a client and a server that the dataplane does not serve."""

    def servers(self) -> Sequence[Workload]:
        """Return the workloads behind the service helloworld."""

    def flushable_servers(self) -> AbstractContextManager[ServerGroup]:
        """Return, for the duration of the block, servers whose rules a proof may flush, and that eBPF serves.

        They are those of helloworld, or disposable ones where other people's pods may depend on these.
        """

    def flushed(self, workloads: Sequence[Workload]) -> AbstractContextManager[Mapping[str, RuleSet]]:
        """Save and flush nat in all of `workloads` for the duration of the block; yield the rules from before."""

    def drain_idle_connections(self) -> bool:
        """Wait until the sidecars' idle connections have closed, so that requests need new ones; return if all did."""

    def observe(
        self,
        client: Workload,
        *,
        count: int = 4,
        trace: bool = False,
        url: str = HELLO,
        servers: Sequence[Workload] = (),
        logged: bool = True,
    ) -> Observation:
        """Send `count` requests on fresh connections as the app of `client`, and read all evidence around them.

        `servers` are the workloads that answer at `url`; the default is those behind helloworld. If `logged` is
        false, do not wait for records in the access logs.
        """

    def dial(self, client: Workload) -> Sequence[Dial]:
        """Dial as the app of `client` in ways that curl does not. Only for labs with the capability DIALS."""

    def logged(self, nonces: Iterable[str]) -> list[str]:
        """Return the access log lines of all sidecars that mention one of `nonces`."""

    def fingerprint(self) -> dict[str, str]:
        """Return what must not change during a proof (processes, programs, rules), each by name."""

    def watched(self) -> AbstractContextManager[Callable[[], list[str]]]:
        """Watch, for the duration of the block, what is added and removed on the path of the requests.

        Yield a function that describes the changes until then, one sentence each. In a lab that cannot watch, it
        returns nothing.
        """

    def trace_command(self) -> str:
        """Return the command that a person would type to read the dataplane's trace."""

    def typing(self, *commands: str) -> AbstractContextManager[RunningCommand]:
        """Show commands that a person types, and run the block for them; in a demo, after the presenter typed them."""

    def flushing(self, workload: Workload) -> AbstractContextManager[RuleSet]:
        """Flush nat of `workload` for the duration of the block, with the commands that a person would type for it.

        Yield the rules from before. In a demo, the rules stay flushed until the presenter types the restore.
        """

    def show(self, command: str, output: str = "") -> None:
        """Show a command that a person would type, with its output."""

    def show_again(self, commands: Sequence[str]) -> None:
        """Show commands whose result exists already; nothing runs."""

    def needs_for_proof(self, what: str) -> None:
        """Report in one line what runs now that nobody would type, because only the proof needs it."""

    def listen(self, listener: Callable[[CommandEvent], None]) -> None:
        """Send each command event to `listener` from now on, while it happens."""

    def shown(self) -> Sequence[CommandTranscript]:
        """Return what was recorded since the last call, and clear it."""

    def describe(self) -> Mapping[str, object]:
        """Return the state of the lab as `merlab status --json` prints it."""
