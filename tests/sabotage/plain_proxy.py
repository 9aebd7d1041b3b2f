"""A proxy without TLS and HTTP: it passes on what it accepts to the original destination.

    python3 plain_proxy.py [ADDRESS:]PORT…

On 15021 it reports readiness.
"""

import socket
import struct
import sys
import threading

SO_ORIGINAL_DST = 80


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(accepted, port):
    with accepted:
        if port == 15021:
            accepted.recv(4096)
            accepted.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        try:
            raw = accepted.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            where = socket.inet_ntoa(raw[4:8]), struct.unpack_from("!H", raw, 2)[0]
            source = ("127.0.0.6", 0) if port == 15006 else None
            with socket.create_connection(where, timeout=5, source_address=source) as onward:
                back = threading.Thread(target=pump, args=(onward, accepted), daemon=True)
                back.start()
                pump(accepted, onward)
                back.join()
        except OSError as error:
            sys.stderr.write(f"{error}\n")


def listen(where):
    address, _, port = where.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address or "0.0.0.0", int(port)))
    sock.listen(512)
    while True:
        accepted, _ = sock.accept()
        threading.Thread(target=serve, args=(accepted, int(port)), daemon=True).start()


threads = [threading.Thread(target=listen, args=(each,)) for each in sys.argv[1:]]
for each in threads:
    each.start()
