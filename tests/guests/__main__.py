"""Run a command under another kernel: `python -m tests.guests KERNEL -- COMMAND`.

KERNEL is named as for `merlab --kernel`. The command runs as root on this machine's own files, read-only with an
overlay, without a network.
"""

from __future__ import annotations

import argparse
import sys

from tests.guests import packages

from merbridge_lab.errors import LabError
from merbridge_lab.guest import boot, kernels


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guests", description=__doc__)
    parser.add_argument("kernel", help="a version, newest, a release of Debian, or a path")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the command, from its start")
    parser.add_argument("--accelerator", choices=["kvm", "tcg"], help="by default KVM, if it boots the kernel")
    asked = parser.parse_args()
    streams = {1: sys.stdout, 2: sys.stderr}

    def hear(port: int, text: str) -> None:
        streams[port].write(text)
        streams[port].flush()

    try:
        packages.install()
        kernel = kernels.find(asked.kernel, lambda said: hear(2, f"{said}\n"))
        by = asked.accelerator or boot.accelerator(kernel)
        ran = boot.run(kernel, asked.command, timeout=asked.timeout, by=by, hear=hear)
    except LabError as error:
        sys.stderr.write(f"{error.what}\n{error.stderr or ''}\n")
        return 3
    sys.stderr.write(f"{kernel.version} ({by}): exit status {ran.status} after {ran.seconds:.0f} s\n")
    return ran.status


if __name__ == "__main__":
    sys.exit(main())
