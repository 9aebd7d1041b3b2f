"""Lies that last for one step or one cell: everything is in order when verify begins, and again when it ends."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

from kernel_objects import update_link
from lies_dataplane import HOOK, do_nothing
from lies_mesh import configured, link_of, links_of, pins, pod
from lies_rules import NATIVE, nft, rule
from saboteur import again_and_again, lie

from merbridge_lab import istio_facts
from merbridge_lab.adapters import bpf_maps, iptables, netns
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.endpoints import netns_cookie
from merbridge_lab.dataplane.pins import opened, u64
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy


def _while(scene, begin, end, lies):
    """Enter the context `lies` at the moment `begin` and leave it at `end`."""
    stack = contextlib.ExitStack()
    scene.at(begin, lambda: stack.enter_context(lies))
    scene.at(end, stack.close)
    return stack


@contextlib.contextmanager
def _no_op(links, program, ours):
    """Update links to a program that does nothing, and back."""
    with contextlib.ExitStack() as stack:
        nothing, own = stack.enter_context(do_nothing(program)), stack.enter_context(opened(ours))
        for link in links:
            fd = stack.enter_context(opened(link))
            update_link(fd, nothing)
            stack.callback(update_link, fd, own)
        yield


@contextlib.contextmanager
def _redirect_off(scene):
    pins(scene).configure(redirect=0)
    try:
        yield
    finally:
        pins(scene).configure(redirect=1)


@contextlib.contextmanager
def _log_moved_away(log):
    kept = log.with_name("elsewhere.log")
    log.rename(kept)
    write_atomic(log, kept.read_bytes(), owner=istio_facts.SIDECAR_UID)
    try:
        yield
    finally:
        kept.replace(log)


def hook(scene, name):
    own = pins(scene)
    return _no_op(links_of(scene, name), HOOK[name].program, own.prog(HOOK[name].program))


@lie("access log elsewhere for one step", "the sidecar of sleep has no record of 4 of 4 requests")
def _(scene):
    """While step 8 runs, sleep's access log is a copy that nobody writes to."""
    with _while(scene, "step 8 begins", "step 8 ends", _log_moved_away(pod(scene, "sleep").access_log)):
        yield


@lie("the rules do the work for one step", "ISTIO_REDIRECT of sleep moved by 4 .*: the rules did the work")
def _(scene):
    """While step 8 runs, connect4 does nothing, and the rules do what it is said to do."""
    with _while(scene, "step 8 begins", "step 8 ends", hook(scene, "connect4")):
        yield


@lie("TCP carries the payload for one step", r"eBPF moved 0 messages of at least \d+")
def _(scene):
    """While step 9 runs, redirecting is switched off."""
    with _while(scene, "step 9 begins", "step 9 ends", _redirect_off(scene)):
        yield


@lie("an app that is told the wrong peer for one step", r"the app of sleep sees that it speaks to 127\.\d+\.\d+\.\d+:")
def _(scene):
    """While step 9 runs, getpeername4 does nothing."""
    with _while(scene, "step 9 begins", "step 9 ends", hook(scene, "getpeername4")):
        yield


@lie("a native rule for the length of the flush", "native nftables were present in sleep .*: table inet detour")
def _(scene):
    """While step 9 runs, a native table of sleep redirects to the sidecar."""

    @contextlib.contextmanager
    def native():
        where = pod(scene, "sleep").netns
        nft(where, NATIVE)
        try:
            yield
        finally:
            run(iptables.inside(where, "nft", "delete", "table", "inet", "detour"))

    with _while(scene, "step 9 begins", "step 9 ends", native()):
        yield


@lie("TCP carries the payload of one cell", r"eBPF moved 0 messages of at least \d+", quick=False)
def _(scene):
    """While the fifth cell is measured, redirecting is switched off."""
    with _while(scene, "dials end", "batch 2 ends", _redirect_off(scene)):
        yield


