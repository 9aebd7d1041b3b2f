"""The agent of a node: real pods of namespaces and cgroups, the real programs, a runtime that speaks the protocol."""

import contextlib
import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

import pytest
from kernel_refusing import refusing

from kernel.agent_node import AgentNode, counted
from kernel.compiled_programs import compile_into
from kernel.dataplane_rig import RULES, Agent, until
from merbridge_lab.adapters import cri_runtime, netlink_hooks, tcp_sockets
from merbridge_lab.adapters.listening_sockets import Listening
from merbridge_lab.agent.service import Service
from merbridge_lab.dataplane.legs import ALL_LEGS
from merbridge_lab.dataplane.pins import Pins

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """As on a node: the programs come compiled."""
    file = compile_into(tmp_path_factory.mktemp("compiled"))
    before = os.environ.get("MERLAB_COMPILED")
    os.environ["MERLAB_COMPILED"] = str(file)
    yield
    if before is None:
        del os.environ["MERLAB_COMPILED"]
    else:
        os.environ["MERLAB_COMPILED"] = before


@pytest.fixture
def node():
    with contextlib.closing(AgentNode()) as made:
        yield made


def echoes(listener, sock, payload=b"x" * 100):
    """Send through the mesh and back; return the server's end."""
    far, _ = listener.accept()
    sock.sendall(payload)
    got = b""
    while len(got) < len(payload):
        got += far.recv(65536)
    far.sendall(got)
    back = b""
    while len(back) < len(payload):
        back += sock.recv(65536)
    assert back == payload
    return far


def test_a_pod_is_served_soon_after_its_sidecar_listens_and_its_traffic_goes_by_ebpf(node):
    node.start_agent()
    sleep, hello = node.pod("sleep"), node.pod("hello")
    for pod in (sleep, hello):
        node.until_reason(pod, "no_listener")
        pod.listen()
        node.until_state(pod, "served")
        assert node.reconciler.served()[pod.uid].name == pod.name
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        assert counted(node, sleep)["outbound_connects"] == 1
        assert counted(node, sleep)["mesh_redirected_bytes"] >= 100
        assert sleep.redirected_packets() == 0


def test_a_pod_is_served_within_200_ms_after_its_sidecar_listens(node):
    node.start_agent()
    took = []
    for name in ("sleep", "hello", "twin"):
        for _ in range(4):
            pod = node.pod(name)
            node.until_reason(pod, "no_listener")
            began = pod.listen()
            node.until_state(pod, "served")
            took.append(time.monotonic() - began)
            pod.end()
            until(lambda pod=pod: pod.uid not in node.reconciler.served(), "the pod is forgotten")
    assert statistics.median(took) < 0.2, took
    assert max(took) < 0.2 + 0.1, took  # and what others on the machine may take


def test_of_a_pod_that_is_gone_nothing_is_left_and_its_address_is_free_for_another(node):
    node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    first = node.reconciler.served()[hello.uid]
    hello.end()
    again = node.pod("hello")
    again.listen()
    node.until_state(again, "served")
    served = node.reconciler.served()
    assert hello.uid not in served
    assert served[again.uid].ip == first.ip
    assert served[again.uid].netns != first.netns
    assert not (node.pins / "links" / hello.uid).exists()
    listener = node.listen(again)
    with sleep.app.connect(again.ip, 5000) as sock, echoes(listener, sock):
        assert counted(node, again)["accepted_mesh"] == 1


def test_a_sidecar_that_restarts_is_served_again(node):
    node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    hello.sidecar.end()
    node.until_reason_is_pending(hello)
    hello.start_sidecar(proxy=False)
    hello.listen()
    node.until_state(hello, "served")
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        assert node.reconciler.problems(node.endpoint(hello)) == []


def test_traffic_goes_on_without_an_agent_and_the_next_one_adopts_what_is_there(node):
    agent = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    links = node.reconciler.links()
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock) as far:
        assert node.end_agent(agent, signal.SIGKILL) == -signal.SIGKILL
        far.sendall(b"still")
        assert sock.recv(10) == b"still"
        with sleep.app.connect(hello.ip, 5000) as another:
            echoes(listener, another).close()
        assert sleep.redirected_packets() == 0
        status = node.status(1)
        assert (status["running"], status["ready"]) == (False, False)
        assert [pod["state"] for pod in status["pods"]] == ["served", "served"]
        node.start_agent()
        far.sendall(b"again")
        assert sock.recv(10) == b"again"
    assert node.reconciler.links() == links
    assert node.status()["ready"]


