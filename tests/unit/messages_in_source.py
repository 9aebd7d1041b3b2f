"""Every text in merlab's source that a person may read, with the code of what is filled in left as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import merbridge_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(merbridge_lab.__file__).parent
#: A text is at least two words of letters, and no path, pattern, query or program.
_WORDS = re.compile(r"[A-Za-z][a-z']+,? [A-Za-z{][a-z'.]*")
_CODE = re.compile(r"^(?:[#<{(\[/-]|\w+=(?!\{[^ ]*\} is)|import |from |[a-z-]+ -{1,2}\w)|\\[dwsbnSW]|\(\?")


def messages() -> list[str]:
    """List them, each once a file, by file and in the order of the source."""
    found: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        told = dict.fromkeys(_of(ast.parse(path.read_text())))
        found += [f"{path.relative_to(SOURCE)}: {text}" for text in told]
    return found


def _of(tree: ast.AST) -> Iterator[str]:
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if id(node) in docs:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, (ast.Constant, ast.FormattedValue))
            )
            # A sentence may begin with what is filled in; what follows tells whether it is one.
            start = (
                len(f"{{{ast.unparse(node.values[0].value)}}}") if isinstance(node.values[0], ast.FormattedValue) else 0
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text, start = node.value, 0
        else:
            continue
        if _WORDS.search(text) and not _CODE.search(text[start:].lstrip() if start else text):
            yield " ".join(text.split())
