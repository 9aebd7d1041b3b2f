"""P1: only a complete save of exactly this pod's namespace marks its rules as flushed; saved/ may hold nothing else."""

from pathlib import Path

import pytest

from merbridge_lab.labs.embedded import saved_rules
from merbridge_lab.labs.embedded.saved_rules import Save, SaveFile, SpoiltError

_CAPTURED = Path(__file__).parents[1] / "captured" / "sleep.nft.rules"
RULES = "# Generated\n*nat" + _CAPTURED.read_text().partition("*nat")[2]
SAVE = Save("nft", 42, RULES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_rules, "cookie", lambda _namespace: 42)
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


@pytest.fixture
def file(folder):
    return SaveFile(folder, "sleep")


def told(folder):
    return saved_rules.problems(folder, [("sleep", Path("sleep"))])


def test_what_was_written_is_read(file, folder):
    assert file.read() is None
    file.write(SAVE)
    assert file.read() == SAVE
    assert file.is_of(Path("sleep"))
    assert [path.name for path in folder.iterdir()] == ["sleep.rules"]
    assert told(folder) == []


def test_a_save_of_an_older_version_is_read(file):
    file.path.write_text(f"# merlab: nat of sleep, backend=nft netns=42\n{RULES}")
    assert file.read() == SAVE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "first line"),
        (SAVE.text("helloworld-v1"), "it says that it belongs to helloworld-v1"),
        (SAVE.text("sleep")[:-100], "truncated"),
        (SAVE.text("sleep").replace("15006", "15007"), "changed after it was saved"),
        (SAVE.text("sleep").replace("COMMIT", "-A OUTPUT -j ACCEPT\nCOMMIT"), "changed after it was saved"),
    ],
)
def test_what_was_not_saved_so_is_refused_with_what_helps(file, folder, text, why):
    file.path.write_text(text)
    with pytest.raises(SpoiltError, match=why) as refused:
        file.read()
    assert refused.value.hint == f"mv -T {file.path} {folder.parent / 'sleep.rules.set-aside'} && merlab up"
    assert not file.is_of(Path("sleep"))
    assert [why in each for each in told(folder)] == [True]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_plain_file_is_refused(file, folder, make):
    make(file.path)
    with pytest.raises(SpoiltError):
        file.read()
    assert len(told(folder)) == 1


def test_a_save_of_a_namespace_that_is_gone_is_no_mark(file, folder, monkeypatch):
    """R1: also if nothing is pinned any more."""
    file.write(SAVE)
    monkeypatch.setattr(saved_rules, "cookie", lambda _namespace: None)
    assert not file.is_of(Path("sleep"))
    assert "belongs to a network namespace of sleep that is gone: merlab restore" in told(folder)[0]


def test_strays_are_told_and_only_drafts_deleted(folder):
    for name in ("sleep.note", "sleep.new", ".sleep.rules.new", "sleep.rules.other"):
        (folder / name).touch()
    assert sorted(each.rpartition(": ")[2] for each in told(folder)) == [
        "merlab up", "merlab up", f"rm -r {folder / 'sleep.note'}", f"rm -r {folder / 'sleep.rules.other'}",
    ]  # fmt: skip
    saved_rules.delete_drafts(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["sleep.note", "sleep.rules.other"]


def test_a_save_that_cannot_be_written_leaves_no_draft(file, folder, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_rules.os, "fsync", full)
    with pytest.raises(saved_rules.LabError, match="cannot be saved"):
        file.write(SAVE)
    assert list(folder.iterdir()) == []
