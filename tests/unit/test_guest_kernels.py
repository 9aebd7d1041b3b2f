"""Which kernels a guest can have, what its first file system holds, and what it runs."""

import io
import lzma
import os
import re
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from merbridge_lab import polling
from merbridge_lab.adapters import virtual_machine
from merbridge_lab.adapters.virtual_machine import EMULATED, KVM
from merbridge_lab.cli import app, bench, guest_option, lifecycle
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.guest import boot, debian, initramfs, kernels
from merbridge_lab.guest.walkthrough import Walkthrough

VERSION = "6.12.118+deb13-amd64"


def unpacked(root, version=VERSION, lib="usr/lib"):
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").touch()
    (root / lib / "modules" / version).mkdir(parents=True)
    (root / lib / "modules" / version / "modules.dep").touch()
    return root


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return an empty cache of a machine without apt and without kernels of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "installed", list)
    monkeypatch.setattr(debian, "offered", list)
    monkeypatch.setattr(debian, "mirrors", frozenset)
    return tmp_path / "merlab/kernels"


def ready(cache, name, version):
    unpacked(cache / name / "root", version)
    (cache / name / debian.READY).touch()


@pytest.mark.parametrize(
    ("asked", "version", "is_it"),
    [
        ("6.12", VERSION, True),
        ("6.12.118", VERSION, True),
        (VERSION, VERSION, True),
        ("6.1", VERSION, False),
        ("6.12.11", VERSION, False),
        ("12", VERSION, False),
    ],
)
def test_a_version_is_named_by_its_beginning(asked, version, is_it):
    assert debian.matches(asked, version) == is_it


def test_the_newest_at_hand_is_taken(cache):
    for name, version in (("bookworm", "6.1.0-56-amd64"), ("old", "6.12.9+deb13-amd64"), ("trixie", VERSION)):
        ready(cache, name, version)
    unpacked(cache / "half" / "root", "7.3.4-amd64")  # a download that was cut short
    assert [each.version for each in kernels.at_hand()] == [VERSION, "6.12.9+deb13-amd64", "6.1.0-56-amd64"]
    for asked, found in ((kernels.NEWEST, VERSION), ("6.12", VERSION), ("6.1", "6.1.0-56-amd64")):
        assert kernels.find(asked, pytest.fail).version == found


@pytest.mark.usefixtures("cache")
def test_a_path_is_a_folder_or_an_image(tmp_path):
    root = unpacked(tmp_path / "root", lib="lib")
    image = root / "boot" / f"vmlinuz-{VERSION}"
    for path in (root, image):
        assert kernels.find(str(path), pytest.fail) == kernels.Kernel(VERSION, image, root / "lib/modules" / VERSION)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("/nowhere/vmlinuz-1", "there is no kernel at /nowhere/vmlinuz-1"),
        ("{tmp}", "has no kernel with its modules"),
        ("{tmp}/vmlinuz-6.99", "needs its modules beside it"),
        ("", "no kernel is named"),
        ("2.4", "there is no kernel '2.4', neither installed nor"),
        ("6.12", "there is no kernel '6.12', neither installed nor"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_kernel_that_is_not_there_is_one_sentence(tmp_path, asked, why):
    (tmp_path / "vmlinuz-6.99").touch()
    with pytest.raises(UsageError, match=why) as raised:
        kernels.find(asked.format(tmp=tmp_path), pytest.fail)
    assert raised.value.hint == "merlab kernels"


@pytest.mark.usefixtures("cache")
def test_newest_of_none_is_one_sentence():
    with pytest.raises(LabError, match="there is no kernel at hand"):
        kernels.find("newest", pytest.fail)


def test_a_download_is_said_first_and_leaves_nothing_if_it_fails(cache, monkeypatch):
    def download(version, folder):
        said.append(version)
        unpacked(folder / "root", version)
        if fails:
            raise LabError("apt-get failed", id="tool.failed")

    monkeypatch.setattr(debian, "offered", lambda: [VERSION, "6.12.9+deb13-amd64"])
    monkeypatch.setattr(debian, "download", download)
    said, fails = [], True
    with pytest.raises(LabError, match="apt-get failed"):
        kernels.find("6.12", said.append)
    assert list(cache.iterdir()) == []
    fails = False
    assert kernels.find("6.12", said.append).version == VERSION
    assert [len(said), said[3]] == [4, VERSION]
    assert "is downloaded by apt" in said[2]
    assert "nothing is installed" in said[2]
    assert kernels.find("6.12", pytest.fail).version == VERSION


def test_what_a_killed_download_left_goes_with_the_next(cache):
    old, running = cache / ".part-old", cache / ".part-running"
    for each in (old, running):
        (each / "kernel").mkdir(parents=True)
    os.utime(old, (0, 0))
    with debian.unpacking(cache / VERSION) as part:
        unpacked(part / "root")
    assert {each.name for each in cache.iterdir()} == {".part-running", VERSION}


def test_of_packages_only_plain_kernels_count(monkeypatch):
    text = "\n".join(
        f"linux-image-{each} - Linux"
        for each in (
            "6.1.0-47-amd64",
            "6.1.0-56-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-rt-amd64",
            "6.12-amd64",
            "6.12.117+deb12-amd64",
        )
    )
    monkeypatch.setattr(debian, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, text))
    assert debian.offered() == ["6.12.117+deb12-amd64", "6.1.0-56-amd64", "6.1.0-47-amd64"]
    assert debian.newest_of_series(debian.offered()) == ["6.12.117+deb12-amd64", "6.1.0-56-amd64"]


