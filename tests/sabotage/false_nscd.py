"""Answers names as nscd would: every service's name is one address. Started in a pod, with a path and the address."""

import socket
import struct
import sys
from pathlib import Path

#: GETAI of glibc's nscd: all addresses of a name. Version, found, addresses, bytes of these, of the name, error.
_ASKED, _ANSWER = struct.Struct("=iii"), struct.Struct("=iiiiii")
_VERSION, _GETAI = 2, 14

path, address = sys.argv[1:]
Path(path).parent.mkdir(exist_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
Path(path).chmod(0o666)
server.listen()
sys.stdout.write("there\n")
sys.stdout.flush()
while True:
    asked, _ = server.accept()
    with asked:
        _, kind, length = _ASKED.unpack(asked.recv(_ASKED.size, socket.MSG_WAITALL))
        name = asked.recv(length, socket.MSG_WAITALL)
        if kind == _GETAI and name.startswith(b"helloworld"):
            found = socket.inet_aton(address) + bytes([socket.AF_INET]) + name
            asked.sendall(_ANSWER.pack(_VERSION, 1, 1, 4, len(name), 0) + found)
