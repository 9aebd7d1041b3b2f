"""Lies by somebody who had not read merlab: what only a connection attempt, or continuous checking, shows."""

from __future__ import annotations

import contextlib

from lies_brief import _while
from lies_mesh import configured, pod
from lies_rules import rule
from saboteur import again_and_again, lie

from merbridge_lab.labs.embedded import envoy


@lie(
    "a sidecar that asks for no certificate",
    "the sidecar of helloworld-v1 (?:runs with another configuration|serves a client that shows no certificate)",
)
def _(scene):
    """helloworld-v1's sidecar was started so that it asks no client for a certificate; its file says that it does."""
    asked, not_asked = (f"require_client_certificate: {word}" for word in ("true", "false"))
    with configured(pod(scene, "helloworld-v1"), lambda text: text.replace(asked, not_asked)) as (path, honest):
        path.write_text(honest)
        yield


@lie("a key that everybody can read", "the private key of the sidecar of helloworld-v1 can be read by others")
def _(scene):
    """Directory and key of helloworld-v1's certificate are open to everybody on the machine."""
    place = pod(scene, "helloworld-v1").folder / envoy.CERTIFICATES
    place.chmod(0o755)
    (place / "key.pem").chmod(0o444)
    yield
    (place / "key.pem").chmod(0o400)
    place.chmod(0o500)


@lie(
    "a rule of the node's for one cell",
    "the rules of the node|in the node's network namespace the nftables table ip nat changed",
)
def _(scene):
    """While the second cell is measured, the node sends to helloworld-v2 what is for helloworld-v1."""
    around = ("-t", "nat", "-I", "PREROUTING", "-d", "10.244.0.11", "-p", "tcp", "-j", "DNAT", "--to", "10.244.0.12")
    where = scene.lab._node.netns

    @contextlib.contextmanager
    def there():
        rule(where, *around)
        yield
        rule(where, *(word.replace("-I", "-D") for word in around))

    with _while(scene, "batch 3 ends", "batch 4 ends", there()):
        yield


@lie(
    "a server's rules that come and go",
    "the rules of helloworld-v1 were changed while sleep sent its requests|not Istio's",
)
def _(scene):
    """While step 8 runs, a rule comes into helloworld-v1's filter table and goes, again and again."""
    where = pod(scene, "helloworld-v1").netns
    harmless = ("OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")

    def blink():
        rule(where, "-t", "filter", "-I", *harmless)
        rule(where, "-t", "filter", "-D", *harmless)

    with _while(scene, "step 8 begins", "step 8 ends", again_and_again(blink)):
        yield
