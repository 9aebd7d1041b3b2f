"""M10: the output of people's machines, by case (tests/captured/cases) and by another form of each kind."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.unit.stub_provider import StubNode

from merbridge_lab.adapters import docker, docker_messages, istioctl, kind_cli, kind_messages
from merbridge_lab.adapters.docker import Container
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import create_failure, local_state, names
from merbridge_lab.labs.kubernetes import node_exec, pod_netns
from merbridge_lab.labs.kubernetes.dataplanes import node_trace, node_view
from merbridge_lab.requirements import kind_lab, packages
from merbridge_lab.requirements.packages import Distribution

CASES = Path(__file__).parents[1] / "captured" / "cases"


def case(name):
    (path,) = CASES.glob(f"{name}-*")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def says(monkeypatch, tmp_path):
    """Put a command on PATH that prints fixed words and ends with a given status."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def put(name, *, out="", err="", status=0):
        for stream, text in (("out", out), ("err", err)):
            (tools / f"{name}.{stream}").write_text(text, encoding="utf-8")
        program = tools / name
        program.write_text(f'#!/bin/sh\nenv >"$0.env"\ncat "$0.out"; cat "$0.err" >&2; exit {status}\n')
        program.chmod(0o755)
        return tools / f"{name}.env"

    return put


# -- c01: a node whose first process is in a child of its cgroup


def rows(name):
    lines = [line.split() for line in case(name).splitlines() if not line.startswith("#")]
    return {who: (int(pid), path.removeprefix("0::")) for who, pid, path in lines}


ID, OTHER = "1" * 64, "2" * 64


@pytest.mark.parametrize(
    ("first", "mounted", "node", "pod"),
    [
        (
            rows("c01")["node"][1],
            f"/system.slice/docker-{ID}.scope",
            f"/system.slice/docker-{ID}.scope",
            rows("c01")["pod"][1],
        ),
        (rows("c01")["node"][1], "", f"/system.slice/docker-{ID}.scope", rows("c01")["pod"][1]),
        (f"/docker/{ID}/init.scope", "/", f"/docker/{ID}", f"/docker/{ID}/kubelet/kubepods/pod1/x"),
        (f"/docker/{ID}", f"/docker/{ID}", f"/docker/{ID}", f"/docker/{ID}/kubelet/x"),
        (f"/merlab-cluster/{ID}/init", f"/merlab-cluster/{ID}", f"/merlab-cluster/{ID}", f"/merlab-cluster/{ID}/k"),
        (
            f"/docker/{OTHER}/docker/{ID}/init.scope",
            "",
            f"/docker/{OTHER}/docker/{ID}",
            f"/docker/{OTHER}/docker/{ID}/k",
        ),
        (
            "/../docker-1.scope/init.scope",
            "/../docker-1.scope",
            "/../docker-1.scope",
            "/../docker-1.scope/kubelet.slice",
        ),
        ("/init.scope", "/", "/", "/kubelet.slice/x"),
    ],
)
def test_c01_the_pod_of_a_node_is_the_nodes(first, mounted, node, pod):
    found = node_view.cgroup_of_node(first, mounted)
    assert found == node
    assert node_view.is_below(pod, found)
    assert node_view.is_below(first, found)


def test_c01_what_is_beside_the_node_is_not_the_nodes():
    node = f"/system.slice/docker-{ID}.scope"
    for path in (f"/system.slice/docker-{OTHER}.scope/kubelet.slice/x", f"{node}.x", "/system.slice", "/"):
        assert not node_view.is_below(path, node)


def test_c01_a_node_whose_cgroup_is_not_known_is_an_error_and_no_guess(monkeypatch):
    with pytest.raises(ValueError, match="no cgroup2"):
        node_view.cgroup_of_node("")
    with pytest.raises(ValueError, match="has mounted"):
        node_view.cgroup_of_node("/a.slice", "/elsewhere")
    monkeypatch.setattr(node_view, "cgroup_of", lambda _: "")
    with pytest.raises(LabError, match="the cgroup of the node n is not known"):
        _ = node_view.NodeView(StubNode("n"), os.getpid()).cgroup_path


