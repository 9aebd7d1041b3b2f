"""What was not read is not a pass: rules, logs, connections and counters that could not be read, or not completely."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fake_lab import FakeLab, flushed, seen_with, up
from merbridge_lab import accesslog, matrix
from merbridge_lab.adapters import rules_agreement
from merbridge_lab.adapters.conntrack import read_changed_sources
from merbridge_lab.adapters.nftables import Chain, Tables
from merbridge_lab.adapters.xtables import Table
from merbridge_lab.checks import dataplane, mesh, rules, trace
from merbridge_lab.evidence import Unread, UnreadError, Verdict
from merbridge_lab.labs.embedded.http_client import _Log
from merbridge_lab.labs.kubernetes import pod_netns
from merbridge_lab.ruleset import RuleSet, parse

CAPTURED = Path(__file__).parents[1] / "captured"
TEXT = (CAPTURED / "sleep.nft.rules").read_text()
GONE = Unread("somewhere", "nobody could look")


def healthy():
    lab = up(FakeLab())
    seen = lab.observe(lab.workload("sleep"), count=2, trace=True)
    with lab.control_client() as starting:
        control_client = starting.ready()
        return seen.with_control(lab.observe(control_client, count=2))


# -- every check that needs it fails with the reason


@pytest.mark.parametrize(
    ("check", "seen", "change"),
    [
        (rules.stood_still, healthy, {"before": RuleSet({"nft": GONE})}),
        (rules.stood_still, healthy, {"after": RuleSet({"nft": TEXT, "legacy": GONE})}),
        (rules.do_the_work, healthy, {"control": None, "before": RuleSet({"nft": GONE})}),
        (rules.were_absent, flushed, {"before": RuleSet({"nft": GONE})}),
        (rules.were_absent, flushed, {"after": RuleSet({"legacy": GONE})}),
        (rules.were_absent, flushed, {"after": RuleSet({}, GONE)}),
        (rules.were_absent, flushed, {"saved": RuleSet({"nft": GONE})}),
        (rules.restored, flushed, {"restored": RuleSet({"nft": GONE})}),
        (mesh.both_sidecars_served, healthy, {"client_log": GONE}),
        (mesh.both_sidecars_served, healthy, {"server_log": GONE}),
        (dataplane.intercepted, healthy, {"counters_before": GONE}),
        (dataplane.payload_moved, healthy, {"counters_after": GONE}),
        (dataplane.payload_moved, healthy, {"server_log": GONE}),
        (trace.lines_appear, healthy, {"trace": GONE}),
        (trace.tells_the_request, healthy, {"trace": GONE}),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_what_was_not_read_fails_with_the_reason(check, seen, change):
    """P3, P7: nothing else of the same observation makes up for it."""
    whole = seen()
    assert check().evaluate(whole).held or check is rules.do_the_work
    finding = check().evaluate(seen_with(whole, **change))
    assert finding.verdict is Verdict.FAIL
    assert "somewhere could not be read: nobody could look" in finding.why


def test_two_generations_that_were_not_read_are_not_equal():
    """P3: None == None once passed. What was not read is skipped, and counted."""
    seen = flushed()
    unread = replace(seen, before=replace(seen.before, generation=GONE), after=replace(seen.after, generation=GONE))
    finding = rules.were_untouched().evaluate(unread)
    assert finding.verdict is Verdict.SKIP
    assert "nobody could look" in finding.why
    assert (
        rules.were_untouched().evaluate(replace(seen, after=replace(seen.after, generation=7))).verdict is Verdict.FAIL
    )


def test_any_table_that_changed_while_the_requests_ran_is_told():
    """P3: legacy rules do not change nft's generation, so all texts are compared."""
    seen = flushed()
    texts = {**seen.after.texts, "legacy": "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n"}
    finding = rules.were_absent().evaluate(replace(seen, after=replace(seen.after, texts=texts)))
    assert not finding.held
    assert "changed while the requests ran" in finding.why
    # A table that was read, and so created, in between: it stays although its rule is gone.
    texts["legacy"] = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    assert not rules.were_absent().evaluate(replace(seen, after=replace(seen.after, texts=texts))).held


def test_counters_alone_are_no_change():
    seen = flushed()
    texts = {**seen.after.texts, "legacy": "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"}
    counted = {**texts, "legacy": "# at noon\n*nat\n:OUTPUT ACCEPT [9:540]\nCOMMIT\n"}
    before, after = replace(seen.before, texts=texts), replace(seen.after, texts=counted)
    assert rules.were_absent().evaluate(replace(seen, before=before, after=after)).held