def test_ubuntus_packages_count_too(monkeypatch):
    text = "\n".join(
        f"linux-image-{each} - Signed kernel image"
        for each in ("6.8.0-151-generic", "6.8.0-151-lowlatency", "6.8.0-31-generic", "6.14.0-37-generic", "generic")
    )
    monkeypatch.setattr(debian, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, text))
    assert debian.offered() == ["6.14.0-37-generic", "6.8.0-151-generic", "6.8.0-31-generic"]


def test_apt_downloads_into_the_cache_with_the_users_own_proxy(monkeypatch, tmp_path):
    """It asks apt, as the user would, and not by another program, which would get merlab's own environment."""
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\n[ "$1" = download ] || exit 0\necho "$http_proxy $PWD" >asked\n')
    apt.chmod(0o755)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setattr(debian, "_depends", lambda *_: [])
    monkeypatch.setattr(debian, "_index", lambda *_: None)
    debian._download([str(apt)], "linux-image-6.8.0-151-generic", tmp_path)
    assert (tmp_path / "asked").read_text() == f"http://proxy:3128 {tmp_path}\n"


def entries(archive):
    """Read an archive of cpio: the names, modes and contents, in its order."""
    file = io.BytesIO(archive)
    while True:
        head = file.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[start : start + 8], 16) for start in range(6, 110, 8)]
        name = file.read(fields[11])[:-1].decode()
        file.read(-(110 + fields[11]) % 4)
        data = file.read(fields[6])
        file.read(-fields[6] % 4)
        if name == "TRAILER!!!":
            return
        yield name, (fields[1], data)


def test_a_module_may_be_compressed_by_zstd_as_ubuntus_are(tmp_path, monkeypatch):
    module = tmp_path / "9p.ko.zst"
    subprocess.run(["zstd", "-q", "-o", module], input=b"the module" * 99, check=True)
    assert initramfs._unpacked(module) == b"the module" * 99
    module.write_bytes(b"no module")
    with pytest.raises(LabError, match=r"9p.ko.zst cannot be decompressed") as refused:
        initramfs._unpacked(module)
    assert "unsupported format" in refused.value.stderr
    monkeypatch.setattr(initramfs.system_tools, "find", lambda _: None)
    with pytest.raises(LabError, match="is compressed by zstd, and that command is not") as refused:
        initramfs._unpacked(module)
    assert refused.value.hint == "apt-get install zstd"


def test_a_module_that_is_compressed_in_another_way_is_refused(tmp_path):
    (tmp_path / "9p.ko.lz4").write_bytes(b"")
    with pytest.raises(LabError, match="compressed in a way that merlab cannot read"):
        initramfs._unpacked(tmp_path / "9p.ko.lz4")


def test_the_first_file_system_holds_busybox_the_modules_in_order_and_the_command(monkeypatch, tmp_path):
    module = tmp_path / "9p.ko.xz"
    module.write_bytes(lzma.compress(b"the module"))
    (tmp_path / "busybox").write_bytes(b"busybox")
    monkeypatch.setattr(initramfs, "busybox", lambda: tmp_path / "busybox")
    told = f"builtin virtio\ninsmod {module} \n"
    monkeypatch.setattr(initramfs, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, told))
    kernel = kernels.Kernel(VERSION, tmp_path, tmp_path / "usr/lib/modules" / VERSION)
    task = initramfs.Task(["echo", "a 'word'"], tmp_path, {"NAME": "with spaces"})
    found = dict(entries(initramfs.build(kernel, task)))
    assert found["bin/busybox"] == (0o100755, b"busybox")
    assert found["modules/9p.ko"] == (0o100755, b"the module")
    assert found["modules/order"][1] == b"9p.ko\n"
    assert found["machine"] == (0o040755, b"")
    assert found["init"][1].startswith(b"#!/bin/busybox sh\n")
    command = found["command"][1].decode()
    assert "env -i 'NAME=with spaces' setsid echo 'a '\"'\"'word'\"'\"''" in command
    assert "hvc0" not in command
    assert f"cd {tmp_path} 2>/dev/null || cd /; exec" in command
    on_terminal = initramfs.Task(["sh"], tmp_path, {}, terminal=(80, 24))
    command = dict(entries(initramfs.build(kernel, on_terminal)))["command"][1].decode()
    assert "stty cols 80 rows 24" in command
    assert "mkfifo" not in command
    assert f"cd {tmp_path} 2>/dev/null || cd /; exec" in command, "the guest has a /run of its own"
    brought = {"/a folder": tmp_path, "/b": tmp_path}
    with_init = dict(
        entries(initramfs.build(kernel, initramfs.Task(["sh"], tmp_path, {}, None, brought, "/sbin/init")))
    )
    assert "share0 '/a folder'\n" in with_init["second"][1].decode()
    assert "exec /sbin/init " in with_init["second"][1].decode()
    assert "exec /sbin/init " not in found["second"][1].decode()
    for name in ("init", "second", "command"):
        for each in (found, with_init):
            subprocess.run(["sh", "-n"], input=each[name][1], check=True)