def test_a_pod_that_ended_while_no_agent_ran_is_forgotten_by_the_next_one(node):
    agent = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    assert node.end_agent(agent) == 0
    assert node.reconciler.served().keys() == {sleep.uid, hello.uid}  # SIGTERM is not an uninstall
    hello.end()
    node.start_agent()
    until(lambda: node.reconciler.served().keys() == {sleep.uid}, "the pod that ended is forgotten")


def test_a_pod_whose_rules_are_flushed_stays_served_by_the_next_agent_too(node):
    agent = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    sleep.app.sh("iptables-nft", "-t", "nat", "-F")
    node.end_agent(agent)
    node.start_agent()
    assert node.of(sleep)["state"] == "served"
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        assert counted(node, sleep)["outbound_connects"] == 1


def test_the_kill_switch_works_without_an_agent_and_outlives_the_next_one(node):
    agent = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    node.end_agent(agent)
    node.merlab("redirect", "off")
    listener = node.listen(hello)

    def dial() -> tuple[int, int]:
        before = counted(node, sleep)["outbound_connects"], sleep.redirected_packets()
        with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
            pass
        after = counted(node, sleep)["outbound_connects"], sleep.redirected_packets()
        return after[0] - before[0], after[1] - before[1]

    assert dial() == (0, 1)
    node.start_agent()
    assert node.status()["redirecting"] is False
    assert dial() == (0, 1)
    node.merlab("redirect", "on")
    assert dial() == (1, 0)
    assert node.status()["redirecting"] is True


def test_remove_leaves_nothing_and_is_refused_while_an_agent_runs(node, monkeypatch):
    agent = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock) as far:
        from merbridge_lab.agent import startup
        from merbridge_lab.errors import LabError

        monkeypatch.setattr(startup, "_END", 0.2)
        places = startup.Places(node.pins, node.run_dir, node.tmp / "state", node.runtime.socket, node.root)
        with pytest.raises(LabError, match="an agent runs on this node"):
            startup.remove(places)
        node.end_agent(agent)
        node.merlab("remove")
        assert not node.pins.exists()
        assert [*node.run_dir.iterdir(), *(node.tmp / "state").iterdir()] == []
        far.sendall(b"by TCP")
        assert sock.recv(10) == b"by TCP"
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        pass
    assert sleep.redirected_packets() > 0
    node.merlab("remove")  # nothing to remove is a success


def test_an_older_agent_does_not_take_over_and_two_do_not_run_at_once(node):
    first = node.start_agent("--generation", "7")
    older = node.start_agent("--generation", "6", wait=False)
    assert older.wait(30) == 3
    assert "a newer agent has been in charge of this node, of generation 7" in node.log()
    second = node.start_agent("--generation", "8", wait=False)
    until(lambda: "waits for another agent" in node.log(), "the second one waits", 20)
    assert second.poll() is None
    node.end_agent(first)
    until(lambda: node.state().get("generation") == 8, "the second one is in charge", 20)
    node.end_agent(second)
    late = node.start_agent("--generation", "7", wait=False)
    assert late.wait(30) == 3


def test_it_goes_on_while_the_runtime_is_away(node):
    node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    node.runtime.stop()
    until(lambda: node.state().get("runtime"), "the agent has noticed", 20)
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        assert counted(node, sleep)["outbound_connects"] == 1
    hello.end()
    until(lambda: hello.uid not in node.reconciler.served(), "a pod that ended is forgotten all the same", 20)
    node.runtime.start()
    until(lambda: node.state().get("runtime") is None, "the agent has noticed", 20)
    (twin,) = node.mesh("twin")
    assert node.reconciler.served().keys() == {sleep.uid, twin.uid}


