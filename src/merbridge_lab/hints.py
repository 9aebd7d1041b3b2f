"""Write commands as this user has to type them: merlab's own path, sudo where root is needed, and the right lab.

In the code a hint is short and the same for everybody: "merlab step 3", "modprobe veth". Its prefix depends on the
user: merlab may not be on PATH. sudo has its own PATH, drops MERLAB_NAME and MERLAB_LAB, and is not on every machine.
Only this module knows that: all code that shows a hint or a command calls it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

#: Commands in hints that need root: they change the machine, or read what only root may read.
AS_ROOT = frozenset(
    {
        *("apt-get", "bpftool", "dnf", "kill", "mkdir", "modprobe", "mount", "mv", "nft", "nsenter", "pacman", "rm"),
        *("iptables-legacy", "iptables-legacy-restore", "iptables-nft", "iptables-nft-restore"),
        *("rmdir", "sysctl", "systemctl", "tail", "touch", "umount", "zypper"),
    }
)
#: Other programs that a hint may begin with. A hint that begins with none of these words is prose.
AS_ANYBODY = frozenset(
    {
        "cat",
        "df",
        "docker",
        "export",
        "head",
        "istioctl",
        "kind",
        "kubectl",
        "pip",
        "ps",
        "ss",
        "systemd-cgls",
        "ulimit",
        "unset",
    }
)
#: merlab's commands that change or read a lab, and so need root if the lab is the embedded one.
_ON_A_LAB = frozenset(
    {"up", "step", "verify", "restore", "down", "status", "exec", "shell", "trace", "sysdump", "bench"}
)
#: The commands that accept --lab.
_TAKES_LAB = _ON_A_LAB | {"doctor", "steps"}
#: Two commands for the lab that needs no cluster. Nothing else than this module writes the option --lab into a hint.
WITHOUT_CLUSTER = "merlab up --lab embedded"
VERIFY_WITHOUT_CLUSTER = "merlab verify --lab embedded"
#: The lab of a call that names none.
_DEFAULT = "embedded"
#: Where sudo looks, whatever the user's PATH is.
_SECURE = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_APART = re.compile(r"( && | \|\| | \| |; )")


class _Meant:
    #: The lab of this call ("embedded", "kind"), and whether the user named it.
    lab: str = ""
    asked: bool = False
    #: The context of its cluster; "" if it has none.
    context: str = ""


@dataclass(frozen=True)
class Caller:
    """The user who types commands: as root or not, with sudo or not, and how that user calls merlab."""

    root: bool
    #: The command needs sudo before it.
    sudo: bool
    #: How to call merlab, ready to paste: "merlab" if it is on PATH.
    merlab: str
    #: The variables that name another lab than the default one.
    named: tuple[str, ...] = ()


def mean(lab: str, *, asked: bool, context: str = "") -> None:
    """Record which lab the hints of this call are about, and whether the user named it (otherwise it was detected).

    `context` is that of its cluster, for hints that are commands of kubectl.
    """
    _Meant.lab, _Meant.asked, _Meant.context = lab, asked, context


def _is_named() -> bool:
    """Report whether hints name the lab: if the user did, and always for one on a cluster, which is not the default."""
    return _Meant.asked or bool(_Meant.context)


def caller() -> Caller:
    """Determine who types commands."""
    root = os.geteuid() == 0
    sudo = shutil.which("sudo") is not None and (not root or "SUDO_UID" in os.environ)
    name = os.environ.get("MERLAB_NAME") or "merlab"
    return Caller(root, sudo, _program(), (f"MERLAB_NAME={shlex.quote(name)}",) if name != "merlab" else ())


def _program() -> str:
    called = Path(sys.argv[0])
    if called.parts[-3:] == ("merbridge_lab", "cli", "__main__.py"):
        return f"{shlex.quote(sys.executable)} -m merbridge_lab.cli"
    if called.name != "merlab" or not called.exists():
        return "merlab"
    on_path = shutil.which("merlab")
    return "merlab" if on_path and Path(on_path).samefile(called) else shlex.quote(str(called.absolute()))


def _for_root(merlab: str, otherwise: str) -> str:
    """Return how root calls merlab with a PATH other than the user's; `otherwise` if the name is not enough."""
    found = shutil.which("merlab") if merlab == "merlab" else None
    return merlab if found is None or str(Path(found).parent) in _SECURE or os.geteuid() == 0 else otherwise


