"""Take over from the dataplane of another version while connections come and go, and lose none of them.

The two versions share no map, as their layouts may differ, so each must finish what it began. The old pins move into
`old/`, with all hooks running, and the new programs attach beside the old ones, which know nothing of each other's
connections. Only where a connection begins (connect, sk_lookup) there can be only one: there the link itself gets the
new program, in one step. The old version then has some time to finish, and goes.

Sockets that are in the old hash stay there until they are closed, with the old sk_msg program, which is told to
redirect no more: their bytes go by TCP from then on, in order. Such an old connection notices one thing, if it asks:
getpeername() then says where it really went (127.0.0.1:15001), as nobody can read the old version's storage any more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.adapters.files import delete, delete_folder, make_folder, rename
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import Pins, opened
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: How long the old version has to finish handshakes and to keep serving its live connections, in seconds.
_FINISH = 3.0
_FOLDERS = ("links", "maps", "progs")


def unlink(pin: Path) -> None:
    """Take a link from its target and remove its pin; nothing there is fine."""
    with contextlib.suppress(OSError), opened(pin) as link:
        bpf_syscall.link_detach(link)
    delete(pin)


def is_due(pins: Pins) -> bool:
    """Whether what is pinned is whole, and of another version. Raises OSError if it cannot be read."""
    return pins.stamp() not in (None, abi.stamp())


def old(pins: Pins) -> Pins:
    """Where the pins of the version before are while this one takes over."""
    return Pins(pins.root / "old")


def begin(pins: Pins, load: Callable[[Pins], None]) -> None:
    """Load this version, then put the pins of the other one aside; nothing is attached or detached.

    Whatever `load` raises leaves the other version as it was.
    """
    coming = Pins(pins.root / "next")
    clear(coming)
    try:
        load(coming)
    except BaseException:
        clear(coming)
        raise
    before = old(pins)
    make_folder(before.root)
    for folder in _FOLDERS:
        if (pins.root / folder).exists() and not (before.root / folder).exists():
            rename(pins.root / folder, before.root / folder)
    for folder in _FOLDERS:
        rename(coming.root / folder, pins.root / folder)
    clear(coming)


def inherit(pin: Path, before: Path, program: Path) -> None:
    """Let the link pinned at `before`, if there is one, run `program`, and pin it at `pin`."""
    if pin.exists() or not before.exists():
        return
    try:
        with opened(before) as link, opened(program) as ours:
            bpf_syscall.link_update(link, ours)
        rename(before, pin)
    except OSError:
        unlink(before)  # what it was attached to is gone, or it is another kind of link: it will be recreated


def finish(pins: Pins) -> None:
    """Let the version before finish, if there was one."""
    before = old(pins)
    if not before.root.exists():
        return
    with contextlib.suppress(OSError):
        before.configure(redirect=0)
    poll_until(lambda: not _busy(before), timeout=_FINISH, awaiting="connections of the dataplane's version before")
    clear(before)


def _busy(before: Pins) -> bool:
    """Whether live sockets, or handshakes, are in the maps; how their keys look does not matter.

    Maps that cannot be read may hold some: then all the time is given that there is.
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


def clear(pins: Pins) -> None:
    """Detach and remove all that is pinned below `pins`, of whatever version."""
    if not pins.root.is_dir():
        return
    links = pins.root / "links"
    last = {"sockops": 1, "getsockopt": 2}  # they finish what was begun
    for pin in sorted(links.rglob("*"), key=lambda each: last.get(each.name, 0)):
        if not pin.is_dir():
            unlink(pin)
    for path in sorted(pins.root.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            (delete_folder if path.is_dir() else delete)(path)
    with contextlib.suppress(OSError):
        delete_folder(pins.root)
