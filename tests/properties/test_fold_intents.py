"""An intent's record does not depend on the order in which the bank's copies of it are seen, and no copy changes it."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from streamproc.domain import events as e
from streamproc.domain.copies import COPIES_MAX
from streamproc.domain.intent import Beneficiary, intent_id, is_intent
from streamproc.domain.ours import foreign_copies
from streamproc.domain.payouts import PayoutRecord, evolve, fold, is_terminal, settlement_due
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


def test_no_more_copies_are_kept_than_the_limit_and_ours_is_among_them() -> None:
    seen = [copy_of(ASKED, f"pout_{n:02}", "pending") for n in range(COPIES_MAX + 3)]
    record = folded(ASKED, decided(), *seen, created("pout_zz"))
    assert len(record.copies) <= COPIES_MAX + 1
    assert record.bank_payout == "pout_zz"
