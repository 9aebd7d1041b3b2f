"""An embedded lab with real sidecars, in whose pods the tests create sockets."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import TYPE_CHECKING

from dataplane_rig import Agent, until

from merbridge_lab.adapters import bpf_maps, bpf_syscall, cgroup
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.labs.embedded import envoy, topology
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from merbridge_lab.dataplane import Endpoint
    from merbridge_lab.labs.embedded.mesh import Pod

NAME = "merlab-tcp"
ECHO_VIP, HELLO_VIP = (service.vip for service in sorted(topology.SERVICES, key=lambda each: each.name))
ECHO = topology.ECHO_PORT
#: Linux's own default: machines tuned for throughput let TCP alone buffer much more, on each of three legs.
TCP_RMEM = "4096 131072 6291456"


class Scene:
    """The lab; its echo apps make room for listeners of ours on the same port."""

    def __init__(self, name: str = NAME) -> None:
        self.lab = ManagedEmbeddedLab(name=name)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.lab.remove, 10.0)
        self.lab.remove(10.0)  # what a killed session left
        self.lab.node.ensure()
        self.lab.mesh.ensure()
        self.pins = Pins(self.lab.machine.bpffs / name)
        self.sleep, self.v1, self.v2 = (workload.pod for workload in self.lab.workloads())
        self.pods = (self.sleep, self.v1, self.v2)
        for pod in self.pods:
            sh(pod.netns, "sysctl", "-qw", f"net.ipv4.tcp_rmem={TCP_RMEM}")
        self.agents: dict[str, Agent] = {}
        for pod in self.pods:
            self.enter(pod)
        for pod in (self.v1, self.v2):
            self.displace_echo(pod)

    def enter(self, pod: Pod) -> Agent:
        """Start an agent in a pod that creates sockets as its app would."""
        agent = Agent(pod.cgroup / "app", str(pod.netns), topology.APP_ID)
        self.stack.callback(agent.end)
        self.agents[pod.spec.name] = agent
        return agent

    def displace_echo(self, pod: Pod) -> None:
        """Restart the app with its echo on another port: our port is for the tests."""
        agent = self.agents[pod.spec.name]
        for pid in cgroup.processes(pod.cgroup / "app"):
            if pid != agent.pid:
                subprocess.run(["kill", "-9", str(pid)], check=False)
        until(lambda: set(cgroup.processes(pod.cgroup / "app")) <= {agent.pid}, "the app is gone")
        argv = pod.processes.daemons()["app"]
        assert argv[-1] == str(ECHO)
        subprocess.run([*argv[:-1], "9001"], check=True)
        until(lambda: pod.processes.answers("app"), "the app answers")

    @contextlib.contextmanager
    def servers(self):
        """Listen on the echo port of both servers."""
        with contextlib.ExitStack() as stack:
            names = (self.v1.spec.name, self.v2.spec.name)
            yield [stack.enter_context(self.agents[name].listen(ECHO)) for name in names]

    def attach(self) -> None:
        self.lab.dataplane.ensure()

    def attach_now(self, *more: Endpoint) -> None:
        """Attach without waiting for older connections to close."""
        endpoints = [*self.lab.dataplane.discovery.endpoints(), *more]
        self.lab.dataplane._manager.attach(endpoints)

    def detach(self) -> None:
        self.lab.dataplane.remove()

    def flushed(self):
        return self.lab.flushed(self.lab.workloads())

    def connect(self, ip: str = ECHO_VIP, port: int = ECHO, **more) -> socket.socket:
        return self.agents["sleep"].connect(ip, port, **more)

    def leftovers(self, *names: str) -> dict[str, int]:
        """Return how many entries are in the maps that only have entries of live connections."""
        found = {}
        for name in names or ("pairs", "peers"):
            with self.pins.open_map(name) as fd:
                found[name] = len(bpf_maps.keys(fd, bpf_syscall.map_info(fd).key_size))
        return {name: number for name, number in found.items() if number}

    def empty(self) -> None:
        until(lambda: not self.leftovers(), f"no entry is left: {self.leftovers()}", 8)

    def counter(self, pod: str, name: str) -> int:
        assert name in abi.counter_names()
        return self.lab.dataplane.counters()[pod][name]

    def log_ends(self) -> None:
        """Have the sidecars write into their logs how connections end."""
        for pod in self.pods:
            sh(pod.netns, "curl", "-sf", "-X", "POST", "http://127.0.0.1:15000/logging?connection=debug")

    def unsaid_ends(self) -> int:
        """Return on how many connections a sidecar could not say by TLS that no more comes, and did not say it later.

        Envoy calls SSL_shutdown() once (source/common/tls/ssl_socket.cc). If the socket has no room then, the other
        end learns nothing before the connection is closed. Needs log_ends().
        """
        return sum(unsaid_ends((pod.folder / envoy.LOG).read_text(errors="replace")) for pod in self.pods)

    def close(self) -> None:
        self.stack.close()


#: A line of Envoy about a connection: its number, and what happened.
LINE = re.compile(r'"ConnectionId":"(\d+)"\] (.*)')


def unsaid_ends(log: str) -> int:
    """Count the connections in a log of Envoy whose SSL_shutdown() failed while the connection went on."""
    last: dict[str, str] = {}
    found = set()
    for number, said in LINE.findall(log):
        before, last[number] = last.get(number, ""), said
        # On a connection that is being closed, it fails because that is broken: then everybody is told.
        if before == "SSL shutdown: rc=-1" and said in ("remote close", "closing data_to_write=0 type=0"):
            found.add(number)
    return len(found) + sum(said == "SSL shutdown: rc=-1" for said in last.values())


def sh(netns: Path, *argv: str, stdin: str | None = None) -> str:
    full = ["nsenter", f"--net={netns}", *argv]
    return subprocess.run(full, input=stdin, check=True, capture_output=True, text=True, timeout=20).stdout


def mem_pages(netns: Path) -> int:
    """Return what TCP holds in buffers on the whole machine, in pages."""
    for line in sh(netns, "cat", "/proc/net/sockstat").splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1])
    raise AssertionError("no TCP in sockstat")
