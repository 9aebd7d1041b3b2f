"""Root's environment for Python and the linker has no effect on merlab, nor on what it runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from merbridge_lab import isolated
from merbridge_lab.adapters import system_tools
from merbridge_lab.adapters.command import Beside, run

MERLAB = "import sys; sys.argv[0] = 'merlab'; sys.path[:1] = []; from merbridge_lab.isolated import main; main()"


def call(*words, **changes):
    argv = [sys.executable, "-c", MERLAB, *words]
    return subprocess.run(argv, env={**os.environ, **changes}, capture_output=True, text=True, check=False)


def test_a_module_of_pythonpath_is_not_imported(tmp_path):
    for name in ("typer", "rich", "sh"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\nraise SystemExit(7)\n"
        )
    done = call("--version", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("merlab ")
    assert not (tmp_path / "ran").exists()


def test_words_and_name_are_kept(tmp_path):
    done = call("steps", "nine", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "Usage: merlab steps" in done.stdout + done.stderr
    assert "nine" in done.stdout + done.stderr


def test_what_decides_nothing_about_imports_is_let_be(monkeypatch):
    for name in isolated.DECIDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.setattr(sys, "path", ["/nowhere", *sys.path])
    ran, again = [], []
    monkeypatch.setattr(isolated, "_run", lambda: ran.append(1))
    monkeypatch.setattr(isolated, "_replace", lambda *words: again.append(words))
    isolated.main()
    assert (len(ran), again) == (1, [])
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/nowhere")
    isolated.main()
    assert again[0][0] == "-E"


def test_where_merlab_is_not_found_without_the_environment_it_runs_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "merbridge_lab.cli", None)
    monkeypatch.setattr(sys, "argv", ["merlab", "steps"])

    def replaced(*words):
        raise SystemExit(str(words))

    monkeypatch.setattr(isolated, "_replace", replaced)
    with pytest.raises(SystemExit, match=r"-c.*'merlab', 'steps'"):
        isolated.alone()


LOADING = {
    "LD_PRELOAD": "",
    "LD_LIBRARY_PATH": "/nowhere",
    "LD_AUDIT": "",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "BASH_ENV": "/nowhere",
    "ENV": "/nowhere",
    "GCONV_PATH": "/nowhere",
}


def test_no_command_is_told_to_load_other_code(monkeypatch):
    for name, text in LOADING.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("DOCKER_HOST", "unix:///there")
    told = run(["printenv"]).stdout
    assert not [line for line in told.splitlines() if line.partition("=")[0] in LOADING]
    assert "DOCKER_HOST=unix:///there" in told, "the user's tools have settings of their own"
    given = run(["printenv"], env={"ONLY": "this", "LD_PRELOAD": "/nowhere/x.so"}).stdout
    assert given == "ONLY=this\n"


def test_merlabs_other_python_is_told_nothing_but_where_its_libraries_are(monkeypatch):
    for name, text in LOADING.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{sys.base_prefix}/lib:relative")
    monkeypatch.setenv("CPATH", "/nowhere")
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    told = Beside([sys.executable, "-I", "-c", script]).result(10).stdout
    assert not [name for name in ("PYTHONPATH", "BASH_ENV", "CPATH", "ENV") if f'"{name}"' in told]
    assert f'"LD_LIBRARY_PATH": "{sys.base_prefix}/lib"' in told
    assert system_tools.is_installed(system_tools.Path("/usr/lib/x.so"))
    assert not system_tools.is_installed(system_tools.Path("/nowhere/usr/lib"))
