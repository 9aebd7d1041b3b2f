"""merlab killed at each change point, and what up, restore, verify and down then promise to the next caller.

`step 9` and `verify` begin on a complete lab; `restore` and `down` on one that `step 9 --keep` left flushed (R1), which
itself has no other change points than `step 9`. These promises hold after a kill at any point (R2: also while a control
client is flushed):

| then      | promise                                                                                                |
|-----------|--------------------------------------------------------------------------------------------------------|
| `restore` | 0, or 3 where down had come so far that no lab is up; the rules of each pod that is there are those     |
|           | from before, to the letter, and none is saved any more                                                 |
| `verify`  | 0 where no rule of a pod is flushed; else 1 with the hint `merlab restore`, and what is flushed stays   |
|           | so; after a killed down 1 or 3 with what is missing; control pods of the killed one are gone           |
| `up`      | 0: all steps hold; the rules are those from before, none is saved, no control pod and no draft is left |
| `down`    | 0: the host is as it was without a lab                                                                 |

None of them ever ends as "internal error" (4). A sample is for every run of the tests; `make soak` has all points:
those at which rules or saves are changed are followed by each of the four, the others by one of them in turn.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from walkthrough_host import LONG, Lab, differences, environment, is_plain, merlab, picture

from merbridge_lab.labs.embedded import topology

pytestmark = pytest.mark.kernel

DOOR = str(Path(__file__).with_name("change_points.py"))
PODS = [pod.name for pod in topology.PODS]
#: The state in which each command begins.
BEGIN = {
    ("step", "9"): (),
    ("verify",): (),
    ("restore",): ("step", "9", "--keep"),
    ("down",): ("step", "9", "--keep"),
}
THEN = ("restore", "verify", "up", "down")
#: Changes of rules and saves: after these, a command finds rules flushed, saved, or in transition.
OF_RULES = ("save rules", "make the save known", "flush rules", "load rules", "delete a save", "delete a copy of rules")


def at_the_door(*words, prefix=()):
    """Call merlab by change_points.py."""
    return subprocess.run(
        [*prefix, sys.executable, "-B", DOOR, *words],
        env=environment(), capture_output=True, text=True, timeout=LONG, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


class World:
    """A lab that is complete before each kill, and the host as it is without one."""

    def __init__(self):
        merlab("down")
        self.host = picture()
        self.lab = Lab()
        self.repair()
        self.rules = {pod: self.lab.rules(pod) for pod in PODS}

    def repair(self):
        done = merlab("up", "-q")
        assert done.returncode == 0, done.stdout + done.stderr
        #: The eBPF of a lab may be missing although all rules are there.
        self.was_taken_down = False

    @property
    def saved(self):
        """Return the names in saved/, including drafts."""
        folder = self.lab.machine.saved
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    @property
    def flushed(self):
        return [name for name in PODS if f"{name}.rules" in self.saved]

    def present(self):
        """Return the pods that have a network namespace, each with its rules."""
        pods = [pod for pod in PODS if self.lab.netns(pod).exists()]
        return {pod: self.lab.rules(pod) for pod in pods if _is_pinned(self.lab.netns(pod))}

    def begin(self, command):
        if self.flushed:
            merlab("restore")
        is_whole = not self.was_taken_down and self.lab.run.exists() and self.present() == self.rules
        if not is_whole or self.saved or self.lab.control_pair:
            self.repair()
        if BEGIN[command]:
            done = merlab(*BEGIN[command], "-q")
            assert done.returncode == 0, done.stdout + done.stderr
            assert self.flushed == ["sleep"]


def _is_pinned(path):
    from merbridge_lab.adapters import netns

    return netns.is_pinned(path)


def sites(command, folder):
    """Run a command to its end and return the change points that it passed, one per call site.

    Of those that are not about rules, one is enough however many parts of the walkthrough pass it.
    """
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    done = at_the_door("list", str(notes), "--", *command, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for where in notes.read_text().splitlines() if notes.exists() else []:
        found.setdefault(where if where.startswith(OF_RULES) else where.partition(" < ")[0], where)
    return found


def promised(world, command, then, where):
    """Call `then` after `command` was killed at `where`; return the broken promises."""
    flushed, was_down = world.flushed, command == ("down",)
    done = merlab(then, "-q") if then in ("up", "verify") else merlab(then)
    said = done.stdout + done.stderr
    wrong = [] if is_plain(done) and done.returncode != 4 else ["it ended as a defect"]
    gone = was_down and done.returncode == 3 and "no lab is up" in said
    if then == "restore":
        wrong += [] if done.returncode == 0 or gone else [f"exit {done.returncode}"]
        changed = [pod for pod, rules in world.present().items() if rules not in ({}, world.rules[pod])]
        wrong += [f"the rules of {pod} are not those from before" for pod in changed]
        wrong += [f"saved: {world.flushed}"] if world.flushed else []
    elif then == "verify":
        if was_down:
            wrong += [] if done.returncode in (0, 1, 3) else [f"exit {done.returncode}"]
        elif flushed:
            hinted = re.search(r"→ .*\bmerlab restore$", said, re.MULTILINE)  # with name and path where it needs them
            wrong += [] if done.returncode == 1 and hinted else [f"exit {done.returncode}"]
            wrong += [] if world.flushed == flushed else ["what was flushed did not stay so"]
        else:
            wrong += [] if done.returncode == 0 else [f"exit {done.returncode}"]
        wrong += [f"left: {world.lab.control_pair}"] if world.lab.control_pair else []
    elif then == "up":
        wrong += [] if done.returncode == 0 else [f"exit {done.returncode}"]
        wrong += [] if world.present() == world.rules else ["the rules are not those from before"]
        wrong += [f"left: {world.saved + world.lab.control_pair}"] if world.saved or world.lab.control_pair else []
    else:
        wrong += [] if done.returncode == 0 else [f"exit {done.returncode}"]
        wrong += [f"left: {left}"] if (left := differences(world.host)) else []
    return [f"{' '.join(command)} killed at {where!r}, then {then}: {each}\n{said}" for each in wrong]


def walked(world, command, then, where, number=1):
    world.begin(command)
    world.was_taken_down = then == "down" or (command == ("down",) and then != "up")
    done = at_the_door("kill", where, str(number), "--", *command, "-q")
    assert done.returncode == -signal.SIGKILL, f"{where}: {done.returncode} {done.stdout}{done.stderr}"
    return promised(world, command, then, where)


@pytest.fixture(scope="module")
def world():
    made = World()
    yield made
    assert merlab("down").returncode == 0
    assert differences(made.host) == {}


#: The command, which occurrence of a change kills it, and what is called then.
SAMPLE = [
    (("step", "9"), "save rules", 1, "restore"),
    (("step", "9"), "make the save known", 1, "up"),
    (("step", "9"), "flush rules", 1, "restore"),
    (("step", "9"), "load rules", 1, "verify"),
    (("step", "9"), "load rules", 3, "verify"),  # R2: the second one was the control client's own; that is flushed
    (("restore",), "delete a save", 1, "restore"),
    (("down",), "delete a link", 2, "restore"),  # R1: sleep is gone, and its save is there
]


@pytest.mark.parametrize(("command", "what", "number", "then"), SAMPLE)
def test_a_sample_of_kills(world, command, what, number, then):
    assert walked(world, command, then, f"{what} @", number) == []


@pytest.fixture(scope="module")
def points(world, tmp_path_factory):
    """The change points of a command that no earlier command in BEGIN has, found when first requested."""
    found = {}

    def of(command):
        before = list(itertools.takewhile(lambda each: each != command, BEGIN))
        for each in (*before, command):
            if each not in found:
                world.begin(each)
                found[each] = sites(each, tmp_path_factory.mktemp("points"))
        known = set().union(*(found[each] for each in before if BEGIN[each] == BEGIN[command]))
        return [where for key, where in found[command].items() if key not in known]

    of.found = found
    return of


@pytest.mark.soak
def test_keep_has_no_change_point_of_its_own(world, points, tmp_path):
    points(("step", "9"))
    world.begin(("step", "9"))
    keep = sites(("step", "9", "--keep"), tmp_path)
    assert keep
    assert keep.keys() <= points.found[("step", "9")].keys()


@pytest.mark.soak
@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("command", BEGIN, ids=" ".join)
def test_every_change_point(world, points, command, then):
    """In sixteen parts: each command, and what is called after it was killed.

    One part alone: make soak ARGS="-k 'change_point and restore-up'".
    """
    known = points(command)
    assert known
    others = [where for where in known if not where.startswith(OF_RULES)]
    turns = known if command == ("restore",) else others[THEN.index(then) :: len(THEN)]
    walk = [where for where in known if where in turns or where.startswith(OF_RULES)]
    assert [each for where in walk for each in walked(world, command, then, where)] == []
