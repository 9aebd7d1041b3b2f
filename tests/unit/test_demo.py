"""A demo on a real terminal: what stands on the screen, key by key, on the lab in memory; and its recording."""

import json
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from rich.text import Text
from tests.terminal_screen import OnScreen

import golden_files
from fake_lab import FakeLab, up
from merbridge_lab import events
from merbridge_lab.cli.demo import state
from merbridge_lab.command_events import CommandBegins
from merbridge_lab.console.keys import AutomaticKeys
from merbridge_lab.console.presenter import Presenter
from merbridge_lab.console.stage import MOST_ROWS, Block, Line, Stage
from merbridge_lab.console.terminal import Terminal
from merbridge_lab.console.terms import Terms
from merbridge_lab.evidence import Verdict
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner

MERLAB = [sys.executable, str(Path(__file__).parents[1] / "fake_merlab.py")]
WAITS = "Enter: run"


@pytest.fixture
def demo():
    """Return a function that starts merlab on a terminal; what still runs is ended."""
    started = []

    def start(*arguments, columns=80, rows=24, **env):
        started.append(OnScreen([*MERLAB, *arguments], columns, rows, **env))
        return started[-1]

    yield start
    for each in started:
        each.close()


def waits_for(command):
    """Report whether the screen waits for Enter at a command that contains `command`."""

    def look(text):
        before, waiting, _ = text.rpartition("⏎")
        return bool(waiting) and command in "".join(before.splitlines()[-2:])

    return look


def flushed(demo):
    """Return a demo of step 9 that waits at the first command after the flush."""
    screen = demo("--is-up", "step", "9", "--demo")
    for command in ("iptables-save", "-t nat -F"):
        screen.until(waits_for(command))
        screen.press("\t")
    screen.until(waits_for("-vnL"))
    return screen


def test_a_command_stands_there_and_runs_on_enter(demo):
    screen = demo("--is-up", "step", "9", "--demo")
    screen.until(waits_for("iptables-save"))
    assert screen.lines()[0].startswith("9  Flush the NAT rules of sleep")
    assert screen.lines()[0].endswith("rules: 18   eBPF: on")
    screen.press("\r")
    screen.until(waits_for("iptables -t nat -F"))
    assert "rules: 18" in screen.lines()[0]
    screen.press("\t")
    text = screen.until(waits_for("-vnL"))
    assert "rules: 0 " in screen.lines()[0]
    assert "│ nat rules of sleep: 18 → 0" in text


def test_any_key_types_and_only_enter_runs(demo):
    screen = demo("--is-up", "step", "6", "--demo")
    screen.until(waits_for("merlab exec"))
    for _ in range(30):
        screen.press("x")
        screen.read(0.02)
    assert "4 of 4 answered" not in screen.text
    screen.press("\r")
    screen.until("4 of 4 answered, each on a new connection")


def test_b_goes_back_one_command_and_the_rules_follow(demo):
    screen = flushed(demo)
    assert "rules: 0 " in screen.lines()[0]
    screen.press("b")
    screen.until(waits_for("-t nat -F"))
    screen.until(lambda text: "rules: 18" in text.splitlines()[0])
    screen.press("\t")
    screen.until(lambda text: "rules: 0 " in text.splitlines()[0])


def test_q_leaves_in_order_and_restores(demo):
    screen = flushed(demo)
    screen.press("q")
    assert screen.end() == 3  # nothing was seen to hold
    assert "nothing was seen to hold" in screen.text
    assert "Traceback" not in screen.text


def test_ctrl_c_stops_and_restores(demo):
    screen = flushed(demo)
    screen.press("\x03")
    assert screen.end() == 130
    assert "interrupted by SIGINT" in screen.text


def test_a_whole_demo_from_nothing_never_shows_more_than_twenty_lines(demo):
    screen = demo("up", "--demo", "--minutes", "20")
    titles = set()

    def seen(text):
        lines = text.splitlines()
        if lines and lines[-1].endswith("of 20:00"):  # a whole frame, not a part of it
            titles.add(lines[0][:1])
            assert len(lines) <= MOST_ROWS
        return "10 of 10 steps held" in text

    deadline = time.monotonic() + 60
    while not seen(screen.text):
        screen.press("\t")
        screen.read(0.05)
        assert time.monotonic() < deadline, screen.text
    assert titles == set("0123456789")
    assert screen.end() == 0


def test_what_is_up_already_shows_its_commands_and_its_state(demo):
    screen = demo("--is-up", "up", "--until", "1", "--demo")
    screen.until("0  Check the machine")
    while "make-node" not in screen.text:
        screen.press("\t")
        screen.read(0.1)
    assert "in place already" in screen.text
    screen.press("\t")
    screen.until("✔ the node is there, with all that pods need of it: seen")


