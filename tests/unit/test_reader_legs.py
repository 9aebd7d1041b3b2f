"""Which legs are redirected: the decision, on kernels made up here; tests/kernel and tests/guests probe real ones."""

import pytest

from merbridge_lab.adapters import kernel_features
from merbridge_lab.adapters.kernel_features import SOCKMAP_FIXES, Fix, is_fixed, stable_release
from merbridge_lab.dataplane import probe_sockets, reader_legs
from merbridge_lab.dataplane.kernel_probes import ARRANGEMENTS, Answer, Counts, Fionread, Flow, Probes
from merbridge_lab.dataplane.legs import Profile
from merbridge_lab.dataplane.reader_probes import READERS
from merbridge_lab.requirements import sockmap

#: The kernels that were probed, as docs/adr/0035 has them.
TCP_ONLY, REDIRECTED_ONLY, BOTH = Fionread(1000, 0, 1000), Fionread(0, 700, 700), Fionread(1000, 700, 1700)
OLD, NEW, NEWEST = (6, 1, 192), (6, 12, 118), (6, 18, 44)
ALWAYS_WRONG = {"splice", "MSG_WAITALL", "SO_RCVLOWAT", "MSG_TRUNC"}
#: What goes wrong on all of them as soon as the socket is in a sockhash.
IN_HASH = {"recv() beside send()", "MSG_ZEROCOPY"}
BY_TCP = (probe_sockets.HASHED, probe_sockets.SENDER, probe_sockets.SWITCHED)


def probes(fionread, *, tcp=(), redirected=ALWAYS_WRONG, charged=32768):
    """Return what a kernel would have shown: the ways of reading that go wrong on each kind of bytes."""
    wrong = {each: tcp if each in BY_TCP else redirected for each in ARRANGEMENTS}
    answers = {
        each: {name: Answer("otherwise" if name in wrong[each] else "so", "so") for name in READERS}
        for each in ARRANGEMENTS
    }
    return Probes(fionread, charged, answers)


def decided(found, kernel, profile=Profile.SAFE, **options):
    legs = reader_legs.decide(profile, reader_legs.app_sockets(found, kernel), **options)
    assert legs.between_sidecars
    return legs.out_of_app, legs.into_app, legs.why


@pytest.mark.parametrize(
    ("fionread", "counts"),
    [
        (TCP_ONLY, Counts.TCP),
        (REDIRECTED_ONLY, Counts.REDIRECTED),
        (BOTH, Counts.BOTH),
        (Fionread(1000, 700, 1000), Counts.NEITHER),
        (Fionread(0, 0, 0), Counts.NEITHER),
    ],
)
def test_what_fionread_counts(fionread, counts):
    assert fionread.counts is counts


@pytest.mark.parametrize(
    ("found", "kernel"),
    [
        (probes(TCP_ONLY, tcp=IN_HASH, redirected={"FIONREAD", *ALWAYS_WRONG, *IN_HASH}), OLD),
        (probes(BOTH, tcp=IN_HASH, redirected={*ALWAYS_WRONG, *IN_HASH}), NEW),
        (probes(REDIRECTED_ONLY, tcp={"FIONREAD", *IN_HASH}, redirected={*ALWAYS_WRONG, *IN_HASH}), NEWEST),
    ],
)
def test_the_kernels_that_were_probed(found, kernel):
    assert decided(found, kernel)[:2] == (False, False)
    assert decided(found, kernel, Profile.ALL)[:2] == (True, True)


def test_a_kernel_on_which_a_socket_in_a_sockhash_does_as_tcp():
    assert decided(probes(BOTH), NEW)[:2] == (True, False)


def test_why_an_app_has_tcp_only_where_fionread_is_right():
    assert decided(probes(BOTH, tcp=IN_HASH), NEW)[2] == (
        "app sockets: TCP only, because in a sockhash recv() beside send() and MSG_ZEROCOPY differ from TCP on this "
        "kernel"
    )
    assert decided(probes(BOTH, tcp={"splice"}), NEW)[2].endswith(
        "in a sockhash splice differs from TCP on this kernel"
    )


def test_why_an_app_has_tcp_only():
    found = probes(REDIRECTED_ONLY, tcp={"FIONREAD"})
    assert decided(found, NEWEST)[2] == (
        "app sockets: TCP only, because FIONREAD counts redirected bytes only on this kernel"
    )


def test_why_an_app_does_not_read_redirected_bytes():
    assert decided(probes(BOTH), NEW)[2] == (
        "app sockets: what they send is redirected; what they read comes by TCP, because redirected bytes are read "
        "wrongly by splice, MSG_WAITALL, SO_RCVLOWAT and MSG_TRUNC"
    )


def test_a_kernel_that_hides_it_from_every_reader_still_waits_to_be_asked():
    perfect = probes(BOTH, redirected=())
    assert decided(perfect, NEWEST)[:2] == (True, False)
    assert decided(perfect, NEWEST, Profile.ALL)[:2] == (True, True)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("profile", Profile)
