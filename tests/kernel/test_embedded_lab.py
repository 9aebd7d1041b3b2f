"""The embedded lab's machine, node and pods on this kernel."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from host_state import NAME, READY, Lab, as_app, curl, standing_mesh, state
from kernel_without import lacking, unmounted

from merbridge_lab import accesslog, istio_facts
from merbridge_lab.adapters import cgroup, files, iptables, kernel_features, links, netns, procfs
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy, filesystem, rule_templates, topology
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.mesh import Pod
from merbridge_lab.labs.embedded.rules import PodRules
from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel


def logged(awaited, *pods: Pod) -> accesslog.AccessLogLine | None:
    def look() -> accesslog.AccessLogLine | None:
        lines = [line for pod in pods for line in accesslog.parse_all(pod.access_log.read_text())]
        return next((line for line in lines if awaited(line)), None)

    return poll_until(look, timeout=5, awaiting="the access log")


@pytest.fixture(scope="module")
def whole():
    with standing_mesh() as made:
        yield made


@pytest.fixture
def lab(whole):
    """The mesh, repaired if the previous test damaged it."""
    if whole.problems():
        whole.ensure()
    return whole


def test_a_fresh_mesh_is_in_order(lab):
    assert lab.problems() == []
    assert len(set(map(netns.cookie, [lab.node.netns, *(pod.netns for pod in lab.mesh.pods)]))) == 4
    assert links.addresses(lab.sleep.netns) == ("10.244.0.10",)


def test_both_versions_answer(lab):
    seen: set[str] = set()
    for _ in range(30):
        seen.add(curl(lab.sleep).stdout)
        if len(seen) == 2:
            break
    assert seen == {f"Hello version: {v}, instance: helloworld-{v}\n" for v in ("v1", "v2")}


def test_both_sidecars_log_a_request_under_its_own_id(lab):
    done = curl(lab.sleep, "-i", "-H", "x-request-id: nonce-of-mine")
    assert "server: envoy" in done.stdout
    assert "x-peer: 127.0.0.6" in done.stdout
    server = lab.v1 if "version: v1" in done.stdout else lab.v2
    out = logged(lambda line: line.request_id == "nonce-of-mine", lab.sleep)
    into = logged(lambda line: line.request_id == "nonce-of-mine", server)
    assert out.outbound
    assert out.upstream_cluster == "outbound|5000||helloworld.default.svc.cluster.local"
    assert into.inbound
    assert into.upstream_local.startswith("127.0.0.6:")
    assert into.sni == "outbound_.5000_._.helloworld.default.svc.cluster.local"


def test_a_request_id_that_is_a_uuid_is_left_alone(lab):
    uuid = "11111111-2222-3333-8444-555555555555"
    assert curl(lab.sleep, "-H", f"x-request-id: {uuid}").returncode == 0
    assert logged(lambda line: line.request_id == uuid, lab.sleep)
    assert poll_until(
        lambda: uuid in lab.v1.access_log.read_text() + lab.v2.access_log.read_text(), timeout=5, awaiting="the log"
    )


def test_redirect_counts_connections(lab):
    before = iptables.snapshot(lab.sleep.netns).packets("ISTIO_REDIRECT")
    assert curl(lab.sleep).returncode == 0
    assert iptables.snapshot(lab.sleep.netns).packets("ISTIO_REDIRECT") == before + 1


def test_eighteen_rules_are_istios_and_one_is_ours(lab):
    rules = iptables.snapshot(lab.sleep.netns)
    assert len(rules.istio) == 18
    (ours,) = [rule for rule in rules.rules if not rule.is_istio]
    assert ours.table == "filter"
    assert "--ctstate NEW" in ours.spec
    assert '--comment "merlab: keeps conntrack registered while nat is flushed"' in ours.spec
    assert rules.backend == "nft"


def test_flushed_a_request_is_plain_text_and_refused(lab):
    iptables.flush(lab.sleep.netns, "nft", "nat")
    assert any("iptables rules of sleep" in each for each in lab.problems())
    done = curl(lab.sleep, "-w", "%{local_port}")
    assert done.returncode in (52, 56)
    client = f"10.244.0.10:{done.stdout}"
    assert logged(lambda line: line.downstream_remote == client, lab.v1, lab.v2).rejected_plain_text
    lab.mesh.ensure()
    assert curl(lab.sleep).returncode == 0


def test_rules_flushed_with_a_save_outstanding_are_left_alone(lab):
    rules = PodRules("sleep", lab.sleep.netns, lab.machine.saved, backend="nft", keep=True)
    with rules.flushed():
        pass
    lab.mesh.ensure()
    assert not iptables.snapshot(lab.sleep.netns).nat
    assert lab.mesh.problems() == []
    rules.saved_at.unlink()
    lab.mesh.ensure()
    assert len(iptables.snapshot(lab.sleep.netns).istio) == 18


ECHO = """
import socket, threading
sent = bytes(range(256)) * 8192
with socket.create_connection(("echo", 9000), 10) as s:
    def send():
        s.sendall(sent)
        s.shutdown(socket.SHUT_WR)
    t = threading.Thread(target=send); t.start()
    got = b""
    while chunk := s.recv(65536):
        got += chunk
    t.join()
