"""The walkthrough as it was written in 2022: what one typed then, and what has changed since."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

from merbridge_lab import yaml_text


@dataclass(frozen=True)
class Original:
    """One command that was typed. `now` is what one does instead, and why; empty if it is still typed the same."""

    then: str
    now: str


@functools.lru_cache(maxsize=1)
def _all() -> dict[int, tuple[Original, ...]]:
    text = (resources.files("merbridge_lab") / "data/walkthrough.yaml").read_text(encoding="utf-8")
    return {number: tuple(Original(**one) for one in typed) for number, typed in yaml_text.load(text).items()}


def original(number: int) -> tuple[Original, ...]:
    """Return what was typed in a step, in order."""
    return _all().get(number, ())
