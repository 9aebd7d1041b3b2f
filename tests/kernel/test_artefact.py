"""The programs loaded from what BCC compiled before, on a machine without BCC: the same as freshly compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_programs import compile_into
from walkthrough_host import environment, merlab

from merbridge_lab.adapters import bcc_import, bpf_maps, bpf_objects, bpf_syscall
from merbridge_lab.dataplane import abi, artefact, artefact_loader, compiler, kernel_facts, learning
from merbridge_lab.dataplane.pins import MAPS, PREFIX, PROGRAMS
from merbridge_lab.errors import UnsupportedFeatureError
from merbridge_lab.polling import limit

pytestmark = pytest.mark.kernel

NAME = "merlab-artefact"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_into(tmp_path_factory.mktemp("compiled"))


def test_the_file_is_what_a_fresh_compile_gives(compiled):
    fresh = compiler.compiled()
    made = artefact.read(compiled)
    assert [program.name for program in made.programs] == [program.name for program in fresh.programs]
    for one, other in zip(made.programs, fresh.programs, strict=True):
        assert [one.code[at : at + 8] for at in range(0, len(one.code), 8)] == [
            other.code[at : at + 8] for at in range(0, len(other.code), 8)
        ]
    assert made == fresh


def test_no_program_prints_into_the_machines_trace(compiled):
    """Loading one that calls bpf_trace_printk() would switch a trace event on, for everybody."""
    for program in artefact.read(compiled).programs:
        calls = [program.code[at + 4] for at in range(0, len(program.code), 8) if program.code[at] == 0x85]
        assert calls, program.name
        assert 6 not in calls, program.name


@pytest.mark.smoke
def test_what_is_loaded_looks_the_same_either_way(compiled):
    loaded, fresh = artefact_loader.load_compiled(artefact.read(compiled)), compiler.load()
    try:
        for name in PROGRAMS:
            one, other = (bpf_syscall.prog_info(each.programs[PREFIX + name]) for each in (loaded, fresh))
            assert (one.name, one.type, one.tag) == (other.name, other.type, other.tag)
            assert one.btf_id == bpf_syscall.map_info(loaded.maps["stamp"]).btf_id != 0
        for name in MAPS:
            assert bpf_objects.map_shape(loaded.maps[name], name) == bpf_objects.map_shape(fresh.maps[name], name)
    finally:
        loaded.close(), fresh.close()


def test_the_learner_of_the_file_learns(compiled):
    loaded = artefact_loader.load_compiled(artefact.read(compiled))
    try:
        facts = {name: value for name, value in kernel_facts.told().items() if name != "woken"}
        bpf_maps.update(loaded.maps["kernel"], bytes(4), abi.layouts()["kernel"].pack(**facts))
        assert learning.learn(loaded.learner(), loaded.maps["kernel"]) == kernel_facts.woken() != 0
    finally:
        loaded.close()


def test_a_program_that_the_verifier_refuses_is_told_with_its_reason(compiled):
    made = artefact.read(compiled)
    lookup = made.program("merlab_lookup")
    broken = [
        artefact.CompiledProgram(**{**vars(each), "code": each.code[:-8] + b"\xb7" + bytes(7)})
        if each == lookup
        else each
        for each in made.programs
    ]
    with pytest.raises(UnsupportedFeatureError) as raised:
        artefact_loader.load_compiled(artefact.Artefact(**{**vars(made), "programs": tuple(broken)}))
    assert "last insn is not an exit or jmp" in str(raised.value)
    assert lookup.feature in str(raised.value)


def test_no_module_of_bcc_is_imported_to_load(compiled):
    code = (
        "import sys; from merbridge_lab.dataplane import artefact_loader\n"
        "loaded = artefact_loader.load(); loaded.learner(); loaded.close()\n"
        "assert not [name for name in sys.modules if name == 'bcc' or name.endswith('dataplane.compiler')]"
    )
    env = environment(**{bcc_import.VARIABLE: "/nonexistent", artefact.VARIABLE: str(compiled)})
    env["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=limit(60), env=env)


@pytest.mark.soak
def test_a_whole_lab_without_bcc(compiled):
    env = environment(NAME, **{bcc_import.VARIABLE: "/nonexistent", artefact.VARIABLE: str(compiled)})
    try:
        up = merlab("up", env=env)
        assert up.returncode == 0, up.stdout + up.stderr
        proof = merlab("verify", "--json", env=env)
        told = json.loads(proof.stdout)
        assert (proof.returncode, told["verdict"], told["cause"]) == (0, "pass", None)
        reasons = [check["reason"] for check in told["standing"]]
        assert any(f"compared with {compiled}, and that file is not compared" in reason for reason in reasons)
        spoken = merlab("verify", env=env)
        assert spoken.returncode == 0
        assert f"{compiled}, and that file is not compared with merlab's source" in " ".join(spoken.stderr.split())
    finally:
        assert merlab("down", env=env).returncode == 0
