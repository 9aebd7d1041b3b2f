"""Two pods, a node and a control client made of network namespaces and cgroups, for tests of the dataplane alone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from merbridge_lab.dataplane import Dataplane, Endpoint, Interception
from merbridge_lab.dataplane.endpoints import netns_cookie, sidecar_of
from merbridge_lab.istio_facts import SIDECAR_UID
from merbridge_lab.polling import limit

AGENT = Path(__file__).with_name("dataplane_agent.py")
NODE_IP = "10.99.7.1"
IPS = {"sleep": "10.99.7.11", "hello": "10.99.7.12", "twin": "10.99.7.13"}

RULES = """*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""


def run(*argv: str, stdin: str | None = None) -> str:
    return subprocess.run(argv, input=stdin, check=True, capture_output=True, text=True, timeout=limit(20)).stdout


def cgroup2() -> Path:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return Path(next(fields[1] for fields in mounts if fields[2] == "cgroup2"))


def until(look, what: str, seconds: float = 5.0):
    deadline = time.monotonic() + limit(seconds)
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; last seen {seen!r}"
        time.sleep(0.01)
    return seen


def removed(cgroup: str) -> bool:
    with contextlib.suppress(OSError):
        Path(cgroup).rmdir()
    return not Path(cgroup).exists()


class Agent:
    """A process in a cgroup and network namespace, as a user."""

    def __init__(self, cgroup: Path | None, netns: str, uid: int = 0, gid: int | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # SO_SNDBUFFORCE, for its long log
        fd = theirs.fileno()
        user = (str(uid), str(uid if gid is None else gid))
        argv = [sys.executable, "-I", "-S", str(AGENT), str(cgroup or "-"), netns, *user]
        code = f"import os; os.dup2({fd}, 3); os.execv({sys.executable!r}, {argv!r})"
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], pass_fds=(fd,))
        theirs.close()
        self.control = ours
        ours.settimeout(limit(20))
        assert ours.recv(100) == b"ready"
        self.pid = self.process.pid
        self.netns = Path(f"/proc/{self.pid}/ns/net")

    def ask(self, **request):
        self.control.send(json.dumps(request).encode())
        text, fds, _, _ = socket.recv_fds(self.control, 1 << 20, 1)
        return json.loads(text), socket.socket(fileno=fds[0]) if fds else None

    def listen(self, port: int, at: str = "0.0.0.0", **more) -> socket.socket:
        sock = self.ask(op="listen", at=[at, port], **more)[1]
        sock.settimeout(limit(5))
        return sock

    def dial(self, ip: str, port: int, **more):
        """Return ((peer, local) as the dialling process saw them, socket), or an errno without a socket."""
        answer, sock = self.ask(op="connect", to=[ip, port], **more)
        if sock:
            sock.settimeout(limit(10))
        return answer, sock

    def connect(self, ip: str, port: int, **more) -> socket.socket:
        answer, sock = self.dial(ip, port, **more)
        assert sock, f"connect to {ip}:{port} failed: {os.strerror(answer)}"
        return sock

    def end(self) -> None:
        self.control.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def sh(self, *argv: str, stdin: str | None = None) -> str:
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", *argv, stdin=stdin)


class NodeView:
    """A pod: the processes of its application and of its sidecar."""

    def __init__(self, name: str, cgroup: Path, stack: contextlib.ExitStack, ip: str = "") -> None:
        self.name, self.ip = name, ip or IPS[name]
        for child in ("app", "sidecar"):
            (cgroup / child).mkdir(parents=True)
        self.cgroup, self.stack = cgroup, stack
        self.app = Agent(cgroup / "app", "new")
        stack.callback(self.app.end)
        self.sidecar: Agent | None = None
        self.interception = Interception()

    def start_sidecar(self, uid: int = SIDECAR_UID, *, proxy: bool = True) -> None:
        self.sidecar = Agent(self.cgroup / "sidecar", str(self.app.netns), uid)
        self.stack.callback(self.sidecar.end)
        if proxy:
            self.sidecar.ask(op="sidecar")

    def end(self) -> None:
        """End the pod: its processes, its namespace, its cgroup."""
        for agent in (self.app, self.sidecar):
            if agent:
                agent.end()
        for path, _, _ in os.walk(self.cgroup, topdown=False):
            until(lambda path=path: removed(path), f"cgroup {path} is empty")

    def log(self) -> list[dict]:
        return self.sidecar.ask(op="log")[0]

    @property
    def cookie(self) -> int:
        return netns_cookie(self.app.netns)

    @property
    def endpoint(self) -> Endpoint:
        sidecar = sidecar_of(self.sidecar.pid) if self.sidecar else None
        where = (self.ip, self.app.netns, self.cgroup)
        return Endpoint("", self.name, str(self.cookie), *where, sidecar, interception=self.interception)

    def rules(self, text: str) -> None:
        self.app.sh("iptables-nft-restore", stdin=text)

    def redirected_packets(self) -> int:
        """Return what the rule in ISTIO_REDIRECT has counted."""
        for line in self.app.sh("iptables-nft-save", "-c", "-t", "nat").splitlines():
            if "-A ISTIO_REDIRECT" in line:
                return int(line[1:].split(":")[0])
        raise AssertionError("no ISTIO_REDIRECT rule")


