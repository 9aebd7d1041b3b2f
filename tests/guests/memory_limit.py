"""Run in a guest: a receiver at its memory limit, and what becomes of what is sent to it. Prints a JSON object.

With the argument "blind" the programs are not told where the kernel has its memory counters, as before.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))

from dataplane_rig import Rig, cgroup2

from merbridge_lab.dataplane import kernel_facts

PORT, SIZE = 5000, 24 << 20
#: What the receiver may have beyond what it has, in bytes: less than redirecting alone would hand it.
SPARE = 1 << 20


def limit(rig: Rig) -> Path:
    """Limit the memory of sleep's app; all others are in other cgroups."""
    here = cgroup2()
    app = rig.sleep.cgroup / "app"
    for part in reversed(app.relative_to(here).parents):
        (here / part / "cgroup.subtree_control").write_text("+memory")
    (app / "memory.max").write_text(str(int((app / "memory.current").read_text()) + SPARE))
    return app


def found() -> dict[str, object]:
    rig = Rig()
    try:
        app = limit(rig)
        rig.attach()
        # The app makes the socket that receives, so its cgroup is charged; the test reads it, and sends.
        with rig.hello.app.listen(PORT) as server, rig.sleep.app.connect(rig.hello.ip, PORT) as receiver:
            receiver.sendall(b"?")
            sender = server.accept()[0]
            for each in (sender, receiver):
                each.settimeout(60)
            failed: list[str] = []

            def send() -> None:
                try:
                    sender.sendall(bytes(range(256)) * (SIZE // 256))
                except OSError as error:
                    failed.append(str(error))

            sending = threading.Thread(target=send)
            whole = sender.recv(1) == b"?"
            sending.start()
            time.sleep(2)  # nobody reads, so it is filled to the limit
            counters = rig.counters("sleep")
            got = 0
            while got < SIZE:
                data = receiver.recv(65536)
                if not data:
                    break
                whole = whole and data[0] == got % 256
                got += len(data)
            sending.join(60)
            sender.close()
        return {
            "failed": failed,
            "received": got,
            "size": SIZE,
            "in order": whole,
            "passed_memory": counters["passed_memory"],
            "passed_receiver_full": counters["passed_receiver_full"],
            "redirected": counters["outbound_redirected_bytes"],
            "events": (app / "memory.events").read_text().split(),
        }
    finally:
        rig.close()


def blind() -> None:
    told = kernel_facts.told
    kernel_facts.told = lambda: told() | {"sk_memcg": 0}


if __name__ == "__main__":
    if sys.argv[1:] == ["blind"]:
        blind()
    json.dump(found(), sys.stdout)
