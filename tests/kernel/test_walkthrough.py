"""The ten steps on this kernel, by the real command: what they show, and what they leave unchanged."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from host_state import state
from tests.merlab_cli import MERLAB, told
from walkthrough_host import NAME, Lab, environment, is_plain, merlab, step

from merbridge_lab.adapters import netns

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def fresh():
    """The report of an `up` from nothing, and the host's /etc before it."""
    merlab("down")
    etc = state(NAME)["etc"]
    try:
        done = merlab("up", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        yield told(done), etc
    finally:
        assert merlab("down").returncode == 0


@pytest.fixture
def lab(fresh):  # noqa: ARG001 - the lab is what it is asked for
    return Lab()


@pytest.mark.smoke
def test_ten_steps_hold_from_nothing(fresh):
    report, _ = fresh
    assert {key: report[key] for key in ("schema", "command", "lab", "verdict", "cause", "skipped", "error")} == {
        "schema": 1, "command": "up", "lab": "embedded", "verdict": "pass", "cause": None, "skipped": 0, "error": None,
    }  # fmt: skip
    assert [each["number"] for each in report["steps"]] == list(range(10))
    assert {each["outcome"] for each in report["steps"]} == {"pass"}
    assert all(each["acted"] for each in report["steps"])
    checks = [check for each in report["steps"] for check in each["checks"]]
    assert {check["verdict"] for check in checks} == {"pass"}
    assert all(each["checks"] for each in report["steps"])


@pytest.mark.smoke
def test_every_step_shows_its_commands(fresh):
    report, _ = fresh
    for each in report["steps"]:
        assert each["commands"], each["title"]
    flush = next(line for line in step(report, 9)["commands"] if "-F" in line)
    assert flush == f"nsenter --net=/run/{NAME}/netns/sleep iptables-nft -t nat -F"


@pytest.mark.smoke
def test_the_evidence_is_from_rules_programs_and_sidecars(fresh):
    report, _ = fresh
    for number in (8, 9):
        sources = {
            reading["source"].partition(":")[0]
            for check in step(report, number)["checks"]
            for reading in check["evidence"]
        }
        assert sources >= {"iptables", "envoy", "curl"}
    assert "bpf" in {
        reading["source"].partition(":")[0] for check in step(report, 9)["checks"] for reading in check["evidence"]
    }


def test_a_second_up_changes_nothing_that_lasts(lab):
    before = lab.lasting()
    report = told(done := merlab("up", "--json"))
    assert done.returncode == 0, report["cause"]
    assert [each["acted"] for each in report["steps"][1:5]] == [False] * 4
    assert lab.lasting() == before


@pytest.mark.usefixtures("lab")
def test_up_until_a_step():
    report = told(merlab("up", "--until", "3", "--json"))
    assert (report["verdict"], report["error"]) == ("pass", None)
    assert [each["number"] for each in report["steps"]] == [0, 1, 2, 3]


@pytest.mark.soak
def test_step_9_five_times_in_a_row(lab):
    before = lab.lasting()
    for _ in range(5):
        done = merlab("step", "9", "--json")
        assert (done.returncode, told(done)["cause"]) == (0, None)
    assert lab.lasting() == before
    assert lab.control_pair == []


@pytest.mark.usefixtures("lab")
def test_a_range_of_steps():
    report = told(done := merlab("step", "5..9", "--json"))
    assert done.returncode == 0, report["cause"]
    assert [each["number"] for each in report["steps"]] == [5, 6, 7, 8, 9]


#: Sends requests to helloworld over one connection, until its stdin ends; reports how many, and what went wrong.
KEEP_ALIVE = """
import json, select, socket, sys
answers, errors = 0, []
try:
    with socket.create_connection(("helloworld", 5000), timeout=5) as connection:
        while True:
            connection.sendall(b"GET /hello HTTP/1.1\\r\\nHost: helloworld:5000\\r\\n\\r\\n")
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise OSError(repr(answer[:80]))
            answers += 1
            if answers == 1:
                print("ready", flush=True)
            if select.select([sys.stdin], [], [], 0.02)[0]:
                break
except OSError as error:
    errors.append(repr(error))
print(json.dumps([answers, errors]), flush=True)
"""


def test_verify_proves_it_and_disturbs_nobody(lab):
    before = lab.lasting()
    argv = [MERLAB, "exec", "sleep", "--", "/usr/bin/python3", "-I", "-c", KEEP_ALIVE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as client:
        assert client.stdout.readline() == "ready\n"
        done = merlab("verify", "--json")
        answers, errors = json.loads(client.communicate(timeout=20)[0])
    report = told(done)
    assert (done.returncode, report["cause"], report["verdict"]) == (0, None, "pass")
    assert errors == []
    assert answers > 20
    assert lab.lasting() == before
    assert lab.control_pair == []
    assert [each["number"] for each in report["steps"]] == [8, 9]
    sources = {
        reading["source"] for each in report["steps"] for check in each["checks"] for reading in check["evidence"]
    }
    for kind in ("iptables:sleep", "bpf:sleep", "envoy:sleep", "envoy:helloworld"):
        assert any(source.startswith(kind) for source in sources), kind
    assert len(report["matrix"]) == 6
    assert all(cell["verdict"] == "pass" and cell["why"] for cell in report["matrix"])
    controls = {check["control"]["name"] for each in report["steps"] for check in each["checks"] if check["control"]}
    assert controls == {"rules.move_without_ebpf", "mesh.closed_without_ebpf", "redirect.twin_by_tcp"}


def test_status_of_a_lab_that_is_up(lab):
    status = told(done := merlab("status", "--json"))
    assert done.returncode == 0
    assert (status["schema"], status["lab"], status["up"]) == (1, "embedded", True)
    assert status["flushed"] == []
    assert status["problems"] == []
    assert status["dataplane"]["kind"] == "merlab"
    assert status["dataplane"]["attached"]
    assert [each["name"] for each in status["workloads"]] == ["sleep", "helloworld-v1", "helloworld-v2"]
    for workload in status["workloads"]:
        assert workload["sidecar"]
        assert workload["rules"] == {"backend": "nft", "istio_rules": 18}
        assert Path(f"/proc/{workload['pid']}/ns/net").stat().st_ino == netns.inode(lab.netns(workload["name"]))


@pytest.mark.usefixtures("lab")
def test_steps_and_the_story_of_one():
    listed = told(merlab("steps", "--json"))["steps"]
    assert [each["number"] for each in listed] == list(range(10))
    assert {each["state"] for each in listed[:5]} == {"holds"}
    done = merlab("steps", "9")
    assert done.returncode == 0
    assert f"nsenter --net=/run/{NAME}/netns/sleep iptables-nft -t nat -F" in done.stdout


@pytest.mark.smoke
def test_exec_is_the_app(fresh):
    _, etc = fresh
    assert merlab("exec", "sleep", "--", "sh", "-c", "exit 7").returncode == 7
    seen = merlab(
        "exec", "sleep", "--", "sh", "-c", "id -u; getent hosts helloworld; grep ^0: /proc/self/cgroup"
    ).stdout
    uid, *names, cgroup = seen.splitlines()
    assert int(uid) != 0
    assert {name.split()[0] for name in names} == {"10.96.0.10"}
    assert cgroup.endswith(f"/{NAME}/mesh/sleep/app")
    done = merlab("exec", "sleep", "--", "curl", "-s", "helloworld.default.svc.cluster.local:5000/hello")
    assert done.stdout.startswith("Hello version: v")
    assert state(NAME)["etc"] == etc


def test_keep_leaves_the_rules_flushed_until_they_are_restored(lab):
    before = lab.lasting()
    assert merlab("step", "9", "--keep").returncode == 0
    assert told(merlab("status", "--json"))["flushed"] == ["sleep"]
    assert not any("ISTIO" in line for line in lab.rules()["nft"] if line.startswith("-A"))

    refused = merlab("verify", "--json")
    assert refused.returncode == 1
    assert "the nat rules of sleep are flushed" in told(refused)["cause"]

    again = merlab("step", "9", "--keep", "--json")  # a second time
    assert (again.returncode, told(again)["cause"]) == (0, None)
    copied = (lab.run / "sleep.rules").read_text()
    assert "-A ISTIO_REDIRECT" in copied, "the copy that `restore` by hand reads holds no rules"

    restored = merlab("restore", "--json")
    assert (restored.returncode, told(restored)["restored"]) == (0, ["sleep"])
    assert lab.lasting() == before
    nothing = merlab("restore")
    assert (nothing.returncode, nothing.stdout.strip()) == (0, "nothing is flushed")
    assert told(merlab("status", "--json"))["flushed"] == []


def test_step_8_with_the_rules_left_flushed_says_so(lab):
    assert merlab("step", "9", "--keep").returncode == 0
    try:
        done = merlab("step", "8", "--json")
        assert done.returncode == 1
        assert is_plain(done)
        assert "-A ISTIO_REDIRECT" in (lab.run / "sleep.rules").read_text()
    finally:
        merlab("restore")


def test_an_up_puts_back_what_was_left_flushed(lab):
    before = lab.lasting()
    assert merlab("step", "9", "--keep").returncode == 0
    assert merlab("up", "--until", "2").returncode == 0
    assert lab.lasting() == before


def test_status_and_steps_without_a_lab():
    status = merlab("status", "--json", env=environment("merlab-nolab"))
    assert status.returncode == 0
    assert "merlab-nolab" not in {each["name"] for each in told(status)["labs"]}
    assert told(status) | {"problems": [], "labs": []} == {
        "schema": 1, "lab": "embedded", "up": False, "workloads": [], "replicas": [], "flushed": [], "path": [],
        "problems": [], "labs": [],
        "dataplane": {"kind": "merlab", "attached": False, "programs": 0},
    }  # fmt: skip
    for words in (("verify",), ("step", "9"), ("exec", "sleep", "--", "true")):
        done = merlab(*words, env=environment("merlab-nolab"))
        assert done.returncode == 3
        assert re.search(r"no lab is up that is called merlab-nolab; merlab\S* is up", done.stderr)
        assert re.search(r"→ (unset MERLAB_NAME|export MERLAB_NAME=merlab-\w+)$", done.stderr, re.MULTILINE)
