"""A cluster provider for tests: its node is this machine, and a test defines the rest; it knows no Docker."""

# ruff: noqa: ARG002 - the protocol's

from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.provider import ClusterState, OwnedCluster
from merbridge_lab.requirements import Requirement


class StubNode:
    """Runs commands here, or where `execute` does."""

    def __init__(self, name="node-1", image="stub/node:v1.36.1", execute=None):
        self.name, self.image, self._execute = name, image, execute

    def execute(self, argv, *, stdin=None, timeout=30.0, ok=(0,)):
        if self._execute is not None:
            return self._execute(argv)
        return run(argv, timeout=timeout, ok=ok, stdin=stdin)

    def argv(self, argv, *, terminal=True):
        return ["stub-exec", *(["-t"] if terminal else []), self.name, *argv]

    def shell_command(self, argv):
        return pasteable(["stub-exec", self.name, *argv])

    def init_pid(self):
        raise LabError("the node has another kernel")


class StubImages:
    """The images `here` on this machine; `loaded` is what went into the nodes."""

    def __init__(self, *here):
        self.here, self.loaded = set(here), []

    def has(self, ref):
        return ref in self.here

    def identity(self, ref):
        return f"sha256:{ref}" if ref in self.here else None

    def fetch(self, ref):
        if ref not in self.here:
            raise LabError(f"there is no {ref}")

    def load(self, refs):
        self.loaded += refs

    def pull_command(self, ref):
        return f"stub pull {ref}"

    def load_command(self, refs):
        return f"stub load {' '.join(refs)}"

    def import_command(self):
        return "stub import"


class StubComponent:
    """A cluster that is as it should be, if it can be read."""

    def __init__(self, connection):
        self._connection = connection

    def ensure(self): ...

    def remove(self): ...

    def problems(self):
        if not self._connection.provider.nodes:
            return ["there is no cluster"]
        self._connection.api().get("/api/v1/nodes")
        return []

    def readings(self):
        return ()

    def shell_commands(self):
        return ["stub create cluster"]


class StubProvider:
    """The OwningProvider protocol over these nodes and credentials."""

    name, context = "stub", "stub-context"

    def __init__(self, credentials=None, *, nodes=None, usable=True, running=True, images=None):
        self._credentials, self._usable, self._running = credentials, usable, running
        self.nodes = (StubNode(),) if nodes is None else tuple(nodes)
        self.images = images or StubImages()

    def exists(self):
        return bool(self.nodes)

    def state(self):
        return ClusterState(self.nodes, bool(self.nodes) and self._usable, bool(self.nodes) and self._running)

    def require_up(self):
        if not self.state().up:
            raise LabError("no lab is up")

    def owned(self):
        if not self.state().usable:
            raise LabError("not merlab's")
        return OwnedCluster("the test says so", self.nodes)

    def credentials(self):
        if self._credentials is None:
            raise LabError("there are no credentials")
        return self._credentials

    def component(self, connection, changed):
        return StubComponent(connection)

    def offline_node(self):
        return StubNode()

    def context_commands(self, is_cluster):
        return ["stub export"]

    def requirements(self, settings, *, same_kernel):
        return [Requirement("stub", "pass", settings.kind_image, "anything")]

    def stays(self, refs):
        return [ref for ref in refs if self.images.has(ref)]

    def dump(self):
        return {"nodes.json": lambda: [node.name for node in self.nodes]}
