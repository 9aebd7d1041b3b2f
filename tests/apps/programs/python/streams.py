"""Streams of bytes as c/stream.h explains them, by asyncio.

streams.py serve PORT FILE, or streams.py fetch HOST PORT FILE down|up N
"""

import asyncio
import sys
import zlib
from pathlib import Path

PIECE = 65536


def answer(crc: int) -> bytes:
    return b"C%015d" % crc


async def absorb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, size: float) -> None:
    crc = 0
    while size > 0:
        data = await reader.read(int(min(size, PIECE)))
        if not data:
            if kind != "H":
                raise EOFError
            break
        crc, size = zlib.crc32(data, crc), size - len(data)
        if kind == "E":
            writer.write(data)
            await writer.drain()
        if kind == "S":
            await asyncio.sleep(0.015)
    if kind != "E":
        writer.write(answer(crc))


async def serve(file: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind = ""
    try:
        while kind not in ("X", "H"):
            head = await reader.readexactly(16)
            kind, size = chr(head[0]), int(head[1:])
            if kind in "GX":
                writer.write(file[:size])
                await writer.drain()
            else:
                await absorb(reader, writer, kind, float("inf") if kind == "H" else size)
        await writer.drain()
    except (OSError, EOFError) as error:  # IncompleteReadError is an EOFError
        if str(error) and not isinstance(error, asyncio.IncompleteReadError):
            print(error, file=sys.stderr)
    writer.close()


async def listen(port: int, file: bytes) -> None:
    server = await asyncio.start_server(lambda *ends: serve(file, *ends), "0.0.0.0", port, backlog=512)
    await server.serve_forever()


async def fetch(host: str, port: int, file: bytes, *, down: bool) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"%c%015d" % (b"G" if down else b"P", len(file)) + (b"" if down else file))
    wanted = file if down else answer(zlib.crc32(file))
    if await reader.readexactly(len(wanted)) != wanted:
        sys.exit("other bytes than were sent")
    writer.close()


def main() -> None:
    what, *args = sys.argv[1:]
    if what == "serve":
        asyncio.run(listen(int(args[0]), Path(args[1]).read_bytes()))
    host, port, path, way, size = args
    asyncio.run(fetch(host, int(port), Path(path).read_bytes()[: int(size)], down=way == "down"))


main()
