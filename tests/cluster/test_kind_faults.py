"""Faults while the kind lab is created and used: merlab names the fault, changes nothing by half, and repairs it.

The tests that need no cluster, or half of one, come first; the others share one. Each of them gets a complete cluster,
and each can run alone. Without `soak` they take six to ten minutes; those marked `soak` take hours.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
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
    DRAFTS,
    LONG,
    MOMENTS,
    NODE,
    SAVED,
    Running,
    docker,
    held,
    holds_the_lock,
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
)
from tests.cluster import builds, engine
from tests.merlab_cli import MERLAB, environment, told

from merbridge_lab.labs.kind import names
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.cluster


# -- without a cluster, or with a half of one -------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Mapping[str, object]]:
    """This machine without a lab, as it must be again after all of these tests."""
    assert held(merlab("down"))
    before = leftovers()
    assert before["commands"] == []
    assert before["temporary"] == []
    yield before
    assert held(merlab("down"))
    assert settled(leftovers, before) == before


@pytest.fixture
def nothing(machine: Mapping[str, object]) -> Mapping[str, object]:
    """The machine without a lab, now."""
    assert held(merlab("down"))
    assert settled(leftovers, machine) == machine
    return machine


@pytest.fixture
def foreign(nothing: Mapping[str, object]) -> Iterator[str]:  # noqa: ARG001 - comes first
    """A node of a cluster called merbridge that somebody else began to create; its id."""
    argv = ("kind", "create", "cluster", "--name", names.CLUSTER, "--image", builds.ref("node"), "--retain")
    # kind's own network would stay.
    changes = {"KIND_EXPERIMENTAL_DOCKER_NETWORK": "foreign"}
    making = subprocess.Popen(argv, env=environment(**changes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert poll_until(lambda: MOMENTS["container"](0), timeout=30, awaiting="the node of another's cluster")
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
        assert f"kind delete cluster --name {names.CLUSTER}" in said
    assert told(merlab("status", "--json"))["up"] is False
    for words in (("down",), ("down", "--keep-cluster")):
        assert held(merlab(*words))
    assert docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", NODE) == foreign
    assert merlab("doctor", "--json").returncode == 3


#: kubeadm's output in a node whose kubelet does not get healthy, after four minutes; and a stack, as it prints it.
KUBEADM = r"""#!/bin/sh
[ "$1" = init ] || exec /real/kubeadm "$@"
cat >&2 <<'END'
[kubelet-check] The kubelet is not healthy after 4m0.000462313s
error execution phase wait-control-plane
k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow.(*Runner).Run.func1
	k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow/runner.go:262
main.main
	k8s.io/kubernetes/cmd/kubeadm/kubeadm.go:25
END
exit 1
"""
#: What systemd keeps there of such a kubelet's log: it says why it ends, and ends.
JOURNAL = r"""#!/bin/sh
cat <<'END'
E0101 00:00:00.000000 100 run.go:72] "command failed" err="failed to load kubelet config file, path: /x"
E0101 00:00:01.000000 101 run.go:72] "command failed" err="failed to run Kubelet: running with swap on is not supported"
END
"""
BROKEN = f"""
FROM {{node}}
RUN echo {base64.b64encode(JOURNAL.encode()).decode()} | base64 -d >/usr/local/bin/journalctl \
 && chmod 755 /usr/local/bin/journalctl
RUN at=$(command -v kubeadm) && mkdir /real \
 && if [ -L "$at" ]; then ln -s "$(readlink -f "$at")" /real/kubeadm && rm "$at"; else mv "$at" /real/kubeadm; fi \
 && echo {base64.b64encode(KUBEADM.encode()).decode()} | base64 -d >"$at" && chmod 755 "$at"
"""


@pytest.fixture
def broken_node(nothing: Mapping[str, object]) -> Iterator[str]:  # noqa: ARG001 - comes first
    """A node's image in which kubeadm init fails."""
    ref = "merlab.test/kindest/node:broken"
    dockerfile = BROKEN.format(node=builds.ref("node"))
    argv = ("docker", "build", "--network", "none", "--quiet", "--tag", ref, "-")
    subprocess.run(argv, input=dockerfile, text=True, check=True, capture_output=True, timeout=LONG)
    yield ref
    docker("image", "rm", ref)


