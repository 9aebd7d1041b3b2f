"""Streams of bytes over two connected sockets, planned by a seed and checked byte by byte at both ends.

The sockets belong to pods (dataplane_rig.Agent creates them there and passes them on). The kernel does not care who
calls send() and recv() on them, so one process plays both ends and needs no other channel to compare results.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

#: The content that is sent repeatedly, from an offset that depends on the stream. Its length is no power of two, so
#: that a lost, repeated or exchanged piece is recognized.
LENGTH = 1_000_003
BLOCK = random.Random("merlab").randbytes(LENGTH) * 2  # noqa: S311
HEADER = struct.Struct("!4sQ")

#: Seconds after which a stream that does not progress is given up.
PATIENCE = 40.0

SMALLEST, LARGEST = 1, 20_000_000
ORDERLY, RESETS, CLOSES = "ends in good order", "resets", "closes with bytes unread"
#: Both ends half-close, each when it has sent everything. Envoy then sometimes closes with bytes still to be delivered,
#: also on the reference path (9 of 3,000 there). So only an end that waits for the other's can be sure.
AT_ONCE = "half-closes at once with the other"
NOTHING = "nothing comes any more"
MODES = ("block", "waitall", "peek", "poll")


@dataclass(frozen=True)
class Plan:
    """One connection: how much goes each way (index 0 from the client, 1 from the server), and how it ends."""

    seed: int
    sizes: tuple[int, int]
    ending: str = ORDERLY
    who: int = 0  # of the two ends it
    breaks_at: float = 1.0  # of what that end has to send
    modes: tuple[str, str] = ("block", "block")  # in which the two ends read
    paused: tuple[float, float] = (0.0, 0.0)  # how likely a pause is before a send or recv of an end
    waits: int | None = 1  # this end half-closes only when the other one has

    @classmethod
    def of(cls, seed: int, largest: int = LARGEST) -> Plan:
        rng = random.Random(seed)  # noqa: S311

        def size() -> int:
            return min(largest, round(SMALLEST * (largest / SMALLEST) ** rng.random()))

        ending = rng.choices((ORDERLY, RESETS, CLOSES, AT_ONCE), (6, 2, 1, 1))[0]
        return cls(
            seed=seed,
            sizes=(size(), size()),
            ending=ending,
            who=rng.randrange(2),
            breaks_at=rng.random(),
            modes=(rng.choice(MODES), rng.choice(MODES)),
            paused=(rng.choice((0, 0, 0.02, 0.2)), rng.choice((0, 0, 0.02, 0.2))),
            waits=None if ending == AT_ONCE else rng.randrange(2),
        )


@dataclass
class End:
    """What one end of a stream observed."""

    sent: int = 0
    got: int = 0
    wrong: str = ""
    end: str = ""  # of what came in: "eof", "reset", or what else
    failed: str = ""  # what stopped the sending
    early: int = 0  # blocking calls that said "try again"
    short: int = 0  # MSG_WAITALL that came back with less
    done: threading.Event = field(default_factory=threading.Event)


def _is_reset(failed: OSError) -> bool:
    return failed.errno in (errno.ECONNRESET, errno.EPIPE)


def _state(sock: socket.socket) -> int:
    """Return the state of a connection as in linux/tcp_states.h: 1 established, 8 the other end has closed."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class _Side:
    """One end running."""

    def __init__(self, plan: Plan, side: int, sock: socket.socket) -> None:
        self.plan, self.side, self.sock = plan, side, sock
        self.seen = End()
        self.stop = threading.Event()
        self.breaks = plan.ending in (RESETS, CLOSES) and plan.who == side
        self.mode = "poll" if self.breaks else plan.modes[side]
        whole = struct.pack("=qq", int(PATIENCE), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, whole)

    def _offset(self, sender: int) -> int:
        return (self.plan.seed * 7919 + sender * 104_729) % LENGTH

    def _pause(self, rng: random.Random) -> None:
        if rng.random() < self.plan.paused[self.side]:
            time.sleep(rng.random() * 0.02)  # part of the plan: nothing is awaited

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self) -> None:
        rng = random.Random(self.plan.seed * 2 + self.side)  # noqa: S311
        size = self.plan.sizes[self.side]
        if self.breaks:
            size = int(size * self.plan.breaks_at)
        start, view = self._offset(self.side), memoryview(BLOCK)
        try:
            while self.seen.sent < size:
                self._pause(rng)
                want = min(rng.choice((1, 100, 4096, 70_000, 500_000)), size - self.seen.sent)
                at = (start + self.seen.sent) % LENGTH
                self.seen.sent += self._push(view[at : at + want])
            if not self.breaks:
                if self.plan.waits == self.side:
                    self.seen.done.wait(PATIENCE)
                self.sock.shutdown(socket.SHUT_WR)
        except OSError as failed:
            self.seen.failed = "reset" if _is_reset(failed) else str(failed)
        if self.breaks:
            self._break()

    def _push(self, piece: memoryview) -> int:
        begun = time.monotonic()
        while True:
            try:
                return self.sock.send(piece)
            except BlockingIOError:
                if time.monotonic() - begun > PATIENCE - 1:
                    raise TimeoutError("nobody takes what is sent") from None
                self.seen.early += 1

    def _break(self) -> None:
        # The last descriptor must be closed for the connection to end, and nobody may be using it then.
        self.stop.set()
        self.seen.done.wait(PATIENCE)
        if self.plan.ending == RESETS:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self.sock.close()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        rng = random.Random(self.plan.seed * 2 + self.side + 1_000_000)  # noqa: S311
        start = self._offset(1 - self.side)
        progress = time.monotonic()
        try:
            while not self.stop.is_set():
                self._pause(rng)
                data = self._pull(rng.choice((1, 100, 4096, 70_000, 500_000)))
                if data is None:
                    if time.monotonic() - progress > PATIENCE:
                        raise TimeoutError(f"{NOTHING}, in TCP's state {_state(self.sock)}")
                    continue
                progress = time.monotonic()
                if not data:
                    self.seen.end = "eof"
                    return
                at = (start + self.seen.got) % LENGTH
                if memoryview(BLOCK)[at : at + len(data)] != data:
                    self._tell(data, start)
                    return
                self.seen.got += len(data)
        except OSError as failed:
            self.seen.end = "reset" if _is_reset(failed) else str(failed)
        finally:
            self.seen.done.set()
            if not self.breaks and self.plan.ending != ORDERLY and self.seen.got < self.plan.sizes[1 - self.side]:
                # Cut by the other end, or by Envoy, which then may take nothing any more either.
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    def _tell(self, data: bytes, start: int) -> None:
        probe = data[:16]
        found = (BLOCK.find(probe) - start) % LENGTH if probe in BLOCK else None
        self.seen.wrong = f"at byte {self.seen.got} what belongs at {found} (modulo {LENGTH}), {len(data)} bytes"
        self.seen.end = "wrong"

    def _pull(self, want: int) -> bytes | None:
        """Return some bytes; nothing at the end; None to be called again."""
        begun = time.monotonic()
        try:
            if self.mode == "poll":
                if not select.select([self.sock], [], [], 0.1)[0]:
                    return None
                return self.sock.recv(want, socket.MSG_DONTWAIT)
            if self.mode == "waitall":
                data = self.sock.recv(want, socket.MSG_WAITALL)
                self.seen.short += len(data) < want
                return data
            if self.mode == "peek":
                ahead = self.sock.recv(want, socket.MSG_PEEK)
                data = self.sock.recv(len(ahead)) if ahead else b""
                if data != ahead[: len(data)]:
                    self.seen.wrong = f"at byte {self.seen.got} something else than what was peeked"
                return data
            return self.sock.recv(want)
        except BlockingIOError:
            if self.mode != "poll":
                if time.monotonic() - begun > PATIENCE - 1:
                    raise TimeoutError(f"{NOTHING}, in TCP's state {_state(self.sock)}") from None
                self.seen.early += 1
            return None


