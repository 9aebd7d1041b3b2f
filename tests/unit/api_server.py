"""A server's end of connections to an API: real sockets and real TLS, and only the answers that a test defines."""

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import socket
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from merbridge_lab.adapters import kubeconfig

#: What RFC 6455 requires a server to append to the client's key.
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, CLOSE = 2, 8


class Keys:
    """A separate authority, a certificate for 127.0.0.1, one for the administrator that ends `days` from now."""

    def __init__(self, folder, *, days=1):
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self._folder = folder
        self.ca = self._write("ca", self._sign("ca", self._ca_key, days=1, ca=True))
        self.server = self._pair("server", days=1)
        self.client = self._pair("client", days=days)

    def _sign(self, name, key, *, days, ca=False):
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        now = dt.datetime.now(dt.timezone.utc)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = (
            x509.CertificateBuilder()
            .subject_name(named)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=30))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(address, critical=False)
            .sign(self._ca_key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def _pair(self, name, *, days):
        key = ec.generate_private_key(ec.SECP256R1())
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return self._write(f"{name}.crt", self._sign(name, key, days=days)), self._write(f"{name}.key", pem)

    def _write(self, name, content):
        file = self._folder / name
        file.write_bytes(content)
        return file

    def kubeconfig(self, port):
        """Return a kubeconfig like kind's."""
        read = {name: base64.b64encode(file.read_bytes()).decode() for name, file in self._files().items()}
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": read["ca"]}
        user = {"client-certificate-data": read["crt"], "client-key-data": read["key"]}
        name = "kind-merbridge"
        return {
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }

    def credentials(self, port):
        """Return these credentials for an API on this machine."""
        return kubeconfig.of_mapping(self.kubeconfig(port), direct=True)

    def _files(self):
        return {"ca": self.ca, "crt": self.client[0], "key": self.client[1]}


class Server:
    """Listens on 127.0.0.1 and passes each connection, after encryption and with the request read, to `answer`.

    Without `answer`, all wait: the kernel accepts, nobody answers.
    """

    def __init__(self, keys, answer=None, *, asks_certificate=False):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*keys.server)
        if asks_certificate:
            self._context.load_verify_locations(keys.ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._answer, self.requests = answer, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if answer is not None:
            self._thread.start()

    def _serve(self):
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(raw, server_side=True) as connection:
                    request = b""
                    while not request.endswith(b"\r\n\r\n") and (more := connection.recv(4096)):
                        request += more
                    self.requests.append(request.decode())
                    self._answer(connection, self.requests[-1])
            except OSError:
                continue  # the client went away: the test checks how the client handled it

    def close(self):
        # Only this wakes up a thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._answer is not None:
            self._thread.join(10)


def plainly(status, body):
    """Answer with an HTTP status and a Status object."""

    def answer(connection, _request):
        told = json.dumps({"kind": "Status", "message": body}).encode()
        connection.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(told), told))

    return answer


def upgraded(*messages, then=None):
    """Answer with an upgrade and these frames, (opcode, content); then do something with the connection."""

    def answer(connection, request):
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()  # noqa: S324 - as the RFC has it
        head = ["HTTP/1.1 101 x", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        head += ["Sec-WebSocket-Protocol: v4.channel.k8s.io"]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        for opcode, content in messages:
            connection.sendall(frame(opcode, content))
        if then is not None:
            then(connection)

    return answer


def frame(opcode, content):
    """Return a complete message in one frame; servers do not mask."""
    size = len(content)
    return bytes([0x80 | opcode, *([size] if size < 126 else [126, size >> 8, size & 0xFF])]) + content