def fake_merlab(tmp_path, **statuses):
    """Return a merlab that writes down how it is called, and ends as it is told."""
    cases = "".join(f"{command}) exit {status};; " for command, status in statuses.items())
    program = tmp_path / "merlab"
    program.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\necho "of $1"\ncase $1 in {cases}esac\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("task", "statuses", "calls", "status", "output"),
    [
        (("verify", []), {}, ["up", "verify", "down -q"], 0, "of verify\n"),
        (("verify", ["--json"], True), {"verify": 1}, ["up --json", "verify --json", "down -q"], 1, "of verify\n"),
        (("verify", []), {"up": 3}, ["up", "down -q"], 3, ""),
        (("verify", ["--json"], True), {"up": 1}, ["up --json", "down -q"], 1, "of up\n"),
        (("verify", []), {"down": 3}, ["up", "verify", "down -q"], 3, "of verify\n"),
        (("up", ["--until", "3"]), {}, ["up --until 3", "down -q"], 0, "of up\n"),
        (("doctor", []), {"doctor": 3}, ["doctor"], 3, "of doctor\n"),
    ],
)
def test_what_runs_in_a_guest(monkeypatch, tmp_path, task, statuses, calls, status, output):
    monkeypatch.setattr("sys.argv", [str(fake_merlab(tmp_path, **statuses))])
    text = Walkthrough(*task).script().replace("/run/up.json", f"{tmp_path}/up.json")
    ran = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (status, output)
    lines = (tmp_path / "calls").read_text().splitlines()
    assert [line.replace(" --lab embedded", "") for line in lines] == calls


def test_everything_may_take_longer_in_an_emulated_guest(monkeypatch):
    given = []
    monkeypatch.setattr(
        boot, "run", lambda *_, environment, **__: given.append(environment) or boot.Ran(0, "", "", 1.0)
    )
    monkeypatch.setenv("MERLAB_LAB", "kind")
    monkeypatch.setenv("MERLAB_NAME", "merlab-mine")
    for by in (KVM, EMULATED):
        Walkthrough("verify", []).run(None, by, print)
    assert [each.get(polling.SLOWNESS) for each in given] == [None, "6"]
    assert [("MERLAB_LAB" in each, each["MERLAB_NAME"]) for each in given] == [(False, "merlab-mine")] * 2
    for text, seconds in (("6", 60.0), ("", 10.0), ("soon", 10.0), ("nan", 10.0), ("inf", 10.0), ("0", 10.0)):
        monkeypatch.setenv(polling.SLOWNESS, text)
        assert polling.limit(10.0) == seconds


def invoke(*words):
    ran = CliRunner().invoke(app, words)
    return ran.exit_code, ran.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("verify --kernel 6.12", ""),
        ("verify --kernel=6.12 -vv --json --timeout 3", "--json --timeout 3.0 --verbose --verbose"),
        ("verify --wait --wait-timeout 5 --lab embedded --kernel x --no-color", "--no-color"),
        (
            "bench --kernel x --rows latency --rounds 8 --quick --fail-on loss --legs safe",
            "--rows latency --rounds 8 --quick --legs safe --fail-on loss",
        ),
        ("up --kernel x --until 3 --iptables legacy --legs safe", "--until 3 --iptables legacy --legs safe"),
    ],
)
def test_options_come_through_as_they_were_typed(monkeypatch, words, told):
    def record(_run, context, _asked):
        found.append(guest_option._typed(context))
        raise typer.Exit

    found = []
    for module in (lifecycle, bench):
        monkeypatch.setattr(module, "run_in_guest", record)
    assert invoke(*words.split()) == (0, "")
    assert found == [told.split()]


