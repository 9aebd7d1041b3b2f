"""What several files of the kernel's tests begin with."""

from __future__ import annotations

import contextlib

import pytest
from dataplane_rig import Rig


@pytest.fixture(scope="module")
def shared():
    """The rig of a whole file: making its namespaces takes longer than most tests."""
    with contextlib.closing(Rig()) as rig:
        yield rig
