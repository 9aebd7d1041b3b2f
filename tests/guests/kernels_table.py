"""The tables of where it was tried, from what guests were seen to do: docs/kernels.json has that, phase by phase.

docs/kernels.md has all of it, README.md and docs/limits.md a line for each guest. What no guest did is "not tried"
there, never a guess.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_TOP = Path(__file__).parents[2]
RECORD, DOCUMENT = _TOP / "docs/kernels.json", _TOP / "docs/kernels.md"
BRIEF = (_TOP / "README.md", _TOP / "docs/limits.md")
BEGIN, END = "<!-- make soak-machines -->\n", "<!-- end of make soak-machines -->\n"
NOT_TRIED = "not tried"

#: What is told of a phase, by its name in inside.py.
COLUMNS = {
    "from nothing": "a bare machine set up from a folder",
    "doctor": "`doctor`",
    "up": "`up` (ten steps)",
    "verify": "`verify` (six cells)",
    "step 9": "`step 9`",
    "restore": "`restore` after a kill",
    "down": "`down`",
    "fingerprint": "the machine as before",
    "legacy": "legacy tables",
    "sabotages": "five sabotages noticed",
    "smoke": "smoke tests",
}
#: The same of the kind lab, by its name in inside_kind.py.
KIND_COLUMNS = {
    "doctor": "`doctor --lab kind`",
    "up": "`up --lab kind --dataplane none`",
    "layout": "the node's first process in init.scope, a pod beside it",
    "status": "`status --lab kind`",
    "down": "`down --lab kind`",
    "fingerprint": "nothing is left",
}
#: What is told of a machine, besides its name and its kernel.
PARTS = {"systemd": "systemd", "python": "Python", "bcc": "BCC", "iptables": "iptables", "nftables": "nftables"}

#: What is charged of 32 kB that were redirected, in bytes.
CHARGED = 32768

#: What a guest told: its machine, and by phase what held, when and what was found.
Told = dict[str, Any]


@dataclass(frozen=True)
class Guest:
    """A column: its name and title, the release whose files it has, and the one whose kernel.

    `refused` ones are too old: merlab must say so. `kind` is the kind lab, on the files of the machine that runs it.
    """

    name: str
    title: str
    release: str
    kernel: str
    refused: bool = False
    kind: bool = False
    said: str = NOT_TRIED


GUESTS = (
    Guest("debian-13", "Debian 13", "trixie", "trixie"),
    Guest("debian-12", "Debian 12", "bookworm", "bookworm"),
    Guest("backports", "Debian 13, kernel of backports", "trixie", "trixie-backports"),
    Guest("ubuntu-26.04", "Ubuntu 26.04", "resolute", "resolute"),
    Guest("ubuntu-24.04", "Ubuntu 24.04", "noble", "noble"),
    Guest("linux-5.15", "Debian 12, kernel of Ubuntu 22.04", "bookworm", "jammy", said="expected, not tried"),
    Guest("linux-5.10", "Debian 12, kernel of Debian 11", "bookworm", "bullseye", refused=True),
    Guest("kind", "Kernel of Debian 13", "", "trixie", kind=True),
)


def read() -> dict[str, Told]:
    """Return what was recorded, by guest."""
    return dict(json.loads(RECORD.read_text())) if RECORD.exists() else {}


def record(guest: str, kernel: str, phase: Told, when: str) -> None:
    """Add what a phase told to the record; what another kernel did before is dropped."""
    told = read()
    mine = told.get(guest, {})
    if mine.get("kernel") != kernel:
        mine = {"kernel": kernel, "phases": {}}
    mine["phases"][phase["phase"]] = {"held": phase["held"], "when": when} | {
        name: phase[name] for name in ("found", "said") if phase.get(name) is not None
    }
    told[guest] = mine
    RECORD.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def write() -> None:
    """Put the tables into the documents."""
    told = read()
    for document, text in ((DOCUMENT, render(told)), *((each, brief(told)) for each in BRIEF)):
        before, _, rest = document.read_text().partition(BEGIN)
        document.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")


def brief(told: dict[str, Told]) -> str:
    """Return a line for each guest: what held and what did not, and the days of it."""
    lines = ["| machine | kernel | held | did not hold | not tried | seen |", "|---|---|---|---|---|---|"]
    for guest in GUESTS:
        mine = told.get(guest.name, {"kernel": "", "phases": {}})
        labels = {"refused": "refused in a sentence"} if guest.refused else KIND_COLUMNS if guest.kind else COLUMNS
        seen = {name: mine["phases"][name] for name in labels if name in mine["phases"]}
        held = ", ".join(labels[name] for name, each in seen.items() if each["held"])
        wrong = ", ".join(f"**{labels[name]}**" for name, each in seen.items() if not each["held"])
        missing = ", ".join(label for name, label in labels.items() if name not in seen)
        if not seen:
            missing = "all of it" if guest.said == NOT_TRIED else "all of it; expected to hold"
        days = sorted({each["when"] for each in seen.values()})
        when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
        title = f"kind lab, {guest.title[0].lower()}{guest.title[1:]}" if guest.kind else guest.title
        lines.append(f"| {title} | {mine['kernel']} | {held} | {wrong} | {missing} | {when} |")
    return "\n".join(lines) + "\n"


def render(told: dict[str, Told]) -> str:
    """Return the tables."""
    nothing = {"kernel": None, "phases": {}}
    seen = [(guest, told.get(guest.name, nothing)) for guest in GUESTS]
    able = [(guest, each) for guest, each in seen if not guest.refused and not guest.kind]
    clusters = [(guest, each) for guest, each in seen if guest.kind]
    machine = _of("machine", "**not as it should be**", _parts)
    held = {"machine": machine, **{label: _cell(name) for name, label in COLUMNS.items()}}
    refusals = [_refusal(guest, each) for guest, each in seen if guest.refused]
    by_kind = {"parts": _of("machine", "**not as it should be**", _with_docker)}
    by_kind |= {label: _cell(name) for name, label in KIND_COLUMNS.items()}
    lines = [*_table("", held, able), "", *refusals, "", *_table("sockets in a sockhash", SOCKETS, able), ""]
    return "\n".join([*lines, *_table("the kind lab", by_kind, clusters), ""])


def _table(corner: str, rows: dict[str, Callable[[Guest, Told], str]], seen: list[tuple[Guest, Told]]) -> list[str]:
    heads = [f"{guest.title}: {told['kernel']}" if told["kernel"] else guest.title for guest, told in seen]
    lines = [f"| {corner} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for label, cell in rows.items():
        lines.append(f"| {label} | {' | '.join(cell(guest, told) for guest, told in seen)} |")
    return lines


def _of(name: str, wrong: str, tell: Callable[[Told], str]) -> Callable[[Guest, Told], str]:
    """Return what tells of a phase by what it found; `wrong` if it did not hold."""

    def cell(guest: Guest, told: Told) -> str:
        phase = told["phases"].get(name)
        if phase is None:
            return guest.said
        return tell(phase["found"]) if phase["held"] else wrong

    return cell


def _parts(found: Told) -> str:
    parts = ", ".join(f"{label} {found[name].lstrip('v')}" for name, label in PARTS.items())
    return f"{found['distribution']}; {parts}"


def _with_docker(found: Told) -> str:
    told = "{distribution}; Docker {docker}, kind {kind}, Kubernetes {kubernetes}".format(**found)
    return told + ("; each instruction emulated" if found["slowed"] else "")


def _cell(name: str) -> Callable[[Guest, Told], str]:
    """Return what tells of a phase whether it held, and when."""

    def cell(guest: Guest, told: Told) -> str:
        phase = told["phases"].get(name)
        if phase is None:
            return guest.said
        found = phase.get("found") or {} if phase["held"] else {}
        more = f": {found['passed'].partition(' in ')[0]}" if name == "smoke" and found else ""
        if "skipped" in found:
            more = f": {found['held']} steps, {found['skipped']} skipped"
        return f"{'holds' if phase['held'] else '**does not hold**'}{more}, {phase['when']}"

    return cell


def _refusal(guest: Guest, told: Told) -> str:
    phase = told["phases"].get("refused")
    if phase is None:
        return f"Older than 5.15 ({guest.title}): {NOT_TRIED}."
    if not phase["held"]:
        return f"Older than 5.15 ({guest.title}: {told['kernel']}), {phase['when']}: **not refused as it should be**."
    return (
        f"Older than 5.15 ({guest.title}: {told['kernel']}), {phase['when']}: `doctor` and `up` end with exit status 3 "
        f"and `{phase['found']['said']}`; nothing is made."
    )


def _probed(tell: Callable[[Told], str]) -> Callable[[Guest, Told], str]:
    """Return what tells of a kernel's probes."""
    return _of("probes", "**the probes failed**", tell)


