"""What several files of the cluster's tests begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from agent_host import on_node, up
from kind_host import held, leftovers, merlab, settled

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def machine() -> Iterator[dict[str, object]]:
    """The machine without a lab, which it must be again."""
    assert held(merlab("down"))
    before = leftovers()
    yield before
    assert held(merlab("down"))
    assert settled(leftovers, before) == before


@pytest.fixture(scope="session")
def agent_lab() -> Iterator[dict[str, list[Any]]]:
    """A cluster with the agent, for the files whose tests leave it as it was; what was on the node before the agent.

    They run one after another.
    """
    assert held(merlab("down"))
    before = leftovers()
    assert held(up("--until", "2"))
    bare = on_node()
    assert held(up("--until", "3"))
    yield bare
    assert held(merlab("down"))
    assert settled(leftovers, before) == before
