"""The rules of a pod: how they are read, saved, flushed and loaded in a network namespace of a node.

When this happens, and when it must not, is in flush_policy. The save is a file on the node's disk. It names its pod,
process and namespace: no other pod ever gets these rules.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import ruleset, signals
from merbridge_lab.errors import LabError
from merbridge_lab.labs.flush_policy import FlushPolicy, Restored, SpoiltSaveError
from merbridge_lab.labs.kubernetes import commands, nat_backends, pod_netns, topology
from merbridge_lab.labs.kubernetes.pod_netns import RestartedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.pod_netns import Process
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.ruleset import RuleSet

_HEADER = "# merlab: nat of"
_OUTSTANDING, _NOT_SAVED, _NOT_FLUSHED = 94, 95, 96

# $1 backend, $2 file, $3 header. A save ends with "# Completed": a text without that was cut by a full disk. An API
# that broke off without an answer may have run this before, or may be running it still: a save with exactly this header
# is of exactly this flush. A save is never overwritten (ln), because a second one could be of flushed rules.
_FLUSH = f"""{nat_backends.SHELL}
folder=$(dirname "$2")
draft=$folder/.$(basename "$2").new.$$
if [ -e "$2" ]; then
  [ "$(head -n 1 "$2")" = "$3" ] || exit 94
else
  mkdir -p "$folder" && {{ echo "$3"; save; }} >"$draft" || exit 95
  tail -n 1 "$draft" | grep -q '^# Completed' && sync "$draft" || exit 95
  ln "$draft" "$2" || [ "$(head -n 1 "$2")" = "$3" ] || exit 95
  rm -f "$draft" && sync "$folder" || exit 95
