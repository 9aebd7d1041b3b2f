"""A demo of the real lab on a real terminal: what the screen says and what the kernel has, at the same moment."""

from __future__ import annotations

import subprocess

import pytest
from tests.merlab_cli import MERLAB
from tests.terminal_screen import OnScreen
from walkthrough_host import NAME, merlab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab():
    """A complete lab."""
    merlab("down")
    try:
        done = merlab("up", "-q")
        assert done.returncode == 0, done.stdout + done.stderr
        yield
    finally:
        assert merlab("down").returncode == 0


@pytest.fixture
def demo(lab):  # noqa: ARG001 - the lab is there
    """Step 9 as a demo, at 80 columns and 24 rows."""
    screen = OnScreen([MERLAB, "step", "9", "--demo", "--minutes", "20"], MERLAB_NAME=NAME)
    yield screen
    screen.close()


def rules():
    """Count the nat rules of sleep, with iptables itself."""
    argv = ["nsenter", f"--net=/run/{NAME}/netns/sleep", "iptables-nft-save", "-t", "nat"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return sum(line.startswith("-A") for line in done.stdout.splitlines())


def waits_for(command):
    """Report whether the screen waits for Enter at a command that contains `command`."""

    def look(text):
        before, waiting, _ = text.rpartition("⏎")
        return bool(waiting) and command in "".join(before.splitlines()[-2:])

    return look


def on_screen(screen):
    """Return how many rules the headline says there are."""
    return int(screen.lines()[0].rpartition("rules: ")[2].split()[0])


def test_the_rules_are_gone_exactly_while_the_screen_says_so(demo):
    seen = []
    for command in ("iptables-save", "-t nat -F", "-vnL", "merlab exec sleep", "--without-ebpf", "iptables-restore"):
        demo.until(waits_for(command))
        seen.append((on_screen(demo), rules()))
        if command == "iptables-restore":
            assert "4 of 4 connected, then closed without an answer" in " ".join(demo.text.replace("│", "").split())
        demo.press("\t")
    demo.until("Enter: end")
    seen.append((on_screen(demo), rules()))
    assert seen == [(18, 18), (18, 18), (0, 0), (0, 0), (0, 0), (0, 0), (18, 18)]
    demo.press("\t")
    assert demo.end() == 0


def test_ctrl_c_in_the_middle_restores(demo):
    for command in ("iptables-save", "-t nat -F"):
        demo.until(waits_for(command))
        demo.press("\t")
    demo.until(waits_for("-vnL"))
    assert rules() == 0
    demo.press("\x03")
    assert demo.end() == 130
    assert rules() == 18


@pytest.mark.parametrize("then", ["restore", pytest.param("up", marks=pytest.mark.soak)])
def test_killed_in_the_middle_the_next_call_restores(demo, then):
    for command in ("iptables-save", "-t nat -F"):
        demo.until(waits_for(command))
        demo.press("\t")
    demo.until(waits_for("-vnL"))
    demo.process.kill()
    assert rules() == 0
    assert merlab(then, "-q" if then == "up" else "--json").returncode == 0
    assert rules() == 18
    assert merlab("verify", "-q").returncode == 0
