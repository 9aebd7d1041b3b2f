"""Names of container images: the registry of one, and its full form."""

from __future__ import annotations


def registry(ref: str) -> str:
    """Return the registry of an image: the first part of its name if that looks like a host, else Docker Hub's."""
    first, slash, _ = ref.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host else "docker.io"


def full_name(ref: str) -> str:
    """Return an image's name as containerd has it: with its registry, its "library" and its tag."""
    name = ref if registry(ref) != "docker.io" or ref.startswith("docker.io/") else f"docker.io/{ref}"
    if name.startswith("docker.io/") and name.count("/") == 1:
        name = name.replace("docker.io/", "docker.io/library/", 1)
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"
