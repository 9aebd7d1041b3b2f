"""The apps, and which cases each of them has."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.apps import lab_command, web_servers
from tests.apps.web_servers import behind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.apps.kit import Kit
    from tests.apps.web_servers import Argv

_TCP_ULP = 31
SIZED = tuple(f"{size}-{way}" for size in ("small", "1MB", "20MB") for way in ("down", "up"))
_ALL = ("slow-reader", "slow-sender", "half-close", "app-closes", "early-close", "burst", "fresh", "at-once")
#: By how an app is talked to. To a program as the client, one request is all that can be told.
CASES = {
    "streams": (*SIZED, "slow-app", "both-ways", *_ALL),
    "web": (*SIZED, "headers", *_ALL),
    "program": SIZED,
}
#: The last one of each app: both sidecars have logged each connection, which they do when it has ended.
LAST = "all-end"
COLUMNS = (*SIZED, "headers", "slow-app", "both-ways", *_ALL, LAST)


@dataclass(frozen=True)
class App:
    """A program in a pod, and how it is talked to.

    `talk` is "streams" or "web": then it is the server, and the client is client.py. Or it is "program": then `client`
    is what is tested, in the pod sleep. `route` puts it behind an HTTP route, where the sidecars read and write HTTP.
    """

    name: str
    talk: str
    server: Argv
    client: Argv | None = None
    route: bool = False
    listens_mptcp: bool = False
    needs_ktls: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """Its cases, in the order in which they run."""
        return CASES[self.talk]

    @property
    def quick(self) -> tuple[str, ...]:
        """The choice that `make test` runs; none of some apps."""
        return tuple(case for case in self.cases if case in QUICK.get(self.name, ()))

    def why_not(self) -> str:
        """Return why it cannot run on this kernel; "" if it can."""
        if self.listens_mptcp and not is_mptcp_safe(os.uname().release):
            return f"Linux {os.uname().release} may crash on MPTCP listeners whose connections enter a sockhash"
        if self.needs_ktls and not has_ktls():
            return "this kernel has no kTLS (CONFIG_TLS, module tls)"
        return ""


@functools.cache
def has_ktls() -> bool:
    """Report whether a connection can be given the kernel's TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError:
            return False
    return True


def is_mptcp_safe(release: str) -> bool:
    """Report whether a connection of an MPTCP listener may enter a sockhash; known by version, since trying may crash.

    Fixed in 6.18, and in 6.1.159 (c77b3b79a92e, fbade4bd08ba).
    """
    numbers = tuple(int(each) for each in release.partition("-")[0].split(".")[:3] if each.isdigit())
    return numbers >= (6, 18) or (6, 1, 159) <= numbers < (6, 2)


def _c(name: str) -> Argv:
    return lambda kit, port, _: [kit.program(f"c/{name}"), "serve", str(port), str(kit.pattern)]


def _c_client(name: str) -> Argv:
    return lambda kit, _, __: [kit.program(f"c/{name}")]


def _java(program: str, *args: str) -> Argv:
    # Small and quick to start: there are two of each.
    options = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")

    def argv(kit: Kit, port: int, _: Path) -> list[str]:
        return ["java", *options, "-cp", kit.program("java"), program, *args, str(port), str(kit.pattern)]

    return argv


def _java_client(way: str) -> Argv:
    return lambda kit, _, __: ["java", "-XX:-UsePerfData", "-cp", kit.program("java"), "Streams", way]


def _node(script: str, *args: str) -> Argv:
    return lambda kit, port, _: ["node", kit.program(f"node/{script}.js"), *args, str(port), str(kit.pattern)]


def _python(script: str, *args: str) -> Argv:
    return lambda kit, port, _: [*kit.python(script), *args, str(port), str(kit.pattern)]


def _go(kind: str, *more: str) -> Argv:
    return lambda kit, port, _: [kit.program("go/apps"), kind, str(port), str(kit.pattern), *more]


def _go_proxy(kit: Kit, port: int, _: Path) -> list[str]:
    return [kit.program("go/apps"), "proxy", str(port), str(behind(port)), str(kit.pattern)]


_PLAIN = _python("streams", "serve")
_READERS = {
    "blocking": "C, blocking recv",
    "fionread": "C, FIONREAD",
    "lowat": "C, SO_RCVLOWAT",
    "edge": "C, epoll edge-triggered",
    "waitall": "C, MSG_WAITALL",
    "peek": "C, MSG_PEEK",
    "trunc": "C, MSG_TRUNC",
    "mmsg": "C, recvmmsg",
    "splice": "C, splice",
    "sendfile": "C, sendfile",
    "zerocopy": "C, MSG_ZEROCOPY",
}

