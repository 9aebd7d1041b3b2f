"""S5, U10: a sysdump holds what a report needs and no secret; only its owner can read it; it is complete or absent."""

import errno
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from merbridge_lab import redaction, sysdump
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy, topology
from merbridge_lab.labs.kubernetes import status
from merbridge_lab.labs.kubernetes.settings import Settings

HIDDEN = "hunter2-of-the-user"


class Lab:
    def __init__(self, **parts):
        self.parts = parts

    def dump(self):
        return self.parts


def read(target):
    with tarfile.open(target) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()
            for member in archive.getmembers()
        }


def test_only_its_owner_reads_it_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        sysdump.write(tmp_path / "dump.tar.gz", Lab())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "dump.tar.gz").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["dump.tar.gz"]


def test_it_tells_of_the_machine_and_lists_what_it_holds(tmp_path):
    def broken():
        raise LabError("the node does not answer")

    names = sysdump.write(tmp_path / "dump.tar.gz", Lab(**{"one.txt": lambda: "1\n", "two.txt": broken}))
    parts = read(tmp_path / "dump.tar.gz")
    assert sorted(parts) == names
    assert {"versions.txt", "os-release.txt", "kernel-log.txt", "index.txt", "one.txt", "two.txt"} == set(names)
    index = parts["index.txt"].splitlines()
    assert "one.txt: 2 bytes" in index
    assert "two.txt: not available: the node does not answer" in index
    assert "NAME=" in parts["os-release.txt"]


def test_the_versions_are_of_every_package_that_merlab_needs():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert list(sysdump._PACKAGES) == [Requirement(each).name for each in project["dependencies"]]
    assert "is not installed" not in sysdump.versions()


def test_what_is_there_is_not_written_over(tmp_path):
    target = tmp_path / "dump.tar.gz"
    target.write_text("mine")
    with pytest.raises(LabError, match="exists already"):
        sysdump.write(target, Lab())
    assert target.read_text() == "mine"


def test_a_full_disk_leaves_no_half_file_and_is_named(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match=f"{tmp_path} is full"):
        sysdump.write(tmp_path / "dump.tar.gz", Lab())
    assert list(tmp_path.iterdir()) == []


def test_a_file_too_large_leaves_no_half_file(tmp_path):
    """A real case: the kernel refuses to write more than 8 KiB."""
    program = (
        "import os, resource, sys\nfrom pathlib import Path\nfrom merbridge_lab import sysdump, errors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "lab = type('Lab', (), {'dump': lambda self: {'big.bin': lambda: os.urandom(99999).hex()}})()\n"
        "try:\n    sysdump.write(Path(sys.argv[1]), lab)\n"
        "except errors.LabError as error:\n    sys.exit(error.what)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "dump.tar.gz")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path} does not accept a file this large")
    assert list(tmp_path.iterdir()) == []


def pod(name, namespace="default"):
    container = {
        "name": "app",
        "image": "app:1",
        "args": ["--token", HIDDEN, f"--db-password={HIDDEN}", "--verbose", f"postgres://me:{HIDDEN}@db/x"],
        "env": [{"name": "KEY", "value": HIDDEN}],
    }
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": HIDDEN, "sidecar.istio.io/inject": "true"}
    return {
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"containers": [container]},
        "status": {"phase": "Running"},
    }


def test_of_a_users_own_pod_only_that_it_is_there_is_told():
    told = status._pod(pod("payroll-7f"))
    assert told == {"metadata": {"name": "payroll-7f"}, "status": {"phase": "Running"}}
    assert status._pod(pod("sleep-7f"))["spec"]
    assert status._events("default", [{"involvedObject": {"name": "payroll-7f"}, "message": HIDDEN}]) == []
    assert len(status._events("default", [{"involvedObject": {"name": "sleep-7f"}, "message": "Pulled"}])) == 1


def test_values_of_environments_annotations_and_secret_arguments_are_left_out(tmp_path):
    sysdump.write(tmp_path / "dump.tar.gz", Lab(**{"pods.json": lambda: [pod("sleep-7f")]}))
    told = read(tmp_path / "dump.tar.gz")["pods.json"]
    assert HIDDEN not in told
    (found,) = json.loads(told)
    assert found["spec"]["containers"][0]["env"] == [{"name": "KEY", "value": redaction.GONE}]
    assert "--verbose" in told
    assert found["metadata"]["annotations"]["sidecar.istio.io/inject"] == "true"
    assert found["spec"]["containers"][0]["image"] == "app:1"


def test_what_was_set_for_istio_is_told_by_name_alone():
    settings = Settings.default()
    made = status._settings(type(settings)(**{**vars(settings), "istio_set": (f"values.x.licence={HIDDEN}",)}))
    assert made["istio_set"] == [f"values.x.licence={redaction.GONE}"]
    assert made["istio_tag"] == settings.istio_tag


@pytest.mark.parametrize(
    "line",
    [
        f"password={HIDDEN}",
        f'"api_key": "{HIDDEN}"',
        f"--client-secret {HIDDEN}",
        f"Authorization: Bearer {HIDDEN}",
        f"DB_PASSWORD: '{HIDDEN} and more'",
        f"https://me:{HIDDEN}@example.test/x",
        f"private_key: {{ inline_string: {HIDDEN} }}",
        f'"private_key": {{\n  "filename": "/a",\n  "inline_string": "{HIDDEN}"\n}}',
        f"tokens: [first, {HIDDEN}]",
        f"-----BEGIN EC PRIVATE KEY-----\n{HIDDEN}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{HIDDEN}",
        f"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.{HIDDEN}",
    ],
)
def test_a_text_loses_its_secrets(line):
    assert HIDDEN not in redaction.text(f"before {line}\nafter\n")
    assert redaction.text(f"before {line}\nafter\n").startswith("before ")


@pytest.mark.parametrize(
    "line",
    [
        "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "2026-11-24T10:00:00.000Z GET /hello 200 x-request-id=merlab-1 10.244.0.2:5000",
        "CONFIG_BPF_JIT_ALWAYS_ON=y",
        "private_key: { filename: /run/merlab/pods/sleep/certs/key.pem }",
        '"private_key": {"filename": "/etc/certs/key.pem"}',
    ],
)
def test_what_a_report_needs_stays(line):
    assert redaction.text(line) == line


@pytest.mark.parametrize("pod", topology.PODS, ids=lambda pod: pod.name)
def test_a_sidecars_configuration_is_whole(pod):
    """It names the files of its keys and holds none."""
    told = envoy.render(pod, Path("/run/merlab/pods", pod.name))
    assert "key.pem" in told
    assert redaction.text(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "a1" * 500_000,
        "a.b-" * 250_000,
        "--" * 500_000,
        "token " * 150_000,
        "token={" * 150_000,
        "token=[" * 150_000,
        "a://" * 250_000,
    ],
)
def test_a_long_log_takes_no_long_time(text):
    since = time.monotonic()
    redaction.text(text)
    assert time.monotonic() - since < 10
