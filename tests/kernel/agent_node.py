"""A node for tests of the agent: pods made of namespaces and cgroups, and a container runtime that tells of them.

The runtime is a server of the real protocol, with real messages; it knows what the test says. The agent is the real
one, in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from kernel.dataplane_rig import IPS, RULES, Agent, NodeView, Rig, cgroup2, removed, run, until
from merbridge_lab.adapters import bpf_maps, cri_messages
from merbridge_lab.dataplane import Endpoint, Profile, Reconciler, reader_legs
from merbridge_lab.dataplane.pins import Pins

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

NOT_READY = 1


class Runtime:
    """A container runtime: ListPodSandbox and PodSandboxStatus, of what `sandboxes` holds."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.sandboxes: dict[str, dict] = {}
        self.calls: list[str] = []
        self._server: grpc.Server | None = None
        self.start()

    def start(self) -> None:
        classes = cri_messages.classes()
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, name),
                request_deserializer=classes[asked].FromString,
                response_serializer=classes[told].SerializeToString,
            )
            for name, (asked, told) in cri_messages.METHODS.items()
        }
        service = cri_messages.SERVICE.strip("/")
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        assert self._server.add_insecure_port(f"unix://{self.socket}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
        self.socket.unlink(missing_ok=True)

    def Version(self, _request, _context):  # noqa: N802 - the protocol's names
        return cri_messages.classes()["VersionResponse"](runtime_name="test", runtime_version="1")

    def ListPodSandbox(self, request, _context):  # noqa: N802
        self.calls.append("list")
        assert request.filter.state.state == cri_messages.READY
        items = [
            {"id": each, "metadata": told["status"]["metadata"], "state": told["status"]["state"]}
            for each, told in self.sandboxes.items()
        ]
        return cri_messages.classes()["ListPodSandboxResponse"](items=items)

    def PodSandboxStatus(self, request, context):  # noqa: N802
        self.calls.append("status")
        told = self.sandboxes.get(request.pod_sandbox_id)
        if told is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "an error occurred when try to find sandbox: not found")
        return cri_messages.classes()["PodSandboxStatusResponse"](
            status=told["status"], info={"info": json.dumps(told["info"])} if request.verbose else {}
        )


def sandbox(name: str, uid: str, ip: str, pid: int, parent: str, **more) -> dict:
    """Return what a runtime says of a sandbox; `more` are fields of its status, and `info`."""
    info = {
        "pid": pid,
        "runtimeHandler": "",
        "runtimeType": "io.containerd.runc.v2",
        "config": {"linux": {"cgroup_parent": parent}},
    } | more.pop("info", {})
    status = {
        "id": more.pop("id", uuid.uuid4().hex),
        "metadata": {"name": name, "uid": uid, "namespace": more.pop("namespace", "default")},
        "state": cri_messages.READY,
        "network": {"ip": ip},
        **more,
    }
    return {"status": status, "info": info}


class Pod(NodeView):
    """A pod of the node; its sandbox's process is its app."""

    def __init__(self, node: AgentNode, name: str, uid: str, **more) -> None:
        self.uid, self.node = uid, node
        self.parent = f"/kubepods/besteffort/pod{uid}"
        super().__init__(name, node.root / self.parent.strip("/"), node.stack)
        node._wire(self)
        self.told = sandbox(name, uid, self.ip, self.app.pid, self.parent, **more)
        self.identity = self.told["status"]["id"]

    def listen(self) -> float:
        """Have the sidecar listen; return when it did."""
        self.sidecar.ask(op="sidecar")
        return time.monotonic()

    def end(self) -> None:
        """End the pod as a kubelet does: its processes, its sandbox, its cgroup."""
        for each in (self.sidecar, self.app):
            if each is not None:
                each.end()
        self.node.runtime.sandboxes.pop(self.identity, None)
        for child in ("app", "sidecar", "."):
            until(lambda child=child: removed(str(self.cgroup / child)), f"the cgroup of {self.name} is gone")


