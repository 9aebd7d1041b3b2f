"""Read maps whole while their entries come and go (A16)."""

from __future__ import annotations

import ctypes
import os
import struct
import threading

import pytest

from merbridge_lab.adapters import bpf_maps, bpf_syscall

pytestmark = pytest.mark.kernel

HASH, NO_PREALLOC = 1, 1
STABLE = 5000


@pytest.fixture
def churning():
    """A hash with entries that stay, while others come and go; each is its own value."""
    attr = struct.pack("=IIIII", HASH, 8, 8, 100_000, NO_PREALLOC)
    fd = bpf_syscall.call(bpf_syscall.MAP_CREATE, attr, "create a map")[0]
    for number in range(STABLE):
        key = struct.pack("=Q", number)
        bpf_maps.update(fd, key, key)
    stop, turns = threading.Event(), []

    def churn() -> None:
        while not stop.is_set():
            fleeting = [struct.pack("=Q", STABLE + number) for number in range(300)]
            for key in fleeting:
                bpf_maps.update(fd, key, key)
            for key in fleeting:
                bpf_maps.delete(fd, key)
            turns.append(1)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield fd, turns
    finally:
        stop.set()
        thread.join()
        os.close(fd)


@pytest.mark.smoke
def test_every_entry_that_stays_is_read(churning):
    fd, turns = churning
    stable = {struct.pack("=Q", number) for number in range(STABLE)}
    read = 0
    while len(turns) < 10 or read < 10:
        assert stable <= set(bpf_maps.keys(fd, 8))
        entries = bpf_maps.entries(fd, 8, 8)
        assert stable <= entries.keys()
        assert all(key == value for key, value in entries.items())
        read += 1


def test_a_walk_goes_on_when_the_entry_that_it_is_at_is_removed(churning, monkeypatch):
    """As often as not: the kernel then begins again with the first entry, which is not the end."""
    fd, _ = churning
    call, removed = bpf_syscall.call, []

    def removing(command: int, attr: bytes, what: str):
        answer = call(command, attr, what)
        if what == "walk through a map" and len(removed) < 20:
            key = ctypes.string_at(struct.unpack_from("=Q", attr, 16)[0], 8)
            number = struct.unpack("=Q", key)[0]
            if number < STABLE and number % 50 == 0:
                removed.append(key)
                bpf_maps.delete(fd, key)
        return answer

    monkeypatch.setattr(bpf_syscall, "call", removing)
    found = set(bpf_maps.keys(fd, 8))
    assert len(removed) == 20
    assert {struct.pack("=Q", number) for number in range(STABLE)} - set(removed) <= found
