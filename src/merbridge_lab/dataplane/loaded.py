"""What a way of loading the programs returns: by BCC (compiler.py), or from what it compiled (artefact_loader.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Loaded(NamedTuple):
    """File descriptors of what was loaded; after `close`, only what is pinned or attached remains.

    `learner` loads merlab_learn, which is needed for a moment only; it ends with the others. It raises
    UnsupportedFeatureError.
    """

    programs: dict[str, int]
    maps: dict[str, int]
    learner: Callable[[], int]
    close: Callable[[], None]