class Rig:
    """The complete rig; `close` leaves nothing. Without `proxy`, sidecars are processes that do not listen yet."""

    def __init__(self, *, proxy: bool = True, name: str = "merlab-dp") -> None:
        self.proxy, self.name = proxy, name
        self.stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._build()
            undo.pop_all()

    def _build(self) -> None:
        self.tmp = Path(tempfile.mkdtemp(prefix="merlab-dp-"))
        self.stack.callback(self._rmdirs, self.tmp)
        (self.tmp / "bpf").mkdir()
        run("mount", "-t", "bpf", "merlab-test", str(self.tmp / "bpf"))
        self.stack.callback(run, "umount", "-l", str(self.tmp / "bpf"))
        self.pins = self.tmp / "bpf" / "lab"
        self.root = cgroup2() / f"{self.name}-{os.getpid()}"
        self.mesh = self.root / "mesh"
        self.mesh.mkdir(parents=True)
        self.stack.callback(self._rmcgroups)
        self.node = Agent(None, "new")
        self.stack.callback(self.node.end)
        self.sleep = NodeView("sleep", self.mesh / "sleep", self.stack)
        self.hello = NodeView("hello", self.mesh / "hello", self.stack)
        self.control_client = NodeView("twin", self.root / "twin", self.stack)
        self.node.sh("ip", "link", "set", "lo", "up")
        self.node.sh("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for place in (self.sleep, self.hello, self.control_client):
            self._wire(place)
            place.start_sidecar(proxy=self.proxy)
        self.plane = Dataplane(self.pins)
        self.stack.callback(lambda: self.plane.detach(1.0))

    def new_pod(self, name: str, ip: str) -> NodeView:
        """Make another pod, with an address that a pod may have had before."""
        place = NodeView(name, self.mesh / name, self.stack, ip)
        self._wire(place)
        place.start_sidecar()
        return place

    def _wire(self, place: NodeView) -> None:
        veth = f"v{place.name}"
        self.node.sh("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", str(place.app.pid))
        batch = f"addr add {NODE_IP}/32 dev {veth}\nlink set {veth} up\nroute replace {place.ip}/32 dev {veth}\n"
        self.node.sh("ip", "-batch", "-", stdin=batch)
        # Linux's own default; machines tuned for throughput let TCP alone buffer much more, on each of three legs.
        place.app.sh("sysctl", "-qw", "net.ipv4.tcp_rmem=4096 131072 6291456")
        batch = f"link set lo up\naddr add {place.ip}/32 dev eth0\nlink set eth0 up\n"
        batch += f"route add {NODE_IP}/32 dev eth0\nroute add default via {NODE_IP}\n"
        place.app.sh("ip", "-batch", "-", stdin=batch)

    @property
    def endpoints(self) -> list[Endpoint]:
        return [self.sleep.endpoint, self.hello.endpoint]

    def attach(self) -> None:
        self.plane.attach(self.endpoints)

    def problems(self) -> list[str]:
        return self.plane.problems(self.endpoints)

    def counters(self, pod: str) -> dict[str, int]:
        return self.plane.counters()[pod]

    def _rmcgroups(self) -> None:
        for path, _, _ in os.walk(self.root, topdown=False):
            until(lambda path=path: removed(path), f"cgroup {path} is empty")

    @staticmethod
    def _rmdirs(top: Path) -> None:
        for child in top.iterdir():
            child.rmdir()
        top.rmdir()

    def close(self) -> None:
        self.stack.close()
