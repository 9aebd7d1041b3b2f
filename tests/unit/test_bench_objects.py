"""The bench pods of a cluster as objects, and which dataplanes can be compared with the rules there."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from merbridge_lab.agent import enrolment
from merbridge_lab.bench import scenarios
from merbridge_lab.bench.pod_sets import DIRECT_SLOT
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import SIDECAR_UID
from merbridge_lab.labs.kubernetes import bench_objects, dataplanes
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.kubernetes.topology import MARK

SETTINGS = Settings.default()


def kinds(slot):
    return [each["kind"] for each in bench_objects.documents(slot, SETTINGS)]


def test_two_sets_are_equal_but_for_their_namespace():
    one, other = (json.dumps(bench_objects.documents(slot, SETTINGS)) for slot in "AB")
    assert one != other
    assert one.replace(bench_objects.NAMESPACES["A"], bench_objects.NAMESPACES["B"]) == other


def test_the_set_without_sidecars_has_no_part_in_the_mesh():
    meshed, direct = kinds("A"), kinds(DIRECT_SLOT)
    assert [kind for kind in meshed if kind not in direct] == ["PeerAuthentication", "Telemetry", "DestinationRule"]
    namespace = bench_objects.documents(DIRECT_SLOT, SETTINGS)[0]
    assert namespace["metadata"]["labels"]["istio-injection"] == "disabled"


def test_a_new_set_goes_by_the_rules_and_its_app_is_not_the_sidecar():
    namespace, *objects = bench_objects.documents("A", SETTINGS)
    assert enrolment.opts_out(namespace["metadata"]["labels"])
    server = next(each for each in objects if each["kind"] == "Pod" and each["metadata"]["name"] == "bench-server")
    app = server["spec"]["containers"][0]
    assert app["image"] == SETTINGS.proxy_image
    assert app["securityContext"]["runAsUser"] not in (0, SIDECAR_UID)
    assert all(f"head -c {size} " in app["command"][-1] for size in scenarios.BODIES.values())


@pytest.mark.parametrize("out", [True, False])
def test_the_label_is_all_that_a_change_of_ways_changes(out):
    applied = []
    bench_objects.opt_out(SimpleNamespace(apply=applied.append), "A", out=out)
    namespace = bench_objects.documents("A", SETTINGS)[0]
    assert enrolment.opts_out(applied[0]["metadata"]["labels"]) is out
    namespace["metadata"]["labels"][enrolment.LABEL] = applied[0]["metadata"]["labels"][enrolment.LABEL]
    assert applied == [namespace]


class Namespaces:
    """An API that has namespaces, by name with their labels, until they are deleted."""

    def __init__(self, **labels):
        self.there = {name.replace("_", "-"): {"metadata": {"labels": each}} for name, each in labels.items()}
        self.deleted = []

    def find(self, path):
        return self.there.get(path.rpartition("/")[2])

    def delete(self, path, **_):
        self.deleted.append(path)
        self.there.pop(path.rpartition("/")[2], None)


def test_namespaces_that_a_killed_benchmark_left_are_removed_and_named():
    api = Namespaces(merlab_bench_a=dict(MARK), merlab_bench_d={**MARK, "more": "labels"}, other=None)
    assert bench_objects.remove(api) == ["merlab-bench-a", "merlab-bench-d"]
    assert list(api.there) == ["other"]


@pytest.mark.parametrize("labels", [None, {}, {"app.kubernetes.io/managed-by": "Helm"}])
def test_a_namespace_of_somebody_else_is_left_with_all_others(labels):
    api = Namespaces(merlab_bench_a=dict(MARK), merlab_bench_b=labels)
    with pytest.raises(LabError, match="the namespace merlab-bench-b is not merlab's"):
        bench_objects.remove(api)
    assert api.deleted == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("none", "there is nothing to compare with the rules"), ("merbridge", "serves every pod of it")],
)
def test_where_nothing_can_be_compared_it_is_said_before_pods_are_made(name, why):
    strategy = dataplanes.part(name, "strategy").Strategy
    with pytest.raises(LabError, match=why) as refused:
        strategy.bench_switch(None)
    assert refused.value.hint.startswith("merlab up --dataplane")
