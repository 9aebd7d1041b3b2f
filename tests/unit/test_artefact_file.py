"""The file of compiled programs: what it holds, when it is used, and what is refused."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from merbridge_lab.adapters import bcc_import
from merbridge_lab.adapters.bpf_objects import MapShape
from merbridge_lab.adapters.btf_blob import Blob
from merbridge_lab.dataplane import abi, artefact, recompiled
from merbridge_lab.dataplane.pins import MAPS, PREFIX, PROGRAMS
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.requirements import tools
from merbridge_lab.requirements.packages import Distribution

LOAD_MAP = struct.pack("=BBhi", 0x18, 0x12, 0, 7) + bytes(8)
LOAD_NUMBER = struct.pack("=BBhi", 0x18, 0x02, 0, 7) + struct.pack("=BBhi", 0x18, 0x12, 0, 7)
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)


def made() -> artefact.Artefact:
    code, maps = artefact.unlinked(LOAD_NUMBER + LOAD_MAP + LOAD_MAP + EXIT, {7: "merlab_pods"})
    programs = tuple(
        artefact.CompiledProgram(PREFIX + name, 30, 36, "GPL", "sk_lookup", "bpf.sk_lookup", maps, code)
        for name in (*PROGRAMS, "learn")
    )
    shapes = tuple(MapShape(PREFIX + name, 1, 8, 272, 1024, 1, typed=True) for name in MAPS)
    return artefact.Artefact(abi.stamp(), "BCC 0.26.0", sys.byteorder, shapes, programs)


def written(tmp_path, **changes):
    file = tmp_path / "programs.json"
    file.write_text(json.dumps({**json.loads(made().text()), **changes}))
    return file


def test_what_is_written_is_what_is_read(tmp_path):
    assert artefact.read(written(tmp_path)) == made()


def test_maps_are_named_and_not_numbered():
    program = made().program("merlab_lookup")
    assert program.maps == {"merlab_pods": [2, 4]}
    assert program.code == LOAD_NUMBER + (LOAD_MAP[:4] + bytes(12)) * 2 + EXIT
    assert program.linked({"merlab_pods": 7}) == LOAD_NUMBER + LOAD_MAP * 2 + EXIT
    with pytest.raises(LabError, match="a map that merlab does not know"):
        artefact.unlinked(LOAD_MAP, {8: "merlab_pods"})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stamp": "0.0.1+0123456789ab"}, r"was compiled from the sources of merlab 0\.0\.1\+0123456789ab, this is"),
        ({"byte_order": "middle"}, "was compiled for middle-endian processors"),
        ({"format": 2}, "has format 2, expected 1"),
        ({"programs": [{"name": "merlab_lookup"}]}, "is damaged"),
        ({"maps": None}, "is damaged"),
        ({"programs": []}, "is incomplete: merlab_connect4, merlab_connect6, "),
        ({"maps": []}, "is incomplete: merlab_config, "),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, changes, why):
    with pytest.raises(LabError, match=why) as raised:
        artefact.read(written(tmp_path, **changes))
    assert (raised.value.id, raised.value.hint) == ("compiled.unusable", "merlab compile")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "\xff"])
def test_a_file_that_is_none(tmp_path, text):
    file = tmp_path / "programs.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(LabError, match="is damaged"):
        artefact.read(file)
    with pytest.raises(LabError, match="cannot be read: No such file"):
        artefact.read(tmp_path / "nowhere")


def test_which_file_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv(artefact.VARIABLE, raising=False)
    monkeypatch.delenv(bcc_import.VARIABLE, raising=False)
    monkeypatch.setattr(artefact, "PLACE", tmp_path / "compiled.json")
    assert artefact.chosen(tmp_path) is None  # neither BCC nor a file: the error is about BCC
    artefact.PLACE.write_text(made().text())
    assert artefact.chosen(tmp_path) == artefact.PLACE
    assert "that file is not compared with merlab's source" in (
        _told(monkeypatch, bcc_import.VARIABLE, "/nonexistent") or ""
    )
    bcc = tmp_path / "usr/lib/python3/dist-packages/bcc"
    bcc.mkdir(parents=True)
    for name in ("__init__.py", "libbcc.py", "table.py"):
        (bcc / name).write_text("")
    assert artefact.chosen(tmp_path) is None
    monkeypatch.setenv(artefact.VARIABLE, "named.json")
    assert str(artefact.chosen(tmp_path)) == "named.json"
    assert _told(monkeypatch, bcc_import.VARIABLE, str(bcc)) is None  # with BCC, the source is compared


def _told(monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setenv(name, value)
        return recompiled.not_compared()


def test_doctor_accepts_the_file_in_place_of_bcc(tmp_path, monkeypatch):
    monkeypatch.setenv(artefact.VARIABLE, str(written(tmp_path)))
    found = tools.bcc(tmp_path, Distribution.read(tmp_path))
    assert (found.verdict, found.hint) == ("pass", None)
    assert "compiled by BCC 0.26.0" in found.found
    monkeypatch.setenv(artefact.VARIABLE, str(written(tmp_path, stamp="1")))
    found = tools.bcc(tmp_path, Distribution.read(tmp_path))
    assert (found.verdict, found.hint) == ("fail", "merlab compile")


def test_types_by_their_size():
    blob = Blob()
    numbers = [blob.sized(size) for size in (4, 8, 272, 272, 12)]
    assert numbers[2] == numbers[3]
    assert len(set(numbers)) == 4
    name = blob.function("merlab_lookup")
    raw = blob.bytes()
    magic, version, _, header, at, length, strings_at, strings = struct.unpack_from("=HBBIIIII", raw)
    assert (magic, version, header, at, strings_at) == (0xEB9F, 1, 24, 0, length)
    assert len(raw) == header + length + strings
    assert raw.endswith(b"\0merlab_lookup\0")
    assert name == max(numbers) + 1


def test_only_its_own_reading_tells_what_is_not_compared():
    assert Reading("bpf:not_compared", "", None, "that").not_compared == "that"
    assert Reading("bpf:others", "", None, "that").not_compared is None
