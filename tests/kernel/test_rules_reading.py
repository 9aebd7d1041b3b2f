"""Rules read in a real network namespace: what the tools tell, held against what the kernel tells."""

import pytest

from merbridge_lab.adapters import iptables, netns, nftables, tools, xtables
from merbridge_lab.adapters.proc import run
from merbridge_lab.drivers.embedded import services
from merbridge_lab.evidence import Unread

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
    """Have nothing on the machine but the tools of one folder."""
    monkeypatch.setattr(tools, "FOLDERS", (str(folder),))
    monkeypatch.setenv("PATH", str(folder))


def test_an_empty_namespace(where):
    seen = iptables.snapshot(where)
    assert (seen.rules, seen.native, seen.beside, seen.unread) == ((), (), (), ())
    assert nftables.read(where).chains == ()
    assert xtables.read(where) == ()


def test_istios_rules_are_confirmed_in_either_backend(where):
    for backend in ("nft", "legacy"):
        iptables.load(where, services.pod_rules(), backend)
        seen = iptables.snapshot(where)
        assert seen.unread == ()
        assert seen.texts[backend].count("ISTIO_REDIRECT")
        iptables.clear(where, but="", tables=())
        assert iptables.snapshot(where).rules == ()


def test_every_change_moves_the_generation(where):
    before = iptables.snapshot(where).generation
    nat = ("-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")
    typed(where, "iptables-nft", *nat)
    typed(where, "iptables-nft", "-t", "nat", "-D", *nat[3:])
    assert iptables.snapshot(where).generation > before


def test_a_native_redirect_is_seen_without_any_tool(where, monkeypatch, tmp_path):
    """P3: nft is not on PATH, nor is anything else of netfilter's."""
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
    iptables.load(where, services.pod_rules(), "nft")
    typed(where, "nft", "-f", "-", stdin="add rule ip nat OUTPUT tcp dport { 5000, 5001 } redirect to :15001\n")
    seen = iptables.snapshot(where)
    assert "table ip nat" in seen.native
    assert isinstance(seen.texts["nft"], Unread)
    iptables.clear(where, but="nft", tables=services.OURS)
    iptables.load(where, services.pod_rules(), "nft")
    assert iptables.snapshot(where).unread == ()


def test_a_tool_that_tells_of_another_namespace_was_not_read(where, monkeypatch, tmp_path):
    iptables.load(where, services.pod_rules(), "nft")
    fake = tmp_path / "iptables-nft-save"
    fake.write_text("#!/bin/sh\nprintf '*nat\\n:OUTPUT ACCEPT [0:0]\\nCOMMIT\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(tools, "FOLDERS", (str(tmp_path), *tools.FOLDERS))
    told = iptables.snapshot(where).texts["nft"]
    assert isinstance(told, Unread)
    assert "the kernel of" in told.why


def test_the_backend_is_known_whatever_the_tools_are_like(where, monkeypatch, tmp_path):
    assert iptables.backend_of(where, "nat") is None
    iptables.load(where, services.pod_rules(), "legacy")
    only(tmp_path, monkeypatch)
    assert iptables.backend_of(where, "nat") == "legacy"
