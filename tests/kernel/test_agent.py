"""The agent of a node: real pods of namespaces and cgroups, the real programs, a runtime that speaks the protocol."""

import contextlib
import os
import signal
import statistics
import time

import pytest

from kernel.agent_node import AgentNode, counted
from kernel.compiled_programs import compile_into
from kernel.dataplane_rig import until

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
    listener = hello.app.listen(5000)
    with sleep.app.connect(hello.ip, 5000) as sock, echoes(listener, sock):
        assert counted(node, sleep)["outbound_connects"] == 1
        assert counted(node, sleep)["mesh_redirected_bytes"] >= 100
        assert sleep.redirected_packets() == 0
