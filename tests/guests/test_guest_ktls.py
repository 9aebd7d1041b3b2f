"""A3: an app with the kernel's TLS, at either end, and a packet capture: no plaintext, whatever the dataplane does.

Kernels of today refuse kTLS on a socket in a sockhash, so that it goes with the legs that are safe for any app. Older
ones accept it, and there the dataplane alone decides: the last one of Debian's series without that fix is booted, too.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.guests import packages

from merbridge_lab import polling
from merbridge_lab.adapters.kernel_features import SOCKMAP_FIXES, is_fixed
from merbridge_lab.guest import boot, debian, kernels

pytestmark = pytest.mark.guests

HERE = Path(__file__).parent.parent.parent
MERLAB = Path(sys.executable).with_name("merlab")
ENDS = ("client", "server")


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Return a function that runs cases under a kernel, with programs that are compiled here, for their time."""
    packages.install()
    compiled = tmp_path_factory.mktemp("compiled") / "programs.json"
    subprocess.run([MERLAB, "compile", "-o", str(compiled)], check=True, timeout=300)

    def run(kernel, *cases):
        argv = [sys.executable, str(HERE / "tests/guests/ktls_capture.py"), *cases]
        told = {"MERLAB_COMPILED": str(compiled), polling.SLOWNESS: "6"}
        by = boot.accelerator(kernel)
        ran = boot.run(kernel, argv, timeout=1800, by=by, folder=HERE, environment=told)
        assert ran.status == 0, ran.errors
        return json.loads(ran.output)

    return run


def capture_sees_what_is_not_encrypted(found, legs):
    """Check the control: the same app without kTLS, moved by eBPF or not, is read in the capture of the wire."""
    seen = found[f"none,{legs}"]
    assert (seen["far reads"], seen["app reads"]) == ("needle", True)
    assert {"app at far", "far at far"} <= set(seen["plaintext"])
    assert (seen["moved"]["outbound_redirected_bytes"] > 0) == (legs == "all")


def is_encrypted_all_the_way(seen):
    assert seen["plaintext"] == []
    assert {"app at far", "far at far"} <= set(seen["ciphertext"])
    assert (seen["far reads"], seen["app reads"]) == ("record", True)


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_a_capture_shows_no_plaintext(captured, release):
    kernel = kernels.of_release(release, print)
    cases = [f"{end},{legs}" for end in ENDS for legs in ("safe", "all")]
    found = captured(kernel, "none,all", "none,safe", *cases)
    for legs in ("safe", "all"):
        capture_sees_what_is_not_encrypted(found, legs)
    for end in ENDS:
        is_encrypted_all_the_way(found[f"{end},safe"])
        # The app is told, and encrypts by itself.
        assert found[f"{end},all"] == {"refused": "EINVAL"}


def without_fix():
    """Return the newest version of Linux 6.12 that apt knows here, and that accepts kTLS on a socket in a sockhash."""
    for version in debian.offered():
        release = (*debian.order(version)[:3],)
        if debian.matches("6.12", version) and not is_fixed(SOCKMAP_FIXES["ktls"], release):
            return version
    return None


def test_where_the_kernel_accepts_it_the_dataplane_leaves_it_to_tcp(captured):
    version = without_fix()
    if version is None:
        pytest.skip("apt knows no kernel of 6.12 that accepts kTLS on a socket in a sockhash")
    cases = [f"{end},all{how}" for end in ENDS for how in ("", ",blind")]
    found = captured(kernels.find(version, print), "none,all", *cases)
    capture_sees_what_is_not_encrypted(found, "all")
    for end in ENDS:
        is_encrypted_all_the_way(found[f"{end},all"])
        assert found[f"{end},all"]["passed_ktls"] > 0
        # Without that, what the app sends is moved before it is encrypted, and what it should read before it is
        # decrypted: or this test tests nothing.
        blind = found[f"{end},all,blind"]
        assert (blind["passed_ktls"], blind["app reads"]) == (0, False)
        assert "app at far" in blind["plaintext"]
