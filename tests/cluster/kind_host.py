"""merlab on the test cluster as a person calls it; its cluster and this machine, read and broken without merlab."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import merlab_cli
from tests.merlab_cli import MERLAB, environment, told

from merbridge_lab import lock
from merbridge_lab.labs.kind import local_state, names
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NODE = f"{names.CLUSTER}-control-plane"
SAVED = f"{topology.STATE}/saved/sleep.rules"
DRAFTS = f"{topology.STATE}/saved/.sleep.rules.new.*"
#: Longer than anything that is called here takes, in seconds.
LONG = 300.0

# -- merlab -----------------------------------------------------------------------------------------------------------


def words_for(command: str, *words: str) -> list[str]:
    """Return the arguments of a call; `up` gets the test cluster's images."""
    told = shlex.split(os.environ["MERLAB_TEST_CLUSTER"]) if command == "up" else []
    return [MERLAB, command, "--lab", "kind", *told, *words]


def merlab(command: str, *words: str, prefix: tuple[str, ...] = (), **changes: str) -> subprocess.CompletedProcess[str]:
    """Call merlab; `changes` are of its environment."""
    return subprocess.run(
        [*prefix, *words_for(command, *words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env=environment(**changes),
    )


def held(done: subprocess.CompletedProcess[str]) -> bool:
    """Report whether everything held; if not, show the output with the test."""
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:])  # noqa: T201
    return done.returncode == 0


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence of a call, with --json, that failed: exit status 3, one cause, one remedy."""
    assert done.returncode == 3, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stdout + done.stderr
    error = told(done)["error"]
    assert error["what"]
    assert "\n" not in error["what"]
    assert error["hint"], error
    return f"{error['what']} → {error['hint']}"


class Running(merlab_cli.Started):
    """A running merlab that will be stopped in the middle."""

    def __init__(self, command: str, *words: str) -> None:
        super().__init__(words_for(command, *words), environment(), LONG)

    def reaches(self, moment: Callable[[int], bool], timeout: float = 120.0) -> bool:
        """Wait until `moment`, called with the PID, is true; return False if merlab has ended before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if moment(self.process.pid):
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.005)
                print(*self.end().stdout, *self.end().stderr, sep="")  # noqa: T201 - shown where the test fails
                return False
        self.end(9)
        return False


def stopped(*words: str, at: Callable[[int], bool], by: int) -> subprocess.CompletedProcess[str]:
    """Start merlab and send it a signal as soon as `at` is true."""
    running = Running(*words)
    assert running.reaches(at)
    return running.end(by)


# -- this machine -----------------------------------------------------------------------------------------------------


def docker(*words: str) -> str:
    return subprocess.run(("docker", *words), check=True, capture_output=True, text=True, timeout=LONG).stdout


def _processes() -> dict[int, tuple[int, list[str]]]:
    """Return, by PID, the parent and the command of every process in this network: others may have test beds, too."""
    found, here = {}, os.readlink("/proc/self/ns/net")  # noqa: PTH115 - it is no path
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/net") == here:  # noqa: PTH115
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(process.name)] = parent, (process / "cmdline").read_text().split("\0")
    return found


def _is_on_our_docker(pid: int) -> bool:
    """Report whether a process talks to the daemon of these tests; there may be another test cluster."""
    try:
        told = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return False  # it has ended
    host = [each.partition("=")[2] for each in told if each.startswith("DOCKER_HOST=")]
    return host == [each for each in (os.environ.get("DOCKER_HOST"),) if each is not None]


def runs(*words: str) -> Callable[[int], bool]:
    """Return a moment: merlab runs a command that begins with `words`."""

    def seen(pid: int) -> bool:
        commands = [argv for parent, argv in _processes().values() if parent == pid]
        return any([Path(argv[0]).name, *argv[1 : len(words)]] == list(words) for argv in commands)

    return seen


def holds_the_lock(pid: int) -> bool:
    """Report whether merlab has a lab to itself: before that, it may run commands that only read."""
    return any((who := lock.holder(path)) and who.pid == pid for path in lock.folder().glob("*.lock"))


