"""The ten steps: what each has, and that none knows in which lab it runs."""

import ast
import re
from pathlib import Path

import pytest

from fake_lab import FakeLab, up
from merbridge_lab import loader
from merbridge_lab.model import Kind
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner

STEPS = loader.steps()
MODULES = sorted(loader.folder().glob("s[0-9][0-9]_*.py"))

a_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: f"step{step.number}")
a_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


@a_step
def test_it_has_what_a_step_needs(step):
    assert step.title
    assert step.title[0].isupper()
    assert "\n" not in step.title
    assert len(step.title) < 80
    assert len(step.narration) > 80
    assert step.verify


@a_step
def test_its_kind_is_that_of_its_number(step):
    assert step.kind is (Kind.ENSURE if step.number < 5 else Kind.DEMONSTRATE)
    if step.kind is Kind.DEMONSTRATE:
        assert step.undo is None, "a demonstration cleans up behind itself"
        assert not step.request_checks
        assert step.observe is None
    else:
        assert bool(step.request_checks) == (step.observe is not None)
        # The preflight changes nothing, so it has nothing to undo.
        assert (step.undo is None) == (step.number == 0)


@a_module
def test_it_imports_the_facade_and_the_checks_only(path):
    # Besides them plain Python, as long as it does not access the machine.
    allowed = re.compile(r"(merbridge_lab\.(api|checks(\.\w+)?)|re|typing|collections(\.abc)?|__future__)$")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        assert [name for name in names if not allowed.match(name)] == [], path.name


@a_module
def test_it_never_asks_in_which_lab_it_runs(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lab":
            assert node.attr not in {"name", "capabilities", "__class__", "machine"}, f"{path.name}: lab.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"isinstance", "type", "hasattr", "getattr"}, f"{path.name}: {node.func.id}()"
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not words & {"embedded", "kind", "cluster"}


@a_module
def test_it_runs_no_command_and_opens_no_file(path):
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not calls & {"open", "exec", "eval", "print", "__import__"}


@a_step
def test_its_commands_can_be_pasted_and_cannot_touch_the_hosts_own_rules(step):
    commands = list(step.commands(up(FakeLab())))
    assert commands
    for command in commands:
        assert command == command.strip()
        assert "\n" not in command
        if "iptables" in command:
            assert command.startswith("nsenter --net="), command


def test_what_a_step_shows_is_what_it_says_a_person_would_type():
    """Every command that a step lists beforehand is among those that it shows when it runs."""
    lab = FakeLab()
    report = Runner(lab, patience=1).run(Report("up", "fake"), STEPS)
    for outcome in report.steps:
        shown = {shown.command for shown in outcome.shown}
        # Requests that only a check needs, and what needs no lab, are listed and not shown.
        missing = set(outcome.step.commands(lab)) - shown - {"uname -r", lab.workload("sleep").request_command()}
        assert missing == set(), f"step {outcome.step.number}"


def test_what_the_flush_shows_comes_in_the_order_in_which_it_happened():
    lab = up(FakeLab())
    report = Runner(lab).run(Report("step", "fake"), STEPS[9:])
    shown = [one.command for one in report.steps[0].shown]
    order = ["iptables-nft-save", "-t nat -F", "-vnL", "merlab exec sleep -- curl", "iptables-nft-restore"]
    places = [next(number for number, command in enumerate(shown) if word in command) for word in order]
    assert places == sorted(places)


def test_what_is_listed_during_the_flush_shows_no_rule():
    report = Runner(up(FakeLab())).run(Report("step", "fake"), STEPS[9:])
    (listing,) = [one.output for one in report.steps[0].shown if "-vnL" in one.command]
    assert "ISTIO_OUTPUT" not in listing


@pytest.mark.parametrize("number", range(5, 10))
def test_a_demonstration_leaves_the_lab_as_it_was(number):
    lab = up(FakeLab())
    before = {pod.name: pod.rules.snapshot().specs("nat") for pod in lab.pods}
    Runner(lab).run(Report("step", "fake"), STEPS[number : number + 1])
    assert {pod.name: pod.rules.snapshot().specs("nat") for pod in lab.pods} == before
    assert not any(pod.rules.outstanding for pod in lab.pods)
    assert lab.twins_there == []
    assert lab.exists


@pytest.mark.parametrize("number", [8, 9])
@pytest.mark.parametrize("batch", [1, 2])
def test_also_when_it_breaks_half_way(number, batch):
    lab = up(FakeLab())
    before = lab.workload("sleep").rules.snapshot().specs("nat")
    real, asked = lab.observe, []

    def observe(client, **more):
        asked.append(client.name)
        if len(asked) == batch:
            raise KeyboardInterrupt
        return real(client, **more)

    lab.observe = observe
    with pytest.raises(KeyboardInterrupt):
        STEPS[number].act(lab)
    assert len(asked) == batch
    assert lab.workload("sleep").rules.snapshot().specs("nat") == before
    assert lab.twins_there == []


def test_the_flush_can_be_kept_and_put_back():
    lab = up(FakeLab(keep=True))
    Runner(lab).run(Report("step", "fake"), STEPS[9:])
    assert lab.workload("sleep").rules.snapshot().nat == ()
    assert lab.restore() == ["sleep"]
    assert len(lab.workload("sleep").rules.snapshot().nat) == 18


BREAKS = {
    1: lambda lab: setattr(lab.node, "incurable", "the route to helloworld-v1 is missing"),
    2: lambda lab: lab.mute.add("helloworld-v1"),
    3: lambda lab: setattr(lab.workload("sleep"), "served", False),
    4: lambda lab: setattr(lab.dataplane, "set_debug", lambda *, on: setattr(lab.dataplane, "debug", not on)),
    5: lambda lab: lab.dataplane.set_debug(on=False),
    6: lambda lab: lab.idle_legs.add("inbound"),
    7: lambda lab: setattr(lab.workload("sleep"), "stray", True),
    8: lambda lab: setattr(lab.workload("sleep"), "served", False),
    9: lambda lab: lab.idle_legs.add("mesh"),
}


@pytest.mark.parametrize("number", BREAKS)
def test_a_step_does_not_hold_where_what_it_shows_is_not_so(number):
    lab = up(FakeLab())
    if number == 4:
        lab.dataplane.set_debug(on=False)
    BREAKS[number](lab)
    report = Runner(lab, patience=0.05).run(Report("step", "fake"), STEPS[number : number + 1])
    assert report.verdict.value == "fail"
    assert report.cause


def test_the_folder_is_the_checkouts():
    assert loader.folder() == Path(__file__).parents[2] / "steps"
