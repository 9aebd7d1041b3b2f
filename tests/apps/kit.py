"""What the apps are made of: programs unpacked and compiled into a cache of this machine, readable by the pods' user.

Debian's packages are unpacked, not installed: installing nginx or apache2 would start a daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE = Path("/var/cache/merlab-apps")
PROGRAMS = Path(__file__).with_name("programs")
REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "apps.txt"
PACKAGES = ("nginx", "libnginx-mod-stream", "apache2-bin", "libapr1", "libaprutil1", "liblua5.3-0")
LIBRARIES = f"usr/lib/{os.uname().machine}-linux-gnu"
PYTHON = "/usr/bin/python3"
#: Seconds after which what nobody used is removed.
UNUSED = 14 * 86_400
#: Commands that compile or run the programs, and Debian's packages that have them.
TOOLS = {"gcc": "gcc libc6-dev", "javac": "default-jdk-headless", "node": "nodejs", "go": "golang"}
#: Go listens with MPTCP by default from this version on.
GO = (1, 24)
#: What the apps serve as files, and its largest size.
SIZES = (100, 1000, 100_000, 1_000_000, 4_000_000, 20_000_000)


class CannotBuildError(Exception):
    """What the programs need is not there; the message says what."""


@dataclass(frozen=True)
class Kit:
    """Where everything is."""

    top: Path

    @property
    def pattern(self) -> Path:
        """The file whose bytes are sent."""
        return self.top / "pattern"

    @property
    def debian(self) -> Path:
        """The root of the unpacked packages."""
        return self.top / "debian"

    def program(self, name: str) -> str:
        """Return the path of one of our own programs, compiled where it has to be."""
        return str(self.top / "programs" / name)

    def python(self, script: str) -> list[str]:
        """Return the argv of one of our scripts, with the packages of requirements/apps.txt."""
        return ["env", f"PYTHONPATH={self.top / 'python'}", PYTHON, "-B", self.program(f"python/{script}.py")]


def _run(argv: list[str], **more: object) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=300, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise CannotBuildError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return str(done.stdout)


def _digest() -> str:
    found = hashlib.sha256(Path(__file__).read_bytes() + REQUIREMENTS.read_bytes())
    for path in sorted(path for path in PROGRAMS.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        found.update(str(path.relative_to(PROGRAMS)).encode() + path.read_bytes())
    found.update(_run(["go", "env", "GOVERSION"]).encode())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    CACHE.chmod(0o755)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure(progress: Callable[[str], None]) -> Kit:
    """Unpack and compile what is missing. Raise CannotBuildError."""
    lacking = [f"{tool} (Debian: {package})" for tool, package in TOOLS.items() if not shutil.which(tool)]
    if lacking:
        raise CannotBuildError(f"not on PATH: {', '.join(lacking)}")
    version = _run(["go", "env", "GOVERSION"]).strip().removeprefix("go")
    if tuple(int(each) for each in version.split(".")[:2]) < GO:
        raise CannotBuildError(f"go is {version}; MPTCP listeners need {GO[0]}.{GO[1]}")
    with _alone():
        top = CACHE / _digest()
        if top.is_dir():
            os.utime(top)
            return Kit(top)
        for older in CACHE.iterdir():
            # Another checkout's may be in use.
            if older.is_dir() and time.time() - older.stat().st_mtime > UNUSED:
                shutil.rmtree(older)
        draft = top.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        os.umask(0o022)
        draft.mkdir()
        for what, build in (
            ("Debian's packages", _packages),
            ("the programs in C", _c),
            ("the programs in Java", _java),
            ("the programs in Go", _go),
            ("the Python packages", _python),
            ("the files to serve", _files),
        ):
            progress(f"building {what}")
            build(draft)
        shutil.copytree(PROGRAMS / "node", draft / "programs" / "node")
        draft.rename(top)
        return Kit(top)


def _packages(top: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(["apt-get", "download", "-q", *PACKAGES], cwd=folder)
        except CannotBuildError:
            _run(["apt-get", "update", "-q"])  # the lists may be older than what the mirror still has
            _run(["apt-get", "download", "-q", *PACKAGES], cwd=folder)
        for package in Path(folder).glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(top / "debian")])
    seen = dict(os.environ, LD_LIBRARY_PATH=str(top / "debian" / LIBRARIES))
    for program in ("nginx", "apache2"):
        needs = _run(["ldd", str(top / "debian" / "usr/sbin" / program)], env=seen)
        if "not found" in needs:
            raise CannotBuildError(f"{program} lacks libraries:\n{needs}")


def _c(top: Path) -> None:
    folder = top / "programs" / "c"
    folder.mkdir(parents=True)
    flags = ["-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror", "-pthread"]
    for source in sorted((PROGRAMS / "c").glob("*.c")):
        _run(["gcc", *flags, "-o", str(folder / source.stem), str(source)])


def _java(top: Path) -> None:
    folder = top / "programs" / "java"
    _run(["javac", "-d", str(folder), *(str(path) for path in sorted((PROGRAMS / "java").glob("*.java")))])


def _go(top: Path) -> None:
    told = dict(os.environ, CGO_ENABLED="0", GOFLAGS="-buildvcs=false", GOTOOLCHAIN="local")
    _run(["go", "build", "-o", str(top / "programs" / "go" / "apps"), "."], cwd=PROGRAMS / "go", env=told)


def _python(top: Path) -> None:
    shutil.copytree(PROGRAMS / "python", top / "programs" / "python")
    # The packages alone, for the distribution's Python: a virtual environment would have its path written into it.
    target = top / "python"
    with tempfile.TemporaryDirectory() as folder:
        _run([PYTHON, "-m", "venv", folder])
        wanted = ["--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
        _run([f"{folder}/bin/python", "-m", "pip", "install", "-q", "--target", str(target), *wanted])


def _files(top: Path) -> None:
    content = random.Random("merlab apps").randbytes(max(SIZES))  # noqa: S311 - to be recognized, not to be secret
    (top / "pattern").write_bytes(content)
    served = top / "www" / "bytes"
    served.mkdir(parents=True)
    for size in SIZES:
        (served / str(size)).write_bytes(content[:size])