@pytest.mark.parametrize("which", range(6))
def test_a_cell_that_could_not_be_read_fails_and_the_others_are_measured(which):
    """One by one, the batches of the matrix lose the client's rules, logs and counters."""
    lab = up(FakeLab())
    number, real = iter(range(100)), lab.observe
    lost = (1, 3, 5, 6, 7, 8)[which]  # the batches that cells are made of, in order

    def observe(*args, **kwargs):
        seen = real(*args, **kwargs)
        if next(number) != lost:
            return seen
        blind = RuleSet({"nft": GONE}, GONE, GONE)
        return seen_with(seen, before=blind, after=blind, client_log=GONE, server_log=GONE, rejected=GONE,
                         counters_before=GONE, counters_after=GONE)  # fmt: skip

    lab.observe = observe
    found = list(matrix.measure(lab))
    assert len(found) == 6
    failed = [outcome for outcome in found if not outcome.finding.held]
    assert failed
    assert any(outcome.finding.held for outcome in found)
    assert all("nobody could look" in outcome.finding.why or "no log" in outcome.finding.why for outcome in failed)


def test_logs_that_were_cut_between_cells_are_noticed():
    """P7: that no sidecar has a record of a request proves nothing if the records of others are gone, too."""
    lab = up(FakeLab())
    lab.logged = lambda _nonces: []
    found = {outcome.cell.place: outcome for outcome in matrix.measure(lab)}
    bypass = found[True, True, True]
    assert not bypass.finding.held
    assert "no longer in their logs" in bypass.finding.why


def test_status_tells_what_could_not_be_read():
    assert RuleSet({"nft": GONE}).to_json()["unread"] == "somewhere could not be read: nobody could look"
    assert "unread" not in RuleSet({"nft": TEXT}).to_json()
    assert RuleSet({"nft": GONE}).fingerprint("nat") == "somewhere could not be read: nobody could look"


# -- the tools and the kernel


def kernels(text=TEXT, **changes):
    chains: dict[tuple[str, str], list[int]] = {}
    for rule in parse(text):
        chains.setdefault((rule.table, rule.chain), []).append(rule.packets)
    told = [Chain("ip", *key, "", len(packets), sum(packets)) for key, packets in chains.items()]
    return Tables(1, tuple(dict.fromkeys(f"ip {chain.table}" for chain in told)), tuple(told), **changes)


def test_a_text_that_agrees_with_the_kernel_was_read():
    assert rules_agreement.nft(TEXT, kernels(), kernels(), where="sleep") == TEXT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "lists 0 rules"),
        (TEXT.replace("-A OUTPUT -j ISTIO_OUTPUT", ""), "lists 0 rules in chain OUTPUT of nat, the kernel has 1"),
        (TEXT.replace("[4:240] -A ISTIO_REDIRECT", "[3:240] -A ISTIO_REDIRECT"), "counts 3 packets in chain ISTIO_"),
        (TEXT.replace("[4:240] -A ISTIO_REDIRECT", "[9:240] -A ISTIO_REDIRECT"), "counts 9 packets in chain ISTIO_"),
        ("# Table `nat' is incompatible, use 'nft' tool.\n", "does not show all of table ip nat"),
        (Unread("iptables:sleep/nft", "iptables-nft-save is not on this machine"), "is not on this machine"),
    ],
)
def test_a_text_that_does_not_was_not(text, why):
    """P3, c06: an empty text, another namespace's, an old one, one that omits a table, and none."""
    told = rules_agreement.nft(text, kernels(), kernels(), where="sleep")
    assert isinstance(told, Unread)
    assert why in told.why


def test_a_tool_that_is_missing_hides_nothing_where_the_kernel_has_no_rules():
    missing = Unread("iptables:sleep/nft", "no tool")
    assert rules_agreement.nft(missing, Tables(1), Tables(1), where="sleep") == ""
    assert rules_agreement.legacy(missing, (), where="sleep") == ""
    assert rules_agreement.legacy(missing, (Table("ip", "nat", 0),), where="sleep") == ""
    assert rules_agreement.legacy(missing, (Table("ip", "nat", 2),), where="sleep") is missing


