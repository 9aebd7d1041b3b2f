"""The report of a benchmark as one HTML file: what is in it, what is not, and where it cannot be written."""

import dataclasses
import functools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench_results import MACHINE, result
from merbridge_lab.bench import html_report, plots
from merbridge_lab.bench.bench_json import to_json
from merbridge_lab.bench.model import NOISE_ROW
from merbridge_lab.bench.statistics import Interval, summarize
from merbridge_lab.errors import LabError
from merbridge_lab.text import as_json

MIXED = summarize(result({"latency": 0.8, "parallel": 1.25, "bodies": 0.79}, rounds=12))
#: Elements without an end.
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def report():
    return html_report.html(MIXED, lab="embedded", made="2026-11-29 10:00 UTC")


def test_every_element_is_closed_and_every_plot_is_xml(report):
    Page(report)
    drawings = re.findall(r"<svg.*?</svg>", report, re.DOTALL)
    assert len(drawings) > 20
    for each in drawings:
        ET.fromstring(each)  # noqa: S314 - our own


def test_it_loads_nothing_and_runs_nothing(report):
    elements = Page(report).elements
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "bench"}]
    for tag, attributes in elements:
        assert tag not in ("link", "img", "iframe", "a", "base", "object"), tag
        assert not {"src", "href", "srcset", "xlink:href"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\(", report)
    assert "default-src 'none'" in report


def test_the_conclusion_is_first_and_every_row_is_in_it(report):
    text = Page(report).text
    assert text.index("eBPF pays off here for latency") < text.index("Machine")
    for row in (*MIXED.rows, MIXED.noise):
        assert row.row.name in text
        assert row.row.title in text


def test_warnings_come_before_the_conclusion():
    noisy = summarize(result({"latency": 0.5, NOISE_ROW: 1.3}))
    text = Page(html_report.html(noisy, lab="embedded", made="now")).text
    assert text.index("This machine is too noisy") < text.index("Nothing follows")


def test_machine_and_versions_are_in_it(report):
    text = Page(report).text
    for name, value in MACHINE.items():
        assert name in text
        assert value in text
    assert "2026-11-29 10:00 UTC" in text


def test_the_raw_pairs_are_in_it_for_people_and_for_scripts(report):
    block = re.search(r'<script type="application/json" id="bench">(.*?)</script>', report, re.DOTALL).group(1)
    assert json.loads(block) == json.loads(as_json(to_json(MIXED, lab="embedded")))
    text = Page(report).text
    for pair in MIXED.rows[0].comparison.pairs:
        assert f"{pair.baseline:.6g}" in text
        assert f"{pair.candidate:.6g}" in text
        assert f'<tr><td>{pair.round}</td><td class="number">{pair.baseline:.6g}</td>' in report


def test_what_others_named_is_no_markup():
    evil = "</script><script>alert(1)</script><b onload=x>\x1b[2J"
    measured = result()
    rows = (dataclasses.replace(measured.rows[0], title=evil, invalid=evil), *measured.rows[1:])
    told = html_report.html(
        summarize(dataclasses.replace(measured, rows=rows, machine={evil: evil})), lab="embedded", made="now"
    )
    page = Page(told)
    assert len([tag for tag, _ in page.elements if tag in ("script", "b")]) == 1
    assert "\x1b" not in told
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_what_is_not_known_is_no_reason_to_fail(rounds):
    page = Page(html_report.html(summarize(result(rounds=rounds, interrupted=True)), lab="embedded", made="now"))
    assert "too little was measured" in page.text


def test_better_is_to_the_right_whatever_the_direction():
    by_name = {row.row.name: row for row in MIXED.rows}
    axis = plots.common_axis(MIXED.rows)
    shown = {name: plots.ratio_plot(row, axis) for name, row in by_name.items()}
    assert shown["latency"].ratio > 55 < shown["parallel"].ratio
    assert shown["bodies"].ratio < 45
    for plot in shown.values():
        assert 0 <= plot.corrected.start <= plot.interval.start <= plot.ratio <= plot.interval.end <= plot.corrected.end
        assert plot.corrected.end <= 100
        assert plot.band.start < 50 < plot.band.end


def test_bars_are_as_long_as_the_figures():
    direct, rules, ebpf = plots.bars(MIXED.rows[1])
    figures = list(MIXED.rows[1].ways.values())
    most = max(each.most for each in figures)
    assert (direct.way, rules.way, ebpf.way) == ("direct", "rules", "ebpf")
    assert [bar.length for bar in (direct, rules, ebpf)] == pytest.approx(
        [100 * each.median / most for each in figures], abs=0.01
    )
    assert all(bar.whisker.end <= 100.01 for bar in (direct, rules, ebpf))


def test_each_round_has_its_point():
    plot = plots.rounds_plot(MIXED.rows[0])
    assert len(plot.points) == 12
    assert sum(y < 50 for _, y, _ in plot.points) >= 11
    assert plot.interval.start < plot.ratio < plot.interval.end


def test_the_axis_of_the_rounds_holds_their_interval():
    row = summarize(result({"latency": 0.8}, rounds=6)).rows[0]
    wide = dataclasses.replace(row.comparison, interval=Interval(0.1, 5.0))
    span = plots.rounds_plot(dataclasses.replace(row, comparison=wide)).interval
    assert 0 < span.start < span.end < 100


# -- writing it


def test_it_is_written(tmp_path):
    path = tmp_path / "bench.html"
    path.write_text("an older one")
    html_report.require_writable(path)
    assert path.read_text() == "an older one"
    html_report.write(path, MIXED, lab="embedded")
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [each.name for each in tmp_path.iterdir()] == ["bench.html"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/bench.html", "No such file or directory"),
        ("file/bench.html", "Not a directory"),
        ("folder", "Is a directory"),
        ("n" * 253 + ".html", "File name too long"),
    ],
)
def test_where_it_cannot_be_written_is_told_before_anything_is_measured(tmp_path, name, why):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LabError) as told:
        html_report.require_writable(tmp_path / name)
    assert told.value.what == f"{tmp_path / name} cannot be written: {why}"
    assert (told.value.id, told.value.hint) == ("file.not_written", "merlab bench --report /tmp/merlab-bench.html")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_not_a_regular_file_is_refused_and_stays(tmp_path, linked):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    asked = link if linked else pipe
    for write in (html_report.require_writable, functools.partial(html_report.write, summary=MIXED, lab="embedded")):
        with pytest.raises(LabError) as told:
            write(asked)
        assert told.value.what == f"{asked} cannot be written: it exists, and is not a regular file"
    assert (pipe.is_fifo(), link.is_symlink(), len(list(tmp_path.iterdir()))) == (True, True, 2)
    with pytest.raises(LabError, match="/dev/null cannot be written"):
        html_report.require_writable(Path("/dev/null"))


def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "link").symlink_to("bench.html")
    html_report.write(tmp_path / "link", MIXED, lab="embedded")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "bench.html").read_text().startswith("<!DOCTYPE html>")


def test_without_a_current_directory_it_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(LabError, match=r"^bench.html cannot be written: No such file or directory"):
        html_report.require_writable(Path("bench.html"))


def test_a_report_that_cannot_be_written_in_the_end_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(LabError, match="cannot be written"):
        html_report.write(tmp_path / "gone" / "bench.html", MIXED, lab="embedded")
    assert list(tmp_path.iterdir()) == []