class Stream:
    """Requests without pause, in a thread, each on a connection of its own."""

    def __init__(self, node, client, server):
        self._listener, self._client, self._server = node.listen(server), client, server
        self.answered, self.failed, self._ends = 0, [], threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._ends.is_set():
            try:
                with self._client.app.connect(self._server.ip, 5000) as sock, echoes(self._listener, sock):
                    self.answered += 1
            except (OSError, AssertionError) as error:
                self.failed.append(error)

    def __enter__(self):
        self._thread.start()
        until(lambda: self.answered > 10, "requests are answered")
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join(20)


def test_another_version_takes_over_under_requests_without_pause_and_the_older_one_does_not_come_back(node, tmp_path):
    told = json.loads(Path(os.environ["MERLAB_COMPILED"]).read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**told, "stamp": "0.1.0+another"}))
    first = node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    with Stream(node, sleep, hello) as stream:
        assert node.end_agent(first) == 0
        second = node.start_agent(stamp="0.1.0+another", MERLAB_COMPILED=str(other))
        done = stream.answered
        until(lambda: stream.answered > done + 10, "requests are answered by the other version")
        assert not (node.pins / "old").exists()
        assert node.end_agent(second, signal.SIGKILL) == -signal.SIGKILL
        third = node.start_agent(wait=False)
        assert third.wait(30) == 3
        assert "it replaced this version" in node.log()
        done = stream.answered
        until(lambda: stream.answered > done + 10, "requests are answered all the same")
        fourth = node.start_agent("--generation", "1000000")
        done = stream.answered
        until(lambda: stream.answered > done + 10, "requests are answered by the first version again")
        assert node.end_agent(fourth) == 0
        node.merlab("remove")
        done = stream.answered
        until(lambda: stream.answered > done + 10, "requests are answered by the rules")
    assert stream.failed == []


def test_the_kill_switch_reaches_the_version_that_is_being_replaced(node, tmp_path):
    """A takeover that was killed half-way: the version before still has its pods."""
    told = json.loads(Path(os.environ["MERLAB_COMPILED"]).read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**told, "stamp": "0.1.0+another"}))
    first = node.start_agent(stamp="0.1.0+another", MERLAB_COMPILED=str(other))
    node.mesh("sleep")
    node.end_agent(first)
    node.reconciler.install()
    before = Pins(node.pins / "old")
    assert before.config()["intercept"] == 1
    node.merlab("redirect", "off")
    assert (before.config()["redirect"], before.config()["intercept"]) == (0, 0)
    assert node.reconciler.redirecting is False
    before.configure(redirect=1, intercept=1)
    assert node.reconciler.redirecting is True  # one of them does


def test_a_kill_switch_that_is_not_in_force_is_set_and_one_in_the_maps_alone_stays(node):
    agent = node.start_agent()
    node.mesh("sleep")
    node.end_agent(agent)
    wanted = [True]
    with cri_runtime.Runtime(node.runtime.socket) as runtime:
        service = Service(
            runtime, node.reconciler, node.root, ALL_LEGS, install=lambda: None, redirecting=lambda: wanted[0],
            changed=lambda _: None, turned=lambda: None,
        )  # fmt: skip
        service._settle()
        assert node.reconciler.redirecting is True
        wanted[0] = False
        service._settle()
        assert node.reconciler.redirecting is False
        wanted[0] = True
        service._settle()
        assert node.reconciler.redirecting is False  # as by bpftool
        service._selector.close()
        service._watch.__exit__()


def test_programs_that_somebody_removed_are_installed_again(node):
    agent = node.start_agent()
    sleep, _ = node.mesh("sleep", "hello")
    node.end_agent(agent)
    (node.pins / "maps" / "stamp").unlink()
    node.start_agent()
    node.until_state(sleep, "served")
    assert node.reconciler.programs_problems() == []
    assert node.reconciler.problems(node.endpoint(sleep)) == []


# -- wrong candidates: each left to the rules, with its reason


