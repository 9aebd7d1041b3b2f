"""Enrolment: each reason to leave a pod to the rules, by data of the shapes that the runtime and the kernel give."""

import dataclasses
import re
from pathlib import Path

import pytest

from merbridge_lab.adapters.cri_runtime import Sandbox
from merbridge_lab.adapters.tcp_sockets import Listener, listeners
from merbridge_lab.agent import enrolment
from merbridge_lab.agent.pod_facts import PodFacts, Rules, mapped, pod_cgroup, rules_of, sliced
from merbridge_lab.agent.pod_watch import uid_of
from merbridge_lab.agent.refusals import PENDING, REFUSALS
from merbridge_lab.dataplane import Sidecar

UID = "5060982b-b6f8-43c6-a4c4-ec8455b9fd2b"
POD = Sandbox(
    "f" * 64, UID, "default", "sleep", ("10.244.0.7",), handler="runc", runtime_type="io.containerd.runc.v2", pid=4242,
    cgroup_parent=f"/kubelet/kubepods/besteffort/pod{UID}",
)  # fmt: skip
SERVED = PodFacts(
    netns=4026532345, cgroup=Path("/host/cgroup/pod"), rules=Rules(frozenset({1337})),
    listeners=(Listener(15006, 77, 1337), Listener(15006, 78, 1337), Listener(15001, 79, 1337), Listener(8080, 80, 0)),
    sidecar=Sidecar(4300, 1337, 1337),
)  # fmt: skip


def test_a_pod_of_istio_is_enrolled():
    assert enrolment.of_sandbox(POD) is None
    assert enrolment.of_kernel(SERVED) is None


OF_SANDBOX = {
    "opted_out": {"labels": {"merlab.dev/dataplane": "none"}},
    "host_network": {"is_on_host_network": True},
    "interception_mode": {"annotations": {"sidecar.istio.io/interceptionMode": "TPROXY"}},
    "annotation": {"annotations": {"traffic.sidecar.istio.io/excludeInterfaces": "eth1"}},
    "unread": {"addresses": ()},
}


@pytest.mark.parametrize("reason", OF_SANDBOX)
def test_what_the_runtime_says_refuses_it(reason):
    refusal = enrolment.of_sandbox(dataclasses.replace(POD, **OF_SANDBOX[reason]))
    assert refusal is not None
    assert refusal.id == reason


@pytest.mark.parametrize(
    "more",
    [
        {"handler": "runsc", "runtime_type": "io.containerd.runsc.v1"},
        {"handler": "sandboxed", "runtime_type": "io.containerd.kata.v2"},
        {"handler": "kata-qemu"},
    ],
    ids=str,
)
def test_a_runtime_with_another_kernel_refuses_it(more):
    assert enrolment.of_sandbox(dataclasses.replace(POD, **more)).id == "sandboxed_runtime"


@pytest.mark.parametrize(
    "more",
    [
        {"annotations": {"ambient.istio.io/redirection": "enabled"}},
        {"labels": {"istio.io/dataplane-mode": "ambient"}},
    ],
    ids=str,
)
def test_ambient_mode_refuses_it(more):
    assert enrolment.of_sandbox(dataclasses.replace(POD, **more)).id == "ambient"


@pytest.mark.parametrize("addresses", [("10.244.0.7", "fd00::7"), ("fd00::7",), ("10.244.0.7", "10.245.0.7")], ids=str)
def test_other_addresses_than_one_of_ipv4_refuse_it(addresses):
    refusal = enrolment.of_sandbox(dataclasses.replace(POD, addresses=addresses))
    assert refusal.id == "addresses"
    assert all(each in refusal.sentence for each in addresses)


def test_the_label_with_our_name_opts_in():
    assert enrolment.of_sandbox(dataclasses.replace(POD, labels={"merlab.dev/dataplane": "merlab"})) is None


NONE = (Listener(8080, 80, 0),)
OF_KERNEL = {
    "unread": {"unread": "it cannot be read: Permission denied"},
    "host_network": {"is_host_netns": True},
    "shared_netns": {"sharing": "default/other"},
    "cgroup": {"cgroup": None},
    "no_sidecar": {"rules": None, "listeners": NONE, "sidecar": None},
    "no_rules": {"rules": None},
    "gateway": {"rules": None, "listeners": (Listener(8443, 5, 1337), Listener(15021, 6, 1337)), "sidecar": None},
    "rules_differ": {"difference": "ISTIO_INBOUND has -p tcp -m tcp --dport 9000 -j RETURN"},
    "interception_mode": {"rules": Rules(frozenset({1337}), has_tproxy=True)},
    "no_listener": {"listeners": NONE, "sidecar": None},
    "listener_foreign": {"foreign": True, "sidecar": None},
    "sidecar_user": {"sidecar": None, "unknown_user": "its uids are 0, 1337, not one"},
}


@pytest.mark.parametrize("reason", OF_KERNEL)
def test_what_the_kernel_shows_refuses_it(reason):
    refusal = enrolment.of_kernel(dataclasses.replace(SERVED, **OF_KERNEL[reason]))
    assert refusal is not None
    assert refusal.id == reason
    assert refusal.is_pending == (reason in PENDING)


