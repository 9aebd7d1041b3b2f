"""The documents: links have a target, commands parse, generated ones are current, each check has its section."""

import collections
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import schema_files
from fake_lab import FakeLab
from merbridge_lab import cli, events
from merbridge_lab.cli.session import numbers
from merbridge_lab.console import Console
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "tests").rglob("README.md")])
#: Documents about the present: an ADR or the changelog may name what existed before.
GUIDES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(each for each in sorted(DOCS.glob("*.md")))]
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text()
APP = typer.main.get_command(cli.app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")


def named(path):
    return str(path.relative_to(ROOT))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path):
    """Return a document without its blocks and its code."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", path.read_text()))


def anchors(path):
    """Return what can be linked to in a document, as GitHub names it: its headings, and the anchors that it sets."""
    text = _FENCE.sub("", path.read_text())
    found = set(re.findall(r'<a id="([^"]+)">', text))
    seen = collections.Counter()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


# -- links


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file_and_an_anchor(path):
    for link in _LINK.findall(prose(path)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_guide_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop()
        if path in reached or path.suffix != ".md":
            continue
        reached.add(path)
        ahead += [
            (path.parent / link.partition("#")[0]).resolve()
            for link in _LINK.findall(prose(path))
            if link.partition("#")[0]
        ]
    assert set(GUIDES) - reached == set()


def test_no_anchor_is_set_twice():
    for path in GUIDES:
        found = re.findall(r'<a id="([^"]+)">', path.read_text())
        assert len(found) == len(set(found)), path


def test_the_readme_is_short_and_has_the_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert "](docs/up.svg)" in text
    assert "](docs/demo.cast)" in text
    assert re.search(r"^make up\b.*\nmake test\b", text, re.MULTILINE)


PICTURE = script("picture")


def test_the_recording_has_the_frame_of_the_picture_and_no_path_of_a_machine():
    text = (DOCS / "demo.cast").read_text()
    head, *recorded = map(json.loads, text.splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 80, 24)
    assert len(text) < 150_000
    assert not re.search(r"/(root|home|work|tmp)/", text)
    assert PICTURE.drawn(PICTURE.frame(recorded)) == (DOCS / "up.svg").read_text()
    titles = [f"{step.number}  {step.title}" for step in steps()[8:]]
    assert [label for _, kind, label in recorded if kind == "m"] == titles


def test_a_compact_recording_shows_the_same():
    enter, leave = "\x1b[?1049h\x1b[H", "\x1b[?1049l"
    screens = [f"\x1b[H\x1b[1mtitle\x1b[0m\r\n\x1b[2m{text}\x1b[0m\x1b[K" for text in ("first", "first", "2nd")]
    recorded = [(0.0, "o", enter), (0.1, "m", "1  A step"), *((1.0, "o", each) for each in screens), (2.0, "o", leave)]
    short = PICTURE.compact(recorded)
    assert len(short) == len(recorded) - 1
    for events_of in (recorded, short):
        *_, (_, screen) = PICTURE.replayed(events_of)
        assert [line.rstrip() for line in screen.display[:2]] == ["title", "2nd"]
        assert [screen.row(number)[0] for number in (0, 1)] == [("title", "default", True), ("2nd", "dim", False)]


# -- commands


def typed_in(text):
    """Return each command of a block for a shell, as words, without "$ " of a console, pipes, sudo and variables."""
    for kind, block in _FENCE.findall(text):
        if kind not in ("sh", "console"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;"):
                    yield without_prefix(words)
                    words = []
                else:
                    words.append(word)


def without_prefix(words):
    while words and (words[0] in ("sudo", "env") or re.match(r"\w+=", words[0])):
        words = words[1:]
    return words


def check_merlab(words):
    """Parse what is typed, as merlab would, without running it."""
    if words[0].startswith("-"):
        assert words[0] in {name for each in APP.params for name in each.opts} | {"--help"}
        return
    command = APP.commands[words[0]]
    assert not command.hidden or words[0] in ("help", "version"), words
    command.make_context(words[0], list(words[1:]), parent=typer.Context(APP))
    if words[0] in ("step", "steps"):
        for each in words[1:2]:
            assert each.startswith("-") or numbers(each)


def commands():
    for path in DOCUMENTS:
        for words in typed_in(path.read_text()):
            if words and Path(words[0]).name in ("merlab", "make"):
                yield pytest.param(words, id=f"{named(path)}: {shlex.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_parses(words):
    if Path(words[0]).name == "merlab":
        check_merlab(words[1:])
    else:
        assert {word for word in words[1:] if "=" not in word} <= TARGETS


def test_a_command_that_does_not_parse_is_noticed():
    for words in (["step", "10"], ["up", "--nope"], ["exec", "nobody", "--", "true"], ["watch"], ["verify", "9"]):
        with pytest.raises(Exception, match=r"."):
            check_merlab(words)
    assert list(typed_in("```sh\nsudo A=b merlab up # now\nmerlab manifests sleep | kubectl apply -f -\n```\n")) == [
        ["merlab", "up"],
        ["merlab", "manifests", "sleep"],
        ["kubectl", "apply", "-f", "-"],
    ]


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_options_in_the_text_exist(path):
    for span in re.findall(r"`(merlab [^`\n]+)`", _FENCE.sub("", path.read_text())):
        _, name, *rest = re.split(r"[\s:]+", span)
        if name.startswith("-") or not name.islower():
            continue
        assert name in APP.commands, span
        own = rest[: rest.index("--")] if "--" in rest else rest
        command = APP.commands[name]
        if rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest[0]]
        known = {option for each in command.params for option in each.opts} | {"--help"}
        assert {word.strip("[]") for word in own if word.startswith(("-", "[-"))} <= known, span


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_files_in_the_text_exist(path):
    ours = [ROOT / top for top in ("src", "steps", "tests", "scripts", "docs")]
    there = [str(each.relative_to(ROOT)) for top in ours for each in top.rglob("*.*")]
    for name in re.findall(r"`([\w./]+\.(?:py|md|yaml|svg|c|h))`", path.read_text()):
        assert any(f"/{each}".endswith(f"/{name}") for each in there), name


# -- what is generated, and what is promised


def test_the_command_reference_is_that_of_the_help():
    assert (DOCS / "cli.md").read_text() == script("cli_reference").reference(), "make docs"


@pytest.mark.parametrize(
    ("schema", "text"),
    re.findall(r"<!-- schema: (\w+) -->\n```json\n(.*?)```", (DOCS / "json.md").read_text(), re.DOTALL),
)
def test_examples_of_json_are_what_the_schemas_say(schema, text):
    schema_files.read(schema, text)


def test_every_example_of_json_names_its_schema():
    text = (DOCS / "json.md").read_text()
    assert text.count("```json\n") == len(re.findall(r"<!-- schema: \w+ -->\n```json\n", text)) >= 3


def test_examples_of_events_have_what_is_sent():
    block = (DOCS / "json.md").read_text().partition("```jsonl\n")[2].partition("```")[0]
    examples = {told["event"]: told for told in map(json.loads, block.splitlines())}
    sent = {}

    def hear(event):
        told = events.to_json(event)
        sent.setdefault(told["event"], told)

    runner = Runner(FakeLab(), hear, patience=0.05)
    runner.run(Report("up", "fake"), steps())
    runner.prove(Report("verify", "fake"), standing=steps()[1:4], steps=steps()[8:])
    assert examples.keys() == sent.keys()
    for name, told in examples.items():
        assert told.keys() == sent[name].keys(), name
        for inner in ("check", "step", "cell"):
            assert told.get(inner, {}).keys() == sent[name].get(inner, {}).keys(), name


def check_ids():
    for step in steps():
        for checks in (step.verify, step.request_checks, *(each.verify or () for each in step.variants.values())):
            yield from (check.name for check in checks)


def test_every_check_has_a_section():
    section = TROUBLESHOOTING.partition("\n# Checks\n")[2].partition("\n# Controls\n")[0]
    anchored = re.findall(r'^<a id="([^"]+)"></a>\n\n## (.+)$', section, re.MULTILINE)
    assert [anchor for anchor, title in anchored if anchor != title] == []
    assert sorted(title for _, title in anchored) == sorted(set(check_ids()))


def test_every_check_in_the_source_is_one_of_a_step():
    source = "\n".join(path.read_text() for path in (ROOT / "src/merbridge_lab/checks").glob("*.py"))
    written = set(re.findall(r'Check\(\s*"([a-z_]+\.[a-z_]+)"', source))
    assert written - set(check_ids()) == set()


def test_every_control_has_a_line():
    source = "\n".join(path.read_text() for path in (ROOT / "src/merbridge_lab/checks").glob("*.py"))
    written = set(re.findall(r'(?:as_control|Control)\(\s*"([a-z_]+\.[a-z_]+)"', source))
    section = TROUBLESHOOTING.partition("\n# Controls\n")[2]
    assert set(re.findall(r'<a id="([^"]+)">', section)) == written


# -- the tutorial

TUTORIAL = script("tutorial")
TEXT = (DOCS / "tutorial.md").read_text()


@pytest.fixture
def on_the_lab_in_memory(monkeypatch, capsys):
    """Return a function that runs the commands of the tutorial: steps on the lab in memory, the rest is invented."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "100")
    lab, ran = FakeLab(), []

    def run(words):
        check_merlab(words[1:])
        ran.append(shlex.join(words))
        if words[1] not in ("up", "verify", "step"):
            return f"what {words[1]} says\n"
        console = Console(verbosity=words.count("-v"), brief=words[1] != "step")
        report, runner = Report(words[1], lab.name), Runner(lab, console.hear, patience=0.05)
        if words[1] == "verify":
            runner.prove(report, standing=steps()[1:4], steps=steps()[8:])
        else:
            runner.run(report, steps() if words[1] == "up" else steps()[9:])
        console.verdict(report)
        console.close()
        return capsys.readouterr().out

    return run, ran


