"""Find and load BCC, which is a package of the distribution (python3-bpfcc) and not one of PyPI.

The directory is loaded by its path. Adding its parent to sys.path would also work, but an application in a virtual
environment would then see all of the distribution's Python packages, with other versions of its dependencies.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: Names a directory to load BCC from, for one that was built by hand.
VARIABLE = "MERLAB_BCC"

#: Where distributions put it, most common first: Debian and Ubuntu; Fedora, openSUSE, Arch; built from source.
PLACES = (
    "usr/lib/python3/dist-packages/bcc",
    "usr/lib/python3.*/site-packages/bcc",
    "usr/lib64/python3.*/site-packages/bcc",
    "usr/local/lib/python3*/dist-packages/bcc",
    "usr/local/lib/python3*/site-packages/bcc",
)

#: Where its C library, libbcc.so.0, may be.
LIBRARIES = (
    "usr/lib/*/libbcc.so.0",
    "usr/lib64/libbcc.so.0",
    "usr/lib/libbcc.so.0",
    "usr/local/lib*/libbcc.so.0",
)


def is_bcc(directory: Path) -> bool:
    """Report whether this is the BPF Compiler Collection; another package called bcc lacks these modules."""
    return all((directory / name).is_file() for name in ("__init__.py", "libbcc.py", "table.py"))


def candidates(root: Path = Path("/")) -> Iterator[Path]:
    """Return the directories below `root` that may contain BCC, most likely first."""
    if named := os.environ.get(VARIABLE):
        yield Path(named)
        return
    for place in PLACES:
        # Sorted in descending order, so that of two Pythons the newer one's comes first.
        yield from sorted(root.glob(place), reverse=True)


def find(root: Path = Path("/")) -> Path:
    """Return the directory of the distribution's BCC.

    Raise LabError if there is none.
    """
    for directory in candidates(root):
        if is_bcc(directory):
            return directory
    if named := os.environ.get(VARIABLE):
        raise LabError(
            f"there is no BCC in {named}, which {VARIABLE} names", hint=f"unset {VARIABLE}", id="bcc.missing"
        )
    raise LabError(
        "BCC, the BPF compiler collection, is not on this machine" + _beside(impostor()),
        hint="merlab doctor",
        id="bcc.missing",
    )


def _beside(other: Path | None) -> str:
    return f" (the PyPI package bcc in {other} is an unrelated lattice library)" if other else ""


def impostor() -> Path | None:
    """Return the directory of an importable package that is called bcc but is not BCC, as PyPI's is."""
    try:
        spec = importlib.util.find_spec("bcc") if "bcc" not in sys.modules else None
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or is_bcc(Path(spec.origin).parent):
        return None
    return Path(spec.origin).parent


def version(directory: Path) -> tuple[int, ...] | None:
    """Read the version of the BCC in `directory` without importing it; None if it has none."""
    try:
        text = (directory / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"__version__\s*=\s*['\"](\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else None


def library(root: Path = Path("/")) -> Path | None:
    """Return BCC's C library, or None."""
    return next((path for place in LIBRARIES for path in sorted(root.glob(place))), None)


def load() -> ModuleType:
    """Import the distribution's BCC as the module `bcc`; sys.path stays unchanged.

    Takes 0.1 to 0.4 s: it maps libLLVM. Raise LabError if BCC is missing or this Python cannot load it.
    """
    loaded = sys.modules.get("bcc")
    if loaded is not None and loaded.__file__ and is_bcc(Path(loaded.__file__).parent):
        return loaded
    directory = find()
    spec = importlib.util.spec_from_file_location(
        "bcc", directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise LabError(f"the BCC in {directory} is not a Python package", hint="merlab doctor", id="bcc.missing")
    module = importlib.util.module_from_spec(spec)
    # Its own modules execute `from .table import …`, so it must be found under its name while it is being loaded.
    sys.modules["bcc"] = module
    try:
        with warnings.catch_warnings():
            # Python 3.12 and newer: an invalid escape in a string of BCC's.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError, AttributeError) as broken:
        for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
            del sys.modules[name]
        raise LabError(
            f"the BCC in {directory} cannot be loaded by Python {sys.version.split()[0]}: {broken}",
            hint="reinstall the distribution's packages of BCC (on Debian: python3-bpfcc and libbpfcc)",
            id="bcc.missing",
        ) from broken
    return module
