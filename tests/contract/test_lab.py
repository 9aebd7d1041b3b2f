"""The contract of every lab, whatever it is made of: one suite, run on each lab that exists.

The lab in memory must satisfy it, too, so that what the unit tests show on it is true of real ones. The kind lab has no
dataplane here: what needs one is asked of the others, and of this one, that it refuses in a sentence.
"""

import collections
import contextlib
import itertools
import os
import re
import shlex

import pytest

from fake_lab import FakeLab
from merbridge_lab.checks import dataplane, mesh, rules
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import value_of
from merbridge_lab.lab import CONTROL_CLIENT, DATAPLANE, TRACE
from merbridge_lab.loader import steps
from merbridge_lab.runner import undo


def fake(_name):
    return FakeLab()


def embedded(name):
    """Create a lab beside the one that may be up on this machine."""
    from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

    return ManagedEmbeddedLab(name=name)


def kind(_name):
    """Create the cluster of the kind lab, from the test cluster's images; it has one name."""
    from merbridge_lab.labs.kind.provider import KindProvider
    from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
    from merbridge_lab.labs.options import Options

    given = collections.defaultdict(list)
    for each in shlex.split(os.environ["MERLAB_TEST_CLUSTER"]):
        option, _, value = each.partition("=")
        given[option.removeprefix("--").replace("-", "_")].append(value)
    images = dict(each.split("=", 1) for each in given.pop("image", []))
    istio_set = tuple(given.pop("istio_set", []))
    single = {name: values[-1] for name, values in given.items()}
    options = Options(**{**single, "dataplane": "none"}, images=images, istio_set=istio_set)
    return ManagedKubernetesLab(KindProvider(options), options)


#: Labs with a dataplane, and all labs.
INTERCEPTING = [
    pytest.param(fake, id="fake"),
    pytest.param(embedded, id="embedded", marks=pytest.mark.kernel),
]
LABS = [*INTERCEPTING, pytest.param(kind, id="kind", marks=pytest.mark.cluster)]
with_dataplane = pytest.mark.parametrize("made", INTERCEPTING, indirect=True, scope="module")


def parts(lab):
    """Return the components of a lab; a dataplane if it has one."""
    return [lab.node, lab.mesh, *([lab.dataplane] if DATAPLANE in lab.capabilities else [])]


def down(lab):
    if lab.exists:
        undo(lab, steps())
    lab.remove(10.0)


@pytest.fixture(scope="module", params=LABS)
def made(request):
    """A lab with everything in place, shared by the tests of this module."""
    lab = request.param("merlab-contract")
    with contextlib.ExitStack() as stack:
        stack.callback(down, lab)
        down(lab)
        for part in parts(lab):
            part.ensure()
        yield lab


@pytest.fixture
def lab(made):
    """The shared lab as each test needs it: nothing flushed, attached, no trace."""
    made.restore()
    for part in parts(made):
        if part.problems():
            part.ensure()
    made.dataplane.set_debug(on=False)
    made.shown()
    return made


@pytest.fixture
def sleep(lab):
    return lab.workload("sleep")


def nat(workload):
    return workload.rules.snapshot().specs("nat")


# -- parts


def test_every_part_is_in_order_and_shows_what_was_seen(lab):
    for part in parts(lab):
        assert part.problems() == []
        readings = part.readings()
        assert readings
        assert all(re.match(r"^[a-z]+:.", reading.source) for reading in readings)


def test_to_ensure_what_is_there_changes_nothing(lab):
    before = lab.fingerprint()
    for part in parts(lab):
        part.ensure()
    assert lab.fingerprint() == before


def test_a_fingerprint_is_the_same_after_requests(lab, sleep):
    before = lab.fingerprint()
    assert before
    lab.observe(sleep)
    assert lab.fingerprint() == before


def test_a_fingerprint_tells_of_a_flush(lab, sleep):
    before = lab.fingerprint()
    with sleep.rules.flushed():
        assert lab.fingerprint() != before
    assert lab.fingerprint() == before


# -- workloads and what is said of them


def test_the_workloads_of_the_walkthrough(lab):
    assert lab.workload("sleep").name == "sleep"
    assert sorted(server.name for server in lab.servers()) == ["helloworld-v1", "helloworld-v2"]