def test_the_tutorial_is_filled_by_running_its_commands(on_the_lab_in_memory):
    run, ran = on_the_lab_in_memory
    text = TUTORIAL.filled(TEXT, run)
    assert ran[0] == "merlab up -v --lab embedded"
    assert ran[-1] == "merlab down"
    assert len(ran) == len(set(ran)), "what has parts is run once"
    assert TUTORIAL.UNFILLED not in text
    for step, section in zip(steps(), re.split(r"^## Step \d", text, flags=re.MULTILINE)[1:], strict=True):
        assert f"```text\n{step.number}  {step.title}\n" in section
        assert all(check.name in section.replace("\n", " ") for check in step.on(FakeLab().capabilities).verify)
    assert "✔ up:" not in text
    assert "$ merlab verify\n   eBPF  rules: client" in text
    assert "✔ verify: 2 of 2 steps held" in text
    # What a person wrote stays, and a second run replaces the output of the first.
    again = on_the_lab_in_memory[0]
    assert _FENCE.sub("", text) == _FENCE.sub("", TEXT)
    assert TUTORIAL.filled(text, again).count("```text") == TEXT.count("```text")


def test_long_listings_and_many_commands_of_a_step_are_shortened():
    listing = [f"     line {number}" for number in range(20)]
    many = [f"   $ command {number}" for number in range(9)]
    step = [
        "3  Attach",
        "   It attaches.",
        "   $ look",
        *listing,
        *many,
        "   ✔ seen, a long",
        "     sentence (a.b)",
    ]
    shown = TUTORIAL.shortened("\n".join(step)).splitlines()
    assert shown[2:4] == ["   $ look", "     line 0"]
    assert "     ⋮ 8 more lines" in shown
    assert "   ⋮ 2 more commands" in shown
    assert shown[-2:] == ["   ✔ seen, a long", "     sentence (a.b)"]


def test_a_part_that_was_not_printed_is_an_error():
    for part in ("step 3", "matrix"):
        with pytest.raises(TUTORIAL.FillError, match=part):
            TUTORIAL.part_of("0  Look\n   ✔ looked\n\n✔ up: all\n", part)
    assert TUTORIAL.part_of("0  Look\n   ✔ looked\n\n✔ up: all\n", "verdict") == "✔ up: all"


def test_the_tutorial_is_filled_as_a_whole():
    assert TEXT.count(TUTORIAL.UNFILLED) in (0, TEXT.count("<!-- output: "))
