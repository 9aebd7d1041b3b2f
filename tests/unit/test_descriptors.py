"""Who holds a socket, what is mounted over the kernel's files, and how threads and command lines look."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from merbridge_lab.adapters import cgroup, descriptors, overmounts, process_arguments, procfs, threads
from merbridge_lab.adapters.mounts import parse
from merbridge_lab.labs.embedded import socket_holders

HOLDER = "print('there', flush=True); import sys; sys.stdin.read()"
#: Its second thread has a separate table of descriptors, with a socket that the first one has closed.
SPLIT = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
alone, closed = threading.Event(), threading.Event()
def keep():
    assert libc.unshare(0x400) == 0
    alone.set()
    closed.wait()
threading.Thread(target=keep, daemon=True).start()
alone.wait()
os.close(int(sys.argv[1]))
print("there", flush=True)
sys.stdin.read()
"""


def started(source, *words, **options):
    running = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    assert running.stdout.readline() == "there\n"
    return running


def inode(sock):
    return os.fstat(sock.fileno()).st_ino


def test_all_who_hold_a_socket_are_found():
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.create_server(("127.0.0.1", 0)) as shared:
        with started(HOLDER, pass_fds=[shared.fileno()]) as other:
            wanted = {inode(ours), inode(shared)}
            assert descriptors.holders(wanted).known == {
                inode(ours): {os.getpid()},
                inode(shared): {os.getpid(), other.pid},
            }
        assert descriptors.holders(wanted).known[inode(shared)] == {os.getpid()}


def test_a_thread_with_descriptors_of_its_own_is_found():
    with (
        socket.create_server(("127.0.0.1", 0)) as shared,
        started(SPLIT, str(shared.fileno()), pass_fds=[shared.fileno()]) as other,
    ):
        assert other.pid in descriptors.holders({inode(shared)}).known[inode(shared)]
        first = {str(each.readlink()) for each in Path(f"/proc/{other.pid}/fd").iterdir()}
        assert f"socket:[{inode(shared)}]" not in first


def test_a_process_that_may_not_be_looked_at_is_named_only_where_it_is_younger(monkeypatch):
    own = procfs.look(os.getpid())
    assert [*socket_holders._barred({own.pid: "Permission denied"}, own.started + 1)] == []
    (told,) = socket_holders._barred({own.pid: "Permission denied"}, own.started)
    assert f"whether process {own.pid} (" in told
    assert told.endswith("holds a socket of the lab's could not be read: Permission denied")
    monkeypatch.setattr(descriptors, "_links", lambda _pid: (_ for _ in ()).throw(PermissionError(13, "Denied")))
    assert descriptors.holders({1}).barred[os.getpid()] == "Denied"


def test_places_of_processes_are_told_from_others_below_proc():
    ours = ("/proc/1/maps", "/proc/12", "/proc/self/environ", "/proc/thread-self", "/proc/net")
    others = ("/proc", "/proc/sys/fs/binfmt_misc", "/proc/meminfo", "/proc/acpi", "/procfs/1", "/sys/1")
    assert all(overmounts.process_of(Path(each)) for each in ours)
    assert not any(overmounts.process_of(Path(each)) for each in others)


def test_nothing_is_covered_here():
    assert overmounts.problems(Path("/nowhere")) == []


def test_a_covered_file_is_named_once_with_the_command_that_takes_the_mount_off():
    line = b"36 35 98:0 /copy /proc/7/maps rw - ext4 /dev/root rw\n"
    assert [*overmounts._of_processes(parse(line + line), {7})] == [
        "/proc/7/maps is covered by a mount: what is read there is not the kernel's (umount /proc/7/maps)"
    ]
    assert [*overmounts._of_processes(parse(line), {8})] == [], "another lab's, which is not read here"


@pytest.mark.parametrize("place", ["/proc/7", "/proc/7/fd", "/proc/7/task/8/fd", "/proc/self/maps"])
def test_what_is_read_of_every_process_may_be_covered_of_none(place):
    (told,) = overmounts._of_processes(parse(f"36 35 98:0 / {place} rw - tmpfs none rw\n".encode()), {8})
    assert told.startswith(f"{place} is covered by a mount")


def test_a_directory_that_is_no_cgroup_is_told(tmp_path):
    with overmounts._opened(Path("/proc")) as proc:
        table = parse(overmounts._read(proc, "thread-self/mountinfo"))
        (told,) = overmounts._of_cgroup(proc, table, tmp_path)
    assert told.endswith(f"something is mounted over {tmp_path.parent}")


def test_a_file_is_read_past_no_mount():
    with overmounts._opened(Path("/")) as root, pytest.raises(OSError, match="Invalid cross-device link"):
        overmounts._read(root, "proc/version")


def test_threads_of_an_ordinary_process_are_alike():
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        assert threads.differing(os.getpid()) == ""
    finally:
        end.set()
        other.join()
    assert threads.differing(2**22 - 1) == "", "there is no such process"


def test_each_way_in_which_a_thread_can_differ_is_said():
    first = {"Uid": "0", "TracerPid": "0", "net": "net:[1]", "root": "/"}
    assert next(threads._unlike(first, first | {"net": "net:[2]"})) == "is in another network namespace"
    assert next(threads._unlike(first, first | {"root": "/x"})) == "has /x as its root directory"
    assert next(threads._unlike(first, first | {"Uid": "1"})) == "runs as another user"


#: Overwrites its own last argument with another word, and zeroes behind it.
WRITER = """
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
ends = int(fields[46])
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(ends - 7)
    memory.write(b"abc\\0\\0\\0\\0")
print("there", flush=True); import sys; sys.stdin.read()
"""


def test_a_command_line_is_where_exec_left_it_and_as_long():
    environment = [f"{key}={value}" for key, value in {"A": "b", "PATH": "/bin"}.items()]
    with started(HOLDER, "ending", env={"A": "b", "PATH": "/bin"}) as honest:
        argv = procfs.look(honest.pid).argv
        assert process_arguments.differing(honest.pid, sys.executable, argv, environment) == ""
        assert "not where they were" in process_arguments.differing(honest.pid, "/bin/x", argv, environment)
        assert "overwritten" in process_arguments.differing(honest.pid, sys.executable, argv[:-1], environment)
    with started(WRITER, "ending", env={"A": "b", "PATH": "/bin"}) as liar:
        argv = procfs.look(liar.pid).argv
        assert argv[-1] == "abc"
        assert "overwritten" in process_arguments.differing(liar.pid, sys.executable, argv, environment)


def test_processes_are_found_by_their_command_line_and_ended_by_their_start():
    with started(HOLDER, "one of a kind") as other:
        argv = [sys.executable, "-I", "-S", "-c", HOLDER, "one of a kind"]
        here = Path("/proc/self/ns/net").stat().st_ino
        assert procfs.by_argv(argv, here + 1) == []
        (found,) = procfs.by_argv(argv, here)
        assert found.pid == other.pid
        assert cgroup.of(other.pid) == cgroup.of(os.getpid())
        procfs.end(procfs.Process(found.pid, "S", found.started + 1, found.argv, 0, 0))
        assert other.poll() is None, "another process would have had that number"
        procfs.end(found)
        assert other.wait(5) == -9
    procfs.end(found)
    assert cgroup.of(found.pid) == ""