print(got == sent)
"""


def test_echo_returns_two_megabytes_and_the_end(lab):
    done = as_app(lab.sleep, "/usr/bin/python3", "-I", "-c", ECHO)
    assert done.stdout == "True\n", done.stderr
    assert logged(lambda line: line.upstream_cluster.startswith("outbound|9000||echo."), lab.sleep)


def test_exit_status_user_and_environment_of_a_command_run_as_the_app(lab, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:1")
    assert as_app(lab.sleep, "sh", "-c", "exit 7").returncode == 7
    done = as_app(lab.sleep, "sh", "-c", "id -u; id -G; cat /proc/self/cgroup; env")
    user, groups, *rest = done.stdout.splitlines()
    assert (user, groups) == ("65534", "65534")
    assert f"0::/{NAME}/mesh/sleep/app" in rest
    assert "proxy" not in done.stdout


def test_unknown_names_fail_at_once(lab):
    begun = time.monotonic()
    assert curl(lab.sleep, url="http://nobody.example:5000/").returncode == 6
    assert time.monotonic() - begun < 2


def test_a_pod_sees_nothing_of_the_others(lab):
    table = subprocess.run(
        ["nsenter", f"--mount={lab.sleep.mntns}", "cat", "/proc/self/mounts"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    ours = [line for line in table.splitlines() if str(lab.machine.run) in line]
    assert not [line for line in ours if line.startswith("nsfs") or "/bpf" in line or "/tracing" in line]
    assert as_app(lab.sleep, "ls", str(lab.machine.run / "pods")).stdout == "sleep\n"
    assert as_app(lab.sleep, "cat", f"{lab.sleep.folder}/certs/key.pem").returncode != 0


def test_daemons_have_no_privileges_and_none_of_our_files(lab):
    for pid in (lab.sleep.sidecar_pid, lab.v1.app_pid):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["CapEff"], 16) == 0
        assert status["Uid"].split()[0] in ("1337", "65534")
        assert os.getsid(pid) == pid != os.getsid(0)
        files = [str(Path(f"/proc/{pid}/fd/{n}").readlink()) for n in range(3)]
        assert files[0] == "/dev/null"
        assert all(str(lab.machine.run) in file for file in files[1:])


@pytest.mark.parametrize(
    ("kind", "sent", "said"),
    [
        ("sidecar", signal.SIGKILL, "the sidecar of helloworld-v1 is not running"),
        ("app", signal.SIGKILL, "the app of helloworld-v1 is not running"),
        ("sidecar", signal.SIGSTOP, "the sidecar of helloworld-v1 is stopped"),
        ("app", signal.SIGSTOP, "the app of helloworld-v1 is stopped"),
    ],
)
def test_a_damaged_process_is_named_and_mended(lab, kind, sent, said):
    pid = getattr(lab.v1, f"{kind}_pid")
    os.kill(pid, sent)
    assert poll_until(lambda: any(each.startswith(said) for each in lab.problems()), timeout=5, awaiting="the signal")
    lab.ensure()
    assert lab.problems() == []
    assert getattr(lab.v1, f"{kind}_pid") != pid


def test_a_sidecar_that_does_not_answer_is_a_problem(lab, monkeypatch):
    monkeypatch.setattr(istio_facts, "HEALTH_PORT", 1)
    (found,) = lab.sleep.problems()
    assert found.startswith("the sidecar of sleep does not answer on port 1")


def test_a_sidecar_replaced_by_another_program_is_named_and_mended(lab):
    os.kill(lab.v2.sidecar_pid, signal.SIGKILL)
    assert poll_until(lambda: lab.v2.sidecar_pid is None, timeout=5, awaiting="the sidecar to end")
    join = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec sleep 300', str(lab.v2.cgroup / "sidecar")]
    with subprocess.Popen(join) as other:
        try:
            assert poll_until(
                lambda: any("has been replaced" in each and "sleep 300" in each for each in lab.problems()),
                timeout=5,
                awaiting="the stranger",
            )
        finally:
            other.kill()
    lab.ensure()
    assert lab.problems() == []


def test_an_envoy_in_another_namespace_is_not_the_sidecar(lab):
    strange = procfs.look(lab.sleep.sidecar_pid)
    assert lab.sleep._is_right("sidecar", strange)
    assert not lab.v1._is_right("sidecar", strange)


@pytest.mark.parametrize("where", ["pod", "node"])
def test_a_deleted_link_is_named_and_mended(lab, where):
    if where == "pod":
        links.disconnect(lab.sleep.netns, "eth0")
    else:
        links.disconnect(lab.node.netns, lab.sleep.spec.veth)
    assert any("eth0 of sleep is not there" in each for each in lab.problems())
    lab.ensure()
    assert lab.problems() == []
    assert curl(lab.sleep).returncode == 0


def test_lost_services_and_a_lost_namespace_are_named_and_mended(lab):
    iptables.flush(lab.node.netns, "nft", "nat")
    assert any("services' addresses" in each for each in lab.problems())
    netns.unpin(lab.v2.netns)
    assert any("network namespace of helloworld-v2 is not there" in each for each in lab.problems())
    lab.ensure()
    assert lab.problems() == []


def test_a_twin_stands_outside_the_mesh_and_leaves_nothing(lab):
    before = state(NAME)
    control_client = Pod(lab.machine, lab.node, topology.control_client(lab.sleep.spec))
    try:
        control_client.ensure()
        control_client.wait_ready(READY)
        assert control_client.problems() == []
        assert f"/{NAME}/twins/" in str(control_client.cgroup)
        assert "x-peer: 127.0.0.6" in curl(control_client, "-i").stdout
    finally:
        control_client.remove()
    assert state(NAME) == before
    assert lab.problems() == []
    assert not control_client.folder.exists()
    assert control_client.spec.veth not in links.names(lab.node.netns)


def test_without_a_sidecar_plain_text_is_refused_and_permissive_lets_it_in(lab):
    server = topology.control_client(lab.v1.spec, permissive=True)
    open_ = topology.Service("open", "10.96.0.99", 5000, "http", (topology.ServiceEndpoint(server.ip, server.name),))
    client = topology.control_client(
        lab.sleep.spec, 1, sidecar=False, rules=False, services=(*topology.SERVICES, open_)
    )
    pods = [Pod(lab.machine, lab.node, spec) for spec in (server, client)]
    try:
        for pod in pods:
            pod.ensure()
            pod.wait_ready(READY)
        assert curl(pods[1], url=f"http://{lab.v1.spec.ip}:5000/hello").returncode in (52, 56)
        assert "x-peer: 127.0.0.6" in curl(pods[1], "-i", url=f"http://{server.ip}:5000/hello").stdout
    finally:
        for pod in pods:
            pod.remove()


def test_a_foreign_certificate_is_refused(lab):
    control_client = Pod(lab.machine, lab.node, topology.control_client(lab.sleep.spec, foreign=True))
    try:
        control_client.ensure()
        control_client.wait_ready(READY)
        assert curl(control_client, "-o", "/dev/null", "-w", "%{http_code}").stdout == "503"
    finally:
        control_client.remove()


def test_thousands_of_connections(lab):
    many = """
