"""Build the image of the agent: `make agent-image`, or `python scripts/agent_image.py NAME [BASE [OPTION…]]`.

What is in it: Python and nftables from Debian, the packages of requirements/agent.txt, merlab, and the programs as BCC
compiled them. Where BCC is, the image is compared with what the sources compile to now. Docker builds it; nothing runs
in it that asks a network, except Debian's packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "images" / "agent"
BUILD = ROOT / "build" / "agent"
LOCK = ROOT / "requirements" / "agent.txt"
BASE = "debian:bookworm-slim"
#: The most that the image may take, uncompressed, in bytes.
MOST = 200 * 10**6
_ARTEFACT = "merbridge_lab/bpf/compiled.json"
_PLACE = "/usr/lib/python3/dist-packages"


def run(*argv: str | Path, **options: object) -> str:
    """Run a command to its end and return its output. Its errors go to our standard error."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, **options).stdout  # type: ignore[call-overload, no-any-return]


def docker_build(context: Path, *options: str) -> None:
    """Build an image. The network is for Debian's packages; the legacy builder is in every Docker."""
    argv = ("docker", "build", "-q", "--network=host", *options, context)
    run(*argv, env=os.environ | {"DOCKER_BUILDKIT": "0"})


def python_of(base: str) -> str:
    """Return the version of the Python that the image will have, of its first stage; BASE is what it is built from."""
    with tempfile.TemporaryDirectory() as empty:
        shutil.copy(IMAGE / "Dockerfile", empty)
        name = f"merlab-agent-python:{hashlib.sha256(base.encode()).hexdigest()[:12]}"
        docker_build(Path(empty), "--target=python", "--build-arg", f"BASE={base}", "-t", name)
    said = "import platform; print(platform.python_version())"
    try:
        return run("docker", "run", "--rm", "--network=none", name, "python3", "-c", said).strip()
    finally:
        # Its layers stay, with the image.
        subprocess.run(("docker", "image", "rm", "--no-prune", name), check=True, stdout=subprocess.DEVNULL)


def packages(python: str) -> Path:
    """Return a folder with the packages of the lock for a version of Python, made if it is missing."""
    key = hashlib.sha256(python.encode() + LOCK.read_bytes()).hexdigest()[:16]
    folder = BUILD / f"packages-{key}"
    if folder.is_dir():
        return folder
    BUILD.mkdir(parents=True, exist_ok=True)
    minor = ".".join(python.split(".")[:2])
    there = {"python_version": minor, "python_full_version": python, "platform_python_implementation": "CPython"}
    wanted = []
    # pip would take the markers to be about its own Python.
    for line in LOCK.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            said, *hashes = line.split("--hash=")
            one = Requirement(said.strip())
            if one.marker is None or one.marker.evaluate(there):
                wanted.append(" --hash=".join((f"{one.name}{one.specifier}", *(each.strip() for each in hashes))))
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        lock, making = Path(scratch) / "lock.txt", Path(scratch) / "packages"
        lock.write_text("\n".join(wanted) + "\n")
        options = ("--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={minor}", "--no-compile")
        run(sys.executable, "-m", "pip", "install", "-q", *options, "--target", making, "-r", lock)
        shutil.rmtree(making / "bin", ignore_errors=True)
        for stale in BUILD.glob("packages-*"):
            shutil.rmtree(stale)
        making.rename(folder)
    return folder


def compiled() -> str | None:
    """Return what the sources compile to now; None where BCC is missing."""
    from merbridge_lab.dataplane import artefact

    if not artefact.has_bcc():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        merlab = (sys.executable, "-m", "merbridge_lab.cli", "compile", "-o", Path(scratch) / "compiled.json")
        run(*merlab)
        return (Path(scratch) / "compiled.json").read_text()


def artefact_text() -> str:
    """Return the compiled programs: compiled here, or brought from where BCC is, into build/agent/compiled.json."""
    kept = BUILD / "compiled.json"
    made = compiled()
    if made is not None:
        BUILD.mkdir(parents=True, exist_ok=True)
        kept.write_text(made)
    if not kept.is_file():
        sys.exit(f"agent image: there is no BCC to compile with, and no {kept} that was compiled elsewhere")
    return kept.read_text()


def context(folder: Path, python: str) -> None:
    """Fill the context of the build: the Dockerfile, packages, merlab without the compiler's part, its programs."""
    for each in IMAGE.iterdir():
        shutil.copy(each, folder)
    shutil.copytree(packages(python), folder / "packages")
    merlab = folder / "merlab"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-compile")
    run(*pip, "--target", merlab, ROOT, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    shutil.rmtree(merlab / "bin", ignore_errors=True)
    (merlab / _ARTEFACT).write_text(artefact_text())


def build(ref: str, base: str, *options: str) -> int:
    """Build the image under the name `ref`, compare its programs, and return its size in bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        context(Path(scratch), python_of(base))
        docker_build(Path(scratch), "--build-arg", f"BASE={base}", "-t", ref, *options)
    there = run("docker", "run", "--rm", "--network=none", "--entrypoint=cat", ref, f"{_PLACE}/{_ARTEFACT}")
    fresh = compiled()
    if fresh is not None and json.loads(there) != json.loads(fresh):
        sys.exit(f"agent image: the programs in {ref} are not what the sources compile to")
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", ref))
    if size > MOST:
        sys.exit(f"agent image: {ref} takes {size / 1e6:.0f} MB uncompressed; at most {MOST / 1e6:.0f} MB are allowed")
    return size


def main(ref: str, base: str = BASE, *options: str) -> int:
    """Build the image, with options for Docker, and say what became of it."""
    size = build(ref, base, *options)
    compared = "compared with a fresh compile" if compiled_here() else "not compared: there is no BCC here"
    sys.stdout.write(f"{ref}: {size / 1e6:.0f} MB uncompressed; its programs are {compared}\n")
    return 0


def compiled_here() -> bool:
    """Report whether BCC is on this machine."""
    from merbridge_lab.dataplane import artefact

    return artefact.has_bcc()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
