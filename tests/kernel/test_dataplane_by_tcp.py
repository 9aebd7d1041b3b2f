"""What goes by TCP although both ends of a connection are known: messages and bytes by leg, and by reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dataplane_rig import until
from test_dataplane_failures import played_sidecar
from test_dataplane_traffic import LEGS, PORT, grown, receive, talk

from merbridge_lab.dataplane.legs import Legs
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.istio_facts import INBOUND_PORT

pytestmark = pytest.mark.kernel

SIZE = 1000


@pytest.fixture
def rig(shared):
    shared.attach()
    yield shared
    shared.attach()


@pytest.fixture(scope="module")
def server(shared):
    with shared.hello.app.listen(PORT) as listener:
        yield listener


def told(rig, server, **switches):
    """Return what one connection through both sidecars adds to the counters of the client's pod and the server's."""
    Pins(rig.pins).configure(**switches)
    before = rig.plane.counters()
    talk(rig.sleep.app.connect(rig.hello.ip, PORT), server, [SIZE] * 3)
    after = rig.plane.counters()
    return grown(before["sleep"], after["sleep"]), grown(before["hello"], after["hello"])


def by_leg(counts, way, what):
    return {leg: counts[name] for leg in LEGS if (name := f"{leg}_{way}_{what}") in counts}


def test_with_redirecting_off_each_leg_is_counted_where_it_is_sent(rig, server):
    sleep, hello = told(rig, server, redirect=0)
    both, one = 6 * SIZE, 3 * SIZE
    assert by_leg(sleep, "tcp", "bytes") == {"outbound": both, "mesh": one}
    assert by_leg(hello, "tcp", "bytes") == {"mesh": one, "inbound": both}
    for counts in (sleep, hello):
        assert sum(by_leg(counts, "tcp", "messages").values()) == counts["passed_redirect_off"]
        assert counts["tcp_bytes_redirect_off"] == both + one
        assert not by_leg(counts, "redirected", "bytes")
    sleep, hello = told(rig, server, redirect=1)
    for counts in (sleep, hello):
        passed = sum(number for name, number in counts.items() if name.startswith("passed_"))
        assert sum(by_leg(counts, "tcp", "messages").values()) == passed, counts
        ways = sum(sum(by_leg(counts, way, "bytes").values()) for way in ("redirected", "tcp"))
        assert ways == both + one, "each byte went one way or the other"


def test_bytes_by_reason_are_those_of_the_leg(rig):
    """A receiver that does not read at first: what is redirected, and what TCP is given, is what send() took."""
    with played_sidecar(rig) as sidecar, sidecar.listen(INBOUND_PORT) as listener:
        before = rig.counters("sleep")
        sender = rig.sleep.sidecar.connect(rig.hello.ip, PORT)
        receiver = listener.accept()[0]
        with sender, receiver:
            receiver.settimeout(10)
            until(lambda: [pair for pair in rig.plane.pairs() if all(pair.pods)], "they are a pair")
            sender.setblocking(False)
            sent = tries = 0
            while tries < 5:
                try:
                    sent += sender.send(b"x" * 65536)
                except BlockingIOError:
                    tries += 1
                    receive(receiver, 100_000 if tries < 5 else 0)
            receive(receiver, sent - 400_000)
        counts = grown(before, rig.counters("sleep"))
    by_tcp = counts["mesh_tcp_bytes"]
    assert counts["passed_receiver_full"] >= 1
    assert by_tcp == sum(number for name, number in counts.items() if name.startswith("tcp_bytes_"))
    # What send() did not take at once is counted again with the next: at most one message for each time it was full.
    assert sent <= counts["mesh_redirected_bytes"] + by_tcp <= sent + tries * 65536


SENT = Legs(True, True, False, "what apps send")
NONE = Legs(True, False, False, "nothing of apps")


@pytest.mark.parametrize("legs", [SENT, NONE], ids=lambda legs: legs.why)
def test_a_leg_that_is_not_served_has_no_reason_and_outside_of_the_sockhash_no_numbers(rig, server, legs):
    rig.plane.attach([replace(each, legs=legs) for each in rig.endpoints])
    sleep, hello = told(rig, server, redirect=0)
    into_app, out_of_app = 3 * SIZE, 3 * SIZE
    if legs is NONE:
        assert by_leg(sleep, "tcp", "bytes") == {"mesh": out_of_app}
        assert by_leg(hello, "tcp", "bytes") == {"mesh": into_app}
        return
    assert by_leg(sleep, "tcp", "bytes") == {"outbound": into_app + out_of_app, "mesh": out_of_app}
    assert sleep["tcp_bytes_redirect_off"] == 2 * out_of_app, "what the sidecar sends to the app has no reason"
    assert hello["tcp_bytes_redirect_off"] == 2 * into_app
