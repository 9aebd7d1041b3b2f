"""What removes pins: pins.py, and nothing else of the dataplane."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import merbridge_lab
from merbridge_lab.dataplane.pins import HOOKS, LOOKUP, MAPS, PROGRAMS, Pins, unlink

DATAPLANE = Path(merbridge_lab.__file__).parent / "dataplane"
#: What else of the dataplane deletes something, and what.
OTHERS: dict[str, set[str]] = {}


@pytest.fixture
def pins(tmp_path) -> Pins:
    """Return a complete directory of pins, as plain files: opening one as a pin fails, as it does for a foreign one."""
    pins = Pins(tmp_path / "lab")
    files = [pins.link(uid, hook.name) for uid in ("4711", "4712") for hook in (*HOOKS, LOOKUP)]
    files.append(pins.root / "maps/unknown")
    files += [pins.map(name) for name in MAPS] + [pins.prog(name) for name in PROGRAMS]
    for file in [*files, pins.root / "old/links/connect4", pins.root / "next/progs/lookup"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return pins


def test_clear_removes_everything_below_the_directory(pins):
    pins.clear()
    assert not pins.root.exists()
    pins.clear()


def test_objects_go_with_what_an_upgrade_left_and_links_stay_until_they_are_detached(pins):
    assert pins.uids() == ["4711", "4712"]
    assert len(pins.links()) == 2 * (len(HOOKS) + 1)
    for pin in pins.links():
        unlink(pin)
    pins.remove_objects()
    assert not pins.root.exists()


def test_unlink_succeeds_without_a_pin(pins):
    unlink(pins.link("4711", "connect4"))
    unlink(pins.link("4711", "connect4"))
    assert not pins.link("4711", "connect4").exists()


def test_only_pins_py_removes_pins():
    found = {}
    for path in DATAPLANE.glob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "merbridge_lab.adapters.files"
            for alias in node.names
        }
        if asked := {name for name in names if name.startswith("delete")}:
            found[path.name] = asked
    assert found == {**OTHERS, "pins.py": {"delete", "delete_folder"}}