def play(plan: Plan, client: socket.socket, server: socket.socket) -> tuple[End, End]:
    """Execute a plan over a connection and return what its two ends observed; both sockets are closed."""
    sides = (_Side(plan, 0, client), _Side(plan, 1, server))
    jobs = [
        *(threading.Thread(target=side.send) for side in sides),
        *(threading.Thread(target=side.receive) for side in sides),
    ]
    try:
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    finally:
        for side in sides:
            side.stop.set()
        for job in jobs:
            if job.is_alive():
                job.join()
        client.close(), server.close()
    return sides[0].seen, sides[1].seen


def verdict(plan: Plan, client: End, server: End) -> list[str]:
    """Describe what went wrong with a stream; nothing if it behaved like TCP."""
    ends, found = (client, server), []
    for side, name in enumerate(("client", "server")):
        seen, other = ends[side], ends[1 - side]
        if seen.wrong:
            found.append(f"the {name} got {seen.wrong}")
        if seen.got > other.sent:
            found.append(f"the {name} got {seen.got} of {other.sent} bytes sent")
        if plan.ending == ORDERLY:
            if (seen.sent, seen.failed) != (plan.sizes[side], ""):
                found.append(f"the {name} could send only {seen.sent} of {plan.sizes[side]} bytes: {seen.failed}")
            if (seen.got, seen.end) != (plan.sizes[1 - side], "eof"):
                found.append(f"the {name} got {seen.got} of {plan.sizes[1 - side]} bytes, then {seen.end!r}")
        elif (plan.ending == AT_ONCE or plan.who != side) and seen.end not in ("eof", "reset"):
            found.append(f"the {name} was not told that the other end {plan.ending}: {seen.end!r}, {seen.failed!r}")
    return [f"{plan}: {each}" for each in found]