def _wrong_by_tcp(found: Told) -> str:
    *by_tcp, _ = found["wrong"].values()
    return ", ".join(dict.fromkeys(name for each in by_tcp for name in each)) or "nothing"


def _wrong_redirected(found: Told) -> str:
    *_, redirected = found["wrong"].values()
    return ", ".join(redirected) or "nothing"


def _is_whole(found: Told) -> bool:
    return bool(found["stream"]["is_in_order"] and found["stream"]["received"] == found["stream"]["total"])


def _ktls(found: Told) -> str:
    refused = found["refused"]
    return f"the keys are refused ({refused})" if refused else "accepted, and left to TCP: encrypted"


_COUNTS = {"TCP": "TCP's bytes", "REDIRECTED": "redirected bytes", "BOTH": "both", "NEITHER": "neither correctly"}
#: What is told of sockets in a sockhash.
SOCKETS: dict[str, Callable[[Guest, Told], str]] = {
    "FIONREAD counts": _probed(lambda found: _COUNTS[found["counts"]]),
    "it says": _probed(lambda found: str(found["fionread"])),
    "redirected bytes are charged to their reader": _probed(
        lambda found: "yes" if found["charged"] >= CHARGED else "**no**"
    ),
    "wrong on TCP's bytes, once the socket is there": _probed(_wrong_by_tcp),
    "wrong on redirected bytes": _probed(_wrong_redirected),
    "64 MB to a slow reader": _probed(lambda found: "whole, in order" if _is_whole(found) else "**not whole**"),
    "connections of MPTCP listeners (by a table of releases, never by trying)": _probed(
        lambda found: "fixed" if found["fixes"]["mptcp"] else "**not known to be fixed**"
    ),
    "an app with kTLS, captured": _of("kTLS", "**not encrypted, or not whole**", _ktls),
    "so safe from sidecar to sidecar": _probed(lambda found: "yes" if _is_whole(found) else "**no**"),
    "so safe for what any app sends": _probed(lambda found: "yes" if found["out of app"] else "no"),
    "so safe for what any app reads": _probed(lambda found: "yes" if found["into app"] else "no"),
    "the probes": _cell("probes"),
}
