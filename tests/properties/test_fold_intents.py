"""An intent's record does not depend on the order in which the bank's copies of it are seen, and no copy changes it."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from streamproc.domain import events as e
from streamproc.domain.copies import COPIES_MAX, BankCopy, agrees
from streamproc.domain.intent import Beneficiary, intent_id, is_intent
from streamproc.domain.ours import foreign_copies
from streamproc.domain.payouts import PayoutRecord, evolve, fold, is_open, is_terminal, settlement_due
from streamproc.domain.states import BANK_RANK
from tests.words import ACCOUNT, NOW, copy_of, requested

ASKED = requested(amount=100)
PAYEE = Beneficiary(contact_name="Some Body", account_type="vpa", vpa="somebody@exampleupi")
WINDOW = e.WindowUse(scope="agent:bot", window="2026-09-21", limit=None, reserved=0, committed=0)


def decided(decision: str = "APPROVED", event: e.PayoutRequested = ASKED) -> e.PayoutDecided:
    return e.PayoutDecided(
        at=NOW + 2, payout=event.payout, account=ACCOUNT, agent="bot", amount=event.amount,
        decision=decision, reason="X", reasons=["X"], findings=[], policy_version=1, bank_status="",
    )  # fmt: skip


def created(bank_id: str, status: str = "processing", outcome: str = "done") -> e.BankCommandAnswered:
    return e.BankCommandAnswered(
        at=NOW + 3, payout=ASKED.payout, command="create", outcome=outcome,  # type: ignore[arg-type]
        bank_status=status, bank_payout="" if outcome == "refused" else bank_id,
        code="no_money" if outcome == "refused" else "",
    )  # fmt: skip


def folded(*events: e.Event) -> PayoutRecord:
    record = fold(events)
    assert record is not None
    return record


looks = st.builds(
    lambda name, status, amount, at: copy_of(ASKED, f"pout_{name}", status, amount=amount, at=NOW + 10 + at),
    st.sampled_from("abc"),
    st.sampled_from(sorted(BANK_RANK)),
    st.sampled_from([100, 101]),
    st.integers(0, 5),
)


@given(
    seen=st.lists(looks, max_size=6),
    governed=st.booleans(),
    answer=st.sampled_from(["", "a", "refused"]),
    data=st.data(),
)
def test_what_the_bank_shows_of_an_intent_commutes_with_itself_and_with_everything_else(
    seen: list[e.PayoutObserved], governed: bool, answer: str, data: st.DataObject
) -> None:
    # One id at the bank has one amount and one time of creation.
    seen = [
        changed(
            look,
            facts=changed(
                look.facts, amount=100 + (look.facts.id == "pout_c"), created_at=ord(look.facts.id[-1])
            ),
        )
        for look in seen
    ]
    ours: list[e.Event] = [ASKED, *([decided()] if governed else [])]
    if governed and answer:
        ours.append(
            created("", outcome="refused", status="failed") if answer == "refused" else created("pout_a")
        )
    mixed: list[e.Event] = list(ours)
    for look in data.draw(st.permutations(seen)):
        mixed.insert(data.draw(st.integers(0, len(mixed))), look)
    assert fold(mixed) == fold([*ours, *seen])


def test_an_id_is_made_of_account_agent_and_key_alone_and_has_the_references_shape() -> None:
    one = intent_id(ACCOUNT, "bot", "k")
    assert is_intent(one)
    assert len(one) == 30
    assert one == intent_id(ACCOUNT, "bot", "k")
    assert (
        len(
            {
                one,
                intent_id(ACCOUNT, "bot", "l"),
                intent_id(ACCOUNT, "bo", "tk"),
                intent_id("acc", "bot", "k"),
            }
        )
        == 4
    )
    for wrong in (one.upper(), one + "0", one[:-1], "pout_1", f" {one}", f"{one}\n"):
        assert not is_intent(wrong)


def test_a_copy_of_an_approved_intent_that_agrees_is_taken_for_it_until_the_answer_names_another() -> None:
    seen = copy_of(ASKED, "pout_z", "processing")
    before = folded(ASKED, decided(), seen)
    assert (before.bank_payout, before.bank_status, before.state) == ("pout_z", "processing", "confirmed")
    after = folded(ASKED, decided(), seen, created("pout_a", "pending"))
    assert (after.bank_payout, after.bank_status, after.state) == ("pout_a", "pending", "approved")
    assert [copy.id for copy in foreign_copies(after)] == ["pout_z"]


def test_a_copy_of_another_amount_or_of_an_intent_that_is_not_approved_is_never_taken_for_it() -> None:
    dear = folded(ASKED, decided(), copy_of(ASKED, "pout_z", "processing", amount=101))
    assert (dear.bank_payout, dear.amount, dear.state) == ("", 100, "approved")
    for decision in ("HELD", "REJECTED"):
        record = folded(ASKED, decided(decision), copy_of(ASKED, "pout_z", "processing"))
        assert (record.bank_payout, record.bank_status) == ("", "")
        assert [copy.id for copy in foreign_copies(record)] == ["pout_z"]


def test_a_reference_that_nobody_asked_for_is_nobodys_payout() -> None:
    record = folded(copy_of(ASKED, "pout_z", "processing"))
    assert (record.agent, record.amount, record.bank_status, record.intent) == ("unknown", 0, "", None)
    assert [copy.id for copy in foreign_copies(record)] == ["pout_z"]


def test_a_refused_creation_fails_the_payout_and_releases_what_was_reserved() -> None:
    reserved = e.BudgetReserved(
        at=NOW + 1, payout=ASKED.payout, amount=100, number=1, windows=[WINDOW], findings=[]
    )
    record = folded(ASKED, reserved, decided(), created("", "failed", "refused"))
    assert (record.state, record.failure, settlement_due(record)) == ("failed", "no_money", "released")
    assert is_terminal(record)


def test_the_beneficiary_is_forgotten_when_nobody_needs_it_any_more() -> None:
    asked = requested(amount=100, payee=PAYEE)
    held = folded(asked, decided("HELD", asked))
    assert held.intent is not None
    assert held.intent.beneficiary == PAYEE
    for end in (decided("REJECTED", asked), created("pout_a"), created("", "failed", "refused")):
        after = evolve(folded(asked, decided("APPROVED", asked)), end)
        assert after is not None
        assert after.intent is not None
        assert after.intent.beneficiary is None
        assert after.intent.digest


def test_a_rejected_intent_is_over_since_nothing_is_at_the_bank() -> None:
    assert is_terminal(folded(ASKED, decided("REJECTED")))
    assert not is_terminal(folded(ASKED, decided("HELD")))


STOPPED = e.PayoutStopped(
    at=NOW + 3, payout=ASKED.payout, command="create", maybe_sent=True, caused_by="0:1-1:0",
    finding=e.Finding(stage="screening", code="FROZEN", outcome="REJECTED"),
)  # fmt: skip


def test_a_stopped_intent_that_an_attempt_may_have_made_is_looked_for_until_the_search_is_over() -> None:
    lost = folded(ASKED, decided(), STOPPED, decided("REJECTED"))
    assert (is_terminal(lost), settlement_due(lost)) == (False, None)
    given_up = evolve(lost, created("", "", "not_needed"))
    assert given_up is not None
    assert is_terminal(given_up)


def test_what_may_be_a_stopped_intents_own_is_nobody_elses_while_it_is_looked_for() -> None:
    lost = folded(ASKED, decided(), STOPPED, decided("REJECTED"))
    seen = [copy_of(ASKED, f"pout_{name}", "processing") for name in "ab"]
    dear = copy_of(ASKED, "pout_c", "processing", amount=101)
    looked = fold([*seen, dear], lost)
    assert looked is not None
    assert looked.bank_payout in ("pout_a", "pout_b")
    assert [copy.id for copy in foreign_copies(looked)] == ["pout_c"]


@pytest.mark.parametrize(
    ("shown", "could_be"),
    [
        ({}, True),
        ({"fund_account": ""}, True),  # the bank did not show it
        ({"fund_account": "fa_2"}, False),
        ({"amount": 101}, False),
        ({"currency": "USD"}, False),
    ],
)
def test_a_copy_could_be_ours_only_if_it_pays_the_same_to_the_same(
    shown: dict[str, str], could_be: bool
) -> None:
    copy = BankCopy(**{"id": "pout_a", "amount": 100, "currency": "INR", "fund_account": "fa_1", **shown})  # type: ignore[arg-type]
    assert agrees(copy, 100, "INR", "fa_1") is could_be
    assert agrees(copy, 100, "INR", "") is (could_be or "fund_account" in shown)


def test_what_a_foreign_copy_did_is_noted_with_that_copy_and_not_with_the_intent() -> None:
    bypass = e.GovernanceBypassed(
        at=NOW + 9, payout=ASKED.payout, account=ACCOUNT, agent="bot", amount=101, status="processed",
        bank_payout="pout_z",
    )  # fmt: skip
    record = folded(ASKED, decided(), copy_of(ASKED, "pout_z", "processed", amount=101), bypass)
    assert (record.bypassed, record.state, record.bank_payout) == (False, "approved", "")
    assert [(copy.id, copy.amount, copy.bypassed) for copy in record.copies] == [("pout_z", 101, True)]


def test_an_intent_has_the_utr_and_fees_of_its_own_payout_alone_whenever_the_bank_named_them() -> None:
    def shown(name: str, utr: str, fees: int, tax: int) -> e.PayoutObserved:
        seen = copy_of(ASKED, name, "processed")
        return changed(seen, facts=changed(seen.facts, utr=utr, fees=fees, tax=tax))

    seen = [shown("pout_z", "Z9", 900, 90), shown("pout_a", "", 0, 0), shown("pout_a", "A1", 118, 18)]
    for order in permutations(seen):
        record = folded(ASKED, decided(), created("pout_a"), *order)
        assert (record.utr, record.fees, record.tax, record.state) == ("A1", 118, 18, "processed")


def test_a_copy_that_moved_before_the_approval_is_not_what_was_approved() -> None:
    seen = copy_of(ASKED, "pout_z", "processing")
    bypass = e.GovernanceBypassed(
        at=NOW + 9, payout=ASKED.payout, account=ACCOUNT, agent="bot", amount=100, status="processing",
        bank_payout="pout_z",
    )  # fmt: skip
    record = folded(ASKED, decided("HELD"), seen, bypass, decided(), seen)
    assert (record.bank_payout, record.bank_status, record.state) == ("", "", "approved")
    assert [(copy.id, copy.bypassed) for copy in record.copies] == [("pout_z", True)]


def test_once_the_bank_refused_to_create_it_every_copy_is_foreign() -> None:
    record = folded(ASKED, decided(), created("", "failed", "refused"), copy_of(ASKED, "pout_z", "pending"))
    assert (record.bank_payout, record.state) == ("", "failed")
    assert [copy.id for copy in foreign_copies(record)] == ["pout_z"]


def test_an_answer_about_a_foreign_copy_leaves_the_intent_as_it_is() -> None:
    ended = changed(created("pout_z", "cancelled"), command="cancel")
    for earlier in ([], [created("pout_a", "pending")]):
        record = folded(ASKED, decided(), *earlier)
        assert evolve(record, ended) == changed(record, updated_at=ended.at)
    for named in ("pout_a", ""):  # where none is named it is about the intent's own
        before = folded(ASKED, decided(), created("pout_a", "queued"))
        ours = evolve(before, changed(ended, bank_payout=named))
        assert ours is not None
        assert (ours.bank_payout, ours.bank_status, ours.state) == ("pout_a", "cancelled", "cancelled")


def test_an_intent_is_open_until_money_moves_for_it() -> None:
    moved = {
        "": True,
        "pending": True,
        "queued": True,
        "processing": False,
        "processed": False,
        "failed": False,
    }
    for status, is_still_open in moved.items():
        record = folded(ASKED, decided(), *([created("pout_a", status)] if status else []))
        assert (record.bank_status, is_open(record)) == (status, is_still_open)


def test_no_more_copies_are_kept_than_the_limit_and_ours_is_among_them() -> None:
    seen = [copy_of(ASKED, f"pout_{n:02}", "pending") for n in range(COPIES_MAX + 3)]
    record = folded(ASKED, decided(), *seen, created("pout_zz"))
    assert len(record.copies) <= COPIES_MAX + 1
    assert record.bank_payout == "pout_zz"