import asyncio
async def one(gate):
    async with gate:
        r, w = await asyncio.open_connection("127.0.0.1", 5000)
    w.write(b"GET /hello HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    return (await r.readuntil(b"\\n\\r\\n")).startswith(b"HTTP/1.1 200"), w
async def main():
    gate = asyncio.Semaphore(500)
    done = await asyncio.gather(*(one(gate) for _ in range(3000)))
    print(sum(ok for ok, _ in done))
    for _, w in done:
        w.close()
asyncio.run(main())
"""
    done = as_app(lab.v1, "/usr/bin/python3", "-I", "-c", many)
    assert done.stdout == "3000\n", done.stderr


def test_legacy_tables(request):
    lab = Lab("merlab-legacy", "legacy")
    request.addfinalizer(lambda: lab.machine.remove(10))
    lab.ensure()
    assert lab.problems() == []
    rules = iptables.snapshot(lab.sleep.netns)
    assert rules.backend == "legacy"
    assert len(rules.istio) == 18
    assert curl(lab.sleep).stdout.startswith("Hello version")
    assert rules.packets("ISTIO_REDIRECT") + 1 == iptables.snapshot(lab.sleep.netns).packets("ISTIO_REDIRECT")


def test_something_else_at_the_run_directory_is_left_alone(request):
    machine = Machine("merlab-foreign")
    machine.run.mkdir()
    (machine.run / "theirs").touch()
    request.addfinalizer(machine.run.rmdir)
    request.addfinalizer((machine.run / "theirs").unlink)
    with pytest.raises(LabError, match="is not merlab's") as caught:
        machine.ensure()
    assert caught.value.hint
    machine.remove()
    assert (machine.run / "theirs").exists()
    assert not machine.cgroup.exists()


def test_a_cgroup_of_somebody_elses_is_left_alone(request):
    machine = Machine("merlab-foreign")
    (machine.cgroup / "theirs").mkdir(parents=True)
    request.addfinalizer(machine.cgroup.rmdir)
    request.addfinalizer((machine.cgroup / "theirs").rmdir)
    with pytest.raises(LabError, match="holds the cgroup theirs"):
        machine.ensure()
    assert not machine.run.exists()
    assert not machine.exists
    machine.remove()
    assert (machine.cgroup / "theirs").is_dir()


OWN = """
from merbridge_lab.adapters import mounts
from merbridge_lab.labs.embedded.host import Machine
machine = Machine("merlab-own")
try:
    machine.ensure()
    print(mounts.at(machine.run / "cgroup").fstype, machine.cgroup, machine.problems())
finally:
    machine.remove()
print(machine.exists, machine.run.exists(), machine.cgroup.exists())
"""


def test_without_a_system_cgroup2_the_lab_has_its_own():
    """As on a machine with only cgroups of version 1, and a kernel that knows version 2."""
    before = state("merlab-own")
    argv = ["unshare", "--mount", "sh", "-ec", f'{unmounted("cgroup2")}; exec "$@"', "sh", sys.executable, "-c", OWN]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == [
        "cgroup2 /run/merlab-own/cgroup/merlab-own []",
        "False False False",
    ], done.stderr
    assert state("merlab-own") == before


def test_a_sidecar_that_cannot_start_shows_its_last_words(lab, monkeypatch):
    broken = dataclasses.replace(topology.control_client(lab.sleep.spec), ip="10.244.0.199")
    monkeypatch.setattr("merbridge_lab.labs.embedded.envoy.render", lambda *_: "nonsense: true\n")
    control_client = Pod(lab.machine, lab.node, broken)
    try:
        control_client.ensure()
        with pytest.raises(LabError, match="the sidecar of sleep-twin ended") as caught:
            control_client.wait_ready(READY)
        assert "nonsense" in caught.value.stderr
    finally:
        control_client.remove()


def test_the_lines_by_hand_make_a_mesh_in_order(request):
    lab = Lab("merlab-hand")
    request.addfinalizer(lambda: lab.machine.remove(10))

    def run_lines(lines: list[str]) -> None:
        script = "\n".join(["set -e", *lines])
        done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr

    before = state("merlab-hand")
    run_lines(lab.machine.shell_commands() + lab.node.shell_commands())
    for pod in lab.mesh.pods:
        # The files that the lines assume to be written.
        pod.folder.mkdir()
        filesystem.write(pod.spec, pod.folder)
        envoy.furnish(lab.machine, pod.spec, pod.folder)
        files.write_atomic(pod.folder / "app.py", rule_templates.data("app/helloworld.py"))
        files.add_log(pod.folder / "app.log", topology.APP_ID)
    run_lines(lab.mesh.shell_commands())
    lab.mesh.wait_ready(READY)
    assert lab.problems() == []
    assert curl(lab.sleep).stdout.startswith("Hello version")
    lab.machine.remove(10)
    poll_until(lambda: state("merlab-hand") == before, timeout=5, awaiting="the host to be as before")
    assert state("merlab-hand") == before


ENSURE = """
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.errors import UnsupportedFeatureError, LabError
try:
    Machine("merlab-readonly").ensure()
except LabError as error:
    print(error.what, "|", error.hint)
"""


@pytest.mark.parametrize("where", ["/run", "cgroup2"])
def test_a_read_only_file_system_is_named_and_nothing_is_left(where):
    target = str(cgroup.find_root(Path("/nowhere"))) if where == "cgroup2" else where
    readonly = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", readonly, target, sys.executable, "-c", ENSURE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "is read-only" in done.stdout, done.stderr
    assert f"mount -o remount,rw {target}" in done.stdout
    assert not Machine("merlab-readonly").exists
    assert not Machine("merlab-readonly").run.exists()


@pytest.mark.parametrize("kind", ["cgroup2", "bpf"])
def test_a_kernel_without_a_file_system_is_named_and_nothing_is_left(kind):
    before = state("merlab-readonly")
    argv = ["unshare", "--mount", "sh", "-ec", f'{unmounted(kind)}; exec "$@"', "sh", *lacking(kind)]
    done = subprocess.run(
        [*argv, sys.executable, "-c", ENSURE], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.startswith("this kernel cannot do "), done.stderr
    assert {"cgroup2": "cgroup version 2", "bpf": "a BPF file system"}[kind] in done.stdout
    assert "No such device" in done.stdout
    feature = kernel_features.FEATURES[{"cgroup2": "kernel.cgroup2", "bpf": "kernel.bpffs"}[kind]]
    assert f"| use Linux {feature.since} or newer" in done.stdout
    assert state("merlab-readonly") == before
