"""Views of the lab, the machine, the steps, the matrix, the trace."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from merbridge_lab import hints, text
from merbridge_lab.console import picture
from merbridge_lab.console.terminal import MARK, Terminal
from merbridge_lab.request_path import expected
from merbridge_lab.requirement_groups import in_groups
from merbridge_lab.ruleset import place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.model import Step
    from merbridge_lab.original_commands import Original
    from merbridge_lab.request_path import RequestPath
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent


def requirements(terminal: Terminal, found: Sequence[Requirement]) -> None:
    """Print in groups a line for each thing that the machine offers or lacks, with the command that fixes it."""
    for name, group in in_groups(found).items():
        met = sum(one.verdict == "pass" for one in group)
        terminal.line(f"[title]{name} {met}/{len(group)}[/]")
        _group(terminal, group)


def _group(terminal: Terminal, group: Sequence[Requirement]) -> None:
    for one in group:
        style = one.verdict
        needed = f"  [faint](needed: {escape(one.needed)})[/]" if style != "pass" else ""
        terminal.line(f"[{style}]{MARK.get(style, '?')}[/] {one.name:<26} {escape(one.found)}{needed}")
        if (hint := hints.rendered(one.hint)) and style != "pass":
            terminal.line(f"    → {escape(hint)}")


def steps(terminal: Terminal, rows: Sequence[tuple[Step, str]]) -> None:
    """Print number, state and title of each step."""
    for step, state in rows:
        terminal.line(f"{step.number}  {escape(state):<14} {escape(step.title)}")


def kernels(
    terminal: Terminal, at_hand: Sequence[tuple[str, str]], packages: Sequence[tuple[str, str]], names: str
) -> None:
    """Print the kernels that --kernel can boot, and where each is or how to get it."""
    width = max((len(version) for version, _ in (*at_hand, *packages)), default=0)
    for title, rows in (("at hand", at_hand), ("packages that merlab downloads when asked, or you", packages)):
        if rows:
            terminal.line(f"[title]{title}[/]")
        for version, where in rows:
            terminal.line(f"  {escape(version):<{width}}  [faint]{escape(where)}[/]")
    if names:
        terminal.line(f"[title]releases whose newest kernel merlab downloads when asked[/]\n  {escape(names)}")


def narrate(terminal: Terminal, step: Step, commands: Sequence[str], original: Sequence[Original], note: str) -> None:
    """Print a step's narration, the commands a person would type for it, a note on them, and what was typed in 2022."""
    terminal.line(f"[title]{step.number}  {escape(step.title)}[/]\n")
    terminal.prose(step.narration, 3)
    terminal.line("")
    for command in commands:
        terminal.line(f"   [cmd]$ {escape(hints.command(command))}[/]")
    if note:
        terminal.prose(note, 3, mark="   ")
    terminal.line("")
    if original:
        terminal.line("   As it was written in 2022:")
    for one in original:
        terminal.line(f"   [faint]$ {escape(one.then)}[/]")
        terminal.prose(f"now {one.now}" if one.now else "unchanged", 5, style="faint")
    if original:
        terminal.line("")
    for check in step.verify + step.request_checks:
        terminal.prose(f"verified: {check.description} ({check.name})", 3, mark="   ", style="faint")


def columns(*names: str, gap: int = 2) -> Table:
    """Return an empty table with these columns."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column in names:
        table.add_column(column, no_wrap=column == "client")  # a name must not be cut
    return table


def status(terminal: Terminal, described: Mapping[str, Any]) -> None:
    """Print a picture of the lab: its pods, the path of a request now, what is flushed, what is wrong."""
    _labs(terminal, described.get("labs", ()))
    if not described["up"]:
        terminal.line(f"no lab is up  → {hints.rendered('merlab up')}")
        return
    dataplane = described["dataplane"]
    attached = f"attached ({dataplane['kind']}, {dataplane['programs']} programs)" if dataplane["attached"] else "none"
    terminal.line(f"[title]the {described['lab']} lab is up[/]   eBPF: {attached}\n")
    table = columns("pod", "address", "pid", "sidecar", "rules")
    for pod in described["workloads"]:
        rules = pod["rules"]
        held = f"{rules['istio_rules']} ISTIO rules in {place(rules['backend'])}" if rules["istio_rules"] else "none"
        held = "not read" if "unread" in rules else held
        ready = "[pass]ready[/]" if pod["sidecar"] else "[fail]not ready[/]"
        table.add_row(pod["name"], pod["ip"], str(pod["pid"] or "none"), ready, held)
    if replicas := described.get("replicas"):
        table.add_row(f"and {len(replicas)} more", "", "", "", "")
    if described["workloads"]:
        terminal.out.print(table)
    terminal.line("")
    has_app = any(pod["pid"] for pod in described["workloads"])  # without one, nobody answers
    if len(described["workloads"]) > 1 and described["path"] and has_app:
        terminal.line("a new request")
        terminal.drawing(picture.lines(_path(described), terminal.out.width, unicode=terminal.unicode))
    if dataplane["attached"] and (legs := dataplane.get("legs")):
        terminal.line(f"between sidecars: redirected; {escape(legs['why'])}")
    for name in described["flushed"]:
        terminal.line(f"[warn]![/] the nat rules of {name} are flushed  → {hints.rendered('merlab restore')}")
    for problem in described["problems"]:
        terminal.line(f"[warn]![/] {escape(problem)}")
    if described["problems"]:
        terminal.line(f"  → {hints.rendered('merlab up')}")


def _path(described: Mapping[str, Any]) -> RequestPath:
    """Return the path of a new request."""
    client, *servers = described["workloads"]
    legs = described["dataplane"].get("legs")
    present = [None if "unread" in pod["rules"] else pod["rules"]["istio_rules"] > 0 for pod in (client, *servers)]
    return expected(
        text.printable(client["name"]),
        tuple(text.printable(pod["name"]) for pod in servers),
        rules=present[0],
        server_rules=None if None in present[1:] else all(present[1:]),
        attached=described["dataplane"]["attached"],
        moves_for_apps=legs is None or legs["out_of_app"] or legs["into_app"],
    )


def _labs(terminal: Terminal, labs: Sequence[Mapping[str, Any]]) -> None:
    """Print which labs are up, if there are several, or one that commands here do not use."""
    if len(labs) == 1 and labs[0]["default"]:
        return
    for lab in labs:
        how = f"MERLAB_NAME={lab['name']}" if lab["lab"] == "embedded" else f"--lab {lab['lab']}"
        meant = "commands without --lab mean this one" if lab["default"] else f"to mean this one: {how}"
        terminal.line(f"up: {lab['name']} ({lab['lab']}); {meant}")


def trace_event(terminal: Terminal, event: TraceEvent, *, as_json: bool) -> None:
    """Print one event of the trace: its line, or an object."""
    if as_json:
        terminal.raw(text.as_json({**asdict(event), "sentence": event.sentence()}) + "\n")
    else:
        terminal.line(escape(event.raw))
    terminal.out.file.flush()
