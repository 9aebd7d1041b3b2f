"""What a lab needs of the machine. If possible, a need is tested by using it once.

Used by `merlab doctor`, step 0 and the tests. Nothing here raises, and nothing is left on the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters.kernel_features import FEATURES
from merbridge_lab.istio_facts import SIDECAR_UID
from merbridge_lab.requirements import host, kernel, privileges, sockmap, tools
from merbridge_lab.requirements.packages import Distribution
from merbridge_lab.requirements.requirement import FAIL, SKIP, Requirement
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.errors import LabError

    Probe = Callable[[], "Requirement | list[Requirement]"]

__all__ = ["Requirement", "able", "embedded"]


def able(requirements: list[Requirement]) -> bool:
    """Report whether no requirement fails; a warning is about something optional."""
    return not any(requirement.verdict == FAIL for requirement in requirements)


def embedded(*, backend: str = "nft", quick: bool = False, sockets: bool = False) -> list[Requirement]:
    """Check everything that the embedded lab needs, in the order in which a person would fix it.

    `backend` names the iptables in use, "nft" or "legacy". `quick` skips the checks that run large programs and those
    of optional things; `sockets` adds what this kernel does to sockets in a sockhash (0.3 s). Takes 0.1 s, with `quick`
    0.03 s. Without root, the checks that need it are skipped and `root`
    fails.
    """
    root = Path("/")
    distribution = Distribution.read(root)
    is_root = os.geteuid() == 0
    found: list[Requirement] = []

    def look(name: str, needed: str, probe: Probe, *, as_root: bool = True) -> None:
        if as_root and not is_root:
            found.append(Requirement(name, SKIP, "not checked: this requires root", needed))
            return
        try:
            result = probe()
        except Exception as error:  # noqa: BLE001 - a probe that fails in a new way says so and is no crash
            told = shortage.explained(error)
            if told is not None:
                found.append(Requirement(name, FAIL, _in_words(told), needed, told.hint))
            else:
                found.append(Requirement(name, FAIL, f"{type(error).__name__}: {error}", needed))
        else:
            found.extend(result if isinstance(result, list) else [result])

    look("root", "root", lambda: privileges.assess(root), as_root=False)
    look("ptrace_scope", "below 3", lambda: host.ptrace(root), as_root=False)
    look("sidecars_user", f"{SIDECAR_UID} is free", lambda: host.sidecars_user(SIDECAR_UID), as_root=False)
    look("machine.architecture", "x86_64", host.architecture, as_root=False)
    look("kernel.version", f">= {FEATURES['kernel.version'].since}", kernel.version, as_root=False)
    look("kernel.btf", "there", lambda: kernel.btf(root), as_root=False)
    look("kernel.lockdown", "not confidentiality", lambda: kernel.lockdown(root), as_root=False)
    look("kernel.netns_cookie", "there", kernel.netns_cookie, as_root=False)
    look("kernel.sock_diag", "there", kernel.sock_diag, as_root=False)
    look("kernel.namespaces", "network and mount namespaces, veth", kernel.namespaces)
    look("kernel.cgroup2", "can be mounted", kernel.cgroup2)
    look("kernel.settings", "can be written", lambda: kernel.settings(root), as_root=False)
    look("kernel.bpffs", "can be mounted", kernel.bpffs)
    look("bpf.programs", "can be loaded", kernel.programs)
    look("bpf.maps", "can be created", kernel.maps)
    if sockets:
        look("bpf.helpers", "known to each kind of program", sockmap.helpers)
        if able(found):
            look("sockmap", "can be probed", sockmap.readers)
        else:
            found.append(Requirement("sockmap", SKIP, "not probed: something above is missing", "can be probed"))
    look("tools", "installed", lambda: tools.commands(distribution, backend), as_root=False)
    look("kernel.netfilter", "Istio's rules", lambda: tools.netfilter(backend))
    look("bcc", tools.BCC_NEEDED, lambda: tools.bcc(root, distribution), as_root=False)
    look("envoy", "runs", tools.envoy, as_root=False)
    look("memory", host.MEMORY_NEEDED, lambda: host.memory(root), as_root=False)
    look("limits", "enough files and processes", host.limits, as_root=False)
    look("run_directory", "can be written", lambda: host.run_directory(root))
    look("shared_memory", "mounted", lambda: host.shared_memory(root), as_root=False)
    if not quick:
        look("optional", "installed", lambda: tools.optional(distribution), as_root=False)
    return found


def _in_words(error: LabError) -> str:
    return f"{error.what}: {lines_of(error.stderr)[0]}" if error.stderr else error.what
