"""What a running sidecar reports about itself, compared with what merlab gave it; and its certificate."""

from __future__ import annotations

import datetime as dt

import pytest

from merbridge_lab.labs.embedded import certificates, envoy_drift, mtls_probe, topology

POD = topology.PODS[1]


def differing(wanted, running):
    return list(envoy_drift._unlike(envoy_drift._plain(wanted), envoy_drift._plain(running), ""))


@pytest.mark.parametrize(
    ("wanted", "running"),
    [
        ({"a": 5}, {"a": "5"}),  # protobuf's JSON writes 64-bit numbers as strings
        ({"type": "STATIC", "flag": False, "b": {"c": 1}}, {"b": {"c": 1}}),  # and omits default values
        ({"private_key": {"filename": "k"}}, {"private_key": {"filename": "[redacted]"}}),
        ({"list": [{"name": "x", "port": 0}]}, {"list": [{"name": "x"}]}),
    ],
)
def test_the_same_configuration_in_other_words(wanted, running):
    assert differing(wanted, running) == []


@pytest.mark.parametrize(
    ("wanted", "running", "told"),
    [
        ({"a": {"b": True}}, {"a": {}}, "a is not set, not"),
        ({"a": {"b": True, "c": 1}}, {"a": {"c": 1}}, "a.b is not set, not true"),
        ({"a": 1}, {"a": 1, "z": "new"}, 'z is "new", not not set'),
        ({"a": [{"name": "x", "p": 1}]}, {"a": [{"name": "x", "p": 2}]}, 'a[x].p is "2", not "1"'),
        ({"a": [{"name": "x"}]}, {"a": [{"name": "x"}, {"name": "plain"}]}, "a is x, plain, not x"),
        ({"a": ["x"]}, {"a": []}, "a is not set, not"),
    ],
)
def test_what_differs_is_named_by_its_place(wanted, running, told):
    assert differing(wanted, running)[0].startswith(told)


@pytest.fixture
def authority(tmp_path):
    return certificates.Authority.load(tmp_path / "ca.pem")


def seen(tmp_path, signer, trusted, identity=POD.identity):
    certificates.install(tmp_path / "certs", identity, authority=signer, trusted=trusted, owner=0)
    return certificates.look(tmp_path / "certs", tmp_path / "ca.pem")


@pytest.fixture(autouse=True)
def _no_owner(monkeypatch):
    """An ordinary user cannot give files away."""
    monkeypatch.setattr(certificates.os, "chown", lambda *_: None)
    monkeypatch.setattr("merbridge_lab.adapters.files.os.fchown", lambda *_: None)


def test_a_certificate_of_the_labs_authority(tmp_path, authority):
    assert envoy_drift._certificate_problem(POD, seen(tmp_path, authority, authority)) is None
    assert certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem", foreign=True)


def test_a_certificate_that_also_names_others(tmp_path, authority):
    """Its holder may pass for any of them."""
    names = (POD.identity, topology.spiffe("sleep"))
    found = seen(tmp_path, authority, authority)._replace(identities=names)
    assert envoy_drift._certificate_problem(POD, found) == f"names {', '.join(names)}, not {POD.identity}"


def test_a_certificate_of_another_authority(tmp_path, authority):
    found = seen(tmp_path, certificates.Authority.fresh(), authority)
    assert envoy_drift._certificate_problem(POD, found) == "is not issued by the lab's authority"
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")


def test_a_certificate_of_another_pod(tmp_path, authority):
    found = seen(tmp_path, authority, authority, identity=topology.spiffe("somebody"))
    assert "names spiffe://cluster.local/ns/default/sa/somebody, not" in envoy_drift._certificate_problem(POD, found)
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")


def test_a_key_that_others_can_read(tmp_path, authority):
    seen(tmp_path, authority, authority)
    (tmp_path / "certs/key.pem").chmod(0o444)
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")
    assert certificates.key_problem(tmp_path / "certs") == f"can be read by others ({tmp_path / 'certs'})"


def test_a_key_that_is_not_its_certificates(tmp_path, authority):
    seen(tmp_path, authority, authority)
    key = tmp_path / "certs/key.pem"
    other, _ = authority.issue(POD.identity)
    key.chmod(0o600)
    key.write_bytes(other)
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")
    assert certificates.key_problem(tmp_path / "certs") == f"is not its certificate's ({tmp_path / 'certs'})"
    key.write_bytes(b"no key")
    assert "cannot be read" in certificates.key_problem(tmp_path / "certs")


def test_a_key_that_is_not_there(tmp_path, authority):
    seen(tmp_path, authority, authority)
    (tmp_path / "certs").chmod(0o700)
    (tmp_path / "certs/key.pem").unlink()
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")
    assert "could not be looked at" in certificates.key_problem(tmp_path / "certs")


def test_strangers_that_cannot_knock_are_no_proof_that_none_is_served(tmp_path):
    (told,) = mtls_probe.problems(tmp_path / "no-namespace", POD)
    assert told.startswith(f"whether the sidecar of {POD.name} serves clients outside the mesh could not be read")


def test_a_certificate_that_expired(tmp_path, authority, monkeypatch):
    monkeypatch.setattr(certificates, "_LIFE", -dt.timedelta(hours=1))
    found = seen(tmp_path, authority, authority)
    assert envoy_drift._certificate_problem(POD, found).startswith("expired at 20")
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")


def test_no_certificate(tmp_path, authority):
    assert authority
    found = certificates.look(tmp_path / "certs", tmp_path / "ca.pem")
    assert envoy_drift._certificate_problem(POD, found).startswith("cannot be read")
    assert not certificates.are_good(tmp_path / "certs", POD.identity, tmp_path / "ca.pem")