def test_c01_the_root_of_what_the_node_has_mounted_is_read_from_its_mountinfo():
    text = (
        "1 2 0:3 /../a /mnt rw - cgroup2 cgroup2 rw\n"
        f"5 4 0:28 /docker/{ID} /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 none rw\n"
        "6 4 0:30 / /odd\x85name rw - tmpfs none rw\n"
    )
    assert node_view.cgroup2_in(text) == (f"/docker/{ID}", "/sys/fs/cgroup/unified")
    assert node_view.cgroup2_in("6 4 0:30 / /x rw - tmpfs none rw\n") == ("", "")


def test_c01_trace_lines_of_a_nodes_pods_are_kept_and_those_of_others_are_not(monkeypatch):
    known = rows("c01")
    paths = {str(pid): path for pid, path in known.values()} | {"7": "/system.slice/cron.service"}

    def cgroup_of(process):
        if process.name not in paths:
            raise FileNotFoundError(process)
        return paths[process.name]

    monkeypatch.setattr(node_view, "cgroup_of", cgroup_of)
    own = node_view.cgroup_of_node(known["node"][1])
    assert [node_trace.is_elsewhere(pid, own) for pid in (4000, 5000, 7, 99)] == [False, False, True, False]


def test_c01_a_process_outside_of_the_node_has_no_cgroup_id_there(monkeypatch):
    there = node_view.NodeView(StubNode("n"), os.getpid())
    monkeypatch.setattr(node_view.NodeView, "cgroup_path", f"/docker/{ID}")
    monkeypatch.setattr(node_view, "cgroup_of", lambda _: "/docker")
    with pytest.raises(LabError, match="is not below"):
        there.cgroup_id(1)


# -- c07: no daemon


@pytest.mark.parametrize(
    ("said", "where"),
    [
        (case("c07"), "unix:///run/lab/docker.sock"),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", None),
        ('error during connect: Get "http://%2F%2F.%2Fpipe/_ping": open //./pipe: cannot find the file', None),
        ("failed to connect to the docker API at tcp://10.0.0.1:2375: dial tcp 10.0.0.1:2375: i/o timeout", None),
    ],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda: docker.has_image("x"),
        lambda: docker.containers("x"),
        lambda: docker.network_labels("x"),
        lambda: docker.execute("node", ["true"]),
        docker.engine,
    ],
)
def test_c07_no_daemon_is_said_to_be_none_whatever_is_asked(says, said, where, ask, monkeypatch):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    says("docker", err=said, status=1)
    with pytest.raises(LabError, match="no Docker daemon answers at") as error:
        ask()
    assert "systemctl start docker" in error.value.hint
    assert where is None or where in error.value.what


def test_c07_only_what_is_said_to_be_absent_is_absent(says):
    for said in ("Error: No such image: x", "Error response from daemon: No such image: x:latest"):
        says("docker", err=said, status=1)
        assert docker.has_image("x") is False
    for said in ("Error: No such network: x", "Error response from daemon: network x not found"):
        says("docker", err=said, status=1)
        assert docker.network_labels("x") is None
    says("docker", err="Error response from daemon: layer store is corrupt", status=1)
    for ask in (docker.has_image, docker.network_labels):
        with pytest.raises(LabError, match="exit status 1"):
            ask("x")