def test_without_a_terminal_a_demo_is_refused():
    done = OnScreen([*MERLAB, "up", "--demo", "--json"])
    assert done.end() == 2
    done.close()


def test_a_terminal_without_unicode_gets_ascii(demo):
    screen = demo("--is-up", "step", "9", "--demo", PYTHONIOENCODING="ascii")
    screen.until("<Enter>")
    assert screen.text.isascii()


# -- frames


class Played:
    """Keys that go on at once."""

    most_typing = 0.0

    def __init__(self):
        self.presenter = None

    def read(self, _tick, **_results):
        return "tab"

    def pending(self, _seconds):
        return None


def frames(width, which, *, unicode):
    """Return the last frame of each of these steps on the lab in memory, as text."""
    terminal = Terminal(verbosity=0, color=False)
    terminal.out.width, terminal.out.height = width, 24
    terminal.out.__class__ = type("Sized", (type(terminal.out),), {"encoding": "utf-8" if unicode else "ascii"})
    keys = Played()
    lab = up(FakeLab())
    presenter = Presenter(terminal, keys, state=lambda: state(lab), mark=lambda _event: None, terms=Terms(), last=9)
    keys.presenter = presenter
    shown = []

    def hear(event):
        if isinstance(event, events.StepBegins):
            presenter.hear(event)
            presenter._stage.unicode = unicode
            presenter._look()
            return
        presenter.hear(event)
        if isinstance(event, events.StepEnds):
            presenter._stage.clock = "0:42 of 20:00"
            shown.append("\n".join(line.plain.rstrip() for line in presenter._stage.frame(width, 24)))

    report = Runner(lab, hear, shows_all=True).run(Report("up", "fake"), which)
    assert report.verdict is Verdict.PASS
    return shown


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_frames(width):
    shown = frames(width, steps(), unicode=True)
    for frame in shown:
        assert all(len(line) <= width for line in frame.splitlines()), frame
        assert len(frame.splitlines()) <= MOST_ROWS
    golden_files.check(f"demo-{width}.txt", ("\n" + "=" * width + "\n").join(shown) + "\n")


def test_the_frames_without_unicode():
    shown = frames(80, steps()[9:], unicode=False)
    golden_files.check("demo-ascii.txt", "\n".join(shown) + "\n")
    assert all(frame.isascii() for frame in shown)


def test_the_three_events_of_a_trace_are_on_the_screen_without_the_others():
    trace = frames(80, steps()[5:6], unicode=True)[0]
    for said in (
        "the app's connect() is intercepted",
        "the sidecar asks where",
        "bytes are moved from socket to socket",
    ):
        assert f"│ {said}" in trace
    assert re.search(r"… \d+ more lines \(-v shows them, without --demo\)", trace)
    assert len(trace.splitlines()) <= MOST_ROWS


LONG = "MERLAB_NAME=merlab-long /opt/some/where/.venv/bin/merlab exec --without-ebpf sleep -- curl -sS helloworld:5000/"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "command", [LONG, "nsenter -t $(head -1 /sys/fs/cgroup/app) --net sh -c 'ip   -o  address; echo a'"]
)
def test_a_command_that_is_too_long_can_be_pasted_and_its_words_stay_whole(width, command):
    stage = Stage("1  One", blocks=[Block((Line(command),))])
    shown = [line.plain for line in stage.frame(width, 24)][2:-2]
    assert all(len(line) <= width for line in shown)
    pasted = "\n".join(shown).strip().removeprefix("$ ").removesuffix(" ⏎")
    assert shlex.split(pasted.replace("\\\n", "")) == shlex.split(command)


def test_columns_by_tabs_stay_within_the_width():
    printed = (
        "123: xdp  name one\n\txlated 2872B  jited 1703B  memlock 4096B  map_ids 101909,101908,101903,101907,101906"
    )
    stage = Stage("1  One", blocks=[Block((Line("bpftool prog"),), output=printed)])
    shown = [line.plain for line in stage.frame(80, 24)]
    assert all("\t" not in line and len(line) <= 80 for line in shown)
    assert any(line.endswith("…") for line in shown)


def test_the_flush_stays_in_sight_beside_the_list_that_shows_it():
    listing = "\n".join(f"Chain {number}" for number in range(23))
    blocks = [
        Block((Line("iptables-save"),)),
        Block((Line("iptables -t nat -F"),), notices=["nat rules of sleep: 18 → 0"]),
        Block((Line("iptables -t nat -vnL"),), output=listing),
        Block((Line("merlab exec sleep -- curl"),)),
    ]
    picture = [Text("path")] * 3
    shown = "\n".join(
        line.plain for line in Stage("9", intro="a narration " * 30, blocks=blocks, picture=picture).frame(80, 24)
    )
    assert "18 → 0" in shown
    assert "Chain 6" in shown
    assert "merlab exec" in shown
    assert "a narration" not in shown
    assert "iptables-save" not in shown


