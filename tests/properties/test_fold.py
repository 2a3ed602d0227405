"""A payout's record does not depend on the order in which the bank's observations reach it."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain import payouts
from streamproc.domain.budget import Counters, Window
from streamproc.domain.payouts import ASKED, evolve, fold, settlement_due
from streamproc.domain.states import BANK_RANK, state_of
from streamproc.domain.wire import EVENT_KINDS
from tests.words import NOW, observed

WINDOW = e.WindowUse(scope="agent:bot", window="d", limit=None, reserved=0, committed=0)
statuses = st.sampled_from(sorted(BANK_RANK))


def decided(decision: str, at: int = NOW + 2) -> e.PayoutDecided:
    return e.PayoutDecided(
        at=at,
        payout="pout_1",
        account="acc",
        agent="bot",
        amount=100,
        decision=decision,  # type: ignore[arg-type]
        reason="X",
        reasons=["X"],
        findings=[],
        policy_version=1,
        bank_status="pending",
    )


def observations(drawn: list[str]) -> list[e.PayoutObserved]:
    return [observed(status=status, amount=100, at=NOW + 10 + i) for i, status in enumerate(drawn)]


@given(
    drawn=st.lists(statuses, max_size=5),
    decision=st.sampled_from(["APPROVED", "REJECTED", "HELD"]),
    data=st.data(),
)
def test_observations_commute_with_decisions_and_with_each_other(
    drawn: list[str], decision: str, data: st.DataObject
) -> None:
    first = observed(amount=100, at=NOW)
    reserved = e.BudgetReserved(
        at=NOW + 1, payout="pout_1", amount=100, number=1, windows=[WINDOW], findings=[]
    )
    later: list[e.Event] = [*observations(drawn)]
    shuffled = data.draw(st.permutations(later))
    cut = data.draw(st.integers(0, len(shuffled)))
    governed: list[e.Event] = [reserved, decided(decision)]
    assert fold([first, *governed, *later]) == fold([first, *shuffled[:cut], *governed, *shuffled[cut:]])


def answered(status: str, at: int) -> e.BankCommandAnswered:
    return e.BankCommandAnswered(
        at=at, payout="pout_1", command="approve", outcome="done", bank_status=status
    )  # fmt: skip


@given(
    drawn=st.lists(st.tuples(st.booleans(), statuses), max_size=5),
    decision=st.sampled_from(["APPROVED", "REJECTED", "HELD"]),
    data=st.data(),
)
def test_what_the_bank_answers_to_a_command_counts_as_what_it_shows_and_commutes_with_it(
    drawn: list[tuple[bool, str]], decision: str, data: st.DataObject
) -> None:
    first: list[e.Event] = [observed(amount=100, at=NOW), decided(decision)]
    later: list[e.Event] = [
        answered(status, NOW + 10 + i) if is_answer else observed(status=status, amount=100, at=NOW + 10 + i)
        for i, (is_answer, status) in enumerate(drawn)
    ]
    record = fold([*first, *later])
    assert record == fold([*first, *observations([status for _, status in drawn])])
    assert record == fold([*first, *data.draw(st.permutations(later))])


@given(
    drawn=st.lists(
        st.tuples(statuses, st.sampled_from(["", "U1"]), st.sampled_from([0, 590]), st.sampled_from([0, 90])),
        min_size=1,
        max_size=5,
    ),
    data=st.data(),
)
def test_what_the_bank_names_once_stays_known_whenever_it_names_it(
    drawn: list[tuple[str, str, int, int]], data: st.DataObject
) -> None:
    seen: list[e.Event] = []
    for i, (status, utr, fees, tax) in enumerate(drawn):
        event = observed(status=status, at=NOW + i)
        seen.append(replace(event, facts=replace(event.facts, utr=utr, fees=fees, tax=tax)))
    record = fold(data.draw(st.permutations(seen)))
    assert record is not None
    named = [max(values) for values in zip(*(told[1:] for told in drawn), strict=True)]
    assert [record.utr, record.fees, record.tax] == named


@given(drawn=st.lists(statuses, max_size=6))
def test_an_observation_twice_is_an_observation_once(drawn: list[str]) -> None:
    record = fold(observations(drawn))
    for event in observations(drawn):
        assert evolve(record, event) == record


@given(drawn=st.lists(statuses, min_size=1, max_size=6))
def test_a_bank_status_never_goes_back(drawn: list[str]) -> None:
    record = fold(observations(drawn))
    assert record is not None
    assert BANK_RANK[record.bank_status] == max(BANK_RANK[status] for status in drawn)


@given(status=statuses, decision=st.sampled_from(["APPROVED", "REJECTED", "HELD", None]))
def test_a_reservation_is_settled_exactly_when_the_bank_or_the_decision_is_final(
    status: str, decision: str | None
) -> None:
    history: list[e.Event] = [observed(amount=100, at=NOW)]
    history.append(
        e.BudgetReserved(at=NOW, payout="pout_1", amount=100, number=1, windows=[WINDOW], findings=[])
    )
    history += [decided(decision)] if decision else []
    record = fold([*history, observed(status=status, amount=100, at=NOW + 1)])
    assert record is not None
    due = settlement_due(record)
    if status in ("cancelled", "rejected", "failed", "reversed"):
        assert due == "released"
    elif status == "processed":
        assert due == "committed"
    elif decision == "REJECTED" and status != "processing":
        assert due == "released"
    else:
        assert due is None


def test_every_decision_and_status_has_a_state() -> None:
    for decision in ("APPROVED", "REJECTED", "HELD", None):
        for status in BANK_RANK:
            for bypassed in (True, False):
                assert state_of(decision, status, bypassed)  # type: ignore[arg-type]


def test_every_event_is_known_to_change_the_record_or_to_leave_it() -> None:
    changing, leaving = set(payouts._STEPS) | set(ASKED), payouts._CHANGING_NOTHING
    assert changing | leaving == set(EVENT_KINDS)
    assert not changing & leaving


@given(
    drawn=st.lists(statuses, max_size=3),
    decision=st.sampled_from(["APPROVED", "REJECTED", "HELD"]),
    bypassed=st.booleans(),
)
def test_the_state_is_always_the_one_of_decision_bank_and_bypass(
    drawn: list[str], decision: str, bypassed: bool
) -> None:
    history: list[e.Event] = [observed(amount=100, at=NOW), decided(decision), *observations(drawn)]
    if bypassed:
        history.append(
            e.GovernanceBypassed(
                at=NOW + 50, payout="pout_1", account="acc", agent="bot", amount=100, status="processing"
            )
        )
    for until in range(1, len(history) + 1):
        record = fold(history[:until])
        assert record is not None
        assert record.state == state_of(record.decision, record.bank_status, record.bypassed)


def lived(said: list[tuple[str, int]], *, count_fees: bool) -> tuple[object, object]:
    """What an approved payout's record and its window come to, after the bank said all of this, settled as it goes."""
    counters, window = Counters(), Window("agent:bot", "d", None, 0)
    counters.reserve([window], 100)
    reserved = e.BudgetReserved(
        at=NOW + 1,
        payout="pout_1",
        amount=100,
        number=1,
        windows=[WINDOW],
        findings=[],
        count_fees=count_fees,
    )
    record = fold([observed(amount=100, at=NOW), reserved, decided("APPROVED")])
    for status, fees in said:
        event = observed(status=status, amount=100, at=NOW + 10)
        record = evolve(record, replace(event, facts=replace(event.facts, fees=fees)))
        assert record is not None
        assert record.reservation is not None
        due = settlement_due(record)
        if due is not None:
            held = record.reservation
            charged = record.fees if count_fees and due == "committed" else 0
            assert counters.settle([window], 100, held.state, due, charged=held.fees, fees=charged)
            settled = e.PayoutSettled(
                at=NOW + 10,
                payout="pout_1",
                settlement=due,
                amount=100,
                why="",
                windows=[],
                fees=record.fees,
            )
            record = evolve(record, settled)
            assert record is not None
            assert settlement_due(record) is None
    return record, counters.budgets


