"""A connection whose source port conntrack still remembers passes no nat rule: it says nothing about the rules."""

import itertools
from dataclasses import replace

import pytest
from tests.fake_lab import FakeLab

from merbridge_lab import matrix
from merbridge_lab.checks import rules
from merbridge_lab.observation import with_fresh_ports


class PortsAgain(FakeLab):
    """The given number of batches by the rules have a connection with the source port of one that was closed before."""

    def __init__(self, batches):
        super().__init__()
        self._batches, self.asked = batches, 0

    def observe(self, client, **options):
        seen = super().observe(client, **options)
        if client.name != "sleep-twin2" or "helloworld-twin" not in options.get("url", ""):
            return seen
        if seen.exchanges[0].closed and seen.before.packets(rules.REDIRECT) == 0 and len(seen.exchanges) > 1:
            self._closed = seen.exchanges[0]
        if len(seen.exchanges) > 1 and seen.before.istio:
            self.asked += 1
            if self.asked <= self._batches:
                return self._as_conntrack_does(seen)
        return seen

    def _as_conntrack_does(self, seen):
        first = replace(self._closed, nonce=seen.exchanges[0].nonce)
        text = seen.before.texts["nft"]
        fewer = {**seen.after.texts, "nft": _counting(text, seen.before.packets(rules.REDIRECT) + 3)}
        return replace(seen, exchanges=(first, *seen.exchanges[1:]), after=replace(seen.after, texts=fewer))


def _counting(text, packets):
    return "\n".join(
        f"[{packets}:0] {line.partition('] ')[2]}" if "-A ISTIO_REDIRECT" in line else line
        for line in text.splitlines()
    )


def by_rules(lab):
    for part in (lab.node, lab.mesh, lab.dataplane):
        part.ensure()
    return next(iter(matrix.measure(lab)))


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_the_batch_is_measured_anew(batches):
    lab = PortsAgain(batches)
    outcome = by_rules(lab)
    assert outcome.finding.held, outcome.finding.why
    assert lab.asked == batches + 1


def test_what_stays_so_is_a_failure():
    lab = PortsAgain(100)
    outcome = by_rules(lab)
    assert outcome.finding.why.startswith("ISTIO_REDIRECT of the control client moved by 3 for 4 fresh connections")
    assert lab.asked == 3


def test_rules_that_do_not_count_are_measured_once():
    """No port is the same: there is no excuse, and no batch is repeated in the hope of better results."""

    class Idle(FakeLab):
        asked = 0

        def observe(self, client, **options):
            seen = super().observe(client, **options)
            if client.name == "sleep-twin2" and seen.before.istio and len(seen.exchanges) > 1 and "url" in options:
                self.asked += 1
                return replace(seen, after=seen.before)
            return seen

    lab = Idle()
    outcome = by_rules(lab)
    assert not outcome.finding.held
    assert "moved by 0 for 4" in outcome.finding.why
    assert lab.asked == 1


def test_the_cause_tells_what_came_of_a_connection_that_was_not_counted():
    lab = PortsAgain(100)
    assert "curl: (52) Empty reply from server" in by_rules(lab).finding.why


def test_connections_that_were_never_made_have_no_port():
    lab = FakeLab()
    for part in (lab.node, lab.mesh, lab.dataplane):
        part.ensure()
    seen = lab.observe(lab.workload("sleep"))
    never = replace(seen, exchanges=tuple(replace(each, local=":0") for each in seen.exchanges))
    assert not never.has_ports_of([never])
    assert seen.has_ports_of([seen])
    counted = itertools.count(1)
    assert with_fresh_ports(lambda: (next(counted), never)[1], never) is never
    assert next(counted) == 2
