"""Lies by somebody who knew merlab's README only: what is on the disk and is not what runs."""

from __future__ import annotations

from lies_mesh import pod
from saboteur import lie

from merbridge_lab.labs.embedded import envoy


@lie("a key of another pod's", "the private key of the sidecar of helloworld-v1 is not its certificate's")
def _(scene):
    """helloworld-v2's private key was written into helloworld-v1's key file; the sidecars run on with their own."""
    key, other = (pod(scene, f"helloworld-{v}").folder / envoy.CERTIFICATES / "key.pem" for v in ("v1", "v2"))
    honest = key.read_bytes()
    key.write_bytes(other.read_bytes())
    yield
    key.write_bytes(honest)
