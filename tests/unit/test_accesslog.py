"""Access logs, on lines that real sidecars wrote."""

from pathlib import Path

import pytest

from merbridge_lab import accesslog

CAPTURED = Path(__file__).parents[1] / "captured"


def lines(name):
    return accesslog.parse_all((CAPTURED / f"{name}.access.log").read_text())


@pytest.mark.parametrize("name", ["sleep", "helloworld-v1", "helloworld-v2"])
def test_every_captured_line_is_read(name):
    text = (CAPTURED / f"{name}.access.log").read_text()
    read = lines(name)
    assert [line.raw for line in read] == text.splitlines()
    assert read


def test_the_clients_line():
    line = lines("sleep")[-1]
    assert line.request_id == "5e42ecd8-1303-464f-bbf8-f031ed963286"
    assert (line.code, line.flags, line.details) == ("200", "-", "via_upstream")
    assert line.upstream_cluster == "outbound|5000||helloworld.default.svc.cluster.local"
    assert line.upstream_host == "10.244.0.11:5000"
    assert line.upstream_local == "10.244.0.10:37144"
    assert line.downstream_local == "10.96.0.10:5000"
    assert line.downstream_remote == "10.244.0.10:53792"
    assert line.sni == "-"
    assert (line.outbound, line.inbound, line.rejected_plain_text) == (True, False, False)


def test_the_servers_line_of_the_same_request():
    line = lines("helloworld-v1")[-1]
    assert line.request_id == "5e42ecd8-1303-464f-bbf8-f031ed963286"
    assert line.upstream_cluster == "inbound|5000||"
    assert line.upstream_local == "127.0.0.6:46748"
    assert line.downstream_remote == "10.244.0.10:37144"
    assert line.sni == "outbound_.5000_._.helloworld.default.svc.cluster.local"
    assert (line.outbound, line.inbound, line.rejected_plain_text) == (False, True, False)


def test_a_connection_closed_for_plain_text():
    refused = [line for line in lines("helloworld-v1") if line.rejected_plain_text]
    assert [line.downstream_remote for line in refused] == [
        "10.244.0.110:49604",
        "10.244.0.110:49618",
        "10.244.0.110:49624",
    ]
    assert {(line.outbound, line.inbound, line.request_id, line.code) for line in refused} == {(False, False, "-", "0")}


def test_an_inbound_line_that_did_not_come_from_127_0_0_6_is_not_taken_for_delivery():
    raw = lines("helloworld-v1")[-1].raw.replace("127.0.0.6:46748", "10.244.0.11:46748")
    assert not accesslog.parse(raw).inbound


@pytest.mark.parametrize(
    ("old", "new"),
    [("NR filter_chain_not_found", "UF filter_chain_not_found"), ("NR filter_chain_not_found", "NR route_not_found")],
)
def test_other_ends_of_a_connection_are_no_refusal_of_plain_text(old, new):
    raw = next(line.raw for line in lines("helloworld-v1") if line.rejected_plain_text)
    assert not accesslog.parse(raw.replace(old, new)).rejected_plain_text


def test_a_line_cut_short_is_left_out():
    whole = lines("sleep")[0].raw
    for length in range(len(whole) - len(" - default")):
        assert accesslog.parse(whole[:length]) is None


@pytest.mark.parametrize("text", ["", "\n", "[warning] envoy says something else", '{"json": "format"}'])
def test_what_is_not_in_the_format_is_left_out(text):
    assert accesslog.parse(text) is None
    assert accesslog.parse_all(f"{text}\n{lines('sleep')[0].raw}\n") == lines("sleep")[:1]


def test_blanks_and_odd_letters_in_quoted_fields():
    raw = lines("sleep")[0].raw.replace("curl/7.88.1", "Mozilla/5.0 (X11; Linux) [de] ünïcode")
    assert accesslog.parse(raw).request_id == lines("sleep")[0].request_id


def test_a_failed_tls_handshake_is_still_a_line():
    """Envoy's own words for the transport failure have blanks and colons."""
    raw = lines("sleep")[0].raw.replace(
        'via_upstream - "-"',
        'upstream_reset_before_response_started{connection_failure} - "TLS_error:|268435703:SSL routines:WRONG"',
    )
    line = accesslog.parse(raw)
    assert line.details == "upstream_reset_before_response_started{connection_failure}"
    assert line.outbound