fi
flush || exit 96
"""
# $1 backend, $2 file, $3 port. While nat has no rule, the kernel need not track connections: with its next packet, one
# that was opened meanwhile would be taken for new, and redirected away from its socket. So these are ended.
_RESTORE = f"""{nat_backends.SHELL} load <"$2" && save || exit
inside ss -K -t -n state established "( sport = :$3 or dport = :$3 )" >/dev/null 2>&1 || true
"""
_COPY = f'{nat_backends.SHELL} mkdir -p "$(dirname "$2")" && save >"$2"'


@dataclass(frozen=True)
class Saved:
    """What a flush removed, and from where."""

    backend: str
    uid: str
    pid: int
    started: int
    netns: int
    text: str


def header(name: str, backend: str, uid: str, process: Process) -> str:
    """Return the first line of the file."""
    facts = f"backend={backend} uid={uid} pid={process.pid} started={process.started} netns={process.netns}"
    return f"{_HEADER} {name}, {facts}"


def read(text: str) -> Saved | None:
    """Parse such a file; None for any other."""
    facts = dict(re.findall(r"(\w+)=(\S+)", text.partition("\n")[0]))
    try:
        saved = Saved(
            facts["backend"], facts["uid"], int(facts["pid"]), int(facts["started"]), int(facts["netns"]), text
        )
    except (KeyError, ValueError):
        return None
    return saved if text.startswith(_HEADER) and saved.backend in (*ruleset.BACKENDS, ruleset.NATIVE) else None


class _Transport:
    """The Transport protocol of flush_policy over the pod of the workload `name`, and a file on its node."""

    up_command = "merlab up"

    def __init__(self, name: str, node_exec: NodeExec, found: Callable[[bool], tuple[Pod, Process]]) -> None:
        self.name, self._node_exec, self._found = name, node_exec, found
        self._looked: tuple[Pod, Process] | None = None
        self.saved_at = f"{topology.STATE}/saved/{name}.rules"

    @property
    def saved_in(self) -> str:
        """The file and its node."""
        return f"{self.saved_at} on {self._node_exec.node.name}"

    def covered(self) -> str:
        """Return "": nothing on a node hides another place."""
        return ""

    def look(self) -> RuleSet:
        """Read the rules in every backend, of the pod as it is now; it is the one that `save_and_flush` flushes."""
        self._looked = self._found(True)
        return pod_netns.snapshot(self._looked[1])

    def prepare(self, before: RuleSet) -> None:
        """Return None: the node saves and flushes in one go, and what it saved is read there."""

    def save_and_flush(self, before: RuleSet, copy: object = None) -> None:  # noqa: ARG002 - the protocol's
        """Save and flush in one script on the node, which ends before a flush without a save. Raises LabError."""
        node = self._node_exec.node
        pod, process = self._looked or self._found(True)
        first = header(self.name, before.backend, pod.uid, process)
        failed = (_OUTSTANDING, _NOT_SAVED, _NOT_FLUSHED)
        with signals.shielded():
            done = pod_netns.script(process, _FLUSH, before.backend, self.saved_at, first, ok=(0, *failed))
        if done.status == _OUTSTANDING:
            raise LabError(f"the rules of {self.name} are flushed already", hint="merlab restore", id="rules.flushed")
        if done.status == _NOT_SAVED:
            raise LabError(
                f"the rules of {self.name} cannot be saved to {self.saved_at} on {node.name}; nothing was flushed",
                hint=node.shell_command(["df", topology.STATE]),
                stderr=done.stderr,
                id="rules.not_saved",
            )
        if done.status:
            raise LabError(f"the rules of {self.name} cannot be flushed", stderr=done.stderr, id="rules.not_saved")

    def read(self) -> Saved | None:
        """Return what is in the file. Raise SpoiltSaveError for a file that merlab did not write."""
        told = self._node_exec.execute(["cat", self.saved_at], ok=(0, 1))
        if told.status:
            return None
        saved = read(told.stdout)
        if saved is None:
            raise SpoiltSaveError(
                f"{self.saved_in} is not a file of rules that merlab saved",
                hint=self._node_exec.node.shell_command(["mv", self.saved_at, f"{self.saved_at}.other"]),
                id="rules.not_restored",
            )
        return saved

    def place(self, save: Saved) -> Process | None:
        """Find a process in exactly the namespace that was flushed: the same one, or the pod's that holds it.

        A container that is between two starts has no process; the pod's sandbox has one, as long as the namespace
        exists.
        """
        with contextlib.suppress(RestartedError):
            process = pod_netns.look(self._node_exec, save.pid)
            if (process.started, process.netns) == (save.started, save.netns):
                return process
        running = pod_netns.tasks(self._node_exec.node)
        for sandbox in pod_netns.sandboxes(self._node_exec.node, save.uid):
            with contextlib.suppress(RestartedError, KeyError):
                process = pod_netns.look(self._node_exec, running[sandbox])
                if process.netns == save.netns:
                    return process
        return None

    def load(self, save: Saved, place: Process) -> str:
        """Load saved rules from the file, and return the text of nat as it is then."""
        return pod_netns.script(place, _RESTORE, save.backend, self.saved_at, str(topology.PORT)).stdout

    def text(self, save: Saved) -> str:
        """Return the text that was saved."""
        return save.text

    def load_command(self, save: Saved, place: Process) -> str:
        """Return the command that a person would type to load the file."""
        return commands.shell(place, f"{nat_backends.commands(save.backend).load} < {self.saved_at}")

    def delete(self) -> None:
        """Delete the file."""
        self._node_exec.execute(["rm", "-f", self.saved_at])


class PodRules(commands.Rules):
    """The nat rules of the workload `name`; `keep` leaves them flushed after a flush.

    `node_exec` executes commands in the pod. `found` returns the pod and its process, and looks them up again if told
    so.
    """

    def __init__(
        self, name: str, node_exec: NodeExec, found: Callable[[bool], tuple[Pod, Process]], *, keep: bool = False
    ) -> None:
        super().__init__(name)
        self._node_exec, self._found = node_exec, found
        self._backend = ""
        self._transport = _Transport(name, node_exec, found)
        self._policy: FlushPolicy[Saved, Process] = FlushPolicy(self._transport, keep=keep)
        #: What a flush removed; it exists exactly as long as the flush is outstanding.
        self.saved_at = self._transport.saved_at

    @property
    def process(self) -> Process:
        """The process through which they are reached."""
        return self._found(False)[1]

    @property
    def backend(self) -> str:
        """The tables that hold Istio's rules, as read; nft if there are none."""
        if not self._backend:
            self._backend = self.snapshot().backend
        return self._backend or "nft"

    def snapshot(self) -> RuleSet:
        """Read the rules in every backend."""
        return pod_netns.snapshot(self.process)

    def copy(self) -> None:
        """Save the rules for a person to look at and to restore; if they are flushed, as they were before."""
        if self.outstanding:
            self._node_exec.execute(["cp", self.saved_at, self.copied_at])
        else:
            pod_netns.script(self.process, _COPY, self.backend, self.copied_at)

    @property
    def outstanding(self) -> bool:
        """Report whether rules are flushed and saved now."""
        return self._node_exec.execute(["test", "-e", self.saved_at], ok=(0, 1)).status == 0

    @contextlib.contextmanager
    def flushed(self) -> Iterator[RuleSet]:
        """Flush nat for the duration of the block; see lab.Rules."""
        with self._policy.flushed() as before:
            self._backend = before.backend  # while they are flushed, no table tells
            yield before

    def restore(self) -> bool:
        """Restore what a flush removed, if one is outstanding; return whether one was.

        Raise LabError if the rules cannot be restored; they stay saved then.
        """
        return self._policy.restore() is not Restored.NOTHING

    def listing(self, chain: str = "") -> str:
        """Return what `list_command` prints now."""
        return pod_netns.script(self.process, 'inside "$@"', *self.list_argv(chain)).stdout
