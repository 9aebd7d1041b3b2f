"""Hold, until it is killed, the sockets of process argv[1] whose inodes are argv[2:]."""

import ctypes
import os
import sys
import time
from pathlib import Path

PIDFD_GETFD = 438

process, wanted = int(sys.argv[1]), {f"socket:[{inode}]" for inode in sys.argv[2:]}
of, call = os.pidfd_open(process), ctypes.CDLL(None).syscall
for descriptor in Path(f"/proc/{process}/fd").iterdir():
    if str(descriptor.readlink()) in wanted:
        assert call(PIDFD_GETFD, of, int(descriptor.name), 0) >= 0
sys.stdout.write("held\n")
sys.stdout.flush()
time.sleep(600)
