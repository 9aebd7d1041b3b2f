"""Run in a guest of a distribution of its own, by its Python: from `make up` without a network to an equal machine.

`python3 inside.py PHASE…` does phases, in the order of PHASES, and prints a JSON object a line and phase: what held,
and what was said. The checkout is set up already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HOME = Path(__file__).parents[2]
MERLAB = HOME / ".venv/bin/merlab"
PYTHON = HOME / ".venv/bin/python"
SAVED, SLEEP = Path("/run/merlab/saved/sleep.rules"), Path("/run/merlab/netns/sleep")
LONG = 1500
#: Prints the state of the machine as the kernel tests compare it. The first look makes iptables-legacy's lock file.
STATE = """
import json, sys
sys.path.insert(0, "tests/kernel")
from host_state import state
state("merlab")
print(json.dumps(state("merlab"), sort_keys=True, default=sorted))
"""


class NotHeldError(Exception):
    """What did not hold, with what was said."""


def call(*argv: object, status: int = 0, timeout: float = LONG) -> str:
    """Run a command in the checkout; return its stdout. Raise NotHeldError for any other exit status."""
    words = [str(each) for each in argv]
    done = subprocess.run(
        words, cwd=HOME, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != status:
        raise NotHeldError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def must(holds: bool, said: object) -> None:
    if not holds:
        raise NotHeldError(str(said))


def machine() -> dict[str, object]:
    """Return what the machine is; it must have cgroup v2 alone, and systemd as process 1."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    groups = sorted(kind for _, kind in mounts if kind.startswith("cgroup"))
    must(groups == ["cgroup2"], groups)
    must(Path("/proc/1/comm").read_text() == "systemd\n", "process 1 is no systemd")
    must(subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout == "", "it has a network")
    told = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)

    def first(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    return {
        "distribution": told["PRETTY_NAME"].strip('"'),
        "kernel": os.uname().release,
        "systemd": first("systemctl", "--version").split()[1],
        "python": sys.version.split()[0],
        "bcc": first(
            "python3", "-W", "ignore", "-c", "import bcc; print(bcc.__version__)"
        ),
        "iptables": first("iptables", "--version").split()[1],
        "nftables": first("nft", "--version").split()[1],
    }  # fmt: skip


def state() -> dict[str, object]:
    """Return the machine's state, without the workers that udev starts and ends as it likes.

    Nor does it have the list of what may be put on a TCP socket: it grows when the kernel loads a module (tls, on
    Ubuntu in step 2), and `down` unloads none.
    """
    told = dict(json.loads(call(PYTHON, "-c", STATE)))
    told["sysctls"] = {name: text for name, text in told["sysctls"].items() if not name.endswith("/tcp_available_ulp")}
    return told | {"processes": [each for each in told["processes"] if each != "(udev-worker)"]}


def doctor() -> None:
    told = json.loads(call(MERLAB, "doctor", "--json"))
    must(told["able"], told)


def up() -> None:
    said = call("make", "up")
    must("10 of 10 steps held" in said, said)


def verify() -> None:
    told = json.loads(call(MERLAB, "verify", "--json"))
    must([cell["verdict"] for cell in told["matrix"]] == ["pass"] * 6, told["matrix"])


def step_9() -> None:
    call(MERLAB, "step", "9", "-q")


def rules() -> list[str]:
    """Return the nat rules of sleep, without counters."""
    argv = ["nsenter", f"--net={SLEEP}", "iptables-nft-save", "-t", "nat"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in told.splitlines() if line.startswith("-A")]


def restore() -> None:
    """Kill step 9 while sleep is flushed; restore must bring back what was there."""
    before = rules()
    must(len(before) > 0, "no rules to begin with")
    with subprocess.Popen([MERLAB, "step", "9", "-q"], cwd=HOME, stdin=-3, stdout=-3, stderr=-3) as running:
        deadline = time.monotonic() + 300
        while not (SAVED.exists() and rules() == []):
            must(running.poll() is None and time.monotonic() < deadline, "it never was flushed")
        running.send_signal(signal.SIGKILL)
    must(rules() == [], "the rules came back by themselves")
    call(MERLAB, "restore")
    must(rules() == before, rules())


def down() -> None:
    call("make", "down")
    call(MERLAB, "down")


def from_nothing() -> None:
    """Hold what `make up` said after from_nothing.sh set the machine up from a folder; then prove, and take it down."""
    said = Path("/run/from-nothing").read_text()
    must("10 of 10 steps held" in said, said)
    verify()
    down()


def legacy() -> None:
    """Do up, verify and down once more with legacy tables."""
    call(MERLAB, "up", "-q", "--iptables", "legacy")
    verify()
    call(MERLAB, "down")


def fingerprint(before: dict[str, object]) -> None:
    """Compare the machine with how it was. Processes that end take a moment."""
    deadline = time.monotonic() + 60
    while (now := state()) != before and time.monotonic() < deadline:
        time.sleep(1)
    must(now == before, {name: _changed(before[name], now[name]) for name in now if now[name] != before[name]})


def _changed(before: Any, now: Any) -> object:
    """Return what of a part of the state is another one now: of settings by name those alone."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before, now
    return {name: (before.get(name), now.get(name)) for name in before | now if before.get(name) != now.get(name)}


def probes() -> dict[str, object]:
    return dict(json.loads(call(PYTHON, "-m", "tests.guests.probed")))


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """Have the programs compiled once, for all that loads them in the block: emulated, that takes a minute."""
    file = Path("/run/programs.json")
    if not file.exists():
        call(MERLAB, "compile", "-o", file)
    os.environ["MERLAB_COMPILED"] = str(file)
    try:
        yield
    finally:
        del os.environ["MERLAB_COMPILED"]


@compiled()
def ktls() -> dict[str, object]:
    """Return what became of kTLS on a socket in a sockhash, at either end, and of the plain app beside it."""
    found = json.loads(call(PYTHON, "tests/guests/ktls_capture.py", "none,all", "client,all", "server,all"))
    must("app at far" in found["none,all"]["plaintext"], found)
    for end in ("client,all", "server,all"):
        seen = found[end]
        must(seen["refused"] or (seen["plaintext"] == [] and seen["far reads"] == "record" and seen["app reads"]), seen)
    return {"refused": found["client,all"]["refused"]}


def refused() -> dict[str, object]:
    """Return the sentence in which merlab refuses a kernel that is too old, before it makes anything."""
    call(MERLAB, "doctor", status=3)
    done = subprocess.run([MERLAB, "up"], stdin=-3, capture_output=True, text=True, timeout=LONG, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("merlab: ")]
    release = ".".join(os.uname().release.split(".")[:2])
    must(done.returncode == 3 and len(lines) == 1 and release in lines[0], done.stdout + done.stderr)
    must(not Path("/run/merlab").exists(), "it made something")
    return {"said": lines[0]}


@compiled()
def sabotages() -> dict[str, object]:
    return dict(json.loads(call(PYTHON, "tests/guests/five_lies.py", timeout=2 * LONG)))


def smoke() -> dict[str, object]:
    """Run the tests that are marked so, as a user would: on a bare machine that brings their tools, too."""
    os.environ["MERLAB_REQUIRE"] = "kernel"
    try:
        said = call("make", "smoke", "ARGS=--durations=5", timeout=2 * LONG)
    finally:
        del os.environ["MERLAB_REQUIRE"]
    return {"passed": said.splitlines()[-1]}


def go_through(
    phases: Mapping[str, Callable[[], object]], asked: Sequence[str], needs: Mapping[str, str] | None = None
) -> int:
    """Do the phases that are asked for, in their order; print of each what it found. Return the exit status.

    `needs` names the phase without which another one would say nothing: it is not tried if that one does not hold.
    """
    status = 0
    failed: set[str] = set()
    for name in [each for each in phases if each in asked]:
        if (needs or {}).get(name) in failed:
            continue
        began = time.monotonic()
        told: dict[str, object] = {"phase": name, "held": True}
        try:
            told["found"] = phases[name]()
        except (NotHeldError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            told |= {"held": False, "said": f"{type(error).__name__}: {error}"[-6000:]}
            failed.add(name)
            status = 1
        sys.stdout.write(json.dumps(told | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
        sys.stdout.flush()
    return status


#: The machine's state before anything was done, once it was read.
_before: dict[str, object] = {}
#: Phases by name, in their order. The first is done on a bare machine only, the last on one that is refused.
PHASES: dict[str, Callable[[], object]] = {
    "from nothing": from_nothing, "machine": machine, "state": lambda: _before.update(state()), "doctor": doctor,
    "up": up, "verify": verify, "step 9": step_9, "restore": restore, "down": down,
    "fingerprint": lambda: fingerprint(_before), "legacy": legacy,
    "fingerprint of legacy": lambda: fingerprint(_before), "probes": probes, "kTLS": ktls, "sabotages": sabotages,
    "smoke": smoke, "refused": refused,
}  # fmt: skip


def main() -> int:
    (wheels,) = [each for each in ("/wheels", "/offline/wheels") if Path(each).is_dir()]
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "NO_COLOR": "1"}
    return go_through(PHASES, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
