"""Our own programs in the wrong place: the control client would be served, or the app twice."""

import subprocess

import pytest
from standing import standing

from merbridge_lab.dataplane.pins import Pins

pytestmark = pytest.mark.kernel
NAME = "merlab-own"


@pytest.fixture(scope="module")
def lab():
    with standing(NAME) as made:
        yield made


@pytest.mark.parametrize("where", ["twins", "mesh/sleep/app"])
def test_own_programs_elsewhere_are_noticed(lab, where):
    place = lab.machine.cgroup / where
    program = Pins(lab.machine.bpffs / NAME).prog("connect4")
    assert lab.dataplane.problems() == []
    words = ("cgroup", "{}", str(place), "cgroup_inet4_connect", "pinned", str(program))
    subprocess.run(("bpftool", *(word.format("attach") for word in words), "multi"), check=True)
    try:
        (wrong,) = lab.dataplane.problems()
        assert wrong.startswith(f"on the cgroup {place} connect4 runs merlab's own merlab_connect4")
    finally:
        subprocess.run(("bpftool", *(word.format("detach") for word in words)), check=True)
    assert lab.dataplane.problems() == []
