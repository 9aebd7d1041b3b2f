"""Print as JSON what the probes found on the running kernel: `python -m tests.guests.probed`."""

from __future__ import annotations

import json
import os
import sys

from merbridge_lab.adapters.kernel_features import SOCKMAP_FIXES, is_fixed, stable_release
from merbridge_lab.dataplane import helper_probes, kernel_probes, reader_legs
from merbridge_lab.dataplane.legs import Profile


def found() -> dict[str, object]:
    kernel = stable_release()
    probes, verdict, streams = (
        kernel_probes.probe(),
        kernel_probes.probe_verdict(),
        kernel_probes.probe_streams(64 << 20),
    )
    legs = reader_legs.decide(Profile.SAFE, reader_legs.app_sockets(probes, kernel))
    return {
        "release": os.uname().release,
        "stable": ".".join(map(str, kernel)),
        "counts": probes.fionread.counts.name,
        "fionread": str(probes.fionread),
        "charged": probes.charged,
        "wrong": {each.name: probes.wrong(each) for each in kernel_probes.ARRANGEMENTS},
        "fionread with verdict": str(verdict.fionread),
        "wrong with verdict": {each.name: verdict.wrong(each) for each in kernel_probes.WITH_VERDICT},
        "stream": vars(streams.without),
        "stream with verdict": vars(streams.with_verdict),
        "missing helpers": helper_probes.missing_helpers(),
        "fixes": {name: is_fixed(fix, kernel) for name, fix in SOCKMAP_FIXES.items()},
        "out of app": legs.out_of_app,
        "into app": legs.into_app,
        "why": legs.why,
    }


if __name__ == "__main__":
    json.dump(found(), sys.stdout, indent=1)
