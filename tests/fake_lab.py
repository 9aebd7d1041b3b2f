"""A lab in memory: the Lab protocol with a small world behind it, instead of a kernel.

Nothing is scripted. A request takes the path that rules and dataplane send it, and leaves the log lines, rule counters,
dataplane counters and trace lines that it leaves in a real lab, in the real formats. So a step or a check that looks at
the wrong thing fails here, too. What can be broken is a plain attribute: see FakePart and FakeLab.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trace_lines
from merbridge_lab import accesslog, ruleset
from merbridge_lab.command_events import CommandTranscript
from merbridge_lab.dataplane.evidence import interception
from merbridge_lab.dataplane.legs import ALL_LEGS
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.interception import Counters
from merbridge_lab.lab import (
    APP_REPORTS_PEER,
    CONTROL_CLIENT,
    DATAPLANE,
    DEBUG_TOGGLE,
    HELLO,
    INBOUND_WITHOUT_RULES,
    TRACE,
    ControlPair,
    ServerGroup,
)
from merbridge_lab.labs.base import LabBase
from merbridge_lab.observation import Batch, Exchange, Observation
from merbridge_lab.process_identity import ProcessIdentity
from merbridge_lab.requirements import Requirement
from merbridge_lab.ruleset import RuleSet
from merbridge_lab.starting import Starting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

CAPTURED = Path(__file__).parent / "captured"
RULES = (CAPTURED / "sleep.nft.rules").read_text()
VIP = "10.96.0.10"


class FakePart:
    """A component of the lab. `problem` lasts until `ensure`; `incurable` stays; `slow` more checks see a problem."""

    def __init__(self, lab: FakeLab, name: str, below: FakePart | None = None) -> None:
        self.lab, self.name, self.below = lab, name, below
        self.there = False
        self.problem: str | None = None
        self.incurable: str | None = None
        self.slow = 0
        self.ensured = 0
        self.refuses: LabError | None = None

    def ensure(self) -> None:
        if self.below is not None and not self.below.there:
            raise LabError(f"{self.name} cannot be made: there is no {self.below.name}")
        self.there, self.problem = True, None
        self.ensured += 1

    def remove(self) -> None:
        if self.refuses:
            raise self.refuses
        if self.there:
            self.lab.removed.append(self.name)
        self.there = False

    def problems(self) -> list[str]:
        if not self.there:
            return [f"there is no {self.name}"]
        if self.slow:
            self.slow -= 1
            return [f"{self.name} is not ready yet"]
        return [problem for problem in (self.problem, self.incurable) if problem]

    def readings(self) -> tuple[Reading, ...]:
        return (Reading(f"fake:{self.name}", "", None, "there" if self.there else "missing"),)

    def shell_commands(self) -> list[str]:
        return [f"make-{self.name} --in /run/fake"]


class FakeMesh(FakePart):
    """The pods; flushed rules are a problem that `ensure` repairs."""

    def ensure(self) -> None:
        super().ensure()
        self.lab.restore()

    def problems(self) -> list[str]:
        flushed = [pod.name for pod in self.lab.pods if pod.rules.outstanding]
        return [f"the nat rules of {name} are flushed" for name in flushed] + super().problems()


class FakeDataplane(FakePart):
    """The programs that intercept."""

    debug = False
    roles = ("connect4 · connect() · instead of ISTIO_REDIRECT in nat OUTPUT",)

    @property
    def attached(self) -> bool:
        return self.there and self.problem is None

    def set_debug(self, *, on: bool) -> None:
        self.debug = on and self.there

    def debug_commands(self) -> list[str]:
        return ["bpftool map update pinned /run/fake/bpf/config key 0 0 0 0 value 1 0 0 0"]

    @staticmethod
    def debug_shown() -> str:
        return ""


class FakeRules:
    """Rules as the text of iptables-save, which is the only state."""

    def __init__(self, pod: FakePod, *, keep: bool) -> None:
        self._pod, self._keep = pod, keep
        self.text = RULES
        self.saved: str | None = None
        self.generation = 1

    def snapshot(self) -> RuleSet:
        self._pod.require_there()
        return RuleSet({"nft": self.text, "legacy": ""}, (), self.generation)

    def copy(self) -> None:
        self._pod.require_there()

    @property
    def outstanding(self) -> bool:
        return self.saved is not None

    @contextlib.contextmanager
    def flushed(self) -> Iterator[RuleSet]:
        self.restore()
        before = self.snapshot()
        if not before.istio:
            raise LabError(f"there are no ISTIO rules in {self._pod.name} to flush")
        self.saved = self.text
        self.flush()
        try:
            yield before
        except BaseException:
            self.restore()
            raise
        if not self._keep:
            self.restore()

    def flush(self) -> None:
        head, nat, tail = self.text.partition("*nat")
        self.text = head + nat + "\n".join(line for line in tail.splitlines() if "-A " not in line) + "\n"
        self.generation += 1

    def restore(self) -> bool:
        if self.saved is None:
            return False
        self.text, self.saved = self.saved, None
        self.generation += 1
        return True

    def count(self, chain: str) -> None:
        """Count one more connection through `chain`, in its first rule."""
        lines = self.text.splitlines(keepends=True)
        number = next(n for n, line in enumerate(lines) if f"-A {chain} " in line)
        packets, _, rest = lines[number].removeprefix("[").partition(":")
        lines[number] = f"[{int(packets) + 1}:{rest}"
        self.text = "".join(lines)

    @property
    def there(self) -> bool:
        return bool(self.snapshot().istio)

    def _inside(self, tool: str) -> str:
        return f"nsenter --net=/run/fake/netns/{self._pod.name} {tool}"

    def save_command(self) -> str:
        return self._inside(f"iptables-nft-save -c -t nat > /run/fake/{self._pod.name}.rules")

    def flush_command(self) -> str:
        return self._inside("iptables-nft -t nat -F")

    def restore_command(self) -> str:
        return self._inside(f"iptables-nft-restore -c < /run/fake/{self._pod.name}.rules")

    def list_command(self, chain: str = "") -> str:
        return self._inside(f"iptables-nft -t nat -vnL {chain}".rstrip())

    def listing(self, chain: str = "") -> str:
        shown = [rule for rule in ruleset.parse(self.text) if rule.table == "nat" and chain in ("", rule.chain)]
        return "".join(f"{rule.packets:>5} {rule.chain} {rule.spec}\n" for rule in shown)


class FakePod:
    """A pod. `served`: the dataplane serves it; `stray`: its process is found in another namespace."""

    def __init__(
        self, lab: FakeLab, name: str, ip: str, *, served: bool = True, sidecar: bool = True, version: str = ""
    ) -> None:
        self.lab, self.name, self.ip = lab, name, ip
        self.url = f"http://{ip}:5000/hello"
        self.served, self.sidecar, self.version = served, sidecar, version
        self.stray = False
        self.rules = FakeRules(self, keep=lab.keep and served)

    def require_there(self) -> None:
        if self not in self.lab.everyone():
            raise LabError(f"nsenter failed: there is no namespace of {self.name}")

    def enter(self) -> ProcessIdentity:
        self.require_there()
        return ProcessIdentity(
            workload=self.name,
            pid=4242,
            comm="sleep",
            expected_address=self.ip,
            addresses=(self.ip,),
            expected_netns=4026532001,
            netns=4026532002 if self.stray else 4026532001,
            expected_cgroup=f"/sys/fs/cgroup/fake/{self.name}/app",
            cgroup=f"/sys/fs/cgroup/fake/{self.name}/app",
            looked=f"2: eth0    inet {self.ip}/32 scope global eth0\n",
        )

    def request_command(self, *, without_ebpf: bool = False) -> str:
        if without_ebpf:
            return f"merlab exec --without-ebpf {self.name} -- curl -sS helloworld:5000/hello"
        return f"merlab exec {self.name} -- curl -s helloworld:5000/hello"

    def enter_commands(self) -> list[str]:
        found = f"head -1 /sys/fs/cgroup/fake/{self.name}/app/cgroup.procs"
        return [found, f"nsenter -t $({found}) --net ip -o -4 address show"]

    def app_argv(self, argv: Sequence[str]) -> list[str]:
        return list(argv)


class FakeLab(LabBase):
    """The lab. `unable` are failed requirements; `mute` sidecars write no log; `idle_legs` move no payload."""

    name = "fake"

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__(keeps_flushed=keep)
        self.keep = keep
        self.follows_original = False
        self.capabilities = frozenset(
            {DATAPLANE, INBOUND_WITHOUT_RULES, APP_REPORTS_PEER, DEBUG_TOGGLE, TRACE, CONTROL_CLIENT}
        )
        self.unable: list[Requirement] = []
        self.mute: set[str] = set()
        self.idle_legs: set[str] = set()
        self.removed: list[str] = []
        self.swept = 0
        self.kept: dict[str, object] = {}
        self.node = FakePart(self, "node")
        self.mesh = FakeMesh(self, "mesh", self.node)
        self.dataplane = FakeDataplane(self, "dataplane", self.mesh)
        self.pods = [
            FakePod(self, "sleep", "10.244.0.10"),
            FakePod(self, "helloworld-v1", "10.244.0.11", version="v1"),
            FakePod(self, "helloworld-v2", "10.244.0.12", version="v2"),
        ]
        self.twins_there: list[FakePod] = []
        self.logs: dict[str, list[str]] = defaultdict(list)
        self.counters: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._trace: list[str] = []
        self._number = itertools.count(1)
        self._turn = itertools.count()

    # -- nouns

    def everyone(self) -> list[FakePod]:
        return [*(self.pods if self.mesh.there else []), *self.twins_there]

    def workload(self, name: str) -> FakePod:
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise LabError(f"there is no workload called {name!r}; there are {', '.join(p.name for p in self.pods)}")

    def servers(self) -> list[FakePod]:
        return [pod for pod in self.pods if pod.version]

    @contextlib.contextmanager
    def _for_the_moment(self, *pods: FakePod) -> Iterator[tuple[FakePod, ...]]:
        self.twins_there += pods
        try:
            yield pods
        finally:
            self.twins_there = [pod for pod in self.twins_there if pod not in pods]

    @contextlib.contextmanager
    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> Iterator[Starting[FakePod]]:
        self.workload(of)
        with self._for_the_moment(FakePod(self, f"{of}-twin", "10.244.0.100", served=False, sidecar=sidecar)) as (pod,):
            yield Starting(lambda: pod)

    @contextlib.contextmanager
    def control_pair(self) -> Iterator[Starting[ControlPair]]:
        client = FakePod(self, "sleep-twin2", "10.244.1.200", served=False)
        server = FakePod(self, "helloworld-v1-twin", "10.244.0.101", served=False, version="twin")
        with self._for_the_moment(client, server):
            yield Starting(lambda: ControlPair(client, server, "http://helloworld-twin:5000/hello"))

    @contextlib.contextmanager
    def flushable_servers(self) -> Iterator[ServerGroup]:
        yield ServerGroup(self.servers())

    def drain_idle_connections(self) -> bool:
        return True

    # -- requests

    def observe(
        self,
        client: FakePod,
        *,
        count: int = 4,
        trace: bool = False,
        url: str = HELLO,
        servers: Sequence[FakePod] = (),
        logged: bool = True,  # noqa: ARG002 - nothing to wait for
    ) -> Observation:
        before = client.rules.snapshot()
        counted = copy.deepcopy(self.counters) if self.dataplane.attached else {}
        starts = {name: len(lines) for name, lines in self.logs.items()}
        self._trace.clear()
        exchanges = tuple(self._ask(client, servers or self.servers(), url) for _ in range(count))

        def lines(name: str) -> tuple[accesslog.AccessLogLine, ...]:
            return accesslog.parse_all("".join(self.logs[name][starts.get(name, 0) :]))

        nonces = {exchange.nonce for exchange in exchanges}
        closed = {exchange.local for exchange in exchanges if exchange.closed}
        theirs = [(pod.name, line) for pod in (servers or self.servers()) for line in lines(pod.name)]
        batch = Batch(
            client=client.name,
            exchanges=exchanges,
            client_log={line.request_id: line for line in lines(client.name) if line.request_id in nonces},
            server_log={line.request_id: (name, line) for name, line in theirs if line.request_id in nonces},
            trace=tuple(event for line in self._trace if (event := trace_lines.parse(line))) if trace else (),
        )
        counters = Counters(counted, copy.deepcopy(self.counters) if self.dataplane.attached else {})
        return Observation(
            **vars(batch),
            interception=interception(batch, counters, ALL_LEGS),
            rejected=tuple(
                (name, line) for name, line in theirs if line.rejected_plain_text and line.downstream_remote in closed
            ),
            before=before,
            after=client.rules.snapshot(),
        )

    def _ask(self, client: FakePod, servers: Sequence[FakePod], url: str) -> Exchange:
        number = next(self._number)
        nonce, local = f"00000000-0000-4000-8000-{number:012}", f"{client.ip}:{40000 + number}"

        def ended(exit_status: int, status: int | None = None, body: str = "", error: str = "") -> Exchange:
            headers = {"x-peer": client.ip} if status else {}
            return Exchange(nonce, url, exit_status, status, body, headers, local, 0.001, error)

        if not self.mesh.there or self.mesh.problem or self.mesh.incurable:
            return ended(6, error="curl: (6) Could not resolve host: helloworld")
        server = servers[next(self._turn) % len(servers)]
        hello = f"Hello version: {server.version}, instance: {server.name}\n"
        intercepted = self.dataplane.attached and client.served
        steered = self.dataplane.attached and server.served
        if intercepted:
            self._count(client, "outbound_connects")
            self._traces(local, number)
        elif client.rules.there:
            client.rules.count("ISTIO_REDIRECT")
            if not client.sidecar:
                return ended(7, error="curl: (7) Failed to connect to helloworld port 5000: Connection refused")
        elif server.rules.there or steered:
            self._log(server, _REJECTED.format(server=server.ip, local=local))
            return ended(52, error="curl: (52) Empty reply from server")
        else:
            return ended(0, 200, hello)
        mesh = f"{client.ip}:{30000 + number}"
        out = _OUTBOUND.format(nonce=nonce, server=server.ip, mesh=mesh, vip=VIP, local=local, code=200)
        if not (server.rules.there or steered):
            self._log(client, out.replace(" 200 ", " 503 "))
            return ended(0, 503, "upstream connect error")
        if steered and not intercepted and not server.rules.there:
            self._count(server, "sk_lookup_assigned")
        if intercepted and steered:
            self._payload(client, server)
        self._log(client, out)
        self._log(server, _INBOUND.format(nonce=nonce, server=server.ip, mesh=mesh, port=20000 + number))
        return ended(0, 200, hello)

    def _payload(self, client: FakePod, server: FakePod) -> None:
        self._count(client, "mesh_connects")
        for leg, pod, messages in (
            ("outbound", client, 2),
            ("mesh", client, 1),
            ("mesh", server, 1),
            ("inbound", server, 2),
        ):
            if leg not in self.idle_legs:
                self._count(pod, f"{leg}_redirected_messages", messages)
                self._count(pod, f"{leg}_redirected_bytes", 100 * messages)

    def _count(self, pod: FakePod, name: str, by: int = 1) -> None:
        self.counters[pod.name][name] += by

    def _log(self, pod: FakePod, line: str) -> None:
        if pod.name not in self.mute:
            self.logs[pod.name].append(line)

    def _traces(self, local: str, pair: int) -> None:
        if not self.dataplane.debug:
            return
        for text in (
            f"connect pair={pair:x} leg=1 comm=curl",
            f"wanted pair={pair:x} dst={VIP}:5000",
            f"established pair={pair:x} src={local}",
            f"accepted pair={pair:x} at=127.0.0.1:15001",
            f"original_dst pair={pair:x} dst={VIP}:5000",
            f"redirect pair={pair:x} side=0 bytes=141",
            f"redirect pair={pair:x} side=1 bytes=222",
        ):
            self._trace.append(f"            curl-4711    [001] ...11  1901.295181: bpf_trace_printk: [merlab] {text}")

    def logged(self, nonces: Iterable[str]) -> list[str]:
        wanted = tuple(nonces)
        return [
            f"{name}: {line.rstrip()}"
            for name, lines in self.logs.items()
            for line in lines
            if any(nonce in line for nonce in wanted)
        ]

    def fingerprint(self) -> dict[str, str]:
        return {
            "the dataplane": str(self.dataplane.attached),
            **{
                f"the nat rules of {pod.name}": "\n".join(RuleSet({"nft": pod.rules.text}).specs("nat"))
                for pod in self.pods
            },
        }

    def watched(self) -> contextlib.AbstractContextManager[Callable[[], list[str]]]:
        return contextlib.nullcontext(list)

    def trace_command(self) -> str:
        return "merlab trace --raw"

    # -- what is shown and what the machine offers

    def why_missing(self, capability: str) -> str:
        return f"the fake lab was told to do without {capability}"

    def requirements(self) -> list[Requirement]:
        return [Requirement("kernel.version", "pass", "6.18.44", ">= 5.15"), *self.unable]

    def require_able(self) -> None:
        for lacking in self.unable:
            raise LabError(f"{lacking.name}: found {lacking.found}, needed {lacking.needed}", hint=lacking.hint)

    def inventory(self) -> list[CommandTranscript]:
        programs = "7: cgroup_sock_addr  name merlab_connect4\n" if self.dataplane.attached else ""
        return [CommandTranscript("bpftool prog", f"1: cgroup_device  name sd_devices\n{programs}")]

    @staticmethod
    def inventory_commands() -> list[str]:
        return ["bpftool prog"]

    @staticmethod
    def offline_commands() -> None:
        return None

    # -- the lab as a whole

    @property
    def exists(self) -> bool:
        return any(part.there for part in (self.node, self.mesh, self.dataplane))

    def remove(self, timeout: float) -> None:  # noqa: ARG002 - nothing takes time
        for part in (self.dataplane, self.mesh, self.node):
            part.there = False

    def stays(self) -> list[str]:
        return []

    def require_up(self) -> None:
        if not self.exists:
            raise LabError("no lab is up", hint="merlab up", id="lab.not_up")

    def keep_report(self, told: dict[str, object]) -> None:
        self.kept = told

    def sweep(self) -> list[str]:
        self.swept += 1
        return []

    def choices(self) -> list[str]:
        return []

    def recover(self) -> None:
        self.twins_there.clear()
        self.restore()

    def restore(self) -> list[str]:
        return [pod.name for pod in self.pods if pod.rules.restore()]

    def states(self, steps: Sequence[object]) -> list[str]:
        return ["holds" if self.exists else "not yet" for _ in steps]

    def describe(self) -> dict[str, object]:
        return {
            "schema": 1,
            "lab": self.name,
            "up": self.exists,
            "workloads": [
                {
                    "name": pod.name,
                    "pid": 4242,
                    "ip": pod.ip,
                    "sidecar": True,
                    "rules": {"backend": pod.rules.snapshot().backend, "istio_rules": len(pod.rules.snapshot().istio)},
                }
                for pod in (self.pods if self.mesh.there else [])
            ],
            "dataplane": {
                "kind": "fake",
                "attached": self.dataplane.attached,
                "programs": 6 if self.dataplane.attached else 0,
            },
            "path": [{"from": "sleep's app", "by": "eBPF", "to": "sleep's sidecar"}] if self.exists else [],
            "flushed": [pod.name for pod in self.pods if pod.rules.outstanding],
            "problems": [*self.node.problems(), *self.mesh.problems()] if self.exists else [],
        }


class FakeDriver:
    """Opens one FakeLab repeatedly, as the kernel keeps a lab between two calls of merlab."""

    name = lab_name = "fake"
    context = docker = ""

    def __init__(self, lab: FakeLab | None = None) -> None:
        self.lab = lab or FakeLab()

    def is_up(self) -> bool:
        return self.lab.exists

    def require_able(self) -> None:
        pass

    def requirements(self) -> list[Requirement]:
        return self.lab.requirements()

    @contextlib.contextmanager
    def open(
        self,
        *,
        keep: bool = False,
        backend: str | None = None,  # noqa: ARG002
        legs: str | None = None,  # noqa: ARG002
        pods: int | None = None,  # noqa: ARG002
    ) -> Iterator[FakeLab]:
        for pod in self.lab.pods:
            pod.rules._keep = keep
        self.lab._keeps_flushed = keep
        yield self.lab


_HEAD = '[2026-11-24T08:45:24.650Z] "GET /hello HTTP/1.1" {code} - via_upstream - "-" 0 43 0 0 "-" "curl/7.88.1" '
_OUTBOUND = (
    _HEAD + '"{nonce}" "helloworld:5000" "{server}:5000" outbound|5000||helloworld.default.svc.cluster.local'
    " {mesh} {vip}:5000 {local} - default\n"
)
_INBOUND = (
    _HEAD.format(code=200) + '"{nonce}" "helloworld:5000" "{server}:5000" inbound|5000|| 127.0.0.6:{port}'
    " {server}:5000 {mesh} outbound_.5000_._.helloworld.default.svc.cluster.local default\n"
)
_REJECTED = (
    '[2026-11-24T08:45:25.069Z] "- - -" 0 NR filter_chain_not_found - "-" 0 0 0 - "-" "-" "-" "-" "-" - -'
    " {server}:5000 {local} - -\n"
)


def up(lab: FakeLab) -> FakeLab:
    """Return the lab with everything in place."""
    for part in (lab.node, lab.mesh, lab.dataplane):
        part.ensure()
    lab.dataplane.set_debug(on=True)
    return lab


def flushed():
    """Observe sleep with its rules flushed, and beside it a flushed control client without eBPF."""
    lab = up(FakeLab())
    sleep = lab.workload("sleep")
    with sleep.rules.flushed() as saved:
        seen = lab.observe(sleep)
    with lab.control_client(sidecar=False) as starting, (control_client := starting.ready()).rules.flushed():
        control = lab.observe(control_client)
    return seen.with_control(control).with_rules(saved, sleep.rules.snapshot())


def seen_with(seen: Observation, **changes: object) -> Observation:
    """Return the observation with other counters or another trace, and what our dataplane makes of them."""
    known = seen.interception.counters
    counters = Counters(changes.pop("counters_before", known.before), changes.pop("counters_after", known.after))
    changed = replace(seen, **changes)
    return replace(changed, interception=interception(changed, counters, ALL_LEGS))