def is_command(hint: str) -> bool:
    """Report whether a hint is a command, judged by its first word."""
    first = _program_of(hint)
    return first == "merlab" or first in AS_ROOT or first in AS_ANYBODY


def _program_of(command: str) -> str:
    words = [word for word in command.split() if not re.fullmatch(r"sudo|env|\w+=\S*", word)]
    return words[0] if words else ""


def rendered(hint: str | None) -> str | None:
    """Return a hint as this user types it; prose stays unchanged."""
    if not hint or not is_command(hint):
        return hint
    hint, remark, why = hint.partition("  # ")
    return _rendered(hint) + remark + why


def _rendered(hint: str) -> str:
    hint = re.sub(r"^MERLAB_NAME=\S+ ", "", hint)  # A step's command names its lab; this inserts the caller's lab.
    who = caller()
    pieces = _APART.split(hint)
    takes_root = [_takes_root(piece) for piece in pieces]
    if any(takes_root) and not who.root and not who.sudo:
        who = replace(who, merlab=_for_root(who.merlab, shlex.quote(str(shutil.which("merlab")))))
        line = "".join(_piece(piece, who, sudo=False) for piece in pieces)
        return f"su -c {shlex.quote(line)}" if shutil.which("su") else f"as root: {line}"
    return "".join(_piece(piece, who, sudo=who.sudo and root) for piece, root in zip(pieces, takes_root, strict=True))


def command(typed: str) -> str:
    """Return a command of a step as a user types it in a root shell of this machine.

    A command of merlab gets merlab's own path, and the lab's name if it is not the default one.
    """
    found = re.match(r"(?:MERLAB_NAME=\S+ )?merlab (\S+) ", typed)
    if found is None:
        return typed
    if _Meant.context and found[1] in _TAKES_LAB and " --lab " not in typed:
        typed = f"{typed[: found.end()]}--lab {_Meant.lab} {typed[found.end() :]}"
    return typed.replace("merlab ", f"{caller().merlab} ", 1) if caller().merlab != "merlab" else typed


def as_the_app(request: str) -> str:
    """Explain that a shell in a pod's network namespace is not the app; return how to send `request` as the app.

    The shell is in none of the cgroups that eBPF serves.
    """
    return (
        "This shell is not the app: eBPF does not serve what it dials, and with the rules flushed its requests hang or"
        f" are reset. To send a request as the app, from another terminal: {rendered(request)}"
    )


def _takes_root(piece: str) -> bool:
    piece = piece.strip()
    if piece.startswith("sudo "):
        return True
    program = _program_of(piece)
    if program != "merlab":
        return program in AS_ROOT
    words = piece.split()
    # Everybody may read the description of a step; the states of all steps are read from the lab.
    if words[1:] != ["steps"] and ("--help" in words or not _ON_A_LAB & set(words[1:2])):
        return False
    # A kind lab does not need root. A user who runs it as root with sudo continues to do so.
    return _lab_of(words) == _DEFAULT or os.geteuid() == 0


def _lab_of(words: list[str]) -> str:
    if "--lab" in words[:-1]:
        return words[words.index("--lab") + 1]
    return _Meant.lab or _DEFAULT


def _piece(piece: str, who: Caller, *, sudo: bool) -> str:
    if _APART.fullmatch(piece):
        return piece
    piece = piece.removeprefix("sudo ")
    if _program_of(piece) == "pip":  # the pip of the Python environment that merlab runs in
        piece = f"{shlex.quote(sys.executable)} -m {piece}"
    if _program_of(piece) == "kubectl" and _Meant.context and not re.search(r" --context\b|kubectl config\b", piece):
        piece = piece.replace("kubectl", f"kubectl --context {shlex.quote(_Meant.context)}", 1)
    if _program_of(piece) != "merlab":
        if sudo and re.search(r"[<>]", piece):  # if the user's shell opened the file, root would not open it
            return f"sudo sh -c {shlex.quote(piece)}"
        return f"sudo {piece}" if sudo else piece
    words = piece.split(" ")
    if _is_named() and "--lab" not in words and words[1:2] and words[1] in _TAKES_LAB:
        words[2:2] = ["--lab", _Meant.lab]
    rest = " ".join(words[1:])
    if not sudo:
        return " ".join([*who.named, who.merlab, rest])
    before = ["sudo", "env", *who.named] if who.named else ["sudo"]
    return " ".join([*before, _for_root(who.merlab, '"$(command -v merlab)"'), rest])
