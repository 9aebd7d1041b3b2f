"""Facts about Istio and about kernels stand in one module each; whatever needs another form of them agrees."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path

import pytest

import merbridge_lab
from merbridge_lab import istio_facts
from merbridge_lab.adapters import kernel_features
from merbridge_lab.dataplane import abi, compiler

SOURCE = Path(merbridge_lab.__file__).parent

PORTS = {value for name, value in vars(istio_facts).items() if name.endswith("_PORT")}
NUMBERS = PORTS | {istio_facts.SIDECAR_UID}
#: A number or an address of Istio's in a text: a rule, a message.
IN_TEXT = re.compile(rf"\b({'|'.join(map(str, sorted(NUMBERS)))})\b|\b{re.escape(istio_facts.INBOUND_SOURCE)}\b")
#: A version of Linux: a constant of its own, or named in a text.
VERSION = re.compile(r"^(?:>= )?[3-6]\.\d{1,2}$|\bLinux (?:before )?[3-6]\.\d")

#: Who writes a fact of Istio's as well, and why.
ISTIOS = {
    "istio_facts.py": "it is the place",
}
#: Who writes a version of Linux as well, and why.
KERNELS = {
    "adapters/kernel_features.py": "it is the place",
    "guest/debian.py": "the series that each release of Debian has",
    "labs/kubernetes/dataplanes/merbridge/preflight.py": "what upstream's programs need, not ours",
}


#: What is read or made in one module, as its source shows it.
ONCE = {
    'rpartition(")")': "adapters/procfs.py",  # a line of /proc/PID/stat
    '"0::"': "adapters/cgroup.py",  # the version 2 hierarchy in /proc/PID/cgroup
    '"0A"': "adapters/tcp_sockets.py",  # a listener in /proc/net/tcp
    '"setns"': "adapters/netns.py",
    "_SO_NETNS_COOKIE = ": "adapters/netns.py",
    "_SO_COOKIE = ": "adapters/process_sockets.py",
    '"x86_64": 321': "adapters/bpf_syscall.py",  # bpf(2)
    "trace_printk|0|": "merbridge/printk.py",  # the kernel's part of a line of a trace
    "Environment(": "templates.py",
}


def constants(path: Path):
    """Yield every constant of a module, but for docstrings and other texts that nothing uses."""
    tree = ast.parse(path.read_text())
    idle = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in idle:
            yield node.value


def written(is_fact) -> dict[str, list[object]]:
    """Return, by module, the constants that are facts."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if told := [value for value in constants(path) if is_fact(value)]:
            found[str(path.relative_to(SOURCE))] = told
    return found


def is_istios(value: object) -> bool:
    """Report whether a constant is a port, the user or the address of Istio's, or a text that has one."""
    if isinstance(value, str):
        return IN_TEXT.search(value) is not None
    return type(value) is int and value in NUMBERS


def is_version(value: object) -> bool:
    return isinstance(value, str) and VERSION.search(value) is not None


def without(allowed: dict[str, str], found: dict[str, list[object]]) -> dict[str, list[object]]:
    assert [name for name in allowed if name not in found] == []  # an exception that is needed no more
    return {name: values for name, values in found.items() if name not in allowed}


def test_istios_ports_user_and_address_stand_in_one_module():
    assert without(ISTIOS, written(is_istios)) == {}


def test_versions_of_linux_stand_in_one_module():
    assert without(KERNELS, written(is_version)) == {}


@pytest.mark.parametrize(
    ("text", "is_fact", "seen"),
    [
        ("X = 15001", is_istios, [15001]),
        ("X = (1337, True)", is_istios, [1337]),
        ('X = f"to port 15006 of {y}"', is_istios, ["to port 15006 of "]),
        ('X = "127.0.0.60"', is_istios, []),
        ('"""Dials 15001."""', is_istios, []),
        ('X = "5.15"', is_version, ["5.15"]),
        ('X = ">= 5.9"', is_version, [">= 5.9"]),
        ('X = "Linux before 5.18 does not tell"', is_version, ["Linux before 5.18 does not tell"]),
        ('X = "1.2.3"', is_version, []),
    ],
)
def test_a_fact_is_recognised(tmp_path, text, is_fact, seen):
    (tmp_path / "module.py").write_text(text)
    assert list(filter(is_fact, constants(tmp_path / "module.py"))) == seen


@pytest.mark.parametrize(("text", "place"), ONCE.items())
def test_what_one_module_reads_no_other_reads_as_well(text, place):
    assert [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if text in path.read_text()] == [place]


def test_the_programs_have_the_same_ports_():
    """bpf/abi.h is C and cannot import: what both have, they have alike."""
    told = abi.constants()
    ports = {name.removesuffix("_PORT"): value for name, value in vars(istio_facts).items() if name.endswith("_PORT")}
    assert {name.removeprefix("PORT_"): told[name] for name in told if name.startswith("PORT_")} == ports


@pytest.mark.parametrize("name", ["iptables/pod.rules.j2", "envoy/bootstrap.yaml.j2"])
def test_data_has_no_other_ports_of_istios(name):
    text = re.sub(r"#.*", "", (SOURCE / "data" / name).read_text())
    assert {int(port) for port in re.findall(r"\b150\d\d\b", text)} <= PORTS
    assert {int(user) for user in re.findall(r"-owner (\d+)", text)} <= {istio_facts.SIDECAR_UID}
    assert set(re.findall(r"\b127\.0\.0\.(?!1\b)\d+", text)) <= {istio_facts.INBOUND_SOURCE}


def test_the_oldest_kernel_is_the_one_that_has_every_feature():
    newest = max(map(kernel_features.release, (each.since for each in kernel_features.FEATURES.values())))
    assert kernel_features.release(kernel_features.FEATURES["kernel.version"].since) == newest


def test_every_program_needs_a_feature_of_the_table():
    assert {each.needs for each in compiler.PROGRAMS} <= kernel_features.FEATURES.keys()


def test_a_missing_feature_is_named_in_the_callers_words():
    cannot = partial(kernel_features.cannot, "bpf.links", "EINVAL")
    assert cannot(named="links for connect4").what == "this kernel cannot do links for connect4 (EINVAL)"
    assert cannot().what == "this kernel cannot do bpf.links (EINVAL)"
    assert cannot().hint == "use Linux 5.9 or newer with that feature built in"
