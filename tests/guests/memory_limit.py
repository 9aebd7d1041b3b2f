"""Run in a guest: a receiver at its memory limit, and what becomes of what is sent to it. Prints a JSON object."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))

from dataplane_rig import Rig, cgroup2

PORT, SIZE = 5000, 24 << 20
#: What the receiver may have beyond what it has, in bytes: less than redirecting alone would hand it.
SPARE = 1 << 20


def limit(rig: Rig) -> Path:
    """Limit the memory of hello's app; its sidecar and the client are in other cgroups."""
    here = cgroup2()
    app = rig.hello.cgroup / "app"
    for part in [*reversed(app.relative_to(here).parents)]:
        (here / part / "cgroup.subtree_control").write_text("+memory")
    (app / "memory.max").write_text(str(int((app / "memory.current").read_text()) + SPARE))
    return app


def found() -> dict[str, object]:
    rig = Rig()
    try:
        app = limit(rig)
        rig.attach()
        with rig.hello.app.listen(PORT) as server, rig.sleep.app.connect(rig.hello.ip, PORT) as client:
            client.sendall(b"?")
            receiver = server.accept()[0]
            receiver.settimeout(60)
            client.settimeout(60)
            failed: list[str] = []

            def send() -> None:
                try:
                    client.sendall(bytes(range(256)) * (SIZE // 256))
                except OSError as error:
                    failed.append(str(error))

            sending = threading.Thread(target=send)
            sending.start()
            time.sleep(2)  # it does not read, so it is filled to the limit
            counters = rig.counters("hello")
            got, whole = 0, receiver.recv(1) == b"?"
            while got < SIZE:
                data = receiver.recv(65536)
                if not data:
                    break
                whole = whole and data[0] == got % 256
                got += len(data)
            sending.join(60)
            receiver.close()
        return {
            "failed": failed,
            "received": got,
            "size": SIZE,
            "in order": whole,
            "passed_memory": counters["passed_memory"],
            "passed_receiver_full": counters["passed_receiver_full"],
            "redirected": counters["inbound_redirected_bytes"],
            "events": (app / "memory.events").read_text().split(),
        }
    finally:
        rig.close()


if __name__ == "__main__":
    json.dump(found(), sys.stdout)
