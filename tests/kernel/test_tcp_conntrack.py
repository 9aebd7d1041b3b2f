"""What conntrack remembers of connections that Istio's rules redirected, while eBPF creates the next ones."""

from __future__ import annotations

import pytest
from dataplane_rig import RULES, Rig, until

pytestmark = pytest.mark.kernel

PORT = 5000
SOURCE = 45997


@pytest.fixture
def rig():
    rig = Rig()
    try:
        for place in (rig.sleep, rig.hello):
            place.rules(RULES)
        yield rig
    finally:
        rig.close()


def talk(rig: Rig, server) -> None:
    more = {"bind": ["0.0.0.0", SOURCE], "reuse": True}
    with rig.sleep.sidecar.connect(rig.hello.ip, PORT, **more) as client:
        client.sendall(b"hello")
        with server.accept()[0] as app:
            assert app.getpeername()[0] == "127.0.0.6"
            assert app.recv(5) == b"hello"
            app.sendall(b"world")
        assert client.recv(5) == b"world"


def test_a_port_that_a_redirected_connection_had(rig):
    """By the rules and by eBPF: from SOURCE to 5000, answered from 15006.

    Were another port dialled with eBPF, conntrack would give the second connection another source port.
    """
    with rig.hello.app.listen(PORT) as server:
        talk(rig, server)
        rig.attach()
        talk(rig, server)
        entry = until(lambda: [each for each in rig.hello.log() if each["inbound"]][1:], "both are in the log")[0]
        assert entry["original"] == [rig.hello.ip, PORT]
        assert entry["peer"][1] == SOURCE
        assert rig.counters("hello")["accepted_mesh"] == 1
        assert rig.counters("sleep")["mesh_redirected_bytes"] == 5