@lie("sk_lookup does nothing for one cell", "sk_lookup|from outside, with the servers flushed", quick=False)
def _(scene):
    """While the last cell is measured, helloworld-v1's sk_lookup link runs a program that does nothing."""
    own = pins(scene)
    lies = _no_op([link_of(scene, "sk_lookup", "helloworld-v1")], "lookup", own.prog("lookup"))
    with _while(scene, "cell 5 ends", "cell 6 ends", lies):
        yield


@contextlib.contextmanager
def _as_soon_as(there, strike):
    """Strike whenever `there` becomes true, in a thread; a failure as the pod ends does not matter."""
    last = False

    def follow():
        nonlocal last
        with contextlib.suppress(LabError, OSError):
            now = there()
            if now and not last:
                strike()
            last = now

    with again_and_again(follow):
        yield


@lie(
    "the twin goes around its rules",
    r"ISTIO_REDIRECT of the control client moved by \d+ for 4 fresh connections",
    quick=False,
)
def _(scene):
    """As soon as the client twin's rules are back, a rule before them returns: its connections go past its sidecar."""
    lab = scene.lab
    where, saved = lab.machine.netns("sleep-twin2"), lab.machine.saved / "sleep-twin2.rules"
    flushed = threading.Event()

    def back():
        if saved.exists():
            flushed.set()
        return flushed.is_set() and not saved.exists()

    def strike():
        rule(where, "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "RETURN")
        flushed.clear()

    with _as_soon_as(back, strike):
        yield


@lie(
    "the server twin is not bypassed",
    "all flushed and without eBPF, was not answered by the app|the rules of helloworld-v1-twin were changed while",
    quick=False,
)
def _(scene):
    """While the server twin's rules are flushed, a native table sends what comes in to its sidecar."""
    lab = scene.lab
    where, saved = lab.machine.netns("helloworld-v1-twin"), lab.machine.saved / "helloworld-v1-twin.rules"
    with _as_soon_as(saved.exists, lambda: nft(where, NATIVE)):
        yield


@lie("PERMISSIVE meanwhile", "flushed and without eBPF, was not closed before an HTTP status", quick=False)
def _(scene):
    """helloworld-v1's sidecar takes plain text beside mutual TLS from when the matrix begins."""
    target = pod(scene, "helloworld-v1")
    permissive = envoy.render(replace(target.spec, permissive=True), target.folder)
    with contextlib.ExitStack() as stack:
        scene.at("matrix begins", lambda: stack.enter_context(configured(target, lambda _: permissive)))
        yield


# -- single steps ----------------------------------------------------------------------------------------------------


@lie("one version never answers", "helloworld v1 did not answer sleep", steps=(2,))
def _(scene):
    """The node refuses what is for helloworld-v1, and retries bring every request to helloworld-v2."""
    where = scene.lab._node.netns
    refuse = ("FORWARD", "-d", "10.244.0.11", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
    rule(where, "-t", "filter", "-I", *refuse)
    yield
    rule(where, "-t", "filter", "-D", *refuse)


@lie(
    "a twin without its rules", r"ISTIO_REDIRECT of the control client moved by \d+ for 4 fresh connections", steps=(2,)
)
def _(scene):
    """As soon as the twin of step 2 has its rules, one before them returns."""
    where = scene.lab.machine.netns("sleep-twin")

    def there():
        return netns.is_pinned(where) and "ISTIO_REDIRECT" in run(iptables.inside(where, "iptables-nft-save")).stdout

    first = ("OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "RETURN")
    with _as_soon_as(there, lambda: rule(where, "-t", "nat", "-I", *first)):
        yield


@lie("counters set back", r"eBPF intercepted -?\d+ of 4 fresh connections of sleep", steps=(3,))
def _(scene):
    """sleep's counters are set to 0 all the time."""
    cookie = u64(netns_cookie(pod(scene, "sleep").netns))
    nothing = bytes(abi.layouts()["counters"].size * bpf_maps.possible_cpus())
    with (
        pins(scene).open_map("counters") as counters,
        again_and_again(lambda: bpf_maps.update(counters, cookie, nothing)),
    ):
        yield
