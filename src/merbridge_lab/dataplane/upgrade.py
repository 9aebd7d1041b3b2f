"""Take over from the dataplane of another version while connections come and go, and lose none of them.

The two versions share no map, because their layouts may differ, so each must finish its own connections. The old pins
move into `old/`, with all hooks running. The new programs attach beside the old ones, pod by pod, and neither knows the
other's connections. Only at the start of a connection (connect, sk_lookup) there can be only one program: there the
link itself gets the new program, in one step. The old version then has some time to finish, and is removed.

Up to 0.4 the links were on one cgroup above all pods, and a link cannot move. There the new connect programs attach
beside the old ones: on a cgroup below they run first, and the old ones leave alone what goes to an address of the
loopback already. Between sidecars, where the address stays, both note the connection, and whose sockops program runs
first, the new one, has its sockets.

Sockets that are in the old hash stay there until they are closed, with the old sk_msg program. It is told to stop
redirecting: from then on their bytes go by TCP, in order. Such an old connection can notice one thing: getpeername()
then returns the real peer (127.0.0.1:15001), because nobody can read the old version's storage any more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.adapters.files import make_folder, rename
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import Pins, opened, unlink
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.pins import Hook

#: How long the old version may take to finish handshakes and to serve its live connections, in seconds.
_FINISH = 3.0
_FOLDERS = ("links", "maps", "progs")
#: The hooks at the start of a connection.
INHERITED = ("connect4", "connect6", "sk_lookup")


def is_due(pins: Pins) -> bool:
    """Report whether the pins are complete, and of another version. Raise OSError if they cannot be read."""
    return pins.stamp() not in (None, abi.stamp())


def old(pins: Pins) -> Pins:
    """Return where the pins of the previous version are while this one takes over."""
    return Pins(pins.root / "old")


def begin(pins: Pins, load: Callable[[Pins], None]) -> None:
    """Load this version, then move the pins of the other one aside; nothing is attached or detached.

    A node whose redirecting was switched off stays so. If `load` raises, the other version is unchanged.
    """
    coming, before = Pins(pins.root / "next"), old(pins)
    coming.clear()
    if (before.root / "links").exists() and (pins.root / "links").exists():
        finish(pins)  # a takeover that nobody has ended: what it has not taken over yet is left to the rules
    try:
        load(coming)
        with contextlib.suppress(OSError):
            if not pins.config()["redirect"]:
                coming.configure(redirect=0, intercept=0)
    except BaseException:
        coming.clear()
        raise
    make_folder(before.root)
    for folder in _FOLDERS:
        if (pins.root / folder).exists() and not (before.root / folder).exists():
            rename(pins.root / folder, before.root / folder)
    for folder in _FOLDERS:
        rename(coming.root / folder, pins.root / folder)
    coming.clear()


def inherit(pin: Path, before: Path, program: Path) -> None:
    """Make the link pinned at `before`, if there is one, run `program`, and pin it at `pin`."""
    if pin.exists() or not before.exists():
        return
    try:
        with opened(before) as link, opened(program) as ours:
            bpf_syscall.link_update(link, ours)
        rename(before, pin)
    except OSError:
        unlink(before)  # its target is gone, or it is another kind of link: it will be recreated


def link_before(pins: Pins, endpoint: Endpoint, hook: Hook) -> Path:
    """Return where the previous version's link of this pod is, if it has one that can be inherited."""
    before, by_name = old(pins), "sk_lookup"
    if hook.name == by_name and (before.links_of(by_name)).is_dir():  # links/sk_lookup/<name>, up to 0.4
        return before.link(by_name, endpoint.name.replace(".", ":"))
    return before.link(endpoint.uid, hook.name)


def finish(pins: Pins) -> None:
    """Let the previous version finish, if there was one, and remove it: every pod has been taken over."""
    before = old(pins)
    if not before.root.exists():
        return
    for pin in before.links():
        if pin.name in INHERITED or pin.parent.name in INHERITED:
            unlink(pin)
    with contextlib.suppress(OSError):
        before.configure(redirect=0)
    poll_until(
        lambda: not _busy(before), timeout=_FINISH, awaiting="connections of the previous version of the dataplane"
    )
    before.clear()


def _busy(before: Pins) -> bool:
    """Report whether live sockets, or handshakes, are in the maps; the layout of their keys does not matter.

    Maps that cannot be read may hold some: then the full time is waited.
    """
    for name in ("handover", "peers"):
        try:
            with opened(before.map(name)) as fd:
                if bpf_maps.keys(fd, bpf_syscall.map_info(fd).key_size):
                    return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False