def test_c07_words_of_a_command_in_a_container_are_not_dockers(says):
    says("docker", err='ctr: failed to dial "/run/containerd/containerd.sock": connection refused', status=1)
    assert docker.execute("node", ["ctr"], ok=(0, 1)).status == 1


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("permission denied while trying to connect to the docker API at unix:///var/run/docker.sock", "may not use"),
        (
            "Error response from daemon: client version 1.41 is too old. Minimum supported API version is 1.44",
            "do not fit",
        ),
        ("Client sent an HTTP request to an HTTPS server.", "TLS"),
        ('unable to resolve docker endpoint: context "lab": context not found', "no context lab"),
    ],
)
def test_a_wrong_daemon_is_named_with_the_next_command(said, what):
    error = docker_messages.explained(LabError("docker failed", stderr=said))
    assert docker_messages.is_silent(said)
    assert what in error.what
    assert error.hint


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Error response from daemon: manifest for x:9 not found: manifest unknown", "no such image or tag"),
        ("Error response from daemon: pull access denied for x", "requires a login"),
        ('Get "https://r.example/v2/": dial tcp: lookup r.example: no such host', "cannot be resolved"),
        ('Get "https://r.example/v2/": net/http: TLS handshake timeout: i/o timeout', "cannot be reached"),
        ("toomanyrequests: You have reached your pull rate limit", "rate limit"),
    ],
)
def test_an_image_that_is_not_pulled_says_why_in_the_first_line(says, said, why):
    says("docker", err=said, status=1)
    with pytest.raises(LabError, match=r"cannot be pulled from r\.example") as error:
        docker.pull("r.example/x:9")
    assert why in error.value.what


# -- c08: Podman


@pytest.mark.parametrize(
    "told",
    [
        json.loads(case("c08")),
        {"host": {"arch": "arm64"}, "version": {"Version": "4.9.3"}, "registries": {}},
        {"ServerVersion": "5.2.1", "OperatingSystem": "fedora", "BuildahVersion": "1.37.2", "NCPU": 4},
    ],
)
def test_c08_a_docker_that_is_podman_is_called_so(says, told):
    says("docker", out=json.dumps(told))
    with pytest.raises(LabError, match=r"docker is Podman [45].* does not support") as error:
        docker.engine()
    assert error.value.hint.startswith("merlab up --lab embedded")


def test_c08_a_podman_that_does_not_answer_is_called_so_too(says):
    says("docker", err="Cannot connect to Podman. Please verify your connection", status=125)
    with pytest.raises(LabError, match="docker is Podman"):
        docker.engine()
    says("docker", out="not JSON")
    with pytest.raises(LabError, match="cannot be parsed"):
        docker.engine()


# -- c10: kind fails in kubeadm


@pytest.fixture
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "merlab"


def frames(text):
    return [line for line in text.splitlines() if ".go:" in line or "cobra" in line or "goroutine" in line]


def test_c10_the_error_and_the_kubelets_complaint_come_first_and_all_is_in_a_file(state):
    error = create_failure.not_made(
        LabError("kind failed", command="kind create", stderr=case("c10")), "kindest/node:v1"
    )
    lines = error.stderr.splitlines()
    assert lines[0].startswith("ERROR: failed to create cluster: failed to init node with kubeadm")
    assert lines[1] == "[kubelet-check] the kubelet is not healthy: connection refused"
    assert "error execution phase wait-control-plane" in lines
    assert frames(error.stderr) == frames("".join(lines)) == []
    assert "kubelet, which is not healthy" in error.what
    assert error.hint == "merlab doctor"
    log = state / "kind-merbridge-create.log"
    assert lines[-1] == f"the complete output of kind: less {log}"
    assert case("c10") in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert len(lines) <= 12, "what the first screen shows"
    local_state.forget()
    assert not state.exists()


LONG = """\
Creating cluster "merbridge" ...
 • Ensuring node image (kindest/node:v1) 🖼  ...
 ✗ Preparing nodes 📦
I0101 00:00:00.000000     100 checks.go:561] validating Kubernetes and kubeadm version
	[WARNING SystemVerification]: missing optional cgroups: hugetlb
error execution phase preflight: [preflight] Some fatal errors occurred:
	[ERROR SystemVerification]: kubelet is configured to not run on a host using cgroup v1
	[ERROR Port-6443]: Port 6443 is in use
goroutine 1 [running]:
k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow.(*Runner).Run.func1({0x1, 0x2})
	k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow/runner.go:262 +0x8f
main.main()
	k8s.io/kubernetes/cmd/kubeadm/kubeadm.go:25 +0x17
created by net/http.(*Server).Serve in goroutine 1
	/usr/local/go/src/net/http/server.go:3285 +0x4b4
ERROR: failed to create cluster: failed to init node with kubeadm: exit status 1
"""


