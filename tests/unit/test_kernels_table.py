"""docs/kernels.md says what guests were seen to do, and of what none did that it was not tried."""

import pytest
from tests.guests import kernels_table
from tests.guests.kernels_table import BEGIN, COLUMNS, DOCUMENT, END, GUESTS, KIND_COLUMNS, SOCKETS

MACHINE = {
    "distribution": "Debian GNU/Linux 13 (trixie)", "kernel": "6.12.1", "systemd": "257", "python": "3.13.5",
    "bcc": "0.31.0", "iptables": "v1.8.11", "nftables": "v1.1.3",
}  # fmt: skip
PROBES = {
    "counts": "BOTH", "fionread": "1000 of 1000", "charged": 32768, "out of app": False, "into app": False,
    "wrong": {"a": ["recv()"], "b": ["recv()", "zero"], "c": [], "d": ["splice"]}, "fixes": {"mptcp": True},
    "stream": {"is_in_order": True, "received": 64, "total": 64},
}  # fmt: skip


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Record in a folder of the test's; return a function that records a phase of a guest."""
    monkeypatch.setattr(kernels_table, "RECORD", tmp_path / "kernels.json")

    def record(guest, phase, *, held=True, kernel="6.12.1", **more):
        kernels_table.record(guest, kernel, {"phase": phase, "held": held, **more}, "2026-11-29")

    return record


def cells(text, label):
    """Return the cells of the row with this label."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return row.split(" | ")[1:]


def test_the_document_is_what_was_recorded():
    _, _, rest = DOCUMENT.read_text().partition(BEGIN)
    assert rest.partition(END)[0] == kernels_table.render(kernels_table.read())


@pytest.mark.parametrize("document", kernels_table.BRIEF, ids=lambda each: each.name)
def test_the_short_table_is_what_was_recorded(document):
    _, _, rest = document.read_text().partition(BEGIN)
    assert rest.partition(END)[0] == kernels_table.brief(kernels_table.read())


def test_the_short_table_tells_what_held_what_did_not_and_what_was_not_tried(recorded):
    recorded("debian-13", "verify")
    recorded("debian-13", "down", held=False, said="NotHeldError: …")
    recorded("linux-5.10", "refused", kernel="5.10.1", found={"said": "merlab: too old"})
    lines = kernels_table.brief(kernels_table.read()).splitlines()
    (debian,) = [line for line in lines if line.startswith("| Debian 13 |")]
    assert debian.startswith("| Debian 13 | 6.12.1 | `verify` (six cells) | **`down`** | ")
    assert "`doctor`" in debian.split(" | ")[4]
    assert debian.endswith(" | 2026-11-29 |")
    assert "| Debian 12, kernel of Ubuntu 22.04 |  |  |  | all of it; expected to hold |  |" in lines
    assert "| Debian 12, kernel of Debian 11 | 5.10.1 | refused in a sentence |  |  | 2026-11-29 |" in lines


def test_what_no_guest_did_was_not_tried():
    text = kernels_table.render({})
    for label in ("machine", *COLUMNS.values(), *SOCKETS):
        assert [each.strip(" |") for each in cells(text, label)] == [
            g.said for g in GUESTS if not (g.refused or g.kind)
        ]
    for label in ("parts", *KIND_COLUMNS.values()):
        assert [each.strip(" |") for each in cells(text, label)] == ["not tried"]
    assert "(Debian 12, kernel of Debian 11): not tried." in text


def test_what_held_and_what_did_not_is_told_with_its_date(recorded):
    recorded("debian-13", "machine", found=MACHINE)
    recorded("debian-13", "verify")
    recorded("debian-13", "step 9", held=False, said="NotHeldError: …")
    recorded("debian-13", "smoke", found={"passed": "20 passed in 99.00s"})
    recorded("debian-13", "probes", found=PROBES)
    recorded("debian-13", "kTLS", found={"refused": "EINVAL"})
    text = kernels_table.render(kernels_table.read())
    first = {label: cells(text, label)[0] for label in ("machine", *COLUMNS.values(), *SOCKETS)}
    assert "Debian 13: 6.12.1 |" in text
    assert first["machine"].startswith("Debian GNU/Linux 13 (trixie); systemd 257, Python 3.13.5")
    assert first["`verify` (six cells)"] == "holds, 2026-11-29"
    assert first["`step 9`"] == "**does not hold**, 2026-11-29"
    assert first["smoke tests"] == "holds: 20 passed, 2026-11-29"
    assert first["`doctor`"] == "not tried"
    assert first["wrong on TCP's bytes, once the socket is there"] == "recv(), zero"
    assert first["wrong on redirected bytes"] == "splice"
    assert first["an app with kTLS, captured"] == "the keys are refused (EINVAL)"
    assert first["so safe from sidecar to sidecar"] == "yes"
    assert first["so safe for what any app reads"] == "no"


def test_the_kind_lab_is_told_apart_with_what_it_ran_on(recorded):
    parts = {"distribution": "Debian GNU/Linux 12 (bookworm)", "docker": "20.10", "kind": "v0.33.0", "kubernetes": "v1"}
    recorded("kind", "machine", found=parts | {"slowed": True})
    recorded("kind", "up", found={"held": 7, "skipped": 3})
    recorded("kind", "status", held=False, said="NotHeldError: …")
    text = kernels_table.render(kernels_table.read())
    told = {label: cells(text, label)[0].strip(" |") for label in ("parts", *KIND_COLUMNS.values())}
    assert "Kernel of Debian 13: 6.12.1 |" in text
    assert told["parts"].startswith("Debian GNU/Linux 12 (bookworm); Docker 20.10, kind v0.33.0, Kubernetes v1")
    assert told["parts"].endswith("; each instruction emulated")
    assert told["`up --lab kind --dataplane none`"] == "holds: 7 steps, 3 skipped, 2026-11-29"
    assert told["`status --lab kind`"] == "**does not hold**, 2026-11-29"
    assert told["`down --lab kind`"] == "not tried"


def test_another_kernel_inherits_nothing(recorded):
    recorded("debian-13", "verify")
    recorded("debian-13", "up", kernel="6.12.2")
    assert set(kernels_table.read()["debian-13"]["phases"]) == {"up"}


def test_a_kernel_that_is_too_old_is_told_with_its_sentence(recorded):
    recorded("linux-5.10", "refused", kernel="5.10.1", found={"said": "merlab: too old"})
    text = kernels_table.render(kernels_table.read())
    assert "5.10.1), 2026-11-29: `doctor` and `up` end with exit status 3 and `merlab: too old`; nothing" in text
    recorded("linux-5.10", "refused", kernel="5.10.1", held=False)
    assert "**not refused as it should be**" in kernels_table.render(kernels_table.read())