def test_an_unknown_workload_is_an_error_that_names_the_known_ones(lab):
    with pytest.raises(LabError) as refused:
        lab.workload("nginx")
    assert "nginx" in refused.value.what
    assert "sleep" in refused.value.what


def test_the_process_that_is_found_is_the_pods(sleep):
    seen = sleep.enter()
    assert seen.workload == "sleep"
    assert seen.pid
    assert seen.comm
    assert seen.netns == seen.expected_netns
    assert seen.cgroup == seen.expected_cgroup
    assert seen.expected_address in seen.addresses
    assert seen.expected_address in seen.looked


def test_every_noun_has_commands_a_person_would_type(lab, sleep):
    typed = [
        *lab.node.shell_commands(),
        *lab.mesh.shell_commands(),
        *lab.dataplane.shell_commands(),
        *lab.dataplane.debug_commands(),
        lab.trace_command(),
        sleep.request_command(),
        *sleep.enter_commands(),
        sleep.rules.save_command(),
        sleep.rules.flush_command(),
        sleep.rules.restore_command(),
        sleep.rules.list_command(),
        sleep.rules.list_command("ISTIO_REDIRECT"),
    ]
    for command in typed:
        assert command == command.strip()
        # The shell reads a here-document, not shlex.
        assert shlex.split(command.partition("<<")[0]), command


