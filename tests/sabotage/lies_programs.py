"""Lies about what is run: programs, modules and settings in place of the machine's, and of merlab's Envoy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from lies_brief import _while
from lies_mesh import pod, restart
from lies_readings import machine_with
from saboteur import lie, oddity

from merbridge_lab.adapters import mounts, netns, system_tools
from merbridge_lab.labs.embedded import envoy

PYTHON = Path("/usr/lib", Path("/usr/bin/python3").resolve().name)
LIBRARY = next(
    Path("/usr/lib", sysconfig.get_config_var("MULTIARCH") or "").glob("libm.so.6"), Path("/usr/lib64/libm.so.6")
)
#: Repeats the request until it is answered, and reports only the last answer.
STUBBORN = """#!/bin/sh
for each in 1 2 3 4 5; do
  told=$(/usr/bin/curl-itself "$@") && break
done
printf %s "$told"
"""


@contextlib.contextmanager
def folder():
    """Create a directory that every user of a pod may read."""
    with tempfile.TemporaryDirectory(prefix="merlab-sabotage-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def within(target, work):
    """Run something in the pod's mount namespace."""
    return netns.run_inside(target.mntns, work, netns.NEWNS)


@contextlib.contextmanager
def covered(target, place, by):
    """Show `by` at `place`, only to the pod."""
    within(target, lambda: mounts.bind(by, place))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the pod was recreated
            within(target, lambda: mounts.umount(place))


def copied(place, into, more=b""):
    """Copy a file, with its mode and `more` appended."""
    copy = into / place.name
    shutil.copy(place, copy)
    with copy.open("ab") as file:
        file.write(more)
    return copy


# -- Envoy -----------------------------------------------------------------------------------------------------------


@lie("another Envoy", "the sidecar of sleep has been replaced: .*its program is not the Envoy of the Python package")
def _(scene):
    """Another Envoy lies where the lab has the package's, and runs as every sidecar by the same command line."""
    view = scene.lab.machine.run / "envoy"
    with folder() as into:
        other = copied(envoy.find_envoy(), into, b"\n")
        mounts.umount(view)
        mounts.bind(other, view)
        for target in (workload.pod for workload in scene.lab.workloads()):
            within(target, lambda: mounts.bind(other, view))
            restart(target)
        yield


@lie("another Envoy in one pod", "the sidecar of helloworld-v2 has been replaced: .*not the Envoy of")
def _(scene):
    """For helloworld-v2 alone, another Envoy lies where it has the package's, and runs as its sidecar."""
    target = pod(scene, "helloworld-v2")
    with (
        folder() as place,
        covered(target, scene.lab.machine.run / "envoy", copied(envoy.find_envoy(), place, b"\n")),
    ):
        restart(target)
        yield


# -- in a pod's mount namespace --------------------------------------------------------------------------------------


@lie("a curl that repeats itself", "in the mount namespace of sleep /usr/bin/curl is covered by a mount")
def _(scene):
    """For sleep alone, /usr/bin/curl is a script that asks until it is answered."""
    with stubborn(scene):
        yield


@contextlib.contextmanager
def stubborn(scene):
    with folder() as place:
        itself = copied(Path("/usr/bin/curl"), place)
        script = place / "script"
        script.write_text(STUBBORN.replace("/usr/bin/curl-itself", str(itself)))
        script.chmod(0o755)
        with covered(pod(scene, "sleep"), Path("/usr/bin/curl"), script):
            yield


@lie("a curl that repeats itself for one step", "in the mount namespace of sleep /usr/bin/curl is covered by a mount")
def _(scene):
    """While step 8 runs, /usr/bin/curl of sleep is a script that asks until it is answered."""
    with _while(scene, "step 8 begins", "step 8 ends", stubborn(scene)):
        yield


COVERED = {
    "a module of Python's": ("helloworld-v1", PYTHON / "asyncio/streams.py"),
    "Python": ("helloworld-v2", Path("/usr/bin/python3").resolve()),
    "the cache of libraries": ("sleep", Path("/etc/ld.so.cache")),
    "env": ("sleep", Path("/usr/bin/env")),
}


def _register(what, name, place):
    def sabotage(scene):
        with folder() as into, covered(pod(scene, name), place, copied(place, into)):
            yield

    sabotage.__doc__ = f"For {name} alone, another file is mounted over {place}."
    cause = f"in the mount namespace of {name} {place} is covered by a mount that is not merlab's"
    lie(f"{what} covered in a pod", cause, quick=what != "env")(sabotage)


for _what, (_name, _place) in COVERED.items():
    _register(_what, _name, _place)


