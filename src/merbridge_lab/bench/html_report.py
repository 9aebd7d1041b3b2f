"""A benchmark as one HTML file: no outside links, no script that runs, plots as SVG, and the raw pairs."""

from __future__ import annotations

import contextlib
import os
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab import templates
from merbridge_lab.adapters import files
from merbridge_lab.bench import plots, wording
from merbridge_lab.bench.bench_json import to_json
from merbridge_lab.bench.model import NOISE_ROW, Way
from merbridge_lab.bench.statistics import CPU, PERCENTILES, Claim
from merbridge_lab.errors import LabError
from merbridge_lab.text import as_json, printable

if TYPE_CHECKING:
    from merbridge_lab.bench.statistics import BenchSummary, RowSummary

_STYLES = {Claim.GAIN: "gain", Claim.LOSS: "loss", Claim.NONE: "none", None: "unknown"}


def require_writable(path: Path) -> None:
    """Raise LabError if the report could not be written to `path`: to be asked before anything is measured."""
    try:
        files.require_writable(_target(path))
    except OSError as error:
        raise _not_written(path, error) from error


def write(path: Path, summary: BenchSummary, *, lab: str) -> None:
    """Write the report, completely or not at all. Raise LabError if that fails."""
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    try:
        target = _target(path)
        files.require_writable(target)  # it took minutes to come here
        files.write_atomic(target, html(summary, lab=lab, made=made), owner=os.geteuid())
    except OSError as error:
        raise _not_written(path, error) from error


def _target(path: Path) -> Path:
    """Return the file that is written: a symbolic link stays. Raise OSError where there is no current directory."""
    return Path(os.path.realpath(path))


def _not_written(path: Path, error: OSError) -> LabError:
    with contextlib.suppress(OSError):  # the current directory may be deleted
        path = path.absolute()
    return LabError(
        f"{path} cannot be written: {error.strerror}",
        hint="merlab bench --report /tmp/merlab-bench.html",
        id="file.not_written",
    )


def html(summary: BenchSummary, *, lab: str, made: str) -> str:
    """Return the report; `made` is when, in words."""
    template = (resources.files("merbridge_lab") / "data/bench/report.html.j2").read_text(encoding="utf-8")
    result = summary.result
    rows = (*summary.rows, *([summary.noise] if summary.noise else []))
    axis = plots.common_axis(rows)
    facts = {
        "lab": lab,
        "measured": made,
        "rounds": str(result.rounds),
        "seconds": f"{result.seconds:.0f}",
        "used by other processes": f"{100 * result.outside_load:.1f} % of all cores",
        **result.machine,
    }
    page = templates.render_html(
        template,
        conclusion=wording.conclusion(summary),
        warnings=wording.warnings(summary),
        noisy=summary.noisy,
        rules=(wording.rule(summary), wording.percentile_rule()),
        axis=axis,
        rows=[_row(row, axis) for row in rows],
        facts=facts,
        # In a script block only "</script" and "<!--" would be markup; JSON has "<" in strings alone.
        data=as_json(to_json(summary, lab=lab), indent=1).replace("<", "\\u003c"),
    )
    return printable(page)


def _row(row: RowSummary, axis: plots.Axis) -> dict[str, Any]:
    found = row.comparison
    is_noise = row.row.name == NOISE_ROW
    figures = {way: row.ways.get(way) for way in (Way.RULES, Way.EBPF)}
    return {
        "name": row.row.name,
        "title": row.row.title,
        "unit": row.row.unit,
        "better": "higher is better" if row.row.higher_is_better else "lower is better",
        "is_noise": is_noise,
        "style": "noisy" if wording.claim(row) == "noisy" else _STYLES[found.claim],
        "claim": wording.claim(row),
        "why": found.why,
        "ratio": wording.ratio(found.ratio),
        "interval": wording.interval(found.interval),
        "corrected": wording.interval(found.corrected),
        "medians": [wording.figure(each.median if each else None, row.row.unit) for each in figures.values()],
        "plot": plots.ratio_plot(row, axis),
        "bars": plots.bars(row),
        "rounds": plots.rounds_plot(row),
        "beside": _beside(row),
        "pairs": [
            (
                pair.round,
                f"{pair.baseline:.6g}",
                f"{pair.candidate:.6g}",
                f"{pair.ratio:.4f}" if found.ratio else "",
            )
            for pair in found.pairs
        ],
        "pair_names": ("rules, one set", "rules, other set") if is_noise else ("rules", "eBPF"),
    }


def _beside(row: RowSummary) -> list[tuple[str, str, str, str, str]]:
    """Return a line for each other figure: its name, by the rules, by eBPF, the ratio and its interval."""
    rules, ebpf = row.ways.get(Way.RULES), row.ways.get(Way.EBPF)
    if rules is None or ebpf is None:
        return []
    told: list[tuple[str, float | None, float | None]] = []
    if rules.cpu is not None and ebpf.cpu is not None:
        told.append((CPU, rules.cpu, ebpf.cpu))
    told += [
        (name, rules.percentiles.get(name), ebpf.percentiles.get(name))
        for name in PERCENTILES
        if name in rules.percentiles or name in ebpf.percentiles
    ]
    lines = []
    for name, by_rules, by_ebpf in told:
        compared = row.beside.get(name)
        lines.append(
            (
                "CPU per request" if name == CPU else name,
                wording.figure(by_rules, "s"),
                wording.figure(by_ebpf, "s"),
                wording.ratio(compared.ratio if compared else None),
                wording.interval(compared.interval if compared else None),
            )
        )
    return lines
