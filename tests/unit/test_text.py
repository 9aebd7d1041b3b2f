"""Text from others: c17 (bytes that are not UTF-8, characters where Python splits) and S1 (what terminals obey)."""

import ast
import json
import unicodedata
from pathlib import Path

import pytest

from merbridge_lab import sysdump, text
from merbridge_lab.adapters import mounts, procfs
from merbridge_lab.command_events import CommandBegins, CommandOutput, Notice
from merbridge_lab.console import Console
from merbridge_lab.console.stage import Block, Line, Stage
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading, fails
from merbridge_lab.report import Report
from merbridge_lab.requirements import host
from merbridge_lab.trace_event import TraceContext, TraceEvent

SOURCE = Path(text.__file__).parent

CLIPBOARD = "\x1b]52;c;cm0gLXJmIC8=\x07"
WIPE = "\x1b[2J\x1b[H"
C1 = "\x9b2J\x9d52;c;AA\x9c\x90q\x85"
BIDI = "abc\u202etxt.\u2066exe\u2069\u200f\u061c"
OTHERS = "\x00\x08\x0b\x0c\r\x7f\u2028\u2029\ufeff\U000e0041\udcff"
EVIL = CLIPBOARD + WIPE + C1 + BIDI + OTHERS

# As the kernel writes them: \xfc is Latin-1, the others are UTF-8 at which str.splitlines and str.split split.
MOUNTINFO = b"""\
36 30 0:33 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
80 30 0:60 / /media/disk\xfc rw - vfat /dev/sdz1 rw
81 30 0:61 / /media/a\xc2\x85b rw - vfat /dev/sdz2 rw
82 30 0:62 / /media/c\xe2\x80\xa8d\xe3\x80\x80e rw - vfat /dev/sd\xc2\xa0z3 rw
83 30 0:63 / /media/e\x1cf\\040g\\012h\\134i rw - tmpfs  rw
84 30 0:64 / /dev/shm rw - tmpfs shm rw
"""
TARGETS = [
    b"/sys/fs/cgroup",
    b"/media/disk\xfc",
    b"/media/a\xc2\x85b",
    b"/media/c\xe2\x80\xa8d\xe3\x80\x80e",
    b"/media/e\x1cf g\nh\\i",
    b"/dev/shm",
]


def is_tame(printed):
    """Report whether a terminal only shows it."""
    return all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in printed)


def test_mount_points_may_hold_any_byte():
    """c17."""
    found = mounts.parse(MOUNTINFO)
    assert [bytes(mount.target) for mount in found] == TARGETS
    assert [mount.fstype for mount in found] == ["cgroup2", "vfat", "vfat", "vfat", "tmpfs", "tmpfs"]
    assert (found[3].source, found[4].source) == ("/dev/sd\u00a0z3", "")


def test_doctor_finds_shared_memory_beside_any_mount_point(tmp_path):
    """c17."""
    table = b"".join(
        b"none %s tmpfs rw 0 0\n" % target.replace(b" ", b"\\040").replace(b"\n", b"") for target in TARGETS
    )
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_bytes(table)
    assert host.shared_memory(tmp_path).verdict == "pass"
    (tmp_path / "proc/self/mounts").write_bytes(table.replace(b"/dev/shm", b"/dev/sh\xfc"))
    assert host.shared_memory(tmp_path).verdict == "fail"


def test_a_process_may_be_called_anything():
    """c17: its name is any fifteen bytes, here ones that are not UTF-8."""
    import ctypes
    import os

    libc = ctypes.CDLL(None)
    before = Path("/proc/thread-self/comm").read_bytes().rstrip(b"\n")
    assert libc.prctl(15, b"\xfc) R\xc2\x85\x1c", 0, 0, 0) == 0
    try:
        seen = procfs.look(os.getpid())
    finally:
        libc.prctl(15, before, 0, 0, 0)
    assert seen is not None
    assert seen.state in "RS"


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("", []),
        ("one", ["one"]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\n\r\ntwo", ["one", "", "two"]),
        ("a\x1cb\x85c\u2028d\x0be\n", ["a\x1cb\x85c\u2028d\x0be"]),
        ("\n\n", ["", ""]),
    ],
)
def test_lines_end_where_the_writer_ended_them(whole, cut):
    """c17."""
    assert text.lines_of(whole) == cut