@pytest.mark.parametrize(
    ("said", "why", "hint"),
    [
        (LONG, "refuses cgroup v1", "merlab doctor"),
        (
            "ERROR: failed to create cluster: node(s) already exist for a cluster with the name x",
            "already",
            "merlab down",
        ),
        (
            "ERROR: x\nError response from daemon: all predefined address pools have been fully subnetted",
            "no free subnet",
            "docker network prune",
        ),
        (
            "ERROR: failed to create cluster: could not find a log line that matches Reached",
            "does not start",
            "merlab doctor",
        ),
        ("ERROR: x: too many open files", "inotify limits", "sysctl fs.inotify"),
        (
            (
                "[wait-control-plane] Waiting for the kubelet to boot up the control plane\n"
                "ERROR: failed to create cluster: failed to add default storage class: command "
                '"docker exec merbridge-control-plane kubectl apply -f -" failed with error: exit status 1\n'
                'error: error when creating "STDIN": dial tcp 172.17.0.2:6443: connect: connection refused'
            ),
            "its API server came up, and then did not serve",
            "merlab doctor",
        ),
        (
            'ERROR: failed to create cluster: failed to pull image "kindest/node:v1"',
            "cannot be pulled",
            "docker pull kindest",
        ),
    ],
)
def test_c10_known_causes_are_named_with_the_next_command(state, said, why, hint):  # noqa: ARG001
    error = create_failure.not_made(LabError("kind failed", command="kind create", stderr=said), "kindest/node:v1")
    assert why in error.what
    assert error.hint.startswith(hint)
    assert frames(error.stderr) == []
    assert error.stderr.startswith("ERROR: ")


def test_c10_complaints_of_kubeadms_own_checks_are_kept_and_progress_is_not():
    said = kind_messages.summary(LONG)
    assert "[ERROR Port-6443]: Port 6443 is in use" in said
    assert "Ensuring node image" not in said
    assert "validating Kubernetes" not in said
    assert kind_messages.summary("odd\nwords") == "odd\nwords"


def test_c10_a_complaint_that_stands_behind_kinds_own_words_is_seen():
    said = "ERROR: failed\nCommand Output: [kubelet-check] The kubelet is not healthy after 4m0s\n"
    assert kind_messages.summary(said) == "ERROR: failed\n[kubelet-check] The kubelet is not healthy after 4m0s"
    said = f"WARNING: this machine has cgroup v1, which is deprecated\n{said}"
    assert "kubelet, which is not healthy" in kind_messages.cause(said, "x")[0], "a word on the way is no cause"


def klog(level, words, at="run.go:72"):
    return f"{level}0101 00:00:00.000000     100 {at}] {words}"


JOURNAL = "\n".join(
    [
        klog("E", '"command failed" err="failed to load kubelet config file, path: /var/lib/kubelet/config.yaml"'),
        klog("I", '"Starting kubelet"'),
        klog("E", '"Failed to get system container stats" err="failed to get cgroup stats"', "summary_sys.go:48"),
        klog("E", '"command failed" err="failed to run Kubelet: %s"'),
        "kubelet.service: Main process exited, code=exited, status=1/FAILURE",
        klog("I", '"Starting kubelet"'),
    ]
)
SWAP = "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"


@pytest.mark.parametrize(
    ("told", "why", "hint"),
    [
        (SWAP, "its kubelet refuses swap, which this machine has on", "swapoff --all"),
        ("kubelet is configured to not run on a host using cgroup v1", "refuses cgroup v1", "merlab doctor"),
        (r"no \"such\" thing", 'its kubelet ended: failed to run Kubelet: no "such" thing', "merlab doctor"),
    ],
)
def test_where_kubeadm_waited_in_vain_the_kubelet_itself_says_why(state, told, why, hint):
    journal = JOURNAL.replace("%s", told)
    failed = LabError("kind failed", command="kind create", stderr=case("c10"))
    error = create_failure.not_made(failed, "kindest/node:v1", journal)
    assert why in error.what
    assert error.hint.startswith(hint)
    assert error.stderr.splitlines()[-2] == "kubelet: failed to run Kubelet: " + told.replace('\\"', '"')
    kept_all = (state / "kind-merbridge-create.log").read_text()
    assert case("c10") in kept_all
    assert journal in kept_all


