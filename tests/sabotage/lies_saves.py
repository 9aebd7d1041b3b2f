"""Lies about saved rules (P1): a file in saved/ that looks like merlab's mark, so that rules would not be checked."""

from __future__ import annotations

import contextlib

from lies_mesh import pod
from lies_rules import rule
from saboteur import lie

from merbridge_lab.adapters import iptables, netns
from merbridge_lab.labs.embedded.saved_rules import Save

#: A rule around sleep's sidecar, which each of these files would hide.
AROUND = ("-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "DNAT", "--to", "10.244.0.11:5000")
NOT_ISTIOS = "the iptables rules of sleep are not Istio's"


def good_save(scene, name, *, cookie=None):
    """Return what merlab itself would save of a pod's rules now."""
    where = pod(scene, name).netns
    return Save("nft", cookie or netns.cookie(where), iptables.save(where, "nft", "nat")).text(name)


@contextlib.contextmanager
def hidden(scene, file, content):
    """Put a file into saved/ and a DNAT rule around the sidecar into sleep, for the duration of the block."""
    path = scene.lab.machine.saved / file
    content(path) if callable(content) else path.write_text(content)
    rule(pod(scene, "sleep").netns, *AROUND)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@lie(
    "DNAT in sleep behind saved/{file}",
    rf"(is not merlab's|draft of a merlab).*{NOT_ISTIOS}",
    {"file": ["sleep.note", "sleep.new", "sleep.rules.other", "sleep"]},
    quick={"sleep.note"},
)
def _(scene, file):
    """A file {file} lies in saved/, and a rule in sleep sends its requests around the sidecar."""
    with hidden(scene, file, "a note\n"):
        yield


@lie(
    "DNAT in sleep behind another pod's save",
    f"sleep.rules is not .* that it belongs to helloworld-v1.*{NOT_ISTIOS}",
)
def _(scene):
    """The save of helloworld-v1's rules is copied to sleep's name, and a rule leads around sleep's sidecar."""
    with hidden(scene, "sleep.rules", good_save(scene, "helloworld-v1")):
        yield


@lie("DNAT in sleep behind the save of an older namespace", f"network namespace of sleep that is gone.*{NOT_ISTIOS}")
def _(scene):
    """A save is there of a namespace that sleep had before, and a rule leads around its sidecar."""
    with hidden(scene, "sleep.rules", good_save(scene, "sleep", cookie=1)):
        yield


@lie("DNAT in sleep behind a save cut off", f"sleep.rules is not .* it is truncated.*{NOT_ISTIOS}")
def _(scene):
    """A save of this very namespace ends in the middle, and a rule leads around sleep's sidecar."""
    with hidden(scene, "sleep.rules", good_save(scene, "sleep")[:-200]):
        yield


@lie("DNAT in sleep behind a save with a rule added", f"sleep.rules is not .* it was changed after .*{NOT_ISTIOS}")
def _(scene):
    """A save of this very namespace has one rule more than merlab saved, and a rule leads around sleep's sidecar."""
    more = good_save(scene, "sleep").replace("COMMIT", f"[0:0] -A {' '.join(AROUND[3:])}destination\nCOMMIT")
    with hidden(scene, "sleep.rules", more):
        yield


@lie("DNAT in sleep behind a symbolic link as save", f"sleep.rules is not .*symbolic links.*{NOT_ISTIOS}")
def _(scene):
    """The save of sleep is a symbolic link to a good one, and a rule leads around sleep's sidecar."""
    real = scene.lab.machine.run / "sleep.rules.real"
    real.write_text(good_save(scene, "sleep"))
    with hidden(scene, "sleep.rules", lambda path: path.symlink_to(real)):
        yield
    real.unlink()


@lie("DNAT in sleep behind a good save", "the nat rules of sleep are flushed .* other nat rules are in sleep: .*DNAT")
def _(scene):
    """A save that merlab could have written is there though nothing was flushed; a rule leads around the sidecar."""
    with hidden(scene, "sleep.rules", good_save(scene, "sleep")):
        yield