def test_each_word_is_explained_once_a_run():
    terms = Terms()
    assert [each.partition(":")[0] for each in terms.new_in("all three legs", "the control client")] == [
        "control client",
        "leg",
    ]
    assert terms.new_in("a leg of a control client") == []
    assert [each.partition(":")[0] for each in terms.new_in("excellent nodes")] == ["node"]


def test_the_last_step_says_that_it_is_the_last(demo):
    screen = demo("--is-up", "step", "6..7", "--demo")
    for wanted in (WAITS, "Enter: next step", waits_for("head -1"), waits_for("address show"), "Enter: end"):
        screen.until(wanted)
        screen.press("\t")
    assert screen.end() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_typing_does_not_dominate_a_short_rehearsal(seconds):
    typed = []

    class Rehearsal(AutomaticKeys):
        def pending(self, pause):
            typed.append(pause)

    stage_commands = len(frames_with(Rehearsal(seconds)))
    assert stage_commands
    assert sum(typed) <= stage_commands * (seconds / 2 + 0.01)


def frames_with(keys):
    """Play step 9 on the lab in memory with these keys; return the commands that were shown."""
    lab, commands = up(FakeLab()), []
    terminal = Terminal(verbosity=0, color=False)
    presenter = Presenter(terminal, keys, state=lambda: state(lab), mark=commands.append, terms=Terms(), last=9)
    Runner(lab, presenter.hear, shows_all=True).run(Report("step", "fake"), steps()[9:])
    return [event for event in commands if isinstance(event, CommandBegins)]


def test_a_frame_of_a_tiny_terminal_keeps_title_and_keys():
    stage = Stage("9  Flush", "rules: 0", "a narration that is long enough to need many lines " * 9, keys="Enter: run")
    lines = [line.plain for line in stage.frame(20, 6)]
    assert len(lines) <= 6
    assert lines[-1].startswith("Enter: run")


def test_a_step_that_is_repeated_with_fewer_commands_lets_no_later_command_run_unasked():
    """Back from the end of a step that was made meanwhile: what it repeats has fewer commands than it had."""
    lab = FakeLab()
    lab.node.ensure()
    lab.mesh.ensure()
    terminal = Terminal(verbosity=0, color=False)
    asked = []

    class Keys(Played):
        def read(self, _tick, **_results):
            stage = self.presenter._stage
            at_the_end = stage.keys.startswith("Enter: next")
            asked.append(stage.title[:1] + ("end" if at_the_end else ""))
            return "b" if asked[-1] == "3end" and asked.count("3end") == 1 else "tab"

    keys = Keys()
    keys.presenter = Presenter(terminal, keys, state=lambda: state(lab), mark=lambda _event: None, terms=Terms())
    report = Runner(lab, keys.presenter.hear, shows_all=True).run(Report("up", "fake"), steps()[3:5])
    assert report.verdict is Verdict.PASS
    assert asked.count("3end") == 2
    assert (asked.count("4"), asked.count("4end")) == (1, 1)


# -- recording


def test_a_recording_is_an_asciicast_with_a_marker_a_step(demo, tmp_path):
    path = tmp_path / "up.cast"
    screen = demo("up", "--demo", "--auto", "0", "--record", str(path))
    assert screen.end(120) == 0, screen.text
    head, *recorded = map(json.loads, path.read_text().splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 80, 24)
    assert [label for _, kind, label in recorded if kind == "m"] == [f"{step.number}  {step.title}" for step in steps()]
    times = [each[0] for each in recorded]
    assert times == sorted(times)
    assert "10 of 10 steps held" in "".join(text for _, kind, text in recorded if kind == "o")


def test_a_recording_on_a_full_disk_ends_no_run_and_is_told(demo):
    screen = demo("up", "--record", "/dev/full")
    assert screen.end() == 3
    assert "10 of 10 steps held" in screen.text
    assert "could be written: No space left on device" in screen.text


def test_wrong_usage_overwrites_no_recording(demo, tmp_path):
    path = tmp_path / "kept.cast"
    path.write_text("kept")
    assert demo("up", "--until", "99", "--record", str(path)).end() == 2
    assert path.read_text() == "kept"


def test_a_recording_that_cannot_be_written_is_told(demo):
    screen = demo("up", "--record", "/nowhere/up.cast")
    assert screen.end() == 3
    assert "the recording cannot be written to /nowhere/up.cast" in screen.text
