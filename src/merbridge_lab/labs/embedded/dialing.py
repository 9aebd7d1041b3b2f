"""Dial from a pod as apps other than curl do, and read what the dataplane records of those connections."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.command import run
from merbridge_lab.dial_results import Dial, Leg
from merbridge_lab.errors import LabError
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.embedded import rule_templates, topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.dataplane import Legs, Pair
    from merbridge_lab.labs.embedded.workload import EmbeddedWorkload

#: How long the connections stay open for reading, and how often they are read, in seconds.
_STAY, _LOOK = 0.25, 0.03
#: A size that others do not use: it tells the echo from other traffic.
_BYTES = 1759
_HTTP, _ECHO, *_ = topology.SERVICES


def dial(client: EmbeddedWorkload, pairs: Callable[[], Sequence[Pair]], legs: Legs) -> list[Dial]:
    """Dial helloworld with an IPv6 socket and echo with plain TCP, as the app of `client`.

    `legs` are those that eBPF must carry.

    Raises LabError, ClaimFailedError.
    """
    before = {pair.id for pair in pairs()}
    words = [
        request_batch.new_nonce(), _HTTP.name, str(_HTTP.port), _ECHO.name, str(_ECHO.port), str(_BYTES), str(_STAY),
    ]  # fmt: skip
    script = ["/usr/bin/python3", "-I", "-S", "-B", "-c", rule_templates.data("app/dial.py"), *words]
    client.pod.require_view()
    with _watching(pairs) as seen:
        done = run(client.app_argv(script), timeout=3 * request_batch.REQUEST, ok=range(256))
    client.pod.require_view()
    try:
        mapped, echo = json.loads(done.stdout)
    except ValueError:
        why = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.status}"
        raise LabError(
            f"the app of {client.name} cannot dial: {why}",
            hint="merlab doctor",
            stderr=done.stderr,
            id="lab.incomplete",
        ) from None
    live = [pair for number, pair in seen.items() if number not in before]
    # Behind the sidecar, the legs of the first are not told from those of other HTTP connections.
    apps = ("outbound",) if legs.out_of_app and legs.into_app else ()
    rest = (*apps, "mesh", "inbound") if apps else ("mesh",)
    by_ipv6 = "by an IPv6 socket, as Java dials"
    if mapped["code"] == errno.EAFNOSUPPORT:
        return [
            Dial(by_ipv6, "", "", "", 0, 0, served=False, unasked="this kernel has no IPv6 sockets"),
            _dial("by plain TCP to echo", _ECHO, echo, _legs(client.name, echo["local"], _ECHO.port, live), rest),
        ]
    return [
        _dial(by_ipv6, _HTTP, mapped, _legs(client.name, mapped["local"], 0, live), apps),
        _dial("by plain TCP to echo", _ECHO, echo, _legs(client.name, echo["local"], _ECHO.port, live), rest),
    ]


def _dial(
    how: str, service: topology.Service, told: dict[str, Any], legs: dict[str, Leg], needed: tuple[str, ...]
) -> Dial:
    return Dial(
        how=how,
        wanted=f"{service.vip}:{service.port}",
        local=told["local"],
        remote=told["remote"],
        sent=told["sent"],
        received=told["received"],
        served=told["served"],
        error=told["error"],
        needed=needed,
        legs=legs,
    )


def _legs(client: str, local: str, port: int, live: Sequence[Pair]) -> dict[str, Leg]:
    """Return the legs of a connection: the first by its source, those behind the sidecar by port and size."""
    found: dict[str, Leg] = {}
    for pair in live:
        leg = Leg(pair.original, *pair.redirected_bytes)
        if pair.leg == "outbound":
            is_its = pair.source == local
        elif pair.leg == "mesh":
            is_its = pair.pods[0] == client and pair.original.endswith(f":{port}")
        else:
            is_its = pair.original.endswith(f":{port}") and _BYTES in pair.redirected_bytes
        if is_its:
            found[pair.leg] = leg
    return found


@contextlib.contextmanager
def _watching(pairs: Callable[[], Sequence[Pair]]) -> Iterator[dict[int, Pair]]:
    """Read the live connections continuously during the block; yield the last state seen of each."""
    seen: dict[int, Pair] = {}
    failed: list[LabError] = []
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.wait(_LOOK):
                seen.update((pair.id, pair) for pair in pairs())
        except LabError as error:
            failed.append(error)

    thread = threading.Thread(target=watch, name="merlab-dials")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]