def test_a_kernel_that_cannot_be_asked_confirms_nothing():
    assert rules_agreement.nft(TEXT, GONE, kernels(), where="sleep") is GONE
    assert rules_agreement.nft(TEXT, kernels(), GONE, where="sleep") is GONE
    assert rules_agreement.legacy("", GONE, where="sleep") is GONE
    assert rules_agreement.beside(GONE, ()) is GONE
    assert rules_agreement.beside(Tables(1), GONE) is GONE


def test_legacy_entries_are_rules_and_two_for_each_chain_of_ones_own():
    text = (CAPTURED / "sleep.legacy.rules").read_text()
    text += "*nat\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n[1:2] -A OUTPUT -j MINE\nCOMMIT\n"
    assert rules_agreement.legacy(text, (Table("ip", "nat", 3),), where="sleep") == text
    assert isinstance(rules_agreement.legacy(text, (Table("ip", "nat", 4),), where="sleep"), Unread)


def test_tables_of_other_families_stand_beside():
    tables = Tables(
        1,
        ("ip6 nat", "arp filter"),
        (Chain("ip6", "nat", "OUTPUT", "nat", 1), Chain("arp", "filter", "INPUT", "filter")),
    )
    legacy = (Table("ip6", "mangle", 1), Table("arp", "filter", 0))
    assert rules_agreement.foreign(tables) == ()
    assert rules_agreement.beside(tables, legacy) == ("table ip6 nat", "legacy ip6 mangle")


@pytest.mark.parametrize(
    ("chain", "harmless"),
    [
        (Chain("inet", "istio-proxy-raw", "output", "filter", 1, 0, frozenset({"ct", "counter"})), True),
        (Chain("inet", "istio-proxy-raw", "output", "nat", 1), False),
        (Chain("inet", "istio-proxy-raw", "output", "filter", 1, 0, frozenset({"tproxy"})), False),
    ],
)
def test_istios_tables_outside_nat_are_foreign_only_where_they_could_do_nats_work(chain, harmless):
    """c03"""
    tables = Tables(1, ("inet istio-proxy-raw",), (chain,))
    assert (rules_agreement.foreign(tables) == ()) is harmless
    assert bool(rules_agreement.beside(tables, ())) is harmless


# -- kind


RAW = """table inet istio-proxy-raw {
\tchain output {
\t\ttype filter hook output priority raw; policy accept;
\t}
\tchain istio-output-dns {
\t}
}
"""
NAT = """table inet istio-proxy-nat {
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t}
\tchain istio-redirect {
\t}
}
"""


def test_istios_raw_table_does_not_stand_in_the_way_of_a_flush():
    """c03: nat is flushed, and judged as nat."""
    seen = pod_netns.read_snapshot(f"#= nft\n#= chains\n{NAT}{RAW}#= native\n{NAT}")
    assert (seen.nat, seen.native, seen.unread) == ((), (), ())
    assert rules.assess_gone("sleep", seen, seen).held
    assert seen.fault() == "are not in the nat table"


@pytest.mark.parametrize(
    "odd",
    [
        RAW.replace("type filter", "type nat"),
        RAW.replace("istio-output-dns {", "istio-output-dns {\n meta l4proto tcp tproxy to :15001"),
    ],
)
def test_a_redirect_that_hides_in_istios_raw_table_is_foreign(odd):
    """c03"""
    told = f"#= nft\n#= chains\n{NAT}{odd if 'type nat' in odd else RAW}#= native\n{NAT}#= others\n{odd}"
    assert pod_netns.read_snapshot(told).native == ("table inet istio-proxy-raw",)


@pytest.mark.parametrize(
    "told",
    [
        "#= nft\n# Table `nat' is incompatible, use 'nft' tool.\n#= legacy\n",
        "#= nft\n#= legacy\n",
        "#= no_nft\niptables-nft-save: crashed\n#= legacy\n#= chains\n",
        "#= nft\n#= no_legacy\nnot on the node\n#= chains\n",
        "#= nft\n#= legacy\n#= no_chains\nSegmentation fault\n",
    ],
)
def test_a_flush_cannot_be_told_where_rules_cannot_be_read(told):
    """c06, P3: a tool that is missing or crashes does not prove that there are no rules."""
    seen = pod_netns.read_snapshot(told)
    assert seen.unread
    with pytest.raises(UnreadError):
        rules.assess_gone("sleep", seen, seen)