def test_wrong_candidates_are_left_to_the_rules_with_their_reason(node):
    node.start_agent()
    bare = node.pod("sleep", rules=False)
    node.until_reason(bare, "no_sidecar")
    node.stack.enter_context(bare.sidecar.listen(15021))
    node.wake(bare)
    node.until_reason(bare, "gateway")
    bare.listen()
    node.wake(bare)
    node.until_reason(bare, "no_rules")

    squatted = node.pod("hello", sidecar=False)
    squatted.start_sidecar(uid=1000, proxy=False)
    squatted.listen()
    assert "user 1000 listens on port 15006" in node.until_reason(squatted, "listener_user")["reason"]

    elsewhere = node.pod("twin", sidecar=False)
    foreign = Agent(None, str(elsewhere.app.netns), 1337)  # in the pod's namespace, not in its cgroup
    node.stack.callback(foreign.end)
    foreign.ask(op="sidecar")
    node.until_reason(elsewhere, "listener_foreign")

    status = node.status()
    assert status["ready"]
    assert status["refused"] == {"listener_foreign": 1, "listener_user": 1, "no_rules": 1}
    assert node.reconciler.served() == {}
    assert 'merlab_pods_left_to_rules{reason="listener_user"} 1.0' in node.get("/metrics")[1]
    assert node.get("/readyz") == (200, "ready\n")


def test_a_pod_whose_rules_are_not_those_of_its_annotations_is_refused(node):
    """As where the whole mesh excludes a port: no annotation of the pod says so."""
    node.start_agent()
    sleep, hello = node.pod("sleep"), node.pod("hello", rules=False)
    hello.rules(RULES.replace("--dport 15020 -j RETURN", "--dport 9000 -j RETURN"))
    for pod in (sleep, hello):
        pod.listen()
    node.until_state(sleep, "served")
    told = node.until_reason(hello, "rules_differ")["reason"]
    assert "ISTIO_INBOUND has -p tcp -m tcp --dport 9000 -j RETURN" in told
    sleep.rules("*mangle\n:ISTIO_TPROXY - [0:0]\nCOMMIT\n")
    node.wake(sleep)
    node.until_reason(sleep, "interception_mode")
    assert node.reconciler.served() == {}


def test_pods_that_the_runtime_describes_as_others_are_refused(node):
    (sleep,) = node.started("sleep")
    told = {
        "host_network": {"linux": {"namespaces": {"options": {"network": 2}}}},
        "sandboxed_runtime": {"runtime_handler": "kata"},
        "ambient": {"annotations": {"ambient.istio.io/redirection": "enabled"}},
        "opted_out": {"labels": {"merlab.dev/dataplane": "none"}},
        "addresses": {"network": {"ip": sleep.ip, "additional_ips": [{"ip": "fd00::7"}]}},
        "interception_mode": {"annotations": {"sidecar.istio.io/interceptionMode": "TPROXY"}},
    }
    node.start_agent()
    for reason, more in told.items():
        del node.runtime.sandboxes[sleep.identity]
        again = node.told_again(sleep, **more)
        node.until_reason(again, reason)
    del node.runtime.sandboxes[sleep.identity]
    shared = node.told_again(sleep)
    other = {**shared.told, "status": {**shared.told["status"], "id": "f" * 64, "metadata": {"uid": "another"}}}
    node.runtime.sandboxes["f" * 64] = other
    node.wake(sleep)
    node.until_reason(shared, "shared_netns")


def test_a_pod_of_the_nodes_own_namespace_is_refused_whatever_the_runtime_says(node):
    (sleep,) = node.started("sleep")
    sleep.told["info"]["pid"] = os.getpid()
    node.start_agent()
    node.until_reason(sleep, "host_network")


def test_a_pod_whose_process_is_not_in_its_cgroup_is_refused(node):
    (sleep,) = node.started("sleep")
    (node.root / "kubepods/besteffort/podother").mkdir()
    sleep.told["info"]["config"]["linux"]["cgroup_parent"] = "/kubepods/besteffort/podother"
    node.start_agent()
    node.until_reason(sleep, "cgroup")


def test_the_numbers_for_prometheus_are_those_of_the_maps(node):
    node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    listener = node.listen(hello)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        code, numbers = node.get("/metrics")
    assert code == 200
    assert 'merlab_connections_total{leg="outbound",namespace="default",pod="sleep"} 1.0' in numbers
    moved = counted(node, sleep)["mesh_redirected_bytes"]
    labels = 'leg="mesh",namespace="default",pod="sleep"'
    assert f'merlab_bytes_total{{{labels},way="ebpf"}} {moved}.0' in numbers
    by_tcp = counted(node, sleep)["mesh_tcp_messages"]
    assert f'merlab_messages_total{{{labels},way="tcp"}} {by_tcp}.0' in numbers
    assert 'merlab_tcp_bytes_total{namespace="default",pod="sleep",reason="redirect_off"} 0.0' in numbers
    assert 'merlab_pod_events_total{result="created"} 0.0' in numbers
    told = json.loads(node.merlab("counters", "--json"))
    assert told.keys() == {"default/sleep", "default/hello"}
    assert told["default/sleep"]["outbound_connects"] == 1
    assert {each["name"] for each in json.loads(node.merlab("programs", "--json"))["programs"]} >= {"merlab_sk_msg"}
    assert json.loads(node.merlab("pairs", "--json"))["schema"] == 1


