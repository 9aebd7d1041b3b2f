"""What the kind lab needs: Docker, kind, istioctl, and a machine that can run a Kubernetes node."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from merbridge_lab.adapters import docker, istioctl
from merbridge_lab.adapters import kind_cli as kind_command
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.requirements.requirement import FAIL, PASS, SKIP, WARN, Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.adapters.docker import Engine

_GIB = 1024**3
_MEMORY, _DISK = 3, 5
#: kind's own documentation: "Pod errors due to too many open files". Several clusters on a machine need these.
_INOTIFY = {"max_user_instances": 256, "max_user_watches": 65536}
#: From this Kubernetes on, the kubelet refuses cgroup v1 unless it is configured otherwise.
_NO_CGROUP_V1 = (1, 35)
#: Names that show that Docker runs in a virtual machine: of its operating system, or of its machine.
_IN_A_VM = ("Docker Desktop", "Rancher Desktop", "rancher-desktop", "OrbStack", "Colima", "Lima", "linuxkit")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def kind(
    *,
    kubernetes: tuple[int, int] | None = None,
    misfit: str | None = None,
    istio: str = "",
    tested: Sequence[str] = (),
    same_kernel: bool = True,
) -> list[Requirement]:
    """Probe what the kind lab needs.

    `kubernetes` is the node's version, `misfit` describes what does not fit together, `istio` is the requested release,
    `tested` are the versions of kind that were tried. With `same_kernel`, the node's kernel must be visible from here.
    """
    found = [_command("docker", docker_version), _command("kind", kind_command.version)]
    found += [_command("istioctl", istioctl.version), _command("kubectl", None, missing=WARN)]
    try:
        engine = docker.engine() if shutil.which("docker") else None
    except LabError as error:
        engine = None
        found.append(Requirement("docker.answers", FAIL, error.what, "a Docker daemon that answers", error.hint))
    if engine is not None:
        found += of_engine(engine, kubernetes, same_kernel=same_kernel)
        found.append(disk(engine))
    found += [inotify(Path("/proc/sys/fs/inotify")), ports(os.environ), proxies(os.environ), versions(misfit)]
    found.append(provider(os.environ))
    return [*found, *_tools(istio, tested)]


def _tools(istio: str, tested: Sequence[str]) -> list[Requirement]:
    """Compare the versions of the commands, if they report them, with what they must work on."""
    found = []
    with contextlib.suppress(LabError, IndexError, ValueError, KeyError):
        found.append(istioctl_fits(istioctl.version(), istio))
    with contextlib.suppress(LabError, IndexError, ValueError, KeyError):
        found.append(kind_tried(kind_command.version(), tested))
    return found


def istioctl_fits(own: str, asked: str) -> Requirement:
    """Compare istioctl, which has its own charts, with the release that it must install: one minor apart is fine."""
    name, needed = "cluster.istioctl", f"of {asked}, or one minor version from it"
    ours, theirs = (re.match(r"v?(\d+)\.(\d+)", each) for each in (own, asked))
    if ours is None or theirs is None:
        return Requirement(name, SKIP, f"{own} cannot be compared with {asked}", needed)
    apart = abs(int(ours[2]) - int(theirs[2])) if ours[1] == theirs[1] else 2
    hint = None if apart <= 1 else f"--istio-tag {own}, or an istioctl of {asked}"
    return Requirement(name, PASS if apart <= 1 else FAIL, own, needed, hint)


def kind_tried(own: str, tested: Sequence[str]) -> Requirement:
    """Check whether this kind was tried; another one may work as well."""
    known = own in tested
    needed = f"{' or '.join(tested)}, which merlab was tested with"
    return Requirement("cluster.kind", PASS if known else WARN, own, needed, None if known else _install("kind"))


def docker_version() -> str:
    """Return the version of Docker's command line."""
    # If no daemon answers, it ends with 1 after it printed its own version.
    told = run(["docker", "version", "--format", "{{.Client.Version}}"], ok=(0, 1))
    return told.stdout.strip() or "of unknown version"


