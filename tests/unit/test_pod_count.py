"""How many pods a lab has: what is kept of it, what is left over, what the command line takes."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from merbridge_lab import cli
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import pod_count, topology
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.kind.driver import KindDriver


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The place of a lab, in a folder that any user may write to."""
    found = Machine("merlab")
    monkeypatch.setattr(found, "run", tmp_path)
    monkeypatch.setattr(found, "_cgroup_root", tmp_path / "cgroups")
    for folder in (tmp_path / "netns", tmp_path / "pods", found.mesh_cgroup):
        folder.mkdir(parents=True)
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [(None, 3), ("5\n", 5), ("254", 254), ("255", 3), ("2", 3), ("", 3), ("many", 3), ("\xff", 3)],
)
def test_what_is_not_a_number_of_pods_is_three(machine, text, count):
    if text is not None:
        (machine.run / pod_count.FILE).write_bytes(text.encode("latin-1"))
    assert pod_count.kept(machine) == count


@pytest.mark.parametrize("name", ["sleep-6", "sleep-254"])
@pytest.mark.parametrize("where", ["netns", "pods", "cgroups/merlab/mesh"])
def test_anything_of_a_pod_too_many_is_found(machine, name, where):
    for each in ("sleep", "sleep-4", "sleep-5", name, "sleep-255", "sleep-x"):
        (machine.run / where / each).mkdir()
    assert [spec.name for spec in pod_count.surplus(machine, 5)] == [name]


def test_replicas_are_sleeps_with_names_and_addresses_of_their_own():
    assert topology.replicas(3) == ()
    four, five = topology.replicas(5, "legacy")
    assert (four.name, four.ip, four.veth, four.backend) == ("sleep-4", "10.244.2.4", "veth2-4", "legacy")
    assert (five.app, five.sidecar, five.mesh, five.rules) == ("sleep", True, True, True)
    assert len(topology.ALL_PODS) == topology.MOST_PODS == 254


@pytest.mark.parametrize("count", ["2", "255", "many"])
def test_the_command_line_takes_no_other_numbers(count):
    done = CliRunner().invoke(cli.app, ["up", "--pods", count])
    assert done.exit_code == 2
    assert "--pods" in done.output


def test_the_kind_lab_says_whose_it_is():
    with pytest.raises(LabError, match="--pods is for the embedded lab"), KindDriver().open(pods=5):
        pass
