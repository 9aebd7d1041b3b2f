"""Every hint in merlab's source, with placeholders for what is only known at run time."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import merbridge_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(merbridge_lab.__file__).parent
#: The classes that have a hint, and the position of that argument if it is not named.
_CARRIERS = {
    "LabError": 1, "UsageError": 1, "NotFoundError": 1, "RestartedError": 1,
    "ApiUnavailableError": 1, "IncompleteClusterError": 1,
    "Requirement": 4, "Check": 9, "PodFailure": 1,
}  # fmt: skip
#: The placeholder for a part of a hint that is only known at run time.
PART = "PART"


@dataclass(frozen=True)
class Found:
    """One hint, and where it is."""

    text: str
    where: str


def all_hints() -> list[Found]:
    """Return every hint that is written in the source."""
    return [found for path in sorted(SOURCE.rglob("*.py")) for found in _of_file(path)]


def _of_file(path: Path) -> Iterator[Found]:
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    seen = set()
    for node in ast.walk(tree):
        for value in _values(node):
            for text in _texts(value, constants):
                where = f"{path.relative_to(SOURCE)}:{value.lineno}"
                if text and (text, where) not in seen:
                    seen.add((text, where))
                    yield Found(text, where)


def _values(node: ast.AST) -> Iterator[ast.expr]:
    """Return what is passed as a hint: by name, by position, assigned to the name, or printed by the console."""
    if isinstance(node, ast.Call):
        yield from (each.value for each in node.keywords if each.arg in ("hint", "again"))
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        of_template = (
            isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "manifest_templates"
        )
        place = _CARRIERS.get(name, 1 if name == "remark" else 0 if name == "rendered" and not of_template else None)
        if place is not None and len(node.args) > place:
            yield node.args[place]
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in ("hint", "again"):
                yield node.value
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for each, value in pairs if isinstance(each, ast.Name) and each.id == "hint")
    if isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == "hints" for each in node.targets):
        yield from node.value.values if isinstance(node.value, ast.Dict) else ()


def _texts(value: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        parts = []
        for each in value.values:
            known = each.value if isinstance(each, ast.FormattedValue) else each
            said = list(_texts(known, constants)) if isinstance(known, (ast.Constant, ast.Name)) else []
            parts.append(said[0] if len(said) == 1 else PART)
        yield "".join(parts)
    elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        left, right = list(_texts(value.left, constants)), list(_texts(value.right, constants))
        yield f"{left[0] if left else PART}{right[0] if right else PART}"
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body, constants)
        yield from _texts(value.orelse, constants)
    elif isinstance(value, ast.BoolOp):
        for each in value.values:
            yield from _texts(each, constants)
    elif isinstance(value, ast.Name) and value.id in constants and value.id not in ("hint", "again"):
        yield from _texts(constants[value.id], {})