@pytest.mark.parametrize(
    ("said", "journal"),
    [
        ("ERROR: x: no space left on device", JOURNAL),
        (
            "ERROR: x\n[kubelet-check] The kubelet is not healthy",
            JOURNAL.partition("run Kubelet")[0].rpartition("\n")[0],
        ),
        ("ERROR: x\n[kubelet-check] The kubelet is not healthy", "the kubelet's journal could not be read: x"),
    ],
)
def test_what_a_kubelet_did_not_end_of_is_not_called_its_end(state, said, journal):  # noqa: ARG001
    failed = LabError("kind failed", command="kind create", stderr=said)
    assert create_failure.not_made(failed, "x", journal).what == create_failure.not_made(failed, "x").what


def test_the_journal_is_read_of_merlabs_own_node_alone_and_why_it_is_not_is_told(says):
    def read(*mounts, state="running"):
        return create_failure.kubelets_journal([Container(names.NODE, state, "kindest/node:v1", {}, mounts, ())])

    says("docker", out=JOURNAL)
    assert read(names.MARK) == JOURNAL
    assert read() == ""
    assert read(names.MARK, state="exited") == ""
    assert create_failure.kubelets_journal([]) == ""
    says("docker", err='exec: "journalctl": executable file not found in $PATH', status=127)
    assert read(names.MARK).startswith("the kubelet's journal could not be read: ")


def test_c10_words_of_kinds_that_are_none_are_no_file(state):
    error = create_failure.not_made(LabError("kind did not end within 400 s", command="kind create"), "x")
    assert "did not end within 400 s" in error.what
    assert not state.exists()


# -- c14, c15: names of packages


def release(text, root):
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/os-release").write_text(text)
    return Distribution.read(root)


def with_kernel(monkeypatch, name):
    monkeypatch.setattr(packages.os, "uname", lambda: os.uname_result(("Linux", "n", name, "v", "x86_64")))


def machine(name):
    first, _, text = case(name).partition("\n")
    return first.removeprefix("uname -r: "), text


GENERIC = "apt-get install linux-tools-common linux-tools-generic"


@pytest.mark.parametrize(
    ("kernel", "command"),
    [
        (machine("c14")[0], GENERIC),
        ("6.9.3-060903-generic", GENERIC),
        ("6.1.0-18-amd64", GENERIC),
        ("6.8.4-2-pve", GENERIC),
        ("6.18.44", GENERIC),
        ("5.15.0-100-generic", "apt-get install linux-tools-common linux-tools-5.15.0-100-generic"),
        ("6.8.0-1010-aws", "apt-get install linux-tools-common linux-tools-6.8.0-1010-aws"),
        ("6.8.0-31-generic-64k", "apt-get install linux-tools-common linux-tools-6.8.0-31-generic-64k"),
    ],
)
def test_c14_a_kernel_that_is_not_ubuntus_has_no_package_of_its_own(monkeypatch, tmp_path, kernel, command):
    with_kernel(monkeypatch, kernel)
    assert release(machine("c14")[1], tmp_path).install("bpftool") == command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (machine("c15")[1], "linux-tools-5.15.0-100-generic"),
        ('ID=pop\nID_LIKE="ubuntu debian"\nVERSION_ID="22.04"\n', "linux-tools-5.15.0-100-generic"),
        (
            'ID=zorin\nID_LIKE="ubuntu debian"\nVERSION_ID="17"\nUBUNTU_CODENAME=jammy\n',
            "linux-tools-5.15.0-100-generic",
        ),
        ('ID=some\nID_LIKE="ubuntu debian"\nVERSION_ID="23"\nUBUNTU_CODENAME=plucky\n', "install bpftool"),
        ('ID=linuxmint\nID_LIKE=debian\nVERSION_ID="6"\n', "install bpftool"),
    ],
)
def test_c15_what_is_made_from_ubuntu_has_its_packages(monkeypatch, tmp_path, text, command):
    with_kernel(monkeypatch, machine("c15")[0])
    assert release(text, tmp_path).install("bpftool").endswith(command)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ('ID="rhel"\nVERSION_ID="10.0"\nID_LIKE="fedora"\n', False),
        ('ID="almalinux"\nVERSION_ID="10.1"\nID_LIKE="rhel centos fedora"\n', False),
        ('ID="ol"\nVERSION_ID="10.0"\nID_LIKE="fedora"\n', False),
        ("ID=fedora\nVERSION_ID=42\n", True),
        ('ID="amzn"\nVERSION_ID="2023"\nID_LIKE="fedora"\n', True),
    ],
)
def test_rhel_10_has_no_package_iptables_legacy(tmp_path, text, has):
    command = release(text, tmp_path).install("iptables")
    assert command.startswith("dnf install iptables-nft")
    assert ("iptables-legacy" in command) is has


