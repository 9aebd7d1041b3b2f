"""The public interface of the dataplane."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi, garbage, health, orphaned_links, printk_event, recompiled
from merbridge_lab.dataplane.attach import attach
from merbridge_lab.dataplane.detach import Detached, detach
from merbridge_lab.dataplane.endpoints import address, legs_of, served
from merbridge_lab.dataplane.pins import HOOKS, Pins, remove_pin, u64
from merbridge_lab.dataplane.strangers import Around
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.legs import Legs


@dataclass(frozen=True)
class Pair:
    """A live connection through the dataplane; tuples are indexed by side: 0 dialled, 1 accepted."""

    id: int
    leg: str
    source: str
    destination: str
    original: str
    pods: tuple[str, str]
    redirected_messages: tuple[int, int]
    redirected_bytes: tuple[int, int]
    on_tcp: tuple[bool, bool]


class Dataplane:
    """Everything pinned below one directory on a bpffs, which must exist before something is attached.

    `tracefs` is the caller's own mount of tracefs. Loading programs that can print switches a trace event on for the
    whole machine; there it is switched back. `around` is what exists beside the endpoints, and is searched for foreign
    programs.
    """

    def __init__(self, pins: Path, tracefs: Path | None = None, around: Around | None = None) -> None:
        self._pins = Pins(pins)
        self._tracefs = tracefs
        self._around = around or Around()
        self._recompiled: recompiled.Recompiled | None = None
        self._is_proof = False

    def attach(self, cgroup: Path, endpoints: Sequence[Endpoint]) -> None:
        """Serve exactly `endpoints`, for processes below `cgroup`: create what is missing, recreate what is broken.

        Those with a reason to leave them to the rules are not served. Compile only if there is nothing to continue
        with. Raise UnsupportedFeatureError for a feature that this kernel lacks; LabError if BCC is missing, another
        program is in the way, or a namespace cannot be entered.
        """
        attach(self._pins, self._tracefs, cgroup, served(endpoints), self._recompiled)

    def detach(self, timeout: float) -> Detached:
        """Detach and leave no pin. Sockets that have not read everything within `timeout` seconds stay redirected.

        Those keep the programs loaded until they are closed, and lose nothing. Succeed if nothing is attached.
        """
        printk_event.put_back(self._tracefs)
        return detach(self._pins, timeout)

    def legs(self) -> Legs | None:
        """Return the legs that the first pod is served with; None if none is. Raises LabError."""
        with _reading(self._pins), contextlib.suppress(FileNotFoundError):
            served = self._pins.pods().values() if self._pins.readable else ()
            return next(map(legs_of, served), None)
        return None

    def ours(self) -> frozenset[int]:
        """Return the ids of the programs that run as ours. Raises OSError."""
        return health.ours(self._pins)

    def pause_interception(self, cgroup: Path, endpoints: Sequence[Endpoint], known: Sequence[str] = ()) -> None:
        """If anything is wrong, intercept no new connection until the next `attach`; intercepted ones continue.

        `known` is what the caller found to be wrong. A complete dataplane of another version continues: `attach` takes
        over from it without a gap.
        """
        with _reading(self._pins):
            another = self._pins.stamp() not in (None, abi.stamp())
        if another or not (known or self.problems(cgroup, endpoints)):
            return
        for hook in HOOKS:
            if hook.program.startswith("connect"):
                remove_pin(self._pins.link(hook.name))
        orphaned_links.detach(self._pins, cgroup, served(endpoints))

    def problems(self, cgroup: Path, endpoints: Sequence[Endpoint]) -> list[str]:
        """List every way in which the attachment is not what it should be; nothing means healthy.

        After `recompile`, this includes the code of the programs, independent of what the pins say.
        """
        found = health.problems(self._pins, cgroup, served(endpoints), self._around)
        with _reading(self._pins):
            return found or recompiled.problems(self._pins, self._recompiled, needed=self._is_proof)

    def recompile(self, *, proof: bool) -> None:
        """Begin to compile merlab's own source, for the next check. Raises LabError.

        In a `proof`, a failure to compile is a problem, too.
        """
        self._is_proof = self._is_proof or proof
        if self._recompiled is None:
            self._recompiled = recompiled.Recompiled()

    @staticmethod
    def not_compared() -> str | None:
        """Describe what `recompile` cannot compare on this machine; None if it compares everything."""
        return recompiled.not_compared()

    def others(self, cgroup: Path, endpoints: Sequence[Endpoint]) -> list[str]:
        """Describe, one sentence each, which programs of others run where they may. Raises LabError."""
        with _reading(self._pins):
            return health.listed(self._pins, cgroup, served(endpoints), self._around)

    def programs(self) -> list[health.ProgramInfo]:
        """List the loaded programs and where each is attached. Raises LabError."""
        with _reading(self._pins):
            return health.programs(self._pins)

    def links(self) -> dict[str, str]:
        """Return the identity of each pinned link, and what runs where, by name: a recreated link is another one."""
        with _reading(self._pins):
            links = health.links(self._pins)
        return {name: f"link {link.id}, program {link.prog_id}, on {link.target}" for name, link in links.items()}

    @property
    def attached(self) -> bool:
        """Report whether any hook is attached."""
        pins = [self._pins.link(hook.name) for hook in HOOKS]
        return any(pin.exists() for pin in [*pins, *self._pins.lookup_links()])

    @property
    def debug(self) -> bool:
        """Report whether the dataplane writes trace lines."""
        with _reading(self._pins), contextlib.suppress(FileNotFoundError):
            return bool(self._pins.config()["debug"])
        return False

    @debug.setter
    def debug(self, on: bool) -> None:
        try:
            self._pins.configure(debug=int(on))
        except FileNotFoundError as missing:
            raise LabError(
                "the dataplane is not attached, so there is nothing to debug",
                hint="merlab up",
                id="dataplane.incomplete",
            ) from missing
        except OSError as failed:
            raise LabError(
                f"the dataplane's switches cannot be written: {failed.strerror or failed}",
                hint="merlab up",
                id="dataplane.incomplete",
            ) from failed

    def counters(self) -> dict[str, dict[str, int]]:
        """Return every counter of every pod served, summed over CPUs; empty if nothing is attached."""
        layout, names = abi.layouts()["counters"], abi.counter_names()
        found: dict[str, dict[str, int]] = {}
        with _reading(self._pins):
            readable = self._pins.readable
        if not readable:
            return found
        with _reading(self._pins), contextlib.suppress(FileNotFoundError), self._pins.open_map("counters") as fd:
            for cookie, pod in self._pins.pods().items():
                parts = [layout.unpack(raw)["value"] for raw in bpf_maps.per_cpu(fd, u64(cookie), layout.size) or ()]
                found[pod["name"]] = {name: sum(part[at] for part in parts) for at, name in enumerate(names)}
        return found

    def pairs(self) -> list[Pair]:
        """Return the live connections that the dataplane carries."""
        found: list[Pair] = []
        with _reading(self._pins):
            readable = self._pins.readable
        if not readable:
            return found
        with _reading(self._pins), contextlib.suppress(FileNotFoundError), self._pins.open_map("pairs") as fd:
            pods = {cookie: str(pod["name"]) for cookie, pod in self._pins.pods().items()}
            found = [_pair(raw, pods) for raw in garbage.connections(fd).values()]
        return found


@contextlib.contextmanager
def _reading(pins: Pins) -> Iterator[None]:
    """Convert a failure to read into an error that reports it: unread is not the same as empty."""
    try:
        yield
    except OSError as error:
        raise LabError(
            str(unread(f"the dataplane below {pins.root}", error)), hint="merlab doctor", id="reading.failed"
        ) from error


def _pair(raw: dict[str, Any], pods: dict[int, str]) -> Pair:
    wire = raw["wire"]
    return Pair(
        id=raw["id"],
        leg=abi.legs()[raw["leg"]],
        source=f"{address(wire['src_ip4'])}:{wire['src_port']}",
        destination=f"{address(wire['dst_ip4'])}:{wire['dst_port']}",
        original=f"{address(raw['orig_ip4'])}:{raw['orig_port']}",
        pods=(pods.get(raw["netns"][0], ""), pods.get(raw["netns"][1], "")),
        redirected_messages=(raw["messages"][0], raw["messages"][1]),
        redirected_bytes=(raw["bytes"][0], raw["bytes"][1]),
        on_tcp=(bool(raw["tcp"][0]), bool(raw["tcp"][1])),
    )
