"""The traffic of test_dataplane_traffic, by programs that were loaded from the file, without BCC."""

from __future__ import annotations

import json

import pytest
from compiled_programs import compile_into
from dataplane_rig import Rig
from test_dataplane_traffic import *  # noqa: F403 - its tests, which run here again

from merbridge_lab.adapters import bcc_import
from merbridge_lab.dataplane import artefact, compiler, recompiled

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_into(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def rig(compiled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(bcc_import.VARIABLE, "/nonexistent")
        patch.setenv(artefact.VARIABLE, str(compiled))
        patch.setattr(compiler, "load", None)
        rig = Rig()
        try:
            rig.attach()
            yield rig
        finally:
            rig.close()


def test_it_was_attached_and_is_in_order_without_bcc(rig):
    assert rig.problems() == []
    rig.plane.recompile(proof=True)
    assert rig.problems() == []
    assert "is not compared with merlab's source" in rig.plane.not_compared()


def test_a_program_that_is_not_in_the_file_is_a_problem(rig, compiled, monkeypatch, tmp_path):
    told = json.loads(compiled.read_text())
    told["programs"][0]["code"] = "b700000001000000" + told["programs"][0]["code"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told))
    monkeypatch.setenv(artefact.VARIABLE, str(other))
    monkeypatch.setattr(rig.plane, "_recompiled", recompiled.Recompiled())
    (told,) = rig.problems()
    assert told.startswith("program connect4 ")
    assert f"is not the one in {other}" in told