@pytest.mark.usefixtures("cache")
def test_what_no_guest_can_have_is_wrong_usage():
    assert invoke("verify", "--kernel", "6.12", "--lab", "kind")[0] == 2
    assert invoke("up", "--kernel", "6.12", "--record", "x.cast", "--demo", "--auto", "1")[0] == 2
    assert invoke("bench", "--kernel", "6.12", "--report", "x.html")[0] == 2
    assert invoke("bench", "--kernel", "6.12", "--rows", "none")[0] == 2
    status, told = invoke("kernels")
    assert status == 3
    assert "there is no kernel at hand" in told


def test_kernels_are_listed(cache, monkeypatch):
    ready(cache, "trixie", VERSION)
    monkeypatch.setattr(debian, "offered", lambda: [VERSION, "6.1.0-56-amd64", "6.1.0-47-amd64"])
    status, told = invoke("kernels")
    assert status == 0
    assert VERSION in told
    assert "apt-get download linux-image-6.1.0-56-amd64" in told
    assert "6.1.0-47" not in told


def test_a_guest_without_its_programs_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(initramfs.shutil, "which", lambda _: None)
    with pytest.raises(LabError, match="needs busybox") as raised:
        initramfs.busybox()
    assert raised.value.hint == virtual_machine.INSTALL
    monkeypatch.setattr(virtual_machine.system_tools, "find", lambda _: None)
    with pytest.raises(LabError, match="qemu-system-x86_64 is not on this machine"):
        virtual_machine.Machine(tmp_path, b"", accelerator=EMULATED, hear=pytest.fail, shares={})


def test_no_time_is_measured_in_an_emulated_guest(monkeypatch, tmp_path):
    device = tmp_path / "kvm"
    monkeypatch.setattr(boot, "_KVM", device)
    boot.refuse_timings(KVM)
    with pytest.raises(LabError, match="there is no /dev/kvm here, and in an emulated guest nothing"):
        boot.refuse_timings(EMULATED)
    with pytest.raises(LabError, match="there is no /dev/kvm"):
        boot.refuse_timings()
    device.touch()
    boot.refuse_timings()
    assert boot.why_emulated() == "KVM boots no guest here"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LabError, match="this user may not use /dev/kvm") as raised:
        boot.refuse_timings()
    assert "usermod -aG kvm" in raised.value.hint


@pytest.mark.parametrize(
    "typed",
    ["--dataplane none", "--image sleep=x:1", "--sidecars native", "--kubeconfig f", "--context c", "--istio-set a=b",
     "--kind-image x:1", "--istio-hub h", "--istio-tag 1", "--merbridge-manifest main"],
)  # fmt: skip
@pytest.mark.usefixtures("cache")
def test_an_option_for_clusters_is_refused_at_once(typed):
    status, told = invoke("up", "--kernel", "6.12", *typed.split())
    assert status == 2
    assert "is for labs on a cluster" in re.sub(r"[^a-z]+", " ", told)


@pytest.mark.usefixtures("cache")
def test_bench_is_refused_before_anything_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(boot, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(kernels, "find", lambda *_: pytest.fail("it looked for a kernel"))
    status, told = invoke("bench", "--kernel", "6.12")
    assert status == 3
    assert "there is no /dev/kvm" in told


@pytest.mark.usefixtures("cache")
def test_without_qemu_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(initramfs, "busybox", lambda: None)
    monkeypatch.setattr(virtual_machine.system_tools, "find", lambda _: None)
    monkeypatch.setattr(kernels, "find", lambda *_: pytest.fail("it looked for a kernel"))
    status, told = invoke("verify", "--kernel", "6.12")
    assert status == 3
    assert "qemu-system-x86_64 is not on this machine" in told


@pytest.mark.usefixtures("cache")
def test_a_kernel_that_only_root_may_read_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(initramfs, "busybox", lambda: None)
    monkeypatch.setattr(virtual_machine, "qemu", lambda: "qemu")
    root = unpacked(tmp_path / "root")
    monkeypatch.setattr(kernels, "installed", lambda: list(kernels._in(root)))
    monkeypatch.setattr(guest_option.os, "access", lambda path, _mode: not str(path).endswith(VERSION))
    status, told = invoke("verify", "--kernel", "6.12")
    assert status == 3
    assert "this user may not read the kernel" in told
    assert "verify --kernel 6.12" in told


def test_a_path_that_cannot_be_read_is_wrong_usage(monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match=r"the kernel \./linux cannot be read: No such file or directory"):
        kernels.find("./linux", pytest.fail)
    assert str(boot._here()) == "/"

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kernels.Path, "is_dir", refuse)
    with pytest.raises(UsageError, match="the kernel /root/x cannot be read: Permission denied"):
        kernels.find("/root/x", pytest.fail)


def test_the_commands_are_listed_as_they_are_used():
    names = [each.name or each.callback.__name__ for each in app.registered_commands]
    assert names[:3] == ["up", "step", "verify"]
    assert names.index("kernels") > names.index("bench")
