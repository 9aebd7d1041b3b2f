"""Use the lab by hand: shell, trace, sysdump, a pause between steps; as a person would see it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import tarfile
import time

import pytest
from tests.merlab_cli import MERLAB
from tests.terminal_screen import OnScreen
from walkthrough_host import LONG, NAME, Lab, Running, environment, merlab

from merbridge_lab.adapters import bpf_maps

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab():
    merlab("down")
    assert merlab("up", "-q").returncode == 0
    yield Lab()
    assert merlab("down").returncode == 0


class Terminal:
    """A program on a separate terminal, with input and output."""

    def __init__(self, *argv: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, {**environment(), "TERM": "dumb"})  # noqa: S606
        self.seen = ""

    def expect(self, pattern: str) -> str:
        """Read until `pattern` is on the screen; return everything new."""
        deadline = time.monotonic() + LONG
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._fd, 65536).decode(errors="replace")
                except OSError:  # the other end has closed it
                    assert re.search(pattern, self.seen), self.seen
        new, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return new

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Wait for its end while reading; return the exit status."""
        while True:
            try:
                if not os.read(self._fd, 65536):
                    break
            except OSError:
                break
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return status


def test_a_shell_is_the_app(lab):  # noqa: ARG001 - must be up
    shell = Terminal(MERLAB, "shell", "sleep")
    shell.expect(r"merlab:sleep\$ ")
    shell.type("id -u; curl -s helloworld:5000/hello\n")
    assert re.search(r"65534\s+Hello version: v", shell.expect(r"Hello version: v\d, instance: helloworld-v\d"))
    shell.type("exit 3\n")
    assert shell.end() == 3


def test_leaving_a_root_shell_says_what_was_changed(lab):
    before = lab.rules()
    shell = Terminal(MERLAB, "shell", "sleep", "--netns")
    # U8: that shell is not the app, and what is typed instead works unchanged.
    shell.expect("This shell is not the app: eBPF does not serve what it dials")
    instead = shell.expect(r"from another terminal: (MERLAB_NAME=\S+ \S*merlab exec sleep -- curl -s \S+)\s")
    typed = re.search(r"from another terminal: (.*?)\s*$", instead, re.DOTALL)[1]
    shell.expect(r"merlab:sleep\(netns\)# ")
    answered = subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=True, timeout=60)
    assert answered.stdout.startswith("Hello version: v")
    shell.type("iptables --version; iptables -t nat -F; echo left=$(iptables -t nat -S | grep -c REDIRECT.*to-ports)\n")
    assert "nf_tables" in shell.expect(r"\r\nleft=0\r\n")
    shell.type("exit\n")
    shell.expect("the rules of sleep are not as merlab made them; merlab up puts them back")
    assert shell.end() == 0
    assert merlab("up", "-q", "--until", "2").returncode == 0
    assert lab.rules() == before


def _debug() -> int:
    return int(Lab().pins.config()["debug"])