# -- c18: cgroups on a hybrid machine

POD, CID = "00000000-0000-4000-8000-000000000001", "3" * 64
SLICE = f"/kubelet.slice/kubelet-kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CID}.scope"


def looked(cgroups):
    stat = "7 (sleep) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0 0"
    addresses = "1: lo    inet 127.0.0.1/8 scope host lo\\\n2: eth0    inet 10.0.0.5/24 x\n"
    return f"{stat}\n4026534339\nsleep\n{cgroups}\n{addresses}"


@pytest.mark.parametrize(
    ("cgroups", "names"),
    [
        (case("c18").strip(), f"pod{POD}/{CID}"),
        (f"2:cpu,cpuacct:{SLICE}\n0::/system.slice/containerd.service", f"pod{POD}/{CID}"),
        (f"2:cpu:/x/pod{POD}/{'4' * 64}\n0::{SLICE}", f"pod{POD}/{CID}"),
        ("1:name=systemd:/\n0::/system.slice/containerd.service", "/system.slice/containerd.service"),
    ],
)
def test_c18_a_pod_is_known_by_whichever_hierarchy_names_it(cgroups, names):
    process = pod_netns.read_process(node_exec.NodeToolsExec("node"), looked(cgroups))
    assert pod_netns.cgroup_names(process.cgroup) == names
    assert process.addresses == ("10.0.0.5",)


def test_c18_hierarchies_that_disagree_are_no_agreement():
    process = pod_netns.read_process(
        node_exec.NodeToolsExec("n"), looked(f"3:cpu:/pod{POD}/{CID}\n2:pids:/pod{POD}/{'4' * 64}\n0::/")
    )
    assert process.cgroup == f"/pod{POD}/{CID} and /pod{POD}/{'4' * 64}"


def test_c18_a_name_with_line_ends_does_not_shift_what_is_read(tmp_path):
    """The node's own shell reads a real process whose name has one."""
    if shutil.which("nsenter") is None:
        pytest.fail("nsenter is needed")
    rename = "ctypes.CDLL(None).prctl(15, b'a\\n4026531840', 0, 0, 0)"
    code = f"import sys, ctypes; {rename}; print(flush=True); sys.stdin.read()"
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(_python(code))
        stack.callback(child.kill)
        child.stdout.readline()
        script = pod_netns._LOOK.partition("nsenter")[0]
        told = _output(["sh", "-c", script, "sh", str(child.pid)], tmp_path)
    process = pod_netns.read_process(node_exec.NodeToolsExec("n"), told)
    assert (process.pid, process.comm) == (child.pid, "a 4026531840")
    assert process.netns == Path("/proc/self/ns/net").stat().st_ino


def _python(code):
    import subprocess

    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _output(argv, folder):
    import subprocess

    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=folder).stdout


