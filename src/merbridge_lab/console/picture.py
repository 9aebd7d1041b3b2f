"""The path of a request as a drawing: app, sidecar, sidecar, app, with a word and a colour for each leg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from merbridge_lab.istio_facts import INBOUND_PORT, OUTBOUND_PORT
from merbridge_lab.request_path import Carrier

if TYPE_CHECKING:
    from merbridge_lab.request_path import LegView, RequestPath

_STYLES = {
    Carrier.RULES: "bold cyan",
    Carrier.EBPF: "bold green",
    Carrier.TCP: "bold blue",
    Carrier.PLAIN: "bold yellow",
    Carrier.BROKEN: "bold red",
    Carrier.UNKNOWN: "bold yellow",
}
#: The narrowest page for a path from left to right.
WIDE = 76
_INDENT = "   "


def lines(path: RequestPath, width: int, *, unicode: bool) -> list[Text]:
    """Return the drawing, from left to right where it fits, else from top to bottom."""
    servers = _names(path.servers)
    out, mesh, into = path.legs
    if out.carrier in (Carrier.PLAIN, Carrier.BROKEN) and mesh.carrier in (Carrier.PLAIN, Carrier.BROKEN):
        return _past_the_sidecars(path, servers, unicode=unicode)
    if width < WIDE:
        return _downwards(path.client, servers, path.legs, unicode=unicode)
    mark = marks(unicode=unicode)
    parts = [
        ("[app]", _arrow(out, mark[0], "─", unicode=unicode)),
        (f"[sidecar :{OUTBOUND_PORT}]", _arrow(mesh, mark[1], "═", unicode=unicode)),
        (f"[sidecar :{INBOUND_PORT}]", _arrow(into, mark[2], "─", unicode=unicode)),
    ]
    drawing = Text(_INDENT)
    for name, arrow in parts:
        drawing.append(f"{name} ").append(arrow).append(" ")
    drawing.append("[app]")
    inbound = drawing.plain.index(f"[sidecar :{INBOUND_PORT}]")
    names = Text(f"{_INDENT}{path.client}".ljust(inbound) + servers, style="bold")
    return [names, drawing, legend(path, width, unicode=unicode)]


def legend(path: RequestPath, width: int, *, unicode: bool) -> Text:
    """Return one line with a word, a colour and, where they fit, a count for each leg."""
    for counts in (True, False):
        line = Text(_INDENT)
        for mark, leg in zip(marks(unicode=unicode), path.legs, strict=True):
            line.append(f"{mark} {leg if counts else leg.carrier.value}", style=_STYLES[leg.carrier]).append("  ")
        if counts and path.moved:
            line.append(f"{path.moved} in all")
        if path.expected:
            line.append("expected", style="dim")
        line.rstrip()
        if line.cell_len <= width:
            break
    return line


def _past_the_sidecars(path: RequestPath, servers: str, *, unicode: bool) -> list[Text]:
    leg = path.legs[1]
    line = "─" if unicode else "-"
    head = ("▶" if unicode else ">") if leg.carrier is Carrier.PLAIN else ("✘" if unicode else "x")
    drawing = Text(f"{_INDENT}[app] ")
    drawing.append(f"{line * 4} past the sidecars {line * 4}{head}", style=_STYLES[leg.carrier]).append(" [app]")
    counted = Text(_INDENT).append(str(leg), style=_STYLES[leg.carrier])
    if path.expected:
        counted.append("  expected", style="dim")
    names = Text(
        f"{_INDENT}{path.client}".ljust(drawing.plain.rindex("[app]")) + (servers or "helloworld"), style="bold"
    )
    return [names, drawing, counted]


def _downwards(client: str, servers: str, legs: tuple[LegView, ...], *, unicode: bool) -> list[Text]:
    bar = "│" if unicode else "|"
    stations = (
        f"[app] {client}",
        f"[sidecar :{OUTBOUND_PORT}]",
        f"[sidecar :{INBOUND_PORT}] {servers}",
        "[app]",
    )
    drawn = [Text(_INDENT + stations[0])]
    for mark, leg, station in zip(marks(unicode=unicode), legs, stations[1:], strict=True):
        drawn += [
            Text(f"{_INDENT}  ").append(f"{bar} {mark} {leg}", style=_STYLES[leg.carrier]),
            Text(_INDENT + station),
        ]
    return drawn


def _arrow(leg: LegView, mark: str, line: str, *, unicode: bool) -> Text:
    broken = leg.carrier is Carrier.BROKEN
    line = line if unicode else ("=" if line == "═" else "-")
    head = ("✘" if unicode else "x") if broken else ("▶" if unicode else ">")
    return Text(f"{line * 2}{mark}{line * 2}{head}", style=_STYLES[leg.carrier])


def marks(*, unicode: bool) -> tuple[str, str, str]:
    """Return the marks of the three legs."""
    return ("①", "②", "③") if unicode else ("1", "2", "3")


def _names(servers: tuple[str, ...]) -> str:
    """Return the names of the servers in short: helloworld-v1, -v2."""
    if not servers:
        return ""
    first, *rest = servers
    stem = first.rpartition("-")[0]
    return ", ".join([first, *(each[len(stem) :] if stem and each.startswith(f"{stem}-") else each for each in rest)])
