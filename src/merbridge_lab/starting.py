"""What was begun and need not be ready yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Made_co = TypeVar("_Made_co", covariant=True)


@dataclass(frozen=True)
class Starting(Generic[_Made_co]):
    """Pods that were begun and need not be ready yet; `ready` waits for them and returns them. It raises LabError.

    Sidecars take half a second to start: meanwhile something else can be measured.
    """

    ready: Callable[[], _Made_co]
