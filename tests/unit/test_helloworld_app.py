"""The app of the helloworld pods, tested without a socket."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import merbridge_lab

PATH = Path(merbridge_lab.__file__).parent / "data/app/helloworld.py"


class Wire:
    """A transport that stores what is written."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.reading = True

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "127.0.0.6", 40000

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


@pytest.fixture
def app():
    spec = importlib.util.spec_from_file_location("helloworld_app", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hello(app):
    protocol = app.Hello(b"Hello version: v1, instance: helloworld-v1\n")
    protocol.connection_made(Wire())
    return protocol


def statuses(protocol) -> list[bytes]:
    return [part[:3] for part in protocol.transport.sent.split(b"HTTP/1.1 ")[1:]]


def test_it_greets_as_istios_sample_does(hello):
    hello.data_received(b"GET /hello HTTP/1.1\r\nhost: helloworld\r\n\r\n")
    head, _, body = hello.transport.sent.partition(b"\r\n\r\n")
    assert body == b"Hello version: v1, instance: helloworld-v1\n"
    assert b"\r\nx-peer: 127.0.0.6" in head
    assert b"content-length: %d" % len(body) in head
    assert not hello.transport.closed


def test_requests_in_pieces_and_in_a_row(hello):
    stream = (
        b"GET /hello HTTP/1.1\r\n\r\n" * 2
        + b"POST /x HTTP/1.1\r\ncontent-length: 4\r\n\r\nGET "
        + b"GET /hello HTTP/1.1\r\n\r\n"
    )
    for n in range(len(stream)):
        hello.data_received(stream[n : n + 1])
    assert statuses(hello) == [b"200", b"200", b"404", b"200"]


@pytest.mark.parametrize(
    ("request_", "status", "closes"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404", False),
        (b"POST /hello HTTP/1.1\r\n\r\n", b"405", False),
        (b"HEAD /hello HTTP/1.1\r\n\r\n", b"200", False),
        (b"GET /hello?x=1 HTTP/1.1\r\nConnection: close\r\n\r\n", b"200", True),
        (b"GET /hello HTTP/1.0\r\n\r\n", b"200", True),
        (b"POST /hello HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n", b"405", True),
        (b"nonsense\r\n\r\n", b"400", True),
        (b"GET /hello HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400", True),
        (b"x" * 70000, b"431", True),
    ],
)
def test_other_requests(hello, request_, status, closes):
    hello.data_received(request_)
    assert statuses(hello) == [status]
    assert hello.transport.closed is closes


def test_echo_reads_no_faster_than_it_is_read(app):
    echo = app.Echo()
    wire = Wire()
    echo.connection_made(wire)
    echo.data_received(b"abc")
    echo.pause_writing()
    assert wire.sent == b"abc"
    assert not wire.reading
    echo.resume_writing()
    assert wire.reading
