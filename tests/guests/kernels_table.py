"""The tables of docs/kernels.md, from what guests were seen to do: docs/kernels.json has that, phase by phase.

What no guest did is "not tried" there, never a guess.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[2] / "docs"
RECORD, DOCUMENT = _DOCS / "kernels.json", _DOCS / "kernels.md"
BEGIN, END = "<!-- make soak-machines -->\n", "<!-- end of make soak-machines -->\n"
NOT_TRIED = "not tried"

#: What is told of a phase, by its name in inside.py.
COLUMNS = {
    "doctor": "`doctor`",
    "up": "`make up`, ten steps",
    "verify": "`verify`, six cells",
    "step 9": "`step 9`",
    "restore": "`restore` after a kill",
    "down": "`make down`",
    "fingerprint": "the machine as before",
    "legacy": "the same with legacy tables",
    "sabotages": "five sabotages noticed",
    "smoke": "smoke tests",
}
#: What is told of a machine, besides its name and its kernel.
PARTS = {"systemd": "systemd", "python": "Python", "bcc": "BCC", "iptables": "iptables", "nftables": "nftables"}

#: What a guest told: its machine, and by phase what held, when and what was found.
Told = dict[str, Any]


@dataclass(frozen=True)
class Guest:
    """A row: its name, the release whose files it has, and whose kernel; None where no guest is booted for it.

    `refused` ones are too old: merlab must say so.
    """

    name: str
    release: str | None
    kernel: str | None
    refused: bool = False
    said: str = NOT_TRIED


GUESTS = (
    Guest("debian-13", "trixie", "trixie"),
    Guest("debian-12", "bookworm", "bookworm"),
    Guest("debian-13-backports", "trixie", "trixie-backports"),
    Guest("linux-5.15", None, None, said="expected, not tried"),
    Guest("linux-5.10", "bookworm", "bullseye", refused=True),
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
    """Put the tables into the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{render(read())}{END}{rest.partition(END)[2]}")


def render(told: dict[str, Told]) -> str:
    """Return the tables."""
    seen = [(guest, told.get(guest.name, {"kernel": None, "phases": {}})) for guest in GUESTS]
    return "\n".join([*_held(seen), "", *_sockmap(seen), ""])


def _held(seen: list[tuple[Guest, Told]]) -> list[str]:
    heads = [_heading(guest, told) for guest, told in seen if not guest.refused]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for label, cell in (
        ("machine", _machine),
        *((label, _cell(name)) for name, label in COLUMNS.items()),
    ):
        cells = [cell(guest, told) for guest, told in seen if not guest.refused]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for guest, told in seen:
        if guest.refused:
            lines += ["", _refusal(guest, told)]
    return lines


def _heading(guest: Guest, told: Told) -> str:
    return told["kernel"] or f"Linux {guest.name.removeprefix('linux-')}" if guest.kernel is None else (
        told["kernel"] or guest.name
    )  # fmt: skip


def _phase(told: Told, name: str) -> Told | None:
    phase: Told | None = told["phases"].get(name)
    return phase


def _machine(guest: Guest, told: Told) -> str:
    phase = _phase(told, "machine")
    if phase is None or not phase["held"]:
        return guest.said
    found = phase["found"]
    parts = ", ".join(f"{label} {found[name]}" for name, label in PARTS.items())
    return f"{found['distribution']}: {parts}; cgroup v2 alone, no network"


def _cell(name: str) -> Any:
    def cell(guest: Guest, told: Told) -> str:
        phase = _phase(told, name)
        if phase is None:
            return guest.said
        more = f" ({phase['found']['passed']})" if name == "smoke" and phase["held"] else ""
        return f"{'holds' if phase['held'] else '**does not hold**'}{more}, {phase['when']}"

    return cell


def _refusal(guest: Guest, told: Told) -> str:
    phase = _phase(told, "refused")
    if phase is None:
        return f"Older than 5.15 ({guest.name}): {NOT_TRIED}."
    if not phase["held"]:
        return f"Older than 5.15 ({told['kernel']}), {phase['when']}: **not refused as it should be**."
    return f"Older than 5.15 ({told['kernel']}), {phase['when']}: exit status 3, and `{phase['found']['said']}`"


def _sockmap(seen: list[tuple[Guest, Told]]) -> list[str]:
    """Return which sockets are safe in a sockhash, of the kernels whose probes ran."""
    head = (
        "kernel", "FIONREAD counts", "redirected bytes charged to their reader", "wrong on TCP's bytes in a sockhash",
        "wrong on redirected bytes", "64 MB to a slow reader", "MPTCP listeners", "kTLS keys", "Envoy to Envoy",
        "out of an app", "into an app", "seen",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for guest, told in seen:
        phase = _phase(told, "probes")
        name = told["kernel"] or _heading(guest, told)
        if phase is None or not phase["held"]:
            said = guest.said if phase is None else "the probes failed"
            lines.append(f"| {name} | {' | '.join([said, *[''] * (len(head) - 2)])} |")
            continue
        found = phase["found"]
        wrong = found["wrong"]
        redirected, on_tcp = _wrong(wrong, "redirected"), _wrong(wrong, "tcp")
        stream = found["stream"]
        whole = stream["is_in_order"] and stream["received"] == stream["total"]
        ktls = _phase(told, "kTLS")
        cells = (
            found["counts"].lower(),
            "yes" if found["charged"] >= 32768 else "**no**",
            on_tcp,
            redirected,
            "whole, in order" if whole else "**not whole**",
            "known to be fixed" if found["fixes"]["mptcp"] else "**not known to be fixed**",
            NOT_TRIED if ktls is None else _ktls(ktls),
            "safe" if whole else "**not safe**",
            "safe" if found["out of app"] else "not safe for any app",
            "safe" if found["into app"] else "not safe for any app",
            phase["when"],
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _wrong(found: dict[str, list[str]], which: str) -> str:
    """Return the ways of reading that go wrong; redirected bytes are those of the last arrangement."""
    *tcp, redirected = found.values()
    names = redirected if which == "redirected" else dict.fromkeys(name for each in tcp for name in each)
    return ", ".join(f"{name}" for name in names) or "nothing"


def _ktls(phase: Told) -> str:
    if not phase["held"]:
        return "**plaintext, or nothing, arrives**"
    refused = phase["found"]["refused"]
    return f"refused ({refused})" if refused else "accepted; left to TCP, encrypted"
