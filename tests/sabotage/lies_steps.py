"""Lies to single steps: about what `verify` does not check."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from lies_dataplane import pins
from saboteur import again_and_again, lie

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi


@lie(
    "debug output switched off again", "the dataplane's debug flag is off|wrote no line to the lab's trace", steps=(4,)
)
def _(scene):
    """Somebody clears the debug flag in `config` whenever it is set."""

    def clear():
        if pins(scene).config()["debug"]:
            pins(scene).configure(debug=0)

    with again_and_again(clear):
        yield


@lie("trace that tells nobody", "the dataplane wrote no line to the lab's trace", steps=(4,))
def _(scene):
    """Debug output is on, and somebody clears who reads the trace again and again."""
    with pins(scene).open_map("readers") as readers:
        nobody = bytes(abi.layouts()["readers"].size)
        with again_and_again(lambda: bpf_maps.update(readers, bytes(4), nobody)):
            yield


@lie("trace of half the story", "the trace does not show the request .*: no bytes of it were moved", steps=(5,))
def _(scene):
    """Redirecting is switched off, so the request goes through the sidecars by TCP; debug output is on."""
    scene.lab.dataplane.set_debug(on=True)
    pins(scene).configure(redirect=0)
    yield
    pins(scene).configure(redirect=1)
    scene.lab.dataplane.set_debug(on=False)


@lie("a tool is missing", r"iptables.*: found .*needed", steps=(0,), refused=True)
def _(_scene):
    """iptables-nft is not on the PATH."""
    with tempfile.TemporaryDirectory() as folder:
        for place in os.environ["PATH"].split(os.pathsep):
            with contextlib.suppress(OSError):
                for tool in Path(place).iterdir():
                    link = Path(folder, tool.name)
                    if not tool.name.startswith("iptables") and not link.exists():
                        link.symlink_to(tool)
        before = os.environ["PATH"]
        os.environ["PATH"] = folder
        try:
            assert shutil.which("iptables-nft") is None
            yield
        finally:
            os.environ["PATH"] = before


@lie("a pod with another address", "has no address 10.244.0.10, but 10.244.0.99", steps=(7,))
def _(scene):
    """sleep's address was changed."""
    from merbridge_lab.adapters.command import run

    pod = scene.lab.workload("sleep").pod
    run(pod.argv_as_root(["ip", "address", "add", "10.244.0.99/32", "dev", "eth0"]))
    run(pod.argv_as_root(["ip", "address", "del", "10.244.0.10/32", "dev", "eth0"]))
    yield
