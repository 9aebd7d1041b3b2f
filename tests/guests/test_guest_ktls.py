"""A3: an app with the kernel's TLS, at either end, and a packet capture: no plaintext, whatever the dataplane does.

Kernels of today refuse kTLS on a socket in a sockhash, so that it goes with the legs that are safe for any app. Older
ones accept it, and there the dataplane alone decides: the last one of Debian's series without that fix is booted, too.
"""

import json
import sys
from pathlib import Path

import pytest
from tests.guests import packages

from merbridge_lab.adapters.kernel_features import SOCKMAP_FIXES, is_fixed
from merbridge_lab.guest import boot, debian, kernels

pytestmark = pytest.mark.guests

HERE = Path(__file__).parent.parent.parent
MERLAB = Path(sys.executable).with_name("merlab")
ENDS = ("client", "server")


@pytest.fixture(scope="module")
def captured():
    """Return a function that runs cases under a kernel, with programs that were compiled before, for its time."""
    packages.install()

    def run(kernel, *cases):
        script = f'{MERLAB} compile -o /run/programs.json >&2 && MERLAB_COMPILED=/run/programs.json exec "$@"'
        argv = ["sh", "-c", script, "sh", sys.executable, str(HERE / "tests/guests/ktls_capture.py"), *cases]
        ran = boot.run(kernel, argv, timeout=1800, by=boot.accelerator(kernel), folder=HERE)
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
    found = captured(kernels.find(version, print), "none,all", *(f"{end},all" for end in ENDS), "client,all,blind")
    capture_sees_what_is_not_encrypted(found, "all")
    for end in ENDS:
        is_encrypted_all_the_way(found[f"{end},all"])
        assert found[f"{end},all"]["passed_ktls"] > 0
    blind = found["client,all,blind"]
    assert blind["passed_ktls"] == 0
    assert blind["plaintext"] or not blind["app reads"], "or this test tests nothing"
