"""Run in a guest of this machine's files, by `python -m tests.guests.inside_kind [PHASE …]`: the kind lab once.

Its disk has a Docker daemon's data with the test cluster's images. cgroup v2 alone, laid out as systemd does it: what
runs is in init.scope, the top of the tree holds no process. Prints what inside.py does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster import __main__ as test_cluster
from tests.cluster import builds, engine
from tests.guests.inside import MERLAB, PYTHON, STATE, call, go_through, must

from merbridge_lab import polling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_TOP = Path("/sys/fs/cgroup")
_DISK = "/dev/vda"
NODE = "merbridge-control-plane"
#: What a lab without a dataplane skips, and the rest.
SKIPPED, HOLD = {3, 4, 5}, {0, 1, 2, 6, 7, 8, 9}
#: Where commands are that wait longer, and what they are.
_SLOW = Path("/run/slow")
_SCRIPTS = {
    "kind": """#!/bin/sh
if [ "$1 $2" = "create cluster" ]; then
    cat - {folder}/patches.yaml >{folder}/config
    exec {real} "$@" <{folder}/config
fi
exec {real} "$@"
""",
    "istioctl": """#!/bin/sh
[ "$1" != install ] || set -- "$@" --readiness-timeout 30m --kubeclient-timeout 2m
exec {real} "$@"
""",
}
_PATCHES = """
kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    featureGates:
      PublicKeysECDSA: true
    apiServer:
      timeoutForControlPlane: 30m0s
      extraArgs:
        watch-cache: "false"
        enable-priority-and-fairness: "false"
    controllerManager:
      extraArgs:
        leader-elect: "false"
        node-monitor-grace-period: 10m0s
    scheduler:
      extraArgs:
        leader-elect: "false"
  - |
    kind: KubeletConfiguration
    nodeLeaseDurationSeconds: 600
    nodeStatusUpdateFrequency: 1m0s
"""
#: A weight, of which others have 100. With 10000 containerd did not answer any more.
_MORE = 1000
#: How long `up` may take: kind's and kubeadm's own limits are shorter, merlab's are multiplied in an emulated guest.
_UP = 2 * 3600.0


def machine() -> dict[str, object]:
    """Start Docker; return what the machine is, which must have cgroup v2 alone."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    must([kind for _, kind in mounts if kind.startswith("cgroup")] == ["cgroup2"], mounts)
    scope = _TOP / "init.scope"
    scope.mkdir(exist_ok=True)
    for pid in (_TOP / "cgroup.procs").read_text().split():
        if Path("/proc", pid, "cmdline").read_bytes():  # threads of the kernel stay at the top
            (scope / "cgroup.procs").write_text(pid)
    start_docker()
    versions = builds.versions()
    os_release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    info = json.loads(call("docker", "info", "--format", "{{json .}}"))
    must((info["CgroupVersion"], info["Driver"]) == ("2", "overlay2"), info)
    return {
        "distribution": os_release["PRETTY_NAME"].strip('"'),
        "kernel": os.uname().release,
        "docker": info["ServerVersion"],
        "node": builds.ref(builds.node()),
        "kind": versions["tools"]["kind"]["version"],
        "kubernetes": versions["modules"]["kubernetes"]["version"],
        "slowed": polling.is_slowed(),
    }


def start_docker() -> None:
    """Start the test cluster's daemon on what the disk has; from then on all commands use it."""
    data = builds.cache() / "docker"
    for module in ("virtio_blk", "ext4"):
        call("modprobe", module)
    data.mkdir(exist_ok=True)
    call("mount", _DISK, data)
    # An `up` has images saved to a file, and all other files that are written are in memory.
    temporary = data / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    engine.start(keep=True)
    os.environ.update(test_cluster.environment())
    if polling.is_slowed():
        wait_longer()


def wait_longer() -> None:
    """Have kubeadm and istioctl wait longer than their four and five minutes, where each instruction is emulated.

    merlab offers no option for that: on PATH are scripts of these names, which add it, and become the real commands. No
    component asks for a lease, which it would lose, and end, while others have the CPU. Keys are ECDSA: with RSA's the
    API server had not greeted etcd on all of its connections after a minute, which it ends for.
    """
    _SLOW.mkdir()
    (_SLOW / "patches.yaml").write_text(_PATCHES)
    for name, script in _SCRIPTS.items():
        (_SLOW / name).write_text(script.format(folder=_SLOW, real=shutil.which(name)))
        (_SLOW / name).chmod(0o755)
    os.environ["PATH"] = f"{_SLOW}:{os.environ['PATH']}"


@contextlib.contextmanager
def pods_first() -> Iterator[None]:
    """While kubeadm runs, in the block, have the node's pods more of the CPU than what waits for them.

    An API server that is not done a minute after it serves ends itself, twice here, while the kubelet, kubeadm and
    containerd had two thirds of the CPU.
    """
    over = threading.Event()

    def body() -> None:
        while not over.wait(2):
            weight = (
                _MORE if subprocess.run(["pgrep", "-x", "kubeadm"], stdout=-3, check=False).returncode == 0 else 100
            )
            for each in (_TOP / engine.RUN.name).glob("*/kubelet/cpu.weight"):
                with contextlib.suppress(OSError):  # it is just made, or removed
                    each.write_text(str(weight))

    thread = threading.Thread(target=body, daemon=True)
    if polling.is_slowed():
        thread.start()
    yield
    over.set()


