"""Dial as apps other than curl do: with an IPv6 socket and an IPv4 address in it, as Java does; and plain TCP.

    python3 -I -S -B -c "$(cat dial.py)" NONCE HTTP_HOST HTTP_PORT ECHO_HOST ECHO_PORT BYTES SECONDS

Prints the result of each as JSON, and keeps the connections open for SECONDS, so that they can be read.
"""

from __future__ import annotations

import json
import select
import socket
import sys

TIMEOUT = 5


def plain(address: tuple[str, int]) -> str:
    """Return an address as "ip:port", without the prefix that maps it into IPv6."""
    return f"{address[0].removeprefix('::ffff:')}:{address[1]}"


def receive(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or fewer if the other side closes."""
    got = b""
    while len(got) < size and (chunk := sock.recv(size - len(got))):
        got += chunk
    return got


def ask(sock: socket.socket, host: str, nonce: str) -> tuple[int, int, bool]:
    """Send a request; return how much was sent and received, and whether the answer was a 200."""
    request = f"GET /hello HTTP/1.1\r\nhost: {host}\r\nx-request-id: {nonce}\r\n\r\n".encode()
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer and (chunk := sock.recv(65536)):
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    answer += receive(sock, length - len(body))
    return len(request), len(answer), head.startswith(b"HTTP/1.1 200")


def echo(sock: socket.socket, size: int) -> tuple[int, int, bool]:
    """Send so many bytes; return how much was sent and received, and whether it was the same."""
    sent = (b"merlab " * (size // 7 + 1))[:size]
    sock.sendall(sent)
    got = receive(sock, size)
    return len(sent), len(got), got == sent


def main(nonce: str, http: str, http_port: str, other: str, echo_port: str, size: str, seconds: str) -> None:
    """Dial both."""
    kept, told = [], []
    for family, name, port in ((socket.AF_INET6, http, http_port), (socket.AF_INET, other, echo_port)):
        said = {"local": "", "remote": "", "sent": 0, "received": 0, "served": False, "error": "", "code": 0}
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            kept.append(sock)
            sock.settimeout(TIMEOUT)
            address = socket.gethostbyname(name)
            sock.connect((f"::ffff:{address}" if family == socket.AF_INET6 else address, int(port)))
            said |= {"local": plain(sock.getsockname()), "remote": plain(sock.getpeername())}
            done = ask(sock, name, nonce) if family == socket.AF_INET6 else echo(sock, int(size))
            said |= dict(zip(("sent", "received", "served"), done))  # noqa: B905 - Python 3.9, which distributions have
        except OSError as error:
            said |= {"error": str(error), "code": error.errno or 0}
        told.append(said)
    print(json.dumps(told), flush=True)  # noqa: T201 - this is how it answers
    select.select([], [], [], float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
