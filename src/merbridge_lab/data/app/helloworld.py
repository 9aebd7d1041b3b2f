"""The app of a helloworld pod: Istio's sample in one file, without its million square roots, and a TCP echo.

    python3 -I helloworld.py VERSION INSTANCE HTTP_PORT ECHO_PORT

Run by the distribution's own Python, as a user that can read nothing else of merlab; so it needs nothing but the
standard library. The header x-peer tells the address a request came from: 127.0.0.6 if the sidecar delivered it.
"""

from __future__ import annotations

import asyncio
import resource
import sys

BACKLOG = 4096
LONGEST_HEAD = 65536
REQUEST_WORDS = 3


class Hello(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and pipelining."""

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting
        self.buffer = b""
        self.body_left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the client."""
        self.transport = transport
        self.peer = transport.get_extra_info("peername")[0].encode()

    def pause_writing(self) -> None:
        """Stop reading requests from a client that does not read the answers."""
        self.transport.pause_reading()  # type: ignore[attr-defined]

    def resume_writing(self) -> None:
        """Go on."""
        self.transport.resume_reading()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self.buffer += data
        while not self.transport.is_closing():
            if self.body_left:
                taken = min(self.body_left, len(self.buffer))
                self.buffer = self.buffer[taken:]
                self.body_left -= taken
                if self.body_left:
                    return
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                if len(self.buffer) > LONGEST_HEAD:
                    self.answer(b"431 Request Header Fields Too Large", b"", close=True)
                return
            self.buffer = rest
            self.serve(head)

    def serve(self, head: bytes) -> None:
        """Answer the request with these header lines."""
        request, *lines = head.split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        length = headers.get(b"content-length", b"0")
        words = request.split(b" ")
        if len(words) != REQUEST_WORDS or not length.isdigit():
            self.answer(b"400 Bad Request", b"", close=True)
            return
        method, target, version = words
        self.body_left = int(length)
        # A chunked body is not worth a parser here: answer and close.
        close = (
            b"transfer-encoding" in headers
            or headers.get(b"connection", b"").lower() == b"close"
            or version != b"HTTP/1.1"
        )
        known = target.partition(b"?")[0] == b"/hello"
        if not known:
            self.answer(b"404 Not Found", b"not found\n", close=close, bare=method == b"HEAD")
        elif method not in (b"GET", b"HEAD"):
            self.answer(b"405 Method Not Allowed", b"", close=close)
        else:
            self.answer(b"200 OK", self.greeting, close=close, bare=method == b"HEAD")

    def answer(self, status: bytes, body: bytes, *, close: bool, bare: bool = False) -> None:
        """Send a response; `bare` leaves the body out, as HEAD wants it."""
        self.transport.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 %s\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: %d\r\nx-peer: %s\r\n%s\r\n%s"
            % (status, len(body), self.peer, b"connection: close\r\n" if close else b"", b"" if bare else body)
        )
        if close:
            self.transport.close()


class Echo(asyncio.Protocol):
    """Send back what arrives, no faster than the client reads it; close when the client has closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the client."""
        self.transport = transport

    def pause_writing(self) -> None:
        """Stop reading while the client does not."""
        self.transport.pause_reading()  # type: ignore[attr-defined]

    def resume_writing(self) -> None:
        """Go on."""
        self.transport.resume_reading()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)  # type: ignore[attr-defined]

    # At the client's end of file asyncio sends what is buffered, then closes our side.


async def main(version: str, instance: str, http_port: str, echo_port: str) -> None:
    """Serve until killed."""
    greeting = f"Hello version: {version}, instance: {instance}\n".encode()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Hello(greeting), "0.0.0.0", int(http_port), backlog=BACKLOG)  # noqa: S104
    await loop.create_server(Echo, "0.0.0.0", int(echo_port), backlog=BACKLOG)  # noqa: S104
    await asyncio.Event().wait()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(*sys.argv[1:]))