def state() -> dict[str, object]:
    """Return what `down` must leave as it was: what Docker has, merlab's own files, and the machine."""
    from tests.cluster import kind_host  # it reads the environment that Docker's start has set

    told = dict(json.loads(call(PYTHON, "-c", STATE)))
    # What the daemon makes for the first container is its own: the cgroup above all of them, and its shims' folder.
    told["cgroups"] = [each for each in told["cgroups"] if each != str(_TOP / engine.RUN.name)]
    told["run"] = [each for each in told["run"] if each != "containerd"]
    return told | {"docker": kind_host.leftovers()}


def merlab(command: str, *words: str) -> dict[str, Any]:
    """Return what a command of merlab says in JSON, which must have ended well."""
    argv = [MERLAB, command, "--lab", "kind", *words, "--json"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_UP, check=False)
    must(done.stdout.startswith("{"), done.stdout + done.stderr)
    told = dict(json.loads(done.stdout))
    must(done.returncode == 0, f"merlab {command}: exit status {done.returncode}: {said_of(told)}")
    return told


def said_of(told: Mapping[str, Any]) -> str:
    """Return what a report says went wrong: short, and without the folders of this machine."""
    error = told.get("error") or {"what": told.get("cause"), "stderr": ""}
    lines = [line for line in (error["stderr"] or "").splitlines() if not line.startswith("the complete output")]
    return "\n".join([str(error["what"]), *lines])


def doctor() -> None:
    told = merlab("doctor")
    must(told["able"], told)


def up() -> dict[str, object]:
    """Do what holds without a dataplane; the other steps must be skipped for that reason."""
    with pods_first():
        told = merlab("up", *shlex.split(os.environ["MERLAB_TEST_CLUSTER"]), "--dataplane", "none")
    outcomes = {each["number"]: each["outcome"] for each in told["steps"]}
    must(outcomes == {**dict.fromkeys(HOLD, "pass"), **dict.fromkeys(SKIPPED, "skip")}, told)
    must((told["verdict"], told["error"]) == ("pass", None), told)
    return {"held": len(HOLD), "skipped": len(SKIPPED)}


def layout() -> dict[str, object]:
    """Return the cgroups of the node's first process and of a pod: as with systemd, beside each other."""

    def in_node(*argv: str) -> str:
        return call("docker", "exec", NODE, *argv)

    mounts = [line.split()[2] for line in in_node("cat", "/proc/mounts").splitlines()]
    must([kind for kind in mounts if kind.startswith("cgroup")] == ["cgroup2"], mounts)
    first = in_node("cat", "/proc/1/cgroup").strip()
    must(first == "0::/init.scope", first)
    kubectl = ("kubectl", "--kubeconfig=/etc/kubernetes/super-admin.conf")
    uid = in_node(*kubectl, "get", "pods", "-l", "app=sleep", "-o", "jsonpath={.items[0].metadata.uid}")
    # A cgroup driver of its own for each node: folders below kubelet, or slices below kubelet.slice.
    found = [path for path in in_node("find", str(_TOP), "-type", "d").split() if uid in path.replace("_", "-")]
    must(bool(found) and all(path.startswith(f"{_TOP}/kubelet") for path in found), found)
    return {"first process": first, "pod": found[0]}


def status() -> None:
    told = merlab("status")
    must((told["up"], told["problems"]) == (True, []), told)


def down() -> None:
    call(MERLAB, "down", "--lab", "kind", timeout=_UP)


def fingerprint(before: Mapping[str, Any]) -> None:
    """Compare the machine with how it was. Processes that end take a moment; modules bring settings of their own."""

    def is_same(name: str, now: Any) -> bool:
        if name == "sysctls":
            return all(now.get(each) == value for each, value in before[name].items())
        return bool(now == before[name])

    deadline = time.monotonic() + 120
    while (now := state()) and not all(is_same(*each) for each in now.items()) and time.monotonic() < deadline:
        time.sleep(5)
    changed = {name: (before[name], found) for name, found in now.items() if not is_same(name, found)}
    must(not changed, changed)


#: The machine's state before anything was done, once it was read.
_before: dict[str, Any] = {}
#: Phases by name, in their order.
PHASES: dict[str, Callable[[], object]] = {
    "machine": machine, "state": lambda: _before.update(state()), "doctor": doctor, "up": up, "layout": layout,
    "status": status, "down": down, "fingerprint": lambda: fingerprint(_before),
}  # fmt: skip


def main() -> int:
    os.environ["NO_COLOR"] = "1"
    return go_through(PHASES, sys.argv[1:], needs={"layout": "up", "status": "up"})


if __name__ == "__main__":
    sys.exit(main())
