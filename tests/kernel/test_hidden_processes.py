"""A process that runs but that /proc does not show was not read: it is not the same as one that does not run."""

import subprocess
import sys

import pytest

from merbridge_lab.adapters import procfs

pytestmark = pytest.mark.kernel

#: Each covers, in a separate mount namespace, a part of /proc/PID, or hides it.
COVERED = {
    "all of it": 'mount -t tmpfs none "/proc/$1"',
    "its state, by another's": 'mount --bind /proc/1/stat "/proc/$1/stat"',
    "its namespaces": 'mount -t tmpfs none "/proc/$1/ns"',
}
ASK = "import sys; from merbridge_lab.adapters import procfs; print(procfs.is_hidden(int(sys.argv[1])))"


@pytest.fixture
def other():
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started.pid
        started.kill()


def asked(pid, line, *prefix):
    ask = [sys.executable, "-c", ASK, str(pid)]
    script = f'set -e; {line}; shift; exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(pid), *prefix, *ask]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("line", COVERED.values(), ids=COVERED)
def test_a_process_whose_place_in_proc_is_covered_is_hidden(other, line):
    assert asked(other, ":") == "False"
    assert asked(other, line) == "True"


def test_a_process_that_hidepid_hides_is_hidden(other):
    unable = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    hide = "mount -t proc -o hidepid=invisible proc /proc"
    assert asked(other, hide) == "False", "who may look at all is hidden nothing"
    assert asked(other, hide, *unable) == "True"


def test_a_process_that_ended_is_not_hidden(other):
    assert not procfs.is_hidden(other)
    with subprocess.Popen(["true"]) as ended:
        while procfs.look(ended.pid) is not None:
            pass
        assert not procfs.is_hidden(ended.pid), "a zombie tells that it has ended"
    assert not procfs.is_hidden(ended.pid)
