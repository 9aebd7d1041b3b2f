"""Rules read in a real network namespace: the tools' output compared with what the kernel reports."""

import os
import shutil

import pytest

from merbridge_lab.adapters import iptables, netns, nftables, rule_text, system_tools, xtables
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread, UnreadError, value_of
from merbridge_lab.labs.embedded import rule_templates
from merbridge_lab.labs.embedded.rules import PodRules

pytestmark = pytest.mark.kernel

DETOUR = """table inet detour {
  map ports { type inet_service : inet_service; elements = { 5000 : 15001 }; }
  chain output { type nat hook output priority -110; policy accept;
    tcp dport 5000 counter redirect to tcp dport map @ports
  }
}
"""


@pytest.fixture
def where(tmp_path):
    pin = tmp_path / "reading"
    netns.create(pin, netns.NEWNET)
    yield pin
    netns.unpin(pin)


def typed(where, *argv, stdin=None):
    run(iptables.inside(where, *argv), stdin=stdin)


def only(folder, monkeypatch):
    """Provide only the tools of one folder on the machine."""
    monkeypatch.setattr(system_tools, "FOLDERS", (str(folder),))
    monkeypatch.setenv("PATH", str(folder))


def test_an_empty_namespace(where):
    seen = iptables.snapshot(where)
    assert (seen.rules, seen.native, seen.beside, seen.unread) == ((), (), (), ())
    assert nftables.read(where).chains == ()
    assert xtables.read(where) == ()


@pytest.mark.smoke
def test_istios_rules_are_confirmed_in_either_backend(where):
    for backend in ("nft", "legacy"):
        iptables.load(where, rule_templates.pod_rules(), backend)
        seen = iptables.snapshot(where)
        assert seen.unread == ()
        assert seen.texts[backend].count("ISTIO_REDIRECT")
        iptables.clear(where, but="", tables=())
        assert iptables.snapshot(where).rules == ()


def test_legacy_tables_are_asked_of_their_tool_only_if_the_kernel_has_one(where, caplog):
    caplog.set_level("DEBUG", logger="merbridge_lab")
    iptables.load(where, rule_templates.pod_rules(), "nft")
    caplog.clear()
    assert iptables.snapshot(where).texts["legacy"] == ""
    assert "iptables-nft-save" in caplog.text
    assert "iptables-legacy-save" not in caplog.text
    iptables.load(where, rule_templates.pod_rules(), "legacy")
    assert "ISTIO_REDIRECT" in value_of(iptables.snapshot(where).texts["legacy"])
    assert "iptables-legacy-save" in caplog.text


def test_a_legacy_table_that_comes_while_rules_are_read_is_read(where, monkeypatch):
    real, came = iptables._saved, []

    def late(netns, backend):
        if not came:
            came.append(backend)
            iptables.load(where, rule_templates.pod_rules(), "legacy")
        return real(netns, backend)

    monkeypatch.setattr(iptables, "_saved", late)
    assert "ISTIO_REDIRECT" in value_of(iptables.snapshot(where).texts["legacy"])
    assert came == ["nft"]


def test_every_change_moves_the_generation(where):
    before = iptables.snapshot(where).generation
    nat = ("-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")
    typed(where, "iptables-nft", *nat)
    typed(where, "iptables-nft", "-t", "nat", "-D", *nat[3:])
    assert iptables.snapshot(where).generation > before