class AgentNode(Rig):
    """A node without pods, and its runtime; `close` leaves nothing."""

    def _build(self) -> None:
        self.tmp = Path(tempfile.mkdtemp(prefix="merlab-ag-"))
        self.stack.callback(run, "rm", "-rf", "--one-file-system", str(self.tmp))
        (self.tmp / "bpf").mkdir()
        run("mount", "-t", "bpf", "merlab-test", str(self.tmp / "bpf"))
        self.stack.callback(run, "umount", "-l", str(self.tmp / "bpf"))
        self.pins, self.run_dir = self.tmp / "bpf" / "merlab-agent", self.tmp / "run"
        self.root = cgroup2() / f"merlab-ag-{os.getpid()}"
        (self.root / "kubepods" / "besteffort").mkdir(parents=True)
        self.stack.callback(self._rmcgroups)
        self.node = Agent(None, "new")
        self.stack.callback(self.node.end)
        self.node.sh("ip", "link", "set", "lo", "up")
        self.node.sh("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.runtime = Runtime(self.tmp / "cri.sock")
        self.stack.callback(self.runtime.stop)
        self.agents: list[subprocess.Popen] = []
        self.stack.callback(self._end_agents)
        self.reconciler = Reconciler(self.pins)
        self.logs: list[Path] = []

    # -- pods ---------------------------------------------------------------------------------------------------------

    def pod(self, name: str, *, rules: bool = True, sidecar: bool = True, uid: str = "", **more) -> Pod:
        """Start a pod, with a sidecar that does not listen yet."""
        pod = Pod(self, name, uid or str(uuid.uuid4()), **more)
        if rules:
            pod.rules(RULES)
        if sidecar:
            pod.start_sidecar(proxy=False)
        self.runtime.sandboxes[pod.identity] = pod.told
        return pod

    def mesh(self, *names: str) -> list[Pod]:
        """Start pods whose sidecars listen, and wait until they are served."""
        pods = [self.pod(name) for name in names]
        for pod in pods:
            pod.listen()
        for pod in pods:
            self.until_state(pod, "served")
        return pods

    def started(self, *names: str) -> list[Pod]:
        """Start pods whose sidecars listen; no agent need run."""
        pods = [self.pod(name) for name in names]
        for pod in pods:
            pod.listen()
        return pods

    def told_again(self, pod: Pod, **more) -> Pod:
        """Have the runtime tell of a pod in other words, as of a new sandbox."""
        pod.told = sandbox(pod.name, pod.uid, pod.ip, pod.app.pid, pod.parent, **more)
        if "network" in more:
            pod.told["status"]["network"] = more["network"]
        pod.identity = pod.told["status"]["id"]
        self.runtime.sandboxes[pod.identity] = pod.told
        self.wake(pod)
        return pod

    def wake(self, pod: Pod) -> None:
        """Have something happen in the pod's cgroup, as when a container starts."""
        place = pod.cgroup / "container"
        place.mkdir()
        place.rmdir()

    def listen(self, pod: Pod, port: int = 5000) -> socket.socket:
        """Return a socket on which the app of a pod listens, until the node ends."""
        return self.stack.enter_context(pod.app.listen(port))

    # -- the agent ----------------------------------------------------------------------------------------------------

    def places(self) -> list[str]:
        return ["--pins", str(self.pins), "--run", str(self.run_dir), "--state", str(self.tmp / "state")]

    def start_agent(
        self, *more: str, wait: bool = True, stamp: str = "", prefix: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen:
        """Start an agent; with `stamp`, one whose programs are of another version; `prefix` runs it."""
        code = f"from merbridge_lab.dataplane import abi; abi.stamp = lambda: {stamp!r}; " if stamp else ""
        code += "from merbridge_lab.cli import main; main()"
        argv = [*prefix, sys.executable, "-c", code, "agent", "run", *self.places()]
        argv += ["--cri", str(self.runtime.socket), "--cgroup", str(self.root), "--port", "0", *more]
        self.logs.append(self.tmp / f"agent-{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            agent = subprocess.Popen(argv, stderr=log, stdout=log, env={**os.environ, **environment})
        self.agents.append(agent)
        if wait:
            until(lambda: "started" in self.log() or agent.poll() is not None, "the agent is started", 30)
            until(lambda: self.state().get("ready") or agent.poll() is not None, "the agent is ready", 30)
            assert agent.poll() is None, self.log()
        return agent

    def log(self) -> str:
        return self.logs[-1].read_text()

    def port(self) -> int:
        return next(told["port"] for told in map(json.loads, self.log().splitlines()) if "port" in told)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def merlab(self, *words: str, status: int = 0) -> str:
        argv = [sys.executable, "-c", "from merbridge_lab.cli import main; main()", "agent", *words, *self.places()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout or done.stderr

    def readers(self) -> int:
        """Return how many read the trace."""
        with Pins(self.pins).open_map("readers") as readers:
            return (bpf_maps.lookup(readers, bytes(4), 8) or b"")[0].bit_count()

    @contextlib.contextmanager
    def following(self, name: str = "trace"):
        """Follow the trace; yield a function that returns the events so far."""
        argv = [sys.executable, "-c", "from merbridge_lab.cli import main; main()", "agent", "trace", "--json"]
        out, before = self.tmp / f"{name}.json", self.readers()
        with out.open("wb") as file:
            reader = subprocess.Popen([*argv, *self.places()], stdout=file, stderr=subprocess.STDOUT)
        try:
            until(lambda: self.readers() > before, "the trace is followed", 20)
            yield lambda: [json.loads(line) for line in out.read_text().splitlines()]
        finally:
            assert self.end_agent(reader) == 0, out.read_text()

    def status(self, code: int = 0) -> dict:
        return json.loads(self.merlab("status", "--json", status=code))

    def state(self) -> dict:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.run_dir / "state.json").read_text())
        return {}

    def of(self, pod: Pod) -> dict:
        return next((each for each in self.state().get("pods", ()) if each["uid"] == pod.uid), {"state": "unknown"})

    def until_state(self, pod: Pod, state: str, seconds: float = 10.0) -> dict:
        return until(lambda: (told := self.of(pod))["state"] == state and told, f"{pod.name} is {state}", seconds)

    def until_reason(self, pod: Pod, reason: str, seconds: float = 10.0) -> dict:
        told = until(
            lambda: (told := self.of(pod)).get("reason_id") == reason and told, f"{pod.name}: {reason}", seconds
        )
        assert pod.uid not in self.reconciler.served()
        return told

    def end_agent(self, agent: subprocess.Popen, number: int = signal.SIGTERM) -> int:
        agent.send_signal(number)
        return agent.wait(20)

    def until_reason_is_pending(self, pod: Pod) -> None:
        until(lambda: self.of(pod).get("reason_id") == "no_listener", f"{pod.name} waits for its sidecar", 10)

    def endpoint(self, pod: Pod) -> Endpoint:
        """Return the endpoint as the agent has it."""
        return dataclasses.replace(
            pod.endpoint, namespace="default", uid=pod.uid, legs=reader_legs.for_profile(Profile.SAFE)
        )

    def _end_agents(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
                agent.wait()
        if self.pins.exists():
            self.reconciler.remove(1.0)


def counted(node: AgentNode, pod: Pod) -> dict[str, int]:
    return node.reconciler.counters()[pod.uid]


__all__ = ["IPS", "AgentNode", "Pod", "counted", "sandbox"]