APPS: tuple[App, ...] = (
    App("nginx", "web", web_servers.nginx()),
    App("nginx, deferred accept", "web", web_servers.nginx("deferred")),
    App("nginx, proxying", "web", web_servers.nginx_proxy),
    App("nginx, stream", "streams", web_servers.nginx_stream),
    App("nginx behind an HTTP route", "web", web_servers.nginx(), route=True),
    App("Apache", "web", web_servers.apache),
    App("Java, available()", "streams", _java("Streams", "available", "serve")),
    App("Java, blocking", "streams", _java("Streams", "blocking", "serve")),
    App("Java, NIO", "streams", _java("Streams", "nio", "serve")),
    App("Java, HttpServer", "web", _java("Web")),
    App("Node, net", "streams", _node("streams", "serve")),
    App("Node, http", "web", _node("web", "http")),
    App("Python, asyncio", "streams", _PLAIN),
    App("Python, http.server", "web", _python("web")),
    App("Go, net/http", "web", _go("web", "mptcp"), listens_mptcp=True),
    App("Go, net/http without MPTCP", "web", _go("web", "tcp")),
    App("Go, net", "streams", _go("streams"), listens_mptcp=True),
    App("Go, TCP proxy", "streams", _go_proxy, listens_mptcp=True),
    *(App(title, "streams", _c(name)) for name, title in _READERS.items()),
    App("C, kTLS at both ends", "program", _c("ktls"), _c_client("ktls"), needs_ktls=True),
    App("WebSockets", "program", _python("websocket", "serve"), lambda kit, _, __: kit.python("websocket")),
    App(
        "HTTP/2, curl to Node",
        "program",
        _node("web", "http2"),
        lambda kit, _, __: [*kit.python("curl"), "--http2-prior-knowledge"],
    ),
    App(
        "HTTP/2, curl to Go",
        "program",
        _go("h2c"),
        lambda kit, _, __: [*kit.python("curl"), "--http2-prior-knowledge"],
        listens_mptcp=True,
    ),
    App("gRPC", "program", _python("rpc", "serve"), lambda kit, _, __: kit.python("rpc")),
    App("client: curl", "program", _python("web"), lambda kit, _, __: [*kit.python("curl"), "--http1.1"]),
    App("client: Go, net/http", "program", _python("web"), lambda kit, _, __: [kit.program("go/apps"), "web"]),
    App("client: Go, net", "program", _PLAIN, lambda kit, _, __: [kit.program("go/apps"), "streams"]),
    App("client: Go, TCP proxy", "program", _PLAIN, lambda kit, _, __: [kit.program("go/apps"), "proxy"]),
    App("client: Java, available()", "program", _PLAIN, _java_client("available")),
    App("client: Java, blocking", "program", _PLAIN, _java_client("blocking")),
    App("client: Java, NIO", "program", _PLAIN, _java_client("nio")),
    App("client: Node, net", "program", _PLAIN, lambda kit, _, __: ["node", kit.program("node/streams.js")]),
    App("client: Python, asyncio", "program", _PLAIN, lambda kit, _, __: kit.python("streams")),
    *(App(f"client: {title}", "program", _PLAIN, _c_client(name)) for name, title in _READERS.items()),
)


def place(app: App) -> int:
    """Return which of the lab's services is in front of an app."""
    routed = [each for each in APPS if each.route]
    if app.route:
        return lab_command.PLACES - lab_command.ROUTES + routed.index(app)
    return [each for each in APPS if not each.route].index(app)


_BRIEF = ("small-up", "1MB-down", "20MB-up", "headers", "half-close", "burst")
#: What `make test` runs. Of cells that are known to stall, each of which takes its whole time, there are few.
QUICK = {
    "nginx": ("small-up", "1MB-down", "headers", "half-close", "fresh"),
    "nginx, deferred accept": ("small-up", "1MB-down", "1MB-up"),
    "Apache": _BRIEF,
    "Java, available()": ("small-up", "1MB-down"),
    "Java, NIO": _BRIEF,
    "Java, HttpServer": ("small-up", "1MB-down", "headers", "half-close"),
    "Node, http": _BRIEF,
    "Python, asyncio": (*_BRIEF, "early-close"),
    "Go, net/http": _BRIEF,
    "Go, TCP proxy": ("small-up",),
    "C, FIONREAD": ("small-up", "1MB-down", "slow-app"),
    "C, epoll edge-triggered": (*_BRIEF, "at-once"),
    "C, MSG_WAITALL": ("small-up", "1MB-down", "slow-sender"),
    "C, splice": ("small-up",),
    "WebSockets": ("small-up", "1MB-up"),
    "gRPC": ("1MB-up", "20MB-down"),
    "client: C, FIONREAD": ("small-down", "1MB-down"),
}
