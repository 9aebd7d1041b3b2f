"""The policy of a flush, over a transport in memory: what must never happen to rules, wherever a pod is."""

from pathlib import Path

import pytest

from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.labs.flush_policy import Copy, FlushPolicy, Restored, SpoiltSaveError
from merbridge_lab.ruleset import RuleSet

RULES = "*nat" + (Path(__file__).parents[1] / "captured" / "sleep.nft.rules").read_text().partition("*nat")[2]
EMPTY = "*nat\nCOMMIT\n"
SPOILT = object()


class Transport:
    """A pod's rules and their save. `in_memory` is a lab that keeps what it saves, as the embedded one does."""

    name, saved_in, up_command = "sleep", "the save", "merlab up"

    def __init__(self, *, in_memory):
        self.in_memory, self.rules, self.saved, self.there, self.hides = in_memory, RULES, None, True, ""
        self.did, self.loads_badly = [], False

    def covered(self):
        return self.hides

    def look(self):
        return RuleSet({"nft": self.rules})

    def prepare(self, before):
        return Copy(before.text("nft", "nat"), "here", lambda: self.rules) if self.in_memory else None

    def save_and_flush(self, before, copy):
        assert (copy is not None) is self.in_memory
        assert self.saved is None, "a save is never overwritten"
        self.saved = before.text("nft", "nat")
        self.did.append("save")
        self.rules = EMPTY
        self.did.append("flush")

    def read(self):
        if self.saved is SPOILT:
            raise SpoiltSaveError("the save is not what merlab saved")
        return self.saved

    def place(self, _save):
        return "here" if self.there else None

    def load(self, save, place):
        assert place == "here"
        self.did.append("load")
        self.rules = EMPTY if self.loads_badly else save
        return self.rules

    def text(self, save):
        return save

    def load_command(self, _save, _place):
        return "load it"

    def delete(self):
        self.did.append("delete")
        self.saved = None


@pytest.fixture(params=[True, False], ids=["in memory", "on a node"])
def transport(request):
    return Transport(in_memory=request.param)


@pytest.fixture
def policy(transport):
    return FlushPolicy(transport, keep=False)


def test_saved_before_flushed_and_deleted_after_restored(transport, policy):
    with policy.flushed() as before:
        assert (before.specs("nat"), transport.rules) == (RuleSet({"nft": RULES}).specs("nat"), EMPTY)
        assert transport.saved == RULES
    assert transport.did == ["save", "flush", "load", "delete"]
    assert transport.rules == RULES


def test_an_error_in_the_block_is_reported_and_the_rules_are_back(transport, policy):
    with pytest.raises(KeyboardInterrupt), policy.flushed():
        raise KeyboardInterrupt
    assert (transport.rules, transport.saved) == (RULES, None)


def test_a_kept_flush_stays_until_it_is_restored_but_not_if_the_block_failed(transport):
    keeping = FlushPolicy(transport, keep=True)
    with keeping.flushed():
        pass
    assert (transport.rules, transport.saved) == (EMPTY, RULES)
    with pytest.raises(ValueError, match="x"), keeping.flushed():
        raise ValueError("x")
    assert (transport.rules, transport.saved) == (RULES, None)
    assert keeping.restore() is Restored.NOTHING


def test_an_outstanding_flush_is_restored_before_the_next_one(transport, policy):
    with FlushPolicy(transport, keep=True).flushed():
        pass
    with policy.flushed() as before:
        assert before.istio, "not a flushed table"
    assert transport.did == ["save", "flush", "load", "delete", "save", "flush", "load", "delete"]


def test_rules_of_a_namespace_that_is_gone_go_nowhere(transport, policy):
    transport.saved, transport.there, transport.rules = RULES, False, EMPTY
    assert policy.restore() is Restored.GONE
    assert (transport.rules, transport.saved, transport.did) == (EMPTY, None, ["delete"])


def test_rules_that_did_not_come_back_stay_saved(transport, policy):
    transport.loads_badly = True
    with pytest.raises(LabError, match="are not what was saved in the save") as refused, policy.flushed():
        pass
    assert (transport.saved, refused.value.hint) == (RULES, "load it")


def test_without_rules_nothing_is_flushed(transport, policy):
    transport.rules = EMPTY
    with pytest.raises(LabError, match="no ISTIO rules in sleep to flush"), policy.flushed():
        pass
    assert transport.did == []


def test_where_places_are_hidden_nothing_is_flushed_or_put_back(transport, policy):
    transport.hides = "somebody mounted over it"
    with pytest.raises(ClaimFailedError, match="mounted over"), policy.flushed():
        pass
    transport.saved = RULES
    with pytest.raises(LabError, match="no rules of sleep are put back"):
        policy.restore()
    assert (transport.did, transport.saved) == ([], RULES)


@pytest.mark.parametrize("left", [SPOILT, None, EMPTY])
def test_a_save_that_somebody_changed_is_said_and_the_rules_are_back_from_memory(left):
    transport = Transport(in_memory=True)
    with pytest.raises(ClaimFailedError, match="the save was changed"), FlushPolicy(transport, keep=False).flushed():
        transport.saved = left
    assert (transport.rules, transport.saved) == (RULES, None)


def test_a_restore_inside_the_block_is_no_change():
    transport = Transport(in_memory=True)
    policy = FlushPolicy(transport, keep=False)
    with policy.flushed():
        assert policy.restore() is Restored.BACK
    assert transport.did.count("load") == 1


def test_a_save_that_is_not_merlabs_is_left_alone(transport, policy):
    transport.saved = SPOILT
    with pytest.raises(SpoiltSaveError), policy.flushed():
        pass
    assert (transport.saved, transport.rules, transport.did) == (SPOILT, RULES, [])