def test_c10_a_kind_that_fails_in_kubeadm_shows_the_kubelets_complaint_first_and_keeps_all(
    nothing: Mapping[str, object], broken_node: str
) -> None:
    done = merlab("up", "--json", "--kind-image", broken_node)
    assert "its kubelet refuses swap, which this machine has on → swapoff --all" in refusal(done)
    first, second, *_, kubelets, last = told(done)["error"]["stderr"].splitlines()
    assert first.startswith("ERROR: failed to create cluster: failed to init node with kubeadm")
    assert second == "[kubelet-check] The kubelet is not healthy after 4m0.000462313s"
    assert ".go:" not in told(done)["error"]["stderr"]
    assert kubelets == "kubelet: failed to run Kubelet: running with swap on is not supported"
    log = Path(last.removeprefix("the complete output of kind: less "))
    assert "workflow/runner.go:262" in log.read_text()
    assert "failed to load kubelet config file" in log.read_text(), "the journal is there, whole"
    assert docker("ps", "--all", "--quiet", "--filter", f"label=io.x-k8s.kind.cluster={names.CLUSTER}") == ""
    assert held(merlab("down"))
    assert not log.exists()
    assert settled(leftovers, nothing) == nothing


NOBODYS = "merlab.test/nobody/has:this"


def test_a_node_image_that_nobody_has_is_named_and_nothing_is_left(nothing: Mapping[str, object]) -> None:
    said = refusal(merlab("up", "--json", "--kind-image", NOBODYS))
    assert NOBODYS in said
    assert "docker load" in said
    assert settled(leftovers, nothing) == nothing


