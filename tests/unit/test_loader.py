"""Find and read the step modules."""

from pathlib import Path

import pytest

from merbridge_lab import loader
from merbridge_lab.errors import LabError

MODULE = '''"""{title}

What there is to say about it,
on two lines.
"""
from merbridge_lab.api import Kind, Step

step = Step(number={number}, kind=Kind.DEMONSTRATE, act=lambda lab: None, verify=(), commands=lambda lab: [])
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_PLACES", (tmp_path / "not here", tmp_path))
    loader.steps.cache_clear()
    yield tmp_path
    loader.steps.cache_clear()


def write(folder, name, number, title="Do something."):
    (folder / name).write_text(MODULE.format(title=title, number=number))


def test_the_steps_are_zero_to_nine_in_their_order():
    assert [step.number for step in loader.steps()] == list(range(10))


def test_title_and_narration_come_from_the_docstring(folder):
    write(folder, "s00_first.py", 0, "Do the first thing.")
    (step,) = loader.steps()
    assert step.title == "Do the first thing"
    assert step.narration == "What there is to say about it,\non two lines."


def test_the_order_is_that_of_the_numbers(folder):
    write(folder, "s00_second.py", 1, "The second.")
    write(folder, "s01_first.py", 0, "The first.")
    assert [step.title for step in loader.steps()] == ["The first", "The second"]


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 0), (-1, 0)], ids=str)
def test_numbers_with_gaps_are_refused(folder, numbers):
    for place, number in enumerate(numbers):
        write(folder, f"s{place:02}_step.py", number)
    with pytest.raises(LabError, match="not numbered 0, 1, 2"):
        loader.steps()


def test_other_files_are_no_steps(folder):
    write(folder, "s00_first.py", 0)
    for name in ("README.md", "conftest.py", "s1_short.py", "s01_first.py.orig", "helper_s01_.py"):
        (folder / name).write_text("raise RuntimeError")
    assert len(loader.steps()) == 1


def test_an_installation_without_steps_says_so(folder):
    with pytest.raises(LabError, match="has no steps") as refused:
        loader.steps()
    assert "install it again" in refused.value.hint
    assert list(folder.iterdir()) == []


def test_where_they_travel_inside_the_package_that_folder_comes_first():
    inside, beside = loader._PLACES
    assert inside == Path(loader.__file__).parent / "steps"
    assert beside == Path(loader.__file__).parents[2] / "steps"
