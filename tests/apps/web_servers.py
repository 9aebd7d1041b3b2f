"""nginx and Apache as apps: their configuration, written where they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.apps.kit import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.apps.kit import Kit

    #: kit, port, and a directory that the app may write to → argv
    Argv = Callable[[Kit, int, Path], list[str]]


def behind(port: int) -> int:
    """Return the port on which an app has a second server of its own, on loopback."""
    return port + 1000


def _site(kit: Kit, room: Path) -> Path:
    """Return a document root with the files to serve, and a directory to store in."""
    root = room / "www"
    (root / "up").mkdir(parents=True, exist_ok=True)
    for each in (root, root / "up"):
        each.chmod(0o777)
    (root / "bytes").unlink(missing_ok=True)
    (root / "bytes").symlink_to(kit.top / "www" / "bytes")
    return root


def _nginx(kit: Kit, room: Path, context: str) -> list[str]:
    # A line each, so that nginx's own messages name the right one.
    lines = ["daemon off;", "worker_processes 2;", f"pid {room}/pid;", "error_log stderr;", "events { }", context]
    (room / "nginx.conf").write_text("\n".join(lines) + "\n")
    program = str(kit.debian / "usr/sbin/nginx")
    return [program, "-p", str(room), "-e", "stderr", "-c", str(room / "nginx.conf")]


def _http(kit: Kit, room: Path, *servers: str) -> list[str]:
    places = [f"{each}_temp_path {room}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    lines = ["http {", "access_log off;", *places, "client_max_body_size 0;", *servers, "}"]
    return _nginx(kit, room, "\n".join(lines))


def _files(kit: Kit, room: Path, listen: str) -> str:
    stores = "location /up/ { dav_methods PUT; }"
    return f"server {{ listen {listen}; root {_site(kit, room)}; {stores} }}"


def nginx(listen: str = "") -> Argv:
    """Return nginx that serves and stores files; `listen` are more words of the directive."""
    return lambda kit, port, room: _http(kit, room, _files(kit, room, f"{port} {listen}"))


def nginx_proxy(kit: Kit, port: int, room: Path) -> list[str]:
    """Return nginx as a proxy, in front of itself."""
    passes = f"proxy_pass http://127.0.0.1:{behind(port)}; proxy_ignore_client_abort on;"
    proxy = f"server {{ listen {port}; location / {{ {passes} }} }}"
    return _http(kit, room, proxy, _files(kit, room, f"127.0.0.1:{behind(port)}"))


def nginx_stream(kit: Kit, port: int, room: Path) -> list[str]:
    """Return nginx as a TCP proxy, in front of a reader of ours."""
    server = f"stream {{ server {{ listen {port}; proxy_pass 127.0.0.1:{behind(port)}; proxy_half_close on; }} }}"
    module = f"load_module {kit.debian}/usr/lib/nginx/modules/ngx_stream_module.so;"
    argv = _nginx(kit, room, server)
    config = room / "nginx.conf"
    config.write_text(f"{module}\n{config.read_text()}")
    backend = [kit.program("c/edge"), "serve", str(behind(port)), str(kit.pattern)]
    return ["sh", "-c", f'"$@" & exec {" ".join(argv)}', "sh", *backend]


def apache(kit: Kit, port: int, room: Path) -> list[str]:
    """Return Apache that serves and stores files; it defers accept() by default.

    It has a thread for each of the fifty connections of "at-once": where all threads of a process are busy, Apache ends
    that process's kept connections at once (mpm_event, process_keepalive_queue), and a request on its way is lost.
    """
    modules = kit.debian / "usr/lib/apache2/modules"
    lines = [
        *(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in ("mpm_event", "authz_core", "dav", "dav_fs")),
        f"ServerRoot {room}",
        "ServerName app",
        f"PidFile {room}/pid",
        f"DefaultRuntimeDir {room}",
        f"ErrorLog {room}/error.log",
        f"Listen 0.0.0.0:{port}",
        "ServerLimit 1",
        "StartServers 1",
        "ThreadsPerChild 64",
        "MaxRequestWorkers 64",
        f"DocumentRoot {_site(kit, room)}",
        f"DavLockDB {room}/dav-locks",
        "<Location /up>",
        "Dav On",
        "</Location>",
    ]
    (room / "apache.conf").write_text("\n".join(lines) + "\n")
    program = str(kit.debian / "usr/sbin/apache2")
    libraries = f"LD_LIBRARY_PATH={kit.debian / LIBRARIES}"
    return ["env", libraries, program, "-f", str(room / "apache.conf"), "-D", "FOREGROUND"]