def test_down_leaves_nothing_of_a_create_that_was_killed(nothing: Mapping[str, object]) -> None:
    done = stopped("up", at=MOMENTS["container"], by=signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    (problem,) = told(merlab("status", "--json"))["problems"]
    assert "did not finish" in problem
    assert held(merlab("down"))
    assert settled(leftovers, nothing) == nothing


@pytest.mark.soak
def test_up_goes_on_from_a_create_that_was_killed_and_has_the_lab_to_itself(nothing: Mapping[str, object]) -> None:  # noqa: ARG001
    stopped("up", at=MOMENTS["keys"], by=signal.SIGKILL)
    going_on = Running("up", "--json")
    assert going_on.reaches(holds_the_lock)
    assert re.search(rf"PID {going_on.process.pid}\b", refusal(merlab("down", "--json")))
    done = going_on.end()
    assert held(done)
    assert told(done)["verdict"] == "pass"


# -- on one cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> None:
    """A lab in order: it is created, or repaired, if it is not."""
    status = told(merlab("status", "--json"))
    if not status["up"] or status["problems"] or status["flushed"]:
        assert held(merlab("up", "-q"))


def mended() -> bool:
    """Report whether `up` repairs everything, and then finds it in order."""
    return held(merlab("up", "-q", "--until", "2")) and told(merlab("status", "--json"))["problems"] == []


def test_a_flush_that_was_killed_is_mended_by_up(lab: None) -> None:  # noqa: ARG001 - must be up
    before = rules()
    stopped("step", "9", at=is_flushed, by=signal.SIGKILL)
    assert told(merlab("status", "--json"))["flushed"] == ["sleep"]
    assert held(merlab("up", "-q", "--until", "2"))
    assert rules() == before
    assert not is_flushed()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)]
)
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
until ls {DRAFTS} >/dev/null 2>&1; do :; done
pid=$(pgrep -o -f '[#] merlab: nat of sleep') && kill -STOP "$pid" && echo "$pid"
"""


def test_a_pod_deleted_between_save_and_flush_is_noticed_and_the_new_one_is_not_flushed(lab: None) -> None:  # noqa: ARG001
    before, old = rules(), pod_of("app=sleep")["metadata"]
    with contextlib.ExitStack() as stack:
        watching = subprocess.Popen(
            ("docker", "exec", NODE, "timeout", "60", "sh", "-c", _HOLD), stdout=subprocess.PIPE, text=True
        )
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
    # What merlab does in the cluster does not use the user's kubeconfig.
    assert held(merlab("step", "6", KUBECONFIG=str(wrong)))
    assert held(merlab("step", "6", KUBECONFIG=str(tmp_path / "missing" / "config")))


def _certificate(where: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(in_node("cat", where).encode())


def _outdated(certificate: x509.Certificate, signer: x509.Certificate) -> str:
    """Create a certificate like another one that expired yesterday."""
    signing = serialization.load_pem_private_key(in_node("cat", "/etc/kubernetes/pki/ca.key").encode(), None)
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


@pytest.fixture
def outdated() -> Iterator[None]:
    """The administrator's certificate, which merlab uses for the API, has expired."""
    where = "/etc/kubernetes/admin.conf"
    good = in_node("cat", where)
    config = yaml.safe_load(good)
    user = config["users"][0]["user"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    old = _outdated(certificate, _certificate("/etc/kubernetes/pki/ca.crt"))
    user["client-certificate-data"] = base64.b64encode(old.encode()).decode()
    in_node("tee", where, stdin=yaml.safe_dump(config))
    yield
    in_node("tee", where, stdin=good)


def test_certificates_that_have_expired_are_called_so(lab: None, outdated: None) -> None:  # noqa: ARG001
    before = kubectl("get", "pods,nodes,configmaps", "-A", "-o", "name")
    for words in (("up", "--json"), ("step", "6", "--json")):
        said = refusal(merlab(*words))
        assert "expired on" in said
        assert "merlab down --lab kind && merlab up --lab kind" in said
    assert kubectl("get", "pods,nodes,configmaps", "-A", "-o", "name") == before


@pytest.mark.soak
def test_a_cluster_whose_own_certificate_has_expired_is_made_anew_by_what_merlab_says(lab: None) -> None:  # noqa: ARG001
    certificate, ca = (_certificate(f"/etc/kubernetes/pki/{name}.crt") for name in ("apiserver", "ca"))
    in_node("tee", "/etc/kubernetes/pki/apiserver.crt", stdin=_outdated(certificate, ca))
    in_node("pkill", "kube-apiserver")

    def said() -> str:
        done = merlab("step", "6", "--json")
        return refusal(done) if done.returncode == 3 else ""

    assert poll_until(lambda: "certificates" in said(), timeout=90, every=1, awaiting="the API server to be back")
    assert "merlab down --lab kind && merlab up --lab kind" in said()
    assert held(merlab("down"))
    assert held(merlab("up", "-q"))


#: The part of Istio's injection that is removed, and what status says then.
_OFF = {
    "label": (("label", "namespace", topology.NAMESPACE, "istio-injection-"), "istio-injection=enabled"),
    "webhook": (("delete", "mutatingwebhookconfiguration", "-l", "app=sidecar-injector"), "MutatingWebhook"),
}


@pytest.mark.parametrize(
    "off",
    [
        pytest.param(("label", "webhook"), id="both"),
        pytest.param(("label",), id="label", marks=pytest.mark.soak),
        pytest.param(("webhook",), id="webhook", marks=pytest.mark.soak),
    ],
)
def test_without_injection_a_sidecar_is_missed_and_comes_back(lab: None, off: tuple[str, ...]) -> None:  # noqa: ARG001
    for each in off:
        kubectl(*_OFF[each][0])
    kubectl("delete", "pod", "-l", "app=sleep", "--wait")
    kubectl("rollout", "status", "deployment/sleep", "--timeout=60s")
    done = merlab("step", "6", "--json")
    assert done.returncode == 1
    assert "has no sidecar" in told(done)["cause"]
    problems = told(merlab("status", "--json"))["problems"]
    assert all(any(_OFF[each][1] in sentence for sentence in problems) for each in off), problems
    assert mended()


def _free_cpu() -> int:
    """Return how many thousandths of a CPU nobody has requested on the node."""
    requests = kubectl("describe", "node").rpartition("Allocated resources:")[2]
    taken = next(line.split()[1] for line in requests.splitlines() if line.split()[:1] == ["cpu"])
    cores = kubectl("get", "node", "-o", "jsonpath={.items[0].status.allocatable.cpu}")
    thousandths = [int(one[:-1]) if one.endswith("m") else int(one) * 1000 for one in (cores, taken)]
    return thousandths[0] - thousandths[1]


@pytest.fixture
def full() -> Iterator[None]:
    """A pod that has all of the remaining CPU, and that of sleep, which gives its share up."""
    kubectl("scale", "deployment/sleep", "--replicas=0")
    kubectl("wait", "pod", "-l", "app=sleep", "--for=delete", "--timeout=60s")
    requests = {"cpu": f"{_free_cpu()}m"}
    hog = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hog", "namespace": "kube-system"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "hog",
                    "image": builds.ref("curl"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": requests},
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(hog))
    kubectl("wait", "-n", "kube-system", "pod/hog", "--for=condition=Ready", "--timeout=60s")
    yield
    kubectl("delete", "-n", "kube-system", "pod", "hog", "--ignore-not-found", "--wait")


def test_a_rollout_that_finds_no_place_says_why_and_soon(lab: None, full: None) -> None:  # noqa: ARG001
    began = time.monotonic()
    said = refusal(merlab("up", "--json"))
    assert time.monotonic() - began < 30
    assert "Insufficient cpu" in said
    kubectl("delete", "-n", "kube-system", "pod", "hog", "--wait")
    assert mended()


@pytest.mark.soak
def test_an_api_that_stands_still_for_20_seconds_is_waited_for(lab: None) -> None:  # noqa: ARG001
    kubectl("scale", "deployment/sleep", "--replicas=0")
    running = Running("up")
    # Once merlab has requested the pod, it waits for it.
    assert running.reaches(lambda _: kubectl("get", "deployment/sleep", "-o", "jsonpath={.spec.replicas}") == "1")
    in_node("pkill", "-STOP", "kube-apiserver")
    try:
        time.sleep(20)
        assert running.process.poll() is None
    finally:
        in_node("pkill", "-CONT", "kube-apiserver")
    done = running.end()
    assert held(done)
    assert "still waiting: the cluster's API to answer" in done.stderr


_SILENCE = f"until [ -e {SAVED} ]; do :; done; pkill -STOP kube-apiserver"


def test_an_api_that_falls_silent_while_flushed_does_not_keep_the_rules_away(lab: None) -> None:  # noqa: ARG001
    before = rules()
    waiting = subprocess.Popen(("docker", "exec", NODE, "timeout", "60", "sh", "-c", _SILENCE))
    try:
        done = merlab("step", "9", "--json")
        assert waiting.wait(60) == 0
        assert in_node("sh", "-c", f"test -e {SAVED} || echo restored") == "restored\n"
    finally:
        in_node("pkill", "-CONT", "kube-apiserver")
    assert "does not answer" in refusal(done)
    assert rules() == before


# -- images that do not get through -----------------------------------------------------------------------------------


@pytest.mark.soak
def test_an_image_that_nobody_has_is_named_with_how_to_load_it_by_hand(lab: None) -> None:  # noqa: ARG001
    said = refusal(merlab("up", "--json", "--until", "2", "--image", f"sleep={NOBODYS}"))
    assert NOBODYS in said
    assert "kind load docker-image" in said
    assert mended()


_SMALL = 'mount -t tmpfs -o size=1m none "$TMPDIR" && exec "$@"'
#: Where containerd puts what it imports.
_CONTENT = "/var/lib/containerd/io.containerd.content.v1.content"


@pytest.fixture
def no_image() -> str:
    """Sleep's image, forgotten by the node as if it had never been loaded; sleep, which runs it, is removed."""
    kubectl("scale", "deployment/sleep", "--replicas=0")
    kubectl("wait", "pod", "-l", "app=sleep", "--for=delete", "--timeout=60s")
    ref = builds.ref("curl")
    in_node("ctr", "-n", "k8s.io", "images", "rm", "--sync", ref)
    return ref


def test_a_disk_that_is_full_while_an_image_is_loaded_is_named(lab: None, no_image: str, tmp_path: Path) -> None:  # noqa: ARG001
    # Here, where Docker saves it to: a full disk only for this call, in a separate mount namespace.
    prefix = ("unshare", "--mount", "sh", "-c", _SMALL, "sh")
    said = refusal(merlab("up", "--json", prefix=prefix, TMPDIR=str(tmp_path)))
    assert f"no room on the disk with {tmp_path} to save {no_image}" in said

    in_node("mount", "-t", "tmpfs", "-o", "size=1m", "none", _CONTENT)
    try:
        in_node("mkdir", "-p", f"{_CONTENT}/ingest", f"{_CONTENT}/blobs/sha256")
        said = refusal(merlab("up", "--json"))
    finally:
        in_node("umount", _CONTENT)
    assert f"no room on the disk of the node {NODE} for {no_image}" in said
    assert no_image not in in_node("ctr", "-n", "k8s.io", "images", "ls", "-q").split()
    assert mended()


# -- Docker and the node, stopped -------------------------------------------------------------------------------------


def _docker_stops() -> None:
    """Stop the daemon of the test bed, and with it everything that runs in it."""
    pid = engine._pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)


