"""Attach the dataplane: make what is missing, re-make what is not what it should be, leave the rest alone."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf
from merbridge_lab.dataplane import abi, inspect
from merbridge_lab.dataplane.detach import detach, unlink
from merbridge_lab.dataplane.pins import HOOKS, MAPS, PREFIX, PROGRAMS, Hook, Pins, opened, u32, u64
from merbridge_lab.dataplane.pods import Pod, inbound_listener, netns_cookie
from merbridge_lab.errors import KernelCannotError, LabError
from merbridge_lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: How long live connections of an older dataplane get to read what is on its way to them, in seconds.
_REPLACE = 3.0

#: How late the kernel may switch the trace event on, in seconds; seen: about one millisecond.
_EVENT_LATE = 0.03
_EVENT = Path("events/bpf_trace/bpf_trace_printk/enable")


@contextlib.contextmanager
def _trace_event_kept(tracefs: Path | None) -> Iterator[None]:
    """Put the machine's trace event back as it was: loading a program that can print switches it on."""
    enable = tracefs / _EVENT if tracefs else None
    before = enable.read_text().strip() if enable and enable.exists() else None
    try:
        yield
    finally:
        if enable and before == "0":
            _switch_off(enable)


def _switch_off(enable: Path) -> None:
    """Switch the event off, and see that it stays so: newer kernels switch it on from a work queue, a little later."""
    for _ in range(5):
        enable.write_text("0")
        if not until(lambda: enable.read_text().strip() != "0", timeout=_EVENT_LATE, awaiting="the trace event"):
            return


def load(pins: Pins, tracefs: Path | None) -> None:
    """Compile, load and pin every program and map; nothing is attached yet."""
    from merbridge_lab.dataplane import compiler  # BCC only where something is compiled

    for folder in ("links/sk_lookup", "maps", "progs"):
        (pins.root / folder).mkdir(parents=True, exist_ok=True)
    with _trace_event_kept(tracefs):
        loaded = compiler.load()
        try:
            for name in PROGRAMS:
                bpf.pin(loaded.programs[PREFIX + name], pins.prog(name))
            for name in MAPS:  # the stamp is the last one
                if name == "stamp":
                    stamp = abi.layouts()["stamp"].pack(version=abi.stamp().encode())
                    bpf.update(loaded.maps[name], bytes(4), stamp)
                bpf.pin(loaded.maps[name], pins.map(name))
        finally:
            loaded.close()


def _blocked(cgroup: Path, attach_type: int) -> Path | None:
    """Find the nearest ancestor with a program that may be why the kernel refuses another one below it."""
    for ancestor in cgroup.parents:
        try:
            fd = os.open(ancestor, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            if bpf.attached_progs(fd, attach_type):
                return ancestor
        except OSError:
            return None  # no cgroup any more
        finally:
            os.close(fd)
    return None


def _link(program: int, target: Path, attach_type: int, pin: Path, what: str) -> None:
    """Attach and pin at once: a crash in between leaves nothing, as the link goes with its last descriptor."""
    where = os.open(target, os.O_RDONLY)
    try:
        link = bpf.link_create(program, where, attach_type)
    except OSError as refused:
        if refused.errno == errno.EPERM and (ancestor := _blocked(target, attach_type)):
            raise LabError(
                f"{what} cannot be attached to {target}: {ancestor} holds a program that allows no other below it",
                hint="bpftool cgroup tree",
            ) from refused
        if refused.errno == errno.EINVAL:
            raise KernelCannotError(f"links for {what}", "5.9", str(refused)) from refused
        raise
    finally:
        os.close(where)
    try:
        bpf.pin(link, pin)
    finally:
        os.close(link)


def _hooks(pins: Pins, cgroup: Path, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        if inspect.hook_problem(pins, hook, cgroup) is None:
            continue
        unlink(pins.link(hook.name))
        with opened(pins.prog(hook.program)) as program:
            _link(program, cgroup, hook.attach_type, pins.link(hook.name), hook.name)


def _enrol(pins: Pins, pod: Pod, cookie: int) -> None:
    """Enter a pod into the maps; counters that are there go on counting."""
    layouts = abi.layouts()
    with pins.open_map("counters") as counters:
        if bpf.per_cpu(counters, u64(cookie), layouts["counters"].size) is None:
            bpf.update(counters, u64(cookie), bytes(layouts["counters"].size * bpf.possible_cpus()))
    with pins.open_map("pods") as pods:
        bpf.update(pods, u64(cookie), layouts["pod"].pack(ip4=pod.ip4, name=pod.name.encode()))
    with pins.open_map("pod_ips") as ips:
        bpf.update(ips, u32(pod.ip4), u64(cookie))


def _listener(pins: Pins, pod: Pod, cookie: int) -> None:
    """Register a sidecar that listened before there was a program to see it."""
    if pod.sidecar_pid is None or inspect.listener_problem(pins, pod, cookie) is None:
        return
    with inbound_listener(pod.sidecar_pid, cookie) as sock, pins.open_map("listeners") as listeners:
        if sock is not None:
            bpf.update(listeners, u64(cookie), u64(sock))


def _steer(pins: Pins, pod: Pod) -> None:
    if inspect.lookup_problem(pins, pod) is None:
        return
    pin = pins.lookup_link(pod.name)
    unlink(pin)
    with opened(pins.prog("lookup")) as program:
        _link(program, pod.netns, bpf.SK_LOOKUP, pin, f"sk_lookup of {pod.name}")


def _dismiss(pins: Pins, cookies: set[int], pods: Sequence[Pod]) -> None:
    """Forget pods that are no longer to be served."""
    ours = {pins.lookup_link(pod.name) for pod in pods}
    for pin in pins.lookup_links():
        if pin not in ours:
            unlink(pin)
    ips = {pod.ip4 for pod in pods}
    for cookie, entry in pins.pods().items():
        if cookie in cookies:
            continue
        if entry["ip4"] not in ips:
            with pins.open_map("pod_ips") as table:
                bpf.delete(table, u32(entry["ip4"]))
        for name in ("listeners", "pods", "counters"):
            with pins.open_map(name) as table, contextlib.suppress(OSError):
                bpf.delete(table, u64(cookie))


def attach(pins: Pins, tracefs: Path | None, cgroup: Path, pods: Sequence[Pod]) -> None:
    """Bring about that exactly `pods` are served, below `cgroup`; see Dataplane.attach."""
    cookies = {pod.name: netns_cookie(pod.netns) for pod in pods}
    try:
        if inspect.objects_problems(pins):
            detach(pins, _REPLACE)
            load(pins, tracefs)
        with opened(pins.prog("sk_msg")) as program, pins.open_map("peers") as peers:
            if not inspect.redirects(program, peers):
                bpf.prog_attach(program, peers, bpf.SK_MSG_VERDICT)
        pins.configure(redirect=1)
        _dismiss(pins, set(cookies.values()), pods)
        early = [hook for hook in HOOKS if not hook.name.startswith("connect")]
        _hooks(pins, cgroup, early)
        for pod in pods:
            _enrol(pins, pod, cookies[pod.name])
            _listener(pins, pod, cookies[pod.name])
            _steer(pins, pod)
        _hooks(pins, cgroup, [hook for hook in HOOKS if hook not in early])
    except OSError as failed:
        raise LabError(
            f"the dataplane cannot be attached to {cgroup}: {failed.strerror or failed}", hint="merlab down"
        ) from failed
