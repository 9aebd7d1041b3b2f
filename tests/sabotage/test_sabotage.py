"""No broken or faked lab gets past verify, and nothing harmless stops it; each check earns its place."""

from __future__ import annotations

import os
import re

import lies_mesh
import lies_plane
import lies_pods
import pytest
import suite  # noqa: F401 - registers all sabotages
from oddities import keep_alive_client
from saboteur import ALL, LIE, ODDITY, Scene, judge, mend, standing_lab, told, verify

from merbridge_lab.adapters import bpf_syscall, tcp_sockets
from merbridge_lab.adapters.cgroup import all_processes
from merbridge_lab.labs.embedded import mtls_probe
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
from merbridge_lab.labs.embedded.network_drift import MAY_DIFFER

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab():
    with standing_lab() as made:
        yield made


@pytest.fixture
def whole(lab):
    yield lab
    mend(lab)


#: In make test, of the rows that take a moment every second one, in the order of the suite; the others in make soak.
SAMPLE = {each.name for each in [each for each in ALL if each.quick][::2]}


def named(kind):
    return [pytest.param(each, id=each.name.replace(" ", "_"), marks=marks(each)) for each in ALL if each.kind == kind]


def marks(sabotage):
    return [
        *([] if sabotage.name in SAMPLE else [pytest.mark.soak]),
        *([pytest.mark.machine] if sabotage.is_shared else []),
    ]


def say(sabotage, lab):
    scene = Scene(lab)
    with sabotage.on(scene):
        return told(sabotage, scene)


def test_there_are_thirty_lies_and_all_differ():
    lies = [each for each in ALL if each.kind == LIE]
    assert len(lies) >= 30
    assert len({each.name for each in ALL}) == len(ALL)
    assert all(each.what and each.cause for each in lies)


def test_behind_each_thing_that_may_differ_a_lie_is_noticed():
    """P4: an entry of the list of allowed differences is no hiding place."""
    assert {each.name for each in MAY_DIFFER} == {*lies_pods.HIDDEN}
    assert {*lies_pods.HIDDEN.values()} <= {each.name for each in ALL if each.kind == LIE}
    assert all(each.reason for each in MAY_DIFFER)


@pytest.mark.parametrize("sabotage", named(LIE))
def test_a_lie_is_noticed_and_its_cause_named(whole, sabotage):
    report = say(sabotage, whole)
    assert judge(sabotage, report) is None


@pytest.mark.parametrize("sabotage", named(ODDITY))
def test_an_oddity_is_none_of_our_business(whole, sabotage):
    report = say(sabotage, whole)
    assert judge(sabotage, report) is None


def test_altered_programs_are_out_of_the_way_before_the_mesh_is_asked(whole):
    """`up` begins to compile the source at once, and awaits it no later than this."""
    text = "count(netns, counter, 1);"
    with lies_plane.another_source(Scene(whole), (text, f"{text} {text}")):
        lab = ManagedEmbeddedLab(name=whole.machine.name)
        lab.recover()
        before = {name for name in lab.dataplane.links() if "connect" in name}
        assert lab.mesh.problems() == []
        assert before
        assert not {name for name in lab.dataplane.links() if "connect" in name}


def test_an_app_cannot_write_a_sidecars_log(whole):
    """A record that an app could forge would prove nothing: only the sidecar's user and root can write it."""
    for workload in whole.workloads():
        status = workload.access_log.stat()
        assert (status.st_uid, status.st_mode & 0o022) == (1337, 0)


def test_who_shows_no_certificate_of_the_labs_authority_is_not_served(whole):
    """This holds whatever Envoy's own admin interface reports about its configuration."""
    target, node = lies_mesh.pod(Scene(whole), "helloworld-v1"), whole._node.netns
    assert mtls_probe.problems(node, target.spec) == []
    asks = re.compile(
        r"require_client_certificate: true|validation_context:\n.*\n.*\n *- \{ san_type: URI, matcher: \{ prefix:.*"
    )
    with lies_mesh.configured(target, lambda text: asks.sub("", text)):
        assert mtls_probe.problems(node, target.spec) == [
            "the sidecar of helloworld-v1 serves a client that shows no certificate",
            "the sidecar of helloworld-v1 serves a client that shows a certificate of another authority than the lab's",
        ]


def _state(lab):
    mesh = lab.machine.mesh_cgroup
    return {
        "processes": sorted(all_processes(mesh)),
        "programs": sorted(program.id for program in lab.dataplane.programs()),
        "loaded": sorted(_merlabs_programs()),
        "links": dict(lab.dataplane.links()),
        "rules": {each.name: each.rules.snapshot().specs("nat") for each in lab.workloads()},
        "twins": sorted(path.name for path in (lab.machine.run / "pods").iterdir()),
        "saved": sorted(path.name for path in lab.machine.saved.iterdir()),
    }


def _merlabs_programs():
    for number in bpf_syscall.ids("prog"):
        try:
            fd = bpf_syscall.by_id("prog", number)
        except OSError:
            continue
        try:
            if bpf_syscall.prog_info(fd).name.startswith("merlab_"):
                yield number
        finally:
            os.close(fd)


def test_verify_leaves_all_as_it_was(whole):
    before = _state(whole)
    with keep_alive_client(Scene(whole)):
        report = verify(Scene(whole))
        assert report.verdict.value == "pass", report.cause
    after = _state(whole)
    # Other labs may be running on this machine; what we own must be the same.
    before.pop("loaded"), after.pop("loaded")
    assert after == before
    assert not [each for workload in whole.workloads() for each in tcp_sockets.established(workload.pod.netns)
                if each.remote.startswith("10.244.1.200")]  # fmt: skip


@pytest.mark.soak
def test_ten_verifies_under_a_client_that_keeps_its_connection(whole):
    with keep_alive_client(Scene(whole)):
        for _ in range(10):
            report = verify(Scene(whole))
            assert report.verdict.value == "pass", report.cause


@pytest.mark.soak
def test_a_hundred_healthy_verifies(whole):
    causes = [report.cause or str(report.error) for _ in range(100)
              if (report := verify(Scene(whole))).verdict.value != "pass"]  # fmt: skip
    assert causes == []