def _docker_starts() -> None:
    """Start it again; leave a running one alone."""
    argv = (sys.executable, "-c", "from tests.cluster import engine; engine.start()")
    subprocess.run(argv, check=True, timeout=LONG)


class Between:
    """A socket in front of the Docker daemon, whoever owns that: it can be removed for merlab alone."""

    def __init__(self, folder: Path, daemon: str) -> None:
        self._daemon, self.path = daemon, folder / "docker.sock"
        self._open: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Listen, and pass every connection on."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Break all connections, and remove the socket."""
        self.path.unlink(missing_ok=True)
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._daemon)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """A socket of ours through which docker and kind reach the daemon."""
    where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    assert where.startswith("unix://"), "the test cluster's daemon is on this machine"
    found = Between(tmp_path, where.removeprefix("unix://"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{found.path}")
    yield found
    found.stop()


def _nobody_answers(running: Running) -> None:
    """Check that a running merlab ends, and that others do not start, each with the problem and what to type."""
    assert "no Docker daemon answers" in refusal(running.end())
    for command in ("status", "up", "down"):
        said = refusal(merlab(command, "--json"))
        assert "no Docker daemon answers" in said
        assert "systemctl start docker" in said


@pytest.mark.soak
def test_docker_that_falls_silent_in_the_middle_is_named_and_all_comes_back(lab: None, between: Between) -> None:  # noqa: ARG001
    running = Running("up", "--json")
    assert running.reaches(runs("docker", "exec"))
    between.stop()
    _nobody_answers(running)
    between.start()
    assert mended()
    # Also the daemon itself, with everything that runs in it, if it belongs to the test bed.
    if not engine.ours():
        return
    os.environ["DOCKER_HOST"] = engine.SOCKET
    running = Running("up", "--json")
    assert running.reaches(runs("docker", "exec"))
    _docker_stops()
    try:
        _nobody_answers(running)
    finally:
        _docker_starts()
    assert docker("inspect", "--format", "{{.State.Status}}", NODE).strip() == "exited"
    assert mended()


@pytest.mark.soak
def test_a_stopped_node_is_started_by_an_up_that_asks_for_nothing(lab: None) -> None:  # noqa: ARG001
    """The lab's settings cannot be read while its node is stopped; nothing else may be demanded for it."""
    docker("stop", "--time", "5", NODE)
    assert any("not running" in one for one in told(merlab("status", "--json"))["problems"])
    bare = [MERLAB, "up", "--lab", "kind", "-q", "--until", "2"]
    assert held(subprocess.run(bare, capture_output=True, text=True, check=False, timeout=LONG, env=environment()))
    assert told(merlab("status", "--json"))["problems"] == []


@pytest.mark.soak
def test_a_node_that_is_restarted_in_the_middle_comes_back(lab: None) -> None:  # noqa: ARG001
    running = Running("up", "--json")
    assert running.reaches(runs("docker", "exec"))
    docker("restart", "--time", "5", NODE)
    done = running.end()
    # Whether it succeeds depends on what was running; if not, it says so.
    if told(done)["verdict"] == "error":
        assert NODE in refusal(done) or "API" in refusal(done)
    else:
        assert held(done) or told(done)["cause"]
    assert mended()


# -- every moment, and any: minutes each ------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("then", ["up", "down"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_every_moment_of_an_up(nothing: Mapping[str, object], signum: int, moment: str, then: str) -> None:
    done = stopped("up", at=MOMENTS[moment], by=signum)
    assert done.returncode == (130 if signum == signal.SIGINT else -signum)
    assert "Traceback" not in done.stderr
    assert held(merlab(then, "-q"))
    if then == "down":
        assert settled(leftovers, nothing) == nothing
    else:
        assert told(merlab("status", "--json"))["problems"] == []


def _seconds_of(*words: str) -> float:
    began = time.monotonic()
    assert held(merlab(*words))
    return time.monotonic() - began


def _killed_after(seconds: float, *words: str) -> None:
    running = Running(*words)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(seconds)
    running.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def length() -> float:
    """How long an `up` from nothing takes here, in seconds."""
    assert held(merlab("down"))
    return _seconds_of("up", "-q")


@pytest.fixture
def length_of_9(lab: None) -> float:  # noqa: ARG001 - must be up
    """How long step 9 takes here now, in seconds."""
    return _seconds_of("step", "9", "-q")


@pytest.mark.soak
@pytest.mark.parametrize("tenth", range(10))
def test_any_instant_of_an_up(length: float, nothing: Mapping[str, object], tenth: int) -> None:
    _killed_after(length * (tenth + 0.5) / 10, "up")
    assert held(merlab("up", "-q"))
    assert told(merlab("status", "--json"))["problems"] == []
    assert held(merlab("down"))
    assert settled(leftovers, nothing) == nothing


@pytest.mark.soak
@pytest.mark.parametrize("tenth", range(10))
def test_any_instant_of_step_9(length_of_9: float, tenth: int) -> None:
    before = rules()
    _killed_after(length_of_9 * (tenth + 0.5) / 10, "step", "9")
    assert held(merlab("restore"))
    assert rules() == before
    assert held(merlab("step", "9", "-q"))