def test_no_module_cuts_lines_as_python_does():
    """c17: the rule in the code. A file of /proc, a log or an answer may contain what str.splitlines splits at."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if "data" not in path.parts  # run by the pods
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "splitlines"
    ]
    assert found == []


def test_all_that_a_terminal_obeys_is_shown():
    """S1."""
    assert text.printable("plain, ünï, 日本, 🐝\n\tkept") == "plain, ünï, 日本, 🐝\n\tkept"
    assert text.printable("\x1b[2J\x07\x9b\x7f") == "\\x1b[2J\\x07\\x9b\\x7f"
    assert text.printable("a\u202eb\u2028\U000e0041\udcff") == "a\\u202eb\\u2028\\U000e0041\\xff"
    assert is_tame(text.printable(EVIL))
    assert text.printable(text.printable(EVIL)) == text.printable(EVIL)


def test_every_character_is_filtered_or_shown():
    """S1: all of Unicode, so that no range was forgotten."""
    for code in range(0x110000):
        shown = text.printable(chr(code))
        assert is_tame(shown), hex(code)
        assert len(shown) == 1 or shown.startswith("\\"), hex(code)


def test_json_is_ascii():
    """S1."""
    told = text.as_json({"body": EVIL}, indent=2)
    assert all(char == "\n" or " " <= char <= "~" for char in told)
    assert json.loads(told) == {"body": EVIL}


def evil_stage():
    block = Block((Line(EVIL, EVIL),), state="done", output=f"{EVIL}\n{EVIL}", notices=[EVIL])
    return Stage(EVIL, EVIL, EVIL, [block], verdict=[(EVIL, "green")], keys=EVIL, clock=EVIL)


SAYINGS = {
    "say": lambda console: console.say(EVIL),
    "note": lambda console: console.note(EVIL),
    "error": lambda console: console.error(LabError(EVIL, hint=EVIL, command=EVIL, stderr=f"{EVIL}\n{EVIL}")),
    "commands": lambda console: console.hear(CommandBegins((EVIL, EVIL))),
    "output": lambda console: console.hear(CommandOutput(f"{EVIL}\n{EVIL}")),
    "notice": lambda console: console.hear(Notice(EVIL)),
    "demo": lambda _console: print(*(line.plain for line in evil_stage().frame(80, 24)), sep="\n"),  # noqa: T201
    "prose": lambda console: console._terminal.prose(EVIL, 3, mark=""),
    "evidence": lambda console: console._terminal.evidence([Reading(EVIL, EVIL, EVIL, EVIL, EVIL)]),
    "trace": lambda console: console.conversation(TraceContext({"": EVIL})).hear(event()),
    "trace --raw": lambda console: console.trace_event(event(), as_json=False),
    "trace --json": lambda console: console.trace_event(event(), as_json=True),
    "json": lambda console: console.json({EVIL: EVIL}),
    "status": lambda console: console.status(described()),
}


def event():
    fields = {name: EVIL if kind == "str" else 0 for name, kind in TraceEvent.__annotations__.items()}
    made = object.__new__(TraceEvent)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def described():
    return {
        "up": True,
        "lab": EVIL,
        "dataplane": {"attached": True, "kind": EVIL, "programs": 1},
        "workloads": [
            {"name": EVIL, "ip": EVIL, "pid": 1, "sidecar": True, "rules": {"istio_rules": 1, "backend": "nft"}}
        ],
        "path": [{"from": EVIL, "by": EVIL, "to": EVIL}],
        "flushed": [EVIL],
        "problems": [EVIL],
    }


@pytest.mark.parametrize("how", SAYINGS)
def test_nothing_that_a_pod_says_is_obeyed(how, capsys, monkeypatch):
    """S1: whichever way it reaches the console."""
    monkeypatch.setenv("TERM", "dumb")
    if how.startswith("trace"):
        monkeypatch.setattr(TraceEvent, "sentence", lambda _self: EVIL)
    SAYINGS[how](Console(color=False))
    out, err = capsys.readouterr()
    assert out + err
    assert is_tame(out + err), [char for char in out + err if not is_tame(char)]
    assert how in ("json", "trace --json") or "\\x1b]52;c;" in out + err


def test_a_finding_that_quotes_a_pod_is_shown(capsys, monkeypatch):
    """S1: a cause that contains what an app answered."""
    monkeypatch.setenv("TERM", "dumb")
    report = Report("verify", "fake")
    report.error = LabError(f"sleep got {EVIL}")
    console = Console(color=False)
    console.verdict(report)
    console.say(fails(f"sleep got {EVIL}").why)
    assert is_tame("".join(capsys.readouterr()))


def test_a_sysdump_holds_only_what_can_be_looked_at(tmp_path):
    """S1: people read its texts with cat."""
    import tarfile

    class Lab:
        def dump(self):
            return {"access.log": lambda: EVIL, "told.json": lambda: {"body": EVIL}}

    sysdump.write(tmp_path / "d.tar.gz", Lab())
    with tarfile.open(tmp_path / "d.tar.gz") as archive:
        texts = [archive.extractfile(member).read().decode() for member in archive.getmembers()]
    assert len(texts) >= 3
    assert all(is_tame(each) for each in texts)
