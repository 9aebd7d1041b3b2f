"""What may go wrong while the kind lab is made and used: merlab says what it is, changes nothing by half, and mends it.

The tests that need no cluster, or a half of one, come first; the others share one. Each of them gets it whole, and
each can run alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from kind_host import (
    LONG,
    MOMENTS,
    NODE,
    SAVED,
    Running,
    docker,
    environment,
    held,
    in_node,
    is_flushed,
    kubectl,
    leftovers,
    merlab,
    pod_of,
    refusal,
    rules,
    runs,
    settled,
    stopped,
    told,
)
from tests.cluster import builds, engine

from merbridge_lab.drivers.kind import layout
from merbridge_lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.cluster


# -- without a cluster, or with a half of one -------------------------------------------------------------------------


@pytest.fixture
def nothing() -> Iterator[Mapping[str, object]]:
    """This machine without a lab, which it must be again."""
    assert held(merlab("down"))
    before = leftovers()
    assert before["commands"] == []
    assert before["temporary"] == []
    yield before
    assert held(merlab("down"))
    assert settled(leftovers, before) == before


@pytest.fixture
def foreign(nothing: Mapping[str, object]) -> Iterator[str]:  # noqa: ARG001 - comes first, goes last
    """A node of a cluster called merbridge that somebody else began to make; its id."""
    argv = ("kind", "create", "cluster", "--name", layout.CLUSTER, "--image", builds.ref("node"), "--retain")
    # kind's own network would stay.
    changes = {"KIND_EXPERIMENTAL_DOCKER_NETWORK": "foreign"}
    making = subprocess.Popen(argv, env=environment(**changes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: MOMENTS["container"](0), timeout=30, awaiting="the node of another's cluster")
    finally:
        making.kill()
        making.wait()
    yield docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", NODE)
    docker("rm", "--force", "--volumes", NODE)
    docker("network", "rm", "foreign")


def test_a_foreign_cluster_of_that_name_stays_untouched(foreign: str) -> None:
    for words in (("up", "--json"), ("step", "6", "--json")):
        said = refusal(merlab(*words))
        assert "merlab did not make it" in said
        assert f"kind delete cluster --name {layout.CLUSTER}" in said
    assert told(merlab("status", "--json"))["up"] is False
    assert held(merlab("down"))
    assert docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", NODE) == foreign
    assert merlab("doctor", "--json").returncode == 3


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_down_leaves_nothing_of_a_create_that_was_cut_short(nothing: Mapping[str, object], signum: int) -> None:
    done = stopped("up", at=MOMENTS["container"], by=signum)
    assert done.returncode == (130 if signum == signal.SIGINT else -signum)
    assert docker("ps", "--quiet")
    assert held(merlab("down"))
    assert settled(leftovers, nothing) == nothing


def test_up_goes_on_from_a_create_that_was_killed_and_has_the_lab_to_itself(nothing: Mapping[str, object]) -> None:  # noqa: ARG001
    stopped("up", at=MOMENTS["keys"], by=signal.SIGKILL)
    # Nobody else may work on it meanwhile.
    going_on = Running("up", "--json")
    assert going_on.reaches(runs("docker"))
    assert f"another merlab is at work: PID {going_on.process.pid}" in refusal(merlab("down", "--json"))
    done = going_on.end()
    assert held(done)
    assert told(done)["verdict"] == "pass"


# -- on one cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> None:
    """A lab as it should be: it is made, or mended, where it is not."""
    status = told(merlab("status", "--json"))
    if not status["up"] or status["problems"] or status["flushed"]:
        assert held(merlab("up", "-q"))


def mended() -> bool:
    """Whether `up` brings all back to what it should be, and finds it so."""
    return held(merlab("up", "-q")) and told(merlab("status", "--json"))["problems"] == []


def test_a_flush_that_was_killed_is_mended_by_up(lab: None) -> None:  # noqa: ARG001 - must be up
    before = rules()
    stopped("step", "9", at=is_flushed, by=signal.SIGKILL)
    assert told(merlab("status", "--json"))["flushed"] == ["sleep"]
    assert held(merlab("up", "-q", "--until", "2"))
    assert rules() == before
    assert not is_flushed()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_flushed_loses_no_rule(lab: None, signum: int, status: int) -> None:  # noqa: ARG001
    before = rules()
    done = stopped("step", "9", at=is_flushed, by=signum)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "interrupted by" in done.stderr
    assert rules() == before
    assert told(merlab("status", "--json"))["flushed"] == []


# The shell that saves and flushes has the first line of the file among its arguments; this one has not.
_HOLD = f"""
until [ -e {SAVED}.new ]; do :; done
pid=$(pgrep -o -f '[#] merlab: nat of sleep') && kill -STOP "$pid" && echo "$pid"
"""


def test_a_pod_deleted_between_save_and_flush_is_noticed_and_the_new_one_is_not_flushed(lab: None) -> None:  # noqa: ARG001
    before, old = rules(), pod_of("app=sleep")["metadata"]
    with contextlib.ExitStack() as stack:
        watching = subprocess.Popen(("docker", "exec", NODE, "timeout", "60", "sh", "-c", _HOLD), stdout=subprocess.PIPE, text=True)
        stack.callback(watching.communicate)
        running = Running("step", "9", "--json")
        held_up, _ = watching.communicate(timeout=60)
        assert held_up.strip().isdigit()
        stack.callback(in_node, "kill", "-CONT", held_up.strip(), check=False)
        kubectl("delete", "pod", old["name"], "--wait")
        kubectl("rollout", "status", "deployment/sleep", "--timeout=60s")
    said = refusal(running.end())
    assert "restarted" in said
    assert "type this again" in said
    assert pod_of("app=sleep")["metadata"]["uid"] != old["uid"]
    assert rules() == before
    assert told(merlab("status", "--json"))["flushed"] == []
    assert held(merlab("step", "9", "-q"))


def test_a_kubeconfig_that_is_no_kubeconfig_is_named(lab: None, tmp_path: Path) -> None:  # noqa: ARG001
    wrong = tmp_path / "config"
    wrong.write_text("this: [is no kubeconfig")
    said = refusal(merlab("up", "--until", "1", "--kubeconfig", str(wrong), "--json"))
    assert str(wrong) in said
    assert wrong.read_text() == "this: [is no kubeconfig"
    # What merlab does in the cluster does not go by the user's.
    assert held(merlab("step", "6", KUBECONFIG=str(wrong)))
    assert held(merlab("step", "6", KUBECONFIG=str(tmp_path / "missing" / "config")))


def _outdated(certificate: x509.Certificate, key: str, ca: str) -> str:
    """Make a certificate that is as another, and ended yesterday."""
    signer = x509.load_pem_x509_certificate(ca.encode())
    signing = serialization.load_pem_private_key(key.encode(), None)
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(signer.subject)
        .public_key(certificate.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(yesterday - timedelta(days=365))
        .not_valid_after(yesterday)
    )
    for extension in certificate.extensions:
        made = made.add_extension(extension.value, extension.critical)
    return made.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
