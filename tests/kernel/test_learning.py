"""The address of woken_wake_function(), learnt from a blocked reader, is the one that kallsyms has."""

from __future__ import annotations

import pytest

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi, compiler, kernel_facts, learning

pytestmark = pytest.mark.kernel


def test_what_is_learnt_is_what_kallsyms_says():
    layout = abi.layouts()["kernel"]
    hidden = kernel_facts.told() | {"woken": 0}
    loaded = compiler.load()
    try:
        bpf_maps.update(loaded.maps["kernel"], bytes(4), layout.pack(**hidden))
        assert learning.learn(loaded.learner(), loaded.maps["kernel"]) == kernel_facts.woken() != 0
        after = layout.unpack(bpf_maps.lookup(loaded.maps["kernel"], bytes(4), layout.size))
        assert after == hidden | {"woken": kernel_facts.woken()}
    finally:
        loaded.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ffffffff813d1000 T other\nffffffff813d10d0 T woken_wake_function\n", 0xFFFFFFFF813D10D0),
        ("0000000000000000 T woken_wake_function\n", 0),
        ("ffffffff813d1000 T other\n", 0),
        ("", 0),
    ],
    ids=["told", "hidden", "not there", "empty"],
)
def test_what_kallsyms_says(tmp_path, text, found):
    (tmp_path / "kallsyms").write_text(text)
    assert kernel_facts.woken(tmp_path / "kallsyms") == found
    assert kernel_facts.woken(tmp_path / "missing") == 0
