"""Run a command under another kernel: `python -m tests.guests RELEASE -- COMMAND`, or make test-guests.

RELEASE is a release of Debian (bookworm, trixie, trixie-backports), whose newest kernel is downloaded, or the path of
a folder with an unpacked kernel package. The command runs as root on this machine's own files, read-only with an
overlay, without a network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.guests import guest, kernels


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guests", description=__doc__)
    parser.add_argument("release", help="a release of Debian, or the path of a folder with boot/ and lib/modules/")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the command, from its start")
    parser.add_argument("--newest", action="store_true", help="download the kernel again")
    parser.add_argument("--accelerator", choices=["kvm", "tcg"], help="by default KVM, if it boots the kernel")
    asked = parser.parse_args()
    try:
        kernels.install()
        kernel = (
            kernels.in_folder(Path(asked.release).resolve())
            if "/" in asked.release
            else kernels.of_release(asked.release, newest=asked.newest)
        )
        ran = guest.run(kernel, asked.command, timeout=asked.timeout, live=sys.stdout, accelerator=asked.accelerator)
    except (kernels.NoGuestError, guest.GuestError) as error:
        sys.stderr.write(f"{error}\n")
        return 3
    how = " (emulated)" if ran.is_emulated else ""
    sys.stderr.write(f"{kernel.version}{how}: exit status {ran.status}\n")
    return ran.status


if __name__ == "__main__":
    sys.exit(main())