DNS = """*raw
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT_DNS - [0:0]
[9:540] -A OUTPUT -j ISTIO_OUTPUT_DNS
[0:0] -A ISTIO_OUTPUT_DNS -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
COMMIT
"""
EMPTY = "*nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\nCOMMIT\n"


def test_rules_outside_nat_are_not_istios_redirection():
    """c04: with only raw's, nat is not as Istio made it; a flush of nat leaves them, and is complete."""
    seen = RuleSet({"nft": DNS + EMPTY})
    assert (seen.istio, seen.backend, seen.fault()) == ((), "", "are not in the nat table")
    assert RuleSet({"nft": DNS + TEXT}).fault() == ""
    assert rules.assess_gone("sleep", seen, seen).held


JUMP = "-A OUTPUT -j ISTIO_OUTPUT"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: {"nft": text, "legacy": text}, "are in nft and in legacy"),
        (lambda text: {"nft": text.replace("-A OUTPUT -j ISTIO_OUTPUT", "")}, "lack the one in OUTPUT"),
        (lambda text: {"nft": text.replace("-j REDIRECT --to-ports 15001", "-j RETURN")}, "lack the one in ISTIO_RED"),
        (lambda text: {"nft": text.replace(JUMP, f"{JUMP}\n{JUMP}")}, "twice in OUTPUT"),
    ],
)
def test_rules_that_are_not_as_istio_makes_them(change, fault):
    """c04"""
    assert fault in RuleSet(change(TEXT)).fault()


def test_a_rule_outside_nat_that_does_nats_work():
    mangle = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j TPROXY --on-port 15006\nCOMMIT\n"
    seen = RuleSet({"nft": mangle + EMPTY})
    assert "TPROXY" in rules.assess_gone("helloworld-v1", seen, seen).why


# -- connections


@pytest.mark.parametrize(
    "line",
    [
        (
            "ipv4 2 tcp 6 100 TIME_WAIT src=10.0.0.5 dst=10.0.1.1 sport=4001 dport=50 packets=5 bytes=400 src=127.0.0.1"
            " dst=10.0.0.5 sport=15001 dport=57 packets=4 bytes=300 [ASSURED] mark=0 zone=0 use=2"
        ),
        (
            "tcp 6 100 ESTABLISHED src=10.0.0.5 dst=10.0.1.1 sport=4001 dport=50 zone-orig=3 src=127.0.0.1 dst=10.0.0.5"
            " sport=15001 dport=57 zone-reply=4 [OFFLOAD] mark=0 secctx=null use=2"
        ),
        (
            "tcp 6 src=10.0.0.5 dst=10.0.1.1 sport=4001 dport=50 tos=16 src=127.0.0.1 dst=10.0.0.5 sport=15001 dport=57"
            " [HW_OFFLOAD] mark=0 delta-time=5 use=2"
        ),
    ],
)
def test_what_else_conntrack_tells_is_passed_over(line):
    """c02: accounting, zones, marks of offload."""
    assert read_changed_sources(line) == {"10.0.0.5:4001": frozenset({"10.0.0.5:57"})}


def test_a_connection_cut_in_the_middle_was_not_read():
    with pytest.raises(UnreadError, match="not a TCP connection"):
        read_changed_sources("tcp 6 100 ESTABLISHED src=10.0.0.5 dst=10.0.1.1 sport=4001 dport=50 src=127.0.0.1 dst=1")


def test_over_ipv6_nothing_of_the_labs_goes():
    assert (
        read_changed_sources("tcp 6 9 CLOSE src=fd::1 dst=fd::2 sport=1 dport=2 src=fd::2 dst=fd::1 sport=2 dport=9")
        == {}
    )


def test_connections_that_were_not_read_matter_only_where_ports_differ():
    seen = replace(healthy(), changed_sources=GONE)
    assert mesh.both_sidecars_served().evaluate(seen).held
    first = seen.exchanges[0].nonce
    moved = replace(seen.client_log[first], downstream_remote="10.244.0.10:1")
    other = replace(seen, client_log={**seen.client_log, first: moved})
    assert "nobody could look" in mesh.both_sidecars_served().evaluate(other).why


# -- logs


