"""Who holds the lock, as /proc/locks tells."""

import os

from merbridge_lab import lock

LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 00:1b:1 0 EOF
2: FLOCK  ADVISORY  WRITE 22 00:1b:1 0 EOF
2: -> FLOCK  ADVISORY  WRITE 23 00:1b:1 0 EOF
3: FLOCK  ADVISORY  WRITE 33 00:2c:1 0 EOF
4: FLOCK  ADVISORY  WRITE 44 08:01:77 0 EOF
"""


def test_the_holder_is_told_by_device_and_inode():
    assert lock.read_holder(LOCKS, os.makedev(0, 0x1B), 1) == ": PID 22"
    assert lock.read_holder(LOCKS, os.makedev(0, 0x2C), 1) == ": PID 33"


def test_of_several_on_other_devices_none_is_named_and_a_single_one_is():
    assert lock.read_holder(LOCKS, os.makedev(9, 9), 1) == ""
    assert lock.read_holder(LOCKS, os.makedev(9, 9), 77) == ": PID 44"
    assert lock.read_holder(LOCKS, os.makedev(9, 9), 5) == ""


def test_a_real_one(tmp_path):
    with lock.held(tmp_path):
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            assert lock._holder(fd) == f": PID {os.getpid()}"
        finally:
            os.close(fd)
