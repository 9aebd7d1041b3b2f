"""http.server with a thread for each connection: GET /bytes/N sends N bytes of the file, PUT answers their CRC-32.

web.py PORT FILE
"""

import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = Path(sys.argv[2]).read_bytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(FILE[: int(self.path.rpartition("/")[2])])

    def do_PUT(self) -> None:
        crc, left = 0, int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 65536))
            if not data:
                self.close_connection = True
                return
            crc, left = zlib.crc32(data, crc), left - len(data)
        self.reply(b"C%015d" % crc)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512


Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
