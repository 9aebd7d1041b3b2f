"""The client of all apps, in the pod sleep: runs cases one after the other, prints a JSON object for each.

client.py streams|web HOST PORT FILE SECONDS CASE…
client.py program HOST PORT FILE SECONDS CASE… -- PROGRAM…   with `fetch HOST PORT FILE down|up N` after it

Each case has SECONDS (those of many requests twice as many): what then still waits has stalled. It ends after the first
case that is not right, so that the app can be restarted.
"""

import contextlib
import json
import mmap
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

KB, MB = 1000, 1_000_000
SIZES = {"small": 100, "1MB": MB, "20MB": 20 * MB}


class Wrong(Exception):
    """Something else than what was to come."""


class Case:
    """What the cases of one app have in common."""

    def __init__(self, kind: str, host: str, port: int, file: mmap.mmap, seconds: float) -> None:
        self.talk = {"streams": Streams, "web": Web}[kind]
        self.to, self.file, self.seconds = (host, port), file, seconds
        self.deadline, self.opened = 0.0, 0

    def open(self):
        self.opened += 1
        return self.talk(self)


class Talk:
    """One connection."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.sock = socket.create_connection(case.to, self._left())
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def _left(self) -> float:
        left = self.case.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self.sock.settimeout(self._left())
            view = view[self.sock.send(view[:262144]) :]

    def send_slowly(self, data: bytes, pieces: int) -> None:
        size = len(data) // pieces + 1
        for at in range(0, len(data), size):
            self.send(data[at : at + size])
            time.sleep(0.01)

    def some(self, want: int = 65536) -> bytes:
        if self.rest:
            data, self.rest = self.rest[:want], self.rest[want:]
            return data
        self.sock.settimeout(self._left())
        return self.sock.recv(want)

    def exactly(self, size: int, *, slow: bool = False) -> bytes:
        got, all_of_it = [], 0
        if slow:
            time.sleep(0.5)
        while all_of_it < size:
            data = self.some(min(262144, size - all_of_it))
            if not data:
                raise Wrong(f"the end after {all_of_it} of {size} bytes")
            got.append(data)
            all_of_it += len(data)
            if slow and all_of_it < 5 * MB:
                time.sleep(0.01)
        return b"".join(got)

    def compare(self, got: bytes, size: int) -> None:
        if got != self.case.file[:size]:
            raise Wrong(f"other bytes than were sent, in {len(got)}")

    def check_answer(self, got: bytes, size: int) -> None:
        if got != b"C%015d" % zlib.crc32(self.case.file[:size]):
            raise Wrong(f"the app read other bytes than were sent, in {size}: {got!r}")

    def end(self) -> None:
        if data := self.some():
            raise Wrong(f"{len(data)} bytes more than should come")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Streams(Talk):
    """The requests of c/stream.h."""

    def ask(self, kind: str, size: int) -> None:
        self.send(f"{kind}{size:015d}".encode())

    def get(self, size: int, *, slow: bool = False) -> None:
        self.ask("G", size)
        self.compare(self.exactly(size, slow=slow), size)

    def put(self, size: int, *, slow: bool = False) -> None:
        self.ask("P", size)
        self.send_slowly(self.case.file[:size], 50) if slow else self.send(self.case.file[:size])
        self.check_answer(self.exactly(16), size)

    def put_to_slow(self, size: int) -> None:
        self.ask("S", size)
        self.send(self.case.file[:size])
        self.check_answer(self.exactly(16), size)

    def both_ways(self, size: int) -> None:
        self.ask("E", size)
        sending = Job(lambda: self.send(self.case.file[:size]))
        self.compare(self.exactly(size), size)
        sending.result()

    def put_and_half_close(self, size: int) -> None:
        self.ask("H", 0)
        self.send(self.case.file[:size])
        self.half_close()
        self.check_answer(self.exactly(16), size)
        self.end()

    def get_and_end(self, size: int) -> None:
        self.ask("X", size)
        self.compare(self.exactly(size), size)
        self.end()

    def begin_get(self, size: int) -> None:
        self.ask("G", size)

    def begin_put(self, size: int) -> None:
        self.ask("P", size)


class Web(Talk):
    """HTTP/1.1 as it is on the wire."""

    def ask(self, method: str, path: str, *headers: str, size: int = 0) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.case.to[0]}:{self.case.to[1]}", *headers]
        if method == "PUT":
            lines.append(f"Content-Length: {size}")
        self.send("\r\n".join([*lines, "", ""]).encode())

    def reply(self, *, slow: bool = False) -> tuple[int, bytes]:
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.some()
            if not data:
                raise Wrong(f"the end within the head of a reply: {head!r}")
            head += data
        head, _, self.rest = head.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if "transfer-encoding" in headers:
            return status, self.chunks()
        return status, self.exactly(int(headers.get("content-length", 0)), slow=slow)

    def chunks(self) -> bytes:
        body = b""
        while True:
            line = b""
            while not line.endswith(b"\r\n"):
                line += self.exactly(1)
            piece = self.exactly(int(line, 16) + 2)[:-2]
            if not piece:
                return body
            body += piece

    def get(self, size: int, *headers: str, slow: bool = False, path: str = "") -> None:
        self.ask("GET", path or f"/bytes/{size}", *headers)
        status, body = self.reply(slow=slow)
        if status != 200:
            raise Wrong(f"HTTP {status}")
        self.compare(body, size)

    def put(self, size: int, *, slow: bool = False) -> None:
        path = f"/up/{self.sock.getsockname()[1]}"
        self.ask("PUT", path, size=size)
        self.send_slowly(self.case.file[:size], 50) if slow else self.send(self.case.file[:size])
        status, body = self.reply()
        if status in (201, 204):  # by WebDAV: what was stored is read again
            self.get(size, path=path)
        elif status == 200:
            self.check_answer(body, size)
        else:
            raise Wrong(f"HTTP {status}")

    def get_with_headers(self) -> None:
        long = [f"X-Long-{each}: {str(each) * 1500}" for each in range(5)]
        self.get(KB, *long, f"Cookie: {'c' * 6000}")

    def get_and_half_close(self, size: int) -> None:
        self.ask("GET", f"/bytes/{size}", "Connection: close")
        self.half_close()
        status, body = self.reply()
        if status != 200:
            raise Wrong(f"HTTP {status}")
        self.compare(body, size)
        self.end()

    def get_and_end(self, size: int) -> None:
        self.get(size, "Connection: close")
        self.end()

    def begin_get(self, size: int) -> None:
        self.ask("GET", f"/bytes/{size}")

    def begin_put(self, size: int) -> None:
        self.ask("PUT", "/up/begun", size=size)


class Job:
    """A thread, whose error is raised by `result`."""

    def __init__(self, work) -> None:
        self.work, self.error = work, None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:  # noqa: BLE001 - told by result()
            self.error = error

    def result(self) -> None:
        self.thread.join()
        if self.error:
            raise self.error


def once(case: Case, name: str) -> None:
    """Run a case that is one request or a few on one connection."""
    size, _, way = name.partition("-")
    with case.open() as talk:
        if size in SIZES:
            (talk.get if way == "down" else talk.put)(SIZES[size])
        elif name == "slow-reader":
            talk.get(20 * MB, slow=True)
        elif name == "slow-sender":
            talk.put(MB, slow=True)
        elif name == "slow-app":
            talk.put_to_slow(3 * MB)
        elif name == "both-ways":
            talk.both_ways(4 * MB)
        elif name == "headers":
            talk.get_with_headers()
            talk.get_with_headers()
        elif name == "half-close" and case.talk is Web:
            talk.get_and_half_close(MB)
        elif name == "half-close":
            talk.put_and_half_close(MB)
        elif name == "app-closes":
            talk.get_and_end(MB)
        else:
            raise KeyError(name)


def burst(case: Case) -> None:
    """Keep a connection that carried a burst, and go on with it."""
    with case.open() as talk:
        for _ in range(5):
            talk.put(100)
            talk.get(100)
        talk.put(4 * MB)
        talk.get(4 * MB)
        time.sleep(0.3)
        for _ in range(20):
            talk.put(100)
            talk.get(KB)
        talk.put(MB)
        talk.get(MB)


def early_close(case: Case) -> None:
    """Leave in the middle, three times each way; the app must serve the next one all the same.

    The app has answered once before: a connection that is reset before it is accepted was never there.
    """
    for ends in ("close", "reset", "close"):
        with case.open() as talk:
            talk.get(100)
            talk.begin_get(20 * MB)
            talk.exactly(100 * KB)
            talk.reset() if ends == "reset" else None
        with case.open() as talk:
            talk.get(100)
            talk.begin_put(20 * MB)
            talk.send(case.file[: 300 * KB])
            talk.reset() if ends == "reset" else None
    with case.open() as talk:
        talk.put(100)
        talk.get(MB)


def fresh(case: Case) -> None:
    for _ in range(100):
        with case.open() as talk:
            talk.put(100)
            talk.get(KB)


def at_once(case: Case) -> None:
    """Have fifty connections at once, all of which carry something while all exist."""

    def both(talk) -> None:
        talk.put(100 * KB)
        talk.get(100 * KB)

    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(case.open()) for _ in range(50)]
        jobs = [Job(lambda talk=talk: both(talk)) for talk in talks]
        for job in jobs:
            job.thread.join()
        for job in jobs:
            job.result()


def program(argv: list[str], name: str, host: str, port: int, path: str, seconds: float) -> None:
    size, _, way = name.partition("-")
    full = [*argv, "fetch", host, str(port), path, way, str(SIZES[size])]
    try:
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Wrong(said[-1] if said else f"exit {done.returncode}")


MANY = {"burst": burst, "early-close": early_close, "fresh": fresh, "at-once": at_once}


def main() -> None:
    kind, host, port, path, seconds, *rest = sys.argv[1:]
    names, argv = (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, [])
    with open(path, "rb") as opened:
        file = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    case = Case(kind, host, int(port), file, float(seconds)) if kind != "program" else None
    for name in names:
        begun, opened, outcome, detail = time.monotonic(), 0, "ok", ""
        try:
            if case is None:
                opened = 1
                program(argv, name, host, int(port), path, float(seconds))
            else:
                case.deadline, case.opened = begun + case.seconds * (2 if name in MANY else 1), 0
                MANY[name](case) if name in MANY else once(case, name)
        except TimeoutError:
            outcome = "stalled"
        except (Wrong, OSError, ValueError) as error:
            outcome, detail = "wrong", str(error)[:200] or type(error).__name__
        opened = case.opened if case else opened
        seconds_taken = round(time.monotonic() - begun, 3)
        said = {"case": name, "outcome": outcome, "detail": detail, "seconds": seconds_taken, "connections": opened}
        print(json.dumps(said), flush=True)
        if outcome != "ok":
            break


main()
