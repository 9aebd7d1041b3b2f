"""What is compared of pods, and how a request is sent: the parts that need no lab."""

from __future__ import annotations

import datetime as dt
import json
import os
import pwd
import socket
import subprocess
import threading

import pytest

from merbridge_lab.adapters import cgroup, procfs
from merbridge_lab.adapters.network_dump import Link, Network
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.embedded import certificates, identity, network_drift, topology
from merbridge_lab.requirements import host

SLEEP = topology.PODS[0]


def network(lines, address="02:00:0a:00:00:01"):
    kinds: dict[str, set[str]] = {}
    for kind, line in lines:
        kinds.setdefault(kind, set()).add(line)
    eth0 = Link("eth0", 2, "veth", up=True, address=address, peer=3)
    return Network({"eth0": eth0}, {kind: frozenset(found) for kind, found in kinds.items()}, {})


WANTED = network_drift.bare() | network_drift.pods_end(SLEEP)


def compared(*more, without=()):
    found = network([*(WANTED - {*without}), *more])
    return network_drift.compare(found, WANTED, neighbours={"eth0": "10.244.0.1 at 02:00:00:00:00:07"})


def test_p4_what_merlab_made_and_what_the_kernel_adds_is_in_order():
    ours = "fe80::aff:fe00:1"
    more = [
        ("address", f"{ours}/64 dev eth0"),
        ("route", f"local {ours}/128 dev eth0 table local priority 0"),
        ("link", "tunl0 (ipip) down noarp"),
        ("neighbour", "10.244.0.1 at 02:00:00:00:00:07 dev eth0"),
    ]
    assert compared() == ((), ())
    assert compared(*more) == ((), ())


@pytest.mark.parametrize(
    "line",
    [
        ("address", "fe80::1/64 dev eth0"),
        ("link", "tunl0 (ipip) up mtu 1480 noarp"),
        ("link", "tunl0 (veth) down"),
        ("neighbour", "10.244.0.1 at 02:00:00:00:00:08 dev eth0"),
        ("neighbour", "10.244.0.11 at 02:00:00:00:00:07 dev eth0"),
        ("route", "unicast default dev eth0 table main scope global gateway 10.244.0.9"),
    ],
)
def test_p4_what_is_nearly_that_is_a_stranger(line):
    assert compared(line).extra == (line,)


def test_p4_what_is_missing_is_told():
    line = ("route", "unicast 10.244.0.1/32 dev eth0 table main scope link")
    assert compared(without=[line]).missing == (line,)


def test_p4_what_is_altered_is_told_as_one_thing():
    link = ("link", "eth0 (veth) up mtu 1500")
    found = compared(("link", "eth0 (veth) up mtu 1500 promiscuous"), without=[link])
    left, told = network_drift.altered(found)
    assert left == ((), ())
    assert told == ["the link eth0 (veth) up mtu 1500 is promiscuous"]


def test_p2_this_very_process_is_none_of_the_labs():
    own = procfs.look(os.getpid())
    argv = list(own.argv)
    expected = identity.Expected(argv, identity.Path("/proc/self/exe"), os.getuid() + 1, own.netns, own.mntns)
    assert identity.mismatch(own, expected) == f"it runs as user {os.getuid()}, not {os.getuid() + 1}"
    assert (
        identity.mismatch(own, identity.Expected(argv[:-1], expected.program, 0, 1, 1)) == "it has another command line"
    )


def test_p8_limits_of_a_cgroup_are_told_and_taken_off(tmp_path):
    for name, value in {
        "pids.max": "20\n",
        "memory.max": "max\n",
        "cpu.max": "1000 100000\n",
        "cpuset.cpus": "\n",
    }.items():
        (tmp_path / name).write_text(value)
    assert cgroup.limits(tmp_path) == ["cpu.max is 1000 100000", "pids.max is 20"]
    cgroup.release(tmp_path)
    assert cgroup.limits(tmp_path) == []


# -- P5: a request is sent once --------------------------------------------------------------------------------------


@pytest.fixture
def closes_first():
    """Serve on a port, and close the first connection without an answer; return the port and what was accepted."""
    server = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                accepted.append(connection)
                if len(accepted) > 1:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1], accepted
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


