"""What the kernel reports that no BPF program can write; frozen maps; filters on sockets."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest
from walkthrough_host import Lab, merlab

from merbridge_lab.adapters import bpf_syscall, netns
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.tcp_bytes import Watch
from merbridge_lab.dataplane import compiler, recompiled, socket_filters
from merbridge_lab.dataplane.pins import MAPS
from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel

_FREEZE = 22
_ATTACH_FILTER = 26


@pytest.fixture
def here(tmp_path):
    """A separate network namespace, with its loopback up."""
    pin = tmp_path / "netns"

    netns.create(pin, netns.NEWNET, lambda: run(["ip", "link", "set", "lo", "up"]) and None)
    yield pin
    netns.unpin(pin)


def conversation(here):
    def make():
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            return client, server.accept()[0]

    return netns.run_inside(here, make)


def name(sock):
    return "{}:{}".format(*sock.getsockname())


def test_the_kernel_tells_what_tcp_sent_of_sockets_that_live_and_that_ended(here):
    watch = Watch(here)
    try:
        client, server = conversation(here)
        one, other = name(client), name(server)
        client.sendall(bytes(1000))
        server.sendall(bytes(31))
        poll_until(lambda: len(server.recv(1000, socket.MSG_PEEK)) == 1000, timeout=5, awaiting="all to arrive")

        def told():
            return {each.local: each.sent for each in watch.look() if each.local in (one, other)}

        assert told() == {one: 1000, other: 31}
        assert {(each.local, each.remote) for each in watch.look() if each.local == one} == {(one, other)}
        client.close(), server.close()
        assert poll_until(
            lambda: told() == {one: 1000, other: 31} and len(watch._ended) >= 2, timeout=5, awaiting="their end"
        )
    finally:
        watch.close()


def test_more_sockets_end_than_there_is_room_for(here):
    watch = Watch(here)
    try:
        watch._told.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(50):
            for sock in conversation(here):
                sock.close()
        with pytest.raises(OSError, match="more sockets ended than the kernel could report"):
            poll_until(lambda: watch.look() is None, timeout=2, awaiting="the kernel to say so")
    finally:
        watch.close()


def test_a_tag_is_what_the_kernel_makes_of_the_source():
    loaded = compiler.load()
    try:
        kernels = {name: bpf_syscall.prog_info(fd).tag for name, fd in loaded.programs.items()}
    finally:
        loaded.close()
    wanted = recompiled.Recompiled().tags()
    assert kernels.keys() == wanted.keys()
    assert all(tag in wanted[name] for name, tag in kernels.items())


def test_a_filter_on_a_socket_is_told():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        assert socket_filters.attached(plain.fileno()) is None
        code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF) * 300)
        plain.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("=HxxxxxxQ", 300, ctypes.addressof(code)))
        assert socket_filters.attached(plain.fileno()) == "300 instructions of classic BPF"
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket_filters.attached(-1)


@pytest.fixture(scope="module")
def lab():
    done = merlab("up", "--lab", "embedded")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Lab()
    merlab("down", "--lab", "embedded")


def test_down_removes_maps_that_somebody_froze(lab):
    """K2: what cannot be written can still be removed, without a complaint."""
    frozen = []
    for each in MAPS:
        with lab.pins.open_map(each) as fd:
            if each != "flows":  # storage of sockets cannot be frozen before Linux 5.13
                bpf_syscall.call(_FREEZE, struct.pack("=I", fd), "freeze a map")
                assert bpf_syscall.is_frozen(fd)
                frozen.append(each)
    done = merlab("verify", "--lab", "embedded")
    assert done.returncode == 1
    assert all(f"map {each} is frozen (BPF_MAP_FREEZE)" in " ".join(done.stdout.split()) for each in frozen)
    done = merlab("down", "--lab", "embedded")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not lab.run.exists()
    done = merlab("down", "--lab", "embedded")
    assert (done.returncode, "nothing to remove" in done.stdout) == (0, True)