def test_one_reader_of_tcp_that_goes_wrong_keeps_apps_out_unless_asked_for(reader, profile):
    out_of_app, into_app, why = decided(probes(BOTH, tcp={reader}), NEWEST, profile)
    assert out_of_app is into_app is (profile is Profile.ALL)
    assert (reader in why) is (profile is Profile.SAFE)


def test_a_sender_that_reads_wrongly_counts_like_any_app_in_the_hash():
    found = probes(BOTH)
    found.readers[probe_sockets.SENDER]["FIONREAD"] = Answer("0 of 1000", "1000 of 1000")
    assert decided(found, NEWEST)[:2] == (False, False)


@pytest.mark.parametrize("profile", Profile)
def test_what_was_not_probed_is_tcp_unless_asked_for(profile):
    out_of_app, into_app, why = decided(None, NEWEST, profile)
    assert out_of_app is into_app is (profile is Profile.ALL)
    assert profile is Profile.ALL or "not known" in why


@pytest.mark.parametrize("profile", Profile)
def test_mptcp_is_no_matter_of_asking(profile):
    out_of_app, into_app, why = decided(probes(BOTH), (6, 12, 59), profile)
    assert not out_of_app
    assert not into_app
    assert "MPTCP" in why
    assert decided(probes(BOTH), (6, 12, 59), profile, may_use_mptcp=False)[0]


@pytest.mark.parametrize(
    ("kernel", "has_it"),
    [
        ((6, 1, 158), False),
        ((6, 1, 159), True),
        ((6, 12, 59), False),
        ((6, 12, 60), True),
        ((6, 18, 0), True),
        ((7, 2, 13), True),
        ((6, 17, 99), False),  # has it, from a release that we do not know
        ((6, 6, 120), False),
        ((5, 15, 200), False),
        ((0, 0, 0), False),
    ],
)
def test_where_mptcp_is_fixed(kernel, has_it):
    assert is_fixed(SOCKMAP_FIXES["mptcp"], kernel) is has_it


def test_a_fix_whose_main_line_is_not_known_is_in_no_newer_kernel():
    fix = Fix("x", None, {(6, 1): 189}, "")
    assert is_fixed(fix, (6, 1, 189))
    assert not is_fixed(fix, (6, 18, 44))


@pytest.mark.parametrize(
    ("release", "version", "signature", "stable"),
    [
        ("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)", None, (6, 1, 192)),
        ("6.12.118+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-20)", None, (6, 12, 118)),
        ("5.15.0-91-generic", "#101-Ubuntu SMP Tue Nov 14", "Ubuntu 5.15.0-91.101-generic 5.15.131\n", (5, 15, 131)),
        ("6.18.44-fc-v669", "#1 SMP PREEMPT_DYNAMIC Sat Nov 14 21:53:12 UTC 2026", None, (6, 18, 44)),
        ("6.18-rc3", "#1 SMP", None, (6, 18, 0)),
        ("6.18.2", "#1 SMP Sat Nov 14 10.1.2", None, (6, 18, 2)),
        ("nonsense", "", None, (0, 0, 0)),
    ],
)
def test_the_stable_release_that_a_distribution_built_on(tmp_path, release, version, signature, stable):
    (tmp_path / "proc").mkdir()
    if signature:
        (tmp_path / "proc/version_signature").write_text(signature)
    assert stable_release(release, version, tmp_path) == stable


def test_doctor_tells_what_was_found_and_what_follows():
    told = {one.name: one for one in sockmap.judge_readers(probes(REDIRECTED_ONLY, tcp={"FIONREAD"}), NEWEST)}
    assert {one.verdict for one in told.values()} == {"pass"}
    assert told["sockmap.fionread"].found.startswith("FIONREAD counts redirected bytes only (0 of 1000 by TCP")
    assert told["sockmap.memory"].found == "redirected bytes are charged to their reader"
    assert told["sockmap.senders"].found == "on a socket in a sockhash these differ: FIONREAD"
    assert "splice" in told["sockmap.readers"].found
    assert told["sockmap.legs"].found.startswith("app sockets: TCP only, because FIONREAD")


def test_doctor_warns_of_mptcp_and_of_memory_that_nobody_is_charged_for():
    told = {one.name: one for one in sockmap.judge_readers(probes(BOTH, redirected=(), charged=0), (5, 15, 131))}
    assert told["sockmap.mptcp"].verdict == "warn"
    assert told["sockmap.mptcp"].found == "5.15.131 is not known to have the fix"
    assert told["sockmap.mptcp"].needed.endswith("fixed in Linux 6.1.159, 6.12.60 and 6.18")
    assert told["sockmap.memory"].found == "redirected bytes are not charged to their reader"
    assert told["sockmap.senders"].found == "a socket in a sockhash does as TCP"
    assert told["sockmap.readers"].found == "redirected bytes are read like TCP's"
    assert "MPTCP" in told["sockmap.legs"].found


def test_a_stream_is_whole_only_in_order_and_to_its_end():
    assert Flow(10, 5, 10, True).is_whole
    assert not Flow(10, 5, 9, True).is_whole
    assert not Flow(10, 5, 10, False).is_whole


def test_every_source_of_a_fix_is_named():
    assert all(fix.source for fix in kernel_features.SOCKMAP_FIXES.values())
