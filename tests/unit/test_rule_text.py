"""Rules as the kernel holds them, in iptables-save's words; also forms that this machine's iptables does not write."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from merbridge_lab.adapters import nft_rule, rule_text, xt_rule
from merbridge_lab.adapters.nftables import Chain, Tables
from merbridge_lab.adapters.xtables import Table
from merbridge_lab.evidence import Unread

TCP = struct.pack("=4H4B", 0, 0xFFFF, 15008, 15008, 0, 0, 0, 0)
NOT_TCP = struct.pack("=4H4B", 0, 0xFFFF, 15008, 15008, 0, 0, 0, 2)
OWNER = struct.pack("=4I2B", 1337, 1337, 0, 0, 1, 0)
NOT_OWNER = struct.pack("=4I2B", 0, 0, 1337, 1337, 2, 2)
OLD_RANGE = struct.pack("=2I4s4s", 1, 3, b"\x0a\xf4\0\x0b", b"\x0a\xf4\0\x0b") + struct.pack(">2H", 5000, 5000)

TO_PORT = struct.pack("=2I8x", 1, 2) + struct.pack(">2H", 15001, 15001)
CAPTURED = Path(__file__).parents[1] / "captured" / "iptables"


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(value):
    return struct.pack(">i", value)


def expression(name, **told):
    return name, b"".join(attribute(int(kind[1:]), value) for kind, value in told.items())


def payload(base, offset, length):
    return expression("payload", _1=number(1), _2=number(base), _3=number(offset), _4=number(length))


def meta(key):
    return expression("meta", _2=number(key), _1=number(1))


def cmp(value, operation=0):
    return expression("cmp", _1=number(1), _2=number(operation), _3=attribute(1, value))


def mask(value, flipped=None):
    both = {"_4": attribute(1, value), "_5": attribute(1, flipped or bytes(len(value)))}
    return expression("bitwise", _1=number(1), _2=number(1), _3=number(len(value)), **both)


def within(least, most, operation=0):
    both = {"_3": attribute(1, struct.pack(">H", least)), "_4": attribute(1, struct.pack(">H", most))}
    return expression("range", _1=number(1), _2=number(operation), **both)


def limit(**more):
    return expression("limit", _1=struct.pack(">Q", 5), _2=struct.pack(">Q", 60), _3=number(5), **more)


def xtables(kind, name, revision, info):
    return expression(kind, _1=name.encode() + b"\0", _2=number(revision), _3=info)


def verdict(code, chain=""):
    named = attribute(2, chain.encode() + b"\0") if chain else b""
    return expression("immediate", _1=number(0), _2=attribute(2, attribute(1, number(code)) + named))


#: As 1.8.11 and 1.8.13 compare it, and as 1.8.9 does.
IS_TCP = (payload(1, 9, 1), cmp(b"\6"))
IS_TCP_TOO = (meta(16), cmp(b"\6"))
COUNTER = ("counter", b"")
RETURN = verdict(-5)
PORT = struct.pack(">H", 15008)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        # the protocol by the header, the port by a match, as older ones do
        ((payload(1, 9, 1), cmp(b"\6"), xtables("match", "tcp", 0, TCP), COUNTER, RETURN),
         "-p tcp -m tcp --dport 15008 -j RETURN"),
        # both natively, as newer ones do
        ((meta(16), cmp(b"\6"), payload(2, 2, 2), cmp(PORT, 1), COUNTER, RETURN),
         "-p tcp -m tcp ! --dport 15008 -j RETURN"),
        ((meta(16), cmp(b"\6"), xtables("match", "tcp", 0, NOT_TCP), COUNTER, RETURN),
         "-p tcp -m tcp ! --dport 15008 -j RETURN"),
        ((payload(1, 16, 4), cmp(b"\x7f\0\0\1", 1), meta(7), cmp(b"lo\0"), COUNTER, verdict(-3, "ISTIO_REDIRECT")),
         "! -d 127.0.0.1/32 -o lo -j ISTIO_REDIRECT"),
        # a network by a mask, or by fewer bytes
        ((payload(1, 12, 4), mask(b"\xff\0\0\0"), cmp(b"\x0a\0\0\0"), COUNTER, RETURN), "-s 10.0.0.0/8 -j RETURN"),
        ((payload(1, 12, 1), cmp(b"\x0a"), COUNTER, RETURN), "-s 10.0.0.0/8 -j RETURN"),
        ((meta(6), cmp(b"eth"), COUNTER, verdict(-4, "MINE")), "-i eth+ -g MINE"),
        ((xtables("match", "owner", 1, OWNER), COUNTER, RETURN), "-m owner --uid-owner 1337 -j RETURN"),
        ((xtables("match", "owner", 1, NOT_OWNER), COUNTER, RETURN), "-m owner ! --gid-owner 1337 -j RETURN"),
        ((COUNTER, xtables("target", "DNAT", 0, OLD_RANGE)), "-j DNAT --to-destination 10.244.0.11:5000"),
        ((xtables("match", "length", 0, b"1234"), COUNTER, RETURN), f"-m length{xt_rule.ANY} -j RETURN"),
    ],
)  # fmt: skip
def test_what_versions_of_iptables_write(rule, words):
    assert nft_rule.words(rule) == words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        # the protocol by the header and the port by the packet: Istio's own rules
        ((*IS_TCP, payload(2, 2, 2), cmp(PORT), COUNTER, RETURN), "-p tcp -m tcp --dport 15008 -j RETURN"),
        ((payload(1, 16, 4), cmp(b"\x7f\0\0\1", 1), meta(7), cmp(b"lo\0"), *IS_TCP, payload(2, 2, 2), cmp(PORT, 1),
          xtables("match", "owner", 1, OWNER), COUNTER, verdict(-3, "ISTIO_IN_REDIRECT")),
         "! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT"),
        ((*IS_TCP, COUNTER, xtables("target", "REDIRECT", 0, TO_PORT)),
         "-p tcp -j REDIRECT --to-ports 15001"),
        ((*IS_TCP, payload(2, 0, 2), cmp(PORT, 1), payload(2, 2, 2), cmp(PORT, 1), COUNTER, RETURN),
         "-p tcp -m tcp ! --sport 15008 ! --dport 15008 -j RETURN"),
        # ports from one to another
        ((*IS_TCP, payload(2, 2, 2), within(1000, 2000), COUNTER, RETURN), "-p tcp -m tcp --dport 1000:2000 -j RETURN"),
        ((*IS_TCP_TOO, payload(2, 2, 2), within(1000, 2000, 1), COUNTER, RETURN),
         "-p tcp -m tcp ! --dport 1000:2000 -j RETURN"),
        ((*IS_TCP, payload(2, 2, 2), within(0, 65535, 1), COUNTER, RETURN),
         "-p tcp -m tcp ! --dport 0:65535 -j RETURN"),
        ((*IS_TCP, payload(2, 2, 2), cmp(b"\4\0", 3), COUNTER, RETURN), "-p tcp -m tcp --dport 0:1024 -j RETURN"),
        ((*IS_TCP, payload(2, 2, 2), cmp(b"\4\0", 4), COUNTER, RETURN), "-p tcp -m tcp --dport 1025:65535 -j RETURN"),
        ((*IS_TCP, payload(2, 0, 2), cmp(b"\0P"), payload(2, 2, 2), within(1000, 2000), COUNTER, RETURN),
         "-p tcp -m tcp --sport 80 --dport 1000:2000 -j RETURN"),
        # flags, which stand before the ports
        ((*IS_TCP, payload(2, 13, 1), mask(b"\x17"), cmp(b"\2"), payload(2, 2, 2), within(80, 81), COUNTER, RETURN),
         "-p tcp -m tcp --dport 80:81 --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN"),
        ((*IS_TCP, payload(2, 13, 1), mask(b"\x3f"), cmp(b"\0", 1), COUNTER, RETURN),
         "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j RETURN"),
        ((meta(16), cmp(b"\6"), xtables("match", "tcp", 0, TCP[:8] + b"\0\x17\2\4"), COUNTER, RETURN),
         "-p tcp -m tcp --dport 15008 ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN"),
        ((meta(3), cmp(struct.pack("=I", 0x539)), COUNTER, RETURN), "-m mark --mark 0x539 -j RETURN"),
        ((meta(3), mask(struct.pack("=I", 3)), cmp(struct.pack("=I", 1), 1), COUNTER, RETURN),
         "-m mark ! --mark 0x1/0x3 -j RETURN"),
        ((limit(_4=number(0), _5=number(0)), COUNTER, RETURN), f"-m limit{xt_rule.ANY} -j RETURN"),
        ((COUNTER, expression("log", _1=b"\0\1", _3=number(0), _4=b"\0\0")), f"-j NFLOG{xt_rule.ANY}"),
    ],
)  # fmt: skip
def test_what_newer_versions_write_without_a_match_or_target(rule, words):
    assert nft_rule.words(rule) == words


@pytest.mark.skipif(sys.byteorder == "big", reason="captured on a machine with the least byte first")
@pytest.mark.parametrize("version", ["1.8.7", "1.8.9", "1.8.11"])
def test_rules_of_real_versions_are_read_as_their_own_iptables_save_told_them(version):
    rules = []
    for line in (CAPTURED / f"{version}.rules").read_text().splitlines():
        if line.startswith("  "):
            name, _, content = line.strip().partition(" ")
            rules[-1][1].append((name, bytes.fromhex(content)))
        else:
            rules.append((line, []))
    known = {told: nft_rule.words(tuple(expressions)) for told, expressions in rules}
    assert len(rules) == 36
    assert [(told, words) for told, words in known.items() if not xt_rule.agrees(words, told)] == []
    in_part = {words.partition(xt_rule.ANY)[0] for words in known.values() if xt_rule.ANY in words}
    assert in_part <= {"-m length", "-m limit", "-j NFLOG", "-m mark"}
    assert ("-m mark" in in_part) is (version == "1.8.7")


@pytest.mark.parametrize(
    "rule",
    [
        (*IS_TCP, payload(2, 0, 4), cmp(PORT + PORT, 1), COUNTER, RETURN),
        (*IS_TCP, payload(2, 0, 4), within(1000, 2000), COUNTER, RETURN),
        (*IS_TCP, payload(2, 4, 2), within(1000, 2000), COUNTER, RETURN),
        (*IS_TCP, payload(1, 2, 2), within(1000, 2000), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), mask(b"\xff\0"), within(1000, 2000), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), within(1000, 2000, 2), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), within(0, 65535), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), within(1, 2), payload(2, 2, 2), within(1, 2), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), cmp(b"\xff\xff", 4), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), cmp(b"\4", 4), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 1), cmp(b"\xff", 4), COUNTER, RETURN),
        (*IS_TCP, payload(2, 2, 2), cmp(b"\4\0", 5), COUNTER, RETURN),
        (payload(2, 2, 2), within(1000, 2000), COUNTER, RETURN),
        (*IS_TCP, payload(2, 13, 1), mask(b"\xff"), cmp(b"\2"), COUNTER, RETURN),
        (*IS_TCP, payload(2, 13, 1), mask(b"\x57"), cmp(b"\2"), COUNTER, RETURN),
        (*IS_TCP, payload(2, 13, 2), mask(b"\x17\1"), cmp(b"\2\1"), COUNTER, RETURN),
        (meta(16), cmp(b"\x11"), payload(2, 13, 1), mask(b"\x17"), cmp(b"\2"), COUNTER, RETURN),
        (meta(3), cmp(b"\1"), COUNTER, RETURN),
        (meta(3), within(1, 2), COUNTER, RETURN),
        (limit(_5=number(1)), COUNTER, RETURN),  # above the rate
        (limit(_4=number(1)), COUNTER, RETURN),  # of bytes
        (COUNTER, expression("log", _5=number(4))),
        (COUNTER, expression("log", _1=b"\0\1"), RETURN),
    ],
)
def test_what_only_looks_like_it_is_never_the_same_as_a_text(rule):
    assert nft_rule.words(rule).startswith("(what merlab does not know: ")


@pytest.mark.parametrize(
    "rule",
    [
        (RETURN,),
        (COUNTER, COUNTER, RETURN),
        (COUNTER, RETURN, RETURN),
        (COUNTER, expression("redir", _1=number(1))),
        (payload(1, 16, 4), meta(7), cmp(b"lo\0"), COUNTER, RETURN),
        (payload(1, 16, 4), mask(b"\xff" * 4, b"\1\0\0\0"), cmp(b"\x7f\0\0\1"), COUNTER, RETURN),
        (payload(1, 16, 4), cmp(b"\x7f\0\0\1", 2), COUNTER, RETURN),
        (payload(1, 16, 4), cmp(b"\x7f\0\0\1"), payload(1, 16, 4), cmp(b"\x7f\0\0\2"), COUNTER, RETURN),
        (payload(2, 2, 2), cmp(PORT), COUNTER, RETURN),
        (payload(2, 13, 1), cmp(b"\2"), COUNTER, RETURN),
        (xtables("match", "owner", 7, OWNER), COUNTER, RETURN),
        (xtables("match", "tcp", 0, TCP[:8] + b"\1\0\0\0"), COUNTER, RETURN),
        (xtables("match", "owner", 1, OWNER + b"\1"), COUNTER, RETURN),
        (xtables("target", "REDIRECT", 0, OLD_RANGE), ("lookup", b""), COUNTER),
        (COUNTER, xtables("target", "DNAT", 0, b"\2" + OLD_RANGE[1:])),
        (COUNTER, verdict(-99)),
        (cmp(b"\6"), COUNTER, RETURN),
    ],
)
def test_what_none_of_them_writes_is_never_the_same_as_a_text(rule):
    words = nft_rule.words(rule)
    assert words.startswith("(what merlab does not know: ")
    assert not xt_rule.agrees(words, "-j RETURN")


def test_words_that_are_known_in_part_agree_with_that_part():
    known = f"-p tcp -m length{xt_rule.ANY} -j RETURN"
    assert xt_rule.agrees(known, "-p tcp -m length --length 5 -j RETURN")
    assert not xt_rule.agrees(known, "-p tcp -m length --length 5 -j ACCEPT")
    assert not xt_rule.agrees(known, "-p tcp -j RETURN")
    assert xt_rule.shown(known) == "-p tcp -m length… -j RETURN"


def tables(*, drops=False, dormant=(), place=(3, -100), packets=4):
    told = (("-j ISTIO_OUTPUT", packets),)
    chain = Chain("ip", "nat", "OUTPUT", "nat", 1, packets, frozenset(), told, place, drops)
    return Tables(1, ("ip nat",), (chain,), dormant)


TEXT = "*nat\n:OUTPUT ACCEPT [0:0]\n[4:240] -A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TEXT, ""),
        (
            TEXT.replace("-j ISTIO_OUTPUT", "-j ISTIO_REDIRECT"),
            "lists -t nat -A OUTPUT -j ISTIO_REDIRECT, the kernel",
        ),
        (TEXT.replace("[4:240]", "[2:240]"), "counts 2 packets that matched"),
        (TEXT.replace("[4:240]", "[5:240]"), "counts 5 packets that matched"),
        (
            TEXT.replace("ACCEPT [", "DROP ["),
            "lists DROP as the policy of chain OUTPUT of nat, the kernel has ACCEPT",
        ),
        (TEXT.replace(":OUTPUT", ":MINE - [0:0]\n:OUTPUT"), "the kernel has no such chain"),
        (TEXT.replace(":OUTPUT", ":INPUT ACCEPT [0:0]\n:OUTPUT"), ""),  # not there yet; iptables-nft-save prints it so
        (TEXT.replace("COMMIT", "-D OUTPUT 1\nCOMMIT"), "'-D OUTPUT 1', which is not its format"),
        (TEXT + TEXT, "'*nat', which is not its format"),
        (f"#{' ' * 10239}-F\n{TEXT}", "which is not its format"),
    ],
)
def test_a_text_is_held_against_the_kernel_word_for_word(text, why):
    chains = rule_text.known((tables(packets=3), ()), (tables(), ()))["nft"]
    told = rule_text.differing("iptables-nft-save", text, chains)
    assert why in told
    assert bool(why) is bool(told)


def test_what_was_not_read_is_not_known():
    gone = Unread("nft:sleep", "nobody could look")
    assert rule_text.known((gone, ()), (tables(), ())).keys() == {"legacy"}
    assert rule_text.altered(gone, ()) is gone
    assert rule_text.altered(tables(), gone) is gone


@pytest.mark.parametrize(
    ("changes", "sentence", "spoilt"),
    [
        ({}, None, ()),
        ({"drops": True}, "the policy of chain OUTPUT of table ip nat is DROP", ()),
        ({"dormant": ("ip nat",)}, "table ip nat is switched off (dormant)", ("ip nat",)),
        ({"place": (0, -100)}, "chain OUTPUT of table ip nat is not on the hook where iptables has it", ("ip nat",)),
        ({"place": (3, -99)}, "chain OUTPUT of table ip nat is not on the hook where iptables has it", ("ip nat",)),
    ],
)
def test_tables_and_chains_are_as_iptables_makes_them(changes, sentence, spoilt):
    assert rule_text.altered(tables(**changes), ()) == ((sentence,) if sentence else ())
    assert rule_text.spoilt(tables(**changes)) == spoilt


def test_legacy_policies_are_told():
    table = Table("ip6", "filter", 0, None, ("INPUT",))
    assert rule_text.altered(Tables(1), (table,)) == (
        "the policy of chain INPUT of the legacy table ip6 filter is DROP",
    )