# -- c19: another provider


@pytest.mark.parametrize("told", [case("c19").strip().partition("=")[2], "nerdctl", "docker", ""])
def test_c19_merlabs_kind_uses_docker_whatever_the_environment_says(says, monkeypatch, told):
    monkeypatch.setenv("KIND_EXPERIMENTAL_PROVIDER", told)
    seen = says("kind", out="kind v0.33.0 go1 linux/amd64\n")
    calls = (
        kind_cli.version,
        lambda: kind_cli.create("x", "image", "{}", network="n"),
        lambda: kind_cli.load("x", ["image"]),
        lambda: kind_cli.delete("x", None),
        lambda: kind_cli.export("x", "file"),
    )
    for call in calls:
        seen.unlink(missing_ok=True)
        call()
        assert "KIND_EXPERIMENTAL_PROVIDER=docker" in seen.read_text().splitlines()
    found = kind_lab.provider(os.environ)
    assert found.verdict == ("pass" if told in ("docker", "") else "warn")
    assert found.hint == (None if told in ("docker", "") else "unset KIND_EXPERIMENTAL_PROVIDER")


# -- c20: Docker in a virtual machine


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"OperatingSystem": "OrbStack"},
        {"OperatingSystem": "Alpine Linux v3.20", "Name": "lima-rancher-desktop"},
        {"OperatingSystem": "Ubuntu 24.04", "Name": "colima", "KernelVersion": "6.8.0-31-generic"},
        {"OperatingSystem": "Debian GNU/Linux 12", "KernelVersion": "6.1.0-elsewhere"},
    ],
)
def test_c20_a_docker_with_another_kernel_is_said_before_anything_is_made(change):
    told = docker.read_engine({**json.loads(case("c20")), **change})
    found = {one.name: one for one in kind_lab.of_engine(told, (1, 34))}["docker.kernel"]
    assert found.verdict == "fail"
    assert found.hint
    without = {one.name: one for one in kind_lab.of_engine(told, (1, 34), same_kernel=False)}["docker.kernel"]
    assert without.verdict == "warn", "without a dataplane nobody looks into its kernel"


def test_c20_a_docker_on_this_kernel_is_fine():
    told = docker.read_engine(
        {**json.loads(case("c20")), "OperatingSystem": "Debian", "KernelVersion": os.uname().release}
    )
    assert kind_lab.kernel(told, os.uname().release).verdict == "pass"
    assert kind_lab.kernel(dataclasses.replace(told, kernel=""), "6.1").verdict == "pass"


# -- c22: istioctl

NEW = """\
     |\\
- Processing resources for Istiod. Waiting for Deployment/istio-system/istiod
❌ Istiod encountered an error: failed to wait for resource
  Deployment/istio-system/istiod (container failed to start: ErrImagePull: rpc error: Image "r.example/pilot:1" x)
Error: failed to install manifests: errors occurred during operation
"""


@pytest.mark.parametrize(
    ("said", "image"), [(case("c22"), "registry.example/pilot:1.20.0"), (NEW, "r.example/pilot:1")]
)
def test_c22_the_cause_in_the_crossed_lines_is_kept_and_comes_first(says, said, image):
    says("istioctl", err=said, status=1)
    with pytest.raises(LabError, match="Istiod encountered an error: failed to wait for resource") as error:
        istioctl.install([], kubeconfig="x", look=lambda: None, fetch_command="get {}".format)
    assert image in error.value.stderr
    assert error.value.stderr.endswith("errors occurred during operation")
    assert "Istio core installed" not in error.value.stderr
    assert "Processing" not in error.value.stderr
    assert error.value.hint == f"get {image}"


def test_c22_without_crosses_it_is_the_error_line():
    said = "noise\nError: failed to install manifests: no matches for kind"
    assert istioctl.cause(istioctl.complaint(said)) == "failed to install manifests: no matches for kind"
    assert istioctl.complaint("✘ Istiod\n  Pod/x: crashed\nnoise") == "✘ Istiod\n  Pod/x: crashed"
