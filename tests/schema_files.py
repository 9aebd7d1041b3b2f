"""JSON Schemas of what scripts read, in schemas/: the objects of cli.md, written down again, and checked."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent / "schemas"


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def complaints(name: str, value: Any) -> list[str]:
    """Return every way in which `value` differs from the schema `name`."""
    return [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(value)]


def read(name: str, text: str) -> Any:
    """Read `text`, which must be exactly one JSON object that the schema `name` allows."""
    value = json.loads(text)
    assert complaints(name, value) == []
    return value
