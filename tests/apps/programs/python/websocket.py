"""A WebSocket server by asyncio and a client with blocking sockets, from the package websockets.

websocket.py serve PORT FILE, or websocket.py fetch HOST PORT FILE down|up N
"""

import asyncio
import sys
import zlib
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.client import connect


async def listen(port: int, file: bytes) -> None:
    async def handle(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(file[: int(message)] if isinstance(message, str) else b"C%015d" % zlib.crc32(message))

    async with serve(handle, "0.0.0.0", port, max_size=None, compression=None) as server:
        await server.serve_forever()


def fetch(host: str, port: str, file: bytes, *, down: bool) -> None:
    with connect(f"ws://{host}:{port}/", max_size=None, compression=None, proxy=None) as peer:
        peer.send(str(len(file)) if down else file)
        if peer.recv() != (file if down else b"C%015d" % zlib.crc32(file)):
            sys.exit("other bytes than were sent")


def main() -> None:
    what, *args = sys.argv[1:]
    if what == "serve":
        asyncio.run(listen(int(args[0]), Path(args[1]).read_bytes()))
    host, port, path, way, size = args
    fetch(host, port, Path(path).read_bytes()[: int(size)], down=way == "down")


main()