def test_a_native_redirect_is_seen_without_any_tool(where, monkeypatch, tmp_path):
    """P3: nft is not on PATH, nor is any other tool of netfilter."""
    typed(where, "nft", "-f", "-", stdin=DETOUR)
    typed(
        where,
        "env",
        "XTABLES_LOCKFILE=/dev/null",
        "iptables-legacy",
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-j",
        "REDIRECT",
    )
    for tool in ("nsenter", "env"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    only(tmp_path, monkeypatch)
    seen = iptables.snapshot(where)
    assert seen.native == ("table inet detour",)
    assert seen.texts["nft"] == "", "there are none, the kernel says"
    assert isinstance(seen.texts["legacy"], Unread), "there is one, which nothing here can show"


def test_a_native_rule_in_iptables_own_chain_leaves_nat_unread(where):
    """c06"""
    iptables.load(where, rule_templates.pod_rules(), "nft")
    typed(where, "nft", "-f", "-", stdin="add rule ip nat OUTPUT tcp dport { 5000, 5001 } redirect to :15001\n")
    seen = iptables.snapshot(where)
    assert "table ip nat" in seen.native
    assert isinstance(seen.texts["nft"], Unread)
    iptables.clear(where, but="nft", tables=rule_templates.OURS)
    iptables.load(where, rule_templates.pod_rules(), "nft")
    assert iptables.snapshot(where).unread == ()


def test_a_tool_that_tells_of_another_namespace_was_not_read(where, monkeypatch, tmp_path):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    fake = tmp_path / "iptables-nft-save"
    fake.write_text("#!/bin/sh\nprintf '*nat\\n:OUTPUT ACCEPT [0:0]\\nCOMMIT\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(system_tools, "FOLDERS", (str(tmp_path), *system_tools.FOLDERS))
    told = iptables.snapshot(where).texts["nft"]
    assert isinstance(told, Unread)
    assert "the kernel has" in told.why


def test_the_backend_is_known_whatever_the_tools_are_like(where, monkeypatch, tmp_path):
    assert iptables.backend_of(where, "nat") is None
    iptables.load(where, rule_templates.pod_rules(), "legacy")
    only(tmp_path, monkeypatch)
    assert iptables.backend_of(where, "nat") == "legacy"


# -- word for word


def lying(monkeypatch, tmp_path, tool, text):
    """Replace a tool by a shell text; $REAL is the tool."""
    fake = tmp_path / tool
    fake.write_text(f"#!/bin/sh\nREAL={shutil.which(tool)}\n{text}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(system_tools, "FOLDERS", (str(tmp_path), *system_tools.FOLDERS))


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_kernels_own_words_are_those_of_the_text_that_was_loaded(where, backend):
    for text in (rule_templates.pod_rules(), rule_templates.service_rules()):
        iptables.load(where, text, backend)
        chains = rule_text.known(*[iptables.kernels(where)] * 2)[backend]
        for key, specs in rule_templates.by_chain(text).items():
            assert [words for words, *_ in chains[key].rules] == specs
    assert iptables.snapshot(where).unread == ()


#: Rules in every form that the lab's own have, and similar ones.
FORMS = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:MINE - [0:0]
-A OUTPUT -s 10.0.0.0/8 ! -d 10.1.2.0/23 -o eth+ -p udp -m udp --sport 53 --dport 1000 -j MINE
-A OUTPUT -p udp -m udp --sport 1000 -g MINE
-A OUTPUT ! -o lo ! -p tcp -j RETURN
-A OUTPUT -p tcp -m tcp ! --sport 7 -m owner ! --uid-owner 5 ! --gid-owner 6 -j DNAT --to-destination 10.0.0.1-10.0.0.9
-A OUTPUT -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80-90
-A OUTPUT -p tcp -m owner --uid-owner 5-9 -j REDIRECT --to-ports 80-90
-A OUTPUT -d 10.0.0.1/32 -m comment --comment plain -j ACCEPT
-A OUTPUT -m comment --comment "two \\"words\\" and \\\\" -j ACCEPT
-A OUTPUT -m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED
-A OUTPUT -j REDIRECT
-A OUTPUT
-A PREROUTING -i lo -m statistic --mode random --probability 0.10000000009 -j ACCEPT
-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1000-2000
-A MINE -j RETURN
COMMIT
"""


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_other_forms_are_read_as_well(where, backend):
    iptables.load(where, FORMS, backend)
    seen = iptables.snapshot(where)
    assert (seen.unread, seen.in_part) == ((), ())
    assert len(seen.nat) == FORMS.count("-A ")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_rule_that_is_known_in_part_is_told_so(where, backend):
    iptables.load(where, "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m length --length 7 -j ACCEPT\nCOMMIT\n", backend)
    seen = iptables.snapshot(where)
    assert seen.unread == ()
    assert [str(rule) for rule in seen.in_part] == ["-t nat -A OUTPUT -m length --length 7 -j ACCEPT"]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(
    ("lie", "kernels"),
    [
        ("s/15001/15002/", "--to-ports 15001"),
        ("s/--dport 15090 -j RETURN/--dport 15090 -j ACCEPT/", "--dport 15090 -j RETURN"),
        ("s/! --uid-owner/--uid-owner/", "! --uid-owner 1337"),
        ("s/:OUTPUT ACCEPT/:OUTPUT DROP/", "ACCEPT"),
        ("s/-o lo -j RETURN/-o eth0 -j RETURN/", "-o lo -j RETURN"),
        ("/^:POSTROUTING/d", "kernel has ACCEPT"),
        ("/^:ISTIO_OUTPUT/a -I OUTPUT -j ACCEPT", "'-I OUTPUT -j ACCEPT', which is not its format"),
        ("/--dport 15090/i COMMIT\\n*nat", "'*nat', which is not its format"),
        (f"s/^# Completed/#{5000 * chr(32)}-I OUTPUT/", "which is not its format"),
    ],
)
def test_as_many_rules_but_other_ones(where, monkeypatch, tmp_path, backend, lie, kernels):
    """The tool prints as many rules and packets as there are, but different ones."""
    iptables.load(where, rule_templates.pod_rules(), backend)
    lying(monkeypatch, tmp_path, f"iptables-{backend}-save", f'"$REAL" "$@" | sed \'{lie}\'')
    told = iptables.snapshot(where).texts[backend]
    assert isinstance(told, Unread), told
    assert kernels in told.why


@pytest.fixture
def rules(where, tmp_path):
    (tmp_path / "saved").mkdir()
    return PodRules("reading", where, tmp_path / "saved", backend="nft")


def test_a_lie_is_neither_saved_nor_loaded(where, rules, monkeypatch, tmp_path):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    before = iptables.save(where, "nft", "nat").count("15001")
    tools = tmp_path / "tools"
    tools.mkdir()
    lying(monkeypatch, tools, "iptables-nft-save", '"$REAL" "$@" | sed \'s/15001/15002/\'')
    with pytest.raises(UnreadError, match=r"--to-ports 15002, the kernel has .*--to-ports 15001"), rules.flushed():
        pass
    assert not rules.saved_at.exists()
    monkeypatch.undo()
    assert iptables.save(where, "nft", "nat").count("15001") == before


def test_a_lie_while_they_are_flushed_leaves_the_save(where, rules, monkeypatch, tmp_path):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    tools = tmp_path / "tools"
    tools.mkdir()

    def flush():
        with rules.flushed():
            lying(monkeypatch, tools, "iptables-nft-restore", 'sed \'s/15001/15002/\' | "$REAL" "$@"')
            lying(monkeypatch, tools, "iptables-nft-save", '"$REAL" "$@" | sed \'s/15002/15001/\'')

    with pytest.raises(UnreadError, match="the kernel has"):
        flush()
    assert rules.saved_at.exists(), "they are not back, so they stay saved"
    monkeypatch.undo()
    assert rules.restore()
    assert "--to-ports 15001" in iptables.save(where, "nft", "nat")


@pytest.mark.smoke
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_is_flushed_comes_back_with_its_counters(where, rules, backend):
    iptables.load(where, rule_templates.pod_rules().replace("-A ISTIO_REDIRECT", "[7:420] -A ISTIO_REDIRECT"), backend)
    with rules.flushed() as before:
        assert (before.backend, before.packets("ISTIO_REDIRECT")) == (backend, 7)
        assert iptables.snapshot(where).nat == ()
    assert "[7:420] -A ISTIO_REDIRECT" in iptables.save(where, backend, "nat")


def test_bytes_that_would_come_back_as_others_are_not_flushed(where, rules):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    comment = os.fsdecode(b"caf\xe9")
    typed(
        where, "iptables-nft", "-t", "nat", "-A", "ISTIO_OUTPUT", "-m", "comment", "--comment", comment, "-j", "RETURN"
    )
    with pytest.raises(LabError, match="bytes that are not UTF-8"), rules.flushed():
        pass
    assert not rules.saved_at.exists()


def test_a_rule_that_cannot_be_held_against_the_kernels_is_not_flushed(where, rules):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    typed(where, "iptables-nft", "-t", "nat", "-A", "ISTIO_OUTPUT", "-m", "length", "--length", "7", "-j", "RETURN")
    with pytest.raises(LabError, match=r"cannot compare with the kernel's.*--length 7"), rules.flushed():
        pass
    assert len(iptables.snapshot(where).istio) > 10


# -- tables and chains themselves


@pytest.mark.parametrize(
    ("chain", "backend"),
    [
        ("nat OUTPUT", "nft"),
        ("filter FORWARD", "nft"),
        ("filter FORWARD", "legacy"),
        ("mangle INPUT", "nft"),
        ("mangle INPUT", "legacy"),
    ],
)
def test_a_policy_that_drops_is_told_and_mended(where, backend, chain):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    table, name = chain.split()
    if table == "nat":  # which iptables itself refuses
        hook = "type nat hook output priority -100; policy drop;"
        typed(where, "nft", "-f", "-", stdin=f"add chain ip nat {name} {{ {hook} }}\n")
    else:
        typed(where, *iptables._tool(backend), "-t", table, "-P", name, "DROP")
    kind = "legacy table ip" if backend == "legacy" else "table ip"
    assert f"the policy of chain {name} of" in problems(where)[0]
    assert f"{kind} {table} is DROP in reading" in problems(where)[0]
    mended(where)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("add table ip nat { flags dormant; }", "table ip nat is switched off (dormant) in reading"),
        ("flush chain ip nat OUTPUT; delete chain ip nat OUTPUT; add chain ip nat OUTPUT",
         "chain OUTPUT of table ip nat is not on the hook where iptables has it in reading"),
        ("add table arp filter; add chain arp filter INPUT { type filter hook input priority 0; policy drop; }",
         "the policy of chain INPUT of table arp filter is DROP in reading"),
    ],
)  # fmt: skip
def test_tables_and_chains_that_iptables_would_not_make(where, text, why):
    iptables.load(where, rule_templates.pod_rules(), "nft")
    typed(where, "nft", "-f", "-", stdin=text.replace("; add", "\nadd").replace("; delete", "\ndelete") + "\n")
    assert problems(where)[0].startswith(why)
    mended(where)


def problems(where):
    return rule_templates.problems(
        where, rule_templates.pod_rules(), "nft", where="reading", wrong="wrong", stray="stray"
    )


def mended(where):
    """As Pod.ensure does it."""
    iptables.clear(where, but="nft", tables=rule_templates.OURS)
    iptables.load(where, rule_templates.pod_rules(), "nft")
    assert problems(where) == []
