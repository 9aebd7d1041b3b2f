"""The path of a request: the value that a batch or a state gives, and its drawing at every width."""

from dataclasses import replace

import pytest

import golden_files
from fake_lab import FakeLab, flushed, up
from merbridge_lab import request_path
from merbridge_lab.console import picture
from merbridge_lab.evidence import Unread
from merbridge_lab.request_path import Carrier, expected, observed

SERVERS = ("helloworld-v1", "helloworld-v2")


def words(path):
    return [leg.carrier for leg in path.legs]


def test_a_flushed_batch_goes_by_ebpf_on_all_legs():
    path = observed(flushed())
    assert words(path) == [Carrier.EBPF] * 3
    assert path.servers == SERVERS
    assert [leg.count for leg in path.legs] == ["4 of 4 (rules +0)", "4 of 4, mTLS", "4 of 4"]
    assert path.moved == "2.4 kB"


def test_the_flushed_control_client_is_broken():
    assert words(observed(flushed().control)) == [Carrier.BROKEN] * 3


def test_by_the_rules_the_first_leg_is_theirs_and_the_rest_is_tcp():
    lab = FakeLab()
    lab.node.ensure()
    lab.mesh.ensure()
    path = observed(lab.observe(lab.workload("sleep")))
    assert words(path) == [Carrier.RULES, Carrier.TCP, Carrier.TCP]
    assert path.legs[0].count == "4 of 4"


def test_past_both_sidecars_all_is_plain():
    lab = up(FakeLab())
    with lab.control_pair() as starting, (pair := starting.ready()).client.rules.flushed(), pair.server.rules.flushed():
        seen = lab.observe(pair.client, url=pair.url, servers=[pair.server])
    assert words(observed(seen)) == [Carrier.PLAIN] * 3


def test_payload_that_ebpf_did_not_move_is_not_called_ebpf():
    lab = up(FakeLab())
    lab.idle_legs = {"mesh"}
    assert words(observed(lab.observe(lab.workload("sleep")))) == [Carrier.EBPF, Carrier.TCP, Carrier.TCP]


@pytest.mark.parametrize(
    ("rules", "server_rules", "attached", "out", "rest"),
    [
        (True, True, True, "eBPF", "eBPF"),
        (False, False, True, "eBPF", "eBPF"),
        (True, True, False, "rules", "TCP"),
        (False, True, False, "plain", "broken"),
        (False, False, False, "plain", "plain"),
    ],
)
def test_what_is_in_place_tells_the_path(rules, server_rules, attached, out, rest):
    path = expected("sleep", SERVERS, rules=rules, server_rules=server_rules, attached=attached)
    assert [leg.carrier.value for leg in path.legs] == [out, rest, rest]


@pytest.mark.parametrize(
    ("rules", "server_rules", "attached"), [(True, True, None), (None, True, False), (True, None, False)]
)
def test_what_was_not_read_is_no_word_for_a_leg(rules, server_rules, attached):
    path = expected("sleep", SERVERS, rules=rules, server_rules=server_rules, attached=attached)
    assert words(path) == [Carrier.UNKNOWN] * 3


@pytest.mark.parametrize("field", ["moved", "app"])
def test_a_dataplane_that_was_not_read_carries_nothing_that_is_known(field):
    seen = flushed()
    unread = Unread("bpf:counters", "no permission")
    lost = unread if field == "moved" else replace(seen.interception.app, intercepted=unread)
    assert (
        words(observed(replace(seen, interception=replace(seen.interception, **{field: lost}))))
        == [Carrier.UNKNOWN] * 3
    )


@pytest.mark.parametrize("unicode", [True, False])
def test_the_drawings(unicode):
    seen = flushed()
    paths = [
        observed(seen),
        observed(seen.control),
        expected("sleep", SERVERS, rules=True, server_rules=True, attached=False),
        expected("sleep", SERVERS, rules=False, server_rules=False, attached=False),
    ]
    drawn = []
    for path in paths:
        for width in (60, 80, 120):
            lines = [line.plain.rstrip() for line in picture.lines(path, width, unicode=unicode)]
            assert all(len(line) <= width for line in lines), lines
            assert unicode or all(line.isascii() for line in lines)
            drawn += [f"== {width}", *lines]
    golden_files.check(f"pictures-{'utf8' if unicode else 'ascii'}.txt", "\n".join(drawn) + "\n")


def test_the_colours_are_of_the_sixteen():
    named = {"cyan", "green", "blue", "yellow", "red"}
    for style in picture._STYLES.values():
        assert set(style.split()) - {"bold"} <= named
    assert set(picture._STYLES) == set(request_path.Carrier)
