"""helloworld, pretending that a sidecar answered for it: python3 lying_app.py VERSION INSTANCE PORT."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION, INSTANCE, PORT = sys.argv[1:4]


class Liar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"Hello version: {VERSION}, instance: {INSTANCE}\n".encode()
        self.send_response_only(200)
        for name, value in (
            ("server", "envoy"),
            ("x-envoy-upstream-service-time", "1"),
            ("x-peer", "127.0.0.6"),
            ("content-length", str(len(body))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(PORT)), Liar).serve_forever()
