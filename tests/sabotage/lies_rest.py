"""Lies that only one check detects, and processes that /proc does not show."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from lies_mesh import pod
from lies_rules import _while_flushed, rule
from saboteur import again_and_again, lie

from merbridge_lab.adapters import cgroup, iptables
from merbridge_lab.adapters.mounts import mount, umount
from merbridge_lab.polling import poll_until

# -- what one check alone tells --------------------------------------------------------------------------------------


@lie("a rule lost as soon as all are back", "rules of sleep differ from the saved ones after restoring", steps=(9,))
def _(scene):
    """As soon as merlab has seen sleep's rules back, and deleted what it had saved, somebody deletes one of them."""
    where, saved = pod(scene, "sleep").netns, scene.lab.workload("sleep").rules.saved_at
    whole = iptables.save(where, "nft", "nat")
    was_flushed = False

    def follow():
        nonlocal was_flushed
        if was_flushed and not saved.exists():
            was_flushed = False
            rule(where, "-t", "nat", "-D", "ISTIO_OUTPUT", "1")
        elif saved.exists():
            was_flushed = True

    with again_and_again(follow):
        yield
    iptables.load(where, whole, "nft")


@lie(
    "rules that come and go between two requests of step 9",
    "the rules of sleep changed while the requests ran",
    steps=(9,),
)
def _(scene):
    """As soon as a request has left flushed sleep, a rule that does nothing to it comes, and goes at once."""
    where = pod(scene, "sleep").netns
    harmless = ("FORWARD", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")

    def strike():
        rule(where, "-t", "filter", "-A", *harmless)
        rule(where, "-t", "filter", "-D", *harmless)

    with _while_flushed(scene, strike):
        yield


# -- processes that /proc does not tell of ---------------------------------------------------------------------------


@contextlib.contextmanager
def covered(pid):
    """Cover the place of a process in /proc for the duration of the block."""
    mount("tmpfs", f"/proc/{pid}", "tmpfs")
    try:
        yield
    finally:
        umount(Path("/proc", str(pid)))


@lie("the place of an app in /proc covered", r"/proc/\d+ is covered by a mount", shared=True)
def _(scene):
    """A file system is mounted over what /proc has of sleep's app: that it runs can be told, and not what it is."""
    (process,) = cgroup.processes(pod(scene, "sleep").cgroup / "app")
    with covered(process):
        yield


@lie("root in an app's cgroup, its place in /proc covered", r"/proc/\d+ is covered by a mount", shared=True)
def _(scene):
    """A process of root's is in the cgroup of sleep's app, and a file system is mounted over what /proc has of it."""
    target = pod(scene, "sleep")
    argv = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec sleep 300', str(target.cgroup / "app")]
    with subprocess.Popen(argv) as other:
        assert poll_until(
            lambda: other.pid in cgroup.processes(target.cgroup / "app"), timeout=5, awaiting="the stranger"
        )
        with covered(other.pid):
            yield
        other.kill()
