"""gRPC without generated code: Get(n) answers n bytes, Put(bytes) their CRC-32, each in one message.

rpc.py serve PORT FILE, or rpc.py fetch HOST PORT FILE down|up N
"""

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]


def listen(port: int, file: bytes) -> None:
    def get(request: bytes, _: object) -> bytes:
        return file[: int(request)]

    def put(request: bytes, _: object) -> bytes:
        return b"C%015d" % zlib.crc32(request)

    methods = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in (("Get", get), ("Put", put))}
    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("merlab.Bytes", methods),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def fetch(host: str, port: str, file: bytes, *, down: bool) -> None:
    with grpc.insecure_channel(f"{host}:{port}", options=OPTIONS) as channel:
        call = channel.unary_unary(f"/merlab.Bytes/{'Get' if down else 'Put'}")
        got = call(b"%d" % len(file) if down else file)
        if got != (file if down else b"C%015d" % zlib.crc32(file)):
            sys.exit("other bytes than were sent")


def main() -> None:
    what, *args = sys.argv[1:]
    if what == "serve":
        listen(int(args[0]), Path(args[1]).read_bytes())
    host, port, path, way, size = args
    fetch(host, port, Path(path).read_bytes()[: int(size)], down=way == "down")


main()