@lie("a directory covered in a pod", "in the mount namespace of helloworld-v1 /usr/local is covered by a mount")
def _(scene):
    """For helloworld-v1 alone, a file system of its own is mounted on /usr/local."""
    target = pod(scene, "helloworld-v1")
    within(target, lambda: mounts.mount("none", "/usr/local", "tmpfs"))
    yield


@lie("a directory mounted on itself in a pod", "in the mount namespace of sleep /usr is covered by a mount")
def _(scene):
    """For sleep alone, /usr is mounted on /usr: to be written over afterwards."""
    within(pod(scene, "sleep"), lambda: mounts.bind("/usr", "/usr"))
    yield


@lie("a second /dev/shm in a pod", "in the mount namespace of sleep /dev/shm is covered by a mount", quick=False)
def _(scene):
    """A second file system is mounted on /dev/shm of sleep, just like the first."""
    within(pod(scene, "sleep"), lambda: mounts.mount("none", "/dev/shm", "tmpfs"))  # noqa: S108
    yield


@lie("a cover taken off a pod", "in the mount namespace of helloworld-v1 /run is not what merlab mounted there")
def _(scene):
    """The cover of /run is taken off helloworld-v1, which then sees what the machine has there."""
    target = pod(scene, "helloworld-v1")
    within(target, lambda: mounts.umount(scene.lab.machine.run.parent))
    yield


@lie("a name service in a pod", "in the mount namespace of sleep there is /run/nscd, which merlab did not put there")
def _(scene):
    """In sleep's own /run there is a directory for nscd, which libc asks for names before all else."""
    within(pod(scene, "sleep"), Path("/run/nscd").mkdir)
    yield


# -- the machine's tools ---------------------------------------------------------------------------------------------


@lie(
    "curl covered on the machine",
    "/usr/bin/curl is covered by a mount: what runs as curl is not the machine's",
    shared=True,
)
def _(_scene):
    """Another curl is mounted over /usr/bin/curl of the machine."""
    curl = Path(system_tools.find("curl")).resolve()
    with folder() as into:
        mounts.bind(copied(curl, into), curl)
        try:
            yield
        finally:
            mounts.umount(curl)


@lie("a tool that a user can change", "nsenter is .*/nsenter, and .* belongs to user 1000")
def _(_scene):
    """The machine's nsenter lies in a directory of an ordinary user's."""
    with folder() as into:
        copied(Path(system_tools.find("nsenter")), into)
        os.chown(into, 1000, 1000)
        with machine_with(str(into), *system_tools.FOLDERS):
            yield


@lie("a tool that everybody can change", "curl is .*/curl, and everybody may write to .*/curl", quick=False)
def _(_scene):
    """Everybody may write to the machine's curl."""
    with folder() as into:
        copied(Path(system_tools.find("curl")), into).chmod(0o777)
        with machine_with(str(into), *system_tools.FOLDERS):
            yield


@lie("a library loaded into merlab", "loaded.so is loaded into merlab itself")
def _(_scene):
    """Root's environment has a library loaded before all others, into merlab itself, too."""
    with folder() as into:
        # It stays loaded; that is reported only while the environment has it.
        library = copied(LIBRARY, into).rename(into / "loaded.so")
        ctypes.CDLL(str(library))
        with environment(LD_PRELOAD=str(library)):
            yield


@contextlib.contextmanager
def environment(**values):
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


LYING = ["nsenter", "curl", "env", "sh", "setsid", "iptables-nft-save", "iptables-legacy-save", "nft", "ip"]


@oddity("tools that lie, first on PATH", quick=True)
def _(_scene):
    """Root's PATH begins with a directory that has a lying tool of each name; none of them is run."""
    with folder() as into:
        for name in LYING:
            (into / name).write_text(f"#!/bin/sh\n: >{into}/ran-{name}\nexit 0\n")
            (into / name).chmod(0o755)
        with environment(PATH=f"{into}{os.pathsep}{os.environ['PATH']}"):
            yield
        assert not [*into.glob("ran-*")]


@oddity("an environment that tells tools what to do", quick=True)
def _(scene):
    """Root's environment has a library to load first, a proxy, a .curlrc, iptables extensions, a sitecustomize."""
    with folder() as into:
        library = copied(LIBRARY, into)
        (into / ".curlrc").write_text("retry = 5\nretry-all-errors\n")
        (into / "sitecustomize.py").write_text("raise SystemExit(7)\n")
        with environment(
            LD_PRELOAD=str(library),
            LD_LIBRARY_PATH=str(into),
            XTABLES_LIBDIR=str(into),
            CURL_HOME=str(into),
            HOME=str(into),
            http_proxy="http://192.0.2.1:1",
            ALL_PROXY="http://192.0.2.1:1",
            PYTHONPATH=str(into),
        ):
            restart(pod(scene, "sleep"))
            yield
