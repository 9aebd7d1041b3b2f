"""Every call that changes the machine runs inside `change`: checked in the source, module by module.

strace checks the same while merlab runs: tests/kernel/test_change_points.py.
"""

import ast
from pathlib import Path

import pytest

from merbridge_lab.adapters import change

SOURCE = Path(change.__file__).parents[1]
#: Calls that change something, by the name of the method or function, whatever they are called on.
CHANGING = {
    "mkdir", "rmdir", "unlink", "rmtree", "touch", "rename", "symlink_to", "hardlink_to", "link_to", "chmod", "lchmod",
    "fchmod", "chown", "lchown", "fchown", "write_text", "write_bytes", "copyfile", "copy2", "copytree", "move", "kill",
    "killpg", "mknod", "mkfifo", "truncate", "setxattr", "TemporaryDirectory", "NamedTemporaryFile", "mkdtemp",
    "mkstemp",
}  # fmt: skip
#: Calls outside of a change point, and why they are allowed.
EXCEPTIONS = {
    ("adapters/command.py", "killpg"): "ends what it started itself, at a change point or to look",
    ("adapters/kind_cli.py", "TemporaryDirectory"): "what kind writes for the moment; adapters/kind.sweep finds it",
    ("adapters/download.py", "TemporaryDirectory"): "where curl writes for the moment; gone when it ends",
    ("adapters/virtual_machine.py", "kill"): "ends what it started itself",
    ("sysdump.py", "mkstemp"): "the user's own file, beside the name it gets when it is whole",
    ("sysdump.py", "rename"): "the same",
    ("sysdump.py", "unlink"): "the same",
}


def _passes(node):
    """Report whether a function is decorated with a change point, or a with statement opens one."""
    calls = node.decorator_list if isinstance(node, ast.FunctionDef) else [item.context_expr for item in node.items]
    return any(isinstance(call, ast.Call) and getattr(call.func, "id", "") == "change" for call in calls)


def _past(node, found, *, inside=False):
    if isinstance(node, (ast.FunctionDef, ast.With)) and _passes(node):
        inside = True
    if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
        found += [(node.lineno, each.name) for each in node.names if each.name in CHANGING]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not inside:
        name = node.func.attr
        # str.replace has two arguments, Path.replace has one.
        if name in CHANGING or (name == "replace" and len(node.args) == 1 and not node.keywords):
            found.append((node.lineno, name))
    for child in ast.iter_child_nodes(node):
        _past(child, found, inside=inside)


def past_the_door(path):
    found = []
    _past(ast.parse(path.read_text()), found)
    return found


MODULES = sorted(path for path in SOURCE.rglob("*.py") if "data" not in path.relative_to(SOURCE).parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_call_goes_past_the_door(path):
    where = str(path.relative_to(SOURCE))
    assert [(line, name) for line, name in past_the_door(path) if (where, name) not in EXCEPTIONS] == []


def test_each_exception_is_still_one():
    seen = {(str(path.relative_to(SOURCE)), name) for path in MODULES for _, name in past_the_door(path)}
    assert EXCEPTIONS.keys() - seen == set()


def test_a_call_past_the_door_would_be_seen(tmp_path):
    (tmp_path / "x.py").write_text('import os\nos.unlink("x")\nwith change("y"):\n    os.unlink("y")\n')
    assert past_the_door(tmp_path / "x.py") == [(2, "unlink")]


def test_a_change_is_told_before_and_after_also_where_it_fails(monkeypatch):
    seen = []
    monkeypatch.setattr(change, "passing", lambda what, *, done: seen.append((what, done)))

    @change.change("outer")
    def outer():
        with change.change("inner"):
            raise OSError("no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            outer()
    assert seen == [("outer", False), ("inner", False), ("inner", True), ("outer", True)] * 2