def _command(name: str, version: Callable[[], str] | None, *, missing: str = FAIL) -> Requirement:
    needed = f"{name} on PATH"
    path = shutil.which(name)
    if path is None:
        return Requirement(f"tool.{name}", missing, "not installed", needed, _install(name))
    try:
        return Requirement(f"tool.{name}", PASS, f"{version()} ({path})" if version else path, needed)
    except (LabError, IndexError, ValueError, KeyError) as error:
        said = error.stderr or error.what if isinstance(error, LabError) else str(error)
        return Requirement(f"tool.{name}", FAIL, f"{path} does not run: {said}", needed, _install(name))


def _install(name: str) -> str:
    return {
        "docker": "https://docs.docker.com/engine/install (or the distribution's docker.io)",
        "kind": "go install sigs.k8s.io/kind@v0.33.0, or https://kind.sigs.k8s.io",
        "istioctl": "https://istio.io/latest/docs/ops/diagnostic-tools/istioctl",
        "kubectl": "https://kubernetes.io/docs/tasks/tools; merlab does not need it, but the commands that it shows do",
    }[name]


def of_engine(engine: Engine, kubernetes: tuple[int, int] | None, *, same_kernel: bool = True) -> list[Requirement]:
    """Assess what Docker reports about itself; with `same_kernel` it must be on this machine's kernel."""
    rootful = Requirement(
        "docker.rootful",
        FAIL if engine.rootless else PASS,
        "rootless" if engine.rootless else "its daemon is root's",
        "not rootless",
        "export DOCKER_HOST=unix:///var/run/docker.sock" if engine.rootless else None,
    )
    enough = engine.memory >= _MEMORY * _GIB
    memory = Requirement(
        "docker.memory",
        PASS if enough else FAIL,
        f"{engine.memory / _GIB:.1f} GiB, {engine.cpus} CPUs",
        f">= {_MEMORY} GiB",
        None if enough else "give the machine, or Docker Desktop's, more memory",
    )
    answers = f"{engine.version} on {engine.system}"
    return [
        Requirement("docker.answers", PASS, answers, "it answers"),
        rootful,
        kernel(engine, os.uname().release, needed=same_kernel),
        memory,
        cgroup(engine, kubernetes),
    ]


def kernel(engine: Engine, release: str, *, needed: bool = True) -> Requirement:
    """Check whether Docker's containers run on the kernel that merlab sees: a virtual machine has its own.

    Docker Desktop's kernel may be of the same release (WSL), but its processes are still not visible.
    """
    name, wanted = "docker.kernel", "Docker on this machine's kernel, where the node's eBPF is seen"
    product = next((one for one in _IN_A_VM if one.lower() in f"{engine.system} {engine.host}".lower()), "")
    other = engine.kernel not in ("", release)
    if not product and not other:
        return Requirement(name, PASS, engine.kernel or "not reported", wanted)
    where = product or engine.system or "Docker"
    release_ = f", Linux {engine.kernel}" if engine.kernel else ""
    found = f"{where} runs containers in a virtual machine or on another one{release_}; here is Linux {release}"
    hint = (
        "docker context use default  # Docker Engine on this machine; or --dataplane none, or merlab up --lab embedded"
    )
    return Requirement(name, FAIL if needed else WARN, found, wanted, hint)


def provider(environment: Mapping[str, str]) -> Requirement:
    """Report that kind was told to use something other than Docker; merlab makes it use Docker all the same."""
    told = environment.get(kind_command.PROVIDER, "")
    wanted = "Docker, as kind's provider"
    if told in ("", kind_command.DOCKER):
        return Requirement("cluster.provider", PASS, "Docker", wanted)
    found = f"{kind_command.PROVIDER}={told}: merlab runs kind with Docker, but a kind that you type yourself does not"
    return Requirement("cluster.provider", WARN, found, wanted, f"unset {kind_command.PROVIDER}")