def leftovers() -> dict[str, object]:
    """Return everything that `down` must leave as it was before."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - looked at, not written to
    commands = [
        argv
        for pid, (_, argv) in _processes().items()
        if Path(argv[0]).name in ("kind", "istioctl") and _is_on_our_docker(pid)
    ]
    kubeconfig = Path(os.environ["KUBECONFIG"])
    return {
        "containers": sorted(docker("ps", "--all", "--quiet").split()),
        "volumes": sorted(docker("volume", "ls", "--quiet").split()),
        "networks": sorted(docker("network", "ls", "--format", "{{.Name}}").split()),
        "kubeconfig": kubeconfig.read_text() if kubeconfig.exists() else None,
        "temporary": sorted(each.name for each in temporary.glob("merlab-kind-*")),
        "commands": commands,
        "state": sorted(each.name for each in local_state.folder().glob("kind-*")),
    }


# -- the cluster ------------------------------------------------------------------------------------------------------


def in_node(*argv: str, check: bool = True, stdin: str | None = None) -> str:
    """Run a command on the node."""
    return subprocess.run(
        ("docker", "exec", "-i", NODE, *argv), check=check, capture_output=True, text=True, timeout=LONG, input=stdin
    ).stdout


def kubectl(*words: str, stdin: str | None = None, check: bool = True) -> str:
    """Query the API, from the node and with a key that merlab does not use."""
    return in_node("kubectl", "--kubeconfig=/etc/kubernetes/super-admin.conf", *words, stdin=stdin, check=check)


def pod_of(selector: str) -> dict[str, Any]:
    """Return the one pod that is not ending."""
    found = json.loads(kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    (pod,) = (one for one in found if not one["metadata"].get("deletionTimestamp"))
    return dict(pod)


def _in_network_of(selector: str, *argv: str) -> str:
    """Run a command in the network namespace of a pod, through the process that holds its namespaces."""
    uid = pod_of(selector)["metadata"]["uid"]
    held_by = in_node("ctr", "-n", "k8s.io", "containers", "ls", "-q", f'labels."io.kubernetes.pod.uid"=={uid}').split()
    tasks = [line.split() for line in in_node("ctr", "-n", "k8s.io", "tasks", "ls").splitlines()]
    pid = next(row[1] for row in tasks if row[0] in held_by and row[2] == "RUNNING")
    return in_node("nsenter", "-t", pid, "-n", *argv)


def rules(selector: str = "app=sleep", backend: str = "nft") -> list[str]:
    """Return the nat rules of a pod, without counters."""
    saved = _in_network_of(selector, f"iptables-{backend}-save", "-t", "nat").splitlines()
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in saved if line.startswith(("-A", ":"))]


_MOVE = "iptables-nft-save -t nat | iptables-legacy-restore && iptables-nft -t nat -F && iptables-nft -t nat -X"


def move_to_legacy(selector: str = "app=sleep") -> None:
    """Move the nat rules of a pod from the nft to the legacy tables, as an older iptables would have created them."""
    _in_network_of(selector, "sh", "-c", _MOVE)


def native_rules(selector: str = "app=sleep") -> list[str]:
    """Return the rules in nftables' own tables of a pod, without counters."""
    listed = _in_network_of(selector, "nft", "--stateless", "list", "ruleset").splitlines()
    return [line.strip() for line in listed if line.startswith("\t\t") and "hook" not in line]


def is_flushed(_pid: int = 0) -> bool:
    """Report whether the rules of sleep are saved, and flushed."""
    if not in_node("sh", "-c", f"test -e {SAVED} && echo saved", check=False):
        return False
    return not any(line.startswith("-A") for line in rules())


#: The moments of `up`, in order: what exists by then, read without merlab.
MOMENTS: Mapping[str, Callable[[int], bool]] = {
    "network": lambda _: names.NETWORK in docker("network", "ls", "--format", "{{.Name}}").split(),
    "container": lambda _: bool(docker("ps", "--quiet", "--filter", f"name={NODE}")),
    "keys": lambda _: bool(in_node("sh", "-c", "ls /etc/kubernetes/pki/ca.key", check=False)),
    "administrator": lambda _: bool(in_node("sh", "-c", "ls /etc/kubernetes/admin.conf", check=False)),
    "loading": runs("kind", "load"),
    "installing": runs("istioctl", "install"),
    "rollout": lambda _: bool(in_node(*_KUBECTL, "get", "deployment", "sleep", "-o", "name", check=False)),
    "flushed": is_flushed,
}
_KUBECTL = ("kubectl", "--kubeconfig=/etc/kubernetes/super-admin.conf")


def settled(look: Callable[[], object], wanted: object, seconds: float = 10.0) -> object:
    """Return the result of `look`, once it is the wanted one, or after some seconds."""
    poll_until(lambda: look() == wanted, timeout=seconds, awaiting="what is on its way out to be gone")
    return look()
