"""Find the step modules and read them.

In a checkout they are in the top-level folder `steps/`; an installed wheel contains them.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError
from merbridge_lab.model import Step

if TYPE_CHECKING:
    from collections.abc import Iterator


_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / "steps", _PACKAGE.parents[1] / "steps")


def folder() -> Path:
    """Return the folder that holds the step modules. Raise LabError if this installation has none."""
    for place in _PLACES:
        if any(place.glob("s[0-9][0-9]_*.py")):
            return place
    raise LabError(
        "this installation of merlab has no steps",
        hint="install it again from its wheel or its checkout",
        id="installation.broken",
    )


def _load(paths: list[Path]) -> Iterator[Step]:
    for path in paths:
        spec = importlib.util.spec_from_file_location(f"merbridge_lab_steps.{path.stem}", path)
        if spec is None or spec.loader is None:
            raise LabError(f"the step module {path} cannot be read", id="installation.broken")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not isinstance(getattr(module, "step", None), Step):
            raise LabError(
                f"{path} defines no step", hint="end it with: step = Step(number=…, …)", id="installation.broken"
            )
        title, _, narration = (inspect.getdoc(module) or path.stem).partition("\n")
        yield replace(module.step, title=title.rstrip("."), narration=narration.strip())


@lru_cache(maxsize=1)
def steps() -> tuple[Step, ...]:
    """Return all steps in the order of their numbers, with title and narration from their docstrings."""
    loaded = sorted(_load(sorted(folder().glob("s[0-9][0-9]_*.py"))), key=lambda step: step.number)
    if [step.number for step in loaded] != list(range(len(loaded))):
        raise LabError(f"the steps in {folder()} are not numbered 0, 1, 2, …", id="installation.broken")
    return tuple(loaded)
