"""A request is judged by the address that /etc/hosts has for its name."""

from __future__ import annotations

import pytest

from merbridge_lab.labs import request_batch
from merbridge_lab.labs.embedded import http_client, topology
from merbridge_lab.observation import Exchange

SLEEP = topology.PODS[0]


def asked(url, remote, exit_status=0):
    return Exchange("n", url, exit_status, 200, "", {}, "10.244.0.10:4000", 0.01, remote=remote)


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("http://helloworld:5000/hello", "10.96.0.10:5000"),
        ("http://helloworld.default.svc.cluster.local:5000/hello", "10.96.0.10:5000"),
        ("http://10.244.0.11:5000/hello", "10.244.0.11:5000"),
        ("http://helloworld:5000/hello", "127.0.0.1:15001"),
        ("http://helloworld:5000/hello", ":0"),
    ],
)
def test_p8_what_went_where_it_should_is_left_as_it_is(url, remote):
    exchange = asked(url, remote)
    assert http_client.by_name(exchange, SLEEP) is exchange


@pytest.mark.parametrize("exit_status", [0, 52])
def test_p8_what_went_elsewhere_failed_whatever_was_answered(exit_status):
    found = http_client.by_name(asked("http://helloworld:5000/hello", "10.244.0.11:5000", exit_status), SLEEP)
    assert not found.served
    assert found.exit_status == request_batch.NOT_ONCE
    assert found.error == (
        "it was sent to 10.244.0.11, but helloworld is 10.96.0.10: its name was not resolved by /etc/hosts"
    )


def test_p8_a_headless_twin_is_its_own_address():
    client, server = topology.control_pair()
    url = f"http://{topology.TWIN_SERVICE}:5000/hello"
    assert http_client.by_name(asked(url, f"{server.ip}:5000"), client).served
    assert not http_client.by_name(asked(url, "10.244.0.11:5000"), client).served
