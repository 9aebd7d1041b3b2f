"""S4: a download is complete, only by https, in time and within the size; or an error names what it is not."""

import contextlib
import datetime as dt
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from merbridge_lab.adapters import download
from merbridge_lab.errors import LabError

WHOLE = b"kind: List\n"


def answer(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def whole(body=WHOLE):
    return answer(body, Content_Length=len(body))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A server's certificate for localhost that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(hours=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@pytest.fixture
def served(certificate, monkeypatch):
    """Serve by https what a test defines: a function from a path to pieces of bytes, which may come slowly."""
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "*")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    listener = socket.create_server(("127.0.0.1", 0))
    pages, asked, over = {}, [], threading.Event()

    def one(connection):
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (piece := stream.recv(4096)):
                    return
                request += piece
            path = request.split()[1].decode()
            asked.append(path)
            for piece in pages[path]():
                if over.is_set():
                    return
                stream.sendall(piece)
            with contextlib.suppress(OSError):
                stream.unwrap()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    port = listener.getsockname()[1]

    class Server:
        seen = asked

        def url(self, path="/", *pieces, by=None):
            pages[path] = by or (lambda: pieces)
            return f"https://localhost:{port}{path}"

    yield Server()
    over.set()
    listener.shutdown(socket.SHUT_RDWR)  # close alone would let it listen for the thread that waits for it
    serving.join()
    listener.close()


def drip():
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        time.sleep(0.1)
        yield b"#"


def drip_of_headers():
    yield b"HTTP/1.1 200 OK\r\n"
    for count in range(10_000):
        time.sleep(0.1)
        yield f"X-{count}: y\r\n".encode()


def flood():
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(4096):
        yield b"10000\r\n" + b"#" * 0x10000 + b"\r\n"


def test_what_is_there_is_given(served):
    url = served.url("/", whole())
    assert download.text(url) == WHOLE.decode()
    assert download.text(url, sha256=hashlib.sha256(WHOLE).hexdigest()) == WHOLE.decode()


def test_another_digest_is_refused(served):
    with pytest.raises(LabError, match="SHA-256"):
        download.text(served.url("/", whole()), sha256="0" * 64)


def test_a_redirect_by_https_is_followed(served):
    there = served.url("/there", whole())
    assert download.text(served.url("/", answer(b"", "302 Found", Location=there))) == WHOLE.decode()


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_only_https_is_downloaded_from(scheme):
    with pytest.raises(LabError, match="neither a file nor an https URL"):
        download.text(f"{scheme}://localhost/manifest.yaml")


@pytest.mark.parametrize("target", ["http://localhost:1/", "ftp://localhost:1/", "file:///etc/hostname"])
def test_a_redirect_to_anything_else_is_refused(served, target):
    with pytest.raises(LabError, match="cannot be downloaded") as caught:
        download.text(served.url("/", answer(b"", "302 Found", Location=target)))
    assert "rotocol" in caught.value.stderr


def test_redirects_end(served):
    url = served.url("/")
    served.url("/", answer(b"", "302 Found", Location=url))
    with pytest.raises(LabError, match="cannot be downloaded"):
        download.text(url)
    assert len(served.seen) < 10


@pytest.mark.parametrize("by", [drip, drip_of_headers], ids=["body", "headers"])
def test_a_server_that_drips_meets_the_deadline(served, by):
    since = time.monotonic()
    with pytest.raises(LabError, match="cannot be downloaded") as caught:
        download.text(served.url("/", by=by), deadline=1.5)
    assert "timed out" in caught.value.stderr
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("by", [flood, lambda: [whole(b"#" * ((1 << 20) + 1))]], ids=["untold", "told"])
def test_what_is_too_large_is_said_and_not_cut(served, by):
    with pytest.raises(LabError, match="larger than 1 MiB"):
        download.text(served.url("/", by=by))


def test_what_is_just_as_large_as_allowed_is_whole(served):
    assert len(download.text(served.url("/", whole(b"#" * (1 << 20))))) == 1 << 20


@pytest.mark.parametrize(
    "said",
    [
        answer(WHOLE, Content_Length=len(WHOLE) + 5),
        answer(b"40\r\nkind: List\n", Transfer_Encoding="chunked"),
        answer(b"not there", "404 Not Found", Content_Length=9),
        answer(b"broken", "500 Internal Server Error", Content_Length=6),
        b"",
        b"kind: List\n",
        b"HTTP/1.1 what?\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["short", "short chunk", "404", "500", "nothing", "bare text", "bad status", "another protocol"],
)
def test_what_is_no_whole_answer_is_an_error_with_a_way_out(served, said):
    with pytest.raises(LabError, match="cannot be downloaded") as caught:
        download.text(served.url("/", said))
    assert "name the file" in caught.value.hint
    assert caught.value.stderr


def test_a_server_that_nobody_vouches_for_is_refused(served, monkeypatch):
    monkeypatch.delenv("CURL_CA_BUNDLE")
    with pytest.raises(LabError, match="cannot be downloaded") as caught:
        download.text(served.url("/", whole()))
    assert "certificate" in caught.value.stderr
    assert served.seen == []


def test_nobody_there(unused_port):
    with pytest.raises(LabError, match="cannot be downloaded"):
        download.text(f"https://localhost:{unused_port}/")


@pytest.fixture
def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_what_is_no_text_is_said(served):
    with pytest.raises(LabError, match="is not text"):
        download.text(served.url("/", whole(b"\xff\xfe")))


def test_a_users_curlrc_adds_nothing(served, tmp_path, monkeypatch):
    (tmp_path / ".curlrc").write_text("insecure\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.delenv("CURL_CA_BUNDLE")
    with pytest.raises(LabError, match="cannot be downloaded"):
        download.text(served.url("/", whole()))


def test_one_ctrl_c_ends_it(served, tmp_path):
    program = (
        "import sys\nfrom merbridge_lab import signals\nfrom merbridge_lab.adapters import download\n"
        "signals.install()\n"
        "try:\n    download.text(sys.argv[1])\n"
        "except signals.Interrupted as told:\n    sys.exit(128 + told.signum)\n"
    )
    argv = [sys.executable, "-c", program, served.url("/", by=drip)]
    child = subprocess.Popen(argv, env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        while not served.seen:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=10) == 130
    finally:
        child.kill()
        child.wait()
    assert list(Path(tmp_path).iterdir()) == []
