"""A new connection from a port of one that a server has reset: for ten seconds, conntrack takes it for the old one."""

from __future__ import annotations

import pytest
from walkthrough_host import NAME, Lab, merlab

from merbridge_lab.checks import rules
from merbridge_lab.labs.embedded import batch_guard
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
from merbridge_lab.observation import with_fresh_ports

pytestmark = pytest.mark.kernel

ONE, MANY = "40000 40000", "32768 60999"


@pytest.fixture(scope="module")
def lab():
    done = merlab("up", "--until", "3", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Lab()
    assert merlab("down").returncode == 0


def test_it_passes_the_rules_uncounted_and_is_no_measure_of_them(lab, monkeypatch):
    monkeypatch.setattr(batch_guard, "_WHOLE", ())  # it would report the range of ports, which the test needs
    merlab_ = ManagedEmbeddedLab(name=NAME)
    with merlab_.control_pair() as starting:
        control_pair = starting.ready()
        client, told = control_pair.client, {"url": control_pair.url, "servers": [control_pair.server], "count": 1}

        def ports(of):
            lab.in_pod(client.name, "sh", "-c", f"echo '{of}' >/proc/sys/net/ipv4/ip_local_port_range")

        with client.rules.flushed():
            ports(ONE)
            closed = merlab_.observe(client, **told)
        # The kernel's behaviour, and the false alarm that it would cause.
        again = merlab_.observe(client, **told)
        assert again.exchanges[0].local == closed.exchanges[0].local
        assert (again.rule(rules.REDIRECT).moved, again.exchanges[0].closed) == (0, True)
        assert "moved by 0 for 1 fresh connections" in rules.assess_moved(again).why

        batches = iter((ONE, MANY))

        def observe():
            ports(next(batches))
            return merlab_.observe(client, **told)

        assert rules.assess_moved(with_fresh_ports(observe, closed)).held
        assert next(batches, None) is None