def test_another_user_than_the_one_that_the_rules_exempt_refuses_it():
    squatter = dataclasses.replace(SERVED, listeners=(Listener(15006, 77, 1000),), sidecar=Sidecar(4300, 1000, 1000))
    assert enrolment.of_kernel(squatter) == (
        "listener_user",
        "user 1000 listens on port 15006, but Istio's rules exempt 1337: it is not the sidecar",
    )
    handed = dataclasses.replace(SERVED, listeners=(Listener(15006, 77, 0),))
    assert (
        enrolment.of_kernel(handed).sentence == "the socket on port 15006 is of user 0, its process runs as user 1337"
    )
    none = dataclasses.replace(SERVED, rules=Rules(frozenset()))
    assert enrolment.of_kernel(none).id == "listener_user"


def test_rules_that_exempt_another_user_than_the_sidecar_too_refuse_it():
    refusal = enrolment.of_kernel(dataclasses.replace(SERVED, rules=Rules(frozenset({1337, 5000}))))
    assert refusal == ("rules_differ", "its rules exempt user 5000, too, who is not the sidecar: eBPF would not")


def test_another_sidecar_s_user_is_right_where_the_rules_say_so():
    """As on OpenShift, or in a user namespace: the numbers of both are the node's."""
    facts = dataclasses.replace(
        SERVED, rules=Rules(frozenset({1000741337})), sidecar=Sidecar(4300, 1000741337, 1000741337),
        listeners=(Listener(15006, 77, 1000741337),),
    )  # fmt: skip
    assert enrolment.of_kernel(facts) is None


def test_one_that_is_served_already_stays_while_its_rules_are_flushed():
    flushed = dataclasses.replace(SERVED, rules=None, is_proven=True)
    assert enrolment.of_kernel(flushed) is None
    ended = dataclasses.replace(flushed, listeners=NONE, sidecar=None)
    assert enrolment.of_kernel(ended).id == "no_listener"


# -- the rules


RULES = {
    "PREROUTING": (("-p tcp -j ISTIO_INBOUND", 0),),
    "OUTPUT": (("-j ISTIO_OUTPUT", 3),),
    "ISTIO_OUTPUT": (
        ("-s 127.0.0.6/32 -o lo -j RETURN", 0),
        ("! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT", 0),
        ("-o lo -m owner ! --uid-owner 1337 -j RETURN", 0),
        ("-m owner --uid-owner 1337 -j RETURN", 9),
        ("-m owner --gid-owner 1338 -j RETURN", 0),
        ("-j ISTIO_REDIRECT", 1),
    ),
    "ISTIO_REDIRECT": (("-p tcp -j REDIRECT --to-ports 15001", 1),),
}


def test_istios_rules_tell_the_users_of_the_sidecar():
    assert rules_of(RULES) == Rules(frozenset({1337}))


@pytest.mark.parametrize("chain", ["OUTPUT", "ISTIO_REDIRECT"])
def test_rules_that_are_flushed_in_part_are_none(chain):
    assert rules_of({**RULES, chain: ()}) is None
    assert rules_of({name: told for name, told in RULES.items() if name != chain}) is None


def test_rules_that_lead_elsewhere_are_none():
    assert rules_of({**RULES, "ISTIO_REDIRECT": (("-p tcp -j REDIRECT --to-ports 150010", 0),)}) is None


def test_users_in_rules_are_numbers_of_the_pods_user_namespace():
    assert mapped({1337}, "         0          0 4294967295\n") == {1337}
    of_pod = "         0     327680      65536\n"
    assert mapped({1337, 0, 70000}, of_pod) == {329017, 327680}


# -- cgroups


def test_a_pods_cgroup_is_found_with_either_driver(tmp_path):
    with_dashes = UID.replace("-", "_")
    slice_ = f"kubepods-burstable-pod{with_dashes}.slice"
    assert sliced(slice_) == f"kubepods.slice/kubepods-burstable.slice/{slice_}"
    for name in (f"/kubelet/kubepods/besteffort/pod{UID}", f"/kubepods.slice/{slice_}"):
        place = tmp_path / (sliced(name) if name.endswith(".slice") else name.lstrip("/"))
        container = place / "container"
        container.mkdir(parents=True)
        (place / "cgroup.procs").write_text("")
        (container / "cgroup.procs").write_text("4242\n")
        assert pod_cgroup(tmp_path, dataclasses.replace(POD, cgroup_parent=name)) == place
        assert uid_of(place) == UID
        assert uid_of(container) is None
        (container / "cgroup.procs").write_text("1\n")  # the sandbox's process is elsewhere
        assert pod_cgroup(tmp_path, dataclasses.replace(POD, cgroup_parent=name)) is None


@pytest.mark.parametrize("name", ["", "/", "/kubepods", "/kubepods/besteffort/pod77", "/system.slice"])
def test_a_cgroup_that_is_not_the_pods_own_is_none(tmp_path, name):
    (tmp_path / "kubepods/besteffort/pod77").mkdir(parents=True)
    assert pod_cgroup(tmp_path, dataclasses.replace(POD, cgroup_parent=name)) is None


# -- what the kernel's tables look like


def test_the_listeners_are_read_from_the_kernels_table():
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 90210 1 0\n"
        "   1: 0700F40A:3A9E 0800F40A:A3F2 01 00000000:00000000 02:000A 00000000  1337        0 90300 2 0\n"
    )
    assert listeners(table) == [Listener(15006, 90210, 1337)]


def test_the_page_about_the_agent_has_every_reason_and_no_other():
    page = (Path(__file__).parents[2] / "docs/agent.md").read_text()
    assert sorted(re.findall(r"(?m)^\| `([a-z_]+)` \|", page)) == sorted(REFUSALS)