def simple_commands(line):
    """Split a command line into words, a list for each of its commands; without here-documents."""
    line = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", line, flags=re.DOTALL | re.MULTILINE)
    lexer = shlex.shlex(line.replace("\n", " ; "), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    ends = itertools.groupby(lexer, lambda word: set(word) <= set(";&|()"))
    return [list(words) for end, words in ends if not end]


@with_dataplane
def test_no_command_touches_the_hosts_own_rules(lab, sleep):
    typed = [
        *lab.node.shell_commands(),
        *lab.mesh.shell_commands(),
        sleep.rules.save_command(),
        sleep.rules.flush_command(),
        sleep.rules.restore_command(),
        sleep.rules.list_command(),
    ]
    commands = [words for line in typed for words in simple_commands(line)]
    of_rules = [words for words in commands if any(re.match(r"(ip6?tables|nft\b)", word) for word in words)]
    assert len(of_rules) >= 4
    for words in of_rules:
        assert any(word.startswith("--net=") for word in words), words


def test_what_was_shown_is_given_once(lab):
    lab.show("uname -r", "6.18.44")
    (shown,) = lab.shown()
    assert (shown.command, shown.output) == ("uname -r", "6.18.44")
    assert list(lab.shown()) == []


def test_each_capability_has_a_sentence_for_its_absence(lab):
    for capability in (DATAPLANE, TRACE, CONTROL_CLIENT):
        assert " " in lab.why_missing(capability)
        assert capability in lab.why_missing(capability)


def test_it_can_say_what_it_needs(lab):
    found = lab.requirements()
    assert found
    assert all(one.verdict in {"pass", "warn", "fail", "skip"} for one in found)
    assert not [one for one in found if one.verdict == "fail"]


def test_it_describes_itself(lab, sleep):
    from schema_files import complaints

    told = {**lab.describe(), "labs": []}  # the command line reports all labs
    assert complaints("status", told) == []
    assert told["up"]
    assert told["dataplane"]["attached"] is (DATAPLANE in lab.capabilities)
    assert {pod["rules"]["istio_rules"] for pod in told["workloads"]} == {len(sleep.rules.snapshot().istio)}
    assert told["flushed"] == []


# -- observations


def test_requests_are_served_and_stand_in_both_logs(lab, sleep):
    seen = lab.observe(sleep, count=4)
    assert len(seen.exchanges) == 4
    assert len({exchange.nonce for exchange in seen.exchanges}) == 4
    assert len({exchange.local for exchange in seen.exchanges}) == 4, "a fresh connection each"
    assert all(exchange.served for exchange in seen.exchanges)
    assert set(seen.client_log) == set(seen.server_log) == {exchange.nonce for exchange in seen.exchanges}
    # Which server answers is the mesh's choice: on a cluster it may be the same one four times.
    assert seen.versions
    assert seen.versions <= {"v1", "v2"}
    assert seen.servers == {f"helloworld-{version}" for version in seen.versions}
    assert mesh.assess_both_sidecars(seen).held


def test_every_log_line_belongs_to_the_exchange_of_its_nonce(lab, sleep):
    seen = lab.observe(sleep)
    for exchange in seen.exchanges:
        assert seen.client_log[exchange.nonce].downstream_remote == exchange.local
        server, line = seen.server_log[exchange.nonce]
        assert server in exchange.body
        assert line.downstream_remote == seen.client_log[exchange.nonce].upstream_local


def test_two_observations_share_nothing(lab, sleep):
    first, second = lab.observe(sleep, count=2), lab.observe(sleep, count=2)
    assert not set(first.client_log) & set(second.client_log)
    assert second.before.packets("ISTIO_REDIRECT") >= first.after.packets("ISTIO_REDIRECT")


@with_dataplane
def test_the_dataplane_counts_what_it_did(lab, sleep):
    seen = lab.observe(sleep)
    assert dataplane.assess_intercepted(seen).held
    assert dataplane.assess_payload(seen).held
    assert seen.rule("ISTIO_REDIRECT").moved == 0


@with_dataplane
def test_with_debug_on_a_request_can_be_followed_in_the_trace(lab, sleep):
    from merbridge_lab.checks import trace

    lab.dataplane.set_debug(on=True)
    assert lab.dataplane.debug
    seen = lab.observe(sleep, count=1, trace=True)
    assert trace.assess_told(seen).held
    lab.dataplane.set_debug(on=False)
    assert not lab.dataplane.debug
    assert lab.observe(sleep, count=1).trace == ()


def test_lines_of_a_nonce_are_found_in_any_log(lab, sleep):
    seen = lab.observe(sleep, count=1)
    found = lab.logged([seen.exchanges[0].nonce])
    assert sorted(line.partition(":")[0] for line in found) == sorted(["sleep", *seen.servers])
    assert lab.logged(["00000000-0000-0000-0000-not-there"]) == []


@pytest.mark.parametrize("made", LABS[2:], indirect=True, scope="module")
def test_without_a_dataplane_it_refuses_in_a_sentence(lab, sleep):
    assert not {DATAPLANE, TRACE, CONTROL_CLIENT} & lab.capabilities
    for what in (lab.control_client, lab.control_pair):
        with pytest.raises(LabError), what():
            pass
    with pytest.raises(LabError):
        lab.dataplane.ensure()
    seen = lab.observe(sleep)
    assert seen.rule("ISTIO_REDIRECT").moved == 4
    assert not dataplane.assess_intercepted(seen).held


@pytest.mark.parametrize("made", LABS[2:], indirect=True, scope="module")
def test_without_a_dataplane_a_flush_is_what_closes_the_connection(lab, sleep):
    before = nat(sleep)
    with sleep.rules.flushed() as saved:
        assert saved.specs("nat") == before
        seen = lab.observe(sleep)
    assert nat(sleep) == before
    assert rules.assess_absent(seen.with_rules(saved, None)).held
    assert mesh.assess_closed_as_plain_text(seen).held


# -- rules


def test_the_rules_are_istios(sleep):
    seen = sleep.rules.snapshot()
    assert len(seen.istio) >= 17  # Istio adds rules from version to version
    assert seen.backend in {"nft", "legacy"}
    assert value_of(seen.native) == ()
    assert "ISTIO_REDIRECT" in sleep.rules.listing()


@with_dataplane
def test_a_flush_takes_all_nat_rules_and_gives_them_back(lab, sleep):
    before = nat(sleep)
    with sleep.rules.flushed() as saved:
        assert saved.specs("nat") == before
        assert sleep.rules.outstanding
        assert sleep.rules.snapshot().nat == ()
        seen = lab.observe(sleep)
    assert nat(sleep) == before
    assert not sleep.rules.outstanding
    assert mesh.assess_both_sidecars(seen).held
    assert rules.assess_absent(seen.with_rules(saved, None)).held


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_a_flush_gives_them_back_however_it_ends(sleep, error):
    before = nat(sleep)
    with pytest.raises(error), sleep.rules.flushed():
        raise error
    assert nat(sleep) == before
    assert not sleep.rules.outstanding


@with_dataplane
def test_counters_survive_a_flush(lab, sleep):
    with lab.control_client() as starting:
        control_client = starting.ready()
        lab.observe(control_client, count=2)
        before = control_client.rules.snapshot().packets("ISTIO_REDIRECT")
        assert before >= 2
        with control_client.rules.flushed():
            pass
        assert control_client.rules.snapshot().packets("ISTIO_REDIRECT") == before
    assert sleep.rules.snapshot().istio


def test_restoring_what_is_not_flushed_does_nothing(lab, sleep):
    before = nat(sleep)
    assert sleep.rules.restore() is False
    assert sleep.rules.restore() is False
    assert lab.restore() == []
    assert nat(sleep) == before


def test_the_lab_restores_whatever_is_flushed(lab, sleep):
    before = nat(sleep)
    with sleep.rules.flushed():
        assert lab.restore() == ["sleep"]
        assert lab.restore() == []
        assert nat(sleep) == before
    assert nat(sleep) == before


def test_a_flush_that_is_outstanding_is_a_problem_of_the_mesh_which_ensure_cures(lab, sleep):
    before = nat(sleep)
    with sleep.rules.flushed():
        assert any("sleep" in problem and "flushed" in problem for problem in lab.mesh.problems())
        assert lab.describe()["flushed"] == ["sleep"]
        lab.mesh.ensure()
        assert nat(sleep) == before
    assert lab.mesh.problems() == []


def test_several_are_flushed_and_all_come_back(lab, sleep):
    everyone = [sleep, *lab.servers()]
    before = [nat(one) for one in everyone]
    with lab.flushed(everyone) as saved:
        assert sorted(saved) == sorted(one.name for one in everyone)
        assert not any(nat(one) for one in everyone)
    assert [nat(one) for one in everyone] == before
    with pytest.raises(ZeroDivisionError), lab.flushed(everyone):
        raise ZeroDivisionError
    assert [nat(one) for one in everyone] == before


# -- control clients


@with_dataplane
def test_a_twin_is_what_the_dataplane_does_not_serve(lab):
    with lab.control_client() as starting:
        control_client = starting.ready()
        assert control_client.name != "sleep"
        seen = lab.observe(control_client)
        assert rules.assess_moved(seen).held
        assert not dataplane.assess_intercepted(seen).held


@with_dataplane
def test_a_flushed_twin_is_closed_as_plain_text(lab):
    with lab.control_client(sidecar=False) as starting, (control_client := starting.ready()).rules.flushed():
        assert mesh.assess_closed_as_plain_text(lab.observe(control_client)).held


@with_dataplane
@pytest.mark.parametrize(
    ("sidecar", "error"), list(itertools.product([True, False], [None, KeyboardInterrupt])), ids=str
)
def test_a_twin_is_gone_after_the_block(lab, sidecar, error):
    before = lab.fingerprint()
    with contextlib.suppress(KeyboardInterrupt), lab.control_client(sidecar=sidecar) as starting:
        control_client = starting.ready()
        assert control_client.rules.snapshot().istio
        if error:
            raise error
    with pytest.raises((LabError, OSError)):
        control_client.rules.snapshot()
    assert lab.fingerprint() == before
    assert lab.restore() == []


@with_dataplane
def test_a_twin_can_be_made_again_and_again(lab):
    for _ in range(2):
        with lab.control_client(sidecar=False) as starting:
            control_client = starting.ready()
            assert control_client.rules.snapshot().istio


@with_dataplane
def test_a_pair_of_twins_talks_by_the_rules(lab):
    with lab.control_pair() as starting:
        control_pair = starting.ready()
        seen = lab.observe(control_pair.client, url=control_pair.url, servers=[control_pair.server])
        assert rules.assess_moved(seen).held
        assert seen.servers == {control_pair.server.name}
    for gone in (control_pair.client, control_pair.server):
        with pytest.raises((LabError, OSError)):
            gone.rules.snapshot()


# -- the end, on a lab created for it


@pytest.mark.parametrize("make", INTERCEPTING)
def test_down_twice_is_fine_and_so_is_down_of_a_part(make):
    lab = make("merlab-ends")
    with contextlib.ExitStack() as stack:
        stack.callback(down, lab)
        down(lab)
        assert not lab.exists
        lab.node.ensure()
        assert lab.exists
        for _ in range(2):
            down(lab)
            assert not lab.exists
        with pytest.raises(LabError, match="no lab is up"):
            lab.require_up()
        assert lab.describe()["up"] is False
        assert lab.mesh.problems()