def _follow(*words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Follow the trace during one request with its own nonce; return the output and the nonce."""
    nonce = f"by-hand-{time.monotonic_ns()}"
    following = Running("trace", *[word.replace("NONCE", nonce) for word in words])
    try:
        assert following.reaches(lambda: _followers() > 0)
        curl = ["curl", "-s", "-H", f"x-request-id: {nonce}", "helloworld:5000/hello"]
        assert merlab("exec", "sleep", "--", *curl).stdout.startswith("Hello version")
        # A line that is searched by nonce arrives once the sidecars have logged the request, with a later event.
        logs = [Lab().run / "pods" / pod / "access.log" for pod in ("sleep", "helloworld-v1", "helloworld-v2")]
        assert following.reaches(lambda: sum(nonce in log.read_text() for log in logs) == 2)
        merlab("exec", "helloworld-v1", "--", *curl[:2], "helloworld:5000/hello")
    finally:
        done = following.end(signal.SIGINT)
    assert _followers() == 0
    return done, nonce


def _followers() -> int:
    """Return how many read the trace."""
    with Lab().pins.open_map("readers") as readers:
        return (bpf_maps.lookup(readers, bytes(4), 8) or b"")[0].bit_count()


def test_a_trace_is_followed_until_ctrl_c(lab):  # noqa: ARG001
    done, _ = _follow()
    assert done.returncode == 0
    assert "① sleep's app (curl) dials helloworld:5000; eBPF leads it to its sidecar" in done.stdout
    assert re.search(r"① sleep's app → sleep's sidecar: \d+ bytes by eBPF", done.stdout)
    assert "① sleep's sidecar asks where it was going: helloworld:5000" in done.stdout
    assert re.search(r"① app → sidecar +\d+ connections? +\d+ messages by eBPF", done.stdout)


def test_a_raw_trace_is_a_line_an_event(lab):  # noqa: ARG001
    done, _ = _follow("--raw")
    assert re.search(r"^ +curl-\d+ +\d+\.\d{6}: connect pair=[0-9a-f]+ leg=outbound$", done.stdout, re.MULTILINE)


def test_a_trace_in_json_is_an_object_a_line(lab):  # noqa: ARG001
    done, _ = _follow("--json", "--pod", "sleep")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"connect", "established", "redirect"} <= {event["kind"] for event in events}
    sources = {event["ip"] for event in events if event["kind"] == "established"}
    assert sources == {"10.244.0.10"}


def test_a_trace_of_one_request_has_its_connections_only(lab):  # noqa: ARG001
    done, _ = _follow("--json", "--nonce", "NONCE")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"outbound", "mesh"} <= {event["leg"] for event in events if event["kind"] == "connect"}
    assert len({event["pair"] for event in events if event["leg"] == "outbound"}) == 1


def test_a_trace_has_no_lines_of_another_lab_of_this_machine(lab):  # noqa: ARG001
    """Both labs have the same addresses."""
    other = environment("merlab-walktwo")
    try:
        assert merlab("up", "--until", "4", "-q", env=other).returncode == 0
        assert merlab("step", "4", "-q").returncode == 0
        following = Running("trace")
        try:
            assert following.reaches(lambda: _followers() > 0)
            for env in (other, environment(), other):
                asked = merlab("exec", "sleep", "--", "curl", "-s", "helloworld:5000/hello", env=env)
                assert asked.stdout.startswith("Hello version")
        finally:
            told = following.end(signal.SIGINT).stdout
        assert told.count("dials helloworld:5000") == 1
        assert re.search(r"① app → sidecar +1 connection ", told)
    finally:
        assert merlab("down", "-q", env=other).returncode == 0


def test_a_trace_leaves_the_debug_flag_as_it_was(lab):
    merlab("step", "4", "-q")
    _follow()
    assert lab.pins.config()["debug"] == 1


def test_a_sysdump_has_what_is_needed_and_no_keys(lab, tmp_path):  # noqa: ARG001
    merlab("verify", "-q")
    target = tmp_path / "dump.tar.gz"
    done = merlab("sysdump", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        texts = {member.name: archive.extractfile(member).read().decode() for member in archive.getmembers()}
    assert {"versions.txt", "doctor.json", "status.json", "last-report.json", "programs.json"} <= names
    assert {f"{pod}/rules.txt" for pod in ("sleep", "helloworld-v1", "helloworld-v2")} <= names
    assert {f"sleep/{log}" for log in ("access.log", "envoy.log")} <= names
    assert all("PRIVATE KEY" not in text for text in texts.values())
    assert json.loads(done.stdout)["holds"] == sorted(names)
    report = json.loads(next(text for name, text in texts.items() if name.endswith("last-report.json")))
    assert report["command"] == "verify"


def test_a_sysdump_without_a_lab_still_says_what_machine_it_is(tmp_path):
    target = tmp_path / "dump.tar.gz"
    done = merlab("sysdump", "-o", str(target), env=environment("merlab-nowhere"))
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        assert any(name.endswith("/doctor.json") for name in archive.getnames())


def test_up_with_pause_is_a_demo_that_waits_for_keys(lab):  # noqa: ARG001
    screen = OnScreen([MERLAB, "up", "--pause", "--until", "2"], MERLAB_NAME=NAME)
    try:
        screen.until("Enter: run")
        screen.press("\t")
        screen.until("$ bpftool prog ⏎")
        screen.press("\x03")
        assert screen.end() == 130
    finally:
        screen.close()


def test_a_pause_needs_a_terminal():
    done = merlab("up", "--pause")
    assert done.returncode == 2
    assert "terminal" in done.stderr


def test_status_draws_the_path_of_a_request(lab):
    assert re.search(r"\S eBPF  \S eBPF  \S eBPF", merlab("status").stdout)
    lab.link("connect4").unlink()
    try:
        assert "link connect4 of sleep is not pinned" in merlab("status").stdout
    finally:
        assert merlab("up", "-q", "--until", "3").returncode == 0


def test_down_ends_a_trace_that_is_followed():
    merlab("up", "-q", "--until", "3")
    following = Running("trace")
    assert following.reaches(lambda: _followers() > 0)
    try:
        assert merlab("down").returncode == 0
        assert following.process.wait(LONG) == 0
        following.end()
    finally:
        assert merlab("up", "-q", "--until", "3").returncode == 0
