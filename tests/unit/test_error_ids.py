"""Each error has an id, each id a section of troubleshooting.md, and each failed run a link to one."""

import ast
import re
from pathlib import Path

import pytest
from messages_in_source import messages

import merbridge_lab
from merbridge_lab.error_ids import ERROR_IDS, TROUBLESHOOTING, see
from merbridge_lab.errors import LabError, ShortageError, UnsupportedFeatureError, UsageError
from merbridge_lab.evidence import Unread, UnreadError, Verdict, fails, holds
from merbridge_lab.matrix import Cell, CellOutcome
from merbridge_lab.model import Check, Kind, Step
from merbridge_lab.report import CheckOutcome, Report, StepOutcome

SOURCE = Path(merbridge_lab.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
SECTIONS = (Path(__file__).parents[2] / TROUBLESHOOTING).read_text().partition("\n# Errors\n")[2]
#: Sections about a cause that only checks report; no error has these ids.
OF_CHECKS = {
    "sidecar.gone",
    "merbridge.intercepts_nothing",
    "merbridge.not_in_mesh",
}


def named(node):
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def error_classes():
    """Return the subclasses of LabError, and whether each has a default id, its own or an inherited one."""
    found = {"LabError": False}
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    before = 0
    while len(found) != before:
        before = len(found)
        for node in classes:
            for base in map(named, node.bases):
                if base in found:
                    own = any(
                        isinstance(line, ast.Assign) and named(line.targets[0]) == "default_id" for line in node.body
                    )
                    found[node.name] = found.get(node.name, False) or own or found[base]
    return found


CLASSES = error_classes()


def calls():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node.func) in CLASSES:
                ids = [each.value for each in node.keywords if each.arg == "id"]
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", named(node.func), ids


def test_every_error_in_the_source_has_an_id():
    found = list(calls())
    assert len(found) > 200
    assert [(where, name) for where, name, ids in found if not ids and not CLASSES[name]] == []


def test_every_id_has_a_section_and_every_section_an_id():
    anchors = re.findall(r'<a id="([^"]+)">', SECTIONS.partition("\n# Checks\n")[0])
    assert sorted(anchors) == sorted(ERROR_IDS)
    assert len(set(ERROR_IDS)) == len(ERROR_IDS)


def test_sections_quote_messages_that_exist():
    """Each quoted message has a part of a few words that is in the list of all messages word for word."""
    listed = [line.partition(": ")[2] for line in messages()]
    parts = {part.strip() for each in listed for part in re.split(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", each)}
    parts = {part for part in parts if len(part) >= 8 and " " in part}
    errors = SECTIONS.partition("\n# Checks\n")[0]
    quoted = [quote for line in re.findall(r"^### .+\n(`.+)$", errors, re.MULTILINE) for quote in line.split(" · ")]
    quoted = [quote.strip("`") for quote in quoted if quote.startswith("`") and quote.endswith("`")]
    assert len(quoted) > 100
    pieces = {quote: [each.strip() for each in quote.split("…") if " " in each.strip()] for quote in quoted}
    assert [
        quote
        for quote, own in pieces.items()
        if ": found " not in quote  # a requirement: its name, found and needed
        and not any(part in quote or any(each in part for each in own) for part in parts)
    ] == []


def test_no_id_is_left_over():
    """An id that the source does not name would be a section that nobody is sent to."""
    written = {
        node.value
        for path, tree in TREES.items()
        if path.name != "error_ids.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(ERROR_IDS) - written == OF_CHECKS


def test_the_link_fits_on_a_line():
    assert max(len(f"  see {see(each)}") for each in ERROR_IDS) < 80


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UsageError("there is no such lab"), "usage"),
        (ShortageError("there is not enough memory"), "machine.full"),
        (UnsupportedFeatureError("links", "5.7"), "requirement.missing"),
        (LabError("the lab is up, with its rules in nft tables", id="rules.other_backend"), "rules.other_backend"),
        (LabError("without an id"), "internal"),
    ],
)
def test_an_error_has_its_own_id_or_that_of_its_class(error, expected):
    assert (error.id, error.see) == (expected, f"docs/troubleshooting.md#{expected}")


# -- the link of a run

STEP = Step(9, Kind.DEMONSTRATE, lambda _lab: None, (), lambda _lab: [], title="step 9")
CHECK = Check("rules.were_absent", "a claim", lambda finding: finding)


def failing(*, checks=(), failure=None):
    done = tuple(CheckOutcome(CHECK, finding, 1, 0.0) for finding in checks)
    return Report("step", "fake", steps=[StepOutcome(STEP, Verdict.FAIL, 0.1, done, reason="no", failure=failure)])


def test_a_run_that_passed_has_no_link():
    report = Report("step", "fake", steps=[StepOutcome(STEP, Verdict.PASS, 0.1)])
    assert report.see is None
    assert report.to_json()["see"] is None


@pytest.mark.parametrize(
    ("report", "anchor"),
    [
        (failing(checks=[holds("yes"), fails("no")]), "rules.were_absent"),
        (failing(failure=UnreadError(Unread("nft:generation", "no netlink")).id), "reading.failed"),
        (failing(failure="lab.disturbed"), "lab.disturbed"),
        (Report("verify", "fake", changes=["sleep changed during verification"]), "verify.disturbed"),
        (Report("verify", "fake", error=LabError("no lab is up", id="lab.not_up")), "lab.not_up"),
        (Report("up", "fake"), "run.skipped"),
    ],
)
def test_a_run_that_failed_has_the_link_of_its_cause(report, anchor):
    assert report.to_json()["see"] == f"docs/troubleshooting.md#{anchor}"


def test_a_cell_that_is_not_as_expected_has_the_link_of_the_matrix():
    cell = CellOutcome(Cell(False, False, False), "sleep", fails("no"), served=True, both_sidecars=True)
    assert Report("verify", "fake", matrix=[cell]).see == "docs/troubleshooting.md#matrix.unexpected"


def test_rules_that_are_still_flushed_are_the_cause_of_what_fails():
    report = failing(checks=[fails("no")])
    report.remedy = "merlab restore"
    assert report.see == "docs/troubleshooting.md#rules.flushed"