def cgroup(engine: Engine, kubernetes: tuple[int, int] | None) -> Requirement:
    """Check the version of cgroups: Kubernetes from 1.35 on requires v2."""
    name, found = "docker.cgroup", f"v{engine.cgroup_version}"
    if engine.cgroup_version != "1" or kubernetes is None or kubernetes < _NO_CGROUP_V1:
        return Requirement(name, PASS, found, "v2, or Kubernetes < 1.35")
    return Requirement(
        name,
        WARN,
        f"{found}, with Kubernetes {kubernetes[0]}.{kubernetes[1]}, whose kubelet refuses it by default",
        "v2, or Kubernetes < 1.35",
        "boot with systemd.unified_cgroup_hierarchy=1, or choose an older node: --kind-image kindest/node:v1.34…",
    )


def disk(engine: Engine) -> Requirement:
    """Check for free space where Docker stores its images, if that is on this machine."""
    needed = f">= {_DISK} GiB free"
    try:
        free = shutil.disk_usage(engine.root).free
    except OSError:
        return Requirement("docker.disk", SKIP, f"{engine.root} cannot be read from here", needed)
    enough = free >= _DISK * _GIB
    found = f"{free / _GIB:.1f} GiB free in {engine.root}"
    return Requirement(
        "docker.disk", PASS if enough else FAIL, found, needed, None if enough else "docker system prune"
    )


def inotify(folder: Path) -> Requirement:
    """Check the limits on watching files, which a node's processes share with all others of root."""
    low = {}
    for name, least in _INOTIFY.items():
        try:
            limit = int((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Requirement("kernel.inotify", SKIP, f"{folder / name} cannot be read", "kind's limits")
        if limit < least:
            low[name] = limit
    needed = ", ".join(f"{name} >= {least}" for name, least in _INOTIFY.items())
    if not low:
        return Requirement("kernel.inotify", PASS, "enough", needed)
    found = ", ".join(f"{name} {limit}" for name, limit in low.items())
    raise_ = " ".join(f"fs.inotify.{name}={_INOTIFY[name] * 8}" for name in low)
    return Requirement("kernel.inotify", WARN, found, needed, f"sysctl {raise_}")


def proxies(environment: Mapping[str, str]) -> Requirement:
    """Check for a proxy: kind passes it on to the node, where it must not affect traffic for the cluster."""
    told = {name.lower(): value for name, value in environment.items() if value}
    set_ = [name for name in _PROXIES if name in told]
    needed = "none, or one that the node can reach too"
    if not set_:
        return Requirement("docker.proxy", PASS, "none", needed)
    found = ", ".join(f"{name}={_without_password(told[name])}" for name in set_)
    if any(_host(told[name]) in _LOOPBACK for name in set_):
        hint = "give it an address that containers can reach: the node's loopback is not the machine's"
        return Requirement("docker.proxy", WARN, found, needed, hint)
    # kind passes it on to the node, with the cluster's own addresses in no_proxy; merlab talks to the API without it.
    return Requirement("docker.proxy", PASS, f"{found}: the node pulls images through it", needed)


def ports(environment: Mapping[str, str]) -> Requirement:
    """Check for a port for the cluster's API: kind takes a free one on the loopback of Docker's machine."""
    needed = "a free port on 127.0.0.1, of the machine that Docker is on"
    where = environment.get("DOCKER_HOST", "")
    if where.partition("://")[0] in ("tcp", "ssh", "http", "https") and _host(where) not in _LOOPBACK:
        hint = "unset DOCKER_HOST"
        return Requirement("docker.ports", FAIL, f"DOCKER_HOST={where}, another machine's", needed, hint)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
    except OSError as error:
        return Requirement("docker.ports", FAIL, f"none: {error}", needed, "sysctl net.ipv4.ip_local_port_range; ss -s")
    return Requirement("docker.ports", PASS, f"{port} is one", needed)


def _host(url: str) -> str:
    """Return the host of an address; proxies are often given without "http://"."""
    return urlsplit(url if "://" in url else f"//{url}").hostname or ""


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition('//')[0]}//…@{tail}" if at else url


def versions(misfit: str | None) -> Requirement:
    """Describe what is known not to fit together."""
    hint = "choose others: --kind-image, --istio-tag" if misfit else None
    return Requirement(
        "cluster.versions",
        FAIL if misfit else PASS,
        misfit or "nothing known against them",
        "Kubernetes and Istio fit",
        hint,
    )
