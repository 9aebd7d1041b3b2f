"""How many bytes a receiver lets in that does not read: `listen PORT` is the receiver, `send HOST PORT` the sender.

    python3 -I -S -B unread.py listen PORT SECONDS
    python3 -I -S -B unread.py send HOST PORT QUIET MOST

The sender writes until nothing more is taken for QUIET seconds, at most MOST bytes; it prints how many were taken, and
in how many seconds, as JSON, and leaves. The receiver accepts, and closes after SECONDS.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

CHUNK = bytes(65536)


def listen(port: int, seconds: float) -> None:
    """Accept connections one after the other, read nothing, and close each after `seconds`."""
    with socket.create_server(("", port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                select.select([], [], [], seconds)


def send(host: str, port: int, quiet: float, most: int) -> tuple[int, float]:
    """Return how many bytes were taken, and after how many seconds the last."""
    taken, began = 0, time.monotonic()
    last = began
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.setblocking(False)
        while taken < most:
            if not select.select([], [connection], [], quiet)[1]:
                break
            taken += connection.send(CHUNK)
            last = time.monotonic()
    return taken, last - began


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "listen":
        listen(int(words[0]), float(words[1]))
    else:
        number, seconds = send(words[0], int(words[1]), float(words[2]), int(words[3]))
        sys.stdout.write(json.dumps({"taken": number, "seconds": seconds}) + "\n")
