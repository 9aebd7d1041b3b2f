"""Run in a guest: five sabotages of five kinds, which verify must notice by their cause. Prints a JSON object."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sabotage"))

import suite  # noqa: F401 - registers all sabotages
from saboteur import ALL, Scene, judge, mend, standing_lab, verify

#: A hook that is gone, another's program on the sockhash, a false sidecar, rules behind merlab's back, false evidence.
NAMES = (
    "link connect4 removed",
    "sk_msg replaced on the sockhash",
    "sidecar of sleep replaced by a plain proxy",
    "rules of helloworld-v1 in the other backend too",
    "access log forged",
)


def main() -> int:
    found = {}
    with standing_lab() as lab:
        for name in NAMES:
            sabotage = next(each for each in ALL if each.name == name)
            mend(lab)
            scene = Scene(lab)
            with sabotage.on(scene):
                found[name] = judge(sabotage, verify(scene)) or "noticed"
        mend(lab)
        passes = verify(Scene(lab)).verdict.value
    json.dump(found | {"mended": passes}, sys.stdout)
    return int(set(found.values()) != {"noticed"} or passes != "pass")


if __name__ == "__main__":
    sys.exit(main())