def is_only_the_end_missing(plan: Plan, client: End, server: End) -> bool:
    """Report whether nothing is wrong but that an end was not told that there are no more bytes."""
    ends = (client, server)
    waiting = [side for side in (0, 1) if ends[side].end.startswith(NOTHING)]
    told = [side for side in (0, 1) if side not in waiting and not (plan.who == side and plan.ending != ORDERLY)]
    return (
        bool(waiting)
        and not any(ends[side].wrong or (ends[side].failed and plan.ending == ORDERLY) for side in (0, 1))
        and all(ends[side].end in ("eof", "reset") for side in told)
        and (plan.ending != ORDERLY or all(ends[side].got == plan.sizes[1 - side] for side in (0, 1)))
    )


class Meeting:
    """Matches clients with the connections that servers accept, by a number that the client sends first."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._met: dict[int, socket.socket] = {}
        self._news = threading.Condition()
        self._ended, self._end = os.pipe()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        poll = select.poll()
        by_fd = {each.fileno(): each for each in self._listeners}
        for fd in (*by_fd, self._ended):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._ended:
                    return
                with contextlib.suppress(OSError):
                    sock, _ = by_fd[fd].accept()
                    threading.Thread(target=self._greet, args=(sock,), daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        head = b""
        try:
            while len(head) < HEADER.size and (more := sock.recv(HEADER.size - len(head))):
                head += more
        except OSError:
            pass
        if len(head) < HEADER.size or not head.startswith(b"MERL"):
            sock.close()
            return
        sock.settimeout(None)
        with self._news:
            self._met[HEADER.unpack(head)[1]] = sock
            self._news.notify_all()

    def server_of(self, number: int, client: socket.socket) -> socket.socket:
        """Identify `client` to the server and return the other end. Raises TimeoutError."""
        client.sendall(HEADER.pack(b"MERL", number))
        client.settimeout(None)
        with self._news:
            if not self._news.wait_for(lambda: number in self._met, PATIENCE):
                raise TimeoutError(f"stream {number} was accepted by nobody")
            return self._met.pop(number)

    def close(self) -> None:
        os.write(self._end, b"x")
        self._threads[0].join()
        os.close(self._end), os.close(self._ended)
        for sock in self._met.values():
            sock.close()


@dataclass
class Tally:
    """The totals of many streams."""

    streams: int = 0
    bytes: int = 0
    early: int = 0
    held: int = 0  # all arrived, but not the end (streams_lab.unsaid_ends)
    cut: int = 0  # of those that half-close at once: not all arrived
    wrong: list[str] = field(default_factory=list)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, plan: Plan, client: End, server: End) -> None:
        """Add the result of one stream."""
        self.streams += 1
        if is_only_the_end_missing(plan, client, server):
            self.held += 1
        else:
            self.wrong += verdict(plan, client, server)
        self.cut += plan.ending == AT_ONCE and (client.got, server.got) != (plan.sizes[1], plan.sizes[0])
        if plan.ending in (RESETS, CLOSES):
            self.ends[plan.ending, (client, server)[1 - plan.who].end] += 1
        for end in (client, server):
            self.bytes += end.got
            self.early += end.early

    def __str__(self) -> str:
        ends = ", ".join(f"{ending} -> {end}: {number}" for (ending, end), number in sorted(self.ends.items()))
        return (
            f"{self.streams} streams, {self.bytes >> 20} MB, {len(self.wrong)} wrong, {self.cut} cut by Envoy and "
            f"{self.held} ends not passed on, {self.early} times EAGAIN from a blocking call; {ends}"
        )
