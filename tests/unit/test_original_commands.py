"""What was typed in 2022, shown beside what is typed now."""

from fake_lab import FakeLab, up
from merbridge_lab import original_commands
from merbridge_lab.console import Console
from merbridge_lab.loader import steps


def test_every_step_of_2022_is_there_in_its_place():
    assert {step.number for step in steps()} == set(range(10))
    said = {number: "; ".join(one.then for one in original_commands.original(number)) for number in range(10)}
    for number, words in {
        0: "bpftool cgroup tree",
        1: "kind create cluster --name merbridge",
        2: "istioctl install -y",
        3: "all-in-one.yaml",
        4: "-d after /app/mbctl",
        5: "/sys/kernel/debug/tracing/trace_pipe",
        6: "curl helloworld:5000/hello",
        7: "nsenter -t PID --net",
        8: "iptables-save > file; iptables -t nat -vnL",
        9: "iptables -t nat -F",
    }.items():
        assert words in said[number]


def test_what_has_changed_is_said_below_what_was_typed(capsys):
    lab = up(FakeLab())
    step = steps()[7]
    Console().narrate(step, step.commands(lab), original_commands.original(7))
    said = capsys.readouterr().out
    assert "As it was written in 2022:" in said
    assert "$ ps -ef | grep 3650d; nsenter -t PID --net" in said
    assert "grep finds nothing" in " ".join(said.split())
