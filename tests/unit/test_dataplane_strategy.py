"""A dataplane is one package: a lab on a cluster uses one that it has never heard of, without another change."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from tests.unit.stub_provider import StubNode, StubProvider

from fake_lab import FakeLab, up
from merbridge_lab.checks import dataplane, trace
from merbridge_lab.cli import cluster_options
from merbridge_lab.errors import UsageError
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.kubernetes import dataplanes, lab, status
from merbridge_lab.labs.kubernetes.dataplanes import registry
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options

STUBS = Path(__file__).parents[1] / "stub_dataplanes"


@pytest.fixture(autouse=True)
def _recorder(monkeypatch):
    monkeypatch.setattr(dataplanes, "__path__", [*dataplanes.__path__, str(STUBS)])
    yield
    for name in [each for each in sys.modules if each.startswith(f"{dataplanes.__name__}.recorder")]:
        del sys.modules[name]


@pytest.fixture
def recorded():
    """Return a lab with this dataplane; no cluster exists, and no command is started."""
    made = ManagedKubernetesLab(StubProvider(nodes=[]), Options(dataplane="recorder"))
    yield made
    made.close()
    assert made.strategy.calls[-1] == "close"


def test_it_is_found_beside_the_others():
    assert dataplanes.names() == ("none", "merbridge", "merlab", "recorder")
    assert cluster_options.dataplane("recorder") == "recorder"
    assert "recorder" in cluster_options.dataplane_names()


def test_one_that_does_not_exist_is_wrong_usage():
    with pytest.raises(typer.BadParameter, match="'tape' is not one of 'none', 'merbridge', 'merlab', 'recorder'"):
        cluster_options.dataplane("tape")
    with pytest.raises(UsageError, match="called 'tape'; there are none, merbridge, merlab, recorder"):
        registry.create("tape", None)


def test_the_lab_has_its_component_and_its_capabilities(recorded):
    assert recorded.dataplane.shell_commands() == ["recorder start"]
    assert recorded.capabilities == recorded.strategy.capabilities
    assert recorded.why_missing("switch") == "a recorder has no switch"
    assert recorded.offline_commands().dataplane is recorded.dataplane
    assert recorded.strategy.around.renew == recorded.mesh.renew
    with recorded.control_pair() as starting:
        assert starting.ready().url == "http://control/"
    assert [event.raw for event in recorded.follow_trace(pod="sleep", nonce=None)] == ["sleep None"]


def test_doctor_asks_what_it_needs(recorded):
    assert [each.name for each in recorded.requirements()] == ["stub", "recorder.tape"]
    recorded.require_able()
    assert recorded.strategy.calls == ["require_able"]


def test_status_and_sysdump_describe_it(recorded, monkeypatch):
    assert status._problems(recorded, up=False) == recorded.node.problems()
    monkeypatch.setattr(recorded.node, "problems", list)
    monkeypatch.setattr(recorded.mesh, "problems", list)
    assert status._problems(recorded, up=True) == ["the recorder is out of tape"]
    monkeypatch.setattr(status, "is_up", lambda _lab: True)
    monkeypatch.setattr(recorded, "find_node_exec", lambda: None)
    told = status.describe(recorded)
    assert told["dataplane"] == {"kind": "recorder", "attached": True, "programs": 1}
    monkeypatch.setattr(recorded, "api", lambda: SimpleNamespace(all=None))
    monkeypatch.setattr(recorded, "find_node", StubNode)
    monkeypatch.setattr(recorded, "workloads", list)
    assert status.dump(recorded)["recorder/tape.txt"]() == "all of it"


def test_its_settings_are_stored_and_read(recorded):
    kept = Settings.from_json(recorded.settings().to_json())
    assert kept.dataplane == "recorder"
    assert recorded.strategy.images(kept) == [f"tape:{kept.istio_tag}"]


def test_the_checks_read_its_record_and_do_not_ask_whose_it_is(recorded, monkeypatch):
    fake = up(FakeLab())
    seen = fake.observe(fake.workload("sleep"))

    def observe(source, **_):
        source.dataplane.begin()
        batch = replace(seen, trace=source.dataplane.trace())
        return replace(batch, interception=source.dataplane.interception(batch))

    monkeypatch.setattr(request_batch, "observe", observe)
    monkeypatch.setattr(lab, "ClusterBatch", lambda *given: SimpleNamespace(dataplane=given[-1]))
    found = recorded.observe(None, servers=[SimpleNamespace(name="helloworld")])
    assert recorded.strategy.calls == ["evidence of 1"]
    assert dataplane.assess_intercepted(found).why == "4 connections of sleep intercepted at connect()"
    assert dataplane.assess_payload(found).why == "24 messages on tape on all three legs"
    assert trace.assess_told(found).why == "on tape"
    assert trace.assess_lines(found).held


def test_it_is_removed_where_another_is_asked_for(recorded, monkeypatch):
    applied = []
    kept = replace(Settings.default(), dataplane="recorder")
    monkeypatch.setattr(recorded, "restore", list)
    monkeypatch.setattr(recorded._access, "kept", lambda: kept)
    monkeypatch.setattr(recorded._access, "setup_complete", lambda: True)
    monkeypatch.setattr(recorded, "api", lambda: SimpleNamespace(apply=applied.append, find=lambda _path: None))
    monkeypatch.setattr(recorded.provider, "nodes", (StubNode(),))
    recorded.recover()
    strategy = recorded.strategy
    assert strategy.calls == ["sweep"]
    monkeypatch.setattr(type(recorded), "strategy", recorded._named("none"))
    recorded.recover()
    assert strategy.calls == ["sweep", "sweep", "remove"]
    assert '"dataplane": "none"' in applied[0]["data"]["settings.json"]
    monkeypatch.undo()
    strategy.calls.clear()


def test_down_lets_it_go_with_the_lab(recorded, monkeypatch):
    monkeypatch.setattr(recorded._access, "answers", lambda: True)
    monkeypatch.setattr(recorded.node, "remove", lambda: recorded.strategy.calls.append("the cluster"))
    recorded.remove(1.0)
    assert recorded.strategy.calls == ["release", "the cluster", "require_gone"]
