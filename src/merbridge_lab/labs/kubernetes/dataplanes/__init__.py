"""What may intercept in a cluster: each sub-package is one dataplane, found by its name.

Its module `strategy` has the class `Strategy` (see cluster_dataplane). Its module `manifest`, if it has one, has the
function `shown`: what `merlab manifests` prints under its name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

NONE = "none"


def names() -> tuple[str, ...]:
    """Return the names of the dataplanes; first the one that is none."""
    found = sorted(each.name for each in pkgutil.iter_modules(__path__) if each.ispkg)
    return (NONE, *(name for name in found if name != NONE))


def part(name: str, module: str) -> ModuleType | None:
    """Return a module of the dataplane `name`; None if there is no such dataplane, or it has no such module."""
    whole = f"{__name__}.{name}.{module}"
    if name not in names() or importlib.util.find_spec(whole) is None:
        return None
    return importlib.import_module(whole)