@pytest.mark.parametrize("rc", ["retry = 3\nretry-all-errors\nretry-delay = 0\n", "proxy = http://127.0.0.1:1\n"])
def test_p5_no_curlrc_and_no_proxy_has_a_say(tmp_path, closes_first, rc):
    port, accepted = closes_first
    (tmp_path / ".curlrc").write_text(rc)
    env = {**os.environ, "HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    url = f"http://127.0.0.1:{port}/"
    done = subprocess.run(request_batch.curl("n", url), env=env, capture_output=True, text=True, check=False)
    exchange = request_batch.read("n", url, done.returncode, done.stdout, done.stderr)
    assert len(accepted) == 1
    assert exchange.closed
    assert not exchange.served


@pytest.mark.parametrize(
    ("facts", "told"), [('"num_connects": 2', "num_connects is 2"), ('"num_redirects": 1', "num_redirects is 1")]
)
def test_p5_an_answer_to_more_than_one_connection_is_none(facts, told):
    """As curl 7.88 reports them."""
    answer = "HTTP/1.1 200 OK\n\nhi\n"
    facts = {**json.loads(ONCE), **json.loads(f"{{{facts}}}")}
    exchange = request_batch.read("n", "http://x/", 0, answer + json.dumps(facts), "")
    assert not exchange.served
    assert told in str(exchange)
    assert request_batch.read("n", "http://x/", 0, answer + ONCE, "").served


ONCE = '{"http_code": 200, "num_connects": 1, "num_redirects": 0, "curl_version": "libcurl/7.88.1 OpenSSL/3.0.19"}'


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("libcurl/7.88.1 OpenSSL/3.0.19", ["num_connects"]),
        ("libcurl/7.88.1 OpenSSL/3.0.19", ["num_redirects"]),
        ("libcurl/8.7.1", ["proxy_used"]),
        ("libcurl/8.9.0-DEV", ["num_retries"]),
        ("libcurl/10.1.0", ["num_connects", "proxy_used"]),
        (None, ["num_retries"]),
        ("another", ["num_connects", "num_retries"]),
    ],
)
def test_p5_a_curl_that_does_not_tell_how_it_asked_is_not_believed(version, lacking):
    """What was not read is not a pass: each version of curl must report what it can."""
    facts = {"http_code": 200, "num_connects": 1, "num_redirects": 0, "proxy_used": 0, "num_retries": 0}
    facts |= {} if version is None else {"curl_version": version}
    answer = "HTTP/1.1 200 OK\n\nhi\n"
    assert request_batch.read("n", "http://x/", 0, answer + json.dumps(facts), "").served
    for wrong in ({}, dict.fromkeys(lacking), dict.fromkeys(lacking, "1")):
        kept = {name: value for name, value in facts.items() if name not in lacking}
        exchange = request_batch.read("n", "http://x/", 0, answer + json.dumps({**kept, **wrong}), "")
        assert not exchange.served
        assert f"its output has no {', '.join(lacking)}" in str(exchange)


def test_p5_a_real_curl_that_asks_once_is_believed(tmp_path):
    """This holds for the version on this machine."""
    served = socket.create_server(("127.0.0.1", 0))

    def answer():
        with served, served.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    thread = threading.Thread(target=answer)
    url = f"http://127.0.0.1:{served.getsockname()[1]}/"
    thread.start()
    done = subprocess.run(request_batch.curl("n", url), cwd=tmp_path, capture_output=True, text=True, check=False)
    thread.join(5)
    exchange = request_batch.read("n", url, done.returncode, done.stdout, done.stderr)
    assert exchange.served, str(exchange)


# -- P8: certificates and clocks -------------------------------------------------------------------------------------


def test_p8_an_authority_of_another_time_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("merbridge_lab.adapters.files.os.fchown", lambda *_: None)
    path = tmp_path / "ca.pem"
    with monkeypatch.context() as then:
        then.setattr(certificates, "_SLACK", dt.timedelta(days=-2))
        early = certificates.Authority.load(path)
    assert certificates.authority_problem(path).startswith("is valid from")
    fresh = certificates.Authority.load(path)
    assert fresh.certificate != early.certificate
    assert certificates.authority_problem(path) is None
    path.write_text("nonsense")
    assert certificates.authority_problem(path).startswith("cannot be read")


# -- S8: the sidecars' user ------------------------------------------------------------------------------------------


def test_s8_a_real_user_with_the_sidecars_number_is_warned_of():
    real = pwd.getpwall()[0]
    found = host.sidecars_user(real.pw_uid)
    assert found.verdict == "warn"
    assert real.pw_name in found.found
    assert real.pw_name in found.hint
    free = next(number for number in range(40000, 65000) if number not in {each.pw_uid for each in pwd.getpwall()})
    assert host.sidecars_user(free).verdict == "pass"
