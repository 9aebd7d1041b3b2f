"""Install by apt what guests need, for tests: merlab itself installs nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from merbridge_lab.adapters import virtual_machine
from merbridge_lab.errors import LabError
from merbridge_lab.guest import initramfs


def install() -> None:
    """Install what is missing. Raise CalledProcessError if apt cannot."""
    try:
        initramfs.busybox()
    except LabError:
        is_missing = True
    else:
        is_missing = not all(map(shutil.which, (virtual_machine.QEMU, "depmod")))
    if is_missing:
        apt, *words = shlex.split(virtual_machine.INSTALL)
        command = [apt, "-o", "DPkg::Lock::Timeout=300", "-q", "-y", "--no-install-recommends", *words]
        subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=True)
