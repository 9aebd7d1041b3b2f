"""The test cluster: `python -m tests.cluster COMMAND`, or make's test-cluster, up-kind, down-kind.

build         build what is missing
start, stop   the Docker daemon of our own, where none answers
env           how to talk to the cluster: lines for a shell's eval
up [ARGS]     build, start, then merlab up --lab kind ARGS
down          merlab down --lab kind, then stop what start started
test [ARGS]   build, start, pytest -m cluster ARGS, then the same as down
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cluster import builds, engine

MERLAB = Path(sys.executable).with_name("merlab")
KUBECONFIG = engine.RUN / "kubeconfig"


def merlab_arguments() -> list[str]:
    """What `merlab up --lab kind` is told of this cluster, so that nothing is pulled."""
    told = builds.versions()["merlab"]
    return [
        f"--kind-image={builds.ref('node')}",
        f"--istio-hub={told['istio-hub']}",
        f"--istio-tag={told['istio-tag']}",
        *(f"--istio-set={setting}" for setting in told["istio-set"]),
        *(f"--image={name}={builds.ref(image)}" for name, image in told["images"].items()),
    ]


def environment() -> dict[str, str]:
    """What to add to the environment. The value of MERLAB_TEST_CLUSTER is merlab's arguments, quoted for a shell."""
    folders = (builds.tool("kind"), builds.tool("istio"), builds.kubectl())
    path = [folder for folder in os.environ.get("PATH", "").split(":") if folder]
    told = {
        "PATH": ":".join(dict.fromkeys((*map(str, folders), *path))),
        "KUBECONFIG": str(KUBECONFIG),
        "MERLAB_TEST_CLUSTER": shlex.join(merlab_arguments()),
    }
    if "DOCKER_HOST" in os.environ:
        told["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    return told


def prepare() -> bool:
    """Build what is missing and enter the cluster's environment; return whether that took a daemon of our own."""
    with builds.alone():
        builds.binaries()
        started = engine.start()
        builds.images()
    os.environ.update(environment())
    return started


def build() -> int:
    if prepare():
        engine.stop()
    return 0


def env() -> int:
    sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in environment().items())
    return 0


def up(*arguments: str) -> int:
    prepare()
    return subprocess.run((MERLAB, "up", "--lab", "kind", *merlab_arguments(), *arguments), check=False).returncode


def down() -> int:
    os.environ.update(environment())
    status = subprocess.run((MERLAB, "down", "--lab", "kind"), check=False).returncode
    if engine.ours():
        engine.stop()
    return status


def test(*arguments: str) -> int:
    started = prepare()
    os.environ["MERLAB_REQUIRE"] = ",".join(filter(None, (os.environ.get("MERLAB_REQUIRE"), "cluster")))
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cluster", *arguments)
    try:
        return subprocess.run(pytest, check=False).returncode
    finally:
        if started:
            down()


COMMANDS = {
    "build": build,
    "start": lambda: engine.start() and 0,
    "stop": engine.stop,
    "env": env,
    "up": up,
    "down": down,
    "test": test,
}


def main(name: str = "", *arguments: str) -> int:
    if name not in COMMANDS:
        sys.exit(__doc__)
    engine.choose()
    return COMMANDS[name](*arguments) or 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
