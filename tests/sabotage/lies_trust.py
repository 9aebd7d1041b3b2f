"""Lies about whom a sidecar trusts and who it is, and about the places where merlab keeps what it makes."""

from __future__ import annotations

import json
import shutil

from lies_mesh import configured, pod, restart
from saboteur import lie

from merbridge_lab.adapters.files import put
from merbridge_lab.drivers.embedded import certificates, layout, sidecar

_SIDECARS = {"name": ["sleep", "helloworld-v1"]}


def _roots(target):
    """The place of what a sidecar trusts, and what is there."""
    path = target.folder / sidecar.CERTIFICATES / "root-cert.pem"
    return path, path.read_text()


@lie(
    "a foreign authority in what {name} is started with",
    "the sidecar of {name} runs with another configuration .*2 certificates of SHA-256 .*, not 1 certificate of",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar is started with a second authority in its configuration; its files then look as before."""
    target = pod(scene, name)
    _, honest = _roots(target)
    old, new = (json.dumps(text) for text in (honest, honest + certificates.Authority.fresh().certificate.decode()))
    with configured(target, lambda text: text.replace(old, new)) as (path, whole):
        put(path, whole)
        yield


@lie(
    "a foreign authority in a file while {name} starts",
    "the sidecar of {name} runs with another configuration .*trusted_ca.*(inline_string|filename)",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar reads whom it trusts from a file that has a second authority while it starts."""
    target = pod(scene, name)
    path, honest = _roots(target)
    more = honest + certificates.Authority.fresh().certificate.decode()
    put(path, more, mode=0o400, owner=layout.SIDECAR_ID)
    inline, file = f"inline_string: {json.dumps(honest)}", f"filename: {path}"
    with configured(target, lambda text: text.replace(inline, file)) as (bootstrap, whole):
        put(path, honest, mode=0o400, owner=layout.SIDECAR_ID)
        put(bootstrap, whole)
        yield


@lie(
    "another key and certificate while {name} starts",
    "the sidecar of {name} runs with another configuration .*certificate_chain",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar is started with another certificate of its name, of which somebody kept the key."""
    target = pod(scene, name)
    certs = target.folder / sidecar.CERTIFICATES
    kept, whole = certs.with_name("certs.kept"), target.folder / "bootstrap.yaml"
    honest = whole.read_text()
    certs.rename(kept)
    lab = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
    certificates.install(certs, target.spec.identity, authority=lab, trusted=lab, owner=layout.SIDECAR_ID)
    put(whole, sidecar.render(target.spec, target.folder))
    restart(target)
    shutil.rmtree(certs)
    kept.rename(certs)
    put(whole, honest)
    yield
    restart(target)


@lie("two servers that have changed their names", "the certificate of helloworld-v1 names .*helloworld-v2")
def _(scene):
    """helloworld-v1 and helloworld-v2 run with each other's certificate and key, in files and in memory."""
    pair = [pod(scene, name) for name in ("helloworld-v1", "helloworld-v2")]
    one, other = (each.folder / sidecar.CERTIFICATES for each in pair)

    def change():
        aside = one.with_name("certs.kept")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        for each in pair:
            put(each.folder / "bootstrap.yaml", sidecar.render(each.spec, each.folder))
            restart(each)

    change()
    yield
    change()
