"""Checked traffic between two processes that stand in pods: what is sent follows from a seed, so both ends know it.

    python3 -I streams.py serve PORT
    python3 -I streams.py run HOST PORT SEED COUNT THREADS MOST
    python3 -I streams.py stall HOST PORT up|down SIZE SLOW_FOR
    python3 -I streams.py bulk HOST PORT up|down SIZE
    python3 -I streams.py many HOST PORT COUNT

Run by the distribution's Python as the user of a pod's app, so: the standard library and this one file. Each prints
lines of JSON. A stream begins with a line in which the client says what both will do. Every wait has an end; what is
not as it should be is told, never tried again. `many` needs an echo at the other end, the others need `serve`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import queue
import random
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter

STUCK = 60.0  # s without a byte
BLOCKED = 1.0  # s without room for a byte: the sender is made to wait
SLOW_RATE = 1_000_000  # bytes/s
OPENING = 128  # handshakes of `many` under way at once
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset
STEPS = (1, 100, 1448, 4096, 16384, 70_000, 500_000)
#: How a stream ends: who says first that it has sent everything, or who resets it half-way.
ENDS = ("client first", "client first", "server first", "client resets", "server resets")
READERS = ("eager", "slow", "waitall", "peek")
OK = b"whole"

_lock = threading.Lock()


def say(**what: object) -> None:
    with _lock:
        print(json.dumps(what), flush=True)  # noqa: T201


class WrongError(Exception):
    """A byte is lost, made up, or in the wrong place; or an end came too early, too late, or not at all."""


def content(seed: str, way: str, size: int) -> bytes:
    return random.Random(f"{seed} {way}").randbytes(size)  # noqa: S311


def plan(seed: str, most: int) -> dict:
    """What both ends do in the stream of this seed."""
    rng = random.Random(seed)  # noqa: S311
    return {
        "seed": seed,
        "up": int(math.exp(rng.uniform(0, math.log(most)))),
        "down": int(math.exp(rng.uniform(0, math.log(most)))),
        "end": rng.choice(ENDS),
        "readers": [rng.choice(READERS), rng.choice(READERS)],
        "pauses": rng.choice((0, 0, 0.02, 0.1)),
    }


def send(sock: socket.socket, data: bytes, seed: str, pauses: float) -> None:
    """Send in pieces of all sizes, with pauses after some of them."""
    rng, at = random.Random(f"{seed} pieces"), 0  # noqa: S311
    while at < len(data):
        step = rng.choice(STEPS)
        sock.sendall(data[at : at + step])
        at += step
        if rng.random() < pauses:
            time.sleep(rng.random() * 0.02)


def _some(sock: socket.socket, how: str, room: int, reads: int) -> bytes:
    """Receive once. A blocking recv on a socket in a sockhash may say EAGAIN early; a deadline tells that apart."""
    if how == "slow" and reads < 100:
        time.sleep(0.002)
        room = min(room, 20_000)
    if how not in ("waitall", "peek"):
        return sock.recv(min(room, 262_144))
    if how == "peek":
        peeked = sock.recv(min(room, 65536), socket.MSG_PEEK)
        got = sock.recv(len(peeked)) if peeked else b""
        if got != peeked[: len(got)]:
            raise WrongError("a peek showed other bytes than the read after it")
        return got
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(STUCK), 0))
    deadline = time.monotonic() + STUCK
    while True:
        try:
            return sock.recv(min(room, 100_000), socket.MSG_WAITALL)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError("timed out") from None


def receive(sock: socket.socket, want: bytes, how: str = "eager", slow_for: float = 0.0) -> str:
    """Receive `want` and nothing else; gives how that ended: "whole", or "eof", "reset" before."""
    at, reads, began = 0, 0, time.monotonic()
    while at < len(want):
        room = len(want) - at
        if (passed := time.monotonic() - began) < slow_for:
            room = min(room, 50_000)
            time.sleep(max(0.0, at / SLOW_RATE - passed))
        try:
            got = _some(sock, how, room, reads)
        except ConnectionResetError:
            return "reset"
        if not got:
            return "eof"
        if got != want[at : at + len(got)]:
            raise WrongError(wrong_at(got, want, at))
        at, reads = at + len(got), reads + 1
    return "whole"


def wrong_at(got: bytes, want: bytes, at: int) -> str:
    off = next(n for n, byte in enumerate(got) if byte != want[at + n])
    probe = got[off : off + 32]
    return f"byte {at + off} of {len(want)} is not what was sent; what came was sent as byte {want.find(probe)}"


def expect_end(sock: socket.socket) -> None:
    if extra := sock.recv(1):
        raise WrongError(f"a byte too many: {extra!r}")


def whole(ended: str) -> None:
    if ended != "whole":
        raise WrongError(f"{ended} before everything was there")


class Other(threading.Thread):
    """The sending half of a stream, beside the receiving one; `end` tells what went wrong."""

    def __init__(self, job, *args) -> None:
        super().__init__(daemon=True)
        self.job, self.args, self.failed = job, args, None
        self.start()

    def run(self) -> None:
        try:
            self.job(*self.args)
        except (OSError, WrongError) as failed:
            self.failed = failed

    def end(self) -> None:
        self.join(2 * STUCK)
        if self.is_alive():
            raise TimeoutError("the sending half does not end")
        if self.failed:
            raise self.failed


def cut(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


# -- the serving end


class Server:
    def __init__(self) -> None:
        self.change = threading.Condition()
        self.active = 0
        self.release = threading.Event()
        self.clear()

    def clear(self) -> None:
        self.streams, self.wrong, self.ends = 0, [], Counter()

    def take(self, sock: socket.socket) -> None:
        said: dict = {}
        try:
            with sock:
                sock.settimeout(STUCK)
                line = b""
                while not line.endswith(b"\n"):
                    byte = sock.recv(1)
                    if not byte:
                        raise ConnectionResetError  # noqa: TRY301
                    line += byte
                said = json.loads(line)
                ended = self.serve(sock, said)
        except ConnectionResetError:
            ended = "reset"
            if said.get("end") != "client resets" and said:
                self.wrong.append(f"{said}: reset")
        except (OSError, WrongError) as failed:
            ended = "failed"
            self.wrong.append(f"{said}: {type(failed).__name__} {failed}")
        with self.change:
            self.streams += 1
            self.ends[f"{said.get('end')}: {ended}"] += 1
            self.active -= 1
            self.change.notify_all()

    def serve(self, sock: socket.socket, said: dict) -> str:
        seed, end = said["seed"], said["end"]
        up, down = content(seed, "up", said["up"]), content(seed, "down", said["down"])
        how = said["readers"][0]
        if end == "hold":  # the client sends and we do not read, until we are told to
            say(holding=seed)
            if not self.release.wait(STUCK):
                raise TimeoutError("nobody told us to read")
            whole(receive(sock, up, slow_for=said["slow_for"]))
            expect_end(sock)
            sock.sendall(OK)
            return "whole"
        if end == "push":  # we send and the client does not read
            say(let_in=fill(sock, down))
            sock.shutdown(socket.SHUT_WR)
            expect_end(sock)
            return "whole"
        if end == "server resets":
            down = down[: len(down) // 2]
        sending = Other(send, sock, down, seed + "s", said["pauses"])
        if end == "server resets":
            ended = receive(sock, up[: len(up) // 2], how)
            with contextlib.suppress(ConnectionError):
                sending.end()
            cut(sock)
            return ended
        if end == "client resets":
            ended = receive(sock, up, how)
            sock.settimeout(STUCK)
            with contextlib.suppress(ConnectionError):
                sending.end()
            return ended
        if end == "server first":
            half = len(up) // 2
            whole(receive(sock, up[:half], how))
            sending.end()
            sock.shutdown(socket.SHUT_WR)  # only when it has seen this does the client send the rest
            whole(receive(sock, up[half:], how))
            expect_end(sock)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as aside:
                aside.sendto(seed.encode(), tuple(said["tell"]))
            return "whole"
        whole(receive(sock, up, how))
        expect_end(sock)
        sending.end()
        sock.sendall(OK)
        return "whole"

    def report(self) -> None:
        with self.change:
            if not self.change.wait_for(lambda: self.active == 0, 2 * STUCK):
                self.wrong.append(f"{self.active} streams do not end")
            say(streams=self.streams, wrong=self.wrong, ends=self.ends)
            self.clear()

    def listen(self, port: int) -> None:
        with socket.create_server(("0.0.0.0", port), backlog=4096) as listener:
            say(listening=port)
            while True:
                sock, _ = listener.accept()
                with self.change:
                    self.active += 1
                threading.Thread(target=self.take, args=(sock,), daemon=True).start()


def serve(port: str) -> None:
    server = Server()
    threading.Thread(target=server.listen, args=(int(port),), daemon=True).start()
    for line in sys.stdin:
        if line == "report\n":
            server.report()
        elif line == "read\n":
            server.release.set()
        elif line == "hold\n":
            server.release.clear()


# -- the dialling end


def fill(sock: socket.socket, data: bytes) -> int:
    """Send until there is no room for a while, then what is left; gives what was let in."""
    sock.setblocking(False)
    poll, at, let_in = select.poll(), 0, None
    poll.register(sock, select.POLLOUT)
    while at < len(data):
        if not poll.poll(BLOCKED * 1000 if let_in is None else STUCK * 1000):
            if let_in is not None:
                raise TimeoutError("timed out")
            let_in = at
            say(blocked=let_in)
            continue
        with contextlib.suppress(BlockingIOError):
            at += sock.send(data[at : at + 262_144])
    sock.settimeout(STUCK)
    return len(data) if let_in is None else let_in


def dial(host: str, port: int, said: dict) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=STUCK)
    sock.sendall(json.dumps(said).encode() + b"\n")
    return sock


def stream(host: str, port: int, said: dict) -> str:
    """One stream; gives how it ended, which for a reset may be in more ways than one."""
    seed, end = said["seed"], said["end"]
    up, down = content(seed, "up", said["up"]), content(seed, "down", said["down"])
    how = said["readers"][1]
    with contextlib.ExitStack() as stack:
        if end == "server first":
            aside = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            aside.settimeout(STUCK)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
                route.connect((host, port))
                aside.bind((route.getsockname()[0], 0))
            said = {**said, "tell": aside.getsockname()}
        sock = stack.enter_context(dial(host, port, said))
        if end == "client resets":
            sending = Other(send, sock, up[: len(up) // 2], seed + "c", said["pauses"])
            whole(receive(sock, down[: len(down) // 2], how))
            sending.end()
            cut(sock)
            return "cut"
        if end == "server resets":
            sending = Other(send, sock, up, seed + "c", said["pauses"])
            ended = receive(sock, down, how)
            with contextlib.suppress(ConnectionError):
                sending.end()
            if ended == "whole":
                raise WrongError("more came than was sent")
            return ended
        if end == "server first":
            half = len(up) // 2
            sending = Other(send, sock, up[:half], seed + "c", said["pauses"])
            whole(receive(sock, down, how))
            expect_end(sock)
            sending.end()
            send(sock, up[half:], seed + "d", said["pauses"])
            sock.shutdown(socket.SHUT_WR)
            if aside.recv(1000) != seed.encode():
                raise WrongError("the confirmation is of another stream")
            return "whole"

        def everything() -> None:
            send(sock, up, seed + "c", said["pauses"])
            sock.shutdown(socket.SHUT_WR)

        sending = Other(everything)
        whole(receive(sock, down + OK, how))
        expect_end(sock)
        sending.end()
        return "whole"


def run(host: str, port: str, seed: str, count: str, threads: str, most: str) -> None:
    jobs: queue.SimpleQueue = queue.SimpleQueue()
    ends: Counter = Counter()
    wrong: list[str] = []
    carried = [0, 0]
    for number in range(int(count)):
        jobs.put(plan(f"{seed}/{number}", int(most)))

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                said = jobs.get_nowait()
                try:
                    ended = stream(host, int(port), said)
                except (OSError, WrongError) as failed:
                    ended = "failed"
                    with _lock:
                        wrong.append(f"{said}: {type(failed).__name__} {failed}")
                with _lock:
                    ends[f"{said['end']}: {ended}"] += 1
                    carried[0] += said["up"]
                    carried[1] += said["down"]

    began = time.monotonic()
    workers = [threading.Thread(target=work) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = round(time.monotonic() - began, 1)
    say(streams=sum(ends.values()), wrong=wrong, ends=ends, planned_bytes=carried, seconds=seconds)


def simple(end: str, way: str, size: str) -> dict:
    sizes = {"up": 0, "down": 0, way: int(size)}
    return {"seed": f"{end} {way}", **sizes, "end": end, "readers": ["eager", "eager"], "pauses": 0}


def stall(host: str, port: str, way: str, size: str, slow_for: str) -> None:
    """`up`: the server does not read until told to; `down`: we do not. Then it is read slowly for a while."""
    said = {**simple("hold" if way == "up" else "push", way, size), "slow_for": float(slow_for)}
    data = content(said["seed"], way, said[way])
    with dial(host, int(port), said) as sock:
        if way == "up":
            say(let_in=fill(sock, data))
            sock.shutdown(socket.SHUT_WR)
            whole(receive(sock, OK))
        else:
            sys.stdin.readline()
            whole(receive(sock, data, slow_for=float(slow_for)))
        expect_end(sock)
    say(done=True)


def bulk(host: str, port: str, way: str, size: str) -> None:
    began = time.monotonic()
    stream(host, int(port), simple("client first", way, size))
    say(done=True, seconds=round(time.monotonic() - began, 2))


def many(host: str, port: str, count: str) -> None:
    """Have so many connections open at once, and an answer on each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    to = (socket.gethostbyname(host), int(port))
    began, left = time.monotonic(), int(count)
    poll, opening, answered = select.epoll(), {}, []
    while left or opening:
        while left and len(opening) < OPENING:
            sock = socket.socket()
            sock.setblocking(False)
            failed = sock.connect_ex(to)
            if failed not in (0, errno.EINPROGRESS):
                raise OSError(failed, "connect")
            opening[sock.fileno()] = [sock, f"connection {left}".encode(), b"", False]
            poll.register(sock, select.EPOLLOUT)
            left -= 1
        events = poll.poll(STUCK)
        if not events:
            raise TimeoutError(f"{len(opening)} get no answer, {len(answered)} did")
        for fd, _ in events:
            one = opening[fd]
            sock, text, got, asked = one
            if not asked:
                sock.send(text)
                one[3] = True
                poll.modify(fd, select.EPOLLIN)
                continue
            part = sock.recv(len(text) - len(got))
            one[2] = got = got + part
            if not part or not text.startswith(got):
                raise WrongError(f"{got!r} instead of {text!r}")
            if got == text:
                poll.unregister(fd)
                answered.append(opening.pop(fd)[0])
    say(answered=len(answered), seconds=round(time.monotonic() - began, 1))
    sys.stdin.readline()
    for number, sock in enumerate(answered):  # all are still alive, and each still has its own answer
        sock.settimeout(STUCK)
        sock.sendall(b"again %d" % number)
        whole(receive(sock, b"again %d" % number))
        sock.shutdown(socket.SHUT_WR)
        expect_end(sock)
        sock.close()
    say(done=True)


if __name__ == "__main__":
    {"serve": serve, "run": run, "stall": stall, "bulk": bulk, "many": many}[sys.argv[1]](*sys.argv[2:])
