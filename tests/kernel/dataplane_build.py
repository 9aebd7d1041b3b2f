"""The dataplane compiled from changed sources: with tiny maps, or without one of its gates."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

import pytest

from merbridge_lab.dataplane import abi

if TYPE_CHECKING:
    from pathlib import Path

_CACHED = (abi.constants, abi.counter_names, abi.legs, abi.layouts, abi.source, abi.stamp)


@contextlib.contextmanager
def changed(folder: Path, *changes: tuple[str, str, str]):
    """Use sources in which, for each (file, old, new), the old text is replaced; it must occur once."""
    with pytest.MonkeyPatch.context() as patch:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(abi.BPF, folder)
        for name, old, new in changes:
            text = (folder / name).read_text()
            assert text.count(old) == 1, (name, old)
            (folder / name).write_text(text.replace(old, new))
        patch.setattr(abi, "BPF", folder)
        _forget()
        yield
    _forget()


def _forget() -> None:
    for cached in _CACHED:
        cached.cache_clear()


def sized(name: str, room: int) -> tuple[str, str, str]:
    """Return the change that gives one of the maps that programs write that many entries."""
    hashes = {"peers": "struct end, MAX_SOCKETS", "listeners": "struct listener, MAX_LISTENERS"}
    constant = hashes.get(name, "MAX_PAIRS" if name == "pairs" else "MAX_PODS")
    return "common.h", f"merlab_{name}, {constant}", f"merlab_{name}, {constant.rpartition(' ')[0]} {room}"
