"""The requirements, checked on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from merbridge_lab import requirements
from merbridge_lab.adapters import bcc_import, bpf_features, cgroup, kernel_features

pytestmark = pytest.mark.kernel


def state():
    """Return what a probe could leave behind."""
    listed = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    cgroups = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "links": [line.split()[0] for line in listed.splitlines()],
        "cgroups": [str(folder) for root in cgroups for folder in root.glob("*/") if "merlab" in folder.name],
        "run": sorted(Path("/run").iterdir()),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "netns": Path("/proc/self/ns/net").readlink(),
    }


@pytest.mark.smoke
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_this_machine_offers_it_all_and_is_left_as_it_was(backend):
    requirements.embedded(backend=backend)  # the first run may load modules and Python's own files
    before = state()
    found = requirements.embedded(backend=backend)
    assert state() == before
    assert [one for one in found if one.verdict == "fail"] == []
    assert requirements.able(found)
    assert len(found) > 30


def test_a_kind_of_program_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setitem(bpf_features.PROGRAMS, "bpf.sk_lookup", bpf_features.Program(4000))
    refused = next(one for one in requirements.embedded(quick=True) if one.name == "bpf.sk_lookup")
    assert (refused.verdict, refused.found) == ("fail", "not known to this kernel")
    assert refused.hint.startswith("use Linux 5.9 or newer")


def test_a_helper_that_a_program_may_not_call_is_refused(monkeypatch):
    monkeypatch.setattr(bpf_features, "COOKIE_IN", ("bpf.raw_tracepoint",))
    refused = next(one for one in requirements.embedded(quick=True) if one.name == "bpf.netns_cookie")
    assert refused.verdict == "fail"


def test_a_filesystem_this_kernel_has_not():
    with pytest.raises(OSError, match="No such device"), kernel_features.detached_mount("merlabfs"):
        pass


def test_rules_that_this_kernel_has_not(monkeypatch):
    monkeypatch.setattr(requirements.tools, "_RULES", "*nat\n-A OUTPUT -j MERLAB_HAS_NOT\nCOMMIT\n")
    refused = next(one for one in requirements.embedded(quick=True) if one.name == "kernel.netfilter")
    assert refused.verdict == "fail"
    assert "modprobe" in refused.hint


@pytest.mark.parametrize(
    ("missing", "unjudged"),
    [
        (("unshare",), {"kernel.namespaces", "kernel.netfilter"}),
        (("ip",), {"kernel.namespaces"}),
        (("iptables-nft", "iptables-nft-save", "iptables-nft-restore"), {"kernel.netfilter"}),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_a_missing_tool_is_no_fault_of_the_kernel(monkeypatch, missing, unjudged):
    """The first that fails is what `up` names, with its remedy."""
    has = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **where: None if name in missing else has(name, **where))
    found = requirements.embedded(quick=True)
    assert [one.name for one in found if one.verdict == "fail"] == [f"tool.{name}" for name in missing]
    assert {one.name for one in found if one.verdict == "skip"} == unjudged


@pytest.mark.parametrize(
    ("place", "name"), [("/proc/sys", "kernel.settings"), (str(cgroup.find_root(Path("/run"))), "kernel.cgroup2")]
)
def test_what_a_container_has_read_only(place, name):
    line = f"mount --bind {place} {place}; mount -o remount,bind,ro {place}"
    code = (
        "from merbridge_lab import requirements\n"
        "print(*(f'{one.name}|{one.found}|{one.hint}' for one in requirements.embedded(quick=True)"
        " if one.verdict == 'fail'), sep='\\n')"
    )
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{line}; exec "$@"', "sh"]
    done = subprocess.run([*argv, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = f"the file system of {'/proc/sys/net/ipv4' if place == '/proc/sys' else place} is read-only"
    assert done.stdout == f"{name}|{said}|mount -o remount,rw {place}\n"


def test_bcc_is_loaded_without_touching_the_path():
    # In a separate process: BCC stays loaded.
    code = (
        "import sys; from merbridge_lab.adapters import bcc_import; before = list(sys.path);"
        " module = bcc_import.load();"
        "assert sys.path == before and bcc_import.load() is module is sys.modules['bcc'] and module.BPF; print('ok')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_the_library_is_where_it_is_looked_for():
    assert bcc_import.library() is not None