JSON = (
    '{"start_time":"2026-01-01T00:00:00.000Z","method":"GET","path":"/hello","response_code":200,"response_flags":"-",'
    '"request_id":"r","upstream_cluster":"outbound|5000||helloworld","upstream_local_address":"10.9.0.5:40100",'
    '"downstream_remote_address":"10.9.0.5:40001"}'
)


def test_a_record_in_json_is_read():
    """c13"""
    line = accesslog.parse(JSON)
    assert (line.request_id, line.code, line.outbound) == ("r", "200", True)
    assert (line.upstream_local, line.downstream_remote, line.sni) == ("10.9.0.5:40100", "10.9.0.5:40001", "-")


def test_a_servers_record_that_does_not_tell_tls_from_plain_text_is_not():
    """c13"""
    server = JSON.replace("outbound|", "inbound|")
    assert accesslog.parse(server) is None
    whole = server.replace("}", ',"requested_server_name":null,"response_code_details":"via_upstream"}')
    assert accesslog.parse(whole).sni == "-"


@pytest.mark.parametrize(
    "text", ['{"rid":"r","status":200}\n', "GET /hello 200 r\n", '[2026-01-01] "GET /hello" 200\n', "{not json\n"]
)
def test_a_log_in_another_format_is_called_that(text):
    """c13"""
    told = accesslog.read(text, "envoy:sleep/access")
    assert isinstance(told, Unread)
    assert "the log is in another format" in str(told)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cut shor",
        "2026-11-24T10:30:19Z\tinfo\tEnvoy proxy is ready\n",
        "[2026-11-24 10:30:19.123][17][warning][config] says Envoy\n",
        '{"level":"info","time":"2026","msg":"says the agent"}\n',
    ],
)
def test_what_envoy_says_besides_is_no_other_format(text):
    assert accesslog.read(text, "envoy:sleep/access") == ()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "access.log"
    path.write_text((CAPTURED / "sleep.access.log").read_text())
    return path


def add(log):
    with log.open("a") as file:
        file.write((CAPTURED / "sleep.access.log").read_text().splitlines(keepends=True)[-1])


def test_an_empty_log_that_was_written_and_cut_again_was_not_read(log):
    """P7: nothing of it is left that identifies it."""
    log.write_text("")
    os.utime(log, ns=(1, 1))
    seen = _Log("sleep", log)
    assert seen.lines() == ()
    add(log)
    log.write_text("")
    assert "written and truncated" in seen.lines().why


def test_a_log_is_read_from_where_it_was(log):
    seen = _Log("sleep", log)
    assert seen.lines() == ()
    add(log)
    assert len(seen.lines()) == 1
    add(log)
    assert len(seen.lines()) == 2


@pytest.mark.parametrize(
    ("do", "why"),
    [
        (lambda log: log.write_text(""), "was truncated"),
        (lambda log: (log.write_text(""), add(log)), "was truncated"),
        (lambda log: log.write_bytes(log.read_bytes().replace(b"5000", b"5001") * 2), "overwritten"),
        (lambda log: log.unlink(), "No such file"),
        (
            lambda log: (log.rename(log.with_name("old")), log.write_bytes(log.with_name("old").read_bytes())),
            "replaced",
        ),
    ],
)
def test_a_log_that_was_cut_replaced_or_written_over_was_not_read(log, do, why):
    """P7: not "no record"."""
    seen = _Log("sleep", log)
    add(log)
    assert len(seen.lines()) == 1
    do(log)
    told = seen.lines()
    assert isinstance(told, Unread)
    assert told.source == "envoy:sleep/access"
    assert why in told.why


# -- words


def test_each_server_is_shown_its_own_record():
    """U3: one line was shown under the names of all."""
    lab = up(FakeLab())
    lab.dataplane.remove()
    sleep = lab.workload("sleep")
    with sleep.rules.flushed():
        seen = lab.observe(sleep)
    readings = [each for each in mesh.assess_closed_as_plain_text(seen).evidence if each.source.startswith("envoy:")]
    assert len(readings) == 2
    for reading in readings:
        own = {line.raw for name, line in seen.rejected if f"envoy:{name}/access" == reading.source}
        assert reading.raw in own


def test_one_is_not_many():
    """U10"""
    lab = up(FakeLab())
    one = lab.observe(lab.workload("sleep"), count=1)
    assert mesh.assess_served(one).why == "1 request of sleep, 1 answer"
    assert mesh.assess_both_sidecars(one).why.startswith(
        "the request appears in the access logs of sleep and helloworld"
    )