@given(
    said=st.lists(st.tuples(statuses, st.sampled_from([0, 118, 590])), max_size=8),
    count_fees=st.booleans(),
    data=st.data(),
)
def test_a_life_comes_to_the_same_record_and_budget_in_every_order_and_however_often_it_is_told(
    said: list[tuple[str, int]], count_fees: bool, data: st.DataObject
) -> None:
    again = data.draw(st.permutations([*said, *said[: data.draw(st.integers(0, len(said)))]]))
    assert lived(said, count_fees=count_fees) == lived(again, count_fees=count_fees)


def told(n: int, kind: str, channel: str = "slack") -> e.NotificationSent:
    return e.NotificationSent(at=NOW + n, payout="pout_1", kind=kind, channel=channel, ref=f"C:{n}")  # type: ignore[arg-type]


@given(
    kinds=st.lists(
        st.sampled_from(["hold", "reminder", "escalation", "outcome", "alert", "private"]), max_size=24
    ),
    drawn=st.lists(statuses, max_size=3),
    data=st.data(),
)
def test_messages_commute_with_each_other_and_with_observations(
    kinds: list[str], drawn: list[str], data: st.DataObject
) -> None:
    first: list[e.Event] = [observed(amount=100, at=NOW), decided("HELD")]
    later: list[e.Event] = [*(told(n, kind) for n, kind in enumerate(kinds)), *observations(drawn)]
    record = fold([*first, *later])
    assert record == fold([*first, *data.draw(st.permutations(later))])
    assert record is not None
    assert record.told == any(notice.kind in ("hold", "reminder", "escalation") for notice in record.notices)
    assert {notice.kind for notice in record.notices} <= {"hold", "reminder", "escalation", "outcome"}


def test_an_alert_about_what_was_never_observed_leaves_nothing() -> None:
    assert fold([told(1, "alert")]) is None
