"""The test cluster: `python -m tests.cluster COMMAND`, or make test-cluster.

build         build what is missing
compile       of that, what takes only compilers and downloads: no Docker, nothing is mounted, tests may run beside it
env           how to talk to the cluster: lines for a shell's eval
start, stop   the Docker daemon of our own, where none answers; it stays until it is stopped
up [ARGS]     build, start, then merlab up --lab kind --dataplane merlab ARGS
down          merlab down --lab kind, then stop
test [ARGS]   build, pytest -m cluster ARGS; a daemon that it started ends with it, and all that is in it
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster import builds, engine

MERLAB = Path(sys.executable).with_name("merlab")
KUBECONFIG = engine.RUN / "kubeconfig"


def merlab(command: str, *arguments: str) -> int:
    return subprocess.run((MERLAB, command, "--lab", "kind", *arguments), check=False).returncode


def merlab_arguments() -> list[str]:
    """Return the arguments of `merlab up --lab kind` for this cluster, so that nothing is pulled."""
    told = builds.versions()["merlab"]
    return [
        f"--kind-image={builds.ref(builds.node())}",
        f"--istio-hub={told['istio-hub']}",
        f"--istio-tag={told['istio-tag']}",
        f"--dataplane={told['dataplane']}",
        *(f"--istio-set={setting}" for setting in told["istio-set"]),
        *(f"--image={name}={builds.ref(image)}" for name, image in told["images"].items()),
    ]


def environment() -> dict[str, str]:
    """Return the additions to the environment. MERLAB_TEST_CLUSTER holds merlab's arguments, quoted for a shell."""
    folders = (builds.tool("kind"), builds.tool("istio"), builds.kubectl())
    path = [folder for folder in os.environ.get("PATH", "").split(":") if folder]
    told = {
        "PATH": ":".join(dict.fromkeys((*map(str, folders), str(MERLAB.parent), *path))),
        "KUBECONFIG": str(KUBECONFIG),
        "MERLAB_TEST_CLUSTER": shlex.join(merlab_arguments()),
    }
    if "DOCKER_HOST" in os.environ:
        told["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    return told | engine.surroundings()


def prepare(*, keep: bool = False) -> None:
    """Build what is missing, ensure that a daemon answers, and set the cluster's environment."""
    with builds.alone("build"):
        builds.binaries()
        engine.start(keep=keep)
        builds.images()
    os.environ.update(environment())


def build() -> int:
    try:
        prepare()
    finally:
        engine.release()
    return 0


def compile_commands() -> int:
    with builds.alone("build"):
        builds.commands(builds.tested())
    return 0


def start() -> int:
    engine.start(keep=True)
    return 0


def stop() -> int:
    engine.stop()
    return 0


def env() -> int:
    sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in environment().items())
    return 0


def up(*arguments: str) -> int:
    prepare(keep=True)
    status = merlab("up", *merlab_arguments(), "--dataplane=merlab", *arguments)
    builds.say(f'for a root shell: eval "$({shlex.join((sys.executable, "-m", "tests.cluster", "env"))})"')
    builds.say("then merlab step 9, merlab status, kubectl get pods …; make down-kind removes all of it")
    return status


def down() -> int:
    os.environ.update(environment())
    status = merlab("down")
    engine.stop()
    return status


def test(*arguments: str) -> int:
    with builds.alone(f"test-{engine.RUN.name}" if engine.IS_APART else "test"):
        try:
            prepare()
            os.environ["MERLAB_REQUIRE"] = ",".join(filter(None, (os.environ.get("MERLAB_REQUIRE"), "cluster")))
            pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cluster", *arguments)
            return subprocess.run(pytest, check=False).returncode
        finally:
            engine.release()


COMMANDS = {
    "build": build,
    "compile": compile_commands,
    "start": start,
    "stop": stop,
    "env": env,
    "up": up,
    "down": down,
    "test": test,
}


def main(name: str = "", *arguments: str) -> int:
    if name not in COMMANDS:
        sys.exit(__doc__)
    # Stop what was started, also if a time limit ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    engine.choose()
    return COMMANDS[name](*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
