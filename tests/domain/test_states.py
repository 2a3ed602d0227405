"""The bank's statuses: each documented move counts, none counts twice or backwards; our state follows from it."""

import pytest

from streamproc.domain.events import Decision
from streamproc.domain.payouts import is_terminal, moves_forward
from streamproc.domain.record import PayoutRecord
from streamproc.domain.states import (
    BANK_RANK,
    MOVING_STATUSES,
    OPEN_STATUSES,
    RELEASING_STATUSES,
    State,
    state_of,
)

DOCUMENTED = (
    ("pending", "scheduled queued processing rejected"),
    ("scheduled", "processing cancelled failed"),
    ("queued", "processing cancelled failed"),
    ("processing", "processed failed reversed"),
    ("processed", "failed reversed"),
    ("failed", "reversed"),
)
"""Source: RazorpayX docs, states and life cycle."""
MOVES = [(before, after) for before, several in DOCUMENTED for after in several.split()]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_documented_move_counts_and_the_way_back_does_not(before: str, after: str) -> None:
    def known(status: str) -> PayoutRecord:
        return PayoutRecord(payout="pout_1", account="acc", received_at=1, bank_status=status)

    assert moves_forward(known(before), after)
    assert not moves_forward(known(after), before)
    assert not moves_forward(known(after), after)


def test_the_banks_nine_statuses_are_known_and_no_two_have_the_same_rank() -> None:
    named = {status for move in MOVES for status in move}
    assert set(BANK_RANK) == named
    assert len(set(BANK_RANK.values())) == len(named) == 9
    assert not moves_forward(None, "on_its_way"), "a status that nobody knows moves nothing"


def test_in_each_status_money_has_not_moved_or_is_on_its_way_or_came_back() -> None:
    assert {"pending", "scheduled", "queued"} == OPEN_STATUSES
    assert {"processing", "processed"} == MOVING_STATUSES
    assert {"cancelled", "rejected", "failed", "reversed"} == RELEASING_STATUSES


@pytest.mark.parametrize(
    ("statuses", "undecided", "held", "approved", "rejected", "bypassed"),
    [
        ("pending scheduled queued", "received", "held", "approved", "rejected", "received"),
        ("processing", "received", "held", "confirmed", "rejected", "bypassed"),
        ("processed", "processed", "processed", "processed", "processed", "bypassed"),
        ("failed", "failed", "failed", "failed", "failed", "failed"),
        ("reversed", "reversed", "reversed", "reversed", "reversed", "reversed"),
        ("cancelled", "cancelled", "cancelled", "cancelled", "rejected", "cancelled"),
        ("rejected", "declined", "declined", "declined", "rejected", "declined"),
    ],
)
def test_our_state_is_the_banks_once_money_moved_or_came_back_and_else_the_decisions(
    statuses: str, undecided: State, held: State, approved: State, rejected: State, bypassed: State
) -> None:
    decisions: tuple[Decision | None, ...] = (None, "HELD", "APPROVED", "REJECTED")
    for status in statuses.split():
        found = [state_of(decision, status, False) for decision in decisions]
        assert [*found, state_of(None, status, True)] == [undecided, held, approved, rejected, bypassed], (
            status
        )


@pytest.mark.parametrize("status", ["", *BANK_RANK])
@pytest.mark.parametrize("decision", [None, "HELD", "APPROVED", "REJECTED"])
@pytest.mark.parametrize("bypassed", [False, True])
def test_a_record_may_be_forgotten_when_the_bank_is_done_with_the_payout_or_never_had_what_was_rejected(
    status: str, decision: Decision | None, bypassed: bool
) -> None:
    record = PayoutRecord(
        payout="pout_1", account="acc", received_at=1, bank_status=status, decision=decision, bypassed=bypassed,
        state=state_of(decision, status, bypassed),
    )  # fmt: skip
    is_over = status in ("processed", "failed", "reversed", "cancelled", "rejected")
    never_there = status == "" and decision == "REJECTED"
    assert is_terminal(record) == (is_over or never_there or (bypassed and status == "processing"))