def in_one_order(events):
    return sorted(events, key=lambda event: json.dumps(event, sort_keys=True))


def test_the_trace_tells_of_the_nodes_pods_and_of_no_others(node):
    node.start_agent()
    sleep, hello = node.mesh("sleep", "hello")
    listener = node.listen(hello)
    with node.following() as events, node.following("other") as others:
        with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
            pass
        told = until(lambda: (found := events())[-1:] and found, "events", 10)
        until(lambda: any(each["kind"] == "closed" for each in events()), "the connection's end", 10)
        # In another order, if two processors tell something at the same moment: each reader has a ring of its own.
        until(lambda: in_one_order(others()) == in_one_order(events()), "the other reader is told the same", 10)
    connects = [each for each in told if each["kind"] == "connect"]
    assert connects
    assert connects[0]["leg"] == "outbound"
    assert "intercepted" in connects[0]["sentence"]
    assert node.status()["debug"] is False
    assert node.readers() == 0


def test_where_nothing_is_loaded_debug_is_off_and_cannot_be_switched_on(node):
    node.merlab("debug", "off")
    assert "could not be read" in node.merlab("debug", "on", status=3)
    node.start_agent()
    node.merlab("debug", "on")
    assert node.status()["debug"] is True
    node.merlab("debug", "off")
    assert node.status()["debug"] is False


def test_listeners_are_the_same_by_netlink_and_from_proc(node, monkeypatch):
    (sleep,) = node.started("sleep")
    node.stack.enter_context(sleep.app.listen(8080, at="::", v6=True))
    with contextlib.closing(Listening(sleep.app.netns)) as listening:
        told = listening.listeners()
        assert sorted(told) == sorted(tcp_sockets.listening(sleep.app.netns))
        assert {(each.port, each.uid) for each in told} == {(15001, 1337), (15006, 1337), (8080, 0)}

        def without(*_, **__):
            raise FileNotFoundError

        monkeypatch.setattr(netlink_hooks, "dump_by", without)
        assert sorted(listening.listeners()) == sorted(told)


# -- a kernel that cannot


def test_where_the_kernel_refuses_a_sidecars_socket_nothing_is_half_attached(node):
    (sleep,) = node.started("sleep")
    node.start_agent(prefix=refusing(), wait=False)
    told = node.until_reason(sleep, "not_attached", 30)
    assert "the listener of the sidecar" in told["reason"]
    assert "pidfd_getfd" in told["reason"]
    assert not (node.pins / "links" / sleep.uid).exists()
    assert not node.status(1)["ready"]
    before = sleep.redirected_packets()
    _, sock = sleep.app.dial("10.99.7.12", 5000)
    sock.close()  # the sidecar has accepted it
    assert sleep.redirected_packets() == before + 1


def test_without_a_bpffs_each_pod_has_that_reason_and_no_file_is_made(node):
    (sleep,) = node.started("sleep")
    pins = node.tmp / "pins"
    node.start_agent("--pins", str(pins), wait=False)
    told = node.until_reason(sleep, "not_attached", 30)
    assert told["reason"].startswith(f"{pins} is not on a bpffs")
    assert not pins.exists()
    assert not (node.tmp / "state").exists(), "nobody is in charge of this node"


def test_where_the_programs_cannot_be_loaded_each_pod_has_that_reason(node, tmp_path):
    (sleep,) = node.started("sleep")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    agent = node.start_agent(wait=False, MERLAB_COMPILED=str(broken))
    told = node.until_reason(sleep, "not_attached", 30)
    assert str(broken) in told["reason"]
    assert agent.poll() is None
    assert not node.status(1)["ready"]
    assert node.reconciler.served() == {}
